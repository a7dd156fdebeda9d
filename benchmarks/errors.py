"""Numerical error of every conversion and estimator: python -m benchmarks.errors.

Writes docs/errors.md. Each number is the largest relative difference, over seeds, between what the
library computes with a net of that precision and the same quantity of the same (rounded) weights in
float64; for estimates from random probes, over seeds too, the statistical error is what is left.
"""

import argparse
import copy
import math
import platform
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

import resid_theory as rt

PAGE = Path(__file__).resolve().parents[1] / "docs" / "errors.md"
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
SEEDS = 5


Error = Callable[[torch.dtype, int], float]
"""The error of a net of that precision, for one seed."""


def relative(measured: Tensor, exact: Tensor) -> float:
    """Largest difference over the largest exact entry."""
    measured, exact = measured.detach().double(), exact.detach().double()
    return float((measured - exact).abs().max() / exact.abs().max())


def images(dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(4, 3, 16, 16, generator=generator, dtype=F64).to(dtype)


def residual(dtype: torch.dtype, seed: int) -> nn.Sequential:
    return rt.simplified_net(20, identity="residual", generator=seed).to(dtype)


def with_statistics(net: nn.Sequential, seed: int) -> nn.Sequential:
    """BatchNorm as after training: scales, shifts and statistics of no special value."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            shape = module.weight.shape
            draw = [0.5 + torch.rand(shape, generator=generator, dtype=F64) for _ in range(4)]
            with torch.no_grad():
                module.weight.copy_(draw[0])
                module.bias.copy_(draw[1] - 1)
                module.running_mean.copy_(draw[2] - 1)
                module.running_var.copy_(draw[3])
    return net.eval()


# Conversions -------------------------------------------------------------------------------------


@torch.no_grad()
def conversion(
    make: Callable[[torch.dtype, int], nn.Module], convert: Callable[[nn.Module], nn.Module]
) -> Error:
    """Outputs of the converted net against those of the given one in float64."""

    def error(dtype: torch.dtype, seed: int) -> float:
        net, x = make(dtype, seed), images(dtype, seed)
        return relative(convert(net)(x), copy.deepcopy(net).double()(x.double()))

    return error


def unconverted(dtype: torch.dtype, seed: int) -> float:
    """The same difference with no conversion at all: what the precision costs by itself."""
    net, x = residual(dtype, seed), images(dtype, seed)
    return relative(net(x), copy.deepcopy(net).double()(x.double()))


def through_a_file(dtype: torch.dtype, seed: int) -> float:
    """Weights after saving and loading."""
    net = with_statistics(rt.diracnet(10, generator=seed), seed).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        rt.save_checkpoint(Path(folder) / "net.json", net)
        again = rt.load_checkpoint(Path(folder) / "net")
    pairs = zip(net.state_dict().values(), again.state_dict().values(), strict=True)
    return max(relative(a, b) for a, b in pairs if float(b.abs().max()) > 0)


def dirac(dtype: torch.dtype, seed: int) -> nn.Sequential:
    return with_statistics(rt.diracnet(28, generator=seed), seed).to(dtype)


def full(dtype: torch.dtype, seed: int) -> nn.Sequential:
    return with_statistics(rt.full_net(20, generator=seed), seed).to(dtype)


# Curvature ---------------------------------------------------------------------------------------


def problem(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A net of 169 parameters in float64; weights and inputs are float32 numbers."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 4))
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.6 * torch.randn(p.shape, generator=generator))
    x = torch.randn(60, 8, generator=generator)
    return net.double(), x.double(), torch.arange(60) % 4


@cache
def exact(seed: int, matrix: str) -> Tensor:
    """The matrix by columns of float64 products with unit vectors."""
    net, x, y = problem(seed)
    operator = rt.curvature_operator(net, "cross_entropy", (x, y), matrix=matrix)
    return operator @ torch.eye(operator.shape[0], dtype=F64)


def operator(dtype: torch.dtype, seed: int, **options: object) -> rt.curvature.CurvatureOperator:
    net, x, y = problem(seed)
    return rt.curvature_operator(net.to(dtype), "cross_entropy", (x.to(dtype), y), **options)


@cache
def nested(seed: int) -> Tensor:
    """The Hessian by torch's own double loop of gradients, which shares no code with ours."""
    net, x, y = problem(seed)
    shapes = [p.shape for p in net.parameters()]
    flat = torch.nn.utils.parameters_to_vector(net.parameters()).detach()
    names = [name for name, _ in net.named_parameters()]

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([math.prod(shape) for shape in shapes])
        named = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(net, named, (x,)), y)

    return torch.autograd.functional.hessian(loss, flat)


