"""The layouts of the DiracNets authors' files, name by name and shape by shape."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor, nn

from resid_theory.equivalence import fold
from resid_theory.identity import identity_kernel, layer_identity
from resid_theory.networks import diracnet, diracnet_imagenet

__all__ = ["Entry", "Form", "eyes", "first_fault", "form_of_file", "form_of_net", "without_eyes"]

_IMAGENET: dict[tuple[int, ...], int] = {
    (4, 4, 4, 4): 18,
    (6, 8, 12, 6): 34,
}  # layers of each group
_NORM = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor under both names.

    Attributes:
        theirs: In the authors' file.
        ours: In the state dict of the library's net.
        shape: Of both.
    """

    theirs: str
    ours: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Form:
    """A DiracNet as its file shows it.

    Attributes:
        imagenet: Stem of 7 x 7 and four groups; otherwise 3 x 3 and three.
        layers: Of each group.
        width: Factor on the channels; 1 for ImageNet.
        classes: Outputs.
        folded: Whether BatchNorm and identity are inside the kernels.
    """

    imagenet: bool
    layers: tuple[int, ...]
    width: int
    classes: int
    folded: bool

    def build(self) -> nn.Sequential:
        """A net of this form, in eval mode; its weights are drawn."""
        if self.imagenet:
            net = diracnet_imagenet(_IMAGENET[self.layers], classes=self.classes)
        else:
            net = diracnet(3 * self.layers[0] + 4, width=self.width, classes=self.classes)
        net.eval()
        if not self.folded:
            return net
        folded = fold(net)
        assert isinstance(folded, nn.Sequential)
        return folded

    def entries(self) -> Iterator[Entry]:
        """Every tensor of the net, from input to output."""
        first = 64 if self.imagenet else 16 * self.width
        side = 7 if self.imagenet else 3
        if self.folded:
            yield from _folded("features.conv", "conv0", (first, 3, side, side))
        else:
            yield Entry(theirs="conv", ours="conv0.weight", shape=(first, 3, side, side))
            yield from _norm("bn", "bn0", first)
        inputs, number = first, 0
        for group, layers in enumerate(self.layers):
            outputs = first * 2**group
            for block in range(layers):
                number += 1
                name = f"group{group}.block{block}"
                yield from self._layer(name, number, (outputs, inputs, 3, 3))
                inputs = outputs
        yield Entry(theirs="fc.weight", ours="fc.weight", shape=(self.classes, inputs))
        yield Entry(theirs="fc.bias", ours="fc.bias", shape=(self.classes,))

    def _layer(self, name: str, number: int, shape: tuple[int, ...]) -> Iterator[Entry]:
        if self.folded:
            yield from _folded(f"features.{name}.conv", f"conv{number}", shape)
            return
        inside = f"conv{number}.parametrizations.weight"
        yield Entry(theirs=f"{name}.conv", ours=f"{inside}.original", shape=shape)
        yield Entry(theirs=f"{name}.alpha", ours=f"{inside}.0.a", shape=shape[:1])
        yield Entry(theirs=f"{name}.beta", ours=f"{inside}.0.b", shape=shape[:1])
        yield from _norm(f"{name}.bn", f"bn{number}", shape[0])


def _norm(theirs: str, ours: str, channels: int) -> Iterator[Entry]:
    for part in _NORM:
        yield Entry(theirs=f"{theirs}.{part}", ours=f"{ours}.{part}", shape=(channels,))


def _folded(theirs: str, ours: str, shape: tuple[int, ...]) -> Iterator[Entry]:
    yield Entry(theirs=f"{theirs}.weight", ours=f"{ours}.weight", shape=shape)
    yield Entry(theirs=f"{theirs}.bias", ours=f"{ours}.bias", shape=shape[:1])


