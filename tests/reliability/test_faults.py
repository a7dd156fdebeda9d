"""Numbers that are not finite, and memory that runs out, injected one at a time."""

import math
from unittest import mock

import pytest
import torch
from small_trainings import Greedy, Poison
from torch import nn
from trials import assert_refused

import resid_theory as rt
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.runtime import store
from resid_theory.training import DivergenceError

BAD = {"NaN": math.nan, "inf": math.inf, "-inf": -math.inf}
each_value = pytest.mark.parametrize("value", BAD.values(), ids=BAD)
RECIPE = rt.Recipe(
    epochs=2, batch=8, lr=0.01, augmentation="none", milestones=(), precision="float64"
)
STEP = 5  # of 8: not the first, not the last
WEIGHTS = [f"{layer}.{name}" for layer in (0, 2, 4) for name in ("weight", "bias")]


@pytest.fixture
def net():
    """Linear layers and activations."""
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    ).double()


@pytest.fixture
def data(generator):
    return torch.randn(32, 6, generator=generator, dtype=torch.float64), torch.arange(32) % 3


def train(net, data, **options):
    return rt.train(net, data, RECIPE, seed=0, device="cpu", progress=False, **options)


def check_stopped(net, data, tensor, **options):
    """A training stops at the step and names the tensor, or all its numbers are finite."""
    try:
        run = train(net, data, **options)
    except DivergenceError as error:
        assert "learning rate" in str(error)
        assert error.step == STEP and tensor in error.tensor
    else:  # tanh(inf) is 1 and ReLU(-inf) is 0: then there is nothing to stop for
        numbers = [*run.net.parameters(), torch.tensor(run.column("loss"))]
        assert all(bool(torch.isfinite(t).all()) for t in numbers)


# Numbers that are not finite ----------------------------------------------------------------------

TRAINING = pytest.mark.reliability(
    "NaN, inf, -inf in data, weights, activations and gradients of a training",
    "stopped within that step, the tensor named; or swallowed by tanh or ReLU, the rest finite",
)
MEASUREMENT = pytest.mark.reliability(
    "NaN, inf, -inf in data or weights of a measurement", "one error that names which"
)


@TRAINING
@each_value
@pytest.mark.parametrize("place", range(1, 5))
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_activations_and_gradients(net, data, value, place, backward, tmp_path):
    net.insert(place, Poison(value, STEP, backward=backward))
    tensor = "the gradient of" if backward else f"the output of layer '{place}'"
    check_stopped(net, data, tensor, out=tmp_path, save_seconds=0)
    saved, about = store.read_checkpoint(tmp_path / "checkpoint.json")
    assert about["step"] in (STEP - 1, 8)  # before the bad number, or the end
    assert all(bool(torch.isfinite(t).all()) for t in saved.values() if t.is_floating_point())


@TRAINING
@each_value
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_a_training(net, data, value, name):
    def spoil(given, moment):
        with torch.no_grad():
            if moment.step == STEP - 1:
                given.get_parameter(name).view(-1)[0] = value

    check_stopped(net, data, f"the parameter '{name}'", callbacks=[spoil], every=1)


@TRAINING
@each_value
def test_data_of_a_training(net, data, value):
    data[0][3, 2] = value
    assert_refused(lambda: train(net, data), kinds=ValueError, says=["data x", "(3, 2)"])


class Sick:
    """An operator whose products have one bad number, from the third product on."""

    def __init__(self, value):
        self.matrix = torch.diag(torch.arange(1.0, 201.0, dtype=torch.float64))
        self.shape, self.dtype, self.device = self.matrix.shape, self.matrix.dtype, "cpu"
        self.value, self.products = value, 0

    def __matmul__(self, vectors):
        self.products += 1
        result = self.matrix @ vectors
        if self.products >= 3:
            result.view(-1)[7] = self.value
        return result


METHODS = {
    "eigenpairs": lambda a: rt.eigenpairs(a, 2),
    "trace": rt.trace,
    "frobenius_norm": rt.frobenius_norm,
    "spectral_density": lambda a: rt.spectral_density(a, probes=2, steps=10),
    "spectral_estimates": lambda a: rt.eigen.spectral_estimates(a, k=2),
}


@pytest.mark.reliability(
    "NaN, inf, -inf in a product of an iterative method", "stopped at that product"
)
@each_value
@pytest.mark.parametrize("method", METHODS)
def test_products(value, method):
    operator = Sick(value)
    says = ["A @ vectors", "entry"]
    assert_refused(lambda: METHODS[method](operator), kinds=ValueError, says=says)
    assert operator.products == 3


CE = "cross_entropy"
MEASURES = {
    "hessian": lambda net, data: rt.hessian(net, CE, data),
    "curvature_operator": lambda net, data: rt.curvature_operator(net, CE, data),
    "spectrum": lambda net, data: rt.spectrum(net, CE, data),
    "layer_cushions": lambda net, data: rt.layer_cushions(net, data[0]),
    "interlayer_cushions": lambda net, data: rt.interlayer_cushions(
        net, data[0], start="0", stop="4"
    ),
    "evaluate": lambda net, data: rt.evaluate(net, data, top=(1,)),
}


@MEASUREMENT
@each_value
@pytest.mark.parametrize("measure", MEASURES)
def test_data_of_a_measurement(net, data, value, measure):
    data[0][3, 2] = value
    assert_refused(lambda: MEASURES[measure](net, data), kinds=ValueError, says=["data x"])


@MEASUREMENT
@each_value
@pytest.mark.parametrize("measure", [name for name in MEASURES if name != "evaluate"])
def test_weights_of_a_measurement(net, data, value, measure):
    """But for ``evaluate``, which counts outputs that are not numbers as wrong."""
    with torch.no_grad():
        net[2].weight[1, 1] = value
    assert_refused(lambda: MEASURES[measure](net, data), kinds=ValueError, says=["net"])


# Memory -------------------------------------------------------------------------------------------


@pytest.mark.reliability(
    "out of memory in a curvature product, down to one sample at a time",
    "halved until it fits; at most 1e-13 from the product in one piece",
)
@pytest.mark.parametrize("most", [16, 9, 4, 2, 1])
@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton", "empirical_fisher"])
@pytest.mark.filterwarnings("ignore")  # that chunks were halved
def test_chunks_are_halved(net, data, generator, matrix, most):
    build = EmpiricalRisk.graph

    def graph(self, batch, start, count, *, weigh=False, **options):
        if count > most and not weigh:
            raise torch.OutOfMemoryError("out of memory")
        return build(self, batch, start, count, weigh=weigh, **options)

    vector = torch.randn(155, generator=generator, dtype=torch.float64)
    exact = rt.curvature_operator(net, CE, data, matrix=matrix) @ vector
    with mock.patch.object(EmpiricalRisk, "graph", graph):
        found = rt.curvature_operator(net, CE, data, matrix=matrix) @ vector
    assert float((found - exact).abs().max() / exact.abs().max()) <= 1e-13


@pytest.mark.reliability(
    "out of memory in a training step", "one error that names the batch that would fit"
)
@pytest.mark.parametrize(
    ("most", "says"),
    [
        (0, "not even a batch"),
        *((m, f"a batch of {b} fits") for m, b in [(1, 1), (3, 2), (5, 4), (7, 4)]),
    ],
)
def test_a_training_names_the_batch_that_fits(data, most, says):
    greedy = Greedy(most, torch.OutOfMemoryError("CUDA out of memory"))
    net = nn.Sequential(greedy, nn.Linear(6, 3).double())
    assert_refused(lambda: train(net, data), kinds=MemoryError, says=["batch", says])
