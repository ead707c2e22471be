"""What is said about handwritten digits: the captions that align a projector, and the prompts around them."""

from __future__ import annotations

from PIL import ImageStat

from mir_plugin.samples.embedded import DigitQuestion

# Vicuna v1, the prompt of LLaVA-1.5 and of the published MIR program.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
STROKES = ("bold", "thin")
STROKE_QUESTION = "Are the strokes bold or thin?"
CAPTIONS = (
    "A handwritten {digit} in {strokes} strokes.",
    "The digit {digit}, written with {strokes} strokes.",
    "This is a {strokes} {digit}.",
    "{digit}, in {strokes} handwriting.",
)
# How dark a page looks whose strokes count as bold: about the median of the training digits.
BOLD_BELOW_BRIGHTNESS = 204.0


def before_answer(user_message: str) -> str:
    """The prompt up to where the assistant's answer begins."""
    return f"{SYSTEM} USER: {user_message} ASSISTANT:"


def strokes_of(digit: DigitQuestion) -> str:
    """Whether the picture's strokes are bold or thin."""
    brightness: float = ImageStat.Stat(digit.image.convert("L")).mean[0]
    return STROKES[0] if brightness < BOLD_BELOW_BRIGHTNESS else STROKES[1]


def captions_of(digit: DigitQuestion) -> list[str]:
    """Every caption that is true of the picture."""
    return [caption.format(digit=digit.answer, strokes=strokes_of(digit)) for caption in CAPTIONS]
