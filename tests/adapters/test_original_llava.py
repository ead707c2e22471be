"""A model loaded by original LLaVA code inside a host, against our own loading of the same checkpoint."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters import LoadOptions, load_adapter
from mir_plugin.model_adapters.in_memory.host_parts import adapter_for, checkpoint_name
from mir_plugin.model_adapters.in_memory.original_llava import OriginalLlavaAdapter
from mir_plugin.model_adapters.llava.adapter import LlavaAdapter
from mir_plugin.model_adapters.prompts.conversation import IMAGE_PLACEHOLDER
from mir_plugin.samples.sample_set import Sample, SampleSet

from golden_data import require_golden

pytestmark = pytest.mark.slow

N_SAMPLES = 4


@functools.cache
def ours() -> LlavaAdapter:
    case = require_golden("llava/llava_full")
    adapter = load_adapter(case / "model", LoadOptions(vision_tower=case / "vision_tower", device="cpu"))
    assert isinstance(adapter, LlavaAdapter)
    return adapter


class Original(nn.Module):
    """What the original's class offers: its inner model, and the splice of one unpadded prompt."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.llava = ours().model
        self.config = self.llava.base_llm.config.__class__.from_dict(
            {**self.llava.base_llm.config.to_dict(), "image_aspect_ratio": "pad", **config}
        )

    def get_model(self) -> Any:
        return self.llava.base_llm.model

    def get_input_embeddings(self) -> Any:
        return self.llava.base_llm.get_input_embeddings()

    def prepare_inputs_labels_for_multimodal(
        self,
        input_ids: Tensor,
        position_ids: Any,
        attention_mask: Any,
        past_key_values: Any,
        labels: Tensor,
        images: Tensor,
        image_sizes: Any = None,
    ) -> tuple[Any, ...]:
        rows = self.llava.projector(self.llava.vision_tower(images), None, None)[0]
        [at] = (input_ids[0] == IMAGE_PLACEHOLDER).nonzero().flatten().tolist()
        embed = self.get_input_embeddings()
        embeddings = torch.cat([embed(input_ids[0, :at]), rows, embed(input_ids[0, at + 1 :])])
        spliced = torch.cat([labels[0, :at], torch.full((len(rows),), -100), labels[0, at + 1 :]])
        cut = getattr(self.config, "tokenizer_model_max_length", None)
        return None, position_ids, attention_mask, past_key_values, embeddings[None, :cut], spliced[None, :cut]


class Tokenizer:
    """A transformers tokenizer, as far as it is used."""

    bos_token_id, eos_token_id, pad_token_id, name_or_path = 1, 2, 0, "tokenizer"

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = ours().tokenizer.encode(text)
        return {"input_ids": [1, *ids] if add_special_tokens else ids}

    def __len__(self) -> int:
        return 600


class ImageProcessor:
    """Resizes and crops as our own preprocessor does, which is compared with the original's elsewhere."""

    def __init__(self) -> None:
        self.image_mean = ours().preprocessor.mean

    def preprocess(self, image: Any, return_tensors: str) -> dict[str, Tensor]:
        assert image.width == image.height
        return {"pixel_values": ours().preprocessor([image])}


def host(**config: Any) -> Any:
    return SimpleNamespace(
        model=Original(**config),
        tokenizer=Tokenizer(),
        image_processor=ImageProcessor(),
        conv_mode="llava_v1",
        model_path="liuhaotian/llava-v1.5-7b",
    )


def samples() -> SampleSet:
    folder = require_golden("llava/llava_full") / "samples"
    texts = [(folder / f"{i:02d}.txt").read_text(encoding="utf-8") for i in range(N_SAMPLES)]
    chosen = [
        Sample(str(i), folder / f"{i:02d}.png", text.partition("@highlight")[0].strip()) for i, text in enumerate(texts)
    ]
    return SampleSet(tuple(chosen), {"source": "golden"})


def test_a_model_that_original_code_has_loaded_measures_like_its_checkpoint() -> None:
    adapter = adapter_for(host())
    assert isinstance(adapter, OriginalLlavaAdapter)
    measured = measure(adapter, samples(), checkpoint="host")
    direct = measure(ours(), samples(), checkpoint="ours")
    assert measured.mir == pytest.approx(direct.mir, abs=1e-6)  # one computation, in batches of another shape
    for a, b in zip(measured.layers, direct.layers, strict=True):
        assert (a.n_vision_tokens, a.n_text_tokens) == (b.n_vision_tokens, b.n_text_tokens)
    assert measured.fingerprints["protocol"] == direct.fingerprints["protocol"]
    assert measured.fingerprints["samples"] == direct.fingerprints["samples"]


def test_the_cut_of_training_holds_here_too() -> None:
    whole = adapter_for(host()).encode(samples().samples[:1])
    n_tokens, n_text = whole.text_mask.shape[1], int(whole.text_mask.sum())
    batch = adapter_for(host(tokenizer_model_max_length=n_tokens - 5)).encode(samples().samples[:1])
    assert (batch.vision_mask.sum(), batch.text_mask.sum()) == (whole.vision_mask.sum(), n_text - 5)
    with pytest.raises(MirError, match=r"sample 0: .* and 0 text tokens"):
        adapter_for(host(tokenizer_model_max_length=n_tokens - n_text)).encode(samples().samples[:1])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio 'anyres'"),
        ({"max_position_embeddings": 50}, "the model's context is 50"),
    ],
)
def test_what_cannot_be_measured_is_told(config: dict[str, Any], message: str) -> None:
    with pytest.raises(MirError, match=message):
        adapter_for(host(**config)).encode(samples().samples[:1])


def test_two_views_of_an_image_are_sent_to_our_own_loading() -> None:
    class MiniGemini(Original):
        def prepare_inputs_labels_for_multimodal(  # type: ignore[override]
            self, input_ids: Any, labels: Any, images: Any, images_aux: Any
        ) -> Any:
            raise AssertionError

    parts = host()
    parts.model = MiniGemini()
    with pytest.raises(MirError, match=r"MiniGemini takes a second, larger view .*mir run CHECKPOINT"):
        adapter_for(parts)


def test_an_empty_text_and_an_unknown_template_are_refused() -> None:
    with pytest.raises(MirError, match="sample s: its text is empty"):
        adapter_for(host()).encode([Sample("s", samples().samples[0].image, " ")])
    parts = host()
    parts.conv_mode = "chatml_direct"
    with pytest.raises(MirError, match="'chatml_direct'; known: llava_v1"):
        adapter_for(parts)


def test_the_checkpoint_is_named_as_the_host_names_it() -> None:
    assert checkpoint_name(host()) == "liuhaotian/llava-v1.5-7b"
    assert checkpoint_name(SimpleNamespace(model=nn.Linear(1, 1))) is None
