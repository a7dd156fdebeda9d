"""Edited, missing and stale records are noticed: by the manifest, by git, by computing again."""

import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from experiments import digest, history, manifest, provenance
from experiments.claim import Claim
from experiments.criteria import above, decided
from experiments.digest import Sources
from experiments.history import (
    AFTER_OTHERS,
    BEFORE,
    REPEATED,
    UNCOMMITTED,
    UNKNOWN,
    YOUNGER,
    commit_faults,
    has_failed,
    order,
)
from experiments.history_page import history_page
from experiments.manifest import unlisted, wordings, write_manifest
from experiments.recompute import _moved, differences, items, recompute
from experiments.record_checks import OLDER, TODAY, ages, all_faults, judging_ages
from experiments.records import MANIFEST, judge_again, record, results
from experiments.repository import Repository
from resid_theory.runtime import store

# A claim of squares whose exponent is three imports away.
FILES = {
    "heron/__init__.py": "",
    "heron/claims.py": "import numpy as np\n"
    "from experiments.criteria import Criterion\nfrom heron.squares import squares\n\n"
    "LEAST = 1.0\n\ndef compute(*, numbers):\n"
    "    return {'squares': squares(np.array(numbers))}\n\ndef judge(arrays):\n"
    "    least = arrays['squares'].min()\n"
    "    return [Criterion('least square', f'>= {LEAST}', least, least >= LEAST)]\n",
    "heron/squares.py": "from heron.powers import power\n\ndef squares(x):\n    return power(x)\n",
    "heron/powers.py": "from heron.exponent import EXPONENT\n\ndef power(x):\n"
    "    return x**EXPONENT\n",
    "heron/exponent.py": "EXPONENT = 2\n",
    "experiments/criteria.py": "ALPHA = 0.05\n\ndef decided(criteria):\n    return ALPHA\n",
}
NAME = "heron/squares.paper.json"


class Lab:
    """A repository with one claim, recorded from a clean tree and reported."""

    def __init__(self, root):
        self.root, self.folder = root, root / "experiments" / "records"
        self.path = self.folder / NAME

    def begin(self):
        for name, text in FILES.items():
            (self.root / name).parent.mkdir(exist_ok=True, parents=True)
            (self.root / name).write_text(text)
        self.git("init", "-q")
        self.commit()
        (self.root / "README").write_text("Squares.\n")
        self.commit()

    def git(self, *arguments):
        name = ("-c", "user.name=Heron", "-c", "user.email=heron@example.org")
        done = subprocess.run(
            ["git", *name, *arguments], cwd=self.root, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(self):
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "Go on")
        return self.git("rev-parse", "HEAD")

    def faults(self):
        found = all_faults(self.claims, self.folder, self.root)
        return {path.relative_to(self.folder).as_posix(): wrong for path, wrong in found.items()}

    def edit(self, change):
        content = store.read_json(self.path)
        change(content)
        store.write_json(self.path, content)

    def order(self, content=None):
        with Repository(self.root) as repository:
            return order(repository, self.claim, content or store.read_json(self.path))

    def change(self, name, old, new):
        text = (self.root / name).read_text()
        assert old in text
        (self.root / name).write_text(text.replace(old, new))


