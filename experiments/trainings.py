"""Nets that a claim trains for itself: a killed claim goes on from the last checkpoint."""

import json
from collections.abc import Mapping
from typing import Any

import torch

import resid_theory as rt
from experiments.claim import ROOT
from resid_theory import store, training
from resid_theory.images import Images
from resid_theory.losses import cross_entropy
from resid_theory.training import Recipe, Run

__all__ = ["TRAININGS", "evaluated", "trained"]

TRAININGS = ROOT / "out" / "trainings"


def trained(
    architecture: Mapping[str, Any],
    recipe: Recipe,
    seed: int,
    *,
    data: str = "cifar10",
    samples: int | None = None,
    pooled: int | None = None,
    device: str = "cpu",
    keep: bool = True,
) -> Run:
    """Train the net of an architecture record, or take up what an earlier call left.

    ``seed`` is that of the order and the augmentation; the record's ``generator`` that of the
    initial weights. ``samples`` keeps the first images of the training set, ``pooled`` averages
    them down to so many pixels a side. What makes the training names its folder under
    ``out/trainings``; the code does not, so delete that folder when training itself changes.
    ``keep=False`` writes nothing.
    """
    images = rt.load_images(data, samples=samples, size=pooled or 32, progress=False)
    made = {
        "architecture": dict(architecture),
        "recipe": vars(recipe),
        "seed": seed,
        "data": [data, samples, pooled],
        "device": device,
        "versions": [rt.__version__, torch.__version__],
    }
    name = store.digest(json.dumps(made, sort_keys=True).encode())[:20]
    return rt.train(
        training.build_net(architecture),
        images,
        recipe,
        seed=seed,
        device=device,
        out=TRAININGS / name if keep else None,
        progress=False,
    )


@torch.no_grad()
def evaluated(net: torch.nn.Module, images: Images, *, batch: int = 500) -> tuple[float, float]:
    """Mean cross-entropy in nats and share of errors of a net in eval mode, on images as stored."""
    first = next(net.parameters())
    net.eval()
    loss = wrong = 0.0
    for start in range(0, len(images), batch):
        pixels = images.pixels[start : start + batch].to(first.device)
        labels = images.labels[start : start + batch].to(first.device)
        output = net(images.inputs(pixels, first.dtype))
        loss += len(labels) * float(cross_entropy(output, labels))
        wrong += float((output.argmax(1) != labels).sum())
    return loss / len(images), wrong / len(images)
