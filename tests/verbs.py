"""Calls of the command line: what is printed, as text or as JSON, and errors of one line."""

import json
from functools import wraps
from inspect import signature
from operator import attrgetter

import pytest

import resid_theory as rt
from resid_theory import cli


def printed(capsys, *words):
    """What a verb that succeeds prints."""
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def drawn(monkeypatch):
    """A list of the figures that verbs write from now on, which are drawn but not encoded."""
    figures = []
    monkeypatch.setattr(rt.plots, "png", lambda figure: figures.append(figure) or b"\x89PNG")
    return figures


def labels(ax):
    """Entries of the legend of some axes."""
    return [text.get_text() for text in ax.get_legend().get_texts()]


def content(capsys, *words):
    """The JSON that a verb prints; nothing else may be printed."""
    code, (out, err) = cli.main([*map(str, words), "--json"]), capsys.readouterr()
    assert (code, err) == (0, "")
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def table(rows, left=(0,)):
    """Lines of a table whose first row is its header; columns are right-aligned but for some."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    turned = [str.ljust if column in left else str.rjust for column in range(len(widths))]
    for row in rows:
        cells = (turn(*one) for turn, *one in zip(turned, row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def asked(monkeypatch, *names):
    """Calls of functions of the library from now on, of which the last one is refused.

    A call is the function's name and, by name, the arguments that are not the default, but for
    nets and data.
    """
    calls = []
    for name in names:
        room, _, last = name.rpartition(".")
        owner = attrgetter(room)(rt) if room else rt
        refuses = name == names[-1]
        monkeypatch.setattr(owner, last, noted(last, getattr(owner, last), calls, refuses))
    return calls


def noted(name, function, calls, refuses):
    @wraps(function)
    def call(*given, **keywords):
        found = signature(function).bind(*given, **keywords).arguments
        usual = {n: parameter.default for n, parameter in signature(function).parameters.items()}
        told = {n: v for n, v in found.items() if n not in ("net", "data", "test")}
        calls.append((name, {n: v for n, v in told.items() if v != usual[n]}))
        if refuses:
            raise ValueError("that is enough")
        return function(*given, **keywords)

    return call


def error(capsys, *words):
    """The one line that a verb prints before any work."""
    code, (out, err) = cli.main([str(word) for word in words]), capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("resid-theory: ") and err.count("\n") == 1
    return err
