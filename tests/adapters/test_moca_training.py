"""MoCa in transformers models: what it reaches, how it trains, how it is stored, and that it leaves no trace."""

from __future__ import annotations

import copy
import inspect
import itertools
import json
import pickle
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from adapters.tiny_models import TINY_MODELS, TinyModel
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from test_distributed import together
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mir_plugin.engine.features import recorded_outputs
from mir_plugin.errors import MirError
from mir_plugin.metric.loss import mir_loss
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.huggingface.adapter import HuggingFaceAdapter, from_loaded
from mir_plugin.model_adapters.llava.loading import LlavaAdapter
from mir_plugin.model_adapters.moca.calibration import ModalityCalibration
from mir_plugin.model_adapters.moca.training import (
    apply_moca,
    has_moca,
    load_moca,
    moca_parameters,
    moca_tensors,
    remove_moca,
    save_moca,
)
from mir_plugin.model_adapters.prompts.generation import Prompt
from mir_plugin.samples.sample_set import Sample
from mir_plugin.types import Batch

from golden_data import REPOSITORY, require_golden

pytestmark = pytest.mark.slow

SAMPLES = [
    Sample("red", Image.new("RGB", (40, 30), (200, 30, 9)), "A red card."),
    Sample("blue", Image.new("RGB", (30, 40), (20, 30, 229)), "Blue, they say, all of it, and a little longer."),
]


@pytest.fixture
def llava() -> TinyModel:
    return TINY_MODELS["llava"]()