def form_of_file(tensors: Mapping[str, Tensor], *, folded: bool) -> Form:
    """The form of the net whose tensors these are, by names and shapes.

    Args:
        tensors: Under the authors' names.
        folded: Which layout.

    Returns:
        The form; whether every tensor fits it is for :func:`first_fault` to say.

    Raises:
        ValueError: If there is no such net; a clause to follow a file's name.
    """
    stem = _found(tensors, "features.conv.weight" if folded else "conv", 4)
    classifier = _found(tensors, "fc.weight", 2)
    layers = _layers(tensors, "features." if folded else "")
    first = "features.group0.block0.conv.weight" if folded else "group0.block0.conv"
    _refuse_first_version(tensors.get(first))
    return _form(stem, layers, int(classifier.shape[0]), folded)


def _found(tensors: Mapping[str, Tensor], name: str, axes: int) -> Tensor:
    if name not in tensors:
        raise ValueError(f"{name!r} is missing")
    if tensors[name].dim() != axes:
        raise ValueError(f"{name!r} has shape {tuple(tensors[name].shape)}, needs {axes} axes")
    return tensors[name]


def _layers(names: Iterable[str], prefix: str) -> tuple[int, ...]:
    """Layers of each group, by the highest number that occurs."""
    highest: dict[int, int] = {}
    for name in names:
        found = re.match(rf"{re.escape(prefix)}group(\d{{1,3}})\.block(\d{{1,3}})\.", name)
        if found:
            group, block = int(found[1]), int(found[2])
            highest[group] = max(highest.get(group, 0), block)
    return tuple(highest.get(group, -1) + 1 for group in range(max(highest, default=-1) + 1))


def _refuse_first_version(kernel: Tensor | None) -> None:
    if kernel is not None and kernel.dim() == 4 and kernel.shape[1] == 2 * kernel.shape[0]:
        raise ValueError(
            f"has kernels of twice the inputs, {tuple(kernel.shape)}, as the paper's first version "
            "with its negative CReLU; needs version 2, with ReLU"
        )


def _form(stem: Tensor, layers: tuple[int, ...], classes: int, folded: bool) -> Form:
    channels, sides = int(stem.shape[0]), tuple(stem.shape[2:])
    if sides == (7, 7):
        if layers not in _IMAGENET:
            raise ValueError(
                f"has groups of {layers!s:.60} layers; for ImageNet needs {[*_IMAGENET]}"
            )
        return Form(imagenet=True, layers=layers, width=1, classes=classes, folded=folded)
    if sides != (3, 3):
        raise ValueError(f"has a stem of {sides}, needs (3, 3) for CIFAR or (7, 7) for ImageNet")
    if len(layers) != 3 or len(set(layers)) > 1 or layers[0] % 2 or layers[0] == 0:
        raise ValueError(f"has groups of {layers!s:.60} layers; for CIFAR needs three times 2N")
    if channels % 16 or channels == 0:
        raise ValueError(f"has a stem of {channels} channels, needs 16 times a whole width")
    width = channels // 16
    return Form(imagenet=False, layers=layers, width=width, classes=classes, folded=folded)


