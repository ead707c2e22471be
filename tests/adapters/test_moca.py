"""MoCa acts on vision tokens only, on every forward, in batches, under left padding and in generation."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.llava.loading import LlavaAdapter
from mir_plugin.model_adapters.moca.calibration import ModalityCalibration, VisionPositions, calibrate
from mir_plugin.model_adapters.prompts.generation import Prompt
from mir_plugin.model_adapters.prompts.sequences import ExpandedPrompt, padded_batch
from mir_plugin.samples.sample_set import Sample

from golden_data import require_golden

pytestmark = pytest.mark.slow


@functools.cache
def calibrated() -> LlavaAdapter:
    adapter = load_adapter(require_golden("llava/llava_moca") / "model", LoadOptions(device="cpu"))
    assert isinstance(adapter, LlavaAdapter)
    return adapter


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (60, 40), (shade, 90, 200 - shade))


def test_scale_and_shift_reach_vision_tokens_only_and_keep_the_dtype() -> None:
    calibration = ModalityCalibration(2)
    calibration.scale.data, calibration.shift.data = torch.tensor([2.0, 3.0]), torch.tensor([0.5, 0.0])
    hidden = torch.ones(1, 3, 2, dtype=torch.bfloat16)
    calibrated = calibration(hidden, torch.tensor([[False, True, False]]))
    assert calibrated.tolist() == [[[1.0, 1.0], [2.5, 3.0], [1.0, 1.0]]]
    assert calibrated.dtype == torch.bfloat16


class Doubled(nn.Module):
    """Stands for a decoder layer."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return 2 * hidden_states


def calibrated_layer() -> tuple[nn.Module, VisionPositions]:
    layer = Doubled()
    positions = calibrate([layer], 2)
    layer.modality_layernorm.scale.data += 1  # type: ignore[union-attr,operator]
    return layer, positions


def test_a_decode_step_is_left_alone() -> None:
    layer, positions = calibrated_layer()
    with positions.bound_to(torch.tensor([[False, True, True]])):
        assert layer(torch.ones(1, 3, 2)).tolist() == [[[2, 2], [4, 4], [4, 4]]]
        assert layer(torch.ones(1, 1, 2)).tolist() == [[[2, 2]]]


def test_an_unbound_or_foreign_mask_is_an_error_never_a_silent_pass() -> None:
    layer, positions = calibrated_layer()
    with pytest.raises(MirError, match="bound_to"):
        layer(torch.ones(1, 3, 2))
    with positions.bound_to(torch.ones(2, 5, dtype=torch.bool)), pytest.raises(MirError, match=r"1 x 3 .*\[2, 5\]"):
        layer(torch.ones(1, 3, 2))


def test_a_calibrated_layer_keeps_its_class_its_names_and_cannot_be_calibrated_twice() -> None:
    config = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2)
    layer = LlamaDecoderLayer(config, layer_idx=0)
    before = set(layer.state_dict())
    calibrate([layer], 16)
    assert isinstance(layer, LlamaDecoderLayer)
    assert set(layer.state_dict()) - before == {"modality_layernorm.scale", "modality_layernorm.shift"}
    with pytest.raises(MirError, match="already have MoCa"):
        calibrate([layer], 16)


def outputs_of_layer(adapter: LlavaAdapter, index: int, forward: Callable[[], object]) -> Tensor:
    caught: list[Tensor] = []
    hook = adapter.decoder.layers[index].register_forward_hook(lambda _, __, output: caught.append(output))
    forward()
    hook.remove()
    return caught[0]


def test_every_forward_is_calibrated_not_only_the_first() -> None:
    adapter = calibrated()
    batches = [adapter.encode([Sample(str(shade), picture(shade), "A text.")]) for shade in (10, 60, 110)]
    first = [adapter.forward(batch) for batch in batches]
    again = [adapter.forward(batch) for batch in batches]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    for batch in batches:
        switched_on = outputs_of_layer(adapter, 0, lambda batch=batch: adapter.forward(batch))
        layer = adapter.decoder.layers[0]
        scale, shift = layer.modality_layernorm.scale, layer.modality_layernorm.shift
        with unit_calibration(layer):
            switched_off = outputs_of_layer(adapter, 0, lambda batch=batch: adapter.forward(batch))
        mask = batch.vision_mask
        assert torch.allclose(switched_on[mask], switched_off[mask] * scale + shift, atol=1e-6)
        assert torch.equal(switched_on[~mask], switched_off[~mask])


