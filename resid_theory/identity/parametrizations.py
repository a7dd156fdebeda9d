"""Residual, dominant-path and Dirac parametrizations: weights that contain the identity."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from resid_theory._check import check_choice, check_int
from resid_theory.identity.identity_kernel import identity_map, identity_of, mark


class ResidualWeight(nn.Module):
    r"""W = V + I: a layer under its own identity shortcut, as one weight.

    For ``torch.nn.utils.parametrize``: ``forward`` is the paper's :math:`\tau`, ``right_inverse``
    its inverse. The optimizer sees V, so weight decay pulls the layer towards the identity.

    Args:
        identity: I, shape of the weight, zeros and ones.

    Attributes:
        identity: I; a buffer that state dicts leave out, because the layer's shape implies it.

    Source:
        Yu & Tomasi, arXiv:1905.10944, eq. (1); Zagoruyko & Komodakis, arXiv:1706.00388v2, eq. (8).

    Example:
        >>> layer = with_identity(torch.nn.Linear(2, 2), "residual")
        >>> (layer.weight - layer.parametrizations.weight.original).round().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    identity: Tensor
    constant_buffers = ("identity", "diagonal")  # measurements need not copy them

    def __init__(self, identity: Tensor) -> None:
        super().__init__()
        self.register_buffer("identity", identity, persistent=False)

    def branch(self, original: Tensor) -> Tensor:
        """The weight with the identity removed, R = W - a I, from V."""
        return original

    def mask(self) -> Tensor:
        """ID entries: booleans, shape of V."""
        return self.identity != 0

    def forward(self, original: Tensor) -> Tensor:
        """The effective weight W = V + I."""
        return original + self.identity

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The V that has this effective weight, W - I."""
        return weight - self.identity


class DominantWeight(ResidualWeight):
    """W = V + I with V zero wherever output o does not read its own input: dominant paths only.

    Only the free entries are parameters: V consists of (out - dense) + dense * in filters of one
    input each. An identity by the rule ``"repeat"`` makes both halves of a doubling kernel
    diagonal, as in the paper; ``dense = out - in`` frees its lower half.

    Args:
        identity: I, shape of the weight; every output has one entry.
        dense: Number of outputs, the last ones, that read every input.

    Attributes:
        dense: Number of such outputs.
        diagonal: Zeros and ones, (out, in, 1, ...): the inputs that each output reads.

    Raises:
        ValueError: If an output has no entry, or ``dense`` is negative or above the outputs.

    Source:
        Yu & Tomasi, arXiv:1905.10944, Appendix D.3.

    Example:
        >>> weight = DominantWeight(torch.eye(2).repeat(2, 1), dense=2)
        >>> weight(torch.full((6, 1), 0.5)).tolist()
        [[1.5, 0.0], [0.0, 1.5], [1.5, 0.5], [0.5, 1.5]]
    """

    diagonal: Tensor

    def __init__(self, identity: Tensor, *, dense: int = 0) -> None:
        super().__init__(identity)
        self.dense = check_int("dense", dense, minimum=0)
        if self.dense > len(identity):
            raise ValueError(f"dense: got {dense}, needs at most the {len(identity)} outputs")
        diagonal = identity.unsqueeze(-1).flatten(2).sum(2)
        if not bool((diagonal.sum(1) == 1).all()):
            raise ValueError("identity: got an output without an entry, needs one for each output")
        diagonal[len(identity) - self.dense :] = 1
        taps = (1,) * (identity.dim() - 2)
        self.register_buffer("diagonal", diagonal.view(*diagonal.shape, *taps), persistent=False)

    def branch(self, original: Tensor) -> Tensor:
        """The weight with the identity removed, (out, in, *kernel), from V."""
        if not self.dense:
            return original * self.diagonal
        rows = len(self.identity) - self.dense
        lower = original[rows:].reshape(self.dense, *self.identity.shape[1:])
        return torch.cat([original[:rows] * self.diagonal[:rows], lower])

    def mask(self) -> Tensor:
        """ID entries: booleans, shape of V."""
        return self._filters(self.identity) != 0

    def forward(self, original: Tensor) -> Tensor:
        """The effective weight (out, in, *kernel), from V."""
        return self.branch(original) + self.identity

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The V that has this effective weight; ValueError if W is not 0 off the dominant paths."""
        if bool((weight * (1 - self.diagonal)).any()):
            raise ValueError("weight: not zero off the dominant paths; set those entries to zero")
        return self._filters(weight - self.identity)

    def extra_repr(self) -> str:
        """The number of dense outputs, for ``repr``."""
        return f"dense={self.dense}" if self.dense else ""

    def _filters(self, weight: Tensor) -> Tensor:
        """The free filters of a weight: one of each output, then all of the dense ones."""
        rows = len(self.identity) - self.dense
        own = (weight[:rows] * self.diagonal[:rows]).sum(1, keepdim=True)
        return torch.cat([own, weight[rows:].flatten(0, 1).unsqueeze(1)])


