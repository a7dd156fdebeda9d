"""Each function on a GPU and under another default dtype: same numbers, each where it belongs.

A case is a function of a lab, which has nets and numbers of a dtype on a device; patterns of the
names of those tensors of its result that are on the GPU; and of those that have the lab's dtype.
"""

from contextlib import nullcontext
from fnmatch import fnmatch
from types import SimpleNamespace

import fake_cuda
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import resid_theory as rt
from resid_theory import curvature, eigen, stability, theory
from resid_theory.nested import leaves_of

OTHER = {torch.float32: torch.float64, torch.float64: torch.float32}


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device="cpu")


class Lab:
    """Nets and numbers of a dtype on a device."""

    def __init__(self, device, dtype, pretended):
        self.device, self.dtype, self.pretended = device, dtype, pretended

    def tensor(self, *shape, seed=0):
        return noise(*shape, seed=seed).to(self.device, self.dtype).requires_grad_()

    def near(self, *shape, seed=0):
        """Of the other dtype, on the CPU."""
        return noise(*shape, seed=seed).to(OTHER[self.dtype]).requires_grad_()

    def net(self, net):
        """Equal weights, whatever is drawn where it was made."""
        net = net.to(self.device, self.dtype).eval()
        for seed, (name, t) in enumerate([*net.named_parameters(), *net.named_buffers()]):
            if t.is_floating_point():
                drawn = noise(*t.shape, seed=seed) / max(1, t[0].numel()) ** 0.5
                t.data.copy_(drawn.abs() + 0.5 if "var" in name else drawn)
        torch.manual_seed(0)  # torch has drawn weights
        return net

    @property
    def generator(self):
        there = self.pretended and self.device.type == "cuda"
        return (fake_cuda.Generator if there else torch.Generator)().manual_seed(5)

    @property
    def conv(self):
        return self.net(nn.Sequential(
            nn.Conv2d(2, 3, 2, padding=1), nn.BatchNorm2d(3), nn.Softplus(),
            nn.Conv2d(3, 2, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3),
        ))  # fmt: skip

    @property
    def small(self):
        return self.net(nn.Sequential(nn.Linear(3, 2), nn.Softplus(), nn.Linear(2, 3)))

    @property
    def labels(self):
        return torch.tensor([0, 2, 1, 1, 2], device=self.device)

    @property
    def images(self):
        return self.tensor(5, 2, 3, 3).detach(), self.labels

    @property
    def vectors(self):
        return self.tensor(5, 3).detach(), self.labels


class Own:
    """An operator of somebody else, whose products have a graph."""

    def __init__(self, matrix):
        self.matrix = matrix
        self.shape, self.dtype, self.device = matrix.shape, matrix.dtype, matrix.device

    def __matmul__(self, vectors):
        return self.matrix @ vectors


def symmetric(lab, size=12, *, low=2):
    """A few eigenvalues far out, the others close together."""
    basis = torch.linalg.qr(noise(size, size))[0]
    values = torch.linspace(-0.1, 0.1, size, dtype=torch.float64)
    values[-low:] = torch.arange(1.0, 1 + low, dtype=torch.float64).square()
    return Own((basis * values @ basis.T).to(lab.device, lab.dtype).requires_grad_())


# -- operators that somebody gives -----------------------------------------------------------------


def algebra(lab):
    A, B = (eigen.as_operator(symmetric(lab, low=low).matrix) for low in (2, 3))
    v = lab.near(12, 2, seed=1)
    total = (2 * A - B / 3).shift(0.5)
    return {
        "products": [A @ v, v.detach().mT @ A, total @ v, total.T @ v, A @ v[:, 0].long()],
        "quadratic": [A.quadratic(v), total.quadratic(v[:, 1])],
        "dense": [A.dense(), total.dense()],
        "scipy": total.to_scipy() @ v.detach().numpy(),
        "scipy dtype": [A.to_scipy().dtype.name, total.to_scipy().dtype.name],
        "unit": eigen.Identity(12, dtype=lab.dtype, device=lab.device) @ v,
        "identity on the CPU": eigen.Identity(12) @ v,
    }


def arrays(lab):
    A = symmetric(Lab(torch.device("cpu"), lab.dtype, True)).matrix.detach()
    return [eigen.as_operator(A.numpy()) @ lab.near(12, 2),
            eigen.as_operator(A.double().round().int()) @ lab.near(12)]  # fmt: skip


