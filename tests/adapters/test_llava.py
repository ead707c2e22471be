"""LLaVA checkpoints: LoRA, vision tower choice, answers in batches, and what is refused."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, SiglipVisionConfig

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions, load_adapter, open_checkpoint
from mir_plugin.model_adapters.llava.loading import LlavaAdapter
from mir_plugin.model_adapters.llava.tower_config import CLIP, SIGLIP, open_tower_weights
from mir_plugin.model_adapters.prompts.generation import Generator, Prompt
from mir_plugin.model_adapters.prompts.sequences import padded_batch
from mir_plugin.samples.sample_set import Sample

from golden_data import require_golden

pytestmark = pytest.mark.slow

SAMPLE = Sample("one", Image.new("RGB", (50, 80), (200, 30, 60)), "A red card, they say.")


def load(checkpoint: Path, **options: object) -> LlavaAdapter:
    adapter = load_adapter(checkpoint, LoadOptions(device="cpu", **options))  # type: ignore[arg-type]
    assert isinstance(adapter, LlavaAdapter)
    return adapter


@functools.cache
def full() -> LlavaAdapter:
    return load(require_golden("llava/llava_full") / "model")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A writable copy of the projector-only case; the checkpoint is in ``model``."""
    return writable_copy("llava_projector", tmp_path)


def writable_copy(case: str, folder: Path) -> Path:
    source = require_golden(f"llava/{case}")
    shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return folder


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_families_are_recognised_from_config_whatever_the_folder_is_called(copy: Path) -> None:
    renamed = copy / "mgm-sharegpt4v-lora"
    (copy / "model").rename(renamed)
    assert open_checkpoint(renamed).spec.name == "llava-1.5"
    change_json(renamed / "config.json", model_type="share4v")
    assert open_checkpoint(renamed).spec.name == "sharegpt4v"


def test_a_merged_lora_gives_what_one_kept_beside_gives() -> None:
    checkpoint = require_golden("llava/llava_lora") / "model"
    merged, beside = load(checkpoint), load(checkpoint, merge_lora=False)
    batch = merged.encode([SAMPLE])
    assert torch.allclose(merged.forward(batch), beside.forward(batch), atol=1e-4)
    base = load_file(require_golden("llava/llava_lora") / "base_llm" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(merged.model.base_llm.get_parameter(name), base[name])
    assert torch.equal(beside.model.base_llm.get_parameter("model.layers.0.mlp.up_proj.base.weight"), base[name])


def test_a_lora_for_another_base_is_refused_by_name(tmp_path: Path) -> None:
    folder = writable_copy("llava_lora", tmp_path)
    adapter = load_file(folder / "model" / "adapter_model.safetensors")
    key = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    save_file(adapter | {key: torch.zeros(100, 6)}, folder / "model" / "adapter_model.safetensors")
    with pytest.raises(MirError, match=r"up_proj\.lora_B.*\[100, 64\].*has \[128, 64\].*another base"):
        load(folder / "model")
    save_file(
        {name.replace("layers.3.", "layers.9."): tensor for name, tensor in adapter.items()},
        folder / "model" / "adapter_model.safetensors",
    )
    with pytest.raises(MirError, match=r"adapts '.*layers\.9\..*', which the base LLM does not have"):
        load(folder / "model")


def test_the_most_specific_vision_tower_wins_and_is_said(tmp_path: Path) -> None:
    folder = writable_copy("llava_full", tmp_path)
    other = folder / "other_tower"
    shutil.copytree(folder / "vision_tower", other)
    tower = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.5 for name, tensor in tower.items()}, other / "model.safetensors")
    inside, named = load(folder / "model"), load(folder / "model", vision_tower=other)
    assert inside.facts["vision_tower"].startswith("inside the checkpoint's weights")
    assert str(other) in named.facts["vision_tower"]
    batch = inside.encode([SAMPLE])
    assert not torch.allclose(inside.forward(batch), named.forward(batch), atol=1e-2)


