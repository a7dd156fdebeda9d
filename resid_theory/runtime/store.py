"""Files that survive a crash and reveal damage: atomic writes, sha256, arrays and checkpoints.

A write fills a temporary file in the same folder, flushes it to the disk and renames it over the
old file. A crash, a full disk or an interrupt leaves the old content, byte for byte.

A checkpoint is a manifest ``<name>.json`` beside ``<name>.<digits of their sha256>.safetensors``,
whose name and sha256 the manifest records together with its own. The rename of the manifest is the
moment of change: until then the old manifest stands beside the old tensors.
"""

import glob
import hashlib
import io
import json
import math
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor  # a second of import that readers of JSON need not wait for


def digest(data: bytes | str | Path) -> str:
    """The sha256 of bytes, or of a file of any size, in lower-case hexadecimal."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with open(data, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def path_of(value: Any, name: str) -> Path:
    """A path that a user gives, with ``~`` for the home folder."""
    if not isinstance(value, (str, os.PathLike)) or value == "":  # which Path takes for "."
        raise ValueError(f"{name}: got {value!r:.80}, needs a path, a string or a pathlib.Path")
    return Path(value).expanduser()


def write_bytes(path: str | Path, data: bytes, *, flush: bool = True) -> str:
    """Write a file atomically and return the sha256; folders on the way are made."""
    _write(path, data, flush=flush)
    return digest(data)


def _write(path: str | Path, data: bytes, *, flush: bool) -> None:
    # Without ``flush`` the process may still be killed at any moment, but a power cut may leave
    # damage, which the sha256 reveals.
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Same folder: a rename is atomic only within one file system.
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(data)
            if flush:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    # The rename itself may be lost in a power cut. Windows cannot open a folder.
    if flush and os.name == "posix":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_bytes(path: str | Path, *, sha256: str | None = None, remedy: str = "") -> bytes:
    """Read a file; a ValueError with the remedy if its sha256 is not the expected one."""
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
    """Write an object as JSON, atomically, and return the sha256 of the file."""
    return write_bytes(path, _as_json(path, content))


def _as_json(path: str | Path, content: Any) -> bytes:
    try:
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"content: cannot be written to {path} as JSON ({error}); needs dicts, lists, strings, "
            "finite numbers, booleans or None; arrays go to write_arrays"
        ) from error
    return (text + "\n").encode()


def make_folder(argument: str, path: Path) -> None:
    """Make a folder and those above it; a ValueError that names the argument if it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{argument}: {path} cannot be a folder: {error.strerror}") from error


@contextmanager
def locked(path: Path, message: str | None = None) -> Iterator[None]:
    """Hold the lock of a file, whose folder is made: wait for it, or raise a message if given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        file = open(path, "w")
    except OSError:
        if not path.exists():
            raise
        file = open(path)  # a lock needs no right to write, nor does what is finished
    with file:
        try:
            import fcntl  # not on Windows, where nothing is locked

            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if message else 0))
        except ImportError:
            pass
        except OSError as error:
            raise ValueError(message) from error
        yield  # the lock ends with the process, in whatever way it ends


def read_json(path: str | Path) -> Any:
    """Read a JSON file; a ValueError names a file that is not valid JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(
            f"{path}: not valid JSON ({error}); restore it or make it again"
        ) from error


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays as a compressed ``.npz``, atomically; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            # np.savez stamps the time of day into every member; here all are of 1980.
            member = zipfile.ZipInfo(f"{name}.npy")
            member.compress_type, member.create_system = zipfile.ZIP_DEFLATED, 3
            archive.writestr(member, _npy(name, arrays[name]))
    return write_bytes(path, buffer.getvalue())


def _npy(name: str, array: Any) -> bytes:
    array = np.asarray(array)
    if array.dtype.hasobject:
        raise ValueError(f"arrays[{name!r}]: got dtype object, needs numbers, booleans or strings")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array)
    return buffer.getvalue()


def read_arrays(path: str | Path, *, sha256: str | None = None) -> dict[str, np.ndarray]:
    """Read all arrays of an ``.npz`` file into memory; a ValueError names a damaged file."""
    data = read_bytes(path, sha256=sha256)
    try:
        _refuse_claims(data)
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not an archive of plain arrays ({error})") from error


