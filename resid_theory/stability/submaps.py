"""Pieces of a net as functions: from the input of one layer to that of another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice
from resid_theory.stability.jacobian import Function

__all__ = ["Submap", "block_pieces", "net_pieces"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Submap:
    """A map inside a net and where a batch enters it.

    Attributes:
        name: What the map is called.
        z: Its input, (b, ...), floating point.
        function: The map, for the rows of z repeated any number of times.
    """

    name: str
    z: Tensor
    function: Function


class _Reached(Exception):
    """Ends a forward pass at the layer where nothing more is needed."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


def net_pieces(net: nn.Module, x: Tensor, start: int | str, stop: int | str | None) -> list[Submap]:
    """The map from the input of one module to that of another, for a batch.

    Args:
        net: Any module.
        x: The net's input.
        start: Index in an ``nn.Sequential``, or a name.
        stop: The same, or None for the net's output.

    Returns:
        One piece.

    Raises:
        ValueError: If there is no such module, or ``stop`` comes before ``start``.
    """
    name = f"{start}:{'' if stop is None else stop}"
    first, last = _index(net, "start", start), _index(net, "stop", stop)
    if isinstance(net, nn.Sequential) and first is not None and (stop is None or last is not None):
        end = len(net) if last is None else last
        if first >= end:
            raise ValueError(f"stop: got {stop!r} for start={start!r}, needs a later layer")
        with torch.no_grad():
            z = net[:first](x)
        return [Submap(name=name, z=_floating(name, z), function=net[first:end])]
    entry = _module(net, "start", start)
    exit_ = None if stop is None else _module(net, "stop", stop)
    with torch.no_grad():
        (z, *_), _ = _input_of(net, entry, x, str(start))
    return [Submap(name=name, z=_floating(name, z), function=_through(net, entry, exit_, x, name))]


def block_pieces(net: nn.Module, x: Tensor, blocks: Sequence[str] | None) -> list[Submap]:
    """Modules of a net with their inputs, by one forward pass.

    Args:
        net: Any module.
        x: The net's input.
        blocks: Names; None for the children named ``block...``.

    Returns:
        A piece for each block.

    Raises:
        ValueError: If there is no such module, or it takes more than one tensor.
    """
    if blocks is None:
        blocks = [name for name, _ in net.named_children() if name.startswith("block")]
        if not blocks:
            raise ValueError(
                f"blocks: {type(net).__name__} has no children named block1, block2, ...; needs "
                "names of modules"
            )
    modules = {name: _module(net, "blocks", name) for name in blocks}
    inputs: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A copy: the module, or the one behind it, may work in place.
        inputs.setdefault(module, (tuple(_copied(a) for a in args), kwargs))

    handles = [m.register_forward_pre_hook(keep, with_kwargs=True) for m in modules.values()]
    try:
        with torch.no_grad():
            net(x)
    finally:
        for handle in handles:
            handle.remove()
    pieces = []
    for name, module in modules.items():
        if module not in inputs:
            raise ValueError(f"blocks: {name!r} was not called on these data")
        args, kwargs = inputs[module]
        if len(args) != 1 or any(isinstance(value, Tensor) for value in kwargs.values()):
            raise ValueError(f"blocks: {name!r} takes more than one tensor, needs modules of one")
        pieces.append(Submap(name=name, z=_floating(name, args[0]), function=module))
    return pieces


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _floating(name: str, z: Any) -> Tensor:
    if not isinstance(z, Tensor) or not z.is_floating_point() or z.dim() < 2:
        kind = f"{tuple(z.shape)} of {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"start: the input of {name} is {kind}; needs real vectors, (b, ...)")
    return z.detach()


def _index(net: nn.Module, argument: str, place: int | str | None) -> int | None:
    """Position in a sequential net; None for what is none."""
    if place is None or not isinstance(net, nn.Sequential):
        return None
    names = [name for name, _ in net.named_children()]
    if isinstance(place, str):
        return names.index(place) if place in names else None
    position = place + len(net) if place < 0 else place
    if not 0 <= position <= len(net):
        raise ValueError(f"{argument}: got {place}, the net has {len(net)} layers")
    return position


def _module(net: nn.Module, argument: str, name: int | str) -> nn.Module:
    if not isinstance(name, str):
        raise ValueError(
            f"{argument}: got {name!r} for {type(net).__name__}; needs the name of a module, "
            "because only an nn.Sequential has numbered layers"
        )
    names = [key for key, _ in net.named_modules() if key]
    return net.get_submodule(check_choice(argument, name, names))


def _input_of(
    net: nn.Module, module: nn.Module, x: Tensor, name: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a module's first call; the forward pass ends there."""

    def end(_: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Reached(args[0].clone())

    handle = module.register_forward_pre_hook(end)
    try:
        net(x.clone())
    except _Reached as reached:
        return (reached.value,), {}
    finally:
        handle.remove()
    raise ValueError(f"start: {name!r} was not called on these data")


def _through(
    net: nn.Module, entry: nn.Module, exit_: nn.Module | None, x: Tensor, name: str
) -> Callable[[Tensor], Tensor]:
    """The net from one module's input on, everything before as it is for x."""

    def function(z: Tensor) -> Tensor:
        waiting = True

        def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            nonlocal waiting
            if not waiting:
                return None
            waiting = False
            return (z, *args[1:])

        def leave(_: nn.Module, args: tuple[Any, ...]) -> None:
            if not waiting:
                raise _Reached(args[0])

        handles = [entry.register_forward_pre_hook(enter)]
        if exit_ is not None:
            handles.append(exit_.register_forward_pre_hook(leave))
        repeats = -(-len(z) // len(x))
        inputs = x.repeat(repeats, *[1] * (x.dim() - 1))[: len(z)]
        try:
            value = net(inputs)
        except _Reached as reached:
            return reached.value
        finally:
            for handle in handles:
                handle.remove()
        if exit_ is not None:
            raise ValueError(f"stop: is not reached behind start in {name}")
        assert isinstance(value, Tensor)
        return value

    return function
