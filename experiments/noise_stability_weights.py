"""Yu & Tomasi, "Identity Connections in Residual Nets Improve Noise Stability" (arXiv:1905.10944):
the weights of equivalent nets and of trained ones, Tables 2 to 4 with Figures 6 and 7.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import resid_theory as rt
from experiments.claim import Arrays, Claim, Verdict
from experiments.noise_stability_nets import (
    BATCH,
    COLORS,
    DECAY,
    EVERY_DEPTH,
    GPU,
    KINDS,
    PAPER,
    SHORT,
    image_set,
    number_of_each,
    pair_fits,
    pairs,
    spread,
    start_net,
    trained_fits,
)
from resid_theory.equivalence import to_plain
from resid_theory.identity import id_mask, shifted
from resid_theory.training import NOISE_STABILITY

EQUAL = 1e-12  # float64: a few hundred roundings a step, amplified by ReLUs that switch


# -- Table 2 and Figure 6 --------------------------------------------------------------------------


def _effective(net: nn.Module) -> torch.Tensor:
    """All parameters in float64, with 1 added at the ID entries of residual weights."""
    added = {parameter: mask for parameter, mask in shifted(net)}
    parts = [p.detach() + added[p] if p in added else p.detach() for p in net.parameters()]
    return torch.cat([part.double().flatten() for part in parts]).cpu()


class _Divergence:
    """Weights and loss of two nets along the same training, and how far they are apart."""

    def __init__(self, x: torch.Tensor, labels: torch.Tensor) -> None:
        self.x, self.labels = x, labels
        self.first: tuple[torch.Tensor, float] | None = None
        self.rows: list[tuple[float, float, float, float]] = []

    def __call__(self, net: nn.Module, moment: Any) -> None:
        parameter = next(net.parameters())
        with torch.no_grad():
            output = net(self.x.to(parameter))
            loss = float(nn.functional.cross_entropy(output, self.labels.to(parameter.device)))
        if moment.net == 0:
            self.first = _effective(net), loss
        elif self.first is not None and (not self.rows or self.rows[-1][0] != moment.step):
            apart = _effective(net) - self.first[0]
            largest, root = float(apart.abs().max()), float(apart.square().mean().sqrt())
            self.rows.append((moment.step, largest, root, abs(loss - self.first[1])))


def _diverge(
    data: rt.Images,
    depth: int,
    steps: int,
    *,
    batch: int,
    precision: str,
    corrected: bool,
    seed: int,
) -> np.ndarray:
    """Rows (step, largest, rms, loss difference) of two equivalent nets under training."""
    # One epoch of exactly so many steps, each batch seen once.
    given = data.first(batch * steps) if len(data) > batch * steps else data
    epochs = -(-steps * batch // len(given))
    dtype = torch.float64 if precision == "float64" else torch.float32
    nets = [
        start_net("explicit", depth, seed, dtype),
        # In this type before 1 is added: added in float32, it would round at once.
        start_net("transferred", depth, seed, dtype),
    ]
    recipe = NOISE_STABILITY.change(
        epochs=epochs, batch=batch, milestones=(), precision=precision, augmentation="none"
    )
    probe = data.inputs(data.pixels[:batch], dtype)
    seen = _Divergence(probe, data.labels[:batch])
    rt.train(
        nets,
        given,
        recipe,
        seed=[seed, seed],
        device="cpu",
        callbacks=[seen],
        every=1,
        correction=rt.IdDecay if corrected else None,
        stacked=False,
        progress=False,
    )
    return np.array(seen.rows)[: steps + 1]


def compute_table_2(
    *,
    depth: int,
    steps: int,
    batch: int,
    name: str,
    seed: int,
    size: int = 32,
    depths: Sequence[int] = (),
    training: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> dict[str, np.ndarray]:
    """The net that adds Id(x) explicitly against the plain net that starts at τ(θ)."""
    data = image_set(name, "train", batch * steps if name != "digits" else None, size)
    kinds = {"float64": ("float64", True), "float32": ("float32", True)}
    kinds["uncorrected"] = ("float64", False)
    found = {
        label: _diverge(
            data, depth, steps, batch=batch, precision=precision, corrected=corrected, seed=seed
        )
        for label, (precision, corrected) in kinds.items()
    }
    if training is None:
        return found
    # Trained to the end, each in its own arithmetic: what is left after 200 epochs of round-off.
    fits = {
        (kind, d): trained_fits(kind, d, device=device, **training)
        for kind in ("transferred", "residual")
        for d in depths
    }
    for key, read in (
        ("loss", lambda fit: fit.loss),
        ("test_error", lambda fit: fit.along("test_error")[-1]),
    ):
        found[key] = np.array(
            [[read(fits[k, d][0]) for d in depths] for k in ("transferred", "residual")]
        )
    return {**found, "depth": np.array(depths)}


def judge_table_2(a: Arrays) -> list[Verdict]:
    """Equal to round-off with the correction of weight decay, apart without."""
    exact, off = a["float64"], a["uncorrected"]
    at = min(100, int(exact[-1, 0]))
    largest = float(exact[: at + 1, 1].max())
    quarter = max(1, len(exact) // 4)
    trend = float(exact[-quarter:, 1].mean() / exact[1 : 1 + quarter, 1].mean())
    ratio = float(off[at, 1] / exact[at, 1])
    found = [
        Verdict(
            f"largest |θ_p - τ(θ_r)| within {at} steps of SGD with momentum and decay, float64",
            f"< {EQUAL:g} (round-off; same batches)",
            f"{largest:.1e}",
            largest < EQUAL,
        ),
        Verdict(
            "round-off grows along training",
            "mean of the last quarter above that of the first (Figure 6, shape only)",
            f"{trend:.3g} times",
            trend > 1,
        ),
        Verdict(
            f"without the correction of weight decay the nets part within {at} steps",
            "> 1e6 times as far apart",
            f"{ratio:.2g} times ({off[at, 1]:.1e})",
            ratio > 1e6,
        ),
    ]
    if "loss" in a:
        error = np.abs(np.diff(a["test_error"], axis=0)).max()
        loss = np.abs(a["loss"][0] / a["loss"][1] - 1).max()
        found += [
            Verdict(
                "test errors of transferred plain and residual nets after training",
                "|difference| ≤ .01 at every depth",
                f"{error:.4f}",
                bool(error <= 0.01),
            ),
            Verdict(
                "their training losses", "within 5 % at every depth", f"{loss:.3g}", loss <= 0.05
            ),
        ]
    return found


def draw_table_2(figure: Figure, a: Arrays) -> None:
    """Figure 6: distance of the two nets along training."""
    axes = figure.subplots(1, 2, sharex=True)
    for label in ("float64", "float32", "uncorrected"):
        step, largest, root, loss = a[label][1:].T
        name = "float64, decay not corrected" if label == "uncorrected" else label
        (line,) = axes[0].semilogy(step, largest, label=name)
        axes[0].semilogy(step, root, ":", color=line.get_color())
        axes[1].semilogy(step, np.where(loss > 0, loss, np.nan), label=name)
    axes[0].set(xlabel="step", ylabel="|θ_p - τ(θ_r)|: largest (line), rms (dots)")
    axes[1].set(xlabel="step", ylabel="difference of the losses")
    axes[0].legend()


# -- Table 3 and Figure 7 --------------------------------------------------------------------------

EDGES = np.linspace(-1, 2, 301)
STATISTICS = ("mean", "std", "mass", "mass_above", "id_mean", "id_std", "id_mass", "above")
NETS = ("plain", "transferred")


def _conv_weights(net: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """All weights of the plain net's convolutions, and its ID entries; biases left out."""
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
) -> dict[str, np.ndarray]:
    """Statistics and histograms of the weights of plain and transferred residual nets."""
    starts = {kind: [start_net(kind, depth, seed) for seed in seeds] for kind in NETS}
    found = {
        "before": np.array([[_statistics(net) for net in starts[kind]] for kind in NETS]),
        "histogram_before": np.array([_histograms(starts[kind][0]) for kind in NETS]),
    }
    if trained_depth is not None:
        fits = pair_fits([trained_depth], training, device)
        nets = [[fit.net for fit in fits[kind, trained_depth]] for kind in KINDS]
        found["after"] = np.array([[_statistics(net) for net in row] for row in nets])
        found["histogram_after"] = np.array([_histograms(row[0]) for row in nets])
    return found