def pairs(lab):
    A = symmetric(lab)
    return {
        "both": rt.eigenpairs(A, 2, which="both", block=3, tolerance=1e-4, generator=lab.generator),
        "alone": rt.eigenpairs(A, 3, block=1, capacity=24, verify=False, generator=lab.generator),
        "verified": rt.eigenpairs(A, 1, missed=1e-6, generator=lab.generator),
    }


def traces(lab):
    functions = rt.trace, rt.frobenius_norm
    return [f(symmetric(lab), budget=budget, generator=lab.generator)
            for f in functions for budget in (6, 8, 12)]  # fmt: skip


def densities(lab):
    A = symmetric(lab)
    found = rt.spectral_density(A, probes=3, steps=8, generator=lab.generator)
    outer = rt.eigenpairs(Own(A.matrix.to("cpu", OTHER[lab.dtype])), 2, tolerance=1e-3)
    grid = torch.linspace(-1, 26, 7, device=lab.device)
    exact = rt.Spectrum.of(torch.linalg.eigvalsh(A.matrix))
    return {
        "plain": found,
        "deflated": rt.spectral_density(
            A, probes=2, steps=9, deflate=outer, generator=lab.generator),
        "curves": [found.cumulative(grid), found.smoothed(), found.smoothed(grid, width=0.5)],
        "numbers": [found.share_below(0.1), found.negative_share, found.resolution,
                    found.quantile(0.3), found.quantile(0.9, magnitude=True),
                    found.wasserstein_distance(exact), found.wasserstein_error,
                    found.sampling_error, found.quadrature_error],
    }  # fmt: skip


def reports(lab):
    A = symmetric(lab)
    return [rt.eigen.spectral_estimates(
        A, 2, density=density, probes=3, steps=9, generator=lab.generator)
        for density in (False, True)]  # fmt: skip


def solutions(lab):
    A, v = eigen.as_operator(symmetric(lab).matrix), lab.near(12, 2, seed=3)
    return {
        "minres": A.solve(v, damping=0.5, tolerance=1e-4),
        "cg": (A @ v, eigen.Identity(12, device=lab.device).shift(2.0).solve(v[:, 0])),
        "diagonals": [A.diagonal(budget=budget, generator=lab.generator) for budget in (8, 12)],
    }


def spectra(lab):
    values = lab.tensor(6)
    counted = rt.Spectrum.of(values, torch.arange(1, 7, device=lab.device), error=1e-3)
    plain = rt.Spectrum.of(lab.near(6))
    distances = [
        counted.distance(counted.distinct(0.5)),
        plain.wasserstein_distance(rt.Spectrum.of(values)),
    ]
    return [counted, counted.distinct(0.3), plain.shown(), plain.eigenvalues, distances]


EIGEN = {
    "algebra": (algebra, "products.* quadratic.* dense.* unit", "products.* dense.* unit"),
    "arrays": (arrays, "", "0"),
    "eigenpairs": (pairs, "*.vectors", "*.vectors"),
    "traces": (traces, "", ""),
    "densities": (densities, "", ""),
    "reports": (reports, "*.vectors", "*.vectors"),
    "solutions": (solutions, "minres.values cg.0 cg.1.values diagonals.*", "cg.0"),
    "spectra": (spectra, "", ""),
}


# -- curvature -------------------------------------------------------------------------------------

MATRICES = {
    "hessian": dict(chunk=2, engine="rebuilt", weight_decay=0.1),
    "gauss_newton": dict(parameters="*weight", accumulate="float32"),
    "fisher": dict(engine="retained"),
    "fisher_mc": dict(draws=3),
    "empirical_fisher": dict(chunk=3),
}


def weighted(lab):
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=lab.dtype, device=lab.device)
    return nn.CrossEntropyLoss(weight, ignore_index=1)


def own_loss(output, target):
    return (output - F.one_hot(target, 3)).pow(4).sum() / len(output)


def operators(lab):
    net, (x, y) = lab.small, lab.vectors
    found = {}
    for matrix, options in MATRICES.items():
        if matrix == "fisher_mc":
            options = {**options, "generator": lab.generator}
        A = rt.curvature_operator(net, "cross_entropy", (x.cpu(), y), matrix=matrix, **options)
        v, part = lab.near(A.shape[1], 2), A.shift(0.3).block("0.weight")
        assert part.dtype == A.dtype
        found[matrix] = [A @ v, A.gradient, A.quadratic(v[:, 0]), part.dense()]
        found[matrix] += [A @ v[:, 0].round().long(), [A.loss, A.samples, A.error]]
    return found


