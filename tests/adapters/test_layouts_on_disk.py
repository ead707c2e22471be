"""Original-format checkpoints in the layouts that trainings and people leave behind, with known values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.options import SampleOptions
from mir_plugin.model_adapters import LoadOptions, open_checkpoint
from mir_plugin.results import MirConfig

from golden_data import REPOSITORY, require_golden

pytestmark = pytest.mark.slow

CASES = REPOSITORY / "tests" / "cases"
# Right values are known to four decimals.
ROUNDED = 5e-5


def copy_of(source: Path, target: Path) -> Path:
    """A writable copy of a folder."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    return target


def rewrite_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def mir(checkpoint: Path, samples_of: str, **options: Any) -> float:
    folder = require_golden(f"llava/{samples_of}") / "samples"
    samples = SampleOptions(folder, folder, None, False, None, 0).choose()
    adapter = open_checkpoint(checkpoint, LoadOptions(device="cpu", **options)).load()
    return measure(adapter, samples, MirConfig(), checkpoint="case", with_uncertainty=False).mir


@pytest.fixture
def lora() -> Path:
    return require_golden("llava/llava_lora")


@pytest.fixture
def full_llava(tmp_path: Path, lora: Path) -> Path:
    """A full LLaVA, keys as LLaVA saves them: the base LLM of the LoRA case with a projector of its own."""
    folder = copy_of(lora / "base_llm", tmp_path / "full")
    projector = torch.load(require_golden("llava/llava_projector") / "model" / "mm_projector.bin")
    weights = next(folder.glob("pytorch_model*.bin"), folder / "model.safetensors")
    state = load_file(weights) if weights.suffix == ".safetensors" else torch.load(weights)
    weights.unlink()
    save_file(state | projector, folder / "model.safetensors")
    shutil.copyfile(lora / "model" / "config.json", folder / "config.json")
    return folder


def test_pissa_takes_from_the_base_what_training_took(tmp_path: Path, lora: Path) -> None:
    checkpoint = copy_of(lora / "model", tmp_path / "adapter")
    shutil.copytree(CASES / "lora_pissa", checkpoint, dirs_exist_ok=True, copy_function=shutil.copyfile)
    options = {"base_llm": lora / "base_llm", "vision_tower": lora / "vision_tower"}
    assert mir(checkpoint, "llava_lora", **options) == pytest.approx(0.5383, abs=ROUNDED)
    assert "PiSSA" in open_checkpoint(checkpoint, LoadOptions(**options)).inspect()["LoRA"]
    with pytest.raises(MirError, match="PiSSA"):
        mir(checkpoint, "llava_lora", merge_lora=False, **options)


def test_lora_on_a_full_llava(full_llava: Path, lora: Path) -> None:
    options = {"base_llm": full_llava, "vision_tower": lora / "vision_tower"}
    assert mir(lora / "model", "llava_projector", **options) == pytest.approx(0.4003, abs=ROUNDED)


def test_projector_trained_further_on_a_full_llava(full_llava: Path, lora: Path, tmp_path: Path) -> None:
    trained = torch.load(lora / "model" / "non_lora_trainables.bin")
    checkpoint = tmp_path / "checkpoint-10"
    checkpoint.mkdir()
    shutil.copyfile(full_llava / "config.json", checkpoint / "config.json")
    torch.save(
        {key.removeprefix("base_model.model."): value for key, value in trained.items()},
        checkpoint / "mm_projector.bin",
    )
    tower = lora / "vision_tower"
    on_full = mir(checkpoint, "llava_lora", base_llm=full_llava, vision_tower=tower)
    assert on_full == mir(checkpoint, "llava_lora", base_llm=lora / "base_llm", vision_tower=tower)
    assert on_full != mir(full_llava, "llava_lora", vision_tower=tower)


def test_no_bos_where_the_tokenizer_emits_none(tmp_path: Path) -> None:
    case = require_golden("llava/llava_projector")
    base = copy_of(case / "base_llm", tmp_path / "base")
    rewrite_json(base / "tokenizer_config.json", add_bos_token=False)
    value = mir(case / "model", "llava_projector", base_llm=base, vision_tower=case / "vision_tower")
    assert value == pytest.approx(0.5783, abs=ROUNDED)


def test_whole_weights_count_beside_an_adapter(full_llava: Path, lora: Path, caplog: pytest.LogCaptureFixture) -> None:
    tower = lora / "vision_tower"
    alone = mir(full_llava, "llava_lora", vision_tower=tower)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(lora / "model" / name, full_llava / name)
    assert mir(full_llava, "llava_lora", vision_tower=tower) == alone
    caplog.clear()
    opened = open_checkpoint(full_llava, LoadOptions(vision_tower=tower))
    assert "adapter_model.safetensors" in opened.inspect()["adapter beside"]
    opened.check()
    assert caplog.text.count("adapter beside") == 1


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_fsdp_wrapped_module.", "module._orig_mod.", "base_model.model."]
)
def test_names_of_wrappers_are_left_out(full_llava: Path, lora: Path, prefix: str) -> None:
    tower = lora / "vision_tower"
    before = mir(full_llava, "llava_lora", vision_tower=tower)
    state = load_file(full_llava / "model.safetensors")
    save_file({prefix + key: value for key, value in state.items()}, full_llava / "model.safetensors")
    assert mir(full_llava, "llava_lora", vision_tower=tower) == before
    inspected = open_checkpoint(full_llava, LoadOptions(vision_tower=tower)).inspect()
    assert prefix.rpartition("module.")[2] in inspected["wrappers"] or prefix in inspected["wrappers"]


