"""Real trainings of the tiny LLaVA, with dropout, with and without MIR being measured in between."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboardX.proto.event_pb2 import Event
from tiny_training import N_STEPS, tiny_llava, trainer_of, with_lora
from torch import nn
from transformers import Trainer, TrainerCallback

from mir_plugin import (
    MIRCallback,
    measure_live,
    metrics_of,
    saturated,
)
from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters.huggingface.adapter import from_loaded
from mir_plugin.results import LayerDistance, MirConfig, MirResult
from mir_plugin.samples.embedded import embedded_samples
from mir_plugin.samples.sample_set import Sample, SampleSet
from mir_plugin.selection.monitor import undisturbed

from tolerances import HANGS, SAME_FEATURES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def samples() -> SampleSet:
    return SampleSet(tuple(dataclasses.replace(s, text=s.text[:80]) for s in embedded_samples(3).samples))


def losses(trainer: Trainer) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]


def logged(trainer: Trainer) -> dict[int, float]:
    return {row["step"]: row["mir/mir"] for row in trainer.state.log_history if "mir/mir" in row}


def scalars(folder: Path) -> Iterator[tuple[int, str, float]]:
    """Step, name and value of everything in TensorBoard's event files."""
    for path in folder.rglob("*tfevents*"):
        content, start = path.read_bytes(), 0
        while start < len(content):  # length of the event, its check sum, the event, its check sum
            end = start + 12 + int.from_bytes(content[start : start + 8], "little")
            event = Event.FromString(content[start + 12 : end])
            yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)
            start = end + 4


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    others = dict(other.named_parameters())
    return all(torch.equal(value, others[name]) for name, value in one.named_parameters())


@pytest.mark.parametrize("how", ["plain", "gradient checkpointing", "accumulation, autocast", "lora"])
def test_a_training_is_the_same_to_the_bit_with_and_without_the_callback(
    how: str, samples: SampleSet, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {
        "gradient checkpointing": {"gradient_checkpointing": True},
        "accumulation, autocast": {"gradient_accumulation_steps": 2, "bf16": True},
        "lora": {"gradient_checkpointing": True},
    }.get(how, {})
    trainers = []
    for measured in (False, True):
        tiny = with_lora(tiny_llava()) if how == "lora" else tiny_llava()
        trainer = trainer_of(tiny, tmp_path / str(measured), **arguments)
        if measured:
            trainer.add_callback(MIRCallback(trainer, samples, every_steps=1))
        trainer.train()
        trainers.append(trainer)
    without, measured_ = trainers
    assert len(losses(without)) == N_STEPS
    assert losses(measured_) == losses(without)
    assert same_weights(measured_.model, without.model)
    values = logged(measured_)
    assert list(values) == [1, 2]
    assert len(set(values.values())) == N_STEPS, "the live weights are measured, and they change"
    # What was logged last is what the trained weights give when they are measured on their own, outside of autocast.
    for module in measured_.model.modules():
        module.__dict__.pop("forward", None)
    adapter = from_loaded(measured_.model, measured_.processing_class)
    alone = measure(adapter, samples, checkpoint="after training", with_uncertainty=False)
    assert values[N_STEPS] == pytest.approx(alone.mir, rel=1e-12)


def test_values_reach_the_trackers_and_the_files(samples: SampleSet, tmp_path: Path) -> None:
    seen: dict[int, dict[str, float]] = {}

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "mir/mir" in logs:
                seen[state.global_step] = dict(logs)

    saving = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "report_to": "tensorboard"}
    trainer = trainer_of(with_lora(tiny_llava()), tmp_path, **saving)
    trainer.add_callback(Tracker)
    callback = MIRCallback(trainer, samples)  # no interval: whenever a checkpoint is saved
    trainer.add_callback(callback)
    trainer.train()
    assert sorted(seen) == list(callback.history) == [2, 4]
    saved = MirResult.load(tmp_path / "mir" / "checkpoint-4" / "mir.json")
    assert saved.checkpoint == str(tmp_path / "checkpoint-4")
    layers = {f"mir/layer_{layer.layer}": layer.distance for layer in saved.layers}
    beside = {"mir/length_share": saved.length_share, "mir/at_equal_length": saved.mir_at_equal_length}
    expected = {"mir/mir": saved.mir, "mir/standard_error": saved.uncertainty["standard_error"], **beside, **layers}
    assert seen[4] == {**expected, "epoch": 1.0}
    written = {tag: value for step, tag, value in scalars(tmp_path / "runs") if step == 4 and "/mir/" in tag}
    assert written == pytest.approx({f"train/{name}": value for name, value in expected.items()}, rel=1e-6)

    resumed = trainer_of(with_lora(tiny_llava()), tmp_path, **saving)
    callback = MIRCallback(resumed, samples)
    resumed.add_callback(callback)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert callback.history[2].mir == seen[2]["mir/mir"], "a resumed training takes up earlier results"
    assert callback.history[4].mir == pytest.approx(saved.mir, rel=1e-12)


