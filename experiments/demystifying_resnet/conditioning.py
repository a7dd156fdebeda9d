"""Figure 4: the condition number of linear nets at initialization against depth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim, Verdict
from experiments.demystifying_resnet.nets import (
    MARKERS,
    NETS,
    PAPER,
    build,
    columns,
    compared,
    equivalent_at_zero,
    every,
    generator_of,
    listed,
    whitened,
)
from experiments.parts import Each, Part, by_name, in_turn
from resid_theory._check import check_choice
from resid_theory.data.regression import Regression

LABELS = {
    "xavier": "plain, Xavier",
    "orthogonal": "plain, orthogonal",
    "one_shortcut": "1-shortcut, near zero",
    "two_shortcut": "2-shortcut, near zero",
    "three_shortcut": "3-shortcut, near zero",
}


@dataclass(frozen=True, kw_only=True)
class InitialSpectra(Part):
    """Spectral statistics of one net at one depth at initialization, for seeds from ``seed`` on."""

    dataset: str = "digits"
    samples: int | None = None
    net: str = "two_shortcut"
    depth: int = 2
    seeds: int = 1
    scale: float = 0.01
    loss: str = "square"
    pre: str | None = None
    mid: str | None = None
    post: str | None = None

    def check(self) -> None:
        super().check()
        check_choice("net", self.net, list(NETS))

    def arrays(self, device: str) -> dict[str, np.ndarray]:
        return columns(map(self._statistics, range(self.seed, self.seed + self.seeds)))

    def _statistics(self, seed: int) -> dict[str, float]:
        data, number = whitened(self.dataset, self.samples), list(NETS).index(self.net)
        activations = dict(pre=self.pre, mid=self.mid, post=self.post)
        net = compared(**activations)[self.net]
        model = build(self.depth, net, **activations)
        generator = generator_of(number, self.depth, seed)
        rt.initialize(model, net["init"], generator=generator, scale=self.scale)
        spectrum = rt.hessian_spectrum(model, self.loss, data)
        found = {
            "max": spectrum.max_magnitude,
            "p10": spectrum.magnitude_percentile(10),
            "min": spectrum.min_magnitude,
            "index": spectrum.index,
        }
        if net["init"] == "orthogonal" and model.is_linear:
            point = equivalent_at_zero(model, self.loss, data)
            found["growth_rate"] = point.growth_rate
            found["bulk"] = point.statistics.bulk_percentile(10)
        return found


def compute_figure_4(
    *,
    dataset: str,
    samples: int | None,
    depths: Sequence[int],
    seeds: int,
    scale: float,
    loss: str = "square",
    pre: str | None = None,
    mid: str | None = None,
    post: str | None = None,
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute spectral statistics at initialization, (depths, seeds) arrays by net.

    The nets are those that ``compared`` names; with an activation only the 2-shortcut net has a
    prediction. For an activation with a kink at zero (ReLU) it is the mean over directions, from
    which single initializations differ; in ``mid`` and ``post`` an activation must be 0 at zero.
    """
    activations = dict(pre=pre, mid=mid, post=post)
    same = dict(dataset=dataset, samples=samples, seeds=seeds, scale=scale, loss=loss)
    parts = {
        name: [
            InitialSpectra(net=name, depth=depth, **same, **activations)
            for depth in depths
            if depth % net["n"] == 0
        ]
        for name, net in compared(**activations).items()
    }
    arrays: dict[str, np.ndarray] = {}
    for name, found in by_name(parts, each, "cpu").items():
        if found:
            arrays[f"{name}.depth"] = np.array([part.depth for part in parts[name]])
            arrays |= {f"{name}.{key}": np.stack([part[key] for part in found]) for key in found[0]}
    return arrays | _predicted(whitened(dataset, samples), max(depths), loss, activations)


def _predicted(
    data: Regression, depth: int, loss: str, activations: Mapping[str, str | None]
) -> dict[str, np.ndarray]:
    two = rt.theory.zero_point(data, blocks=1, shortcut_depth=2, loss=loss, **activations)
    numbers = [two.percentile_condition_number(10), two.condition_number, two.a_priori_bound]
    found = {"two_shortcut.predicted": np.array(numbers)}
    if "one_shortcut" in compared(**activations):
        one = rt.theory.zero_point(data, blocks=depth, shortcut_depth=1, loss=loss)
        limits = [one.growth_rate, one.statistics.bulk_percentile(10)]
        found["one_shortcut.predicted"] = np.array(limits)
    return found


def _cond10(a: Arrays, name: str) -> np.ndarray:
    return a[f"{name}.max"] / a[f"{name}.p10"]


