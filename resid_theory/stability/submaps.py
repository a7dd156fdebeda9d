"""Parts of a net as functions, from the input of one module to that of another."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resid_theory._check import check_choice, check_names
from resid_theory.data import Batch
from resid_theory.nested import tensors_of
from resid_theory.runtime.net_entry import is_sequential
from resid_theory.stability.jacobian import Function


@dataclass(frozen=True, kw_only=True, eq=False)
class Submap:
    """A map inside a net, for the rows of its input z, (b, ...), repeated any number of times."""

    name: str
    z: Tensor
    function: Function

    def __post_init__(self) -> None:
        z: Any = self.z
        if not isinstance(z, Tensor) or not z.is_floating_point() or z.dim() < 2:
            kind = f"{tuple(z.shape)} of {z.dtype}" if isinstance(z, Tensor) else type(z).__name__
            raise ValueError(
                f"start: the input of {self.name} is {kind}; needs real vectors, (b, ...)"
            )


class _Reached(Exception):
    """Ends a forward pass at the module behind which nothing more is needed."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def joined(output: Any, samples: int) -> Tensor:
    """The numbers that a net gives for each sample, in any of its tensors, (samples, entries)."""
    parts = [tensor for tensor in tensors_of(output) if tensor.is_floating_point()]
    if not parts or any(part.dim() == 0 or len(part) != samples for part in parts):
        shapes = ", ".join(str(tuple(part.shape)) for part in parts)
        raise ValueError(
            f"net: gives {type(output).__name__} of shapes {shapes or 'none'} for {samples} "
            "samples, needs tensors with the samples along their first axis"
        )
    return torch.cat([part.reshape(samples, -1) for part in parts], dim=1)


def map_between(net: nn.Module, batch: Batch, start: int | str, stop: int | str | None) -> Submap:
    """The map from the input of one module to that of another, or to the output, for a batch."""
    name = f"{start}:{'' if stop is None else stop}"
    first, last = _index(net, "start", start), _index(net, "stop", stop)
    if is_sequential(net) and first is not None and (stop is None or last is not None):
        end = len(net) if last is None else last
        if first >= end:
            raise ValueError(f"stop: got {stop!r} for start={start!r}, needs a later layer")
        with torch.no_grad():
            z = batch.try_call(net[:first])
        return Submap(name=name, z=z, function=net[first:end])
    entry = _module(net, "start", start)
    exit_ = None if stop is None else _module(net, "stop", stop)

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached(_first(args, kwargs))

    with torch.no_grad():
        batch.part(0, 2).try_call(net)
    try:
        with torch.no_grad(), entry.register_forward_pre_hook(record, with_kwargs=True):
            batch.call(net)
    except _Reached as reached:
        z = reached.value
    else:
        raise ValueError(f"start: {str(start)!r} was not called on these data")

    def function(z: Tensor) -> Tensor:
        """The net from ``start``'s input on, everything before it as it is for the batch."""
        waiting = True

        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal waiting
            if not waiting:
                return None
            waiting = False
            if args:
                return (z, *args[1:]), kwargs
            return args, {**kwargs, next(iter(kwargs)): z}

        def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not waiting:
                raise _Reached(_first(args, kwargs))

        with ExitStack() as hooks:
            hooks.enter_context(entry.register_forward_pre_hook(enter, with_kwargs=True))
            if exit_ is not None:
                hooks.enter_context(exit_.register_forward_pre_hook(leave, with_kwargs=True))
            try:
                value = batch.cycled(len(z)).call(net)
            except _Reached as reached:
                return joined(reached.value, len(z))
        if exit_ is not None:
            raise ValueError(f"stop: is not reached behind start in {name}")
        return joined(value, len(z))

    return Submap(name=name, z=z, function=function)


def block_maps(net: nn.Module, batch: Batch, blocks: Sequence[str] | None) -> list[Submap]:
    """Modules of a net with their inputs, by one forward pass; by default those named block..."""
    if blocks is None:
        blocks = [name for name, _ in net.named_children() if name.startswith("block")]
        if not blocks:
            raise ValueError(
                f"blocks: {type(net).__name__} has no children named block1, block2, ...; needs "
                "names of modules"
            )
    modules = {name: _module(net, "blocks", name) for name in check_names("blocks", blocks)}
    inputs: dict[nn.Module, tuple[list[Any], dict[str, Any]]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Copies: the module, or the one behind it, may work in place.
        copies = [value.clone() if isinstance(value, Tensor) else value for value in args]
        inputs.setdefault(module, (copies, kwargs))

    with ExitStack() as hooks, torch.no_grad():
        for module in modules.values():
            hooks.enter_context(module.register_forward_pre_hook(record, with_kwargs=True))
        batch.try_call(net)
    maps = []
    for name, module in modules.items():
        if module not in inputs:
            raise ValueError(f"blocks: {name!r} was not called on these data")
        args, kwargs = inputs[module]
        if len(args) != 1 or any(isinstance(value, Tensor) for value in kwargs.values()):
            raise ValueError(f"blocks: {name!r} takes more than one tensor, needs modules of one")
        maps.append(Submap(name=name, z=args[0], function=module))
    return maps


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first argument of a call."""
    return args[0] if args else next(iter(kwargs.values()), None)


def _index(net: nn.Module, argument: str, place: int | str | None) -> int | None:
    """Position in a sequential net; None for a place that is none."""
    if place is None or not is_sequential(net):
        return None
    names = list(net._modules)
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
