"""Convolutions and BatchNorm whose second derivatives cost what their first ones cost.

torch differentiates a convolution's gradient by a convolution with kernels as large as the images,
and BatchNorm in eval mode by some twenty elementwise operations. Inside
:class:`CheapDoubleBackward` they are replaced by functions with the same value and the same
derivatives, whose second backward pass calls the operations that the first one calls. On batch
statistics, BatchNorm leaves the running ones alone. ``hardsigmoid``, of which torch knows no second
derivative, is written by ``relu6``, and weight normalization, whose second derivative torch gets
wrong, as a quotient; gradients of embeddings are dense, whatever their format. Recurrent layers run
without cuDNN, which differentiates them once, and in train mode only.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_Plan = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation, groups


class CheapDoubleBackward(TorchFunctionMode):
    """A mode that makes convolutions and BatchNorm in eval mode cheap to differentiate twice.

    Values agree with torch's to round-off. What is not covered (padding by name, samples without a
    batch axis, code inside ``torch.func`` or autocast) is left to torch.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, or its replacement."""
        kwargs = kwargs or {}
        replacement = None
        if func in _CONVOLUTIONS:
            replacement = _convolution(*args, **kwargs)
        elif func is F.batch_norm:
            replacement = _batch_norm(*args, **kwargs)
        elif func is F.hardsigmoid:
            (x,) = args
            replacement = F.relu6(x + 3) / 6
            if kwargs["inplace"]:
                replacement = x.copy_(replacement)
        elif func is torch._weight_norm:
            replacement = _weight_norm(*args, **kwargs)
        elif func is F.embedding:
            replacement = func(*args, **{**kwargs, "sparse": False})
        elif getattr(func, "__name__", "") in _RECURRENT:
            with _without_cudnn():
                return func(*args, **kwargs)
        return func(*args, **kwargs) if replacement is None else replacement


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Switch cuDNN off, and no other flag of it, as ``torch.backends.cudnn.flags`` would."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Directions v times lengths g, one for each index of an axis, or one for all (-1)."""
    others = [axis for axis in range(v.dim()) if dim == -1 or axis != dim % v.dim()]
    return v * (g / v.square().sum(others, keepdim=dim != -1).sqrt())


def _plain(x: Tensor) -> bool:
    """True if a custom function may take x: no transform of torch.func, no autocast."""
    return not (
        torch._C._are_functorch_transforms_active() or torch.is_autocast_enabled(x.device.type)
    )


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Tensor | None:
    if isinstance(padding, str) or input.dim() != weight.dim() or not _plain(input):
        return None
    plan = (_each(stride), _each(padding), _each(dilation), groups)
    out: Tensor = _Convolution.apply(input, weight, plan)
    return out if bias is None else out + bias.view(-1, *[1] * (weight.dim() - 2))


def _each(given: int | Sequence[int]) -> list[int]:
    """A number for each axis, or one for all of them."""
    return [given] if isinstance(given, int) else list(given)


def _convolve(x: Tensor, weight: Tensor, plan: _Plan) -> Tensor:
    stride, padding, dilation, groups = plan
    out: Tensor = torch.ops.aten.convolution(
        x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups
    )
    return out


def _back(
    grad: Tensor, x: Tensor, weight: Tensor, plan: _Plan, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients at the input, which needs the weight, and at the weight, which needs the input."""
    if not any(wanted):
        return None, None
    stride, padding, dilation, groups = plan
    at_input, at_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0] * len(stride), groups,
        [*wanted, False],
    )  # fmt: skip
    return at_input, at_weight


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, plan: _Plan) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.plan = plan
        return _convolve(x, weight, plan)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        # In the second pass vmap may be on, which takes plain operations only.
        back = _ConvolutionBack.apply if torch.is_grad_enabled() else _back
        x, weight = ctx.saved_tensors
        return (*back(grad, x, weight, ctx.plan, ctx.needs_input_grad[:2]), None)


class _ConvolutionBack(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, plan: _Plan, wanted: tuple[bool, bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(grad, x, weight)
        ctx.set_materialize_grads(False)
        ctx.plan = plan
        return _back(grad, x, weight, plan, wanted)

    @staticmethod
    def backward(
        ctx: Any, at_input: Tensor | None, at_weight: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad, x, weight = ctx.saved_tensors
        out = None
        if at_input is not None:
            out = _convolve(at_input, weight, ctx.plan)
        if at_weight is not None:
            through = _convolve(x, at_weight, ctx.plan)
            out = through if out is None else out.add_(through)
        # The form is linear in each argument: the same call with the other factors put in.
        _, needs_x, needs_weight, *_ = ctx.needs_input_grad
        wanted = (at_weight is not None and needs_x, at_input is not None and needs_weight)
        left = x if at_input is None else at_input
        right = weight if at_weight is None else at_weight
        at_x, at_kernel = _back(grad, left, right, ctx.plan, wanted)
        return out, at_x, at_kernel, None, None


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Tensor | None:
    if training:
        # Running statistics would be written, and put back under a graph that has noted them.
        return F.batch_norm(input, None, None, weight, bias, True, eps=eps)
    if running_mean is None or running_var is None or not _plain(input):
        return None
    scale = torch.rsqrt(running_var + eps)
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = (1, -1, *[1] * (input.dim() - 2))
    out: Tensor = _Affine.apply(input, scale.view(shape), shift.view(shape))
    return out


def _affine_back(grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients, of which autograd adds up those at the scale and the shift of a channel."""
    return grad * scale, grad * x, grad


class _Affine(torch.autograd.Function):
    """x times a scale plus a shift, one of each a channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return torch.addcmul(shift, x, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        back = _AffineBack.apply if torch.is_grad_enabled() else _affine_back
        parts: tuple[Tensor, Tensor, Tensor] = back(grad, *ctx.saved_tensors)
        return parts


class _AffineBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(grad, x, scale)
        return _affine_back(grad, x, scale)

    @staticmethod
    def backward(
        ctx: Any, at_input: Tensor, at_scale: Tensor, at_shift: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad, x, scale = ctx.saved_tensors
        out = torch.addcmul(torch.addcmul(at_shift, at_input, scale), x, at_scale)
        return out, grad * at_scale, at_input * grad
