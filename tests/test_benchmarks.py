"""Every benchmark can still be started: what it imports is there."""

import json
import runpy
import sys
from pathlib import Path

import pytest

from benchmarks.transformers_nets import DOCS, page

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
HELPERS = {"libraries", "routed_nets", "shortcut_nets", "timing"}
SCRIPTS = sorted({path.stem for path in FOLDER.glob("*.py")} - HELPERS)


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # one script imports another
def test_a_benchmark_explains_itself(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert end.value.code == 0 and capsys.readouterr().out.startswith("usage:")


def test_the_page_of_models_says_what_was_measured():
    results = json.loads((DOCS / "transformers.json").read_text(encoding="utf-8"))
    assert (DOCS / "transformers.md").read_text(encoding="utf-8") == page(results)