def test_a_second_training_into_one_folder_keeps_no_later_step_of_the_first(
    samples: SampleSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for n_steps in (3, 2):
        trainer = trainer_of(tiny_llava(), Path("run"), max_steps=n_steps)
        callback = MIRCallback(trainer, samples, every_steps=1)
        trainer.add_callback(callback)
        trainer.train()
    assert list(callback.history) == [1, 2]
    left = {path.parent.name: MirResult.load(path) for path in (tmp_path / "run/mir").rglob("mir.json")}
    assert {name: result.mir for name, result in left.items()} == {
        f"checkpoint-{step}": result.mir for step, result in callback.history.items()
    }
    assert left["checkpoint-2"].place == str(tmp_path / "run/checkpoint-2")
    assert (tmp_path / "run/mir/checkpoint-3/mir.json.superseded").is_file()


def test_a_training_that_no_longer_lowers_mir_stops(samples: SampleSet, tmp_path: Path) -> None:
    trainer = trainer_of(tiny_llava(), tmp_path, learning_rate=0.0, max_steps=20)
    trainer.add_callback(MIRCallback(trainer, samples, every_steps=2, stop_after=2))
    trainer.train()
    assert trainer.state.global_step == 6
    assert [step for step, _, _ in losses(trainer)] == [1, 2, 3, 4, 5, 6], "the loss of the last step is logged too"


@pytest.mark.parametrize(
    "error",
    [MirError("3 of 40 vision tokens at layer 2 are NaN"), torch.linalg.LinAlgError("3 of 40 values did not converge")],
    ids=lambda error: type(error).__name__,
)
def test_epochs_are_an_interval_and_a_failed_measurement_does_not_end_the_training(
    error: Exception,
    samples: SampleSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from mir_plugin.tasks.training import trainer as module

    def fails(*_: Any, checkpoint: str, **__: Any) -> MirResult:
        if checkpoint.endswith("checkpoint-4"):
            raise error
        return measured(*_, checkpoint=checkpoint, **__)

    measured = module.measure_live
    monkeypatch.setattr(module, "measure_live", fails)
    monkeypatch.setattr(module.logger, "propagate", True)
    trainer = trainer_of(tiny_llava(), tmp_path, max_steps=8)
    trainer.add_callback(MIRCallback(trainer, samples, every_epochs=1))
    trainer.train()
    assert list(logged(trainer)) == [8]
    assert "not measured at step 4; continuing. 3 of 40" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"every_steps": 0}, "every_steps is 0"),
        ({"every_steps": 5, "every_epochs": 1}, "every_steps or every_epochs"),
        ({"stop_after": 1, "sample_set": SampleSet((Sample("one", b"", "text"),))}, "at least 2 samples"),
        ({"processor": "tokenizer"}, "processing_class is str"),
    ],
)
def test_mistakes_are_told_before_the_training(arguments: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(MirError, match=says):
        MIRCallback(trainer_of(tiny_llava(), tmp_path), **arguments)
    with pytest.raises(MirError, match=r"got int.*add_callback"):
        MIRCallback(100)


def test_a_model_that_cannot_be_measured_ends_the_training_before_its_first_step(tmp_path: Path) -> None:
    trainer = trainer_of(tiny_llava(), tmp_path)
    trainer.add_callback(MIRCallback(trainer, SampleSet((Sample("broken", b"no image", "text"),)), every_steps=1))
    with pytest.raises(MirError, match="sample broken: the image cannot be read"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_the_block_restores_modes_random_states_and_gradients() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.Linear(3, 1))
    model[0].eval()  # a frozen part, in evaluation mode while the rest trains
    model(torch.ones(2, 3)).sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]

    def drawn() -> tuple[float, float, float]:
        return random.random(), np.random.rand(), torch.rand(1).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = drawn()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    with pytest.raises(ZeroDivisionError), torch.autocast("cpu"), undisturbed(model):
        assert not any(module.training for module in model.modules())
        output = model(torch.ones(2, 3))
        assert not output.requires_grad
        assert output.dtype == torch.float32
        drawn()
        raise ZeroDivisionError
    assert drawn() == expected
    assert [module.training for module in model] == [False, True, True]
    assert model.training
    assert torch.is_grad_enabled()
    assert all(torch.equal(p.grad, before) for p, before in zip(model.parameters(), gradients, strict=True))


