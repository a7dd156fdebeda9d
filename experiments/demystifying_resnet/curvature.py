"""Figures 5 and 6: Hessians during training, by default of linear nets.

Both figures' "always smaller" is one test: of each seed, the largest difference (of log condition
numbers, of indices) at losses that both nets pass. Between two measured epochs a number is linear
in the logarithm of the loss above the optimum; where these are further apart than ``GAP``, the loss
counts as not measured. Percentiles are interpolated linearly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below, decided, near
from experiments.demystifying_resnet.hessians_along import THRESHOLDS, HessiansAlong
from experiments.demystifying_resnet.nets import (
    LABELS,
    MARKERS,
    PAPER,
    PLAIN_AND_TWO,
    is_linear,
    least_loss,
    listed,
    whitened,
)
from experiments.parts import Each, by_name, in_turn

GAP = 2.5  # in the loss above the optimum; twenty checkpoints of six decades are 2.1 apart
WINDOW = 5  # epochs
PLAIN = ("orthogonal", "xavier")


def compute_curvature(
    *,
    dataset: str,
    samples: int | None,
    depth: int,
    rates: Mapping[str, float],
    epochs: int,
    lead: int,
    checkpoints: int,
    early: int,
    scale: float,
    seeds: int,
    loss: str = "square",
    pre: str | None = None,
    mid: str | None = None,
    post: str | None = None,
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute exact Hessians along descents, one row for each seed and measured epoch.

    The ``lead`` is for plain nets, the ``early`` epochs for the 2-shortcut net, whose gradient norm
    is given at every epoch. Linear nets with the square loss need moments only, others the samples.
    With an activation plain nets have blocks of two layers, and ``optimum`` is the lower bound 0.
    """
    activations = dict(pre=pre, mid=mid, post=post)
    same = dict(dataset=dataset, samples=samples, depth=depth, epochs=epochs, scale=scale)
    same |= dict(checkpoints=checkpoints, seeds=seeds, loss=loss, **activations)
    own = {name: dict(lead=lead) for name in PLAIN} | {"two_shortcut": dict(early=early)}
    parts = {
        name: [HessiansAlong(net=name, rate=rates[name], **own[name], **same)]
        for name in PLAIN_AND_TWO
    }
    arrays = {}
    for name, (found,) in by_name(parts, each, "cpu").items():
        kept = [key for key in found if key != "gradient" or name == "two_shortcut"]
        arrays |= {f"{name}.{key}": found[key] for key in kept}
    optimum = least_loss(whitened(dataset, samples), loss, linear=is_linear(**activations))
    return {"optimum": np.array(optimum), **arrays}


# -- comparison at equal losses --------------------------------------------------------------------


def common_losses(optimum: float, *losses: np.ndarray) -> np.ndarray:
    """Losses that all descents pass where they are measured, descending.

    Of 200, evenly spaced in the logarithm: those between two measured losses of every descent whose
    distances from the optimum differ by a factor of ``GAP`` at most.
    """
    low, high = max(each.min() for each in losses), min(each[0] for each in losses)
    levels = np.geomspace(high, low, 200).clip(low, high) if low < high else np.empty(0)
    for each in losses:
        after = (each <= levels[:, None]).argmax(1)
        before = each[np.maximum(after - 1, 0)]
        levels = levels[(after == 0) | (before - optimum <= GAP * (each[after] - optimum))]
    return levels


def _pairs(a: Arrays, other: str) -> list[tuple[np.ndarray, dict, dict]]:
    """For each seed, common losses above the optimum, and statistics of both nets there."""
    optimum, found = float(a["optimum"]), []
    for seed in np.unique(a["two_shortcut.seed"]):
        rows = [a[f"{name}.seed"] == seed for name in ("two_shortcut", other)]
        losses = [a[f"{n}.loss"][r] for n, r in zip(("two_shortcut", other), rows, strict=True)]
        levels = common_losses(optimum, *losses)
        if not len(levels):
            raise ValueError(
                f"loss: 2-shortcut and {other} nets of seed {seed} have none in common"
            )
        nets = zip(("two_shortcut", other), rows, losses, strict=True)
        at = [_at(a, name, row, loss - optimum, levels - optimum) for name, row, loss in nets]
        found.append((levels - optimum, *at))
    return found


