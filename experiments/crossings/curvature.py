"""Curvature of convolutional nets of two papers, before and after training.

None of the papers makes a prediction. The claims are of our own: the measurements are consistent
(every eigenpair within its bound, two independent estimates in agreement); the measured numbers,
reported with them, are descriptive. Exact statements are in ``linear``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, below
from experiments.parts import Each, Execution, Part, by_name, in_turn
from experiments.shipped import SHORT_EPOCHS, listed_nets
from experiments.trainings import FULL_EPOCHS, image_set

DEMYSTIFYING = "Li et al., arXiv:1611.01186v2"
STABILITY = "Yu & Tomasi, arXiv:1905.10944"
DIRACNETS = "Zagoruyko & Komodakis, arXiv:1706.00388v2"
NORMS = ("identity_removed", "effective")
COLORS = {"plain": "C0", "residual": "C1", "dirac": "C2"}


# -- curvature of convolutional nets ---------------------------------------------------------------


def _curvature(
    net: nn.Module,
    data: object,
    batchnorm: str,
    k: int,
    probes: int,
    steps: int,
    seed: int,
    folder: Path | None = None,
) -> dict[str, np.ndarray]:
    """Extreme eigenvalues with bounds, trace and index with intervals, and the density."""
    operator = rt.curvature_operator(
        net, "cross_entropy", data, batchnorm=batchnorm, accumulate="float32"
    )
    report = rt.spectrum(
        operator, k=k, density=True, method="matrix-free", probes=probes, steps=steps,
        generator=seed, folder=folder,
    )  # fmt: skip
    assert report.pairs is not None and report.density is not None and report.index is not None
    again = rt.trace(operator, budget=6 * probes, generator=seed + 1)
    pairs, curve = report.pairs, report.density.smoothed()
    intervals = [(e.value, e.low, e.high) for e in (report.trace, again, report.index)]
    return {
        "size": np.array(report.parameters),
        "values": pairs.values.numpy(),
        "bounds": pairs.bounds.numpy(),
        "converged": pairs.converged.numpy(),
        "missed": np.array(pairs.missed_probability),
        "intervals": np.array(intervals),
        "frobenius": np.array([report.frobenius_norm.value, report.frobenius_norm.high]),
        "grid": curve.grid.numpy(),
        "density": np.stack([curve.values.numpy(), curve.standard_errors.numpy()]),
        "products": np.array(report.products),
    }


def _keys(a: Arrays) -> list[str]:
    # Sorted, because a record read from a file has its arrays in another order.
    return sorted(key.removesuffix(".values") for key in a if key.endswith(".values"))


def _judge_spectra(a: Arrays) -> list[Criterion]:
    """Judge the certificate of each spectrum; test over nets what rests on random probes."""
    keys, found, gaps, ratios = _keys(a), [], [], []
    for key in keys:
        values, bounds = a[f"{key}.values"], a[f"{key}.bounds"]
        trace, again, index = a[f"{key}.intervals"]
        missed = float(a[f"{key}.missed"])
        gaps.append(abs(trace[0] - again[0]) / (np.ptp(trace[1:]) / 2 + np.ptp(again[1:]) / 2))
        ratios.append(np.log(np.sqrt(np.sum(values**2)) / a[f"{key}.frobenius"][0]))
        found.append(
            Criterion(
                f"{key}: extreme eigenpairs within their bounds, none missed",
                "every one converged to 1e-3; P(missed) <= 0.01",
                f"largest {values[0]:.4g} ± {bounds[0]:.1g}, most negative {values[-1]:.4g} ± "
                f"{bounds[-1]:.1g}, P(missed) {missed:.1e}; P = {int(a[f'{key}.size'])}; trace "
                f"{trace[0]:.4g} and {again[0]:.4g}, index {index[0]:.3f}",
                bool(a[f"{key}.converged"].all()) and missed <= 0.01,
            )
        )
    return [
        *found,
        below(
            "gap of two independent estimates of the trace, in units of the sum of the half-widths "
            "of their 95 % intervals",
            gaps,
            1.0,
            source="below it, intervals overlap",
            shown=f"the intervals of {sum(gap <= 1 for gap in gaps)} of {len(gaps)} nets overlap",
        ),
        below(
            "log of the ratio of the eigenvalues found, root of the sum of squares, to the "
            "estimate of the Frobenius norm",
            ratios,
            source="they are a part of it",
            shown=f"ratio {np.exp(min(ratios)):.2g} to {np.exp(max(ratios)):.2g}",
        ),
    ]


# -- extremes against depth ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class InitialCurvature(Part):
    """Spectrum of a net at its initial weights; BatchNorm uses batch statistics."""

    kind: str = "dirac"
    depth: int = 10
    dataset: str = "cifar10"
    samples: int = 16
    size: int = 32
    k: int = 1
    probes: int = 4
    steps: int = 40

    def arrays(self, device: str) -> Arrays:
        """Extreme eigenvalues with bounds, trace and index with intervals, and the density."""
        return self.compute(Execution(device=device))

    def compute(self, execution: Execution, folder: Path | None = None) -> Arrays:
        """The same; ``folder`` keeps the products, so that a killed call goes on."""
        data = image_set(self.dataset, "train", self.samples, self.size)
        device = execution.device
        batch = data.inputs(data.pixels, torch.float32).to(device), data.labels.to(device)
        if self.kind == "residual":
            net = rt.full_net(self.depth, generator=self.seed)
        else:
            # The Hessian in V is proportional to 1 / ||V||^2; with the authors' initialization
            # this is about 1 / 2.
            net = rt.diracnet(self.depth, identity=self.kind, generator=self.seed)
        kept = None if folder is None else folder / "products"
        # Running statistics are not yet estimated; deep nets would overflow with them.
        return _curvature(
            net.to(device), [batch], "batch", self.k, self.probes, self.steps, self.seed, kept
        )


def compute_depth(
    *,
    groups: Sequence[int],
    kinds: Sequence[str],
    dataset: str,
    samples: int,
    size: int,
    k: int,
    probes: int,
    steps: int,
    seed: int = 0,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute spectra at initialization by depth."""
    same = dict(dataset=dataset, samples=samples, size=size, k=k, probes=probes, steps=steps)
    names = {
        f"{kind}_{depth}": [InitialCurvature(kind=kind, depth=depth, seed=seed, **same)]
        for kind in kinds
        for depth in (3 * group + (2 if kind == "residual" else 4) for group in groups)
    }
    arrays = {"samples": np.array(samples)}
    for name, (found,) in by_name(names, each, device).items():
        arrays |= {f"{name}.{key}": values for key, values in found.items()}
    return arrays


