"""Linear nets at the identity: exact relations of "Demystifying ResNet" and DiracNets."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import resid_theory as rt
from experiments.claim import Arrays, Claim
from experiments.criteria import Criterion
from experiments.crossings.curvature import DEMYSTIFYING, DIRACNETS
from resid_theory.identity import with_identity
from resid_theory.theory import zero_point


def _dirac_layers(width: int, depth: int, generator: torch.Generator) -> nn.Sequential:
    """Linear layers W = diag(a) I + diag(b) V / |V| at a = 1, b = 0 with random V."""
    net = nn.Sequential(
        *[nn.Linear(width, width, False, dtype=torch.float64) for _ in range(depth)]
    )
    for layer in net:
        with_identity(layer, "dirac")
        inside = layer.parametrizations.weight[0]
        original = layer.parametrizations.weight.original
        with torch.no_grad():
            inside.a.fill_(1.0)
            inside.b.zero_()
            original.copy_(torch.randn(width, width, generator=generator, dtype=torch.float64))
    return net


def _hessian_by_loops(net: nn.Module, loss: Callable[[nn.Module], Tensor]) -> Tensor:
    """Hessian by two nested gradients, in the order of the parameters."""
    parameters = list(net.parameters())
    first = torch.autograd.grad(loss(net), parameters, create_graph=True)
    flat = torch.cat([part.reshape(-1) for part in first])
    rows = [
        torch.cat([
            part.reshape(-1)
            for part in torch.autograd.grad(
                entry, parameters, retain_graph=True, materialize_grads=True
            )
        ])
        for entry in flat
    ]  # fmt: skip
    return torch.stack(rows)


def _predicted(net: nn.Sequential, one_shortcut: Tensor, slope: Tensor) -> Tensor:
    """Jᵀ H J + gradient times second derivatives of the weights; H is of the 1-shortcut net."""
    width, starts, size, parts = net[0].in_features, {}, 0, dict(net.named_parameters())
    for name, parameter in parts.items():
        starts[name] = size
        size += parameter.numel()
    jacobian = torch.zeros(len(one_shortcut), size, dtype=torch.float64)
    bent = torch.zeros(size, size, dtype=torch.float64)
    for number, layer in enumerate(net):
        v = layer.parametrizations.weight.original.detach()
        lengths = v.norm(dim=1, keepdim=True)
        unit = v / lengths
        at = {part: starts[f"{number}.parametrizations.weight.{part}"] for part in ("0.a", "0.b")}
        own = starts[f"{number}.parametrizations.weight.original"]
        for row in range(width):
            entries = slice(number * width**2 + row * width, number * width**2 + (row + 1) * width)
            jacobian[entries.start + row, at["0.a"] + row] = 1.0
            jacobian[entries, at["0.b"] + row] = unit[row]
            # At b = 0 the only nonzero second derivative is the mixed one by b and V.
            across = (slope[number, row] - unit[row] * (unit[row] @ slope[number, row])) / (
                lengths[row]
            )
            columns = slice(own + row * width, own + (row + 1) * width)
            bent[at["0.b"] + row, columns] = across
            bent[columns, at["0.b"] + row] = across
    return jacobian.T @ one_shortcut @ jacobian + bent


def compute_linear_dirac(
    *, width: int, depth: int, samples: int, seeds: Sequence[int]
) -> dict[str, np.ndarray]:
    """Compute relative gaps between Hessians by autograd and those predicted at zero weights."""
    gaps = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        x, y = (torch.randn(samples, width, generator=generator).double() for _ in range(2))

        def loss(net: nn.Module, x: Tensor = x, y: Tensor = y) -> Tensor:
            return (net(x) - y).square().sum() / (2 * samples)

        shortcut = rt.ShortcutNet(width, blocks=depth, shortcut_depth=1)
        dirac = _dirac_layers(width, depth, generator)
        theory = zero_point((x, y), blocks=depth, shortcut_depth=1)
        back = shortcut.definition5_order().argsort()  # from the paper's order to ours
        predicted, measured = theory.hessian()[back][:, back], _hessian_by_loops(shortcut, loss)
        slope = theory.gradient.expand(depth, width, width)
        full, found = _predicted(dirac, predicted, slope), _hessian_by_loops(dirac, loss)
        outputs = (shortcut(x) - dirac(x)).detach().abs().max() / x.abs().max()
        parts = [(measured - predicted, predicted), (found - full, full)]
        gaps.append([float(outputs), *(float(gap.norm() / of.norm()) for gap, of in parts)])
    return {
        "gaps": np.array(gaps), "eigenvalues": torch.linalg.eigvalsh(full).numpy(),
        "one_shortcut": torch.linalg.eigvalsh(predicted).numpy(),
    }  # fmt: skip


def judge_linear_dirac(a: Arrays) -> list[Criterion]:
    """Require equality up to rounding: below 1e-12 for sums of fewer than 10^4 products."""
    names = (
        "outputs at a = 1, b = 0: Dirac net against the 1-shortcut net at zero",
        "Hessian in the effective weights: loops against the 1-shortcut net's closed form",
        "Hessian in (a, b, V): loops against the closed form carried over",
    )
    return [
        Criterion(
            name,
            "relative difference < 1e-12 (rounding)",
            f"at most {worst:.1e} over {len(a['gaps'])} nets",
            bool(worst < 1e-12),
        )
        for name, worst in zip(names, a["gaps"].max(0), strict=True)
    ]


def draw_linear_dirac(figure: Figure, a: Arrays) -> None:
    """Plot both spectra."""
    ax = figure.subplots()
    for name, label in (
        ("one_shortcut", "1-shortcut net at zero"),
        ("eigenvalues", "Dirac, b = 0"),
    ):
        values = a[name]
        ax.plot(np.linspace(0, 1, len(values)), values, ".", label=label)
    ax.set(xlabel="share of the eigenvalues", ylabel="eigenvalue (loss / weight²)")
    ax.legend()


CLAIMS = [
    Claim(
        id="crossings/linear_dirac",
        kind="law",
        source=f"{DEMYSTIFYING}, Theorem 2 with n = 1, on the parametrization of {DIRACNETS}",
        says="A linear Dirac net at a = 1, b = 0 is the 1-shortcut network at zero: its Hessian is "
        "the closed form, carried over.",
        settings={
            "quick": {"width": 4, "depth": 3, "samples": 20, "seeds": [0, 1]},
            "paper": {"width": 8, "depth": 6, "samples": 50, "seeds": [5, 6, 7, 8, 9]},
        },
        compute=compute_linear_dirac,
        judge=judge_linear_dirac,
        draw=draw_linear_dirac,
    ),
]  # fmt: skip
