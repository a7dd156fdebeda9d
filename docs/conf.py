"""How the documentation is built: `make docs`, without a network."""

import inspect
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

import resid_theory as rt  # noqa: E402  (found by the line above)

project = "resid_theory"
author = "The resid_theory developers"
project_copyright = author
version = release = rt.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx-mathjax-offline",  # MathJax itself, so that formulas need no network
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"resid_theory {version}"
html_show_sourcelink = False

nb_execution_mode = "off"  # notebooks are shown as saved; the tests run them
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # by default they come from a network
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]


def copy_notebooks() -> None:
    """Put the saved notebooks where Sphinx looks."""
    folder = HERE / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copy(path, folder)


def write_claims() -> None:
    """The pages of the experiments, their links as seen from here."""
    pages = {"RESULTS.md": "claims.md", "HISTORY.md": "history.md", "COVERAGE.md": "coverage.md"}
    for name, page in pages.items():
        text = (ROOT / "experiments" / name).read_text(encoding="utf-8")
        for link in ("records/", "changes.json"):
            text = text.replace(f"]({link}", f"](../experiments/{link}")
        text = text.replace("# Results", "# Claims", 1).replace("(HISTORY.md)", "(history.md)")
        (HERE / page).write_text(text, encoding="utf-8")


def write_names() -> None:
    """Every public name with its first sentence, linked to the room where it is described."""
    lines = ["# Public names", "", "`import resid_theory as rt`; each name is imported at its use."]
    lines += ["", "| name | what it is |", "|---|---|"]
    for name in sorted(rt.__all__, key=str.lower):
        value = getattr(rt, name)
        if inspect.ismodule(value):
            continue
        home = f"resid_theory.{value.__module__.split('.')[1]}.{name}"
        first = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(f"| {{py:obj}}`rt.{name} <{home}>` | {first.replace('|', chr(92) + '|')} |")
    (HERE / "api" / "names.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


# Literals, doctests and displayed formulas.
_AS_IT_IS = re.compile(r"(``[\s\S]*?``|`[^`]*`|^ *(?:>>>|\.\. math::).*(?:\n.+)*)", re.MULTILINE)
_MARKUP = re.compile(r"(?<!\\)([|*])(?=\S)|(?<=[^\s\\])([|])")


def escape(_app, _what, _name, _thing, _options, lines: list[str]) -> None:
    """Let |λ| and (*batch, d) stand in docstrings as they are; reStructuredText has other plans."""
    parts = re.split(_AS_IT_IS, "\n".join(lines))
    parts[::2] = [re.sub(_MARKUP, r"\\\1\2", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")


def setup(app) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon


copy_notebooks()
write_claims()
write_names()
