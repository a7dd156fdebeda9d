"""Table 2 and Figure 6: equality of equivalent nets throughout training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import resid_theory as rt
from experiments.claim import Arrays, Claim, Verdict
from experiments.noise_stability.nets import EVERY_DEPTH, PAPER, start_net, trainings_of
from experiments.parts import Each, in_turn
from experiments.trainings import fits, image_set
from resid_theory.identity import shifted
from resid_theory.training import NOISE_STABILITY

EQUAL = 1e-12  # float64: a few hundred roundings per step, amplified where ReLUs switch


def _effective(net: nn.Module) -> torch.Tensor:
    """Effective parameters in float64: 1 is added at the ID entries of residual weights."""
    added = {parameter: mask for parameter, mask in shifted(net)}
    parts = [p.detach() + added[p] if p in added else p.detach() for p in net.parameters()]
    return torch.cat([part.double().flatten() for part in parts]).cpu()


class _Divergence:
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


def _diverge(
    data: rt.Images,
    depth: int,
    steps: int,
    *,
    batch: int,
    precision: str,
    corrected: bool,
    seed: int,
) -> np.ndarray:
    """Train two equivalent nets; rows (step, largest, rms, loss difference)."""
    # One epoch of exactly this number of steps, if there are enough images.
    given = data.first(batch * steps) if len(data) > batch * steps else data
    epochs = -(-steps * batch // len(given))
    dtype = torch.float64 if precision == "float64" else torch.float32
    nets = [
        start_net("explicit", depth, seed, dtype),
        # Converted before 1 is added, because adding it in float32 would round.
        start_net("transferred", depth, seed, dtype),
    ]
    recipe = NOISE_STABILITY.change(
        epochs=epochs, batch=batch, milestones=(), precision=precision, augmentation="none"
    )
    probe = data.inputs(data.pixels[:batch], dtype)
    seen = _Divergence(probe, data.labels[:batch])
    rt.train(
        nets,
        given,
        recipe,
        seed=[seed, seed],
        device="cpu",
        callbacks=[seen],
        every=1,
        correction=rt.IdDecay if corrected else None,
        stacked=False,
        progress=False,
    )
    return np.array(seen.rows)[: steps + 1]


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
    # Full trainings, which differ by the round-off of all epochs.
    trained = fits(trainings_of(pair, depths, training) if training else {}, each, device)
    data = image_set(name, "train", batch * steps if name != "digits" else None, size)
    kinds = {"float64": ("float64", True), "float32": ("float32", True)}
    kinds["uncorrected"] = ("float64", False)
    found = {
        label: _diverge(
            data, depth, steps, batch=batch, precision=precision, corrected=corrected, seed=seed
        )
        for label, (precision, corrected) in kinds.items()
    }
    if training is None:
        return found
    for key, read in (
        ("loss", lambda fit: fit.number("loss")),
        ("test_error", lambda fit: fit.along("test_error")[-1]),
    ):
        found[key] = np.array([[read(trained[k, d][0]) for d in depths] for k in pair])
    return {**found, "depth": np.array(depths)}


def judge_table_2(a: Arrays) -> list[Verdict]:
    """Require equality up to round-off with corrected weight decay, and a difference without."""
    exact, off = a["float64"], a["uncorrected"]
    at = min(100, int(exact[-1, 0]))
    largest = float(exact[: at + 1, 1].max())
    quarter = max(1, len(exact) // 4)
    trend = float(exact[-quarter:, 1].mean() / exact[1 : 1 + quarter, 1].mean())
    ratio = float(off[at, 1] / exact[at, 1])
    found = [
        Verdict(
            f"largest |θ_p - τ(θ_r)| within {at} steps of SGD with momentum and decay, float64",
            f"< {EQUAL:g} (round-off; same batches)",
            f"{largest:.1e}",
            largest < EQUAL,
        ),
        Verdict(
            "round-off grows along training",
            "mean of the last quarter above that of the first (Figure 6, shape only)",
            f"{trend:.3g} times",
            trend > 1,
        ),
        Verdict(
            f"without the correction of weight decay the nets part within {at} steps",
            "> 1e6 times as far apart",
            f"{ratio:.2g} times ({off[at, 1]:.1e})",
            ratio > 1e6,
        ),
    ]
    if "loss" in a:
        error = np.abs(np.diff(a["test_error"], axis=0)).max()
        loss = np.abs(a["loss"][0] / a["loss"][1] - 1).max()
        found += [
            Verdict(
                "test errors of transferred plain and residual nets after training",
                "|difference| ≤ .01 at every depth",
                f"{error:.4f}",
                bool(error <= 0.01),
            ),
            Verdict(
                "their training losses", "within 5 % at every depth", f"{loss:.3g}", loss <= 0.05
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
        says="A plain net that starts at the transferred weights of a residual net stays equal to "
        "it throughout training.",
        settings={
            "quick": {
                "depth": 8, "steps": 100, "batch": 14, "name": "digits", "seed": 0, "size": 8,
                "scaled": "digits at 8 x 8, depth 8, 100 steps",
            },
            "short": {
                "depth": 20, "steps": 100, "batch": 32, "name": "cifar10", "seed": 0,
                "scaled": "100 steps of batch 32",
            },
            "paper": {
                "depth": 20, "steps": 100, "batch": 128, "name": "cifar10", "seed": 0,
                "depths": EVERY_DEPTH, "training": {"seeds": [0], "epochs": 200},
            },
        },
        compute=compute_table_2,
        judge=judge_table_2,
        draw=draw_table_2,
    ),
]  # fmt: skip
