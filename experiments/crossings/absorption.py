"""Shortcuts moved into the weights: which blocks allow it, and what it does to cushions."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below

ABSORB = "arXiv:2604.23705 (two layers, one width) and arXiv:2111.00687 (carried channels)"
NORMS = ("identity_removed", "effective")
LAYERS = ("first", "second")
CARRY: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "ReLU": (F.relu, 1.0), "GELU": (F.gelu, 1.0), "SiLU": (F.silu, 1.0),
    "LeakyReLU": (lambda t: F.leaky_relu(t, 0.2), 1.2),
}  # fmt: skip
FLAT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ReLU²": lambda gate, _: F.relu(gate) ** 2, "ReGLU": lambda gate, up: F.relu(gate) * up,
    "SwiGLU": lambda gate, up: F.silu(gate) * up, "GeGLU": lambda gate, up: F.gelu(gate) * up,
}  # fmt: skip


class ResidualBlock(nn.Module):
    """x + V φ(W x + b) + c, and a function behind it."""

    def __init__(
        self, width: int, hidden: int, function: Callable[[Tensor], Tensor],
        after: Callable[[Tensor], Tensor] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.first, self.second = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.function, self.after = function, after

    def forward(self, x: Tensor) -> Tensor:
        """Map (samples, width) to the same shape."""
        out = x + self.second(self.function(self.first(x)))
        return out if self.after is None else self.after(out)


def trained(seed: int, x: Tensor, y: Tensor, blocks: int, hidden: int, steps: int) -> nn.Sequential:
    """A net of blocks behind ReLUs, trained on all samples by Adam."""
    torch.manual_seed(seed)
    width, classes = x.shape[1], y.shape[1]
    parts = [ResidualBlock(width, hidden, F.relu, F.relu) for _ in range(blocks)]
    net = nn.Sequential(nn.Linear(width, width), nn.ReLU(), *parts, nn.Linear(width, classes))
    net.double()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y.argmax(1)).backward()
        optimizer.step()
    return net


def compute_cushions(
    *, seeds: Sequence[int], samples: int | None, blocks: int, hidden: int, steps: int
) -> dict[str, np.ndarray]:
    """Median cushions (seeds, blocks) of both nets, by norm and layer of the block."""
    data = rt.load_whitened("digits", components=10)
    x, y = data.x[:samples], data.y[:samples]
    gaps, correct = [], []
    found: dict[str, list[np.ndarray]] = {}
    for seed in seeds:
        net = trained(seed, x, y, blocks, hidden, steps)
        new = rt.absorb(net)
        gaps.append(rt.check_equivalence(net, new, x).outputs)
        correct.append(float((net(x).argmax(1) == y.argmax(1)).double().mean()))
        for name, each in (("shortcuts", net), ("absorbed", new)):
            cushions = rt.layer_cushions(each, x)
            medians = dict(zip(cushions.layers, cushions.median.tolist(), strict=True))
            for layer in LAYERS:
                names = [f"{block + 2}.{layer}" for block in range(blocks)]
                effective = np.array([medians[n] for n in names])
                # The ones that carry the stream are the ID entries of the new weights.
                whole = [each.get_parameter(f"{n}.weight").detach() for n in names]
                kept = [net.get_parameter(f"{n}.weight").detach() for n in names]
                ratio = [float(w.norm() / k.norm()) for w, k in zip(whole, kept, strict=True)]
                found.setdefault(f"{name}.{layer}.effective", []).append(effective)
                found.setdefault(f"{name}.{layer}.identity_removed", []).append(effective * ratio)
    stacked = {key: np.stack(rows) for key, rows in found.items()}
    return {"gap": np.array(gaps), "accuracy": np.array(correct), **stacked}


def _log_ratios(a: Arrays, layer: str, norm: str) -> np.ndarray:
    """Means over blocks of log(absorbed / with shortcuts), one for each seed."""
    ratio = a[f"absorbed.{layer}.{norm}"] / a[f"shortcuts.{layer}.{norm}"]
    return np.log(ratio).mean(1)


def judge_cushions(a: Arrays) -> list[Criterion]:
    """Require one function; test the change of cushions over seeds, by norm and layer."""
    worst = float(a["gap"].max())
    criteria = [
        Criterion(
            "outputs with and without shortcuts", "relative difference <= 1e-12 (rounding)",
            f"at most {worst:.1e} over {len(a['gap'])} nets of accuracy {a['accuracy'].min():.2f} "
            "or more", worst <= 1e-12,
        )
    ]  # fmt: skip
    for layer in LAYERS:
        words = f"log of the {layer} layer's cushion, absorbed over with shortcuts, mean of blocks"
        criteria += [
            above(f"{words}, identity removed", _log_ratios(a, layer, "identity_removed"),
                  source="no change would give 0; ours"),
            below(f"{words}, whole weight", _log_ratios(a, layer, "effective"),
                  source="no change would give 0; ours"),
        ]  # fmt: skip
    return criteria


def draw_cushions(figure: Figure, a: Arrays) -> None:
    """Cushions of every block without shortcuts against those with them."""
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, norm in zip(axes, NORMS, strict=True):
        for layer, marker in zip(LAYERS, "o^", strict=True):
            x, y = (a[f"{name}.{layer}.{norm}"].ravel() for name in ("shortcuts", "absorbed"))
            ax.plot(x, y, marker, mfc="none", markersize=4, label=f"{layer} layer of a block")
        low, high = ax.get_xlim()
        ax.axline((low, low), (high, high), color="grey", lw=0.8)
        ax.set(title=f"norm: {norm.replace('_', ' ')}", xlabel="layer cushion with shortcuts")
    axes[0].set_ylabel("layer cushion, shortcuts absorbed")
    axes[0].legend(frameon=False, fontsize="small")


def compute_absorbability(
    *, seeds: Sequence[int], width: int, hidden: Sequence[int], samples: int
) -> dict[str, np.ndarray]:
    """Answers, further units, gaps and distances of random and of built blocks."""
    numbers: dict[str, list[list[float]]] = {"generic": [], "built": []}
    slopes = []
    for seed in seeds:
        source = torch.Generator().manual_seed(seed)
        for function, kappa in CARRY.values():
            for h in hidden:
                up, down, bias, offset = (
                    torch.randn(*shape, generator=source, dtype=torch.float64)
                    for shape in ((h, width), (width, h), (h,), (width,))
                )
                for kind in ("generic", "built") if h >= width else ("generic",):
                    if kind == "built":  # κ V[:, S] W[S, :] = -I for the first units
                        rest = torch.eye(width).double() / kappa + down[:, :width] @ up[:width]
                        down[:, :width] -= rest @ torch.linalg.inv(up[:width])
                    block = ResidualBlock(width, h, function).double()
                    block.load_state_dict({
                        "first.weight": up, "first.bias": bias, "second.weight": down,
                        "second.bias": offset,
                    })  # fmt: skip
                    listed, new = rt.shortcuts(block), rt.absorb(block)
                    x = torch.randn(samples, width, generator=source, dtype=torch.float64)
                    with torch.no_grad():
                        exact, found = block(x), new(x)
                    numbers[kind].append([
                        h, listed.extra[0], float((found - exact).abs().max() / exact.abs().max()),
                        listed.distance_low[0], listed.distance_high[0],
                    ])  # fmt: skip
        for combine in FLAT.values():
            gate, up, down = (
                torch.randn(*shape, generator=source, dtype=torch.float64)
                for shape in ((hidden[0], width), (hidden[0], width), (width, hidden[0]))
            )
            slope = torch.autograd.functional.jacobian(
                lambda x, g=gate, u=up, v=down, both=combine: v @ both(g @ x, u @ x),
                torch.zeros(width, dtype=torch.float64),
            )
            slopes.append(float(slope.abs().max()))
    arrays = {kind: np.array(rows) for kind, rows in numbers.items()}
    return {**arrays, "slopes": np.array(slopes), "width": np.array(width)}


def judge_absorbability(a: Arrays) -> list[Criterion]:
    """Compare widths with the theorem's, gaps with rounding, bounds with zero."""
    d, generic, built = int(a["width"]), a["generic"], a["built"]
    h, extra, gap, low, _ = generic.T
    needed = np.maximum(d, 2 * d - h)
    right = int((extra == needed).sum())
    return [
        Criterion("random blocks: further units", f"max(d, 2d - h) in all {len(h)} (theorem)",
                  f"in {right}", right == len(h)),
        Criterion("random blocks: lower bound of the distance to absorption at the same width",
                  "above 0 in all (theorem: no set of units suffices)",
                  f"{low.min():.3g} to {low.max():.3g}", bool(low.min() > 0)),
        Criterion("blocks with κ V[:, S] W[S, :] = -I: further units", "none (theorem)",
                  f"{int(built[:, 1].max())} at most in {len(built)}", not built[:, 1].any()),
        Criterion("outputs with and without shortcut, all blocks", "<= 1e-11 (rounding by the "
                  "inverse of a random matrix)", f"{max(gap.max(), built[:, 2].max()):.1e}",
                  max(gap.max(), built[:, 2].max()) <= 1e-11),
        Criterion("ReLU², ReGLU, SwiGLU, GeGLU without biases: slope of the branch at 0",
                  "0 (theorem: no width gives the identity)", f"{a['slopes'].max():.1g}",
                  not a["slopes"].any()),
    ]  # fmt: skip