def disturb(model: Any, std: float = 0.3) -> None:
    """Random scales and shifts, as if trained."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moca_parameters(model):
            parameter += std * torch.randn(parameter.shape, generator=generator)


def states_of(adapter: HuggingFaceAdapter, batch: Batch) -> list[Tensor]:
    states: list[Tensor] = []
    with recorded_outputs(adapter, states.append), torch.no_grad():
        adapter.forward(batch)
    return states


def loss_of(model: Any, batch: Batch) -> Tensor:
    """Next-token loss on the text tokens."""
    ids = batch.inputs["input_ids"]
    loss: Tensor = model(**batch.inputs, labels=ids.masked_fill(~batch.text_mask, -100)).loss
    return loss


def gradients(model: Any) -> list[Tensor]:
    found = [parameter.grad for parameter in moca_parameters(model)]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def moved(scales_and_shifts: Iterable[Tensor]) -> bool:
    """Whether none is 1 or 0 everywhere, where they start."""
    # Not strict: the starting values repeat without end.
    return all((one != start).any() for one, start in zip(scales_and_shifts, itertools.cycle((1, 0)), strict=False))


def equal(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


def first_layer_output(adapter: HuggingFaceAdapter, batch: Batch) -> Tensor:
    return states_of(adapter, batch)[0]


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_family_calibrates_vision_tokens_only_and_gives_moca_back(name: str) -> None:
    tiny = TINY_MODELS[name]()
    adapter = from_loaded(tiny.model, tiny.processor)
    batch = adapter.encode(SAMPLES if adapter.max_batch is None else SAMPLES[:1])
    before = states_of(adapter, batch)
    classes = {path: type(module) for path, module in tiny.model.named_modules()}
    keys, config = list(tiny.model.state_dict()), tiny.model.config.to_dict()

    apply_moca(tiny.model)
    assert equal(states_of(adapter, batch), before)
    assert {key.rpartition(".layers.")[2] for key in set(tiny.model.state_dict()) - set(keys)} == {
        f"{k}.modality_layernorm.{part}" for k in range(len(before)) for part in ("scale", "shift")
    }
    disturb(tiny.model)
    scale, shift = moca_parameters(tiny.model)[:2]
    ours, mask = first_layer_output(adapter, batch), batch.vision_mask
    assert torch.allclose(ours[mask], before[0][mask] * scale + shift, atol=1e-6)
    assert torch.equal(ours[~mask], before[0][~mask])
    assert not torch.equal(states_of(adapter, batch)[-1][batch.text_mask], before[-1][batch.text_mask])

    remove_moca(tiny.model)
    assert equal(states_of(adapter, batch), before)
    assert {path: type(module) for path, module in tiny.model.named_modules()} == classes
    assert (list(tiny.model.state_dict()), tiny.model.config.to_dict()) == (keys, config)


def test_padding_and_several_images_do_not_move_the_calibration(llava: TinyModel) -> None:
    """Each sample alone, and all in one padded batch: two images, one image, none."""
    apply_moca(llava.model)
    disturb(llava.model)
    texts = ["<image> and <image> are compared", "<image> one", "none at all, only words"]
    images = [SAMPLES[0].image, SAMPLES[1].image, SAMPLES[0].image]
    for side in ("left", "right"):
        together_ = llava.processor(images=images, text=texts, padding=True, padding_side=side, return_tensors="pt")
        logits = llava.model(**together_).logits
        rows = zip(texts, (images[:2], images[2:], None), logits, together_["attention_mask"].bool(), strict=True)
        for text, own, row, kept in rows:
            alone = llava.model(**llava.processor(images=own, text=text, return_tensors="pt")).logits[0]
            assert torch.allclose(row[kept], alone, atol=1e-4)


def test_recorded_hidden_states_are_calibrated_on_every_forward(llava: TinyModel) -> None:
    adapter = from_loaded(llava.model, llava.processor)
    batch = adapter.encode(SAMPLES)
    before = states_of(adapter, batch)
    apply_moca(llava.model)
    disturb(llava.model)
    for _ in range(2):
        recorded = llava.model(**batch.inputs, output_hidden_states=True).hidden_states[1:]
        assert equal(recorded, states_of(adapter, batch))
        assert not any(torch.equal(one, other) for one, other in zip(recorded, before, strict=True))


@pytest.mark.parametrize(("name", "mark"), [("llava", "<image> "), ("blip2", "")])
def test_generation_calibrates_the_prompt_and_leaves_decode_steps_alone(name: str, mark: str) -> None:
    """Generated tokens are what repeated prefills without a cache would choose."""
    tiny = TINY_MODELS[name]()
    apply_moca(tiny.model)
    disturb(tiny.model)
    prompt = tiny.processor(images=SAMPLES[0].image, text=f"{mark}What is it?", return_tensors="pt")
    found = tiny.model.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)[0, -4:].tolist()
    for token in found:
        assert tiny.model(**prompt).logits[0, -1].argmax() == token
        ids = torch.cat([prompt["input_ids"], torch.tensor([[token]])], dim=1)
        prompt |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("name", ["llava", "blip2"])
def test_beams_and_left_padding_do_not_move_the_calibration(name: str) -> None:
    tiny = TINY_MODELS[name]()
    apply_moca(tiny.model)
    disturb(tiny.model)
    adapter = from_loaded(tiny.model, tiny.processor)
    prompts = [Prompt("What is it?", (SAMPLES[0].image,)), Prompt("A longer question?", (SAMPLES[1].image,))]
    answers = adapter.generate(prompts, max_new_tokens=4, num_beams=2)
    assert answers == [adapter.generate([one], max_new_tokens=4, num_beams=2)[0] for one in prompts]


def test_gradients_of_scale_shift_and_states_are_those_of_finite_differences() -> None:
    calibration = ModalityCalibration(3).double()
    states = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[False, True, True, False], [True, False, False, False]])

    def calibrated(states: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        values = {"scale": scale, "shift": shift}
        return torch.func.functional_call(calibration, values, (states, mask))

    assert torch.autograd.gradcheck(calibrated, (states, calibration.scale, calibration.shift))


def test_gradients_through_the_whole_model_are_those_of_finite_differences(llava: TinyModel) -> None:
    model = llava.model.double()
    apply_moca(model)
    disturb(model)
    model.double()
    batch = from_loaded(model, llava.processor).encode(SAMPLES)
    weights = torch.randn(int(batch.text_mask.sum()), 400, generator=torch.Generator().manual_seed(0)).double()

    def score() -> Tensor:
        return (model(**batch.inputs).logits[batch.text_mask] * weights[:, : model.lm_head.out_features]).mean()

    score().backward()
    step = 1e-2
    for parameter, slope in zip(moca_parameters(model), gradients(model), strict=True):
        coordinate = int(slope.abs().argmax())
        scores = []
        with torch.no_grad():
            for move in (step, -2 * step, step):
                parameter[coordinate] += move
                scores.append(score().item())
        # Llama's norms round to float32 even here, so steps cannot be small: third derivatives show.
        assert slope[coordinate].item() == pytest.approx((scores[0] - scores[1]) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(llava: TinyModel, use_reentrant: bool) -> None:
    """Two batches run forward before either runs backward: recomputed layers need the first one's mask."""
    apply_moca(llava.model)
    disturb(llava.model)
    llava.model.train()
    adapter = from_loaded(llava.model, llava.processor)
    long, short = adapter.encode(SAMPLES[1:]), adapter.encode(SAMPLES[:1])
    (loss_of(llava.model, long) + loss_of(llava.model, short)).backward()
    plain = gradients(llava.model)
    llava.model.zero_grad()
    llava.model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    (loss_of(llava.model, long) + loss_of(llava.model, short)).backward()
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(gradients(llava.model), plain, strict=True))