def test_wrappers_inside_keys_are_left_out(full_llava: Path, lora: Path) -> None:
    tower = lora / "vision_tower"
    before = mir(full_llava, "llava_lora", vision_tower=tower)
    state = load_file(full_llava / "model.safetensors")
    wrapped = {
        key.replace("layers.0.", "layers.0._checkpoint_wrapped_module._orig_mod."): value
        for key, value in state.items()
    }
    save_file(wrapped, full_llava / "model.safetensors")
    assert mir(full_llava, "llava_lora", vision_tower=tower) == before


def test_a_folder_of_shards_named_like_a_file(full_llava: Path, lora: Path) -> None:
    tower = lora / "vision_tower"
    before = mir(full_llava, "llava_lora", vision_tower=tower)
    state = load_file(full_llava / "model.safetensors")
    (full_llava / "model.safetensors").unlink()
    folder = full_llava / "pytorch_model.bin"
    folder.mkdir()
    halves = list(state.items())[::2], list(state.items())[1::2]
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for name, half in zip(names, halves, strict=True):
        torch.save(dict(half), folder / name)
    weight_map = {key: name for name, half in zip(names, halves, strict=True) for key, _ in half}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert mir(full_llava, "llava_lora", vision_tower=tower) == before


def test_parameters_saved_empty_are_named_as_zero_3(tmp_path: Path, lora: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    shutil.copyfile(lora / "model" / "config.json", checkpoint / "config.json")
    torch.save({"model.mm_projector.0.weight": torch.zeros(0)}, checkpoint / "mm_projector.bin")
    with pytest.raises(MirError, match=r"mm_projector\.bin has shape \[0\].*ZeRO stage 3"):
        open_checkpoint(checkpoint, LoadOptions(base_llm=lora / "base_llm")).inspect()


def test_an_unmerged_peft_model_is_refused(full_llava: Path, lora: Path) -> None:
    state = load_file(full_llava / "model.safetensors")
    state["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.ones(2, 2)
    save_file(state, full_llava / "model.safetensors")
    with pytest.raises(MirError, match=r"lora_A.*merge_and_unload"):
        open_checkpoint(full_llava, LoadOptions(vision_tower=lora / "vision_tower")).inspect()


def test_tied_embeddings_are_not_adapted(full_llava: Path, lora: Path, tmp_path: Path) -> None:
    checkpoint = copy_of(lora / "model", tmp_path / "adapter")
    rewrite_json(checkpoint / "config.json", tie_word_embeddings=True)
    factors = load_file(checkpoint / "adapter_model.safetensors")
    factors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(6, 64)
    factors["base_model.model.lm_head.lora_B.weight"] = torch.zeros(600, 6)
    save_file(factors, checkpoint / "adapter_model.safetensors")
    with pytest.raises(MirError, match=r"lm_head.*tie_word_embeddings"):
        open_checkpoint(
            checkpoint, LoadOptions(base_llm=lora / "base_llm", vision_tower=lora / "vision_tower")
        ).inspect()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (("global_step7/zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_to_fp32.py"), "python .*fp32.py .*bin"),
        (("global_step7/mp_rank_00_model_states.pt",), "deepspeed.utils.zero_to_fp32"),
        (("pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata"), "dcp_to_torch .*fsdp_0"),
        (("iter_0000100/mp_rank_00/model_optim_rng.pt",), "Megatron"),
        (("epoch=1.ckpt",), r"Lightning.*epoch=1\.ckpt"),
        (("random_states_0.pkl",), "save_state"),
        (("xtuner_config.py", "projector/model.safetensors"), "xtuner convert pth_to_hf"),
        (("mm_projector/checkpoint-20.bin", "mm_projector/checkpoint-100.bin"), r"cp .*checkpoint-100\.bin .*\.bin"),
    ],
)  # fmt: skip
def test_what_trainings_leave_is_named_with_a_command(
    tmp_path: Path, lora: Path, files: tuple[str, ...], words: str
) -> None:
    checkpoint = tmp_path / "checkpoint-7"
    for name in files:
        (checkpoint / name).parent.mkdir(parents=True, exist_ok=True)
        (checkpoint / name).write_bytes(b"x")
    shutil.copyfile(lora / "model" / "config.json", checkpoint / "config.json")
    with pytest.raises(MirError, match=f"(?s)holds no weights.*{words}"):
        open_checkpoint(checkpoint, LoadOptions(base_llm=lora / "base_llm")).inspect()


def test_an_adapter_without_its_trained_projector_is_named(tmp_path: Path, lora: Path) -> None:
    checkpoint = copy_of(lora / "model", tmp_path / "checkpoint-50")
    (checkpoint / "non_lora_trainables.bin").unlink()
    with pytest.raises(MirError, match=r"without non_lora_trainables\.bin.*end of a training"):
        open_checkpoint(checkpoint, LoadOptions(base_llm=lora / "base_llm")).inspect()
