"""Trainings of one net each: the parts of all claims on trained nets."""

import inspect
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

import resid_theory as rt
from experiments.external_data import NEEDS, STRIPES, folder_images
from experiments.parts import (
    WEIGHTS,
    Arrays,
    Each,
    Execution,
    Part,
    StoppedError,
    float32_by_default,
)
from resid_theory import networks, training
from resid_theory._check import check_choice
from resid_theory.identity import DiracWeight, layer_identity, trained_weight
from resid_theory.runtime import store
from resid_theory.runtime.preserve import deterministic
from resid_theory.training.step_graphs import NOT_REPLAYED

FULL_EPOCHS = 200  # length of the papers' trainings on CIFAR-10
LOG = "log."  # begins the names of arrays with a value for each epoch, the start included
# What decides speed and the last bits only.
HOW = ("channels_last", "compile")
PRECISIONS = ("bf16", "tf32", "float32", "float64")  # from coarse to exact
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Training(Part):
    """The training of one net.

    Attributes:
        architecture: Builder and arguments, with the seed of the initial weights as ``generator``.
        recipe: ``precision`` is the coarsest allowed; a machine may compute more exactly.
        seed: Seed of the order of the samples and of their augmentation.
        initial: Initial weights that replace the builder's: a ``scale`` with a ``law``.
            ``"normal"``: all weights, whatever their layer and shape, from N(0, scale²);
            ``"orthogonal"``: all weights, scale times orthogonal matrices of shape
            (out, in · taps); ``"filters"``: each filter of V has the norm scale, its direction is
            the builder's. Of W = I + V, the weight is V.
        data: Name of an image set.
        samples: Number of training images, the first ones; None for all.
        tests: Number of test images, the first ones; None for all.
        size: Height and width that the images are brought to.
    """

    architecture: dict
    recipe: rt.Recipe
    initial: dict | None = None
    data: str = "cifar10"
    samples: int | None = None
    tests: int | None = None
    size: int = 32

    def content(self) -> dict[str, Any]:
        """What the result depends on; arguments at their defaults are left out.

        So a new argument does not change the keys.
        """
        usual = {field.name: field.default for field in fields(rt.Recipe)}
        recipe = {k: v for k, v in asdict(self.recipe).items() if k not in HOW and v != usual[k]}
        builder = getattr(networks, self.architecture["builder"])
        parameters = inspect.signature(builder).parameters
        arguments = {
            name: value
            for name, value in self.architecture["arguments"].items()
            if value != parameters[name].default
        }
        return {
            **super().content(),
            "architecture": {**self.architecture, "arguments": arguments},
            "recipe": {k: list(v) if isinstance(v, tuple) else v for k, v in recipe.items()},
        }

    @float32_by_default()
    def start(self) -> nn.Module:
        """A new net with its initial weights."""
        net = training.build_net(self.architecture)
        if self.initial is not None:
            source = torch.Generator().manual_seed(self.architecture["arguments"]["generator"])
            replace_weights(net, **self.initial, source=source)
        return net

    def images(self, split: str) -> rt.Images:
        """The images of a split."""
        return image_set(
            self.data, split, self.samples if split == "train" else self.tests, self.size
        )

    def means(self, execution: Execution, folder: Path | None = None) -> dict[str, Any]:
        """Precision, layout and compilation; an interrupted training goes on as it was begun.

        The precision is no coarser than the recipe's, and on a CPU float32 if it may be. On a GPU
        steps are replayed as graphs, in bfloat16 with the channels last.
        """
        begun = _checkpoint(folder)
        if begun is not None:
            return {name: begun["recipe"][name] for name in ("precision", *HOW)}
        allowed = PRECISIONS[PRECISIONS.index(self.recipe.precision) :]
        on_cpu = torch.device(execution.device).type == "cpu"
        usual = "float32" if on_cpu and "float32" in allowed else allowed[0]
        precision = check_choice("precision", execution.precision or usual, allowed)
        how = {name: getattr(self.recipe, name) for name in HOW}
        if not on_cpu:
            how = {"channels_last": precision == "bf16", "compile": "graph"}
        asked = {name: getattr(execution, name) for name in HOW}
        how |= {name: value for name, value in asked.items() if value is not None}
        return {"precision": precision, **how}

    def spent(self, folder: Path | None) -> float:
        """Seconds until the checkpoint of a stopped training."""
        begun = _checkpoint(folder)
        return 0.0 if begun is None else float(begun["seconds"])

    def arrays(self, device: str) -> Arrays:
        """Train and measure."""
        return self.compute(Execution(device=device))

    @float32_by_default()
    def compute(self, execution: Execution, folder: Path | None = None) -> Arrays:
        """Train and measure, or resume in ``folder``."""
        data, test = self.images("train"), self.images("test")
        out = None if folder is None else folder / "training"
        run = rt.train(
            self.start(),
            data,
            self.recipe.change(**self.means(execution, folder)),
            seed=self.seed,
            test=test,
            callbacks=[measured],
            device=execution.device,
            out=out,
            save_seconds=20.0,
            stop=execution.stop,
            progress=False,
        )
        for note in run.notes:
            if note.startswith(NOT_REPLAYED):
                print(note)
        if not run.finished:
            raise StoppedError(f"{self.cell} was stopped; run it again to resume")
        arrays = result(run.net, run.metrics, data, test)
        return {**arrays, "first_losses": run.first_losses[0].numpy()}


