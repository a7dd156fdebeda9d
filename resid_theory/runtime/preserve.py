"""Read-only measurements: model, random state and settings come out as they went in."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from resid_theory._check import check_choice
from resid_theory.runtime.net_entry import as_written, set_eval
from resid_theory.runtime.net_state import NetState


@contextmanager
def deterministic(*, tf32: bool = False, fastest: bool = False) -> Iterator[None]:
    """Compute inside with kernels that repeat, and in the precision that the tensors have.

    By default cuDNN rounds the factors of float32 convolutions to the 10 bits of TF32, which no
    error bound accounts for; neither does one for an autocast around the call. One inside the net
    is the net's own.

    Args:
        tf32: Whether products and convolutions of float32 may use it.
        fastest: Whether cuDNN measures its kernels that repeat, and takes the fastest. Another run
            may take another one, which differs by round-off.

    Yields:
        Nothing; the settings are put back afterwards.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    casts = [kind for kind in ("cpu", "cuda") if torch.is_autocast_enabled(kind)]
    cudnn.deterministic, cudnn.benchmark = True, fastest
    try:
        for kind in casts:
            torch.set_autocast_enabled(kind, False)
        with _precision(tf32):
            yield
    finally:
        for kind in casts:
            torch.set_autocast_enabled(kind, True)
        cudnn.deterministic, cudnn.benchmark = before


@contextmanager
def _precision(tf32: bool) -> Iterator[None]:
    """Set the precision of float32 products and convolutions on GPUs, under all of its names."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    # torch 2.9 renamed these settings, and refuses to read an old name that a new one contradicts.
    # Old names that can be read are kept in step with the new ones: nets and torch read both.
    flags: list[tuple[Any, bool]] = []
    levels: list[str] = []  # "medium" is more than a flag
    for owner in (cudnn, products):
        with suppress(RuntimeError):
            flags.append((owner, owner.allow_tf32))
    with suppress(RuntimeError):
        levels.append(torch.get_float32_matmul_precision())
    renamed: list[Any] = []
    if hasattr(cudnn, "conv"):
        mkldnn: Any = torch.backends.mkldnn
        renamed = [products, cudnn.conv, cudnn.rnn, mkldnn.matmul]
    before = [owner.fp32_precision for owner in renamed]
    for owner, _ in flags:
        owner.allow_tf32 = tf32
    for owner in renamed[:3]:
        owner.fp32_precision = "tf32" if tf32 else "ieee"
    try:
        yield
    finally:
        for owner, flag in flags:
            owner.allow_tf32 = flag
        for level in levels:
            torch.set_float32_matmul_precision(level)
        for owner, precision in zip(renamed, before, strict=True):
            owner.fp32_precision = precision


@contextmanager
def preserved(
    net: nn.Module,
    *,
    batchnorm: str = "eval",
    state: NetState | None = None,
    weights: bool = True,
) -> Iterator[None]:
    """Measure inside; all that the net holds, its flags and the random state are put back.

    ``forward`` may write weights (``Embedding(max_norm=...)``) and keep tensors in attributes (a
    cache of products in eval mode): these are put back, too. ``.grad`` is never written.

    Args:
        net: The model, which is in eval mode inside, with gradients on.
        batchnorm: ``"eval"`` uses running statistics; ``"batch"`` uses those of each batch: only
            BatchNorm is then in train mode.
        state: What is put back, if it is known; by default what the net holds now.
        weights: Whether parameters are compared, too.

    Yields:
        Nothing.

    Raises:
        ValueError: If ``batchnorm`` is neither.
    """
    check_choice("batchnorm", batchnorm, ("eval", "batch"))
    state = NetState(net) if state is None else state
    devices = {p.device for p in net.parameters() if p.device.type == "cuda"}
    # The RNG moves even in eval mode when a model draws noise; fork_rng puts it back.
    # Gradients are on inside, wherever the caller stands: without them every derivative is zero.
    with (
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.enable_grad(),
        deterministic(),
        as_written(net),
    ):
        try:
            state.attributes.put_back()
            with evaluated(net):
                if batchnorm == "batch":
                    for module in net.modules():
                        if isinstance(module, nn.modules.batchnorm._BatchNorm):
                            module.train()
                yield
        finally:
            state.put_back(weights=weights)


def seed_devices(seed: int, devices: Iterable[torch.device]) -> None:
    """Seed torch's generators of the CPU and of some devices."""
    # Not ``torch.manual_seed``, which also seeds GPUs that have no part in this, and queues a call
    # with its stack trace for every kind of device that is not there.
    torch.default_generator.manual_seed(seed)
    for device in devices:
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)


@contextmanager
def evaluated(net: nn.Module) -> Iterator[None]:
    """Run a net in eval mode inside; the flags of its modules are put back."""
    flags = {m: m.training for m in net.modules() if hasattr(m, "training")}
    try:
        set_eval(net)
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag  # not train(flag), which would reach into the children
