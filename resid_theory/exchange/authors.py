"""DiracNets read from and written to the files of the paper's authors."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice, check_finite
from resid_theory.exchange.layouts import (
    eyes,
    first_fault,
    form_of_file,
    form_of_net,
    without_eyes,
)
from resid_theory.exchange.safe_load import opened, plain_tensors
from resid_theory.identity import identity_kernel
from resid_theory.runtime import store

__all__ = ["load_dirac_file", "save_dirac_file"]

_LAYOUTS = ("params", "stats", "folded")
_BESIDE = ("params", "stats", "optimizer", "epoch")  # what the authors' training writes


@torch.no_grad()
def load_dirac_file(path: str | Path) -> nn.Sequential:
    """A DiracNet from a file of the paper's authors; CIFAR or ImageNet, folded or not.

    Depth, width and classes follow from names and shapes. The file is opened weights-only: nothing
    in it is run, and it is read whole and judged before a net is built.

    Unfolded files hold a flat dict under ``params`` (older ones keep the running statistics under
    ``stats``), from which comes :func:`diracnet` or :func:`diracnet_imagenet`; folded ones hold
    ``features.*`` and ``fc.*``, from which comes the :func:`fold` of such a net. The constant
    ``eye...`` tensors are not needed, but checked.

    Args:
        path: A file of ``torch.save``, in the format of any version of torch.

    Returns:
        The net, in eval mode, on the CPU, of the file's dtype; it computes what the authors'
        functional code computes, to round-off. Its ``architecture`` is recorded, so
        :func:`save_checkpoint` keeps it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not one of these: one sentence with the file and the first
            problem.

    Source:
        Layouts: the authors' code of Zagoruyko & Komodakis, arXiv:1706.00388v2. Inputs are
        normalized as there: CIFAR with the training set's constants, ImageNet with mean (0.485,
        0.456, 0.406) and standard deviation (0.229, 0.224, 0.225) of channels in [0, 1].

    Example:
        >>> path = getfixture("tmp_path") / "model.pt7"
        >>> net = rt.diracnet(10, width=2).eval()
        >>> _ = rt.save_dirac_file(path, net)
        >>> again = rt.load_dirac_file(path)
        >>> again.architecture["arguments"]["width"], bool((again[0].weight == net[0].weight).all())
        (2, True)
    """
    path = Path(path)
    content, folded = _layout(path, opened(path))
    tensors = plain_tensors(path, content)
    try:
        if not folded:
            tensors = without_eyes(tensors)
        form = form_of_file(tensors, folded=folded)
        fault = first_fault(form, tensors)
    except ValueError as error:
        fault = str(error)
    if fault:
        raise ValueError(f"{path}: {fault}")
    net = form.build().to("cpu", next(iter(tensors.values())).dtype)
    own = net.state_dict()
    for entry in form.entries():
        own[entry.ours].copy_(tensors[entry.theirs])
    return net


def _layout(path: Path, content: Any) -> tuple[Mapping[Any, Any], bool]:
    """The entries of a file in one dict, and whether they are folded."""
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}, needs a dict of tensors")
    if "params" not in content:
        if any(str(name).startswith("features.") for name in content):
            return content, True
        first = next(iter(content), None)
        raise ValueError(
            f"{path}: has neither 'params' nor 'features.*', as the authors' files do; its first "
            f"key is {first!r:.80}"
        )
    odd = next((name for name in content if name not in _BESIDE), None)
    if odd is not None:
        raise ValueError(f"{path}: has {odd!r:.80} beside 'params', needs {_BESIDE[1:]} or nothing")
    merged: dict[Any, Any] = {}
    for part in ("params", "stats"):
        entries = content.get(part, {})
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: {part!r} is a {type(entries).__name__}, needs a dict")
        twice = next((name for name in entries if name in merged), None)
        if twice is not None:
            raise ValueError(f"{path}: {twice!r:.80} is in 'params' and in 'stats'")
        merged |= entries
    return merged, False


def save_dirac_file(path: str | Path, net: nn.Module, *, layout: str | None = None) -> str:
    """Write a DiracNet as the paper's authors do, so that their code reads it.

    Args:
        path: File to write or replace, whole or not at all.
        net: :func:`diracnet` or :func:`diracnet_imagenet` with normalized Dirac layers, or the
            :func:`fold` of one, on any device.
        layout: ``"params"``: parameters and statistics in one flat dict; ``"stats"``: statistics
            apart, as in older files; ``"folded"``, for folded nets only. None takes the first or
            the last, as the net is.

    Returns:
        The sha256 of the file.

    Raises:
        ValueError: If the net is another one, has numbers that are not finite, or is not of the
            layout.

    Source:
        As for :func:`load_dirac_file`. BatchNorm's count of batches has no place there.
    """
    form = form_of_net(net)
    layout = check_choice("layout", layout or ("folded" if form.folded else "params"), _LAYOUTS)
    if form.folded != (layout == "folded"):
        has = "a folded net: needs layout='folded'" if form.folded else "a net that is not folded"
        advice = "" if form.folded else "; fold it first, rt.fold(net.eval())"
        raise ValueError(f"layout: got {layout!r} for {has}{advice}")
    own = net.state_dict()
    tensors = {
        entry.theirs: check_finite(f"net: {entry.ours!r}", own[entry.ours])
        .cpu()
        .contiguous()
        .clone()
        for entry in form.entries()
    }
    buffer = io.BytesIO()
    torch.save(_content(tensors, {} if form.folded else eyes(form), layout), buffer)
    return store.write_bytes(path, buffer.getvalue())


def _content(
    tensors: dict[str, Tensor], eyes: Mapping[str, tuple[int, ...]], layout: str
) -> dict[str, Any]:
    if layout == "folded":
        return tensors
    dtype = tensors["conv"].dtype
    constants = {
        name: identity_kernel(shape, rule="truncate", dtype=dtype, device="cpu")
        for name, shape in eyes.items()
    }
    if layout == "params":
        return {"params": tensors | constants}
    statistics = {name: t for name, t in tensors.items() if ".running_" in name}
    others = {name: t for name, t in tensors.items() if name not in statistics}
    return {"params": others, "stats": statistics | constants}
