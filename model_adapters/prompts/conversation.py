"""Conversation templates of the LLaVA families, as data, and prompts as token ids around image placeholders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mir_plugin.model_adapters.prompts.generation import IMAGE_MARK, Prompt, images_are_marked
from mir_plugin.model_adapters.prompts.tokenizer import Tokenizer

IMAGE_PLACEHOLDER = -200
"""Stands for one image in unexpanded ids, as in the original LLaVA code; no vocabulary has negative ids."""


@dataclass(frozen=True)
class Conversation:
    """One question and one answer as text: ``before + question + between`` + ``answer``, then ``end``."""

    name: str
    before: str
    between: str
    answer: str
    end: str

    def question(self, question: str) -> str:
        """The text up to where the assistant begins to answer."""
        return f"{self.before}{question}{self.between}"

    def answered(self, question: str, answer: str) -> str:
        """The whole exchange, with the assistant's answer in place."""
        return self.question(question) + self.answer.format(answer) + self.end


VICUNA_V1 = Conversation(
    "vicuna_v1",
    before=(
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. USER: "
    ),
    between=" ASSISTANT:",
    answer=" {}",
    end="</s>",
)
LLAVA_LLAMA_2 = Conversation(
    "llava_llama_2",
    before=(
        "[INST] <<SYS>>\nYou are a helpful language and vision assistant. "
        "You are able to understand the visual content that the user provides, "
        "and assist the user with a variety of tasks using natural language.\n<</SYS>>\n\n"
    ),
    between=" [/INST]",
    answer=" {}",
    end=" </s>",
)
PLAIN = Conversation("plain", before="", between="", answer="{}", end="\n")
BARE = Conversation("none", before="", between="", answer="{}", end="")
"""Image and text alone: what tells how much of a measurement is the template's doing."""
CONVERSATIONS = {conversation.name: conversation for conversation in (VICUNA_V1, LLAVA_LLAMA_2, PLAIN)}


def question_with_marks(prompt: Prompt) -> str:
    """The question with one ``<image>`` per image; missing marks go to the front, one line each.

    Raises:
        MirError: if the text has more marks than the prompt has images, or only some images are marked.
    """
    n_images = len(prompt.images)
    return prompt.text if images_are_marked(prompt.text, n_images) else f"{IMAGE_MARK}\n" * n_images + prompt.text


def prompt_ids(
    tokenizer: Tokenizer, text: str, n_images: int, image_mark_ids: Sequence[int] = (IMAGE_PLACEHOLDER,)
) -> list[int]:
    """Ids of a prompt: what stands between its image marks is encoded piece by piece, as the original does.

    Only the first ``n_images`` marks stand for images; a later ``<image>`` (in a sample's text) is ordinary text.
    ``image_mark_ids`` stand for each mark: the placeholder, with start and end tokens around it where a model has them.
    """
    ids = [tokenizer.bos_id] if tokenizer.adds_bos else []
    for index, part in enumerate(text.split(IMAGE_MARK, n_images)):
        if index > 0:
            ids += image_mark_ids
        ids += tokenizer.encode(part)
    return ids
