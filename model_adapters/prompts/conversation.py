"""Conversation templates of the LLaVA families, as data, and prompts as token ids around image placeholders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mir_plugin.errors import MirError
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
MISTRAL_INSTRUCT = Conversation("mistral_instruct", before="[INST] ", between=" [/INST]", answer=" {}", end=" </s>")
LLAVA_LLAMA_3 = Conversation(
    "llava_llama_3",
    before=(
        "<|start_header_id|>system<|end_header_id|>\n\nYou are a helpful language and vision assistant. You are able "
        "to understand the visual content that the user provides, and assist the user with a variety of tasks using "
        "natural language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n"
    ),
    between="<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    answer="{}",
    end="<|eot_id|>",
)


def _chatml(name: str, system: str, *, after_turn: str = "\n") -> Conversation:
    """ChatML; LLaVA's "mpt" style writes nothing after a turn."""
    end = f"<|im_end|>{after_turn}"
    return Conversation(
        name,
        before=f"<|im_start|>system\n{system}{end}<|im_start|>user\n",
        between=f"{end}<|im_start|>assistant\n",
        answer="{}",
        end=end,
    )


QWEN_1_5 = _chatml("qwen_1_5", "You are a helpful assistant.")
QWEN_2_5 = _chatml("qwen_2_5", "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
CHATML_DIRECT = _chatml("chatml_direct", "Answer the questions.", after_turn="")
GEMMA_INSTRUCT = Conversation(
    "gemma_instruct",
    before="<start_of_turn>user\n",
    between="<end_of_turn>\n<start_of_turn>model\n",
    answer="{}",
    end="<end_of_turn>\n",
)
BUNNY = Conversation("bunny", VICUNA_V1.before, VICUNA_V1.between, VICUNA_V1.answer, end="<|endoftext|>")
PLAIN = Conversation("plain", before="", between="", answer="{}", end="\n")
BARE = Conversation("none", before="", between="", answer="{}", end="")
"""Image and text alone: what tells how much of a measurement is the template's doing."""
CONVERSATIONS = {conversation.name: conversation for conversation in (VICUNA_V1, LLAVA_LLAMA_2, PLAIN)}
"""Templates that a model of the original code may be measured with in memory."""
_SAME = {"v1": VICUNA_V1, "llava_v1": VICUNA_V1, "qwen_2": QWEN_1_5, "llava_mistral_instruct": MISTRAL_INSTRUCT}
_DIALOGUES = CONVERSATIONS | _SAME | {
    conversation.name: conversation
    for conversation in (
        LLAVA_LLAMA_3, MISTRAL_INSTRUCT, QWEN_1_5, QWEN_2_5, CHATML_DIRECT, GEMMA_INSTRUCT, BUNNY
    )
}  # fmt: skip
"""LLaVA-NeXT's names, llava/conversation.py: templates that prompts can be answered in."""
_OF_LLM = {
    "mistral": MISTRAL_INSTRUCT,
    "qwen2": QWEN_1_5,
    "qwen3": QWEN_1_5,
    "gemma": GEMMA_INSTRUCT,
    "gemma2": GEMMA_INSTRUCT,
}


def conversation_named(name: str) -> Conversation:
    """The template of that name in LLaVA's code. Raises MirError, listing the known ones, where there is none."""
    if name not in _DIALOGUES:
        raise MirError(f"unknown conv_template {name!r}; known: {', '.join(_DIALOGUES)}.")
    return _DIALOGUES[name]


def dialogue_of(config: Mapping[str, Any], llm_config: Any, tokenizer: Tokenizer) -> Conversation:
    """The template that a checkpoint answers in when none is named: what its code trains with on this base LLM.

    Where the tokenizer has no single token for the end of a turn, the base is no chat model and Vicuna's is taken.

    Args:
        config: the checkpoint's config.json.
        llm_config: the language model's, of transformers.
    """
    if str(config.get("model_type")).startswith("bunny"):
        return BUNNY
    fitting = LLAVA_LLAMA_3 if _is_one_token(tokenizer, "<|eot_id|>") else _OF_LLM.get(llm_config.model_type)
    if fitting is None or not _is_one_token(tokenizer, fitting.end.strip()):
        return VICUNA_V1
    return fitting


def end_ids(conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
    """The token that ends the assistant's turn, where it is one token."""
    end = conversation.end.strip()
    return tokenizer.encode(end) if end and _is_one_token(tokenizer, end) else []


def _is_one_token(tokenizer: Tokenizer, text: str) -> bool:
    return len(tokenizer.encode(text)) == 1


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
