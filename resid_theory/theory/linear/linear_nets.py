r"""Linear networks at any weights, from the moments of the data alone.

A linear net is a list of units; unit r multiplies its layers and adds a fixed shortcut,
:math:`T_r = S^r + W^{r,n} \cdots W^{r,1}`, and the whole map is :math:`W = T_R \cdots T_1`. For
layer k let :math:`R_k` be the map from the input to the layer, :math:`L_k` the map from the layer
to the output, and :math:`\Gamma = W \Sigma_{xx} - \Sigma_{yx}`. Everything here is a formula in
these.

Vectors of parameters follow ``torch.nn.utils.parameters_to_vector``: unit by unit, layer by layer
from input to output, each matrix row by row; ``ShortcutNet.definition5_order`` gives the paper's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resid_theory.data.moments import Moments


@dataclass(frozen=True, eq=False)
class Unit:
    """Layers under one fixed shortcut.

    Attributes:
        weights: Matrices (out, in), from input to output, at least one.
        shortcut: The fixed map S around them, (out, in); None without a shortcut.

    Raises:
        ValueError: If the matrices do not chain, or the shortcut does not fit around them.
    """

    weights: tuple[Tensor, ...]
    shortcut: Tensor | None = None

    def __post_init__(self) -> None:
        shapes = [tuple(w.shape) for w in self.weights]
        matrices = len(shapes) > 0 and all(len(shape) == 2 for shape in shapes)
        if not matrices or any(a[0] != b[1] for a, b in zip(shapes, shapes[1:], strict=False)):
            raise ValueError(
                f"weights: got shapes {shapes}, needs (out, in) with in = previous out"
            )
        around = (shapes[-1][0], shapes[0][1])
        if self.shortcut is not None and tuple(self.shortcut.shape) != around:
            raise ValueError(
                f"shortcut: got shape {tuple(self.shortcut.shape)}, needs {around} around the unit"
            )


def forward(
    units: Sequence[Unit], start: Tensor, added: Sequence[Tensor] | None = None
) -> tuple[list[Tensor], Tensor]:
    """Products in front of every layer and behind the net; layers may add their own."""
    before: list[Tensor] = []
    for unit in units:
        inner = start
        for weight in unit.weights:
            before.append(inner)
            inner = weight @ inner
            inner = inner if added is None else inner + added[len(before) - 1]
        start = inner if unit.shortcut is None else inner + unit.shortcut @ start
    return before, start


def backward(
    units: Sequence[Unit], start: Tensor, added: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Products behind every layer, from the net's output; layers may add their own."""
    after: list[Tensor] = []
    for unit in reversed(units):
        inner = start
        for weight in reversed(unit.weights):
            after.append(inner)
            inner = inner @ weight
            inner = inner if added is None else inner + added[-len(after)]
        start = inner if unit.shortcut is None else inner + start @ unit.shortcut
    return after[::-1]


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerMaps:
    """Maps around every layer: ``before`` is R_k (in, d), ``after`` is L_k (k, out)."""

    layers: list[Tensor]
    before: list[Tensor]
    after: list[Tensor]
    total: Tensor


def prepare(net: Any, data: Any) -> tuple[list[Unit], LayerMaps, Moments]:
    """Units and maps of a net, and the moments of its data; widths are checked."""
    if hasattr(net, "layers"):
        if not net.is_linear:
            raise ValueError(
                f"net: {net} has activations or a bias; closed forms need a linear net without "
                "bias (resid_theory.hessian takes any net)"
            )
        layers, n = list(net.layers()), net.shortcut_depth
        around = torch.eye(net.width).to(layers[0]) if net.shortcut else None
        units = [Unit(tuple(layers[i : i + n]), around) for i in range(0, len(layers), n)]
    elif isinstance(net, Sequence) and len(net) and all(isinstance(part, Tensor) for part in net):
        units = [Unit(tuple(net))]
    elif isinstance(net, Sequence) and len(net) and all(isinstance(part, Unit) for part in net):
        units = list(net)
    else:
        raise ValueError(
            f"net: got {type(net).__name__}, needs a ShortcutNet, a sequence of Unit or of matrices"
        )
    for before, after in zip(units, units[1:], strict=False):
        rows, columns = before.weights[-1].shape[0], after.weights[0].shape[1]
        if rows != columns:
            raise ValueError(f"net: a unit gives width {rows}, the next one takes {columns}")
    units = [  # in float64 and without gradients
        Unit(
            tuple(weight.detach().double() for weight in unit.weights),
            None if unit.shortcut is None else unit.shortcut.detach().double(),
        )
        for unit in units
    ]
    layers = [weight for unit in units for weight in unit.weights]
    reads, total = forward(units, torch.eye(layers[0].shape[1]).to(layers[0]))
    acts = backward(units, torch.eye(layers[-1].shape[0]).to(layers[0]))
    maps = LayerMaps(layers=layers, before=reads, after=acts, total=total)
    moments = Moments.of(data).to(total.device)
    shape, needed = tuple(moments.syx.shape), tuple(total.shape)
    if shape != needed:
        raise ValueError(
            f"data: has {shape[0]} targets and {shape[1]} inputs, the net maps {needed[1]} inputs "
            f"to {needed[0]} outputs; needs equal widths"
        )
    return units, maps, moments


