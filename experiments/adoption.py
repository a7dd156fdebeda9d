"""A folder of ``rt.train`` as a finished part."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import resid_theory as rt
from experiments.parts import Finished, Store, float32_by_default
from experiments.trainings import HOW, PRECISIONS, Training, result
from resid_theory.runtime import store
from resid_theory.training.device_dataset import DeviceDataset


def is_training(folder: Path) -> bool:
    """True for a folder that ``rt.train`` wrote."""
    return (folder / "checkpoint.json").is_file()


@float32_by_default()
def adopt(
    folder: Path, trainings: Iterable[Training], own: Store, told: Mapping[str, Any]
) -> Training:
    """Keep the result of a finished training of one net as the part that it is.

    Args:
        folder: Its checkpoint, metrics and net.
        trainings: Parts among which it is looked for, by architecture, recipe, seed and data.
        own: Where it is kept.
        told: What the folder does not know, such as commit and hardware, for the record.

    Raises:
        ValueError: If the training is not finished, is none of these, or had other data.
    """
    tensors, about = store.read_checkpoint(folder / "checkpoint.json")
    if about.get("kind") != "training" or len(about["architectures"]) != 1:
        raise ValueError(f"{folder}: is no training of one net")
    if not (folder / "net.json").is_file():
        raise ValueError(f"{folder}: the training is at step {about['step']}, needs its end")
    net = rt.load_checkpoint(folder / "net.json")
    part = _part_of(folder, about, net.architecture, trainings)  # type: ignore[arg-type]
    data, test = part.images("train"), part.images("test")
    for name, images in (("data", data), ("test", test)):
        here = DeviceDataset(name, images, net, part.recipe).digest
        if here != about[name]:
            raise ValueError(
                f"{folder}: {name} with sha256 {about[name]} were used, {part.cell} needs {here}"
            )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    losses = tensors["first_losses"][0].numpy() if "first_losses" in tensors else np.zeros(0)
    last = about["environments"][-1]
    how = {name: about["recipe"][name] for name in ("precision", *HOW)}
    record = {"hardware": None, "commit": None, **last, **how, **told, "code": None}
    own.write(
        part,
        Finished(
            arrays={**result(net, lines, data, test), "first_losses": losses},
            record={**record, "seconds": about["seconds"]},
        ),
    )
    return part


def _part_of(
    folder: Path,
    about: Mapping[str, Any],
    architecture: Mapping[str, Any],
    trainings: Iterable[Training],
) -> Training:
    recipe, (seed,) = rt.Recipe(**about["recipe"]), about["seeds"]
    for part in trainings:
        fine = PRECISIONS.index(recipe.precision) >= PRECISIONS.index(part.recipe.precision)
        allowed = recipe.change(precision=part.recipe.precision)
        same = replace(part, architecture=dict(architecture), recipe=allowed, seed=seed)
        if fine and part.initial is None and same.key == part.key:
            return part
    raise ValueError(f"{folder}: no claim asks for this training of {architecture}")
