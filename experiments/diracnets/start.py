"""DiracNets: initial weights. Section 3.4, and the norm of V as a size of steps.

The nets of section 3.4 are pre-activation residual nets with convolutions I + V. As in the paper
the law is that of *all* weights: V, stem, convolutions on shortcuts and classifier.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, below, near
from experiments.diracnets.nets import (
    CHANCE,
    FULL,
    LEARNT,
    ONE,
    ONE_SEED,
    PAIRED,
    PAIRED_SCALED,
    PAPER,
    QUICK,
    QUICK_SCALED,
    each_seed,
    percent,
    trainings_of,
)
from experiments.parts import Each, in_turn
from experiments.trainings import fits, image_set
from resid_theory.identity import layer_identity, trained_weight
from resid_theory.training import DIRACNETS

LAWS = {"std": "normal", "gain": "orthogonal"}  # what scales a law: its law
REFERENCE = 1e-4  # the sigma that other scales are compared with
MARGIN = 1.0  # points


def compute_section_3_4(
    *,
    depth: int,
    stds: Sequence[float],
    gains: Sequence[float],
    training: Mapping[str, Any],
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute final risk and test error by the law of all weights and its scale, all seeds."""
    scales = {"std": stds, "gain": gains}
    nets = {
        (name, scale): trainings_of(
            "identity_inside", training, depth=depth, initial={"law": law, "scale": scale}
        )
        for name, law in LAWS.items()
        for scale in scales[name]
    }
    found = fits(nets, each, device)
    arrays: dict[str, np.ndarray] = {"depth": np.array(depth)}
    for name, given in scales.items():
        rows = [found[name, scale] for scale in given]
        risks = [[fit.along("loss")[-1] for fit in row] for row in rows]
        errors = [each_seed(row, "test_error") for row in rows]
        arrays |= {name: np.array(given, dtype=float), f"{name}_risk": np.array(risks)}
        arrays |= {f"{name}_error": np.array(errors)}
    return arrays


def _by_scale(a: Arrays, name: str) -> dict[float, np.ndarray]:
    """Test accuracy of all seeds in points, by scale."""
    return dict(zip(a[name].tolist(), 100 * (1 - a[f"{name}_error"]), strict=True))


def judge_section_3_4(a: Arrays) -> list[Criterion]:
    """Require equal accuracy from small weights, less near sigma 1, and none from zeros."""
    normal, orthogonal = _by_scale(a, "std"), _by_scale(a, "gain")
    same = normal[REFERENCE]
    found = [
        near(
            f"{law} weights of scale {scale:g}: test accuracy less that of normal ones of "
            f"{REFERENCE:g}, same seed, points",
            accuracy - same,
            margin=MARGIN,
            source="section 3.4: the same accuracy; nets within 1 point are alike in Figure 1",
            shown=f"{percent(accuracy / 100)} and {percent(same / 100)}",
        )
        for law, rows, most in (("normal", normal, 0.1), ("orthogonal", orthogonal, 1.0))
        for scale, accuracy in rows.items()
        if 0 < scale <= most and (law, scale) != ("normal", REFERENCE)
    ]
    if 1.0 in normal:
        found.append(
            below(
                f"normal weights of scale 1: test accuracy less that of {REFERENCE:g}, points",
                normal[1.0] - same,
                source="section 3.4: slightly worse near 1; that it is slight is not tested",
                shown=percent(normal[1.0] / 100),
            )
        )
        found += [
            above(
                f"orthogonal weights of gain {gain:g}: test accuracy less that of normal ones of "
                "scale 1, points",
                accuracy - normal[1.0],
                source="section 3.4: the range of gains is wider still",
                shown=percent(accuracy / 100),
            )
            for gain, accuracy in orthogonal.items()
            if gain >= 1
        ]
    nothing = a["std_risk"][a["std"] == 0].ravel()
    if len(nothing):
        found.append(
            Criterion(
                "all weights zero: risk of the last epoch",
                f"every seed > ln 10 - {LEARNT} = {CHANCE - LEARNT:.3f} (section 3.4: does not "
                "converge; all gradients but that of the classifier's bias vanish)",
                f"{nothing.min():.4f} to {nothing.max():.4f} (n = {len(nothing)})",
                bool((nothing > CHANCE - LEARNT).all()),
            )
        )
    return found


