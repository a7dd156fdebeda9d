"""Trained nets that ship in ``checkpoints/``, by name.

A shipped net is a finished part whose weights have a name. ``<name>`` is trained for 15
epochs, ``paper_scale/<name>`` for the 200 of the papers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

import resid_theory as rt
from experiments.parts import Each, Store
from experiments.trainings import Fit, Training, fits
from resid_theory import training
from resid_theory._check import check_choice

SHORT_EPOCHS = 15


def _training(builder: str, recipe: rt.Recipe, generator: int = 0, **arguments: Any) -> Training:
    architecture = {"builder": builder, "arguments": {**arguments, "generator": generator}}
    return Training(architecture=architecture, recipe=recipe.change(channels_last=True))


_SIMPLIFIED = training.NOISE_STABILITY.change(precision="tf32")
# BatchNorm rescales rounded activations.
_FULL = training.NOISE_STABILITY_BN.change(precision="bf16")
_DIRAC = training.DIRACNETS.change(precision="bf16")
NETS: Mapping[str, Training] = {
    "simplified_plain_20": _training("simplified_net", _SIMPLIFIED, depth=20, identity="plain"),
    "simplified_residual_20": _training(
        "simplified_net", _SIMPLIFIED, depth=20, identity="residual"
    ),
    # From the weights of seed 0 this net does not train: after 10 epochs its loss is still ln 10.
    "simplified_plain_32": _training("simplified_net", _SIMPLIFIED, 1, depth=32, identity="plain"),
    "simplified_residual_32": _training(
        "simplified_net", _SIMPLIFIED, depth=32, identity="residual"
    ),
    "full_plain_20": _training("full_net", _FULL, depth=20, shortcut=False),
    "full_residual_20": _training("full_net", _FULL, depth=20, shortcut=True),
    "diracnet_28_1": _training("diracnet", _DIRAC, depth=28, identity="dirac"),
    "plain_28_1": _training("diracnet", _DIRAC, depth=28, identity="plain"),
}
"""The shipped nets, of the noise-stability and DiracNets papers."""


def shipped_training(name: str, epochs: int = SHORT_EPOCHS) -> Training:
    """The training of a shipped net, with its schedule scaled to other epochs."""
    made = NETS[check_choice("name", name, list(NETS))]
    return replace(made, recipe=made.recipe.scaled(epochs))


def listed_nets(
    names: Sequence[str],
    states: Sequence[str],
    each: Each,
    device: str,
    *,
    epochs: int = SHORT_EPOCHS,
) -> dict[tuple[str, str], nn.Module]:
    """Nets of ``NETS`` with their ``"initial"`` or ``"trained"`` weights, by name and state."""
    for state in states:
        check_choice("states", state, ("initial", "trained"))
    wanted = {name: [shipped_training(name, epochs)] for name in names if "trained" in states}
    found = fits(wanted, each, device, weights=True)
    return {
        (name, state): (
            found[name][0].net if state == "trained" else shipped_training(name).start().eval()
        ).to(device)
        for name in names
        for state in states
    }


def shipped(name: str, epochs: int = SHORT_EPOCHS) -> Fit:
    """The finished training of a shipped net, with its weights."""
    made = shipped_training(name, epochs)
    found = Store(None).find(made, weights=True)
    if found is None:
        raise FileNotFoundError(
            f"{name} of {epochs} epochs does not ship; make it with: "
            f"python -m experiments parts ship {name} --epochs {epochs}"
        )
    return Fit(training=made, arrays=found.arrays)
