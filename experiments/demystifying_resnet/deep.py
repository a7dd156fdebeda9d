"""Extensions: orthogonal nets as 1-shortcut nets at zero, and spectra of 1000 layers."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.demystifying_resnet.nets import (
    EXACT,
    NETS,
    PAPER,
    WIDTH,
    build,
    columns,
    equivalent_at_zero,
    every,
    generator_of,
    listed,
    whitened,
)
from resid_theory.data.regression import Regression
from resid_theory.losses import LOSSES

BOTH = ("square", "cross_entropy")

# -- orthogonal nets -------------------------------------------------------------------------------


def compute_equivalence(
    *, dataset: str, samples: int | None, depths: Sequence[int], seed: int
) -> dict[str, np.ndarray]:
    """Compute spectra of plain orthogonal nets and of 1-shortcut nets, by loss and depth.

    Both Hessians are computed by layer pairs, not by the closed form of linear nets.
    """
    data = whitened(dataset, samples)
    arrays = {"depth": np.array(depths)}
    for loss in BOTH:
        rows = []
        for depth in depths:
            plain = build(depth, NETS["orthogonal"])
            rt.initialize(plain, "orthogonal", generator=generator_of(seed, depth))
            mine = rt.hessian_spectrum(plain, loss, data, method="layer_pairs")
            theirs = _one_shortcut_spectrum(plain, loss, data)
            predicted = equivalent_at_zero(plain, loss, data).spectrum
            rows.append({"nets": mine.distance(theirs), "formula": mine.distance(predicted)})
        arrays |= {f"{loss}.{key}": values for key, values in columns(rows).items()}
        arrays |= {
            f"{loss}.orthogonal": mine.eigenvalues.numpy(),
            f"{loss}.one_shortcut": theirs.eigenvalues.numpy(),
        }
    return arrays


def _one_shortcut_spectrum(plain: rt.ShortcutNet, loss: str, data: Regression) -> rt.Spectrum:
    """Spectrum of the 1-shortcut net at zero, followed by the product of the plain net's layers."""
    net = build(plain.depth, NETS["one_shortcut"])
    with torch.no_grad():
        product = plain(torch.eye(WIDTH, dtype=torch.float64))  # inputs are rows: Q^T

    def rotated_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return LOSSES[loss](output @ product, target)

    return rt.hessian_spectrum(net, rotated_loss, data, method="layer_pairs")


def judge_equivalence(a: Arrays) -> list[Criterion]:
    """Require equal spectra up to round-off for both losses."""
    criteria = []
    for loss in BOTH:
        for key, what in (("nets", "1-shortcut net"), ("formula", "its closed form")):
            gap = a[f"{loss}.{key}"]
            criteria.append(
                Criterion(
                    f"{loss.replace('_', '-')}: plain orthogonal net = {what}, all eigenvalues",
                    f"≤ {EXACT:g} of the largest |λ| (orthogonal change of parameters)",
                    f"{gap.max():.1e} at {len(gap)} depths",
                    every(gap <= EXACT),
                )
            )
    return criteria