def draw_absorbability(figure: Figure, a: Arrays) -> None:
    """Bounds of the distance to absorption against the width."""
    ax = figure.subplots()
    h, _, _, low, high = a["generic"].T
    # Side by side: where both bounds agree, neither hides the other.
    ax.plot(h / 1.06, high, "^", mfc="none", label="upper bound, rounding and flips")
    ax.plot(h * 1.06, low, "v", mfc="none", label="lower bound, box relaxation")
    ax.axhline(0, color="grey", lw=0.8)
    ax.set(xscale="log", xlabel="hidden units")
    ax.set_ylabel("distance to absorption at the same width")
    ax.set_xticks(np.unique(h), [f"{units:g}" for units in np.unique(h)])
    ax.minorticks_off()
    ax.legend(frameon=False)


_NET = {"blocks": 4, "hidden": 20}

CLAIMS = [
    Claim(
        id="crossings/absorbed_cushions",
        kind="law",
        source=f"ours; nets of {ABSORB}, cushions and both norms of arXiv:1905.10944",
        says="A net whose shortcuts around two layers were moved into the weights computes the "
        "same function, and has other layer cushions: larger ones with the identity removed from "
        "the norm of the weight, smaller ones with the whole weight.",
        settings={
            "quick": {"seeds": [0, 1], "samples": 300, "steps": 40, **_NET,
                      "scaled": "two seeds, 300 digits, 40 steps"},
            "paper": {"seeds": list(range(20)), "samples": None, "steps": 400, **_NET},
        },
        compute=compute_cushions, judge=judge_cushions, draw=draw_cushions,
    ),
    Claim(
        id="crossings/absorbability",
        kind="law",
        source=f"ours on {ABSORB}, known from a summary only: widths, bounds and theorems on flat "
        "branches are derived in the library",
        says="For units with φ(t) - φ(-t) = κ t a shortcut around two layers enters at the same "
        "width if and, for generic weights, only if flipped units leave none, and max(d, 2d - h) "
        "further units always suffice; branches flat at zero never hold it without biases.",
        settings={
            "quick": {"seeds": [0], "width": 3, "hidden": [2, 5], "samples": 50,
                      "scaled": "one seed, width 3"},
            "paper": {"seeds": list(range(10)), "width": 8, "hidden": [2, 4, 8, 16, 32],
                      "samples": 1000},
        },
        compute=compute_absorbability, judge=judge_absorbability, draw=draw_absorbability,
    ),
]  # fmt: skip
