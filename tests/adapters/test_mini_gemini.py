"""Mini-Gemini checkpoints against the recorded numbers of the original code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.mini_gemini_cases import (
    all_samples,
    assert_equal_to_rounding,
    case,
    first_sample,
    hidden_states,
    load_mini_gemini,
)
from torch import Tensor

from mir_plugin.model_adapters import open_checkpoint
from mir_plugin.model_adapters.llava.adapter import LlavaAdapter
from mir_plugin.model_adapters.llava.vision_tower import ClipTower
from mir_plugin.model_adapters.mini_gemini.vision import low_resolution_views
from mir_plugin.model_adapters.prompts.conversation import prompt_ids
from mir_plugin.model_adapters.prompts.generation import Prompt
from mir_plugin.model_adapters.prompts.sequences import expand, padded_batch
from mir_plugin.model_adapters.recognition import CheckpointFolder, is_mini_gemini

from golden_data import require_golden

pytestmark = pytest.mark.slow

HD = "mgm_hd"
CASES = ("mgm_full", "mgm_projector", "mgm_full_opt", HD)


def checksum(values: Tensor) -> list[float]:
    """As defined in expected.json."""
    x = values.double().flatten()
    i = torch.arange(len(x), dtype=torch.float64)
    parts = (x, x.square(), x.abs(), x * i.cos(), x * (0.01 * i).sin())
    return [float(part.mean()) for part in parts]


@pytest.mark.parametrize("name", CASES)
def test_prompts_ids_and_masks_are_the_recorded_ones(name: str) -> None:
    adapter, batch = case(name).adapter, all_samples(name)
    for row, sample in enumerate(case(name).recorded["samples"]):
        text = adapter.conversation.answered("<image>\n", sample["text"])
        assert text == sample["prompt"]
        assert prompt_ids(adapter.tokenizer, text, n_images=1) == sample["input_ids"]
        start, n_tokens = sample["image_start"], sample["num_image_tokens"]
        (places,) = batch.vision_mask[row].nonzero(as_tuple=True)
        assert places.tolist() == list(range(start, start + n_tokens))
        prompts = batch.inputs["prompts"]
        assert prompts.token_ids[row][batch.text_mask[row]].tolist() == sample["text_token_ids"]
        assert prompts.attention_mask[row].sum() == sample["sequence_length"]


@pytest.mark.parametrize("name", CASES)
def test_pixels_of_both_resolutions_are_the_recorded_ones(name: str) -> None:
    towers = case(name).adapter.model.vision_tower
    n = 1 if name == HD else len(case(name).recorded["samples"])
    for sample, high in zip(
        case(name).recorded["samples"][:n], all_samples(name).inputs["pixel_values"][:n], strict=True
    ):
        low = low_resolution_views(high, towers.layout)
        as_recorded = low.roll(-1, 0) if towers.layout.with_global_view else low  # there the whole picture comes last
        assert checksum(high) == pytest.approx(sample["pixels_high_checksum5"], rel=1e-9, abs=1e-12)
        assert checksum(as_recorded) == pytest.approx(sample["pixels_low_checksum5"], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_every_step_of_the_image_path_gives_the_recorded_values(name: str) -> None:
    recorded, towers = case(name).tensors, case(name).adapter.model.vision_tower
    batch, states = first_sample(name)
    pixels = batch.inputs["pixel_values"]
    views, features = low_resolution_views(pixels[0], towers.layout), towers(pixels)[0]
    if name == HD:
        assert_equal_to_rounding(views.roll(-1, 0)[..., ::16, ::16], recorded["sample00.pixels_low_every16"])
        assert_equal_to_rounding(towers.aux(pixels)[0, :, ::32, ::32], recorded["sample00.convnext_features_every32"])
        assert_equal_to_rounding(features[::16], recorded["sample00.after_mining_every16tokens"])
    else:
        assert_equal_to_rounding(views[0, :, ::8, ::8], recorded["sample00.pixels_low_every8"])
        clip = ClipTower.forward(towers, views)[0]
        assert_equal_to_rounding(clip[::16], recorded["sample00.clip_features_every16tokens"])
        assert_equal_to_rounding(towers.aux(pixels)[0, :, ::16, ::16], recorded["sample00.convnext_features_every16"])
        assert_equal_to_rounding(features[::16], recorded["sample00.after_mining_every16tokens"])
    projected = states[0][batch.vision_mask]
    assert_equal_to_rounding(projected[::16], recorded["sample00.projector_output_every16tokens"])


@pytest.mark.parametrize("name", CASES)
def test_hidden_states_of_every_layer_are_the_recorded_ones(name: str) -> None:
    _, states = first_sample(name)
    for state, recorded in zip(states, case(name).tensors["sample00.hidden_states_every32tokens"], strict=True):
        assert_equal_to_rounding(state[0, ::32], recorded)


def test_all_samples_in_one_batch_have_the_recorded_means() -> None:
    batch, recorded = all_samples("mgm_full"), case("mgm_full").tensors
    for layer, state in enumerate(hidden_states(case("mgm_full").adapter, batch)):
        for row, sample_id in enumerate(batch.sample_ids):
            for modality, mask in (("vision", batch.vision_mask), ("text", batch.text_mask)):
                tokens = state[row][mask[row]]
                key = f"sample{sample_id}.{modality}"
                assert_equal_to_rounding(tokens.mean(dim=0), recorded[f"{key}.mean"][layer])
                assert_equal_to_rounding(tokens.norm(dim=1).mean(), recorded[f"{key}.mean_norm"][layer])


def test_a_batch_of_three_equals_three_single_samples() -> None:
    adapter, samples = case("mgm_full").adapter, case("mgm_full").samples()[:3]
    batch = adapter.encode(samples)
    together = adapter.forward(batch)
    for row, sample in enumerate(samples):
        alone = adapter.forward(adapter.encode([sample]))[0]
        assert_equal_to_rounding(together[row, : len(alone)], alone)


def change_of_projector_output(name: str, adapter: LlavaAdapter) -> float:
    batch, states = first_sample(name)
    with torch.no_grad():
        changed = adapter.model.embed(batch.inputs["prompts"], batch.inputs["pixel_values"])
    return float((changed - states[0]).norm() / states[0][batch.vision_mask].norm())


@pytest.mark.parametrize("name", ("mgm_full", "mgm_full_opt"))
def test_a_tower_named_by_the_user_counts_instead_of_the_checkpoints_copy(name: str) -> None:
    adapter = load_mini_gemini(
        case(name).folder / "model", vision_tower=case(name).folder / case(name).recorded["vision_tower_path"]
    )
    recorded = case(name).recorded["relative_change_of_projector_output_sample00"]
    assert change_of_projector_output(name, adapter) == pytest.approx(
        recorded["clip_weights_from_vision_tower_folder"], rel=1e-3
    )
    assert "--vision-tower" in adapter.facts["vision_tower"]


def test_the_second_tower_comes_from_its_folder_and_the_copy_only_on_request() -> None:
    assert "mm_vision_tower_aux" in case("mgm_full").adapter.facts["vision_tower_aux"]
    adapter = load_mini_gemini(case("mgm_full").folder / "model", vision_tower_aux=case("mgm_full").folder / "model")
    recorded = case("mgm_full").recorded["relative_change_of_projector_output_sample00"]
    assert change_of_projector_output("mgm_full", adapter) == pytest.approx(
        recorded["convnext_weights_from_checkpoint"], rel=1e-3
    )
    assert "inside the checkpoint" in adapter.facts["vision_tower_aux"]


def test_a_trained_second_tower_comes_from_the_checkpoint_unless_a_folder_is_named() -> None:
    assert "optimize_vision_tower_aux" in case("mgm_full_opt").adapter.facts["vision_tower_aux"]
    folder = case("mgm_full_opt").folder / case("mgm_full_opt").recorded["vision_tower_aux_path"]
    adapter = load_mini_gemini(case("mgm_full_opt").folder / "model", vision_tower_aux=folder)
    recorded = case("mgm_full_opt").recorded["relative_change_of_projector_output_sample00"]
    assert change_of_projector_output("mgm_full_opt", adapter) == pytest.approx(
        recorded["convnext_weights_from_vision_tower_aux_folder"], rel=1e-3
    )
    assert str(folder) in adapter.facts["vision_tower_aux"]


@pytest.mark.parametrize(
    ("config", "ours"),
    [
        ({"model_type": "mgm"}, True),
        ({"model_type": "mini_gemini"}, True),
        ({"model_type": "mgm_mistral"}, True),
        ({"model_type": "llama", "mm_vision_tower": "a", "mm_vision_tower_aux": "b"}, True),
        ({"model_type": "llava_llama", "mm_vision_tower": "a"}, False),
        ({"model_type": "llama"}, False),
    ],
)
def test_the_family_is_recognised_from_the_config(tmp_path: Path, config: dict[str, Any], ours: bool) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert is_mini_gemini(CheckpointFolder.read(tmp_path)) is ours


def test_the_family_is_not_taken_for_llava() -> None:
    assert open_checkpoint(require_golden("mini_gemini/mgm_full") / "model").spec.name == "mini-gemini"


def question(name: str, row: int, text: str) -> Prompt:
    return Prompt(text, (case(name).samples()[row].open_image(),))


@pytest.mark.parametrize("name", CASES)
def test_the_most_likely_token_after_every_prompt_is_the_recorded_one(name: str) -> None:
    adapter = case(name).adapter
    n = len(case(name).recorded["samples"]) if name == "mgm_full" else 1
    batch = all_samples(name) if n > 1 else first_sample(name)[0]
    last = batch.inputs["prompts"].attention_mask.sum(dim=1) - 1
    states = adapter.forward(batch)[torch.arange(n), last]
    recorded = [sample["first_generated_token"] for sample in case(name).recorded["samples"][:n]]
    assert adapter.model.base_llm.lm_head(states).argmax(dim=-1).tolist() == recorded


def test_greedy_answers_are_the_same_alone_and_in_a_batch_of_four() -> None:
    adapter = case("mgm_full").adapter
    texts = ["What is in the picture?", "Count.", "Describe it in one sentence, please.", "Is there a cat?"]
    prompts = [question("mgm_full", row, text) for row, text in enumerate(texts)]
    together = adapter.generate(prompts, max_new_tokens=6)
    assert together == [adapter.generate([prompt], max_new_tokens=6)[0] for prompt in prompts]
    assert len(set(together)) > 1


def test_greedy_answers_are_what_a_prefill_per_token_gives() -> None:
    adapter = case("mgm_full").adapter
    prompt = question("mgm_full", 0, "What is in the picture?")
    text = adapter.conversation.question("<image>\nWhat is in the picture?")
    ids = prompt_ids(adapter.tokenizer, text, n_images=1)
    answer: list[int] = []
    for _ in range(4):
        batch = padded_batch([expand(ids + answer, n_vision_tokens=576)], torch.device("cpu"))
        with torch.no_grad():
            embeddings = adapter.model.embed(batch, adapter.preprocessor(prompt.images))
            states = adapter.model.prefill(embeddings, batch.attention_mask)
            answer.append(int(adapter.model.base_llm.lm_head(states[0, -1]).argmax()))
    assert adapter.generate([prompt], max_new_tokens=4) == [adapter.tokenizer.decode(answer)]


def test_likelihoods_do_not_depend_on_the_batch() -> None:
    adapter = case("mgm_full").adapter
    prompts = [question("mgm_full", row, "What is it?") for row in range(2)]
    together = adapter.loglikelihood(prompts, ["a whale", "no"])
    for prompt, continuation, (likelihood, _) in zip(prompts, ["a whale", "no"], together, strict=True):
        ((alone, _),) = adapter.loglikelihood([prompt], [continuation])
        assert alone == pytest.approx(likelihood, rel=1e-5)


def test_the_second_towers_folder_is_part_of_the_fingerprint() -> None:
    one, other = (
        load_mini_gemini(case("mgm_full").folder / "model", vision_tower_aux=tower).facts["checkpoint_fingerprint"]
        for tower in (None, case("mgm_full").folder / "model")
    )
    assert one != other
