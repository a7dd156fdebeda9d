"""Table 2 and Figure 6: equality of equivalent nets throughout training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, near
from experiments.noise_stability.nets import (
    EVERY_DEPTH,
    FULL,
    ONE,
    PAPER,
    start_net,
    trainings_of,
)
from experiments.parts import Each, Part, by_name, in_turn
from experiments.trainings import image_set
from resid_theory.identity import shifted
from resid_theory.training import NOISE_STABILITY

EQUAL = 1e-12  # float64: a few hundred roundings per step, amplified where ReLUs switch


def _effective(net: nn.Module) -> torch.Tensor:
    """Effective parameters in float64: 1 is added at the ID entries of residual weights."""
    added = {parameter: mask for parameter, mask in shifted(net)}
    parts = [p.detach() + added[p] if p in added else p.detach() for p in net.parameters()]
    return torch.cat([part.double().flatten() for part in parts]).cpu()


class _SideBySide:
    """Differences of weights and loss between two nets during the same training; a callback."""

    def __init__(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        self.x, self.labels = x, labels
        self.first: tuple[torch.Tensor, float] | None = None
        self.rows: list[tuple[float, float, float, float]] = []

    def __call__(self, net: nn.Module, moment: Any) -> None:
        parameter = next(net.parameters())
        with torch.no_grad():
            output = net(self.x.to(parameter))
            loss = float(nn.functional.cross_entropy(output, self.labels.to(parameter.device)))
        if moment.net == 0:
            self.first = _effective(net), loss
        elif self.first is not None and (not self.rows or self.rows[-1][0] != moment.step):
            apart = _effective(net) - self.first[0]
            largest, root = float(apart.abs().max()), float(apart.square().mean().sqrt())
            self.rows.append((moment.step, largest, root, abs(loss - self.first[1])))


@dataclass(frozen=True, kw_only=True)
class Divergence(Part):
    """Two equivalent nets, trained side by side; rows (step, largest, rms, loss difference)."""

    depth: int
    steps: int
    batch: int
    name: str
    size: int
    precision: str
    corrected: bool

    def arrays(self, device: str) -> dict[str, np.ndarray]:
        """Train on the CPU, whatever the device, as the paper does."""
        wanted = self.batch * self.steps
        data = image_set(self.name, "train", wanted if self.name != "digits" else None, self.size)
        # One epoch of exactly this number of steps, if there are enough images.
        given = data.first(wanted) if len(data) > wanted else data
        dtype = torch.float64 if self.precision == "float64" else torch.float32
        nets = [
            start_net("explicit", self.depth, self.seed, dtype),
            # Converted before 1 is added, because adding it in float32 would round.
            start_net("transferred", self.depth, self.seed, dtype),
        ]
        recipe = NOISE_STABILITY.change(
            epochs=-(-wanted // len(given)), batch=self.batch, milestones=(),
            precision=self.precision, augmentation="none",
        )  # fmt: skip
        probe = data.inputs(data.pixels[: self.batch], dtype)
        seen = _SideBySide(probe, data.labels[: self.batch])
        rt.train(
            nets,
            given,
            recipe,
            seed=[self.seed, self.seed],
            device="cpu",
            callbacks=[seen],
            every=1,
            correction=rt.IdDecay if self.corrected else None,
            progress=False,
        )
        return {"rows": np.array(seen.rows)[: self.steps + 1]}


def compute_table_2(
    *,
    depth: int,
    steps: int,
    batch: int,
    name: str,
    seed: int,
    size: int = 32,
    depths: Sequence[int] = (),
    training: Mapping[str, Any] | None = None,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compare the net that adds Id(x) explicitly with the plain net that starts at τ(θ)."""
    pair = ("transferred", "residual")
    same = dict(depth=depth, steps=steps, batch=batch, name=name, size=size, seed=seed)
    kinds = {"float64": ("float64", True), "float32": ("float32", True)}
    kinds["uncorrected"] = ("float64", False)
    apart = {
        label: [Divergence(precision=precision, corrected=corrected, **same)]
        for label, (precision, corrected) in kinds.items()
    }
    # Full trainings, which differ by the round-off of all epochs.
    trainings = trainings_of(pair, depths, training) if training else {}
    found = by_name({**apart, **trainings}, each, device)
    arrays = {label: found[label][0]["rows"] for label in kinds}
    if not trainings:
        return arrays
    arrays["depth"] = np.array(depths)
    for name in ("loss", "test_error"):
        arrays[name] = np.array([[[r[name] for r in found[k, d]] for d in depths] for k in pair])
    return arrays


