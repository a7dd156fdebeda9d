"""Flipped bits, cut files and full disks: what is left must be whole, or named."""

import random
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

import resid_theory as rt
from benchmarks import crash
from benchmarks.outcome import Outcome, Trial, judged, refused
from resid_theory.runtime import store

SMALL = crash.RECIPE.change(epochs=1)


# Damaged files -----------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, tuple[Path, Callable[[], object]]]:
    """One file of each kind that is kept, and the call that reads it."""
    crash.train(
        crash.net(0), crash.data(64), SMALL, seed=0, device="cpu", out=folder, progress=False
    )
    arrays = folder / "arrays.npz"
    sha256 = store.write_arrays(arrays, {"a": np.linspace(0, 1, 100)})
    net = rt.diracnet(10).eval()
    rt.save_checkpoint(folder / "dirac.json", net)
    weights = next(folder.glob("dirac.*.safetensors"))
    kinds: dict[str, tuple[Path, Callable[[], object]]] = {
        path.name: (path, lambda: crash.read(folder))
        for path in sorted(folder.iterdir())
        if path.stat().st_size and path.name.split(".")[0] in ("checkpoint", "net", "metrics")
    }
    kinds["arrays"] = (arrays, lambda: store.read_arrays(arrays, sha256=sha256))
    kinds["manifest"] = (folder / "dirac.json", lambda: rt.load_checkpoint(folder / "dirac"))
    kinds["weights"] = (weights, lambda: rt.load_checkpoint(folder / "dirac"))
    return kinds


def damaged(count: int, change: Callable[[bytes, random.Random], bytes]) -> Iterator[Trial]:
    """Change one file after another, read it, put it back."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory(prefix="damage-") as name:
        kinds = files(Path(name))
        order = [draw.choice(sorted(kinds)) for _ in range(count)]
        for number, kind in enumerate(order):
            path, read = kinds[kind]

            def trial(path=path, read=read) -> str | None:
                good = path.read_bytes()
                path.write_bytes(change(good, draw))
                try:
                    return refused(read, says=[path.name.split(".")[0]], length=900)
                finally:
                    path.write_bytes(good)

            yield f"{kind}, trial {number}", trial


def flipped(data: bytes, draw: random.Random) -> bytes:
    bit = draw.randrange(8 * len(data))
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data))]


# A full disk -------------------------------------------------------------------------------------


def full_disk(count: int) -> Iterator[Trial]:
    """Writes that the system refuses after a random number of bytes, by a limit on file sizes."""
    draw = random.Random(0)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tempfile.TemporaryDirectory(prefix="full-") as name:
        path = Path(name) / "net.json"
        old, new = nn.Linear(40, 40), nn.Linear(40, 40)
        rt.save_checkpoint(path, old)
        room = sum(file.stat().st_size for file in Path(name).iterdir())

        def trial() -> str | None:
            before = {file: file.read_bytes() for file in Path(name).iterdir()}
            resource.setrlimit(resource.RLIMIT_FSIZE, (draw.randrange(room // 2), hard))
            try:
                wrong = refused(
                    lambda: rt.save_checkpoint(path, new), kinds=OSError, says=["intact", path.name]
                )
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            after = {file: file.read_bytes() for file in Path(name).iterdir()}
            kept = rt.load_checkpoint(path, net=nn.Linear(40, 40))
            if not all(
                torch.equal(a, b) for a, b in zip(kept.parameters(), old.parameters(), strict=True)
            ):
                return "the old weights are gone"
            return wrong or (None if before == after else "left other files")

        for number in range(count):
            yield f"trial {number}", trial


def rows(quick: bool = False) -> list[Outcome]:
    """Rows of flips, cuts and full disks."""
    named = "found at the next reading, and the file named"
    return [
        judged("one flipped bit in a file", named, damaged(40 if quick else 1000, flipped)),
        judged("a file cut at a random byte", named, damaged(20 if quick else 500, cut)),
        judged(
            "the system refuses to write on, after a random byte",
            "one error that says so; the previous checkpoint intact, byte for byte",
            full_disk(20 if quick else 500),
        ),
    ]
