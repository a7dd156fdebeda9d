"""The verb ``train``: a net of the library on images, by its paper's recipe."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resid_theory.cli.output import Json, number, print_json, say, shows_progress
from resid_theory.cli.sources import device_of, images, options

if TYPE_CHECKING:
    from torch import nn

    from resid_theory import Images, Recipe
    from resid_theory.training import Run

__all__ = ["register"]

_RUNS = Path("resid_theory_runs")
_RECIPE_WORDS = ("epochs", "batch", "lr", "momentum", "weight_decay", "augmentation", "precision")
_WORDS = (*_RECIPE_WORDS, "compile", "device", "out", "pad", "data", "test")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line.

    Args:
        app: The program.
    """
    app.command()(train)


def train(
    net: Annotated[str, typer.Option(help="simplified, full, diracnet or preresnet.")],
    data: Annotated[
        str, typer.Option(help="cifar10, mnist, digits, or a folder with one folder a class.")
    ],
    depth: Annotated[int | None, typer.Option(help="Layers; the paper's by default.")] = None,
    width: Annotated[
        int | None, typer.Option(help="Factor on the channels; of diracnet and preresnet.")
    ] = None,
    identity: Annotated[
        str | None,
        typer.Option(
            help="Where it enters. simplified: plain, residual, explicit, dominant, dominant_half, "
            "dominant_upper; diracnet: dirac, plain; preresnet: plain, residual, dirac."
        ),
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="full: leave the shortcuts out.")] = False,
    doubling: Annotated[str | None, typer.Option(help="full: pad, dup or proj.")] = None,
    shortcut_depth: Annotated[
        int | None, typer.Option(help="preresnet: convolutions under one shortcut.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Initialization. simplified: kaiming, hardt_ma; diracnet: kaiming, normal."
        ),
    ] = None,
    bn_init: Annotated[
        str | None, typer.Option(help="diracnet: BatchNorm weights, ones or uniform.")
    ] = None,
    unnormalized: Annotated[
        bool, typer.Option("--unnormalized", help="diracnet: the paper's eq. (4), diag(a) I + V.")
    ] = False,
    std: Annotated[
        float | None, typer.Option(help="preresnet: of V where the identity is residual.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="Folder to test on; a named set has its own test split.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Train on the first so many; of a folder, drawn by --seed.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side of the images; 32, of a folder 224 by default.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="The schedule keeps its shape; the paper's by default.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Samples a step.")] = None,
    lr: Annotated[float | None, typer.Option(help="First learning rate.")] = None,
    momentum: Annotated[float | None, typer.Option(help="In [0, 1).")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="λ of ½λ‖θ‖².")] = None,
    augmentation: Annotated[str | None, typer.Option(help="crop_flip or none.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, tf32, bf16 or float64.")] = None,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Store the channels innermost.")
    ] = False,
    compile: Annotated[  # noqa: A002
        str | None, typer.Option(help="none, default, reduce-overhead or max-autotune.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of first weights, order and crops.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    save_seconds: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 60.0,
    out: Annotated[
        Path | None,
        typer.Option(help=f"Folder; by default one below {_RUNS}, named after net and data."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train a net by its paper's recipe; called again after a kill, it goes on where it was.

    The folder then has the log (metrics.jsonl), a checkpoint to go on from, and the trained net
    (net.json), which the other verbs take as --checkpoint. Several processes share every batch:
    torchrun --nproc-per-node 2 -m resid_theory.cli train ...
    """
    arguments = {
        "depth": depth, "width": width, "identity": identity, "doubling": doubling,
        "shortcut_depth": shortcut_depth, "init": init, "bn_init": bn_init, "std": std,
        "shortcut": False if plain else None, "normalize": False if unnormalized else None,
    }  # fmt: skip
    changes = {
        "batch": batch, "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
        "augmentation": augmentation, "precision": precision, "compile": compile,
        "channels_last": channels_last or None,
    }  # fmt: skip
    with _told_once():
        recipe = _recipe(net, epochs, changes)
        _net(net, seed, 10, arguments)  # refused before the images are read
        place = _RUNS / _name(net, arguments, data, samples, seed) if out is None else out
        device = _device(device)
    import resid_theory as rt

    shows = shows_progress(as_json)
    with (
        _world(device) as process_group,
        _told_once(),
        options(_WORDS, save_seconds="--save-seconds"),
    ):
        with _in_turn(process_group):
            found, tests = _images(data, test, samples, size, seed, not as_json)
        run = rt.train(
            _net(net, seed, _classes(found), arguments),
            found,
            recipe,
            seed=seed,
            device=device,
            test=tests,
            out=place,
            save_seconds=save_seconds,
            progress=shows,
            process_group=process_group,
        )
    if _RANK > 0:
        return
    content = _content(run, data, len(found), None if tests is None else len(tests))
    if as_json:
        print_json(content)
    else:
        _table(content)


# -- several processes -----------------------------------------------------------------------------

# As torchrun and others set them.
_RANK, _LOCAL, _COUNT = (
    int(os.environ.get(name, default))
    for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))
)


def _device(name: str) -> str:
    """The device of this process."""
    import torch

    if _COUNT == 1:
        return name if name == "auto" else str(device_of(name))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device: got {name!r} for {_COUNT} processes, needs auto, cpu or cuda")
    return str(device_of(name if name == "cpu" else f"cuda:{_LOCAL}"))


@contextmanager
def _world(device: str) -> Iterator[str | None]:
    """The other processes, where there are some."""
    import torch
    import torch.distributed as dist

    if _COUNT == 1:
        yield None
        return
    if device != "cpu":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield "world"
        dist.barrier()  # nobody leaves while another still speaks to it
    finally:
        dist.destroy_process_group()


@contextmanager
def _in_turn(process_group: str | None) -> Iterator[None]:
    """On each machine one process first: what it downloads, the others find."""
    import torch.distributed as dist

    if process_group and _LOCAL > 0:
        dist.barrier()
    yield
    if process_group and _LOCAL == 0:
        dist.barrier()


@contextmanager
def _told_once() -> Iterator[None]:
    """Leave it to rank 0 to say what is wrong everywhere."""
    from resid_theory.training import DivergenceError

    try:
        yield
    except (DivergenceError, ValueError) as error:
        if _RANK == 0 or str(error).startswith("process_group: "):
            raise ValueError(str(error)) from error  # the program's faults are not of this kind
        raise typer.Exit(2) from error
    except RuntimeError as error:
        if not str(error).startswith("process_group: "):
            raise
        if str(error).startswith("process_group: rank 0 failed"):
            raise typer.Exit(2) from error
        raise ValueError(str(error)) from error


# -- what is asked for -----------------------------------------------------------------------------


def _recipe(kind: str, epochs: int | None, changes: Mapping[str, Any]) -> "Recipe":
    from resid_theory._check import check_choice
    from resid_theory.training.presets import KINDS

    with options((*_WORDS, "net"), weight_decay="--weight-decay"):
        recipe = KINDS[check_choice("net", kind, list(KINDS))].recipe
        recipe = recipe if epochs is None else recipe.scaled(epochs)
        return recipe.change(**{k: value for k, value in changes.items() if value is not None})


def _net(kind: str, seed: int, classes: int, arguments: Mapping[str, Any]) -> "nn.Module":
    from resid_theory.training.presets import net_of

    names = {name: f"--{name.replace('_', '-')}" for name in arguments}
    names |= {"shortcut": "--plain", "normalize": "--unnormalized", "classes": "--data"}
    with options(("net", "seed"), **names):
        return net_of(kind, seed=seed, classes=classes, **arguments)


def _images(
    data: str, test: str | None, samples: int | None, size: int | None, seed: int, progress: bool
) -> "tuple[Images, Images | None]":
    """Images to train on and to test on."""
    if test is not None and not (Path(data).is_dir() and Path(test).is_dir()):
        raise ValueError(
            f"--test: got {test!r} with --data {data!r}, needs two folders of images; a named set "
            "has a test split of its own"
        )
    keywords: dict[str, Any] = {"size": size, "progress": progress}
    found = images(data, split="train", samples=samples, seed=seed, **keywords)
    if test is None:
        return found, None if Path(data).is_dir() else images(data, split="test", **keywords)
    tests = images(test, **keywords)
    if tests.classes != found.classes:
        raise ValueError(
            f"--test: has the classes {', '.join(tests.classes)}, needs those of --data: "
            f"{', '.join(found.classes)}"
        )
    return found, replace(tests, mean=found.mean, std=found.std)


def _classes(found: "Images") -> int:
    return len(found.classes) or int(found.labels.max()) + 1


def _name(
    kind: str, arguments: Mapping[str, Any], data: str, samples: int | None, seed: int
) -> str:
    """A folder's name that tells trainings apart which one would run side by side."""
    words = [kind, *(f"{k}-{v}" for k, v in arguments.items() if v is not None)]
    words += [Path(data).name if samples is None else f"{Path(data).name}-{samples}"]
    return ".".join([*words, f"seed-{seed}"])


# -- what is said ----------------------------------------------------------------------------------


def _content(run: "Run", data: str, samples: int, tests: int | None) -> dict[str, Any]:
    assert run.out is not None
    last = [line for line in run.metrics if "epoch" in line][-1]
    return {
        "architecture": getattr(run.net, "architecture", None),
        "parameters": sum(p.numel() for p in run.net.parameters()),
        "data": data,
        "samples": samples,
        "test_samples": tests,
        "recipe": asdict(run.recipe),
        "seed": run.seeds[0],
        "device": str(next(run.net.parameters()).device),
        **{k: last.get(k) for k in ("epoch", "step", "loss", "error", "test_loss", "test_error")},
        "seconds": run.seconds,
        "checkpoint": str(run.out / "net.json"),
        "metrics": str(run.out / "metrics.jsonl"),
    }


def _table(content: Mapping[str, Any]) -> None:
    from rich.table import Column, Table

    say(
        f"P = {content['parameters']:,}, {content['epoch']} epochs of {content['samples']:,} "
        f"images in {content['seconds']:.1f} s on {content['device']}"
    )
    names = ("loss (nats)", "error (share)")
    table = Table("", *(Column(name, justify="right") for name in names), box=None)
    table.add_row("last epoch, as trained", number(content["loss"]), number(content["error"]))
    if content["test_samples"] is not None:
        shown = (number(content[key]) for key in ("test_loss", "test_error"))
        table.add_row(f"test, {content['test_samples']:,} images", *shown)
    say(table)
    say(f"{content['checkpoint']} and {content['metrics']} written.")
