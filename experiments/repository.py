"""The history of this repository, read from git without checking anything out."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from experiments.digest import Reader, Sources


@dataclass(frozen=True)
class Change:
    """Change of a file in a commit.

    Attributes:
        commit: The commit.
        path: Path from the root.
        before: Blobs in the parents.
        after: Blob in the commit; None if the file is not in it.
    """

    commit: str
    path: str
    before: tuple[str, ...]
    after: str | None


class Repository:
    """A git checkout, open for reading; a context manager."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._texts: dict[str, str] = {}
        self._sources: dict[str, Sources] = {}
        self._reading: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._reading is not None:
            self._reading.communicate()

    @cached_property
    def is_whole(self) -> bool:
        """True if git is there, with all commits: a shallow clone tells nothing."""
        return self._git("rev-parse", "--is-shallow-repository") == "false\n"

    @cached_property
    def commits(self) -> frozenset[str]:
        """HEAD and its ancestors."""
        return frozenset((self._git("rev-list", "HEAD") or "").split())

    def sources(self, commit: str) -> Sources:
        """The Python sources of a commit."""
        if commit not in self._sources:
            self._sources[commit] = Sources(self._reader(commit))
        return self._sources[commit]

    def text(self, blob: str) -> str:
        """Text of a blob."""
        if blob not in self._texts:
            if self._reading is None:
                self._reading = subprocess.Popen(
                    ["git", "cat-file", "--batch"],
                    cwd=self.root,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            asked, told = self._reading.stdin, self._reading.stdout
            assert asked is not None and told is not None
            asked.write(f"{blob}\n".encode())
            asked.flush()
            _, kind, size = told.readline().split()
            if kind != b"blob":
                raise ValueError(f"blob: got {blob}, which git does not know")
            self._texts[blob] = told.read(int(size)).decode(errors="replace")
            told.read(1)
        return self._texts[blob]

    def changes(self, folder: Path) -> Iterator[Change]:
        """Changes of the files under a folder in HEAD and its ancestors, the latest first."""
        commit = ""
        form = ("--format=%H", "--raw", "-c", "--full-history", "--no-renames", "--abbrev=40")
        for line in (self._git("log", *form, "--", self._place(folder)) or "").splitlines():
            if line.startswith(":"):
                yield _change(commit, line)
            elif line:
                commit = line

    def committed(self, folder: Path) -> dict[Path, str]:
        """Blobs of the files under a folder in HEAD."""
        listed = self._git("ls-tree", "-r", "HEAD", "--", f"{self._place(folder)}/") or ""
        found = (line.split("\t", 1) for line in listed.splitlines())
        return {self.root / path: about.split()[2] for about, path in found}

    def since(self, path: Path) -> frozenset[str]:
        """Commits that the one that first added a file is no descendant of, and not itself."""
        added = self._git("log", "--diff-filter=A", "--format=%H", "--", self._place(path)) or ""
        if not added:
            return frozenset()
        return frozenset((self._git("rev-list", f"{added.split()[-1]}..HEAD") or "").split())

    def _place(self, path: Path) -> str:
        return path.resolve().relative_to(self.root.resolve()).as_posix()

    def _reader(self, commit: str) -> Reader:
        blobs = {}
        for line in (self._git("ls-tree", "-r", commit) or "").splitlines():
            about, path = line.split("\t", 1)
            if path.endswith((".py", ".pyi")):
                blobs[path] = about.split()[2]
        return lambda path: self.text(blobs[path]) if path in blobs else None

    def _git(self, *arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=self.root, capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout


def _change(commit: str, line: str) -> Change:
    about, path = line.split("\t", 1)
    parents = len(about) - len(about.lstrip(":"))
    blobs = about.split()[parents + 1 : 2 * parents + 2]
    none = {"0" * len(blobs[0])}
    return Change(
        commit=commit,
        path=path,
        before=tuple(blob for blob in blobs[:-1] if blob not in none),
        after=None if blobs[-1] in none else blobs[-1],
    )
