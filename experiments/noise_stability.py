"""Yu & Tomasi, "Identity Connections in Residual Nets Improve Noise Stability" (arXiv:1905.10944):
its tables of trained nets and its figures of training as claims.

Data are CIFAR-10. Not in the text that survives and chosen here: learning rate, momentum, schedule
and augmentation (``training.NOISE_STABILITY``), 15 epochs where the paper has 200 and the scale is
``short``. Losses of final weights are those of the training images without augmentation; the risk
along training is the mean over an epoch's batches as they came.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import resid_theory as rt
from experiments.claim import Arrays, Claim, Verdict
from experiments.trained import shipped
from experiments.trainings import evaluated, trained_together
from resid_theory.equivalence import to_plain
from resid_theory.identity import id_mask, shifted
from resid_theory.training import NOISE_STABILITY

PAPER = "Yu & Tomasi 2019, arXiv:1905.10944"
KINDS = ("plain", "residual")
COLORS = {"plain": "tab:blue", "residual": "tab:orange"}
DECAY, BATCH = 1e-4, 128  # the paper logs ½λ‖θ‖² divided by the batch
EQUAL = 1e-12  # float64: a few hundred roundings a step, amplified by ReLUs that switch
SHORT = "15 of 200 epochs, one seed"


def _net(kind: str, depth: int, seed: int, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A net at its start; ``"transferred"`` is the plain net that equals the residual one."""
    identity = "residual" if kind == "transferred" else kind
    net = rt.simplified_net(depth, identity=identity, generator=seed).to(dtype)
    return to_plain(net) if kind == "transferred" else net


