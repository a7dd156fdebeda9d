"""Cushions and dominant flows, as in the noise-stability paper, of DiracNets.

Neither paper makes a prediction. The claims are identities of our own, which no data can refute,
only a fault of the code; the measured numbers are reported with them.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.crossings.curvature import COLORS, DIRACNETS, NORMS, STABILITY
from experiments.parts import Each, in_turn
from experiments.shipped import SHORT_EPOCHS, listed_nets
from experiments.trainings import FULL_EPOCHS, image_set
from resid_theory.identity import identity_removed, layer_identity
from resid_theory.stability import STATISTICS

NETS = {"plain": "plain_28_1", "dirac": "diracnet_28_1"}


def _states(a: Arrays, ending: str) -> list[str]:
    return sorted({key.split(".")[0] for key in a if key.endswith(ending)})


def compute_cushions(
    *,
    states: Sequence[str],
    dataset: str,
    samples: int,
    size: int,
    epochs: int = SHORT_EPOCHS,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute cushions in float64 by layer and sample, with both norms."""
    listed = listed_nets(list(NETS.values()), states, each, device, epochs=epochs)
    data = image_set(dataset, "train", samples, size)
    arrays: dict[str, np.ndarray] = {"samples": np.array(samples)}
    for state in states:
        for kind, name in NETS.items():
            net = listed[name, state].double()
            found = rt.layer_cushions(net, data)
            ratios = found.identity_removed / found.effective
            modules = [net.get_submodule(layer) for layer in found.layers]
            with torch.no_grad():
                norms = [float(m.weight.norm() / identity_removed(m).norm()) for m in modules]
            arrays |= {
                f"{state}.{kind}.median": torch.stack(
                    [found.under(norm).median for norm in NORMS], 1
                ).numpy(),
                f"{state}.{kind}.ratio": torch.stack([ratios.amin(1), ratios.amax(1)], 1).numpy(),
                f"{state}.{kind}.norms": np.array(norms),
                "layers": np.array(found.layers),
            }
    return arrays


def judge_cushions(a: Arrays) -> list[Criterion]:
    """Require that the two conventions differ by the norms only; report the greater net."""
    criteria = []
    for state in _states(a, ".median"):
        plain, dirac = (a[f"{state}.{kind}.median"] for kind in NETS)
        norms = a[f"{state}.dirac.norms"][:, None]
        gap = float(np.abs(a[f"{state}.dirac.ratio"] / norms - 1).max())
        above = [int(np.sum(dirac[:, column] > plain[:, column])) for column in range(len(NORMS))]
        criteria.append(
            Criterion(
                f"{state}: cushion without over cushion with the identity in the norm, Dirac net",
                "the ratio of the two norms in every layer and sample, to 1e-10 (definition)",
                f"off by at most {gap:.1e}; ratios {norms[1:-1].min():.2f} to {norms.max():.2f}; "
                f"Dirac median above plain in {above[0]} of {len(plain)} layers with the identity "
                f"removed, in {above[1]} by the effective norm ({int(a['samples'])} samples)",
                gap < 1e-10,
            )
        )
    return criteria


def draw_cushions(figure: Figure, a: Arrays) -> None:
    """Plot medians by layer, one column per norm, one row per state."""
    states = _states(a, ".median")
    axes = figure.subplots(len(states), 2, squeeze=False)
    for row, state in zip(axes, states, strict=True):
        for column, norm in enumerate(NORMS):
            for kind in NETS:
                medians = a[f"{state}.{kind}.median"][:, column]
                row[column].plot(medians, ".-", color=COLORS[kind], label=f"{kind}-28")
            title = f"{state}, norm: {norm.replace('_', ' ')}"
            row[column].set(xlabel="layer", ylabel="median cushion", title=title)
    axes[0, 0].legend()


def _without_branch(net: nn.Module) -> nn.Module:
    """Set b = 0 in every Dirac layer, which leaves only the truncated identity."""
    with torch.no_grad():
        for module in net.modules():
            inside = layer_identity(module)
            if inside is not None:
                inside.b.zero_()
    return net


