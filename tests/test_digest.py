"""The digest of code changes with what is computed, and with nothing else."""

import subprocess
import sys
from functools import partial

import pytest

from experiments.digest import ROOT, Sources, code_digest
from experiments.record_checks import OLDER, TODAY, UNKNOWN, ages
from experiments.records import record, record_path
from experiments.registry import CLAIMS
from resid_theory.runtime import store

FILES = {
    "lib/__init__.py": "import lazy_loader\n__getattr__ = lazy_loader.attach_stub(__name__, '')\n",
    "lib/__init__.pyi": "from . import room as room\nfrom .room import spectrum as spectrum\n"
    "from .other import unrelated as unrelated\n",
    "lib/room/__init__.py": "from lib.room.solve import spectrum\n__all__ = ['spectrum']\n",
    "lib/room/solve.py": '"""Solve."""\nimport numpy as np\nfrom lib.room.table import METHODS\n\n'
    'def spectrum(a: int) -> float:\n    """Solve."""\n    return METHODS["fast"](np.abs(a))\n',
    "lib/room/table.py": "METHODS = {}\nRATES = {'low': 1, 'high': 2}\n\nclass Fast:\n"
    "    def go(self):\n        return limit() + RATES['low']\n\n"
    "def limit():\n    from lib.room.deep import LIMIT\n    return LIMIT + len(STEPS)\n\n"
    "METHODS['fast'] = Fast\nSTEPS = []\nSTEPS.append(1)\n",
    "lib/room/deep.py": "LIMIT = 3\nUNUSED = [4]\nUNUSED.append(4)\n",
    "lib/other.py": "import lib\n\ndef unrelated():\n    return getattr(lib, 'spectrum')\n",
    "paper.py": "import lib as rt\n\ndef compute():\n    return rt.spectrum(1)\n\n"
    "def by_module():\n    return rt.room.spectrum(2)\n",
}


def digest(tmp_path, call="paper:compute", **changes):
    """Digest in a copy of the files, after changes ``old -> new`` in files by path."""
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for old, new in changes.get(name, {}).items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text)
    return Sources(folder).digest(call)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("lib/room/deep.py", "= 3", "= 5"),  # three imports away, one of them in a function
        ("lib/room/table.py", "'low': 1", "'low': 1.0"),
        ("lib/room/table.py", ".append(1)", ".append(2)"),  # a statement that changes a value
        ("lib/room/table.py", "METHODS['fast'] = Fast", "METHODS['fast'] = limit"),
        ("lib/room/table.py", "RATES['low']", "-RATES['low']"),  # a method
        ("lib/room/solve.py", "import numpy as np", "import torch as np"),  # another library
        ("lib/__init__.pyi", "room import spectrum", "other import unrelated as x, spectrum"),
    ],
)
def test_what_is_computed_changes_it(tmp_path, file, old, new):
    assert digest(tmp_path) != digest(tmp_path, **{file: {old: new}})


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("lib/room/solve.py", '"""Solve."""', '"""Decompose."""'),
        ("lib/room/solve.py", "return METHODS", "# why\n    return  METHODS"),
        ("lib/room/solve.py", "(a: int) -> float", '(a: "complex")'),
        ("lib/room/deep.py", "[4]", "[5]"),
        ("lib/room/deep.py", "append(4)", "append(5)"),
        ("lib/room/deep.py", "LIMIT = 3\nUNUSED = [4]", "UNUSED = [4]\nLIMIT = 3"),
        ("lib/other.py", "'spectrum'", "'room'"),
    ],
)
def test_nothing_else_changes_it(tmp_path, file, old, new):
    assert digest(tmp_path) == digest(tmp_path, **{file: {old: new}})


def test_statements_in_quotes_are_a_text(tmp_path):
    quoted = "LIMIT = '''\n\n\nLIMIT = {}\n\n\n'''\n"
    made = [{"lib/room/deep.py": {"LIMIT = 3\n": quoted.format(n)}} for n in (3, 4)]
    assert digest(tmp_path, **made[0]) != digest(tmp_path, **made[1])


