"""How the documentation is built: `make docs`, without a network."""

import inspect
import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT)]

from check import home  # noqa: E402

import resid_theory as rt  # noqa: E402  (found by the lines above)
from experiments import CLAIMS, picture, verdict  # noqa: E402

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
html_static_path = ["_static"]
html_css_files = ["phone.css"]

nb_execution_mode = "off"  # notebooks are shown as saved; the tests run them
nb_render_markdown_format = "myst"  # CommonMark, the default, has no tables
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # by default they come from a network
myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_default_options = {"members": True}  # of a class
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = ["Source"]


def copy_notebooks() -> None:
    """Put the saved notebooks where Sphinx looks; a figure's text is the heading above it."""
    folder = HERE / "notebooks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        content, heading = json.loads(path.read_text(encoding="utf-8")), path.stem
        for cell in content["cells"]:
            found = re.findall(r"^#+ (.*)$", "".join(cell["source"]), re.MULTILINE)
            if cell["cell_type"] == "markdown" and found:
                heading = found[-1]
            cell["metadata"]["mystnb"] = {"image": {"alt": heading}}
        (folder / path.name).write_text(json.dumps(content), encoding="utf-8")


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
        first = (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ")
        lines.append(
            f"| {{py:obj}}`rt.{name} <{home(name, value)}>` | {first.replace('|', chr(92) + '|')} |"
        )
    (HERE / "api" / "names.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


GALLERY = {  # claims with the page that explains them
    "demystifying_resnet/layouts": (
        "The condition number against depth, ten layouts",
        "topics/layouts",
    ),
    "demystifying_resnet/theorem_2_two_shortcut": (
        "A saddle that depth cannot change",
        "topics/zero_point",
    ),
    "crossings/depth": ("Curvature at the start, by depth", "topics/curvature"),
    "noise_stability/figure_11": ("Gradient flow through identities", "topics/flows"),
    "crossings/dirac_cushions": ("Cushions of trained DiracNets", "topics/cushions"),
    "diracnets/figure_2": ("What the scales of a Dirac net learn", "topics/diracnets"),
}


def draw_gallery() -> None:
    """Figures of the start page, from the records."""
    folder = HERE / "_build" / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    cells = []
    for name, (title, page) in GALLERY.items():
        claim, record = CLAIMS[name], verdict(CLAIMS[name]).record
        file = folder / f"{name.replace('/', '.')}.png"
        picture(claim, record).savefig(file, dpi=110)
        words = f"{title}; {record.scale} scale"
        cells.append(f"[![{claim.says}](_build/gallery/{file.name})]({page}.md)<br>{words}")
    rows = [f"| {a} | {b} |" for a, b in zip(cells[::2], cells[1::2], strict=True)]
    (HERE / "_build" / "gallery.md").write_text(
        "\n".join(["| | |", "|---|---|", *rows]) + "\n", encoding="utf-8"
    )


# Literals, doctests and displayed formulas.
_AS_IT_IS = re.compile(r"(``[\s\S]*?``|`[^`]*`|^ *(?:>>>|\.\. math::).*(?:\n.+)*)", re.MULTILINE)
_MARKUP = re.compile(r"(?<!\\)([|*])(?=\S)|(?<=[^\s\\])([|])")


_COLON = "\ue000"


def escape(_app, what, _name, _thing, _options, lines: list[str]) -> None:
    """Let |λ| and (*batch, d) stand in docstrings as they are; reStructuredText has other plans."""
    parts = re.split(_AS_IT_IS, "\n".join(lines))
    parts[::2] = [re.sub(_MARKUP, r"\\\1\2", part) for part in parts[::2]]
    lines[:] = "".join(parts).split("\n")
    if what in ("property", "attribute"):
        # Napoleon takes what stands before a colon for the type.
        lines[:] = [line.replace(":", _COLON) for line in lines]


def unescape(_app, _what, _name, _thing, _options, lines: list[str]) -> None:
    """After napoleon."""
    lines[:] = [line.replace(_COLON, ":") for line in lines]


def setup(app) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", escape, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", unescape, priority=600)


copy_notebooks()
write_claims()
write_names()
draw_gallery()
