"""The trivial case of dominant flows and its probabilities, Appendices D.4.1 and E.

The available text does not give, and we chose, the base values of Figure 11, the variables of its
panels (a) and (c), and the exponent of eq. (15).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, all_above
from experiments.noise_stability.nets import PAPER
from resid_theory.theory import TrivialFlow, exceedance, exceedance_integral, logistic

EXPONENTS = ("slope", "least_squares", "minimax")


# -- Figure 13 -------------------------------------------------------------------------------------


def compute_figure_13(*, points: int, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Compute c(rho) by closed form, the paper's integral, logistic functions and simulation."""
    ratio = torch.logspace(-2, 2, points, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, draws, generator=generator, dtype=torch.float64).abs()
    some = ratio[:: max(1, points // 20)]
    arrays = {
        "ratio": ratio,
        "exact": exceedance(ratio),
        "integral": exceedance_integral(ratio),
        "simulated.ratio": some,
        "simulated": torch.stack([(r * x > y).double().mean() for r in some]),
        "draws": torch.tensor(draws),
    }
    arrays |= {f"logistic.{name}": logistic(ratio, name) for name in EXPONENTS}
    return {name: values.numpy() for name, values in arrays.items()}


def judge_figure_13(a: Arrays) -> list[Criterion]:
    """Require the logistic function within 0.013 of the exact curve."""
    gaps = {name: float(np.abs(a[f"logistic.{name}"] - a["exact"]).max()) for name in EXPONENTS}
    integral = float(np.abs(a["integral"] - a["exact"]).max())
    exact, draws = 2 / np.pi * np.arctan(a["simulated.ratio"]), int(a["draws"])
    return [
        Criterion(
            "largest gap between c(ρ) and the logistic of eq. (15)",
            "< 0.013 for the best exponent (the paper's own is lost)",
            _listed(gaps, "{:.5f}"),
            min(gaps.values()) < 0.013,
        ),
        Criterion(
            "the integral of eq. (14) is (2/π) arctan ρ",
            "equal to 1e-14 (round-off)",
            f"{integral:.1e}",
            integral <= 1e-14,
        ),
        _all_within(
            f"simulation less (2/π) arctan ρ at {len(exact)} ratios that share their draws",
            a["simulated"] - exact,
            np.sqrt(exact * (1 - exact) / draws),
            draws,
            0.0013,
            source="a tenth of the paper's 0.013",
        ),
    ]


def _listed(numbers: Mapping[str, float], form: str) -> str:
    return ", ".join(f"{name} {form.format(float(number))}" for name, number in numbers.items())


def draw_figure_13(figure: Figure, a: Arrays) -> None:
    """Plot the probability against the ratio, and the errors below."""
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    top.semilogx(a["ratio"], a["exact"], "k", label="c(ρ) = (2/π) arctan ρ")
    top.semilogx(a["ratio"], a["logistic.minimax"], "C1--", label="logistic, b = 1.2127")
    top.semilogx(a["simulated.ratio"], a["simulated"], "C0o", mfc="none", label="simulated")
    for number, name in enumerate(EXPONENTS):
        gap = a[f"logistic.{name}"] - a["exact"]
        bottom.semilogx(a["ratio"], gap, f"C{number + 1}", label=name.replace("_", " "))
    bottom.axhline(0, color="0.6", linewidth=0.8)
    top.set_ylabel("Pr(|X| > |Y|)")
    bottom.set(xlabel="ρ, ratio of the standard deviations of X and Y", ylabel="logistic - exact")
    top.legend()
    bottom.legend(fontsize="small")


# -- Figure 11 -------------------------------------------------------------------------------------

BASE = {"channels": 64, "layers": 20, "deviation": 0.01, "signal": 1.0, "open_share": 0.97}
LAYER = 14  # l in the sweeps that do not vary it
SWEEPS: dict[str, tuple[str, Sequence[float]]] = {
    "a": ("channels n", [4, 8, 16, 32, 64, 128]),
    "b": ("layer l", list(range(20))),
    "c": ("deviation σ of the weights", [0.003, 0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1]),
    "d": ("deviation σ_s of the signal", [0.01, 0.03, 0.1, 0.3, 1, 3, 10]),
    "e": ("share p of open units", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1]),
}
FIELDS = {"a": "channels", "c": "deviation", "d": "signal", "e": "open_share"}
COLUMNS = ("mean", "error", "approximation", "refined", "first_order")
# The grid of the map.
ABOVE, DEVIATIONS = [2, 6, 18], [0.003, 0.03, 0.1]
SHARES = [0.3, 0.5, 0.7, 0.9, 1]


def compute_figure_11(
    *, draws: int, map_channels: Sequence[int], map_draws: int, seed: int
) -> dict[str, np.ndarray]:
    """Compute five sweeps of the trivial case around the base, and a map over all parameters."""
    generator = torch.Generator().manual_seed(seed)
    arrays = {"draws": np.array(draws), "map.draws": np.array(map_draws)}
    for sweep, (_, values) in SWEEPS.items():
        arrays[f"{sweep}.x"] = np.array(values, dtype=float)
        for net, identity in (("residual", True), ("plain", False)):
            if sweep == "b":  # all layers of the same nets
                case = TrivialFlow(**BASE, identity=identity)
                table = _flow_table(case, draws, generator)[BASE["layers"] - np.array(values)]
            else:
                given = {**BASE, "layers": BASE["layers"] - LAYER, "identity": identity}
                cases = [TrivialFlow(**{**given, FIELDS[sweep]: value}) for value in values]
                table = np.stack([_flow_table(case, draws, generator)[-1] for case in cases])
            arrays |= {f"{sweep}.{net}.{key}": table[:, i] for i, key in enumerate(COLUMNS)}
    return arrays | _flow_map(map_channels, map_draws, generator)


SCALES = [2.0**power for power in range(-3, 4)]  # of σ, whose products are exact


def compute_scale_of_weights(*, draws: int, seed: int) -> dict[str, np.ndarray]:
    """Compute f of equal draws whose σ is scaled, means of all layers, (scales, L)."""
    scaled = [{**BASE, "deviation": BASE["deviation"] * scale} for scale in SCALES]
    return {
        f"scaled.{net}": np.stack(
            [
                TrivialFlow(**given, identity=identity)
                .simulate(draws=draws, generator=seed)[:, 1:]
                .mean(0)
                .numpy()
                for given in scaled
            ]
        )
        for net, identity in (("residual", True), ("plain", False))
    }


def compute_figure_11_and_scale(*, draws: int, seed: int, **settings: Any) -> dict[str, np.ndarray]:
    """Compute Figure 11, and what equation (12) says of σ."""
    found = compute_figure_11(draws=draws, seed=seed, **settings)
    return found | compute_scale_of_weights(draws=draws, seed=seed)


def _flow_table(case: TrivialFlow, draws: int, generator: torch.Generator) -> np.ndarray:
    """Table of ``COLUMNS`` by the number of layers above, (L + 1, 5).

    Nets with fewer channels than the base are sampled more often, for equal numbers of channels.
    """
    draws = max(draws, draws * BASE["channels"] // case.channels)
    shares = case.simulate(draws=draws, generator=generator)
    error = shares.std(0) / draws**0.5
    above = torch.arange(case.layers + 1)
    columns = [shares.mean(0), error, case.approximation(), case.refined()]
    columns.append(above * case.channels * case.deviation**2)
    return torch.stack(columns, dim=1).numpy()


def _flow_map(
    channels: Sequence[int], draws: int, generator: torch.Generator
) -> dict[str, np.ndarray]:
    """Values of ``COLUMNS`` by channels, σ, p and the number of layers above."""
    rows = [
        _flow_table(
            TrivialFlow(channels=n, layers=max(ABOVE), deviation=deviation, open_share=p),
            draws,
            generator,
        )[ABOVE]
        for n in channels
        for deviation in DEVIATIONS
        for p in SHARES
    ]
    shape = (len(channels), len(DEVIATIONS), len(SHARES), len(ABOVE), len(COLUMNS))
    return {"map.channels": np.array(channels), "map.rows": np.stack(rows).reshape(shape)}


CLOSE = 0.03  # error of the first order in n m σ²


def judge_figure_11(a: Arrays) -> list[Criterion]:
    """Test the approximation, the directions, and residual above plain, at all points."""
    means = {sweep: a[f"{sweep}.residual.mean"] for sweep in SWEEPS}
    errors = {sweep: a[f"{sweep}.residual.error"] for sweep in SWEEPS}
    small = {s: a[f"{s}.residual.first_order"] < 0.1 for s in SWEEPS}
    gaps = {s: (means[s] - a[f"{s}.residual.approximation"])[small[s]] for s in SWEEPS}
    signs = {"a": -1, "b": 1, "c": -1, "e": 1}
    rises = {s: sign * (means[s][-1] - means[s][0]) for s, sign in signs.items()}
    steps = {s: sign * np.diff(means[s]) for s, sign in signs.items()}
    above = {s: means[s] - a[f"{s}.plain.mean"] for s in "abcd"}
    flat = {net: a[f"d.{net}.mean"] for net in ("residual", "plain")}
    shut = {net: a[f"e.{net}.mean"] for net in ("residual", "plain")}
    n = int(a["draws"])
    scaled = {net: float(np.ptp(a[f"scaled.{net}"], axis=0).max()) for net in flat}

    def joined(tables: Mapping[str, np.ndarray], chosen: str) -> np.ndarray:
        return np.concatenate([tables[s] for s in chosen])

    largest = {f"({s})": np.abs(gap).max(initial=0) for s, gap in gaps.items()}
    everywhere = [np.abs(means[s] - a[f"{s}.residual.approximation"]).max() for s in SWEEPS]
    against = {s: max(0.0, float(-step.min())) for s, step in steps.items()}
    doubt = {s: np.hypot(errors[s], a[f"{s}.plain.error"]) for s in "abcd"}
    return [
        _all_within(
            "|simulated - the paper's approximation| where n m σ² < 0.1, five sweeps",
            joined(gaps, "abcde"),
            np.concatenate([errors[s][small[s]] for s in SWEEPS]),
            n,
            CLOSE,
            source="first order in n m σ²",
            shown="largest "
            + _listed(largest, "{:.4f}")
            + f"; of all points, n m σ² up to any size, {max(everywhere):.4f}",
        ),
        all_above(
            "residual: fall with n and with σ, rise with l and with p, from end to end",
            list(rises.values()),
            [np.hypot(errors[s][0], errors[s][-1]) for s in signs],
            n,
            source="Figure 11",
            shown=_listed(rises, "{:.3f}"),
        ),
        all_above(
            "residual: the same from each point to the next",
            joined(steps, "abce"),
            np.concatenate([np.hypot(errors[s][1:], errors[s][:-1]) for s in signs]),
            n,
            -CLOSE,
            source="Figure 11, to the error of the first criterion, as curves level off",
            shown="against it " + _listed(against, "{:.4f}"),
        ),
        all_above(
            "residual less plain in (a) to (d), all points",
            joined(above, "abcd"),
            joined(doubt, "abcd"),
            n,
            source="Figure 11",
            shown=_listed({s: gap.min() for s, gap in above.items()}, "{:.3f} or more"),
        ),
        _all_within(
            "independent of the scale of the signal: differences of all pairs in (d)",
            np.concatenate([_pairs(mean) for mean in flat.values()]),
            np.concatenate([_pairs(a[f"d.{net}.error"], np.hypot) for net in flat]),
            n,
            CLOSE,
            source="it cancels; the error of the first criterion",
            shown="range " + _listed({net: np.ptp(mean) for net, mean in flat.items()}, "{:.4f}"),
        ),
        all_above(
            "no flow where all units are shut: 0.05 less the share at p = 0 and at p = 0.1",
            [0.05 - mean[at] for mean in shut.values() for at in (0, 1)],
            [a[f"e.{net}.error"][at] for net in shut for at in (0, 1)],
            n,
            source="Figure 11 e; the number is ours",
            shown=_listed({net: f[1] for net, f in shut.items()}, "{:.4f} at p = 0.1"),
        ),
        Criterion(
            "plain: f at σ from an eighth to eight times the base, equal draws, all layers: "
            "largest difference",
            f"exactly 0 (equation 12: σ cancels); of residual nets above {CLOSE:g}",
            f"{scaled['plain']:g}; residual {scaled['residual']:.3f}",
            scaled["plain"] == 0 and scaled["residual"] > CLOSE,
        ),
    ]


def _all_within(
    criterion: str, gaps: np.ndarray, errors: np.ndarray, n: int, margin: float, **told: str
) -> Criterion:
    """Test that every gap lies within a margin: two one-sided tests of each."""
    sides = np.concatenate([margin - gaps, margin + gaps])
    source = f"{margin:g} less the gap on either side; {told.pop('source')}"
    return all_above(criterion, sides, np.tile(errors, 2), n, source=source, **told)


def _pairs(values: np.ndarray, of: np.ufunc = np.subtract) -> np.ndarray:
    """A function of all pairs of values."""
    first, second = np.triu_indices(len(values), 1)
    found: np.ndarray = of(values[first], values[second])
    return found


def judge_recursion(a: Arrays) -> list[Criterion]:
    """Judge where our recursion of second moments follows the simulation, and where it fails."""
    gaps = [a[f"{s}.residual.mean"] - a[f"{s}.residual.refined"] for s in SWEEPS]
    errors = np.concatenate([a[f"{s}.residual.error"] for s in SWEEPS])
    rows = a["map.rows"]
    largest = np.abs(rows[..., 0] - rows[..., 3]).max((1, 2, 3))
    each = {f"n = {n}:": e for n, e in zip(a["map.channels"], largest, strict=True)}
    # n = 4, 18 layers above, σ = 0.003, p = 0.7
    at = rows[0, 0, 2, -1]
    return [
        _all_within(
            "|simulated - recursion|, five sweeps, all points",
            np.concatenate(gaps),
            errors,
            int(a["draws"]),
            0.02,
            source="ours",
            shown=f"largest {max(float(np.abs(gap).max()) for gap in gaps):.4f}",
        ),
        all_above(
            "limits, off the sweeps: n = 4, 18 layers above, σ = 0.003, p = 0.7: simulated less "
            "recursion",
            at[0] - at[3],
            at[1],
            int(a["map.draws"]),
            0.1,
            source="few channels share the chance that one stays open; the number is ours",
            shown=f"simulated {at[0]:.3f}, recursion {at[3]:.3f}, the paper's approximation "
            f"{at[2]:.3f}; largest error of the recursion over the map, {_listed(each, '{:.3f}')}",
        ),
    ]


def draw_figure_11(figure: Figure, a: Arrays) -> None:
    """Plot the five sweeps and a map of the recursion's error over n and p."""
    panels = figure.subplots(2, 3).flat
    for panel, (sweep, (label, _)) in zip(panels, SWEEPS.items(), strict=False):
        nets = ("residual", "plain")
        rt.plots.flow_curve(
            a[f"{sweep}.x"],
            {net: a[f"{sweep}.{net}.mean"] for net in nets},
            errors={net: a[f"{sweep}.{net}.error"] for net in nets},
            predicted={net: a[f"{sweep}.{net}.refined"] for net in nets},
            xlabel=label,
            ax=panel,
        )
        panel.set_title(f"({sweep})", loc="left", fontsize="medium")
        panel.plot(a[f"{sweep}.x"], a[f"{sweep}.residual.approximation"], "k:", linewidth=1)
        panel.set_xscale({"a": "log", "c": "log", "d": "log"}.get(sweep, "linear"))
        if sweep == "c":
            panel.set_xticks([0.003, 0.01, 0.03, 0.1], ["0.003", "0.01", "0.03", "0.1"])
        if sweep not in "ad":
            panel.set_ylabel("")
    last = figure.axes[5]
    rows = a["map.rows"]
    error = np.abs(rows[..., 0] - rows[..., 3]).max((1, 3))
    image = last.imshow(error, vmin=0, cmap="viridis", aspect="auto")
    last.set(xlabel="share p of open units", ylabel="channels n")
    last.set_xticks(range(error.shape[1]), [f"{p:g}" for p in SHARES])
    last.set_yticks(range(error.shape[0]), [str(n) for n in a["map.channels"]])
    figure.colorbar(image, ax=last, label="largest error")
    last.set_title("error of the recursion", fontsize="medium")


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="noise_stability/figure_11",
        source=f"{PAPER}, Figure 11 and Appendix D.4.1",
        says="In nets of 1x1 kernels with random masks the share of dominant flows falls with "
        "width, weights and distance from the output, for small n m σ² as eqs. (9) to (11) say, "
        "and is greater in residual than in plain nets (Figure 11; base values are ours, as the "
        "paper's could not be read).",
        settings={
            "quick": dict(draws=10, map_channels=[4, 16], map_draws=8, seed=0,
                          scaled="10 draws a point instead of 150"),
            "paper": dict(draws=150, map_channels=[4, 8, 16, 64], map_draws=150, seed=2),
        },
        compute=compute_figure_11_and_scale,
        judge=judge_figure_11,
        draw=draw_figure_11,
    ),
    Claim(
        id="noise_stability/trivial_flow_recursion",
        kind="law",
        source=f"Ours, for Appendix D.4.1 of {PAPER}",
        says="A recursion of exact second moments gives the share of dominant flows to 0.02 on all "
        "sweeps of Figure 11, and fails where few channels share the chance that one stays open.",
        settings={
            "quick": dict(draws=10, map_channels=[4], map_draws=10, seed=1,
                          scaled="10 draws a point, a map of 4 channels"),
            # 50 draws decided nothing and asked for 911.
            "paper": dict(draws=1000, map_channels=[4, 8, 16, 64], map_draws=50, seed=3),
        },
        compute=compute_figure_11,
        judge=judge_recursion,
        draw=draw_figure_11,
    ),
    Claim(
        id="noise_stability/figure_13",
        source=f"{PAPER}, Figure 13, eqs. (14) and (15)",
        says="The chance that one normal number exceeds another in magnitude is a logistic "
        "function of the logarithm of the ratio of their deviations, to 0.013.",
        settings={
            "quick": dict(points=201, draws=100_000, seed=0),
            "paper": dict(points=2001, draws=4_000_000, seed=1),
        },
        compute=compute_figure_13,
        judge=judge_figure_13,
        draw=draw_figure_13,
    ),
]  # fmt: skip