def judge_table_3(a: Arrays) -> list[Verdict]:
    """Masses of ID entries at initialization and after training."""
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
    """Figure 7: histograms of weights, counts cut at 800 as in the paper."""
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
) -> dict[str, np.ndarray]:
    """The decay's penalty, as the paper logs it, before and after training."""
    found = {
        "depth": np.array(depths),
        "before": np.array(
            [[[_penalty(start_net(k, d, s)) for s in seeds] for d in depths] for k in KINDS]
        ),
    }
    if trained_depths:
        fits = pair_fits(trained_depths, training, device)
        found["trained_depth"] = np.array(trained_depths)
        found["after"] = number_of_each(fits, trained_depths, lambda fit: _penalty(fit.net))
        found["transferred_after"] = np.array(
            [[_penalty(to_plain(f.net)) for f in fits["residual", d]] for d in trained_depths]
        )
        found["loss"] = number_of_each(fits, trained_depths, lambda fit: fit.loss)
    return found


def judge_table_4(a: Arrays) -> list[Verdict]:
    """The penalty of a plain start is the paper's; a residual one is hundreds of times smaller."""
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
    """Penalties before and after training."""
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
        id="noise_stability/table_2",
        source=f"{PAPER}, Table 2 and Figure 6",
        says="A plain net that starts at the transferred weights of a residual net stays equal to "
        "it throughout training.",
        settings={
            "quick": {
                "depth": 8, "steps": 100, "batch": 14, "name": "digits", "seed": 0, "size": 8,
                "scaled": "digits at 8 x 8, depth 8, 100 steps",
            },
            "short": {
                "depth": 20, "steps": 100, "batch": 32, "name": "cifar10", "seed": 0,
                "scaled": "100 steps of batch 32",
            },
            "paper": {
                "depth": 20, "steps": 100, "batch": 128, "name": "cifar10", "seed": 0,
                "depths": EVERY_DEPTH, "training": {"seeds": [0], "epochs": 200},
            },
        },
        compute=compute_table_2,
        judge=judge_table_2,
        draw=draw_table_2,
    ),
    Claim(
        id="noise_stability/table_3",
        source=f"{PAPER}, Table 3 and Figure 7",
        says="The large weights of a trained residual net are its ID entries, which stay near 1; "
        "a plain net's are not.",
        settings={
            "quick": {"depth": 32, "seeds": [0, 1, 2], "scaled": "initialization"},
            "short": {
                "depth": 32,
                "seeds": list(range(10)),
                "trained_depth": 20,
                "scaled": f"{SHORT}, after training depth 20 instead of 32",
            },
            "paper": {
                "depth": 32,
                "seeds": list(range(10)),
                "trained_depth": 32,
                "training": GPU,
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
                "depths": EVERY_DEPTH,
                "seeds": list(range(20)),
                "trained_depths": [20],
                "scaled": f"{SHORT}, after training depth 20 only",
            },
            "paper": {
                "depths": EVERY_DEPTH,
                "seeds": list(range(20)),
                "trained_depths": EVERY_DEPTH,
                "training": GPU,
            },
        },
        compute=compute_table_4,
        judge=judge_table_4,
        draw=draw_table_4,
    ),
]  # fmt: skip
