"""The README's examples run, in order, in one process, and print what it says."""

import importlib
import os
import re
import sys
from pathlib import Path

import interrupted
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
MARK, PAGE = "-- end of an example --", "-- end of a page --"
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def examples(text):
    """Pairs of a python block and the text block directly behind it, or None."""
    blocks = list(FENCE.finditer(text))
    for block, after in zip(blocks, [*blocks, None][1:], strict=True):
        if block[1] == "python":
            follows = after and after[1] == "text" and not text[block.end() : after.start()].strip()
            yield block[2], after[2] if follows else None


def run(pages, folder):
    """What each piece of code of each page prints: {page: pieces} to {page: outputs}.

    The pieces of a page share one namespace, as a reader's session would; pages share nothing.
    """
    modules = {f"page_{number}": pieces for number, pieces in enumerate(pages.values())}
    for module, pieces in modules.items():
        code = "".join(f"{piece}\nprint({MARK!r})\n" for piece in pieces)
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
    script = "".join(f"import {module}\nprint({PAGE!r})\n" for module in modules)
    (folder / "pages.py").write_text(script, encoding="utf-8")
    child = interrupted.server().Process(target=print_all, args=[folder])
    child.start()
    child.join(600)
    child.kill()  # does nothing to one that has ended
    assert child.exitcode == 0, (folder / "raised").read_text(encoding="utf-8")
    of_pages = (folder / "printed").read_text(encoding="utf-8").split(f"{PAGE}\n")[:-1]
    return {name: text.split(f"{MARK}\n")[:-1] for name, text in zip(pages, of_pages, strict=True)}


def print_all(folder):
    """Run the pages as a new interpreter would, which imports of ours what they name."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # pages of one second and length would share it
    ours = ("resid_theory", "experiments")
    for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
        del sys.modules[name]
    torch.manual_seed(0)
    sys.stdout, sys.stderr = (open(name, "w", encoding="utf-8") for name in ("printed", "raised"))
    importlib.import_module("pages")


def wrong(pairs, printed):
    """Examples whose output differs from what stands behind them."""
    return [
        (code, expected, output)
        for (code, expected), output in zip(pairs, printed, strict=True)
        if expected is not None and expected.strip() != output.strip()
    ]


def mismatches(text, folder):
    """The wrong examples of one page."""
    pairs = list(examples(text))
    return wrong(pairs, run({"page": [code for code, _ in pairs]}, folder)["page"])


@pytest.mark.usefixtures("server")
def test_readme_examples(tmp_path):
    text = README.read_text(encoding="utf-8")
    assert list(examples(text)), "README.md has no python example"
    assert not mismatches(text, tmp_path)


# The test itself ---------------------------------------------------------------------------------

SAMPLE = """
```sh
make demo
```
```python
x = 2
```
Then:

```python
print(x + 1)
```

```text
3
```
```python
print("not compared")
```
as text stands between:
```text
other
```
"""


def test_blocks_are_paired_with_the_output_directly_behind():
    assert list(examples(SAMPLE)) == [
        ("x = 2\n", None),
        ("print(x + 1)\n", "3\n"),
        ('print("not compared")\n', None),
    ]


@pytest.mark.usefixtures("server")
def test_what_is_printed_is_compared(tmp_path):
    assert not mismatches(SAMPLE, tmp_path)
    assert mismatches(SAMPLE.replace("x = 2", "x = 3"), tmp_path) == [
        ("print(x + 1)\n", "3\n", "4\n")
    ]


@pytest.mark.usefixtures("server")
def test_an_example_that_raises_fails(tmp_path):
    with pytest.raises(AssertionError, match="NameError"):
        mismatches(SAMPLE.replace("x = 2", "y = 2"), tmp_path)
