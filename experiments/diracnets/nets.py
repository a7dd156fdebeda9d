"""Nets of arXiv:1706.00388 and their trainings, shared by several claims.

The recipe is ``training.DIRACNETS``, scaled to the given number of epochs. Its padding of 4 pixels
is scaled with the images; digits, which flips would change, are not augmented. Errors are those of
the final weights in eval mode.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.trainings import Fit, evaluated, image_set, once, trained_together
from resid_theory import training
from resid_theory.eigen.estimate import student
from resid_theory.identity.parametrizations import DiracWeight, layer_identity, trained_weight
from resid_theory.training import DIRACNETS, Progress

PAPER = "Zagoruyko & Komodakis 2017, arXiv:1706.00388v2"
CHANCE = float(np.log(10))  # loss of guessing among ten classes
LEARNT = 0.1  # nats below chance from which a net counts as training
DIGITS = {
    "seeds": [0, 1, 2], "epochs": 5, "batch": 16, "name": "digits", "samples": 240, "size": 8
}  # fmt: skip
DIGITS_SCALED = "240 digits at 8 x 8, 5 epochs of batch 16, 3 seeds"
SHORT = {
    "seeds": [0, 1, 2], "epochs": 6, "batch": 32, "samples": 1000, "tests": 2000, "size": 16
}  # fmt: skip
SHORT_SCALED = (
    "CIFAR-10 at 16 x 16, 1,000 training and 2,000 test images, 6 epochs of batch 32, 3 seeds"
)
FULL = {"seeds": [0, 1, 2, 3, 4], "epochs": 200}
COLORS = {"plain": "tab:blue", "residual": "tab:orange", "dirac": "tab:green"}
Training = Mapping[str, Any]
# Names of the compared nets; depth, width, std and init are further arguments. The authors' code
# initializes V by He's distribution, the library's default, their paper by N(0, 1);
# ``start.compute_first_scale`` compares the two.
_BUILDERS: dict[str, dict[str, Any]] = {
    "dirac": {"builder": "diracnet", "identity": "dirac"},
    "plain": {"builder": "diracnet", "identity": "plain"},
    "equation_4": {"builder": "diracnet", "identity": "dirac", "normalize": False},
    "residual": {"builder": "preresnet", "identity": "plain"},
    "identity_inside": {"builder": "preresnet", "identity": "residual"},
    "orthogonal": {"builder": "preresnet", "identity": "residual", "std": 1.0},
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Tested(Fit):
    """A trained net with its mean loss and error rate on the test images."""

    test_loss: float
    test_error: float


def dirac_layers(net: nn.Module) -> dict[str, DiracWeight]:
    """Parametrizations of a net's Dirac layers, by layer name, in order."""
    found = {name: layer_identity(module) for name, module in net.named_modules()}
    return {name: weight for name, weight in found.items() if isinstance(weight, DiracWeight)}


def scale_means(net: nn.Module, moment: Progress) -> dict[str, float]:
    """Means of a and of b of every Dirac layer; a callback of training."""
    layers = dirac_layers(net)
    means = {f"a.{name}": weight.a.mean() for name, weight in layers.items()}
    means |= {
        f"b.{name}": weight.b.mean() for name, weight in layers.items() if weight.b is not None
    }
    return {name: float(mean.detach()) for name, mean in means.items()}


def net_of(kind: str, seed: int, *, gain: float | None = None, **arguments: Any) -> nn.Module:
    """Build an untrained net of the table above; ``arguments`` are passed to its builder.

    With ``gain``, each V is that number times an orthogonal matrix of shape (out, in · taps).
    """
    given = {**_BUILDERS[kind], **arguments, "generator": seed}
    net = training.build_net({"builder": given.pop("builder"), "arguments": given})
    if gain is not None:
        source = torch.Generator().manual_seed(seed)
        for module in net.modules():
            if layer_identity(module) is not None:
                nn.init.orthogonal_(trained_weight(module).data, gain, generator=source)
    return net


def parameters_of(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def fits(net: Mapping[str, Any], *, device: str, **given: Any) -> list[Tested]:
    """Train nets of one kind together, one per seed; equal calls share one training.

    ``net`` has the arguments of :func:`net_of` but the seed, ``given`` those of :func:`_train`.
    """
    return once(_train, dict(net), device=device, **given)


def _train(
    net: Mapping[str, Any],
    *,
    device: str,
    seeds: Sequence[int],
    epochs: int,
    batch: int = DIRACNETS.batch,
    name: str = "cifar10",
    samples: int | None = None,
    tests: int | None = None,
    size: int = 32,
    decay: str = DIRACNETS.decay,
) -> list[Tested]:
    """Train; ``samples`` and ``tests`` keep the first images, ``decay="all"`` decays a and b."""
    data, test = image_set(name, "train", samples, size), image_set(name, "test", tests, size)
    recipe = DIRACNETS.scaled(epochs).change(batch=batch, decay=decay, pad=size // 8)
    kept = {"augmentation": "none"} if name == "digits" else {"channels_last": True}
    run = trained_together(
        [net_of(seed=seed, **net) for seed in seeds],
        recipe.change(**kept),
        seeds,
        name={"net": dict(net), "data": [name, samples, size]},
        data=data,
        device=device,
        callbacks=[scale_means],
        keep=name != "digits",  # it takes seconds, and a test must not read an old result
    )
    found = []
    for number, trained in enumerate(run.nets):
        (loss, error), (test_loss, test_error) = evaluated(trained, data), evaluated(trained, test)
        lines = [line for line in run.metrics if line["net"] == number]
        numbers = {"loss": loss, "error": error, "test_loss": test_loss, "test_error": test_error}
        found.append(Tested(net=trained.cpu(), lines=lines, **numbers))
    return found


def each(fitted: Sequence[Tested], read: Callable[[Tested], float]) -> np.ndarray:
    """Read one number from the net of each seed, (seeds,)."""
    return np.array([read(fit) for fit in fitted], dtype=float)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % interval by Student's distribution."""
    values = np.ravel(values)
    mean = float(values.mean())
    if len(values) == 1:
        return mean, -np.inf, np.inf
    half = student(len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return mean, mean - half, mean + half


def percent(values: np.ndarray) -> str:
    """Format shares in percent: mean, standard deviation over seeds, count."""
    values = 100 * np.ravel(values)
    spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{values.mean():.1f}{spread} % (n = {len(values)})"
