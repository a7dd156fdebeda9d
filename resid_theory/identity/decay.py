"""ID entries of a whole net, and weight decay toward zero instead of the identity."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory.identity.identity_kernel import identity_of
from resid_theory.identity.layer_weight import id_rule, layer_identity, trained_weight
from resid_theory.identity.parametrizations import AddIdentity, DiracWeight
from resid_theory.runtime.net_entry import inner_net


def id_mask(net: nn.Module) -> dict[str, Tensor]:
    """Masks of the ID entries in a net's parameters, by name.

    In a plain net these are the entries that a residual net of the same design would have. The
    builders of this toolkit and ``to_plain`` mark them.

    Args:
        net: Any module.

    Returns:
        Booleans of the parameter's shape, only for parameters with ID entries.

    Raises:
        ValueError: If a layer's weight has an identity and another parametrization, so that its
            entries are not those of a parameter.

    Source:
        Yu & Tomasi, arXiv:1905.10944, section 3 and Appendix C.

    Example:
        >>> sum(int(mask.sum()) for mask in id_mask(rt.simplified_net(20)).values())
        672
    """
    masks = {}
    for name, layer in inner_net(net).named_modules():
        prefix = f"{name}." if name else ""
        if (inside := layer_identity(layer)) is not None:
            trained_weight(layer, name)
            masks[f"{prefix}parametrizations.weight.original"] = inside.mask()
        elif (rule := id_rule(layer)) is not None:
            trained_weight(layer, name)
            masks[f"{prefix}weight"] = identity_of(layer, rule) != 0
    return masks


def shifted(net: nn.Module) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Every V beside a fixed identity, with the mask of its ID entries; none of Dirac layers.

    Args:
        net: A module with parametrized layers or :class:`AddIdentity` inside.

    Yields:
        The parameter V of a layer and a bool mask of its shape.

    Raises:
        ValueError: If another parametrization has a part in such a weight, which is then not V + I.
    """
    for name, layer in net.named_modules():
        inside = layer_identity(layer)
        if inside is not None and not isinstance(inside, DiracWeight):
            yield trained_weight(layer, name), inside.mask()
        elif isinstance(layer, AddIdentity):
            yield _beside(layer, name), identity_of(layer.layer, layer.rule) != 0


def _beside(added: AddIdentity, name: str) -> nn.Parameter:
    """The weight beside an identity that is added to the output, which must have none inside."""
    if layer_identity(added.layer) is not None:
        raise ValueError(f"net: layer {name!r} has its identity twice; to_plain makes one weight")
    return trained_weight(added.layer, f"{name}.layer".lstrip("."))


def undecayed(net: nn.Module) -> list[nn.Parameter]:
    """Parameters without weight decay: a and b of every Dirac layer.

    Args:
        net: Any module.

    Returns:
        The parameters, in the net's order.

    Source:
        Zagoruyko & Komodakis, arXiv:1706.00388v2, section 2: decay on a and b "would lead to
        degenerate solutions". The authors' code leaves every tensor of one axis free of decay.
    """
    scales = [(m.a, m.b) for m in net.modules() if isinstance(m, DiracWeight)]
    return [scale for both in scales for scale in both if scale is not None]


_COUPLED = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad,
    torch.optim.Adadelta, torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam,
    torch.optim.LBFGS, torch.optim.AdamW,
)  # fmt: skip


