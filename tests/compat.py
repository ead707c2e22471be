"""Installs the project into one environment after another and tries it there; `make compat` runs this.

    python tests/compat.py [NAME …] [--python 3.12] [--demo-only] [--keep]

Each environment gets what its name says, the unit tests, the recorded values and the demo. It is made with uv, whose
cache hard-links what it has already, and removed before the next one is made. The exit code is the number that failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "compat"
ENVIRONMENTS = {
    # Without the bound, the newest sentence-transformers (of lmms-eval) would ask for transformers 5.
    "lowest": ("--resolution", "lowest-direct", "transformers<5"),
    "newest": (),
    "transformers-4.57": ("transformers==4.57.*",),
    "constraints": ("--constraint", "constraints.txt"),
}
# What the tests import and the program does not need.
TEST_REQUIREMENTS = ("hypothesis", "jsonschema", "peft", "pytest", "pytest-xdist", "selenium", "tensorboardX")


@dataclass
class Report:
    """How one environment did; each step is the last line of what it printed."""

    name: str
    steps: dict[str, str]
    failed: bool
    minutes: float

    def __str__(self) -> str:
        steps = "".join(f"\n  {step:<8}{line}" for step, line in self.steps.items())
        return f"{'FAILED' if self.failed else 'ok':<8}{self.name} ({self.minutes:.1f} min){steps}"


def main() -> int:
    """Try the named environments, all by default, and print a line for each step."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("names", nargs="*", default=list(ENVIRONMENTS), metavar="NAME", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}", help="which Python")
    parser.add_argument("--demo-only", action="store_true", help="leave out unit tests and recorded values")
    parser.add_argument("--keep", action="store_true", help="leave the environments in build/compat")
    options = parser.parse_args()
    if unknown := set(options.names) - set(ENVIRONMENTS):
        parser.error(f"unknown environment {', '.join(sorted(unknown))}; choose from {', '.join(ENVIRONMENTS)}")
    reports = []
    for name in options.names:
        reports.append(try_environment(name, options.python, demo_only=options.demo_only))
        print(reports[-1], flush=True)
        if not options.keep:
            shutil.rmtree(FOLDER / name, ignore_errors=True)
    return sum(report.failed for report in reports)


def try_environment(name: str, python: str, *, demo_only: bool) -> Report:
    """Install into a fresh environment and run the steps up to the first that fails."""
    started, folder = time.monotonic(), FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    interpreter, bin_folder = folder / "venv" / "bin" / "python", folder / "venv" / "bin"
    install = [uv(), "pip", "install", "--quiet", "--python", str(interpreter)]
    tests = [str(interpreter), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    steps = {
        "venv": [uv(), "venv", "--quiet", "--python", python, str(folder / "venv")],
        "install": [*install, ".", *ENVIRONMENTS[name]],
        # Without the resolution above: what is installed already stays.
        "tools": [*install, *TEST_REQUIREMENTS],
        "unit": [*tests, "-m", "not slow and not host", "tests"],
        "parity": [*tests, "tests/parity"],
        "demo": [str(bin_folder / "mir"), "demo", "--out", str(folder / "demo")],
    }
    if demo_only:
        steps = {step: command for step, command in steps.items() if step not in ("tools", "unit", "parity")}
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    said: dict[str, str] = {}
    for step, command in steps.items():
        log = folder / f"{step}.log"
        # Programs that the demo starts would import the package from the folder that they stand in.
        where = folder if step == "demo" else ROOT
        with log.open("w", encoding="utf-8") as output:
            done = subprocess.run(command, cwd=where, env=environment, stdout=output, stderr=output, check=False)
        said[step] = summary(step, log.read_text(encoding="utf-8", errors="replace"))
        if done.returncode:
            print(log.read_text(encoding="utf-8", errors="replace")[-4000:], file=sys.stderr)
            return Report(name, said, True, (time.monotonic() - started) / 60)
    return Report(name, said, False, (time.monotonic() - started) / 60)


def summary(step: str, text: str) -> str:
    """What a step's output comes down to: the values of the demo, else the last line."""
    if step == "demo" and (values := re.findall(r"^ *(\S+: MIR .*)$", text, flags=re.MULTILINE)):
        return "; ".join(values)
    lines = text.strip().splitlines()
    return lines[-1] if lines else "done"


def uv() -> str:
    """uv of this environment, else the one on the path."""
    beside = Path(sys.executable).parent / "uv"
    return str(beside) if beside.is_file() else "uv"


if __name__ == "__main__":
    sys.exit(main())
