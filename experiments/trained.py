"""The trained nets that ship in ``checkpoints/``: python -m experiments.trained [name ...].

A training that is killed goes on from its last checkpoint when it is called again.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import resid_theory as rt
from experiments.claim import ROOT
from resid_theory import store, training
from resid_theory._check import choose

__all__ = ["CHECKPOINTS", "NETS", "Trained", "main", "train_shipped"]

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
TRAININGS = ROOT / "out" / "trainings"


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What makes a shipped net: the call that builds it, the recipe and the seed of the order.

    Attributes:
        architecture: Builder and arguments; their ``generator`` is the seed of the initial weights.
        recipe: Of the full schedule; shorter ones keep its shares.
        seed: Of the order of the samples and their augmentation.
    """

    architecture: Mapping[str, Any]
    recipe: rt.Recipe
    seed: int = 0


def _simplified(identity: str, depth: int) -> Trained:
    arguments = {"depth": depth, "identity": identity, "generator": 0}
    architecture = {"builder": "simplified_net", "arguments": arguments}
    return Trained(
        architecture=architecture, recipe=training.NOISE_STABILITY.change(channels_last=True)
    )


def _full(shortcut: bool) -> Trained:
    arguments = {"depth": 20, "shortcut": shortcut, "generator": 0}
    # BatchNorm rescales what bfloat16 rounds, and no weight holds an identity here.
    recipe = training.NOISE_STABILITY_BN.change(channels_last=True, precision="bf16")
    return Trained(architecture={"builder": "full_net", "arguments": arguments}, recipe=recipe)


def _dirac(identity: str) -> Trained:
    arguments = {"depth": 28, "width": 1, "identity": identity, "generator": 0}
    recipe = training.DIRACNETS.change(channels_last=True, precision="bf16")
    return Trained(architecture={"builder": "diracnet", "arguments": arguments}, recipe=recipe)


NETS = {
    "simplified_plain_20": _simplified("plain", 20),
    "simplified_residual_20": _simplified("residual", 20),
    "simplified_plain_32": _simplified("plain", 32),
    "simplified_residual_32": _simplified("residual", 32),
    "full_plain_20": _full(shortcut=False),
    "full_residual_20": _full(shortcut=True),
    "diracnet_28_1": _dirac("dirac"),
    "plain_28_1": _dirac("plain"),
}
"""The nets of the noise-stability and DiracNets papers that ship."""


def train_shipped(name: str, *, epochs: int = 15, device: str = "cpu") -> Path:
    """Train a shipped net on all of CIFAR-10 and put it into ``checkpoints/`` with its log."""
    made = NETS[choose("name", name, list(NETS))]
    recipe = made.recipe.scaled(epochs)
    run = rt.train(
        training.build_net(made.architecture),
        rt.load_images("cifar10"),
        recipe,
        seed=made.seed,
        test=rt.load_images("cifar10", "test"),
        device=device,
        out=TRAININGS / f"{name}.{epochs}",
    )
    last = [line for line in run.metrics if "epoch" in line][-1]
    about = {
        "recipe": vars(recipe),
        "seed": made.seed,
        "data": "cifar10, all 50,000 training images",
        "last": last,
        "seconds": round(run.seconds),
        "device": device,
        "torch": torch.__version__,
    }
    path = CHECKPOINTS / f"{name}.json"
    rt.save_checkpoint(path, run.net, architecture=made.architecture, about=about)
    log = (TRAININGS / f"{name}.{epochs}" / "metrics.jsonl").read_bytes()
    store.write_bytes(CHECKPOINTS / f"{name}.metrics.jsonl", log)
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the named nets, or all, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m experiments.trained", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(NETS)}; all if none is given")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    for name in options.names or NETS:
        print(train_shipped(name, epochs=options.epochs, device=options.device), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