def test_a_full_checkpoint_without_tower_weights_takes_the_named_tower_and_says_so(tmp_path: Path) -> None:
    folder = writable_copy("llava_full", tmp_path)
    path = folder / "model" / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "vision_tower" not in name}, path)
    assert "named by mm_vision_tower" in load(folder / "model").facts["vision_tower"]
    shutil.rmtree(folder / "vision_tower")
    with pytest.raises(MirError, match=r"vision tower 'vision_tower' was not found.*--vision-tower"):
        load(folder / "model")


def test_missing_parts_are_named_with_the_option_that_mends_it(copy: Path) -> None:
    (copy / "base_llm").rename(copy / "moved")
    with pytest.raises(MirError, match=r"base LLM 'base_llm' was not found.*--base-llm"):
        load(copy / "model")
    assert load(copy / "model", base_llm=copy / "moved").facts["base_llm"] == str(copy / "moved")
    (copy / "moved" / "tokenizer.model").unlink()
    with pytest.raises(MirError, match=r"no tokenizer .*moved"):
        load(copy / "model", base_llm=copy / "moved")


def test_a_base_llm_of_another_size_is_refused_by_key_and_file(copy: Path) -> None:
    change_json(copy / "model" / "config.json", intermediate_size=64)
    with pytest.raises(MirError, match=r"gate_proj\.weight' in .*model\.safetensors has shape \[128, 64\].*\[64, 64\]"):
        load(copy / "model")


def test_a_vocabulary_resized_by_image_tokens_is_refused_with_that_cause(copy: Path) -> None:
    change_json(copy / "model" / "config.json", vocab_size=602)
    with pytest.raises(MirError, match=r"\[600, 64\].*\[602, 64\].*vocabulary was resized"):
        load(copy / "model")


def test_incomplete_and_contradictory_configs_are_named(copy: Path) -> None:
    path = copy / "model" / "config.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in whole.items() if name != "hidden_size"}))
    with pytest.raises(MirError, match=r"config\.json lacks hidden_size"):
        load(copy / "model")
    path.write_text(json.dumps(whole | {"num_attention_heads": 5, "num_key_value_heads": 5}))
    with pytest.raises(MirError, match=r"base_llm.config\.json has num_attention_heads = 4, but .*config\.json says 5"):
        load(copy / "model")


def test_unknown_projectors_and_aspect_ratios_are_refused(copy: Path) -> None:
    change_json(copy / "model" / "config.json", mm_projector_type="ldp")
    with pytest.raises(MirError, match=r"mm_projector_type is 'ldp'"):
        load(copy / "model")
    change_json(copy / "model" / "config.json", mm_projector_type="mlp2x_gelu", image_aspect_ratio="anyres")
    with pytest.raises(MirError, match=r"image_grid_pinpoints of config\.json is None"):
        load(copy / "model")


def test_empty_texts_and_prompts_beyond_the_context_are_refused() -> None:
    with pytest.raises(MirError, match="sample blank: its text is empty"):
        full().encode([Sample("blank", SAMPLE.image, " \n")])


def test_a_question_beyond_the_cut_loses_its_end_as_in_the_original_code() -> None:
    adapter, images = full(), tuple(Image.new("RGB", (30, 30), (9, 20 * k, 90)) for k in range(8))
    before = adapter.n_cut_prompts
    one, other = (adapter.generate([Prompt(text, images)], max_new_tokens=3) for text in ("What is it?", "Why? " * 9))
    assert one == other != [""]  # eight images fill the 2048 positions that training had
    assert adapter.n_cut_prompts == before + 2
    adapter.generate([Prompt("What is it?", images[:1])], max_new_tokens=1)
    assert adapter.n_cut_prompts == before + 2


def test_an_image_mark_in_a_sample_text_is_ordinary_text() -> None:
    batch = full().encode([Sample("mark", SAMPLE.image, "It says <image> here.")])
    assert int(batch.vision_mask.sum()) == full().model.n_vision_tokens


