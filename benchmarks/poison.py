"""Memory that runs out and numbers that are not finite, injected one at a time."""

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import torch
from torch import Tensor, nn

import resid_theory as rt
from benchmarks.outcome import Outcome, Trial, judged, refused
from resid_theory.curvature.empirical_risk import EmpiricalRisk
from resid_theory.training import DivergenceError, loop

BAD = {"NaN": math.nan, "inf": math.inf, "-inf": -math.inf}
RECIPE = rt.Recipe(
    epochs=2, batch=8, lr=0.01, augmentation="none", milestones=(), precision="float64"
)
STEP = 5  # of 8: not the first, not the last


class Poison(nn.Module):
    """Passes its input on, until it adds something in the forward or the backward pass."""

    def __init__(self, value: float, *, backward: bool) -> None:
        super().__init__()
        self.value, self.backward, self.calls = value, backward, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.calls < STEP or not self.training:
            return x
        if not self.backward:
            return x + self.value
        x = x + 0
        x.register_hook(lambda gradient: gradient + self.value)
        return x


def net() -> nn.Sequential:
    """Linear layers and activations, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
        return nn.Sequential(*layers).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 6, generator=generator, dtype=torch.float64)
    return x, torch.arange(32) % 3


def train(module: nn.Module, pair: tuple[Tensor, Tensor], **options: object) -> rt.training.Run:
    return rt.train(module, pair, RECIPE, seed=0, device="cpu", progress=False, **options)


def stopped(call: Callable[[], rt.training.Run], step: int, tensor: str) -> str | None:
    """What is wrong with how a training stopped."""
    try:
        run = call()
    except DivergenceError as error:
        right = error.step == step and tensor in error.tensor
        return None if right else f"said step {error.step}, {error.tensor}"
    # tanh(inf) is 1 and ReLU(-inf) is 0: then there is nothing to stop for.
    numbers = [*run.net.parameters(), torch.tensor(run.column("loss"))]
    return None if all(bool(torch.isfinite(t).all()) for t in numbers) else "went on"


# NaN and infinity --------------------------------------------------------------------------------


def in_training() -> Iterator[Trial]:
    """In activations and gradients behind every layer, in weights, and in the data."""
    for name, value in BAD.items():
        for place in range(1, 5):
            for backward in (False, True):

                def trial(value=value, place=place, backward=backward) -> str | None:
                    module = net()
                    module.insert(place, Poison(value, backward=backward))
                    said = "the gradient of" if backward else f"the output of layer '{place}'"
                    return stopped(lambda: train(module, data()), STEP, said)

                yield f"{name} {'into a gradient' if backward else 'behind layer'} {place}", trial
        yield from in_weights(name, value)
        yield f"{name} in the data", lambda value=value: in_data(value)


def in_weights(name: str, value: float) -> Iterator[Trial]:
    """In every parameter, before a step."""
    for number, (weight, _) in enumerate(net().named_parameters()):

        def trial(number=number, weight=weight) -> str | None:
            module = net()

            def spoil(given: nn.Module, moment: rt.training.Progress) -> None:
                with torch.no_grad():
                    if moment.step == STEP - 1:
                        list(given.parameters())[number].view(-1)[0] = value

            call = lambda: train(module, data(), callbacks=[spoil], every=1)  # noqa: E731
            return stopped(call, STEP, f"the parameter '{weight}'")

        yield f"{name} in {weight}", trial


def in_data(value: float) -> str | None:
    """Refused before the first step, with the place."""
    x, y = data()
    x[3, 2] = value
    return refused(lambda: train(net(), (x, y)), kinds=ValueError, says=["data x", "(3, 2)"])


class Sick:
    """An operator whose products have one bad number, from the third product on."""

    def __init__(self, value: float) -> None:
        self.matrix = torch.diag(torch.arange(1.0, 51.0, dtype=torch.float64))
        self.shape, self.dtype, self.device = self.matrix.shape, self.matrix.dtype, "cpu"
        self.value, self.products = value, 0

    def __matmul__(self, vectors: Tensor) -> Tensor:
        self.products += 1
        result = self.matrix @ vectors
        if self.products >= 3:
            result.view(-1)[7] = self.value
        return result


def in_products() -> Iterator[Trial]:
    """In the products of every iterative method."""
    methods: dict[str, Callable[[Sick], object]] = {
        "eigenpairs": lambda a: rt.eigenpairs(a, 2),
        "trace": lambda a: rt.trace(a),
        "frobenius_norm": lambda a: rt.frobenius_norm(a),
        "spectral_density": lambda a: rt.spectral_density(a, probes=2, steps=10),
        "spectral_estimates": lambda a: rt.eigen.spectral_estimates(a, k=2),
    }
    for name, value in BAD.items():
        for method, call in methods.items():

            def trial(call=call, value=value) -> str | None:
                operator = Sick(value)
                wrong = refused(
                    lambda: call(operator), kinds=ValueError, says=["A @ vectors", "entry"]
                )
                late = operator.products - 3
                return wrong or (f"{late} products later" if late else None)

            yield f"{name} in {method}", trial


def in_measurements() -> Iterator[Trial]:
    """In data and weights of measurements."""
    calls: dict[str, Callable[[nn.Module, Tensor, Tensor], object]] = {
        "hessian": lambda n, x, y: rt.hessian(n, "cross_entropy", (x, y)),
        "curvature_operator": lambda n, x, y: rt.curvature_operator(n, "cross_entropy", (x, y)),
        "spectrum": lambda n, x, y: rt.spectrum(n, "cross_entropy", (x, y)),
        "layer_cushions": lambda n, x, _: rt.layer_cushions(n, x),
        "interlayer_cushions": lambda n, x, _: rt.interlayer_cushions(n, x, start="0", stop="4"),
        "evaluate": lambda n, x, y: rt.evaluate(n, (x, y), top=(1,)),
    }
    for name, value in BAD.items():
        for measure, call in calls.items():

            def spoiled_data(call=call, value=value) -> str | None:
                x, y = data()
                x[3, 2] = value
                return refused(lambda: call(net(), x, y), kinds=ValueError, says=["data x"])

            def spoiled_weight(call=call, value=value) -> str | None:
                module = net()
                with torch.no_grad():
                    module[2].weight[1, 1] = value
                return refused(lambda: call(module, *data()), kinds=ValueError, says=["net"])

            yield f"{name} in the data of {measure}", spoiled_data
            if measure != "evaluate":  # which counts outputs that are not numbers as wrong
                yield f"{name} in the weights of {measure}", spoiled_weight


def cost_of_the_watch() -> str:
    """The share of processor time in a training that goes into looking at its numbers."""
    module = rt.simplified_net(20)
    images = torch.randint(256, (64, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    pair = images.to(torch.uint8), torch.arange(64) % 10
    recipe = rt.Recipe(epochs=1, batch=32, lr=0.01, milestones=())

    look, spent = loop.Watch.look, 0.0

    def timed(*given: object) -> None:
        nonlocal spent
        begun = time.process_time()
        look(*given)
        spent += time.process_time() - begun

    begun = time.process_time()
    with mock.patch.object(loop.Watch, "look", timed):
        for _ in range(5):
            rt.train(copy.deepcopy(module), pair, recipe, seed=0, device="cpu", progress=False)
    share = spent / (time.process_time() - begun)
    return f"looking takes {100 * share:.1f} % of a step (simplified net, depth 20, 32 images)"


# Memory ------------------------------------------------------------------------------------------


def halving() -> Iterator[Trial]:
    """Graphs that fit for at most so many samples: chunks are halved, and the product is right."""
    (x, y), module = data(), net()
    vector = torch.randn(155, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    build = EmpiricalRisk.graph
    for matrix in ("hessian", "gauss_newton", "fisher"):
        exact = rt.curvature_operator(module, "cross_entropy", (x, y), matrix=matrix) @ vector
        for most in (16, 9, 4, 2, 1):

            def graph(self, batch, start, count, *, weigh=False, most=most):
                if count > most and not weigh:
                    raise torch.OutOfMemoryError("out of memory")
                return build(self, batch, start, count, weigh=weigh)

            def trial(matrix=matrix, exact=exact, graph=graph) -> str | None:
                with warnings.catch_warnings(), mock.patch.object(EmpiricalRisk, "graph", graph):
                    warnings.simplefilter("ignore")
                    operator = rt.curvature_operator(module, "cross_entropy", (x, y), matrix=matrix)
                    found = operator @ vector
                gap = float((found - exact).abs().max() / exact.abs().max())
                return None if gap <= 1e-13 else f"{gap:.1e} apart"

            yield f"{matrix}, room for {most} samples", trial


class Greedy(nn.Module):
    """Runs out of memory where a batch is too large."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.layer, self.most = nn.Linear(6, 3).double(), most

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.layer(x)


