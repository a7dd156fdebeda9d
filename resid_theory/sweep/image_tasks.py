"""Sweep tasks on image networks: curvature, cushions and trainings."""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from typing import Any, ClassVar

import torch
from torch import nn

from resid_theory._check import check_choice, check_int
from resid_theory.curvature import MATRICES, curvature_operator, spectrum
from resid_theory.data import Images, load_images
from resid_theory.data.datasets import IMAGE_SETS
from resid_theory.losses import LOSSES, Loss
from resid_theory.runtime.store import digest
from resid_theory.stability import layer_cushions
from resid_theory.stability.cushions import WEIGHTS
from resid_theory.stability.norms import NORMS
from resid_theory.sweep.config import arguments_of, with_arguments_of
from resid_theory.sweep.task import Number, Outcome, Task
from resid_theory.training import Recipe, load_checkpoint, train
from resid_theory.training.presets import KINDS, net_of
from resid_theory.training.saved_nets import find_checkpoint

_BUILDERS = [kind.builder for kind in KINDS.values()]


@with_arguments_of(*_BUILDERS, leave=("classes", "generator"))
class _OnImages(Task):
    """A net of ``training.presets.KINDS``, with its builder's options, and its images."""

    net: str = "simplified"
    data: str = "digits"
    samples: int | None = None
    size: int = 32
    channels: int = 3

    def check(self) -> None:
        """Refuse settings that cannot be run."""
        super().check()
        check_choice("data", self.data, list(IMAGE_SETS))
        check_int("size", self.size)
        check_int("channels", self.channels)
        self.samples is None or check_int("samples", self.samples)
        _built(self.net, 0, **self.options())

    def options(self) -> dict[str, Any]:
        """Arguments of the net's builder; None stands for the builder's default."""
        names = dict.fromkeys(name for kind in KINDS.values() for name in kind.options)
        return {name: getattr(self, name) for name in names}

    def start(self) -> nn.Module:
        """A new net with its initial weights."""
        return net_of(self.net, seed=self.seed, **self.options())

    def images(self, split: str = "train", device: str = "cpu") -> Images:
        """The images of a split; all of the test images."""
        samples = self.samples if split == "train" else None
        return _loaded(self.data, split, samples, self.size, self.channels).to(device)


@lru_cache
def _built(net: str, seed: int, **options: Any) -> nn.Module:
    # Once for all cells that differ in other things.
    return net_of(net, seed=seed, **options)


@lru_cache(maxsize=4)
def _loaded(data: str, split: str, samples: int | None, size: int, channels: int) -> Images:
    return load_images(data, split, samples=samples, size=size, channels=channels, progress=False)


@dataclass(frozen=True, kw_only=True)
class _Measured(_OnImages):
    """A measurement of a net with initial weights, or of a trained one."""

    checkpoint: str | None = None
    samples: int | None = 500
    batchnorm: str = "eval"

    def check(self) -> None:
        """Refuse settings that cannot be run."""
        super().check()
        check_choice("batchnorm", self.batchnorm, ("eval", "batch"))

    def content(self) -> dict[str, Any]:
        """With the sha256 of the checkpoint: other weights of the same name are another cell."""
        content = super().content()
        if self.checkpoint is not None:
            try:
                content["checkpoint_sha256"] = digest(find_checkpoint(self.checkpoint))
            except FileNotFoundError as error:
                raise ValueError(f"checkpoint: {error}") from error
        return content

    def measured(self, device: str) -> nn.Module:
        """The net to measure, in eval mode."""
        net = self.start() if self.checkpoint is None else load_checkpoint(self.checkpoint)
        return net.eval().to(device)


