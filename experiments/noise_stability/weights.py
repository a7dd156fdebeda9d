"""The weights of initial and of trained nets, Tables 3 and 4 with Figure 7."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch import nn

from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below, near
from experiments.noise_stability.nets import (
    BATCH,
    COLORS,
    DECAY,
    DIGITS,
    EVERY_DEPTH,
    FULL,
    KINDS,
    ONE,
    PAPER,
    SHIPPED,
    means,
    nets_of,
    number_of_each,
    start_net,
    trainings_of,
)
from experiments.parts import Each, in_turn
from experiments.trainings import fits, spread
from resid_theory.equivalence import NothingConverted, to_plain
from resid_theory.identity import id_mask

# -- before training -------------------------------------------------------------------------------

TABLE_4 = {20: 5.393e-4, 32: 8.878e-4, 44: 1.238e-3}
TABLE_3 = 32  # depth of its nets
BEYOND = 0.7  # of the weights counted in Appendix C
FEWEST_DRAWS = 5  # with fewer, a prediction interval takes nearly any number


def penalty(net: nn.Module) -> float:
    square = sum(float(p.detach().double().square().sum()) for p in net.parameters())
    return 0.5 * DECAY * square / BATCH


def _plain(net: nn.Module) -> nn.Module:
    """The equivalent plain net; of a plain net that is a copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingConverted)
        return to_plain(net)


def _by_layer(net: nn.Module) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and ID entries of every kernel of the equivalent plain net that has ID entries."""
    plain = _plain(net)
    masks = id_mask(plain)
    return [
        (parameter.detach().double().numpy(), parameter.detach().double()[masks[name]].numpy())
        for name, parameter in plain.named_parameters()
        if name in masks
    ]


def compute_initial_weights(*, depths: Sequence[int], seeds: Sequence[int]) -> Arrays:
    """Compute penalties, (kinds, depths, seeds), and L1 masses of ID entries, (kinds, seeds).

    Of the plain nets of Table 3, also the number of weights above 0.7, (seeds,).
    """

    def mass(kind: str, seed: int) -> float:
        layers = _by_layer(start_net(kind, TABLE_3, seed))
        return float(sum(np.abs(entries).sum() for _, entries in layers))

    def beyond(seed: int) -> int:
        parameters = start_net("plain", TABLE_3, seed).parameters()
        return sum(int((parameter > BEYOND).sum()) for parameter in parameters)

    penalties = [[[penalty(start_net(k, d, s)) for s in seeds] for d in depths] for k in KINDS]
    masses = [[mass(kind, seed) for seed in seeds] for kind in KINDS]
    return {
        "depth": np.array(depths),
        "penalty": np.array(penalties),
        "mass": np.array(masses),
        "beyond": np.array([beyond(seed) for seed in seeds]),
    }


def one_draw(name: str, draws: np.ndarray, printed: float, digit: float, table: str) -> Criterion:
    """Require that a printed number, of one net, lies in the prediction interval of one draw.

    ``digit`` is the unit of the last printed digit: a draw counts as what it rounds to.
    """
    n, mean = len(draws), float(draws.mean())
    expected = f"{printed:.4g} ({table}, of one net) within what one more draw prints, 95 %"
    if n < FEWEST_DRAWS:
        return Criterion(name, expected, f"mean {mean:.4g}; n = {n} is too few for a spread", None)
    spread = float(draws.std(ddof=1))
    error = spread * (1 + 1 / n) ** 0.5
    half = float(stats.t.ppf(0.975, n - 1)) * error
    low, high = (digit * round(end / digit) for end in (mean - half, mean + half))
    away = abs(printed - mean) - digit / 2
    p = min(1.0, 2 * float(stats.t.sf(away / error, n - 1)))
    return Criterion(
        name,
        expected,
        f"{low:.4g} to {high:.4g}; mean {mean:.4g}, standard deviation {spread:.2g}, n = {n}; "
        f"{printed:.4g} has p = {p:.2g}",
        away <= half,
    )


def judge_initial_weights(a: Arrays) -> list[Criterion]:
    """Require that every number of the paper, which has one net each, is a draw of the law."""
    depth = list(a["depth"])
    shallow = a["penalty"][:, depth.index(20)]
    return [
        *(
            one_draw(
                f"½λ‖θ‖²/128 of plain nets of depth {d}",
                a["penalty"][0, depth.index(d)],
                printed,
                10.0 ** (math.floor(math.log10(printed)) - 3),
                "Table 4",
            )
            for d, printed in TABLE_4.items()
            if d in depth
        ),
        one_draw(
            "that penalty of plain nets over that of residual nets, depth 20",
            shallow[0] / shallow[1],
            268,
            1,
            "Table 4",
        ),
        one_draw(
            "L1 mass of the ID entries of plain nets, depth 32", a["mass"][0], 67, 1, "Table 3"
        ),
        one_draw(
            "L1 mass of the ID entries of transferred residual nets, depth 32",
            a["mass"][1],
            1120,
            1,
            "Table 3",
        ),
        one_draw(
            f"number of weights above {BEYOND} of plain nets, depth 32",
            a["beyond"],
            1,
            1,
            "Appendix C",
        ),
    ]


def draw_initial_weights(figure: Figure, a: Arrays) -> None:
    """Plot the penalties of all seeds, and the paper's."""
    ax = figure.subplots()
    for kind, rows in zip(KINDS, a["penalty"], strict=True):
        ax.semilogy(a["depth"], rows, ".", color=COLORS[kind])
        ax.semilogy(a["depth"], rows.mean(1), color=COLORS[kind], label=kind)
    ax.semilogy(list(TABLE_4), list(TABLE_4.values()), "kx", label="Table 4, plain")
    ax.set(xlabel="depth", ylabel="½λ‖θ‖²/128 before training", xticks=a["depth"])
    ax.legend()


