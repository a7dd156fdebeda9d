"""Dominant gradient flows in nets, Appendix D; their theory is in ``gaussian``.

The available text does not give, and we chose, the depth of Figure 12 and the paths of nets with
BatchNorm. The net "after the first iteration" is taken as the net at its initial weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, near
from experiments.noise_stability.nets import (
    FULL,
    FULL_KINDS,
    KINDS,
    ONE,
    PAPER,
    SHIPPED,
    SMALL,
    SMALL_FULL,
    SMALL_FULL_SCALED,
    SMALL_SCALED,
    nets_of,
)
from experiments.parts import Each, in_turn
from experiments.trainings import image_set
from resid_theory.stability import STATISTICS, feature_gradients

# -- Figure 10 -------------------------------------------------------------------------------------

GROUPS = 20  # of images, which show the spread within a net


def compute_figure_10(
    *,
    states: Sequence[str],
    dataset: str,
    samples: int,
    size: int,
    training: Mapping[str, Any] | None = None,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute the loss gradient in the final features: its histogram, and moments by group.

    Moments are the mean over the standard deviation, and the kurtosis, of disjoint groups of
    images of every net, (groups, 2).
    """
    nets = nets_of(KINDS, 20, states, training, each, device)
    data = image_set(dataset, "train", samples, size)
    arrays = {"samples": np.array(samples)}
    for (kind, state), row in nets.items():
        gradients = [feature_gradients(net, data).double().cpu().numpy() for net in row]
        counts, arrays["edges"] = np.histogram(
            np.concatenate([g / g.std() for g in gradients]), bins=80, range=(-5, 5)
        )
        parts = [part for g in gradients for part in np.array_split(g, GROUPS)]
        moments = [(g.mean() / g.std(), ((g - g.mean()) ** 4).mean() / g.std() ** 4) for g in parts]
        arrays |= {f"{kind}.{state}.counts": counts, f"{kind}.{state}.moments": np.array(moments)}
    return arrays


def _keys(a: Arrays, ending: str) -> list[str]:
    # Sorted, because a record read from a file has its arrays in another order.
    return sorted(key.removesuffix(ending) for key in a if key.endswith(ending))


def judge_figure_10(a: Arrays) -> list[Criterion]:
    """Test over nets that the gradient is centred and that its kurtosis is normal.

    Groups of images of one net share its weights: each net gives their mean.
    """
    found = []
    for key in _keys(a, ".moments"):
        name, every = key.replace(".", " net, "), a[f"{key}.moments"]
        mean, kurtosis = every.reshape(-1, GROUPS, 2).mean(1).T  # (nets,)
        groups = f"mean over {GROUPS} groups of the {int(a['samples'])} images"
        low, high = every.min(0), every.max(0)
        found += [
            near(
                f"{name}: mean over standard deviation of dR/da_L, {groups}",
                mean,
                margin=0.1,
                source="Figure 10 is centred; a tenth, as before",
                shown=f"groups {low[0]:.3f} to {high[0]:.3f}",
            ),
            near(
                f"{name}: kurtosis of dR/da_L, {groups}",
                kurtosis,
                3,
                margin=1,
                source="Figure 10, roughly normal, which has 3; a uniform law has 1.8, a "
                "two-sided exponential one 6",
                shown=f"groups {low[1]:.2f} to {high[1]:.2f}",
            ),
        ]
    return found


def draw_figure_10(figure: Figure, a: Arrays) -> None:
    """Plot histograms in units of the standard deviation, and the normal density."""
    ax = figure.subplots()
    middle = (a["edges"][1:] + a["edges"][:-1]) / 2
    width = float(a["edges"][1] - a["edges"][0])
    for key in _keys(a, ".moments"):
        counts = a[f"{key}.counts"]
        ax.plot(middle, counts / (counts.sum() * width), drawstyle="steps-mid")
        ax.lines[-1].set_label(key.replace(".", ", "))
    ax.plot(middle, np.exp(-(middle**2) / 2) / np.sqrt(2 * np.pi), "k--", label="normal")
    ax.set(xlabel="∂R/∂a of the last features, in its standard deviations", ylabel="density")
    ax.legend(fontsize="small")


# -- Figure 12 -------------------------------------------------------------------------------------

