"""Error bars on random spectra with clusters: how often they miss the truth, and how wide they are.

    python benchmarks/bars.py [--spectra 2000]            # PYTHONPATH says of which version

Every spectrum has groups of equal or nearly equal eigenvalues at both ends, whose gaps are a power
of ten from 1e-2 to 1e-9 of the largest, around a bulk. Products are those of a float64 matrix, of a
float32 tensor, or of an operator that takes and gives float64 and computes in float32 without a
word. The truth is LAPACK's, in float64, of the matrix that is multiplied; the i-th interval of a
list must hold the i-th eigenvalue. A bound without a probability may never be false, a 95 %
interval in one of twenty cases.
"""

import argparse
import math
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import resid_theory as rt

GAPS = [10.0**-power for power in range(2, 10)]
PRODUCTS = ("float64", "float32", "hidden float32")
PROBES, STEPS = 8, 24
SHARES = {"index", "share below"}  # in [0, 1]; other widths are relative to the largest |λ|


class Bar(NamedTuple):
    """One interval and what it should hold."""

    name: str
    low: float
    high: float
    truth: float


class HiddenSingle:
    """An operator for float64 vectors whose products are float32."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix.float()
        self.shape, self.dtype, self.device = matrix.shape, torch.float64, matrix.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return (self.matrix @ vectors.float()).double()


def groups(gap: float, g: torch.Generator) -> Tensor:
    """Eigenvalues near one: up to four groups of equal ones, a gap or several apart."""
    levels, place = [], 1.0
    for _ in range(int(torch.randint(1, 5, (1,), generator=g))):
        levels += [place] * int(torch.randint(1, 7, (1,), generator=g))
        place -= gap * float(1 + 2 * torch.rand(1, generator=g))
    return torch.tensor(levels, dtype=torch.float64)


def spectrum(gap: float, g: torch.Generator) -> Tensor:
    """Groups at both ends of a bulk that is a uniform one, narrow, or half of zeros."""
    size = int(torch.randint(30, 91, (1,), generator=g))
    top, bottom = groups(gap, g), groups(gap, g)
    bulk = 2 * torch.rand(size, generator=g, dtype=torch.float64) - 1
    kind = int(torch.randint(3, (1,), generator=g))
    bulk = (0.9 * bulk, 0.1 * bulk, torch.where(bulk > 0, 0.0, 0.7 * bulk))[kind]
    weaker = float(0.1 + 0.9 * torch.rand(1, generator=g))
    return torch.cat([top, -weaker * bottom, bulk])


def problem(number: int) -> tuple[Any, Tensor, torch.Generator]:
    """The products of one spectrum in a random basis, and its eigenvalues, ascending."""
    g = torch.Generator().manual_seed(number)
    levels = spectrum(GAPS[number // 3 % len(GAPS)], g) * 10.0 ** (number % 7 - 3)
    size = len(levels)
    basis = torch.linalg.qr(torch.randn(size, size, generator=g, dtype=torch.float64))[0]
    matrix = (basis * levels) @ basis.T
    matrix = (matrix + matrix.T) / 2
    products = PRODUCTS[number % 3]
    if products == "float64":
        return matrix, torch.linalg.eigvalsh(matrix), g
    operator = HiddenSingle(matrix) if products == "hidden float32" else matrix.float()
    return operator, torch.linalg.eigvalsh(matrix.float().double()), g


def bars(number: int, operator: Any, exact: Tensor, g: torch.Generator) -> Iterator[Bar]:
    """The intervals that the library gives for one operator."""
    seed, k = (int(torch.randint(high, (1,), generator=g)) for high in (1 << 30, 6))
    k, tolerance = k + 1, (1e-3, 1e-6, 1e-9)[int(torch.randint(3, (1,), generator=g))]
    share = float(torch.rand(1, generator=g))
    descending, trace, norm = exact.flip(0).tolist(), exact.sum().item(), exact.norm().item()
    budget = 3 * len(exact)
    found: list[tuple[str, Any, Any]] = [
        ("trace", [rt.trace(operator, budget=30, generator=seed)], [trace]),
        ("norm", [rt.frobenius_norm(operator, budget=30, generator=seed)], [norm]),
        ("trace, exact", [rt.trace(operator, budget=budget)], [trace]),
        ("norm, exact", [rt.frobenius_norm(operator, budget=budget)], [norm]),
    ]
    if number // 24 % 2:  # every other one: two runs of Lanczos are most of the time
        top = rt.eigenpairs(operator, k, tolerance=tolerance, generator=seed)
        found.append(("eigenpairs", top.estimates(1), descending))
        yield Bar("limits", descending[k], top.limits[1], descending[k])
    else:
        report = rt.eigen.spectral_estimates(
            operator, k, tolerance=tolerance, probes=PROBES, steps=STEPS, generator=seed
        )
        density, index = report.density, (exact < -report.index_threshold).double().mean().item()
        place = exact[int(share * len(exact))].item()  # at an eigenvalue, where the share jumps
        below = (exact <= place).double().mean().item()
        size = exact.abs().sort().values[max(0, math.ceil(share * len(exact)) - 1)].item()
        found += [
            ("report: largest", report.largest, descending),
            ("report: smallest", report.smallest, exact.tolist()),
            ("report: trace", [report.trace], [trace]),
            ("report: norm", [report.frobenius_norm], [norm]),
            ("index", [report.index], [index]),
        ]
        if density is not None:
            distance = density.wasserstein_distance(rt.Spectrum.of(exact))
            yield Bar("distance", 0.0, density.wasserstein_error, distance)
            found += [
                ("share below", [density.share_below(place)], [below]),
                ("quantile", [density.quantile(share, magnitude=True)], [size]),
            ]
    for name, estimates, truths in found:
        for estimate, truth in zip(estimates, truths, strict=False):
            yield Bar(name, estimate.low, estimate.high, truth)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spectra", type=int, default=2000)
    parser.add_argument("--products", nargs="+", choices=PRODUCTS, default=PRODUCTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    misses, gaps, refused = Counter(), Counter(), Counter()  # by products and name, gap, message
    widths: dict[tuple[str, str], list[float]] = defaultdict(list)
    start = time.process_time()
    for number in range(arguments.spectra):
        products = PRODUCTS[number % 3]
        if products not in arguments.products:
            continue
        operator, exact, g = problem(number)
        largest = exact.abs().max().item()
        lapack = len(exact) ** 1.5 * torch.finfo(torch.float64).eps * largest
        try:
            found = list(bars(number, operator, exact, g))
        except ValueError as error:
            refused[f"{products}: {str(error)[:60]}"] += 1
            continue
        for bar in found:
            slack, unit = (0.0, 1.0) if bar.name in SHARES else (lapack, largest)
            key, false = (products, bar.name), False
            for side, miss in (("below", bar.low - bar.truth), ("above", bar.truth - bar.high)):
                misses[*key, side] += miss > slack
                false |= miss > slack
            if bar.name in ("eigenpairs", "report: largest", "report: smallest"):
                gaps[products, GAPS[number // 3 % len(GAPS)]] += false
            widths[key].append((bar.high - bar.low) / unit)
    print(f"{arguments.spectra} spectra, {time.process_time() - start:.0f} s of processor time")
    print(f"{'products':16}{'interval':20}{'number':>8}{'below':>8}{'above':>8}{'false':>8}"
          f"{'median width':>15}{'infinite':>10}")  # fmt: skip
    for key, found in widths.items():
        below, above = misses[*key, "below"], misses[*key, "above"]
        infinite = sum(not math.isfinite(width) for width in found)
        share = (below + above) / len(found)
        print(f"{key[0]:16}{key[1]:20}{len(found):8}{below:8}{above:8}{share:8.2%}"
              f"{statistics.median(found):15.2e}{infinite:10}")  # fmt: skip
    print("\nfalse intervals of eigenvalues by gap")
    print(f"{'':16}" + "".join(f"{gap:>9.0e}" for gap in GAPS))
    for products in PRODUCTS:
        print(f"{products:16}" + "".join(f"{gaps[products, gap]:9}" for gap in GAPS))
    for message, count in refused.items():
        print(f"refused {count} times: {message}")


if __name__ == "__main__":
    main()