def of_losses(lab):
    x, y = lab.vectors
    rows = F.one_hot(y, 3).to(x)
    return [
        rt.curvature_operator(lab.small, loss, (x, aims), matrix=matrix, chunk=3).gradient
        for loss, aims, matrix in (
            (weighted(lab), y, "empirical_fisher"), (own_loss, y, "hessian"),
            (own_loss, y, "empirical_fisher"), (nn.MSELoss(), rows, "hessian"),
            (lambda output, y: F.cross_entropy(output, y, reduction="sum"), y, "gauss_newton"),
        )
    ]  # fmt: skip


def fisher_losses(lab):
    x, y = lab.vectors
    rows = F.one_hot(y, 3).to(x)
    return [
        rt.curvature_operator(
            lab.small, loss, (x, aims), matrix=matrix, draws=2, generator=lab.generator
        ).dense()
        for loss, aims in ((nn.BCEWithLogitsLoss(), rows), ("square", rows),
                           (nn.CrossEntropyLoss(ignore_index=2), y))
        for matrix in ("fisher", "fisher_mc")
    ]  # fmt: skip


def varied(lab):
    net, data = lab.small, lab.vectors
    options = dict(loss="cross_entropy", matrix="hessian")
    weighed = rt.Data.of(data, like=net, sample_weight=[0.5, 1, 2, 3, 4])
    return [
        rt.curvature_operator(net, data=data, wrt="inputs", **options).dense(),
        rt.curvature_operator(net, data=data, wrt="1", **options).dense(),
        rt.curvature_operator(net, data=weighed, **options).dense(),
    ]


def images(lab):
    """Batch statistics, and kernels."""
    A = rt.curvature_operator(lab.conv, "cross_entropy", lab.images, batchnorm="batch")
    return A @ lab.near(A.shape[1])


def measured(lab):
    A = rt.curvature_operator(lab.small, "cross_entropy", lab.vectors)
    part = rt.curvature_operator(lab.small, "cross_entropy", lab.vectors, parameters="0.*")
    return {
        "table": curvature.layer_table(part, probes=4, generator=lab.generator),
        "filters": curvature.filter_directions(A, 2, generator=lab.generator),
        "along": curvature.loss_along(A, lab.near(A.shape[0]), lab.tensor(3).detach()),
        "batches": curvature.batch_spectra(
            lab.small, "cross_entropy", lab.vectors, batch=3, parameters="2.bias",
            generator=lab.generator),
    }  # fmt: skip


def factored(lab):
    found = []
    for options in (
        dict(), dict(matrix="fisher_mc", draws=2, generator=lab.generator),
        dict(matrix="empirical_fisher", weight_sharing="reduce", parameters="*weight"),
    ):  # fmt: skip
        net = lab.net(nn.Sequential(nn.Conv2d(2, 2, 2), nn.Flatten(), nn.Linear(8, 3)))
        K = curvature.kfac(net, "cross_entropy", lab.images, **options)
        v = lab.near(K.shape[0])
        part = K.block("2.weight")
        found.append({
            "products": [K @ v, K.T @ v, part.dense()], "diagonal": K.diagonal(),
            "spectrum": K.eigenvalues, "solved": K.solve(v, damping=0.1),
        })  # fmt: skip
    return found


