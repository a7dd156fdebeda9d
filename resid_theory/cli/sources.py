"""Nets and images by the names that options give; torch is imported when one is needed."""

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import torch
    from torch import nn

    from resid_theory import Images

Data = Annotated[
    str, typer.Option(help="cifar10, mnist, digits, or a folder with one folder per class.")
]
Size = Annotated[
    int | None, typer.Option(help="Side of the images; by default 32, of a folder 224.")
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="MODULE:CALLABLE",
        help="Your own net: imports MODULE from the current directory and calls CALLABLE(), which "
        "returns a torch.nn.Module. This runs the code of that file.",
    ),
]
StateDict = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Weights of --model: a state dict by torch.save, or safetensors."
    ),
]
Channels = Annotated[int, typer.Option(help="Channels of a named set; grey images are repeated.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]

AUTHORS = (".pt", ".pt7", ".pth")
_CONSTANTS = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
_SIDES = 32, 224  # of the images of a named set, of a folder


@contextmanager
def renamed(**options: str) -> Iterator[None]:
    """Let errors that begin with an argument of the library name an option instead."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        argument, colon, message = str(error).partition(": ")
        known = options.get(argument) or options.get(argument.partition(" ")[0])
        if known is None or not colon:
            raise
        raise type(error)(known + colon + message) from error


# -- nets ------------------------------------------------------------------------------------------


def checkpoint_net(checkpoint: str) -> "nn.Module":
    """A net in eval mode, from a checkpoint or from a file of the DiracNet authors."""
    import resid_theory as rt

    path = {checkpoint: f"--checkpoint: {checkpoint}"}  # how errors about a file begin
    with renamed(name="--checkpoint", **path):
        if Path(checkpoint).suffix in AUTHORS:
            return rt.load_dirac_file(checkpoint)
        return rt.load_checkpoint(checkpoint)


def model_net(model: str, seed: int, weights: Path | None = None) -> "nn.Module":
    """A net that a user's own code makes, which is run with torch's generator at the seed."""
    import torch
    from torch import nn

    import resid_theory as rt
    from resid_theory._check import check_choice

    name, colon, attribute = model.partition(":")
    if not (name and colon and attribute.isidentifier()):
        raise ValueError(f"--model: got {model!r}, needs module:callable, such as mynet:build")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = _module(model, name)
        make: Any = getattr(module, attribute, None)
        if not callable(make):
            known = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
            check_choice(f"--model: in {name}", attribute, known)
        net = make if isinstance(make, nn.Module) else _called(model, make)
    if not isinstance(net, nn.Module):
        raise ValueError(f"--model: {model} returns {type(net).__name__}, needs a torch.nn.Module")
    if weights is None:
        return net
    with renamed(name="--state-dict", **{str(weights): f"--state-dict: {weights}"}):
        return rt.load_checkpoint(weights, net=net)


def one_net(checkpoint: Sequence[str] | str | None, model: str | None) -> str:
    """The option that names the net."""
    if bool(checkpoint) == bool(model):
        given = "both" if model else "neither"
        raise ValueError(f"--checkpoint, --model: got {given}, needs one of them")
    return "--model" if model else "--checkpoint"


def named_net(
    checkpoint: str | None, model: str | None, seed: int, weights: Path | None
) -> "nn.Module":
    """The net of a checkpoint or of a user's own code."""
    if model:
        return model_net(model, seed, weights)
    if weights:
        raise ValueError("--state-dict: got weights without --model, which they belong to")
    return checkpoint_net(str(checkpoint))


def search_here() -> str:
    """Let modules be found in the current directory, as ``python -m`` does; returns it."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    return here


def _module(model: str, name: str) -> Any:
    here = search_here()
    try:
        return _called(model, lambda: importlib.import_module(name), ModuleNotFoundError)
    except ModuleNotFoundError as error:
        # Its own absence is the caller's slip; that of a module it imports is a fault inside.
        if not f"{name}.".startswith(f"{error.name}."):
            raise ValueError(_fault(model, error)) from error
        raise ValueError(
            f"--model: got {model!r}, no module {error.name!r} in {here} nor among the installed"
        ) from error


def _called(model: str, call: Callable[[], Any], *passed: type[Exception]) -> Any:
    """Result of a user's code; its errors in one line, with the place where they arose."""
    try:
        return call()
    except passed:
        raise
    except Exception as error:
        raise ValueError(_fault(model, error)) from error


def _fault(model: str, error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    # A call that does not fit the callable has no line of the user's.
    where = f" ({Path(place.filename).name}, line {place.lineno})" * (place.filename != __file__)
    return f"--model: {model} raised {type(error).__name__}: {error}{where}"


# -- images ----------------------------------------------------------------------------------------


def images(
    data: str,
    *,
    split: str = "test",
    samples: int | None = None,
    size: int | None = None,
    shorter: int | None = None,
    constants: str = "own",
    channels: int = 3,
    seed: int = 0,
    progress: bool = False,
) -> "Images":
    """Images of a named set or a folder, whose samples are drawn, as it is sorted by class."""
    import resid_theory as rt
    from resid_theory._check import check_choice

    with renamed(name="--data", path="--data"):
        if not Path(data).is_dir():
            check_choice(
                "--data", data, [*rt.data.IMAGE_SETS, "a folder with one folder per class"]
            )
            for option, default in (
                ("shorter", shorter is None),
                ("constants", constants == "own"),
            ):
                if not default:
                    raise ValueError(f"--{option}: got it with --data {data}, needs a folder")
            side = _SIDES[0] if size is None else size
            keywords: dict[str, Any] = {"samples": samples, "size": side, "channels": channels}
            return rt.load_images(data, split, progress=progress, **keywords)
        found = _folder(data, _SIDES[1] if size is None else size, shorter, constants)
        return found if samples is None else _drawn(found, samples, seed)


def _folder(data: str, size: int, shorter: int | None, constants: str) -> "Images":
    import resid_theory as rt
    from resid_theory._check import check_choice

    check_choice("constants", constants, ("own", *_CONSTANTS))
    shorter = size * 8 // 7 if shorter is None else shorter
    found = rt.load_image_folder(data, size=size, shorter=shorter)
    if constants == "own":
        return found
    mean, std = _CONSTANTS[constants]
    return replace(found, mean=mean, std=std)


def _drawn(found: "Images", samples: int, seed: int) -> "Images":
    """Some of the images, in their order; the first ones would all be of one class."""
    import torch

    found.first(samples)  # raises if there are fewer
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(found), generator=generator)[:samples].sort().values
    return replace(found, pixels=found.pixels[rows], labels=found.labels[rows])


# -- both ------------------------------------------------------------------------------------------


def run_once(net: "nn.Module", found: "Images") -> "torch.Tensor":
    """The net's outputs for two samples, before the work starts."""
    import torch

    from resid_theory.runtime.preserve import preserved

    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    x = found.inputs(found.pixels[:2].to(like.device), like.dtype)
    try:
        with preserved(net), torch.no_grad():
            return net(x)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        shape = " x ".join(map(str, x.shape[1:]))
        raise ValueError(
            f"--data: the net does not take images of {shape} (see --channels, --size): {error}"
        ) from error