def judge_table_2(a: Arrays) -> list[Criterion]:
    """Require equality up to round-off with corrected weight decay, and a difference without."""
    exact, off = a["float64"], a["uncorrected"]
    at = min(100, int(exact[-1, 0]))
    largest = float(exact[: at + 1, 1].max())
    quarter = max(1, len(exact) // 4)
    trend = float(exact[-quarter:, 1].mean() / exact[1 : 1 + quarter, 1].mean())
    ratio = float(off[at, 1] / exact[at, 1])
    found = [
        Criterion(
            f"largest |θ_p - τ(θ_r)| within {at} steps of SGD with momentum and decay, float64",
            f"< {EQUAL:g} (round-off; same batches)",
            f"{largest:.1e}",
            largest < EQUAL,
        ),
        Criterion(
            "round-off grows along training",
            "mean of the last quarter above that of the first (Figure 6, shape only)",
            f"{trend:.3g} times",
            trend > 1,
        ),
        Criterion(
            f"without the correction of weight decay the nets part within {at} steps",
            "> 1e6 times as far apart",
            f"{ratio:.2g} times ({off[at, 1]:.1e})",
            ratio > 1e6,
        ),
    ]
    if "loss" in a:
        # Full trainings differ by round-off that ReLUs amplify: every pair is a draw of its own.
        loss, error = a["loss"].reshape(2, -1), a["test_error"].reshape(2, -1)
        found += [
            near(
                "test error after training, transferred less residual, pairs of all depths",
                error[0] - error[1],
                margin=0.01,
                source="Table 2: .1121 .1085 .1159 against .1131 .1143 .1182 of Table 1",
            ),
            near(
                "training loss after training, transferred over residual, less 1",
                loss[0] / loss[1] - 1,
                margin=0.05,
                source="Table 2: .0413 .0488 .0735 against .0429 .0485 .0740 of Table 1",
            ),
        ]
    return found


def draw_table_2(figure: Figure, a: Arrays) -> None:
    """Plot the distance of the two nets during training (Figure 6)."""
    axes = figure.subplots(1, 2, sharex=True)
    for label in ("float64", "float32", "uncorrected"):
        step, largest, root, loss = a[label][1:].T
        name = "float64, decay not corrected" if label == "uncorrected" else label
        (line,) = axes[0].semilogy(step, largest, label=name)
        axes[0].semilogy(step, root, ":", color=line.get_color())
        axes[1].semilogy(step, np.where(loss > 0, loss, np.nan), label=name)
    axes[0].set(xlabel="step", ylabel="|θ_p - τ(θ_r)|: largest (line), rms (dots)")
    axes[1].set(xlabel="step", ylabel="difference of the losses")
    axes[0].legend()


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="noise_stability/table_2",
        source=f"{PAPER}, Table 2 and Figure 6",
        says="A plain net that starts at the transferred weights of a residual net is equal to it "
        "throughout training, up to round-off that grows slowly (Table 2, Figure 6).",
        settings={
            "quick": {
                "depth": 5, "steps": 10, "batch": 14, "name": "digits", "seed": 0, "size": 8,
                "scaled": "digits at 8 x 8, depth 5, 10 steps",
            },
            "short": {
                "depth": 20, "steps": 100, "batch": 32, "name": "cifar10", "seed": 0,
                "scaled": "100 steps of batch 32",
            },
            "single": {
                "depth": 20, "steps": 100, "batch": 128, "name": "cifar10", "seed": 0,
                "depths": [20], "training": ONE, "scaled": "full trainings of depth 20 only",
            },
            "paper": {
                "depth": 20, "steps": 100, "batch": 128, "name": "cifar10", "seed": 0,
                "depths": EVERY_DEPTH, "training": FULL,
            },
        },
        compute=compute_table_2,
        judge=judge_table_2,
        draw=draw_table_2,
    ),
]  # fmt: skip
