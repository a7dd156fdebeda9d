"""Trials are counted, broken promises listed, and the committed page is that of its results."""

import pytest
import trials

from resid_theory.runtime import store

TOY = """
import pytest

@pytest.mark.reliability("fault", "promise", quick=1, full=3)
def test_toy(trial, record_property):
    record_property("kills", trial)
    assert trial < 2, "lost"

@pytest.mark.reliability("long", "promise", full=2)
def test_long(trial):
    pass
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the toys, full or quick; the rows that were written."""
    monkeypatch.setattr(trials, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(trials, "PAGE", tmp_path / "page.md")
    (tmp_path / "test_toy.py").write_text(TOY)

    def run(full):
        plugin = trials.Plugin(full)
        options = ["-c", "/dev/null", "-p", "no:cacheprovider", "-o", "markers=reliability"]
        options += ["--import-mode", "importlib", "--rootdir", str(tmp_path)]
        options += ["-p", "no:unraisableexception"]  # which searches all objects for garbage
        pytest.main([*options, str(tmp_path)], plugins=[plugin])
        return plugin.rows

    return run


def test_trials_are_counted_and_written(run):
    run(full=True)
    rows = store.read_json(trials.RESULTS)
    assert [row["trials"] for row in rows.values()] == [3, 2]
    (broken,) = rows["fault"]["broken"]
    assert broken.startswith("test_toy[2]: AssertionError: lost")
    assert rows["fault"]["note"] == "3 kills, more than one in 1 trials"
    page = trials.PAGE.read_text()
    assert "| fault | promise | 3 | 1 |" in page and f"- fault: {broken}\n" in page


def test_quick_runs_are_short_and_write_nothing(run):
    assert [row["trials"] for row in run(full=False).values()] == [1]
    assert not trials.RESULTS.exists() and not trials.PAGE.exists()


def test_the_committed_page_is_that_of_its_results():
    page = trials.page(store.read_json(trials.RESULTS))
    assert trials.PAGE.read_text(encoding="utf-8") == page
