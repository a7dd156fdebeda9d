"""Parts of claims: computed once, shared, carried as files, and judged wherever they are."""

import io
import os
import shutil
import tarfile
from dataclasses import dataclass

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments import __main__ as command, registry
from experiments.archives import merge, pack
from experiments.claim import Claim
from experiments.criteria import Criterion
from experiments.demystifying_resnet import preactivation
from experiments.lease import time_table
from experiments.noise_stability.nets import training_of
from experiments.parts import (
    Execution,
    Finished,
    Part,
    Request,
    Store,
    Stored,
    by_name,
    in_turn,
    requests_of,
)
from experiments.records import load, record_path
from experiments.registry import CLAIMS, join
from experiments.trainings import Training
from resid_theory.runtime import store
from resid_theory.theory.zero_weights import toeplitz

ASKING = [claim for claim in CLAIMS.values() if claim.takes("each")]
DESCENTS = {"samples": 60, "depths": [12], "rates": [-1, 0, 0.5], "seeds": 2, "epochs": 3}
IMAGES = {
    "seeds": [0, 3], "epochs": 1, "data": "digits", "samples": 16, "tests": 16, "size": 8,
    "batch": 8,
}  # fmt: skip
TINY = {
    "figure_4_digits": {"samples": 300, "depths": [2, 3], "seeds": 2},
    "figure_7_digits": {**DESCENTS, "near": None},
    "figure_8_digits": {**DESCENTS, "near": None},
    "figure_9_surrogate_digits": DESCENTS,
    "figure_9": {"depths": [10], "training": IMAGES},
}


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True, err_msg=name)


@pytest.fixture
def computed(monkeypatch):
    """A figure's arrays at a tiny scale."""
    monkeypatch.setattr(preactivation, "SHORTCUT_DEPTHS", (1, 2))  # 3 and 4 need nets of 40 layers
    monkeypatch.setattr(toeplitz, "_ANGLES", 4)  # of the bulk: 256 take most of the time

    def compute(figure, **keywords):
        claim = CLAIMS[f"demystifying_resnet/{figure}"]
        given = {**claim.settings[list(claim.settings)[-1]], **TINY[figure]}
        given.pop("scaled", None)
        return claim.compute(**given, **keywords)

    return compute


@pytest.mark.parametrize("figure", TINY)
def test_a_store_gives_what_one_piece_does(figure, computed, tmp_path):
    each, in_one_piece = Stored(Store(tmp_path), Execution()), computed(figure)
    equal(computed(figure, each=each), in_one_piece)
    assert len(each.given) == len(list(tmp_path.glob("cells/*/result.json"))) > 1
    # A second claim finds all of them.
    equal(computed(figure, each=Stored(Store(tmp_path))), in_one_piece)


@pytest.mark.parametrize("claim", ASKING, ids=lambda claim: claim.id)
def test_a_claim_asks_for_its_parts_before_it_computes(claim):
    # Without data: they are not on every machine that runs parts.
    for scale in claim.settings:
        keys = [request.part.key for request in requests_of(claim, scale)]
        assert len(keys) == len(set(keys))


class Invented(dict):
    """A result of a training with numbers as they may be, each made when it is asked for."""

    def __init__(self, part):
        self.epochs = part.recipe.epochs
        self.random = np.random.default_rng(int(part.key[:8], 16))

    def __missing__(self, name):
        sizes = {"log": self.epochs + 1, "a": 16, "b": 16}
        made = self.random.uniform(0.05, 0.5, sizes.get(name.split(".")[0], ()))
        self[name] = np.array(1000) if name == "parameters" else made
        return self[name]


@pytest.mark.parametrize("claim", ASKING, ids=lambda claim: claim.id)
def test_every_scale_of_trained_nets_can_be_judged(claim):
    def each(parts, device, *, weights=False):
        if weights or not all(isinstance(part, Training) for part in parts):
            pytest.skip("needs the nets themselves")
        return [Invented(part) for part in parts]

    for scale in {"single", "paper"} & set(claim.settings):
        given = {k: v for k, v in claim.settings[scale].items() if k != "scaled"}
        arrays = claim.compute(**given, each=each)
        assert claim.judge(arrays)
        claim.draw(Figure(), arrays)


# With a toy claim ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Square(Part):
    """One number squared; below zero it fails."""

    number: int = 0

    def arrays(self, device):
        if self.number == 13:
            os._exit(9)  # as a broken driver would
        if self.number < 0:
            raise ArithmeticError("is imaginary")
        return {"square": np.array(self.number**2.0)}


