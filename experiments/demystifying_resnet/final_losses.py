"""Figures 7 and 8: final loss of full-batch gradient descent, one step per epoch.

As in Appendix B, the best learning rate has the smallest average final loss of all runs. The
available text does not give, and we chose: a run has diverged if its loss is not a number or
exceeds 1000; the smallest of equally good rates is chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below
from experiments.demystifying_resnet.nets import (
    LABELS,
    LIMIT,
    MARKERS,
    NETS,
    PAPER,
    PLAIN_AND_TWO,
    build,
    compared,
    initial_weights,
    is_linear,
    least_loss,
    listed,
    whitened,
)
from experiments.parts import Each, Part, by_name, in_turn


def rates_between(low: float, high: float, step: float) -> torch.Tensor:
    """Learning rates from 10^low to 10^high, with a distance of ``step`` in the exponent."""
    count = round((high - low) / step) + 1
    return 10.0 ** torch.linspace(low, high, count, dtype=torch.float64)


@dataclass(frozen=True, kw_only=True)
class FinalLosses(Part):
    """Final losses of one net at one depth for all learning rates and ``seeds`` seeds.

    The initial weights depend on the seed (from ``seed`` on), on the position ``number`` of the net
    in its figure, and on the depth.
    """

    dataset: str = "digits"
    samples: int | None = None
    number: int = 0
    n: int = 2
    shortcut: bool = True
    init: str = "near_zero"
    depth: int = 2
    low: float = 0.0
    high: float = 0.0
    step: float = 0.25
    seeds: int = 1
    epochs: int = 1000
    scale: float = 0.01
    loss: str = "square"
    pre: str | None = None
    mid: str | None = None
    post: str | None = None

    def arrays(self, device: str) -> dict[str, np.ndarray]:
        net = {"n": self.n, "shortcut": self.shortcut}
        model = build(self.depth, net, pre=self.pre, mid=self.mid, post=self.post)
        weights = initial_weights(
            model, self.init, self.seeds, self.scale, self.number, self.depth, first=self.seed
        )
        path = rt.gradient_descent(
            model,
            self.loss,
            whitened(self.dataset, self.samples),
            weights=weights.to(device),
            learning_rate=rates_between(self.low, self.high, self.step)[:, None].to(device),
            epochs=self.epochs,
            record_every=max(1, self.epochs),
            limit=LIMIT,
        )
        return {"loss": path.final_loss.cpu().numpy()}


def final_losses(
    nets: Mapping[str, Mapping],
    *,
    dataset: str,
    samples: int | None,
    depths: Sequence[int],
    rates: Sequence[float],
    seeds: int,
    epochs: int,
    scale: float,
    seed: int = 0,
    near: Mapping[str, Sequence[float]] | None = None,
    loss: str = "square",
    pre: str | None = None,
    mid: str | None = None,
    post: str | None = None,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute the final loss of every net, (depths, rates, seeds); inf where a run diverged.

    Seeds count from ``seed`` on.
    ``rates`` are exponents of ten: lowest, highest and step. They are counted from those of
    ``near``, by net and depth, if it is given; then every net has its own rates, (depths, rates).
    """
    low, high, step = rates
    same = dict(dataset=dataset, samples=samples, seeds=seeds, epochs=epochs, scale=scale)
    same |= dict(seed=seed, step=step, loss=loss, pre=pre, mid=mid, post=post)
    start = {name: near[name] if near else [0.0] * len(depths) for name in nets}
    parts = {
        name: [
            FinalLosses(number=number, depth=depth, low=at + low, high=at + high, **net, **same)
            for depth, at in zip(depths, start[name], strict=True)
        ]
        for number, (name, net) in enumerate(nets.items())
    }
    arrays = {"depth": np.array(depths), "rates": rates_between(*rates).numpy()}
    for name, found in by_name(parts, each, device).items():
        arrays[f"{name}.loss"] = np.stack([part["loss"] for part in found])
        if near:
            arrays[f"{name}.rates"] = 10 ** np.array(start[name])[:, None] * arrays["rates"]
    return arrays


def _rates(a: Arrays, name: str) -> np.ndarray:
    """Learning rates of a net, (depths, rates)."""
    own = a[f"{name}.rates"] if f"{name}.rates" in a else a["rates"]
    return np.broadcast_to(own, a[f"{name}.loss"].shape[:2])


