"""Trainings whose weights are shards between gloo processes: measured inside, and as if nothing had been measured."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from adapters.tiny_models import TINY_MODELS, TinyModel
from forked import together
from tiny_training import Captions, tiny_llava, with_lora
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from mir_plugin import MirError, MirResult, measure, measure_live
from mir_plugin.model_adapters.huggingface.adapter import from_loaded
from mir_plugin.model_adapters.introspection.decoder import find_decoder, unwrapped
from mir_plugin.processes import Group
from mir_plugin.samples.embedded import embedded_samples
from mir_plugin.samples.sample_set import Sample, SampleSet
from mir_plugin.tasks.training import live

from tolerances import FORWARD, HANGS, SAME_FEATURES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform != "linux", reason="forked processes with torch loaded need Linux"),
]
N_STEPS = 2
CPU = torch.device("cpu")
M_MMAP_THRESHOLD = -3  # of the C library's mallopt
ZERO3 = "MIR_TEST_DEEPSPEED"  # names a Python interpreter that has deepspeed besides what this one has


class Training(NamedTuple):
    """What a training left behind: numbers of each step, results, whole weights, and whether all is sharded again."""

    steps: list[tuple[float, float]]
    results: list[MirResult]
    weights: dict[str, Any]
    n_own: list[int]


def some_samples(n: int = 5) -> SampleSet:
    return SampleSet(tuple(dataclasses.replace(s, text=s.text[:80]) for s in embedded_samples(n).samples))


def fsdp2(tiny: TinyModel, **options: Any) -> nn.Module:
    for layer in find_decoder(unwrapped(tiny.model)).layers:
        fully_shard(layer, **options)
    return fully_shard(tiny.model, **options)


def fsdp1(tiny: TinyModel, **options: Any) -> nn.Module:
    kinds = {type(layer) for layer in find_decoder(tiny.model).layers}
    return FullyShardedDataParallel(tiny.model, auto_wrap_policy=ModuleWrapPolicy(kinds), device_id=CPU, **options)


def frozen(tiny: TinyModel) -> TinyModel:
    """Only the projector is trained, as in pre-training."""
    for name, parameter in tiny.model.named_parameters():
        parameter.requires_grad_("projector" in name)
    return tiny


def checkpointed(tiny: TinyModel) -> TinyModel:
    kinds = tuple({type(layer) for layer in find_decoder(tiny.model).layers})
    apply_activation_checkpointing(tiny.model, check_fn=lambda module: isinstance(module, kinds))
    return tiny


def hugging_face_checkpointed(tiny: TinyModel) -> TinyModel:
    tiny.model.gradient_checkpointing_enable()
    return tiny


VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "FSDP2": lambda: fsdp2(tiny_llava()),
    "FSDP2, bfloat16 policy": lambda: fsdp2(
        tiny_llava(), mp_policy=MixedPrecisionPolicy(torch.bfloat16, torch.float32)
    ),
    "FSDP2, gathered until the backward pass": lambda: fsdp2(tiny_llava(), reshard_after_forward=False),
    "FSDP2, CPU offload": lambda: fsdp2(tiny_llava(), offload_policy=CPUOffloadPolicy(pin_memory=False)),
    "FSDP2, frozen": lambda: fsdp2(frozen(tiny_llava())),
    "FSDP2, LoRA": lambda: fsdp2(with_lora(tiny_llava())),
    "FSDP2, gradient checkpointing": lambda: fsdp2(hugging_face_checkpointed(tiny_llava())),
    "FSDP2, activation checkpoint wrappers": lambda: fsdp2(checkpointed(tiny_llava())),
    "FSDP2, compiled": lambda: torch.compile(fsdp2(tiny_llava()), backend="eager"),
    "FSDP2, layers of several kinds": lambda: fsdp2(TINY_MODELS["gemma3"]()),
    "FSDP1": lambda: fsdp1(tiny_llava()),
    "FSDP1, original parameters": lambda: fsdp1(tiny_llava(), use_orig_params=True),
    "FSDP1, bfloat16": lambda: fsdp1(
        tiny_llava(), mixed_precision=MixedPrecision(torch.bfloat16), use_orig_params=True
    ),
    "FSDP1, one unit": lambda: FullyShardedDataParallel(tiny_llava().model, device_id=CPU),
}


def train(build: Callable[[], nn.Module], processor: Any, samples: SampleSet | None, group: Group) -> Training:
    """Some steps of this process's captions; measured after each, if there are samples."""
    torch.manual_seed(group.rank)
    model = build()
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    rows = Captions(processor, getattr(processor, "boi_token", "<image>")).rows
    steps, results = [], []
    for step in range(N_STEPS):
        own = [2 * step + group.rank % 2]
        inputs = {name: value[own] for name, value in rows.items()}
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        norm = model.clip_grad_norm_(1.0) if isinstance(model, FullyShardedDataParallel) else clipped(model)
        optimizer.step()
        if samples:
            results.append(measure_live(model, processor, samples, checkpoint=f"step-{step}"))
        optimizer.zero_grad()
        steps.append((loss.item(), float(norm)))
    n_own = [(p.to_local() if isinstance(p, DTensor) else p).numel() for p in model.parameters()]
    weights = get_model_state_dict(unwrapped_compile(model), options=StateDictOptions(full_state_dict=True))
    return Training(steps, results, {name: value.numpy().copy() for name, value in weights.items()}, n_own)


