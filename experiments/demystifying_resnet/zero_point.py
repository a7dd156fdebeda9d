"""Theorem 2 and Figure 11: the Hessian at zero weights, predicted and measured."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.demystifying_resnet.nets import (
    EXACT,
    PAPER,
    WIDTH,
    columns,
    generator_of,
    nested,
    whitened,
)
from resid_theory.data.regression import Regression

# blocks of one matrix have no mid position
ONE_LAYER = {"linear": {}, "tanh": {"post": "tanh"}, "relu": {"pre": "relu"}}
MORE_LAYERS = {"linear": {}, "tanh": {"mid": "tanh"}, "relu": {"mid": "relu"}}

# -- Theorem 2 -------------------------------------------------------------------------------------


def compute_theorem_2(
    *, n: int, depths: Sequence[int], dataset: str, samples: int | None, seed: int
) -> dict[str, np.ndarray]:
    """Compare predicted and measured Hessians at zero by activation and number of blocks."""
    data = whitened(dataset, samples)
    kinds = ONE_LAYER if n == 1 else MORE_LAYERS
    return {
        "blocks": np.array(depths),
        **nested(
            {
                kind: columns(_theorem_2_row(data, n, blocks, acts, seed) for blocks in depths)
                for kind, acts in kinds.items()
            }
        ),
    }


def _theorem_2_row(
    data: Regression, n: int, blocks: int, acts: Mapping[str, str], seed: int
) -> dict[str, float]:
    net = rt.ShortcutNet(WIDTH, blocks, n, **acts)
    predicted = in_mean = rt.theory.zero_point(data, blocks=blocks, shortcut_depth=n, **acts)
    if acts.get("mid") == "relu" and n == 2:
        # ReLU has no derivative at zero: take the limit along a ray, measured 1e-7 from zero.
        rt.initialize(net, "near_zero", generator=generator_of(seed, n, blocks), scale=1e-7)
        predicted = rt.theory.zero_point(data, blocks=blocks, shortcut_depth=n, kink=net, **acts)
    measured = rt.hessian_spectrum(net, "square", data)
    loss = (0.5 * (net(data.x) - data.y) ** 2).sum(1).mean()
    (gradient,) = torch.autograd.grad(loss, net.weights)
    return {
        "distance": predicted.spectrum.distance(measured),
        "max": measured.max_magnitude,
        "condition_number": measured.condition_number,
        "condition_number_10": measured.percentile_condition_number(10),
        "predicted_condition_number": in_mean.spectrum.condition_number,
        "bound": in_mean.a_priori_bound,
        "index": measured.index,
        "gradient": gradient.abs().max().item(),
        "correlation": predicted.correlation.abs().max().item(),
        "growth_rate": in_mean.growth_rate,
        "jet_error": _jet_error(data, net, in_mean, generator_of(seed, n, blocks, 1))
        if n > 2
        else 0,
    }


def _jet_error(
    data: Regression,
    net: rt.ShortcutNet,
    point: rt.theory.ZeroPoint,
    generator: torch.Generator,
) -> float:
    """Relative error of the leading jet at weights of scale 0.01, divided by that scale."""
    size = 1e-2
    rt.initialize(net, "near_zero", generator=generator, scale=size)
    with torch.no_grad():
        at = 0.5 * (net(data.x) - data.y).square().sum(1).mean()
        origin = 0.5 * (data.x - data.y).square().sum(1).mean()
    jet = point.leading_jet(net.layers())
    return ((at - origin - jet) / jet).abs().item() / size


def _agreement(a: Arrays, kinds: Iterable[str]) -> Criterion:
    worst = max(float(a[f"{kind}.distance"].max()) for kind in kinds)
    return Criterion(
        "predicted spectrum = measured, all activations and depths",
        f"≤ {EXACT:g} of the largest |λ| (exact formula, float64)",
        f"{worst:.1e}",
        worst <= EXACT,
    )


def judge_theorem_2_two(a: Arrays) -> list[Criterion]:
    """Require a depth-invariant condition number and a strict saddle of index one half."""
    smooth = ("linear", "tanh")
    cond = np.concatenate([a[f"{kind}.condition_number"] for kind in smooth])
    drift = float(cond.max() / cond.min() - 1)
    bound = float(a["linear.bound"][0])
    gradient = max(float(a[f"{kind}.gradient"].max()) for kind in smooth)
    index = np.concatenate([a[f"{kind}.index"] for kind in MORE_LAYERS])
    return [
        Criterion(
            "condition number (max/min) independent of depth and of tanh",
            "equal at every depth to 1e-11 (Theorem 2; round-off times the number itself)",
            f"{cond.min():.4f} to {cond.max():.4f}, relative spread {drift:.1e}",
            drift <= 1e-11,
        ),
        Criterion(
            "condition number below the a-priori bound of the class priors",
            f"≤ {bound:.4f} ((1 + √p)/(1 - √p), Cauchy-Schwarz)",
            f"{cond.max():.4f}",
            bool(cond.max() <= bound),
        ),
        Criterion("zero is stationary", "gradient ≤ 1e-14", f"{gradient:.1e}", gradient <= 1e-14),
        Criterion(
            "strict saddle: half of all eigenvalues are negative",
            "index = 1/2 (Theorem 2)",
            f"{index.min():.4f} to {index.max():.4f}",
            bool((index == 0.5).all()),
        ),
        _agreement(a, MORE_LAYERS),
    ]


def judge_theorem_2_one(a: Arrays) -> list[Criterion]:
    """Require a nonzero gradient and a condition number in proportion to depth."""
    blocks = a["blocks"]
    gap = max(
        float(np.abs(a[f"{k}.gradient"] / a[f"{k}.correlation"] - 1).max())
        for k in ("linear", "tanh")
    )
    last = {k: a[f"{k}.max"] / (a[f"{k}.growth_rate"] * blocks) for k in ONE_LAYER}
    slopes = {k: _slope(blocks, a[f"{k}.condition_number_10"]) for k in ONE_LAYER}
    off = max(abs(float(r[-1]) - 1) for r in last.values())
    return [
        Criterion(
            "condition number (max/10th percentile) explodes with depth",
            "log-log slope in [0.8, 1.2]: in proportion to depth, not exponentially",
            ", ".join(f"{k} {s:.2f}" for k, s in slopes.items()),
            all(0.8 <= s <= 1.2 for s in slopes.values()),
        ),
        Criterion(
            "zero is not stationary: the gradient is M in every block",
            "equal to 1e-12",
            f"{gap:.1e}",
            gap <= 1e-12,
        ),
        Criterion(
            "largest |λ| over depth tends to κ",
            "within 10 % at the largest depth (O(1/R) convergence), closer than at the smallest",
            ", ".join(f"{k} {r[-1]:.3f}" for k, r in last.items()),
            off <= 0.1 and all(abs(r[-1] - 1) < abs(r[0] - 1) for r in last.values()),
        ),
        _agreement(a, ONE_LAYER),
    ]


def _slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of log y against log x on the upper half of the depths."""
    upper = slice(len(x) // 2 - (len(x) <= 3), None)
    return float(np.polyfit(np.log(x[upper]), np.log(y[upper]), 1)[0])


def judge_theorem_2_three(a: Arrays) -> list[Criterion]:
    """Require vanishing second derivatives and the predicted third-order jet."""
    largest = max(float(a[f"{k}.max"].max()) for k in MORE_LAYERS)
    gradient = max(float(a[f"{k}.gradient"].max()) for k in MORE_LAYERS)
    smooth = ("linear", "tanh")
    jet = max(float(a[f"{k}.jet_error"].max()) for k in smooth)
    return [
        Criterion("the Hessian vanishes", "exactly 0 (Theorem 2)", f"{largest:g}", largest == 0.0),
        Criterion("the gradient vanishes", "exactly 0", f"{gradient:g}", gradient == 0.0),
        Criterion(
            "the third-order jet c Σ <M, W3 W2 W1> leads (linear, tanh)",
            "relative error at weights of size s is at most 10 s (remainder of the next order)",
            f"{jet:.2f} s",
            jet <= 10,
        ),
        _agreement(a, MORE_LAYERS),
    ]


def draw_theorem_2(figure: Figure, a: Arrays) -> None:
    """Plot condition numbers and prediction errors against the number of blocks."""
    kinds = [key.split(".")[0] for key in a if key.endswith(".distance")]
    left, right = figure.subplots(1, 2)
    for marker, kind in zip("osD", kinds, strict=True):
        left.plot(
            a["blocks"], a[f"{kind}.condition_number_10"], marker + "-", label=kind, mfc="none"
        )
        right.plot(a["blocks"], a[f"{kind}.distance"], marker + "-", label=kind, mfc="none")
    left.set(xlabel="blocks", ylabel="max |λ| / 10th percentile of |λ|", ylim=(0, None))
    right.set(xlabel="blocks", ylabel="predicted against measured,\nlargest difference / max |λ|")
    right.set_title(f"criterion: {EXACT:g}")
    right.set_yscale("log")
    left.legend()
    right.legend()


def draw_theorem_2_three(figure: Figure, a: Arrays) -> None:
    """Plot the error of the third-order jet of the loss; the Hessian itself is zero."""
    ax = figure.subplots()
    for marker, kind in zip("oD", ("linear", "tanh"), strict=True):
        ax.plot(a["blocks"], a[f"{kind}.jet_error"], marker + "-", label=kind, mfc="none")
    largest = max(float(a[f"{kind}.max"].max()) for kind in MORE_LAYERS)
    ax.set_title(f"largest |λ| of the Hessian at zero, all depths and activations: {largest:g}")
    ax.set(
        xlabel="blocks",
        ylabel="relative error of the third-order jet\nover the size of the weights",
    )
    ax.set_ylim(0, None)
    ax.legend()


# -- Figure 11 -------------------------------------------------------------------------------------


def compute_figure_11(
    *,
    dataset: str,
    samples: int | None,
    blocks: int,
    loss: str = "square",
    pre: str | None = None,
    mid: str | None = None,
    post: str | None = None,
) -> dict[str, np.ndarray]:
    """Compute Hessians at zero in the paper's order, without the closed form."""
    data, activations = whitened(dataset, samples), dict(pre=pre, mid=mid, post=post)
    arrays = {"blocks": np.array(blocks)}
    for n in (1, 2):
        given = dict(loss=loss, **activations)
        point = rt.theory.zero_point(data, blocks=blocks, shortcut_depth=n, **given)
        net = rt.ShortcutNet(WIDTH, blocks, n, **activations)
        order = net.definition5_order()
        measured = rt.hessian(net, loss, data, method="layer_pairs")[order][:, order]
        arrays[f"n{n}.hessian"] = measured.numpy()
        arrays[f"n{n}.matrix_a"] = point.matrix_a.numpy()
    biased = rt.ShortcutNet(WIDTH, blocks, 2, **activations, bias=True)
    point = rt.theory.zero_point(data, blocks=blocks, shortcut_depth=2, bias=True, **given)
    measured = rt.hessian_spectrum(biased, loss, data)
    return arrays | {
        "bias.eigenvalues": measured.eigenvalues.numpy(),
        "bias.predicted": point.spectrum.eigenvalues.numpy(),
    }


def judge_figure_11(a: Arrays) -> list[Criterion]:
    """Require the blocks A and their transposes, and for n = 2 zeros elsewhere."""
    blocks, criteria = int(a["blocks"]), []
    for n in (1, 2):
        size = WIDTH * WIDTH
        tiles = a[f"n{n}.hessian"].reshape(blocks * n, size, blocks * n, size).transpose(0, 2, 1, 3)
        matrix, scale = a[f"n{n}.matrix_a"], np.abs(a[f"n{n}.matrix_a"]).max()
        low = _a_tiles(blocks, n)
        gap = max(np.abs(tiles[r, c] - matrix).max() for r, c in low) / scale
        gap = max(gap, *(np.abs(tiles[c, r] - matrix.T).max() / scale for r, c in low))
        criteria.append(
            Criterion(
                f"n = {n}: blocks of equation {'(10)' if n == 1 else '(8)'} are A and A^T",
                "equal to 1e-12 of the largest entry",
                f"{gap:.1e}",
                bool(gap <= EXACT),
            )
        )
        if n == 2:
            inside = {*low, *((c, r) for r, c in low)}
            rest = [
                tiles[r, c]
                for r in range(2 * blocks)
                for c in range(2 * blocks)
                if (r, c) not in inside
            ]
            outside = float(max(np.abs(tile).max() for tile in rest))
            criteria.append(
                Criterion("n = 2: outside the pattern", "exactly 0", f"{outside:g}", outside == 0.0)
            )
    found, largest = a["bias.eigenvalues"], np.abs(a["bias.eigenvalues"]).max()
    gap = np.abs(found - a["bias.predicted"]).max() / largest
    zeros = int((np.abs(found) <= EXACT * largest).sum())
    criteria.append(
        Criterion(
            "n = 2 with the bias of (3): eigenvalues are those of (8) with the bias as a column of "
            "the first matrix",
            f"equal to 1e-12 of the largest; {blocks * WIDTH} zeros or more, one for each bias",
            f"{gap:.1e}, {zeros} zeros; magnitudes of the others "
            f"{np.sort(np.abs(found))[zeros:].min():.3g} to {largest:.3g}",
            bool(gap <= EXACT and zeros >= blocks * WIDTH),
        )
    )
    return criteria


def _a_tiles(blocks: int, n: int) -> list[tuple[int, int]]:
    """Positions of A: off the diagonal of each block for n = 2, below the diagonal for n = 1."""
    if n == 2:
        return [(2 * r, 2 * r + 1) for r in range(blocks)]
    return [(r, c) for r in range(blocks) for c in range(r)]


def draw_figure_11(figure: Figure, a: Arrays) -> None:
    """Plot both patterns as signed heat maps."""
    blocks = int(a["blocks"])
    for n, ax in zip((2, 1), figure.subplots(1, 2), strict=True):
        rt.plots.hessian_pattern(
            a[f"n{n}.hessian"],
            block=n * WIDTH * WIDTH,
            ax=ax,
            title=f"n = {n}, {blocks} blocks, equation {'(8)' if n == 2 else '(10)'}",
        )


# -- the claims ------------------------------------------------------------------------------------


def _theorem_2(
    n: int, name: str, says: str, judge, depths: Mapping[str, Sequence[int]], draw=draw_theorem_2
) -> Claim:
    data = {"quick": ("digits", 200, 0), "paper": ("mnist", None, 1)}
    return Claim(
        id=f"demystifying_resnet/theorem_2_{name}",
        source=f"{PAPER}, Theorem 2, n {'= ' + str(n) if n < 3 else '≥ 3'}",
        says=says,
        settings={
            scale: dict(n=n, depths=list(depths[scale]), dataset=d, samples=m, seed=seed)
            for scale, (d, m, seed) in data.items()
        },
        compute=compute_theorem_2,
        judge=judge,
        draw=draw,
    )


CLAIMS = [
    _theorem_2(
        1,
        "one_shortcut",
        "At zero weights a 1-shortcut net is not stationary and its condition number explodes with "
        "depth.",
        judge_theorem_2_one,
        {"quick": [2, 4, 12], "paper": [2, 4, 8, 16, 24]},
    ),
    _theorem_2(
        2,
        "two_shortcut",
        "At zero weights a 2-shortcut net has a strict saddle whose condition number does not "
        "depend on depth.",
        judge_theorem_2_two,
        {"quick": [1, 2, 3], "paper": [1, 2, 4, 8, 12]},
    ),
    _theorem_2(
        3,
        "three_shortcut",
        "For n ≥ 3 zero is a stationary point of order n - 1: Hessian and gradient vanish.",
        judge_theorem_2_three,
        {"quick": [1, 2], "paper": [1, 2, 4, 8]},
        draw_theorem_2_three,
    ),
    Claim(
        id="demystifying_resnet/figure_11",
        source=f"{PAPER}, Figure 11 and equations (8), (10)",
        says="For n = 2 only the two off-diagonal parts of every diagonal block of the Hessian are "
        "nonzero, A and its transpose, equal for all blocks.",
        settings={
            "quick": dict(dataset="digits", samples=None, blocks=3),
            "paper": dict(dataset="mnist", samples=None, blocks=3),
        },
        compute=compute_figure_11,
        judge=judge_figure_11,
        draw=draw_figure_11,
    ),
]
