"""What the checks and error bars of a whole spectrum cost: their share of its processor time.

    python -m benchmarks.checks

A spectrum is the five largest eigenvalues, matrix-free. "checks" are the look at a few samples, at
what a product reaches and at the state of the net; "rounding" measures the error of the precision,
"certificate" bounds the eigenvalues that a search may have missed.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

import resid_theory as rt
from benchmarks.products import images, perceptron
from benchmarks.timing import line
from resid_theory.curvature import accumulation
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.eigen.convergence import SearchState
from resid_theory.runtime.net_state import NetState

PARTS: dict[str, list[tuple[Any, str]]] = {
    "checks": [
        (EmpiricalRisk, "look"), (EmpiricalRisk, "check_reached"),
        (EmpiricalRisk, "check_read_only"), (NetState, "change"), (NetState, "__init__"),
    ],
    "rounding": [(accumulation, "measured_error")],
    "certificate": [(SearchState, "certified")],
}  # fmt: skip


@contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """Processor seconds spent in each of the parts; a part called by another counts for that."""
    spent = dict.fromkeys(PARTS, 0.0)
    inside = False

    def wrapped(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal inside
            if inside:
                return function(*args, **options)
            inside, start = True, time.process_time()
            try:
                return function(*args, **options)
            finally:
                inside = False
                spent[part] += time.process_time() - start

        return call

    with ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                stack.enter_context(
                    mock.patch.object(owner, name, wrapped(part, getattr(owner, name)))
                )
        yield spent


def report(name: str, net: torch.nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Print the shares of one net."""
    net.eval()
    with clocked() as spent:
        start = time.process_time()
        pairs = rt.spectrum(
            net, "cross_entropy", data, k=5, density=False, method="matrix-free"
        ).pairs
        total = time.process_time() - start
    assert pairs is not None
    for part, seconds in spent.items():
        goal = f"of {total:.1f} s, {pairs.products} products"
        line(f"{name}: {part}", f"{seconds / total:.2%}", goal)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.manual_seed(0)
    samples = torch.randn(2048, 128, generator=torch.Generator().manual_seed(0))
    report("8-layer MLP, 2,048 samples", perceptron(), (samples, torch.arange(2048) % 10))
    report("ResNet-20, 128 images", rt.full_net(20), images(128))
