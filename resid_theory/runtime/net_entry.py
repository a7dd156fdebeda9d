"""The way in for nets: wrappers are looked through, what nothing here can measure is refused."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TypeGuard

import torch
import torch.utils.checkpoint
from torch import nn
from torch.optim.swa_utils import AveragedModel

from resid_theory._check import check_finite
from resid_theory.runtime.net_state import copied
from resid_theory.runtime.resources import check_device

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def inner_net(net: nn.Module, argument: str = "net") -> nn.Module:
    """The net inside wrappers that only call it; these have no hooks of their own."""
    if not isinstance(net, nn.Module):
        raise ValueError(f"{argument}: got {type(net).__name__}, needs a torch.nn.Module")
    while (inner := _wrapped(net)) is not None:
        if net._forward_hooks or net._forward_pre_hooks:
            raise ValueError(
                f"net: {type(net).__name__} has hooks of its own, and what it wraps is measured; "
                "register them on the module inside"
            )
        net = inner
    return net


def _wrapped(net: nn.Module) -> nn.Module | None:
    """The module that a wrapper calls; None for another module."""
    if "_orig_mod" in net._modules:  # of torch.compile, whose class takes a second to import
        return net._modules["_orig_mod"]
    if "forward" in vars(net) or not isinstance(net, _WRAPPERS):
        return None
    passes_on = any(type(net).forward is kind.forward for kind in _WRAPPERS)
    return net.module if passes_on else None


def check_net(
    net: Any, argument: str = "net", *, finite: bool = True, meta: bool = False
) -> nn.Module:
    """Look through the wrappers of a net, and check that it has whole parameters with values."""
    net = inner_net(net, argument)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            layer = name.rpartition(".")[0]
            raise ValueError(
                f"{argument}: layer {layer!r} has no shape yet; call the net once before, on a "
                "batch of its data"
            )
        if tensor.is_meta and not meta:
            raise ValueError(f"{argument}: {name!r} is on the meta device, needs values")
        if hasattr(tensor, "placements") or "_fsdp_wrapped_module" in name:  # a DTensor, or FSDP
            raise ValueError(
                f"{argument}: its parameters are distributed over processes (fully sharded); needs "
                "a net with whole parameters"
            )
    for name, parameter in net.named_parameters() if finite else ():
        check_finite(f"{argument} {name}", parameter)
    return net


def check_differentiable(net: nn.Module) -> nn.Module:
    """Refuse a net that was made under ``torch.inference_mode``; return the others."""
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.is_inference():
            raise ValueError(
                f"net: {name!r} was made under torch.inference_mode(), so that nothing can be "
                "differentiated; make or copy the net outside"
            )
    return net


def layered_net(net: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """The net whose layers are measured: that inside wrappers, or its copy on another device."""
    net = check_net(net)
    if isinstance(net, torch.jit.ScriptModule):
        raise ValueError(
            f"net: {type(net).__name__} is scripted or traced, so nothing is seen of what its "
            "layers do; pass the module that it was made from (rt.spectrum and rt.evaluate take it)"
        )
    first = next(net.parameters(), None)
    if device is None or first is None:
        return net
    place = check_device("device", device)
    return net if place == first.device else copied(net).to(place)


def is_sequential(net: nn.Module) -> TypeGuard[nn.Sequential]:
    """True for an ``nn.Sequential`` that only calls its modules in turn, so that parts are maps."""
    return isinstance(net, nn.Sequential) and type(net).forward is nn.Sequential.forward


def set_eval(net: nn.Module) -> None:
    """Put a net into eval mode; frozen scripts and exported graphs have one mode only."""
    if hasattr(net, "training"):
        with suppress(NotImplementedError):
            net.eval()


@contextmanager
def as_written(net: nn.Module) -> Iterator[None]:
    """Run inside what the code of a net says, in one piece."""
    # Compiled parts have one derivative only, checkpoints run a part again in every backward pass,
    # wrappers inside the net split batches or hook gradients, and backward hooks may change
    # gradients into those of no function: all of them step aside.
    with ExitStack() as stack:
        stack.enter_context(_without_checkpoints())
        if "torch._dynamo" in sys.modules:  # a second of import, and only then something compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(without_hooks(_gradient_hooks(net)))
        for module in net.modules():
            inner = _wrapped(module)
            if inner is not None and "forward" not in vars(module):
                vars(module)["forward"] = inner.__call__
                stack.callback(vars(module).pop, "forward")
        yield


def _gradient_hooks(net: nn.Module) -> Iterator[Any]:
    """Tables of the hooks that see gradients: of all modules, of each, and of parameters."""
    every: Any = torch.nn.modules.module
    yield from (every._global_backward_hooks, every._global_backward_pre_hooks)
    for module in net.modules():
        yield from (module._backward_hooks, module._backward_pre_hooks)
    yield from (p._backward_hooks for p in net.parameters())


@contextmanager
def without_hooks(tables: Iterable[Any]) -> Iterator[None]:
    """Switch off the hooks in some tables, as modules and tensors have them."""
    held = [(table, dict(table)) for table in tables if table]
    try:
        for table, _ in held:
            table.clear()
        yield
    finally:
        for table, hooks in held:
            table.update(hooks)


class _AtOnce:
    """A function that keeps its graph, called as torch calls one that it would run again."""

    @staticmethod
    def apply(function: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
        return function(*args)


def _keep_graph(*_args: Any, **_kwargs: Any) -> Iterator[None]:
    yield


@contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Switch ``torch.utils.checkpoint`` off inside."""
    module: Any = torch.utils.checkpoint
    own = {
        "CheckpointFunction": _AtOnce,
        "_checkpoint_without_reentrant_generator": _keep_graph,
    }
    before = {name: getattr(module, name) for name in own if hasattr(module, name)}
    try:
        for name in before:
            setattr(module, name, own[name])
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
