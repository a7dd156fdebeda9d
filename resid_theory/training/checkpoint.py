"""Folder of a training: one checkpoint, replaced as a whole, and the metrics as JSON lines."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resid_theory.runtime import store
from resid_theory.runtime.weight_files import misfits
from resid_theory.training.step import NetGroup


class Folder:
    """The files ``checkpoint.json`` and ``metrics.jsonl`` of a training.

    The checkpoint records the length of the metrics and their sha256. What a killed training wrote
    after its last checkpoint is cut off when it is resumed, and written again bit for bit.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = store.path_of(path, "out")
        if self.path.is_file():
            raise ValueError(f"out: {path} is a file, needs a folder")
        self.checkpoint, self.metrics = self.path / "checkpoint.json", self.path / "metrics.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and keep other processes out of it; a ValueError if one trains there."""
        store.make_folder("out", self.path)
        with store.locked(self.path / ".lock", f"out: another process trains in {self.path}"):
            yield

    def metrics_now(self) -> dict[str, Any]:
        """Length and sha256 of the metrics so far, for a checkpoint that is written later."""
        data = self._metrics_bytes()
        return {"bytes": len(data), "sha256": store.digest(data)}

    def save(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Replace the checkpoint; the metrics reach the disk before it."""
        with open(self.metrics, "rb") as file:
            os.fsync(file.fileno())
        store.write_checkpoint(self.checkpoint, tensors, about)

    def _metrics_bytes(self) -> bytes:
        return self.metrics.read_bytes() if self.metrics.exists() else b""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors of the checkpoint and their description, every byte checked; None without one."""
        return store.read_checkpoint(self.checkpoint) if self.checkpoint.exists() else None

    def rewind(self, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Cut the metrics to those that a checkpoint records, which are returned."""
        length, sha256 = about["metrics"]["bytes"], about["metrics"]["sha256"]
        whole = self._metrics_bytes()
        data = whole[:length]
        if store.digest(data) != sha256:
            raise ValueError(
                f"{self.metrics}: damaged: its first {length} bytes are not those that "
                f"{self.checkpoint} records; restore it from its source, or train anew elsewhere"
            )
        store.tidy_checkpoint(self.checkpoint)
        if len(whole) > length:  # a finished training may lie where nothing can be written
            os.truncate(self.metrics, length)
        return [json.loads(line) for line in data.splitlines()]

    def append(self, line: Mapping[str, Any]) -> None:
        """Add one line of metrics."""
        try:
            with open(self.metrics, "a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.metrics}: not written ({error.strerror}); the previous checkpoint is "
                "intact; make room, then run again to continue",
            ) from error


class Writer:
    """Writes checkpoints: of a GPU's tensors in a thread, while the GPU goes on."""

    def __init__(self, folder: Folder, device: torch.device) -> None:
        self._folder, self._cuda = folder, device.type == "cuda"
        self._threads = ThreadPoolExecutor()
        self._begun: Future[None] | None = None

    def write(self, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Replace the checkpoint by the tensors as they are now, after the one before."""
        self.finish()
        about = {**about, "metrics": self._folder.metrics_now()}
        if not self._cuda:
            self._folder.save(tensors, about)
            return
        copies = {name: _pinned(tensor) for name, tensor in tensors.items()}
        copied = torch.cuda.Event()
        copied.record()

        def save() -> None:
            copied.synchronize()
            self._folder.save(copies, about)

        self._begun = self._threads.submit(save)

    def finish(self) -> None:
        """Wait until what was begun is written; an OSError if it could not be."""
        if self._begun is not None:
            self._begun.result()


def _pinned(tensor: Tensor) -> Tensor:
    """A copy that the GPU writes to the host in the order of its queue, and nobody waits for."""
    return tensor.detach().to("cpu", non_blocking=True, copy=True)  # into pinned memory


def pack(
    group: NetGroup, optimizer: torch.optim.Optimizer, sums: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Everything that the next step depends on, by name; some are views of what is trained."""
    # By name and net, never by position: the order of an optimizer's state is that of its history,
    # which differs after a resume.
    packed = {f"net.{name}": tensor for name, tensor in group.tensors().items()}
    for name, parameter in group.parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                packed[f"optimizer.{key}.{name}"] = value
    packed.update({f"sum.{name}": tensor for name, tensor in sums.items()})
    packed["rng.cpu"] = torch.get_rng_state()
    device = _device(group)
    if device.type == "cuda":
        packed["rng.cuda"] = torch.cuda.get_rng_state(device)
    return packed


@torch.no_grad()
def unpack(
    packed: Mapping[str, Tensor],
    group: NetGroup,
    optimizer: torch.optim.Optimizer,
    sums: Mapping[str, Tensor],
) -> None:
    """Put back in place what :func:`pack` took; a ValueError if the nets have other tensors."""
    # Checkpoints of the first versions hold constant buffers, too.
    tensors = group.tensors()
    names = (f"{i}.{name}" for i, net in enumerate(group.nets) for name, _ in net.named_buffers())
    constant = {name for name in names if name not in tensors}
    saved = {k.removeprefix("net."): t for k, t in packed.items() if k.startswith("net.")}
    fault = misfits(tensors, {k: t for k, t in saved.items() if k not in constant})
    if fault:
        raise ValueError(f"net: the checkpoint is that of another net: {fault}")
    for key in {name.split(".")[1] for name in packed if name.startswith("optimizer.")}:
        for name, parameter in group.parameters.items():
            if f"optimizer.{key}.{name}" in packed:  # had a gradient so far
                # Made like the parameter: strides decide which kernels run, and so the last bits.
                optimizer.state[parameter].setdefault(key, torch.zeros_like(parameter))
    here = pack(group, optimizer, sums)
    for name in here.keys() & packed.keys():
        if not name.startswith("rng."):
            here[name].copy_(packed[name])
    torch.set_rng_state(packed["rng.cpu"])
    device = _device(group)
    if "rng.cuda" in packed and device.type == "cuda":
        torch.cuda.set_rng_state(packed["rng.cuda"], device)


def _device(group: NetGroup) -> torch.device:
    return next(iter(group.parameters.values())).device


def digest(tensors: Iterable[Tensor]) -> str:
    """The sha256 over values, types and shapes of tensors in a fixed order, in hexadecimal."""
    total = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.to_dense().cpu().contiguous().flatten()
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()


_WORDS = {
    "seeds": "seed",
    "correction": "correction",
    "ranks": "the number of processes",
    "data": "data (by their sha256)",
    "test": "test data (by their sha256)",
    "initial": "the initial weights (by their sha256)",
}


def check_same(folder: Folder, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse to resume another training; ``"unknown"`` in ``here`` agrees with everything."""
    there = {"ranks": 1, **there}  # absent in checkpoints of the first versions
    pairs = {f"recipe.{k}": (v, here["recipe"].get(k)) for k, v in there["recipe"].items()}
    pairs |= {word: (there[k], here[k]) for k, word in _WORDS.items() if here[k] != "unknown"}
    for what, (old, new) in pairs.items():
        if old != new:
            raise ValueError(
                f"out: {folder.path} holds another training: {what} is {old!r} there, {new!r} "
                "here; choose another folder, delete this one, or go on with resume(out, data)"
            )
