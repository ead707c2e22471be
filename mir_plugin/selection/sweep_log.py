"""A sweep in an experiment tracker: one run, with MIR against the training step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from mir_plugin.errors import MirError
from mir_plugin.selection.monitor import metrics_of
from mir_plugin.selection.sweep import SweepEntry

TrackerName = Literal["wandb", "tensorboard", "mlflow", "trackio"]
PROJECT = "mir-sweep"


class TrackedSweep:
    """A run of an experiment tracker: MIR, its standard error and the layers against the training step.

    Trackers are those of accelerate. Values of a sweep over several runs have the run's name in front.
    """

    def __init__(self, name: TrackerName, out_dir: Path, config: Mapping[str, Any]) -> None:
        """Start the run.

        Args:
            out_dir: where trackers that write files write them.
            config: what the tracker shows beside the values.
        Raises:
            MirError: if the tracker is not installed.
        """
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

        if name not in map(str, get_available_trackers()):
            package = "tensorboardX" if name == "tensorboard" else name
            raise MirError(f"--log {name}: {name} is not installed. Run: pip install {package}")
        PartialState()  # the trackers' own log messages ask which process this is
        tracker_class = LOGGER_TYPE_TO_CLASS[name]
        folder = {"logging_dir": str(out_dir)} if tracker_class.requires_logging_directory else {}
        self._tracker = tracker_class(PROJECT, **folder)
        start = getattr(self._tracker, "start", None)  # accelerate 1.0 to 1.7 start in the constructor
        if start is not None:
            start()
        self._tracker.store_init_configuration({key: str(value) for key, value in config.items()})
        self._against_step = name == "wandb"
        if self._against_step:  # its own counter must not go back, as it does from one run to the next
            self._tracker.tracker.define_metric("step")
            self._tracker.tracker.define_metric("*", step_metric="step")

    def log(self, entry: SweepEntry, n_runs: int) -> None:
        """Log a finished checkpoint; one of unknown step has no place on the axis and is left out."""
        if entry.result is None or entry.step is None:
            return
        values = {**metrics_of(entry.result), **{f"indicators/{name}": v for name, v in entry.indicators.items()}}
        if n_runs > 1:
            values = {f"{Path(entry.run).name}/{name}": value for name, value in values.items()}
        if self._against_step:
            self._tracker.log({**values, "step": entry.step})
        else:
            self._tracker.log(values, step=entry.step)

    def finish(self) -> None:
        """End the run."""
        self._tracker.finish()


def tracker_named(text: str) -> TrackerName:
    """The tracker that ``--log`` names. Raises MirError for others."""
    for name in get_args(TrackerName):
        if name == text:
            tracker: TrackerName = name
            return tracker
    raise MirError(f"--log {text}: expected one of {', '.join(get_args(TrackerName))}.")