def judge_figure_4(a: Arrays) -> list[Verdict]:
    """Judge Figure 4 over the depths of the record.

    With activations there is no prediction for plain nets; they are judged by the paper's text.
    """
    if "orthogonal.growth_rate" not in a:
        cond = _cond10(a, "orthogonal").mean(1)
        growth = Verdict(
            "orthogonal: condition number grows with depth",
            "increasing (paper: tends to infinity)",
            listed(cond),
            every(np.diff(cond) > 0),
        )
        return [*_judge_two_shortcut(a), growth, *_judge_xavier(a)]
    return [
        *_judge_two_shortcut(a),
        *_judge_orthogonal(a),
        *_judge_xavier(a),
        *_judge_other_shortcuts(a),
    ]


def _judge_two_shortcut(a: Arrays) -> list[Verdict]:
    closed, _, bound = (float(v) for v in a["two_shortcut.predicted"])
    cond = _cond10(a, "two_shortcut").mean(1)
    flat = float(cond.max() / cond.min())
    off = float(np.abs(cond / closed - 1).max())
    verdicts = [
        Verdict(
            "2-shortcut: condition number constant in depth",
            "largest over smallest mean < 1.05 (paper: constant)",
            f"{cond.min():.3f} to {cond.max():.3f}, ratio {flat:.4f}",
            flat < 1.05,
        ),
        Verdict(
            "2-shortcut: equal to the closed form at zero weights",
            f"{closed:.4f} within 2 % (weights of 0.01, not zero)",
            f"largest difference {100 * off:.2f} %",
            off < 0.02,
        ),
    ]
    if np.isfinite(bound):  # it exists for the square loss only
        most = float((a["two_shortcut.max"] / a["two_shortcut.min"]).max())
        verdicts.append(
            Verdict(
                "2-shortcut: max/min below the a-priori bound",
                f"≤ 1.03 × {bound:.4f} (exact at zero; 3 % for weights of 0.01)",
                f"{most:.4f}",
                most <= 1.03 * bound,
            )
        )
    return verdicts


def _judge_orthogonal(a: Arrays) -> list[Verdict]:
    depth, cond = a["orthogonal.depth"], _cond10(a, "orthogonal")
    pairs = [(n, 2 * n) for n in depth if 2 * n in depth]
    if not pairs:
        raise ValueError(f"depths: got {depth.tolist()}, needs one and its double, to see growth")
    low, high = pairs[-1]
    doubled = float(cond[depth == high].mean() / cond[depth == low].mean())
    late = depth >= 8
    predicted = a["orthogonal.growth_rate"] * depth[:, None] / a["orthogonal.bulk"]
    off = np.abs(cond[late].mean(1) / predicted[late].mean(1) - 1)
    rate = (a["orthogonal.max"] / depth[:, None] / a["orthogonal.growth_rate"]).mean(1)
    return [
        Verdict(
            f"orthogonal: grows in proportion to depth, from {low} to {high} layers",
            "ratio in [1.7, 2.5]",
            f"{doubled:.3f}",
            1.7 <= doubled <= 2.5,
        ),
        Verdict(
            "orthogonal: κN/b of the equivalent 1-shortcut net, N ≥ 8",
            "within 10 % (limit of infinite depth)",
            f"largest difference {100 * off.max(initial=0.0):.1f} %",
            every(off <= 0.1),
        ),
        Verdict(
            "orthogonal: largest |λ| / N increases to κ",
            "mean over seeds of |λ|max / (κN) increasing with N",
            " ".join(f"{r:.3f}" for r in rate),
            every(np.diff(rate) > 0),
        ),
    ]


def _judge_xavier(a: Arrays) -> list[Verdict]:
    depth, xavier, orthogonal = a["xavier.depth"], _cond10(a, "xavier"), _cond10(a, "orthogonal")
    deep, fitted = depth >= 6, depth >= 4
    factor = xavier[deep].mean(1) / orthogonal[deep].mean(1)
    slope = float(np.polyfit(depth[fitted], np.log10(xavier[fitted]).mean(1), 1)[0])
    return [
        Verdict(
            "Xavier: above orthogonal for N ≥ 6",
            "more than 100 times (paper: Xavier explodes, orthogonal slower)",
            f"smallest factor {factor.min(initial=np.inf):.3g}",
            every(factor > 100),
        ),
        Verdict(
            "Xavier: exponential in depth from N = 4",
            "slope of log10 > 0.25 a layer",
            f"{slope:.3f}",
            slope > 0.25,
        ),
    ]


