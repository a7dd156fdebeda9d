"""Train the nets shipped in ``checkpoints/``: python -m experiments.shipped [name ...].

An interrupted training resumes from its last checkpoint when it is called again.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import resid_theory as rt
from experiments.trainings import TRAININGS, evaluated, trained
from resid_theory import training
from resid_theory._check import check_choice
from resid_theory.runtime import store

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Specification of a shipped net: architecture, recipe and seed.

    Attributes:
        architecture: Builder and arguments; their ``generator`` is the seed of the initial weights.
        recipe: The full schedule; a shorter one scales it.
        seed: Seed of the order of the samples and of their augmentation.
    """

    architecture: Mapping[str, Any]
    recipe: rt.Recipe
    seed: int = 0


def _simplified(identity: str, depth: int, *, generator: int = 0) -> Trained:
    arguments = {"depth": depth, "identity": identity, "generator": generator}
    architecture = {"builder": "simplified_net", "arguments": arguments}
    return Trained(
        architecture=architecture, recipe=training.NOISE_STABILITY.change(channels_last=True)
    )


def _full(shortcut: bool) -> Trained:
    arguments = {"depth": 20, "shortcut": shortcut, "generator": 0}
    # BatchNorm rescales rounded activations, and no weight contains an identity.
    recipe = training.NOISE_STABILITY_BN.change(channels_last=True, precision="bf16")
    return Trained(architecture={"builder": "full_net", "arguments": arguments}, recipe=recipe)


def _dirac(identity: str) -> Trained:
    arguments = {"depth": 28, "width": 1, "identity": identity, "generator": 0}
    recipe = training.DIRACNETS.change(channels_last=True, precision="bf16")
    return Trained(architecture={"builder": "diracnet", "arguments": arguments}, recipe=recipe)


NETS = {
    "simplified_plain_20": _simplified("plain", 20),
    "simplified_residual_20": _simplified("residual", 20),
    # From the weights of seed 0 this net does not train: after 10 epochs its loss is still ln 10.
    "simplified_plain_32": _simplified("plain", 32, generator=1),
    "simplified_residual_32": _simplified("residual", 32),
    "full_plain_20": _full(shortcut=False),
    "full_residual_20": _full(shortcut=True),
    "diracnet_28_1": _dirac("dirac"),
    "plain_28_1": _dirac("plain"),
}
"""The shipped nets, of the noise-stability and DiracNets papers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shipped:
    """A shipped net with its log.

    Attributes:
        net: The trained net, in eval mode.
        about: Recipe, seed, device; ``train``: loss and error of the final weights on the training
            images without augmentation.
        lines: The log, one entry per epoch.
    """

    net: nn.Module
    about: Mapping[str, Any]
    lines: list[dict[str, Any]]


def listed_net(
    name: str, state: str, *, epochs: int | None = None, device: str = "cpu"
) -> nn.Module:
    """Load a net of ``NETS`` with its ``"initial"`` or ``"trained"`` weights.

    Trained weights come from the checkpoint, or from a training of ``epochs`` epochs if given.
    """
    made = NETS[check_choice("name", name, list(NETS))]
    if check_choice("state", state, ("initial", "trained")) == "initial":
        return training.build_net(made.architecture).to(device)
    if epochs is None:
        return rt.load_checkpoint(name).to(device)
    return trained(made.architecture, made.recipe.scaled(epochs), made.seed, device=device).net


def shipped(name: str) -> Shipped:
    """Load a shipped net and its log; a FileNotFoundError names the command that trains it."""
    path = CHECKPOINTS / f"{check_choice('name', name, list(NETS))}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: missing; make it with: python -m experiments.shipped {name}"
        )
    _, content = store.read_checkpoint(path)
    about = content["about"]
    log = store.read_bytes(CHECKPOINTS / f"{name}.metrics.jsonl", sha256=about["log_sha256"])
    return Shipped(
        net=rt.load_checkpoint(path),
        about=about,
        lines=[json.loads(line) for line in log.splitlines()],
    )


def train_shipped(name: str, *, epochs: int = 15, device: str = "cpu") -> Path:
    """Train a net of ``NETS`` on all of CIFAR-10 and save it with its log in ``checkpoints/``."""
    made = NETS[check_choice("name", name, list(NETS))]
    recipe, data = made.recipe.scaled(epochs), rt.load_images("cifar10")
    folder = TRAININGS / f"{name}.{epochs}"
    run = rt.train(
        training.build_net(made.architecture),
        data,
        recipe,
        seed=made.seed,
        test=rt.load_images("cifar10", "test"),
        device=device,
        out=folder,
    )
    # Without augmentation, so this loss differs from that of the log.
    loss, error = evaluated(run.net, data)
    log = (folder / "metrics.jsonl").read_bytes()
    last = [line for line in run.metrics if "epoch" in line][-1]
    about = {
        "recipe": vars(recipe),
        "seed": made.seed,
        "data": "cifar10, all 50,000 training images",
        "train": {"loss": loss, "error": error},
        "last": last,
        "log_sha256": store.digest(log),
        "seconds": round(run.seconds),
        "device": device,
        "torch": torch.__version__,
    }
    path = CHECKPOINTS / f"{name}.json"
    rt.save_checkpoint(path, run.net, architecture=made.architecture, about=about)
    store.write_bytes(CHECKPOINTS / f"{name}.metrics.jsonl", log)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the named nets one after another; all of them if none is named."""
    parser = argparse.ArgumentParser(prog="python -m experiments.shipped", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(NETS)}; default: all")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    for name in options.names or NETS:
        print(train_shipped(name, epochs=options.epochs, device=options.device), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