@torch.no_grad()
def replace_weights(net: nn.Module, *, law: str, scale: float, source: torch.Generator) -> None:
    """Replace the initial weights of a net; see ``Training.initial``."""
    check_choice("law", law, ("normal", "orthogonal", "filters"))
    for module in net.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        weight = trained_weight(module)
        if law == "normal":
            nn.init.normal_(weight, std=scale, generator=source)
        elif law == "orthogonal":
            nn.init.orthogonal_(weight, scale, generator=source)
        elif layer_identity(module) is not None:
            weight *= scale / torch.linalg.vector_norm(weight.flatten(1), dim=1).view(-1, 1, 1, 1)


def _checkpoint(folder: Path | None) -> Mapping[str, Any] | None:
    """What the checkpoint of a stopped training says of itself."""
    path = None if folder is None else folder / "training" / "checkpoint.json"
    if path is None or not path.is_file():
        return None
    about: Mapping[str, Any] = store.read_checkpoint(path)[1]
    return about


@torch.no_grad()
def measured(net: nn.Module, _: Any = None) -> dict[str, float]:
    """Mean norm of the kernels and means of the scales of Dirac layers; a callback of training.

    The norm is the mean Frobenius norm of kernels of 3 x 3 behind the stem.
    """
    norms = [
        torch.linalg.vector_norm(layer.weight.double())
        for layer in net.modules()
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.in_channels > 3
    ]
    scales = dirac_scales(net)
    # In two transfers, because each one waits for the device.
    found = torch.stack(norms).tolist() if norms else []
    means = torch.stack([s.mean() for s in scales.values()]).tolist() if scales else []
    return {
        **({"mean_norm": float(np.mean(found))} if found else {}),
        **dict(zip(scales, means, strict=True)),
    }


def dirac_layers(net: nn.Module) -> dict[str, DiracWeight]:
    """Parametrizations of a net's Dirac layers, by layer name, in order."""
    found = {name: layer_identity(module) for name, module in net.named_modules()}
    return {name: weight for name, weight in found.items() if isinstance(weight, DiracWeight)}


def dirac_scales(net: nn.Module) -> dict[str, torch.Tensor]:
    """The scales of all planes, (planes,): ``a.<layer>`` and ``b.<layer>`` of each Dirac layer."""
    return {
        f"{name}.{layer}": scale.detach()
        for layer, weight in dirac_layers(net).items()
        for name, scale in (("a", weight.a), ("b", weight.b))
        if scale is not None
    }