def _judge_other_shortcuts(a: Arrays) -> list[Verdict]:
    fitted = a["one_shortcut.depth"] >= 4
    one, orthogonal = (_cond10(a, name)[fitted].mean(1) for name in ("one_shortcut", "orthogonal"))
    off = np.abs(one / orthogonal - 1)
    verdicts = [
        Verdict(
            "1-shortcut: like orthogonal for N ≥ 4",
            "means within 15 % (spectra of equivalent nets with rotated labels)",
            f"largest difference {100 * off.max():.1f} %",
            every(off <= 0.15),
        )
    ]
    if "three_shortcut.max" in a:
        last = float(a["three_shortcut.max"][-1].mean() / a["two_shortcut.max"][-1].mean())
        verdicts.append(
            Verdict(
                "3-shortcut: a flat start, not an ill-conditioned one",
                "largest |λ| < 0.1 of the 2-shortcut's (vanishes with the weights)",
                f"{last:.3g}; condition number {_cond10(a, 'three_shortcut')[-1].mean():.3g}",
                last < 0.1,
            )
        )
    return verdicts


def draw_figure_4(figure: Figure, a: Arrays) -> None:
    """Plot condition number and largest |λ| against depth, mean and deviation over seeds."""
    left, right = figure.subplots(1, 2)
    present = [name for name in LABELS if f"{name}.max" in a]
    for name in present:
        depth = a[f"{name}.depth"]
        for ax, values in ((left, _cond10(a, name)), (right, a[f"{name}.max"])):
            mean, std = values.mean(1), values.std(1, ddof=min(1, values.shape[1] - 1))
            # on a logarithmic axis a bar must not reach zero
            ax.errorbar(
                depth,
                mean,
                [np.minimum(std, 0.9 * mean), std],
                fmt=MARKERS[name] + "-",
                label=LABELS[name],
                mfc="none",
            )
    depth = np.linspace(2, a["xavier.depth"].max())
    closed = a["two_shortcut.predicted"][0]
    left.plot(depth, np.full_like(depth, closed), "k--", linewidth=1, label="predicted")
    if "one_shortcut" in present:
        rate, bulk = a["one_shortcut.predicted"]
        left.plot(depth, rate * depth / bulk, "k--", linewidth=1)
        right.plot(depth, rate * depth, "k--", linewidth=1)
    left.set_ylabel("max |λ| / 10th percentile of |λ|")
    right.set_ylabel("max |λ| (loss / weight²)")
    for ax in (left, right):
        ax.set_yscale("log")
        ax.set_xlabel("weight layers N")
    left.legend(fontsize="small")


# -- the claims ------------------------------------------------------------------------------------


_FIGURE_4 = dict(samples=None, depths=[2, 4, 6, 8, 12, 16, 24], seeds=10, scale=0.01)
_FEW = dict(depths=[2, 4, 6, 8], seeds=2)
_EXTENDED = dict(dataset="digits", depths=[2, 4, 6, 8, 12, 16], seeds=3)  # on samples, not moments


def _figure_4(
    name: str, where: str, says: str, given: Mapping[str, object], quick: Mapping[str, object]
) -> Claim:
    full = {**_FIGURE_4, **given}
    return Claim(
        id=f"demystifying_resnet/figure_4_{name}",
        source=f"{PAPER}, Figure 4, {where}",
        says=says,
        settings={"quick": {**full, **quick}, "paper": full} if quick else {"paper": full},
        compute=compute_figure_4,
        judge=judge_figure_4,
        draw=draw_figure_4,
    )


_SAYS = (
    "The condition number at initialization of 2-shortcut linear nets is constant in depth, that "
    "of Xavier and orthogonal plain nets tends to infinity, orthogonal slower."
)

CLAIMS = [
    _figure_4("digits", "on digits", _SAYS, dict(dataset="digits"), _FEW),
    _figure_4("mnist", "on MNIST", _SAYS, dict(dataset="mnist"), {}),
    _figure_4(
        "cross_entropy",
        "extended here to cross-entropy",
        "The same with cross-entropy: at zero weights a tenth of the eigenvalues vanish, the ratio "
        "of the others does not depend on depth.",
        {**_EXTENDED, "loss": "cross_entropy"},
        {**_FEW, "samples": 300, "seeds": 1},
    ),
    _figure_4(
        "tanh",
        "extended here to tanh in mid positions",
        "The same with tanh between the layers of a block, and in plain nets after every odd one.",
        {**_EXTENDED, "mid": "tanh"},
        {**_FEW, "samples": 300, "seeds": 1},
    ),
]
