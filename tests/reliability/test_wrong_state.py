"""Measurements leave everything as it was, and the same seed gives the same bytes."""

import copy
import random
import tempfile
from pathlib import Path

import interrupted
import numpy as np
import pytest
import torch
from torch import nn

import resid_theory as rt
from resid_theory import stability
from resid_theory.runtime import store

CE = "cross_entropy"


def net():
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


def backbone():
    """A net of the library, for what only those have."""
    module = rt.simplified_net(8, identity="residual").double().train()
    module[0].weight.grad = torch.ones_like(module[0].weight)
    return module


def dirac():
    """One with BatchNorm and parametrizations, in eval mode, as folding asks for."""
    return rt.diracnet(10).double().eval()


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 6, 6, generator=generator, dtype=torch.float64)
    return x, torch.arange(6) % 5


def operator(n, x, y, **options):
    return rt.curvature_operator(n, CE, (x, y), **options)


def product(n, x, y, matrix):
    matrix = operator(n, x, y, matrix=matrix)
    return matrix @ torch.ones(matrix.shape[0]).double()


def hidden(x):
    """Inputs of the last layers."""
    return torch.cat([x, x[:, :1]], 1)


def big(x):
    return x.repeat(1, 1, 2, 2)[:2].repeat(3, 1, 1, 1)


def in_folder(save, module):
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "net.json", module)


OF_ANY_NET = {
    "hessian": lambda n, x, y: rt.hessian(n[4:], CE, (hidden(x), y)),
    "hessian, batch statistics": lambda n, x, y: operator(n, x, y, batchnorm="batch").gradient,
    "hessian_cost": lambda n, x, y: rt.curvature.hessian_cost(n, CE, (x, y)),
    "hessian_spectrum": lambda n, x, y: rt.hessian_spectrum(n[4:], CE, (hidden(x), y)),
    "curvature_operator": lambda n, x, y: product(n, x, y, "hessian"),
    "gauss_newton": lambda n, x, y: product(n, x, y, "gauss_newton"),
    "empirical_fisher": lambda n, x, y: product(n, x, y, "empirical_fisher"),
    "eigenpairs": lambda n, x, y: rt.eigenpairs(operator(n, x, y), 1),
    "trace": lambda n, x, y: rt.trace(operator(n, x, y), budget=9),
    "frobenius_norm": lambda n, x, y: rt.frobenius_norm(operator(n, x, y), budget=9),
    "spectral_density": lambda n, x, y: rt.spectral_density(operator(n, x, y), probes=2, steps=5),
    "spectrum": lambda n, x, y: rt.spectrum(n, CE, (x, y), k=1, method="matrix-free", probes=3),
    "layer_cushions": lambda n, x, y: rt.layer_cushions(n, x),
    "layer_cushions, batch statistics": lambda n, x, y: rt.layer_cushions(n, x, batchnorm="batch"),
    "interlayer_cushions": lambda n, x, y: rt.interlayer_cushions(n, x, start="0", stop="4"),
    "activation_noise": lambda n, x, y: stability.activation_noise(n, x),
    "weight_noise": lambda n, x, y: stability.weight_noise(n, x),
    "activation_contraction": lambda n, x, y: stability.activation_contraction(n, x),
    "interlayer_smoothness": lambda n, x, y: stability.interlayer_smoothness(n, x),
    "compression_bound": lambda n, x, y: stability.compression_bound(n, (x, y), margin=0.1),
    "evaluate": lambda n, x, y: rt.evaluate(n, (x, y)),
}
OF_A_BACKBONE = {
    "check_equivalence": lambda n, x, y: rt.check_equivalence(n, rt.to_plain(n), x),
    "to_plain": lambda n, x, y: rt.to_plain(n),
    "to_residual": lambda n, x, y: rt.to_residual(rt.to_plain(n)),
    "id_mask": lambda n, x, y: rt.id_mask(n),
    "dominant_flows": lambda n, x, y: rt.dominant_flows(n, (big(x), y)),
    "feature_gradients": lambda n, x, y: stability.feature_gradients(n, (big(x), y)),
    "save_checkpoint": lambda n, x, y: in_folder(rt.save_checkpoint, n),
}
OF_A_DIRACNET = {
    "fold": lambda n, x, y: rt.fold(n),
    "save_dirac_file": lambda n, x, y: in_folder(rt.save_dirac_file, n),
}
MEASURES = {
    **{name: (net, measure) for name, measure in OF_ANY_NET.items()},
    **{name: (backbone, measure) for name, measure in OF_A_BACKBONE.items()},
    **{name: (dirac, measure) for name, measure in OF_A_DIRACNET.items()},
    "block_cushions": (
        lambda: rt.preresnet(10).double(),
        lambda n, x, y: stability.block_cushions(n, big(x)),
    ),
}