def draw_section_3_4(figure: Figure, a: Arrays) -> None:
    """Plot accuracy against sigma and gain; sigma 0 is at the left end."""
    ax = figure.subplots()
    least = min(a["std"][a["std"] > 0].min(), a["gain"].min())
    for (name, law), color in zip(LAWS.items(), ("C1", "C4"), strict=True):
        at = np.where(a[name] > 0, a[name], least / 100)
        accuracy = 100 * (1 - a[f"{name}_error"])
        order = np.argsort(at)
        ax.plot(at[order], accuracy.mean(1)[order], "-", color=color, label=law)
        ax.plot(at, accuracy, ".", color=color)
    ax.set(xscale="log", xlabel=f"scale of all weights ({least / 100:.0e}: zero)")
    ax.set(ylabel="test accuracy (%)")
    ax.legend()


# -- the norm of V ---------------------------------------------------------------------------------

# Factors of V and of its step; the first is the start that the others are compared with.
WAYS = {
    "He's law": "V",
    "powers of two": "cV, c a power of two, step times c², decay over c²",
    "N(0, 1)": "cV, c² = fan_in / 2, step times c², decay over c²",
    "N(0, 1), same step": "cV, c² = fan_in / 2, step and decay of V",
}
EXACT = 1e-13  # relative; twice the bound of round-off of a norm of 576 numbers, and of products
HALF = 1.5e-8  # root of the machine epsilon: half the digits of float64