@contextmanager
def opened(root):
    """The lab in a folder, taken for this repository; made where there is none yet."""
    made, fresh = Lab(root), not (root / ".git").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        patch.setattr(provenance, "ROOT", root)
        patch.setattr(digest, "_TODAY", Sources(root))
        if fresh:
            made.begin()
        made.first = made.git("rev-list", "--max-parents=0", "HEAD")
        from heron import claims

        made.claim = Claim(
            id="heron/squares",
            source="Metrica I",
            says="Squares are at least one.",
            settings={"paper": {"numbers": [1.0, 2.0]}, "short": {"numbers": [1.0]}},
            compute=claims.compute,
            judge=claims.judge,
            draw=lambda figure, arrays: None,
        )
        made.claims = {made.claim.id: made.claim}
        if fresh:
            record(made.claim, "paper", folder=made.folder)
            write_manifest(made.claims, made.folder)
            made.commit()
        yield made
    for name in [name for name in sys.modules if name.partition(".")[0] == "heron"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def first_lab(tmp_path_factory):
    root = tmp_path_factory.mktemp("lab")
    with opened(root) as made:
        assert not made.faults() and not unlisted(made.claims, made.folder)
    return root


@pytest.fixture
def lab(first_lab, tmp_path):
    shutil.copytree(first_lab, tmp_path, dirs_exist_ok=True)
    with opened(tmp_path) as made:
        yield made


def invent(lab, squares=(4.0, 9.0)):
    """Other arrays, with their checksum and what the judge says of them."""
    arrays = {"squares": np.array(squares)}
    sha256 = store.write_arrays(lab.path.with_suffix(".npz"), arrays)
    lab.edit(lambda c: c["arrays"].update(sha256=sha256))
    (criterion,) = lab.claim.judge(arrays)
    lab.edit(lambda c: c["criteria"][0].update(measured=criterion.measured))


def delete(lab):
    lab.path.unlink()
    lab.path.with_suffix(".npz").unlink()


CHEATS = {
    "verdict": lambda lab: lab.edit(lambda c: c["criteria"][0].update(holds=False)),
    "measured": lambda lab: lab.edit(lambda c: c["criteria"][0].update(measured="2")),
    "criterion": lambda lab: lab.edit(lambda c: c["criteria"][0].update(criterion="least")),
    "threshold": lambda lab: lab.edit(lambda c: c["criteria"][0].update(expected=">= 0.5")),
    "setting": lambda lab: lab.edit(lambda c: c["settings"].update(numbers=[2.0, 3.0])),
    "array": lambda lab: store.write_arrays(
        lab.path.with_suffix(".npz"), {"squares": np.array([1.0, 5.0])}
    ),
    "arrays_and_all_that_follows": invent,
    "commit": lambda lab: lab.edit(lambda c: c["run"].update(commit=lab.first)),
    "unknown_commit": lambda lab: lab.edit(lambda c: c["run"].update(commit="0" * 40)),
    "commit_of_the_criterion": lambda lab: lab.edit(lambda c: c["judged"].update(commit=lab.first)),
    "device": lambda lab: lab.edit(lambda c: c["run"].update(device="cuda")),
    "hardware": lambda lab: lab.edit(lambda c: c["run"].update(hardware="NVIDIA H100")),
    "seconds": lambda lab: lab.edit(lambda c: c["run"].update(seconds=1e6)),
    "code": lambda lab: lab.edit(lambda c: c["run"].update(code="0" * 16)),
    "deleted": delete,
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_an_edited_record_is_noticed(lab, cheat):
    CHEATS[cheat](lab)
    assert NAME in lab.faults()
    if cheat != "array":  # beside an untouched record
        with pytest.raises(ValueError, match=r"squares\.paper\.json is"):
            write_manifest(lab.claims, lab.folder)


@pytest.mark.parametrize("cheat", ["device", "arrays_and_all_that_follows", "deleted"])
@pytest.mark.parametrize("committed", [False, True], ids=["rewritten", "committed"])
def test_with_the_manifest_rewritten_git_knows(lab, cheat, committed):
    CHEATS[cheat](lab)
    (lab.folder / MANIFEST).unlink()
    write_manifest(lab.claims, lab.folder)
    if committed:
        lab.commit()
        (lab.root / "README").write_text("Cubes.\n")
        lab.commit()
    assert any(word in " ".join(lab.faults()[NAME]) for word in ("git", "commit"))


@pytest.mark.parametrize(("holds", "noticed"), [(True, False), (False, True)])
def test_a_record_may_go_where_its_result_is_told(lab, monkeypatch, holds, noticed):
    told = store.read_json(lab.path)["criteria"][0] | {"holds": holds}
    told.pop("test")
    gone = {"claim": "heron/squares", "scale": "paper", "before": [told], "after": None}
    for module in (history, manifest):
        monkeypatch.setattr(module, "changes", lambda: [gone])
    delete(lab)
    lab.commit()
    assert (NAME in lab.faults()) == noticed


def test_a_missing_manifest_and_an_added_record_are_noticed(lab):
    record(lab.claim, "short", folder=lab.folder)
    assert list(unlisted(lab.claims, lab.folder)) == [lab.folder / "heron/squares.short.json"]
    (lab.folder / MANIFEST).unlink()
    assert list(lab.faults()) == [MANIFEST]


def test_what_is_invented_throughout_is_noticed_by_computing_again(lab):
    ((item, fault, told),) = recompute(items(lab.claims, lab.folder), minutes=1, seed=0)
    assert (item.name, fault, told) == ("heron/squares (paper)", "", "equal to the last bit")
    former = results(store.read_json(lab.path))
    invent(lab)
    lab.edit(lambda c: c.update(earlier=former))  # as if it had been run again
    write_manifest(lab.claims, lab.folder)
    lab.commit()
    assert not lab.faults()
    ((_, fault, _),) = recompute(items(lab.claims, lab.folder), minutes=1, seed=0)
    assert fault == "differs by more than 1e-06: squares by 5.6e-01"
    lab.edit(lambda c: c["run"].update(seconds=61.0))
    assert not list(recompute(items(lab.claims, lab.folder), minutes=1, seed=0))


# Words, parts, devices ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change", [{"kind": "law"}, {"source": "Metrica II"}, {"says": "Squares are."}], ids=str
)
def test_other_words_of_a_claim_are_noticed_and_kept(lab, change):
    ((name, word),) = change.items()
    was = getattr(lab.claim, name)
    lab.claims = {lab.claim.id: replace(lab.claim, **change)}
    assert unlisted(lab.claims, lab.folder)[lab.folder / lab.claim.id].startswith(
        f"{name} was {was!r}, is {word!r}; 'python -m experiments report'"
    )
    write_manifest(lab.claims, lab.folder)
    assert not unlisted(lab.claims, lab.folder) and not lab.faults()
    page = history_page(lab.claims, lab.folder, [], wordings(lab.folder))
    assert f"**Words**: {name} from {was!r} to {word!r}." in page
    lab.commit()
    (lab.folder / MANIFEST).unlink()  # forgets the former words
    write_manifest(lab.claims, lab.folder)
    assert lab.faults() == {MANIFEST: ["lost an entry of the committed one"]}
    lab.commit()
    assert "lost an entry in commit" in " ".join(lab.faults()[MANIFEST])


def test_a_claim_does_not_go_without_a_word(lab):
    lab.claims = {**lab.claims, "heron/cubes": replace(lab.claim, id="heron/cubes")}
    write_manifest(lab.claims, lab.folder)
    del lab.claims["heron/cubes"]
    assert list(lab.faults()) == ["heron/cubes"]


@pytest.mark.parametrize("harm", ["edited", "tensor", "deleted", "added"])
@pytest.mark.parametrize("place", ["finished/cells/0/result.json", "checkpoints/net.json"])
def test_an_edited_part_is_noticed(lab, place, harm):
    path = lab.folder.parent / place
    store.write_checkpoint(path, {"weight": torch.ones(1)}, {"seconds": 1.0})
    write_manifest(lab.claims, lab.folder)
    lab.commit()
    assert not unlisted(lab.claims, lab.folder)
    {
        "edited": lambda: path.write_text(path.read_text().replace("1.0", "2.0")),
        "tensor": lambda: next(path.parent.glob("*.safetensors")).write_bytes(b"0"),
        "deleted": path.unlink,
        "added": lambda: store.write_checkpoint(path.with_name("b.json"), {}, {}),
    }[harm]()
    if harm == "added":
        assert list(unlisted(lab.claims, lab.folder)) == [path.with_name("b.json")]
        return
    found = all_faults(lab.claims, lab.folder, lab.root)
    assert list(found) == [path]
    if harm != "tensor":
        (lab.folder / MANIFEST).unlink()
        write_manifest(lab.claims, lab.folder)
        found = all_faults(lab.claims, lab.folder, lab.root)
        assert found[lab.folder / MANIFEST] == ["lost an entry of the committed one"]


def test_a_later_result_of_another_device_needs_parts_that_can_be_checked(lab):
    former = results(store.read_json(lab.path))
    invent(lab)
    lab.edit(lambda c: c.update(earlier=former))
    lab.edit(lambda c: c["run"].update(device="cuda"))
    write_manifest(lab.claims, lab.folder)
    lab.commit()
    assert lab.faults() == {
        NAME: ["was computed on cuda and has no parts, so that nobody can check it"]
    }
    (item,) = items(lab.claims, lab.folder)
    assert item.reason == "it was computed on cuda"
    assert not list(recompute([item], minutes=1, seed=0))


def test_a_change_of_the_shared_tests_ages_the_judging(lab, monkeypatch):
    assert judging_ages(lab.claims, lab.folder, lab.root) == {lab.path: TODAY}
    assert lab.order() == BEFORE
    lab.change("experiments/criteria.py", "0.05", "0.5")
    lab.commit()
    monkeypatch.setattr(digest, "_TODAY", Sources(lab.root))
    assert judging_ages(lab.claims, lab.folder, lab.root) == {lab.path: OLDER}
    assert ages(lab.claims, lab.folder) == {lab.path: TODAY}
    assert lab.order() == YOUNGER
    run = store.read_json(lab.path)["run"]
    judge_again(lab.claim, "paper", folder=lab.folder)
    assert judging_ages(lab.claims, lab.folder, lab.root) == {lab.path: TODAY}
    assert store.read_json(lab.path)["run"] == run and not lab.faults()
    lab.edit(lambda c: c["judged"].update(code="0" * 16))
    assert "the code that judged it is not that of its commit" in " ".join(lab.faults()[NAME])


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("shift", "moved"), [(0.05, False), (5.0, True)])
def test_estimates_of_two_machines_agree_within_bounds(size, shift, moved):
    sample = np.array([1.0, 2.0, 3.0])[:size]
    (then,), (now,) = (decided([above("c", s, source="s")]) for s in (sample, sample + shift))
    assert now.outcome == then.outcome
    assert _moved(then, now) is moved and _moved(then, None)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("heron/claims.py", "np.array(numbers)", "-np.array(numbers)"),
        ("heron/exponent.py", "= 2", "= 4"),
    ],
    ids=["compute", "callee_three_imports_away"],
)
def test_a_record_of_other_code_is_older(lab, monkeypatch, file, old, new):
    assert ages(lab.claims, lab.folder) == {lab.path: TODAY}
    lab.change(file, old, new)
    monkeypatch.setattr(digest, "_TODAY", Sources(lab.root))
    assert ages(lab.claims, lab.folder) == {lab.path: OLDER}