def test_small_steps_are_not_lost_in_half_precision(llava: TinyModel) -> None:
    model = llava.model.bfloat16()
    apply_moca(model)
    batch = from_loaded(model, llava.processor).encode(SAMPLES)
    optimiser = torch.optim.Adam(moca_parameters(model), lr=1e-5)
    assert model(**batch.inputs).logits.dtype == torch.bfloat16
    for _ in range(2):
        optimiser.zero_grad()
        loss_of(model, batch).backward()
        optimiser.step()
    scale = moca_parameters(model)[0]
    assert scale.dtype == torch.float32
    assert (scale != 1).all()


def test_autocast_computes_the_calibration_in_full_precision(llava: TinyModel) -> None:
    apply_moca(llava.model)
    adapter = from_loaded(llava.model, llava.processor)
    batch = adapter.encode(SAMPLES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = first_layer_output(adapter, batch)
        with torch.no_grad():
            moca_parameters(llava.model)[0] += 1e-4
        after = first_layer_output(adapter, batch)
        loss_of(llava.model, batch).backward()
    assert torch.allclose(after[batch.vision_mask], before[batch.vision_mask] * (1 + 1e-4), rtol=1e-6, atol=1e-9)
    assert all(gradient.dtype == torch.float32 for gradient in gradients(llava.model))


class Captions(torch.utils.data.Dataset[dict[str, Tensor]]):
    """The two samples, alternating, as a processor gives them."""

    def __init__(self, tiny: TinyModel) -> None:
        adapter = from_loaded(tiny.model, tiny.processor)
        self.batches = [adapter.encode([sample]) for sample in SAMPLES]

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = self.batches[index % 2]
        labels = batch.inputs["input_ids"].masked_fill(~batch.text_mask, -100)
        return {name: value[0] for name, value in {**batch.inputs, "labels": labels}.items()}


def trainer(tiny: TinyModel, folder: Path, kind: type[tf.Trainer] = tf.Trainer, **options: Any) -> tf.Trainer:
    """Four steps on MoCa and projector, the rest frozen, as in LLaVA's first stage."""
    tiny.model.requires_grad_(False)
    tiny.model.model.multi_modal_projector.requires_grad_(True)
    for parameter in moca_parameters(tiny.model):
        parameter.requires_grad_(True)
    arguments = tf.TrainingArguments(
        output_dir=str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=1, learning_rate=1e-2,
        use_cpu=True, report_to=[], seed=3, weight_decay=0.1, disable_tqdm=True, logging_steps=1, **options,
    )  # fmt: skip
    return kind(tiny.model, arguments, train_dataset=Captions(tiny), processing_class=tiny.processor)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TinyModel, Path, list[float]]]:
    """A tiny LLaVA trained for four steps under gradient checkpointing, its folder and its losses."""
    tiny, folder = TINY_MODELS["llava"](), tmp_path_factory.mktemp("trained")
    apply_moca(tiny.model)
    run = trainer(tiny, folder, gradient_checkpointing=True)
    run.train()
    yield tiny, folder, [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_trainer_trains_moca_and_spares_it_weight_decay(trained: tuple[TinyModel, Path, list[float]]) -> None:
    tiny, folder, losses = trained
    assert losses[-1] < losses[0]
    assert moved(moca_parameters(tiny.model))
    run = trainer(tiny, folder)
    assert not any("modality_layernorm" in name for name in run.get_decay_parameter_names(tiny.model))


def test_a_resumed_training_ends_where_an_uninterrupted_one_does(
    trained: tuple[TinyModel, Path, list[float]], tmp_path: Path
) -> None:
    """Weights from the checkpoint, then resume: Trainer of transformers 5.23 itself loads none of a LLaVA's weights.

    It looks for other key names than save_pretrained writes, and only warns.
    """
    tiny, folder, _ = trained
    half_way = folder / "checkpoint-2"
    again = TinyModel(tf.LlavaForConditionalGeneration.from_pretrained(half_way), tiny.processor)
    load_moca(again.model, half_way)
    trainer(again, tmp_path, gradient_checkpointing=True).train(resume_from_checkpoint=str(half_way))
    assert equal(moca_parameters(again.model), moca_parameters(tiny.model))


def test_a_saved_model_is_measured_and_loaded_with_its_moca(trained: tuple[TinyModel, Path, list[float]]) -> None:
    tiny, folder, _ = trained
    checkpoint = folder / "checkpoint-4"
    config = json.loads((checkpoint / "config.json").read_text())
    assert (config["use_moca"], config["architectures"]) == (True, ["LlavaForConditionalGeneration"])
    live = from_loaded(tiny.model, tiny.processor)
    batch = live.encode(SAMPLES)
    expected = states_of(live, batch)
    measured = load_adapter(checkpoint, LoadOptions(device="cpu"))
    assert isinstance(measured, HuggingFaceAdapter)
    assert measured.facts["moca"] is True
    loaded = tf.LlavaForConditionalGeneration.from_pretrained(checkpoint)
    load_moca(loaded, checkpoint)
    for adapter in (measured, from_loaded(loaded, tiny.processor)):
        assert equal(states_of(adapter, batch), expected)


def test_the_documented_trainer_pulls_the_modalities_together(
    llava: TinyModel, trained: tuple[TinyModel, Path, list[float]], tmp_path: Path
) -> None:
    guide = (REPOSITORY / "docs" / "how-to" / "moca.md").read_text(encoding="utf-8")
    (block,) = (code for code in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "AligningTrainer" in code)
    written: dict[str, Any] = {"Trainer": tf.Trainer}
    exec(block.replace("0.1 * mir_loss", "10 * mir_loss"), written)
    apply_moca(llava.model)
    trainer(llava, tmp_path, written["AligningTrainer"]).train()
    gaps = []
    for tiny in (llava, trained[0]):
        adapter = from_loaded(tiny.model, tiny.processor)
        batch = adapter.encode(SAMPLES)
        gaps.append(mir_loss(states_of(adapter, batch), batch.vision_mask, batch.text_mask).item())
    assert gaps[0] < gaps[1]


def test_a_checkpoint_whose_moca_is_gone_is_refused(
    trained: tuple[TinyModel, Path, list[float]], tmp_path: Path
) -> None:
    tiny, _, _ = trained
    plain = copy.deepcopy(tiny.model)
    remove_moca(plain)
    plain.config.use_moca = True
    plain.save_pretrained(tmp_path)
    tiny.processor.save_pretrained(tmp_path)
    with pytest.raises(MirError, match="says use_moca, but no weights"):
        load_adapter(tmp_path, LoadOptions(device="cpu"))


def test_lora_trains_saves_and_merges_with_moca(llava: TinyModel, tmp_path: Path) -> None:
    base = copy.deepcopy(llava.model)
    apply_moca(llava.model)
    adapter = from_loaded(llava.model, llava.processor)
    batch = adapter.encode(SAMPLES)
    tuned = get_peft_model(
        llava.model, LoraConfig(target_modules=r".*language_model.*q_proj", modules_to_save=["modality_layernorm"])
    )
    optimiser = torch.optim.Adam([p for p in tuned.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        loss_of(tuned, batch).backward()
        optimiser.step()
    assert moved(moca_tensors(tuned).values())
    tuned.eval()
    expected = tuned(**batch.inputs).logits
    tuned.save_pretrained(tmp_path)

    reloaded = copy.deepcopy(base)
    apply_moca(reloaded)
    reloaded = PeftModel.from_pretrained(reloaded, tmp_path).eval()
    assert torch.allclose(reloaded(**batch.inputs).logits, expected, atol=1e-6)
    merged = reloaded.merge_and_unload()
    assert torch.allclose(merged(**batch.inputs).logits, expected, atol=1e-5)
    load_moca(base, tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(one, moca_tensors(tuned)[name]) for name, one in moca_tensors(base).items())


@pytest.mark.skipif(sys.platform != "linux", reason="forked processes with torch loaded need Linux")
def test_data_parallel_training_averages_gradients_even_where_a_batch_has_no_image(
    llava: TinyModel, tmp_path: Path
) -> None:
    apply_moca(llava.model)
    disturb(llava.model)
    llava.model.requires_grad_(False)
    for parameter in moca_parameters(llava.model):
        parameter.requires_grad_(True)
    with_image = from_loaded(llava.model, llava.processor).encode(SAMPLES[:1])
    ids = torch.arange(60, 80)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    without = Batch(inputs, torch.zeros_like(ids).bool(), torch.ones_like(ids).bool(), ("words",))
    loss_of(llava.model, with_image).backward()
    alone = gradients(llava.model)
    llava.model.zero_grad()

    def work(group: Any) -> list[Any]:
        wrapped = DistributedDataParallel(llava.model)
        loss_of(wrapped, (with_image, without)[group.rank]).backward()
        return [gradient.numpy() for gradient in gradients(wrapped)]

    for found in together(2, work, tmp_path):
        assert not isinstance(found, Exception), found
        assert all(torch.allclose(torch.tensor(g), one / 2, atol=1e-6) for g, one in zip(found, alone, strict=True))


def test_original_checkpoints_load_and_give_their_hidden_states(tmp_path: Path) -> None:
    """A transformers model around the recorded language model, fed with the recorded checkpoint's own embeddings."""
    checkpoint = require_golden("llava/llava_moca") / "model"
    original = load_adapter(checkpoint, LoadOptions(device="cpu"))
    assert isinstance(original, LlavaAdapter)
    text_config = original.model.base_llm.config
    vision_config = tf.CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=vision_config, text_config=text_config)
    ).eval()
    weights = original.model.base_llm.model.state_dict()
    model.model.language_model.load_state_dict({k: v for k, v in weights.items() if "modality_layernorm" not in k})
    positions = load_moca(model, str(checkpoint))

    batch = original.encode(SAMPLES)
    prompts = batch.inputs["prompts"]
    with torch.no_grad():
        embeddings = original.model.embed(prompts, batch.inputs["pixel_values"])
        with positions.bound_to(batch.vision_mask):
            ours = model.model(inputs_embeds=embeddings, attention_mask=prompts.attention_mask).last_hidden_state
    theirs = original.forward(batch)
    assert torch.allclose(ours[prompts.attention_mask], theirs[prompts.attention_mask], atol=1e-5)
    with pytest.raises(MirError, match="called without input_ids"):
        model.model(inputs_embeds=embeddings)

    save_moca(model, str(tmp_path / "moca.safetensors"))
    shards = [load_file(path) for path in checkpoint.glob("*.safetensors")]
    stored = {name: tensor for shard in shards for name, tensor in shard.items() if "modality_layernorm" in name}
    saved = load_file(tmp_path / "moca.safetensors")
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in stored.items())
    load_moca(model, str(tmp_path / "moca.safetensors"))