# -- Table 3 and Figure 7 --------------------------------------------------------------------------

EDGES = np.linspace(-1, 2, 301)
LARGE = 0.25  # the paper's bound of large weights
NETS = ("plain", "transferred")


def _histograms(net: nn.Module) -> np.ndarray:
    """Counts of all convolution weights and of ID entries."""
    kernels = [p.detach().flatten() for p in _plain(net).parameters() if p.ndim == 4]
    entries = np.concatenate([entries for _, entries in _by_layer(net)])
    parts = (torch.cat(kernels).double().numpy(), entries)
    return np.array([np.histogram(part, EDGES)[0] for part in parts])


def _shares(net: nn.Module) -> np.ndarray:
    """Share of ID entries in the L1 mass of large weights, by layer; nan where none is large."""
    sums = [
        [np.abs(part[np.abs(part) > LARGE]).sum() for part in (entries, weights)]
        for weights, entries in _by_layer(net)
    ]
    of_entries, of_all = np.array(sums).T
    return np.divide(of_entries, of_all, out=np.full(len(of_all), np.nan), where=of_all > 0)


def compute_table_3(
    *,
    depth: int,
    training: Mapping[str, Any] | None = None,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute shares and medians of ID entries by layer of every net, and histograms of the first.

    A residual net is looked at as the plain net that it is equivalent to.
    """
    nets = nets_of(KINDS, depth, ("initial", "trained"), training, each, device)
    found = {}
    for name, state in (("before", "initial"), ("after", "trained")):
        rows = [nets[kind, state] for kind in KINDS]
        found[f"histogram_{name}"] = np.array([_histograms(row[0].cpu()) for row in rows])
    trained = [[net.cpu() for net in nets[kind, "trained"]] for kind in KINDS]
    found["share"] = np.array([[_shares(net) for net in row] for row in trained])
    medians = [[[np.median(e) for _, e in _by_layer(net)] for net in row] for row in trained]
    return found | {"median": np.array(medians)}


def judge_table_3(a: Arrays) -> list[Criterion]:
    """Test over nets that large weights are ID entries in residual nets only.

    Layers of one net share its training: each net gives their mean. A net without large weights
    has no ID entry among them, and the share 0.
    """
    plain, residual = a["share"]  # (nets, layers)
    entry = a["median"][1]
    large = np.isfinite(a["share"])
    shares = np.where(large, a["share"], 0).sum(2) / np.maximum(large.sum(2), 1)

    def layers(rows: np.ndarray) -> str:
        values = rows[np.isfinite(rows)]
        found = f"{len(values)} of {rows.size} layers have weights above it"
        if not len(values):
            return found
        low, middle, high = np.quantile(values, (0, 0.5, 1))
        return f"{found}: {low:.3f} to {high:.3f}, median {middle:.3f}"

    return [
        above(
            f"share of ID entries in the mass of weights above {LARGE}, residual, mean over layers",
            shares[1],
            0.7,
            source="Table 3, of the whole net: > .76; .7 as before",
            shown=layers(residual),
        ),
        below(
            "the same share, plain",
            shares[0],
            0.2,
            source="Table 3, of the whole net: .10; .2 as before",
            shown=layers(plain),
        ),
        near(
            "median of the ID entries of a layer, residual, as the plain net that it equals, mean "
            "over layers",
            entry.mean(1),
            0.9,
            margin=0.1,
            source="Figure 7: a mode of about .9; the margin as before",
            shown=f"layers {entry.min():.3f} to {entry.max():.3f}, median {np.median(entry):.3f}",
        ),
    ]


def draw_table_3(figure: Figure, a: Arrays) -> None:
    """Plot histograms of weights with counts up to 800, as in Figure 7."""
    axes = figure.subplots(2, 2, sharex=True)
    for column, time in enumerate(("before", "after")):
        for row, kind in enumerate(NETS):
            weights, entries = a[f"histogram_{time}"][row]
            ax = axes[row, column]
            ax.stairs(weights, EDGES, fill=True, color="lightgrey", label="all weights")
            ax.stairs(entries, EDGES, fill=True, color="C3", label="ID entries")
            ax.set(ylim=(0, 800), title=f"{kind}, {time} training", xlabel="weight")
    axes[1, 1].axvline(0.9, color="k", linestyle=":", label="mode in the paper: about .9")
    axes[1, 1].legend()


# -- Table 4 ---------------------------------------------------------------------------------------


def compute_table_4(
    *,
    depths: Sequence[int],
    training: Mapping[str, Any] | None = None,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute the weight-decay penalty as the paper logs it, before and after training.

    After training residual nets are measured as they are, and as transferred plain nets.
    """
    trained = fits(trainings_of(KINDS, depths, training), each, device, weights=True)

    def number(read: Any) -> Any:
        return number_of_each(trained, depths, read)

    return {
        "depth": np.array(depths),
        "before": number(lambda fit: penalty(fit.training.start())),
        "after": number(lambda fit: penalty(fit.net)),
        "transferred": number(lambda fit: penalty(_plain(fit.net))),
        "loss": number(lambda fit: fit.number("loss")),
    }


def judge_table_4(a: Arrays) -> list[Criterion]:
    """Test by paired seeds that residual nets have the smaller penalty, far below the loss."""
    found = [
        below(
            f"log of the penalty after training, {label} to plain, at the worst depth of each seed",
            np.log(table[1] / a["after"][0]).max(0),
            source="Table 4: smaller at every depth",
            shown=means(np.stack([a["after"][0], table[1]]), a["depth"]),
        )
        for label, table in (("residual", a["after"]), ("transferred", a["transferred"]))
    ]
    ratio = a["loss"] / a["after"]
    return [
        *found,
        above(
            "training loss over penalty after training, the least of the nets of each seed",
            ratio.min((0, 1)),
            60,
            source="Table 4: the loss, not the decay, is what is minimized; 60 as before",
            shown=f"all nets {spread(ratio)}",
        ),
    ]


def draw_table_4(figure: Figure, a: Arrays) -> None:
    """Plot penalties before and after training."""
    ax = figure.subplots()
    for time, style in (("before", "o-"), ("after", "s--")):
        for kind, rows in zip(KINDS, a[time], strict=True):
            label = f"{kind}, {time}"
            ax.semilogy(a["depth"], rows.mean(1), style, color=COLORS[kind], label=label)
    ax.semilogy(a["depth"], a["transferred"][1].mean(1), "s:", color="0.5", label="transferred")
    ax.semilogy(list(TABLE_4), list(TABLE_4.values()), "kx", label="Table 4, plain, before")
    ax.set(xlabel="depth", ylabel="½λ‖θ‖²/128", xticks=list(TABLE_4))
    ax.legend()


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="noise_stability/initial_weights",
        kind="extension",
        source=f"{PAPER}, Tables 3 and 4, columns before training",
        says="Under initializations inferred from these numbers, before training the penalty of "
        "plain nets is 5.393e-4, 8.878e-4 and 1.238e-3 at depth 20, 32 and 44, 268 times that of "
        "the residual net of depth 20; ID entries have a mass of 67 in the plain net and of 1120 "
        "in the transferred one (Tables 3 and 4).",
        settings={
            "quick": {"depths": [20], "seeds": [0, 1], "scaled": "two seeds, depth 20"},
            "paper": {"depths": EVERY_DEPTH, "seeds": list(range(20, 40))},
        },
        compute=compute_initial_weights,
        judge=judge_initial_weights,
        draw=draw_initial_weights,
    ),
    Claim(
        id="noise_stability/table_3",
        source=f"{PAPER}, Table 3 and Figure 7",
        says="The large weights of a trained residual net are its ID entries, which stay near 1; "
        "those of a plain net are not (Table 3, Figure 7).",
        settings={
            "quick": {"depth": 8, "training": DIGITS, "scaled": "64 digits, depth 8, 3 epochs"},
            "short": {"depth": 32, "scaled": SHIPPED},
            "single": {"depth": 20, "training": ONE, "scaled": "one seed of depth 20"},
            "paper": {"depth": 32, "training": FULL},
        },
        compute=compute_table_3,
        judge=judge_table_3,
        draw=draw_table_3,
    ),
    Claim(
        id="noise_stability/table_4",
        source=f"{PAPER}, Table 4, columns after training",
        says="After training the weight penalty of a residual net is below that of a plain net, "
        "and both are far below the loss (Table 4).",
        settings={
            "quick": {
                "depths": [5, 8], "training": DIGITS,
                "scaled": "64 digits, depths 5 and 8, 3 epochs",
            },
            "short": {"depths": [20, 32], "scaled": f"{SHIPPED}; depths 20 and 32"},
            "single": {"depths": [20], "training": ONE, "scaled": "one seed, depth 20"},
            "paper": {"depths": EVERY_DEPTH, "training": FULL},
        },
        compute=compute_table_4,
        judge=judge_table_4,
        draw=draw_table_4,
    ),
]  # fmt: skip
