"""Nets that consist of their dominant paths only, Appendix D.3.

The available text does not give, and we chose, learning rate, momentum and schedule
(``training.NOISE_STABILITY``). It also leaves open the meaning of the dense lower halves. Elsewhere
in D.3 halves are those of the two kernels that double the channels: new channels read all inputs,
the others only their own. Another interpretation is the lower half of the net, its first
convolutions. We train both.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure

from experiments.claim import Arrays, Claim, Verdict
from experiments.noise_stability.nets import PAPER
from experiments.parts import Each, in_turn
from experiments.trainings import FULL_EPOCHS, Training, fits
from resid_theory import training

KINDS = {"residual": "residual", "dominant": "dominant paths only"}
DENSE = {
    "dominant_half": "dense lower halves of kernels",
    "dominant_upper": "dense lower half of the net",
}
COLORS = {kind: f"C{number}" for number, kind in enumerate((*KINDS, *DENSE))}


def compute_table_5(
    *,
    dataset: str,
    samples: int | None,
    pooled: int,
    depths: Sequence[int],
    seeds: int,
    epochs: int,
    batch: int,
    lr: float,
    augmentation: str,
    kinds: Sequence[str] = tuple(KINDS),
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Train nets of several kinds; arrays are (depths, seeds), curves (depths, seeds, epochs)."""
    recipe = training.NOISE_STABILITY.scaled(epochs).change(precision="tf32")
    recipe = recipe.change(batch=batch, lr=lr, augmentation=augmentation, channels_last=True)
    recipe = recipe.change(pad=pooled // 8)  # the usual 4 for 32 pixels

    def trained(kind: str, depth: int, seed: int) -> Training:
        arguments = {"depth": depth, "identity": kind, "generator": seed}
        return Training(
            architecture={"builder": "simplified_net", "arguments": arguments},
            recipe=recipe, seed=seed, data=dataset, samples=samples, size=pooled,
        )  # fmt: skip

    groups = {(k, d): [trained(k, d, seed) for seed in range(seeds)] for k in kinds for d in depths}
    found = fits(groups, each, device)
    arrays = {"depth": np.array(depths), "epochs": np.array(epochs)}
    for kind in kinds:
        cells = np.empty((len(depths), seeds, 3))
        curves = np.empty((len(depths), seeds, epochs))
        for row, depth in enumerate(depths):
            for seed, fit in enumerate(found[kind, depth]):
                cells[row, seed] = [fit.number(n) for n in ("loss", "test_error", "parameters")]
                curves[row, seed] = fit.along("loss")
        arrays |= {f"{kind}.{key}": cells[..., i] for i, key in enumerate(("loss", "error"))}
        arrays |= {f"{kind}.curve": curves, f"{kind}.parameters": cells[:, 0, 2]}
    return arrays


def judge_table_5(a: Arrays) -> list[Verdict]:
    """Require that dominant paths keep most of the accuracy and do not degrade with depth."""
    depth, full = a["depth"], int(a["epochs"]) >= FULL_EPOCHS
    accuracy = {kind: 1 - a[f"{kind}.error"] for kind in KINDS}
    kept = accuracy["dominant"].mean(1) / accuracy["residual"].mean(1)
    loss, error = a["dominant.loss"].mean(1), a["dominant.error"].mean(1)
    ratio, rise = float(loss[-1] / loss[0]), float(error[-1] - error[0])
    sizes = a["dominant.parameters"] / a["residual.parameters"]
    depths = f"depth {depth[0]} to {depth[-1]}"
    low = "in [0.9, 1.1]" if full else "≤ 1.1 (of the paper's band 0.9 to 1.1 the upper end)"
    verdicts = [
        Verdict(
            "accuracy of dominant-path nets over that of residual nets, every depth",
            "> 0.7 (paper: 0.77)",
            f"{', '.join(f'{k:.3f}' for k in kept)} with {100 * sizes.max():.1f} % of the "
            f"parameters or fewer; test errors {_spread(a['dominant.error'])} against "
            f"{_spread(a['residual.error'])}",
            bool((kept > 0.7).all()),
        ),
        Verdict(
            f"dominant-path nets: training loss, ratio from {depths}",
            low,
            f"{ratio:.3f} ({_spread(a['dominant.loss'])})",
            (ratio >= 0.9 or not full) and ratio <= 1.1,
        ),
        Verdict(
            f"dominant-path nets: rise of the test error from {depths}",
            "< 0.02 (as residual nets in Table 1; paper: 0.003)",
            f"{rise:+.4f}",
            rise < 0.02,
        ),
    ]
    if full:
        verdicts.append(
            Verdict(
                "test error of dominant-path nets, every depth",
                "< 0.5 (paper: 0.312 to 0.318)",
                _spread(a["dominant.error"]),
                bool((error < 0.5).all()),
            )
        )
    return verdicts


def judge_table_5_dense(a: Arrays) -> list[Verdict]:
    """Require that dense lower halves, of kernels or of the net, lower the test error."""
    verdicts = []
    for kind, label in DENSE.items():
        change = a[f"{kind}.error"] - a["dominant.error"]
        sizes = a[f"{kind}.parameters"] / a["dominant.parameters"]
        verdicts.append(
            Verdict(
                f"{label}: test error less that of dominant-path nets of equal seeds, every depth",
                "< 0 in the mean over seeds (by how much in the paper is lost)",
                f"{_spread(change)}; test errors {_spread(a[f'{kind}.error'])} against "
                f"{_spread(a['dominant.error'])} with {', '.join(f'{s:.1f}' for s in sizes)} "
                "times the parameters",
                bool((change.mean(1) < 0).all()),
            )
        )
    return verdicts


def _spread(cells: np.ndarray) -> str:
    """Format mean and standard deviation over seeds for every row."""
    count = cells.shape[1]
    rows = [f"{c.mean():.3f}" + (f" ± {c.std(ddof=1):.3f}" if count > 1 else "") for c in cells]
    return f"{', '.join(rows)} (n = {count})"


def draw_table_5(figure: Figure, a: Arrays) -> None:
    """Plot the loss during training and the test error against depth, for all seeds."""
    left, right = figure.subplots(1, 2)
    for kind, label in {**KINDS, **DENSE}.items():
        if f"{kind}.error" not in a:
            continue
        color = COLORS[kind]
        for row, (depth, style) in enumerate(zip(a["depth"], ("-", "--", ":"), strict=False)):
            curves = a[f"{kind}.curve"][row]
            epochs = np.arange(1, curves.shape[1] + 1)
            left.plot(epochs, curves.mean(0), color + style, label=f"{label}, depth {depth}")
            left.fill_between(epochs, curves.min(0), curves.max(0), color=color, alpha=0.15)
        error = a[f"{kind}.error"]
        right.plot(a["depth"], error.mean(1), color + "-", label=label)
        right.plot(a["depth"], error, color + "o", mfc="none")
    left.set(xlabel="epoch", ylabel="training loss (nats, augmented images)")
    right.set(xlabel="depth", ylabel="test error", xticks=a["depth"], ylim=(0, None))
    left.legend(fontsize="small")
    right.legend(fontsize="small")


# -- the claims ------------------------------------------------------------------------------------

_SCALES = {
    "short": dict(
        dataset="cifar10", samples=6000, pooled=16, depths=[20, 44], seeds=3, epochs=14,
        batch=128, lr=0.02, augmentation="crop_flip",
        scaled="6,000 images pooled to 16 x 16, 14 epochs, depths 20 and 44",
    ),
    "paper": dict(
        dataset="cifar10", samples=None, pooled=32, depths=[20, 32, 44], seeds=3,
        epochs=FULL_EPOCHS, batch=128, lr=0.02, augmentation="crop_flip",
    ),
}  # fmt: skip

CLAIMS = [
    Claim(
        id="noise_stability/table_5",
        source=f"{PAPER}, Table 5 and Appendix D.3",
        says="Nets with nothing but their dominant paths, a few per cent of the weights, keep most "
        "of the accuracy of residual nets and do not degrade with depth.",
        settings={
            "quick": dict(
                dataset="digits", samples=400, pooled=8, depths=[5, 8], seeds=1, epochs=8,
                batch=32, lr=0.05, augmentation="none",
                scaled="400 digits of 8 x 8 pixels, depths 5 and 8, one seed",
            ),
            **_SCALES,
        },
        compute=compute_table_5,
        judge=judge_table_5,
        draw=draw_table_5,
    ),
    Claim(
        id="noise_stability/table_5_dense",
        source=f"{PAPER}, Appendix D.3",
        says="Dense lower halves lower the test error of dominant-path nets.",
        settings={
            "quick": dict(
                dataset="digits", samples=400, pooled=8, depths=[5], seeds=2, epochs=8,
                batch=32, lr=0.05, augmentation="none",
                scaled="400 digits of 8 x 8 pixels, depth 5, two seeds",
            ),
            **_SCALES,
        },
        compute=partial(compute_table_5, kinds=("dominant", *DENSE)),
        judge=judge_table_5_dense,
        draw=draw_table_5,
    ),
]  # fmt: skip
