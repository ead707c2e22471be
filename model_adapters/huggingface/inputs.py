"""A transformers model with its processor, and the tensors that rendered conversations and images become."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.huggingface.prompts import PromptFormat, Rendered
from mir_plugin.model_adapters.weights.quantization import in_training_mode

if TYPE_CHECKING:
    from PIL.Image import Image

# Their processors append an end token to a separately given answer, which attends causally; the question does not.
TAKES_ANSWER_AS_SUFFIX = frozenset({"paligemma"})


LOGITS_TO_KEEP = "logits_to_keep"  # of how many last positions a forward pass computes logits


@dataclass(frozen=True)
class LoadedModel:
    """A model and its processor, used as they are: reading from them changes neither.

    Passes through the model run inside ``evaluation_mode``, which switches dropout off and leaves it as it was.
    ``bare_prompts`` leaves the conversation around image and text out when texts are teacher-forced.
    """

    model: Any
    processor: Any
    bare_prompts: bool = False

    @property
    def model_type(self) -> str:
        """As in the model's configuration."""
        return str(self.model.config.model_type)

    @property
    def prompts(self) -> PromptFormat:
        """The conversation template."""
        return PromptFormat(self.model_type, self.processor, self.bare_prompts)

    @property
    def device(self) -> torch.device:
        """Where the input embeddings live."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def context_length(self) -> int | None:
        """Most positions the language model was made for; None where its configuration names no limit."""
        limit = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return int(limit) if limit else None

    @property
    def takes_answer_as_suffix(self) -> bool:
        """Whether the processor wants the answer apart, and adds an end token to it."""
        return self.model_type in TAKES_ANSWER_AS_SUFFIX

    def inputs(
        self, conversations: Sequence[Rendered], images: Sequence[Sequence[Image]], *, padding_side: str
    ) -> dict[str, Tensor]:
        """Arguments of the model's forward pass, on its device and in its dtype; as ``encoded``."""
        return self.placed(self.encoded(conversations, images, padding_side=padding_side))

    def encoded(
        self, conversations: Sequence[Rendered], images: Sequence[Sequence[Image]], *, padding_side: str
    ) -> dict[str, Any]:
        """What the processor makes of conversations and images, in host memory.

        Args:
            conversations: one per row.
            images: those of each conversation, RGB; either every conversation has some, or none has.
            padding_side: "right" or "left".
        Raises:
            MirError: if the processor refuses them.
        """
        arguments: dict[str, Any] = {"images": [list(row) for row in images]} if any(images) else {}
        if self.takes_answer_as_suffix and any(row.answer for row in conversations):
            arguments |= {
                "text": [row.question for row in conversations],
                "suffix": [row.answer for row in conversations],
            }
        else:
            arguments["text"] = [row.question + row.answer for row in conversations]
        bos = getattr(self.processor.tokenizer, "bos_token", None)
        if bos and all(text.startswith(bos) for text in arguments["text"]):
            arguments["add_special_tokens"] = False  # the template wrote the first token already
        try:
            encoded = dict(
                self.processor(
                    **arguments, padding=len(conversations) > 1, padding_side=padding_side, return_tensors="pt"
                )
            )
        except (ValueError, TypeError, LookupError, AttributeError, MemoryError) as error:
            raise MirError(
                f"{type(self.processor).__name__} cannot encode this conversation "
                f"({str(error) or type(error).__name__}). "
                "Check that the processor's files in the checkpoint's folder belong to this model."
            ) from error
        encoded.pop("labels", None)  # a loss is not wanted
        # Plain fast tokenizers give these below transformers 5; most decoders do not take them, and generate refuses.
        if not takes_argument(self.model, "token_type_ids"):
            encoded.pop("token_type_ids", None)
        if "qformer_input_ids" in encoded:
            encoded |= self._instruction_for_qformer(conversations)
        return encoded

    def placed(self, encoded: Mapping[str, Any]) -> dict[str, Any]:
        """What the processor made, on the model's device and in its dtype."""
        return {name: self._placed(value) for name, value in encoded.items()}

    def _instruction_for_qformer(self, conversations: Sequence[Rendered]) -> Mapping[str, Tensor]:
        """The Q-Former reads the question alone: image features must not depend on what the assistant says.

        Always padded on the right: its positions count from the left, padding included.
        """
        tokens = self.processor.qformer_tokenizer(
            [row.question for row in conversations],
            padding=len(conversations) > 1,
            padding_side="right",
            return_tensors="pt",
        )
        return {"qformer_input_ids": tokens["input_ids"], "qformer_attention_mask": tokens["attention_mask"]}

    def _placed(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self.device, self.model.dtype if value.is_floating_point() else None)
        return [self._placed(part) for part in value] if isinstance(value, list) else value


def takes_argument(module: nn.Module, name: str) -> bool:
    """Whether the module's forward pass has an argument of this name."""
    return name in inspect.signature(module.forward).parameters


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Dropout off for the length of the block; afterwards each module is in the mode it was in."""
    training = in_training_mode(model)
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
