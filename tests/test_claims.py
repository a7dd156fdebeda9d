"""Every record is judged again; every claim runs at quick scale; the tables match the records."""

import inspect
import io
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch.overrides import TorchFunctionMode

from experiments import __main__ as command, provenance, registry, report
from experiments.claim import SCALES, Claim
from experiments.confirmation import KIND
from experiments.criteria import Criterion, above
from experiments.external_data import Need
from experiments.history_page import history_page
from experiments.manifest import changes, unlisted, wordings
from experiments.recompute import BOUND, differences, items, recompute
from experiments.record_checks import all_faults, notes
from experiments.records import (
    RECORDS,
    faults,
    live,
    load,
    measure,
    picture,
    record,
    record_path,
)
from experiments.registry import CLAIMS, deviations, join, select
from experiments.repository import Repository
from experiments.verdicts import verdict
from resid_theory import plots
from resid_theory.runtime import store

every_claim = pytest.mark.parametrize("claim", CLAIMS.values(), ids=list(CLAIMS))
FIRST = {claim.draw: claim.id for claim in reversed(CLAIMS.values())}  # to draw in that way


@pytest.fixture(scope="session")
def quick(live_folder):
    """A claim's quick record, computed once in this session; notebooks read the same folder."""

    def run(claim):
        if "quick" not in claim.settings:
            pytest.skip(f"{claim.id} has no quick scale")
        return live(claim, "quick", folder=live_folder)

    return run


