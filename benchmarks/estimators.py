"""Error of trace, Frobenius norm and density on 22 exact spectra: python -m benchmarks.estimators.

Writes docs/estimators.md from the eleven spectra of ``hessian_spectra.JUDGE``; with ``--tune`` it
prints those of ``TUNE``, by which the constants of the estimators were chosen. Products are those
of the diagonal matrix of the eigenvalues: no estimator here can tell it from a rotated one.

Errors are roots of mean squares over draws. Hutchinson's is in closed form. That of Hutch++ is the
mean, over its sketches, of the closed form for its probes. XTrace is drawn as often as ours.
"""

import argparse
import math
import platform
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

import resid_theory as rt
from benchmarks.hessian_spectra import JUDGE, TUNE, load
from resid_theory.eigen.estimate import student

PAGE = Path(__file__).resolve().parents[1] / "docs" / "estimators.md"
DRAWS = {15: 1000, 30: 1000, 60: 1000, 120: 300}  # by products
NORM_DRAWS, DENSITY_DRAWS = 200, 10
SETTINGS = ((2, 40), (4, 20), (4, 40), (10, 100))  # probes and steps of densities
PARTS = ("traces", "norms", "densities")
_AT_ONCE = 4_000_000  # entries of the vectors of draws that are made together


class Diagonal:
    """A diagonal matrix as an operator."""

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels[:, None]
        self.shape, self.dtype, self.device = (len(levels),) * 2, levels.dtype, levels.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.levels * vectors


def hutchinson(levels: Tensor, products: int, sphere: bool = True) -> float:
    """Error of the mean of zᵀ A z over independent z, on the sphere or Gaussian."""
    size, squares, trace = len(levels), levels.square().sum(), levels.sum()
    if not sphere:
        return math.sqrt(2 * squares / products)
    return math.sqrt(2 * size / (size + 2) * (squares - trace**2 / size) / products)