def first_fault(form: Form, tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor of a file that does not fit a form.

    Args:
        form: Of the net.
        tensors: Under the authors' names.

    Returns:
        A clause to follow a file's name; None if all fit.
    """
    entries = {entry.theirs: entry for entry in form.entries()}
    for name, entry in entries.items():
        if name not in tensors:
            return f"{name!r} {entry.shape} is missing"
        if tensors[name].shape != entry.shape:
            return f"{name!r} has shape {tuple(tensors[name].shape)}, needs {entry.shape}"
        if name.endswith("running_var") and bool((tensors[name] < 0).any()):
            return f"{name!r} has a negative variance"
    extra = next((name for name in tensors if name not in entries), None)
    return extra and f"{extra!r} {tuple(tensors[extra].shape)} has no place in the net"


def form_of_net(net: nn.Module) -> Form:
    """The form of one of the library's DiracNets.

    Args:
        net: :func:`diracnet` or :func:`diracnet_imagenet` with normalized Dirac layers, or the fold
            of one.

    Returns:
        The form.

    Raises:
        ValueError: If the net is another one; names the first difference.
    """
    found = _counted(net)
    fault = found if isinstance(found, str) else _difference(net, found)
    if fault or isinstance(found, str):
        raise ValueError(
            f"net: got {type(net).__name__}, which is no DiracNet as the authors write them "
            f"({fault}); needs rt.diracnet or rt.diracnet_imagenet with identity='dirac' and "
            "normalize=True, or rt.fold of one"
        )
    return found


def _counted(net: nn.Module) -> Form | str:
    """The form that a net's stem, depth and classifier suggest, or why there is none."""
    tensors = net.state_dict()
    stem, classifier = tensors.get("conv0.weight"), tensors.get("fc.weight")
    if stem is None or classifier is None or stem.dim() != 4:
        return "it has no 'conv0.weight' and 'fc.weight'"
    count = len([name for name, _ in net.named_children() if re.fullmatch(r"conv[1-9]\d*", name)])
    layers: tuple[int, ...] = (count // 3,) * 3
    if stem.shape[-1] == 7:
        layers = next((known for known in _IMAGENET if sum(known) == count), layers)
    try:
        return _form(stem, layers, len(classifier), "bn0.weight" not in tensors)
    except ValueError as error:
        return f"it {error}"


def _difference(net: nn.Module, form: Form) -> str | None:
    """What a net has that the library's net of this form has not; names, shapes and settings."""
    own = {n: t.shape for n, t in net.state_dict().items() if "num_batches_tracked" not in n}
    wanted = {entry.ours: entry.shape for entry in form.entries()}
    odd = next((name for name in {**wanted, **own} if own.get(name) != wanted.get(name)), None)
    if odd:
        return f"{odd!r} has shape {_shape(own.get(odd))}, needs {_shape(wanted.get(odd))}"
    with torch.device("meta"):  # nothing is drawn
        built = form.build()
    for mine, other in zip_longest(net.children(), built.children()):
        if str(mine) != str(other):
            return f"it has {' '.join(str(mine).split())}"
    for name, layer in net.named_children():
        inside = layer_identity(layer)
        if inside is not None and not torch.equal(inside.identity, _dirac(inside.identity)):
            return f"the identity in {name!r} is not that of nn.init.dirac_"
    return None


def _shape(shape: Sequence[int] | None) -> str:
    return "none" if shape is None else str(tuple(shape))


def _dirac(like: Tensor) -> Tensor:
    return identity_kernel(like.shape, rule="truncate", dtype=like.dtype, device=like.device)


def without_eyes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without the constant identities, which the layers' shapes imply.

    Args:
        tensors: Under the authors' names; ``eye<shape>`` is the identity of kernels of that shape.

    Returns:
        All others.

    Raises:
        ValueError: If one is another identity than that of ``nn.init.dirac_``, so that the file's
            net computes something else: a clause to follow a file's name.
    """
    for name, eye in tensors.items():
        if not name.startswith("eye"):
            continue
        shape = tuple(eye.shape)
        if name != eye_name(shape) or eye.dim() < 3 or not all(side % 2 for side in shape[2:]):
            raise ValueError(f"{name!r} has shape {shape}, which is not in its name")
        if not torch.equal(eye, _dirac(eye)):
            raise ValueError(f"{name!r} is not the identity of nn.init.dirac_")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("eye")}


def eye_name(shape: Sequence[int]) -> str:
    """The authors' name of the identity of a kernel's shape."""
    return "eye" + "_".join(map(str, shape))


def eyes(form: Form) -> dict[str, tuple[int, ...]]:
    """The identities that an unfolded file carries: shape by name."""
    layers = (e.shape for e in form.entries() if len(e.shape) == 4 and e.theirs != "conv")
    return {eye_name(shape): shape for shape in layers}
