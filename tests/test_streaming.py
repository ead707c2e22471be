"""Decoder layers streamed from disk: same numbers, bounded memory, nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mir_plugin.engine.features import layer_features
from mir_plugin.engine.replay import ReplayCheck, check_replay
from mir_plugin.engine.streaming import LayerStream
from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.weights.stored import StoredTensor
from mir_plugin.samples.sources import from_folders
from mir_plugin.types import Decoder

from golden_data import require_golden
from tolerances import SAME_FEATURES
from toy import ToyAdapter, toy_samples

pytestmark = pytest.mark.slow


class ToyWeights:
    """Keeps the weights of a toy's layers aside, and writes down what is asked of it."""

    layer_bytes = 1

    def __init__(self, adapter: ToyAdapter, *, room_for_two: bool = True, damaged: int | None = None) -> None:
        self.room_for_two = room_for_two
        self.damaged = damaged
        self.loads: list[int] = []
        self.loaded: set[int] = set()
        self.most_loaded = 0
        self._layers = adapter.decoder.layers
        self._kept = [{name: p.data for name, p in layer.named_parameters()} for layer in self._layers]
        for k in range(len(self._layers)):
            self.release(k)

    def load(self, layer_index: int) -> None:
        if layer_index == self.damaged:
            raise MirError(f"layer {layer_index} is damaged")
        for name, parameter in self._layers[layer_index].named_parameters():
            parameter.data = self._kept[layer_index][name]
        self.loads.append(layer_index)
        self.loaded.add(layer_index)
        self.most_loaded = max(self.most_loaded, len(self.loaded))

    def release(self, layer_index: int) -> None:
        for parameter in self._layers[layer_index].parameters():
            parameter.data = torch.empty(0)
        self.loaded.discard(layer_index)


def streamed_toy(**options: object) -> tuple[ToyAdapter, ToyWeights]:
    adapter = ToyAdapter()
    weights = ToyWeights(adapter, **options)  # type: ignore[arg-type]
    adapter.decoder = Decoder(adapter.decoder.layers, adapter.decoder.final_norm, weights)
    return adapter, weights


@pytest.mark.parametrize("path", ["breadth-first", "depth-first"])
def test_streamed_layers_give_the_features_of_resident_ones(path: str) -> None:
    check = ReplayCheck(path, "asked for by the test")  # type: ignore[arg-type]
    adapter, weights = streamed_toy()
    samples = toy_samples(3)
    streamed = layer_features(adapter, samples, check=check)
    for one, other in zip(streamed, layer_features(ToyAdapter(), samples, check=check), strict=True):
        assert torch.equal(one.vision, other.vision)
        assert torch.equal(one.text, other.text)
    assert weights.loads == ([0, 1, 2] if path == "breadth-first" else [0, 1, 2] * 3)
    assert not weights.loaded


@pytest.mark.parametrize(("room_for_two", "most"), [(True, 2), (False, 1)])
def test_the_next_layer_is_loaded_ahead_only_where_two_have_room(room_for_two: bool, most: int) -> None:
    adapter, weights = streamed_toy(room_for_two=room_for_two)
    list(layer_features(adapter, toy_samples(2), check=ReplayCheck("breadth-first", "")))
    assert weights.most_loaded == most


def test_the_proof_reads_every_layer_once() -> None:
    adapter, weights = streamed_toy()
    assert check_replay(adapter, toy_samples(1)[0]).path == "breadth-first"
    assert weights.loads == [0, 1, 2]
    assert not weights.loaded


def test_a_damaged_layer_ends_the_run_and_leaves_nothing_behind() -> None:
    adapter, weights = streamed_toy(damaged=2)
    with pytest.raises(MirError, match="layer 2 is damaged"):
        check_replay(adapter, toy_samples(1)[0])
    assert not weights.loaded
    assert not any(layer._forward_pre_hooks for layer in adapter.decoder.layers)
    assert not any(thread.name.startswith("layer-weights") for thread in threading.enumerate())


