"""Trainings in bfloat16 and TF32 against the same ones in float32.

The papers trained in float32. At their scale bfloat16, of nets with BatchNorm, and TF32, of those
without, take a sixth of the time on a GPU; what that changes is measured on one net of each recipe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments import diracnets, noise_stability
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, near
from experiments.diracnets.start import MARGIN
from experiments.parts import Each, in_turn
from experiments.trainings import Training, fits

NETS = {"plain": "simplified", "full_residual": "full residual", "dirac": "Dirac"}
COARSE = {"plain": "TF32", "full_residual": "bfloat16", "dirac": "bfloat16"}


def _trainings(net: str, depth: int, training: Mapping[str, Any]) -> list[Training]:
    """The trainings that the claims on this net ask for, one per seed."""
    if net == "dirac":
        return diracnets.nets.trainings_of(net, training, depth=depth)
    return noise_stability.nets.trainings_of([net], [depth], training)[net, depth]


def compute_precision(
    *,
    depths: Mapping[str, int],
    control: str,
    training: Mapping[str, Any],
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute test errors by epoch, (2, seeds, epochs): by the recipe, and in the control's."""
    groups: dict[tuple[str, bool], list[Training]] = {}
    for net, depth in depths.items():
        groups[net, False] = _trainings(net, depth, training)
        groups[net, True] = [
            replace(made, recipe=made.recipe.change(precision=control))
            for made in groups[net, False]
        ]
    found, arrays = fits(groups, each, device), {}
    for net in depths:
        pairs = [found[net, False], found[net, True]]
        losses, errors = (
            np.array([[fit.along(name) for fit in row] for row in pairs])
            for name in ("loss", "test_error")
        )
        arrays[f"{net}.test_error"] = errors
        arrays[f"{net}.same"] = (losses[0] == losses[1]).all(1)
    return arrays


def _nets(a: Arrays) -> Sequence[str]:
    return [net for net in NETS if f"{net}.same" in a]


def judge_precision(a: Arrays) -> list[Criterion]:
    """Test that final errors are equal; undecided where both were computed in one precision."""
    criteria = []
    for net in _nets(a):
        final = 100 * a[f"{net}.test_error"][:, :, -1]
        same = int(a[f"{net}.same"].sum())
        criteria += [
            near(
                f"{NETS[net]} nets: test error by the recipe less that of the control, same seed, "
                "points",
                final[0] - final[1],
                margin=MARGIN,
                source="nets within 1 point are alike in Figure 1 of arXiv:1706.00388v2",
                shown=f"{final[0].mean():.2f} and {final[1].mean():.2f} %",
            ),
            Criterion(
                f"{NETS[net]} nets: seeds whose losses of all epochs are equal to the last bit",
                "0: the device has rounded as the recipe allows",
                f"{same} of {final.shape[1]}",
                None if same else True,
            ),
        ]
    return criteria


def draw_precision(figure: Figure, a: Arrays) -> None:
    """Plot test errors by epoch, one panel a net."""
    nets = _nets(a)
    for ax, net in zip(figure.subplots(1, len(nets), squeeze=False)[0], nets, strict=True):
        for rows, color, label in zip(
            a[f"{net}.test_error"], ("C0", "C1"), (COARSE[net], "control"), strict=True
        ):
            epochs = np.arange(1, rows.shape[1] + 1)
            ax.plot(epochs, 100 * rows.mean(0), color=color, label=label)
            ax.plot(epochs, 100 * rows.T, ".", color=color, alpha=0.3)
        ax.set(xlabel="epoch", ylabel="test error (%)", title=NETS[net])
        ax.legend()


DEPTHS = {"plain": 20, "full_residual": 20, "dirac": 28}
CLAIMS = [
    Claim(
        id="crossings/precision",
        kind="law",
        source="Trainings of Yu & Tomasi 2019, arXiv:1905.10944, and of Zagoruyko & Komodakis "
        "2017, arXiv:1706.00388v2; not in the papers",
        says="Nets trained in TF32 or bfloat16, as at the paper's scale here, end with the test "
        "error of those trained in float32.",
        settings={
            "quick": {
                "depths": {"plain": 8, "full_residual": 8, "dirac": 10},
                "control": "float64",
                "training": {
                    "seeds": [0, 1], "epochs": 1, "batch": 16, "name": "digits", "samples": 32,
                    "tests": 32, "size": 8,
                },
                "scaled": "32 digits at 8 x 8, one epoch of batch 16; float32, as on any CPU, "
                "against float64",
            },
            "single": {
                "depths": DEPTHS,
                "control": "float32",
                "training": {"seeds": [0], "epochs": 200},
                "scaled": "one seed, which decides no test",
            },
            "paper": {
                "depths": DEPTHS,
                "control": "float32",
                "training": {"seeds": [0, 1, 2, 3, 4], "epochs": 200},
            },
        },
        compute=compute_precision,
        judge=judge_precision,
        draw=draw_precision,
    ),
]  # fmt: skip