def test_another_model_of_the_same_class_stays_as_it_was(llava: TinyModel) -> None:
    other = TINY_MODELS["llava"]()
    apply_moca(llava.model)
    assert not has_moca(other.model)
    assert not any("modality_layernorm" in name for name, _ in other.model.named_parameters())
    with pytest.raises(MirError, match=r"this LlavaForConditionalGeneration has no MoCa.*apply_moca"):
        remove_moca(other.model)


def test_names_and_signatures_that_tools_read_stay_the_same(llava: TinyModel) -> None:
    """Trainer selects columns by signature; FSDP and transformers find classes by name."""
    parts = (llava.model, llava.model.model, llava.model.model.language_model.layers[0])
    before = [(str(type(part)), type(part).__name__) for part in parts]
    signatures = [inspect.signature(part.forward) for part in parts[:2]]
    apply_moca(llava.model)
    assert [(str(type(part)), type(part).__name__) for part in parts] == before
    assert [inspect.signature(part.forward) for part in parts[:2]] == signatures


def test_copies_and_pickles_carry_moca_of_their_own(llava: TinyModel) -> None:
    apply_moca(llava.model)
    disturb(llava.model)
    twins = [copy.deepcopy(llava.model), pickle.loads(pickle.dumps(llava.model))]
    adapter = from_loaded(llava.model, llava.processor)
    batch = adapter.encode(SAMPLES)
    expected = states_of(adapter, batch)
    for twin in twins:
        assert equal(states_of(from_loaded(twin, llava.processor), batch), expected)
        disturb(twin)
        remove_moca(twin)
    assert equal(states_of(adapter, batch), expected)


