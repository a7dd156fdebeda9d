"""Flipped bits, cut files and full disks: what is left is whole, or named."""

import resource

import interrupted
import numpy as np
import pytest
import torch
from torch import nn
from trials import assert_refused, flipped

import resid_theory as rt
from resid_theory.runtime import store


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One file of each kind that is kept, and the call that reads it."""
    folder = tmp_path_factory.mktemp("files")
    recipe = interrupted.RECIPE.change(epochs=1)
    options = {"seed": 0, "device": "cpu", "out": folder, "progress": False}
    rt.train(interrupted.net(0), interrupted.data(64), recipe, **options)
    kinds = {
        path.name: (path, lambda: interrupted.read(folder))
        for path in sorted(folder.iterdir())
        if path.stat().st_size
    }
    arrays = folder / "arrays.npz"
    sha256 = store.write_arrays(arrays, {"a": np.linspace(0, 1, 100)})
    rt.save_checkpoint(folder / "dirac.json", rt.diracnet(10).eval())
    for path in folder.glob("dirac.*"):
        kinds[path.name] = path, lambda: rt.load_checkpoint(folder / "dirac")
    return [*kinds.values(), (arrays, lambda: store.read_arrays(arrays, sha256=sha256))]


def check_named(files, draw, change):
    """Change a file and back; reading it in between names it."""
    path, read = draw.choice(files)
    content = path.read_bytes()
    path.write_bytes(change(content))
    try:
        assert_refused(read, says=[path.name.split(".")[0]], length=900)
    finally:
        path.write_bytes(content)


NAMED = "found at the next reading, and the file named"


@pytest.mark.reliability("one flipped bit in a file", NAMED, quick=60, full=1000)
def test_flipped_bit(files, trial, draw):
    check_named(files, draw, lambda content: flipped(content, draw))


@pytest.mark.reliability("a file cut at a random byte", NAMED, quick=20, full=500)
def test_cut(files, trial, draw):
    check_named(files, draw, lambda content: content[: draw.randrange(len(content))])


@pytest.mark.reliability(
    "the system refuses to write on, after a random byte",
    "one error that says so; the previous checkpoint intact, byte for byte",
    quick=20,
    full=500,
)
def test_full_disk(trial, draw, tmp_path):
    """By a limit on the size of files."""
    path, old, new = tmp_path / "net.json", nn.Linear(40, 40), nn.Linear(40, 40)
    rt.save_checkpoint(path, old)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    limit = draw.randrange(sum(map(len, before.values())) // 2)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        save = lambda: rt.save_checkpoint(path, new)  # noqa: E731
        assert_refused(save, kinds=OSError, says=["intact", path.name])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert before == {file: file.read_bytes() for file in tmp_path.iterdir()}
    kept = rt.load_checkpoint(path, net=nn.Linear(40, 40))
    assert all(map(torch.equal, kept.parameters(), old.parameters()))
