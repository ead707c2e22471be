"""``MIRCallback`` under FSDP, in TRL's SFTTrainer, with models of one's own; what it refuses before the first step."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from adapters.tiny_models import CHATML, TinyModel
from forked import together
from tiny_training import N_STEPS, tiny_llava, trainer_of, with_lora
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import Trainer, TrainingArguments

from examples.training.small_vlm import SmallVLM, encode
from mir_plugin import MIRCallback, MirError, MirResult, measure, measure_live
from mir_plugin.model_adapters.huggingface.adapter import from_loaded
from mir_plugin.model_adapters.in_memory.sharded import sharding_of
from mir_plugin.model_adapters.introspection.decoder import find_decoder
from mir_plugin.processes import Group
from mir_plugin.samples.embedded import embedded_samples
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.tasks.training import live

from tolerances import SAME_FEATURES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform != "linux", reason="forked processes with torch loaded need Linux"),
]


@pytest.fixture
def samples() -> SampleSet:
    return SampleSet(tuple(dataclasses.replace(s, text=s.text[:80]) for s in embedded_samples(5).samples))


def numbers(trainer: Trainer) -> list[tuple[float, float]]:
    return [(row["loss"], float(row["grad_norm"])) for row in trainer.state.log_history if "loss" in row]


def launched(group: Group, port: int) -> None:
    """What torchrun sets. accelerate shards on accelerators only: it is told that these processes have one each."""
    os.environ |= {"RANK": str(group.rank), "LOCAL_RANK": str(group.rank), "WORLD_SIZE": str(group.size)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(group.size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    plain = AcceleratorState.__init__

    def told(state: Any, *args: Any, **kwargs: Any) -> None:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        plain(state, *args, **kwargs)

    AcceleratorState.__init__ = told  # type: ignore[method-assign]  # in a process of its own


@pytest.mark.full
@pytest.mark.parametrize("how", ["full", "lora"])
def test_the_trainer_under_fsdp_is_measured_exactly_and_not_disturbed(
    how: str, samples: SampleSet, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(group: Group) -> tuple[list[Any], dict[str, Any]]:
        launched(group, port)
        trained = []
        for measured in (False, True):
            tiny = with_lora(tiny_llava()) if how == "lora" else tiny_llava()
            # accelerate's FSDP1 wants an accelerator; tests/test_sharded_training.py has it without the Trainer.
            sharding = {"version": 2, "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
            folder = tmp_path / str(measured)
            trainer = trainer_of(
                tiny, folder, fsdp="full_shard auto_wrap", fsdp_config=sharding, per_device_train_batch_size=1
            )
            if measured:
                trainer.add_callback(MIRCallback(trainer, samples, every_steps=1))
            trainer.train()
            trained.append(numbers(trainer))
        assert any(isinstance(module, FSDPModule) for module in trainer.model.modules())
        whole = get_model_state_dict(trainer.model, options=StateDictOptions(full_state_dict=True))
        return trained, {name: value.numpy().copy() for name, value in whole.items()}

    answers = together(2, work, tmp_path)
    for answer in answers:
        assert not isinstance(answer, Exception), answer
        (without, measured), _ = answer
        assert len(without) == N_STEPS
        assert measured == without
    found = MirResult.load(tmp_path / "True" / "mir" / f"checkpoint-{N_STEPS}" / "mir.json")
    tiny = with_lora(tiny_llava()) if how == "lora" else tiny_llava()
    tiny.model.load_state_dict({name: torch.from_numpy(w) for name, w in answers[0][1].items()}, strict=False)
    alone = measure(from_loaded(tiny.model, tiny.processor), samples, checkpoint="gathered")
    assert found.mir == pytest.approx(alone.mir, rel=SAME_FEATURES)
    assert found.fingerprints["checkpoint"] == alone.fingerprints["checkpoint"]
    assert found.facts["sharding"] == "FSDP2"
    assert found.engine["processes"] == 2


@pytest.mark.full
@pytest.mark.parametrize("how", ["full", "lora"])
def test_trls_trainer_is_measured_and_not_disturbed(how: str, samples: SampleSet, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed")
    from datasets import Dataset

    pairs = embedded_samples(4).samples
    rows = [
        {
            "images": [pair.open_image()],
            "prompt": [{"role": "user", "content": "What is it?"}],
            "completion": [{"role": "assistant", "content": pair.text[:40]}],
        }
        for pair in pairs
    ]
    trained = []
    for measured in (False, True):
        tiny = with_lora(tiny_llava()) if how == "lora" else tiny_llava()
        tiny.processor.chat_template = CHATML.replace("IMAGE", "<image>")
        arguments = trl.SFTConfig(
            output_dir=str(tmp_path / str(measured)), max_steps=N_STEPS, per_device_train_batch_size=2, use_cpu=True,
            bf16=False, learning_rate=0.01, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
            max_length=None,
        )  # fmt: skip
        trainer = trl.SFTTrainer(
            tiny.model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tiny.processor
        )
        if measured:
            trainer.add_callback(MIRCallback(trainer, samples, every_steps=1))
        trainer.train()
        trained.append(numbers(trainer))
    assert len(trained[0]) == N_STEPS
    assert trained[0] == trained[1]
    found = MirResult.load(tmp_path / "True" / "mir" / f"checkpoint-{N_STEPS}" / "mir.json")
    logged = [row["mir/mir"] for row in trainer.state.log_history if "mir/mir" in row]
    assert logged[-1] == found.mir
    assert found.mir == pytest.approx(measure_live(trainer.model, tiny.processor, samples).mir, rel=SAME_FEATURES)


class OwnTrainer(Trainer):
    """For a model of its own class, whose loss comes second."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        logits, loss = model(**inputs)
        return (loss, logits) if return_outputs else loss


