"""The README's examples run, in order, in one fresh interpreter, and print what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
MARK = "-- end of an example --"
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def examples(text):
    """Pairs of a python block and the text block directly behind it, or None."""
    blocks = list(FENCE.finditer(text))
    for block, after in zip(blocks, [*blocks[1:], None], strict=True):
        if block[1] == "python":
            follows = after and after[1] == "text" and not text[block.end() : after.start()].strip()
            yield block[2], after[2] if follows else None


def run(codes, folder):
    """What each piece of code prints; all share one namespace, as a reader's session would."""
    script = folder / "readme.py"
    script.write_text("".join(f"{code}\nprint({MARK!r})\n" for code in codes), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script.name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split(f"{MARK}\n")[:-1]


def mismatches(text, folder):
    """Examples whose output differs from what stands behind them."""
    pairs = list(examples(text))
    printed = run([code for code, _ in pairs], folder)
    return [
        (code, expected, output)
        for (code, expected), output in zip(pairs, printed, strict=True)
        if expected is not None and expected.strip() != output.strip()
    ]


def test_readme_examples(tmp_path):
    if not README.exists():
        pytest.skip("no README.md yet")
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


def test_what_is_printed_is_compared(tmp_path):
    assert not mismatches(SAMPLE, tmp_path)
    assert mismatches(SAMPLE.replace("x = 2", "x = 3"), tmp_path) == [
        ("print(x + 1)\n", "3\n", "4\n")
    ]


def test_an_example_that_raises_fails(tmp_path):
    with pytest.raises(AssertionError, match="NameError"):
        mismatches(SAMPLE.replace("x = 2", "y = 2"), tmp_path)
