"""Nets before training: Figures 4 and 5, and the initial losses of Table 4."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.noise_stability.nets import COLORS, EVERY_DEPTH, KINDS, PAPER, start_net
from experiments.noise_stability.weights import one_draw, penalty
from experiments.trainings import image_set
from resid_theory.identity import id_mask

GROUPS = (16, 32, 64)  # channels; the sides of the maps are 32, 16 and 8
EXACT = 1e-12  # relative; round-off of one convolution in float64

# -- Figures 4 and 5 -------------------------------------------------------------------------------


def compute_architecture(*, depths: Sequence[int], seed: int) -> dict[str, np.ndarray]:
    """Count layers, weights and multiplications by depth; compare blocks with Figure 5."""
    arrays: dict[str, np.ndarray] = {"depth": np.array(depths)}
    for kind in (*KINDS, "dominant"):
        nets = [start_net(kind, depth, seed) for depth in depths]
        arrays[f"{kind}.parameters"] = np.array([_parameters(net) for net in nets])
        arrays[f"{kind}.layers"] = np.array([len(_layers(net)) for net in nets])
        arrays[f"{kind}.multiplications"] = np.array([_multiplications(net) for net in nets])
        arrays[f"{kind}.shapes"] = np.array([_shapes(net) for net in nets])
    nets = {
        kind: [start_net(kind, depth, seed, torch.float64) for depth in depths] for kind in KINDS
    }
    masks = [id_mask(net) for net in nets["residual"]]
    arrays["entries"] = np.array([sum(int(m.sum()) for m in each.values()) for each in masks])
    arrays["with_entries"] = np.array([len(each) for each in masks])
    for kind, rows in nets.items():
        arrays[f"{kind}.gap"] = np.array([_gap(net, kind == "residual") for net in rows])
    full = rt.full_net(20, generator=seed)
    blocks = [block for block in full.children() if hasattr(block, "branch")]
    inside = [sum(isinstance(layer, nn.Conv2d) for layer in block.branch) for block in blocks]
    arrays["full"] = np.array([len(blocks), min(inside), max(inside), len(_layers(full))])
    arrays["led_to"] = _led_to(start_net("residual", depths[0], seed))
    return arrays


def _parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _layers(net: nn.Module) -> list[nn.Module]:
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]


def _multiplications(net: nn.Module) -> int:
    """Multiplications of one image of 32 x 32 in convolutions and the classifier."""
    with FlopCounterMode(display=False) as counted:
        net(torch.zeros(1, 3, 32, 32))
    return counted.get_total_flops() // 2


def _shapes(net: nn.Sequential) -> list[tuple[int, ...]]:
    """Convolutions, channels and sides of the maps of each group."""
    x, sizes = torch.zeros(1, 3, 32, 32), []
    for name, layer in net.named_children():
        x = layer(x)
        if name.startswith("conv") and name != "conv0":
            sizes.append(tuple(x.shape[1:3]))
    return [(sizes.count(size), *size) for size in dict.fromkeys(sizes)]


@torch.no_grad()
def _gap(net: nn.Sequential, residual: bool) -> float:
    """Largest relative difference between a block and Figure 5 written out, on its own input."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 32, 32, generator=source, dtype=torch.float64)
    weights, largest = dict(net.named_parameters()), 0.0
    for name, layer in net.named_children():
        if name.startswith("conv") and name != "conv0":
            end = "parametrizations.weight.original" if residual else "weight"
            kernel, bias = weights[f"{name}.{end}"], weights[f"{name}.bias"]
            wanted = _block(x, kernel, bias, residual)
            found = F.relu(layer(x))
            largest = max(largest, float((found - wanted).abs().max() / wanted.abs().max()))
        x = layer(x)
    return largest


def _block(x: Tensor, kernel: Tensor, bias: Tensor, residual: bool) -> Tensor:
    """ReLU(K * x + b), with + Id(x) in a residual net; doubling blocks have stride 2."""
    repeats = len(kernel) // x.shape[1]
    y = F.conv2d(x, kernel, bias, stride=repeats, padding=1)
    return F.relu(y + torch.cat([x[:, :, ::repeats, ::repeats]] * repeats, 1) if residual else y)