def test_modules_that_papers_share_may_count_by_name():
    judge = "def judge():\n    return near(told(F))\n"
    files = {
        "experiments/criteria.py": "def near():\n    return 1\n",
        "experiments/trainings.py": "def told():\n    return 1\n",
        "experiments/paper/a.py": "from experiments.criteria import near\n"
        "from experiments.trainings import told\n"
        f"from experiments.paper.b import F\n{judge}",
        "experiments/paper/b.py": "F = 2\n",
    }
    call = "experiments.paper.a:judge"

    def own(**changes):
        given = {**files, **changes}
        return Sources(given.get).digest(call, own=True)

    assert own() == own(**{"experiments/trainings.py": "def told():\n    return 3\n"})
    assert own() != own(**{"experiments/criteria.py": "def near():\n    return 3\n"})
    assert own() != own(**{"experiments/paper/b.py": "F = 3\n"})
    assert Sources(files.get).digest(call) != own()


def test_a_file_may_move(tmp_path):
    before = digest(tmp_path)
    moved = {"lib/room/table.py": {"from lib.room.deep": "from lib.other"}}
    assert before != digest(tmp_path, **moved, **{"lib/other.py": {"import lib\n": "LIMIT = 4\n"}})
    assert before == digest(tmp_path, **moved, **{"lib/other.py": {"import lib\n": "LIMIT = 3\n"}})


def test_exchanged_constants_change_it(tmp_path):
    exchanged = {"LIMIT = 3": "LIMIT = [UP, LOW]\nUP = 1\nLOW = 2"}
    other = {"LIMIT = 3": "LIMIT = [UP, LOW]\nUP = 2\nLOW = 1"}
    file = "lib/room/deep.py"
    assert digest(tmp_path, **{file: exchanged}) != digest(tmp_path, **{file: other})


def test_a_module_as_a_value_counts_whole(tmp_path):
    changed = {"lib/room/deep.py": {"= 3": "= 5"}}
    call = "lib.other:unrelated"  # getattr(lib, ...)
    assert digest(tmp_path, call) != digest(tmp_path, call, **changed)
    assert digest(tmp_path, "paper:by_module") != digest(tmp_path, "paper:by_module", **changed)


def test_callables_of_this_repository():
    table = CLAIMS["demystifying_resnet/figure_3"].compute
    sources = Sources(ROOT)
    assert code_digest(table) == sources.digest(f"{table.__module__}:{table.__qualname__}")
    assert code_digest(partial(table, seeds=[1])) != code_digest(partial(table, seeds=[2]))
    assert code_digest(lambda: 0) is None
    assert code_digest(CLAIMS.__class__) is None  # dict
    with pytest.raises(ValueError, match="needs a name that a module in .* defines"):
        sources.digest("experiments.claim:missing")


def test_the_age_of_the_code_of_a_record(tmp_path):
    claim = CLAIMS["demystifying_resnet/lemmas_3_and_4"]
    path = record_path(claim.id, "quick", tmp_path)
    record(claim, "quick", folder=tmp_path)
    content, today = store.read_json(path), code_digest(claim.compute)
    assert content["run"]["code"] == today
    for code, age in ((today, TODAY), ("0" * 16, OLDER), (None, UNKNOWN)):
        store.write_json(path, {**content, "run": {**content["run"], "code": code}})
        assert ages(CLAIMS, tmp_path) == {path: age}
    parts = [{"age": "older code"}]
    store.write_json(path, {**content, "run": {**content["run"], "parts": parts}})
    assert ages(CLAIMS, tmp_path) == {path: OLDER}


def test_torch_is_not_needed():
    code = (
        "import runpy, sys; made = runpy.run_path('experiments/digest.py')['Sources']()\n"
        "print(made.digest('experiments.demystifying_resnet.norms:compute_figure_3'))\n"
        "assert not {'torch', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == code_digest(CLAIMS["demystifying_resnet/figure_3"].compute)
