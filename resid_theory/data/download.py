"""Official files of data sets: where they are looked for, and their download."""

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import torch

_SECONDS = 20.0  # without an answer for this long, a mirror counts as dead


def search_folders(data_set: str) -> list[Path]:
    """Folders that may hold a data set, in the order of the search; a download goes to the last."""
    given = os.environ.get("RESID_THEORY_DATA")
    named = [Path(given).expanduser() / data_set, Path(given).expanduser()] if given else []
    return [*named, _cache_folder() / data_set]


def _cache_folder(platform: str = sys.platform) -> Path:
    home = Path.home()
    variable, usual = {
        "win32": ("LOCALAPPDATA", home / "AppData" / "Local"),
        "darwin": ("XDG_CACHE_HOME", home / "Library" / "Caches"),
    }.get(platform, ("XDG_CACHE_HOME", home / ".cache"))
    return Path(os.environ.get(variable) or usual) / "resid_theory"


def find_or_download(
    name: str, sha256: str, mirrors: Sequence[str], *, data_set: str, progress: bool
) -> Path:
    """Path of an official file, downloaded from the first mirror that delivers it undamaged."""
    searched = [folder / name for folder in search_folders(data_set)]
    for path in searched:
        if path.is_file():
            return path
    path, faults = searched[-1], []
    for mirror in mirrors:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _time_limit(_SECONDS):
                torch.hub.download_url_to_file(mirror + name, str(path), sha256, progress)
            return path
        except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the sha256 differs
            faults.append(f"{mirror}: {error}")
    raise FileNotFoundError(
        f"{data_set} file {name} was not found ({', '.join(map(str, searched))}) and not "
        f"downloaded ({'; '.join(faults)}): set RESID_THEORY_DATA to a folder that holds it, "
        f"directly or in a subfolder {data_set}"
    )


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    # torch.hub sets none, and a network that swallows packets would hang for minutes.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
