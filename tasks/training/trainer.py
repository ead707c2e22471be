"""MIR inside ``transformers.Trainer``: measured while training, logged where the loss is logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from mir_plugin.errors import MirError
from mir_plugin.measurement.comparable import protocol_differences
from mir_plugin.model_adapters.in_memory.host_parts import is_processor
from mir_plugin.model_adapters.in_memory.own_model import Encode, OwnModel
from mir_plugin.model_adapters.in_memory.sharded import require_data_parallel
from mir_plugin.processes import current_group
from mir_plugin.results import RESULT_NAME, MirConfig, MirResult
from mir_plugin.samples.embedded import embedded_samples
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.selection.monitor import metrics_of, saturated, undisturbed
from mir_plugin.tasks.training.live import live_adapter, measure_live

logger = logging.get_logger(__name__)
N_SAMPLES = 32
SUPERSEDED_NAME = f"{RESULT_NAME}.superseded"  # no command reads it
_RESULTS = f"checkpoint-*/{RESULT_NAME}"


class MIRCallback(TrainerCallback):
    """Measures MIR of the live model at regular steps, without disturbing the training.

    Values go through ``trainer.log``: to ``trainer_state.json`` and to every tracker of ``report_to``, as ``mir/mir``,
    ``mir/standard_error``, ``mir/length_share``, ``mir/at_equal_length`` and ``mir/layer_k``. Whole results are kept
    in ``history`` and written to ``OUTPUT_DIR/mir/checkpoint-STEP/mir.json``, which `mir compare`, `mir select` and
    `mir report` read. A training that resumes from a checkpoint takes up the results of the steps before it; those of
    later steps, which an earlier training left there, are renamed to ``mir.json.superseded``.

    Several processes share the samples. A measurement that fails in mid-training (features that are not finite, not
    enough memory) is a warning, not the end of the training; a model that cannot be measured at all is an error before
    the first step.

    >>> trainer = Trainer(model, arguments, train_dataset=pairs, processing_class=processor)  # doctest: +SKIP
    >>> trainer.add_callback(MIRCallback(trainer, every_steps=100, stop_after=3))  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP

    Args:
        trainer: what the callback is added to; its log takes the values.
        sample_set: what to measure on, the same at every step; 32 embedded pairs by default.
        every_steps: measure after every so many optimizer steps.
        every_epochs: measure after every so many epochs. Without one of the two, at every checkpoint that is saved.
        config: the protocol; the paper's by default.
        processor: of the model; the trainer's ``processing_class`` by default.
        adapter: for a model of one's own class: what makes the forward pass's arguments and the masks of samples
            (``mir_plugin.model_adapters.in_memory.own_model.OwnModel``); then no processor is needed.
        batch_size: samples per forward pass; None takes one on a CPU and several on an accelerator.
        stop_after: end the training once none of so many measurements is distinguishably lower than the one before
            them; None never does.
        out_dir: folder for the results; None takes ``mir`` in the trainer's output folder.
    Raises:
        MirError: for intervals below 1, both intervals, no processor, or a single sample to tell saturation by.
    """

    def __init__(
        self,
        trainer: Trainer,
        sample_set: SampleSet | None = None,
        *,
        every_steps: int | None = None,
        every_epochs: int | None = None,
        config: MirConfig | None = None,
        processor: Any = None,
        adapter: Encode | OwnModel | None = None,
        batch_size: int | None = None,
        stop_after: int | None = None,
        out_dir: Path | str | None = None,
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise MirError(
                f"MIRCallback needs the Trainer that it logs through, got {type(trainer).__name__}. Call "
                "trainer.add_callback(MIRCallback(trainer, ...)) once the trainer exists."
            )
        if every_steps is not None and every_epochs is not None:
            raise MirError("give either every_steps or every_epochs, not both.")
        for name, value in {"every_steps": every_steps, "every_epochs": every_epochs, "stop_after": stop_after}.items():
            if value is not None and value < 1:
                raise MirError(f"{name} is {value}; expected 1 or more, or None.")
        self._trainer = trainer
        self._sample_set = sample_set or embedded_samples(N_SAMPLES)
        if stop_after is not None and len(self._sample_set) < 2:
            raise MirError("stop_after needs at least 2 samples, to tell progress from noise.")
        self._processor = processor if processor is not None else trainer.processing_class
        self._adapter = adapter
        if adapter is None and not is_processor(self._processor):
            raise MirError(
                f"MIRCallback needs the model's processor for images and text; the trainer's processing_class is "
                f"{type(self._processor).__name__}. Give processor=AutoProcessor.from_pretrained(...), or "
                "adapter= for a model of your own class."
            )
        self._every_steps, self._every_epochs = every_steps, every_epochs
        self._config, self._batch_size, self._stop_after = config, batch_size, stop_after
        self._run_dir = Path(cast("str", trainer.args.output_dir))  # the Trainer sets one where none is given
        self._out_dir = Path(out_dir) if out_dir is not None else self._run_dir / "mir"
        self._results: dict[int, MirResult] = {}

    @property
    def history(self) -> dict[int, MirResult]:
        """Results by step, in order."""
        return dict(self._results)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make sure that model and samples fit, before hours of training; take up results of a resumed training."""
        model = self._model
        require_data_parallel(model, _parallel_sizes(self._trainer))
        group = current_group()
        with undisturbed(model):
            live = live_adapter(model, self._processor, self._adapter, group, identified=False)
            with group.agreed("encoding the first sample"):
                live.encode(self._sample_set.samples[:1])
        if state.is_world_process_zero:
            self._set_aside_after(state.global_step)
        self._results = group.broadcast(self._earlier_results(state.global_step))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure at every ``every_steps``-th optimizer step."""
        if self._every_steps and state.global_step % self._every_steps == 0:
            self._measure(state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure after every ``every_epochs``-th epoch."""
        if self._every_epochs and round(state.epoch or 0) % self._every_epochs == 0:
            self._measure(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure what was just saved, if no interval was named."""
        if not (self._every_steps or self._every_epochs):
            self._measure(state, control)

    @property
    def _model(self) -> nn.Module:
        return cast("nn.Module", self._trainer.model)  # None only before it is made, in a hyperparameter search

    def _measure(self, state: TrainerState, control: TrainerControl) -> None:
        step = state.global_step
        try:
            result = measure_live(
                self._model,
                self._processor,
                self._sample_set,
                self._config,
                adapter=self._adapter,
                checkpoint=str(self._run_dir / f"checkpoint-{step}"),
                place=str(self._run_dir.resolve() / f"checkpoint-{step}"),
                batch_size=self._batch_size,
            )
        except (MirError, RuntimeError) as error:  # also out of memory, or linear algebra that did not converge
            logger.warning(f"MIR was not measured at step {step}; continuing. {error}")
            return
        self._results = {s: r for s, r in self._results.items() if not protocol_differences(r, result)} | {step: result}
        if state.is_world_process_zero:
            result.save(self._out_dir / f"checkpoint-{step}" / RESULT_NAME)
            for sentence in result.fragile:
                logger.warning(f"MIR {result.mir:.4f} at step {step} is fragile: {sentence}")
        # Trainer.log ends the request to log this step's loss, which the Trainer has yet to answer.
        loss_is_due = control.should_log
        self._trainer.log(metrics_of(result))
        control.should_log = loss_is_due
        if self._stop_after and saturated(list(self._results.values()), self._stop_after):
            logger.warning(
                f"MIR {result.mir:.4f} at step {step}: none of the last {self._stop_after} measurements is "
                "distinguishably lower than the one before them. Training stops."
            )
            control.should_training_stop = True

    def _earlier_results(self, last_step: int) -> dict[int, MirResult]:
        """Results of an interrupted run up to the step it resumes from; none for a run that starts anew."""
        return {step: MirResult.load(path) for step, path in self._saved().items() if step <= last_step}

    def _set_aside_after(self, last_step: int) -> None:
        """Keep results of an earlier training in this folder from being taken for this one's."""
        stale = [path for step, path in self._saved().items() if step > last_step]
        for path in stale:
            path.replace(path.with_name(SUPERSEDED_NAME))
        if stale:
            logger.warning(
                f"{len(stale)} MIR results of an earlier training in {self._out_dir} are of steps after {last_step}; "
                f"they are renamed to {SUPERSEDED_NAME}."
            )

    def _saved(self) -> dict[int, Path]:
        """Results in the folder, by step."""
        paths = {path.parent.name.removeprefix("checkpoint-"): path for path in self._out_dir.glob(_RESULTS)}
        return dict(sorted((int(step), path) for step, path in paths.items() if step.isdecimal()))


def _parallel_sizes(trainer: Trainer) -> dict[str, int]:
    """Sizes of the dimensions over which accelerate computes one sample, by its names."""
    config = getattr(trainer.accelerator, "parallelism_config", None)
    return {name: getattr(config, f"{name}_size", None) or 1 for name in ("tp", "cp", "sp")}
