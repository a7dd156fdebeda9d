"""What the claims of "Demystifying ResNet" share: data, kinds of net and where they start.

The paper's experiments: MNIST or another data set, whitened, 10 greatest principal components,
one-hot targets, square loss. Not in the text that survives and chosen here: nets with shortcuts
start at 0.01 times Xavier; percentiles are NumPy's linear ones; every principal component has its
largest loading positive (the condition number at zero depends on these signs, the bound on it does
not).
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache

import numpy as np
import torch

import resid_theory as rt
from resid_theory.samples import Regression

PAPER = "Li, Jiao, Han & Weissman 2016, arXiv:1611.01186"
WIDTH = 10
EXACT = 1e-12  # closed forms against measured Hessians, relative to the largest eigenvalue
LIMIT = 1e3  # a loss above it counts as diverged
NETS = {
    "xavier": dict(n=1, shortcut=False, kind="xavier"),
    "orthogonal": dict(n=1, shortcut=False, kind="orthogonal"),
    "one_shortcut": dict(n=1, shortcut=True, kind="near_zero"),
    "two_shortcut": dict(n=2, shortcut=True, kind="near_zero"),
    "three_shortcut": dict(n=3, shortcut=True, kind="near_zero"),
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
    """A data set with the paper's inputs: whitened, ten principal components."""
    return rt.load_whitened(name, WIDTH, samples=samples, progress=False)


def generator_of(*parts: int) -> torch.Generator:
    """A generator for one cell of a grid, whatever the order of work."""
    seed = int(np.random.SeedSequence(list(parts)).generate_state(1)[0])
    return torch.Generator().manual_seed(seed)


def columns(rows: Iterable[Mapping[str, float]]) -> dict[str, np.ndarray]:
    """Dictionaries of numbers with equal keys as arrays by key."""
    table = list(rows)
    return {key: np.array([row[key] for row in table]) for key in table[0]}


def nested(groups: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Tables by group as one, keys "group.key"."""
    return {f"{group}.{key}": v for group, table in groups.items() for key, v in table.items()}


def build(depth: int, net: Mapping, **activations: str | None) -> rt.ShortcutNet:
    """A net of NETS with so many weight layers."""
    n = net["n"]
    return rt.ShortcutNet(WIDTH, depth // n, n, shortcut=net["shortcut"], **activations)


def starts(
    model: rt.ShortcutNet, kind: str, seeds: int, scale: float, *key: int, first: int = 0
) -> torch.Tensor:
    """Initial weights of seeds from the first on, (seeds, blocks, n, d, d)."""
    shape = (model.blocks, model.shortcut_depth, WIDTH, WIDTH)
    draws = [
        rt.draw_weights(kind, shape, generator=generator_of(seed, *key), scale=scale)
        for seed in range(first, first + seeds)
    ]
    return torch.stack(draws)


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """Slope of a straight line through the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def listed(values: np.ndarray, form: str = ".3g") -> str:
    """Numbers as words of a verdict."""
    return " ".join(format(float(value), form) for value in values)