def squares(*, numbers, each=in_turn):
    parts = {"all": [Square(number=number) for number in numbers]}
    return {"squares": np.array([part["square"] for part in by_name(parts, each, "cpu")["all"]])}


def toy(numbers, **changes):
    given = {
        "id": "toy/squares",
        "source": "arithmetic",
        "says": "squares are not negative",
        "settings": {"short": {"numbers": numbers}},
        "compute": squares,
        "judge": lambda a: [Criterion("least", "≥ 0", a["squares"].min(), a["squares"].min() >= 0)],
        "draw": lambda figure, a: None,
    }
    return Claim(**{**given, **changes})


@pytest.fixture
def call(monkeypatch, tmp_path):
    """A verb on toy claims, their parts and records in a folder."""

    def run(claims, verb, *words):
        both = join(claims)
        monkeypatch.setattr(registry, "CLAIMS", both)
        folder = ["--parts", str(tmp_path / "parts")]
        if verb == "run":
            options = ["--records", str(tmp_path / "records"), "run", "--scale", "short", *folder]
        elif verb == "run_parts":
            options = ["parts", *folder, "run", "--scale", "short"]
        else:
            options = ["parts", *folder, verb]
        return command.main([*options, *words])

    return run


ELSEWHERE = {"device": "cuda", "hardware": "NVIDIA H100", "torch": "2.11.0+cu130", "commit": "9d7c",
             "dirty": False, "seconds": 7.0}  # fmt: skip


def made(number, square=None):
    """A finished part of another machine."""
    return Square(number=number), Finished(
        arrays={"square": np.array(number**2.0 if square is None else square)}, record=ELSEWHERE
    )


def test_parts_of_another_machine_are_judged_here(call, tmp_path):
    claim, there = toy([3, 1]), Store(tmp_path / "there")
    for number in (3, 1):
        there.write(*made(number))
    assert call([claim], "merge", str(tmp_path / "there")) == 0
    assert call([claim], "run", "--only-ready") == 0
    found = load(claim.id, "short", folder=tmp_path / "records")
    assert found.arrays["squares"].tolist() == [9, 1] and found.outcome == "holds"
    (group,) = found.run["parts"]
    assert group["parts"] == 2 and group["seconds"] == 14.0
    assert (group["hardware"], group["torch"]) == ("NVIDIA H100", "2.11.0+cu130")
    assert found.run["seconds"] >= 14.0


def test_a_claim_is_recorded_when_its_parts_are_there(call, tmp_path, capsys):
    claim = toy([1, 2, 3])
    Store(tmp_path / "parts").write(*made(2))
    assert call([claim], "run", "--only-ready") == 0
    assert "1 of 3 parts are done" in capsys.readouterr().out
    assert not record_path(claim.id, "short", tmp_path / "records").exists()
    assert call([claim], "run") == 0
    assert load(claim.id, "short", folder=tmp_path / "records").outcome == "holds"


def test_equal_parts_of_two_claims_are_one(call, tmp_path, capsys):
    both = [toy([1, 2]), toy([2, 3], id="toy/more")]
    assert call(both, "run") == 0
    assert len(list(tmp_path.glob("parts/cells/*/result.json"))) == 3
    assert call(both, "list", "--scale", "short") == 0
    out = capsys.readouterr().out
    assert "toy/squares (short), toy/more (short)" in out and out.count("done on") == 3


def test_a_training_is_listed_with_its_counted_seconds(call, capsys):
    claim = CLAIMS["noise_stability/table_1"]
    assert call([claim], "list", "--scale", "single") == 0
    lines = capsys.readouterr().out.splitlines()
    [line] = [line for line in lines if " simplified_net 20 residual seed 0 cifar10, " in line]
    row = time_table.time_table([request.part for request in requests_of(claim, "single")])[0]
    assert line.endswith(f" {row.seconds:.0f} s on an H100 (counted)")


def test_a_part_that_fails_does_not_stop_the_others(call, tmp_path, capsys):
    claim = toy([1, -1, 2])
    assert call([claim], "run_parts") == 1
    assert len(list(tmp_path.glob("parts/cells/*/result.json"))) == 2
    assert "is imaginary" in capsys.readouterr().err
    (failed,) = tmp_path.glob("parts/failed/*.json")
    assert "ArithmeticError: is imaginary" in failed.read_text()


def test_parts_in_processes_that_crash_touch_no_other(call, tmp_path, capsys):
    assert call([toy([1, 13, 2])], "run_parts", "--workers", "2") == 1
    assert len(list(tmp_path.glob("parts/cells/*/result.json"))) == 2
    out = capsys.readouterr().out
    assert (out.count("finished"), out.count("failed")) == (2, 1)