def _images(name: str, split: str, samples: int | None = None, size: int | None = 32) -> rt.Images:
    return rt.load_images(name, split, samples=samples, size=size, progress=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A trained net with its start, its log, and mean loss and error on the training images."""

    net: nn.Module
    initial: nn.Module
    lines: list[dict[str, Any]]
    loss: float
    error: float

    def along(self, name: str) -> np.ndarray:
        """One number epoch by epoch, from the first trained epoch on."""
        return np.array([line[name] for line in self.lines if line.get("epoch")], dtype=float)


@lru_cache(maxsize=64)
def _shipped(kind: str, depth: int) -> Fit:
    made = shipped(f"simplified_{kind}_{depth}")
    return Fit(net=made.net, initial=made.initial, lines=made.lines, **made.about["train"])


def _trained(
    kind: str,
    depth: int,
    *,
    seeds: Sequence[int],
    epochs: int,
    device: str,
    name: str = "cifar10",
    samples: int | None = None,
    size: int = 32,
    batch: int = BATCH,
) -> list[Fit]:
    """Nets of one kind and depth, trained together from these seeds."""
    given = (kind, depth, tuple(seeds), epochs, device, name, samples, size, batch)
    if given not in _fitted:
        _fitted[given] = _train(*given)
    return _fitted[given]


_fitted: dict[tuple[Any, ...], list[Fit]] = {}  # claims of one run share their trainings


def _train(
    kind: str,
    depth: int,
    seeds: Sequence[int],
    epochs: int,
    device: str,
    name: str,
    samples: int | None,
    size: int,
    batch: int,
) -> list[Fit]:
    data = _images(name, "train", samples, size)
    test = _images(name, "test", None, size)
    # Grey digits have no left and right, and 8 pixels leave no room for crops of 4.
    kept = {"augmentation": "none"} if name == "digits" else {"channels_last": True}
    recipe = NOISE_STABILITY.scaled(epochs).change(batch=batch, **kept)
    run = trained_together(
        [_net(kind, depth, seed) for seed in seeds],
        recipe,
        seeds,
        name={"net": f"simplified_{kind}_{depth}", "data": [name, samples, size]},
        data=data,
        test=test,
        device=device,
        keep=name != "digits",  # seconds need no folder, and are to be lived through each time
    )
    fits = []
    for number, (net, seed) in enumerate(zip(run.nets, seeds, strict=True)):
        loss, error = evaluated(net, data)
        lines = [line for line in run.metrics if line["net"] == number]
        start = _net(kind, depth, seed)
        fits.append(Fit(net=net.cpu(), initial=start, lines=lines, loss=loss, error=error))
    return fits


def _fits(
    depths: Sequence[int], training: Mapping[str, Any] | None, device: str
) -> dict[tuple[str, int], list[Fit]]:
    """Both kinds at every depth: the shipped nets, or nets trained as ``training`` says."""
    return {
        (kind, depth): (
            [_shipped(kind, depth)]
            if training is None
            else _trained(kind, depth, device=device, **training)
        )
        for kind in KINDS
        for depth in depths
    }


def _table(fits: Mapping[tuple[str, int], list[Fit]], depths: Sequence[int], read: Any) -> Any:
    """One number of each net: (kinds, depths, seeds)."""
    return np.array([[[read(fit) for fit in fits[k, d]] for d in depths] for k in KINDS])


def _spread(values: np.ndarray) -> str:
    values = np.ravel(values)
    if len(values) == 1:
        return f"{values[0]:.4g} (n = 1)"
    return f"{values.mean():.4g} ± {values.std(ddof=1):.2g} (n = {len(values)})"


def _pairs(table: np.ndarray, depths: np.ndarray) -> str:
    """plain against residual, depth by depth."""
    return "; ".join(
        f"depth {d}: {_spread(table[0, i])} against {_spread(table[1, i])}"
        for i, d in enumerate(depths)
    )


# -- Table 1 ---------------------------------------------------------------------------------------


def compute_table_1(
    *, depths: Sequence[int], training: Mapping[str, Any] | None = None, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Training loss and test error of plain (KWI) and residual nets (HMWI)."""
    fits = _fits(depths, training, device)
    return {
        "depth": np.array(depths),
        "loss": _table(fits, depths, lambda fit: fit.loss),
        "penalty": _table(fits, depths, lambda fit: fit.along("penalty")[-1]),
        "test_error": _table(fits, depths, lambda fit: fit.along("test_error")[-1]),
    }


def judge_table_1(a: Arrays) -> list[Verdict]:
    """Residual nets fit better and test better; depth degrades plain nets."""
    loss, error, depth = a["loss"].mean(2), a["test_error"].mean(2), a["depth"]
    found = [
        Verdict(
            "training loss: residual < plain at every depth",
            "shape only (Table 1: .0723 .1225 .4950 against .0429 .0485 .0740)",
            _pairs(a["loss"], depth),
            bool((loss[1] < loss[0]).all()),
        ),
        Verdict(
            "test error: residual < plain at every depth",
            "shape only (Table 1: .1263 .1349 .2213 against .1131 .1143 .1182)",
            _pairs(a["test_error"], depth),
            bool((error[1] < error[0]).all()),
        ),
    ]
    if set(depth) >= {20, 44}:
        shallow, deep = list(depth).index(20), list(depth).index(44)
        growth = loss[:, deep] / loss[:, shallow]
        more = error[:, deep] - error[:, shallow]
        found += [
            Verdict(
                "loss at depth 44 over loss at depth 20: plain ≥ 1.5 times residual",
                "Table 1: 6.85 against 1.73",
                f"{growth[0]:.3g} against {growth[1]:.3g}",
                bool(growth[0] >= 1.5 * growth[1]),
            ),
            Verdict(
                "test error at depth 44 less that at depth 20",
                "plain > .02, residual < .02 (Table 1: .095 against .005)",
                f"{more[0]:.4f} against {more[1]:.4f}",
                bool(more[0] > 0.02 > more[1]),
            ),
        ]
    return found


def draw_table_1(figure: Figure, a: Arrays) -> None:
    """Loss and test error against depth."""
    axes = figure.subplots(1, 2)
    for ax, key, label in zip(
        axes, ("loss", "test_error"), ("training loss", "test error"), strict=True
    ):
        for kind, rows in zip(KINDS, a[key], strict=True):
            ax.plot(a["depth"], rows.mean(1), "o-", color=COLORS[kind], label=kind)
        ax.set(xlabel="depth", ylabel=label, xticks=a["depth"])
    axes[0].legend()


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
        _net("explicit", depth, seed, dtype),
        # In this type before 1 is added: added in float32, it would round at once.
        _net("transferred", depth, seed, dtype),
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
    data = _images(name, "train", batch * steps if name != "digits" else None, size)
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
        (kind, d): _trained(kind, d, device=device, **training)
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
    starts = {kind: [_net(kind, depth, seed) for seed in seeds] for kind in NETS}
    found = {
        "before": np.array([[_statistics(net) for net in starts[kind]] for kind in NETS]),
        "histogram_before": np.array([_histograms(starts[kind][0]) for kind in NETS]),
    }
    if trained_depth is not None:
        fits = _fits([trained_depth], training, device)
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
            f"{_spread(plain)}, {plain.min():.1f} to {plain.max():.1f}",
            bool((plain >= 62).all() and (plain <= 75).all()),
        ),
        Verdict(
            "L1 mass of ID entries before training, transferred residual net",
            "every seed in [1115, 1125] (1120 ID entries of 1)",
            f"{_spread(moved)}, {moved.min():.1f} to {moved.max():.1f}",
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
            _spread(count),
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
            [[[_penalty(_net(k, d, s)) for s in seeds] for d in depths] for k in KINDS]
        ),
    }
    if trained_depths:
        fits = _fits(trained_depths, training, device)
        found["trained_depth"] = np.array(trained_depths)
        found["after"] = _table(fits, trained_depths, lambda fit: _penalty(fit.net))
        found["transferred_after"] = np.array(
            [[_penalty(to_plain(f.net)) for f in fits["residual", d]] for d in trained_depths]
        )
        found["loss"] = _table(fits, trained_depths, lambda fit: fit.loss)
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
            _pairs(a["after"], a["trained_depth"]),
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