def draw_equivalence(figure: Figure, a: Arrays) -> None:
    """Plot all eigenvalues of both nets at the greatest depth."""
    for loss, ax in zip(BOTH, figure.subplots(1, len(BOTH)), strict=True):
        values, others = a[f"{loss}.orthogonal"], a[f"{loss}.one_shortcut"]
        step = max(1, len(values) // 40)
        ax.plot(values, label="plain, orthogonal")
        ax.plot(
            np.arange(0, len(values), step), others[::step], "o", mfc="none", label="1-shortcut"
        )
        ax.set(xlabel="rank", ylabel=f"λ, {loss.replace('_', '-')} (loss / weight²)")
        ax.set_yscale("symlog", linthresh=0.1)
        ax.set_title(f"{a['depth'][-1]} layers, difference {a[f'{loss}.nets'][-1]:.0e}")
    ax.legend()


# -- a thousand layers -----------------------------------------------------------------------------


def compute_depth_1000(
    *, dataset: str, samples: int | None, depths: Sequence[int], scale: float, seed: int
) -> dict[str, np.ndarray]:
    """Compute extreme eigenvalues, predicted without a matrix and measured by Lanczos."""
    data = whitened(dataset, samples)
    two = rt.theory.zero_point(data, blocks=1, shortcut_depth=2)
    arrays = {"depth": np.array(depths), "scale": np.array(scale)}
    arrays["two.predicted"] = np.array(two.statistics.max_magnitude)
    rows = {"one": [], "two": []}
    for depth in depths:
        one = rt.theory.zero_point(data, blocks=depth, shortcut_depth=1)
        rows["one"].append(
            {
                "largest": one.statistics.largest,
                "smallest": one.statistics.smallest,
                "condition_number_10": one.percentile_condition_number(10),
                "limit": one.growth_rate * depth,
                "condition_number_10_limit": one.statistics.predicted_condition_number(10),
                **_extremes(build(depth, NETS["one_shortcut"]), data, 1e-8),
            }
        )
        net = build(depth, NETS["two_shortcut"])
        rt.initialize(net, "near_zero", generator=generator_of(seed, depth), scale=scale)
        rows["two"].append(_extremes(net, data, 1e-6))
    for net, table in rows.items():
        arrays |= {f"{net}.{key}": values for key, values in columns(table).items()}
    return arrays


def _extremes(net: rt.ShortcutNet, data: Regression, tolerance: float) -> dict[str, float]:
    """Largest and smallest eigenvalue of the Hessian from Hessian-vector products."""
    operator = rt.curvature_operator(net, "square", data)
    # verify=False: a search for missed copies would have to resolve thousands of equal eigenvalues
    # next to the extreme one. The tolerance is far below their distance, so they are not confused.
    found = rt.eigenpairs(operator, k=1, which="both", tolerance=tolerance, verify=False)
    values = found.values
    return {"measured_largest": float(values.max()), "measured_smallest": float(values.min())}


def judge_depth_1000(a: Arrays) -> list[Criterion]:
    """Compare the closed form with Lanczos, with limits of infinite depth and across depths."""
    depth, s = a["depth"], float(a["two.predicted"])
    scale = np.abs(a["one.largest"])
    gap = np.stack([a[f"one.{e}"] - a[f"one.measured_{e}"] for e in ("largest", "smallest")])
    off = np.stack(
        [
            a["one.largest"] / a["one.limit"] - 1,
            a["one.condition_number_10"] / a["one.condition_number_10_limit"] - 1,
        ]
    )
    moved = np.stack([a["two.measured_largest"] - s, -s - a["two.measured_smallest"]])
    room = (1 + s) * depth * float(a["scale"]) ** 2
    return [
        Criterion(
            "1-shortcut: both ends of the closed form = by Lanczos on products",
            "≤ 3e-8 of the largest |λ| (what counting and Lanczos resolve)",
            listed(np.abs(gap / scale).max(0), ".1e"),
            every(np.abs(gap / scale) <= 3e-8),
        ),
        *(
            Criterion(
                f"1-shortcut: {name} of N blocks over its limit of infinite depth",
                "1 within 2/N (convergence as 1/N)",
                listed(1 + row, ".5f"),
                every(np.abs(row) <= 2 / depth),
            )
            for name, row in zip(("largest λ", "max / 10th percentile"), off, strict=True)
        ),
        Criterion(
            f"2-shortcut, weights of {float(a['scale']):g}: ends of the spectrum stay at ±s",
            f"|λ| within (1 + s)Nε² of s = {s:.4f} (Weyl: what weights change in second order)",
            "moved by " + listed(np.abs(moved).max(0), ".1e"),
            every(np.abs(moved) <= room),
        ),
    ]


def draw_depth_1000(figure: Figure, a: Arrays) -> None:
    """Plot the largest eigenvalue against depth: predictions as lines, measurements as markers."""
    ax, depth = figure.subplots(), a["depth"]
    ax.plot(depth, a["one.limit"], "k--", linewidth=1, label="limit κN")
    (line,) = ax.plot(depth, a["one.largest"], label="1-shortcut, closed form")
    ax.plot(depth, a["one.measured_largest"], "D", color=line.get_color(), mfc="none")
    (line,) = ax.plot(
        depth, np.full(len(depth), a["two.predicted"]), label="2-shortcut, closed form"
    )
    ax.plot(depth, a["two.measured_largest"], "^", color=line.get_color(), mfc="none")
    ax.set(
        xscale="log", yscale="log", xlabel="weight layers N", ylabel="largest λ (loss / weight²)"
    )
    ax.legend(title="markers: Lanczos")


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="demystifying_resnet/orthogonal_equivalence",
        kind="law",
        source=f"{PAPER}, Figure 4, derived here",
        says="A plain net of orthogonal layers has the Hessian of a 1-shortcut net at zero weights "
        "followed by the product of its layers, up to an orthogonal change of parameters.",
        settings={
            "quick": dict(dataset="digits", samples=200, depths=[1, 2, 5], seed=0),
            "paper": dict(dataset="digits", samples=None, depths=[1, 2, 4, 8, 16], seed=1),
        },
        compute=compute_equivalence,
        judge=judge_equivalence,
        draw=draw_equivalence,
    ),
    Claim(
        id="demystifying_resnet/depth_1000",
        kind="law",
        source=f"{PAPER}, Theorem 2, extended here to 1000 layers",
        says="At zero weights the largest eigenvalue and the condition number of a 1-shortcut net "
        "grow in proportion to depth; near zero the ends of a 2-shortcut net's spectrum move only "
        "by what the weights change in second order.",
        settings={
            "quick": dict(dataset="digits", samples=100, depths=[2, 4], scale=0.1, seed=0),
            "paper": dict(
                dataset="digits", samples=None, depths=[10, 100, 1000], scale=0.01, seed=1
            ),
        },
        compute=compute_depth_1000,
        judge=judge_depth_1000,
        draw=draw_depth_1000,
    ),
]
