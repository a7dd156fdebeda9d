"""DiracNets in the files of the paper's authors, read and written by one map of names."""

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from resid_theory._check import check_finite
from resid_theory.equivalence import fold
from resid_theory.identity import identity_kernel, layer_identity
from resid_theory.networks import diracnet, diracnet_imagenet
from resid_theory.runtime import store
from resid_theory.runtime.net_entry import check_net
from resid_theory.runtime.weight_files import misfits, read_safely, without_wrappers

# Depth by the layers of each group.
_IMAGENET: dict[tuple[int, ...], int] = {(4, 4, 4, 4): 18, (6, 8, 12, 6): 34}
_BESIDE = ("params", "stats", "optimizer", "epoch")  # what the authors' training writes
_PARTS = {
    "parametrizations.weight.original": "conv",
    "parametrizations.weight.0.a": "alpha",
    "parametrizations.weight.0.b": "beta",
    "weight": "conv",
}


@torch.no_grad()
def load_dirac_file(path: str | Path) -> nn.Sequential:
    """Read a DiracNet from a file of the paper's authors; CIFAR or ImageNet, folded or not.

    Depth, width and classes follow from names and shapes. The file is read by ``torch.load`` with
    ``weights_only=True``, which runs nothing in it, and all tensors are checked before a net is
    built. Unfolded files hold a flat dict under ``params`` (older ones keep the running statistics
    under ``stats``), from which comes :func:`diracnet` or :func:`diracnet_imagenet`; folded ones
    hold ``features.*`` and ``fc.*``, from which comes the :func:`fold` of such a net. The constant
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
    path = store.path_of(path, "path")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; needs one that torch.save has written")
    try:
        tensors = _plain_tensors(_entries(read_safely(path)), path.stat().st_size)
        folded = any(name.startswith("features.") for name in tensors)
        first = "features.conv.weight" if folded else "conv"
        for name, axes in ((first, 4), ("fc.weight", 2)):
            if name not in tensors or tensors[name].dim() != axes:
                raise ValueError(f"{name!r} is missing or has another number of axes than {axes}")
        stem, classes, layers = tensors[first], len(tensors["fc.weight"]), _layers(tensors)
        with torch.device("meta"):  # no memory is taken before all shapes are known to fit
            net = _built(layers, stem.shape, classes, folded)
        if fault := misfits(_names(net.state_dict(), layers), tensors):
            raise ValueError(fault)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    # Not to_empty, for which torch imports SymPy.
    net._apply(
        lambda t: torch.empty(t.shape, dtype=stem.dtype if t.is_floating_point() else t.dtype)
    )
    for buffer in net.buffers():  # those that the file has not: counts of batches, identities
        buffer.zero_()
    for layer in net.children():
        if (inside := layer_identity(layer)) is not None:
            inside.identity.copy_(identity_kernel(inside.identity.shape, rule="truncate"))
    for name, own in _names(net.state_dict(), layers).items():
        own.copy_(tensors[name])
    return net


def _entries(content: Any) -> dict[Any, Any]:
    """The named tensors of a file in one dict."""
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}, needs a dict of tensors")
    content = _unwrapped(content)
    if "params" not in content:
        if any(str(name).startswith("features.") for name in content):
            return content
        first = next(iter(content), None)
        raise ValueError(
            "has neither 'params' nor 'features.*', as files of the DiracNet authors do, but "
            f"{first!r:.80}; weights of another net: rt.load_checkpoint(path, net=net), or "
            "--model with --state-dict"
        )
    odd = next((name for name in content if name not in _BESIDE), None)
    if odd is not None:
        raise ValueError(f"has {odd!r:.80} beside 'params', needs {_BESIDE[1:]} or nothing")
    merged: dict[Any, Any] = {}
    for part in ("params", "stats"):
        entries = content.get(part, {})
        if not isinstance(entries, dict):
            raise ValueError(f"{part!r} is a {type(entries).__name__}, needs a dict")
        entries = _unwrapped(entries)
        twice = next((name for name in entries if name in merged), None)
        if twice is not None:
            raise ValueError(f"{twice!r:.80} is in 'params' and in 'stats'")
        merged |= entries
    return merged


def _unwrapped(entries: dict[Any, Any]) -> dict[Any, Any]:
    named = all(isinstance(name, str) for name in entries)
    return without_wrappers(entries) if named else entries


def _plain_tensors(entries: Mapping[Any, Any], size: int) -> dict[str, Tensor]:
    """The entries but the constant identities, if they are dense finite tensors of one dtype."""
    first, total = None, 0
    for name, tensor in entries.items():
        if not isinstance(name, str):
            raise ValueError(f"has the key {name!r:.80}, needs names of tensors")
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            kind = tensor.type() if isinstance(tensor, Tensor) else type(tensor).__name__
            raise ValueError(f"{name!r} is a {kind}, needs a dense tensor")
        first = first or tensor.dtype
        if tensor.dtype != first or first not in (torch.float32, torch.float64):
            raise ValueError(f"{name!r} is {tensor.dtype}, needs float32 or float64, one for all")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise ValueError(f"{name!r} has a negative variance")
        total += tensor.numel() * tensor.element_size()
        if total > size:  # as expanded tensors are
            raise ValueError(f"its tensors claim {total} bytes in a file of {size}")
        check_finite(repr(name), tensor)
        if name.startswith("eye") and name != _eye_name(tensor):
            raise ValueError(f"{name!r} has shape {tuple(tensor.shape)}, which is not in its name")
        if name.startswith("eye") and not _is_dirac(tensor):
            raise ValueError(f"{name!r} is not the identity of nn.init.dirac_")
    return {name: tensor for name, tensor in entries.items() if not name.startswith("eye")}


def _eye_name(eye: Tensor) -> str:
    return "eye" + "_".join(map(str, eye.shape))


def _is_dirac(eye: Tensor) -> bool:
    return torch.equal(eye, identity_kernel(eye.shape, rule="truncate").to(eye))


def _layers(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Layers of each group, by the highest numbers that occur."""
    count: Counter[int] = Counter()
    for name, tensor in tensors.items():
        place = re.match(r"(?:features\.)?group(\d{1,3})\.block(\d{1,3})\.conv", name)
        if not place:
            continue
        group, block = int(place[1]), int(place[2])
        count[group] = max(count[group], block + 1)
        if (group, block) == (0, 0) and tensor.dim() == 4 and len(tensor) * 2 == tensor.shape[1]:
            raise ValueError(
                f"has kernels of twice the inputs, {tuple(tensor.shape)}, as the paper's first "
                "version with its negative CReLU; needs version 2, with ReLU"
            )
    return tuple(count[group] for group in range(max(count, default=-1) + 1))