class NoTorch(TorchFunctionMode):
    """Any use of torch is an error."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        raise AssertionError(f"draw calls {func}")


# The registry ------------------------------------------------------------------------------------


@every_claim
def test_settings_fit_compute(claim):
    for scale, settings in claim.settings.items():
        given = {name: value for name, value in settings.items() if name != "scaled"}
        inspect.signature(claim.compute).bind(**given)
        assert json.dumps(settings, allow_nan=False), scale


@every_claim
def test_quick_scale_comes_out_as_recorded(claim, quick):
    now = quick(claim)
    assert not deviations(now)
    if not record_path(claim.id, "quick").exists():
        # It may see less than a larger scale did, but nothing else.
        larger = [load(claim, s) for s in SCALES if record_path(claim.id, s).exists()][-1:]
        then = {c.criterion: c.outcome for record in larger for c in record.criteria}
        found = {c.criterion: c.outcome for c in now.criteria}
        assert found and all(
            found[name] in (then.get(name, "holds"), "undecided") for name in found
        ), found
    else:
        then = load(claim, "quick")
        same = (then.run.get(x) == now.run.get(x) for x in ("code", *KIND, "numpy"))
        if all(same):  # elsewhere trainings amplify round-off
            assert not differences(then.arrays, now.arrays, bound=BOUND)


@every_claim
def test_draw_fills_a_figure_and_computes_nothing(claim, quick, monkeypatch):
    arrays = {name: array.copy() for name, array in quick(claim).arrays.items()}
    for array in arrays.values():
        array.flags.writeable = False
    for name in ("eig", "eigh", "eigvals", "eigvalsh", "svd", "solve"):
        monkeypatch.delattr(np.linalg, name)
    with rc_context(plots.style()), NoTorch():  # as picture does
        figure = Figure(figsize=(7.0, 4.5), layout="constrained")
        claim.draw(figure, arrays)
        plots.finish(figure)
    if FIRST[claim.draw] == claim.id:
        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")
        for axes in figure.axes:
            axes.set_axis_off()  # the layout has drawn ticks and names twice
        figure.draw_without_rendering()
    # Limits of the data, not has_data(): that is true of an empty line.
    assert any(np.isfinite(axes.dataLim.get_points()).all() for axes in figure.axes)


# Committed records -------------------------------------------------------------------------------


def test_records_are_valid_today_and_those_of_the_manifest_and_of_git():
    assert not all_faults(CLAIMS, RECORDS)
    assert not unlisted(CLAIMS, RECORDS)


def test_results_page_matches_the_records():
    page = report.results_page(CLAIMS, RECORDS, notes(CLAIMS, RECORDS))
    with Repository(provenance.ROOT) as repository:
        # The age of code changes with any file that it runs through; the order is known with git.
        order = "" if repository.is_whole else "[^;.]+; "
    masked = re.compile(f"{order}computed by [a-z', ]+")
    assert masked.sub("", command.RESULTS.read_text(encoding="utf-8")) == masked.sub("", page)


def test_history_page_matches_the_records():
    page = history_page(CLAIMS, RECORDS, changes(), wordings(RECORDS))
    assert command.HISTORY.read_text(encoding="utf-8") == page


def test_a_record_of_the_day_computes_again():
    """Every day another one of those that take seconds."""
    cheap = [i for i in items(CLAIMS, RECORDS) if i.seconds < 4 and "(quick)" not in i.name]
    day = datetime.now(tz=UTC).date().toordinal()
    item, fault, _ = next(recompute(cheap, minutes=1, seed=day))
    assert not fault, item.name


def test_readme_table_matches_the_records():
    readme = command.README.read_text(encoding="utf-8")
    assert report.readme_with(readme, report.counts(CLAIMS, RECORDS)) == readme


# The machinery, with a toy claim -----------------------------------------------------------------


def roots(*, numbers, seed=0):
    return {"numbers": np.array(numbers, dtype=float), "roots": np.sqrt(numbers)}


def judge_roots(arrays):
    worst = np.abs(arrays["roots"] ** 2 - arrays["numbers"]).max()
    return [Criterion("worst |r² - x|", "< 1e-12", worst, worst < 1e-12)]


def draw_roots(figure, arrays):
    figure.subplots().plot(arrays["numbers"], arrays["roots"])


def toy(**changes):
    given = {
        "id": "toy/roots",
        "source": "Heron, Metrica I",
        "says": "Squares of roots are the numbers.",
        "settings": {
            "quick": {"numbers": [1.0, 2.0], "scaled": "two numbers of five"},
            "paper": {"numbers": [1.0, 2.0, 3.0, 4.0, 5.0]},
        },
        "compute": roots,
        "judge": judge_roots,
        "draw": draw_roots,
    }
    return Claim(**{**given, **changes})


def failing(arrays):
    return [*judge_roots(arrays), Criterion("a pipe | here", 0.5, np.float64(1 / 3), np.False_)]


@pytest.fixture
def toys(tmp_path, monkeypatch):
    """A registry of two toy claims, with its own folder and pages; gives the folder of records."""
    both = join([toy(), toy(id="toy/wrong", judge=failing)])
    for module in (command, registry):
        monkeypatch.setattr(module, "CLAIMS", both)
    for page in ("RESULTS", "HISTORY", "COVERAGE", "README"):
        monkeypatch.setattr(command, page, tmp_path / f"{page}.md")
    return tmp_path / "records"


def call(folder, *arguments):
    return command.main(["--records", str(folder), *arguments])


def edit(folder, change, name="toy/roots.quick"):
    path = folder / f"{name}.json"
    content = store.read_json(path)
    change(content)
    store.write_json(path, content)


def test_a_record_comes_back(tmp_path):
    made = record(toy(), "quick", folder=tmp_path)
    back = load("toy/roots", "quick", folder=tmp_path)
    assert (back.claim, back.scale) == ("toy/roots", "quick")
    assert back.settings == toy().settings["quick"]
    assert back.criteria == made.criteria and back.outcome == "holds"
    assert back.run == made.run
    np.testing.assert_array_equal(back.arrays["roots"], np.sqrt([1.0, 2.0]))
    assert not faults(toy(), back)


def test_a_record_knows_its_circumstances(tmp_path):
    run = record(toy(), "quick", folder=tmp_path).run
    assert (run["torch"], run["numpy"]) == (torch.__version__, np.__version__)
    assert (run["device"], run["threads"]) == ("cpu", torch.get_num_threads())
    assert run["hardware"] and run["seconds"] >= 0
    assert run["commit"] is None or re.fullmatch("[0-9a-f]{40}", run["commit"])


@pytest.mark.parametrize(
    ("model", "told"), [("17", "EPYC, 25.17"), ("1", "EPYC, 25.1"), (None, "EPYC")]
)
def test_processors_of_one_name_are_told_apart(monkeypatch, model, told):
    lines = ["processor\t: 0", "model name\t: EPYC"]
    lines += [f"model\t\t: {model}", "cpu family\t: 25"] if model else []
    text = "\n".join(lines)
    another = text.replace("EPYC", "another")
    monkeypatch.setattr(Path, "read_text", lambda *_: f"{text}\n\n{another}\n")
    assert provenance._hardware("cpu") == told


@pytest.mark.parametrize("given", ["abc", "abc-dirty", None])
def test_a_copy_without_git_is_told_its_commit(monkeypatch, given):
    monkeypatch.setattr(provenance, "_git", lambda *_: None)
    monkeypatch.delenv("RESID_THEORY_COMMIT", raising=False)
    if given:
        monkeypatch.setenv("RESID_THEORY_COMMIT", given)
    expected = ("abc", given.endswith("dirty")) if given else (None, None)
    assert provenance.commit_of_code() == expected
    for status in ("", " M resid_theory/data.py"):
        answers = {"rev-parse": "abc", "status": status}
        monkeypatch.setattr(provenance, "_git", lambda verb, *_, found=answers: found[verb])
        assert provenance.commit_of_code() == ("abc", bool(status))


def test_only_what_asks_for_a_device_gets_one():
    asked = toy(compute=lambda *, numbers, device: roots(numbers=[len(device)]))
    found = measure(asked, "quick", device="meta")
    assert found.run["device"] == "meta" and found.arrays["numbers"] == [4.0]
    assert measure(toy(), "quick", device="meta").run["device"] == "cpu"


def test_the_callers_default_dtype_changes_nothing():
    torch_made = toy(
        compute=lambda *, numbers: {"numbers": torch.ones(1), "roots": torch.ones(1)},
    )
    assert torch.get_default_dtype() == torch.float64  # by the tests' fixture
    assert measure(torch_made, "quick").arrays["roots"].dtype == np.float32
    assert torch.get_default_dtype() == torch.float64


def test_arrays_changed_after_the_run_are_noticed(tmp_path):
    record(toy(), "quick", folder=tmp_path)
    store.write_arrays(tmp_path / "toy/roots.quick.npz", roots(numbers=[1.0, 3.0]))
    with pytest.raises(ValueError, match=r"roots\.quick\.npz.*sha256"):
        load("toy/roots", "quick", folder=tmp_path)


@pytest.mark.parametrize("part", ["settings", "arrays", "criteria", "run", "npz"])
def test_a_record_with_a_part_missing_is_named(tmp_path, part):
    record(toy(), "quick", folder=tmp_path)
    if part == "npz":
        (tmp_path / "toy/roots.quick.npz").unlink()
    else:
        edit(tmp_path, lambda content: content.pop(part))
    says = "incomplete record" if part == "npz" else part
    with pytest.raises(ValueError, match=rf"roots\.quick\.json.*{says}"):
        load("toy/roots", "quick", folder=tmp_path)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"settings": {"quick": {"numbers": [1.0, 2.5]}}}, "settings were"),
        (
            {"judge": lambda arrays: [Criterion("worst |r² - x|", "< 1", 0.0, True)]},
            "criteria were",
        ),
        ({"judge": lambda arrays: [arrays["cubes"]]}, "cannot judge its arrays .*cubes"),
        ({"id": "toy/other"}, ""),
    ],
    ids=["settings", "judge", "arrays", "claim"],
)
def test_a_record_of_another_claim_is_a_fault(tmp_path, changes, fault):
    made = record(toy(), "quick", folder=tmp_path)
    assert not faults(toy(), made)
    found = faults(toy(**changes), made)
    assert found and any(re.search(fault, text) for text in found)


def unsure(arrays):
    return [above("a number", [1.0, -1.0, 2.0], source="Metrica I")]


SCALED = {"settings": {"paper": {"numbers": [1.0], "scaled": "one of five"}}}
SHORT = {"settings": {"short": {"numbers": [1.0]}, "paper": {"numbers": [2.0]}}}
LAW = {"kind": "law"}
LATER, ONLY = "paper scale not run yet", "short scale only"


@pytest.mark.parametrize(
    ("changes", "scales", "word", "detail"),
    [
        ({}, [], "not run", ""),
        ({}, ["paper"], "reproduced", ""),
        ({}, ["quick", "paper"], "reproduced", ""),
        ({}, ["quick"], "not run", ""),
        (LAW, ["paper"], "holds", ""),
        ({"settings": {"short": {"numbers": [1.0]}}}, ["short"], "holds so far", ONLY),
        (SCALED, ["paper"], "holds so far", "one of five"),
        ({"judge": failing}, ["paper"], "refuted", ""),
        ({**SHORT, "judge": failing}, ["short"], "fails so far", LATER),
        ({**SHORT, "judge": unsure}, ["short"], "inconclusive", LATER),
    ],
    ids=["none", "paper", "both", "quick", "law", "short", "scaled", "fails", "so_far", "unsure"],
)
def test_verdict(tmp_path, changes, scales, word, detail):
    claim = toy(**changes)
    for scale in scales:
        record(claim, scale, folder=tmp_path)
    stands = verdict(claim, folder=tmp_path)
    assert (stands.word, stands.detail) == (word, detail)
    assert (stands.record is None) == (word == "not run")  # a quick record decides nothing
    if stands.record:
        assert stands.record.scale == scales[-1]


def test_criteria_are_text_and_a_plain_truth_value():
    criterion = Criterion("c", np.float64(0.5), float("inf"), np.True_)
    assert (criterion.expected, criterion.measured, criterion.holds) == ("0.5", "inf", True)
    assert type(criterion.holds) is bool


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "Toy"}, "id: got 'Toy'"),
        ({"settings": {}}, "settings: toy/roots"),
        ({"settings": {"papers": {}}}, "scale.*'papers'.*'paper'"),
        ({"needs": {"short": None}}, "scale.*'short'.*'quick'"),
    ],
)
def test_a_malformed_claim_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        toy(**changes)


@pytest.mark.parametrize("answer", [[], [True]], ids=["none", "no_criterion"])
def test_a_judge_must_return_criteria(answer):
    with pytest.raises(ValueError, match="judge: toy/roots"):
        measure(toy(judge=lambda arrays: answer), "quick")


def test_unknown_scales_and_missing_records_are_told(tmp_path):
    with pytest.raises(ValueError, match="scale.*'short'.*'quick'"):
        measure(toy(), "short")
    with pytest.raises(FileNotFoundError, match="run toy/roots --scale paper"):
        load("toy/roots", "paper", folder=tmp_path)


def test_live_computes_once_where_a_folder_is_set(tmp_path, monkeypatch):
    calls = []

    def compute(*, numbers):
        calls.append(1)
        time.sleep(0.1)
        return roots(numbers=numbers)

    counted = toy(compute=compute)
    monkeypatch.setenv("RESID_THEORY_LIVE", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:  # one waits for the other
        first, second = pool.map(live, [counted, counted])
    assert first.criteria == second.criteria and len(calls) == 1
    monkeypatch.delenv("RESID_THEORY_LIVE")
    assert live(counted).outcome == "holds" and len(calls) == 2


def test_picture_draws_and_leaves_no_figure_open():
    from matplotlib import pyplot

    figure = picture(toy(), measure(toy(), "quick"), width=3.0)
    assert figure.axes[0].has_data() and figure.get_figwidth() == 3.0
    assert not pyplot.get_fignums()


def test_a_notebook_shows_a_record_as_a_table():
    shown = measure(toy(judge=failing), "quick")._repr_markdown_()
    assert "| a pipe \\| here | 0.5 | 0.333333 | **fails** |" in shown
    assert "quick scale" in shown and "| holds |" in shown


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        ([], ["toy/roots", "toy/wrong"]),
        (["toy"], ["toy/roots", "toy/wrong"]),
        (["toy/wrong"], ["toy/wrong"]),
        (["toy/w", "toy/r"], ["toy/roots", "toy/wrong"]),
    ],
)
def test_selection(toys, wanted, ids):
    assert [claim.id for claim in select(wanted)] == ids


def test_an_unknown_claim_is_told_with_those_of_its_name(toys):
    with pytest.raises(ValueError) as caught:
        select(["rot"])
    every = "'python -m experiments list' names all"
    assert str(caught.value) == f"claims: unknown name 'rot'; {every}"
    for name in ("roots", "toy/rots"):
        with pytest.raises(ValueError, match="did you mean 'toy/roots'.* names all"):
            select([name])


def test_a_run_on_a_terminal_without_utf_8_spells_its_letters(toys, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert call(toys, "run", "toy/roots") == 0
    assert b"worst |r^2 - x|" in stream.buffer.getvalue()


@pytest.mark.parametrize("words", [["list"], ["run", "toy/roots"]], ids=lambda words: words[0])
def test_a_reader_may_leave(toys, monkeypatch, capfd, words):
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as nobody:
        monkeypatch.setattr(sys, "stdout", nobody)
        assert call(toys, *words) == 0
    assert not capfd.readouterr().err


def test_a_whole_id_selects_one_claim_and_occurs_once():
    with pytest.raises(ValueError, match="'toy/roots' is given to two"):
        join([toy()], [toy()])
    numbered = join([toy(id="toy/figure_1"), toy(id="toy/figure_10")])
    assert [claim.id for claim in select(["toy/figure_1"], numbered)] == ["toy/figure_1"]
    assert len(select(["toy/figure_"], numbered)) == 2


def test_deviations_compare_outcomes_with_the_committed_record(toys, monkeypatch):
    monkeypatch.setattr(registry, "load", partial(load, folder=toys))
    monkeypatch.setattr(registry, "record_path", partial(record_path, folder=toys))
    wrong = registry.CLAIMS["toy/wrong"]
    paper = record(wrong, "paper", folder=toys)
    quick = measure(wrong, "quick")
    assert not deviations(paper, quick)  # fails as recorded; a quick scale may have no record
    worse = replace(paper, arrays={**paper.arrays, "roots": 2 * paper.arrays["roots"]})
    assert deviations(worse) == ["toy/wrong: worst |r² - x|: was holds, is fails"]
    monkeypatch.setitem(registry.CLAIMS, "toy/wrong", toy(id="toy/wrong"))
    assert deviations(paper) == ["toy/wrong: a pipe | here: was fails, is absent"]
    record(wrong, "quick", folder=toys)
    assert deviations(quick) == ["toy/wrong: a pipe | here: was fails, is absent"]
    assert deviations(replace(quick, scale="short")) == ["toy/wrong: has no short record"]


NEEDY = Need(what="a set of roots", variable="TOY_ROOTS", parts=("train", "test"))


@pytest.fixture
def needy(toys, monkeypatch):
    """A registry of one claim whose paper scale needs data; gives the folder of records."""
    only = join([toy(needs={"paper": NEEDY})])
    for module in (command, registry):
        monkeypatch.setattr(module, "CLAIMS", only)
    monkeypatch.delenv("TOY_ROOTS", raising=False)
    return toys


def test_a_scale_whose_data_are_missing_is_skipped_with_the_reason(needy, capsys):
    assert call(needy, "run", "--scale", "paper") == 0
    assert call(needy, "list") == 0
    skipped, _, listed = capsys.readouterr().out.partition("done")
    wanted = r"needs a set of roots: \$TOY_ROOTS/\{train,test\}/.*; \$TOY_ROOTS is not set"
    assert re.search(f"skipped, {wanted}", skipped) and re.search(f"paper: {wanted}", listed)
    assert not list(needy.rglob("*.json"))
    assert "| claims of the papers | 1 | 1 |" in report.counts(registry.CLAIMS, needy)
    stands = verdict(registry.CLAIMS["toy/roots"], folder=needy)
    assert stands.word == "not run" and "needs a set of roots" in stands.detail
    assert call(needy, "run") == 0 and list(needy.rglob("*.quick.json"))


def test_a_part_of_the_data_that_is_missing_is_named(needy, monkeypatch, tmp_path):
    (tmp_path / "train").mkdir()
    monkeypatch.setenv("TOY_ROOTS", str(tmp_path))
    assert f"{tmp_path} has no test" in registry.CLAIMS["toy/roots"].missing("paper")
    with pytest.raises(FileNotFoundError, match="a set of roots.*has no test"):
        NEEDY.folder()
    (tmp_path / "test").mkdir()
    assert call(needy, "run", "--scale", "paper") == 0
    assert NEEDY.folder() == tmp_path and list(needy.rglob("*.paper.json"))


def test_run_check_report(toys):
    command.README.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    assert call(toys, "run", "--scale", "paper") == 0
    assert call(toys, "check") == 1  # not in a manifest yet
    assert call(toys, "report") == 0
    assert call(toys, "check") == 0
    readme, results = command.README.read_text(), command.RESULTS.read_text()
    assert readme.startswith("before\n") and readme.endswith(f"{report.END}\nafter\n")
    assert "\nold\n" not in readme
    assert "| | reproduced | refuted | all |" in results
    assert "| claims of the papers | 1 | 1 | 2 |" in results
    assert re.search(r"\| < 1e-12 \| \S+ \| holds \|", results)
    assert "| 0.5 | 0.333333 | **fails** |" in results
    assert "| toy | 1 | 1 | 2 |\n| claims of the papers | 1 | 1 | 2 |" in readme


def test_report_is_repeatable_and_lists_what_is_not_run(toys):
    command.README.write_text(f"{report.BEGIN}\n{report.END}\n")
    call(toys, "run", "toy/roots", "--scale", "paper")
    assert call(toys, "report") == 0
    first = command.README.read_text()
    assert call(toys, "report") == 0 and command.README.read_text() == first
    for text in (first, command.RESULTS.read_text()):
        assert "| | reproduced | not run | all |" in text
        assert "| claims of the papers | 1 | 1 | 2 |" in text


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("settings", "settings were"),
        ("arrays", "sha256"),
        ("orphan", "has no .json"),
        ("unknown", "no claim is named 'toy/rots'"),
        ("json", "not valid JSON"),
    ],
)
def test_check_fails_and_report_refuses(toys, capsys, harm, message):
    call(toys, "run")
    path = toys / "toy/roots.quick.json"
    {
        "settings": lambda: edit(toys, lambda content: content["settings"].update(numbers=[9.0])),
        "arrays": lambda: path.with_suffix(".npz").write_bytes(b"PK"),
        "orphan": path.unlink,
        "unknown": lambda: path.rename(path.with_stem("rots.quick")),
        "json": lambda: path.write_text("{"),
    }[harm]()
    capsys.readouterr()
    assert call(toys, "check") == 1
    assert re.search(rf"toy/roo?ts\.quick.*: .*{message}", capsys.readouterr().out)
    assert call(toys, "report") == 1 and not command.RESULTS.exists()


def test_pending_runs_only_what_has_no_valid_record(toys, capsys):
    call(toys, "run")
    edit(toys, lambda content: content["settings"].update(numbers=[9.0]))
    capsys.readouterr()
    call(toys, "run", "--pending")
    out = capsys.readouterr().out
    assert "toy/roots (quick)" in out and "toy/wrong (quick)" not in out
    assert call(toys, "report") == 0


def test_no_claim_begins_after_the_time_is_over(toys, capsys):
    assert call(toys, "run", "--minutes", "0") == 0
    assert "2 claims not begun" in capsys.readouterr().out and not toys.exists()


def test_a_claim_that_breaks_does_not_stop_the_others(toys, monkeypatch, capsys):
    def breaks(**_):
        raise RuntimeError("out of luck")

    both = join([toy(compute=breaks), toy(id="toy/wrong", judge=failing)])
    monkeypatch.setattr(registry, "CLAIMS", both)
    assert call(toys, "run") == 1
    captured = capsys.readouterr()
    assert "failed: toy/roots" in captured.out and "out of luck" in captured.err
    assert load("toy/wrong", "quick", folder=toys)


def test_draw_writes_figures_that_say_what_they_show(toys, tmp_path, capsys):
    assert call(toys, "run", "toy/roots", "--scale", "paper") == 0
    assert call(toys, "draw", "--format", "svg", "--out", str(tmp_path / "drawn")) == 0
    (path,) = (tmp_path / "drawn").iterdir()
    assert "Squares of roots are the numbers. (Heron, Metrica I; paper" in path.read_text("utf-8")
    assert "toy/wrong: no record to draw" in capsys.readouterr().out


def test_list_shows_verdicts(toys, capsys):
    call(toys, "run", "toy/wrong", "--scale", "paper")
    capsys.readouterr()
    assert call(toys, "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["not run" in lines[0], "refuted" in lines[1]] == [True, True]


def test_a_wrong_name_ends_with_usage(toys, capsys):
    with pytest.raises(SystemExit) as caught:
        call(toys, "run", "toy/rots")
    assert caught.value.code == 2 and "'toy/roots'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["no markers", f"{report.END}\n{report.BEGIN}"])
def test_a_readme_without_its_markers_is_refused(text):
    with pytest.raises(ValueError, match="claims:begin"):
        report.readme_with(text, "table")
