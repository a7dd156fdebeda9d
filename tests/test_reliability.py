"""The quick part of the reliability table holds, its page is the whole one, nothing is run."""

import ast
from pathlib import Path

import pytest
import torch

from benchmarks import damage, hostile, poison, reliability, untouched, wrong_calls
from benchmarks.outcome import judged, refused
from resid_theory.runtime import store

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def single_precision():
    """The calls are those of a user, whose default is float32."""
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "part", [damage, poison, hostile, untouched, wrong_calls], ids=lambda part: part.__name__
)
@pytest.mark.filterwarnings("ignore")  # of what the faults stir up in torch and Pillow
def test_no_trial_is_lost(part):
    rows = part.rows(quick=True)
    assert rows and all(row.trials >= 5 for row in rows)
    assert not [wrong for row in rows for wrong in row.lost]


def test_there_are_enough_of_each():
    assert len(hostile.MAKERS) >= 30
    assert len(wrong_calls.API) + len(wrong_calls.CLI) >= 60
    assert len(untouched.MEASURES) >= 30


def test_the_page_is_what_was_kept():
    if not reliability.KEPT.exists():
        pytest.skip("nothing was measured yet: python -m benchmarks.reliability")
    kept = store.read_json(reliability.KEPT)
    assert reliability.PAGE.read_text(encoding="utf-8") == reliability.page(kept)


# The machinery itself ----------------------------------------------------------------------------


def raising():
    raise KeyError("a fault of the library")


def test_a_lost_trial_is_counted():
    row = judged("f", "p", [("a", lambda: None), ("b", lambda: "wrong"), ("c", raising)])
    assert row.trials == 3
    assert row.lost == ("b: wrong", "c: KeyError: 'a fault of the library'")


@pytest.mark.parametrize(
    ("call", "wrong"),
    [
        (lambda: 1, "was not refused"),
        (raising, "raised KeyError"),
        (lambda: int("x"), "does not say ['number']"),
        (lambda: ast.literal_eval("a\n" * 2), "raised SyntaxError"),
    ],
    ids=["accepted", "other", "unsaid", "syntax"],
)
def test_a_refusal_is_judged(call, wrong):
    assert refused(call, says=["number"]).startswith(wrong)


def test_what_a_measurement_changes_is_seen():
    def spoil(net, _x, _y):
        net[1].running_mean.add_(1)
        net.eval()
        torch.rand(1)

    assert untouched.unchanged(untouched.net, spoil, True) == (
        "changed ['tensors', 'training', 'torch']"
    )


# No file is run ----------------------------------------------------------------------------------


def calls(tree):
    """Every call by its dotted name, with its keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            yield node.lineno, ast.unparse(node.func), words


def dangers(text):
    """Calls that run what they are given, in words."""
    for line, name, words in calls(ast.parse(text)):
        last = name.rpartition(".")[2]
        if name in ("eval", "exec", "compile", "os.system", "os.popen"):
            yield f"line {line}: {name}"
        if last in ("load", "loads", "Unpickler") and "pickle" in name.partition(".")[0].lower():
            yield f"line {line}: {name}"
        if name == "torch.load" and words.get("weights_only") != "True":
            yield f"line {line}: torch.load without weights_only=True"
        if name == "np.load" and words.get("allow_pickle") != "False":
            yield f"line {line}: np.load without allow_pickle=False"
        if last in ("extractall", "extract") and words.get("filter") != "'data'":
            yield f"line {line}: {last} without filter='data'"
        if words.get("shell") == "True":
            yield f"line {line}: shell=True"


def sources():
    folders = ("resid_theory", "experiments", "benchmarks", "docs")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return sorted([*found, ROOT / "bootstrap.py", ROOT / "conftest.py"])


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path):
    assert not list(dangers(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "code",
    [
        "pickle.load(f)",
        "cPickle.loads(b)",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "archive.extractall()",
        "tarfile.open(p).extractall(q, filter='fully_trusted')",
        "eval(x)",
        "exec(x)",
        "subprocess.run(c, shell=True)",
        "os.system(c)",
    ],
)
def test_each_danger_is_seen(code):
    assert len(list(dangers(code))) == 1


def test_what_is_safe_is_let_pass():
    safe = (
        "net.eval()\ntorch.load(p, weights_only=True)\nre.compile(x)\na.extractall(filter='data')"
    )
    assert not list(dangers(safe))
