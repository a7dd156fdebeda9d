"""Checks that a net repeats itself, that gradients reach its weights, and can be taken twice."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from resid_theory.nested import moved, tensors_of
from resid_theory.runtime.net_state import NetState
from resid_theory.runtime.preserve import evaluated

_REPEATS = 30  # runs of what draws random numbers; dropped paths show in few of them
_REMEDIES = {
    "embedding_bag": "take F.embedding and a sum or mean over each bag",
    "cdist": "take (a.unsqueeze(-2) - b.unsqueeze(-3)).norm(dim=-1)",
    "scaled_dot_product": "call F.scaled_dot_product_attention without choosing a kernel",
}
_CUTS = (Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]
_ALL: Any = {"materialize_grads": True}
_DIRECTIONS = 5  # along all of which a gradient changes otherwise than its derivative says
_STEP = 1e-8
_HERE = __name__.partition(".")[0]
_NAMED = 3  # parameters that are named at most


def check_repeatable(
    argument: str,
    net: nn.Module,
    run: Callable[[], Any],
    note: Callable[[str], None],
    *,
    settled: Callable[[Any], bool] = lambda found: False,
) -> Any:
    """Run what has to give the same values at every call; one run is enough if it is `settled`."""
    states = _random_states(net)
    found = run()
    values = [tensor.detach() for tensor in tensors_of(found)]
    drew = states != _random_states(net)
    if not drew and settled(found):
        return found
    for _ in range(_REPEATS if drew else 1):
        again = [tensor.detach() for tensor in tensors_of(run())]
        same_shapes = [t.shape for t in again] == [t.shape for t in values]
        if not same_shapes or any(map(moved, values, again)):
            raise ValueError(
                f"{argument}: gives other values at every call on the same samples; it draws "
                f"random numbers in eval mode{_drawing_layer(net, run)} (F.dropout without "
                "training=self.training does), so no loss has these derivatives; switch them off"
            )
    if drew:
        note(f"{argument} draws random numbers, which had no effect in {_REPEATS} runs")
    return found


def check_reached(
    net: nn.Module, state: NetState, unreached: dict[str, Tensor], value: Callable[[], Tensor]
) -> str:
    """Refuse parameters without a gradient that the loss depends on; a remark on the others."""
    names = ", ".join(map(repr, list(unreached)[:_NAMED]))
    if len(unreached) > _NAMED:
        names += f" and {len(unreached) - _NAMED} more"
    before = _without_caches(net, state, value)
    parameters = list(unreached.values())
    with displaced(parameters, [0.1 * p.detach() + 0.1 for p in parameters]):
        after = _without_caches(net, state, value)
    state.attributes.put_back()
    if before.device.type == "cpu":  # where kernels repeat to the bit
        same = torch.equal(before.nan_to_num(), after.nan_to_num())
    else:
        same = not moved(before, after)
    if same:
        return f"no gradient reaches {names}, and the loss does not depend on them: rows of zeros"
    raise ValueError(
        f"net: the loss depends on {names}, which no gradient reaches (torch.no_grad or detach in "
        "forward, or a cache kept in eval mode, which net.train() empties); hold them fixed by "
        "requires_grad_(False), or leave them out by parameters="
    )


class WatchCuts(TorchFunctionMode):
    """A mode that notes whether a net that runs inside may have other gradients than slopes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, and look at what goes in and out."""
        result = func(*args, **(kwargs or {}))
        padded = func is F.embedding and (kwargs or {}).get("padding_idx") is not None
        self.seen = self.seen or padded or func is Tensor.register_hook
        loses = isinstance(result, Tensor) and result.is_floating_point()
        if loses and not result.requires_grad and not self.seen:
            cuts = func in _CUTS or not torch.is_grad_enabled()
            self.seen = cuts and any(part.requires_grad for part in tensors_of(args))
        return result


def check_cuts(parameters: Sequence[Tensor], value: Callable[[], Tensor]) -> str:
    """A remark if the slope of a loss along a direction is not its gradient there."""
    generator = torch.Generator().manual_seed(0)
    moves = [
        torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in parameters
    ]
    loss = value()
    gradient = torch.autograd.grad(loss, parameters, materialize_grads=True)
    slope = sum(
        float((g.double() * m.double()).sum()) for g, m in zip(gradient, moves, strict=True)
    )
    eps = torch.finfo(loss.dtype).eps
    # The longer a step, the more kinks it meets; the shorter, the more round-off.
    step, sides = _STEP if loss.dtype == torch.float64 else eps ** (1 / 3), []
    for side in (step, -step):
        with displaced(parameters, [side * move for move in moves]):
            sides.append(float(value().detach()))
    measured = (sides[0] - sides[1]) / (2 * step)
    noise = 64 * eps / step * max(map(abs, sides))
    # Round-off and curvature stay far below the fourth root of the precision.
    if not abs(measured - slope) > noise + eps**0.25 * (abs(measured) + abs(slope)):
        return ""
    return (
        "the loss has another slope than its gradient, of which detach, torch.no_grad, padding_idx "
        "or a backward or hook of the net's own cut or change parts; derivatives are those of the "
        "gradient, as trainings take it"
    )


def check_written_gradients(parameters: Sequence[Tensor], value: Callable[[], Tensor]) -> None:
    """Refuse functions with a backward of their own in which torch does not see all derivatives."""
    # Gradients in float64 are compared on both sides of weights, a step apart that hardly meets a
    # kink; where one is met, another direction meets none.
    loss = value()
    own = own_functions(loss)
    if not own or any(map(_is_once, own)):  # which `check_twice` names
        return
    generator, eps = torch.Generator().manual_seed(0), torch.finfo(torch.float64).eps
    gradient = _flat(torch.autograd.grad(loss, parameters, create_graph=True, **_ALL))
    for _ in range(_DIRECTIONS):
        moves = [torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p) for p in parameters]
        slope = gradient @ _flat(moves)
        product = torch.zeros_like(gradient)
        if slope.requires_grad:
            product = _flat(torch.autograd.grad(slope, parameters, retain_graph=True, **_ALL))
        sides = []
        for side in (_STEP, -_STEP):
            with displaced(parameters, [side * move for move in moves]):
                sides.append(_flat(torch.autograd.grad(value(), parameters, **_ALL)))
        measured = (sides[0] - sides[1]) / (2 * _STEP)
        noise = 64 * eps / _STEP * max(float(side.norm()) for side in sides)
        gap, size = float((measured - product).norm()), float(measured.norm() + product.norm())
        if not gap > noise + eps**0.25 * size:
            return
    raise NoSecondDerivative(
        _calls_of(own), "write its backward by differentiable functions of ctx.saved_tensors"
    )


def own_functions(*values: Tensor) -> list[type]:
    """The classes of ``torch.autograd.Function``, not our own, by which values were computed."""
    own = (getattr(function, "_forward_cls", None) for function in _functions(*values))
    return [cls for cls in dict.fromkeys(own) if cls and cls.__module__.split(".")[0] != _HERE]


def _is_once(cls: Any) -> bool:
    """True for a function whose backward is marked ``once_differentiable``."""
    return hasattr(getattr(cls, "backward", None), "__wrapped__")


def _calls_of(functions: Sequence[type]) -> str:
    return ", ".join(dict.fromkeys(f"{cls.__name__}.apply" for cls in functions))


def _flat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


@contextmanager
def displaced(parameters: Sequence[Tensor], moves: Sequence[Tensor]) -> Iterator[None]:
    """Move parameters inside, by their data, which leaves retained graphs valid."""
    copies = [parameter.detach().clone() for parameter in parameters]
    try:
        for parameter, move in zip(parameters, moves, strict=True):
            parameter.data.add_(move)
        yield
    finally:
        for parameter, copy in zip(parameters, copies, strict=True):
            parameter.data.copy_(copy)


class NoSecondDerivative(ValueError):
    """A function in net or loss that torch differentiates only once."""

    def __init__(self, function: str, remedy: str) -> None:
        super().__init__(
            f"net: torch has no second derivative of {function} in net or loss; {remedy}, or take "
            "matrix='empirical_fisher', which needs first derivatives only"
        )


@contextmanager
def check_twice(given: Sequence[Tensor], differentiated: Sequence[Tensor]) -> Iterator[None]:
    """Name functions without a second derivative, around a product of first derivatives."""
    # torch says nothing where a backward that is marked once_differentiable gives zeros.
    if any(function.name() == "torch::autograd::Error" for function in _functions(*differentiated)):
        once = [cls for cls in own_functions(*given) if _is_once(cls)]
        raise NoSecondDerivative(
            _calls_of(once) or "a function", "write its backward without once_differentiable"
        )
    try:
        yield
    except RuntimeError as error:
        found = re.search(
            r"derivative for '?(?:aten::)?(\w+?)(_backward)?'? is not impl", str(error)
        )
        if found is None:
            raise
        name = found.group(1).lstrip("_")
        remedies = (remedy for start, remedy in _REMEDIES.items() if name.startswith(start))
        raise NoSecondDerivative(name, next(remedies, "write it by other functions")) from error


@contextmanager
def unwritten_statistics(net: nn.Module) -> Iterator[None]:
    """Refuse a scripted or exported part that inside, in eval mode, writes BatchNorm's buffers."""
    fixed = (torch.jit.ScriptModule, torch.fx.GraphModule)
    buffers = {
        f"{prefix}.{name}".lstrip("."): (buffer, buffer.clone())
        for prefix, module in net.named_modules() if isinstance(module, fixed)
        for name, buffer in module.named_buffers() if buffer.is_floating_point()
    }  # fmt: skip
    yield
    for name, (buffer, before) in buffers.items():  # by value: torch counts no versions there
        if not torch.equal(buffer, before):
            raise ValueError(
                f"net: writes {name!r} in eval mode, as BatchNorm does that was traced or exported "
                "in train mode; call eval() on the module before it is traced or exported"
            )


