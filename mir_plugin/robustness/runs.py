"""Runs the conditions of a robustness study: what is measured already is kept, a checkpoint is loaded when needed."""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mir_plugin.engine.progress import progress
from mir_plugin.errors import MirError
from mir_plugin.measurement.comparable import protocol_differences
from mir_plugin.measurement.measurement import Measurement, lock
from mir_plugin.model_adapters import Checkpoint
from mir_plugin.results import RESULT_NAME, MirConfig, MirResult
from mir_plugin.robustness.choices import ChoiceDistances, KeptChoices
from mir_plugin.robustness.results import (
    TEMPLATE,
    ChoiceResult,
    ConditionResult,
    Robustness,
)
from mir_plugin.robustness.studies import Condition, Plan
from mir_plugin.robustness.verdict import verdicts
from mir_plugin.types import ModelAdapter


class NoTemplate(MirError):
    """The prompts of a checkpoint cannot be built without their template."""


class CheckpointRun:
    """Measures conditions of one checkpoint into a folder each, below its own."""

    def __init__(self, name: str, measurement: Callable[..., Measurement], out_dir: Path) -> None:
        """Prepare a run.

        Args:
            measurement: makes the measurement of ``samples`` into a ``folder``, with what else differs in ``further``.
        """
        self._name, self._measurement, self._out_dir = name, measurement, out_dir
        self._adapter: ModelAdapter | None = None

    def measured(self, condition: Condition, plan: Plan) -> tuple[MirResult, tuple[ChoiceResult, ...]]:
        """The result of a condition, and of the plan's choices where they are taken from it; kept if known.

        Raises:
            NoTemplate: if the condition leaves the template out, and this checkpoint's adapter cannot.
            MirError: if the checkpoint cannot be loaded or measured.
        """
        measurement = self._measurement(
            samples=condition.samples,
            folder=self._out_dir / condition.folder,
            further={} if condition.template else {"template": False},
        )
        with lock(measurement.folder, measurement.group):
            existing = measurement.earlier()
            kept = KeptChoices(measurement, plan) if condition.chosen_too else None
            if existing and (kept is None or kept.results):
                return existing, kept.results if kept else ()
            distances = ChoiceDistances(plan.choices, measurement.protocol) if kept else None
            adapter = self._prompting(condition, measurement)
            if existing and distances:
                measurement.run_layers(adapter, distances)
            result = existing or measurement.measure(adapter, distances)
            if kept and distances:
                everything = ChoiceResult(self._name, result.n_samples, 0, result.mir)
                kept.save([*distances.results(self._name), everything])
            return result, kept.results if kept else ()

    def result_path(self, condition: Condition) -> Path:
        """Where a condition's result is kept."""
        return self._out_dir / condition.folder / RESULT_NAME

    def _prompting(self, condition: Condition, measurement: Measurement) -> ModelAdapter:
        """The checkpoint, loaded once, with or without its template."""
        if self._adapter is None:
            self._adapter = measurement.load()
        if condition.template:
            return self._adapter
        without_template = getattr(self._adapter, "without_template", None)
        if without_template is None:
            raise NoTemplate(f"the adapter {self._adapter.family} cannot leave its template out.")
        try:
            bare: ModelAdapter = without_template()
        except MirError as error:
            raise NoTemplate(str(error)) from error
        return bare


def run_plan(
    plan: Plan,
    checkpoints: Mapping[str, Checkpoint],
    protocol: MirConfig,
    out_dir: Path,
    *,
    batch_size: int | None = None,
    against: Sequence[MirResult] = (),
    force: bool = False,
) -> Robustness:
    """Measure every condition of every checkpoint by name, and judge what comes out.

    Raises:
        MirError: if a checkpoint cannot be loaded or measured; what was measured before is kept.
    """
    results: dict[tuple[str, str], ConditionResult] = {}
    choices: list[ChoiceResult] = []
    skipped = dict(plan.skipped)
    notes: list[str] = []
    for name, checkpoint in checkpoints.items():
        measurement = functools.partial(Measurement, checkpoint, protocol=protocol, batch_size=batch_size, force=force)
        run = CheckpointRun(name, measurement, out_dir / name)
        for condition in progress(plan.conditions, f"conditions of {name}", "condition"):
            try:
                result, of_choices = run.measured(condition, plan)
            except NoTemplate as reason:
                skipped[TEMPLATE] = f"{name}: {reason}"
                continue
            choices += of_choices
            path = run.result_path(condition).relative_to(out_dir)
            results[name, condition.name] = _condition_result(name, condition, result, path)
            if condition.name == plan.conditions[0].name:
                notes += _differences(result, against)
    conditions = tuple(
        dataclasses.replace(results[name, condition.name], study=study)
        for study, of_study in plan.studies.items()
        if study not in skipped
        for condition in of_study
        for name in checkpoints
    )
    if not conditions:
        raise MirError("no study could run: " + " ".join(skipped.values()))
    others = {one.checkpoint: one.mir for one in against}
    return Robustness(
        checkpoints={name: str(checkpoint.name) for name, checkpoint in checkpoints.items()},
        n_samples=conditions[0].n_samples,
        conditions=conditions,
        choices=tuple(choices),
        verdicts=verdicts(conditions, choices, others),
        skipped=skipped,
        against=others,
        notes=tuple(dict.fromkeys(notes)),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def _condition_result(name: str, condition: Condition, result: MirResult, path: Path) -> ConditionResult:
    last = result.layers[-1]
    return ConditionResult(
        checkpoint=name,
        study="",
        condition=condition.name,
        mir=result.mir,
        mir_published=result.mir_published,
        low=result.uncertainty.get("low"),
        high=result.uncertainty.get("high"),
        n_samples=result.n_samples,
        n_vision_tokens=last.n_vision_tokens,
        n_text_tokens=last.n_text_tokens,
        result=path.as_posix(),
    )


def _differences(base: MirResult, against: Sequence[MirResult]) -> list[str]:
    return [
        f"{other.checkpoint} was not measured like the first condition: it differs in {'; '.join(differing)}."
        for other in against
        if (differing := protocol_differences(base, other, ("the first condition", other.checkpoint)))
    ]