def compute_flows(
    *,
    states: Sequence[str],
    dataset: str,
    samples: int,
    size: int,
    epochs: int = SHORT_EPOCHS,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute shares of dominant paths and of flow off the paths by layer."""
    listed = listed_nets(list(NETS.values()), states, each, device, epochs=epochs)
    data = image_set(dataset, "train", samples, size)
    arrays: dict[str, np.ndarray] = {"samples": np.array(samples)}
    for state in states:
        nets = {kind: listed[name, state] for kind, name in NETS.items()}
        nets["identity"] = _without_branch(copy.deepcopy(nets["dirac"]))
        for kind, net in nets.items():
            flows = rt.dominant_flows(net, data)
            means = [flows.under(mode="sap", statistic=name).mean for name in STATISTICS]
            arrays[f"{state}.{kind}.mean"] = torch.stack(means, 1).cpu().numpy()
            arrays[f"{state}.{kind}.off"] = flows.off_path.mean(0).cpu().numpy()
    return arrays


def judge_flows(a: Arrays) -> list[Criterion]:
    """Require all flow on the paths without the branch; report the share with it."""
    criteria = []
    for state in _states(a, ".off"):
        off = float(a[f"{state}.identity.off"].max())
        found = [f"{kind} {a[f'{state}.{kind}.off'].mean():.3f}" for kind in NETS]
        shares = [f"{kind} {a[f'{state}.{kind}.mean'][:, 1].mean():.3f}" for kind in NETS]
        criteria.append(
            Criterion(
                f"{state}: share of the flow off the paths in the Dirac net with b = 0",
                "exactly 0: its paths are those of the truncated identity",
                f"{off:.1g} at most; with b, means over layers: {', '.join(found)}; dominant paths "
                f"by ratio of means: {', '.join(shares)} ({int(a['samples'])} samples)",
                off == 0.0,
            )
        )
    return criteria


def draw_flows(figure: Figure, a: Arrays) -> None:
    """Plot dominant shares by layer, one column per statistic."""
    states = _states(a, ".off")
    axes = figure.subplots(len(states), len(STATISTICS), squeeze=False, sharex=True, sharey=True)
    figure.supxlabel("layer", fontsize="medium")
    figure.supylabel("share of dominant flows", fontsize="medium")
    for row, state in zip(axes, states, strict=True):
        for column, statistic in enumerate(STATISTICS):
            for kind in NETS:
                values = a[f"{state}.{kind}.mean"][:, column]
                row[column].plot(values, ".-", color=COLORS[kind], label=f"{kind}-28")
            row[column].set_title(f"{state}, {statistic.replace('_', ' ')}")
    axes[0, 0].legend()


def _settings(quick: int, word: str, short: int, paper: int) -> dict[str, dict[str, object]]:
    """Settings by scale with these numbers of images; ``word`` is ``quick`` in words."""
    return {
        "quick": {
            "states": ["initial"], "dataset": "digits", "samples": quick, "size": 16,
            "scaled": f"initial weights only, {word} digits at 16 x 16",
        },
        "short": {
            "states": ["initial", "trained"], "dataset": "cifar10", "samples": short, "size": 32,
            "scaled": f"nets trained for 15 of 200 epochs, {short} images",
        },
        "single": {
            "states": ["initial", "trained"], "dataset": "cifar10", "samples": short, "size": 32,
            "epochs": FULL_EPOCHS, "scaled": f"one seed, {short} images",
        },
        "paper": {
            "states": ["initial", "trained"], "dataset": "cifar10", "samples": paper, "size": 32,
            "epochs": FULL_EPOCHS,
        },
    }  # fmt: skip


CLAIMS = [
    Claim(
        id="crossings/dirac_cushions",
        kind="law",
        source=f"{STABILITY}, Figure 3, on the nets of {DIRACNETS}; in neither paper",
        says="The two cushions of a Dirac layer, with and without the identity in the norm, differ "
        "by the ratio of the norms (an identity; the cushions beside it are descriptive).",
        settings=_settings(10, "ten", 200, 2000),
        compute=compute_cushions,
        judge=judge_cushions,
        draw=draw_cushions,
    ),
    Claim(
        id="crossings/dirac_flows",
        kind="law",
        source=f"{STABILITY}, Appendix D, on the nets of {DIRACNETS}; in neither paper",
        says="With b = 0 no flow of a Dirac net leaves the paths of its truncated identity (an "
        "identity; the shares at other b are descriptive).",
        settings=_settings(2, "two", 10, 200),
        compute=compute_flows,
        judge=judge_flows,
        draw=draw_flows,
    ),
]
