"""The conversation around image and text for any Hugging Face model: its chat template, else a documented fallback."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.huggingface.template_limits import excess_of
from mir_plugin.model_adapters.prompts.conversation import VICUNA_V1
from mir_plugin.model_adapters.prompts.generation import IMAGE_MARK, images_are_marked


@dataclass(frozen=True)
class Rendered:
    """One conversation as text: what the user says with image placeholders, and what the assistant is made to say."""

    question: str
    answer: str = ""


@dataclass(frozen=True)
class Fallback:
    """A conversation for models without a chat template: ``before`` the user's turn, ``between`` the turns.

    Attributes:
        name: written into every result.
        joint: separates what stands before the assistant's text from it, unless nothing does or it begins with a space.
        places_images: whether image placeholders are written into the text; some processors put them in front.
        ends_with_eos: whether the text gets the end-of-sequence token; some processors append it.
    """

    name: str
    before: str = "USER: "
    between: str = " ASSISTANT:"
    joint: str = " "
    image_suffix: str = "\n"
    places_images: bool = True
    ends_with_eos: bool = True


_VICUNA_V1 = Fallback(VICUNA_V1.name, before=VICUNA_V1.before, between=VICUNA_V1.between)
# By model_type. LLaVA-1.5's is the published protocol's, the others follow from what the processors do with the text:
# BLIP's put all image tokens first; PaliGemma's adds bos, a newline and the end token itself.
FALLBACKS = {
    "llava": _VICUNA_V1,
    "vipllava": _VICUNA_V1,
    "blip-2": Fallback("image, text", before="", between="", image_suffix="", places_images=False),
    "instructblip": Fallback("image, text", before="", between="", image_suffix="", places_images=False),
    "paligemma": Fallback("prefix, suffix", before="", between="", joint="", image_suffix="", ends_with_eos=False),
}
DEFAULT_FALLBACK = Fallback("USER: image, ASSISTANT: text")
# Their processors need question and answer apart, which a chat template does not give.
WITHOUT_CHAT_TEMPLATE = frozenset({"blip-2", "instructblip", "paligemma"})


@dataclass(frozen=True)
class PromptFormat:
    """Renders conversations for one processor.

    Attributes:
        model_type: of the model's configuration; picks the fallback.
        processor: a transformers processor.
        bare: teacher-force image and text alone, without the conversation around them.
    """

    model_type: str
    processor: Any
    bare: bool = False

    @property
    def uses_chat_template(self) -> bool:
        """Whether the processor's own chat template is used."""
        return bool(getattr(self.processor, "chat_template", None)) and self.model_type not in WITHOUT_CHAT_TEMPLATE

    @property
    def fallback(self) -> Fallback:
        """What is used where there is no chat template."""
        return FALLBACKS.get(self.model_type, DEFAULT_FALLBACK)

    @property
    def source(self) -> str:
        """Where the conversation comes from, in words."""
        if self.bare:
            return "none: image and text alone"
        return "chat template of the processor" if self.uses_chat_template else f"fallback: {self.fallback.name}"

    @property
    def image_placeholders(self) -> tuple[str, ...]:
        """Strings that a text must not contain, because they would become image positions; the first is written."""
        owners = (self.processor, getattr(self.processor, "tokenizer", None))
        names = ("boi_token", "image_token", "video_token")
        tokens = [str(token) for name in names for owner in owners if (token := getattr(owner, name, None))]
        return tuple(dict.fromkeys(tokens))

    @property
    def record(self) -> str:
        """The conversation with ``{text}`` for the text: the same for all samples, stored with every result."""
        rendered = self.teacher_forced("{text}")
        return rendered.question + rendered.answer

    def teacher_forced(self, text: str) -> Rendered:
        """The user shows an image, the assistant says ``text``.

        Raises:
            MirError: if the chat template cannot render this conversation, or leaves the text out.
        """
        if self.bare:
            return Rendered(self._image_block(), text)
        if self.uses_chat_template:
            messages = [
                _message("user", ({"type": "image"},)),
                _message("assistant", ({"type": "text", "text": text},)),
            ]
            rendered = self._apply_template(messages, add_generation_prompt=False)
            if text.strip() not in rendered:
                raise MirError(
                    "the chat template changes the assistant's text (it strips or rewrites part of it), so this text "
                    f"cannot be teacher-forced: {text[:80]!r}. Use other texts, or a processor with another template."
                )
            return Rendered(rendered)
        end = self._eos if self.fallback.ends_with_eos else ""
        return self._joined(self._image(), text + end)

    def question(self, text: str, n_images: int, answer: str = "") -> Rendered:
        """The user's question with its images, ready for the assistant's turn, which may begin with ``answer``.

        Args:
            text: images stand where it has ``<image>``; without marks they stand in front.
            n_images: how many images come with the question.
            answer: a continuation to be scored.
        Raises:
            MirError: if there are marks, but not as many as images.
        """
        parts = _content(text, n_images)
        if self.uses_chat_template:
            return Rendered(self._apply_template([_message("user", parts)], add_generation_prompt=True), answer)
        user = "".join(self._image() if part["type"] == "image" else part["text"] for part in parts)
        return self._joined(user, answer)

    def require_plain(self, text: str, owner: str) -> None:
        """Raises MirError if the text contains one of the model's image placeholders; names ``owner``."""
        for token in self.image_placeholders:
            if token in text:
                raise MirError(
                    f"{owner}: its text contains {token!r}, which this model takes for an image. "
                    "Replace or remove this text, then run again."
                )

    def _image_block(self) -> str:
        """The image placeholder with what the chat template puts right around it (start and end tokens)."""
        if self.uses_chat_template:
            before, after = "[before the image]", "[after the image]"
            parts = ({"type": "text", "text": before}, {"type": "image"}, {"type": "text", "text": after})
            rendered = self._apply_template([_message("user", parts)], add_generation_prompt=False)
            block = rendered.partition(before)[2].partition(after)[0]
            if any(token in block for token in self.image_placeholders):
                return block  # else the template moves images to the front
        return self._image()

    def _image(self) -> str:
        return self.image_placeholders[0] + self.fallback.image_suffix if self.fallback.places_images else ""

    def _joined(self, user: str, answer: str) -> Rendered:
        question = self.fallback.before + user + self.fallback.between
        needs_joint = bool(question and answer) and not answer[0].isspace()
        return Rendered(question, self.fallback.joint + answer if needs_joint else answer)

    @property
    def _eos(self) -> str:
        return str(self.processor.tokenizer.eos_token or "")

    def _apply_template(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        self._require_moderate_template()
        try:
            rendered = self.processor.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise MirError(
                f"the processor's chat template cannot render a user turn with an image and an assistant turn "
                f"({error}). Mend chat_template in the checkpoint's folder, or remove it to use the documented "
                "fallback prompt."
            ) from error
        return str(rendered)

    def _require_moderate_template(self) -> None:
        """Raise MirError for a template that would not end, or would fill the memory: before it is rendered here."""
        template = self.processor.chat_template
        tokens = getattr(getattr(self.processor, "tokenizer", None), "special_tokens_map", {})
        variables = json.dumps({name: str(token) for name, token in sorted(tokens.items())})
        for source in template.values() if isinstance(template, Mapping) else [template]:
            excess = excess_of(str(source), variables, _PROBES)
            if excess:
                raise MirError(
                    f"the processor's chat template {excess}, so it is not rendered. Replace chat_template in the "
                    "checkpoint's folder, or remove it to use the documented fallback prompt."
                )


def _message(role: str, parts: Sequence[dict[str, str]]) -> dict[str, Any]:
    return {"role": role, "content": list(parts)}


# What the limits of a chat template are tried on: the two forms that this module renders.
_PROBES = json.dumps(
    [
        {
            "messages": [
                _message("user", ({"type": "image"},)),
                _message("assistant", ({"type": "text", "text": "A few words."},)),
            ],
            "add_generation_prompt": False,
        },
        {
            "messages": [_message("user", ({"type": "image"}, {"type": "text", "text": "What is this?"}))],
            "add_generation_prompt": True,
        },
    ]
)


def _content(text: str, n_images: int) -> list[dict[str, str]]:
    parts = [] if images_are_marked(text, n_images) else [{"type": "image"}] * n_images
    for index, piece in enumerate(text.split(IMAGE_MARK)):
        if index:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts
