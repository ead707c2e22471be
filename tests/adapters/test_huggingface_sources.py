"""Hugging Face checkpoints whose parts lie elsewhere or under other names: adapters, bases, processors, wrappers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapters.test_huggingface_checkpoint import SAMPLE, saved
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions, open_checkpoint
from mir_plugin.model_adapters.huggingface.adapter import HuggingFaceAdapter

pytestmark = pytest.mark.slow

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
TARGETS = r".*language_model.*\.(q_proj|v_proj|down_proj)"
# Two orders of the same additions, in float32.
ATOL = 1e-5


@pytest.fixture(scope="module")
def kept_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llava", tmp_path_factory.mktemp("base"))


@pytest.fixture
def base(kept_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept_base, tmp_path / "base"))


def loaded(checkpoint: Path, **options: Any) -> HuggingFaceAdapter:
    adapter = open_checkpoint(checkpoint, LoadOptions(device="cpu", **options)).load()
    assert isinstance(adapter, HuggingFaceAdapter)
    return adapter


def features(checkpoint: Path, **options: Any) -> Tensor:
    adapter = loaded(checkpoint, **options)
    return adapter.forward(adapter.encode([SAMPLE]))


def inspected(checkpoint: Path, **options: Any) -> dict[str, str]:
    opened = open_checkpoint(checkpoint, LoadOptions(**options))
    return {**opened.inspect(), **opened.check()}


def with_adapter(base: Path, target: Path, **settings: Any) -> Path:
    """An adapter in training, saved to ``target``, and the model with it merged, saved to ``target``-merged."""
    model = AutoModelForImageTextToText.from_pretrained(base)
    settings = {"target_modules": TARGETS, "r": 4, "lora_alpha": 8, "init_lora_weights": False, **settings}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    wrapped.save_pretrained(target)
    merged = shutil.copytree(base, f"{target}-merged")
    wrapped.merge_and_unload().save_pretrained(merged)
    return target


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
        {"modules_to_save": ["lm_head"]},
        {"trainable_token_indices": [3, 5]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"target_modules": "all-linear"},
    ],
    ids=str,
)
def test_an_adapter_is_merged_into_its_base(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    adapter = with_adapter(base, tmp_path / "adapter", **settings)
    right = features(tmp_path / "adapter-merged")
    torch.testing.assert_close(features(adapter, base=base), right, rtol=0, atol=ATOL)
    assert (right - features(base)).abs().max() > 100 * ATOL
    assert str(base) in inspected(adapter, base=base)["adapter"]


def test_the_base_that_an_adapter_names_is_found(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = with_adapter(base, tmp_path / "runs" / "checkpoint-10")
    right = features(adapter, base=base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    for name in (str(base), "../base"):
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": name}))
        assert torch.equal(features(adapter), right)
    facts = loaded(adapter).facts
    assert str(base) in {str(Path(folder).resolve()) for folder in facts["source_folders"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "some/where"}))
    with pytest.raises(MirError, match=r"adapter of 'some/where'.*--base"):
        open_checkpoint(adapter)


@pytest.mark.parametrize("settings", [{"alora_invocation_tokens": [3]}, {"init_lora_weights": "corda"}], ids=str)
def test_an_adapter_that_base_and_factors_do_not_give_back_is_refused(
    base: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    adapter = with_adapter(base, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | settings))
    for ask in (inspected, features):
        with pytest.raises(MirError, match=next(iter(settings))):
            ask(adapter, base=base)


def without_a_factor(adapter: Path) -> None:
    state = load_file(adapter / "adapter_model.safetensors")
    state.pop(next(iter(state)))
    save_file(state, adapter / "adapter_model.safetensors")


def with_another_factor(adapter: Path) -> None:
    state = load_file(adapter / "adapter_model.safetensors")
    state["base_model.model.model.language_model.layers.99.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 64)
    save_file(state, adapter / "adapter_model.safetensors")


def of_another_width(adapter: Path) -> None:
    state = load_file(adapter / "adapter_model.safetensors")
    save_file({key: torch.zeros(4, 4) for key in state}, adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("damage", [without_a_factor, with_another_factor, of_another_width])
def test_an_adapter_of_another_model_is_refused(base: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    adapter = with_adapter(base, tmp_path / "adapter")
    damage(adapter)
    for ask in (inspected, features):
        with pytest.raises(MirError, match=r"adapter .* cannot be merged into its base"):
            ask(adapter, base=base)


def test_whole_weights_count_once_beside_the_adapter_they_were_made_with(base: Path, tmp_path: Path) -> None:
    adapter = with_adapter(base, tmp_path / "adapter")
    merged = tmp_path / "adapter-merged"
    right = features(merged)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(adapter / name, merged / name)
    assert torch.equal(features(merged), right)
    assert "adapter_model.safetensors is not applied" in inspected(merged)["adapter beside"]
    assert "not applied" in loaded(merged).facts["notes"]["adapter beside"]
    with pytest.raises(MirError, match="cannot be streamed"):
        loaded(merged, device_memory=10**6)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "base_model.model."])
def test_names_of_wrappers_are_left_out(base: Path, prefix: str) -> None:
    right = features(base)
    state = load_file(base / "model.safetensors")
    save_file({prefix + key: value for key, value in state.items()}, base / "model.safetensors", {"format": "pt"})
    assert torch.equal(features(base), right)
    assert "left out" in inspected(base)["wrappers"]


def test_a_processor_is_taken_from_the_base(base: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(base, tmp_path / "checkpoint-10"))
    for name in PROCESSOR_FILES:
        (checkpoint / name).unlink(missing_ok=True)
    for ask in (inspected, features):
        with pytest.raises(MirError, match=r"no image processor \(processor_config\.json.*--base"):
            ask(checkpoint)
    assert torch.equal(features(checkpoint, base=base), features(base))
    assert inspected(checkpoint, base=base)["processor"] == f"from {base}"


def test_a_config_is_taken_from_the_base(base: Path, tmp_path: Path) -> None:
    state = tmp_path / "checkpoint-10"
    state.mkdir()
    shutil.copyfile(base / "model.safetensors", state / "model.safetensors")
    with pytest.raises(MirError, match=r"holds no config\.json.*--base"):
        open_checkpoint(state)
    assert torch.equal(features(state, base=base), features(base))


def test_what_a_processor_leaves_open_is_the_configs(base: Path) -> None:
    right = features(base)
    path = base / "processor_config.json"
    settings = json.loads(path.read_text())
    for name in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        settings.pop(name, None)
    path.write_text(json.dumps(settings))
    assert torch.equal(features(base), right)
    assert "from config.json" in inspected(base)["patch_size"]
    assert "from config.json" in loaded(base).facts["notes"]["patch_size"]


def test_a_folder_of_shards_named_like_a_file(base: Path) -> None:
    right = features(base)
    state = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    (base / "pytorch_model.bin").mkdir()
    torch.save(state, base / "pytorch_model.bin" / "pytorch_model.bin")
    assert torch.equal(features(base), right)
    inspected(base)


def test_fsdp_shards_are_read_with_unpickle(base: Path) -> None:
    from torch.distributed.checkpoint import FileSystemWriter, save

    right = features(base)
    state = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    shards = base / "pytorch_model_fsdp_0"
    save({"model": state}, storage_writer=FileSystemWriter(shards), no_dist=True)
    for ask in (inspected, features):
        with pytest.raises(MirError, match=r"torch\.distributed\.checkpoint.*--unpickle.*dcp_to_torch .*fsdp_0"):
            ask(base)
    assert torch.equal(features(base, unpickle=True), right)
    inspected(base, unpickle=True)


def test_zero_partitions_are_read_by_deepspeed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed itself is not a dependency of the tests: its reader is replaced by one of the same signature."""
    import sys
    from types import ModuleType

    right = features(base)
    state = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    (base / "global_step7").mkdir()
    (base / "global_step7" / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"x")
    with pytest.raises(MirError, match="DeepSpeed"):
        inspected(base)
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MirError, match="not installed"):
        inspected(base, unpickle=True)
    reader = ModuleType("deepspeed.utils.zero_to_fp32")
    asked = []

    def read(checkpoint_dir: str, tag: str | None = None) -> dict[str, Tensor]:
        asked.append((checkpoint_dir, tag))
        return {f"module.{key}": value for key, value in state.items()}

    reader.get_fp32_state_dict_from_zero_checkpoint = read  # type: ignore[attr-defined]
    for name in ("deepspeed", "deepspeed.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "deepspeed.utils.zero_to_fp32", reader)
    assert torch.equal(features(base, unpickle=True), right)
    assert set(asked) == {(str(base), "global_step7")}
    assert str(base / "global_step7") in loaded(base, unpickle=True).facts["source_folders"]