PROMPTS = (
    Prompt("What is it?", (Image.new("RGB", (30, 30), (9, 200, 90)),)),
    Prompt("A longer question, without any picture, about nothing in particular?"),
    Prompt("<image> and <image>", (Image.new("L", (90, 20), 70), Image.new("RGB", (10, 30), (1, 2, 3)))),
    Prompt("Last one", (Image.new("RGBA", (44, 44), (250, 0, 250, 90)),)),
)


@pytest.mark.parametrize("num_beams", [1, 2])
def test_answers_do_not_depend_on_the_batch(num_beams: int) -> None:
    adapter = full()
    assert isinstance(adapter, Generator)
    together = adapter.generate(PROMPTS, max_new_tokens=6, num_beams=num_beams)
    assert together == [adapter.generate([one], max_new_tokens=6, num_beams=num_beams)[0] for one in PROMPTS]
    assert len(set(together)) > 1


def test_answers_end_before_a_stop_text() -> None:
    (whole,) = full().generate(PROMPTS[:1], max_new_tokens=6)
    stop = whole[2:4]
    assert full().generate(PROMPTS[:1], max_new_tokens=6, until=[stop]) == [whole.partition(stop)[0]]


CONTINUATIONS = ("yes, it is", "no", "A B C", "the end of it")


def test_likelihoods_do_not_depend_on_the_batch() -> None:
    together = full().loglikelihood(PROMPTS, CONTINUATIONS)
    for prompt, continuation, (value, greedy) in zip(PROMPTS, CONTINUATIONS, together, strict=True):
        ((alone, alone_greedy),) = full().loglikelihood([prompt], [continuation])
        assert (alone, alone_greedy) == (pytest.approx(value, abs=1e-3), greedy)


@torch.no_grad()
def test_likelihoods_are_those_of_one_token_after_another() -> None:
    adapter, prompt = full(), PROMPTS[0]
    whole, n_tokens = adapter._continued(prompt, CONTINUATIONS[0])
    expected = 0.0
    for end in range(whole.n_tokens - n_tokens, whole.n_tokens):
        batch = padded_batch([whole.cut(end)], adapter.device)
        states = adapter.model.prefill(adapter.model.embed(batch, *adapter._pixels([prompt])), batch.attention_mask)
        logits = adapter.model.base_llm.lm_head(states[0, -1])
        expected += float(logits.log_softmax(-1)[whole.token_ids[end]])
    ((value, greedy),) = adapter.loglikelihood([prompt], [CONTINUATIONS[0]])
    assert n_tokens > 1
    assert value == pytest.approx(expected, abs=1e-3)
    assert not greedy


def test_marks_and_images_must_agree() -> None:
    with pytest.raises(MirError, match="1 images but 2 <image> marks"):
        full().generate([Prompt("<image> <image>", PROMPTS[0].images)], max_new_tokens=2)


def test_a_tower_saved_by_transformers_5_without_its_prefix_is_the_same_tower(tmp_path: Path) -> None:
    case = require_golden("llava/llava_projector")
    shutil.copytree(case / "vision_tower", tmp_path / "tower")
    path = tmp_path / "tower" / "model.safetensors"
    stored = load_file(path)
    assert all(name.startswith("vision_model.") for name in stored)
    save_file({name.removeprefix("vision_model."): value for name, value in stored.items()}, path)
    ours, theirs = open_tower_weights(tmp_path / "tower"), open_tower_weights(case / "vision_tower")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].read(), theirs[name].read()) for name in theirs)


def test_sizes_that_a_towers_config_leaves_out_are_transformers_defaults() -> None:
    for kind, config in ((CLIP, CLIPVisionConfig()), (SIGLIP, SiglipVisionConfig())):
        assert {name: getattr(config, name) for name in kind.defaults} == kind.defaults
