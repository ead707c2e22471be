"""Loads a checkpoint folder in the Hugging Face format, strictly and without downloads."""

from __future__ import annotations

import importlib.util
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
from mir_plugin.model_adapters.huggingface.inspection import require_applicable
from mir_plugin.model_adapters.huggingface.streaming import (
    Placement,
    placement_errors,
    placement_within,
    streamed_layers,
)
from mir_plugin.model_adapters.moca.training import MOCA_KEY, load_moca
from mir_plugin.model_adapters.recognition import CheckpointFolder, brings_code
from mir_plugin.model_adapters.weights.device import chosen_device, chosen_dtype
from mir_plugin.model_adapters.weights.streamed import StreamedLayers

if TYPE_CHECKING:
    from mir_plugin.model_adapters import LoadOptions


@dataclass(frozen=True)
class ModelAndProcessor:
    """Model in eval mode on its device, processor (with its PIL backend if there is one), and streamed layers."""

    model: Any
    processor: Any
    streamed: StreamedLayers | None


def load_model_and_processor(folder: CheckpointFolder, options: LoadOptions) -> ModelAndProcessor:
    """Load a folder strictly.

    Raises:
        MirError: if an option does not apply, files are missing or damaged, remote code would have to run, or weights
            are missing, unknown, of another shape, or too large for the allowed memory.
    """
    import transformers

    require_applicable(options)
    checkpoint, config = folder.path, folder.config
    if brings_code(config) and not options.trust_remote_code:
        raise MirError(
            f"{checkpoint} needs Python code from its own folder (auto_map in config.json). Review the code, then "
            "allow it with --trust-remote-code."
        )
    device, dtype = chosen_device(options.device), chosen_dtype(options.dtype)
    source: dict[str, Any] = {"trust_remote_code": options.trust_remote_code, "local_files_only": True}
    with _errors_name_the_folder(checkpoint, "config.json or the weights files"):
        if not brings_code(config):
            require_sound_files(checkpoint, config, may_run_code=options.trust_remote_code)
        placement = _placement(checkpoint, device, dtype, options)
        with placement_errors(placement):
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
    _require_complete(checkpoint, report, remedy=_remedy(config))
    if placement and with_moca:
        raise MirError(
            f"{checkpoint} has MoCa weights; Hugging Face checkpoints with MoCa cannot be streamed. Leave out "
            "--device-memory."
        )
    streamed = streamed_layers(model, device, placement) if placement else None
    if with_moca:
        load_moca(model, checkpoint)
    model = model.eval() if streamed else model.to(device).eval()
    require_sound_parameters(model, checkpoint)
    return ModelAndProcessor(model, _processor(checkpoint, source), streamed)


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

    files = "processor_config.json, preprocessor_config.json or the tokenizer's files"
    with _errors_name_the_folder(checkpoint, files):
        processor = transformers.AutoProcessor.from_pretrained(checkpoint, **source)
        if not hasattr(processor, "image_processor"):
            raise MirError(
                f"{checkpoint} has no processor for images and text (found {type(processor).__name__}). Copy "
                "processor_config.json, preprocessor_config.json and the tokenizer's files from the base checkpoint."
            )
        # The PIL backend resizes as the models were trained; torchvision's differs by about 1e-3 in hidden states.
        processor.image_processor = transformers.AutoImageProcessor.from_pretrained(
            checkpoint, **pil_backend(), **source
        )
    require_sensible_colours(processor.image_processor, checkpoint)
    if getattr(processor.tokenizer, "eos_token", None) is None:
        raise MirError(
            f"the tokenizer of {checkpoint} has no end token (eos_token), which prompts need. Copy "
            "tokenizer_config.json from the base checkpoint."
        )
    return processor


def pil_backend() -> dict[str, Any]:
    """The option that makes this version of transformers resize with PIL; 5.4 renamed it."""
    renamed = importlib.util.find_spec("transformers.image_processing_backends") is not None
    return {"backend": "pil"} if renamed else {"use_fast": False}


@contextmanager
def _errors_name_the_folder(checkpoint: Path, files: str) -> Iterator[None]:
    """Turn whatever transformers raises for a damaged or contradictory folder into one message.

    The exceptions are not documented: wrong values in a config raise ZeroDivisionError, AttributeError and others.
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


def _takes_moca(checkpoint: Path, config: Mapping[str, Any], report: dict[str, Any]) -> bool:
    """Whether the weights include MoCa. Its keys, which transformers does not know, are removed from the report."""
    unknown = {str(key) for key in report.get("unexpected_keys") or ()}
    calibration = {key for key in unknown if MOCA_KEY.fullmatch(key)}
    if config.get("use_moca") and not calibration:
        raise MirError(
            f"{checkpoint / 'config.json'} says use_moca, but no weights of the checkpoint are named "
            "modality_layernorm. Copy the whole checkpoint, or set use_moca to false if it was trained without MoCa."
        )
    report["unexpected_keys"] = unknown - calibration
    return bool(calibration)


def _remedy(config: Mapping[str, Any]) -> str:
    """What to do about keys that do not match; major versions of transformers rename many."""
    import transformers

    saved, installed = str(config.get("transformers_version", "")), str(transformers.__version__)
    major = saved.partition(".")[0]
    if major.isdigit() and int(major) > int(installed.partition(".")[0]):
        return f"It was saved by transformers {saved}, but {installed} is installed; install {saved} or later."
    return "Check that config.json and the weights files belong together."


def _require_complete(checkpoint: Path, report: dict[str, Any], remedy: str) -> None:
    """Refuse what transformers only warns about: weights that are missing, unused or of another shape."""
    problems = (
        ("is missing weights", "missing_keys", "They would be random numbers."),
        ("has weights that this architecture does not use", "unexpected_keys", "They would be left out silently."),
        ("has weights of another shape", "mismatched_keys", "They would be random numbers."),
    )
    for problem, kind, consequence in problems:
        keys = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get(kind) or ())
        if keys:
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            raise MirError(f"{checkpoint} {problem} ({len(keys)}): {shown}. {consequence} {remedy}")
    if report.get("error_msgs"):
        raise MirError(f"{checkpoint} cannot be loaded: {report['error_msgs'][0]}")