def leaves_of(value: Tensor) -> Iterator[Tensor]:
    """The tensors with gradients from which a value was computed."""
    for function in _functions(value):
        if hasattr(function, "variable"):
            yield function.variable


def _functions(*values: Tensor) -> Iterator[Any]:
    """The functions of autograd by which values were computed."""
    seen, stack = set[Any](), [value.grad_fn for value in values]
    while stack:
        function = stack.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        yield function
        stack += [following for following, _ in function.next_functions]


def gains_from_channels_last(net: nn.Module, x: Any) -> bool:
    """True if convolutions run on the CPU in float32, and the net takes such inputs."""
    convolves = any(isinstance(m, nn.Conv2d) for m in net.modules())
    images = isinstance(x, Tensor) and x.dim() == 4 and x.dtype == torch.float32
    if not (convolves and images and x.device.type == "cpu"):
        return False
    try:
        net(x.contiguous(memory_format=torch.channels_last))  # with gradients, for nets with caches
    except RuntimeError:  # a view that needs contiguous rows
        return False
    return True


def _without_caches(net: nn.Module, state: NetState, value: Callable[[], Tensor]) -> Tensor:
    """The loss, computed from parameters as they are."""
    state.attributes.put_back()
    with evaluated(net):
        net.train()  # in which nets empty their caches
        net.eval()
    return value().detach().double()


def _random_states(net: nn.Module) -> list[Any]:
    numbers: Any = np.random.get_state()  # noqa: NPY002 - what nets may draw from
    devices = {p.device for p in net.parameters() if p.device.type == "cuda"}
    on_gpus = [torch.cuda.get_rng_state(device).tolist() for device in sorted(devices, key=str)]
    own = torch.get_rng_state().numpy().tobytes()
    return [own, *on_gpus, random.getstate(), numbers[1].tobytes(), numbers[2]]


def _drawing_layer(net: nn.Module, run: Callable[[], Any]) -> str:
    """The innermost layer that draws from a global generator, in words; empty if none does."""
    before: dict[nn.Module, Any] = {}
    found: list[str] = []

    def note(module: nn.Module, given: Any) -> None:
        before[module] = _random_states(net)

    def compare(name: str, module: nn.Module, given: Any, output: Any) -> None:
        if before.get(module) != _random_states(net):
            found.append(f", in layer {name!r}" if name else ", in its own forward")

    with ExitStack() as hooks:
        for name, module in net.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(note))
            hooks.enter_context(module.register_forward_hook(partial(compare, name)))
        run()
    return found[0] if found else ""