def test_a_model_of_ones_own_class_is_measured_in_the_trainer(samples: SampleSet, tmp_path: Path) -> None:
    rows = []
    for pair in embedded_samples(4, seed=1).samples:
        inputs, vision, _ = encode([pair])
        rows.append({**inputs, "targets": inputs["input_ids"].masked_fill(vision, -100)})
    trained = []
    for measured in (False, True):
        torch.manual_seed(0)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(measured)), max_steps=N_STEPS, per_device_train_batch_size=1, use_cpu=True,
            logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        model = SmallVLM()
        trainer = OwnTrainer(model, arguments, train_dataset=rows, data_collator=lambda batch: batch[0])
        if measured:
            trainer.add_callback(MIRCallback(trainer, samples, every_steps=1, adapter=encode))
        trainer.train()
        trained.append(numbers(trainer))
    assert len(trained[0]) == N_STEPS
    assert trained[0] == trained[1]
    found = MirResult.load(tmp_path / "True" / "mir" / f"checkpoint-{N_STEPS}" / "mir.json")
    assert found.mir == pytest.approx(measure_live(model, None, samples, adapter=encode).mir, rel=SAME_FEATURES)
    assert found.family == "SmallVLM"


def test_a_trainer_with_only_a_tokenizer_needs_the_processor(samples: SampleSet, tmp_path: Path) -> None:
    tiny = tiny_llava()
    trainer = trainer_of(tiny, tmp_path)
    trainer.processing_class = tiny.processor.tokenizer
    with pytest.raises(MirError, match=r"processing_class is .*Tokenizer.*processor=AutoProcessor"):
        MIRCallback(trainer, samples)
    callback = MIRCallback(trainer, samples, every_steps=N_STEPS, processor=tiny.processor)
    trainer.add_callback(callback)
    trainer.train()
    assert list(callback.history) == [N_STEPS]


def test_looking_at_the_model_before_the_first_step_reads_no_weights(samples: SampleSet, tmp_path: Path) -> None:
    trainer = trainer_of(tiny_llava(), tmp_path)
    trainer.add_callback(MIRCallback(trainer, samples, every_steps=N_STEPS))
    with mock.patch.object(live, "_content", wraps=live._content) as content:
        trainer.train()
    assert content.call_count == 1, "that of the only measurement"