@contextmanager
def unit_calibration(layer: nn.Module) -> Iterator[None]:
    """Scale 1 and shift 0 inside the block."""
    calibration: ModalityCalibration = layer.modality_layernorm  # type: ignore[assignment]
    scale, shift = calibration.scale.data, calibration.shift.data
    calibration.scale.data, calibration.shift.data = torch.ones_like(scale), torch.zeros_like(shift)
    try:
        yield
    finally:
        calibration.scale.data, calibration.shift.data = scale, shift


def test_generation_calibrates_the_prompt_under_left_padding_and_several_images() -> None:
    """Each generated token is what a fresh prefill, whose mask covers only the images, would choose next."""
    adapter = calibrated()
    prompts = [
        Prompt("Compare.", (picture(10), picture(90))),
        Prompt("<image>\nWhat colour, and why do you think so?", (picture(150),)),
        Prompt("No picture here."),
    ]
    answers = adapter.generate(prompts, max_new_tokens=4)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert adapter.generate([prompt], max_new_tokens=4) == [answer]
        question = adapter._expanded(*adapter._question(prompt))
        assert answer == adapter.tokenizer.decode(greedy_by_prefill(adapter, question, prompt, 4))


def test_beams_share_the_calibration_of_their_prompt() -> None:
    adapter = calibrated()
    prompts = [Prompt("Compare.", (picture(10), picture(90))), Prompt("No picture here.")]
    answers = adapter.generate(prompts, max_new_tokens=3, num_beams=2)
    assert answers == [adapter.generate([one], max_new_tokens=3, num_beams=2)[0] for one in prompts]


@torch.no_grad()
def greedy_by_prefill(adapter: LlavaAdapter, question: ExpandedPrompt, prompt: Prompt, n_tokens: int) -> list[int]:
    chosen: list[int] = []
    for _ in range(n_tokens):
        token_ids = torch.cat([question.token_ids, torch.tensor(chosen, dtype=torch.long)])
        vision_mask = torch.cat([question.vision_mask, torch.zeros(len(chosen), dtype=torch.bool)])
        batch = padded_batch([replace(question, token_ids=token_ids, vision_mask=vision_mask)], adapter.device)
        embeddings = adapter.model.embed(batch, *adapter._pixels([prompt]))
        with adapter.model.calibrating(batch.vision_mask):
            state = adapter.model.prefill(embeddings, batch.attention_mask)
        chosen.append(int(adapter.model.base_llm.lm_head(state[0, -1]).argmax()))
    return chosen


def changed_copy(tmp_path: Path, case: str, **changes: object) -> Path:
    checkpoint = tmp_path / "model"
    shutil.copytree(require_golden(f"llava/{case}"), tmp_path, dirs_exist_ok=True)
    config = json.loads((checkpoint / "config.json").read_text())
    config |= changes
    config = {name: value for name, value in config.items() if value != "absent"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    return checkpoint


def test_a_flag_without_weights_and_weights_against_the_flag_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MirError, match=r"says use_moca, but no weights"):
        load_adapter(changed_copy(tmp_path / "flag", "llava_full", use_moca=True), LoadOptions(device="cpu"))
    with pytest.raises(MirError, match=r"use_moca is false, but .*modality_layernorm"):
        load_adapter(changed_copy(tmp_path / "weights", "llava_moca", use_moca=False), LoadOptions(device="cpu"))


def test_weights_without_any_flag_are_applied_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapter = load_adapter(changed_copy(tmp_path, "llava_moca", use_moca="absent"), LoadOptions(device="cpu"))
    assert adapter.facts["moca"] is True
    assert "no use_moca" in caplog.text