class IdDecay:
    r"""Weight decay of a residual net as that of its plain net: toward 0, not the identity.

    While attached, every ``optimizer.step()`` decays V + I instead of V, so that the residual and
    the plain net remain equal, step for step. Coupled decay: :math:`\lambda e` is added to the
    gradient during the step, and ``.grad`` is restored after it. Decoupled decay:
    :math:`\eta\lambda e` is subtracted from the weights after the step, with that step's
    :math:`\eta`. The weight decay is read from each parameter group at each step. Plain and Dirac
    layers are not changed, so a trainer may use it on any net.

    Args:
        optimizer: SGD (momentum, Nesterov, dampening), Adam, AdamW, RMSprop, Adagrad, Adadelta,
            Adamax, NAdam, RAdam or L-BFGS. Clip gradients of the two nets alike only if the clipped
            total includes :math:`\lambda e`.
        net: The residual net whose parameters it steps. An identity that a ``forward`` adds is in
            no weight: ``rt.to_residual(rt.absorb(net))`` has it in one.
        decoupled: Whether decay is decoupled, for optimizers of other classes; their steps must not
            depend on the values of the weights (no trust ratios, no norm-based clipping).

    Raises:
        ValueError: If no layer has an identity by its weight or its design, the optimizer holds
            none of the net's shifted parameters, or is of another class and ``decoupled`` is not
            given, or the weight of a residual layer has another parametrization, so that it is not
            V + I.

    Source:
        Yu & Tomasi, arXiv:1905.10944, section 3.1, for SGD; other optimizers derived here.

    Example:
        >>> net = rt.simplified_net(20, identity="residual")
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1e-4)
        >>> with IdDecay(optimizer, net):
        ...     _ = optimizer.step()
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, net: nn.Module, *, decoupled: bool | None = None
    ) -> None:
        net = inner_net(net)
        masks = dict(shifted(net))
        if not isinstance(optimizer, torch.optim.Optimizer):
            kind = type(optimizer).__name__
            raise ValueError(f"optimizer: got {kind}, needs a torch.optim.Optimizer")
        designed = (layer_identity(m) is not None or id_rule(m) is not None for m in net.modules())
        if not masks and not any(designed):
            raise ValueError(
                f"net: got {type(net).__name__}, needs a layer with an identity by its weight "
                "or its design; one that a forward adds is not seen: rt.to_residual(rt.absorb(net))"
            )
        held = {p for group in optimizer.param_groups for p in group["params"]}
        if masks and held.isdisjoint(masks):
            raise ValueError("optimizer: holds none of the net's parameters, needs this net's own")
        own = inspect.unwrap(type(optimizer).step).__module__  # a subclass may scale its steps
        known = isinstance(optimizer, _COUPLED) and own.startswith("torch.")
        if masks and decoupled is None and not known:
            names = ", ".join(kind.__name__ for kind in _COUPLED)
            raise ValueError(
                f"optimizer: got {type(optimizer).__name__}, whose steps may depend on where the "
                f"weights are; needs one of {names}, or decoupled=True or False if they do not"
            )
        self.optimizer = optimizer
        self._decoupled = decoupled
        self._entries = {p: mask.nonzero(as_tuple=True) for p, mask in masks.items()}
        self._before: list[tuple[Tensor, tuple[Tensor, ...], Tensor]] = []
        self._handles = [
            optimizer.register_step_pre_hook(self._pre),
            optimizer.register_step_post_hook(self._post),
        ]

    def remove(self) -> None:
        """Detach from the optimizer."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> "IdDecay":
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def _decayed(
        self, *, decoupled: bool
    ) -> Iterator[tuple[dict[str, Any], Tensor, tuple[Tensor, ...]]]:
        is_adamw = isinstance(self.optimizer, torch.optim.AdamW)
        for group in self.optimizer.param_groups:
            own = bool(group.get("decoupled_weight_decay", is_adamw))
            own = own if self._decoupled is None else self._decoupled
            if group.get("weight_decay", 0.0) and own == decoupled:
                for p in group["params"]:
                    if p in self._entries and p.grad is not None:
                        yield group, p, self._entries[p]

    def _pre(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._entries and getattr(optimizer, "grad_scale", None) is not None:
            raise ValueError("optimizer: its gradients are scaled; call scaler.unscale_ first")
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._add()
            return None

        def corrected() -> Any:  # the closure computes new gradients, so the correction follows it
            self._restore()
            value = closure()
            self._add()
            return value

        return args[:1], {**kwargs, "closure": corrected}

    @torch.no_grad()
    def _add(self) -> None:
        for group, p, entries in self._decayed(decoupled=False):
            assert p.grad is not None
            self._before.append((p.grad, entries, p.grad[entries]))
            # maximize negates the gradient, not the decay
            sign = -1 if group.get("maximize") else 1
            p.grad[entries] += sign * group["weight_decay"]

    @torch.no_grad()
    def _restore(self) -> None:
        for grad, entries, values in self._before:
            grad[entries] = values
        self._before.clear()

    @torch.no_grad()
    def _post(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._restore()
        # After the step: before it, decay would shrink the correction too.
        for group, p, entries in self._decayed(decoupled=True):
            p[entries] -= group["lr"] * group["weight_decay"]