def state(module):
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


def changes(make, measure, grad=True):
    """What a measurement changed."""
    module, (x, y) = make(), data()
    with torch.set_grad_enabled(grad):
        before = copy.deepcopy(state(module))
        measure(module, x, y)
        after = state(module)
    assert torch.equal(x, data()[0]) and torch.equal(y, data()[1])
    return [name for name in before if before[name] != after[name]]


@pytest.mark.reliability(
    "a public measurement of a net",
    "parameters, buffers, .grad, flags, hooks, data and random states bit-identical",
    quick=1,
    full=2,
)
@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.filterwarnings("ignore")
def test_a_measurement_changes_nothing(name, trial):
    """With gradients enabled, and, in a full run, disabled."""
    assert not changes(*MEASURES[name], grad=trial == 0)


def test_changes_are_seen():
    def spoil(net, _x, _y):
        net[1].running_mean.add_(1)
        net.eval()
        torch.rand(1)

    assert changes(net, spoil) == ["tensors", "training", "torch"]


# The same seed twice ------------------------------------------------------------------------------


def bytes_of(*tensors):
    return b"".join(t.detach().contiguous().numpy().tobytes() for t in tensors)


def training(folder, nets):
    interrupted.training(folder, nets, epochs=3)  # the rate changes after two
    return interrupted.left_by_training(folder)


def estimates(folder):
    report = rt.spectrum(net(), CE, data(), k=2, density=True, method="matrix-free", steps=8)
    return bytes_of(report.pairs.vectors), str(report)


def initial_weights(folder):
    generator = torch.Generator().manual_seed(3)
    nets = [rt.simplified_net(8, generator=generator), rt.diracnet(10, generator=3)]
    weights = rt.networks.draw_weights("orthogonal", (2, 2, 5, 5), generator=generator)
    return bytes_of(weights, *(p for module in nets for p in module.parameters()))


def descent(folder):
    generator = torch.Generator().manual_seed(0)
    given = rt.Regression(*torch.randn(2, 30, 4, generator=generator, dtype=torch.float64))
    start = rt.networks.draw_weights("near_zero", (3, 2, 2, 4, 4), generator=generator)
    options = {"weights": start, "learning_rate": 0.1, "epochs": 20}
    path = rt.gradient_descent(rt.ShortcutNet(4, 2, 2), "square", given, **options)
    return bytes_of(path.weights)


def files(folder):
    rt.save_checkpoint(folder / "net.json", rt.diracnet(10))
    store.write_arrays(folder / "a.npz", {"b": np.arange(3), "a": np.linspace(0, 1, 5)})
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir())]


SEEDED = {
    "a training": lambda folder: training(folder, 1),
    "three nets": lambda folder: training(folder, 3),
    "a spectrum by products": estimates,
    "initial weights": initial_weights,
    "a descent": descent,
    "noise": lambda folder: repr(stability.weight_noise(net(), data()[0])),
    "files": files,
}


@pytest.mark.reliability("the same seed twice", "byte-identical results and files", quick=1, full=5)
@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.filterwarnings("ignore")
def test_the_same_seed_twice(name, trial, tmp_path):
    """Whatever was drawn between the two."""
    found = []
    for turn in ("first", "second"):
        (tmp_path / turn).mkdir()
        found.append(SEEDED[name](tmp_path / turn))
        torch.rand(3), np.random.rand(3), random.random()  # noqa: NPY002
    assert found[0] == found[1]
