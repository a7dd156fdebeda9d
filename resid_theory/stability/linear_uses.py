"""Operations that apply a weight to an input, in one of two forms: y = x Wᵀ, or a convolution."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from resid_theory.identity import AddIdentity, identity_of, identity_removed


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Movement of a convolution over its input, with a number for each axis of the kernel.

    Attributes:
        stride: Steps between outputs.
        padding: Entries added on either side.
        dilation: Steps between taps.
        groups: Groups of channels.
        mode: What is added: ``"constant"`` (zeros), ``"circular"``, ``"reflect"``, ``"replicate"``.
    """

    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    mode: str = "constant"

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution without a bias."""
        inner = tuple(left for left, _ in self.padding)
        if self.mode != "constant" or any(left != right for left, right in self.padding):
            pads = [side for pair in reversed(self.padding) for side in pair]
            x, inner = F.pad(x, pads, self.mode), (0,) * len(inner)
        function: Any = (F.conv1d, F.conv2d, F.conv3d)[len(inner) - 1]
        out = function(x, weight, None, self.stride, inner, self.dilation, self.groups)
        assert isinstance(out, Tensor)
        return out


class Piece(NamedTuple):
    """One map of an operation: its weight as it was given, as a matrix or kernel, and operands."""

    part: Tensor
    weight: Tensor
    input: Tensor
    place: Tensor


class Operation(NamedTuple):
    """A product of two operands, whose axes have letters, or a convolution.

    Attributes:
        operands: Both factors.
        letters: A letter for each axis of either; none where the weight is a matrix or a kernel
            and the others are as its map has them.
        result: A letter for each axis of the product.
        stacked: Letters along which products stand side by side, as in ``torch.bmm``.
        weight_at: Operand that is the weight; None if either may be.
        bias: What is added to the product.
        geometry: Of a convolution.
        scaled: Whether the product or what is added to it has a factor.
    """

    operands: tuple[Tensor, Tensor]
    letters: tuple[str, str] = ("", "")
    result: str = ""
    stacked: str = ""
    weight_at: int | None = None
    bias: Tensor | None = None
    geometry: Geometry | None = None
    scaled: bool = False

    def pieces(self, at: int, output: Tensor) -> list[Piece]:
        """The maps in it, where the operand ``at`` is the weight; none if it is no such map."""
        w, x = self.operands[at], self.operands[1 - at]
        if not any(self.letters):
            return [Piece(w, w, x, output)]
        of_w, of_x, of_y = self.letters[at], self.letters[1 - at], self.result
        if any(len(set(letters)) < len(letters) for letters in (of_w, of_x)):
            return []
        single = {a for a, n, step in zip(of_w, w.shape, w.stride(), strict=True)
                  if a in of_y and (n == 1 or step == 0) and a in of_x + self.stacked}  # fmt: skip
        side = [a for a in of_w if a in of_y and a in of_x + self.stacked and a not in single]
        inner = [a for a in of_w if a in of_x and a not in of_y]
        outer = [a for a in of_w if a in of_y and a not in of_x + self.stacked]
        rest = [a for a in of_x if a not in side + inner]
        summed_alone = set(of_w) - single - {*side, *inner, *outer} | set(rest) - set(of_y)
        copied = any(w.shape[of_w.index(a)] > 1 for a in single.difference(of_x)) or any(
            w.shape[of_w.index(a)] < x.shape[of_x.index(a)] for a in inner
        )
        if summed_alone or copied or not inner:  # noise on the weight would be in all copies
            return []
        whole = {a: w.shape[of_w.index(a)] for a in inner}  # an input of length 1 is in each entry
        x = x.expand([whole.get(a, n) for a, n in zip(of_x, x.shape, strict=True)])
        found = []
        for index in itertools.product(*(range(w.shape[of_w.index(a)]) for a in side)):
            at_index = dict(zip(side, index, strict=True))
            part, axes = _taken(w, of_w, at_index | dict.fromkeys(single, 0))
            z, axes_of_z = _taken(x, of_x, at_index)
            dropped = {a: 0 for a in single if a not in of_x}
            y, axes_of_y = _taken(output, of_y, at_index | dropped)
            weight = _arranged(part, axes, [*outer, *inner])
            found.append(Piece(
                part=part,
                weight=weight.reshape(math.prod(weight.shape[:len(outer)]), -1),
                input=_arranged(z, axes_of_z, [*rest, *inner]).flatten(-len(inner)),
                place=_arranged(y, axes_of_y, [*rest, *outer]),
            ))  # fmt: skip
        return found


def _taken(tensor: Tensor, letters: str, index: dict[str, int]) -> tuple[Tensor, str]:
    """One entry along some of the axes, and the letters of the others."""
    for axis in reversed(range(len(letters))):
        if letters[axis] in index:
            tensor = tensor.select(axis, index[letters[axis]] if tensor.shape[axis] > 1 else 0)
    return tensor, "".join(a for a in letters if a not in index)


def _arranged(tensor: Tensor, letters: str, order: Sequence[str]) -> Tensor:
    return tensor.permute([letters.index(a) for a in order])


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearUse:
    """One use of a weight on an input.

    Attributes:
        name: Name of the map.
        number: Number of the use in a forward pass, from 1.
        input: (..., in), or (batch, channels, *space) of a convolution.
        kernel: The weight that was used, (out, in) or (out, in / groups, *kernel).
        place: Part of the operation's result that is the map's output, as a view.
        bias: What was added to it, (out,), or None.
        exact: Whether ``place`` is W x + bias.
        geometry: Of a convolution; None for a matrix.
        routed: Whether samples chose the rows of the input.
        owner: The module whose whole weight this is and which has an identity, or None.
    """

    name: str
    number: int
    input: Tensor
    kernel: Tensor
    place: Tensor
    bias: Tensor | None
    exact: bool
    geometry: Geometry | None
    routed: bool
    owner: nn.Module | None

    @property
    def key(self) -> tuple[str, int]:
        """Name of the map and number of the use."""
        return self.name, self.number

    @property
    def output(self) -> Tensor:
        """The map's output with its bias and its identity, (..., out) or like ``place``."""
        y = self.place
        if self.geometry is None:  # a vector of weights has no axis, some weights have several
            y = y[..., None].flatten(self.input.dim() - 1)
        return self.owner.add(self.input, y) if isinstance(self.owner, AddIdentity) else y

    @property
    def weight(self) -> Tensor:
        """The effective weight, the identity included, shape of ``kernel``."""
        if isinstance(self.owner, AddIdentity):
            return self.kernel + identity_of(self.owner.layer, self.owner.rule)
        return self.kernel

    @property
    def removed(self) -> Tensor:
        """The weight with the identity removed, R, in any order; W where there is none."""
        if self.owner is None:
            return self.kernel
        layer = self.owner.layer if isinstance(self.owner, AddIdentity) else self.owner
        try:
            return identity_removed(layer)
        except ValueError as error:  # a layer of another class with an identity in its weight
            raise ValueError(f"net: {self.name!r}: {str(error).removeprefix('layer: ')}") from error

    def apply(self, x: Tensor, weight: Tensor) -> Tensor:
        """The map without its bias, with some weight, of another input of its kind."""
        return self.geometry.convolve(x, weight) if self.geometry else F.linear(x, weight)