def _by_depth(a: Arrays) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Depths and the extreme eigenvalues of each kind, (depths, 2)."""
    named = sorted((kind, int(depth)) for kind, depth in (key.split("_") for key in _keys(a)))
    found = {}
    for kind in dict.fromkeys(kind for kind, _ in named):
        depths = [depth for name, depth in named if name == kind]
        ends = [a[f"{kind}_{depth}.values"] for depth in depths]
        extremes = np.array([(values[0], values[-1]) for values in ends])
        found[kind] = (np.array(depths), extremes)
    return found


def largest_by_depth(a: Arrays) -> str:
    """Format the largest |λ| of each net, one line per kind."""
    lines = []
    for kind, (depths, extremes) in _by_depth(a).items():
        largest = zip(depths, np.abs(extremes).max(1), strict=True)
        lines.append(f"{kind:9}" + ", ".join(f"{depth}: {value:.3g}" for depth, value in largest))
    return "\n".join(lines)


def draw_depth(figure: Figure, a: Arrays) -> None:
    """Plot extreme eigenvalues against depth, and rescaled densities of the deepest nets."""
    left, right = figure.subplots(1, 2)
    for kind, (depths, extremes) in _by_depth(a).items():
        left.plot(depths, extremes[:, 0], "o-", color=COLORS[kind], label=kind)
        left.plot(depths, -extremes[:, 1], "o--", color=COLORS[kind])
        key, scale = f"{kind}_{depths[-1]}", np.abs(extremes[-1]).max()
        density = a[f"{key}.density"][0] * scale
        right.plot(a[f"{key}.grid"] / scale, density, color=COLORS[kind], label=kind)
    left.set(xlabel="depth (layers)", ylabel="eigenvalue (loss / weight²)", yscale="log")
    left.set_title("largest (solid), minus the most negative (dashed)", fontsize="medium")
    right.set(xlabel="eigenvalue over the largest |λ|", ylabel="density", yscale="log")
    right.set(ylim=(1e-6, None))
    right.set_title("the deepest nets", fontsize="medium")
    left.legend(fontsize="small")
    right.legend(fontsize="small")


# -- shipped nets ----------------------------------------------------------------------------------


def compute_checkpoints(
    *,
    nets: Sequence[str],
    states: Sequence[str],
    dataset: str,
    samples: int,
    size: int,
    k: int,
    probes: int,
    steps: int,
    epochs: int = SHORT_EPOCHS,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute spectra of shipped nets before and after training; BatchNorm in eval mode."""
    listed = listed_nets(nets, states, each, device, epochs=epochs)
    data = image_set(dataset, "train", samples, size)
    arrays = {"samples": np.array(samples)}
    for name in nets:
        for state in states:
            found = _curvature(listed[name, state], data, "eval", k, probes, steps, 0)
            arrays |= {f"{name}, {state}.{part}": values for part, values in found.items()}
    return arrays


