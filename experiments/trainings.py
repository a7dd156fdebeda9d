"""Trainings of claims, each in its own folder, so that an interrupted claim can resume."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

import resid_theory as rt
from experiments.provenance import ROOT
from resid_theory import training
from resid_theory.runtime import store
from resid_theory.training.run import Callback

TRAININGS = ROOT / "out" / "trainings"
FULL_EPOCHS = 200  # length of the papers' trainings on CIFAR-10


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
) -> rt.training.Run:
    """Train the net of an architecture record, or resume an earlier call.

    ``seed`` determines the order and the augmentation, the record's ``generator`` the initial
    weights. ``samples`` keeps the first images of the training set, ``pooled`` averages them to so
    many pixels per side. ``keep=False`` writes nothing.
    """
    images = image_set(data, "train", samples, pooled or 32)
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
    callbacks: Sequence[Callback] = (),
    device: str = "cpu",
    keep: bool = True,
) -> rt.training.Run:
    """Train nets together, or resume an earlier call.

    ``name``, any JSON value, distinguishes this training and its callbacks from others with equal
    recipe, seeds, device and versions. The folder's name is a digest of all of these but not of the
    code, so delete the folder if the code of the training changes.
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
        callbacks=callbacks,
        device=device,
        out=TRAININGS / folder if keep else None,
        save_seconds=20.0,
        progress=False,
    )


def evaluated(net: nn.Module, images: rt.Images, *, batch: int = 500) -> tuple[float, float]:
    """Mean cross-entropy in nats and error rate of a net in eval mode, without augmentation."""
    found = rt.evaluate(net, images, top=(1,), batch=batch)
    return found.loss, found.error(1)


_results: dict[str, list[Any]] = {}


def once(train: Callable[..., list[Any]], *given: Any, **settings: Any) -> list[Any]:
    """Call a function, or return its result of an equal call in this process."""
    key = json.dumps([train.__module__, given, settings], sort_keys=True)
    if key not in _results:
        _results[key] = train(*given, **settings)
    return _results[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A trained net with its log, and its mean loss and error rate on the training images."""

    net: nn.Module
    lines: list[dict[str, Any]]
    loss: float
    error: float

    def along(self, name: str) -> np.ndarray:
        """Values of one quantity of the log by epoch, without the start."""
        return np.array([line[name] for line in self.lines if line.get("epoch")], dtype=float)


def image_set(
    name: str, split: str, samples: int | None = None, size: int | None = 32
) -> rt.Images:
    """Load images; ``samples`` keeps the first, ``size`` averages to so many pixels per side."""
    return rt.load_images(name, split, samples=samples, size=size, progress=False)


def spread(values: np.ndarray) -> str:
    """Format mean and standard deviation over seeds."""
    values = np.ravel(values)
    if len(values) == 1:
        return f"{values[0]:.4g} (n = 1)"
    return f"{values.mean():.4g} ± {values.std(ddof=1):.2g} (n = {len(values)})"