def residual(maps: LayerMaps, moments: Moments) -> Tensor:
    """Γ = W Sxx - Syx, (k, d): the gradient with respect to the whole map."""
    return maps.total @ moments.sxx - moments.syx


def linear_loss(net: Any, data: Any) -> Tensor:
    r"""Square loss of a linear net.

    :math:`\tfrac12 tr(W S_{xx} W^T) - tr(W S_{yx}^T) + \tfrac12 tr S_{yy}`.

    Args:
        net: A linear ``ShortcutNet``, a sequence of :class:`Unit`, or of matrices (a plain net).
        data: Moments, or data whose moments are taken.

    Returns:
        A float64 scalar: half the squared error, summed over outputs, mean over samples.

    Raises:
        ValueError: If the net is not linear or the widths do not fit.
    """
    _, maps, moments = prepare(net, data)
    quadratic = 0.5 * (maps.total @ moments.sxx * maps.total).sum()
    return quadratic - (maps.total * moments.syx).sum() + 0.5 * moments.syy.trace()


def linear_optimum(data: Any) -> float:
    r"""Smallest square loss that a linear map attains.

    :math:`\tfrac12 tr(S_{yy} - S_{yx} S_{xx}^+ S_{yx}^T)`.

    Args:
        data: Moments, or data whose moments are taken.

    Returns:
        The loss in the units of :func:`linear_loss`; the pseudo-inverse handles a singular Sxx.
    """
    moments = Moments.of(data)
    # Inputs of unlike sizes are brought to one, or the small ones would count as rank that is
    # missing; by powers of two, which round nothing.
    size = torch.exp2(moments.sxx.diagonal().sqrt().clamp_min(1e-300).log2().round())
    equal, back = moments.sxx / size / size[:, None], moments.syx / size
    explained = back @ torch.linalg.pinv(equal) @ back.mT
    return 0.5 * (moments.syy - explained).trace().item()


def linear_gradient(net: Any, data: Any) -> Tensor:
    r"""Gradient of :func:`linear_loss`, layer by layer :math:`L_k^T \Gamma R_k^T`.

    Args:
        net: A linear ``ShortcutNet``, a sequence of :class:`Unit`, or of matrices (a plain net).
        data: Moments, or data whose moments are taken.

    Returns:
        (P,), float64, in the order of ``parameters_to_vector``.

    Raises:
        ValueError: If the net is not linear or the widths do not fit.
    """
    _, maps, moments = prepare(net, data)
    gamma = residual(maps, moments)
    pairs = zip(maps.after, maps.before, strict=True)
    return torch.cat([(after.mT @ gamma @ before.mT).flatten() for after, before in pairs])


def linear_hvp(net: Any, data: Any, vector: Tensor) -> Tensor:
    """Hessian-vector product of :func:`linear_loss`, in O(layers x width³) for any sample count.

    Args:
        net: A linear ``ShortcutNet``, a sequence of :class:`Unit`, or of matrices (a plain net).
        data: Moments, or data whose moments are taken.
        vector: (..., P), in the order of ``parameters_to_vector``; leading axes are a batch.

    Returns:
        (..., P), float64.

    Raises:
        ValueError: If the vector's last axis is not P, or the net does not fit.
    """
    units, maps, moments = prepare(net, data)
    sizes = [w.numel() for w in maps.layers]
    if vector.shape[-1] != sum(sizes):
        raise ValueError(f"vector: got shape {tuple(vector.shape)}, needs (..., {sum(sizes)})")
    parts = vector.to(torch.float64).split(sizes, -1)
    moves = [v.unflatten(-1, w.shape) for v, w in zip(parts, maps.layers, strict=True)]
    # The change of every ``before``, of the whole map and of every ``after``.
    moved = [v @ b for v, b in zip(moves, maps.before, strict=True)]
    d_before, d_total = forward(units, torch.zeros_like(maps.before[0]), moved)
    moved = [a @ v for a, v in zip(maps.after, moves, strict=True)]
    d_after = backward(units, torch.zeros_like(maps.after[-1]), moved)
    gamma, d_gamma = residual(maps, moments), d_total @ moments.sxx
    rows = [
        da.mT @ gamma @ b.mT + a.mT @ d_gamma @ b.mT + a.mT @ gamma @ db.mT
        for a, b, da, db in zip(maps.after, maps.before, d_after, d_before, strict=True)
    ]
    return torch.cat([row.flatten(-2) for row in rows], -1)