def hessians(lab):
    square = lab.vectors[0], F.one_hot(lab.labels, 3).to(lab.vectors[0])
    linear = lab.net(rt.ShortcutNet(3, 2, 2))
    convolving = lab.net(
        nn.Sequential(nn.Conv2d(2, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    )
    return {
        "closed_form": rt.hessian(linear, "square", square),
        "layer_pairs": rt.hessian(lab.small, weighted(lab), lab.vectors, method="layer_pairs"),
        "convolution": rt.hessian(convolving, "cross_entropy", lab.images, weight_decay=0.1),
        "columns": rt.hessian(lab.small, "cross_entropy", lab.vectors, method="columns"),
        "spectrum": rt.hessian_spectrum(lab.small, "cross_entropy", lab.vectors),
    }


def of_nets(lab):
    options = dict(net=lab.small, loss="cross_entropy", data=lab.vectors, k=2)
    moment = SimpleNamespace(step=3, epoch=0, net=0)
    return {
        "dense": rt.spectrum(**options, weight_decay=0.1),
        "products": rt.spectrum(
            **options, method="matrix-free", matrix="fisher_mc", probes=2, steps=4,
            generator=lab.generator),
        "callbacks": [
            rt.curvature_callback("cross_entropy", lab.vectors, dense=dense, probes=2, steps=4,
                                  index=True)(lab.small, moment)
            for dense in (0, 99)
        ],
    }  # fmt: skip


class Branches(nn.Module):
    """A stream with two branches, whose biases it takes, too."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 3)
        self.way = nn.Linear(3, 3, bias=False)
        self.back = nn.Linear(3, 3)

    def forward(self, x):
        x = x + self.down(self.function(self.up(x)))
        return x + self.back(torch.tanh(self.way(x)))


def at_zero_of_nets(lab):
    return [rt.curvature.zero_point_of_net(
        lab.net(Branches(function)), "cross_entropy", lab.vectors)
        for function in (torch.tanh, torch.relu)]  # fmt: skip


CURVATURE = {
    "operators": (operators, "*", ""),
    "losses": (of_losses, "*", ""),
    "Fisher losses": (fisher_losses, "*", ""),
    "varied": (varied, "*", ""),
    "images": (images, "*", ""),
    "measured": (measured, "filters", ""),
    "factored": (factored, "*.products.* *.diagonal.* *.solved.values", ""),
    "hessians": (hessians, "closed_form columns convolution layer_pairs", ""),
    "of nets": (of_nets, "*.vectors", ""),
    "zero points of nets": (at_zero_of_nets, "", ""),
}  # fmt: skip


# -- stability -------------------------------------------------------------------------------------


def cushions(lab):
    net, x = lab.conv, lab.images[0]
    plain = nn.Sequential(
        nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 3, padding=1), nn.Tanh(), nn.Flatten(),
        nn.Linear(18, 3),
    )  # fmt: skip
    here = Lab(torch.device("cpu"), lab.dtype, lab.pretended)
    every = [
        rt.layer_cushions(net, x, norm="operator", batch=2, include_bias=True),
        rt.layer_cushions(net, x.cpu(), norm="operator", batchnorm="batch"),
        rt.layer_cushions(rt.to_residual(lab.net(plain)), x, weight="effective"),
        rt.layer_cushions(here.conv, x, device=lab.device),
    ]
    return [*every, rt.compare_cushions(
        every[2], every[2], resamples=9, generator=lab.generator)]  # fmt: skip


def between_layers(lab):
    net, x = lab.conv, lab.images[0]
    blocks = nn.Sequential(Branches(torch.tanh), nn.Linear(3, 3))
    return [
        rt.interlayer_cushions(net, x, start=0, stop=4, method="exact", batch=3),
        *(rt.interlayer_cushions(net, x, start=0, method="probes", probes=3, kappa=kappa, batch=3,
                                 generator=lab.generator, batchnorm=batchnorm)
          for kappa, batchnorm in (("spatial", "eval"), ("total", "batch"))),
        stability.block_cushions(lab.net(blocks), lab.vectors[0], blocks=["0"], probes=2,
                                 generator=lab.generator),
    ]  # fmt: skip


def noisy(lab):
    net, (x, y) = lab.conv, lab.images
    options = dict(draws=2, generator=lab.generator, batch=3)
    return [
        stability.activation_noise(net, x, levels=[0.1, 0.3], probes=2, start=1, **options),
        stability.weight_noise(net, x, levels=[0.1, 0.3], relative=True, **options),
        stability.weight_noise(net, x, levels=[0.1], layers=["3"], **options),
        stability.interlayer_smoothness(net, x, start=1, **options),
        stability.activation_contraction(net, x, batch=3),
        stability.compression_bound(
            net, (x, y), margin=1.0, probes=2, generator=lab.generator, batch=3),
    ]  # fmt: skip


def flows(lab):
    net = lab.net(rt.simplified_net(5))
    x = lab.tensor(5, 3, 8, 8).detach()
    return [
        stability.subactivation_paths(net),
        rt.dominant_flows(net, (x, lab.labels), batch=3),
        rt.dominant_flows(net, (x, lab.labels), loss=nn.CrossEntropyLoss(reduction="sum"),
                          mode="sub", statistic="median"),
        stability.feature_gradients(net, (x, lab.labels), batch=2),
    ]  # fmt: skip


STABILITY = {
    "cushions": (cushions, "", ""),
    "between layers": (between_layers, "", ""),
    "noise": (noisy, "", ""),
    "flows": (flows, "1.* 2.* 3", "1.gradients 2.gradients 3"),
}

# -- theory ----------------------------------------------------------------------------------------


def of_moments(lab):
    x, y = lab.tensor(7, 3), lab.tensor(7, 3, seed=1)
    moments = rt.Moments.of((x, y))
    given = {
        name: getattr(moments, name).float().requires_grad_() for name in ("sxx", "syx", "syy")
    }
    return {
        "moments": [moments, rt.Moments(**given, count=7), moments + moments,
                    moments.is_whitened],
        "there": rt.Moments.of((lab.near(7, 3), lab.near(7, 2))).to(lab.device),
        "whitened": rt.data.whiten(x.detach(), 2),
        "applied": rt.data.whiten(x.detach(), 2)[1].apply(y.detach()),
        "classes": rt.data.one_hot(lab.labels, 3),
        "gathered": rt.data.gather((x.detach(), y.detach())).x,
        "optimum": theory.linear_optimum((x, y)),
    }  # fmt: skip


def linear(lab):
    units = [
        theory.Unit((lab.tensor(5, 4), lab.tensor(3, 5, seed=1))),
        theory.Unit((lab.tensor(2, 3), lab.tensor(3, 2, seed=2)), lab.tensor(3, 3)),
    ]
    data = lab.near(7, 4).detach(), lab.near(7, 3).detach()
    net = lab.net(rt.ShortcutNet(4, 2, 2))
    return {
        "units": [theory.linear_loss(units, data), theory.linear_gradient(units, data),
                  theory.linear_hessian(units, data)],
        "product": theory.linear_hvp(units, data, lab.tensor(2, 47).detach()),
        "net": theory.linear_gradient(net, (data[0], data[0])),
    }  # fmt: skip


def at_zero(lab):
    x, y = lab.tensor(7, 3).detach(), lab.tensor(7, 3, seed=1).detach()
    gain, leaning = lab.tensor(3).double(), rt.ShortcutNet(3, 2, 2, mid="relu", bias=True)
    point = {
        "n = 1": theory.zero_point((x, y), blocks=2, shortcut_depth=1),
        "n = 2": theory.zero_point((x, y), blocks=2, shortcut_depth=2, hidden=4, bias=True,
                                   mid="relu", pre="tanh"),
        "plain": theory.zero_point((x, y), blocks=2, shortcut_depth=2, hidden=4),
        "n = 3": theory.zero_point((x, lab.labels.repeat(2)[:7]), blocks=2, shortcut_depth=3,
                                   hidden=2, loss="cross_entropy", last_bias=True),
        "layout": theory.zero_point(
            (x, y), layout=theory.Layout.dense(lab.tensor(3, 3).tril(), branch=2),
            input_map=lab.tensor(3, 3), output_map=lab.tensor(3, 3), norm=lab.net(nn.LayerNorm(3))),
        "scaled": theory.zero_point(
            (x, y), layout=theory.Layout.scaled(2, skip=lab.tensor(2), scale=0.5)),
        "streams": theory.zero_point((x, y), layout=theory.Layout.hyper_connections(
            lab.tensor(2, 2), lab.tensor(2, 2, 2), lab.tensor(2, 2), readout="sum")),
        "averaged": theory.zero_point((x, y), layout=theory.Layout.averaged(3, branch=1)),
        "kink": theory.zero_point((x, y), blocks=2, shortcut_depth=2, mid="relu",
                                  bias=True, kink=lab.net(leaning)),
        "stream": theory.zero_point((x, y), blocks=2, shortcut_depth=2, norm_at="stream",
                                    norm=lambda rows: gain * RMS()(rows)),
        "written": theory.zero_point((x, y), blocks=2, shortcut_depth=2, norm_at="write",
                                     norm=lab.net(Damped())),
        "bent": theory.zero_point((x, y), blocks=2, shortcut_depth=1, post="shifted_softplus"),
    }  # fmt: skip
    found = {}
    for name, one in point.items():
        found[name] = {"point": one, "gradient": one.gradient, "spectrum": one.spectrum,
                       "summary": one.summary()}  # fmt: skip
        if name in ("n = 1", "n = 2", "n = 3", "plain"):
            found[name]["hessian"] = one.hessian()
        if one.escape_time > 0 and name != "kink":
            found[name]["start"] = theory.escape_start(one, 0.1)
    jet = [lab.tensor(4, 3), lab.tensor(3, 4)] * 2
    return {**found, "A": point["n = 1"].matrix_a, "jet": point["plain"].leading_jet(jet)}


class Damped(nn.Module):
    """A norm that is zero at zero."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.gain * x / (1 + x.square().mean(-1, keepdim=True)).sqrt()


class RMS(nn.Module):
    """A norm without weights."""

    def forward(self, x):
        return x / x.square().mean(-1, keepdim=True).sqrt()


def toeplitz(lab):
    own, lower = (noise(2, 2, seed=seed).to(lab.device) for seed in (1, 2))
    A = theory.BlockToeplitz(diagonal=own + own.mT, lower=lower, blocks=5)
    numbers = A.radius, A.growth_rate, A.negative_growth_rate, A.predicted_condition_number()
    counts = A.counts_below(lab.tensor(4))
    assert counts.dtype == torch.int64
    return [A.dense(), A.spectrum, counts, numbers, A.bulk_percentile(30)]


def transformers(lab):
    g, z = lab.tensor(5, 4, 6), lab.tensor(5, 4, 6, seed=1)
    weights = lab.near(2, 4, 4).softmax(-1)
    point = theory.transformer_zero_point(
        [theory.Branch.attention(g, z, heads=2, kv_heads=1, causal=True, bias=True),
         theory.Branch.attention(g, z, heads=2, attended=weights),
         theory.Branch.mlp(g, z, hidden=3, slope=0.3)],
        shift=lab.tensor(6, 6), biases=2, gradient=0.1)  # fmt: skip
    return [point.branches, point.spectrum, point.shifts, point.index, point.table()]


def laws(lab):
    ratio = lab.tensor(3).detach().abs()
    flow = dict(channels=4, layers=3, deviation=0.3, open_share=0.7)
    found = theory.isometry(0.3)
    return {
        "flows": [theory.TrivialFlow(**flow, persistent=persistent, identity=identity).simulate(
            draws=3, generator=lab.generator)
            for persistent in (False, True) for identity in (False, True)],
        "closed": [f() for persistent in (False, True) for identity in (False, True)
                   for flows in [theory.TrivialFlow(**flow, persistent=persistent,
                                                    identity=identity)]
                   for f in (flows.approximation, flows.refined)],
        "ratios": [theory.exceedance(ratio), theory.exceedance_integral(ratio),
                   theory.logistic(ratio)],
        "isometry": [found, found.cdf(lab.tensor(4))],
        "exponents": [theory.lyapunov_exponents(4, init=init) for init in ("xavier", "orthogonal")],
    }  # fmt: skip


def spheres(lab):
    x, y = (F.normalize(lab.tensor(3, 3, seed=seed).detach().double()) for seed in (1, 2))
    held = x.clone().requires_grad_()
    found = theory.interpolate(held, y, units=9)
    moved = theory.interpolate(x, y, units=9, mode="perturbed", draws=2, generator=lab.generator)
    return {
        "exact": found, "perturbed": moved, "merged": theory.interpolate(
            x, y[[0, 0, 1]], units=40, mode="merge", tolerance=0.01),
        "net": [found.output, found.loss, found.error, found.lower_bound, found.largest_norm],
        "chart": [found.chart(1), found.path(1)],
        "arcs": [theory.great_arc(x[0], y[0]), theory.path_around(
            x[0], y[0], F.normalize(x[:1] + y[:1]), 0.3)],
        "column": [theory.move_column(x, 1, 1.2 * x[1].float(), direction=way)
                   for way in ("column", "margin")],
        "margin": theory.widest_margin(held[0], held[1:]),
        "least": theory.least_norm(held, y, units=9, tolerance=0.1),
    }  # fmt: skip


THEORY = {
    "moments": (of_moments, "*", ""),
    "linear nets": (linear, "*", ""),
    "zero points": (
        at_zero,
        "A jet *.correlation *.shift *.diagonal *.lower *.blocks_* *.gradient* *.hessian *.start.*",
        "",
    ),
    "Toeplitz": (toeplitz, "0", ""),
    "transformers": (transformers, "0.*", ""),
    "laws": (laws, "flows.* ratios.*", ""),
    "spheres": (
        spheres,
        "*.net.* *.x *.y *.targets *.positions net.0 arcs.* column.* margin chart.1",
        "",
    ),
}


# -- nets ------------------------------------------------------------------------------------------


def built(lab):
    """Where the default device is, of the default dtype."""
    torch.set_default_dtype(lab.dtype)
    with torch.device(lab.device):
        maps = [[noise(3, 3)], [noise(3, 3), noise(3, 3)]], [noise(2, 3), None, noise(2, 3)]
        return [
            rt.diracnet(10, generator=lab.generator, bn_init="uniform"),
            rt.simplified_net(8, identity="residual", generator=lab.generator),
            rt.full_net(8, doubling="pad", generator=lab.generator),
            rt.initialize(rt.ShortcutNet(3, 2, 2, bias=True, dtype=lab.dtype), "orthogonal",
                          generator=lab.generator),
            rt.networks.LayoutNet(3, *maps, branch=2, bias=True, last_bias=True,
                                  norm=nn.LayerNorm, dtype=lab.dtype),
            stability.subactivation_paths(rt.simplified_net(5)),
        ]  # fmt: skip


def drawn(lab):
    shape, dense = (2, 2, 3, 3), (lab.tensor(2, 2).tril(), lab.near(3))
    nets = rt.networks.LayoutNet(3, *dense, branch=2), rt.ShortcutNet(3, 2, 2)
    return {
        "coefficients": [rt.networks.layout_of(net.to(lab.device)) for net in nets],
        "weights": [rt.networks.draw_weights(init, shape, generator=lab.generator, dtype=lab.dtype)
                    for init in ("near_zero", "orthogonal", "xavier", "zero")],
        "identity": rt.identity.identity_kernel((4, 2, 3), dtype=lab.dtype, device=lab.device),
        "entries": rt.identity.id_entries((4, 2, 3)),
        "mask": rt.id_mask(lab.net(rt.simplified_net(5))),
    }  # fmt: skip


def equivalent(lab):
    plain = lab.net(rt.simplified_net(5))
    residual = rt.to_residual(plain)
    x = lab.tensor(2, 3, 8, 8).detach()
    normed = lab.net(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)))
    return {
        "residual": residual,
        "plain": rt.to_plain(residual),
        "folded": rt.fold(normed),
        "gap": rt.check_equivalence(
            residual,
            plain,
            (x, lab.labels[:2]),
            loss="cross_entropy",
            steps=2,
            optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1),
        ),
    }