def _refuse_claims(data: bytes) -> None:
    """Refuse arrays whose header claims more than the archive holds, before memory is allocated."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for part in archive.infolist():
            with archive.open(part) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0
                if version != (1, 0):
                    read = np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            claimed = math.prod(shape) * dtype.itemsize
            if claimed > part.file_size:
                raise ValueError(f"{part.filename} claims {claimed} bytes, has {part.file_size}")


_DIGITS = "[0-9a-f]" * 16


def write_checkpoint(
    path: str | Path, tensors: "Mapping[str, Tensor]", about: Any, *, flush: bool = True
) -> Path:
    """Write tensors and their description, both or neither; return the file of the tensors."""
    from safetensors.torch import save

    path = _manifest(path)
    _as_json(path, about)  # refused before anything is written
    for name, value in tensors.items():  # packed weights and extra state are none
        if not hasattr(value, "detach"):
            raise ValueError(f"tensors: {name!r} is {type(value).__name__}, needs a tensor")
    # Clones: two names may share memory, which the format refuses.
    copies = {k: tensors[k].cpu().contiguous().clone() for k in sorted(tensors)}
    try:
        data = save(copies)
    except KeyError as error:  # complex128, for example
        raise ValueError(f"tensors: {error} has no place in the safetensors format") from error
    try:
        sha256 = digest(data)
        file = path.with_name(f"{path.stem}.{sha256[:16]}.safetensors")
        body = {"file": file.name, "bytes": len(data), "sha256": sha256, "about": about}
        sealed = {"manifest": body, "manifest_sha256": digest(_as_json(path, body))}
        for place, content in ((file, data), (path, _as_json(path, sealed))):
            # What is there already may lie where nothing can be written.
            if not place.is_file() or place.read_bytes() != content:
                _write(place, content, flush=flush)
    except OSError as error:
        kept = "the previous checkpoint is intact" if path.exists() else "there was none before"
        raise OSError(
            error.errno,
            f"{path}: the checkpoint was not written ({error.strerror or error}); {kept}; make "
            "room or choose another folder, then run again to continue",
        ) from error
    _sweep(path, file)
    return file


def _manifest(path: str | Path) -> Path:
    path = path_of(path, "path")
    if path.suffix != ".json":
        raise ValueError(f"path: got {str(path)!r}, needs a manifest whose name ends in .json")
    return path


def _sweep(path: Path, keep: Path) -> None:
    """Remove earlier tensors and what a killed writer left half done."""
    manifest, tensors = glob.escape(path.name), f"{glob.escape(path.stem)}.{_DIGITS}.safetensors"
    for pattern in (tensors, f".{tensors}.*.partial", f".{manifest}.*.partial"):
        for old in path.parent.glob(pattern):
            if old != keep:
                old.unlink(missing_ok=True)


def tidy_checkpoint(path: str | Path) -> None:
    """Remove tensors that the manifest does not name, left by a writer that was killed."""
    path = _manifest(path)
    _sweep(path, path.with_name(_unsealed(path)["file"]))


def read_checkpoint(path: str | Path) -> "tuple[dict[str, Tensor], Any]":
    """Read tensors, on the CPU, and their description, with every byte checked."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = _manifest(path)
    body = _unsealed(path)
    file = path.with_name(body["file"])
    if not file.is_file():
        raise FileNotFoundError(f"{file}: is not there, but {path} names it; copy both files")
    data = read_bytes(file, sha256=body["sha256"])
    try:
        return load(data), body["about"]
    except SafetensorError as error:  # the sum is right, so somebody made it so
        raise ValueError(f"{file}: holds no tensors in the safetensors format ({error})") from error


def _unsealed(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        sealed = json.loads(data)
        body = sealed["manifest"]
        # The bytes as well as the sum: spaces, too, are as they were written.
        whole = sealed["manifest_sha256"] == digest(_as_json(path, body))
        whole = whole and _as_json(path, sealed) == data
        # A file beside the manifest, nowhere else.
        whole = whole and body["file"] == Path(body["file"]).name and "about" in body
        whole = whole and isinstance(body["sha256"], str)
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(
            f"{path}: the manifest is damaged or not a manifest ({len(data)} bytes): its sha256 is "
            "not the one written in it; restore the file from its source, or make it again"
        )
    return dict(body)