PAIRS = {  # (plain, with identity), and the rule of paths for BatchNorm nets
    "simplified": (KINDS, None),
    "full": (FULL_KINDS, "truncate"),
}
SMALLER = {"simplified": (SMALL, SMALL_SCALED), "full": (SMALL_FULL, SMALL_FULL_SCALED)}


def compute_figure_12(
    *,
    pair: str,
    states: Sequence[str],
    dataset: str,
    samples: int,
    size: int,
    training: Mapping[str, Any] | None = None,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute f_l of two nets, means over samples, (seeds, layers, statistics)."""
    kinds, rule = PAIRS[pair]
    nets = nets_of(kinds, 20, states, training, each, device)
    data = image_set(dataset, "train", samples, size)
    arrays: dict[str, np.ndarray] = {"samples": np.array(samples)}
    for label, kind in zip(("plain", "identity"), kinds, strict=True):
        for state in states:
            flows = [rt.dominant_flows(net, data, rule=rule) for net in nets[kind, state]]
            arrays[f"{label}.{state}"] = np.array(
                [
                    np.stack([f.under(mode="sap", statistic=s).mean.cpu() for s in STATISTICS], 1)
                    for f in flows
                ]
            )
    return arrays


def _curves(a: Arrays, state: str) -> tuple[np.ndarray, np.ndarray]:
    """f_l by the paper's statistic, (seeds, layers): net with identities, plain net."""
    return a[f"identity.{state}"][..., 0], a[f"plain.{state}"][..., 0]


def _states(a: Arrays) -> list[str]:
    return [state for state in ("initial", "trained") if f"identity.{state}" in a]


def _log_ratio(own: np.ndarray, plain: np.ndarray, part: int, parts: int) -> np.ndarray:
    """Log of the ratio of the means over one of ``parts`` equal parts of the layers, (seeds,)."""
    chosen = np.array_split(np.arange(own.shape[1]), parts)[part]
    return np.log(own[:, chosen].mean(1) / plain[:, chosen].mean(1))


def judge_figure_12_simplified(a: Arrays) -> list[Criterion]:
    """Test by paired seeds: residual above plain, most in deep layers, both lowered by training."""
    criteria = []
    for state in _states(a):
        own, plain = _curves(a, state)
        early, late = (_log_ratio(own, plain, half, 2) for half in (0, 1))
        criteria += [
            above(
                f"{state}: f of residual less f of plain nets, mean over the layers",
                (own - plain).mean(1),
                source="Figure 12 a: above through the whole training",
                shown=f"{own.mean():.3f} against {plain.mean():.3f}; above in "
                f"{np.mean(own > plain):.0%} of the layers; {int(a['samples'])} images",
            ),
            above(
                f"{state}: log of the ratio of f, residual to plain, early layers",
                early,
                source="section D: 1.24 times",
                shown=f"ratio {np.exp(early.mean()):.2f}",
            ),
            above(
                f"{state}: log of the ratio of f, residual to plain, late less early layers",
                late - early,
                source="section D: 1.24 times in early, 4.06 times in late layers",
                shown=f"ratio {np.exp(late.mean()):.2f} in late layers",
            ),
        ]
    if len(_states(a)) == 2:
        before, after = (np.array([c.mean(1) for c in _curves(a, s)]) for s in _states(a))
        criteria.append(
            above(
                "f before less f after training, mean over the layers, the lesser of both nets",
                (before - after).min(0),
                source="Figure 12 a: training makes fewer",
                shown="residual {:.3f} to {:.3f}, plain {:.3f} to {:.3f}".format(
                    *np.stack([before.mean(1), after.mean(1)], 1).ravel()
                ),
            )
        )
    return criteria


def judge_figure_12_deep(a: Arrays) -> list[Criterion]:
    """Test by paired seeds that with BatchNorm deep layers differ, and early ones do not."""
    criteria = []
    for state in _states(a):
        own, plain = _curves(a, state)
        early, late = (_log_ratio(own, plain, third, 3) for third in (0, 2))
        criteria += [
            above(
                f"{state}: log of the ratio of f, with identities to without, last third",
                late,
                source="Figure 12 b: 3.07 times in deep layers",
                shown=f"ratio {np.exp(late.mean()):.2f}; {int(a['samples'])} images",
            ),
            near(
                f"{state}: the same, first third",
                early,
                margin=float(np.log(1.24)),
                source="Figure 12 b: .99; as margin the 1.24 of the early layers of Figure 12 a",
                shown=f"ratio {np.exp(early.mean()):.2f}",
            ),
        ]
    return criteria


def draw_figure_12(figure: Figure, a: Arrays) -> None:
    """Plot f_l by layer: by the paper's statistic, and as a ratio of means; bars over seeds."""
    states = _states(a)
    panels = figure.subplots(len(states), 2, squeeze=False)
    labels = {"plain": "plain", "identity": "with identities"}
    for row, state in zip(panels, states, strict=True):
        tables = {label: a[f"{net}.{state}"] for net, label in labels.items()}
        for column, (panel, title) in enumerate(
            zip(row, ("mean of ratios (paper)", "ratio of means"), strict=True)
        ):
            many = {label: table[..., column] for label, table in tables.items()}
            rt.plots.flow_curve(
                np.arange(tables["plain"].shape[1]),
                {label: rows.mean(0) for label, rows in many.items()},
                errors={label: rows.std(0) / len(rows) ** 0.5 for label, rows in many.items()},
                xlabel="layer or block",
                ax=panel,
            )
            panel.set_title(f"{state}, {title}", fontsize="medium")
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
            if column:
                panel.set_ylabel("")


# -- the claims ------------------------------------------------------------------------------------


def _figure_12(pair: str, name: str, source: str, says: str, judge: Any) -> Claim:
    both = {"pair": pair, "states": ["initial", "trained"], "dataset": "cifar10"}
    small, scaled = SMALLER[pair]
    return Claim(
        id=f"noise_stability/{name}",
        source=source,
        says=says,
        settings={
            "quick": {
                "pair": pair, "states": ["initial"], "dataset": "digits", "samples": 2, "size": 8,
                "scaled": "initial weights of one seed, two digits at 8 x 8",
            },
            "short": {
                **both, "samples": 20, "size": 8, "training": small,
                "scaled": f"nets of {scaled}; before and after training; 20 images",
            },
            "single": {
                **both, "samples": 64, "size": 32, "training": ONE,
                "scaled": "one seed, before and after training, 64 images",
            },
            "paper": {**both, "samples": 128, "size": 32, "training": FULL},
        },
        compute=compute_figure_12,
        judge=judge,
        draw=draw_figure_12,
    )  # fmt: skip


CLAIMS = [
    Claim(
        id="noise_stability/figure_10",
        source=f"{PAPER}, Figure 10",
        says="The loss gradient in the final features is roughly normal with mean zero "
        "(Figure 10).",
        settings={
            "quick": {
                "states": ["initial"], "dataset": "digits", "samples": 40, "size": 8,
                "scaled": "initial weights of one seed, 40 digits at 8 x 8",
            },
            "short": {
                "states": ["initial", "trained"], "dataset": "cifar10", "samples": 1000,
                "size": 32, "scaled": f"{SHIPPED}, 1,000 images",
            },
            "single": {
                "states": ["initial", "trained"], "dataset": "cifar10", "samples": 1000,
                "size": 32, "training": ONE, "scaled": "one seed, 1,000 images",
            },
            "paper": {
                "states": ["initial", "trained"], "dataset": "cifar10", "samples": 10_000,
                "size": 32, "training": FULL,
            },
        },
        compute=compute_figure_10,
        judge=judge_figure_10,
        draw=draw_figure_10,
    ),
    _figure_12(
        "simplified",
        "figure_12_simplified",
        f"{PAPER}, Figure 12 (a)",
        "In simplified nets residual connections make more gradient flows dominant, 1.24 times in "
        "early and 4.06 times in late layers, before and after training, which makes fewer "
        "(Figure 12 a).",
        judge_figure_12_simplified,
    ),
    _figure_12(
        "full",
        "figure_12_full",
        f"{PAPER}, Figure 12 (b)",
        "In nets with BatchNorm and two convolutions a block only deep layers have more dominant "
        "flows than plain nets, 3.07 times against 0.99 times in early ones (Figure 12 b).",
        judge_figure_12_deep,
    ),
]  # fmt: skip
