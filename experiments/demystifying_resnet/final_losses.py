"""Figures 7 and 8: final loss of full-batch gradient descent, one step per epoch.

The available text does not give, and we chose: a run has diverged if its loss is not a number or
exceeds 1000; among learning rates with equal mean final losses the smallest is chosen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim, Verdict
from experiments.demystifying_resnet.nets import (
    LABELS,
    LIMIT,
    MARKERS,
    NETS,
    PAPER,
    PLAIN_AND_TWO,
    at_depth,
    build,
    compared,
    every,
    initial_weights,
    is_linear,
    least_loss,
    listed,
    slope,
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
    loss: str = "square",
    pre: str | None = None,
    mid: str | None = None,
    post: str | None = None,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute the final loss of every net, (depths, rates, seeds); inf where a run diverged."""
    low, high, step = rates
    same = dict(dataset=dataset, samples=samples, seeds=seeds, epochs=epochs, scale=scale)
    same |= dict(low=low, high=high, step=step, loss=loss, pre=pre, mid=mid, post=post)
    parts = {
        name: [FinalLosses(number=number, depth=depth, **net, **same) for depth in depths]
        for number, (name, net) in enumerate(nets.items())
    }
    found = by_name(parts, each, device)
    losses = {f"{name}.loss": np.stack([part["loss"] for part in of]) for name, of in found.items()}
    return {"depth": np.array(depths), "rates": rates_between(*rates).numpy(), **losses}


def at_best(a: Arrays, name: str, over=np.mean) -> tuple[np.ndarray, np.ndarray]:
    """Smallest mean over seeds of the final loss among the learning rates, and its rate."""
    losses = over(a[f"{name}.loss"], axis=-1)
    return losses.min(-1), a["rates"][losses.argmin(-1)]


def _draw_final_losses(figure: Figure, a: Arrays, names: Sequence[str], optimum: float) -> None:
    left, right = figure.subplots(1, 2)
    for name in names:
        loss, rate = at_best(a, name)
        for ax, values in ((left, loss - optimum), (right, rate)):
            ax.plot(a["depth"], values, MARKERS[name] + "-", label=LABELS[name], mfc="none")
    left.set_ylabel("mean final loss" + (" - optimum" if optimum else ""))
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
        **dict(epochs=epochs, scale=scale, loss=loss, device=device, each=each),
        **activations,
    )
    optimum = least_loss(whitened(dataset, samples), loss, linear=is_linear(**activations))
    return {"optimum": np.array(optimum), **losses}


def judge_figure_7(a: Arrays) -> list[Verdict]:
    """Judge Figure 7 over the depths and the nets of the record."""
    depth = a["depth"]
    found = {name: at_best(a, name) for name in _present(a)}
    excess = {name: loss - float(a["optimum"]) for name, (loss, _) in found.items()}
    rate = {name: rates for name, (_, rates) in found.items()}
    return [*_judge_excess(depth, excess), *_judge_rates(depth, rate)]


def _present(a: Arrays) -> list[str]:
    return [name for name in NETS if f"{name}.loss" in a]


def _judge_excess(depth: np.ndarray, excess: Mapping[str, np.ndarray]) -> list[Verdict]:
    two, xavier = excess["two_shortcut"], excess["xavier"]
    others = np.min([values for name, values in excess.items() if name != "two_shortcut"], axis=0)
    factor = xavier / excess["orthogonal"]
    verdicts = [
        Verdict(
            "2-shortcut: final loss above the optimum, every depth",
            "≤ 1e-4 (paper: close to optimal at all depths)",
            listed(two, ".1e"),
            every(two <= 1e-4),
        ),
        Verdict(
            "2-shortcut: smallest of all nets at every depth",
            "below the best of the others",
            "over the best other: " + listed(two / others, ".1e"),
            every(two < others),
        ),
        Verdict(
            "Xavier: excess loss grows with depth",
            "increasing",
            listed(xavier, ".2e"),
            every(np.diff(xavier) > 0),
        ),
        Verdict(
            "Xavier: far above orthogonal at the greatest depth",
            "more than 100 times",
            f"{factor[-1]:.3g}",
            bool(factor[-1] > 100),
        ),
    ]
    if depth[-1] >= 96:
        verdicts.append(
            Verdict(
                "Xavier: excess loss at N = 96", "≥ 0.1", f"{xavier[-1]:.3g}", xavier[-1] >= 0.1
            )
        )
    return verdicts


def _judge_rates(depth: np.ndarray, rate: Mapping[str, np.ndarray]) -> list[Verdict]:
    two, orthogonal = rate["two_shortcut"], rate["orthogonal"]
    factor = (two / orthogonal)[depth >= 24]
    verdicts = [
        Verdict(
            "2-shortcut: best learning rate for N ≥ 12",
            "≥ 1 at every depth",
            listed(two),
            every(two[depth >= 12] >= 1),
        ),
        Verdict(
            "2-shortcut: admits larger learning rates than orthogonal for N ≥ 24",
            "best rate ≥ 10 times",
            f"{listed(factor)} times",
            every(factor >= 10 * (1 - 1e-9)),
        ),
    ]
    for name in ("orthogonal", "one_shortcut"):
        if name not in rate:
            continue
        power = slope(depth, rate[name])
        falls = every(np.diff(rate[name]) < 0)
        verdicts.append(
            Verdict(
                f"{LABELS[name]}: best learning rate falls in proportion to 1/N",
                "decreasing, log-log slope in [-1.3, -0.6]",
                f"{listed(rate[name])}, slope {power:.2f}",
                falls and -1.3 <= power <= -0.6,
            )
        )
    return verdicts


