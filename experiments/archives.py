"""Finished parts carried as files: packed into a folder or a tar archive, merged elsewhere."""

import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from experiments.parts import Request, Store
from resid_theory.runtime import store
from resid_theory.sweep.config import content_key

_ENDINGS = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Keys of the parts that were packed, and of those that lack the weights asked for."""

    keys: tuple[str, ...]
    without_weights: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Keys of the parts of an archive: new ones, and those that were there already."""

    new: tuple[str, ...]
    known: tuple[str, ...]


def pack(requests: Iterable[Request], target: Path, own: Store) -> Packed:
    """Copy finished parts, with weights where one of the requests asks for them.

    ``target`` is a folder, or an archive whose name ends in .tar, .tar.gz or .tgz.
    """
    if own.own is None:
        raise ValueError("own: this store has no folder, needs one to pack from")
    weights: dict[str, bool] = {}
    for request in requests:
        weights[request.part.key] = weights.get(request.part.key, False) or request.weights
    places = {key: own.own.place(key) for key in weights}
    done = {key: p for key, p in places.items() if (p / "result.json").is_file()}
    chosen = {key: (place, weights[key]) for key, place in done.items()}
    if target.name.endswith(_ENDINGS):
        with tempfile.TemporaryDirectory() as scratch:
            _copy(chosen, Path(scratch))
            target.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(target, "w:gz" if target.name.endswith("gz") else "w") as archive:
                archive.add(scratch, arcname=".")
    else:
        _copy(chosen, target)
    bare = (key for key, p in done.items() if weights[key] and not (p / "weights.json").is_file())
    return Packed(keys=tuple(done), without_weights=tuple(bare))


def _copy(places: Mapping[str, tuple[Path, bool]], folder: Path) -> None:
    for key, (place, weights) in places.items():
        to = folder / "cells" / key
        to.mkdir(parents=True, exist_ok=True)
        for name in ("result", "weights") if weights else ("result",):
            for path in place.glob(f"{name}.*"):
                shutil.copy2(path, to / path.name)


def merge(source: Path, into: Store, *, replace: bool = False) -> Merged:
    """Add the parts of a folder or archive that ``pack`` wrote; if one is bad, none of them.

    A part that is there already must be equal, unless ``replace`` is true.
    """
    if into.own is None:
        raise ValueError("into: this store has no folder, needs one to write to")
    with _opened(source) as folder:
        manifests = sorted(folder.glob("cells/*/result.json"))
        found = {path.parent.name: _verified(path) for path in manifests}
        if not found:
            raise ValueError(f"{source}: has no cells/<key>/result.json, needs what pack wrote")
        known = []
        for key, (tensors, _) in found.items():
            for place in (into.own.place(key), into.committed.place(key)):
                try:
                    there, _ = store.read_checkpoint(place / "result.json")
                except (OSError, ValueError):  # absent, or damaged and to be replaced
                    continue
                if _equal(there, tensors):
                    known.append(key)
                elif not replace:
                    raise ValueError(
                        f"{source}: part {key} has another result than {place}; needs --replace "
                        "to take it, or another store"
                    )
                break
        for key in found:
            _take(folder / "cells" / key, into.own.place(key), known=key in known)
    return Merged(new=tuple(key for key in found if key not in known), known=tuple(known))


@contextmanager
def _opened(source: Path) -> Iterator[Path]:
    if source.is_dir():
        yield source
        return
    if not source.is_file():
        raise FileNotFoundError(f"{source}: there is no such folder or archive")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with tarfile.open(source) as archive:
                _extract(archive, Path(scratch))
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ValueError(f"{source}: is no archive that can be read ({error})") from error
        yield Path(scratch)


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Write the regular files; tarfile's own filters are younger than Python 3.11."""
    for member in archive.getmembers():
        path = Path(os.path.normpath(folder / member.name))
        if not path.is_relative_to(folder):
            raise tarfile.TarError(f"{member.name} lies outside")
        if (file := archive.extractfile(member) if member.isfile() else None) is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.read())


def _verified(path: Path) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
    """Tensors and description of a part, every byte checked, and its key against its settings."""
    tensors, about = store.read_checkpoint(path)
    if not isinstance(about, Mapping) or about.get("kind") != "cell":
        raise ValueError(f"{path}: is not the result of a part")
    if content_key(about["config"]) != about["key"] or about["key"] != path.parent.name:
        raise ValueError(f"{path}: its key is not that of its settings; it is of another program")
    weights = path.with_name("weights.json")
    if weights.is_file():
        _, content = store.read_checkpoint(weights)
        if content.get("about", {}).get("part") != about["key"]:
            raise ValueError(f"{weights}: are the weights of another part")
    return tensors, about


def _equal(these: Mapping[str, torch.Tensor], those: Mapping[str, torch.Tensor]) -> bool:
    return these.keys() == those.keys() and all(
        torch.equal(these[name].isnan(), those[name].isnan())
        and torch.equal(these[name].nan_to_num(), those[name].nan_to_num())
        for name in these
    )


def _take(source: Path, target: Path, *, known: bool) -> None:
    """Copy the files of a part, the manifest last: it decides whether the part is there.

    Of a known part only the weights are taken, if they are new.
    """
    names = [name for name in ("weights", "result") if (source / f"{name}.json").is_file()]
    if known and ("weights" not in names or (target / "weights.json").is_file()):
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        for old in target.glob(f"{name}.*"):
            old.unlink()
        for path in sorted(source.glob(f"{name}.*"), key=lambda path: path.suffix == ".json"):
            shutil.copy2(path, target / path.name)