def sketches(levels: Tensor, width: int, draws: int, g: torch.Generator) -> Iterator[Tensor]:
    """Gaussian blocks (n, P, width), as many draws at once as fit."""
    while draws > 0:
        count = max(1, min(draws, _AT_ONCE // (len(levels) * width)))
        yield torch.randn(count, len(levels), width, generator=g, dtype=levels.dtype)
        draws -= count


def hutch_plus_plus(
    levels: Tensor, products: int, draws: int, g: torch.Generator, power: int = 1
) -> float:
    """A third of the products for a sketch, a third for its part of tr Aᵖ, a third for probes."""
    width, variances, form = products // 3, [], levels**power
    for block in sketches(levels, width, draws, g):
        q = torch.linalg.qr(levels[:, None] * block)[0]
        images = form[:, None] * q
        within = q.mT @ images
        size = len(levels) - width
        squares = (
            form.square().sum() - 2 * images.square().sum((1, 2)) + within.square().sum((1, 2))
        )
        trace = form.sum() - within.diagonal(dim1=1, dim2=2).sum(1)
        spread = 2 * size / (size + 2) * (squares - trace**2 / size).clamp_min(0)
        variances.append(spread / (products - 2 * width))
    return float(torch.cat(variances).mean().sqrt())


def xtrace(levels: Tensor, products: int, draws: int, g: torch.Generator) -> float:
    """XTrace (Epperly, Tropp & Webber 2024, arXiv:2301.07825), with probes scaled to the sphere."""
    width, errors = products // 2, []
    for block in sketches(levels, width, draws, g):
        q, r = torch.linalg.qr(levels[:, None] * block)
        within = q.mT @ (levels[:, None] * q)
        # The range without sample i is that of Q but for the direction s_i.
        s = torch.linalg.inv(r).mT
        s = s / s.norm(dim=1, keepdim=True)
        own = q.mT @ block
        rest = block - q @ (own - s * (s * own).sum(1, keepdim=True))
        ratio = (len(levels) - width + 1) / rest.square().sum(1)
        probes = ratio * (levels[:, None] * rest.square()).sum(1)
        known = within.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) - (s * (within @ s)).sum(1)
        errors.append((known + probes).mean(1) - levels.sum())
    return float(torch.cat(errors).square().mean().sqrt())


def ours(
    levels: Tensor, products: int, draws: int, norm: bool = False
) -> tuple[float, float, float]:
    """Error, share of intervals that hold the truth, and median half width over the error."""
    method, truth = (rt.frobenius_norm, levels.norm()) if norm else (rt.trace, levels.sum())
    operator, exact = Diagonal(levels), truth.item()
    found = [method(operator, budget=products, generator=seed) for seed in range(draws)]
    error = math.sqrt(sum((e.value - exact) ** 2 for e in found) / draws)
    held = sum(e.covers(exact) for e in found) / draws
    halves = torch.tensor([(e.high - e.low) / 2 for e in found])
    return error, held, float(halves.median()) / max(error, 1e-300)


def row(
    name: str, products: int, rivals: dict[str, float], found: tuple[float, float, float]
) -> str:
    """Errors over the least of the rivals'."""
    error, held, width = found
    best = min(rivals.values())
    others = " | ".join(f"{value / best:.2f}" for value in rivals.values())
    line = f"| {name} | {products} | {others} | {error / best:.2f} | {held:.1%} | {width:.2f} |"
    print(line, flush=True)
    return line


def traces(name: str, levels: Tensor, products: int) -> str:
    """A row of the table of traces."""
    draws = DRAWS[products]
    g = torch.Generator().manual_seed(1)
    rivals = {
        "Hutchinson": hutchinson(levels, products),
        "Hutch++": hutch_plus_plus(levels, products, max(20, draws // 20), g),
        "XTrace": xtrace(levels, products, draws, g),
    }
    return row(name, products, rivals, ours(levels, products, draws))


def norms(name: str, levels: Tensor, products: int) -> str:
    """A row of the table of Frobenius norms, whose rivals estimate the square."""
    draws = NORM_DRAWS
    g, unit = torch.Generator().manual_seed(1), 2 * levels.norm().item()
    rivals = {
        "Hutchinson": hutchinson(levels**2, products) / unit,
        "Hutch++": hutch_plus_plus(levels, products, max(20, draws // 20), g, 2) / unit,
    }
    return row(name, products, rivals, ours(levels, products, draws, norm=True))


def densities(name: str, levels: Tensor) -> str:
    """A row of the table of densities: distance over that of plain quadrature of the same runs."""
    cells, exact, draws = [], rt.Spectrum.of(levels), DENSITY_DRAWS
    for probes, steps in SETTINGS:
        found = [
            rt.spectral_density(Diagonal(levels), probes=probes, steps=steps, generator=seed)
            for seed in range(draws)
        ]
        distances = torch.tensor([density.wasserstein_distance(exact) for density in found])
        bounds = torch.tensor([density.wasserstein_error for density in found])
        plain = [slq(levels, probes, steps, seed, exact) for seed in range(draws)]
        ratio = distances.mean() / torch.tensor(plain).mean()
        held = float((distances <= bounds).double().mean())
        cells.append(f"{ratio:.2f}, {held:.0%}, {float((bounds / distances).median()):.0f}")
    line = f"| {name} | " + " | ".join(cells) + " |"
    print(line, flush=True)
    return line


def slq(levels: Tensor, probes: int, steps: int, seed: int, exact: rt.Spectrum) -> float:
    """Distance of stochastic Lanczos quadrature, each probe by itself."""
    g, places, weights = torch.Generator().manual_seed(seed), [], []
    for _ in range(probes):
        start = torch.randn(len(levels), generator=g, dtype=levels.dtype)
        basis, diagonal, links = (start / start.norm())[:, None], [], []
        for step in range(steps):
            vector = levels * basis[:, -1]
            diagonal.append(vector @ basis[:, -1])
            for _ in range(2):
                vector = vector - basis @ (basis.T @ vector)
            links.append(vector.norm())
            if step < steps - 1:
                basis = torch.cat([basis, (vector / links[-1])[:, None]], 1)
        off = torch.diag(torch.stack(links[:-1]), 1)
        nodes, vectors = torch.linalg.eigh(torch.diag(torch.stack(diagonal)) + off + off.T)
        places.append(nodes)
        weights.append(vectors[0] ** 2 / probes)
    joint, order = torch.cat([*places, exact.levels]).sort()
    signed = torch.cat([*weights, -exact.multiplicities.double() / exact.size])[order]
    return float((signed.cumsum(0)[:-1].abs() * joint.diff()).sum())


def formerly(products: int) -> float:
    """Usual half width over the error of Student's interval over a third of the products."""
    from scipy.special import chdtri

    degrees = products - 2 * (products // 3) - 1
    return student(degrees) * math.sqrt(float(chdtri(degrees, 0.5)) / degrees)


def page(rows: dict[str, list[str]]) -> str:
    """The tables as Markdown."""
    lines = [
        "# Estimators on exact spectra",
        "",
        "Written by `python -m benchmarks.estimators`; not to be edited. Eleven curvature matrices",
        "whose eigenvalues are known (`benchmarks/hessian_spectra.py`), set aside before the",
        "estimators were tuned on eleven others, and judged once. P is 1,728 to 3,310.",
        "",
        "## Trace",
        "",
        "Root mean square errors over the least of Hutchinson's (closed form, on the sphere),",
        "Hutch++ and XTrace at equal products; 1,000 draws, 300 for 120 products, so that a ratio",
        "is known to about 3 and 5 %. Then the share of 95 % intervals that hold the truth, their",
        "median half width over the error, and over that of Hutch++ with Student's interval over",
        "its probes, which this library gave before.",
        "",
        "| matrix | products | Hutchinson | Hutch++ | XTrace | `rt.trace` | covered "
        "| width / error | width / former |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows["traces"]:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        products, theirs, own, width = int(cells[1]), *(float(cells[i]) for i in (3, 5, 7))
        lines.append(f"{row} {width * own / (formerly(products) * theirs):.2f} |")
    if rows["norms"]:
        lines += [
            "",
            "## Frobenius norm",
            "",
            "The same, 200 draws, beside means of |A z|² over all products and behind a sketch of",
            "the range; the rivals are first orders of the roots of these. When the norm's Krylov",
            "space ends was changed, on the tuning spectra, after a first look at five of these.",
            "",
            "| matrix | products | all random | sketch | `rt.frobenius_norm` | covered "
            "| width / error |",
            "|---|---|---|---|---|---|---|",
            *rows["norms"],
        ]
    lines += [
        "",
        "## Density",
        "",
        "Mean Wasserstein distance of `rt.spectral_density` over that of stochastic Lanczos",
        "quadrature with the same probes and steps, the share of draws whose `wasserstein_error`",
        "holds the distance, and its median over the distance; ten draws.",
        "",
        "| matrix | " + " | ".join(f"{p} probes of {k} steps" for p, k in SETTINGS) + " |",
        "|---" * (1 + len(SETTINGS)) + "|",
        *rows["densities"],
    ]
    return "\n".join([*lines, "", f"{platform.machine()}, torch {torch.__version__}.", ""])


def main() -> None:
    """Measure and print; write the page if everything was judged."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(DRAWS))
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--only", default="", help="part of the names of the spectra")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stored, rows = load(), {part: [] for part in PARTS}
    names = [name for name in (TUNE if arguments.tune else JUDGE) if arguments.only in name]
    for part in arguments.parts:
        for name in names:
            if part == "densities":
                rows[part].append(densities(name, stored[name]))
            for products in arguments.budgets if part != "densities" else []:
                method = traces if part == "traces" else norms
                rows[part].append(method(name, stored[name], products))
    if names == list(JUDGE) and set(arguments.parts) == set(PARTS):
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
