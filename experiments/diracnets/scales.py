"""DiracNets: the scales a and b, equations (4) and (5) of section 2, section 3.3 and Figure 2.

BatchNorm after a layer removes the common factor of a and b, so only their ratio matters.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below
from experiments.diracnets.nets import (
    DIGITS,
    DIGITS_SCALED,
    FULL,
    ONE,
    ONE_SEED,
    PAIRED,
    PAIRED_SCALED,
    PAPER,
    QUICK,
    QUICK_SCALED,
    SHORT,
    SHORT_SCALED,
    each_seed,
    percent,
    trainings_of,
)
from experiments.parts import Each, in_turn
from experiments.trainings import FULL_EPOCHS, Fit, dirac_layers, dirac_scales, fits

DEGRADED = 0.01  # |a| or |b| below this
LOW = 0.05  # a share of degraded planes below it is low; the paper gives no number
GROUP_COLORS = ("C0", "C1", "C2")


def _final(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """|a| and |b| of all planes in the order of layers, and the number of planes per layer.

    They are read from the weights, which every finished part has.
    """
    scales = {name: scale.abs().numpy() for name, scale in dirac_scales(fit.net).items()}
    a, b = ([own for name, own in scales.items() if name.startswith(f"{s}.")] for s in "ab")
    return np.stack([np.concatenate(a), np.concatenate(b)]), np.array([len(own) for own in a])


# -- section 2: equation (4) against (5) -----------------------------------------------------------

WAYS = ("equation (5)", "equation (4)")
BRANCH = 0.1  # norm of a filter beside the identity at the start: b of equation (5)


def compute_section_2(
    *, depth: int, training: Mapping[str, Any], device: str = "cpu", each: Each = in_turn
) -> dict[str, np.ndarray]:
    """Compute risk and test error of nets that start from equal weights, all seeds."""
    alike = {"law": "filters", "scale": BRANCH}
    ways = [
        trainings_of("dirac", training, depth=depth),
        trainings_of("equation_4", training, depth=depth, initial=alike),
    ]
    rows = list(fits(dict(zip(WAYS, ways, strict=True)), each, device).values())
    return {
        "depth": np.array(depth),
        "risk": np.array([[fit.along("loss") for fit in row] for row in rows]),
        "test_error": np.array([each_seed(row, "test_error") for row in rows]),
    }


def judge_section_2(a: Arrays) -> list[Criterion]:
    """Require that normalization helps a deep net which starts from the same weights."""
    source = "section 2: normalization is useful for stabilizing beyond 30 layers"
    net = f"depth {a['depth']}, epoch {a['risk'].shape[-1]}"
    normalized, other = 100 * (1 - a["test_error"])
    risks = a["risk"][..., -1]
    return [
        above(
            f"{net}: test accuracy by equation (5) less that by (4), points",
            normalized - other,
            source=source,
            shown=f"{percent(normalized / 100)} and {percent(other / 100)}",
        ),
        below(
            f"{net}: risk by equation (5) less that by (4)",
            risks[0] - risks[1],
            source=source,
            shown=f"means {risks[0].mean():.3f} and {risks[1].mean():.3f}",
        ),
    ]


ALIKE = 1.0  # points; nets within it are alike in the paper's Figure 1


def judge_section_2_shallow(a: Arrays) -> list[Criterion]:
    """Test by paired seeds that a shallow net without normalization is no worse by a point."""
    normalized, other = 100 * (1 - a["test_error"])
    risks = a["risk"][..., -1].mean(1)
    return [
        above(
            f"depth {a['depth']}: test accuracy by equation (4) less that by (5), same seed, "
            "points",
            other - normalized,
            -ALIKE,
            source="section 2: up to 30 layers it is not needed; a point as margin",
            shown=f"{percent(other / 100)} and {percent(normalized / 100)}; last risks "
            f"{risks[1]:.3f} and {risks[0]:.3f}",
        )
    ]


def draw_section_2(figure: Figure, a: Arrays) -> None:
    """Plot mean and range of the risk by epoch."""
    ax = figure.subplots()
    epoch = np.arange(1, a["risk"].shape[-1] + 1)
    for way, risks, color in zip(WAYS, a["risk"], ("C2", "C3"), strict=True):
        ax.plot(epoch, risks.mean(0), ".-", color=color, label=way)
        ax.fill_between(epoch, risks.min(0), risks.max(0), color=color, alpha=0.15)
    ax.set(xlabel="epoch", ylabel="training risk (nats)")
    ax.legend()


# -- section 2: decay of a and b -------------------------------------------------------------------

DECAYED = ("a and b free", "a and b decayed")


def compute_section_2_decay(
    *, depth: int, training: Mapping[str, Any], device: str = "cpu", each: Each = in_turn
) -> dict[str, np.ndarray]:
    """Compute test error and final scales with and without decay of a and b, all seeds."""
    ways = {
        DECAYED[0]: trainings_of("dirac", training, depth=depth),
        DECAYED[1]: trainings_of("dirac", training, depth=depth, decay="all"),
    }
    rows = list(fits(ways, each, device, weights=True).values())
    return {
        "test_error": np.array([each_seed(row, "test_error") for row in rows]),
        "scales": np.array([[_final(fit)[0] for fit in row] for row in rows]),
    }


def judge_section_2_decay(a: Arrays) -> list[Criterion]:
    """Require that decay brings planes whose scales are about zero."""
    free, decayed = 100 * (a["scales"] < DEGRADED).any(2).mean(2)  # (seeds,)
    accuracy = 1 - a["test_error"]
    return [
        above(
            f"planes with |a| or |b| < {DEGRADED}, with decay less without, percent of all",
            decayed - free,
            source="section 2: degenerate solutions",
            shown=f"{decayed.mean():.2f} and {free.mean():.2f} %; test accuracy "
            f"{percent(accuracy[1])} and {percent(accuracy[0])}",
        )
    ]


def draw_section_2_decay(figure: Figure, a: Arrays) -> None:
    """Plot the distributions of the final scales."""
    ax = figure.subplots()
    for way, scales, color in zip(DECAYED, a["scales"], ("C2", "C4"), strict=True):
        for scale, style in ((0, "-"), (1, "--")):
            values = np.sort(scales[:, scale].ravel())
            share = np.arange(1, len(values) + 1) / len(values)
            ax.plot(values, share, style, color=color, label=f"|{'ab'[scale]}|, {way}")
    ax.set(xlabel="scale at the end", ylabel="share of planes below")
    ax.legend(fontsize="small")


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


def _range(values: np.ndarray) -> str:
    return f"{values.min():.4f} to {values.max():.4f}"


def judge_section_3_3(a: Arrays) -> list[Criterion]:
    """Test over nets that no layer and few planes have lost their identity or their filters.

    Layers and planes of one net share its training: each net gives one number.
    """
    medians = np.array([np.median(layer, axis=2) for layer in _by_layer(a)])  # (layers, seeds, 2)
    degraded = (a["scales"] < DEGRADED).any(1).mean(1)
    lost = int((medians < DEGRADED).any(2).sum())
    ratios = np.array(
        [np.quantile(layer[:, 0] / layer[:, 1], QUANTILES[1:-1]) for layer in _by_layer(a)]
    )
    return [
        above(
            "the least median of |a| or |b| of a layer, of each net",
            medians.min((0, 2)),
            DEGRADED,
            source="section 3.3: no layers",
            shown=f"{lost} of {medians[..., 0].size} layers are below; medians of |a| "
            f"{_range(medians[..., 0])}, of |b| {_range(medians[..., 1])}; |a|/|b| by layer: 5 % "
            f"{_range(ratios[:, 0])}, median {_range(ratios[:, 1])}, 95 % {_range(ratios[:, 2])}",
        ),
        below(
            f"share of planes with |a| < {DEGRADED} or |b| < {DEGRADED}, of each net",
            degraded,
            LOW,
            source="section 3.3: low, without a number",
            shown=_range(degraded),
        ),
    ]


def draw_section_3_3(figure: Figure, a: Arrays) -> None:
    """Plot quantiles of |a|/|b| by layer."""
    ax = figure.subplots()
    layers = [layer[:, 0] / layer[:, 1] for layer in _by_layer(a)]
    at = np.arange(1, len(layers) + 1)
    low, left, middle, right, high = np.array([np.quantile(layer, QUANTILES) for layer in layers]).T
    ax.fill_between(at, low, high, color="C2", alpha=0.15, label="all planes")
    ax.fill_between(at, left, right, color="C2", alpha=0.4, label="5 to 95 %")
    ax.plot(at, middle, color="C2", label="median")
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
            [[[fit.log(f"{scale}.{name}") for name in names] for scale in "ab"]
             for fit in row]
        )
    }  # fmt: skip


def judge_figure_2(a: Arrays) -> list[Criterion]:
    """Test over seeds that groups differ by more than the layers of a group do.

    By absolute values, as in section 3.3: a signed mean of b can vanish although no b does,
    because V changes sign with b. All scales start equal and move slowly, so that only a training
    as long as that of the figure is judged.
    """
    ratio = np.log(a["sizes"][:, 0] / a["sizes"][:, 1])  # (seeds, layers)
    groups = np.stack(np.split(ratio, 3, axis=1), 1)
    means, count = groups.mean(2), groups.shape[2]
    between = count * means.var(1, ddof=1)
    within = groups.var(2, ddof=1).mean(1)
    criterion = (
        "log of |a|/|b| by layer: log of its mean square between the three groups over that "
        "within a group, of each seed"
    )
    source = "Figure 2: behaviour changes from lower to higher groups"
    shown = f"|a|/|b| by group {', '.join(f'{r:.2f}' for r in np.exp(means.mean(0)))}"
    epochs = a["means"].shape[-1] - 1
    if epochs < FULL_EPOCHS:
        reason = f"not to be judged at epoch {epochs} of {FULL_EPOCHS}, as scales move slowly"
        return [Criterion(criterion, f"mean > 0 ({source})", f"{reason}; {shown}", None)]
    return [above(criterion, np.log(between / within), source=source, shown=shown)]


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

LONG = {"single": {"depth": 34, "training": ONE, "scaled": ONE_SEED},
        "paper": {"depth": 34, "training": FULL}}  # fmt: skip
SMOKE = {"depth": 10, "training": QUICK, "scaled": f"{QUICK_SCALED}, depth 10"}

CLAIMS = [
    Claim(
        id="diracnets/section_2",
        source=f"{PAPER}, section 2, equations (4) and (5)",
        says="Weight normalization is useful in the training of nets of more than 30 layers.",
        settings={
            "quick": SMOKE,
            "short": {"depth": 34, "training": DIGITS, "scaled": DIGITS_SCALED},
            **LONG,
        },
        compute=compute_section_2,
        judge=judge_section_2,
        draw=draw_section_2,
    ),
    Claim(
        id="diracnets/section_2_shallow",
        source=f"{PAPER}, section 2, equations (4) and (5)",
        says="In nets of up to 30 layers weight normalization is not needed.",
        settings={
            "quick": SMOKE,
            # The seeds of no earlier run; 12 see the margin with power 0.8 if accuracies differ
            # by 1.2 points, as those of section 3.4 do from seed to seed.
            "short": {
                "depth": 10, "training": {**PAIRED, "seeds": list(range(100, 112))},
                "scaled": f"{PAIRED_SCALED}, depth 10",
            },
            "paper": {"depth": 28, "training": FULL},
        },
        compute=compute_section_2,
        judge=judge_section_2_shallow,
        draw=draw_section_2,
    ),
    Claim(
        id="diracnets/section_2_decay",
        source=f"{PAPER}, section 2",
        says="Decay of a and b leads to degenerate solutions.",
        # No short scale: without a gradient decay halves a scale in 1,400 steps of rate 0.1 and
        # momentum 0.9, more than a CPU has time for.
        settings={"quick": SMOKE, **LONG},
        compute=compute_section_2_decay,
        judge=judge_section_2_decay,
        draw=draw_section_2_decay,
    ),
    Claim(
        id="diracnets/section_3_3",
        source=f"{PAPER}, section 3.3",
        says="In trained DiracNets no layer has lost its identity or its filters, and few feature "
        "planes have.",
        settings={
            "quick": SMOKE,
            # The net that ships.
            "short": {
                "depth": 28, "training": {"seeds": [0], "epochs": 15},
                "scaled": "one net of 28 layers, 15 of 200 epochs",
            },
            **LONG,
        },
        compute=compute_section_3_3,
        judge=judge_section_3_3,
        draw=draw_section_3_3,
    ),
    Claim(
        id="diracnets/figure_2",
        source=f"{PAPER}, Figure 2",
        says="The behaviour of a and b changes from lower to higher groups of layers.",
        settings={
            "quick": SMOKE,
            "short": {"depth": 34, "training": SHORT, "scaled": SHORT_SCALED},
            **LONG,
        },
        compute=compute_figure_2,
        judge=judge_figure_2,
        draw=draw_figure_2,
    ),
]  # fmt: skip
