"""DiracNets: the scales a and b, equations (4) and (5) of section 2, section 3.3 and Figure 2.

BatchNorm after a layer removes the common factor of a and b, so only their ratio matters.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim, Verdict
from experiments.diracnets.nets import (
    DIGITS,
    DIGITS_SCALED,
    FULL,
    PAPER,
    SHORT,
    SHORT_SCALED,
    each_seed,
    interval,
    percent,
    trainings_of,
)
from experiments.parts import Each, in_turn
from experiments.trainings import FULL_EPOCHS, LOG, Fit, dirac_layers, fits

DEGRADED = 0.01  # |a| or |b| below this
LOW = 0.05  # a share of degraded planes below it is low; the paper gives no number
GROUP_COLORS = ("tab:blue", "tab:orange", "tab:green")


def _final(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """|a| and |b| of all planes in the order of layers, and the number of planes per layer."""
    weights = dirac_layers(fit.net).values()
    a = np.concatenate([w.a.detach().abs().numpy() for w in weights])
    b = np.concatenate([w.b.detach().abs().numpy() for w in weights if w.b is not None] or [[]])
    planes = np.array([len(w.a) for w in weights])
    return np.stack([a, b if len(b) else np.full_like(a, np.nan)]), planes


# -- section 2: equation (4) against (5), and decay of a and b ------------------------------------

WAYS = ("equation (5)", "equation (4)", "equation (5), a and b decayed")


def compute_section_2(
    *, depth: int, training: Mapping[str, Any], device: str = "cpu", each: Each = in_turn
) -> dict[str, np.ndarray]:
    """Compute risk, test error and final scales of three ways to train a DiracNet, all seeds."""
    ways = [
        trainings_of("dirac", training, depth=depth),
        trainings_of("equation_4", training, depth=depth),
        trainings_of("dirac", training, depth=depth, decay="all"),
    ]
    found = fits(dict(zip(WAYS, ways, strict=True)), each, device, weights=True)
    rows = list(found.values())
    return {
        "depth": np.array(depth),
        "epochs": np.array(training["epochs"]),
        "risk": np.array([[fit.along("loss") for fit in row] for row in rows]),
        "test_error": np.array([each_seed(row, "test_error") for row in rows]),
        "scales": np.array([[_final(fit)[0] for fit in row] for row in rows]),
    }


def judge_section_2(a: Arrays) -> list[Verdict]:
    """Require that normalization helps a deep net and that decay shrinks the scales."""
    error, scales = a["test_error"], a["scales"]  # (ways, seeds), (ways, seeds, a or b, planes)
    risk = a["risk"][..., -1]
    means = scales[[0, 2]].mean(3)
    degraded = (scales[[0, 2]] < DEGRADED).any(2).mean(2)
    found = [
        Verdict(
            f"depth {a['depth']}: test accuracy of equation (5) against (4), mean over seeds",
            "(5) > (4) (section 2: normalization is useful for stabilizing beyond 30 layers)",
            f"{percent(1 - error[0])} against {percent(1 - error[1])}; risk of the last epoch "
            f"{risk[0].mean():.3f} against {risk[1].mean():.3f}",
            bool(error[0].mean() < error[1].mean()),
        ),
        Verdict(
            "means of |a| and of |b| over planes, with decay of all tensors against without",
            "less, every seed (section 2: decay pulls them to degenerate solutions)",
            f"|a| {_range(means[1, :, 0])} against {_range(means[0, :, 0])}; "
            f"|b| {_range(means[1, :, 1])} against {_range(means[0, :, 1])}; accuracy "
            f"{percent(1 - error[2])} against {percent(1 - error[0])}",
            bool((means[1] < means[0]).all()),
        ),
    ]
    if a["epochs"] >= FULL_EPOCHS:
        found.append(
            Verdict(
                "share of planes with |a| or |b| < 0.01, with decay against without",
                "greater, mean over seeds (section 2: degenerate solutions)",
                f"{degraded[1].mean():.4f} against {degraded[0].mean():.4f}",
                bool(degraded[1].mean() > degraded[0].mean()),
            )
        )
    return found


def _range(values: np.ndarray) -> str:
    return f"{values.min():.4f} to {values.max():.4f}"


def draw_section_2(figure: Figure, a: Arrays) -> None:
    """Plot risk by epoch and the distributions of the final scales."""
    left, right = figure.subplots(1, 2)
    epoch = np.arange(1, a["risk"].shape[-1] + 1)
    for way, risks, color in zip(
        WAYS, a["risk"], ("tab:green", "tab:red", "tab:purple"), strict=True
    ):
        left.plot(epoch, risks.mean(0), color=color, label=way)
        left.fill_between(epoch, risks.min(0), risks.max(0), color=color, alpha=0.15)
    for number, color in ((0, "tab:green"), (2, "tab:purple")):
        for scale, style in ((0, "-"), (1, "--")):
            values = np.sort(a["scales"][number, :, scale].ravel())
            share = np.arange(1, len(values) + 1) / len(values)
            right.plot(values, share, style, color=color, label=f"|{'ab'[scale]}|, {WAYS[number]}")
    left.set(xlabel="epoch", ylabel="training risk")
    right.set(xlabel="scale at the end", ylabel="share of planes below")
    left.legend(fontsize="small")
    right.legend(fontsize="x-small")


# -- section 3.3 -----------------------------------------------------------------------------------


def _dirac_nets(depth: int, training: Mapping[str, Any], each: Each, device: str) -> list[Fit]:
    nets = {"dirac": trainings_of("dirac", training, depth=depth)}
    return fits(nets, each, device, weights=True)["dirac"]


QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def compute_section_3_3(
    *, depth: int, training: Mapping[str, Any], device: str = "cpu", each: Each = in_turn
) -> dict[str, np.ndarray]:
    """Compute final |a| and |b| of every plane, all seeds, and the planes per layer."""
    row = _dirac_nets(depth, training, each, device)
    return {"scales": np.array([_final(fit)[0] for fit in row]), "planes": _final(row[0])[1]}


def _by_layer(a: Arrays) -> list[np.ndarray]:
    """Scales by layer, each (seeds, a or b, planes of the layer)."""
    return np.split(a["scales"], np.cumsum(a["planes"])[:-1], axis=2)


def judge_section_3_3(a: Arrays) -> list[Verdict]:
    """Require that no layer and few planes have lost their identity or their filters."""
    medians = np.array([np.median(layer, axis=2) for layer in _by_layer(a)])  # (layers, seeds, 2)
    degraded = (a["scales"] < DEGRADED).any(1).mean(1)
    ratios = np.array(
        [np.quantile(layer[:, 0] / layer[:, 1], QUANTILES[1:-1]) for layer in _by_layer(a)]
    )
    return [
        Verdict(
            "layers whose median |a| or median |b| is < 0.01, over all seeds",
            "0 (section 3.3: no layers)",
            f"{int((medians < DEGRADED).any(2).sum())} of {medians.shape[0] * medians.shape[1]}; "
            f"medians of |a| {_range(medians[..., 0])}, of |b| {_range(medians[..., 1])}; "
            f"|a|/|b| by layer: 5 % {_range(ratios[:, 0])}, median {_range(ratios[:, 1])}, "
            f"95 % {_range(ratios[:, 2])}",
            bool((medians >= DEGRADED).all()),
        ),
        Verdict(
            "share of planes with |a| < 0.01 or |b| < 0.01",
            f"< {LOW}, every seed (section 3.3: low, without a number)",
            f"{_range(degraded)} (n = {len(degraded)})",
            bool((degraded < LOW).all()),
        ),
    ]


def draw_section_3_3(figure: Figure, a: Arrays) -> None:
    """Plot quantiles of |a|/|b| by layer."""
    ax = figure.subplots()
    layers = [layer[:, 0] / layer[:, 1] for layer in _by_layer(a)]
    at = np.arange(1, len(layers) + 1)
    low, left, middle, right, high = np.array([np.quantile(layer, QUANTILES) for layer in layers]).T
    ax.fill_between(at, low, high, color="tab:green", alpha=0.15, label="all planes")
    ax.fill_between(at, left, right, color="tab:green", alpha=0.4, label="5 to 95 %")
    ax.plot(at, middle, color="tab:green", label="median")
    ax.set(xlabel="layer", ylabel="|a| / |b| at the end", yscale="log")
    ax.legend()


# -- Figure 2 --------------------------------------------------------------------------------------


def compute_figure_2(
    *, depth: int, training: Mapping[str, Any], device: str = "cpu", each: Each = in_turn
) -> dict[str, np.ndarray]:
    """Compute means of a and b per layer and epoch, and final means of |a| and |b|."""
    row = _dirac_nets(depth, training, each, device)
    names, planes = list(dirac_layers(row[0].net)), _final(row[0])[1]
    by_layer = [np.split(_final(fit)[0], np.cumsum(planes)[:-1], axis=1) for fit in row]
    return {
        "sizes": np.array([[layer.mean(1) for layer in fit] for fit in by_layer]).swapaxes(1, 2),
        "means": np.array(
            [[[fit.arrays[f"{LOG}{scale}.{name}"] for name in names] for scale in "ab"]
             for fit in row]
        )
    }  # fmt: skip


def judge_figure_2(a: Arrays) -> list[Verdict]:
    """Require that no layer loses its identity or filters, and that groups differ.

    By absolute values, as in section 3.3: a signed mean of b can vanish although no b does,
    because V changes sign with b.
    """
    last = a["sizes"]  # (seeds, a or b, layers)
    ratio = last[:, 0] / last[:, 1]
    first, _, third = (part.mean(1) for part in np.split(ratio, 3, axis=1))
    mean, low, high = interval(third - first)
    return [
        Verdict(
            "least mean of |a| and least mean of |b| of a layer at the end",
            f"≥ {DEGRADED}: no layer with a degraded ratio (Figure 2, section 3.3)",
            f"{last[:, 0].min():.4f}, {last[:, 1].min():.4f}",
            bool((last >= DEGRADED).all()),
        ),
        Verdict(
            "ratio of the means of |a| and |b|, third group less first",
            "95 % interval without 0 (Figure 2: behaviour changes from lower to higher groups)",
            f"{mean:+.2f}, interval {low:+.2f} to {high:+.2f} (n = {len(ratio)}); "
            f"{first.mean():.2f} in the first, {third.mean():.2f} in the third",
            bool(low > 0 or high < 0),
        ),
    ]


def draw_figure_2(figure: Figure, a: Arrays) -> None:
    """Plot means of a and b by epoch, darker with depth in the group."""
    for ax, name, layers in zip(figure.subplots(1, 2), "ab", a["means"].mean(0), strict=True):
        epoch = np.arange(layers.shape[1])
        groups = np.split(layers, 3)
        for number, (group, color) in enumerate(zip(groups, GROUP_COLORS, strict=True), start=1):
            for place, layer in enumerate(group, start=1):
                label = f"group {number}" if place == len(group) else None
                ax.plot(epoch, layer, color=color, alpha=place / len(group), label=label)
        ax.set(xlabel="epoch", ylabel=f"mean of {name}")
        ax.legend()


# -- the claims ------------------------------------------------------------------------------------

DEEP = {
    "quick": {"depth": 34, "training": DIGITS, "scaled": DIGITS_SCALED},
    "short": {"depth": 34, "training": SHORT, "scaled": SHORT_SCALED},
    "paper": {"depth": 34, "training": FULL},
}  # the same nets for all three

CLAIMS = [
    Claim(
        id="diracnets/section_2",
        source=f"{PAPER}, section 2, equations (4) and (5)",
        says="Beyond 30 layers normalized weights stabilize the training; decay of a and b leads "
        "to degenerate solutions.",
        # In the few steps of the quick scale decay does not reach b.
        settings={scale: DEEP[scale] for scale in ("short", "paper")},
        compute=compute_section_2,
        judge=judge_section_2,
        draw=draw_section_2,
    ),
    Claim(
        id="diracnets/section_3_3",
        source=f"{PAPER}, section 3.3",
        says="In trained DiracNets no layer has lost its identity or its filters, and few feature "
        "planes have.",
        settings=DEEP,
        compute=compute_section_3_3,
        judge=judge_section_3_3,
        draw=draw_section_3_3,
    ),
    Claim(
        id="diracnets/figure_2",
        source=f"{PAPER}, Figure 2",
        says="The means of a and b move along training without fading, and otherwise in higher "
        "groups than in lower ones.",
        settings=DEEP,
        compute=compute_figure_2,
        judge=judge_figure_2,
        draw=draw_figure_2,
    ),
]
