"""Progress where there is no terminal: a line now and then, with the time left."""

from __future__ import annotations

import pytest

from mir_plugin.engine import progress as module
from mir_plugin.engine.progress import progress


def test_what_lasts_tells_how_far_it_is_and_how_long_the_rest_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 20))  # every look at it is 20 s later
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(clock)))
    assert list(progress(range(5), "decoder layers", "layer")) == [0, 1, 2, 3, 4]
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "mir: decoder layers: layer 1 of 5, about 3 min left",
        "mir: decoder layers: layer 3 of 5, about 53 s left",
    ]


def test_what_is_quick_prints_nothing_and_only_the_first_process_speaks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(progress(range(50), "decoder layers", "layer")) == list(range(50))
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setenv("RANK", "1")
    assert list(progress(range(50), "decoder layers", "layer")) == list(range(50))
    assert capsys.readouterr().err == ""