def draw_checkpoints(figure: Figure, a: Arrays) -> None:
    """Plot densities with marked extreme eigenvalues, one row per net, one column per state."""
    keys = _keys(a)
    nets = list(dict.fromkeys(key.rpartition(", ")[0] for key in keys))
    states = list(dict.fromkeys(key.rpartition(", ")[2] for key in keys))
    axes = figure.subplots(len(nets), len(states), squeeze=False)
    for key in keys:
        net, _, state = key.rpartition(", ")
        ax = axes[nets.index(net), states.index(state)]
        grid, (middle, error) = a[f"{key}.grid"], a[f"{key}.density"]
        ax.plot(grid, middle)
        ax.fill_between(grid, (middle - 2 * error).clip(1e-7), middle + 2 * error, alpha=0.3)
        ax.plot(a[f"{key}.values"], np.full(len(a[f"{key}.values"]), 1e-6), "|", color="C3")
        ax.set(yscale="log", ylim=(5e-7, None))
        ax.set_title(key.replace("_", " "), fontsize="small")
    figure.supxlabel("eigenvalue (loss / weight²); bars: extreme ones", fontsize="small")
    figure.supylabel("density; band: two standard errors", fontsize="small")


_NETS = ["simplified_plain_20", "simplified_residual_20", "plain_28_1", "diracnet_28_1"]

CLAIMS = [
    Claim(
        id="crossings/depth",
        kind="law",
        source=f"{DEMYSTIFYING}, section 4, on the nets of {STABILITY} and {DIRACNETS}; in none",
        says="Extreme eigenvalues of plain, residual and Dirac nets at initialization lie within "
        "their bounds at every depth, and two estimates of the trace agree (their course is "
        "descriptive).",
        settings={
            "quick": {
                "groups": [2], "kinds": ["dirac"], "dataset": "digits", "samples": 4,
                "size": 8, "k": 1, "probes": 2, "steps": 10,
                "scaled": "Dirac-10 only, four digits at 8 x 8",
            },
            "short": {
                "groups": [2, 4, 8, 16, 32], "kinds": ["plain", "residual", "dirac"],
                "dataset": "cifar10", "samples": 16, "size": 32, "k": 1, "probes": 4, "steps": 40,
                "scaled": "16 of 512 images, 4 of 10 probes",
            },
            "paper": {
                "groups": [2, 4, 6, 8, 10, 16, 32], "kinds": ["plain", "residual", "dirac"],
                "dataset": "cifar10", "samples": 512, "size": 32, "k": 3, "probes": 10,
                "steps": 100,
            },
        },
        compute=compute_depth,
        judge=_judge_spectra,
        draw=draw_depth,
    ),
    Claim(
        id="crossings/checkpoints",
        kind="law",
        source=f"{DEMYSTIFYING}, section 4, on the trained nets of {STABILITY}; in neither paper",
        says="Extreme eigenvalues of trained nets and of their initial weights lie within their "
        "bounds, and two estimates of the trace agree (the change is descriptive).",
        settings={
            "quick": {
                "nets": ["full_plain_20"], "states": ["trained"], "dataset": "digits",
                "samples": 2, "size": 8, "k": 1, "probes": 2, "steps": 10,
                "scaled": "two digits at 8 x 8, which the net was not trained on",
            },
            "short": {
                "nets": _NETS, "states": ["initial", "trained"], "dataset": "cifar10",
                "samples": 16, "size": 32, "k": 1, "probes": 3, "steps": 25,
                "scaled": "four nets, trained for 15 of 200 epochs; 16 images",
            },
            "single": {
                "nets": _NETS[:2], "states": ["initial", "trained"], "dataset": "cifar10",
                "samples": 16, "size": 32, "k": 1, "probes": 3, "steps": 25,
                "epochs": FULL_EPOCHS, "scaled": "two nets of four, one seed; 16 images",
            },
            "paper": {
                "nets": _NETS, "states": ["initial", "trained"], "dataset": "cifar10",
                "samples": 512, "size": 32, "k": 3, "probes": 10, "steps": 100,
                "epochs": FULL_EPOCHS,
            },
        },
        compute=compute_checkpoints,
        judge=_judge_spectra,
        draw=draw_checkpoints,
    ),
]  # fmt: skip