def test_a_part_that_another_process_computes_is_left_to_it(call, tmp_path, capsys):
    place = tmp_path / "parts" / "cells" / Square(number=1).key
    with store.locked(place / ".lock", "taken"):
        assert call([toy([1, 2])], "run_parts") == 0
    assert "another process computes Square" in capsys.readouterr().out
    assert len(list(tmp_path.glob("parts/cells/*/result.json"))) == 1


def test_parts_stop_when_the_time_is_over(call, tmp_path, capsys):
    assert call([toy([1, 2])], "run_parts", "--minutes", "0") == 0
    assert "2 parts not begun" in capsys.readouterr().out
    assert not list(tmp_path.glob("parts/cells/*/result.json"))


# Archives -----------------------------------------------------------------------------------------


def requested(numbers, weights=False):
    return [
        Request(part=Square(number=n), claim="toy/squares", scale="short", weights=weights)
        for n in numbers
    ]


@pytest.mark.parametrize("name", ["folder", "parts.tar", "parts.tar.gz"])
def test_what_is_packed_is_merged(tmp_path, name):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    for number in (1, 2):
        there.write(*made(number))
    target = tmp_path / name
    assert len(pack(requested([1, 2, 3]), target, there).keys) == 2
    found = merge(target, here)
    assert set(found.new) == {Square(number=1).key, Square(number=2).key} and not found.known
    assert here.find(Square(number=2)).record == ELSEWHERE
    assert merge(target, here).known == found.new


@pytest.mark.parametrize("name", ["../outside/net.json", "/outside.json", "cells/../../x"])
def test_an_archive_writes_nothing_outside(tmp_path, name):
    with tarfile.open(tmp_path / "parts.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = 2
        archive.addfile(member, io.BytesIO(b"{}"))
    with pytest.raises(ValueError, match="no archive that can be read .* outside"):
        merge(tmp_path / "parts.tar", Store(tmp_path / "here"))


def test_an_archive_brings_no_links(tmp_path):
    (tmp_path / "away").mkdir()
    there, target = Store(tmp_path / "there"), tmp_path / "parts.tar"
    there.write(*made(1))
    with tarfile.open(target, "w") as archive:
        link = tarfile.TarInfo("cells")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "away")
        archive.addfile(link)
        archive.add(there.own.folder / "cells", "cells")
    assert merge(target, Store(tmp_path / "here")).new and not list((tmp_path / "away").iterdir())


def test_another_result_of_one_part_is_refused(tmp_path):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    here.write(*made(2))
    there.write(*made(2, square=5.0))
    there.write(*made(1))
    with pytest.raises(ValueError, match="has another result than.*--replace"):
        merge(there.own.folder, here)
    assert here.find(Square(number=1)) is None  # all or nothing
    merge(there.own.folder, here, replace=True)
    assert here.find(Square(number=2)).arrays["square"] == 5.0
    assert here.find(Square(number=1)) is not None


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder, path: flip(next(path.parent.glob("*.safetensors"))), "sha256"),
        (lambda folder, path: flip(path), "manifest is damaged"),
        (lambda folder, path: path.parent.rename(path.parent.with_name("0" * 32)), "key is not"),
        (lambda folder, path: shutil.rmtree(folder / "cells"), "needs what pack wrote"),
    ],
    ids=["tensors", "manifest", "key", "empty"],
)
def test_damaged_and_foreign_archives_are_refused(tmp_path, harm, message):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    there.write(*made(1))
    harm(there.own.folder, next(there.own.folder.glob("cells/*/result.json")))
    with pytest.raises(ValueError, match=message):
        merge(there.own.folder, here)
    assert not (tmp_path / "here").exists()


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "parts.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"parts\.tar: is no archive"):
        merge(tmp_path / "parts.tar", Store(tmp_path / "here"))
    with pytest.raises(FileNotFoundError, match=r"other\.tar: there is no such"):
        merge(tmp_path / "other.tar", Store(tmp_path / "here"))


def test_weights_travel_where_a_claim_asks_for_them(tmp_path):
    part = training_of("plain", 5, 0, epochs=1, name="digits", samples=16, size=8, batch=8)
    there = Store(tmp_path / "there")
    there.compute(part, Execution())
    bare, full = tmp_path / "bare", tmp_path / "full"
    for target, weights in ((bare, False), (full, True)):
        pack([Request(part=part, claim="a/b", scale="short", weights=weights)], target, there)
    here = Store(tmp_path / "here")
    merge(bare, here)
    assert here.find(part) is not None and here.find(part, weights=True) is None
    assert merge(full, here).known  # the same result, whose weights are added
    equal(here.find(part, weights=True).arrays, there.find(part, weights=True).arrays)