def clipped(model: nn.Module) -> float:
    norm: Any = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def unwrapped_compile(model: nn.Module) -> nn.Module:
    return getattr(model, "_orig_mod", model)


def plain(variant: str, weights: dict[str, Any]) -> TinyModel:
    """A model of one process with these weights."""
    tiny = TINY_MODELS["gemma3"]() if "several kinds" in variant else tiny_llava()
    tiny = with_lora(tiny) if "LoRA" in variant else tiny
    loaded = {name.replace("_checkpoint_wrapped_module.", ""): torch.from_numpy(w) for name, w in weights.items()}
    tiny.model.load_state_dict(loaded, strict=False)
    return tiny


@pytest.mark.parametrize("variant", VARIANTS)
def test_sharded_trainings_are_measured_exactly_and_not_disturbed(variant: str, tmp_path: Path) -> None:
    processor = TINY_MODELS["gemma3" if "several kinds" in variant else "llava"]().processor
    samples = some_samples()  # five: uneven shares

    def work(group: Group) -> list[Training]:
        return [train(VARIANTS[variant], processor, chosen, group) for chosen in (None, samples)]

    answers = together(2, work, tmp_path)
    for answer in answers:
        assert not isinstance(answer, Exception), answer
        without, measured = answer
        assert measured.steps == without.steps
        assert measured.n_own == without.n_own, "all parameters are sharded again"
    tiny = plain(variant, answers[0][1].weights)
    alone = measure(from_loaded(tiny.model, processor), samples, checkpoint="gathered")
    found = answers[0][1].results[-1]
    assert found.mir == pytest.approx(alone.mir, rel=SAME_FEATURES)
    assert [one.distance for one in found.layers] == pytest.approx(
        [one.distance for one in alone.layers], rel=SAME_FEATURES
    )
    assert found.fingerprints["checkpoint"] == alone.fingerprints["checkpoint"]
    assert found.engine["path"] == alone.engine["path"]
    assert found.inputs["compute_dtype"] == "float32", "as stored, whatever the policy computes with"
    assert found.facts["sharding"] == variant.partition(",")[0]
    assert len({result.mir for result in answers[0][1].results}) == N_STEPS, "the weights change"


@pytest.mark.parametrize("model", ["llava", "gemma3"])  # breadth-first and depth-first
def test_a_process_without_samples_keeps_in_step(model: str, tmp_path: Path) -> None:
    processor, samples = TINY_MODELS[model]().processor, some_samples(2)

    def work(group: Group) -> float:
        return measure_live(fsdp2(TINY_MODELS[model]()), processor, samples).mir

    found = together(3, work, tmp_path)
    alone = measure_live(TINY_MODELS[model]().model, processor, samples)
    assert found == pytest.approx([alone.mir] * 3, rel=SAME_FEATURES)


