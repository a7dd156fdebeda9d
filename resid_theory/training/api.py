"""Train and resume; every argument is checked before the first step."""

import math
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resid_theory._check import check_callable, check_int, check_seed, check_within
from resid_theory.losses import LOSSES, Loss
from resid_theory.runtime.net_entry import check_differentiable, check_net
from resid_theory.runtime.process_group import ProcessGroup
from resid_theory.runtime.resources import check_device
from resid_theory.training.checkpoint import Folder
from resid_theory.training.device_dataset import DeviceDataset
from resid_theory.training.loop import Session
from resid_theory.training.recipe import Recipe
from resid_theory.training.run import Callback, Correction, Run, RunSettings, Stop
from resid_theory.training.saved_nets import build_net
from resid_theory.training.step import DTYPES

Nets = nn.Module | Sequence[nn.Module]


def train(
    net: Nets,
    data: Any,
    recipe: Recipe,
    *,
    seed: int | Sequence[int],
    device: str | torch.device = "auto",
    out: str | Path | None = None,
    test: Any = None,
    callbacks: Sequence[Callback] = (),
    every: int | None = None,
    correction: Correction | None = None,
    save_seconds: float = 60.0,
    stop: Stop | None = None,
    progress: bool = True,
    process_group: Any = None,
) -> Run:
    """Train a net, or several at once, in place.

    With ``out``, a training that was killed at any moment resumes from its last checkpoint when it
    is called again with equal arguments, and ends with weights, optimizer state and metrics that
    are bit-identical to those of an uninterrupted one (same device, PyTorch version and number of
    threads; with ``compile="graph"`` in tf32 or bf16 as long as cuDNN finds the same kernels the
    fastest); a finished one returns at once.

    The order of the samples, the crops and the flips of an epoch are a function of seed and epoch
    alone, equal on every device and for every net. Random numbers that a net draws (dropout) come
    from torch's generator, which is seeded with the first seed and restored afterwards.

    Args:
        net: A module, or a list of modules, which take turns in every step, beside each other in a
            CUDA graph. What ``torch.compile`` or ``DataParallel`` wraps is trained itself;
            ``recipe.compile`` and ``process_group`` take their places.
        data: :class:`Images`; pairs (x, y) of inputs, of a net of several a tuple or a mapping of
            them, and class labels or other targets; a ``Dataset``, a loader or an iterator, which
            is read once. All samples are kept on the device. Floating-point numbers are cast to the
            net's dtype, and labels may belong to places of the output, such as tokens.
        recipe: How to train.
        seed: Seed of order and augmentation; a list gives each net its own.
        device: ``"auto"`` takes a GPU if there is one.
        out: Folder for checkpoint, metrics (``metrics.jsonl``) and, at the end, the nets
            (``net.json`` or ``net.<number>.json``, see ``load_checkpoint``). None keeps nothing.
        test: Data whose loss and error are measured after each epoch, in eval mode.
        callbacks: Called as ``callback(net, progress)`` before training and after each epoch, with
            the net in eval mode; the numbers that they return join the metrics. They may draw
            random numbers and change running statistics, which are restored; one that leaves
            other layers is refused.
        every: Number of steps after which they are called as well; these lines of metrics hold
            nothing else.
        correction: Called once for each net as ``correction(optimizer, net)``, such as
            ``IdDecay``; it may hook the optimizer.
        save_seconds: Least time between two checkpoints, which is 20 times the duration of the last
            one if that is longer; 0 saves after every step.
        stop: Asked before each step with the number of steps done; True ends the call with a
            checkpoint and a result that is not ``finished``, for a deadline or a signal. Called
            again with equal arguments, the training goes on. One of several processes that says
            True stops all.
        progress: Whether to show a progress bar.
        process_group: None for this process alone. Under an initialized ``torch.distributed``:
            ``"world"`` or a process group whose processes share every batch and each call this
            with the same net, data and arguments. The batch of a step, its augmentation and its
            mean gradient are those of one process; the weights are equal to round-off, except
            with BatchNorm, which normalizes each process's part by itself. Rank 0 alone writes;
            callbacks run everywhere.

    Returns:
        The nets and their metrics.

    Raises:
        ValueError: If an argument does not fit, before any training starts: names it, what was
            given and what is needed. Also if ``out`` holds another training, or is damaged.
        DivergenceError: At NaN or infinity; names the step and the first such tensor.
        MemoryError: If a step does not fit in memory; names the largest batch that does.
        OSError: If the disk is full; the previous checkpoint is intact.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> data = rt.load_images("digits", samples=256, size=None, channels=None)
        >>> recipe = Recipe(epochs=2, lr=0.1, augmentation="none", milestones=())
        >>> run = train(net, data, recipe, seed=0, progress=False)
        >>> run.column("epoch"), run.column("loss")[1] < run.column("loss")[0]
        ([0, 1, 2], True)
    """
    group = ProcessGroup(process_group)
    nets = _as_nets(net, group)
    seeds = _as_seeds(seed, len(nets))
    check_within("save_seconds", save_seconds, 0, math.inf)
    if not isinstance(callbacks, Sequence):
        raise ValueError(f"callbacks: got {callbacks!r}, needs a list of functions (net, progress)")
    for callback in callbacks:
        check_callable("callbacks", callback, "functions (net, progress)")
    if stop is not None:
        check_callable("stop", stop, "a function of the step")
    if correction is not None:
        check_callable("correction", correction, "a function (optimizer, net)")
    settings = RunSettings(
        device=_as_device(device),
        folder=None if out is None else Folder(out),
        callbacks=tuple(callbacks),
        every=None if every is None else check_int("every", every),
        correction=correction,
        save_seconds=save_seconds,
        stop=stop,
        progress=progress,
        process_group=group,
    )
    return _train(nets, data, test, recipe, seeds, settings, {})