class DiracWeight(ResidualWeight):
    r"""W = diag(a) I + diag(b) V / ‖V‖, the norm over each output's whole filter.

    Args:
        identity: I, shape of the weight.
        normalize: False for the paper's eq. (4), diag(a) I + V, which has no b.

    Attributes:
        a: Scale of the identity, (out,); starts at 1. Never decayed, see :func:`undecayed`.
        b: Norm of each filter, (out,), or None without normalization; starts at 0.1 (paper) where
            :func:`initialize_layer` draws V. Never decayed.

    Source:
        Zagoruyko & Komodakis, arXiv:1706.00388v2, eqs. (4) and (5). The norm is bounded below by
        1e-12, as in ``F.normalize``.

    Example:
        >>> layer = with_identity(torch.nn.Linear(2, 2, bias=False), "dirac")
        >>> sorted(name.rpartition(".")[2] for name, _ in layer.named_parameters())
        ['a', 'b', 'original']
    """

    b: nn.Parameter | None
    ready: Tensor | None = None  # the weight, where DiracWeights has computed it with others

    def __init__(self, identity: Tensor, *, normalize: bool = True) -> None:
        super().__init__(identity)
        self.a = nn.Parameter(identity.new_ones(len(identity)))
        self.b = nn.Parameter(identity.new_full((len(identity),), 0.1)) if normalize else None

    def branch(self, original: Tensor) -> Tensor:
        """The weight with the identity removed, diag(b) V / ‖V‖, or V without normalization."""
        if self.b is None:
            return original
        direction = F.normalize(original.flatten(1), dim=1).view_as(original)
        return _rows(self.b, original) * direction

    def forward(self, original: Tensor) -> Tensor:
        """The effective weight diag(a) I + R."""
        if self.ready is not None:
            return self.ready
        return _rows(self.a, original) * self.identity + self.branch(original)

    @torch.no_grad()
    def right_inverse(self, weight: Tensor) -> Tensor:
        """The V that has this effective weight for the current a; b becomes the norms of V."""
        if weight.is_meta:  # has no values, and arithmetic there makes torch import its compiler
            return weight
        original = weight - _rows(self.a, weight) * self.identity
        if self.b is not None:
            self.b.copy_(original.flatten(1).norm(dim=1))
        return original


def _rows(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (weight.dim() - 1))


class AddIdentity(nn.Module):
    """layer(x) + Id(x), computed as written, to compare the parametrizations with.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d``, ``2d``, ``3d`` that has an identity kernel.
        rule: ``"repeat"`` or ``"truncate"``.

    Raises:
        ValueError: If the layer has no identity kernel.

    Source:
        Yu & Tomasi, arXiv:1905.10944, section 3: x' = ReLU(K * x + b + Id(x)) before the ReLU.
    """

    def __init__(self, layer: nn.Module, rule: str = "repeat") -> None:
        super().__init__()
        identity_of(layer, rule)
        self.layer = mark(layer, rule)
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, c_in, *spatial) to (batch, c_out, *spatial)."""
        return self.add(x, self.layer(x))

    def add(self, x: Tensor, out: Tensor) -> Tensor:
        """The layer's output and Id(x)."""
        if isinstance(self.layer, nn.Linear):
            flat = identity_map(x.reshape(-1, x.shape[-1]), out.shape[-1], rule=self.rule)
            return out + flat.view_as(out)
        stride: Any = self.layer.stride
        shortcut = identity_map(x, out.shape[1], stride=stride, rule=self.rule)
        for axis in range(2, x.dim()):
            shortcut = shortcut.narrow(axis, 0, out.shape[axis])
        return out + shortcut


def with_identity(
    layer: nn.Module,
    kind: str,
    *,
    rule: str = "repeat",
    normalize: bool = True,
    dense: int = 0,
) -> nn.Module:
    """Put the identity inside a layer, in place; the effective weight stays what it was.

    Args:
        layer: ``nn.Linear`` or ``nn.Conv1d``, ``2d``, ``3d`` with an unparametrized weight.
        kind: ``"plain"`` (only marks where the identity would be), ``"residual"``,
            ``"dominant"`` or ``"dirac"``.
        rule: ``"repeat"`` or ``"truncate"``.
        normalize: For ``"dirac"``: False is the paper's eq. (4).
        dense: For ``"dominant"``: number of outputs, the last ones, that read every input.

    Returns:
        The same layer.

    Raises:
        ValueError: If the kind is unknown, the weight is parametrized already, the layer has no
            identity kernel, or ``dense`` is given for another kind or is above the outputs.
    """
    check_choice("kind", kind, ("plain", "residual", "dominant", "dirac"))
    if parametrize.is_parametrized(layer, "weight"):
        raise ValueError("layer: its weight is parametrized already, needs a plain weight")
    if dense and kind != "dominant":
        raise ValueError(f"dense: got {dense} for kind {kind!r}, needs kind 'dominant'")
    identity = identity_of(layer, rule)
    inside: ResidualWeight | None = None
    if kind == "dirac":
        inside = DiracWeight(identity, normalize=normalize)
    elif kind == "dominant":
        inside = DominantWeight(identity, dense=dense)
    elif kind == "residual":
        inside = ResidualWeight(identity)
    if inside is not None:
        # Not checked: that would compute the weight, which each of these leaves as it was.
        parametrize.register_parametrization(layer, "weight", inside, unsafe=True)
        made: Any = layer.get_submodule("parametrizations")  # which torch makes in train mode
        made.training = made.weight.training = layer.training
    return mark(layer, rule)
