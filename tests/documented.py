"""What the documentation shows: its pages, their blocks and commands, and how a command is run as the page tells.

Conventions, the same on every page:

* Every block says its language. ``console`` blocks hold commands behind ``$ `` and the output that follows; ``bash``
  blocks are scripts. Both run offline in a folder of the page's own, one after another, from links to the repository.
* In shown output a line ``…`` stands for any lines, and ``…`` inside a line for anything; numbers hold to the digits
  shown. A command ends well unless the next one is ``echo $?``.
* A block whose first line is ``# needs: …`` is not run, because what it needs is not there; its options are parsed.
* A block with ``title="FILE"`` is written to that file. An untitled ``python`` block is run.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
DOCS = REPOSITORY / "docs"
LANGUAGES = {"bash", "console", "css", "ini", "json", "python", "text", "toml", "yaml"}
# What a page may name as if it were run in a clone.
LINKED = ("mir_plugin", "tests", "examples")
WIDTH = 110


@dataclass(frozen=True)
class Command:
    """What stands behind ``$ ``, continuation lines joined, and the lines it is shown to print."""

    text: str
    shown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """One fenced block; ``line`` is that of its opening fence."""

    page: Path
    line: int
    language: str
    title: str | None
    lines: tuple[str, ...]

    @property
    def needs(self) -> str | None:
        """What has to be there for it to run, if more than a clone."""
        marked = re.fullmatch(r"# needs: (.+)", self.lines[0]) if self.lines else None
        return marked.group(1) if marked else None

    @property
    def text(self) -> str:
        """Its content."""
        return "\n".join(self.lines) + "\n"

    def commands(self) -> list[Command]:
        """Of a console block those behind ``$ ``; of a bash block its lines, without what they print."""
        found: list[Command] = []
        continues = False
        for line in self.lines:
            begins = self.language == "bash" or line.startswith("$ ")
            if continues:
                found[-1] = Command(f"{found[-1].text.removesuffix(chr(92))} {line.strip()}")
            elif begins and not line.startswith("#"):
                found.append(Command(line.removeprefix("$ ")))
            elif found and not line.startswith("# "):
                found[-1] = Command(found[-1].text, (*found[-1].shown, line))
            continues = bool(found) and found[-1].text.endswith("\\")
        return [Command(_without_comment(one.text), one.shown) for one in found if one.text.strip()]

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def pages() -> list[Path]:
    """README, CONTRIBUTING and everything under docs/."""
    return [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("```"):
            lines.append(line)
        elif opened is None:
            opened, lines = (number, line.removeprefix("```").strip()), []
        else:
            language, _, attributes = opened[1].partition(" ")
            title = re.search(r'title="([^"]+)"', attributes)
            found.append(Block(page, opened[0], language, title.group(1) if title else None, tuple(lines)))
            opened = None
    assert opened is None, f"{page}: the block that begins in line {opened} does not end"
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def _without_comment(command: str) -> str:
    return re.sub(r"\s+# .*$", "", command).strip()


@dataclass
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str

    def shows(self, lines: tuple[str, ...]) -> bool:
        """Whether these lines are its output, or its messages followed by its output."""
        pattern = _pattern(lines)
        return any(_matches(pattern, text, lines) for text in (self.out, self.err + self.out))

    def difference(self, lines: tuple[str, ...]) -> str:
        """The shown lines against those that came out, for people."""
        return "\n".join(difflib.unified_diff(lines, _clean(self.out).splitlines(), "shown", "came out", lineterm=""))


@dataclass
class Workspace:
    """A folder in which the commands of one page run in this process, as in a clone."""

    folder: Path
    last: Outcome = field(default_factory=lambda: Outcome(0, "", ""))

    def __post_init__(self) -> None:
        for name in LINKED:
            (self.folder / name).symlink_to(REPOSITORY / name)

    def run(self, command: str) -> Outcome:
        """Run one command; ``mir`` and ``python FILE`` in this process, which spares their imports."""
        if command == "echo $?":
            return Outcome(0, f"{self.last.code}\n", "")
        target = re.fullmatch(r"(.*?)\s+>\s*(\S+)", command)
        words = shlex.split(target.group(1) if target else command)
        variables = {}
        while re.match(r"[A-Z_]+=", words[0]):
            name, _, variables[name] = words.pop(0).partition("=")
        plain = not re.search(r"[|;&]", command)
        if words[0] == "mir" and plain:
            outcome = self._in_process(words, variables)
        elif words[0] == "python" and words[1].endswith(".py") and plain:
            outcome = self._in_process(words[1:], variables)
        else:
            return self.script(command)
        if target:
            (self.folder / target.group(2)).write_text(outcome.out, encoding="utf-8")
            outcome = Outcome(outcome.code, "", outcome.err)
        self.last = outcome
        return outcome

    def script(self, text: str) -> Outcome:
        """Run lines in a shell that finds this environment's programs."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "COLUMNS": str(WIDTH)}
        done = subprocess.run(
            ["bash", "-c", text], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )
        self.last = Outcome(done.returncode, done.stdout, done.stderr)
        return self.last

    def _in_process(self, words: list[str], variables: dict[str, str]) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with self._here(words, variables), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                if words[0] == "mir":
                    from mir_plugin.cli import main

                    main()
                else:
                    runpy.run_path(words[0], run_name="__main__")
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        return Outcome(code, out.getvalue(), err.getvalue())

    @contextlib.contextmanager
    def _here(self, words: list[str], variables: dict[str, str]) -> Iterator[None]:
        """Working directory, arguments, variables and import path of a process started in the folder."""
        before = Path.cwd(), sys.argv, dict(os.environ), list(sys.path), set(sys.modules)
        paths = [self.folder / part for part in variables.get("PYTHONPATH", "").split(os.pathsep) if part]
        os.chdir(self.folder)
        sys.argv = words
        os.environ.update({"COLUMNS": str(WIDTH), "HF_HUB_OFFLINE": "1", **variables})
        sys.path[:0] = [str(self.folder)] if words[0] != "mir" else [str(path.resolve()) for path in paths]
        try:
            yield
        finally:
            os.chdir(before[0])
            sys.argv, sys.path[:] = before[1], before[3]
            os.environ.clear()
            os.environ.update(before[2])
            for name in set(sys.modules) - before[4]:
                file = getattr(sys.modules[name], "__file__", None) or ""
                if file.startswith(str(self.folder.resolve())):
                    del sys.modules[name]