def test_replicas_in_threads_see_their_own_batches(llava: TinyModel) -> None:
    positions = apply_moca(llava.model)
    seen: list[Tensor | None] = []
    with positions.bound_to(torch.ones(1, 3).bool()):
        thread = threading.Thread(target=lambda: seen.append(positions.mask))
        thread.start()
        thread.join()
    assert seen == [None]


def test_noise_around_one_and_zero_is_drawn_on_request(llava: TinyModel) -> None:
    torch.manual_seed(0)
    apply_moca(llava.model, std=0.1)
    values = torch.stack(
        [torch.stack(moca_parameters(llava.model)[0::2]), torch.stack(moca_parameters(llava.model)[1::2])]
    )
    assert values.mean(dim=(1, 2)).tolist() == pytest.approx([1, 0], abs=0.05)  # 48 draws: three standard errors
    assert values.std(dim=(1, 2)).tolist() == pytest.approx([0.1, 0.1], abs=0.035)
    assert llava.model.config.moca_std == 0.1


def test_what_cannot_be_done_is_said(llava: TinyModel, tmp_path: Path) -> None:
    save_here = tmp_path / "moca.safetensors"
    with pytest.raises(MirError, match="has no MoCa"):
        save_moca(llava.model, save_here)
    apply_moca(llava.model)
    with pytest.raises(MirError, match="already have MoCa"):
        apply_moca(llava.model)
    with pytest.raises(MirError, match=r"holds 8 MoCa tensors of shape \(64,\), but the model's 3 layers of width 16"):
        load_moca(llava.model, require_golden("llava/llava_moca") / "model")
    with pytest.raises(MirError, match="modality_layernorm"):
        load_moca(llava.model, require_golden("llava/llava_full") / "model")
    incomplete = {name: tensor for name, tensor in moca_tensors(llava.model).items() if "2.modality" not in name}
    save_file(incomplete, save_here)
    with pytest.raises(MirError, match=r"holds 4 MoCa tensors .* but the model's 3 layers"):
        load_moca(llava.model, save_here)