@pytest.mark.parametrize("model", ["llava", "gemma3"])
def test_a_broken_sample_of_one_process_ends_all_with_its_message_and_the_training_goes_on(
    model: str, tmp_path: Path
) -> None:
    processor, samples = TINY_MODELS[model]().processor, some_samples(4)
    broken = SampleSet((*samples.samples, Sample("broken", b"no image", "text")))

    def work(group: Group) -> tuple[str, float, list[int]]:
        wrapped = fsdp2(TINY_MODELS[model]())
        with pytest.raises(MirError) as error:
            measure_live(wrapped, processor, broken)
        n_own = [p.to_local().numel() for p in wrapped.parameters()]
        return str(error.value), measure_live(wrapped, processor, samples).mir, n_own

    found = together(2, work, tmp_path)
    (healthy, first, _), (failing, second, _) = found
    assert "sample broken" in failing
    assert "process 1 of 2 failed" in healthy
    assert "sample broken" in healthy
    assert first == second


@contextmanager
def out_of_memory(tiny: TinyModel, at_layer: int) -> Iterator[None]:
    """The model's decoder layer of this number has no memory for more than one sample at a time."""
    kind: Any = type(find_decoder(tiny.model).layers[0])
    plain = kind.forward

    def forward(layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if layer.self_attn.layer_idx == at_layer and len(hidden_states) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return plain(layer, hidden_states, *args, **kwargs)

    kind.forward = forward
    try:
        yield
    finally:
        kind.forward = plain


@pytest.mark.parametrize(
    "at_layer", [pytest.param(0, marks=pytest.mark.full), 1, pytest.param(2, marks=pytest.mark.full)]
)
@pytest.mark.parametrize("model", ["llava", "gemma3"])  # breadth-first and depth-first
def test_all_begin_anew_with_smaller_batches_where_one_process_runs_out_of_memory(
    model: str, at_layer: int, tmp_path: Path
) -> None:
    processor, samples = TINY_MODELS[model]().processor, some_samples(7)

    def work(group: Group) -> tuple[MirResult, MirResult, bool]:
        tiny = TINY_MODELS[model]()
        with out_of_memory(tiny, at_layer) if group.rank == 1 else nullcontext():
            wrapped = fsdp2(tiny)
            before = [p.to_local().numel() for p in wrapped.parameters()]
            found = measure_live(wrapped, processor, samples, batch_size=4)
        later = measure_live(wrapped, processor, samples, batch_size=4)
        return found, later, before == [p.to_local().numel() for p in wrapped.parameters()]

    (found, later, sharded), (other, _, other_sharded) = together(2, work, tmp_path)
    assert found == other
    assert sharded and other_sharded
    alone = measure_live(TINY_MODELS[model]().model, processor, samples)
    assert found.mir == pytest.approx(alone.mir, rel=FORWARD)
    assert later.mir == pytest.approx(alone.mir, rel=FORWARD)
    assert found.engine["batch_size"] == 4, "of process 0, which has memory enough"


def test_a_process_without_memory_for_a_single_sample_ends_all_and_the_training_goes_on(tmp_path: Path) -> None:
    samples = SampleSet(some_samples(4).samples)

    def work(group: Group) -> tuple[str, float]:
        tiny = tiny_llava()
        kind: Any = type(find_decoder(tiny.model).layers[0])
        plain = kind.forward
        wrapped = fsdp2(tiny)

        def forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
            if group.rank == 1 and layer.self_attn.layer_idx == 1 and measuring:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return plain(layer, *args, **kwargs)

        kind.forward, measuring = forward, True
        with pytest.raises((MirError, torch.cuda.OutOfMemoryError)) as error:
            measure_live(wrapped, tiny.processor, samples, batch_size=2)
        measuring = False
        return str(error.value), measure_live(wrapped, tiny.processor, samples).mir

    (told, first), (failed, second) = together(2, work, tmp_path)
    assert failed == "CUDA out of memory"
    assert "process 1 of 2 failed" in told and failed in told
    assert first == second


def test_process_0_alone_reads_the_weights_for_their_identity(tmp_path: Path) -> None:
    samples = some_samples(2)

    def work(group: Group) -> list[tuple[int, str]]:
        found = []
        for build in (lambda: fsdp2(tiny_llava()), lambda: fsdp1(tiny_llava()), lambda: tiny_llava().model):
            with mock.patch.object(live, "_content", wraps=live._content) as content:
                result = measure_live(build(), tiny_llava().processor, samples)
            found.append((content.call_count, result.fingerprints["checkpoint"]))
        return found

    answers = together(2, work, tmp_path)
    expected = from_loaded(tiny_llava().model, tiny_llava().processor).facts["checkpoint_fingerprint"]
    for rank, answer in enumerate(answers):
        assert answer == [(1 - rank, expected)] * 3


@pytest.mark.full
def test_memory_grows_by_one_gathered_layer_and_one_layers_features(tmp_path: Path) -> None:
    tiny, samples = tiny_llava(), some_samples(6)
    kind, config = type(tiny.model), copy.deepcopy(tiny.model.config)
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 4}
    for name, value in {**shape, "num_key_value_heads": 4, "head_dim": 128}.items():
        setattr(config.text_config, name, value)

    def work(group: Group) -> tuple[int, int, MirResult]:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)  # tensors go back to the system when they are freed
        # Pages of libraries count as they are touched: the same code runs once before.
        measure_live(fsdp2(tiny), tiny.processor, samples)
        wide = TinyModel(kind(config).eval(), tiny.processor)
        decoder = sum(4 * p.numel() for layer in find_decoder(wide.model).layers for p in layer.parameters())
        wrapped = fsdp2(wide)
        rows = Captions(tiny.processor).rows  # a training has run the model before: FSDP makes its buffers then
        wrapped(**{name: value[:1] for name, value in rows.items()}, labels=rows["input_ids"][:1]).loss.backward()
        wrapped.zero_grad()
        ctypes.CDLL(None).malloc_trim(0)
        before = resident("VmRSS:")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
        result = measure_live(wrapped, tiny.processor, samples)
        return resident("VmHWM:") - before, decoder, result

    for answer in together(2, work, tmp_path):
        assert not isinstance(answer, Exception), answer
        growth, decoder, result = answer
        estimate = result.engine["memory_estimate"]
        bound = estimate["decoder"] + estimate["features"] + estimate["statistics"]
        print(f"grew by {growth / 1e6:.1f} MB, {estimate}, all layers {decoder / 1e6:.1f} MB")
        assert estimate["decoder"] == pytest.approx(decoder / 12)
        assert growth < bound
        assert bound < decoder / 4


def resident(what: str) -> int:
    """Bytes, from the system's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(what)))


def test_models_that_processes_compute_together_are_refused_by_name(tmp_path: Path) -> None:
    def work(group: Group) -> str:
        tiny = tiny_llava()
        mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("tp",))
        for layer in find_decoder(tiny.model).layers:
            parallelize_module(layer, mesh, {"mlp.up_proj": ColwiseParallel()})
        with pytest.raises(MirError) as error:
            measure_live(tiny.model, tiny.processor, some_samples(2))
        return str(error.value)

    for message in together(2, work, tmp_path):
        assert "tensor parallelism" in message


@pytest.mark.skipif(ZERO3 not in os.environ, reason=f"{ZERO3} names no Python interpreter with deepspeed")
def test_zero_stage_3_in_the_trainer() -> None:
    program = Path(__file__).parent / "zero3_training.py"
    environment = {**os.environ, "PYTHONPATH": f"{program.parents[1]}:{program.parent}", "DS_ACCELERATOR": "cpu"}
    run = subprocess.run(
        [os.environ[ZERO3], str(program)], env=environment, capture_output=True, text=True, timeout=HANGS, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    print(run.stdout)
