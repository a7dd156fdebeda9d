"""Dominant flows and the speed of learning, Appendix D.2: a correlation over nets.

The paper has both along trainings of 200 epochs. Here they are two numbers of each of many small
nets: the share of dominant flows, before or after training, and the mean over epochs of the log of
the training risk, by which ``training.judge_figure_8`` compares speeds. Only the share before
training cannot be a consequence of what was learned; training lowers the other.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.noise_stability.nets import COLORS, DIGITS, KINDS, PAPER, SMALL, trainings_of
from experiments.parts import Each, in_turn
from experiments.trainings import fits, image_set

STATES = ("initial", "trained")
GROUPS = {"plain": "plain nets", "residual": "residual nets", "both": "nets of both kinds"}
LEVEL = 0.05 / (len(STATES) * len(GROUPS))  # Bonferroni's: of each test, in each direction
PERMUTATIONS = 19_999
NAMED = 0.6  # a correlation that the sample should show


def compute_flow_speed(
    *,
    depth: int,
    training: Mapping[str, Any],
    dataset: str,
    samples: int,
    size: int,
    device: str = "cpu",
    each: Each = in_turn,
) -> dict[str, np.ndarray]:
    """Compute f before and after training, (kinds, seeds), and risks, (kinds, seeds, epochs)."""
    wanted = {kind: trainings_of([kind], [depth], training)[kind, depth] for kind in KINDS}
    found = fits(wanted, each, device, weights=True)
    data = image_set(dataset, "train", samples, size)

    def share(net: Any) -> float:
        flows = rt.dominant_flows(net.to(device), data)
        return float(flows.under(mode="sap", statistic="mean").mean.mean())

    return {
        "depth": np.array(depth),
        "risk": np.array([[fit.along("loss") for fit in row] for row in found.values()]),
        "initial": np.array(
            [[share(f.training.start().eval()) for f in r] for r in found.values()]
        ),
        "trained": np.array([[share(fit.net) for fit in row] for row in found.values()]),
    }


def permuted_rank_test(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rho, and p values of independence against rho above and below 0.

    Exact at every size: of random permutations and the sample itself, the share that is as extreme.
    """
    ranks = [stats.rankdata(values) - (len(values) + 1) / 2 for values in (x, y)]
    first, second = (r / max(np.linalg.norm(r), 1e-300) for r in ranks)
    # RandomState, whose numbers stay the same in all versions of NumPy.
    orders = np.random.RandomState(0).random_sample((PERMUTATIONS, len(x))).argsort(1)
    rho, drawn = float(first @ second), second[orders] @ first
    above, below = (1 + int((s * drawn >= s * rho - 1e-12).sum()) for s in (1, -1))
    return rho, above / (PERMUTATIONS + 1), below / (PERMUTATIONS + 1)


def power(n: int, rho: float, level: float) -> float:
    """Power of the one-sided test at a rank correlation, by Fisher's z.

    Source: Bonett & Wright, Psychometrika 65, 23 (2000): variance (1 + rho^2 / 2) / (n - 3).
    """
    if n < 4:
        return 0.0
    bound = stats.norm.isf(level) / math.sqrt(n - 3)
    return float(stats.norm.sf((bound - math.atanh(rho)) * math.sqrt((n - 3) / (1 + rho**2 / 2))))


def speeds(a: Arrays) -> np.ndarray:
    """Minus the mean over epochs of the log of the training risk, (kinds, seeds)."""
    return -np.log(a["risk"]).mean(-1)


def judge_flow_speed(a: Arrays) -> list[Criterion]:
    """Test over nets that those with more dominant flows learn faster: each kind, and both."""
    speed, found = speeds(a), []
    for state in STATES:
        share = a[state]
        for row, (group, name) in enumerate(GROUPS.items()):
            chosen = slice(None) if group == "both" else slice(row, row + 1)
            x, y = share[chosen].ravel(), speed[chosen].ravel()
            rho, above, below = permuted_rank_test(x, y)
            held, against = above <= LEVEL, below <= LEVEL
            found.append(
                Criterion(
                    f"{name}, f {'before' if state == 'initial' else 'after'} training: Spearman's "
                    "rank correlation with the speed of learning",
                    f"> 0 (Appendix D.2), by a permutation test at .05 / {len(STATES) * 3}, or "
                    "else < 0",
                    f"{rho:.2f}, p = {above:.2g} and {below:.2g}, n = {len(x)}, which shows "
                    f"{NAMED} with power {power(len(x), NAMED, LEVEL):.2f}; f {x.min():.3f} to "
                    f"{x.max():.3f}, geometric mean of the risks {np.exp(-y.max()):.2f} to "
                    f"{np.exp(-y.min()):.2f}",
                    held if held or against else None,
                )
            )
    return found


def draw_flow_speed(figure: Figure, a: Arrays) -> None:
    """Plot speed against f before and after training, a dot a net, a row of panels a kind."""
    risk = np.exp(-speeds(a))
    panels = figure.subplots(2, 2, sharey=True)
    for row, kind in enumerate(KINDS):
        for ax, state in zip(panels[row], STATES, strict=True):
            ax.plot(a[state][row], risk[row], "o", color=COLORS[kind])
            rho = permuted_rank_test(a[state][row], -risk[row])[0]
            ax.set_title(f"{kind}, rank correlation with speed {rho:.2f}", fontsize="medium")
        panels[row, 0].set_ylabel("mean training risk (nats)\nfaster: lower")
    for ax, state in zip(panels[-1], STATES, strict=True):
        when = "before" if state == "initial" else "after"
        ax.set_xlabel(f"share f of dominant flows {when} training")


# -- the claim -------------------------------------------------------------------------------------

SEEDS = list(range(100, 130))  # of no earlier run
CLAIMS = [
    Claim(
        id="noise_stability/flow_speed",
        source=f"{PAPER}, Appendix D.2",
        says="The share of dominant flows correlates with the speed of learning (Appendix D.2).",
        settings={
            "quick": {
                "depth": 5, "training": DIGITS, "dataset": "digits", "samples": 2, "size": 8,
                "scaled": "64 digits, 3 epochs, two seeds, depth 5",
            },
            "short": {
                "depth": 8,
                "training": {**SMALL, "seeds": SEEDS, "samples": 1000, "tests": 100},
                "dataset": "cifar10", "samples": 20, "size": 8,
                "scaled": "1,000 images at 8 x 8, 8 epochs of batch 32, depth 8, f on 20 images "
                "before and after training instead of along it",
            },
        },
        compute=compute_flow_speed,
        judge=judge_flow_speed,
        draw=draw_flow_speed,
    ),
]  # fmt: skip
