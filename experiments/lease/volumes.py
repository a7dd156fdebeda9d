"""Archives cut into volumes that fit the limits of a machine, replaced as a whole.

A set of volumes is one tar file. Its name holds the digest of the whole, so that volumes of two
sets are never joined and damage is noticed.
"""

import hashlib
import io
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"volume-([0-9a-f]{16})-(\d+)of(\d+)")
_BLOCK = 512  # of a tar file: one for the header of each member, whose bytes are padded to blocks


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What comes back from a machine: number of files, bytes of each and of all."""

    files: int = 8
    file_bytes: int = 16 << 20
    total_bytes: int = 64 << 20

    @property
    def room(self) -> int:
        """Bytes that fit in volumes; half of the files, because two sets exist for a moment."""
        return min(self.total_bytes, max(1, self.files // 2) * self.file_bytes)


def write_volumes(
    groups: Mapping[str, Mapping[str, bytes]], folder: str | Path, limits: Limits
) -> list[str]:
    """Replace the volumes in a folder; the names of the groups that did not fit.

    A group of files goes in as a whole or is left out. Groups are taken in order as long as there
    is room, and later ones that are small enough.
    """
    folder, left, size = Path(folder), [], 20 * _BLOCK  # what closes a tar file
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for group, files in groups.items():
            # Two blocks more for a long name.
            grown = sum(_BLOCK * (3 - len(data) // -_BLOCK) for data in files.values())
            if size + grown > limits.room:
                left.append(group)
                continue
            size += grown
            for name, data in files.items():
                header = tarfile.TarInfo(name)
                header.size = len(data)
                archive.addfile(header, io.BytesIO(data))
    whole = content.getvalue()
    pieces = [whole[at : at + limits.file_bytes] for at in range(0, len(whole), limits.file_bytes)]
    seal = _seal(whole)
    before = _volumes(folder)
    # Complete before the first is in place, so that a kill leaves the one set or the other.
    waiting = folder / ".waiting"
    waiting.mkdir(parents=True, exist_ok=True)
    names = [f"volume-{seal}-{i}of{len(pieces)}" for i in range(len(pieces))]
    for name, piece in zip(names, pieces, strict=True):
        (waiting / name).write_bytes(piece)
    for name in names:
        os.replace(waiting / name, folder / name)
    waiting.rmdir()
    for path in before:
        if path.name not in names:
            path.unlink()
    return left


def read_volumes(folder: str | Path) -> list[dict[str, bytes]]:
    """Members of every complete set of volumes anywhere below a folder.

    Raises a ValueError if there is none; an incomplete set is left out if there is another.
    """
    sets: dict[str, dict[int, Path]] = {}
    for path in _volumes(Path(folder)):
        seal, number = _NAME.fullmatch(path.name).groups()[:2]  # type: ignore[union-attr]
        sets.setdefault(seal, {})[int(number)] = path
    joined = {
        seal: b"".join(paths[number].read_bytes() for number in sorted(paths))
        for seal, paths in sets.items()
    }
    whole = [data for seal, data in joined.items() if _seal(data) == seal]
    if not whole:
        raise ValueError(f"folder: {folder} holds {len(sets)} sets of volumes, none of them whole")
    return [_members(data) for data in whole]


def _members(whole: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive.getmembers()}
        return {name: file.read() for name, file in files.items() if file is not None}


def _volumes(folder: Path) -> Sequence[Path]:
    return [path for path in sorted(folder.rglob("volume-*")) if _NAME.fullmatch(path.name)]


def _seal(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
