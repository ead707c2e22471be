"""The slow Llama tokenizer's rules; whole prompts are compared with recorded ids in tests/parity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.prompts.conversation import IMAGE_PLACEHOLDER, prompt_ids, question_with_marks
from mir_plugin.model_adapters.prompts.generation import Prompt
from mir_plugin.model_adapters.prompts.tokenizer import open_tokenizer

from golden_data import require_golden

pytestmark = pytest.mark.slow


def tokenizer_folder(tmp_path: Path, **settings: object) -> Path:
    source = require_golden("llava/llava_full") / "model"
    shutil.copyfile(source / "tokenizer.model", tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def pieces(folder: Path, text: str) -> list[str]:
    tokenizer = open_tokenizer(folder)
    return tokenizer._pieces.id_to_piece(tokenizer.encode(text))  # type: ignore[attr-defined, no-any-return]


def test_end_of_sequence_written_as_text_is_one_token(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(tokenizer_folder(tmp_path, legacy=False))
    assert tokenizer.encode("the</s>")[-1] == tokenizer.eos_id == 2


def test_legacy_is_the_default_and_puts_a_space_before_every_part(tmp_path: Path) -> None:
    assert pieces(tokenizer_folder(tmp_path), "the</s>the") == ["▁the", "</s>", "▁the"]
    assert pieces(tokenizer_folder(tmp_path, legacy=True), "the</s>the") == ["▁the", "</s>", "▁the"]


def test_not_legacy_puts_one_space_before_the_whole_text_only(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, legacy=False)
    assert pieces(folder, "the</s>the")[:2] == ["▁the", "</s>"]
    assert not pieces(folder, "the</s>the")[2].startswith("▁")
    assert pieces(folder, "</s> the") == ["</s>", "▁the"]


def test_added_tokens_are_found_longest_first(tmp_path: Path) -> None:
    folder = tokenizer_folder(tmp_path, legacy=False, added_tokens_decoder={"601": {"content": "<im_start>"}})
    (folder / "added_tokens.json").write_text('{"<im_start>x": 602}')
    tokenizer = open_tokenizer(folder)
    assert tokenizer.encode("<im_start>") == [601]
    assert tokenizer.encode("<im_start>x") == [602]
    assert tokenizer.n_tokens == 603


def test_decoding_leaves_special_tokens_out(tmp_path: Path) -> None:
    tokenizer = open_tokenizer(tokenizer_folder(tmp_path, legacy=False))
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("the end. é"), tokenizer.eos_id]) == "the end. é"


@pytest.mark.parametrize(
    ("emitted", "settings", "begins"),
    [
        (False, {}, []),
        (True, {}, [0]),
        (True, {"add_bos_token": False}, []),
        (False, {"tokenizer_class": "LlamaTokenizerFast"}, [0]),
    ],
)
def test_a_fast_tokenizer_file_alone_is_enough(
    tmp_path: Path, emitted: bool, settings: dict[str, object], begins: list[int]
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"<s>": 0, "</s>": 1, "<unk>": 2, "the": 3, "end": 4}
    fast = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast.add_special_tokens(["<s>", "</s>"])
    if emitted:
        fast.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    fast.save(str(tmp_path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = open_tokenizer(tmp_path)
    assert prompt_ids(tokenizer, "the <image> end</s>", 1) == [*begins, 3, IMAGE_PLACEHOLDER, 4, 1]
    assert tokenizer.decode([0, 3, 4, 1]) == "the end"


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(MirError, match=r"tokenizer\.model or tokenizer\.json"):
        open_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0enot a model")
    with pytest.raises(MirError, match=r"tokenizer\.model.* SentencePiece"):
        open_tokenizer(tmp_path)


def test_unmarked_images_go_to_the_front() -> None:
    image = object()
    assert question_with_marks(Prompt("Why?", (image, image))) == "<image>\n<image>\nWhy?"  # type: ignore[arg-type]
    assert question_with_marks(Prompt("Why <image>?", (image,))) == "Why <image>?"  # type: ignore[arg-type]