def dense(method: str) -> Error:
    def error(dtype: torch.dtype, seed: int) -> float:
        net, x, y = problem(seed)
        given = (x.to(dtype), y)
        return relative(
            rt.hessian(net.to(dtype), "cross_entropy", given, method=method), nested(seed)
        )

    return error


def hessian_vector(matrix: str, **options: object) -> Error:
    def error(dtype: torch.dtype, seed: int) -> float:
        wanted = nested(seed) if matrix == "hessian" else exact(seed, matrix)
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randn(len(wanted), 4, generator=generator, dtype=F64)
        found = operator(dtype, seed, matrix=matrix, **options)
        return relative(found @ vectors.to(found.dtype), wanted @ vectors)

    return error


def eigenvalues(tolerance: float) -> Error:
    """Top five, each relative to the largest."""

    def error(dtype: torch.dtype, seed: int) -> float:
        wanted = torch.linalg.eigvalsh(nested(seed)).flip(0)[:5]
        found = rt.eigenpairs(operator(dtype, seed), 5, tolerance=tolerance)
        return relative(found.values, wanted)

    return error


def residuals(dtype: torch.dtype, seed: int) -> float:
    """‖H u - λ u‖ of the top five against the true H, over the largest eigenvalue."""
    found, matrix = rt.eigenpairs(operator(dtype, seed), 5, tolerance=1e-6), nested(seed)
    vectors = found.vectors.double()
    gap = matrix @ vectors - vectors * found.values.double()
    return float(gap.norm(dim=0).max() / torch.linalg.eigvalsh(matrix).abs().max())


def estimate(name: str, *, in_standard_errors: bool = False) -> Error:
    """A number from random probes."""

    def error(dtype: torch.dtype, seed: int) -> float:
        matrix = nested(seed)
        wanted = {"trace": matrix.trace(), "frobenius_norm": matrix.norm()}[name]
        method = {"trace": rt.trace, "frobenius_norm": rt.frobenius_norm}[name]
        found = method(operator(dtype, seed), generator=seed)
        # A trace may be near zero: the norm is the scale of both.
        scale = found.standard_error if in_standard_errors else float(matrix.norm())
        return abs(found.value - float(wanted)) / scale

    return error


def density(dtype: torch.dtype, seed: int) -> float:
    """Wasserstein distance from the true spectrum, over the largest |eigenvalue|."""
    wanted = rt.Spectrum.of(torch.linalg.eigvalsh(nested(seed)))
    found = rt.spectral_density(operator(dtype, seed), generator=seed)
    return found.wasserstein_distance(wanted) / wanted.max_magnitude


# Stability ---------------------------------------------------------------------------------------


def cushions(dtype: torch.dtype, seed: int) -> float:
    net, x = residual(dtype, seed), images(dtype, seed)
    wanted = rt.layer_cushions(copy.deepcopy(net).double(), x.double())
    return relative(rt.layer_cushions(net, x).values, wanted.values)