class Residual(nn.Module):
    def __init__(self, *branch):
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x):
        return x + self.branch(x)


def shortcuts(lab):
    found = []
    for net in (
        nn.Sequential(Residual(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)), nn.Linear(3, 2)),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), Residual(
            nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))),
        nn.Sequential(Residual(nn.Linear(3, 3), nn.Linear(3, 3))),
    ):  # fmt: skip
        net = lab.net(net)
        found += [rt.shortcuts(net), rt.absorb(net)]
    return found


def descents(lab):
    net, weights = rt.ShortcutNet(3, 2, 2), 0.1 * lab.tensor(2, 2, 2, 3, 3)
    data = lab.near(7, 3).detach(), lab.near(7, 3, seed=1).detach()
    bent = rt.ShortcutNet(3, 2, 2, mid="tanh", dtype=lab.dtype)
    paths = [
        rt.gradient_descent(one, "square", data, weights=weights, epochs=3, keep=keep,
                            learning_rate=lab.near(2).detach().abs() / 9)
        for one, keep in ((net, [0, 3]), (bent, []))
    ]  # fmt: skip
    one = rt.descent.hessian_trajectory(net, "square", data, paths[0], row=(1,))
    falling = lab.tensor(3).detach().abs().sort(descending=True).values
    return {
        "paths": paths, "trajectory": one, "statistic": one.each(lambda s: s.trace),
        "reached": [path.reached(float(path.loss.min()) * 1.01) for path in paths],
        "final": [paths[0].final_loss, paths[0].diverged, paths[0].mean_weight_norm],
        "at": rt.descent.at_loss(falling, [1.0, 2, 3], [0.3, 1.0]),
    }  # fmt: skip


