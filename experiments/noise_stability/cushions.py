"""Cushions: Figure 3 and section 5.

The paper divides by the Frobenius norm of the weights with the identity removed. This choice alone
causes most of the difference between the two nets, so both norms are measured and judged.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim, Verdict
from experiments.noise_stability.nets import COLORS, KINDS, PAPER
from experiments.parts import Each, in_turn
from experiments.shipped import SHORT_EPOCHS, listed_nets
from experiments.trainings import image_set
from resid_theory.stability import compare_cushions

NORMS = ("identity_removed", "effective")


# -- Figure 3 --------------------------------------------------------------------------------------


def compute_figure_3(
    *,
    depth: int,
    states: Sequence[str],
    dataset: str,
    samples: int,
    size: int,
    layer: str,
    epochs: int = SHORT_EPOCHS,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute cushions of plain and residual nets, by layer and sample, with both norms."""
    names = {kind: f"simplified_{kind}_{depth}" for kind in KINDS}
    nets = listed_nets(list(names.values()), states, each, device, epochs=epochs)
    data = image_set(dataset, "train", samples, size)
    found: dict[str, np.ndarray] = {"samples": np.array(samples), "layer": np.array(layer)}
    for state in states:
        cushions = {kind: rt.layer_cushions(nets[names[kind], state], data) for kind in KINDS}
        for norm in NORMS:
            plain, residual = (cushions[kind].under(norm) for kind in KINDS)
            # conv0 and fc have no identity; they are measured and compared like the other layers.
            compared = compare_cushions(residual, plain)
            found[f"{state}.{norm}.median"] = compared.medians.numpy()
            found[f"{state}.{norm}.delta"] = compared.cliffs_delta.numpy()
            found[f"{state}.{norm}.p"] = compared.adjusted_p_values.numpy()
            row = list(compared.layers).index(layer)
            shown = (residual.values[row], plain.values[row])
            found[f"{state}.{norm}.shown"] = np.array([values.numpy() for values in shown])
        found["layers"] = np.array(compared.layers)
    return found


def judge_figure_3(a: Arrays) -> list[Verdict]:
    """Require residual above plain with the paper's norm, less often with the effective norm."""
    verdicts = []
    layer, count = str(a["layer"]), int(a["samples"])
    for state in ("trained", "initial"):
        if f"{state}.effective.median" not in a:
            continue
        above = {
            norm: int(np.sum(np.diff(a[f"{state}.{norm}.median"][:, ::-1])[:, 0] > 0))
            for norm in NORMS
        }
        layers = len(a["layers"])
        row = list(a["layers"]).index(layer)
        delta = a[f"{state}.identity_removed.delta"][row]
        p = a[f"{state}.identity_removed.p"][row]
        medians = a[f"{state}.identity_removed.median"][row]
        verdicts += [
            Verdict(
                f"{state}: layers whose median cushion is greater in the residual net, "
                "identity removed from the norm",
                "all but at most 2 (Figure 3, the paper's norm)",
                f"{above['identity_removed']} of {layers} ({count} samples)",
                above["identity_removed"] >= layers - 2,
            ),
            Verdict(
                f"{state}: Cliff's delta in {layer}, the layer shown",
                "> 0",
                f"{delta:.3f} (Holm p {p:.1e}); medians {medians[0]:.3f} against {medians[1]:.3f}",
                bool(delta > 0),
            ),
            Verdict(
                f"{state}: the same count by the norm of the effective weights",
                "fewer layers than with the identity removed: the norm makes part of the effect",
                f"{above['effective']} of {layers}",
                above["effective"] < above["identity_removed"],
            ),
        ]
    return verdicts


def draw_figure_3(figure: Figure, a: Arrays) -> None:
    """Plot histograms of one layer and medians of all layers, for both norms."""
    state = "trained" if "trained.effective.median" in a else "initial"
    axes = figure.subplots(2, 2)
    for column, norm in enumerate(NORMS):
        residual, plain = a[f"{state}.{norm}.shown"]
        edges = np.linspace(min(residual.min(), plain.min()), max(residual.max(), plain.max()), 41)
        for kind, values in (("plain", plain), ("residual", residual)):
            axes[0, column].hist(values, edges, color=COLORS[kind], alpha=0.6, label=kind)
        title = f"{state}, norm: {norm.replace('_', ' ')}"
        axes[0, column].set(xlabel=f"cushion of {a['layer']}", ylabel="samples", title=title)
        for kind, values in zip(("residual", "plain"), a[f"{state}.{norm}.median"].T, strict=True):
            axes[1, column].plot(values, ".-", color=COLORS[kind], label=kind)
        axes[1, column].set(xlabel="layer", ylabel="median cushion")
    axes[0, 0].legend()


# -- section 5 -------------------------------------------------------------------------------------


