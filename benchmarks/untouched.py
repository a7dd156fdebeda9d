"""Whether measurements leave all as it was, and whether the same seed gives the same bytes."""

import contextlib
import copy
import random
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import resid_theory as rt
from benchmarks import crash
from benchmarks.outcome import Outcome, judged
from resid_theory import stability
from resid_theory.runtime import store

Measure = Callable[[nn.Module, Tensor, Tensor], object]


def net() -> nn.Sequential:
    """BatchNorm, dropout, a frozen parameter, modes and gradients that differ by layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Flatten(),
            nn.Linear(4 * 36, 5),
        ).double()
    layers[4].bias.requires_grad_(False)
    layers.train()
    layers[1].eval()
    layers[0].weight.grad = torch.ones_like(layers[0].weight)
    return layers


def residual() -> nn.Sequential:
    """A net of the library, for what only those have."""
    module = rt.simplified_net(8, identity="residual").double().train()
    module[0].weight.grad = torch.ones_like(module[0].weight)
    return module


def dirac() -> nn.Sequential:
    """One with BatchNorm and parametrizations, in eval mode, as folding asks for."""
    return rt.diracnet(10).double().eval()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.arange(6) % 5


CE = "cross_entropy"
MEASURES: dict[str, tuple[Callable[[], nn.Module], Measure]] = {
    "hessian": (net, lambda n, x, y: rt.hessian(n[4:], CE, (hidden(x), y))),
    "hessian, batch statistics": (
        net,
        lambda n, x, y: rt.curvature_operator(n, CE, (x, y), batchnorm="batch").gradient,
    ),
    "hessian_cost": (net, lambda n, x, y: rt.curvature.hessian_cost(n, CE, (x, y))),
    "hessian_spectrum": (net, lambda n, x, y: rt.hessian_spectrum(n[4:], CE, (hidden(x), y))),
    "curvature_operator": (
        net,
        lambda n, x, y: rt.curvature_operator(n, CE, (x, y)) @ torch.ones(size(n)).double(),
    ),
    "gauss_newton": (
        net,
        lambda n, x, y: (
            rt.curvature_operator(n, CE, (x, y), matrix="gauss_newton")
            @ torch.ones(size(n)).double()
        ),
    ),
    "fisher": (
        net,
        lambda n, x, y: (
            rt.curvature_operator(n, CE, (x, y), matrix="fisher") @ torch.ones(size(n)).double()
        ),
    ),
    "eigenpairs": (net, lambda n, x, y: rt.eigenpairs(rt.curvature_operator(n, CE, (x, y)), 1)),
    "trace": (net, lambda n, x, y: rt.trace(rt.curvature_operator(n, CE, (x, y)), budget=9)),
    "frobenius_norm": (
        net,
        lambda n, x, y: rt.frobenius_norm(rt.curvature_operator(n, CE, (x, y)), budget=9),
    ),
    "spectral_density": (
        net,
        lambda n, x, y: rt.spectral_density(
            rt.curvature_operator(n, CE, (x, y)), probes=2, steps=5
        ),
    ),
    "spectrum": (
        net,
        lambda n, x, y: rt.spectrum(n, CE, (x, y), k=1, method="matrix-free", probes=3),
    ),
    "layer_cushions": (net, lambda n, x, _: rt.layer_cushions(n, x)),
    "layer_cushions, batch statistics": (
        net,
        lambda n, x, _: rt.layer_cushions(n, x, batchnorm="batch"),
    ),
    "interlayer_cushions": (net, lambda n, x, _: rt.interlayer_cushions(n, x, start="0", stop="4")),
    "activation_noise": (net, lambda n, x, _: stability.activation_noise(n, x)),
    "weight_noise": (net, lambda n, x, _: stability.weight_noise(n, x)),
    "activation_contraction": (net, lambda n, x, _: stability.activation_contraction(n, x)),
    "interlayer_smoothness": (net, lambda n, x, _: stability.interlayer_smoothness(n, x)),
    "compression_bound": (net, lambda n, x, y: stability.compression_bound(n, (x, y), margin=0.1)),
    "evaluate": (net, lambda n, x, y: rt.evaluate(n, (x, y))),
    "check_equivalence": (residual, lambda n, x, _: rt.check_equivalence(n, rt.to_plain(n), x)),
    "to_plain": (residual, lambda n, x, _: rt.to_plain(n)),
    "to_residual": (residual, lambda n, x, _: rt.to_residual(rt.to_plain(n))),
    "id_mask": (residual, lambda n, x, _: rt.id_mask(n)),
    "block_cushions": (
        lambda: rt.preresnet(10).double(),
        lambda n, x, _: rt.stability.block_cushions(n, big(x)),
    ),
    "dominant_flows": (residual, lambda n, x, y: rt.dominant_flows(n, (big(x), y))),
    "feature_gradients": (residual, lambda n, x, y: stability.feature_gradients(n, (big(x), y))),
    "fold": (dirac, lambda n, x, _: rt.fold(n)),
    "save_checkpoint": (residual, lambda n, x, _: in_folder(rt.save_checkpoint, n)),
    "save_dirac_file": (dirac, lambda n, x, _: in_folder(rt.save_dirac_file, n)),
}


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def hidden(x: Tensor) -> Tensor:
    """Inputs of the last layers."""
    return torch.cat([x, x[:, :1]], 1)


def big(x: Tensor) -> Tensor:
    return x.repeat(1, 1, 2, 2)[:2].repeat(3, 1, 1, 1)


def in_folder(save: Callable[..., object], module: nn.Module) -> None:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "net.json", module)


def state(module: nn.Module) -> dict[str, object]:
    """All that a measurement could change, as bytes or plain values."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {
        "tensors": {name: t.detach().numpy().tobytes() for name, t in tensors.items()},
        "identity": {name: id(t) for name, t in tensors.items()},
        "versions": {name: t._version for name, t in module.named_parameters()},
        "gradients": {
            name: None if p.grad is None else p.grad.numpy().tobytes()
            for name, p in module.named_parameters()
        },
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "training": [part.training for part in module.modules()],
        "hooks": [len(part._forward_hooks) for part in module.modules()],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002  (the state that others use)
        "python": random.getstate(),
        "modes": (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()),
    }