def evaluated(lab):
    net, (x, y) = lab.small, lab.vectors
    data = rt.Data.of((x.cpu(), y), like=net, sample_weight=[0.5, 1, 2, 3, 4])
    return [rt.evaluate(net, data, loss=loss, top=(1, 2), batch=2)
            for loss in ("cross_entropy", weighted(lab), own_loss)]  # fmt: skip


def crops(lab):
    pixels = (lab.tensor(5, 2, 3, 4).detach().abs() * 50).to(torch.uint8)
    images = rt.Images(pixels=pixels, labels=lab.labels, mean=(0.3, 0.2), std=(0.5, 0.6))
    drawn = rt.data.draw_crops(5, pad=1, generator=torch.Generator().manual_seed(0))
    return {
        "crops": drawn,
        "augmented": [rt.data.augment(pixels, drawn.to(lab.device), pad=1, padding=padding)
                      for padding in ("zeros", "reflect")],
        "inputs": [images.inputs(some, lab.dtype)
                   for some in (pixels, lab.tensor(1, 2, 3, 4).detach())],
    }  # fmt: skip


NETS = {
    "built": (built, "[0-4].*", "[0-4].*"),
    "drawn": (drawn, "weights.* identity mask.*", "weights.* identity"),
    "equivalent": (equivalent, "folded.* plain.* residual.*", "folded.* plain.* residual.*"),
    "shortcuts": (shortcuts, "1.* 3.* 5.*", "1.* 3.* 5.*"),
    "descents": (
        descents,
        "paths.*.[dglw]* paths.*.kept_* final.* reached.*",
        "paths.*.kept_weights paths.*.learning_rate paths.*.weights",
    ),
    "evaluated": (evaluated, "", ""),
    "crops": (crops, "augmented.* inputs.*", "inputs.*"),
}

