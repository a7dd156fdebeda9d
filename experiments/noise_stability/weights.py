"""The weights of trained nets, Tables 3 and 4 with Figure 7."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from experiments.claim import Arrays, Claim, Verdict
from experiments.noise_stability.nets import (
    BATCH,
    COLORS,
    DECAY,
    EVERY_DEPTH,
    FULL,
    KINDS,
    PAPER,
    SECOND_SEED,
    SHORT,
    number_of_each,
    pairs,
    start_net,
    trainings_of,
)
from experiments.parts import Each, in_turn
from experiments.trainings import fits, spread
from resid_theory.equivalence import to_plain
from resid_theory.identity import id_mask

# -- Table 3 and Figure 7 --------------------------------------------------------------------------

EDGES = np.linspace(-1, 2, 301)
STATISTICS = ("mean", "std", "mass", "mass_above", "id_mean", "id_std", "id_mass", "above")
NETS = ("plain", "transferred")


def _conv_weights(net: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """All convolution weights of the equivalent plain net and its ID entries, without biases."""
    plain = to_plain(net)
    masks = id_mask(plain)
    weights, entries = [], []
    for name, parameter in plain.named_parameters():
        if parameter.ndim == 4:
            values = parameter.detach().double()
            weights.append(values.flatten())
            if name in masks:
                entries.append(values[masks[name]])
    return torch.cat(weights).numpy(), torch.cat(entries).numpy()


def _statistics(net: nn.Module) -> np.ndarray:
    weights, entries = _conv_weights(net)
    size = np.abs(weights)
    return np.array(
        [
            weights.mean(), weights.std(), size.sum(), size[size > 0.25].sum(),
            entries.mean(), entries.std(), np.abs(entries).sum(), (weights > 0.7).sum(),
        ]
    )  # fmt: skip


def _histograms(net: nn.Module) -> np.ndarray:
    weights, entries = _conv_weights(net)
    return np.array([np.histogram(part, EDGES)[0] for part in (weights, entries)])


def compute_table_3(
    *,
    depth: int,
    seeds: Sequence[int],
    trained_depth: int | None = None,
    training: Mapping[str, Any] | None = None,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute statistics and histograms of the weights of plain and transferred nets."""
    after = [] if trained_depth is None else [trained_depth]
    trained = fits(trainings_of(KINDS, after, training), each, device, weights=True)
    starts = {kind: [start_net(kind, depth, seed) for seed in seeds] for kind in NETS}
    found = {
        "before": np.array([[_statistics(net) for net in starts[kind]] for kind in NETS]),
        "histogram_before": np.array([_histograms(starts[kind][0]) for kind in NETS]),
    }
    if trained_depth is not None:
        nets = [[fit.net for fit in trained[kind, trained_depth]] for kind in KINDS]
        found["after"] = np.array([[_statistics(net) for net in row] for row in nets])
        found["histogram_after"] = np.array([_histograms(row[0]) for row in nets])
    return found


def judge_table_3(a: Arrays) -> list[Verdict]:
    """Judge the mass of ID entries at initialization and after training."""
    before = {name: a["before"][..., i] for i, name in enumerate(STATISTICS)}
    plain, moved = before["id_mass"]
    found = [
        Verdict(
            "L1 mass of ID entries before training, plain net",
            "every seed in [62, 75] (68.5 ± 1.6 by the law of the draw; Table 3: 67)",
            f"{spread(plain)}, {plain.min():.1f} to {plain.max():.1f}",
            bool((plain >= 62).all() and (plain <= 75).all()),
        ),
        Verdict(
            "L1 mass of ID entries before training, transferred residual net",
            "every seed in [1115, 1125] (1120 ID entries of 1)",
            f"{spread(moved)}, {moved.min():.1f} to {moved.max():.1f}",
            bool((moved >= 1115).all() and (moved <= 1125).all()),
        ),
    ]
    if "after" not in a:
        return found
    after = {name: a["after"][..., i] for i, name in enumerate(STATISTICS)}
    share = (after["id_mass"] / after["mass_above"]).mean(1)
    middle = (EDGES[1:] + EDGES[:-1]) / 2
    mode = float(middle[a["histogram_after"][1, 1].argmax()])
    count = after["above"][0]
    return [
        *found,
        Verdict(
            "share of ID entries in the mass of weights above .25 after training",
            "residual > .7, plain < .2 (Table 3: > .76, .10)",
            f"{share[1]:.3f}, {share[0]:.3f}",
            bool(share[1] > 0.7 and share[0] < 0.2),
        ),
        Verdict(
            "mode of the ID entries of the transferred net after training",
            "in [.8, 1] (Figure 7: about .9)",
            mode,
            0.8 <= mode <= 1,
        ),
        Verdict(
            "weights of the plain net above .7 after training",
            "< 50 (paper: 26)",
            spread(count),
            bool((count < 50).all()),
        ),
    ]


def draw_table_3(figure: Figure, a: Arrays) -> None:
    """Plot histograms of weights with counts up to 800, as in Figure 7."""
    times = [time for time in ("before", "after") if time in a]
    axes = figure.subplots(2, len(times), sharex=True, squeeze=False)
    for column, time in enumerate(times):
        for row, kind in enumerate(NETS):
            weights, entries = a[f"histogram_{time}"][row]
            ax = axes[row, column]
            ax.stairs(weights, EDGES, fill=True, color="lightgrey", label="all weights")
            ax.stairs(entries, EDGES, fill=True, color="tab:red", label="ID entries")
            ax.set(ylim=(0, 800), title=f"{kind}, {time} training", xlabel="weight")
    axes[0, 0].legend()


