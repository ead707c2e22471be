"""Quantised checkpoints: measured as transformers computes them, or refused in one sentence that names the method."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from adapters import tiny_models
from adapters.every_type import SAMPLES, measured
from adapters.test_every_type import Tiny, assert_as_numpy_computes
from adapters.test_initial_weights import loading_observed, saved
from safetensors.torch import load_file, save_file
from tiny_training import trainer_of
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.measurement.comparable import allowed_differences, protocol_differences
from mir_plugin.model_adapters import LoadOptions, open_checkpoint
from mir_plugin.model_adapters.in_memory.host_parts import adapter_for
from mir_plugin.model_adapters.in_memory.initial_weights import absent_from_checkpoint
from mir_plugin.model_adapters.weights.module_fingerprint import module_fingerprint
from mir_plugin.samples.sample_set import SampleSet

from golden_data import require_golden

pytestmark = pytest.mark.slow

CPU = LoadOptions(device="cpu")
BLOCK = 32
Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"
LORA_ON = r".*language_model.*(q_proj|v_proj)"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA in bfloat16, wide enough for the blocks of all methods."""
    with pytest.MonkeyPatch.context() as patch:
        for sizes in (tiny_models.TEXT, tiny_models.CLIP):
            patch.setitem(sizes, "hidden_size", 64)
            patch.setitem(sizes, "intermediate_size", 128)
        patch.setitem(tiny_models.TEXT, "num_hidden_layers", 4)  # as the comparison with NumPy expects
        patch.setitem(tiny_models.TEXT, "num_hidden_layers", 4)  # as the comparison with NumPy expects
        tiny = tiny_models.llava()
    return saved(dataclasses.replace(tiny, model=tiny.model.bfloat16()), tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def fp8(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In the layout of DeepSeek and Qwen: float8 weights, a scale for every block of them."""
    settings = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [BLOCK, BLOCK],
        "modules_to_not_convert": ["lm_head", "model.vision_tower", "model.multi_modal_projector"],
    }
    state = {}
    for key, value in load_file(plain / "model.safetensors").items():
        state[key] = value
        if "language_model" in key and key.endswith("proj.weight"):
            state[key], state[f"{key}_scale_inv"] = in_blocks(value.float())
    return rewritten(plain, tmp_path_factory.mktemp("fp8") / "model", state, settings)


def in_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = weight.shape
    blocks = weight.view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK).transpose(1, 2)
    scale = blocks.abs().amax((2, 3)) / torch.finfo(torch.float8_e4m3fn).max
    codes = (blocks / scale[..., None, None]).transpose(1, 2).reshape(rows, columns)
    return codes.to(torch.float8_e4m3fn), scale.contiguous()


def rewritten(source: Path, folder: Path, state: Mapping[str, Tensor] | None, settings: object) -> Path:
    """A copy with other weights and another quantization_config."""
    shutil.copytree(source, folder, copy_function=shutil.copyfile)
    if state is not None:
        save_file(dict(state), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return folder


def inspected(folder: Path, options: LoadOptions = CPU) -> Mapping[str, str]:
    """What `mir inspect` shows."""
    checkpoint = open_checkpoint(folder, options)
    return {**checkpoint.inspect(), **checkpoint.check()}


def refusals(folder: Path, options: LoadOptions = CPU) -> tuple[str, str]:
    """What `mir inspect` and `mir run` say."""
    said = []
    for attempt in (inspected, lambda folder, options: open_checkpoint(folder, options).load()):
        with pytest.raises(MirError) as error:
            attempt(folder, options)
        said.append(str(error.value))
    return said[0], said[1]


def assert_refused(folder: Path, *words: str, options: LoadOptions = CPU) -> None:
    said, run = refusals(folder, options)
    assert run in said
    assert all(word in run for word in words), run
    assert "Traceback" not in run


def test_fp8_is_measured_as_transformers_computes_it_and_says_so(plain: Path, fp8: Path) -> None:
    assert inspected(fp8)["quantised"] == "fp8"
    adapter = open_checkpoint(fp8, CPU).load()
    model = transformers.AutoModelForImageTextToText.from_pretrained(fp8, dtype="auto")
    assert_as_numpy_computes(Tiny("llava", model, adapter))  # type: ignore[arg-type]
    of_plain = open_checkpoint(plain, CPU).load()
    assert measured(adapter).mir != measured(of_plain).mir  # type: ignore[arg-type]
    assert adapter.facts["quantization"] == "fp8, dequantised to bfloat16"
    assert adapter.facts["quantization_config"]["weight_block_size"] == [BLOCK, BLOCK]
    assert "quantization" not in of_plain.facts
    assert adapter.facts["checkpoint_fingerprint"] != of_plain.facts["checkpoint_fingerprint"]


def test_a_quantised_checkpoint_without_a_layer_is_refused_by_both(fp8: Path, tmp_path: Path) -> None:
    state = {key: value for key, value in load_file(fp8 / "model.safetensors").items() if "layers.1.mlp" not in key}
    settings = json.loads((fp8 / "config.json").read_text())["quantization_config"]
    for said in refusals(rewritten(fp8, tmp_path / "model", state, settings)):
        assert "is missing weights" in said
        assert "layers.1.mlp" in said


@pytest.mark.parametrize(
    ("options", "option"),
    [({"dtype": "float32"}, "Leave out --dtype"), ({"device_memory": 100_000}, "Leave out --device-memory")],
)
def test_options_that_do_not_apply_to_quantised_weights_are_refused(
    options: dict[str, Any], option: str, fp8: Path
) -> None:
    assert_refused(fp8, "is quantised (fp8)", option, options=dataclasses.replace(CPU, **options))
    inspected(fp8, dataclasses.replace(CPU, dtype="bfloat16"))  # as it was saved


REFUSED: Mapping[str, tuple[object, tuple[str, ...]]] = {
    "of an unknown method": ({"quant_method": "modelopt", "quant_algo": "FP8"}, ("modelopt, FP8", "Unknown")),
    "without a method": ({"bits": 4}, ("method not stated, 4-bit", "quant_method")),
    "for GPUs": ({"quant_method": "fbgemm_fp8"}, ("fbgemm_fp8", "GPU")),
    "no object": ([1], ("config.json", "quantization_config = [1]", "object")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_transformers_cannot_load_here_is_refused_in_one_sentence(name: str, plain: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available() and name == "for GPUs":
        pytest.skip("this machine has one")
    settings, words = REFUSED[name]
    assert_refused(rewritten(plain, tmp_path / "model", None, settings), *words)


@pytest.mark.parametrize(
    ("package", "settings"),
    [
        ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("gptqmodel", {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}),
        ("optimum", {"quant_method": "gptq", "bits": 4}),
        ("compressed", {"quant_method": "compressed-tensors", "format": "pack-quantized"}),
        ("torchao", {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}}),
    ],
)
def test_an_absent_library_is_named_with_the_method(
    package: str, settings: dict[str, Any], plain: Path, tmp_path: Path
) -> None:
    library = {"compressed": "compressed_tensors"}.get(package, package)
    if importlib.util.find_spec(library):
        pytest.skip(f"{library} is installed")
    folder = rewritten(plain, tmp_path / "model", None, settings)
    assert_refused(folder, f"is quantised ({settings['quant_method']}", package)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["quantization_config"] = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(folder, f"is quantised ({settings['quant_method']}", package)


@pytest.mark.parametrize("nothing", [None, {}])
def test_an_empty_quantization_config_is_none(nothing: object, plain: Path, tmp_path: Path) -> None:
    adapter = open_checkpoint(rewritten(plain, tmp_path / "model", None, nothing), CPU).load()
    assert "quantization" not in adapter.facts
    assert measured(adapter).mir == measured(open_checkpoint(plain, CPU).load()).mir  # type: ignore[arg-type]


# Below: methods whose library is not one of ours.


def of_bitsandbytes(**options: Any) -> Callable[[], Any]:
    return lambda: transformers.BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.bfloat16, **options)


def of_torchao(name: str) -> Callable[[], Any]:
    def settings() -> Any:
        quantization = pytest.importorskip("torchao.quantization")
        return transformers.TorchAoConfig(getattr(quantization, name)())

    return settings


METHODS: Mapping[str, tuple[str, str, Callable[[], Any]]] = {
    "nf4": ("bitsandbytes", "bitsandbytes, 4-bit, nf4", of_bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "fp4": ("bitsandbytes", "bitsandbytes, 4-bit, fp4", of_bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4")),
    "int8": ("bitsandbytes", "bitsandbytes, 8-bit", of_bitsandbytes(load_in_8bit=True)),
    "torchao int8": ("torchao", "torchao, Int8WeightOnlyConfig", of_torchao("Int8WeightOnlyConfig")),
    "torchao float8": ("torchao", "torchao, Float8WeightOnlyConfig", of_torchao("Float8WeightOnlyConfig")),
}


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> tuple[str, Any]:
    package, words, settings = METHODS[request.param]
    pytest.importorskip(package)
    return words, settings()


def load_quantised(folder: Path, settings: Any = None) -> Any:
    options = {} if settings is None else {"quantization_config": copy.deepcopy(settings)}
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16, **options)


def as_host(model: Any, folder: Path) -> Any:
    processor = transformers.AutoProcessor.from_pretrained(folder)
    return adapter_for(SimpleNamespace(_model=model, processor=processor, pretrained=str(folder)))


@pytest.fixture
def observed() -> Iterator[None]:
    with loading_observed():
        yield


@pytest.mark.usefixtures("observed")
def test_a_host_that_quantises_is_measured_as_it_computes_and_is_another_checkpoint(
    plain: Path, method: tuple[str, Any]
) -> None:
    words, settings = method
    adapter, again = (as_host(load_quantised(plain, settings), plain) for _ in range(2))
    assert_as_numpy_computes(Tiny("llava", load_quantised(plain, settings), adapter))
    assert adapter.facts["quantization"] == words
    assert adapter.facts["checkpoint_fingerprint"] == again.facts["checkpoint_fingerprint"]
    own = open_checkpoint(plain, CPU).load()
    assert adapter.facts["checkpoint_fingerprint"] != own.facts["checkpoint_fingerprint"]
    told = allowed_differences(measured(own), measured(adapter))  # type: ignore[arg-type]
    assert f"The weights of A are not quantised, those of B quantised ({words})." in told


def test_a_saved_quantised_checkpoint_is_one_checkpoint_for_mir_and_for_hosts(
    plain: Path, method: tuple[str, Any], tmp_path: Path
) -> None:
    words, settings = method
    load_quantised(plain, settings).save_pretrained(tmp_path)
    transformers.AutoProcessor.from_pretrained(plain).save_pretrained(tmp_path)
    assert inspected(tmp_path)["quantised"] == words
    adapter = open_checkpoint(tmp_path, CPU).load()
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto")
    of_host = as_host(model, tmp_path)
    assert_as_numpy_computes(Tiny("llava", model, adapter))  # type: ignore[arg-type]
    assert adapter.facts["quantization"] == words
    assert not protocol_differences(measured(adapter), measured(of_host))  # type: ignore[arg-type]
    if "Float8" not in words:  # whose stored numbers are not read
        assert of_host.facts["checkpoint_fingerprint"] == adapter.facts["checkpoint_fingerprint"]


@pytest.mark.usefixtures("observed")
def test_parameters_that_nothing_filled_are_seen_in_a_quantised_model(
    plain: Path, method: tuple[str, Any], tmp_path: Path
) -> None:
    kept = {k: v for k, v in load_file(plain / "model.safetensors").items() if "multi_modal_projector" not in k}
    folder = rewritten(plain, tmp_path / "model", kept, None)
    model = load_quantised(folder, method[1])
    assert "model.multi_modal_projector.linear_1.weight" in absent_from_checkpoint(model)
    with pytest.raises(MirError, match=r"no weights for .*multi_modal_projector"):
        as_host(model, folder)
    assert not absent_from_checkpoint(load_quantised(plain, method[1]))


def test_codes_are_told_apart_by_their_scales(plain: Path, method: tuple[str, Any], tmp_path: Path) -> None:
    state = {k: v * 2 if k == f"{Q_PROJ}.weight" else v for k, v in load_file(plain / "model.safetensors").items()}
    assert Q_PROJ in {k.removesuffix(".weight") for k in state}
    doubled = rewritten(plain, tmp_path / "model", state, None)
    one, other = (module_fingerprint(load_quantised(folder, method[1])) for folder in (plain, doubled))
    assert one != other


def qlora(base: Path, settings: Any) -> tiny_models.TinyModel:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(load_quantised(base, settings), LoraConfig(r=4, target_modules=LORA_ON))
    return tiny_models.TinyModel(model, transformers.AutoProcessor.from_pretrained(base))


def losses(trainer: transformers.Trainer) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_qlora_is_measured_while_it_trains_and_trains_as_if_it_were_not(kind: str, plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from mir_plugin.tasks.training.trainer import MIRCallback

    _, words, settings = METHODS[kind]
    tiny = qlora(plain, settings())
    trainer = trainer_of(tiny, tmp_path, max_steps=3)
    callback = MIRCallback(trainer, SampleSet(SAMPLES), every_steps=1)
    trainer.add_callback(callback)
    watched = losses(trainer)
    assert watched == losses(trainer_of(qlora(plain, settings()), tmp_path, max_steps=3))
    results = callback.history.values()
    assert [result.facts["quantization"] for result in results] == [words] * 3
    assert len({result.mir for result in results}) == len({r.fingerprints["checkpoint"] for r in results}) == 3
    inner = tiny.model.get_base_model().eval()
    assert_as_numpy_computes(Tiny("llava", inner, as_host(tiny.model, plain)))


def test_the_adapter_of_a_quantised_base_is_measured_as_it_was_trained(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    base = tmp_path / "base"
    load_quantised(plain, METHODS["nf4"][2]()).save_pretrained(base)
    transformers.AutoProcessor.from_pretrained(plain).save_pretrained(base)
    trainer = trainer_of(qlora(base, None), tmp_path / "run", save_strategy="steps", save_steps=2)
    trainer.train()
    adapter = tmp_path / "run" / "checkpoint-2"
    checkpoint = open_checkpoint(adapter, CPU)
    assert "on quantised" in inspected(adapter)["adapter"]
    trained = trainer.model.get_base_model().eval()
    assert_as_numpy_computes(Tiny("llava", trained, checkpoint.load()))  # type: ignore[arg-type]


def test_quantised_weights_in_the_original_layout_are_refused_by_their_method(tmp_path: Path) -> None:
    source = require_golden("llava/llava_full")
    options = dataclasses.replace(CPU, vision_tower=source / "vision_tower")
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    trained_so = rewritten(source / "model", tmp_path / "plain", None, settings)
    inspected(trained_so, options)  # whole weights: the config speaks of their training
    state = load_file(source / "model" / "model.safetensors")
    key = next(key for key in state if key.endswith("q_proj.weight"))
    codes = state | {key: state[key].to(torch.uint8).reshape(-1, 1), f"{key}.absmax": torch.ones(8)}
    assert_refused(
        rewritten(source / "model", tmp_path / "model", codes, settings), "bitsandbytes, 4-bit, nf4", options=options
    )
