"""Verbs on trained nets: ``fold`` and ``evaluate``; checkpoints or the DiracNet authors' files."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from resid_theory import Images

__all__ = ["register"]

_AUTHORS = (".pt", ".pt7", ".pth")
_SAME = ("batch", "constants", "samples", "shorter", "size", "split", "top")
_CONSTANTS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}

Checkpoint = Annotated[
    str,
    typer.Option(
        help="Name or path of a checkpoint, or a file of the DiracNet authors (.pt7, .pth)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line.

    Args:
        app: The program.
    """
    app.command()(fold)
    app.command()(evaluate)


def fold(
    checkpoint: Checkpoint,
    out: Annotated[
        Path, typer.Option(help="Checkpoint to write (.json), or an authors' file (.pt7, .pth).")
    ],
    as_json: Json = False,
) -> None:
    """Fold identities and BatchNorm into the kernels, and write the folded net."""
    import resid_theory as rt

    if out.suffix not in (".json", *_AUTHORS):
        raise ValueError(f"--out: got {str(out)!r}, needs a name ending in .json, .pt7 or .pth")
    net = _net(checkpoint)
    folded = rt.fold(net)
    if out.suffix == ".json":
        rt.save_checkpoint(out, folded, about={"folded_from": checkpoint})
    else:
        rt.save_dirac_file(out, folded)
    before, after = (sum(p.numel() for p in n.parameters()) for n in (net, folded))
    norms = sum(name.endswith("running_var") for name, _ in net.named_buffers())
    content = {"out": str(out), "norms": norms, "parameters": [before, after]}
    words = f"{norms} BatchNorms folded, {before:,} parameters became {after:,}; {out} written."
    _print(content, words, as_json)


def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[
        str, typer.Option(help="cifar10, mnist, digits, or a folder with one folder a class.")
    ],
    split: Annotated[str, typer.Option(help="test or train; of a named set.")] = "test",
    samples: Annotated[int | None, typer.Option(help="The first so many; of a named set.")] = None,
    size: Annotated[int, typer.Option(help="Side of the middle crop; of a folder.")] = 224,
    shorter: Annotated[
        int | None, typer.Option(help="Shorter side before the crop; 8/7 of --size by default.")
    ] = None,
    constants: Annotated[
        str, typer.Option(help="Normalization of a folder's images: own or imagenet.")
    ] = "own",
    top: Annotated[str, typer.Option(help="Values of k of the top-k errors.")] = "1,5",
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 256,
    as_json: Json = False,
) -> None:
    """Measure loss and top-k errors of a net; single crops, nothing is trained."""
    import resid_theory as rt

    ranks = _ranks(top)
    net = _net(checkpoint)
    with _options("--data"):
        if Path(data).is_dir():
            images = _folder(data, size, size * 8 // 7 if shorter is None else shorter, constants)
        else:
            images = rt.load_images(data, split, samples=samples, progress=not as_json)
        found = rt.evaluate(net, images, top=ranks, batch=batch)
    errors = {f"top_{k}_error": found.error(k) for k in ranks}
    content = {"checkpoint": checkpoint, "data": data, "samples": found.samples}
    words = ", ".join(f"top-{k} error {100 * found.error(k):.2f} %" for k in ranks)
    said = f"{words}, loss {found.loss:.4f} nats; {found.samples:,} images, one crop each."
    _print({**content, "loss": found.loss, **errors}, said, as_json)


def _net(checkpoint: str) -> "nn.Module":
    import resid_theory as rt

    if Path(checkpoint).suffix in _AUTHORS:
        return rt.load_dirac_file(checkpoint)
    with _options("--checkpoint"):
        return rt.load_checkpoint(checkpoint)


def _folder(data: str, size: int, shorter: int, constants: str) -> "Images":
    import resid_theory as rt
    from resid_theory._check import choose

    choose("constants", constants, ("own", *_CONSTANTS))
    images = rt.load_image_folder(data, size=size, shorter=shorter)
    if constants == "own":
        return images
    mean, std = _CONSTANTS[constants]
    return replace(images, mean=mean, std=std)


def _ranks(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--top: got {text!r}, needs whole numbers such as 1,5") from None


@contextmanager
def _options(name: str) -> Iterator[None]:
    """Errors that name an argument of the library, with the option's name instead."""
    words = {"name": name, "path": name} | {word: f"--{word}" for word in _SAME}
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        argument, colon, message = str(error).partition(": ")
        if argument not in words:
            raise
        raise type(error)(words[argument] + colon + message) from error


def _print(content: dict[str, Any], words: str, as_json: bool) -> None:
    print(json.dumps(content, indent=2) if as_json else words)
