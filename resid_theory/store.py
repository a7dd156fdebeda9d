"""Files that survive a crash and notice damage: atomic writes, sha256, arrays with fixed bytes."""

import hashlib
import io
import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "digest",
    "read_arrays",
    "read_bytes",
    "read_json",
    "write_arrays",
    "write_bytes",
    "write_json",
]


def digest(data: bytes | str | Path) -> str:
    """The sha256 of bytes, or of a file.

    Args:
        data: The bytes themselves, or a path; files are read in chunks, so any size will do.

    Returns:
        64 hexadecimal digits, lower case.

    Example:
        >>> digest(b"")[:16]
        'e3b0c44298fc1c14'
    """
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with open(data, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: str | Path, data: bytes) -> str:
    """Write a file whole or not at all; folders on the way are made.

    A temporary file in the same folder is filled, flushed to the disk and renamed over ``path``.
    A crash, a full disk or an interrupt leaves what stood there before, byte for byte.

    Args:
        path: File to write or replace.
        data: All of its content.

    Returns:
        The sha256 of the content, to be kept where the file is named.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Same folder: a rename is atomic only within one file system.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _flush_folder(path.parent)
    return digest(data)


def _flush_folder(folder: Path) -> None:
    # Without this the rename itself may be lost in a power cut. Windows cannot open a folder.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bytes(path: str | Path, *, sha256: str | None = None, remedy: str = "") -> bytes:
    """Read a file and check it; the bytes checked are the bytes returned.

    Args:
        path: File to read.
        sha256: Expected sha256 in hexadecimal, or None where none is known.
        remedy: What the reader should do about a damaged file, for the message.

    Returns:
        The whole content.

    Raises:
        ValueError: If the content does not have the expected sha256; names file, expected, found.
    """
    data = Path(path).read_bytes()
    found = digest(data)
    if sha256 is not None and found != sha256.lower():
        advice = remedy or "restore the file from its source, or make it again"
        raise ValueError(
            f"{path}: the content is damaged or not what was recorded ({len(data)} bytes): "
            f"sha256 {found}, expected {sha256}; {advice}"
        )
    return data


def write_json(path: str | Path, content: Any) -> str:
    """Write an object as strict JSON (indented, keys in the order given), atomically.

    Args:
        path: File to write or replace.
        content: Dicts, lists, strings, finite numbers, booleans and None.

    Returns:
        The sha256 of the file.

    Raises:
        ValueError: If a part has no JSON form, NaN and infinity included.
    """
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"content: cannot be written to {path} as JSON ({error}); needs dicts, lists, strings, "
            "finite numbers, booleans or None; arrays go to write_arrays"
        ) from error
    return write_bytes(path, (text + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Args:
        path: File to read.

    Returns:
        The object it holds.

    Raises:
        ValueError: If it is not valid JSON; the message names the file.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path}: not valid JSON ({error}); restore it or make it again"
        ) from error


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write named arrays as a compressed ``.npz``, atomically; equal arrays give equal bytes.

    Args:
        path: File to write or replace.
        arrays: Arrays of numbers, booleans or fixed-width strings; nothing that needs pickle.

    Returns:
        The sha256 of the file.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            # np.savez stamps the time of day into every member; here the bytes tell only content.
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.compress_type, member.create_system = zipfile.ZIP_DEFLATED, 3
            archive.writestr(member, _npy(name, arrays[name]))
    return write_bytes(path, buffer.getvalue())


def _npy(name: str, array: Any) -> bytes:
    array = np.asarray(array)
    if array.dtype.hasobject:
        raise ValueError(f"arrays[{name!r}]: got dtype object, needs numbers, booleans or strings")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def read_arrays(path: str | Path, *, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Read the named arrays of an ``.npz`` file.

    Args:
        path: File to read.
        sha256: Expected sha256 in hexadecimal, or None where none is known.

    Returns:
        All arrays by name, in memory.

    Raises:
        ValueError: If the sha256 differs, or the file is no archive of plain arrays.
    """
    data = read_bytes(path, sha256=sha256)
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not an archive of plain arrays ({error})") from error