def test_a_run_keeps_the_former_results(lab):
    former = results(store.read_json(lab.path))
    record(lab.claim, "paper", folder=lab.folder)
    judge_again(lab.claim, "paper", folder=lab.folder)
    content = store.read_json(lab.path)
    assert len(content["earlier"]) == 2 and content["earlier"][:1] == former
    assert not lab.faults()
    assert list(unlisted(lab.claims, lab.folder)) == [lab.path]
    write_manifest(lab.claims, lab.folder)
    lab.commit()
    assert not lab.faults() and not unlisted(lab.claims, lab.folder)
    lab.edit(lambda c: c["earlier"].pop())
    assert NAME in lab.faults()


# Before or after the run -------------------------------------------------------------------------


def test_the_order_of_criterion_and_run(lab, monkeypatch):
    content = store.read_json(lab.path)
    assert lab.order() == BEFORE
    assert lab.order({**content, "run": {**content["run"], "dirty": True}}) == UNCOMMITTED
    assert lab.order({**content, "run": {**content["run"], "commit": None}}) == UNKNOWN
    former = {**results(content)[0], "criteria": [{**content["criteria"][0], "expected": ">= 2"}]}
    assert lab.order({**content, "earlier": [former]}) == REPEATED
    elsewhere = {**former, "settings": {"numbers": [5.0]}}
    assert lab.order({**content, "earlier": [elsewhere]}) == AFTER_OTHERS
    assert lab.order({**content, "earlier": results(content)}) == BEFORE
    failed = [{**content["criteria"][0], "holds": False}]
    other = {**results(content)[0], "criteria": failed}
    assert lab.order({**content, "earlier": [other]}) == BEFORE  # judged by the same code
    strange = {**other, "judged": {"commit": "0" * 40}}
    assert lab.order({**content, "earlier": [strange]}) == REPEATED
    assert not has_failed({**content, "earlier": [other]})
    assert has_failed({**content, "earlier": [{**other, "settings": {"numbers": [5.0]}}]})
    lab.change("heron/claims.py", "LEAST = 1.0", "LEAST = 0.5")
    lab.commit()
    monkeypatch.setattr(digest, "_TODAY", Sources(lab.root))
    assert lab.order() == YOUNGER