def unchanged(make: Callable[[], nn.Module], measure: Measure, grad: bool) -> str | None:
    """What a measurement changed."""
    module, (x, y) = make(), data()
    inputs = x.clone(), y.clone()
    with torch.set_grad_enabled(grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = copy.deepcopy(state(module))
        measure(module, x, y)
        after = state(module)
    changed = [name for name in before if before[name] != after[name]]
    same = torch.equal(x, inputs[0]) and torch.equal(y, inputs[1])
    return None if not changed and same else f"changed {changed or 'the data'}"


# The same seed twice -----------------------------------------------------------------------------


def twice(call: Callable[[], bytes]) -> str | None:
    """Whether two calls give the same bytes, whatever was drawn between them."""
    first = call()
    torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    return None if call() == first else "two results"


def bytes_of(*tensors: Tensor) -> bytes:
    return b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)


def training(nets: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(None):
        crash.training(folder, nets)
        return repr(crash.left(Path(folder))).encode()


def estimate() -> bytes:
    report = rt.spectrum(net(), CE, data(), k=2, density=True, method="matrix-free", steps=8)
    assert report.pairs is not None
    return bytes_of(report.pairs.vectors) + str(report).encode()


def drawn() -> bytes:
    generator = torch.Generator().manual_seed(3)
    nets = [rt.simplified_net(8, generator=generator), rt.diracnet(10, generator=3)]
    weights = rt.networks.draw_weights("orthogonal", (2, 2, 5, 5), generator=generator)
    return bytes_of(weights, *(p for module in nets for p in module.parameters()))


def descended() -> bytes:
    generator = torch.Generator().manual_seed(0)
    given = rt.Regression(*torch.randn(2, 30, 4, generator=generator, dtype=torch.float64))
    start = rt.networks.draw_weights("near_zero", (3, 2, 2, 4, 4), generator=generator)
    options = {"weights": start, "learning_rate": 0.1, "epochs": 20}
    return bytes_of(
        rt.gradient_descent(rt.ShortcutNet(4, 2, 2), "square", given, **options).weights
    )


def noise() -> bytes:
    return repr(stability.weight_noise(net(), data()[0])).encode()


def saved() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        rt.save_checkpoint(Path(folder) / "net.json", rt.diracnet(10))
        arrays = {"b": np.arange(3), "a": np.linspace(0, 1, 5)}
        store.write_arrays(Path(folder) / "a.npz", arrays)
        return b"".join(path.read_bytes() for path in sorted(Path(folder).iterdir()))


TWICE: dict[str, Callable[[], bytes]] = {
    "a training": lambda: training(1),
    "three nets stacked": lambda: training(3),
    "a spectrum by products": estimate,
    "first weights": drawn,
    "a descent": descended,
    "noise": noise,
    "files": saved,
}


def rows(quick: bool = False) -> list[Outcome]:
    """Rows of measurements that leave no trace and of seeds."""
    grads = (True,) if quick else (True, False)
    measured = [
        (name, lambda make=make, call=call, grad=grad: unchanged(make, call, grad))
        for grad in grads
        for name, (make, call) in MEASURES.items()
    ]
    promise = "parameters, buffers, .grad, flags, hooks, data and random states bit-identical"
    repeats = 1 if quick else 5
    again = [
        (f"{name}, {number}", lambda call=call: twice(call))
        for number in range(repeats)
        for name, call in TWICE.items()
    ]
    return [
        judged("a public measurement of a net", promise, measured),
        judged("the same seed twice", "byte-identical results and files", again),
    ]


if __name__ == "__main__":
    for row in rows(quick=True):
        print(row.fault, row.trials, row.note, *row.lost, sep="\n  ")