def _clean(text: str) -> str:
    """Without what pads lines, and without empty ones."""
    return "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip())


NUMBER = re.compile(r"\d+(?:\.\d+)?")


def _pattern(lines: tuple[str, ...]) -> re.Pattern[str]:
    parts = []
    for line in _clean("\n".join(lines)).splitlines():
        if line == "…":
            parts.append(r"(?:.*\n)*?")
            continue
        escaped = r".*?".join(_piece(piece) for piece in line.split("…"))
        parts.append(escaped + r"\n")
    return re.compile("".join(parts))


def _piece(text: str) -> str:
    """A literal in which every number is a group, and space and ruled lines are of any length."""
    literals, numbers = NUMBER.split(text), NUMBER.findall(text)
    escaped = [re.sub(r"─+", "─+", re.sub(r"(?:\\ )+", r"\\s+", re.escape(one))) for one in literals]
    groups = [r"(\d+(?:\.\d+)?)" if "." in number else rf"({number})" for number in numbers]
    return "".join(one for pair in zip(escaped, [*groups, ""], strict=True) for one in pair)


def _matches(pattern: re.Pattern[str], text: str, lines: tuple[str, ...]) -> bool:
    found = pattern.fullmatch(_clean(text))
    if not found:
        return False
    shown = [number for line in lines for number in NUMBER.findall(line)]
    return all(_agree(one, other) for one, other in zip(shown, found.groups(), strict=True))


def _agree(shown: str, came_out: str) -> bool:
    """Equal to the digits shown; the last one may differ by 1, as rounding does on another processor."""
    digits = len(shown.partition(".")[2])
    return abs(float(shown) - float(came_out)) <= 1.01 * 10**-digits if digits else shown == came_out