ORIGINAL_CASES = ("llava/llava_full", "sharegpt4v/share4v_full", "mini_gemini/mgm_full")


def original(case: str) -> LlavaAdapter:
    folder = require_golden(case) / "model"
    adapter = load_adapter(folder, LoadOptions(device="cpu", dtype="float32"))
    assert isinstance(adapter, LlavaAdapter)
    return adapter


@pytest.mark.parametrize("case", ORIGINAL_CASES)
def test_a_checkpoint_of_the_original_format_takes_trains_stores_and_gives_back_moca(case: str, tmp_path: Path) -> None:
    adapter = original(case)
    batch, names = adapter.encode(SAMPLES), set(adapter.model.state_dict())
    before, prompts = states_of(adapter, batch), batch.inputs["prompts"]
    assert adapter.facts["moca"] is False
    apply_moca(adapter.model)
    assert equal(states_of(adapter, batch), before)
    assert adapter.facts["moca"] is True
    disturb(adapter.model)
    scale, shift = moca_parameters(adapter.model)[:2]
    mask, found = batch.vision_mask, states_of(adapter, batch)
    assert torch.allclose(found[0][mask], before[0][mask] * scale + shift, atol=1e-5)
    assert torch.equal(found[0][~mask], before[0][~mask])
    questions = [Prompt("What is it?", (one.image,)) for one in SAMPLES]
    assert len(adapter.generate(questions, max_new_tokens=2)) == 2

    optimiser, losses = torch.optim.Adam(moca_parameters(adapter.model), lr=1e-2), []
    for _ in range(4):
        with adapter.bound_to(batch):
            embeddings = adapter.model.embed(prompts, batch.inputs["pixel_values"])
            hidden = adapter.model.prefill(embeddings, prompts.attention_mask)
        predicted = batch.text_mask[:, 1:]
        logits = adapter.model.base_llm.lm_head(hidden[:, :-1][predicted])
        loss = torch.nn.functional.cross_entropy(logits, prompts.token_ids[:, 1:][predicted])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained_states = states_of(adapter, batch)

    save_moca(adapter.model, tmp_path / "moca.safetensors")
    again = original(case)
    load_moca(again.model, tmp_path / "moca.safetensors")
    assert equal(states_of(again, batch), trained_states)
    remove_moca(adapter.model)
    assert equal(states_of(adapter, batch), before)
    assert (set(adapter.model.state_dict()), adapter.facts["moca"]) == (names, False)


def test_a_recorded_moca_taken_out_and_loaded_again_is_the_recorded_one() -> None:
    adapter = original("llava/llava_moca")
    batch = adapter.encode(SAMPLES)
    recorded = states_of(adapter, batch)
    remove_moca(adapter.model)
    assert not equal(states_of(adapter, batch), recorded)
    load_moca(adapter.model, require_golden("llava/llava_moca") / "model")
    assert equal(states_of(adapter, batch), recorded)


def test_layers_that_are_streamed_take_no_moca() -> None:
    folder = require_golden("llava/llava_full") / "model"
    adapter = load_adapter(folder, LoadOptions(device="cpu", device_memory=1_500_000))
    assert isinstance(adapter, LlavaAdapter)
    with pytest.raises(MirError, match="device_memory"):
        apply_moca(adapter.model)
