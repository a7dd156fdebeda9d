"""The trivial case of dominant flows and its probabilities, Appendices D.4.1 and E.

The available text does not give, and we chose, the base values of Figure 11, the variables of its
panels (a) and (c), and the exponent of eq. (15).
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
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
    exact = 2 / np.pi * np.arctan(a["simulated.ratio"])
    z = np.abs(a["simulated"] - exact) / np.sqrt(exact * (1 - exact) / a["draws"])
    return [
        Criterion(
            "largest gap between c(ρ) and the logistic of eq. (15)",
            "< 0.013 for the best exponent (the paper's own is lost)",
            _listed(gaps, "{:.4f}"),
            min(gaps.values()) < 0.013,
        ),
        Criterion(
            "the integral of eq. (14) is (2/π) arctan ρ",
            "equal to 1e-14 (round-off)",
            f"{integral:.1e}",
            integral <= 1e-14,
        ),
        Criterion(
            f"simulation with {int(a['draws']):,} draws",
            f"within 4 standard errors at {len(z)} ratios that share their draws",
            f"at most {z.max():.2f}",
            bool(z.max() <= 4),
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
    arrays: dict[str, np.ndarray] = {}
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


SURE = 3  # standard errors


def judge_figure_11(a: Arrays) -> list[Criterion]:
    """Compare the approximation with the simulation; judge directions, and residual above plain.

    The simulation has errors: a criterion is undecided where ``SURE`` of them would change it.
    """
    gaps, errors = {}, {}
    for sweep in SWEEPS:
        small = a[f"{sweep}.residual.first_order"] < 0.1
        gap = np.abs(a[f"{sweep}.residual.mean"] - a[f"{sweep}.residual.approximation"])
        gaps[sweep], errors[sweep] = gap[small], a[f"{sweep}.residual.error"][small]
    every_gap, every_error = (np.concatenate(list(table.values())) for table in (gaps, errors))
    worst = int(every_gap.argmax())
    signs = {"a": -1, "b": 1, "c": -1, "e": 1}
    against = {
        sweep: float(_against(a[f"{sweep}.residual.mean"], a[f"{sweep}.residual.error"], sign))
        for sweep, sign in signs.items()
    }
    above = {s: a[f"{s}.residual.mean"] - a[f"{s}.plain.mean"] for s in "abcd"}
    doubt = {s: np.hypot(a[f"{s}.residual.error"], a[f"{s}.plain.error"]) for s in "abcd"}
    flat = {net: float(np.ptp(a[f"d.{net}.mean"])) for net in ("residual", "plain")}
    shut = {net: a[f"e.{net}.mean"] for net in ("residual", "plain")}
    return [
        Criterion(
            "|simulated - the paper's approximation| where n m σ² < 0.1, five sweeps",
            "≤ 0.03 (first order in n m σ²)",
            _listed({f"({s})": gap.max(initial=0) for s, gap in gaps.items()}, "{:.4f}")
            + f"; standard error of the largest {every_error[worst]:.4f}",
            _sure(0.03 - every_gap, every_error),
        ),
        Criterion(
            "residual: decreases with n and σ, increases with l and p",
            f"no step the other way by more than {SURE} of its standard errors (Figure 11)",
            _listed(against, "{:.1f}"),
            max(against.values()) <= SURE,
        ),
        Criterion(
            "residual above plain in (a) to (d), all points",
            f"> 0 by {SURE} standard errors (Figure 11)",
            _listed({s: gap.min() for s, gap in above.items()}, "by {:.3f} or more"),
            _sure(*(np.concatenate([table[s] for s in "abcd"]) for table in (above, doubt))),
        ),
        Criterion(
            "independent of the scale of the signal",
            "range over σ_s < 0.03 (it cancels)",
            _listed(flat, "{:.4f}"),
            max(flat.values()) < 0.03,
        ),
        Criterion(
            "no flow where all units are shut",
            "0 at p = 0, below 0.05 at p = 0.1",
            _listed({net: f[1] for net, f in shut.items()}, "{:.4f} at p = 0.1"),
            all(f[0] == 0 and f[1] < 0.05 for f in shut.values()),
        ),
    ]


def _sure(slack: np.ndarray, error: np.ndarray) -> bool | None:
    """Whether all slacks are positive by ``SURE`` errors; None if some may be either."""
    if (slack < -SURE * error).any():
        return False
    return True if (slack > SURE * error).all() else None


def _against(mean: np.ndarray, error: np.ndarray, sign: int) -> float:
    """Largest step against a direction in standard errors; 0 if there is none."""
    steps = -sign * np.diff(mean)
    spread = np.hypot(error[1:], error[:-1])
    return float(np.max(np.divide(steps, spread, out=np.zeros_like(steps), where=steps > 0)))


def judge_recursion(a: Arrays) -> list[Criterion]:
    """Judge where our recursion of second moments follows the simulation, and where it fails."""
    worst = {s: np.abs(a[f"{s}.residual.mean"] - a[f"{s}.residual.refined"]) for s in SWEEPS}
    over = max(float((w - SURE * a[f"{s}.residual.error"]).max()) for s, w in worst.items())
    rows = a["map.rows"]
    error = np.abs(rows[..., 0] - rows[..., 3])
    largest = error.max((1, 2, 3))
    each = {f"n = {n}:": e for n, e in zip(a["map.channels"], largest, strict=True)}
    # n = 4, 18 layers above, σ = 0.003, p = 0.7
    at = rows[0, 0, 2, -1]
    return [
        Criterion(
            "|simulated - recursion|, five sweeps, all points",
            f"≤ 0.02 + {SURE} standard errors",
            f"at most {max(float(w.max()) for w in worst.values()):.4f}",
            over <= 0.02,
        ),
        Criterion(
            "limits, off the sweeps: n = 4, 18 layers above, σ = 0.003, p = 0.7",
            "fails by more than 0.1: few channels share the chance that one stays open",
            f"simulated {at[0]:.3f} ± {at[1]:.3f}, recursion {at[3]:.3f}, the paper's "
            f"approximation {at[2]:.3f}; largest error of the recursion over the map, "
            f"{_listed(each, '{:.3f}')}",
            _sure(at[0] - at[3] - 0.1, at[1]),
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
            xlabel=f"({sweep}) {label}",
            ax=panel,
        )
        panel.plot(a[f"{sweep}.x"], a[f"{sweep}.residual.approximation"], "k:", linewidth=1)
        panel.set_xscale({"a": "log", "c": "log", "d": "log"}.get(sweep, "linear"))
        if sweep != "a":
            panel.get_legend().remove()
    last = figure.axes[5]
    rows = a["map.rows"]
    error = np.abs(rows[..., 0] - rows[..., 3]).max((1, 3))
    image = last.imshow(error, vmin=0, cmap="viridis", aspect="auto")
    last.set(xlabel="share p of open units", ylabel="channels n")
    last.set_xticks(range(error.shape[1]), [f"{p:g}" for p in SHARES])
    last.set_yticks(range(error.shape[0]), [str(n) for n in a["map.channels"]])
    figure.colorbar(image, ax=last, label="largest error of the recursion")


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="noise_stability/figure_11",
        source=f"{PAPER}, Figure 11 and Appendix D.4.1",
        says="In nets of 1x1 kernels with random masks the share of dominant flows falls with "
        "width, weights and distance from the output as eqs. (9) to (11) say, and is greater in "
        "residual than in plain nets (Figure 11).",
        settings={
            "quick": dict(draws=20, map_channels=[4, 16], map_draws=8, seed=0,
                          scaled="20 draws a point instead of 150"),
            "paper": dict(draws=150, map_channels=[4, 8, 16, 64], map_draws=150, seed=0),
        },
        compute=compute_figure_11,
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
            "quick": dict(draws=20, map_channels=[4], map_draws=20, seed=1,
                          scaled="20 draws a point, a map of 4 channels"),
            "paper": dict(draws=50, map_channels=[4, 8, 16, 64], map_draws=50, seed=1),
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
            "paper": dict(points=2001, draws=4_000_000, seed=0),
        },
        compute=compute_figure_13,
        judge=judge_figure_13,
        draw=draw_figure_13,
    ),
]  # fmt: skip
