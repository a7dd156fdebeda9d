"""Claims in parts: a sweep finds what a computation in one piece finds, to the last bit."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from experiments import __main__ as command
from experiments import registry
from experiments.claim import Claim, Verdict, load, measure, record_path
from experiments.demystifying_resnet import preactivation
from experiments.parts import Part, Swept, UnfinishedError, by_name, in_turn
from experiments.registry import CLAIMS, join

DESCENTS = {"samples": 60, "depths": [12], "rates": [-1, 0, 0.5], "seeds": 2, "epochs": 3}
IMAGES = {"seeds": [0, 3], "epochs": 1, "data": "digits", "samples": 32, "size": 8, "batch": 16}
TINY = {
    "figure_4_digits": {"samples": 300, "depths": [3, 6], "seeds": 2},
    "figure_7_digits": DESCENTS,
    "figure_8_digits": DESCENTS,
    "figure_9_surrogate_digits": DESCENTS,
    "figure_9": {"depths": [10], "training": IMAGES},
}


def swept(folder, executor="serial", **options):
    return Swept(folder, executor=executor, progress=False, **options)


def equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], strict=True, err_msg=name)


@pytest.fixture
def computed(monkeypatch):
    """A figure's arrays at a tiny scale."""
    monkeypatch.setattr(preactivation, "SHORTCUT_DEPTHS", (1, 2))  # 3 and 4 need nets of 40 layers

    def compute(figure, **keywords):
        claim = CLAIMS[f"demystifying_resnet/{figure}"]
        given = {**claim.settings[list(claim.settings)[-1]], **TINY[figure]}
        given.pop("scaled", None)
        return claim.compute(**given, **keywords)

    return compute


@pytest.mark.parametrize("figure", TINY)
def test_a_sweep_finds_what_one_piece_does(figure, computed, tmp_path):
    each = swept(tmp_path)
    equal(computed(figure, each=each), computed(figure))
    assert each.count == len(list(tmp_path.glob("cells/*/result.json"))) > 1


def test_worker_processes_find_the_same(computed, tmp_path):
    arrays = computed("figure_7_digits", each=swept(tmp_path, "process", workers=1))
    equal(arrays, computed("figure_7_digits"))


# With a toy claim ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Square(Part):
    """One number squared; below zero it fails."""

    number: int = 0

    def arrays(self, device):
        if self.number < 0:
            raise ArithmeticError("is imaginary")
        return {"square": np.array(self.number**2.0)}


def squares(*, numbers, each=in_turn):
    parts = {"all": [Square(number=number) for number in numbers]}
    return {"squares": np.array([part["square"] for part in by_name(parts, each, "cpu")["all"]])}


def toy(numbers, **changes):
    return Claim(
        id="toy/squares",
        source="arithmetic",
        says="squares are not negative",
        settings={"quick": {"numbers": numbers}},
        compute=squares,
        judge=lambda a: [Verdict("least", "≥ 0", a["squares"].min(), a["squares"].min() >= 0)],
        draw=lambda figure, a: None,
    )


@pytest.fixture
def call(monkeypatch, tmp_path):
    """The verb ``run`` on a toy claim, its sweep and records in a folder."""

    def run(claim, *words):
        monkeypatch.setattr(registry, "CLAIMS", join([claim]))
        where = ["--records", str(tmp_path / "records"), "run", "--sweep", str(tmp_path / "sweep")]
        return command.main([*where, "--executor", "serial", *words])

    return run


def test_the_record_of_a_sweep_is_that_of_one_piece(call, tmp_path):
    claim = toy([3, 1, 2])
    assert call(claim) == 0
    found, direct = load(claim.id, "quick", folder=tmp_path / "records"), measure(claim, "quick")
    equal(found.arrays, direct.arrays)
    assert (found.verdicts, found.settings) == (direct.verdicts, direct.settings)
    assert found.run["parts_of_a_sweep"] == 3 and "parts_of_a_sweep" not in direct.run


def test_the_seconds_are_those_of_all_parts(tmp_path):
    claim, each = toy([1, 2]), swept(tmp_path)
    first = measure(claim, "quick", each=each)
    work = each.work
    again = measure(claim, "quick", each=each)
    assert each.work == work > 0  # found, not computed again
    assert first.run["seconds"] >= round(work, 3) and again.run["seconds"] >= round(work, 3)


def test_shards_are_judged_when_all_are_there(call, tmp_path, capsys):
    parts = [Square(number=number) for number in range(3)]
    with pytest.raises(UnfinishedError, match="1 of 3 parts are done"):
        swept(tmp_path, shard="0/3")(parts, "cpu")
    claim = toy([0, 1, 2, 3, 4])
    assert call(claim, "--shard", "0/2") == 0
    assert "3 of 5 parts are done" in capsys.readouterr().out
    assert not record_path(claim.id, "quick", tmp_path / "records").exists()
    assert call(claim, "--shard", "1/2") == 0
    assert load(claim.id, "quick", folder=tmp_path / "records").passed


def test_a_part_that_fails_is_named_and_leaves_no_record(call, tmp_path, capsys):
    claim = toy([1, -1])
    assert call(claim) == 1
    said = capsys.readouterr().out
    assert "1 of 2 parts are done" in said and "number=-1: ArithmeticError: is imaginary" in said
    assert not record_path(claim.id, "quick", tmp_path / "records").exists()


def test_other_code_is_another_sweep(call, tmp_path, monkeypatch):
    claim, seen = toy([1]), []
    for answer in (("a" * 40, False), ("a" * 40, True), ("b" * 40, False), (None, None)):
        monkeypatch.setattr(command, "commit_of_code", lambda answer=answer: answer)
        assert call(claim) == 0
        seen.append({path.name for path in (tmp_path / "sweep" / claim.id).iterdir()})
    assert seen[-1] == {"a" * 12, "a" * 12 + "-changed", "b" * 12, "unknown"}


def test_a_claim_without_parts_is_computed_as_ever(call, tmp_path):
    whole = replace(toy([2]), compute=lambda *, numbers: squares(numbers=numbers))
    assert call(whole) == 0
    assert load(whole.id, "quick", folder=tmp_path / "records").passed
    assert not (tmp_path / "sweep").exists()


def test_options_of_a_sweep_need_one(capsys):
    with pytest.raises(SystemExit):
        command.main(["run", "--shard", "0/2"])
    assert "--shard: apply to a sweep, need --sweep FOLDER" in capsys.readouterr().err