@torch.no_grad()
def _led_to(net: nn.Sequential) -> np.ndarray:
    """Final features that the identities lead to from a channel of each group, (groups, 2).

    Fewest and most of the channels: the paths of Appendix D that share it.
    """
    layers = dict(net.named_children())
    for name, parameter in net.named_parameters():
        if name.startswith("conv"):
            parameter.zero_()  # of a residual net the weight is V
    starts, rows = [name for name in layers if name.startswith("conv")], []
    for group, channels in enumerate(GROUPS):
        x = torch.eye(channels)[:, :, None, None].repeat(1, 1, 32 >> group, 32 >> group)
        # Behind the first convolution of the group, which doubles channels in all but the first.
        first = 1 + group * (len(starts) - 1) // 3
        for name in list(layers)[list(layers).index(starts[first]) + 1 :]:
            if not isinstance(layers[name], nn.Linear):
                x = layers[name](x)
        led = (x.flatten(1) > 0).sum(1)
        rows.append([int(led.min()), int(led.max())])
    return np.array(rows)


def judge_architecture(a: Arrays) -> list[Criterion]:
    """Require the structure of Appendix A, and that identities add neither weights nor cost."""
    n = [(depth - 2) // 3 for depth in a["depth"]]
    shapes = [[(count, c, 32 >> g) for g, c in enumerate(GROUPS)] for count in n]
    entries = [count * sum(GROUPS) for count in n]
    # One 3 x 3 filter a channel and a bias, except in the stem and the classifier.
    small = [(27 + 1) * 16 + 10 * count * sum(GROUPS) + 65 * 10 for count in n]
    both = [a[f"{kind}.{key}"] for key in ("multiplications", "parameters") for kind in KINDS]
    blocks, fewest, most, layers = a["full"]
    shown = {key: ", ".join(f"{x:,}" for x in a[key]) for key in ("entries", "dominant.parameters")}
    gap = max(float(a[f"{kind}.gap"].max()) for kind in KINDS)
    return [
        Criterion(
            "depth is 3n + 2 for n = " + ", ".join(map(str, n)),
            "a first convolution, 3n blocks, a classifier (Appendix A)",
            ", ".join(str(count) for count in a["plain.layers"]),
            all((a[f"{kind}.layers"] == a["depth"]).all() for kind in KINDS),
        ),
        Criterion(
            "channels and sides of the groups, n convolutions each",
            "16 x 32², 32 x 16², 64 x 8² (Appendix A)",
            str(a["residual.shapes"][0].tolist()),
            all(bool((a[f"{kind}.shapes"] == shapes).all()) for kind in KINDS),
        ),
        Criterion(
            "blocks of one convolution with a bias and without BatchNorm",
            "parameters of 3 x 3 kernels, biases and the classifier only (section 2)",
            ", ".join(f"{x:,}" for x in a["plain.parameters"]),
            a["plain.parameters"].tolist() == [_counted(count) for count in n],
        ),
        Criterion(
            "blocks written out: ReLU(K * x + b), residual ReLU(K * x + b + Id(x))",
            f"≤ {EXACT:g}, relative (Figure 5)",
            f"{gap:.1e}",
            gap <= EXACT,
        ),
        Criterion(
            "residual less plain: ID entries, in the 3n blocks only",
            "one for each output channel of a block (Appendix A)",
            shown["entries"],
            a["entries"].tolist() == entries and a["with_entries"].tolist() == [3 * x for x in n],
        ),
        Criterion(
            "plain and residual nets: multiplications, and parameters",
            "equal (abstract: the same computational cost)",
            ", ".join(f"{x:,}" for x in both[0]),
            bool((both[0] == both[1]).all() and (both[2] == both[3]).all()),
        ),
        Criterion(
            "dominant-path nets: parameters",
            "of one filter for each output channel of a block (Appendix D.3)",
            shown["dominant.parameters"],
            a["dominant.parameters"].tolist() == small,
        ),
        Criterion(
            "full nets of depth 20: blocks, and convolutions in each",
            "9 of 2 (section 5)",
            f"{blocks} of {fewest} to {most}",
            (blocks, fewest, most, layers) == (9, 2, 2, 20),
        ),
        Criterion(
            "paths of the identities that share a channel, by group",
            "1 in the last group (Appendix D: disjoint); 4 and 2 before it, as 64 paths have 16 "
            "and 32 channels",
            "; ".join(f"{few} to {many}" for few, many in a["led_to"].tolist()),
            a["led_to"].tolist() == [[64 // c, 64 // c] for c in GROUPS],
        ),
    ]


def _counted(n: int) -> int:
    """Parameters of a plain net, by hand: n blocks in a group, the first from fewer channels."""
    kernels = 9 * sum(c * (before + (n - 1) * c) for before, c in zip((16, 16, 32), GROUPS))  # noqa: B905
    return 28 * 16 + kernels + n * sum(GROUPS) + 65 * 10


def draw_architecture(figure: Figure, a: Arrays) -> None:
    """Draw the net of the first depth (Figure 4) and both blocks (Figure 5)."""
    top, bottom = figure.subplots(2, 1, height_ratios=(1, 1.2))
    n = int(a["residual.shapes"][0][0][0])
    boxes = ["image\n3 x 32²", "conv 3x3\n16 x 32²"]
    boxes += [f"{n} blocks\n{c} x {32 >> g}²" for g, c in enumerate(GROUPS)]
    _chain(top, [*boxes, "mean\n64", "classifier\n10"], "#56B4E9")
    top.set_title(f"Figure 4: depth {a['depth'][0]}, {a['plain.parameters'][0]:,} parameters")
    for row, kind in enumerate(KINDS):
        steps = ["x", "K * x + b", "+ Id(x)", "ReLU", "x'"]
        if kind == "plain":
            steps.pop(2)
        _chain(bottom, steps, COLORS[kind], row=1.5 - 1.5 * row, label=kind)
    arrow = dict(arrowstyle="->", mutation_scale=12, connectionstyle="arc3,rad=-0.3")
    bottom.add_patch(FancyArrowPatch((0, 0.32), (2, 0.32), **arrow))
    bottom.set(ylim=(-0.6, 2.1), title="Figure 5: the blocks")


def _chain(
    ax: object, labels: Sequence[str], color: str, row: float = 0.0, label: str = ""
) -> None:
    """Boxes from left to right, joined by arrows."""
    for place, text in enumerate(labels):
        kind = dict(boxstyle="round,pad=0.02", facecolor=color if 0 < place else "white", alpha=0.6)
        ax.add_patch(FancyBboxPatch((place - 0.36, row - 0.3), 0.72, 0.6, **kind))
        ax.text(place, row, text, ha="center", va="center", fontsize="small")
        if place:
            ends = (place - 0.62, row), (place - 0.38, row)
            ax.add_patch(FancyArrowPatch(*ends, arrowstyle="->", mutation_scale=9))
    ax.text(-0.55, row, label, ha="right", va="center")
    ax.set(xlim=(-1.3, 6.6), ylim=(-0.5, 0.5))
    ax.axis("off")


# -- initial losses of Table 4 ---------------------------------------------------------------------

SHOWN = 2.4
LOSSES = {"plain": {20: 2.309, 32: 2.308, 44: 2.309}, "residual": {20: 2.305, 32: 2.305, 44: 2.306}}


def compute_initial_losses(
    *, depths: Sequence[int], seeds: Sequence[int], name: str, images: int, size: int
) -> dict[str, np.ndarray]:
    """Compute losses and penalties before training, (kinds, depths, seeds).

    The images are the first of each class, equally many: the classes of the whole set are so, and
    the loss of a net that knows nothing depends on the shares of the classes.
    """
    found = image_set(name, "train", None, size)
    places = [np.flatnonzero(found.labels.numpy() == label)[: images // 10] for label in range(10)]
    chosen = torch.as_tensor(np.concatenate(places))
    x, labels = found.inputs(found.pixels[chosen], torch.float32), found.labels[chosen]

    @torch.no_grad()
    def loss(net: nn.Module) -> float:
        outputs = torch.cat([net(batch) for batch in x.split(100)])
        return float(F.cross_entropy(outputs.double(), labels))

    nets = [[[start_net(kind, d, s) for s in seeds] for d in depths] for kind in KINDS]
    rows = {"loss": loss, "penalty": penalty}
    measured = {
        key: np.array([[[of(net) for net in by_depth] for by_depth in kind] for kind in nets])
        for key, of in rows.items()
    }
    return {"depth": np.array(depths), **measured}


def judge_initial_losses(a: Arrays) -> list[Criterion]:
    """Require that the printed losses, of one net each, are draws of the law."""
    found = [
        one_draw(
            f"loss of {kind} nets of depth {depth} before training",
            a["loss"][row, column],
            LOSSES[kind][depth],
            1e-3,
            "Table 4",
        )
        for row, kind in enumerate(KINDS)
        for column, depth in enumerate(a["depth"].tolist())
        if depth in LOSSES[kind]
    ]
    ratio = (a["loss"] / a["penalty"]).min()
    return [
        *found,
        Criterion(
            "loss over penalty before training, the least of all nets",
            "> 1000 (Table 4: 2.309 against 1.238e-3)",
            f"{ratio:.0f}",
            ratio > 1000,
        ),
    ]


def draw_initial_losses(figure: Figure, a: Arrays) -> None:
    """Plot the losses of all seeds, and the paper's."""
    ax = figure.subplots()
    for kind, rows in zip(KINDS, a["loss"], strict=True):
        ax.plot(a["depth"], rows, ".", color=COLORS[kind], alpha=0.5)
        ax.plot(a["depth"], np.median(rows, 1), "-", color=COLORS[kind], label=f"{kind}, median")
        ax.plot(*zip(*LOSSES[kind].items(), strict=True), "x", color=COLORS[kind], ms=9, mew=2,
                label=f"{kind}, Table 4")  # fmt: skip
    ax.axhline(np.log(10), color="0.6", linestyle=":", label="ln 10: knows nothing")
    ax.set(xlabel="depth (layers)", ylabel="loss before training (nats)", xticks=a["depth"])
    beyond = a["loss"][a["loss"] > SHOWN]
    if len(beyond):  # plain nets have a heavy tail
        ax.set(ylim=(2.295, SHOWN), title=f"{len(beyond)} draws above, to {beyond.max():.1f}")
    ax.legend()


# -- the claims ------------------------------------------------------------------------------------

CLAIMS = [
    Claim(
        id="noise_stability/figures_4_and_5",
        source=f"{PAPER}, Figures 4 and 5, Appendix A, section 5",
        says="Plain and residual nets have 3n + 2 layers in three groups; they differ by the "
        "identity in the 3n blocks only, which adds neither weights nor multiplications.",
        settings={
            "quick": {"depths": [20], "seed": 0, "scaled": "depth 20"},
            "paper": {"depths": EVERY_DEPTH, "seed": 1},
        },
        compute=compute_architecture,
        judge=judge_architecture,
        draw=draw_architecture,
    ),
    Claim(
        id="noise_stability/initial_losses",
        source=f"{PAPER}, Table 4, losses before training",
        says="Before training the loss is 2.309, 2.308 and 2.309 in plain nets and 2.305, 2.305 "
        "and 2.306 in residual nets of depth 20, 32 and 44, thousands of times the penalty.",
        settings={
            "quick": {
                "depths": [20], "seeds": [0, 1], "name": "digits", "images": 20, "size": 8,
                "scaled": "20 digits at 8 x 8, depth 20, two seeds",
            },
            "short": {
                "depths": EVERY_DEPTH, "seeds": list(range(8)), "name": "cifar10", "images": 500,
                "size": 32, "scaled": "500 of the 50,000 images, 50 of each class",
            },
        },
        compute=compute_initial_losses,
        judge=judge_initial_losses,
        draw=draw_initial_losses,
    ),
]  # fmt: skip
