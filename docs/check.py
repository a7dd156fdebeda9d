"""Look over the built site: python docs/check.py [docs/_build/html]. Prints faults; 1 if any.

Pages are there, internal links and figures resolve, no page holds a traceback or an unresolved
reference, nothing is fetched from a network, every public name is in the inventory, and the search
index knows every page. Where a Chromium is found (on the path, or named by $CHROMIUM), formulas are
rendered in it, without a network.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

HERE = Path(__file__).resolve().parent
TRACEBACK = "Traceback (most recent call last)"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Page(HTMLParser):
    """Links, figures and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.unnamed = 0
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        self.unnamed += tag == "img" and found.get("alt", "") in ("", found.get("src"))
        is_style = tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload")
        source = found.get("href" if is_style else "src", "")
        if source and (is_style or tag in ("img", "script", "iframe", "source")):
            self.fetched.append(source)


def faults(site: Path) -> Iterator[str]:
    """All that is wrong with a built site, in words."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    yield from missing_pages(site)
    for path, page in pages.items():
        name = path.relative_to(site)
        yield from (f"{name}: {wrong}" for wrong in faults_of(path, page, pages))
    yield from search_faults(site, pages)
    yield from names_missing(site)


def missing_pages(site: Path) -> Iterator[str]:
    """A page for every source."""
    for source in sorted([*HERE.rglob("*.md"), *HERE.rglob("*.ipynb")]):
        name = source.relative_to(HERE)
        if "_build" not in name.parts and not (site / name.with_suffix(".html")).is_file():
            yield f"{name} has no page"


def faults_of(path: Path, page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    """Of one page."""
    if TRACEBACK in page.text:
        yield "holds a traceback"
    if "problematic" in page.text or "system-message" in page.text:
        yield "holds an unresolved reference"
    if re.search(r"<p>\| ", page.text):
        yield "shows a table as text"
    if page.unnamed:
        yield f"has {page.unnamed} figures without alternative text"
    for source in page.fetched:
        if re.match(r"(https?:)?//", source):
            yield f"fetches {source} from a network"
        elif not source.startswith("data:") and not target(path, source).is_file():
            yield f"{source} is not there"
    for link in page.links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        aim = target(path, file) if file else path
        if not aim.exists():
            yield f"links to {link}, which is not there"
        elif anchor and aim in pages and unquote(anchor) not in pages[aim].anchors:
            yield f"links to {link}, which has no such place"


def target(path: Path, link: str) -> Path:
    """The file that a relative link of a page names."""
    return (path.parent / unquote(link.partition("?")[0])).resolve()


def search_faults(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """The search index knows every page that has a source."""
    index = site / "searchindex.js"
    if not index.is_file():
        yield "there is no search index"
        return
    known = index.read_text(encoding="utf-8")
    for path in pages:
        name = path.relative_to(site).with_suffix("").as_posix()
        if (HERE / f"{name}.md").is_file() and f'"{name}"' not in known:
            yield f"the search index does not know {name}"


def names_missing(site: Path) -> Iterator[str]:
    """The inventory has every public name."""
    sys.path.insert(0, str(HERE.parent))
    import resid_theory as rt
    from resid_theory import stability, theory

    content = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    known = {line.split(" ", 1)[0] for line in zlib.decompress(content).decode().splitlines()}
    public = {name: getattr(rt, name) for name in rt.__all__}
    names = [home(name, v) for name, v in public.items() if not inspect.ismodule(v)]
    for room in (theory, stability):
        names += [f"{room.__name__}.{name}" for name in room.__all__ if not name.isupper()]
    yield from (f"{name} has no entry" for name in sorted(set(names)) if name not in known)


def home(name: str, value: object) -> str:
    """The name under which a public object is described: of its room, or of a module of runtime."""
    room = ".".join(value.__module__.split(".")[:2])
    return f"{room}.{name}" if hasattr(sys.modules[room], name) else f"{value.__module__}.{name}"


def browser() -> str | None:
    """A Chromium, if there is one."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


def unrendered(program: str, site: Path) -> Iterator[str]:
    """Pages whose formulas a browser without a network does not render."""
    for path in sorted(site.rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        wanted = len(re.findall(r'class="math notranslate', text))
        if not wanted:
            continue
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        options += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000"]
        done = subprocess.run(
            [program, *options, path.as_uri()], capture_output=True, text=True, timeout=120
        )
        found, wrong = done.stdout.count("<mjx-container"), done.stdout.count("<mjx-merror")
        if found < wanted or wrong:
            name = path.relative_to(site)
            yield f"{name}: {found} of {wanted} formulas rendered, {wrong} with an error"


def main(arguments: list[str]) -> int:
    """Check a site and print what is wrong."""
    site = Path(arguments[0] if arguments else HERE / "_build" / "html").resolve()
    if not (site / "index.html").is_file():
        print(f"{site} holds no site: run `make docs` first, or name the folder.", file=sys.stderr)
        return 2
    found = list(faults(site))
    program = browser()
    if program is None:
        print("Formulas were not rendered: no Chromium on the path, and $CHROMIUM is not set.")
    else:
        found += unrendered(program, site)
    print(*found, sep="\n")
    print(f"{len(list(site.rglob('*.html')))} pages, {len(found)} faults.")
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
