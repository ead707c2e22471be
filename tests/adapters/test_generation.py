"""What every family's answers have in common: where images stand, where an answer ends, which blanks it keeps."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from adapters.test_huggingface_answers import PROMPTS
from adapters.tiny_models import TINY_MODELS

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.huggingface.adapter import from_loaded
from mir_plugin.model_adapters.prompts.answers import generate_texts
from mir_plugin.model_adapters.prompts.generation import cut_before, images_are_marked
from mir_plugin.model_adapters.prompts.tokenizer import open_tokenizer

from golden_data import require_golden

pytestmark = pytest.mark.slow

ANSWER = "yes, the end. \n"


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ((), " yes\n\nQ: x "),
        (("",), " yes\n\nQ: x "),
        (("A:",), " yes\n\nQ: x "),
        (("Q:",), " yes\n\n"),
        (("Q:", "\n\n"), " yes"),
        ((" ",), ""),
    ],
)
def test_an_answer_ends_before_its_first_stop_and_is_not_stripped(stops: tuple[str, ...], expected: str) -> None:
    assert cut_before(" yes\n\nQ: x ", stops) == expected


def test_all_images_are_marked_or_none() -> None:
    assert images_are_marked("<image> or <image>", 2)
    assert not images_are_marked("this or that", 2)
    assert not images_are_marked("", 0)
    for text, n_images in (("<image>", 2), ("<image><image>", 1), ("<image>", 0)):
        with pytest.raises(MirError, match=r"Mark all images or none"):
            images_are_marked(text, n_images)


def test_answers_of_original_checkpoints_keep_their_blanks() -> None:
    tokenizer = open_tokenizer(require_golden("llava/llava_full") / "model")
    ids = torch.tensor([[*tokenizer.encode(ANSWER), tokenizer.eos_id]])
    base_llm = SimpleNamespace(generate=lambda **_: ids)

    def answers(*until: str) -> list[str]:
        return generate_texts(
            base_llm,
            tokenizer,
            torch.zeros(1, 2, 4),
            torch.ones(1, 2),
            max_new_tokens=20,
            temperature=0.0,
            top_p=None,
            num_beams=1,
            until=until,
        )

    assert answers() == [ANSWER]
    assert answers("end", ".") == ["yes, the "]


def test_answers_of_hugging_face_checkpoints_keep_their_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = TINY_MODELS["llava"]()
    ids = torch.tensor([tiny.processor.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]])

    def generate(*, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.cat([input_ids, ids], dim=1)

    monkeypatch.setattr(tiny.model, "generate", generate)
    adapter = from_loaded(tiny.model, tiny.processor)
    assert adapter.generate(PROMPTS[:1], max_new_tokens=20) == [ANSWER]
    assert adapter.generate(PROMPTS[:1], max_new_tokens=20, until=("end", ".")) == ["yes, the "]


@pytest.mark.parametrize("legacy", [True, False])
def test_decoding_takes_back_the_space_that_encoding_put_in_front_and_no_more(legacy: bool, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(
        (require_golden("llava/llava_full") / "model" / "tokenizer.model").read_bytes()
    )
    (tmp_path / "tokenizer_config.json").write_text(f'{{"legacy": {str(legacy).lower()}}}')
    tokenizer = open_tokenizer(tmp_path)
    for text in ("the end", " the end", "\nthe end\n", "the end  "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