def compute_section_5(
    *,
    states: Sequence[str],
    dataset: str,
    samples: int,
    size: int,
    modes: Sequence[str] = ("eval", "batch"),
    probes: int = 10,
    epochs: int = SHORT_EPOCHS,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute interlayer cushions of the nine blocks by state and BatchNorm mode."""
    names = [f"full_{kind}_20" for kind in KINDS]
    nets = listed_nets(names, states, each, device, epochs=epochs)
    data = image_set(dataset, "train", samples, size)
    found: dict[str, np.ndarray] = {"samples": np.array(samples)}
    for state in states:
        for mode in modes:
            blocks = []
            for name in names:
                cushions = rt.stability.block_cushions(
                    nets[name, state], data, kappa="spatial", method="probes", probes=probes,
                    generator=0, batchnorm=mode,
                )  # fmt: skip
                blocks.append(cushions.values.numpy())
            found[f"{state}.{mode}"] = np.array(blocks)  # (kinds, blocks, samples)
    return found


def judge_section_5(a: Arrays) -> list[Verdict]:
    """Compare with the paper's value; the order depends on the BatchNorm mode."""
    verdicts = []
    for key in sorted(set(a) - {"samples"}, reverse=True):
        state, mode = key.split(".")
        plain, residual = np.nanmean(a[key], axis=2)
        spread = f"{residual.min():.3f} to {residual.max():.3f} over the blocks"
        larger = int(np.sum(residual > plain))
        if mode == "eval":
            verdicts.append(
                Verdict(
                    f"{state}, BatchNorm in eval mode: mean cushion of residual blocks",
                    "some block in [.1, .35] (the paper: .20 ± .0024 for one of nine blocks)",
                    f"{spread}; plain {plain.min():.3f} to {plain.max():.3f}",
                    bool(((residual >= 0.1) & (residual <= 0.35)).any()),
                )
            )
            verdicts.append(
                Verdict(
                    f"{state}, BatchNorm in eval mode: residual > plain",
                    "in most blocks (the paper: much bigger; its mode of BatchNorm is not known)",
                    f"{larger} of {len(plain)} blocks",
                    2 * larger > len(plain),
                )
            )
        else:
            verdicts.append(
                Verdict(
                    f"{state}, BatchNorm with each sample's own statistics: residual > plain",
                    "in every block (a branch that does not see its input's scale has Jx = 0)",
                    f"{larger} of {len(plain)} blocks; {spread}; plain at most {plain.max():.1e}",
                    larger == len(plain),
                )
            )
    return verdicts


def draw_section_5(figure: Figure, a: Arrays) -> None:
    """Plot the mean cushions of the nine blocks."""
    keys = sorted(set(a) - {"samples"})
    axes = np.atleast_1d(figure.subplots(1, len(keys)))
    for ax, key in zip(axes, keys, strict=True):
        for kind, values in zip(KINDS, a[key], strict=True):
            blocks = np.arange(1, len(values) + 1)
            ax.plot(blocks, np.nanmean(values, axis=1), "o-", color=COLORS[kind], label=kind)
        ax.set(xlabel="block", ylabel="interlayer cushion", yscale="log", title=key)
    axes[0].legend()


_INITIAL = "initial weights only"


def _figure_3(name: str, *, depth: int, layer: str) -> Claim:
    """The claim at one depth; the shown layer is just past the middle."""
    return Claim(
        id=f"noise_stability/{name}",
        source=f"{PAPER}, Figure 3",
        says="Layer cushions of trained residual nets are greater than those of plain nets"
        + ("." if depth == 20 else f", depth {depth}."),
        settings={
            "quick": {
                "depth": depth, "states": ["initial"], "dataset": "digits", "samples": 100,
                "size": 16, "layer": layer, "scaled": f"{_INITIAL}, digits at 16 x 16",
            },
            "short": {
                "depth": depth, "states": ["trained", "initial"], "dataset": "cifar10",
                "samples": 2000, "size": 32, "layer": layer,
                "scaled": f"nets trained for 15 of 200 epochs, depth {depth} only, 2,000 images",
            },
        },
        compute=compute_figure_3,
        judge=judge_figure_3,
        draw=draw_figure_3,
    )  # fmt: skip


CLAIMS = [
    _figure_3("figure_3", depth=20, layer="conv10"),
    _figure_3("figure_3_deeper", depth=32, layer="conv16"),
    Claim(
        id="noise_stability/section_5",
        source=f"{PAPER}, section 5",
        says="Interlayer cushions of residual blocks are much greater than those of plain blocks.",
        settings={
            "quick": {
                "states": ["initial"], "dataset": "digits", "samples": 4, "size": 16, "probes": 5,
                "scaled": f"{_INITIAL}, four digits at 16 x 16",
            },
            "short": {
                "states": ["trained", "initial"], "dataset": "cifar10", "samples": 50, "size": 32,
                "scaled": "nets trained for 15 of 200 epochs, 50 images",
            },
        },
        compute=compute_section_5,
        judge=judge_section_5,
        draw=draw_section_5,
    ),
]  # fmt: skip