def _at(
    a: Arrays, name: str, rows: np.ndarray, excess: np.ndarray, levels: np.ndarray
) -> dict[str, np.ndarray]:
    """Statistics of one net and seed where it first passes given losses above the optimum."""
    after = (excess <= levels[:, None]).argmax(1)
    before = np.maximum(after - 1, 0)
    high, low = np.log(excess[before]), np.log(excess[after])
    share = (high - np.log(levels)) / np.where(high > low, high - low, 1.0)

    def at(values: np.ndarray) -> np.ndarray:
        return values[before] + share * (values[after] - values[before])

    return {
        "cond10": at(np.log10(a[f"{name}.max"] / a[f"{name}.p10"])[rows]),
        "index": at(a[f"{name}.index"][rows]),
        "unsure": at(a[f"{name}.unsure"][rows]),
        "negative": np.stack([at(column) for column in a[f"{name}.negative"][rows].T]),
    }


def _share(differences: Sequence[np.ndarray]) -> str:
    shares = [100 * (each < 0).mean() for each in differences]
    return f"{min(shares):.0f} to {max(shares):.0f} % of the losses"


def judge_figure_5(a: Arrays) -> list[Criterion]:
    """Judge the condition numbers (max/10th percentile) at equal loss."""
    criteria = []
    for other in PLAIN:
        pairs, what = _pairs(a, other), f"2-shortcut over {LABELS[other]}, log10 of the ratio"
        ratios = [two["cond10"] - plain["cond10"] for _, two, plain in pairs]
        halves = [np.array_split(ratio, 2) for ratio in ratios]
        both = [(levels, ratio) for (levels, *_), ratio in zip(pairs, ratios, strict=True)]
        larger = [levels[ratio >= 0] for levels, ratio in both]
        first = [levels.max() for levels in larger if len(levels)]
        broken = (
            f", first not {min(first):.2g} to {max(first):.2g} above the optimum" if first else ""
        )
        criteria += [
            below(
                f"{what}: largest at equal loss",
                [ratio.max() for ratio in ratios],
                of="median",
                source="paper: always smaller",
                shown=f"smaller at {_share(ratios)}{broken}",
            ),
            below(
                f"{what}: mean at the larger half of the losses minus that at the smaller half",
                [large.mean() - small.mean() for large, small in halves],
                of="median",
                source="paper: especially when the loss is large",
            ),
        ]
        if other == "orthogonal":
            end = judge_end(what, both)
    return [*criteria, end]


