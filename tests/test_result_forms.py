"""Results as text, HTML and JSON, to the letter; what fits a field; archives to the byte."""

import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tolerances import assert_same
from torch import Tensor

import resid_theory as rt
from resid_theory.runtime import storable, store
from resid_theory.runtime.result import Result
from resid_theory.runtime.storable import _fits, decoded, encoded, inline, read_inline
from resid_theory.sweep import Outcome, SweepReport


def outcome(**numbers):
    return Outcome(numbers=numbers, arrays={})


def report(count):
    failed = {f"key {i}": f"Error: {i} < 2" for i in range(count)}
    configs = {key: {"task": "hessian", "blocks": 10 + i} for i, key in enumerate(failed)}
    return SweepReport(
        folder=Path("out"), cells=9, found=2, done=3, failed=failed, failed_configs=configs,
        seconds=1.5, work=1.0,
    )  # fmt: skip


# -- shown -----------------------------------------------------------------------------------------


def test_one_row_stands_upright():
    found = outcome(
        long_name=1.23456, yes=True, no=False, none=None, count=1234567, words="a <b> & c",
        x=0.5, x_low=0.25, x_high=math.inf, y=2.0, y_error=0.125, z=3.0, z_low=1.0,
        t=torch.tensor(7.0),
    )  # fmt: skip
    rows = {
        "long name": "1.235", "yes": "yes", "no": "no", "none": "", "count": "1234567",
        "words": "a <b> & c", "x": "0.5 [0.25, inf]", "y": "2 ± 0.125", "z": "3", "z low": "1",
        "t": "7",
    }  # fmt: skip
    lines = [f"  {name:9}  {cell}".rstrip() for name, cell in rows.items()]
    assert repr(found) == str(found) == "\n".join(["outcome of a cell", *lines])
    cells = {name: cell.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
             for name, cell in rows.items()}  # fmt: skip
    table = "".join(f"<tr><td>{name}</td><td>{cell}</td></tr>" for name, cell in cells.items())
    assert found._repr_html_() == f"<p><b>outcome of a cell</b></p><table>{table}</table>"


def test_several_rows_lie_below_their_names():
    assert repr(report(2)) == (
        "5 of 9 cells done, 2 of them before\n"
        "  key    cell               error\n"
        "  key 0  hessian blocks=10  Error: 0 < 2\n"
        "  key 1  hessian blocks=11  Error: 1 < 2"
    )
    assert repr(report(0)) == "5 of 9 cells done, 2 of them before"
    assert repr(report(1)) == (
        "5 of 9 cells done, 2 of them before\n"
        "  key    key 0\n  cell   hessian blocks=10\n  error  Error: 0 < 2"
    )
    html = report(12)._repr_html_()
    title = "<p><b>5 of 9 cells done, 2 of them before</b></p><table>"
    assert html.startswith(f"{title}<tr><td>key</td>")
    assert "<tr><td>… 2 more</td><td></td><td></td></tr>" in html and html.count("<tr>") == 12


@pytest.mark.parametrize(("count", "rows"), [(101, 101), (102, 101), (240, 101)])
def test_a_hundred_rows_are_printed(count, rows):
    lines = str(report(count)).splitlines()
    assert len(lines) == 2 + rows
    keys = [line.split("  ")[1] for line in lines[2:]]
    half = [f"key {i}" for i in range(50)]
    left = f"… {count - 100} more"
    ends = [f"key {i}" for i in range(count - 50, count)]
    assert keys == ([f"key {i}" for i in range(101)] if count == 101 else [*half, left, *ends])


def test_remarks_of_more_than_300_letters_are_cut():
    words = "four " * 60
    notes = words[:293], words[:294]
    found = rt.training.Evaluation(samples=10, labels=10, loss=0.5, wrong={1: 7}, notes=notes)
    lines = repr(found).splitlines()
    assert lines[:5] == [
        "evaluation on 10 samples",
        "  samples      10",
        "  labels       10",
        "  loss         0.5",
        "  top 1 error  0.7 [0.3968, 0.8922]",
    ]
    assert lines[5] == f"Note: {notes[0]}." and len(lines[5]) == 300
    assert lines[6] == f"Note: {words[:289]} …" and len(f"Note: {notes[1]}.") == 301
    assert "".join(f"<p>{line}</p>" for line in lines[5:]) in found._repr_html_()


def test_names_without_a_title_are_those_of_the_class():
    @dataclass(frozen=True, kw_only=True, eq=False)
    class Untitled(Result):
        number: int
        share: float
        word: str | None
        values: Tensor
        tabulated: ClassVar[Mapping[str, str | Callable[[Any], Any]]] = {}

    found = Untitled(number=3, share=0.5, word=None, values=torch.ones(2))
    del storable._KINDS[storable._kind(Untitled)]
    assert repr(found) == "Untitled\n  number  3\n  share   0.5\n  word"
    Untitled.tabulated = {"twice": lambda result: [2 * result.number], "word": "word"}
    assert found.table() == {"twice": [6], "word": None}


# -- JSON ------------------------------------------------------------------------------------------