# -- Figure 8 --------------------------------------------------------------------------------------

LEVELS = (1.0, 0.5, 0.2)


def compute_figure_8(
    *, depths: Sequence[int], training: Mapping[str, Any] | None = None, device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Training risk and test error along training, mean over seeds."""
    fits = _fits(depths, training, device)

    def along(name: str) -> np.ndarray:
        rows = [[np.mean([f.along(name) for f in fits[k, d]], 0) for d in depths] for k in KINDS]
        return np.array(rows)

    risk, error = along("loss"), along("test_error")
    return {"depth": np.array(depths), "risk": risk, "test_error": error}


def _epochs_to(level: float, risk: np.ndarray) -> float:
    reached = np.flatnonzero(risk <= level)
    return float(reached[0] + 1) if len(reached) else np.inf


def _error_at(loss: np.ndarray, risk: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Test error at given training losses, between epochs in proportion."""
    order = np.argsort(risk)
    return np.interp(loss, risk[order], error[order])


def judge_figure_8(a: Arrays) -> list[Verdict]:
    """Residual nets fit as fast or faster, and test no worse at equal training loss."""
    times = np.array([[[_epochs_to(v, r) for v in LEVELS] for r in rows] for rows in a["risk"]])
    reached = np.isfinite(times).any(0)  # a level that neither reaches says nothing
    shown = "; ".join(
        f"depth {d}: " + ", ".join(f"{v:g} after {p:g} against {r:g}" for v, p, r in row)
        for d, row in zip(
            a["depth"],
            (zip(LEVELS, p, r, strict=True) for p, r in zip(*times, strict=True)),
            strict=True,
        )
    )
    gaps = []
    for (plain, residual), (error_p, error_r) in zip(
        np.swapaxes(a["risk"], 0, 1), np.swapaxes(a["test_error"], 0, 1), strict=True
    ):
        low, high = max(plain.min(), residual.min()), min(plain.max(), residual.max())
        common = np.linspace(low, high, 101)
        gap = _error_at(common, residual, error_r) - _error_at(common, plain, error_p)
        gaps.append(float(gap.mean()) if low < high else np.nan)
    return [
        Verdict(
            "epochs to training risk 1, .5, .2: residual no later than plain",
            "shape only, at every level that one of them reaches (Figure 8 a)",
            shown,
            bool((times[1] <= times[0])[reached].all() and reached.any()),
        ),
        Verdict(
            "test error at equal training loss, residual less plain, mean over common losses",
            "≤ .005 (Figure 8 b)",
            ", ".join(f"depth {d}: {gap:+.4f}" for d, gap in zip(a["depth"], gaps, strict=True)),
            bool(np.nanmax(gaps) <= 0.005),
        ),
    ]


def draw_figure_8(figure: Figure, a: Arrays) -> None:
    """Risk against epochs; test error against training loss."""
    left, right = figure.subplots(1, 2)
    for kind, risks, errors in zip(KINDS, a["risk"], a["test_error"], strict=True):
        for depth, risk, error, style in zip(
            a["depth"], risks, errors, ("-", "--", ":"), strict=False
        ):
            label = f"{kind} {depth}"
            left.semilogy(np.arange(1, len(risk) + 1), risk, style, color=COLORS[kind], label=label)
            right.semilogx(risk, error, style, marker=".", color=COLORS[kind])
    left.set(xlabel="epoch", ylabel="training risk")
    right.set(xlabel="training risk", ylabel="test error")
    left.legend()


# -- Figure 9 --------------------------------------------------------------------------------------


def compute_figure_9(
    *, depths: Sequence[int], training: Mapping[str, Any], device: str = "cpu"
) -> dict[str, np.ndarray]:
    """Training risk of plain nets from KWI and from transferred HMWI, all seeds."""
    starts = ("plain", "transferred")
    fits = {(k, d): _trained(k, d, device=device, **training) for k in starts for d in depths}
    risk = [[[fit.along("loss") for fit in fits[k, d]] for d in depths] for k in starts]
    return {"depth": np.array(depths), "risk": np.array(risk)}


def judge_figure_9(a: Arrays) -> list[Verdict]:
    """The start at the identity wins early and stays ahead; depth costs it less."""
    risk = a["risk"].mean(2)  # (starts, depths, epochs)
    gap = risk[0] - risk[1]
    late = gap[:, 2:]
    epochs = risk.shape[2]
    peak = gap.argmax(1) + 1
    last = a["risk"][..., -1]
    degradation = risk[:, -1, -1] - risk[:, 0, -1]
    return [
        Verdict(
            "risk from KWI less risk from transferred HMWI, mean over seeds, after epoch 2",
            "> 0 at every later epoch and depth (Figure 9 b)",
            f"least {late.min():.4f}, greatest {late.max():.4f}",
            bool((late > 0).all()),
        ),
        Verdict(
            "final risk at the greater depth less that at the smaller one: plain > transferred",
            "shape only (Figure 9 a: .13 to .46 against .055 to .083)",
            f"{degradation[0]:.4f} against {degradation[1]:.4f}; final risks "
            + _pairs(last, a["depth"]),
            bool(degradation[0] > degradation[1]),
        ),
        Verdict(
            "epoch of the largest gap",
            "in the first 15 % of training (Figure 9 b: about epoch 15 of 200)",
            ", ".join(f"depth {d}: {p} of {epochs}" for d, p in zip(a["depth"], peak, strict=True)),
            bool((peak <= np.ceil(0.15 * epochs)).all()),
        ),
    ]


def draw_figure_9(figure: Figure, a: Arrays) -> None:
    """Risk and risk gap against epochs; solid for the smaller depth, dotted for the greater."""
    left, right = figure.subplots(1, 2)
    epoch = np.arange(1, a["risk"].shape[-1] + 1)
    for i, (depth, style) in enumerate(zip(a["depth"], ("-", ":"), strict=True)):
        for kind, runs in zip(KINDS, a["risk"][:, i], strict=True):
            label = f"{'plain, KWI' if kind == 'plain' else 'transferred HMWI'}, {depth}"
            left.plot(epoch, runs.mean(0), style, color=COLORS[kind], label=label)
            left.fill_between(epoch, runs.min(0), runs.max(0), color=COLORS[kind], alpha=0.15)
        right.plot(epoch, np.diff(a["risk"][::-1, i].mean(1), axis=0)[0], style, color="k")
    left.set(xlabel="epoch", ylabel="training risk", yscale="log")
    right.set(xlabel="epoch", ylabel="risk gap")
    left.legend()


# -- the claims ------------------------------------------------------------------------------------

DIGITS = {"seeds": [0], "epochs": 7, "batch": 16, "name": "digits", "samples": 480, "size": 8}
GPU = {"seeds": [0, 1, 2], "epochs": 200}
EVERY_DEPTH = [20, 32, 44]

CLAIMS = [
    Claim(
        id="noise_stability/table_1",
        source=f"{PAPER}, Table 1",
        says="Residual nets reach lower training loss and test error than plain nets of equal "
        "depth, and lose less by depth.",
        settings={
            "quick": {
                "depths": [14, 20],
                "training": DIGITS,
                "scaled": "480 digits at 8 x 8, depth 14 and 20, 7 epochs, one seed",
            },
            "short": {"depths": [20], "scaled": f"{SHORT}, depth 20 only"},
            "paper": {"depths": EVERY_DEPTH, "training": GPU},
        },
        compute=compute_table_1,
        judge=judge_table_1,
        draw=draw_table_1,
    ),
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
    Claim(
        id="noise_stability/figure_8",
        source=f"{PAPER}, Figure 8",
        says="Residual nets fit faster than plain nets, and at equal training loss test no worse.",
        settings={
            "quick": {
                "depths": [14, 20],
                "training": DIGITS,
                "scaled": "480 digits at 8 x 8, depth 14 and 20, 7 epochs, one seed",
            },
            "short": {"depths": [20], "scaled": f"{SHORT}, depth 20 only"},
            "paper": {"depths": EVERY_DEPTH, "training": GPU},
        },
        compute=compute_figure_8,
        judge=judge_figure_8,
        draw=draw_figure_8,
    ),
    Claim(
        id="noise_stability/figure_9",
        source=f"{PAPER}, Figure 9",
        says="A plain net started at transferred weights fits better than one started by KWI, from "
        "the first epochs on and more so at greater depth.",
        settings={
            "quick": {
                "depths": [14, 20],
                "training": DIGITS,
                "scaled": "480 digits at 8 x 8, depth 14 and 20, 7 epochs, one seed",
            },
            "short": {
                "depths": [32, 44],
                "training": {"seeds": [0, 1, 2], "epochs": 14, "samples": 6000, "size": 16},
                "scaled": "6,000 images at 16 x 16, 14 epochs, 3 seeds",
            },
            "paper": {"depths": [32, 44], "training": {"seeds": list(range(10)), "epochs": 200}},
        },
        compute=compute_figure_9,
        judge=judge_figure_9,
        draw=draw_figure_9,
    ),
]  # fmt: skip