def _built(
    layers: tuple[int, ...], stem: Sequence[int], classes: int, folded: bool
) -> nn.Sequential:
    """The net of these groups and this stem, in eval mode; ValueError if there is none."""
    sides, channels = tuple(stem[2:]), stem[0]
    cifar = len(layers) == 3 and len(set(layers)) == 1 and layers[0] % 2 == 0
    if sides not in ((3, 3), (7, 7)):
        raise ValueError(f"has a stem of {sides}, needs (3, 3) for CIFAR or (7, 7) for ImageNet")
    if not (layers in _IMAGENET if sides == (7, 7) else cifar):
        needed = [*_IMAGENET] if sides == (7, 7) else "three times 2N"
        raise ValueError(f"has groups of {layers!s:.60} layers, needs {needed}")
    if channels % 16 or channels == 0:
        raise ValueError(f"has a stem of {channels} channels, needs 16 times a whole width")
    # Arithmetic on the device meta makes torch import its compiler, and what folds is the same.
    identity = "plain" if folded else "dirac"
    if sides == (7, 7):
        net = diracnet_imagenet(_IMAGENET[layers], classes=classes, identity=identity)
    else:
        width = channels // 16
        net = diracnet(3 * layers[0] + 4, width=width, classes=classes, identity=identity)
    net.eval()
    return cast("nn.Sequential", fold(net)) if folded else net


