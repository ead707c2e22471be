"""Many checkpoints, one after another: what is waiting, measured or failed, and the files that say so at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mir_plugin.errors import MirError
from mir_plugin.files.atomic import not_writable, write_atomically
from mir_plugin.files.outside_text import csv_table
from mir_plugin.files.redaction import without_secrets
from mir_plugin.indicators.file import recorded_indicators
from mir_plugin.measurement.checkpoint_names import (
    in_training_order,
    result_name,
    run_of,
    shown,
    step_of,
)
from mir_plugin.measurement.resume import changed_since, folders_of
from mir_plugin.metric.uncertainty import TOLERANCE
from mir_plugin.results import RESULT_NAME, MirConfig, MirResult, is_filed_under
from mir_plugin.selection.ranked import Candidate
from mir_plugin.selection.select import Selection, select
from mir_plugin.selection.shards import TABLE_NAME

State = Literal["waiting", "running", "measured", "kept", "failed"]
SCHEMA_VERSION = 1
SWEEP_NAME, LINES_NAME = "sweep.json", "sweep.jsonl"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepEntry:
    """One checkpoint of a sweep.

    Attributes:
        name: of its folder below the output folder; unique in the sweep.
        state: "kept" is a result that an earlier sweep had saved for the same request.
        seconds: from loading to saving.
        look: how many samples to measure next, where they are taken step by step; None is the fewest.
        asked: whether this sweep was asked for it; else it is what an earlier sweep left in the folder.
        indicators: those that were recorded beside the result, on the same samples and weights.
    """

    checkpoint: Path
    name: str
    run: str
    step: int | None
    state: State = "waiting"
    result: MirResult | None = None
    error: str | None = None
    seconds: float | None = None
    indicators: Mapping[str, float] = field(default_factory=dict)
    look: int | None = None
    asked: bool = True

    @property
    def is_done(self) -> bool:
        """Whether nothing more will be done about it."""
        return self.state in ("measured", "kept", "failed")


@dataclass(frozen=True)
class Measured:
    """What measuring one checkpoint gave; ``kept`` if the result was there before."""

    result: MirResult
    kept: bool


class Sweep:
    """Measures checkpoints in training order; a failure is noted, and the rest goes on.

    ``sweep.json`` and ``sweep.csv`` in the output folder are written anew after every checkpoint.

    Attributes:
        entries: in the order in which they are measured.
    """

    def __init__(
        self,
        out_dir: Path,
        measure: Callable[..., Measured],
        *,
        further: Callable[[Sequence[SweepEntry]], Mapping[str, int]] | None = None,
        tolerance: float = TOLERANCE,
        on_change: Callable[[], None] = lambda: None,
        on_finished: Callable[[SweepEntry], None] = lambda _: None,
        writes: bool = True,
        share: Path | None = None,
    ) -> None:
        """Prepare a sweep without checkpoints.

        Args:
            measure: checkpoint, path of its mir.json → what was measured and saved there. A third argument is the
                number of samples, where ``further`` named one.
            further: entries → by name, on how many samples to measure some of them next; called when nothing waits.
            tolerance: as for ``selection.select``.
            on_change: called whenever an entry changes, for displays.
            on_finished: called with every entry that is finished, be it measured, kept or failed.
            writes: false in all but one of several processes.
            share: folder for the table of a share of a sweep (``selection.shards``), in place of the output folder.
        """
        self.entries: list[SweepEntry] = []
        self.out_dir = out_dir
        self._measure, self._further = measure, further
        self._provisional: set[str] = set()
        self._tolerance = tolerance
        self._on_change = on_change
        self._on_finished = on_finished
        self._writes = writes
        self._share = share

    def add(self, checkpoints: Iterable[Path]) -> None:
        """Append checkpoints in training order; one that is there already is measured again, if its files changed."""
        saved = {path.parent.name: result for path, result in self._saved()}
        for checkpoint in in_training_order(checkpoints):
            known = self._index_of(checkpoint)
            if known is not None:
                self.entries[known] = dataclasses.replace(self.entries[known], state="waiting", look=None, asked=True)
                continue
            others = {
                name
                for name, result in saved.items()
                if not is_filed_under(result.checkpoint, result.place, checkpoint)
            }
            name = result_name(checkpoint, others | {one.name for one in self.entries})
            self.entries.append(SweepEntry(checkpoint, name, _run(checkpoint), step_of(checkpoint)))
        self._in_training_order()
        self._changed()

    def leave_out(self, reasons: Mapping[Path, str]) -> None:
        """Append checkpoints that are not measured, with the reason; they do not count as failures."""
        measured = {one.checkpoint.resolve() for one in self.entries if one.result}
        reasons = {checkpoint: reason for checkpoint, reason in reasons.items() if checkpoint.resolve() not in measured}
        self.add(reasons)
        for checkpoint, reason in reasons.items():
            if (index := self._index_of(checkpoint)) is not None:
                changed = dataclasses.replace(self.entries[index], state="failed", error=reason, asked=False)
                self.entries[index] = changed
        self._changed()

    def recall(
        self,
        samples_fingerprint: str,
        config: MirConfig,
        loading: str,
        tables: Iterable[Path] = (),
    ) -> list[Path]:
        """Take in what earlier sweeps left in the output folder, so that a narrower one does not shrink the table.

        Trainings delete old checkpoints; what was measured of them still counts.

        Args:
            samples_fingerprint, config, loading: of this sweep; results of others are left alone. Where samples are
                taken step by step, the fingerprint of the fewest.
            tables: where failures are noted, besides sweep.json.
        Returns:
            Results that were measured or loaded in another way, or of other files than the checkpoint has now.
        """
        left_out = []
        for path, result in self._saved():
            prints = result.fingerprints
            fewest = result.at(result.numbers_of_samples[0]) if self._further else result
            same_samples = fewest.fingerprints.get("samples") == samples_fingerprint
            alike = same_samples and prints.get("loading") == loading and result.config == config
            if not alike or changed_since(folders_of(result), prints["checkpoint"]):
                left_out.append(path)
                continue
            checkpoint = shown(Path(result.place or result.checkpoint))
            entry = SweepEntry(checkpoint, path.parent.name, run_of(checkpoint), step_of(checkpoint), asked=False)
            indicators = recorded_indicators(path.parent, result)
            self._take_in(dataclasses.replace(entry, state="kept", result=result, indicators=indicators))
        for row in (row for path in (self.out_dir / SWEEP_NAME, *tables) for row in _failed_rows(path)):
            checkpoint = Path(row["checkpoint"])
            entry = SweepEntry(checkpoint, row["name"], row["run"], row["step"], asked=False)
            self._take_in(dataclasses.replace(entry, state="failed", error=row["error"]))
        self._in_training_order()
        return left_out

    @property
    def n_runs(self) -> int:
        """Runs among the entries."""
        return len({one.run for one in self.entries})

    def keep_only(self, own: Mapping[Path, str]) -> None:
        """Leave all entries but these to others: checkpoint → name of its folder."""
        kept = [one for one in self.entries if one.checkpoint in own]
        self.entries = [dataclasses.replace(one, name=own[one.checkpoint]) for one in kept]
        self._changed()

    def take_over(self, samples_fingerprint: str, config: MirConfig, loading: str, tables: Iterable[Path]) -> None:
        """After the shares of a sweep: take in what the others measured, or failed to measure, and write the tables.

        Args:
            samples_fingerprint, config, loading: as for ``recall``.
            tables: of all shares.
        """
        self._share = None
        self.recall(samples_fingerprint, config, loading, tables)
        self._changed()

    def seconds_left(self) -> float | None:
        """About how long what waits will take, by what was measured before; None without any of that."""
        waiting = sum(not one.is_done and one.result is None for one in self.entries)  # others are likely to be kept
        known = [one.seconds for one in self.entries if one.state == "measured" and one.seconds is not None]
        known = known or [one.result.timing["total"] for one in self.entries if one.result and one.result.timing]
        at_a_time = max(1, sum(one.state == "running" for one in self.entries))
        return waiting * sum(known) / len(known) / at_a_time if known else None

    def _take_in(self, entry: SweepEntry) -> None:
        """Add an entry of an earlier sweep; of several results of one checkpoint the latest."""
        known = self._index_of(entry.checkpoint)
        if known is None:
            self.entries.append(entry)
        elif (there := self.entries[known].result) and entry.result and there.created < entry.result.created:
            self.entries[known] = entry

    def _index_of(self, checkpoint: Path) -> int | None:
        """Of the entry of a checkpoint, under whatever spelling or link; None if there is none."""
        place = checkpoint.resolve()
        return next((i for i, one in enumerate(self.entries) if one.checkpoint.resolve() == place), None)

    def _in_training_order(self) -> None:
        """Sort by run and step; one folder may have been given in several spellings."""
        order = {path: i for i, path in enumerate(in_training_order(shown(one.checkpoint) for one in self.entries))}
        self.entries.sort(key=lambda one: order[shown(one.checkpoint)])

    def _saved(self) -> Iterator[tuple[Path, MirResult]]:
        """The results below the output folder that can be read."""
        for path in sorted(self.out_dir.glob(f"*/{RESULT_NAME}")):
            try:
                result = MirResult.load(path)
            except MirError:  # not ours, or of another version
                continue
            yield path, result

    def run(self) -> None:
        """Measure all that wait, and further samples of those that need them."""
        self._run()
        while self.look_further():
            self._run()

    def look_further(self) -> bool:
        """Let those wait again that need more samples, now that nothing waits; whether there are any."""
        if self._further is None:
            return False
        looks = self._further(self.entries)
        for name, look in looks.items():
            self.note(name, state="waiting", look=look)
        for entry in self.entries:
            if entry.name in self._provisional - looks.keys():
                self._finished(entry)
        self._provisional &= looks.keys()
        return bool(looks)

    def _run(self) -> None:
        while (index := next((i for i, one in enumerate(self.entries) if one.state == "waiting"), None)) is not None:
            self._set(index, dataclasses.replace(self.entries[index], state="running", error=None))
            self._measured(self.entries[index])

    def waiting(self) -> list[SweepEntry]:
        """What is still to be measured, in order."""
        return [one for one in self.entries if one.state == "waiting"]

    def note(self, name: str, **changes: Any) -> None:
        """Replace fields of the entry of this name; for those who measure several at a time."""
        index = next(i for i, one in enumerate(self.entries) if one.name == name)
        self._set(index, dataclasses.replace(self.entries[index], **changes))

    def note_measured(self, name: str, measured: Measured, seconds: float) -> None:
        """Note what has come of a checkpoint; its files stand in its folder already."""
        self.note(
            name,
            state="kept" if measured.kept else "measured",
            result=measured.result,
            seconds=seconds,
            indicators=recorded_indicators(self.out_dir / name, measured.result),
        )

    @contextmanager
    def noting_failure(self, name: str) -> Iterator[None]:
        """An error in the block is that of one checkpoint, and is noted as such."""
        try:
            yield
        except MirError as error:
            self.note(name, state="failed", result=None, error=without_secrets(str(error)))
        except Exception as error:  # out of memory, or a bug of ours: one checkpoint must not cost the others
            checkpoint = next(one.checkpoint for one in self.entries if one.name == name)
            logger.exception("measuring %s failed", checkpoint)
            reason = without_secrets(f"{type(error).__name__}: {error}")
            self.note(name, state="failed", result=None, error=reason)

    def refresh(self) -> None:
        """Show how far measurements are, without a change of state."""
        self._on_change()

    def selection(self) -> Selection | None:
        """The verdict over all that is measured; None without a result.

        Raises:
            MirError: if results are not comparable (checkpoints of families with different prompts).
        """
        candidates = [
            Candidate(one.name, one.run, one.step, one.result) for one in self.entries if one.result is not None
        ]
        return select(candidates, tolerance=self._tolerance) if candidates else None

    def as_json(self) -> dict[str, Any]:
        """What sweep.json holds."""
        verdict: dict[str, Any] = {"selection": None}
        try:
            selection = self.selection()
            verdict["selection"] = None if selection is None else selection.as_json()
        except MirError as error:
            verdict["selection_impossible"] = str(error)
        return {"schema_version": SCHEMA_VERSION, "checkpoints": [_row(one) for one in self.entries], **verdict}

    def _measured(self, entry: SweepEntry) -> None:
        started = time.perf_counter()
        with self.noting_failure(entry.name):
            look = () if entry.look is None else (entry.look,)
            measured = self._measure(entry.checkpoint, self.out_dir / entry.name / RESULT_NAME, *look)
            self.note_measured(entry.name, measured, time.perf_counter() - started)

    def _set(self, index: int, entry: SweepEntry) -> None:
        self.entries[index] = entry
        self._changed()
        if entry.is_done and self._further and entry.result:
            self._provisional.add(entry.name)  # more samples may follow
        elif entry.is_done:
            self._finished(entry)

    def _finished(self, entry: SweepEntry) -> None:
        if self._writes:
            self._append(entry)
        self._on_finished(entry)

    def _changed(self) -> None:
        if self._writes:
            path = self._share / TABLE_NAME if self._share else self.out_dir / SWEEP_NAME
            write_atomically(path, json.dumps(self.as_json(), indent=2, allow_nan=False) + "\n")
            if self._share is None:
                write_atomically(self.out_dir / "sweep.csv", as_csv([_row(one) for one in self.entries]))
        self._on_change()

    def _append(self, entry: SweepEntry) -> None:
        """One line for a checkpoint that is finished, for dashboards; none for a result that has one already."""
        path = (self._share or self.out_dir) / LINES_NAME
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        row = _row(entry)
        if entry.state == "kept" and (row["name"], row["mir"]) in _told(path):
            return
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"time": now, **row}, allow_nan=False) + "\n")
        except OSError as error:
            raise not_writable(path, error) from error


def _run(checkpoint: Path) -> str:
    """As ``mir select`` names it from the result: by where the folder lies, whatever links lead there."""
    return run_of(shown(checkpoint.parent.resolve() / checkpoint.name))


def _told(path: Path) -> set[tuple[str, float]]:
    """Name and MIR of the lines of an earlier sweep; a line that a kill cut short counts for nothing."""
    told = set()
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                told.add((row["name"], row["mir"]))
    return told


def _failed_rows(path: Path) -> list[Any]:
    """The checkpoints that failed in an earlier sweep, as its sweep.json has them; nothing from a damaged file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["checkpoints"]
        failed = [row for row in rows if row["state"] == "failed"]
        return [
            row for row in failed if all(isinstance(row[name], str) for name in ("checkpoint", "name", "run", "error"))
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """The rows of sweep.json as a table, a column for each indicator; what is not known is an empty cell."""
    rows = list(rows)
    facts = [name for name in _row(SweepEntry(Path(), "", "", None)) if name != "indicators"]
    names = dict.fromkeys(name for row in rows for name in row["indicators"] if name not in facts)
    headings = [*facts, *names]
    cells = ({**row["indicators"], **row} for row in rows)
    return csv_table([headings, *([row.get(heading) for heading in headings] for row in cells)])


def _row(entry: SweepEntry) -> dict[str, Any]:
    result = entry.result
    spread = result.uncertainty if result else {}
    return {
        "name": entry.name,
        "run": entry.run,
        "step": entry.step,
        "state": entry.state,
        "mir": result.mir if result else None,
        "standard_error": spread.get("standard_error"),
        "low": spread.get("low"),
        "high": spread.get("high"),
        "mir_published": result.mir_published if result else None,
        "mir_published_upper": result.mir_published_upper if result else None,
        "mir_at_equal_length": result.mir_at_equal_length if result else None,
        "length_share": result.length_share if result else None,
        "fragile": " ".join(result.fragile) if result else "",
        "n_samples": result.n_samples if result else None,
        "seconds": entry.seconds,
        "indicators": dict(entry.indicators),
        "checkpoint": str(entry.checkpoint),
        "result": f"{entry.name}/{RESULT_NAME}" if result else None,
        "error": entry.error,
    }