def judge_end(what: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Criterion:
    """Judge that both end alike; the paper does not say at which loss its trainings end."""
    at = {f"{level:g}": [r[np.abs(levels - level).argmin()] for levels, r in pairs]
          for level in (0.05, 0.01)}  # fmt: skip
    at["the last common loss"] = [ratio[-1] for _, ratio in pairs]
    tests = [
        near(f"{what}: at {where}", ratios, margin=1.0, source="") for where, ratios in at.items()
    ]
    outcomes = {each.holds for each in decided(tests)}
    last = [levels[-1] for levels, _ in pairs]
    medians = listed([float(np.median(ratios)) for ratios in at.values()], ".2f")
    return Criterion(
        f"{what}: 0.05 and 0.01 above the optimum and at the last common loss",
        "within 1 of 0 at all (paper: evolve to roughly the same value, no loss is given; a factor "
        "of 10 is ours); fails if outside at all, undecided if that depends on the end",
        f"medians {medians}; the last is {min(last):.2g} to {max(last):.2g} above it",
        outcomes.pop() if len(outcomes) == 1 else None,
    )


def _by_threshold(pairs: Sequence[tuple[np.ndarray, dict, dict]]) -> np.ndarray:
    """Share of the losses at which the first net's index is smaller, (seeds, thresholds)."""
    return np.array([(two["negative"] < plain["negative"]).mean(1) for _, two, plain in pairs])


def judge_figure_6(a: Arrays) -> list[Criterion]:
    """Judge the share of negative eigenvalues."""
    apart, drops = [], []
    for seed, gradient in zip(
        np.unique(a["two_shortcut.seed"]), a["two_shortcut.gradient"], strict=True
    ):
        rows, steepest = a["two_shortcut.seed"] == seed, int(gradient.argmax())
        epoch, index = a["two_shortcut.epoch"][rows], a["two_shortcut.index"][rows]
        fall = int((-np.diff(index) / np.diff(epoch)).argmax())
        apart.append((epoch[fall] + epoch[fall + 1]) / 2 - steepest)
        near_it = index[np.abs(epoch - steepest) <= WINDOW]
        drops.append(near_it[0] - near_it[-1] if len(near_it) else 0.0)
    return [
        *(_judge_index(a, other) for other in PLAIN),
        above(
            f"2-shortcut: drop of the index within {WINDOW} epochs of the largest gradient",
            drops,
            0.02,
            source="paper: drops dramatically at the beginning; the number is ours",
        ),
        near(
            "2-shortcut: epoch at which the index falls fastest minus that of the largest gradient",
            apart,
            margin=WINDOW,
            source="paper: the gradient is largest when the index drops; the margin is ours",
        ),
    ]


def _judge_index(a: Arrays, other: str) -> Criterion:
    """Compare indices at equal loss, whatever the signs of eigenvalues within the solver's error.

    It holds if it does with these signs against the sentence, and fails if it does with them in
    its favour.
    """
    pairs = _pairs(a, other)
    found = [two["index"] - plain["index"] for _, two, plain in pairs]
    most, least = (
        [difference + more for difference, more in zip(found, unsure, strict=True)]
        for unsure in (
            [two["unsure"] for _, two, _ in pairs],
            [-plain["unsure"] for *_, plain in pairs],
        )
    )
    shares = 100 * np.median(_by_threshold(pairs), 0)
    sure = [sum(each.max() < 0 for each in most), sum(each.max() >= 0 for each in least)]

    def largest(differences: Sequence[np.ndarray]) -> Criterion:
        return below(
            f"2-shortcut minus {LABELS[other]}: largest difference of the index at equal loss",
            [each.max() for each in differences],
            of="median",
            source="paper: always smaller",
            shown=f"smaller at {_share(found)}; whatever the signs within the error, always in "
            f"{sure[0]} seeds and not always in {sure[1]}; if λ < -t max |λ| counts, t = "
            f"{listed(THRESHOLDS, '.0e')}, at {listed(shares, '.0f')} % (medians)",
        )

    computed, against, favour = (largest(each) for each in (found, most, least))
    assert computed.test and against.test and favour.test
    test = replace(
        computed.test,
        spread=max(sure) / len(pairs),  # more seeds decide nothing where the error does not
        p_holds=against.test.p_holds,
        p_fails=favour.test.p_fails,
    )
    return replace(computed, test=test)


# -- drawings --------------------------------------------------------------------------------------


def _draw_seeds(ax: Axes, a: Arrays, name: str, key: str, style: str, **more: Any) -> None:
    """Plot a statistic against the loss above the optimum: one seed in full, the others faintly."""
    for seed in np.unique(a[f"{name}.seed"])[::-1]:
        rows, first = a[f"{name}.seed"] == seed, seed == a[f"{name}.seed"][0]
        shown = dict(marker=MARKERS[name], **more) if first else dict(alpha=0.2)
        color = f"C{list(PLAIN_AND_TWO).index(name)}"
        excess = a[f"{name}.loss"][rows] - a["optimum"]
        ax.plot(excess, a[f"{name}.{key}"][rows], style, color=color, **shown)


def draw_figure_5(figure: Figure, a: Arrays) -> None:
    """Plot the largest |λ| and its 10th percentile against the loss above the optimum."""
    ax = figure.subplots()
    for name in PLAIN_AND_TWO:
        _draw_seeds(ax, a, name, "max", "-", label=LABELS[name])
        _draw_seeds(ax, a, name, "p10", "--", mfc="none")
    less = " - optimum" if a["optimum"] else ""
    ax.set(xscale="log", yscale="log", xlabel=f"loss{less} (training goes to the right)")
    ax.set_ylabel("max |λ| (filled) and 10th percentile\nof |λ| (open), loss / weight²")
    ax.invert_xaxis()
    ax.legend()


def draw_figure_6(figure: Figure, a: Arrays) -> None:
    """Plot the index against the loss, its dependence on what counts as negative, and one run."""
    left, middle, right = figure.subplots(1, 3)
    for name in PLAIN_AND_TWO:
        _draw_seeds(left, a, name, "index", "-", label=LABELS[name], mfc="none")
    less = " - optimum" if a["optimum"] else ""
    left.set(xscale="log", xlabel=f"loss{less}", ylabel="index (share of negative λ)")
    left.invert_xaxis()
    left.legend(fontsize="small")
    for other in PLAIN:
        color = f"C{list(PLAIN_AND_TWO).index(other)}"
        shares = 100 * _by_threshold(_pairs(a, other))
        middle.plot(shares.T, ".", color=color, alpha=0.4)
        middle.plot(np.median(shares, 0), color=color)
    middle.set_xticks(
        range(len(THRESHOLDS)), [f"{t:.0e}" if t else "0" for t in THRESHOLDS], rotation=45
    )
    middle.set(
        xlabel="threshold / max |λ|",
        ylabel="% of losses, 2-shortcut lower",
        ylim=(-5, 105),
    )
    rows = (a["two_shortcut.seed"] == a["two_shortcut.seed"][0]) & (a["two_shortcut.epoch"] <= 60)
    right.plot(a["two_shortcut.epoch"][rows], a["two_shortcut.index"][rows], "k.-")
    right.set(xlabel="epoch", ylabel="index, 2-shortcut (dots)")
    twin = right.twinx()
    twin.plot(a["two_shortcut.gradient"][0, :61], "C3--")
    twin.spines["right"].set_visible(True)
    twin.set_ylabel("gradient norm (dashed)")


# -- the claims ------------------------------------------------------------------------------------

_SAYS = {
    "5": "The condition numbers of 2-shortcut nets at different losses are always smaller than "
    "those of plain nets, especially when the loss is large; those of orthogonal and 2-shortcut "
    "nets evolve to roughly the same value.",
    "6": "The index of a 2-shortcut net is always smaller than those of plain nets, and drops "
    "dramatically at the beginning, where the gradient reaches its maximum.",
}
_CURVATURE = dict(
    samples=None,
    depth=16,
    rates={"two_shortcut": 0.3, "orthogonal": 0.1, "xavier": 0.01},
    epochs=1000,
    lead=100,
    checkpoints=20,
    early=30,
    scale=0.01,
)
_SMALL = dict(depth=4, checkpoints=8, epochs=40, early=12, lead=20, seeds=2)


def _curvature(figure: str, judge, draw, small: Mapping[str, int] | None = None) -> list[Claim]:
    """Claims of one figure; at paper scale both figures have the same settings, and parts."""
    return [
        Claim(
            id=f"demystifying_resnet/figure_{figure}_{dataset}",
            kind=kind,
            source=f"{PAPER}, Figure {figure}, on {dataset.replace('mnist', 'MNIST')}",
            says=_SAYS[figure],
            settings={
                **({"quick": {**_CURVATURE, "dataset": dataset, **small}} if small else {}),
                "paper": {**_CURVATURE, "dataset": dataset, "seeds": seeds},
            },
            compute=compute_curvature,
            judge=judge,
            draw=draw,
        )
        for dataset, kind, seeds, small in (
            ("digits", "extension", 7, small),
            ("mnist", "paper", 10, None),
        )
    ]


CLAIMS = [
    # The criteria of Figure 5 need deep nets, whose Hessians take too long for a quick run.
    *_curvature("5", judge_figure_5, draw_figure_5),
    *_curvature("6", judge_figure_6, draw_figure_6, small=_SMALL),
]
