"""Noise stability of the shipped nets: do cushions predict how injected noise is attenuated?

Layer cushion, interlayer cushion, activation contraction and interlayer smoothness are the four
conditions of the compression bound. Here each layer in turn receives noise of 10 % of its norm, as
in Figure 1 of the paper, and the relative error at the net's output is what the cushions have to
predict: the smallest cushion over the samples against the largest error over the samples.
"""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, rate
from experiments.parts import Each, in_turn
from experiments.shipped import SHORT_EPOCHS, listed_nets
from experiments.trainings import FULL_EPOCHS, image_set
from resid_theory import stability
from resid_theory.stability.jacobian_reach import chain_of_layers

COMPRESSION = "Arora, Ge, Neyshabur & Zhang, arXiv:1802.05296"
CHAINS = [
    "simplified_plain_20", "simplified_residual_20", "simplified_plain_32",
    "simplified_residual_32", "full_plain_20", "diracnet_28_1", "plain_28_1",
]  # fmt: skip
PAIRS = [  # of one depth, without and with identities
    ("simplified_plain_20", "simplified_residual_20"),
    ("simplified_plain_32", "simplified_residual_32"),
    ("plain_28_1", "diracnet_28_1"),
]
PREDICTIONS = {
    "layer cushion": "1 / μ_i against the error of noise in the weights of layer i",
    "interlayer cushion": "1 / μ_i→ against the error of noise at the output of layer i",
    "both": "β ⌈κ/s⌉ / (μ_i μ_i→) against the error of noise in the weights of layer i",
}


def _measured(
    net: nn.Module, data: rt.Images, level: float, draws: int, probes: int
) -> dict[str, np.ndarray]:
    """Cushions and errors of every layer, and smoothness behind every layer but the last."""
    bound = stability.compression_bound(net, data, margin=1.0, probes=probes)
    in_weights = stability.weight_noise(net, data, levels=[level], relative=True, draws=draws)
    assert in_weights.places == bound.layers
    at_outputs, smoothness = [], []
    for position in chain_of_layers(net).layers[:-1]:
        start = position + 1
        noise = stability.activation_noise(
            net, data, start=start, levels=[level], draws=draws, probes=2
        )
        at_outputs.append(noise.at_output[0, 0].max())
        found = stability.interlayer_smoothness(net, data, start=start, epsilon=level, draws=draws)
        smoothness.append(found.rho())
    return {
        "layer": bound.layer_cushions.numpy(),
        "interlayer": bound.interlayer.numpy(),
        "terms": bound.terms.numpy(),
        "contraction": np.array(bound.contraction),
        "weight_error": in_weights.at_output[0].amax(1).numpy(),
        "output_error": torch.stack(at_outputs).numpy(),
        "smoothness": np.array(smoothness),
    }


