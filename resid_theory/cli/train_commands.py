"""The verb ``train``: a net of the library on images, by its paper's recipe."""

import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resid_theory.cli.output import Json, finish, number, say, say_table, shows_progress
from resid_theory.cli.sources import Data, Size, images, renamed
from resid_theory.cli.verbs import options_of

if TYPE_CHECKING:
    from resid_theory import Images
    from resid_theory.training import Run

_RUNS = Path("resid_theory_runs")


def train_options() -> list[inspect.Parameter]:
    """Options of the networks' builders and of recipes."""
    import resid_theory as rt
    from resid_theory.training.presets import KINDS

    builders = {name: kind.builder for name, kind in KINDS.items()}
    return [
        *options_of(builders, leave=("classes", "generator")),
        *options_of({"recipe": rt.Recipe}),
    ]


def train(
    net: Annotated[str, typer.Option(help="simplified, full, diracnet or preresnet.")],
    data: Data,
    test: Annotated[
        str | None, typer.Option(help="Folder to test on; a named set has its own test split.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(help="Images to train on: the first of a set; of a folder, drawn by --seed."),
    ] = None,
    size: Size = None,
    epochs: Annotated[
        int | None, typer.Option(help="Rescales the schedule; the paper's by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of initial weights, order and crops.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    loss: Annotated[
        str | None, typer.Option(help="cross_entropy, or square (of one-hot targets).")
    ] = None,
    save_seconds: Annotated[float, typer.Option(help="Seconds between two checkpoints.")] = 60.0,
    out: Annotated[
        Path | None,
        typer.Option(help=f"Folder; by default one below {_RUNS}, named after net and data."),
    ] = None,
    as_json: Json = False,
    **options: Any,
) -> None:
    """Train a net by its paper's recipe; called again after a kill, it goes on where it was.

    The folder then has the log (metrics.jsonl), a checkpoint to go on from, and the trained net
    (net.json), which the other verbs take as --checkpoint. Several processes share every batch:
    torchrun --nproc-per-node 2 -m resid_theory.cli train ...
    """
    import resid_theory as rt
    from resid_theory._check import check_choice
    from resid_theory.runtime import store
    from resid_theory.training.presets import KINDS, net_of

    given = {name: value for name, value in options.items() if value is not None}
    names = {field.name for field in fields(rt.Recipe)}
    changes = {name: given.pop(name) for name in set(given) & names}
    changes |= {} if loss is None else {"loss": loss}
    with _reported_once(), renamed(classes="--data"):
        recipe = KINDS[check_choice("net", net, list(KINDS))].recipe
        recipe = (recipe if epochs is None else recipe.scaled(epochs)).change(**changes)
        net_of(net, seed=seed, **given)  # refused before the images are read
        place = _RUNS / _name(net, given, data, samples, seed) if out is None else out
        device = _device(device)
    with _world(device) as process_group, _reported_once(), renamed(classes="--data"):
        with _in_turn(process_group):
            found, tests = _images(data, test, samples, size, seed, not as_json)
        run = rt.train(
            net_of(net, seed=seed, classes=len(found.classes), **given),
            found,
            recipe,
            seed=seed,
            device=device,
            test=tests,
            out=place,
            save_seconds=save_seconds,
            progress=shows_progress(as_json),
            process_group=process_group,
        )
    if _RANK > 0:
        return
    saved = place / "net.json"
    about = store.read_checkpoint(saved)[1]["about"]
    rt.save_checkpoint(saved, run.net, about={**about, "data": data})
    content = _content(run, data, len(found), None if tests is None else len(tests))
    finish(content, as_json, lambda: _table(content))


# -- several processes -----------------------------------------------------------------------------

# As torchrun and others set them.
_RANK, _LOCAL, _COUNT = (
    int(os.environ.get(name, default))
    for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))
)


def _device(name: str) -> str:
    """The device of this process."""
    import torch

    from resid_theory.runtime.resources import check_device

    if _COUNT == 1:
        return name if name == "auto" else str(check_device("device", name))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"--device: got {name!r} for {_COUNT} processes, needs auto, cpu or cuda")
    return str(check_device("device", name if name == "cpu" else f"cuda:{_LOCAL}"))


@contextmanager
def _world(device: str) -> Iterator[str | None]:
    """The process group, if torchrun started several processes."""
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
        dist.barrier()  # no process leaves while another still communicates with it
    finally:
        dist.destroy_process_group()


@contextmanager
def _in_turn(process_group: str | None) -> Iterator[None]:
    """On each machine, let one process go first, so that the others find what it downloads."""
    import torch.distributed as dist

    if process_group and _LOCAL > 0:
        dist.barrier()
    yield
    if process_group and _LOCAL == 0:
        dist.barrier()


@contextmanager
def _reported_once() -> Iterator[None]:
    """Report an error that all processes meet from rank 0 only."""
    from resid_theory.training import DivergenceError

    try:
        yield
    except (DivergenceError, ValueError) as error:
        if _RANK == 0 or str(error).startswith("process_group: "):
            raise ValueError(str(error)) from error
        raise typer.Exit(2) from error
    except RuntimeError as error:
        if not str(error).startswith("process_group: "):
            raise
        if str(error).startswith("process_group: rank 0 failed"):
            raise typer.Exit(2) from error
        raise ValueError(str(error)) from error


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
        return found, None if Path(data).is_dir() else images(data, **keywords)
    with renamed(**{"--data": "--test"}):
        tests = images(test, **keywords)
    if tests.classes != found.classes:
        raise ValueError(
            f"--test: has the classes {', '.join(tests.classes)}, needs those of --data: "
            f"{', '.join(found.classes)}"
        )
    return found, replace(tests, mean=found.mean, std=found.std)


def _name(
    kind: str, arguments: Mapping[str, Any], data: str, samples: int | None, seed: int
) -> str:
    """A folder name that differs between trainings that one would run side by side."""
    images = Path(data).name if samples is None else f"{Path(data).name}-{samples}"
    return ".".join([kind, *(f"{k}-{v}" for k, v in arguments.items()), images, f"seed-{seed}"])


def _content(run: "Run", data: str, samples: int, tests: int | None) -> dict[str, Any]:
    assert run.out is not None
    (seed,), last = run.seeds, run.metrics[-1]
    return {
        "architecture": getattr(run.net, "architecture", None),
        "parameters": sum(p.numel() for p in run.net.parameters()),
        "data": data,
        "samples": samples,
        "test_samples": tests,
        "recipe": run.recipe.content(),
        "seed": seed,
        "device": str(next(run.net.parameters()).device),
        **{k: last.get(k) for k in ("epoch", "step", "loss", "error", "test_loss", "test_error")},
        "seconds": run.seconds,
        "checkpoint": str(run.out / "net.json"),
        "metrics": str(run.out / "metrics.jsonl"),
    }


def _table(content: Mapping[str, Any]) -> None:
    epochs = f"{content['epoch']} epoch{'s' * (content['epoch'] != 1)}"
    say(
        f"P = {content['parameters']:,}, {epochs} of {content['samples']:,} "
        f"images in {content['seconds']:.1f} s on {content['device']}"
    )
    rows = [("", "loss (nats)", "error (share)")]
    rows += [("last epoch, as trained", number(content["loss"]), number(content["error"]))]
    if content["test_samples"] is not None:
        loss, error = (number(content[key]) for key in ("test_loss", "test_error"))
        rows += [(f"test, {content['test_samples']:,} images", loss, error)]
    say_table("<>>", rows)
    say(f"{content['checkpoint']} and {content['metrics']} written.")