def compute_first_scale(
    *, depth: int, steps: int, batch: int, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Compute losses and final weights of nets that start from V and from multiples of it."""
    runs = [[_descent(way, depth, steps, batch, seed) for way in WAYS] for seed in seeds]
    losses = np.array([[loss for loss, *_ in run] for run in runs])
    first, last = (
        [[max(map(_gap, way[at], run[0][at])) for way in run] for run in runs] for at in (1, 2)
    )
    return {"losses": losses, "first_gaps": np.array(first), "gaps": np.array(last)}


def _descent(
    way: str, depth: int, steps: int, batch: int, seed: int
) -> tuple[list[float], list[Tensor], list[Tensor]]:
    """Losses of steps of the paper's recipe in float64, and the weights before and after them."""
    net = rt.diracnet(depth, generator=seed).double().train()
    layers = [layer for layer in net.modules() if layer_identity(layer) is not None]
    recipe, groups = DIRACNETS, []
    for layer in layers:
        v = trained_weight(layer)
        ratio = (v[0].numel() / 2) ** 0.5  # of the deviation of N(0, 1) to that of He's law
        c = {"He's law": 1.0, "powers of two": 2.0 ** round(np.log2(ratio))}.get(way, ratio)
        v.data *= c
        turn = 1.0 if way == "N(0, 1), same step" else c**2
        groups.append(
            {"params": [v], "lr": recipe.lr * turn, "weight_decay": recipe.weight_decay / turn}
        )
    known = {id(group["params"][0]) for group in groups}
    for parameter in net.parameters():
        if id(parameter) not in known:
            decay = recipe.weight_decay if parameter.dim() > 1 else 0.0
            groups.append({"params": [parameter], "weight_decay": decay})
    start = [layer.weight.detach().clone() for layer in layers]
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    data, losses = image_set("digits", "train", steps * batch, 8), []
    inputs = data.inputs(data.pixels, torch.float64).split(batch)
    for x, y in zip(inputs, data.labels.split(batch), strict=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, start, [layer.weight.detach() for layer in layers]


def _gap(weight: Tensor, wanted: Tensor) -> float:
    return float((weight - wanted).abs().max() / wanted.abs().max())


def judge_first_scale(a: Arrays) -> list[Criterion]:
    """Require equal paths where step and decay are rescaled, and other ones where they are not."""
    apart = np.abs(a["losses"] / a["losses"][:, :1] - 1).max(2)  # (seeds, ways)
    worst = np.maximum(apart, a["gaps"])
    expected = (
        "0, every seed: products with powers of two are exact",
        f"≤ {HALF:g}, every seed: half the digits of float64",
        f"> {HALF:g}, every seed: the norm of V is a size of steps",
    )
    holds = (worst[:, 1] == 0, worst[:, 2] <= HALF, worst[:, 3] > HALF)
    _, exact, scaled, same = a["first_gaps"].T
    return [
        Criterion(
            "weights of (5) before the first step, from cV against those from V, relative",
            f"0 for c a power of two, ≤ {EXACT:g} for c² = fan_in / 2 (equation 5: c cancels)",
            f"{exact.max():g}; {max(scaled.max(), same.max()):.1e}",
            bool((exact == 0).all() and max(scaled.max(), same.max()) <= EXACT),
        ),
        *(
            Criterion(
                f"start from {way}: losses and final weights against those from V, relative",
                wanted,
                f"{gap.min():.2g} to {gap.max():.2g} (n = {len(gap)}, "
                f"{a['losses'].shape[2]} steps)",
                bool(held.all()),
            )
            for way, wanted, gap, held in zip(
                list(WAYS.values())[1:], expected, worst[:, 1:].T, holds, strict=True
            )
        ),
    ]


def draw_first_scale(figure: Figure, a: Arrays) -> None:
    """Plot the loss by step of the first seed."""
    ax = figure.subplots()
    step = np.arange(1, a["losses"].shape[2] + 1)
    # Equal curves lie on each other: the lower ones are the wider ones.
    styles = (("-", 7), ("-", 3.5), ("--", 1.5), ("-", 1.5))
    for way, losses, (style, width) in zip(WAYS, a["losses"][0], styles, strict=True):
        ax.plot(step, losses, style, linewidth=width, label=way)
    ax.set(xlabel="step", ylabel="loss of the batch")
    ax.legend()


CLAIMS = [
    Claim(
        id="diracnets/first_scale",
        source=f"Own; {PAPER}, section 2, draws V from N(0, 1), the authors' code by He's law",
        says="V and cV follow the same path if the step of cV is c² times and its decay 1/c² times "
        "as large: to draw V from N(0, 1) instead of He's law is to divide its step by fan_in / 2.",
        kind="law",
        settings={
            "quick": {
                "depth": 10, "steps": 3, "batch": 8, "seeds": [0], "scaled": "three steps",
            },
            "short": {
                "depth": 10, "steps": 5, "batch": 16, "seeds": [2, 3], "scaled": "five steps",
            },
            "paper": {"depth": 16, "steps": 10, "batch": 32, "seeds": [3, 4, 5]},
        },
        compute=compute_first_scale,
        judge=judge_first_scale,
        draw=draw_first_scale,
    ),
    Claim(
        id="diracnets/section_3_4",
        source=f"{PAPER}, section 3.4",
        says="Residual nets with W = I + V reach the same accuracy with all weights from "
        "N(0, sigma²), sigma from 1e-8 to 0.1, and a worse one at 1; orthogonal weights "
        "allow a wider range; from all zeros they do not converge.",
        settings={
            "quick": {
                "depth": 10, "stds": [0.0, REFERENCE, 1.0], "gains": [1.0], "training": QUICK,
                "scaled": f"{QUICK_SCALED}, depth 10",
            },
            "short": {
                "depth": 10, "stds": [0.0, 1e-8, REFERENCE, 0.1, 1.0], "gains": [1.0, 10.0],
                "training": PAIRED,
                "scaled": f"{PAIRED_SCALED}, depth 10, three of eight sigmas up to 0.1",
            },
            "single": {
                "depth": 28, "stds": [0.0, 1e-8, REFERENCE, 1.0], "gains": [1e-8, 1.0],
                "training": ONE,
                "scaled": f"four sigmas and two gains, {ONE_SEED}",
            },
            "paper": {
                "depth": 28,
                "stds": [0.0, *(10.0**power for power in range(-8, 1))],
                "gains": [10.0**power for power in range(-8, 2)],
                "training": FULL,
            },
        },
        compute=compute_section_3_4,
        judge=judge_section_3_4,
        draw=draw_section_3_4,
    ),
]  # fmt: skip