@dataclass(frozen=True, kw_only=True)
class CurvatureTask(_Measured):
    """Extremes, trace and norm of the curvature, as ``rt.spectrum`` gives them.

    Attributes:
        net: Name of a network of ``training.presets``; its builder's options are fields.
        checkpoint: A trained net instead.
        data: Name of an image set; the first ``samples`` of the training images are used.
        loss: ``cross_entropy``, or ``square`` of one-hot targets.
        matrix: A name of ``rt.curvature.MATRICES``.
        k: Eigenvalues at each end.
        density: Whether density, index and condition number are estimated where not exact.
        tolerance: Relative, of the extremes.
        batchnorm: ``eval`` or ``batch``.
    """

    loss: str = "cross_entropy"
    matrix: str = "hessian"
    k: int = 1
    density: bool = False
    tolerance: float = 1e-3

    def check(self) -> None:
        """Refuse settings that cannot be run."""
        super().check()
        check_choice("loss", self.loss, tuple(LOSSES))
        check_choice("matrix", self.matrix, tuple(MATRICES))
        check_int("k", self.k)

    def run(self, folder: Path, device: str) -> Outcome:
        """Numbers and arrays of the cell."""
        net, data = self.measured(device), self.images(device=device)
        output = torch.zeros(1, 10, dtype=torch.float32)
        data = replace(data, labels=Loss.of(self.loss).targets_of(output, data.labels)[0])
        report = spectrum(
            curvature_operator(net, self.loss, data, matrix=self.matrix, batchnorm=self.batchnorm),
            k=self.k,
            density=self.density,
            tolerance=self.tolerance,
            generator=torch.Generator().manual_seed(self.seed),
            folder=folder / "products",
        )
        rmtree(folder / "products", ignore_errors=True)
        named = {"largest": report.largest[0], "smallest": report.smallest[0]}
        for name in ("trace", "frobenius_norm", "index", "condition_number"):
            named[name] = getattr(report, name)
        numbers: dict[str, Number] = {
            "method": report.method,
            "parameters": report.parameters,
            "products": report.products,
        }
        for name, estimate in named.items():
            if estimate is not None:
                numbers[name] = estimate.value
                numbers |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        arrays = {
            f"{name}_values": torch.tensor([e.value for e in end], dtype=torch.float64)
            for name, end in (("largest", report.largest), ("smallest", report.smallest))
        }
        return Outcome(numbers=numbers, arrays=arrays)


@dataclass(frozen=True, kw_only=True)
class CushionsTask(_Measured):
    """Layer cushions, as ``rt.layer_cushions`` gives them.

    Attributes:
        net: Name of a network of ``training.presets``; its builder's options are fields.
        checkpoint: A trained net instead.
        data: Name of an image set; the first ``samples`` of the training images are used.
        norm: A name in ``stability.norms.NORMS``, such as ``kernel``.
        weight: ``identity_removed`` or ``effective``, in the denominator.
        batchnorm: ``eval`` or ``batch``.
    """

    norm: str = "kernel"
    weight: str = "identity_removed"

    def check(self) -> None:
        """Refuse settings that cannot be run."""
        super().check()
        check_choice("norm", self.norm, list(NORMS))
        check_choice("weight", self.weight, WEIGHTS)

    def run(self, folder: Path, device: str) -> Outcome:
        """Numbers and arrays of the cell."""
        found = layer_cushions(
            self.measured(device),
            self.images(device=device),
            norm=self.norm,
            weight=self.weight,
            batchnorm=self.batchnorm,
        )
        median, minimum = (t.double().cpu() for t in (found.median, found.minimum))
        numbers = {
            "layers": len(found.rows),
            "mean_median": float(median.mean()),
            "least_median": float(median.min()),
            "minimum": float(minimum.min()),
        }
        return Outcome(numbers=numbers, arrays={"median": median, "minimum": minimum})


@with_arguments_of(Recipe)
class TrainingTask(_OnImages):
    """A training by the recipe of the net's paper.

    Attributes:
        net: Name of a network of ``training.presets``; its builder's options are fields.
        seed: Of first weights, order and crops.
        data: Name of an image set; the first ``samples`` of the training images are used.
        epochs: Rescales the schedule; other fields of ``Recipe`` replace the paper's.
        loss: A name of ``rt.losses.LOSSES``.
    """

    loss: str | None = None

    # torch.optim imports it when it is first used.
    imports: ClassVar[tuple[str, ...]] = ("torch._dynamo",)

    def check(self) -> None:
        """Refuse settings that cannot be run."""
        super().check()
        self.recipe()

    def recipe(self) -> Recipe:
        """The paper's recipe with the changes of this cell."""
        changes = {name: getattr(self, name) for name in (*arguments_of(Recipe), "loss")}
        changes = {name: value for name, value in changes.items() if value is not None}
        recipe = KINDS[self.net].recipe
        if "epochs" in changes:
            recipe = recipe.scaled(changes["epochs"])
        return recipe.change(**changes)

    def run(self, folder: Path, device: str) -> Outcome:
        """Numbers and arrays of the cell."""
        run = train(
            self.start(),
            self.images(),
            self.recipe(),
            seed=self.seed,
            device=device,
            test=self.images("test"),
            out=folder / "training",
            progress=False,
        )
        names = ("loss", "error", "penalty", "test_loss", "test_error")
        numbers: dict[str, Number] = {name: run.column(name)[-1] for name in names}
        arrays = {
            name: torch.tensor(
                [float("nan") if v is None else v for v in run.column(name)], dtype=torch.float64
            )
            for name in names
        }
        return Outcome(numbers={"epoch": run.column("epoch")[-1], **numbers}, arrays=arrays)
