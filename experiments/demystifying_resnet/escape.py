"""Near zero weights: escape from the saddle, and signal propagation at initialization.

The escape time follows from the paper's theory but is not in its text; signal propagation is in
section 4.1.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion, above, near
from experiments.demystifying_resnet.nets import (
    EXACT,
    LABELS,
    MARKERS,
    NETS,
    PAPER,
    WIDTH,
    build,
    generator_of,
    initial_weights,
    whitened,
)

# -- escape ----------------------------------------------------------------------------------------

# scale at the start, scale at the end, learning rate
ESCAPES = {2: (1e-3, 0.03, 0.02), 3: (0.02, 0.08, 0.05), 4: (0.06, 0.15, 0.1)}


def compute_escape(*, dataset: str, samples: int | None, blocks: int) -> dict[str, np.ndarray]:
    """Compute weight norms by epoch from a balanced start for n = 2, 3, 4, and the predictions."""
    moments = whitened(dataset, samples).moments
    arrays = {"n": np.array(list(ESCAPES))}
    for n, (start, stop, rate) in ESCAPES.items():
        point = rt.theory.zero_point(moments, blocks=blocks, shortcut_depth=n)
        steps = rt.theory.escape_steps(point, start=start, stop=stop, learning_rate=rate)
        block = torch.stack(rt.theory.escape_start(point, start))
        path = rt.gradient_descent(
            rt.ShortcutNet(WIDTH, blocks, n),
            "square",
            moments,
            weights=block.expand(blocks, *block.shape),
            learning_rate=rate,
            epochs=math.ceil(1.1 * steps),
        )
        arrays |= {
            f"n{n}.size": path.mean_weight_norm.numpy(),
            f"n{n}.settings": np.array([start, stop, rate]),
            f"n{n}.predicted": np.array(steps),
        }
    return arrays


def _crossing(size: np.ndarray, level: float) -> float:
    """Epoch at which a growing norm reaches a level, interpolated in its logarithm."""
    after = int(np.flatnonzero(size >= level)[0])
    low, high = np.log(size[after - 1 : after + 1])
    return float(after - 1 + (np.log(level) - low) / (high - low))


def judge_escape(a: Arrays) -> list[Criterion]:
    """Compare measured with predicted numbers of steps."""
    criteria = []
    for n in a["n"]:
        start, stop, _ = a[f"n{n}.settings"]
        measured, predicted = _crossing(a[f"n{n}.size"], stop), float(a[f"n{n}.predicted"])
        formula = "log(δ/w) / log(1 + ηs)" if n == 2 else f"(w^{2 - n} - δ^{2 - n}) / ({n - 2}sη)"
        criteria.append(
            Criterion(
                f"n = {n}: steps of gradient descent from {start:g} to {stop:g}",
                f"{formula} = {predicted:.1f} within 1 %",
                f"{measured:.1f}, {100 * (measured / predicted - 1):+.2f} %",
                abs(measured / predicted - 1) <= 0.01,
            )
        )
    return criteria


def draw_escape(figure: Figure, a: Arrays) -> None:
    """Plot weight norms against steps over predicted steps."""
    ax = figure.subplots()
    for n, marker in zip(a["n"], "osD", strict=True):
        size, (start, stop, _) = a[f"n{n}.size"], a[f"n{n}.settings"]
        epochs = np.arange(len(size)) / float(a[f"n{n}.predicted"])
        step = max(1, len(size) // 25)
        growth = np.log(size / start) / np.log(stop / start)
        ax.plot(epochs[::step], growth[::step], marker, label=f"shortcut depth {n}", mfc="none")
    ax.plot([1], [1], "k+", markersize=14, label="predicted")
    ax.set(xlabel="steps / predicted steps")
    ax.set_ylabel("growth of the weights, log(norm / first) / log(last / first)")
    ax.legend()


# -- Jacobians and output variance -----------------------------------------------------------------


JACOBIANS = ("xavier", "orthogonal", "two_shortcut")


def compute_isometry(*, depths: Sequence[int], draws: int, scale: float) -> dict[str, np.ndarray]:
    """Compute extreme singular values of the Jacobian of linear nets, (depths, draws)."""
    arrays = {
        "depth": np.array(depths),
        "exponents": rt.theory.lyapunov_exponents(WIDTH).numpy(),
        "edges": np.array(
            [rt.theory.isometry_edges(depth // 2, 2, scale=scale) for depth in depths]
        ),
    }
    for number, name in enumerate(JACOBIANS):
        values = []
        for depth in depths:
            model = build(depth, NETS[name])
            weights = initial_weights(model, NETS[name]["init"], draws, scale, number, depth, 11)
            eye = torch.eye(WIDTH, dtype=torch.float64)
            with torch.no_grad():
                jacobian = torch.func.functional_call(model, {"weights": weights}, (eye,))
            values.append(torch.linalg.svdvals(jacobian).numpy())
        arrays[f"{name}.max"] = np.stack([found[:, 0] for found in values])
        arrays[f"{name}.min"] = np.stack([found[:, -1] for found in values])
    return arrays


def judge_isometry(a: Arrays) -> list[Criterion]:
    """Compare each initialization with its closed form."""
    off = max(float(np.abs(a[f"orthogonal.{end}"] - 1).max()) for end in ("min", "max"))
    depth, edges = a["depth"], dict(zip(("min", "max"), a["edges"][-1], strict=True))
    slopes = np.polyfit(depth, np.log(a["xavier.max"] / a["xavier.min"]), 1)[0]
    rate = float(a["exponents"][0] - a["exponents"][-1])
    return [
        Criterion("orthogonal: all singular values are 1", "to 1e-12", f"{off:.1e}", off <= EXACT),
        *(
            near(
                f"2-shortcut near zero, {depth[-1]} layers: {end} singular value",
                a[f"two_shortcut.{end}"][-1],
                edge,
                margin=0.25 * (edges["max"] - 1),
                source="edges at infinite width; a quarter of the spread, for width 10, ours",
            )
            for end, edge in edges.items()
        ),
        near(
            "Xavier: slope of the log of the Jacobian's condition number, nats a layer",
            slopes,
            rate,
            margin=0.1 * rate,
            source="Lyapunov exponents; 10 %, ours",
        ),
    ]


def draw_isometry(figure: Figure, a: Arrays) -> None:
    """Plot the largest and smallest singular value against depth."""
    left, right = figure.subplots(1, 2)
    for ax, names in ((left, JACOBIANS), (right, JACOBIANS[-1:])):
        for name in names:
            top, bottom = (a[f"{name}.{end}"].mean(-1) for end in ("max", "min"))
            style = dict(color=f"C{JACOBIANS.index(name)}", marker=MARKERS[name])
            ax.plot(a["depth"], top, label=LABELS[name] if ax is left else None, **style)
            ax.plot(a["depth"], bottom, **style)
            for end in ("max", "min"):
                drawn = a[f"{name}.{end}"]  # one line: each of thousands takes milliseconds
                depth = np.repeat(a["depth"], drawn.shape[1])
                ax.plot(depth, drawn.ravel(), ".", color=style["color"], alpha=0.3)
    right.plot(a["depth"], a["edges"], "k--")
    right.set_title("2-shortcut; dashed: at infinite width", fontsize="medium")
    left.set(yscale="log", ylabel="extreme singular values of the Jacobian")
    for ax in (left, right):
        ax.set(xlabel="weight layers N", xticks=a["depth"])
    left.legend()


OUTPUTS: dict[str, dict] = {
    "kaiming.linear": dict(init="kaiming", mid=None),
    "kaiming.relu": dict(init="kaiming", mid="relu"),
    "near_zero.linear": dict(init="near_zero", mid=None),
    "zero.linear": dict(init="zero", mid=None),
}


def compute_output_variance(*, blocks: int, draws: int, scale: float) -> dict[str, np.ndarray]:
    """Compute the mean square of the signal after every block, divided by that of the input.

    The gain of a draw is its signal's square after the last block over that before the first.
    """
    arrays = {"blocks": np.arange(blocks + 1)}
    for number, (name, net) in enumerate(OUTPUTS.items()):
        generator = generator_of(13, number)
        z = torch.randn(draws, 1, WIDTH, generator=generator, dtype=torch.float64)
        block = rt.ShortcutNet(WIDTH, 1, 2, mid=net["mid"])
        squares = [z.square().sum((-2, -1))]
        for _ in range(blocks):
            shape = (draws, 1, 2, WIDTH, WIDTH)
            weights = rt.networks.draw_weights(net["init"], shape, generator=generator, scale=scale)
            with torch.no_grad():
                z = torch.func.functional_call(block, {"weights": weights}, (z,))
            squares.append(z.square().sum((-2, -1)))
        arrays |= {
            f"{name}.mean": torch.stack(squares).mean(1).numpy() / squares[0].mean().item(),
            f"{name}.gain": (squares[-1] / squares[0]).numpy(),
            f"{name}.predicted": np.array(
                rt.theory.output_growth(net["init"], 2, mid=net["mid"], scale=scale)
            ),
        }
    return arrays


def judge_output_variance(a: Arrays) -> list[Criterion]:
    """Judge the growth over all blocks; logarithms bound the mean of heavy tails from below."""
    last = int(a["blocks"][-1])
    zero = float(np.abs(a["zero.linear.gain"] - 1).max())
    return [
        *(
            above(
                f"MSRA, {name}: log of output over input after {last} blocks, per block",
                np.log(a[f"kaiming.{name}.gain"]) / last,
                source="paper: the output variance explodes with depth",
                shown=f"mean square {a[f'kaiming.{name}.mean'][-1]:.3g} times",
            )
            for name in ("linear", "relu")
        ),
        near(
            f"near zero: log of output over input after {last} blocks",
            np.log(a["near_zero.linear.gain"]),
            margin=0.01,
            source="paper: it stays; 1 %, ours",
        ),
        Criterion(
            "zero: output over input", "exactly 1 (paper: it stays)", f"1 ± {zero:g}", not zero
        ),
    ]


def draw_output_variance(figure: Figure, a: Arrays) -> None:
    """Plot the mean square against blocks, measured and predicted."""
    ax = figure.subplots()
    for name, marker in zip(OUTPUTS, "osDv", strict=True):
        label = (
            name.replace("kaiming", "MSRA")
            .replace("_", " ")
            .replace("relu", "ReLU")
            .replace(".", ", ")
        )
        (line,) = ax.plot(a["blocks"], a[f"{name}.mean"], marker, label=label, mfc="none")
        ax.plot(a["blocks"], a[f"{name}.predicted"] ** a["blocks"], color=line.get_color())
    ax.set(yscale="log", xlabel="blocks of two layers", ylabel="output variance / input variance")
    ax.legend(title="markers measured, lines predicted")


# -- the claims ------------------------------------------------------------------------------------


def _claim(
    name: str,
    kind: str,
    where: str,
    says: str,
    settings: dict[str, dict],
    functions: tuple[Callable, ...],
) -> Claim:
    compute, judge, draw = functions
    return Claim(
        id=f"demystifying_resnet/{name}",
        kind=kind,
        source=f"{PAPER}, {where}",
        says=says,
        settings=settings,
        compute=compute,
        judge=judge,
        draw=draw,
    )


CLAIMS = [
    _claim(
        "escape",
        "law",
        "implied by Theorem 2",
        "Near zero the leading jet alone decides how long gradient descent stays: exponential "
        "growth for 2-shortcut nets, a plateau for n ≥ 3, at any depth.",
        {
            "quick": dict(dataset="digits", samples=None, blocks=2),
            "paper": dict(dataset="mnist", samples=None, blocks=8),
        },
        (compute_escape, judge_escape, draw_escape),
    ),
    _claim(
        "isometry",
        "law",
        "sections 4 and 5 (initializations)",
        "At initialization orthogonal and near-zero 2-shortcut nets are (nearly) isometries; the "
        "Jacobian of a Xavier net becomes singular exponentially fast with depth.",
        {
            "quick": dict(depths=[4, 8, 12], draws=200, scale=0.1),
            "paper": dict(depths=[4, 8, 12, 16], draws=500, scale=0.1),
        },
        (compute_isometry, judge_isometry, draw_isometry),
    ),
    _claim(
        "output_variance",
        "paper",
        "section 4.1",
        "Under MSRA initialization the output variance of a residual net explodes with depth; from "
        "zero or near zero it stays.",
        {
            "quick": dict(blocks=16, draws=500, scale=0.01),
            "paper": dict(blocks=48, draws=1000, scale=0.01),
        },
        (compute_output_variance, judge_output_variance, draw_output_variance),
    ),
]