def result(
    net: nn.Module, lines: Sequence[Mapping[str, Any]], data: rt.Images, test: rt.Images
) -> dict[str, np.ndarray]:
    """Arrays of a finished training: its log, the measures of the final weights, and these."""
    lines = [line for line in lines if "epoch" in line]
    names = [name for name in lines[-1] if name != "net"]
    # A number that is not finite is None in a log; the start has no loss.
    columns = {n: [np.nan if line.get(n) is None else line[n] for line in lines] for n in names}
    top = min(5, int(test.labels.max()) + 1)
    with deterministic():  # in float32, whatever the training was allowed
        here = rt.evaluate(net, data, top=(1,), batch=500)
        there = rt.evaluate(net, test, top=(1, top), batch=500)
    numbers = {
        "loss": here.loss,
        "error": here.error(1),
        "test_loss": there.loss,
        "test_error": there.error(1),
        "test_error_5": there.error(top),
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }
    weights = {n: t.detach().cpu().float() if t.is_floating_point() else t.cpu()
               for n, t in net.state_dict().items()}  # fmt: skip
    return {
        **{f"{LOG}{name}": np.array(column, dtype=float) for name, column in columns.items()},
        **{name: np.array(value) for name, value in numbers.items()},
        **{name: scale.cpu().numpy() for name, scale in dirac_scales(net).items()},
        **{f"{WEIGHTS}{name}": tensor.numpy() for name, tensor in weights.items()},
    }


# Results -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """A finished training.

    Attributes:
        training: Its settings.
        arrays: Its result.
    """

    training: Training
    arrays: Arrays

    def log(self, name: str) -> np.ndarray:
        """Values of one quantity by epoch, the start included."""
        try:
            return self.arrays[f"{LOG}{name}"]
        except KeyError:
            raise ValueError(
                f"{name}: {self.training.cell} did not log it; compute it anew"
            ) from None

    def along(self, name: str) -> np.ndarray:
        """Values of one quantity by epoch, without the start."""
        return self.log(name)[1:]

    def number(self, name: str) -> float:
        """A measure of the final weights: loss or error on the training or test images."""
        return float(self.arrays[name])

    @cached_property
    def net(self) -> nn.Module:
        """The trained net, in eval mode."""
        held = {n: a for n, a in self.arrays.items() if n.startswith(WEIGHTS)}
        if not held:
            raise ValueError("weights: the claim did not ask for them; needs fits(weights=True)")
        net = self.training.start()
        net.load_state_dict({n.removeprefix(WEIGHTS): torch.tensor(a) for n, a in held.items()})
        return net.eval()


def fits(
    groups: Mapping[Key, Sequence[Training]], each: Each, device: str, *, weights: bool = False
) -> dict[Key, list[Fit]]:
    """Results of named groups of trainings, in one call of ``each``."""
    flat = [made for group in groups.values() for made in group]
    found = iter(zip(flat, each(flat, device, weights=weights), strict=True))
    return {
        name: [Fit(training=made, arrays=arrays) for made, arrays in (next(found) for _ in group)]
        for name, group in groups.items()
    }


@lru_cache(maxsize=4)
def image_set(
    name: str, split: str, samples: int | None = None, size: int | None = 32
) -> rt.Images:
    """Load images; ``samples`` keeps the first, ``size`` averages to so many pixels per side."""
    if name in (STRIPES, *NEEDS):
        images = folder_images(name, split, size or 32)
        return images if samples is None else images.first(samples)
    return rt.load_images(name, split, samples=samples, size=size, progress=False)


def spread(values: np.ndarray) -> str:
    """Format mean and standard deviation over seeds."""
    values = np.ravel(values)
    if len(values) == 1:
        return f"{values[0]:.4g} (n = 1)"
    return f"{values.mean():.4g} ± {values.std(ddof=1):.2g} (n = {len(values)})"
