"""``mir`` run inside the tests' own process."""

from __future__ import annotations

import sys

import pytest

from mir_plugin.cli import main


def mir(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["mir", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
        sys.exit(0)
    return int(exit_.value.code or 0)
