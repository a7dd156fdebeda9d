"""Trainings of claims, each in a folder of its own: a claim that is killed goes on there."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

import resid_theory as rt
from experiments.claim import ROOT
from resid_theory import store

__all__ = ["TRAININGS", "mean_scores", "trained"]

TRAININGS = ROOT / "out" / "trainings"


def trained(
    name: str,
    nets: Sequence[nn.Module],
    recipe: rt.Recipe,
    *,
    seeds: Sequence[int],
    data: rt.Images,
    test: rt.Images | None = None,
    device: str = "cpu",
    keep: bool = True,
    **more: Any,
) -> rt.Run:
    """Train nets together, or take up such a training where it stopped if it is to be kept.

    The folder's name holds what shall be trained; ``train`` itself refuses a folder of another
    training, such as one with other data or other first weights.
    """
    about = [asdict(recipe), list(seeds), len(data), list(data.pixels.shape[1:]), device]
    key = store.digest(json.dumps(about).encode())[:12]
    folder = TRAININGS / f"{name}.{key}"
    return rt.train(
        list(nets),
        data,
        recipe,
        seed=list(seeds),
        test=test,
        device=device,
        out=folder if keep else None,
        save_seconds=20.0,
        **more,
    )


@torch.no_grad()
def mean_scores(net: nn.Module, data: rt.Images, *, batch: int = 500) -> tuple[float, float]:
    """Mean cross-entropy and share of errors of a net in eval mode, no augmentation."""
    net.eval()
    parameter = next(net.parameters())
    data = data.to(parameter.device)
    loss, wrong = 0.0, 0
    for start in range(0, len(data), batch):
        rows = slice(start, start + batch)
        inputs = data.inputs(data.pixels[rows], parameter.dtype)
        output = net(inputs.contiguous(memory_format=torch.channels_last))
        labels = data.labels[rows]
        loss += float(nn.functional.cross_entropy(output.double(), labels, reduction="sum"))
        wrong += int((output.argmax(1) != labels).sum())
    return loss / len(data), wrong / len(data)
