"""Data, nets and initial weights shared by the claims of "Demystifying ResNet".

The paper's experiments use whitened data (MNIST or another set), 10 leading principal components,
one-hot targets and the square loss. The available text does not give, and we chose: nets with
shortcuts start at 0.01 times Xavier; percentiles are interpolated linearly, as NumPy does; every
principal component has its largest loading positive (the condition number at zero depends on these
signs, the bound on it does not).
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
import torch

import resid_theory as rt
from resid_theory.activations import Activation
from resid_theory.data.regression import Regression
from resid_theory.losses import Loss

PAPER = "Li, Jiao, Han & Weissman 2016, arXiv:1611.01186"
WIDTH = 10
EXACT = 1e-12  # closed forms against measured Hessians, relative to the largest eigenvalue
LIMIT = 1e3  # a loss above it counts as diverged
NETS = {
    "xavier": dict(n=1, shortcut=False, init="xavier"),
    "orthogonal": dict(n=1, shortcut=False, init="orthogonal"),
    "one_shortcut": dict(n=1, shortcut=True, init="near_zero"),
    "two_shortcut": dict(n=2, shortcut=True, init="near_zero"),
    "three_shortcut": dict(n=3, shortcut=True, init="near_zero"),
}
LABELS = {
    "xavier": "Xavier",
    "orthogonal": "orthogonal",
    "one_shortcut": "1-shortcut",
    "two_shortcut": "2-shortcut",
    "three_shortcut": "3-shortcut",
}
MARKERS = dict(zip(NETS, "osD^v", strict=True))
PLAIN_AND_TWO = {name: NETS[name] for name in ("xavier", "orthogonal", "two_shortcut")}


@lru_cache(maxsize=2)
def whitened(name: str, samples: int | None) -> Regression:
    """Load a data set with the paper's inputs: whitened, ten principal components."""
    return rt.load_whitened(name, WIDTH, samples=samples, progress=False)


def generator_of(*parts: int) -> torch.Generator:
    """Generator for one cell of a grid, independent of the order of computation."""
    seed = int(np.random.SeedSequence(list(parts)).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


def columns(rows: Iterable[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Convert dictionaries of numbers with equal keys to arrays by key."""
    table = list(rows)
    return {key: np.array([row[key] for row in table]) for key in table[0]}


def nested(groups: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Merge tables of several groups into one with keys "group.key"."""
    return {f"{group}.{key}": v for group, table in groups.items() for key, v in table.items()}


def build(depth: int, net: Mapping, **activations: str | Activation | None) -> rt.ShortcutNet:
    """Build a net of ``NETS`` with ``depth`` weight layers."""
    n = net["n"]
    if depth % n:
        raise ValueError(f"depth: got {depth}, needs a multiple of the block's {n} weight layers")
    return rt.ShortcutNet(WIDTH, depth // n, n, shortcut=net["shortcut"], **activations)


def is_linear(**activations: str | Activation | None) -> bool:
    """Return True if nets with these activations are linear."""
    return build(2, NETS["two_shortcut"], **activations).is_linear


def compared(**activations: str | Activation | None) -> dict[str, dict]:
    """Nets that can be compared with these activations.

    Linear nets: all of ``NETS``. Otherwise those of Figure 8, with plain nets in blocks of two, so
    that all nets have activations at the same positions; nets with 1 or 3 layers per shortcut would
    have a different number of activations.
    """
    if is_linear(**activations):
        return NETS
    return {name: {**net, "n": 2} for name, net in PLAIN_AND_TWO.items()}


def equivalent_at_zero(model: rt.ShortcutNet, loss: str, data: Regression) -> rt.theory.ZeroPoint:
    """The 1-shortcut net at zero weights with the same spectrum as a plain orthogonal net.

    With P_k the product of the layers up to k, changing layer k by P_k V P_{k-1}^T has the same
    effect on the plain net as V in block k has on the 1-shortcut net followed by Q = P_N.
    """
    with torch.no_grad():
        product = model(torch.eye(WIDTH, dtype=torch.float64)).mT
    return rt.theory.zero_point(
        data, loss=loss, output_map=product, blocks=model.depth, shortcut_depth=1
    )


def least_loss(data: Regression, loss: str, *, linear: bool) -> float:
    """Reference for final losses: the infimum over all linear maps, or a lower bound.

    A linear net of equal widths can represent any linear map, at any depth and with or without
    shortcuts. The infimum of nonlinear nets is not known; both losses are at least 0.
    """
    scored = Loss.of(loss)
    if not linear:
        return 0.0
    if scored.identity:
        return rt.theory.linear_optimum(data.moments)
    return _least(scored, data)


def _least(loss: Loss, data: Regression) -> float:
    """Minimize over linear maps, a convex problem; an unattained infimum is approached to 1e-8."""
    from scipy.optimize import minimize  # its import is slow

    x, y = data.x, data.y

    def evaluate(entries: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(entries).view(y.shape[1], -1).requires_grad_()
        value = loss(x @ point.mT, y)
        (slope,) = torch.autograd.grad(value, point)
        return float(value.detach()), slope.flatten().numpy()

    start = np.zeros(x.shape[1] * y.shape[1])
    options = dict(ftol=0.0, gtol=1e-9, maxiter=10_000, maxfun=20_000)
    return float(minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options).fun)


def initial_weights(
    model: rt.ShortcutNet, init: str, seeds: int, scale: float, *key: int, first: int = 0
) -> torch.Tensor:
    """Initial weights for ``seeds`` seeds from ``first`` on, (seeds, blocks, n, d, d)."""
    shape = (model.blocks, model.shortcut_depth, WIDTH, WIDTH)
    weights = [
        rt.networks.draw_weights(init, shape, generator=generator_of(seed, *key), scale=scale)
        for seed in range(first, first + seeds)
    ]
    return torch.stack(weights)


def every(flags: np.ndarray) -> bool:
    """True if all flags are true and there is at least one: an empty measurement shows nothing."""
    return flags.size > 0 and bool(flags.all())


def at_depth(depths: np.ndarray, values: np.ndarray, wanted: int) -> np.ndarray:
    """Values at a depth that a criterion requires."""
    if wanted not in depths:
        raise ValueError(f"depths: got {depths.tolist()}, needs {wanted}, which a criterion names")
    return values[depths == wanted][0]


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of a straight line fitted to the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def listed(values: Iterable[float], form: str = ".3g") -> str:
    """Format numbers for a verdict."""
    return " ".join(format(float(value), form) for value in values)