def resume(
    out: str | Path,
    data: Any,
    *,
    net: Nets | None = None,
    device: str | torch.device = "auto",
    test: Any = None,
    stop: Stop | None = None,
    progress: bool = True,
    process_group: Any = None,
) -> Run:
    """Resume a training from its folder, whose checkpoint holds recipe, seeds and architecture.

    A training with callbacks or a correction is resumed by calling :func:`train` again.

    Args:
        out: The folder.
        data: The same data as before; checked.
        net: Modules that take the weights; None builds them from the architecture records.
        device: ``"auto"`` takes a GPU if there is one.
        test: The same test data as before, or None if there were none; checked.
        stop: Asked before each step with the number of steps done; True stops, as in ``train``.
        progress: Whether to show a progress bar.
        process_group: As many processes as before: None, ``"world"`` or a process group.

    Returns:
        The nets and their metrics.

    Raises:
        FileNotFoundError: If the folder has no checkpoint.
        ValueError: If it is damaged, if the data differ, or if it has no architecture record while
            ``net`` is None.
    """
    folder, chosen, group = Folder(out), _as_device(device), ProcessGroup(process_group)
    found = group.from_first(folder.load, chosen)
    if found is None:
        raise FileNotFoundError(f"out: {out} has no checkpoint.json; start with train(..., out=)")
    about = found[1]
    for name in ("architectures", "correction", "recipe", "seeds"):
        if name not in about:
            raise ValueError(f"out: {folder.checkpoint} is not of a training: has no {name}")
    if about["correction"] is not None:
        raise ValueError(
            f"out: {out} was trained with the correction {about['correction']}; call train with it "
            "and the other arguments again, which resumes"
        )
    if about["recipe"].get("loss", "cross_entropy") not in LOSSES:
        raise ValueError(
            f"out: {out} was trained with the loss {about['recipe']['loss']}, which has no name; "
            "call train with it and the other arguments again, which resumes"
        )
    settings = RunSettings(
        device=chosen,
        folder=folder,
        stop=stop,
        progress=progress,
        process_group=group,
    )
    if net is None:
        if None in about["architectures"]:
            raise ValueError(
                "net: the checkpoint has no architecture record; pass the module as net="
            )
        net = [build_net(record) for record in about["architectures"]]
    nets = _as_nets(net, group)
    recipe, seeds = Recipe(**about["recipe"]), tuple(about["seeds"])
    return _train(nets, data, test, recipe, seeds, settings, {"initial": "unknown"})