def tensor_parallel(tiny: TinyModel, trainer: Trainer) -> None:
    tiny.model._tp_size = 2  # what from_pretrained(tp_plan="auto") notes


def pipeline_parallel(tiny: TinyModel, trainer: Trainer) -> None:
    tiny.model.is_pipe_parallel = True  # as DeepSpeed's PipelineEngine has it


def parallel(**sizes: int) -> Any:
    def configure(tiny: TinyModel, trainer: Trainer) -> None:
        trainer.accelerator.state.parallelism_config = ParallelismConfig(**sizes)

    return configure


@pytest.mark.parametrize(
    ("configure", "name"),
    [
        (tensor_parallel, "tensor parallelism"),
        (pipeline_parallel, "pipeline parallelism"),
        (parallel(tp_size=2), "tensor parallelism"),
        (parallel(cp_size=2), "context parallelism"),
        (parallel(sp_size=2), "sequence parallelism"),
    ],
)
def test_models_computed_in_parts_are_refused_before_the_first_step_by_name(
    configure: Any, name: str, samples: SampleSet, tmp_path: Path
) -> None:
    tiny = tiny_llava()
    trainer = trainer_of(tiny, tmp_path)
    callback = MIRCallback(trainer, samples, every_steps=1)
    configure(tiny, trainer)
    with pytest.raises(MirError, match=f"{name}: each process computes a part") as error:
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert "mir sweep --watch" in str(error.value)


class Sharded(nn.Linear):
    """Looks as ``fully_shard`` leaves a module."""

    unshard = reshard = None


COMPUTED_IN_PARTS = [
    ("tp", "tensor parallelism"),
    ("cp", "context parallelism"),
    ("sp", "sequence parallelism"),
    ("pp", "pipeline parallelism"),
    ("dp_shard_cp", "context parallelism"),  # as accelerate names what it flattens
]


@pytest.mark.parametrize(("dimension", "name"), [*COMPUTED_IN_PARTS, ("ep", "expert parallelism")])
def test_each_name_that_a_mesh_gives_to_computing_in_parts_is_refused(dimension: str, name: str) -> None:
    def meshed(*names: str) -> nn.Module:
        model = Sharded(2, 2)
        model.weight.device_mesh = SimpleNamespace(mesh_dim_names=names)
        return model

    assert sharding_of(meshed("dp_replicate", "dp_shard")) is None
    with pytest.raises(MirError, match=f"is trained with {name}: each"):
        sharding_of(meshed("dp_replicate", dimension))


def test_tensor_parallelism_is_seen_inside_a_wrapper_and_where_a_mesh_has_no_names() -> None:
    wrapped, unnamed = nn.Linear(2, 2), nn.Linear(2, 2)
    wrapped.tp_size = 2
    unnamed.weight.device_mesh = SimpleNamespace(mesh_dim_names=None)
    for model in (nn.DataParallel(wrapped), unnamed):
        with pytest.raises(MirError, match="tensor parallelism"):
            sharding_of(model)


@pytest.mark.full
@pytest.mark.parametrize(("dimension", "name"), [*COMPUTED_IN_PARTS, ("dp_shard", None)])
def test_the_dimensions_of_a_mesh_tell_what_is_only_sharded(
    dimension: str, name: str | None, samples: SampleSet, tmp_path: Path
) -> None:
    def work(group: Group) -> str:
        tiny = tiny_llava()
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=(dimension,))
        for layer in find_decoder(tiny.model).layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(tiny.model, mesh=mesh)
        if name is None:
            return measure_live(tiny.model, tiny.processor, samples).facts["sharding"]
        with pytest.raises(MirError) as error:
            measure_live(tiny.model, tiny.processor, samples)
        return str(error.value)

    for message in together(2, work, tmp_path):
        assert (name or "FSDP2") in message