# -- readers of torch's functions ------------------------------------------------------------------

_BATCH = "abcdefgh"
_HIDDEN = "αβγδεζηθικλμνξοπρστυφχψω"  # axes of "...", which an equation cannot name


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Operation:
    found = Operation(operands=(input, weight), weight_at=1, bias=bias)
    if weight.dim() == 2:
        return found
    rest = _BATCH[: input.dim() - 1]
    return found._replace(letters=(f"{rest}K", "K"), result=rest)


def _matmul(input: Tensor, other: Tensor) -> Operation:
    batch = _BATCH[: max(input.dim(), other.dim(), 2) - 2]
    first = "K" if input.dim() == 1 else batch[len(batch) - input.dim() + 2 :] + "MK"
    second = "K" if other.dim() == 1 else batch[len(batch) - other.dim() + 2 :] + "KN"
    result = batch + "M" * (input.dim() > 1) + "N" * (other.dim() > 1)
    return Operation((input, other), (first, second), result, stacked=batch)


def _turned_matmul(other: Tensor, input: Tensor) -> Operation:
    return _matmul(input, other)


def _added(input: Tensor, one: Tensor, other: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    return _matmul(one, other)._replace(bias=input, scaled=(beta, alpha) != (1, 1))


def _added_to(input: Tensor, one: Tensor, other: Tensor, **scales: float) -> Operation:
    return _matmul(one, other)._replace(scaled=True)  # what was added is overwritten


def _einsum(equation: Any, *operands: Any) -> Operation | None:
    if isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if len(operands) != 2:
        return None
    left, arrow, result = equation.replace(" ", "").partition("->")
    sides = left.split(",")
    if not arrow:
        result = "..." + "".join(sorted(a for a in {*left} - {","} if left.count(a) == 1))
    hidden = [x.dim() - len(s.replace("...", "")) for s, x in zip(sides, operands, strict=True)]
    stars = _HIDDEN[: max(hidden)]
    one, other = (
        side.replace("...", stars[len(stars) - n :]) for side, n in zip(sides, hidden, strict=True)
    )
    return Operation((operands[0], operands[1]), (one, other), result.replace("...", stars))


def _tensordot(a: Tensor, b: Tensor, dims: Any) -> Operation:
    pairs = dims.tolist() if isinstance(dims, Tensor) else dims
    if isinstance(pairs, int):
        pairs = [list(range(a.dim() - pairs, a.dim())), list(range(pairs))]
    first, second = list(ascii_lowercase[: a.dim()]), list(ascii_uppercase[: b.dim()])
    for i, j in zip(*pairs, strict=True):
        second[j] = first[i]
    result = [s for s in first + second if not (s in first and s in second)]
    return Operation((a, b), ("".join(first), "".join(second)), "".join(result))


def _inner(input: Tensor, other: Tensor) -> Operation:
    first, second = _BATCH[: input.dim() - 1], _BATCH.upper()[: other.dim() - 1]
    return Operation((input, other), (f"{first}k", f"{second}k"), first + second)


def _convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Operation:  # fmt: skip
    axes = weight.dim() - 2
    steps = _each(dilation, axes)
    pads = []
    for side, step, pad in zip(
        weight.shape[2:], steps, _each(0 if padding == "valid" else padding, axes), strict=True
    ):
        whole = step * (side - 1) if pad == "same" else 2 * pad
        pads.append((whole // 2, whole - whole // 2))
    return Operation(
        operands=(input, weight), weight_at=1, bias=bias,
        geometry=Geometry(stride=_each(stride, axes), padding=tuple(pads), dilation=steps,
                          groups=groups),
    )  # fmt: skip


def _each(given: Any, axes: int) -> tuple[Any, ...]:
    if isinstance(given, (int, str)):
        return (given,) * axes
    return tuple(given) * (axes if len(given) == 1 else 1)


READERS: dict[str, Callable[..., Operation | None]] = {
    "linear": _linear,
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "__matmul__", "linalg_matmul"), _matmul),
    "__rmatmul__": _turned_matmul,
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), _added),
    **dict.fromkeys(("addmm_", "baddbmm_", "addmv_"), _added_to),
    "einsum": _einsum,
    "tensordot": _tensordot,
    "inner": _inner,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
}
"""Operations that functions of torch stand for, by name and but for ``out``; None for none."""