FORMS = [
    (None, None), (True, True), (3, 3), (0.5, 0.5), ("λ", "λ"),
    (np.float32(0.5), 0.5), (np.int64(4), 4), (np.bool_(True), True),
    (math.inf, {"float": "inf"}), (-math.inf, {"float": "-inf"}),
    (np.float64("nan"), {"float": "nan"}),
    (Path("a/b"), {"path": "a/b"}),
    ((1, (2.5,), ()), [1, [2.5], []]),
    ([1, [None]], {"list": [1, {"list": [None]}]}),
    ({"a": (1,), "b": {}}, {"mapping": {"a": [1], "b": {"mapping": {}}}}),
    ({1: "x", "b": (2,)}, {"pairs": [[1, "x"], ["b", [2]]]}),
    (torch.tensor([[1, 2], [3, 4], [5, 6]]),
     {"tensor": [1, 2, 3, 4, 5, 6], "dtype": "int64", "shape": [3, 2]}),
    (torch.tensor(2.5, dtype=torch.float32), {"tensor": [2.5], "dtype": "float32", "shape": []}),
    (torch.tensor([True, False]), {"tensor": [True, False], "dtype": "bool", "shape": [2]}),
    (torch.zeros(0, 3).double(), {"tensor": [], "dtype": "float64", "shape": [0, 3]}),
    (torch.tensor([1.0, math.inf, -math.inf, math.nan]).double(),
     {"tensor": [1.0, "inf", "-inf", "nan"], "dtype": "float64", "shape": [4]}),
    (rt.eigen.Estimate(value=1.0, standard_error=math.inf, low=0.5, high=2.0),
     {"kind": "eigen.Estimate",
      "fields": {"value": 1.0, "standard_error": {"float": "inf"}, "low": 0.5, "high": 2.0}}),
]  # fmt: skip


@pytest.mark.parametrize(("value", "node"), FORMS, ids=lambda value: str(type(value).__name__))
def test_json_has_the_form_that_is_stated(value, node):
    found = encoded(value, "x", inline)
    assert found == node and type(found) is type(node)
    back = decoded(json.loads(json.dumps(found)), "x", read_inline)
    if isinstance(value, Tensor):
        torch.testing.assert_close(back, value, rtol=0, atol=0, equal_nan=True)
    else:
        plain = value.item() if isinstance(value, np.generic) else value
        assert type(back) is type(plain) and repr(back) == repr(plain)


def test_what_cannot_be_saved_is_named_with_its_place():
    with pytest.raises(ValueError) as caught:
        encoded({"a": (1, [2, {3: object()}])}, "x", inline)
    assert str(caught.value) == (
        "x.a.1.1.3: got a object, which cannot be saved; needs numbers, strings, tensors, tuples, "
        "lists, mappings, paths or None"
    )


def test_long_names_of_unknown_forms_are_cut():
    for node, says in (
        ({"kind": "k" * 99, "fields": {}}, f"x: holds a '{'k' * 79}, which this version does not"),
        ({"o" * 99: 1}, f"x: holds an object of unknown form, ['{'o' * 78}"),
    ):
        with pytest.raises(ValueError) as caught:
            decoded(node, "x", read_inline)
        assert str(caught.value).startswith(says)


FITS = [
    (1, int, True), (1.0, int, False), (True, int, False), (True, bool, True), (1, bool, False),
    (1, float, True), (0.5, float, True), (True, float, False), ("a", float, False),
    ("a", str, True), (None, str, False), (None, str | None, True), (3, str | None, False),
    (True, int | None, False), (3, int | str, True),
    ((1, 2), tuple[int, ...], True), ((1, 0.5), tuple[int, ...], False),
    ((), tuple[int, ...], True),
    ((1, "a"), tuple[int, str], True), ((1,), tuple[int, str], False),
    (("a", 1), tuple[int, str], False),
    ([1], tuple[int, ...], False), ((1, 2), tuple, True),
    ([1], list[int], True), ((1,), list[int], False),
    ({"a": 1}, Mapping[str, int], True), ({"a": 0.5}, Mapping[str, int], False),
    ({"a": (1,)}, Mapping[str, tuple[int, ...]], True), ({}, dict, True),
    (1, Mapping[str, int], False),
    ((1,), Sequence[int], True), (1, Sequence[int], False), ({1}, Any, True),
    (torch.ones(1), Tensor, True), (1, Tensor, False), (Path("a"), Path, True), ("a", Path, False),
]  # fmt: skip


@pytest.mark.parametrize(("value", "hint", "fits"), FITS, ids=str)
def test_a_value_fits_its_field(value, hint, fits):
    assert _fits(value, hint) == fits


# -- files -----------------------------------------------------------------------------------------


def test_members_of_an_archive_are_alike_on_every_system(tmp_path):
    store.write_arrays(tmp_path / "a.npz", {"b": np.zeros(99), "a": np.ones(2)})
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        assert [(m.filename, m.create_system, m.compress_type) for m in archive.infolist()] == [
            ("a.npy", 3, zipfile.ZIP_DEFLATED), ("b.npy", 3, zipfile.ZIP_DEFLATED),
        ]  # fmt: skip


def test_a_result_is_read_by_its_name_with_and_without_the_end(tmp_path):
    found = outcome(a=1)
    file = found.save(tmp_path / "a.b.json")
    assert file.parent == tmp_path and file.suffix == ".safetensors"
    for name in ("a.b.json", "a.b"):
        assert rt.load_result(tmp_path / name).numbers == {"a": 1}
    content = json.loads((tmp_path / "a.b.json").read_text())["manifest"]["about"]
    fields = {"numbers": {"mapping": {"a": 1}}, "arrays": {"mapping": {}}}
    assert content == {
        "kind": "result", "format": 1, "result": {"kind": "sweep.Outcome", "fields": fields},
    }  # fmt: skip
    tensors = Outcome(numbers={}, arrays={"x": torch.ones(2), "y": torch.zeros(3)})
    tensors.save(tmp_path / "c.json")
    assert_same(rt.load_result(tmp_path / "c").arrays, tensors.arrays)
    saved, about = store.read_checkpoint(tmp_path / "c.json")
    assert set(saved) == {"0", "1"}
    assert about["result"]["fields"]["arrays"]["mapping"]["y"] == {"tensor": "1"}
