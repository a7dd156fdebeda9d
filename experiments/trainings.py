"""Trainings of claims, each in a folder of its own: a claim that is killed goes on there."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

import resid_theory as rt
from experiments.claim import ROOT
from resid_theory import store, training
from resid_theory.training.results import Callback

__all__ = ["TRAININGS", "evaluated", "trained", "trained_together"]

TRAININGS = ROOT / "out" / "trainings"


def trained(
    architecture: Mapping[str, Any],
    recipe: rt.Recipe,
    seed: int,
    *,
    data: str = "cifar10",
    samples: int | None = None,
    pooled: int | None = None,
    device: str = "cpu",
    keep: bool = True,
) -> rt.Run:
    """Train the net of an architecture record, or take up what an earlier call left.

    ``seed`` is that of the order and the augmentation; the record's ``generator`` that of the
    initial weights. ``samples`` keeps the first images of the training set, ``pooled`` averages
    them down to so many pixels a side. ``keep=False`` writes nothing.
    """
    images = rt.load_images(data, samples=samples, size=pooled or 32, progress=False)
    return trained_together(
        [training.build_net(architecture)],
        recipe,
        [seed],
        name={"architecture": dict(architecture), "data": [data, samples, pooled]},
        data=images,
        device=device,
        keep=keep,
    )


def trained_together(
    nets: Sequence[nn.Module],
    recipe: rt.Recipe,
    seeds: Sequence[int],
    *,
    name: Any,
    data: rt.Images,
    test: rt.Images | None = None,
    device: str = "cpu",
    callbacks: Sequence[Callback] = (),
    keep: bool = True,
) -> rt.Run:
    """Train nets through the same epochs, or take up what an earlier call left.

    ``name``, anything JSON can hold, tells this training from others of equal recipe, seeds,
    device and versions. The folder's name is a digest of all of these; code is not part of it, nor
    are ``callbacks``, so delete the folder when training itself or what they measure changes.
    """
    versions = [rt.__version__, torch.__version__]
    made = [name, asdict(recipe), list(seeds), device, versions]
    folder = store.digest(json.dumps(made, sort_keys=True).encode())[:20]
    return rt.train(
        list(nets),
        data,
        recipe,
        seed=list(seeds),
        test=test,
        device=device,
        callbacks=callbacks,
        out=TRAININGS / folder if keep else None,
        save_seconds=20.0,
        progress=False,
    )


def evaluated(net: nn.Module, images: rt.Images, *, batch: int = 500) -> tuple[float, float]:
    """Mean cross-entropy in nats and share of errors of a net in eval mode, on images as stored."""
    found = rt.evaluate(net, images, top=(1,), batch=batch)
    return found.loss, found.error(1)
