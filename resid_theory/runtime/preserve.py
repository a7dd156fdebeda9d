"""Read-only measurement: whatever happens inside, model and settings come out as they went in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from resid_theory._check import check_choice

__all__ = ["deterministic", "preserved"]

_NORMS = (nn.modules.batchnorm._BatchNorm,)


@contextmanager
def deterministic(*, tf32: bool = False) -> Iterator[None]:
    """Compute inside with kernels that repeat, and in the precision that the tensors have.

    By default cuDNN rounds the factors of float32 convolutions to the 10 bits of TF32, of which no
    error bound knows.

    Args:
        tf32: Whether products and convolutions of float32 may use it.

    Yields:
        Nothing; the settings are put back afterwards.
    """
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32, products.allow_tf32
    cudnn.deterministic, cudnn.benchmark = True, False
    cudnn.allow_tf32 = products.allow_tf32 = tf32
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before[:2]
        cudnn.allow_tf32, products.allow_tf32 = before[2:]


@contextmanager
def preserved(net: nn.Module, *, batchnorm: str = "eval") -> Iterator[None]:
    """Measure inside; buffers, train/eval flags and the RNG state are put back afterwards.

    Parameters and ``.grad`` are never written by a measurement, so they need no copy.

    Args:
        net: The model; it is in eval mode inside, and gradients are on.
        batchnorm: ``"eval"`` uses running statistics, ``"batch"`` those of each batch: BatchNorm
            alone is then in train mode.

    Yields:
        Nothing.

    Raises:
        ValueError: If ``batchnorm`` is neither.
    """
    check_choice("batchnorm", batchnorm, ("eval", "batch"))
    flags = {module: module.training for module in net.modules()}
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    devices = {p.device.index for p in net.parameters() if p.device.type == "cuda"}
    # The RNG moves even in eval mode when a model draws noise; fork_rng puts it back.
    # Gradients are on inside, wherever the caller stands: without them every derivative is zero.
    with (
        torch.random.fork_rng(devices=sorted(index or 0 for index in devices)),
        torch.inference_mode(False),
        torch.enable_grad(),
        deterministic(),
    ):
        try:
            net.eval()
            if batchnorm == "batch":
                for module in net.modules():
                    if isinstance(module, _NORMS):
                        module.train()
            yield
        finally:
            _restore(net, flags, buffers)


def _restore(
    net: nn.Module, flags: dict[nn.Module, bool], buffers: dict[str, torch.Tensor]
) -> None:
    with torch.no_grad():
        for name, buffer in net.named_buffers():
            if not torch.equal(buffer, buffers[name]):
                buffer.copy_(buffers[name])
    for module, flag in flags.items():
        module.training = flag  # not train(flag), which would reach into the children