CASES = {**EIGEN, **CURVATURE, **STABILITY, **THEORY, **NETS}
SLOW = {
    "densities", "reports", "operators", "losses", "Fisher losses", "measured", "factored",
    "hessians", "of nets", "zero points of nets", "between layers", "noise", "flows",
    "zero points", "spheres", "built", "equivalent", "shortcuts", "eigenpairs", "varied",
    "cushions", "evaluated",
}  # fmt: skip
"""Numbers in float64 alone, in float32 but dtypes: devices and defaults do not depend on these."""


def leaves(found):
    """All that a result holds, by name; of a net its state."""
    for name, leaf in leaves_of(found):
        name = name.replace("[", ".").replace("]", "").lstrip(".")
        if isinstance(leaf, nn.Module):
            yield from ((f"{name}.{key}", t) for key, t in leaf.state_dict().items())
        elif isinstance(leaf, np.ndarray):
            yield name, (leaf.dtype.name, leaf.tolist())
        else:
            yield name, leaf


def chosen(names, patterns):
    return {name for name in names if any(fnmatch(name, p) for p in patterns.split())}


def results(call, device, dtype, default, pretended):
    """Leaves by name, and where each tensor is."""
    torch.set_default_dtype(default)  # put back behind each test
    with fake_cuda.pretended() if pretended and device == "cuda" else nullcontext():
        torch.manual_seed(0)
        before = torch.get_rng_state()
        found = dict(leaves(call(Lab(torch.device(device), dtype, pretended))))
        assert torch.equal(torch.get_rng_state(), before)  # nothing is drawn from there
        tensors = {name: leaf for name, leaf in found.items() if isinstance(leaf, torch.Tensor)}
        assert not [name for name, tensor in tensors.items() if tensor.grad_fn is not None]
        return found, tensors, {name for name, tensor in tensors.items() if tensor.is_cuda}