def compute_noise(
    *,
    nets: Sequence[str],
    states: Sequence[str],
    dataset: str,
    samples: int,
    size: int,
    level: float,
    draws: int,
    probes: int,
    epochs: int = SHORT_EPOCHS,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Cushions and the errors that noise causes, layer by layer, for every net and state."""
    listed = listed_nets(nets, states, each, device, epochs=epochs)
    data = image_set(dataset, "test", samples, size)
    arrays: dict[str, np.ndarray] = {"samples": np.array(samples)}
    for state in states:
        for name in nets:
            found = _measured(listed[name, state], data, level, draws, probes)
            arrays |= {f"{state}.{name}.{key}": values for key, values in found.items()}
    return arrays


def rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rho and its 95 % interval by Fisher's z.

    Source: Bonett & Wright, Psychometrika 65, 23 (2000): variance (1 + rho²/2) / (n - 3).
    """
    from scipy import stats  # half a second of import

    rho = float(stats.spearmanr(x, y).statistic)
    if len(x) < 4 or abs(rho) == 1:
        return rho, -1.0 if len(x) < 4 else rho, rho
    half = stats.norm.ppf(0.975) * np.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    return rho, float(np.tanh(np.arctanh(rho) - half)), float(np.tanh(np.arctanh(rho) + half))


def _pairs(a: Arrays, key: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Predicted and measured numbers of every layer of one net, by the names of PREDICTIONS."""
    layer, interlayer = a[f"{key}.layer"], a[f"{key}.interlayer"]
    return {
        "layer cushion": (1 / layer, a[f"{key}.weight_error"]),
        "interlayer cushion": (1 / interlayer[:-1], a[f"{key}.output_error"]),
        "both": (np.sqrt(a[f"{key}.terms"]), a[f"{key}.weight_error"]),
    }


def _totals(a: Arrays) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Nets, the bound's c d √(Σ terms) and the error of noise in all weights together."""
    known = [f"{state}.{name}" for state in ("initial", "trained") for name in CHAINS]
    keys = [key for key in known if f"{key}.terms" in a]
    bound = [
        float(a[f"{key}.contraction"]) * len(a[f"{key}.terms"]) * a[f"{key}.terms"].sum() ** 0.5
        for key in keys
    ]
    # Independent small errors add up by their squares.
    error = [float(np.square(a[f"{key}.weight_error"]).sum() ** 0.5) for key in keys]
    return keys, np.array(bound), np.array(error)


def judge_noise(a: Arrays) -> list[Criterion]:
    """Test over trained nets that ranks of layers agree, over their pairs that those of nets do.

    Layers of one net are no independent samples, nor are pairs that share a net.
    """
    keys, bound, error = _totals(a)
    trained = [key for key in keys if key.startswith("trained.")]
    criteria = []
    for name, meaning in PREDICTIONS.items():
        found = {key: rank_correlation(*_pairs(a, key)[name]) for key in trained}
        listed = "; ".join(
            f"{key.removeprefix('trained.')} {rho:.2f} [{low:.2f}, {high:.2f}] "
            f"(n = {len(_pairs(a, key)[name][0])})"
            for key, (rho, low, high) in found.items()
        )
        criteria.append(
            above(
                f"Spearman's ρ over the layers of a trained net, {name}: {meaning}",
                [rho for rho, _, _ in found.values()],
                source="a prediction orders layers as they are; none would give 0",
                shown=f"{int(a['samples'])} samples; {listed}",
            )
        )
    at = {key.removeprefix("trained."): keys.index(key) for key in trained}
    pairs = [(at[one], at[other]) for one, other in PAIRS if {one, other} <= set(at)]
    if pairs:
        agree = [(bound[i] < bound[j]) == (error[i] < error[j]) for i, j in pairs]
        smooth = [a[f"{key}.smoothness"].min() >= 3 * len(a[f"{key}.terms"]) for key in trained]
        rho = rank_correlation(bound[list(at.values())], error[list(at.values())])
        criteria.append(
            rate(
                "the net with the smaller c d √(Σ β² ⌈κ/s⌉² / (μ_i² μ_i→²)) has the smaller error "
                "of noise in all weights, pairs of trained nets without and with identities",
                sum(agree),
                len(agree),
                least=0.5,
                source="guessing gives 0.5",
                shown="Spearman's ρ of {:.2f} [{:.2f}, {:.2f}] over {} nets, "
                "the bound's premise, smoothness of at least 3 d, holds in {}".format(
                    *rho, len(at), sum(smooth)
                ),
            )
        )
    return criteria


def draw_noise(figure: Figure, a: Arrays) -> None:
    """Measured errors against predictions: a panel a prediction, a colour a trained net."""
    keys, bound, error = _totals(a)
    axes = figure.subplots(2, 2).ravel()
    for ax, (name, _) in zip(axes, PREDICTIONS.items(), strict=False):
        for key in keys:
            if key.startswith("trained."):
                label = key.removeprefix("trained.").replace("_", " ")
                ax.plot(*_pairs(a, key)[name], ".", markersize=4, label=label)
        ax.set(xscale="log", yscale="log", xlabel=f"predicted by: {name}", ylabel="error at output")
    for state, marker in (("initial", "o"), ("trained", "^")):
        rows = [i for i, key in enumerate(keys) if key.startswith(state)]
        axes[3].plot(bound[rows], error[rows], marker, color="black")
    axes[3].set(xscale="log", yscale="log", xlabel="predicted: nets", ylabel="error at output")
    axes[3].set_title("circles: initial, triangles: trained", fontsize="medium")
    axes[0].legend()


_NOISE = {"level": 0.1}

CLAIMS = [
    Claim(
        id="crossings/noise",
        kind="extension",
        source=f"{COMPRESSION}, Definitions 4 to 8 and Figure 1, on the shipped nets; not in the "
        "paper in this form",
        says="Cushions predict how strongly noise in a layer reaches the output, layer by layer, "
        "and which of two nets is the stabler one.",
        settings={
            "quick": {
                "nets": CHAINS[:1], "states": ["trained"], "dataset": "digits", "samples": 1,
                "size": 8, "draws": 1, "probes": 2, **_NOISE,
                "scaled": "one net of seven, one digit at 8 x 8",
            },
            "short": {
                "nets": CHAINS, "states": ["initial", "trained"], "dataset": "cifar10",
                "samples": 8, "size": 32, "draws": 3, "probes": 10, **_NOISE,
                "scaled": "nets trained for 15 of 200 epochs, 8 images",
            },
            "single": {
                "nets": CHAINS[:2], "states": ["initial", "trained"], "dataset": "cifar10",
                "samples": 8, "size": 32, "draws": 3, "probes": 10, **_NOISE,
                "epochs": FULL_EPOCHS, "scaled": "two nets of seven, one seed, 8 images",
            },
            "paper": {
                "nets": CHAINS, "states": ["initial", "trained"], "dataset": "cifar10",
                "samples": 100, "size": 32, "draws": 10, "probes": 10, **_NOISE,
                "epochs": FULL_EPOCHS,
            },
        },
        compute=compute_noise,
        judge=judge_noise,
        draw=draw_noise,
    ),
]  # fmt: skip