def _names(state: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """A net's tensors under the authors' names."""
    places = ["", *(f"group{g}.block{b}." for g, n in enumerate(layers) for b in range(n))]
    folded = "conv0.bias" in state
    named = {}
    for ours, tensor in state.items():
        layer, _, part = ours.partition(".")
        if layer == "fc":
            named[ours] = tensor
        elif part != "num_batches_tracked":
            kind, number = ("bn", layer[2:]) if layer.startswith("bn") else ("conv", layer[4:])
            end = f"{kind}.{part}" if folded or kind == "bn" else _PARTS[part]
            named[("features." if folded else "") + places[int(number)] + end] = tensor
    return named


def save_dirac_file(path: str | Path, net: nn.Module) -> str:
    """Write a DiracNet as the paper's authors do, so that their code reads it.

    Args:
        path: File to write or replace, whole or not at all.
        net: :func:`diracnet` or :func:`diracnet_imagenet` with normalized Dirac layers, written as
            a flat dict under ``params``, or the :func:`fold` of one, written in the folded layout;
            on any device.

    Returns:
        The sha256 of the file.

    Raises:
        ValueError: If the net is another one or has numbers that are not finite.

    Source:
        The authors' code of Zagoruyko & Komodakis, arXiv:1706.00388v2. BatchNorm's count of batches
        has no place in their files.
    """
    net = check_net(net, finite=False)
    layers = _layers_of_net(net)
    for name, tensor in net.state_dict().items():
        check_finite(f"net: {name!r}", tensor)
    named = _names(net.state_dict(), layers)
    content: dict[str, Any] = {name: t.cpu().contiguous().clone() for name, t in named.items()}
    if "conv" in content:
        insides = [inside for layer in net.children() if (inside := layer_identity(layer))]
        eyes = {_eye_name(inside.identity): inside.identity.cpu() for inside in insides}
        content = {"params": content | eyes}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return store.write_bytes(path, buffer.getvalue())


def _layers_of_net(net: nn.Module) -> tuple[int, ...]:
    """Layers of each group of one of the library's DiracNets; ValueError for other nets."""
    state = net.state_dict()
    stem, classifier = state.get("conv0.weight"), state.get("fc.weight")
    if stem is None or classifier is None or stem.dim() != 4:
        fault: str | None = "it has no 'conv0.weight' and 'fc.weight'"
    else:
        names = [name for name, _ in net.named_children()]
        count = len([name for name in names if re.fullmatch(r"conv[1-9]\d*", name)])
        layers: tuple[int, ...] = (count // 3,) * 3
        if stem.shape[-1] == 7:
            layers = next((known for known in _IMAGENET if sum(known) == count), layers)
        try:
            with torch.device("meta"):  # nothing is drawn
                like = _built(layers, stem.shape, len(classifier), "bn0" not in names)
            fault = _difference(net, like)
        except ValueError as error:
            fault = f"it {error}"
        if fault is None:
            return layers
    raise ValueError(
        f"net: got {type(net).__name__}, which is no DiracNet as the authors write them ({fault}); "
        "needs rt.diracnet or rt.diracnet_imagenet with identity='dirac' and normalize=True, or "
        "rt.fold of one"
    )


def _difference(net: nn.Module, like: nn.Module) -> str | None:
    """The first difference of a net from another in names, shapes, settings or identities."""
    for mine, other in zip_longest(net.children(), like.children()):
        if str(mine) != str(other):
            return f"it has {' '.join(str(mine).split())}"
        inside = layer_identity(mine)
        if inside is not None and not _is_dirac(inside.identity):
            return f"an identity {tuple(inside.identity.shape)} is not that of nn.init.dirac_"
    return misfits(like.state_dict(), net.state_dict()) or None
