"""The pages of docs/ print what they say, and link to pages that are there."""

import re
from pathlib import Path

import pytest
from test_readme import FENCE, examples, run, wrong

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
COPIED = {"_build", "notebooks", "claims.md", "names.md"}  # what docs/conf.py makes
PAGES = sorted(path for path in DOCS.rglob("*.md") if not COPIED & set(path.parts))
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def name(path):
    return str(path.relative_to(DOCS))


def with_examples():
    found = {path: list(examples(path.read_text(encoding="utf-8"))) for path in PAGES}
    return {path: pairs for path, pairs in found.items() if pairs}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What all examples print: one interpreter, a namespace for each page."""
    pages = {name(path): [code for code, _ in pairs] for path, pairs in with_examples().items()}
    return run(pages, tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("path", with_examples(), ids=name)
def test_examples_print_what_the_page_says(path, printed):
    assert not wrong(with_examples()[path], printed[name(path)])


@pytest.mark.parametrize("page", sorted((DOCS / "notions").glob("*.md")), ids=lambda p: p.stem)
def test_every_notion_has_formula_source_and_example(page):
    text = page.read_text(encoding="utf-8")
    if page.stem == "index":
        others = {other.stem for other in page.parent.glob("*.md")} - {"index"}
        assert all(f"\n{other}\n" in text for other in others)
        return
    assert "$" in FENCE.sub("", text) and "**Source.**" in text
    assert any(output for _, output in examples(text))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_between_pages(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = [target for target in LINK.findall(text) if "://" not in target]
    made = {"claims.md"}
    written = [target for target in targets if target.split("/")[-1] not in made]
    assert not [target for target in written if not (path.parent / target).exists()]