def result_of(mir: float, influences: list[float] | None, name: str = "checkpoint") -> MirResult:
    fields = dict.fromkeys([field.name for field in dataclasses.fields(LayerDistance)], 0.0)
    layer = LayerDistance(**{**fields, "layer": 1, "distance": 10**mir})
    spread = {} if influences is None else {"standard_error": 1.0, "influences": " ".join(map(str, influences))}
    return MirResult(
        checkpoint=name,
        family="toy",
        mir=mir,
        mir_published=None,
        mir_published_upper=None,
        n_samples=4,
        estimator="exact",
        config=MirConfig(),
        fingerprints={"samples": "s", "protocol": "p"},
        layers=(layer,),
        uncertainty=spread and {**spread, "layers": [spread]},
    )


NOISE = [0.01, -0.01, 0.01, -0.01]


@pytest.mark.parametrize(
    ("values", "patience", "expected"),
    [
        ([3.0, 2.0, 1.0], 2, False),
        ([3.0, 2.0, 2.0], 2, False),  # still waiting: the first is distinguishably higher
        ([3.0, 2.0, 2.0, 2.0], 2, True),
        ([3.0, 2.0, 2.5, 2.6], 2, True),  # rising is no progress either
        ([2.0, 2.0], 2, False),  # too few to say
        ([2.0, 1.97, 1.94, 1.91], 3, False),  # each step is within the noise, all three are not
        ([2.0, 1.97], 1, True),
    ],
)
def test_saturation_is_no_distinguishable_fall_since_the_result_before_the_last_ones(
    values: list[float], patience: int, expected: bool
) -> None:
    results = [result_of(value, NOISE if index % 2 else [0.0] * 4) for index, value in enumerate(values)]
    assert saturated(results, patience) is expected


def test_saturation_needs_the_uncertainty() -> None:
    with pytest.raises(MirError, match="measured without uncertainty"):
        saturated([result_of(2.0, None)] * 2, 1)
    with pytest.raises(MirError, match="patience is 0"):
        saturated([], 0)


@pytest.mark.skipif(sys.platform != "linux", reason="forked processes with torch loaded need Linux")
@pytest.mark.usefixtures("one_thread")
def test_two_processes_of_ddp_train_as_without_and_measure_as_one(samples: SampleSet, tmp_path: Path) -> None:
    # Forked, not spawned: a fresh interpreter would import torch and transformers for seconds.
    context = multiprocessing.get_context("fork")

    def process(rank: int, answers: Any) -> None:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        trained = []
        for measured in (False, True):
            trainer = trainer_of(tiny_llava(), tmp_path / str(measured), max_steps=2)
            if measured:
                trainer.add_callback(MIRCallback(trainer, samples, every_steps=1, stop_after=2))
            trainer.train()
            trained.append(losses(trainer))
        assert isinstance(trainer.model_wrapped, nn.parallel.DistributedDataParallel)
        weights = {name: value.detach().numpy().copy() for name, value in trainer.model.named_parameters()}
        answers.put((rank, trained, logged(trainer), weights if rank == 0 else None))
        torch.distributed.barrier()
        os._exit(0)  # the Trainer's process group has no owner that would close it

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.SimpleQueue()
    processes = [context.Process(target=process, args=(rank, answers)) for rank in range(2)]
    for one in processes:
        one.start()
    deadline = time.monotonic() + HANGS
    found: dict[int, Any] = {}
    while len(found) < 2 and time.monotonic() < deadline and any(one.is_alive() for one in processes):
        if answers.empty():
            time.sleep(0.01)
        else:
            rank, *answer = answers.get()
            found[rank] = answer
    for one in processes:
        one.join(timeout=5)
        one.kill()
    assert sorted(found) == [0, 1]
    (trained, values, weights), (trained_1, values_1, _) = found[0], found[1]
    assert trained[0] == trained[1]
    assert trained_1[0] == trained_1[1]
    assert values == values_1
    shared = MirResult.load(tmp_path / "True" / "mir" / "checkpoint-2" / "mir.json")
    assert shared.engine["processes"] == 2
    tiny = tiny_llava()
    tiny.model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, strict=False)
    alone = measure_live(tiny.model, tiny.processor, samples)
    # One thread here as there: the features are the same bits, and only sums of shards in float64 can differ.
    assert values[2] == pytest.approx(alone.mir, rel=SAME_FEATURES)


def test_a_plain_loop_logs_the_same_names(samples: SampleSet) -> None:
    tiny = tiny_llava()
    tiny.model.train()
    result = measure_live(tiny.model, tiny.processor, samples, checkpoint="step 7")
    assert tiny.model.training
    beside = ["mir/standard_error", "mir/length_share", "mir/at_equal_length"]
    assert list(metrics_of(result)) == ["mir/mir", *beside, "mir/layer_1", "mir/layer_2", "mir/layer_3"]
    assert result.checkpoint == "step 7"
    assert result.host == "training"