def test_a_layer_that_was_loaded_ahead_in_vain_is_released() -> None:
    adapter, weights = streamed_toy()
    with LayerStream(adapter.decoder, adapter.device) as stream, stream.layer(0):
        pass
    assert not weights.loaded


@pytest.mark.parametrize(
    ("case", "n_layers_in_memory"),
    [
        ("llava/llava_full", 1),
        ("llava/llava_full", 2),
        ("llava/llava_moca", 2),
        ("llava/llava_lora", 2),
        ("sharegpt4v/share4v_full", 2),
        ("mini_gemini/mgm_full", 2),
    ],
)
def test_a_checkpoint_streamed_from_disk_has_the_features_of_the_loaded_one(case: str, n_layers_in_memory: int) -> None:
    folder = require_golden(case)
    samples = from_folders(folder / "samples", folder / "samples", n_samples=2).samples
    resident = load_adapter(folder / "model", LoadOptions(device="cpu", merge_lora=False))
    total, layer = (
        sum(p.numel() * p.element_size() for p in module.parameters())
        for module in (resident.model, resident.decoder.layers[0])
    )
    rest = total - len(resident.decoder.layers) * layer
    limit = int((rest + (n_layers_in_memory + 0.5) * layer) / 0.7)
    streamed = load_adapter(folder / "model", LoadOptions(device="cpu", merge_lora=False, device_memory=limit))
    weights = streamed.decoder.streamed
    assert weights is not None
    assert weights.room_for_two == (n_layers_in_memory == 2)
    for one, other in zip(layer_features(streamed, samples), layer_features(resident, samples), strict=True):
        assert torch.equal(one.vision, other.vision)
        assert torch.equal(one.text, other.text)


def test_a_limit_below_one_layer_is_refused_with_the_least_that_works() -> None:
    folder = require_golden("llava/llava_full")
    with pytest.raises(MirError, match=r"--device-memory 0\.1GB"):
        load_adapter(folder / "model", LoadOptions(device="cpu", device_memory=1))