# -- Table 4 ---------------------------------------------------------------------------------------

TABLE_4 = {20: 5.393e-4, 32: 8.878e-4, 44: 1.238e-3}


def _penalty(net: nn.Module) -> float:
    square = sum(float(p.detach().double().square().sum()) for p in net.parameters())
    return 0.5 * DECAY * square / BATCH


def compute_table_4(
    *,
    depths: Sequence[int],
    seeds: Sequence[int],
    trained_depths: Sequence[int] = (),
    training: Mapping[str, Any] | None = None,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute the weight-decay penalty as the paper logs it, before and after training."""
    trained = fits(trainings_of(KINDS, trained_depths, training), each, device, weights=True)
    found = {
        "depth": np.array(depths),
        "before": np.array(
            [[[_penalty(start_net(k, d, s)) for s in seeds] for d in depths] for k in KINDS]
        ),
    }
    if trained_depths:
        found["trained_depth"] = np.array(trained_depths)
        found["after"] = number_of_each(trained, trained_depths, lambda fit: _penalty(fit.net))
        found["transferred_after"] = np.array(
            [[_penalty(to_plain(f.net)) for f in trained["residual", d]] for d in trained_depths]
        )
        found["loss"] = number_of_each(trained, trained_depths, lambda fit: fit.number("loss"))
    return found


def judge_table_4(a: Arrays) -> list[Verdict]:
    """Compare initial penalties with the paper's; residual ones are hundreds of times smaller."""
    plain, residual = a["before"].mean(2)
    off = {d: m / TABLE_4[d] - 1 for d, m in zip(a["depth"], plain, strict=True) if d in TABLE_4}
    worst = max(abs(gap) for gap in off.values())
    shallow = list(a["depth"]).index(20)
    ratio = float(plain[shallow] / residual[shallow])
    found = [
        Verdict(
            "½λ‖θ‖²/128 of plain nets before training, mean over seeds",
            "within 1 % of Table 4: 5.393e-4, 8.878e-4, 1.238e-3 at depth 20, 32, 44",
            ", ".join(f"depth {d}: {gap:+.2%}" for d, gap in off.items()),
            worst <= 0.01,
        ),
        Verdict(
            "plain over residual before training, depth 20",
            "in [240, 290] (Table 4: 268; 263 by the law of the draw)",
            ratio,
            240 <= ratio <= 290,
        ),
    ]
    if "after" not in a:
        return found
    after, cost = a["after"].mean(2), (a["loss"] / a["after"]).min()
    return [
        *found,
        Verdict(
            "penalty after training: residual < plain at every depth",
            "shape only",
            pairs(a["after"], a["trained_depth"]),
            bool((after[1] < after[0]).all()),
        ),
        Verdict(
            "training loss over penalty after training, least of all nets",
            "> 60: the loss, not the decay, is what is minimized",
            cost,
            bool(cost > 60),
        ),
    ]


def draw_table_4(figure: Figure, a: Arrays) -> None:
    """Plot penalties before and after training."""
    ax = figure.subplots()
    for kind, rows in zip(KINDS, a["before"], strict=True):
        ax.semilogy(a["depth"], rows.mean(1), "o-", color=COLORS[kind], label=f"{kind}, before")
    if "after" in a:
        for kind, rows in zip(KINDS, a["after"], strict=True):
            x, y = a["trained_depth"], rows.mean(1)
            ax.semilogy(x, y, "s--", color=COLORS[kind], label=f"{kind}, after")
    ax.semilogy(list(TABLE_4), list(TABLE_4.values()), "kx", label="paper, plain, before")
    ax.set(xlabel="depth", ylabel="½λ‖θ‖²/128", xticks=a["depth"])
    ax.legend()


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="noise_stability/table_3",
        source=f"{PAPER}, Table 3 and Figure 7",
        says="The large weights of a trained residual net are its ID entries, which stay near 1; "
        "a plain net's are not.",
        settings={
            "quick": {"depth": 32, "seeds": [0, 1, 2], "scaled": "initialization"},
            "short": {
                "depth": 32, "seeds": list(range(10)), "trained_depth": 32,
                "scaled": f"{SHORT}; {SECOND_SEED}",
            },
            "paper": {
                "depth": 32, "seeds": list(range(10)), "trained_depth": 32, "training": FULL
            },
        },
        compute=compute_table_3,
        judge=judge_table_3,
        draw=draw_table_3,
    ),
    Claim(
        id="noise_stability/table_4",
        source=f"{PAPER}, Table 4",
        says="The weight penalty of a residual net is far below that of a plain net, and both are "
        "far below the loss.",
        settings={
            "quick": {"depths": EVERY_DEPTH, "seeds": [0, 1, 2, 3], "scaled": "initialization"},
            "short": {
                "depths": EVERY_DEPTH, "seeds": list(range(20)), "trained_depths": [20, 32],
                "scaled": f"{SHORT}, after training depths 20 and 32; {SECOND_SEED}",
            },
            "paper": {
                "depths": EVERY_DEPTH, "seeds": list(range(20)), "trained_depths": EVERY_DEPTH,
                "training": FULL,
            },
        },
        compute=compute_table_4,
        judge=judge_table_4,
        draw=draw_table_4,
    ),
]  # fmt: skip
