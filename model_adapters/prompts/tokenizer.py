"""Token ids as the slow Llama tokenizer of transformers 4 gives them: what LLaVA checkpoints were trained with.

The tokenizer of transformers 5 is another implementation (the ``tokenizers`` backend), so ids are built with the
sentencepiece library directly, plus the three rules the slow class adds:

- Texts of special and added tokens (``</s>``) become their ids wherever they stand; what lies between is encoded apart.
- ``legacy`` (true where tokenizer_config.json has no such entry): each of these parts gets sentencepiece's own leading
  space. Not ``legacy``: one leading space for the whole text, and none after a special token.
- Not ``legacy``: a part that begins with a space is encoded behind ``<unk>``, because sentencepiece drops spaces at the
  very beginning; the pieces of ``<unk>`` are cut off again.

Source: transformers 4.31 and 4.37, models/llama/tokenization_llama.py, and huggingface/transformers issue 24565.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.stored import read_json

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes a space
# Appended to a serialised model it sets normalizer_spec.add_dummy_prefix to false: protocol buffers merge a repeated
# field 3 (normalizer_spec) of length 2 holding field 3 (add_dummy_prefix) = 0. Needs no protobuf runtime.
_NO_LEADING_SPACE = b"\x1a\x02\x18\x00"


class Tokenizer(Protocol):
    """Text to ids and back; the beginning-of-sequence token is the caller's business.

    Attributes:
        bos_id, eos_id, pad_id: special ids.
        adds_bos: whether a prompt begins with the beginning-of-sequence token: LLaVA takes what its tokenizer emits.
        source: file it was read from.
        n_tokens: size of the vocabulary, added tokens included.
    """

    bos_id: int
    eos_id: int
    pad_id: int
    adds_bos: bool
    source: Path
    n_tokens: int

    def encode(self, text: str) -> list[int]:
        """Ids of the text; special tokens only where their text occurs."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out, without the space that encoding puts in front."""
        ...


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer that ``open_tokenizer`` reads."""
    return (folder / "tokenizer.model").is_file() or (folder / "tokenizer.json").is_file()


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a checkpoint folder: ``tokenizer.model`` if there is one, else ``tokenizer.json``.

    Raises:
        MirError: if there is neither, or the file is damaged.
    """
    if (folder / "tokenizer.model").is_file():
        return SentencePieceTokenizer(folder)
    if (folder / "tokenizer.json").is_file():
        return FastTokenizer(folder)
    raise MirError(f"{folder} has no tokenizer (tokenizer.model or tokenizer.json). Copy it from the base LLM.")