@pytest.mark.parametrize("name", CASES)
def test_results_are_the_same_wherever_they_are_computed(name, request):
    call, there, of_given_dtype = CASES[name]
    pretended = request.config.getoption("--device") != "cuda"
    dtypes = []
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.float64, 1e-10)):
        expected, tensors, _ = results(call, "cpu", dtype, dtype, pretended)
        dtypes.append({name: tensor.dtype for name, tensor in tensors.items()})
        if dtype == torch.float32 and name in SLOW:
            continue
        found, others, places = results(call, "cuda", dtype, OTHER[dtype], pretended)
        assert places == chosen(others, there)
        assert {name: tensor.dtype for name, tensor in others.items()} == dtypes[-1]
        if pretended:  # another order of sums turns eigenvectors around
            assert_same(found, expected, tolerance)
    moved = {name for name, dtype in dtypes[0].items() if dtype != dtypes[1][name]}
    assert moved == {
        name for name in chosen(dtypes[0], of_given_dtype) if dtypes[0][name].is_floating_point
    }


def assert_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        other = found[name]
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(
                other, value, rtol=tolerance, atol=tolerance, equal_nan=True,
                msg=lambda text, name=name: f"{name}: {text}",
            )  # fmt: skip
        elif isinstance(value, float):
            assert other == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), name
        else:
            assert other == value, name