def _train(
    nets: list[nn.Module],
    data: Any,
    test: Any,
    recipe: Recipe,
    seeds: tuple[int, ...],
    settings: RunSettings,
    known: Mapping[str, Any],
) -> Run:
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe: got {type(recipe).__name__}, needs a Recipe")
    dtype, casts = DTYPES[recipe.precision], dict[str, None]()
    for net in nets:
        # Nets of several dtypes keep them, and complex ones, which real numbers cannot hold.
        dtypes = {p.dtype for p in net.parameters() if p.is_floating_point() or p.is_complex()}
        real = len(dtypes) == 1 and next(iter(dtypes)).is_floating_point
        net.to(device=settings.device, dtype=dtype if real else None)
        if real and dtypes != {dtype}:
            casts[f"the net is cast from {dtypes.pop()} to the recipe's {dtype}"] = None
        sparse = [
            n for n, b in net.named_buffers() if settings.folder and b.layout != torch.strided
        ]
        if sparse:
            raise ValueError(f"out: files hold dense tensors only, and buffer {sparse[0]!r} is not")
        if recipe.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    first, *others = nets
    samples = DeviceDataset("data", data, first, recipe, others)
    samples.notes = (*casts, *samples.notes)
    try:
        tests = None if test is None else DeviceDataset("test", test, first, recipe)
    except ValueError as error:
        raise ValueError(re.sub("^data\\b", "test", str(error))) from error
    name = Loss.of(recipe.loss).name
    if tests is not None and tests.weighting is None:
        raise ValueError(
            f"test: the loss {name} compares samples, so that of all test data is not made of "
            "those of batches; leave test out, and measure in callbacks"
        )
    if settings.process_group.count > 1 and not samples.is_even:
        raise ValueError(
            f"process_group: the loss {name} of a batch is not the mean over its samples, so "
            "processes cannot share one; needs one process"
        )
    with ExitStack() as stack:
        if settings.folder:
            lock = settings.folder.locked()
            settings.process_group.from_first(lambda: stack.enter_context(lock), settings.device)
        return Session(nets, samples, tests, recipe, seeds, settings).run(known)


def _as_nets(net: Nets, process_group: ProcessGroup) -> list[nn.Module]:
    # A Sequential is a module first, whatever else it looks like.
    given = [net] if isinstance(net, nn.Module) else list(net)
    nets = [check_differentiable(check_net(each, finite=False))
            for each in given if isinstance(each, nn.Module)]  # fmt: skip
    if not nets or len(set(map(id, nets))) < len(given):
        kinds = ", ".join(type(each).__name__ for each in given)
        raise ValueError(
            f"net: got [{kinds}], needs a module, or a list of modules that are not the same"
        )
    for i, module in enumerate(nets):
        if not any(p.requires_grad and p.numel() for p in module.parameters()):
            raise ValueError(
                f"net: net {i} has no parameter that requires a gradient and is not empty"
            )
    parallel = (nn.parallel.DistributedDataParallel,)
    for part in (part for each in given for part in each.modules() if isinstance(part, parallel)):
        shared: Any = part.process_group
        if shared.size() > process_group.count:
            raise ValueError(
                "net: got DistributedDataParallel of several processes, which only share a batch "
                "if process_group says so; pass process_group='world'"
            )
    return nets


def _as_seeds(seed: int | Sequence[int], nets: int) -> tuple[int, ...]:
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if len(seed) != nets:
            raise ValueError(f"seed: got {len(seed)} seeds for {nets} nets, needs one for each")
        return tuple(check_seed("seed", s) for s in seed)
    return (check_seed("seed", seed),) * nets


def _as_device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return check_device("device", device)
