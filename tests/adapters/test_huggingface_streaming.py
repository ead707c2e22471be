"""Hugging Face checkpoints whose decoder layers stay on disk: same numbers, same fingerprint, clear refusals."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from adapters.test_huggingface import SAMPLES
from adapters.tiny_models import TINY_MODELS, TinyModel, qwen3_vl_moe
from safetensors.torch import load_file, save_file

from mir_plugin.engine.features import layer_features
from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.huggingface.adapter import HuggingFaceAdapter, from_loaded
from mir_plugin.model_adapters.huggingface.adapter import load as load_folder
from mir_plugin.model_adapters.huggingface.streaming import placement_within
from mir_plugin.model_adapters.introspection.decoder import find_decoder
from mir_plugin.model_adapters.moca.training import apply_moca
from mir_plugin.model_adapters.recognition import CheckpointFolder
from mir_plugin.model_adapters.weights.streamed import SHARE_FOR_WEIGHTS, fit_within

pytestmark = pytest.mark.slow


def load(folder: Path, options: LoadOptions) -> HuggingFaceAdapter:
    return load_folder(CheckpointFolder.read(folder), options)


def saved(family: str, folder: Path) -> tuple[Path, int, int]:
    """The folder, bytes of one decoder layer, bytes of everything else; float32."""
    return saved_model(TINY_MODELS[family](), folder)


def saved_model(tiny: TinyModel, folder: Path) -> tuple[Path, int, int]:
    tiny.model.save_pretrained(folder)
    tiny.processor.save_pretrained(folder)
    layers = find_decoder(tiny.model).layers
    sizes = [4 * sum(p.numel() for p in layer.parameters()) for layer in layers]
    return folder, max(sizes), 4 * sum(p.numel() for p in tiny.model.parameters()) - sum(sizes)


def room_for(n_layers: float, layer: int, others: int) -> int:
    return int((others + n_layers * layer) / SHARE_FOR_WEIGHTS)


@pytest.mark.filterwarnings("error:.*device_map keys")
@pytest.mark.parametrize(
    ("family", "dtype"),
    [*((family, "float32") for family in sorted(TINY_MODELS)), ("llava", "bfloat16"), ("qwen3_vl", "bfloat16")],
)
def test_streamed_layers_give_the_features_of_resident_ones(family: str, dtype: str, tmp_path: Path) -> None:
    folder, layer, others = saved(family, tmp_path)
    size = {"float32": 1.0, "bfloat16": 0.5}[dtype]
    limit = room_for(1.5 * size, layer, int(others * size))
    resident = load(folder, LoadOptions(device="cpu", dtype=dtype))
    streamed = load(folder, LoadOptions(device="cpu", dtype=dtype, device_memory=limit))
    assert streamed.decoder.streamed is not None
    assert not streamed.decoder.streamed.room_for_two
    assert all(p.is_meta for one in streamed.decoder.layers for p in one.parameters())
    for one, other in zip(layer_features(streamed, SAMPLES), layer_features(resident, SAMPLES), strict=True):
        assert torch.equal(one.vision, other.vision)
        assert torch.equal(one.text, other.text)
    assert all(p.is_meta for one in streamed.decoder.layers for p in one.parameters())
    facts = {name: value for name, value in streamed.facts.items() if value != resident.facts[name]}
    assert facts == {"streamed": True}


def test_what_fits_is_loaded_as_a_whole(tmp_path: Path) -> None:
    folder, layer, others = saved("llava", tmp_path)
    n_layers = len(find_decoder(TINY_MODELS["llava"]().model).layers)
    assert (
        load(folder, LoadOptions(device="cpu", device_memory=room_for(n_layers, layer, others) + 8)).facts["streamed"]
        is False
    )
    adapter = load(folder, LoadOptions(device="cpu", device_memory=room_for(n_layers - 0.5, layer, others)))
    assert adapter.decoder.streamed is not None
    assert adapter.decoder.streamed.room_for_two


def test_too_little_memory_names_the_least_that_works(tmp_path: Path) -> None:
    folder, _, _ = saved("llava", tmp_path)
    with pytest.raises(MirError, match=r"--device-memory 0\.1GB"):
        load(folder, LoadOptions(device="cpu", device_memory=1))
    layer, others = 440_000_000, 3_080_000_000  # 5.03 GB, with their share of the memory
    with pytest.raises(MirError) as refused:
        fit_within(4_900_000_000, layers=[layer] * 32, others=others)
    [least] = re.findall(r"--device-memory (\S+)GB", str(refused.value))
    assert not fit_within(int(float(least) * 1e9), layers=[layer] * 32, others=others).whole


def test_nothing_is_said_about_offloading_that_was_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, layer, others = saved("llava", tmp_path)
    with caplog.at_level(logging.INFO):
        load(folder, LoadOptions(device="cpu", device_memory=room_for(1, layer, others) + 8))
    assert "are streamed from disk" in caplog.text
    assert "meta device" not in caplog.text
    assert logging.getLogger("accelerate.big_modeling").level == logging.NOTSET


def test_streamed_checkpoints_answer_no_prompts(tmp_path: Path) -> None:
    folder, layer, others = saved("llava", tmp_path)
    adapter = load(folder, LoadOptions(device="cpu", device_memory=room_for(1, layer, others) + 8))
    with pytest.raises(MirError, match="--device-memory"):
        adapter.generate([], max_new_tokens=1)
    with pytest.raises(MirError, match="--device-memory"):
        adapter.loglikelihood([], [])


def _pickled(folder: Path) -> None:
    TINY_MODELS["llava"]().model.save_pretrained(folder)
    state = TINY_MODELS["llava"]().model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")


def _quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))


def _with_moca(folder: Path) -> None:
    tiny = TINY_MODELS["llava"]()
    apply_moca(tiny.model)
    tiny.model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(_pickled, "pickled weights"), (_quantised, "is quantised"), (_with_moca, "MoCa .* --device-memory")],
)
def test_what_cannot_be_streamed_is_refused(spoil: object, message: str, tmp_path: Path) -> None:
    folder, layer, others = saved("llava", tmp_path)
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(MirError, match=message):
        load(folder, LoadOptions(device="cpu", device_memory=room_for(1, layer, others) + 8))


def test_a_mixture_of_experts_is_loaded_whole_and_refused_where_it_does_not_fit(tmp_path: Path) -> None:
    tiny = qwen3_vl_moe()
    folder, layer, others = saved_model(tiny, tmp_path)
    with pytest.raises(MirError, match=r"decoder weights .* --device-memory"):
        load(folder, LoadOptions(device="cpu", device_memory=room_for(1.5, layer, others)))
    in_memory = from_loaded(tiny.model, tiny.processor)
    for limit in (None, room_for(9, layer, others)):
        loaded = load(folder, LoadOptions(device="cpu", device_memory=limit))
        for one, other in zip(layer_features(loaded, SAMPLES[:1]), layer_features(in_memory, SAMPLES[:1]), strict=True):
            assert torch.equal(one.vision, other.vision)
            assert torch.equal(one.text, other.text)


def test_pickled_weights_that_fit_are_loaded_whole(tmp_path: Path) -> None:
    folder, layer, others = saved("llava", tmp_path)
    _pickled(folder)
    assert load(folder, LoadOptions(device="cpu", device_memory=room_for(9, layer, others))).decoder.streamed is None


def test_sizes_without_a_stated_dtype_are_those_of_the_stored_numbers(tmp_path: Path) -> None:
    folder, layer, others = saved("llava", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    counter = {"a.position_ids": torch.arange(4)}  # comes first, and takes 8 bytes a number
    save_file(counter | weights, folder / "model.safetensors", metadata={"format": "pt"})
    n_layers = len(find_decoder(TINY_MODELS["llava"]().model).layers)
    for n_fitting, whole in ((n_layers, True), (n_layers - 0.5, False)):
        limit = room_for(n_fitting, layer, others) + 8
        placement = placement_within(limit, folder, torch.device("cpu"), dtype=None, trust_remote_code=False)
        assert (placement is None) is whole


def test_a_damaged_layer_is_named_when_it_is_read(tmp_path: Path) -> None:
    folder, layer, others = saved("llava", tmp_path)
    weights = load_file(folder / "model.safetensors")
    key = next(name for name in weights if "layers.1." in name and "mlp" in name and "vision" not in name)
    weights[key] = weights[key].clone()
    weights[key][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    adapter = load(folder, LoadOptions(device="cpu", device_memory=room_for(1, layer, others) + 8))
    with pytest.raises(MirError, match="holds NaN or infinite values") as refused:
        list(layer_features(adapter, SAMPLES))
    assert key in str(refused.value)


GROWTH_ALLOWED = 75e6  # features, and two layers of 13 MB at a time
SUM_OF_STREAMED_FEATURES = """
    import sys
    from pathlib import Path
    from adapters.test_huggingface_streaming import load, sum_of_features
    from mir_plugin.model_adapters import LoadOptions

    def resident(kind):
        return 1024 * int(Path("/proc/self/status").read_text().split(kind)[1].split()[0])

    small, large = map(Path, sys.argv[1:3])
    # What is imported and mapped at first use is there before memory is looked at: how much of the libraries' files
    # the system then counts as this process's memory changes from machine to machine.
    sum_of_features(load(small, LoadOptions(device="cpu", device_memory=int(sys.argv[3]))))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = resident("VmRSS:")
    adapter = load(large, LoadOptions(device="cpu", device_memory=80_000_000))
    print(sum_of_features(adapter), resident("VmHWM:") - before)
