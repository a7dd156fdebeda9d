"""Cost of an epoch of full-batch gradient descent: python -m benchmarks.descent."""

import argparse
import time

import torch

import resid_theory as rt
from benchmarks.timing import line

WIDTH, BLOCKS, SAMPLES = 10, 12, 60_000
RATES, SEEDS = 18, 10  # the rows of one net and depth of Figure 7


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """As many samples as MNIST; their values do not change the cost."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, SAMPLES, WIDTH, generator=generator, dtype=torch.float64)
    return x, 0.5 * x + y


def by_autograd(net: rt.ShortcutNet, data, start: torch.Tensor, rate: float, epochs: int):
    """The loop everyone writes; seconds an epoch, and the weights."""
    weights, (x, y) = start.clone(), data
    begun = time.perf_counter()
    for _ in range(epochs):
        weights.requires_grad_()
        output = torch.func.functional_call(net, {"weights": weights}, (x,))
        loss = 0.5 * (output - y).square().sum() / len(x)
        (gradient,) = torch.autograd.grad(loss, weights)
        weights = weights.detach() - rate * gradient
    return (time.perf_counter() - begun) / epochs, weights


def stacked(net: rt.ShortcutNet, moments, starts: torch.Tensor, rates, epochs: int) -> float:
    """Seconds an epoch of all rows."""
    begun = time.perf_counter()
    rt.gradient_descent(
        net,
        "square",
        moments,
        weights=starts,
        learning_rate=rates,
        epochs=epochs,
        record_every=epochs,
    )
    return (time.perf_counter() - begun) / epochs


def main() -> None:
    """Print the report."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    net, data = rt.ShortcutNet(WIDTH, BLOCKS, 2), problem()
    moments = rt.Moments.of(data)
    generator = torch.Generator().manual_seed(0)
    starts = rt.networks.draw_weights(
        "near_zero", (SEEDS, BLOCKS, 2, WIDTH, WIDTH), generator=generator
    )
    rates = torch.linspace(0.01, 0.1, RATES, dtype=torch.float64)[:, None]
    loop, after = by_autograd(net, data, starts[0], 0.05, 5)
    alone = stacked(net, moments, starts[0], 0.05, 500)
    rows = RATES * SEEDS
    together = stacked(net, moments, starts, rates, 200) / rows
    line(f"{net.depth} layers, {SAMPLES:,} samples: autograd loop, s an epoch", f"{loop:.3f}", "")
    line("    from moments, one net, s an epoch", f"{alone:.2e}", "")
    line("    times as many epochs a second", f"{loop / alone:.0f}", "")
    line(f"    from moments, {rows} nets at once, s an epoch and net", f"{together:.2e}", "")
    line("    times as many epochs a second", f"{loop / together:.0f}", ">= 500")
    path = rt.gradient_descent(net, "square", data, weights=starts[0], learning_rate=0.05, epochs=5)
    gap = ((path.weights - after).abs().max() / after.abs().max()).item()
    line("    weights after 5 epochs, relative difference", f"{gap:.1e}", "<= 1e-11")


if __name__ == "__main__":
    main()