@pytest.mark.parametrize(
    ("run", "fault"),
    [
        ({"commit": "0" * 40}, "none of this history"),
        ({"code": "0" * 16}, "not that of its commit"),
    ],
    ids=["commit", "code"],
)
def test_a_run_names_an_ancestor_with_the_code_that_it_ran_through(lab, run, fault):
    content = store.read_json(lab.path)
    with Repository(lab.root) as repository:
        assert not commit_faults(repository, lab.claim, content)
        (told,) = commit_faults(repository, lab.claim, {**content, "run": content["run"] | run})
    assert fault in told


def test_a_shallow_clone_tells_nothing(lab, tmp_path):
    lab.git("clone", "-q", "--depth", "1", f"file://{lab.root}", str(tmp_path / "clone"))
    with Repository(tmp_path / "clone") as repository:
        assert not repository.is_whole
        assert order(repository, lab.claim, store.read_json(lab.path)) == UNKNOWN


def test_history_lists_both_results(lab):
    before = store.read_json(lab.path)
    assert "##" not in history_page(lab.claims, lab.folder, [], {})
    former = results(before)[0]
    former["criteria"] = [{**former["criteria"][0], "expected": ">= 2", "holds": False}]
    former["settings"] = {"numbers": [1.0, 3.0]}
    lab.edit(lambda c: c.update(earlier=[former]))
    told = {
        **{"claim": "heron/gone", "scale": "quick", "commit": "a" * 40, "date": "2026-11-21"},
        **{"what": "Taken back", "settings": {}, "before": former["criteria"], "after": None},
    }
    page = history_page(lab.claims, lab.folder, [told], {})
    assert "Settings: numbers from [1.0, 3.0] to [1.0, 2.0]." in page
    assert "| least square | >= 2 | **fails**: 1 | not judged |" in page
    assert "| least square | >= 1.0 | not judged | holds: 1 |" in page
    assert "## heron/gone\n\n**quick scale, 2026-11-21, aaaaaaaaaaaa**: Taken back." in page


def test_differences_of_arrays():
    then = {"a": np.array([1.0, np.nan, np.inf]), "b": np.array([1, 2])}
    assert not differences(then, {name: array.copy() for name, array in then.items()})
    assert differences(then, {**then, "a": np.array([1.5, np.nan, np.inf])}) == "a by 5.0e-01"
    assert not differences(then, {**then, "a": np.array([1.5, np.nan, np.inf])}, bound=0.5)
    assert differences(then, {**then, "a": np.array([1.0, 2.0, np.inf])}, bound=0.5) == "a by inf"
    assert "is (3,)" in differences(then, {**then, "b": np.array([1, 2, 3])})
    assert "arrays were" in differences(then, {"a": then["a"]})