class SentencePieceTokenizer:
    """The slow Llama tokenizer, from ``tokenizer.model`` and the files beside it."""

    def __init__(self, folder: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.source = folder / "tokenizer.model"
        settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        legacy = settings.get("legacy")
        self._legacy = True if legacy is None else bool(legacy)
        model = self.source.read_bytes() + (b"" if self._legacy else _NO_LEADING_SPACE)
        try:
            self._pieces = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise MirError(
                f"{self.source} is not a SentencePiece model ({error}). Copy or download it again."
            ) from error
        self._special = self._special_tokens(folder, settings)
        longest_first = sorted(self._special, key=len, reverse=True)
        self._special_pattern = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
        self._unk_text = self._pieces.id_to_piece(self._pieces.unk_id())
        self._unk_length = len(self._pieces.encode(self._unk_text))
        self.bos_id: int = self._pieces.bos_id()
        adds_bos = settings.get("add_bos_token")
        self.adds_bos = self.bos_id >= 0 and (adds_bos is None or bool(adds_bos))
        self.eos_id: int = self._pieces.eos_id()
        self.pad_id: int = self._pieces.unk_id()  # any valid id: padded positions are masked
        self.n_tokens = 1 + max(self._pieces.get_piece_size() - 1, *self._special.values())

    def encode(self, text: str) -> list[int]:
        """Ids of the text; special tokens only where their text occurs."""
        if not text:
            return []
        if not self._legacy:
            text = _SPACE + text.replace(_SPACE, " ")
        parts = [part for part in self._special_pattern.split(text) if part]
        if not self._legacy and len(parts) > 1 and parts[0] == _SPACE:
            parts = parts[1:]  # no leading space when the text begins with a special token
        ids: list[int] = []
        for part in parts:
            ids += [self._special[part]] if part in self._special else self._encode_part(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out, without the space that encoding puts in front."""
        special = set(self._special.values())
        known = [token for token in ids if token not in special and token < self._pieces.get_piece_size()]
        text = str(self._pieces.decode(known))
        return text if self._legacy else text.removeprefix(" ")  # legacy, sentencepiece itself takes back its space

    def _encode_part(self, part: str) -> list[int]:
        if self._legacy or not part.startswith((_SPACE, " ")):
            return list(self._pieces.encode(part))
        return list(self._pieces.encode(self._unk_text + part)[self._unk_length :])

    def _special_tokens(self, folder: Path, settings: dict[str, object]) -> dict[str, int]:
        controls = (self._pieces.unk_id(), self._pieces.bos_id(), self._pieces.eos_id())
        special = {self._pieces.id_to_piece(token): token for token in controls if token >= 0}
        if (folder / "added_tokens.json").is_file():
            added = read_json(folder / "added_tokens.json")
            special |= self._ids(added, folder / "added_tokens.json")
        declared = settings.get("added_tokens_decoder") or {}
        try:
            by_text = {entry["content"]: token for token, entry in declared.items()}  # type: ignore[attr-defined]
        except (AttributeError, KeyError, TypeError) as error:
            raise MirError(
                f"{folder / 'tokenizer_config.json'} has an invalid added_tokens_decoder ({error!r}). Copy the "
                "file of the original tokenizer."
            ) from error
        return special | self._ids(by_text, folder / "tokenizer_config.json")

    @staticmethod
    def _ids(by_text: dict[str, Any], path: Path) -> dict[str, int]:
        try:
            if all(isinstance(text, str) for text in by_text):
                return {text: int(token) for text, token in by_text.items()}
            reason = "a token is not a string"
        except (TypeError, ValueError) as error:
            reason = str(error)
        raise MirError(
            f"{path} must map each added token's text to an integer ({reason}). Copy the original tokenizer's."
        )


class FastTokenizer:
    """A checkpoint's ``tokenizer.json``, for folders without a sentencepiece model."""

    def __init__(self, folder: Path) -> None:
        from transformers import PreTrainedTokenizerFast

        self.source = folder / "tokenizer.json"
        try:
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        # The tokenizers library raises plain Exception for files it cannot read.
        except Exception as error:
            raise MirError(f"{self.source} cannot be read ({error}). Copy or download it again.") from error
        self.adds_bos = self._emits_bos(folder)
        # Where the tokenizer does not emit it, no prompt begins with it; generation wants some id.
        self.bos_id = self._required("bos_token" if self.adds_bos else "eos_token")
        self.eos_id = self._required("eos_token")
        self.pad_id = self._tokenizer.pad_token_id if self._tokenizer.pad_token_id is not None else self.eos_id
        self.n_tokens = len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids of the text; special tokens only where their text occurs."""
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, special tokens left out, without the space that encoding puts in front."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def _emits_bos(self, folder: Path) -> bool:
        """As transformers 4 decided it: what the config says, Llama's own default, what the file's template does."""
        settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        declared = settings.get("add_bos_token")
        if isinstance(declared, bool):
            return declared
        if str(settings.get("tokenizer_class", "")).startswith("Llama"):
            return True
        return bool(self._tokenizer("a").input_ids[0] == self._tokenizer.bos_token_id)

    def _required(self, name: str) -> int:
        token = getattr(self._tokenizer, f"{name}_id")
        if token is None:
            raise MirError(f"{self.source.parent} defines no {name} in tokenizer_config.json; LLaVA prompts need one.")
        return int(token)
