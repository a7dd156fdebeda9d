"""The pages of docs/ print what they say, and link to pages that are there; faults are seen."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest
from test_readme import FENCE, examples, run, wrong

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
COPIED = {"_build", "notebooks", "claims.md", "history.md", "names.md"}  # what docs/conf.py makes
PAGES = sorted(path for path in DOCS.rglob("*.md") if not COPIED & set(path.parts))
NEEDS = {"howto/hugging_face.md": "transformers"}  # what the library itself does not need
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def name(path):
    return str(path.relative_to(DOCS))


def with_examples():
    found = {path: list(examples(path.read_text(encoding="utf-8"))) for path in PAGES}
    return {path: pairs for path, pairs in found.items() if pairs}


def missing(path):
    """A package that the examples of a page need and that is not there; empty if none."""
    package = NEEDS.get(name(path), "")
    return "" if not package or importlib.util.find_spec(package) else package


@pytest.fixture(scope="module")
def printed(tmp_path_factory, server):
    """What all examples print: one process, a namespace for each page."""
    pages = {
        name(path): [code for code, _ in pairs]
        for path, pairs in with_examples().items()
        if not missing(path)
    }
    return run(pages, tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("path", with_examples(), ids=name)
def test_examples_print_what_the_page_says(path, printed):
    if missing(path):
        pytest.skip(f"needs {missing(path)}, which is no part of the tests' environment")
    assert not wrong(with_examples()[path], printed[name(path)])


@pytest.mark.parametrize("page", sorted((DOCS / "topics").glob("*.md")), ids=lambda p: p.stem)
def test_every_notion_has_formula_source_and_example(page):
    text = page.read_text(encoding="utf-8")
    if page.stem == "index":
        others = {other.stem for other in page.parent.glob("*.md")} - {"index"}
        assert all(f"\n{other}\n" in text for other in others)
        return
    assert "$" in FENCE.sub("", text) and "**Source.**" in text
    assert any(output for _, output in examples(text))


@pytest.mark.parametrize("path", sorted((DOCS / "api").glob("*.md")), ids=name)
def test_documented_names_are_there(path):
    module = "resid_theory"
    for kind, of in re.findall(
        r"^\.\. (\w+):: (\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE
    ):
        if kind in ("currentmodule", "automodule"):
            module = of
            importlib.import_module(module)
        elif kind in ("autofunction", "autoclass", "autodata", "autoexception"):
            found = importlib.import_module(module)
            for part in of.removeprefix(module + ".").split("."):
                found = getattr(found, part)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_between_pages(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = [target for target in LINK.findall(text) if "://" not in target]
    made = {"claims.md", "history.md", "coverage.md", "names.md"}
    written = [target for target in targets if target.split("/")[-1] not in made]
    assert not [target for target in written if not (path.parent / target).exists()]


# The look-over of a built site -------------------------------------------------------------------


@pytest.fixture(scope="module")
def check():
    """docs/check.py as a module."""
    spec = importlib.util.spec_from_file_location("check", DOCS / "check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def faults_of(check, folder, body):
    (folder / "other.html").write_text('<p id="place">', encoding="utf-8")
    (folder / "figure.png").write_bytes(b"")
    path = folder / "index.html"
    path.write_text(f"<html><body>{body}</body></html>", encoding="utf-8")
    pages = {file: check.Page(file) for file in folder.glob("*.html")}
    return list(check.faults_of(path, pages[path], pages))


GOOD = """<a href="other.html#place">a</a> <a href="#here" id="here">b</a>
<img src="figure.png" alt="d">
<p>|λ| is a number.</p>
<a href="https://arxiv.org">c</a> <img alt="e" src="data:image/png;base64,AA==">"""


def test_a_good_page_has_no_fault(check, tmp_path):
    assert not faults_of(check, tmp_path, GOOD)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="gone.html">a</a>', "links to gone.html, which is not there"),
        ('<a href="other.html#gone">a</a>', "which has no such place"),
        ('<a href="#gone">a</a>', "which has no such place"),
        ('<img alt="f" src="gone.png">', "gone.png is not there"),
        ('<img src="figure.png">', "has 1 figures without alternative text"),
        ('<img src="figure.png" alt="figure.png">', "has 1 figures without alternative text"),
        ("<p>| a | b |\n|---|---|</p>", "shows a table as text"),
        ('<script src="https://cdn.net/a.js"></script>', "from a network"),
        ('<link rel="stylesheet" href="//cdn.net/a.css">', "from a network"),
        ("<pre>Traceback (most recent call last):</pre>", "a traceback"),
        ('<span class="problematic">`x`</span>', "an unresolved reference"),
    ],
    ids=lambda value: value[:12] if value[0] == "<" else None,
)
def test_each_fault_of_a_page_is_seen(check, tmp_path, body, fault):
    (found,) = faults_of(check, tmp_path, GOOD + body)
    assert fault in found


def test_a_site_without_search_index_or_page_is_seen(check, tmp_path):
    (tmp_path / "index.html").write_text("", encoding="utf-8")
    assert "there is no search index" in list(check.search_faults(tmp_path, {}))
    assert any("has no page" in fault for fault in check.missing_pages(tmp_path))


def test_without_a_site_one_is_asked_for(check, tmp_path, capsys):
    assert check.main([str(tmp_path)]) == 2
    assert "run `make docs` first" in capsys.readouterr().err