def cushion_by_definition(dtype: torch.dtype, seed: int) -> float:
    """Of one convolution, straight from the formula in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Conv2d(3, 5, 3, padding=1).to(dtype)
    x, exact_layer = images(dtype, seed), copy.deepcopy(layer).double()
    out = nn.functional.conv2d(x.double(), exact_layer.weight, padding=1)
    wanted = out.flatten(1).norm(dim=1) / x.double().flatten(1).norm(dim=1)
    wanted = wanted / exact_layer.weight.norm()
    return relative(rt.layer_cushions(layer, x).values[0], wanted)


def interlayer(dtype: torch.dtype, seed: int) -> float:
    net, x = rt.simplified_net(8, generator=seed).to(dtype), images(dtype, seed)[:1, :, :8, :8]
    found, wanted = (
        rt.interlayer_cushions(n, v, start=1, method="exact")
        for n, v in ((net, x), (copy.deepcopy(net).double(), x.double()))
    )
    return relative(found.values, wanted.values)


def flows(dtype: torch.dtype, seed: int) -> float:
    net, x = (
        rt.simplified_net(8, identity="residual", generator=seed).to(dtype),
        images(dtype, seed),
    )
    y = torch.arange(4)
    found = rt.dominant_flows(net, (x, y)).mean
    return float(
        (found - rt.dominant_flows(copy.deepcopy(net).double(), (x.double(), y)).mean).abs().max()
    )


# The page ----------------------------------------------------------------------------------------

EVERY, ALL_FLOAT = (BF16, F32, F64), (F32, F64)
FUNCTION = "outputs of the given net in float64"
TORCH = "`torch.autograd.functional.hessian` in float64"
MATRIX = f"the matrix by {TORCH}"
COLUMNS, SAME = "its columns in float64", "the same call on the net in float64"
PAIRS = "`rt.hessian`, products of layer pairs (always in float64)"
THERE_AND_BACK = conversion(residual, lambda net: rt.to_residual(rt.to_plain(net)))
REBUILT = hessian_vector("hessian", engine="rebuilt", chunk=7)
TRACE_IN_ERRORS = estimate("trace", in_standard_errors=True)
DENSITY = "`rt.spectral_density`, 10 probes, Wasserstein distance over max \\|λ\\|"

# What, against what, its error, for nets of which precisions.
SECTIONS: dict[str, list[tuple[str, str, Error, Sequence[torch.dtype]]]] = {
    "Conversions": [
        ("forward pass, depth 20, nothing converted", FUNCTION, unconverted, (BF16, F32)),
        ("`rt.to_plain`, depth 20", FUNCTION, conversion(residual, rt.to_plain), EVERY),
        ("`rt.to_residual(rt.to_plain(net))`, depth 20", FUNCTION, THERE_AND_BACK, EVERY),
        (
            "`rt.to_plain`, two-conv blocks, depth 20",
            FUNCTION,
            conversion(full, rt.to_plain),
            EVERY,
        ),
        ("DiracNet-28, nothing converted", FUNCTION, conversion(dirac, nn.Identity()), (BF16, F32)),
        ("`rt.fold`, DiracNet-28", FUNCTION, conversion(dirac, rt.fold), EVERY),
        ("`rt.save_checkpoint`, `rt.load_checkpoint`", "the weights", through_a_file, EVERY),
    ],
    "Curvature": [
        (PAIRS, TORCH, dense("layer_pairs"), ALL_FLOAT),
        ("`rt.hessian`, columns", TORCH, dense("columns"), ALL_FLOAT),
        ("$Hv$, kept graphs", MATRIX, hessian_vector("hessian", engine="retained"), ALL_FLOAT),
        ("$Hv$, rebuilt graphs, chunks of 7", MATRIX, REBUILT, ALL_FLOAT),
        (
            "Gauss-Newton product, chunks of 7",
            COLUMNS,
            hessian_vector("gauss_newton", chunk=7),
            ALL_FLOAT,
        ),
        (
            "empirical Fisher product, chunks of 7",
            COLUMNS,
            hessian_vector("empirical_fisher", chunk=7),
            ALL_FLOAT,
        ),
        ("`rt.eigenpairs`, top 5, tolerance 1e-3", MATRIX, eigenvalues(1e-3), ALL_FLOAT),
        ("`rt.eigenpairs`, top 5, tolerance 1e-6", MATRIX, eigenvalues(1e-6), ALL_FLOAT),
        ("their residuals, tolerance 1e-6", MATRIX, residuals, ALL_FLOAT),
        ("`rt.trace`, 60 random products, over ‖H‖", MATRIX, estimate("trace"), ALL_FLOAT),
        ("the same in its own standard errors", MATRIX, TRACE_IN_ERRORS, ALL_FLOAT),
        ("`rt.frobenius_norm`, 60 random products", MATRIX, estimate("frobenius_norm"), ALL_FLOAT),
        (DENSITY, MATRIX, density, ALL_FLOAT),
    ],
    "Noise stability": [
        ("layer cushion of a convolution", "its formula in float64", cushion_by_definition, EVERY),
        ("`rt.layer_cushions`, depth 20", SAME, cushions, EVERY),
        ("`rt.interlayer_cushions`, exact", SAME, interlayer, ALL_FLOAT),
        ("`rt.dominant_flows`, mean share (absolute)", SAME, flows, ALL_FLOAT),
    ],
}


def main() -> None:
    """Measure, print, write the tables as Markdown."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Numerical errors",
        "",
        "Written by `python -m benchmarks.errors`; not to be edited. Each number is the largest",
        f"relative difference over {SEEDS} seeds, between a net of that precision and the same",
        "(rounded) weights and inputs in float64. The unit round-off is 3.9e-3 in bfloat16, 6.0e-8",
        "in float32 and 1.1e-16 in float64. An empty cell is a precision without a meaning there.",
    ]
    for name, rows in SECTIONS.items():
        lines += ["", f"## {name}", "", "| what | against | bfloat16 | float32 | float64 |"]
        lines += ["|---|---|---|---|---|"]
        for what, against, error, dtypes in rows:
            worst = {dtype: max(error(dtype, seed) for seed in range(SEEDS)) for dtype in dtypes}
            numbers = [f"{worst[dtype]:.1e}" if dtype in worst else "" for dtype in EVERY]
            lines.append(f"| {what} | {against} | {' | '.join(numbers)} |")
            print(lines[-1], flush=True)
    lines += ["", f"{platform.machine()}, one thread, torch {torch.__version__}."]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