def fitting() -> Iterator[Trial]:
    """A training that does not fit names the batch that would."""
    for most, batch in ((0, None), (1, 1), (3, 2), (5, 4), (7, 4)):
        says = "not even a batch" if batch is None else f"a batch of {batch} fits"
        yield (
            f"room for {most} samples",
            lambda most=most, says=says: refused(
                lambda: train(Greedy(most), data()), kinds=MemoryError, says=["batch", says]
            ),
        )


def rows(quick: bool = False) -> list[Outcome]:
    """Rows of numbers that are not finite and of memory."""
    note = "" if quick else cost_of_the_watch()
    return [
        judged(
            "NaN, inf, -inf in data, weights, activations and gradients of a training",
            "stopped within that step, the tensor named; or swallowed by tanh or ReLU, the rest "
            "finite",
            in_training(),
            note,
        ),
        judged(
            "NaN, inf, -inf in a product of an iterative method",
            "stopped at that product",
            in_products(),
        ),
        judged(
            "NaN, inf, -inf in data or weights of a measurement",
            "one error that names which",
            in_measurements(),
        ),
        judged(
            "out of memory in a curvature product, down to one sample at a time",
            "halved until it fits; at most 1e-13 from the product in one piece",
            halving(),
        ),
        judged(
            "out of memory in a training step",
            "one error that names the batch that would fit",
            fitting(),
        ),
    ]


if __name__ == "__main__":
    for row in rows(quick=True):
        print(row.fault, row.trials, row.note, *row.lost, sep="\n  ")
