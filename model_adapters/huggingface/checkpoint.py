"""Opens a checkpoint folder in the Hugging Face format: recognised by config, loaded strictly, nothing downloaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.huggingface.files import (
    require_sensible_colours,
    require_sound_files,
    require_sound_parameters,
)
from mir_plugin.model_adapters.huggingface.streaming import (
    Placement,
    StreamedCheckpoint,
    placed_as_told,
    placement_within,
    streamed_checkpoint,
)
from mir_plugin.model_adapters.moca.training import MOCA_KEY, load_moca
from mir_plugin.model_adapters.weights.device import chosen_device, chosen_dtype
from mir_plugin.model_adapters.weights.stored import read_json

if TYPE_CHECKING:
    from mir_plugin.model_adapters import LoadOptions


def recognises(checkpoint: Path) -> bool:
    """Whether transformers, or code in the folder, maps its config to an image-text-to-text model.

    Folders in the original LLaVA format are not: they name a vision tower (``mm_vision_tower``), and some of them call
    themselves ``llava``.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    config = read_json(checkpoint / "config.json")
    if "mm_vision_tower" in config:
        return False
    return str(config.get("model_type")) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or _brings_code(config)


@dataclass(frozen=True)
class OpenedCheckpoint:
    """Model in eval mode on its device, processor with its PIL backend where there is one, and what streams layers."""

    model: Any
    processor: Any
    streamed: StreamedCheckpoint | None


def open_checkpoint(checkpoint: Path, options: LoadOptions) -> OpenedCheckpoint:
    """Load a folder strictly.

    Raises:
        MirError: if an option does not apply, files are missing or damaged, remote code would have to run, or weights
            are missing, unknown, of another shape, or too large for the allowed memory.
    """
    import transformers

    _require_applicable(options)
    config = read_json(checkpoint / "config.json")
    if _brings_code(config) and not options.trust_remote_code:
        raise MirError(
            f"{checkpoint} is loaded by Python code in its own folder (auto_map in config.json), which may do "
            "anything. Read it, then allow it with --trust-remote-code."
        )
    device, dtype = chosen_device(options.device), chosen_dtype(options.dtype)
    source: dict[str, Any] = {"trust_remote_code": options.trust_remote_code, "local_files_only": True}
    with _told_by_its_folder(checkpoint, "config.json or the weights files"):
        if not _brings_code(config):
            require_sound_files(checkpoint, config, may_run_code=options.trust_remote_code)
        placement = _placement(checkpoint, device, dtype, options)
        with placed_as_told(placement):
            # Mismatched sizes are "ignored" so that the report names their keys; _require_complete refuses them.
            loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
                checkpoint,
                dtype=dtype or "auto",
                device_map=placement and placement.device_map,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **source,
            )
    model, report = loaded
    with_moca = _takes_moca(checkpoint, config, report)
    _require_complete(checkpoint, report)
    if placement and with_moca:
        raise MirError(
            f"{checkpoint} holds MoCa's calibration, and Hugging Face checkpoints with it are not streamed. Leave out "
            "--device-memory."
        )
    streamed = streamed_checkpoint(model, device, placement) if placement else None
    if with_moca:
        load_moca(model, checkpoint)
    model = model.eval() if streamed else model.to(device).eval()
    require_sound_parameters(model, checkpoint)
    return OpenedCheckpoint(model, _processor(checkpoint, source), streamed)


def _placement(
    checkpoint: Path, device: torch.device, dtype: torch.dtype | None, options: LoadOptions
) -> Placement | None:
    if options.device_memory is None:
        return None
    return placement_within(
        options.device_memory, checkpoint, device, dtype=dtype, trust_remote_code=options.trust_remote_code
    )


def _processor(checkpoint: Path, source: Mapping[str, Any]) -> Any:
    import transformers

    with _told_by_its_folder(checkpoint, "processor_config.json, preprocessor_config.json or the tokenizer's files"):
        processor = transformers.AutoProcessor.from_pretrained(checkpoint, **source)
        if not hasattr(processor, "image_processor"):
            raise MirError(
                f"{checkpoint} holds no processor for images and text (found {type(processor).__name__}). Copy "
                "processor_config.json, preprocessor_config.json and the tokenizer's files from the base checkpoint."
            )
        # The PIL backend resizes as the models were trained; torchvision's differs by about 1e-3 in hidden states.
        processor.image_processor = transformers.AutoImageProcessor.from_pretrained(checkpoint, backend="pil", **source)
    require_sensible_colours(processor.image_processor, checkpoint)
    if getattr(processor.tokenizer, "eos_token", None) is None:
        raise MirError(
            f"the tokenizer of {checkpoint} names no end token (eos_token), so prompts would lack it. Copy "
            "tokenizer_config.json from the base checkpoint."
        )
    return processor