@pytest.mark.parametrize(
    "error",
    [
        OSError(12, "Cannot allocate memory"),
        RuntimeError("unable to mmap 51389440 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
    ],
)
def test_weights_that_memory_has_no_room_for_are_not_called_damaged(error: Exception, tmp_path: Path) -> None:
    def read() -> torch.Tensor:
        raise error

    with pytest.raises(MirError, match=r"memory .*'weight' in .*--device-memory"):
        StoredTensor("weight", tmp_path / "model.safetensors", (1,), "float32", read).read()


def test_streamed_checkpoints_answer_no_prompts() -> None:
    adapter = load_adapter(
        require_golden("llava/llava_full") / "model", LoadOptions(device="cpu", device_memory=1_200_000)
    )
    with pytest.raises(MirError, match="--device-memory"):
        adapter.generate([], max_new_tokens=1)  # type: ignore[attr-defined]


N_LAYERS, D, INTERMEDIATE = 16, 512, 4096
ALLOWED_GROWTH = 110_000_000
WEIGHTS_IN_MEMORY = 4 * N_LAYERS * (4 * D * D + 3 * D * INTERMEDIATE)  # float32: 512 MB


@pytest.mark.usefixtures("one_thread")
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on allocated memory (RLIMIT_DATA)")
def test_a_checkpoint_several_times_larger_than_memory_gives_the_number_of_an_unlimited_run(tmp_path: Path) -> None:
    assert WEIGHTS_IN_MEMORY > 4 * ALLOWED_GROWTH
    model = write_large_checkpoint(tmp_path)
    limited = textwrap.dedent(f"""
        import resource, sys
        from pathlib import Path
        import mir_plugin.model_adapters.llava.loading
        from mir_plugin.errors import MirError
        from mir_plugin.model_adapters import LoadOptions, load_adapter
        from mir_plugin.measurement.measure import measure
        from mir_plugin.samples.sources import from_folders

        status = Path("/proc/self/status").read_text()
        allocated = 1024 * int(status.split("VmData:")[1].split()[0])
        limit = allocated + {ALLOWED_GROWTH}
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        folder = Path({str(tmp_path)!r})
        options = dict(device="cpu", dtype="float32")
        adapter = load_adapter(folder / "model", LoadOptions(**options, device_memory=80_000_000))
        samples = from_folders(folder / "samples", folder / "samples")
        print(measure(adapter, samples, checkpoint="large", with_uncertainty=False).mir.hex())
        try:
            load_adapter(folder / "model", LoadOptions(**options))
        except (RuntimeError, MirError, MemoryError) as error:  # torch, a file's mapping, or Python: any may be first
            print(isinstance(error, MemoryError) or "allocate memory" in str(error))
    """)
    # A fixed threshold makes glibc return a released tensor at once; by default it keeps some hundred MB for later.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "200000", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", limited]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    adapter = load_adapter(model, LoadOptions(device="cpu", dtype="float32"))
    samples = from_folders(tmp_path / "samples", tmp_path / "samples")
    unlimited = measure(adapter, samples, checkpoint="large", with_uncertainty=False)
    value, does_not_fit_whole = done.stdout.split()
    # One thread here as there, so that the same features come out.
    assert float.fromhex(value) == pytest.approx(unlimited.mir, rel=SAME_FEATURES)
    assert does_not_fit_whole == "True"


def write_large_checkpoint(folder: Path) -> Path:
    """A recorded tiny checkpoint with a wider, deeper language model of random float16 weights, one shard a layer."""
    source = require_golden("llava/llava_full")
    model = folder / "model"
    model.mkdir()
    for part in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(source / "model" / part, model / part)
    shutil.copytree(source / "vision_tower", folder / "vision_tower", copy_function=shutil.copyfile)
    shutil.copytree(source / "samples", folder / "samples", copy_function=shutil.copyfile)
    for path in sorted((folder / "samples").iterdir())[2:]:
        path.unlink()  # one pair is enough: weights, not tokens, are what memory has no room for
    config = json.loads((source / "model" / "config.json").read_text())
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
    config |= {"hidden_size": D, "intermediate_size": INTERMEDIATE, "num_hidden_layers": N_LAYERS, **heads}
    (model / "config.json").write_text(json.dumps(config))
    tiny = load_file(source / "model" / "model.safetensors")
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).half()

    one_layer = {f"self_attn.{part}_proj.weight": noise(D, D) for part in "qkvo"}
    one_layer |= {f"mlp.{part}_proj.weight": noise(INTERMEDIATE, D) for part in ("gate", "up")}
    one_layer |= {"mlp.down_proj.weight": noise(D, INTERMEDIATE)}
    one_layer |= {f"{part}_layernorm.weight": torch.ones(D).half() for part in ("input", "post_attention")}
    shards = [
        {f"model.layers.{k}.{name}": value.roll(k, dims=0).contiguous() for name, value in one_layer.items()}
        for k in range(N_LAYERS)
    ]
    vocabulary, width = tiny["model.embed_tokens.weight"].shape[0], tiny["model.mm_projector.0.weight"].shape[1]
    shards.append(
        {
            "model.embed_tokens.weight": noise(vocabulary, D),
            "lm_head.weight": noise(vocabulary, D),
            "model.norm.weight": torch.ones(D).half(),
            "model.mm_projector.0.weight": noise(D, width),
            "model.mm_projector.0.bias": noise(D),
            "model.mm_projector.2.weight": noise(D, D),
            "model.mm_projector.2.bias": noise(D),
        }
    )
    weight_map: dict[str, str] = {}
    for index, shard in enumerate(shards, start=1):
        name = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, model / name)
        weight_map |= dict.fromkeys(shard, name)
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return model
