"""Calls of the command line: what is printed, as text or as JSON, and errors of one line."""

import json

import pytest

from resid_theory import cli, plots


def printed(capsys, *words):
    """What a verb that succeeds prints."""
    assert cli.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def drawn(monkeypatch):
    """A list of the figures that verbs write from now on, which are drawn but not encoded."""
    figures = []
    monkeypatch.setattr(plots, "png", lambda figure: figures.append(figure) or b"\x89PNG")
    return figures


def labels(ax):
    """Entries of the legend of some axes."""
    return [text.get_text() for text in ax.get_legend().get_texts()]


def content(capsys, *words):
    """The JSON that a verb prints; nothing else may be printed."""
    code, (out, err) = cli.main([*map(str, words), "--json"]), capsys.readouterr()
    assert (code, err) == (0, "")
    return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def error(capsys, *words):
    """The one line that a verb prints before any work."""
    code, (out, err) = cli.main([str(word) for word in words]), capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("resid-theory: ") and err.count("\n") == 1
    return err