def draw_figure_7(figure: Figure, a: Arrays) -> None:
    """Plot excess loss and best learning rate; the paper omits the rate of Xavier at 96."""
    _draw_final_losses(figure, a, _present(a), float(a["optimum"]))


# ReLUs in mid positions; in plain nets they follow every odd layer.
compute_figure_8 = partial(
    final_losses, {name: {**net, "n": 2} for name, net in PLAIN_AND_TWO.items()}, mid="relu"
)


def judge_figure_8(a: Arrays) -> list[Verdict]:
    """Judge Figure 8 over the depths of the record."""
    depth = a["depth"]
    loss = {name: at_best(a, name)[0] for name in PLAIN_AND_TWO}
    two, deep = loss["two_shortcut"], depth >= 16
    plain = np.minimum(loss["xavier"], loss["orthogonal"])
    verdicts = [
        Verdict(
            "2-shortcut: final loss falls with depth",
            "decreasing",
            listed(two),
            every(np.diff(two) < 0),
        ),
        Verdict(
            "2-shortcut: finds the better optima for N ≥ 16",
            "loss below half of the better plain net's",
            f"{listed((two / plain)[deep])} of it",
            every((two < 0.5 * plain)[deep]),
        ),
    ]
    for name in ("xavier", "orthogonal"):
        shallow, last = (at_depth(depth, loss[name], n) for n in (8, 32))
        verdicts.append(
            Verdict(
                f"{LABELS[name]}: worse at N = 32 than at N = 8",
                "larger loss",
                f"{last:.3g} against {shallow:.3g}",
                last > shallow,
            )
        )
    return verdicts


def draw_figure_8(figure: Figure, a: Arrays) -> None:
    """Plot final loss and best learning rate against depth."""
    _draw_final_losses(figure, a, list(PLAIN_AND_TWO), 0.0)


# -- the claims ------------------------------------------------------------------------------------

_FIGURE_7 = dict(samples=None, rates=[-3.0, 1.25, 0.25], seeds=10, epochs=1000, scale=0.01)
_FIGURE_8 = dict(dataset="mnist", depths=[4, 8, 16, 32], rates=[-2.0, 0.5, 0.25], scale=0.01)

CLAIMS = [
    Claim(
        id="demystifying_resnet/figure_7",
        source=f"{PAPER}, Figure 7",
        says="2-shortcut linear nets come close to the optimal loss at all depths and admit larger "
        "learning rates; Xavier and orthogonal plain nets and 1- and 3-shortcut nets do not.",
        settings={
            "quick": {
                **_FIGURE_7,
                **dict(
                    dataset="digits", depths=[6, 24], rates=[-1.5, 1.0, 0.25], seeds=1, epochs=500
                ),
            },
            "paper": dict(**_FIGURE_7, dataset="mnist", depths=[6, 12, 24, 48, 96]),
        },
        compute=compute_figure_7,
        judge=judge_figure_7,
        draw=draw_figure_7,
    ),
    Claim(
        id="demystifying_resnet/figure_8",
        source=f"{PAPER}, Figure 8",
        says="With ReLUs in mid positions 2-shortcut nets find better optima, the deeper the "
        "better; plain nets get worse with depth.",
        settings={
            "quick": {
                **_FIGURE_8,
                **dict(dataset="digits", depths=[8, 32], rates=[-0.5, 0.0, 0.5]),
                **dict(samples=100, seeds=1, epochs=120),
            },
            "short": dict(
                **_FIGURE_8,
                samples=600,
                seeds=1,
                epochs=600,
                scaled="600 of the 60,000 samples, 600 of 1,000 epochs, 1 of 10 runs",
            ),
            "paper": dict(**_FIGURE_8, samples=None, seeds=10, epochs=1000),
        },
        compute=compute_figure_8,
        judge=judge_figure_8,
        draw=draw_figure_8,
    ),
]

_BY_ID = {claim.id.rpartition("/")[2]: claim for claim in CLAIMS}
CLAIMS += [
    replace(
        _BY_ID[figure],
        id=f"demystifying_resnet/{figure}_digits",
        source=f"{_BY_ID[figure].source}, on digits",
        settings={scale: {**_BY_ID[figure].settings[scale], "dataset": "digits", **change}},
    )
    for figure, scale, change in (
        ("figure_7", "paper", {}),
        (
            "figure_8",
            "short",
            {"scaled": "600 of the 1,797 samples, 600 of 1,000 epochs, 1 of 10 runs"},
        ),
    )
]
