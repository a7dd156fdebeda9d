"""Foreign ``torch.save`` files opened as plain data: nothing in them runs, nothing swells."""

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resid_theory._check import check_finite

__all__ = ["opened", "plain_tensors"]

_DTYPES = (torch.float32, torch.float64)


def opened(path: str | Path) -> Any:
    """What a file of ``torch.save`` holds, without running code from it.

    Both of torch's formats are read, the zip archive and the older stream. Archives are mapped into
    memory, so a size that a file claims and does not have is never allocated.

    Args:
        path: The file.

    Returns:
        Dicts, lists, numbers, strings and tensors on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such file, is damaged, is compressed, or asks for anything but plain
            tensors: names the file and the first problem.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: is no file; needs one that torch.save has written")
    with open(path, "rb") as file:
        archive = file.read(4) == b"PK\x03\x04"
    if archive:
        _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    # Whatever a hostile file makes the reader stumble over, it is refused.
    except Exception as error:
        raise ValueError(f"{path}: {_reason(error)}") from error


def _check_archive(path: Path) -> None:
    """Refuse archives that are damaged, or larger inside than outside."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            packed = next((p for p in parts if p.compress_type != zipfile.ZIP_STORED), None)
            if packed is not None:
                raise ValueError(
                    f"{path}: its part {packed.filename!r} is compressed to {packed.compress_size} "
                    f"of {packed.file_size} bytes; torch.save compresses nothing"
                )
            total, size = sum(part.file_size for part in parts), path.stat().st_size
            if total > size:
                raise ValueError(f"{path}: claims {total} bytes of content in a file of {size}")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(f"{path}: is a damaged archive ({error}); copy it again") from error
    if damaged is not None:
        raise ValueError(f"{path}: its part {damaged!r} is damaged; copy the file again")


def _reason(error: Exception) -> str:
    text = str(error)
    wanted = re.search(r"GLOBAL (\S+)", text)
    if wanted:
        return (
            f"asks for {wanted[1]}, which no file of plain tensors does; refused, and nothing of "
            "it was run"
        )
    text = text.rpartition("WeightsUnpickler error:")[2].strip() or type(error).__name__
    first = re.split(r"\n|\. ", text)[0][:200].rstrip(".")
    return f"is not, or not whole, a file of plain tensors by torch.save ({first})"


def plain_tensors(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The entries of a dict, if they are ordinary tensors whose numbers are in the file.

    Args:
        path: The file, for messages and for its size.
        content: What it holds.

    Returns:
        The same entries.

    Raises:
        ValueError: If a key is no string, or a value is no dense float32 or float64 tensor of
            finite numbers, all of one dtype; names the first. Also if the tensors together are
            larger than the file, as expanded ones are.
    """
    total, kinds = 0, set()
    for name, tensor in content.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: has the key {name!r:.80}, needs names of tensors")
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"{path}: {name!r} is {_kind(tensor)}, needs a dense tensor")
        if tensor.dtype not in _DTYPES:
            raise ValueError(f"{path}: {name!r} is {tensor.dtype}, needs float32 or float64")
        kinds.add(tensor.dtype)
        if len(kinds) > 1:
            raise ValueError(
                f"{path}: {name!r} is {tensor.dtype}, those before it are not; needs one"
            )
        total += tensor.numel() * tensor.element_size()
    if total > path.stat().st_size:
        raise ValueError(
            f"{path}: its tensors claim {total} bytes in a file of {path.stat().st_size}"
        )
    for name, tensor in content.items():
        check_finite(f"{path}: {name!r}", tensor)
    return dict(content)


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return "a tensor without numbers" if value.is_meta else f"a tensor of layout {value.layout}"