def at_best(a: Arrays, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Final losses at the rate with the smallest mean, (depths, seeds), and that rate.

    Where every rate diverged in some seed, the smallest median decides.
    """
    losses, rates, each = a[f"{name}.loss"], _rates(a, name), np.arange(len(a[f"{name}.loss"]))
    means, medians = losses.mean(-1), np.median(losses, -1)
    best = np.where(np.isfinite(means).any(-1), means.argmin(-1), medians.argmin(-1))
    return losses[each, best], rates[each, best]


def _best_of_each(a: Arrays, name: str) -> np.ndarray:
    """Learning rate with the smallest final loss of every seed, (depths, seeds)."""
    return np.take_along_axis(_rates(a, name), a[f"{name}.loss"].argmin(1), 1)


def _draw_final_losses(figure: Figure, a: Arrays, names: Sequence[str], optimum: float) -> None:
    left, right = figure.subplots(1, 2)
    for name in names:
        losses, rate = at_best(a, name)
        style = dict(color=f"C{names.index(name)}", mfc="none", label=LABELS[name])
        left.plot(a["depth"], np.median(losses, -1) - optimum, MARKERS[name] + "-", **style)
        left.plot(a["depth"], losses - optimum, ".", color=style["color"], alpha=0.3)
        right.plot(a["depth"], rate, MARKERS[name] + "-", **style)
    left.set_ylabel("final loss" + (" - optimum" if optimum else "") + ", median and all seeds")
    right.set_ylabel("best learning rate")
    for ax in (left, right):
        ax.set(xscale="log", yscale="log", xlabel="weight layers N")
        ax.set_xticks(a["depth"], [str(depth) for depth in a["depth"]])
        ax.minorticks_off()
    right.legend(fontsize="small")


def compute_figure_7(
    *,
    dataset: str,
    samples: int | None,
    depths: Sequence[int],
    rates: Sequence[float],
    seeds: int,
    epochs: int,
    scale: float,
    seed: int = 0,
    near: Mapping[str, Sequence[float]] | None = None,
    loss: str = "square",
    pre: str | None = None,
    mid: str | None = None,
    post: str | None = None,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute final losses of the nets that ``compared`` names, and the optimal loss.

    Linear nets with the square loss are trained on moments alone, others on the samples. With an
    activation the optimum is replaced by its lower bound 0.
    """
    activations = dict(pre=pre, mid=mid, post=post)
    losses = final_losses(
        compared(**activations),
        **dict(dataset=dataset, samples=samples, depths=depths, rates=rates, seeds=seeds),
        **dict(
            epochs=epochs, scale=scale, seed=seed, near=near, loss=loss, device=device, each=each
        ),
        **activations,
    )
    optimum = least_loss(whitened(dataset, samples), loss, linear=is_linear(**activations))
    return {"optimum": np.array(optimum), **losses}


def judge_figure_7(a: Arrays) -> list[Criterion]:
    """Judge Figure 7 over the depths and the nets of the record."""
    names = [name for name in NETS if f"{name}.loss" in a]
    others, depth = [name for name in names if name != "two_shortcut"], a["depth"]
    # Between round-off and the limit, which a run that diverged has passed.
    ends = {name: at_best(a, name)[0] - a["optimum"] for name in names}
    excess = {name: of.clip(np.finfo(float).eps, LIMIT) for name, of in ends.items()}
    best_other = np.min([excess[name] for name in others], axis=0)
    ratio = np.log10(excess["two_shortcut"] / best_other)
    criteria = [
        below(
            "2-shortcut: final loss above the optimum, largest over the depths",
            excess["two_shortcut"].max(0),
            1e-4,
            of="median",
            source="paper: close to optimal at all depths; the number is ours",
            shown="by depth " + listed(np.median(excess["two_shortcut"], -1), ".1e"),
        ),
        below(
            "2-shortcut over the best other net, log10 of the ratio of these, largest over depths",
            ratio.max(0),
            of="median",
            source="paper: only they stay close to optimal",
            shown="by depth " + listed(np.median(ratio, -1)),
        ),
    ]
    rates = {name: np.log10(_best_of_each(a, name)) for name in names}
    for name in others:
        # The paper omits Xavier's rate at 96 layers, where all rates end alike.
        kept = depth < 96 if name == "xavier" else depth > 0
        factor = (rates["two_shortcut"] - rates[name])[kept]
        criteria.append(
            above(
                f"2-shortcut over {LABELS[name]}: log10 of the ratio of best rates, mean of depths",
                factor.mean(0),
                of="median",
                source="paper: admits larger learning rates",
                shown="ratio by depth " + listed(10 ** np.median(factor, -1)),
            )
        )
    return criteria


def draw_figure_7(figure: Figure, a: Arrays) -> None:
    """Plot excess loss and best learning rate; the paper omits the rate of Xavier at 96."""
    names = [name for name in NETS if f"{name}.loss" in a]
    _draw_final_losses(figure, a, names, float(a["optimum"]))


# ReLUs in mid positions; in plain nets they follow every odd layer.
compute_figure_8 = partial(
    final_losses, {name: {**net, "n": 2} for name, net in PLAIN_AND_TWO.items()}, mid="relu"
)


def judge_figure_8(a: Arrays) -> list[Criterion]:
    """Judge Figure 8 at both ends of the depths, and at the best depth of each net and seed."""
    loss = {name: at_best(a, name)[0].clip(max=LIMIT) for name in PLAIN_AND_TWO}
    medians = {name: listed(np.median(of, -1)) for name, of in loss.items()}
    return [
        below(
            f"2-shortcut over {LABELS[name]}: log10 of the ratio of final losses {where}",
            np.log10(of(loss["two_shortcut"]) / of(loss[name])),
            source="paper: 2-shortcut nets find the better optima",
            shown=f"by depth {medians['two_shortcut']} against {medians[name]}",
        )
        for where, of in (
            (f"at N = {a['depth'][0]}", lambda losses: losses[0]),
            (f"at N = {a['depth'][-1]}", lambda losses: losses[-1]),
            ("at each net's best depth", lambda losses: losses.min(0)),
        )
        for name in ("xavier", "orthogonal")
    ]


def draw_figure_8(figure: Figure, a: Arrays) -> None:
    """Plot final loss and best learning rate against depth."""
    _draw_final_losses(figure, a, list(PLAIN_AND_TWO), 0.0)


# -- the claims ------------------------------------------------------------------------------------

_FIGURE_7 = dict(
    samples=None,
    depths=[6, 12, 24, 48, 96],
    rates=[-3.0, 1.25, 0.25],
    epochs=1000,
    scale=0.01,
)
_QUICK_7 = dict(dataset="digits", depths=[6, 12], rates=[-1.5, 1.0, 0.25], seeds=1, epochs=80)
_FIGURE_8 = dict(depths=[4, 8, 16, 32], scale=0.01)
_SHORT_8 = dict(**_FIGURE_8, samples=600, epochs=600)
# The best by the earlier records of one seed, on a grid from 10^-2 to 10^0.5, and one step more
# where the best of five seeds was at the upper end. At 32 layers Xavier nets end at the loss of the
# zero map, or diverge, at every rate.
_BEST_8 = {
    "mnist": {
        "xavier": [0.0, -0.25, -0.25, 0.25],
        "orthogonal": [-0.25, 0.0, -0.25, -0.25],
        "two_shortcut": [-0.25, -0.25, 0.0, 0.25],
    },
    "digits": {
        "xavier": [0.0, 0.0, -0.25, 0.25],
        "orthogonal": [0.0, 0.0, 0.0, -0.25],
        "two_shortcut": [-0.5, -0.25, 0.0, 0.25],
    },
}
_QUICK_8 = dict(samples=100, depths=[8, 16], rates=[-0.5, 0.0, 0.5], seeds=1, epochs=60)


def _figure_7(name: str, where: str, kind: str, settings: Mapping[str, Mapping]) -> Claim:
    return Claim(
        id=f"demystifying_resnet/{name}",
        kind=kind,
        source=f"{PAPER}, Figure 7{where}",
        says="The final losses of 2-shortcut linear nets stay close to optimal at all depths, and "
        "they admit larger learning rates than Xavier, orthogonal, 1- and 3-shortcut nets.",
        settings=settings,
        compute=compute_figure_7,
        judge=judge_figure_7,
        draw=draw_figure_7,
    )


def _figure_8(name: str, where: str, kind: str, settings: Mapping[str, Mapping]) -> Claim:
    return Claim(
        id=f"demystifying_resnet/{name}",
        kind=kind,
        source=f"{PAPER}, Figure 8{where}",
        says="With ReLUs in mid positions 2-shortcut nets find better optima than plain nets.",
        settings=settings,
        compute=compute_figure_8,
        judge=judge_figure_8,
        draw=draw_figure_8,
    )


CLAIMS = [
    _figure_7(
        "figure_7",
        "",
        "paper",
        {
            "quick": {**_FIGURE_7, **_QUICK_7},
            # One grid for all: grids around each net's best would give the order of best rates.
            # Ten seeds left one criterion open and asked for 28: these are others.
            "paper": dict(**_FIGURE_7, dataset="mnist", seed=30, seeds=30),
        },
    ),
    _figure_7(
        "figure_7_digits",
        ", on digits",
        "extension",
        # Ten seeds left one criterion open and asked for 28: these are others.
        {"paper": dict(**_FIGURE_7, dataset="digits", seed=20, seeds=30)},
    ),
    _figure_8(
        "figure_8",
        "",
        "paper",
        {
            "quick": {**_SHORT_8, **_QUICK_8, "dataset": "digits"},
            "short": dict(
                **_SHORT_8,
                dataset="mnist",
                rates=[-0.75, 0.25, 0.25],
                near=_BEST_8["mnist"],
                seeds=5,
                scaled="600 of the 60,000 samples, 600 of 1,000 epochs, 5 of 10 runs",
            ),
            "paper": dict(
                **_FIGURE_8, dataset="mnist", samples=None, rates=[-1.0, 0.75, 0.25], seeds=10,
                epochs=1000,
            ),
        },
    ),
    _figure_8(
        "figure_8_digits",
        ", on digits",
        "extension",
        {
            "short": dict(
                **_SHORT_8,
                dataset="digits",
                rates=[-0.75, 0.25, 0.25],
                near=_BEST_8["digits"],
                # Seeds 0 to 4 decided nothing and asked for 16: these are others.
                seed=10,
                seeds=20,
                scaled="600 of the 1,797 samples, 600 of 1,000 epochs",
            )
        },
    ),
]  # fmt: skip