"""


def sum_of_features(adapter: HuggingFaceAdapter) -> float:
    return sum(float(one.vision.double().sum() + one.text.double().sum()) for one in layer_features(adapter, SAMPLES))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc")
def test_a_checkpoint_larger_than_the_memory_it_takes_has_the_features_of_a_loaded_one(tmp_path: Path) -> None:
    tiny = TINY_MODELS["llava"]()
    wide = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 24, "head_dim": 64}
    tiny.model.config.text_config.update(wide | dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 8))
    torch.manual_seed(0)
    model = type(tiny.model)(tiny.model.config).eval()
    assert 4 * sum(p.numel() for p in model.parameters()) > 4 * GROWTH_ALLOWED
    large = tmp_path / "large"
    model.save_pretrained(large, max_shard_size="30MB")
    tiny.processor.save_pretrained(large)
    small, layer, others = saved("llava", tmp_path / "small")
    # A fixed threshold makes glibc return a released tensor at once; by default it keeps some hundred MB for later.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "200000", "PYTHONPATH": str(Path(__file__).parents[1])}
    program = textwrap.dedent(SUM_OF_STREAMED_FEATURES)
    command = [sys.executable, "-c", program, str(small), str(large), str(room_for(1.5, layer, others))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    total, growth = map(float, done.stdout.split())
    # Another process may add in another order.
    assert total == pytest.approx(sum_of_features(from_loaded(model, tiny.processor)), rel=1e-6)
    assert growth < GROWTH_ALLOWED, f"{growth / 1e6:.0f} MB"