@contextmanager
def _told_by_its_folder(checkpoint: Path, files: str) -> Iterator[None]:
    """What transformers raises for a damaged or contradictory folder, as one message.

    It documents no set of exceptions: wrong values in a config end in ZeroDivisionError, AttributeError and others.
    """
    try:
        yield
    except MirError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:500]
        raise MirError(
            f"{checkpoint} cannot be loaded as a Hugging Face checkpoint: {type(error).__name__}: {reason}. Check "
            f"{files}, or copy the checkpoint again."
        ) from error


def inspect(checkpoint: Path, options: LoadOptions) -> dict[str, str]:
    """What loading would use; no weight is read. Raises MirError for options that do not apply or missing parts."""
    _require_applicable(options)
    config = read_json(checkpoint / "config.json")
    text, vision = config.get("text_config", config), config.get("vision_config", {})
    if not (isinstance(text, dict) and isinstance(vision, dict)):
        raise MirError(
            f"{checkpoint / 'config.json'} holds a text_config or vision_config that is no object. Copy it again."
        )
    stored = sorted(path.name for path in checkpoint.glob("*.safetensors")) or sorted(
        path.name for path in checkpoint.glob("pytorch_model*.bin")
    )
    if not stored:
        raise MirError(
            f"{checkpoint} holds no weights (*.safetensors or pytorch_model*.bin). Copy the whole checkpoint."
        )
    return {
        "model type": str(config.get("model_type")),
        "layers": f"{text.get('num_hidden_layers', '?')} of width {text.get('hidden_size', '?')}",
        "language model": str(text.get("model_type", "inside the model")),
        "vision tower": str(vision.get("model_type", "inside the model")),
        "remote code": "needed: --trust-remote-code" if _brings_code(config) else "none",
        "weights": f"{len(stored)} file(s), {stored[0]}" + (" ..." if len(stored) > 1 else ""),
        "saved as": str(config.get("dtype", config.get("torch_dtype", "not stated"))),
    }


def _brings_code(config: dict[str, Any]) -> bool:
    auto_map = config.get("auto_map")
    return isinstance(auto_map, dict) and "AutoModelForImageTextToText" in auto_map


def _require_applicable(options: LoadOptions) -> None:
    for name in ("base_llm", "vision_tower", "vision_tower_aux"):
        if getattr(options, name) is not None:
            raise MirError(
                f"--{name.replace('_', '-')} does not apply: a Hugging Face checkpoint holds its language model and "
                "vision tower itself. Leave the option out, or name the family with --family if this is an "
                "original-format folder."
            )


def _takes_moca(checkpoint: Path, config: dict[str, Any], report: dict[str, Any]) -> bool:
    """Whether MoCa is among the weights; its keys, for which transformers has no place, leave the report."""
    unknown = {str(key) for key in report.get("unexpected_keys") or ()}
    calibration = {key for key in unknown if MOCA_KEY.fullmatch(key)}
    if config.get("use_moca") and not calibration:
        raise MirError(
            f"{checkpoint / 'config.json'} says use_moca, but no weights of the checkpoint are named "
            "modality_layernorm. Copy the whole checkpoint, or set use_moca to false if it was trained without."
        )
    report["unexpected_keys"] = unknown - calibration
    return bool(calibration)


def _require_complete(checkpoint: Path, report: dict[str, Any]) -> None:
    """Refuse what transformers only warns about: weights that would be random, left out or of another shape."""
    problems = (
        ("lacks", "missing_keys", "They would be random numbers."),
        ("holds weights this architecture has no place for,", "unexpected_keys", "They would be left out silently."),
        ("holds weights of another shape,", "mismatched_keys", "They would be random numbers."),
    )
    for what, kind, consequence in problems:
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get(kind) or ())
        if keys:
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            raise MirError(
                f"{checkpoint} {what} {len(keys)} keys: {shown}. {consequence} Check that config.json and the weights "
                "files belong together."
            )
    if report.get("error_msgs"):
        raise MirError(f"{checkpoint} cannot be loaded: {report['error_msgs'][0]}")
