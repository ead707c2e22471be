"""Loads a checkpoint folder in the Hugging Face format, strictly and without downloads."""

from __future__ import annotations

import importlib.util
import logging
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
    require_sound_template,
    skeleton,
)
from mir_plugin.model_adapters.huggingface.peft_adapters import applied, merged, require_fitting_adapter
from mir_plugin.model_adapters.huggingface.quantization import require_all_weights, require_loadable, settings_in
from mir_plugin.model_adapters.huggingface.sources import Sources
from mir_plugin.model_adapters.huggingface.streaming import (
    Placement,
    placement_errors,
    placement_within,
    streamed_layers,
)
from mir_plugin.model_adapters.moca.training import MOCA_KEY, load_moca
from mir_plugin.model_adapters.recognition import CheckpointFolder, brings_code
from mir_plugin.model_adapters.weights.device import chosen_device, chosen_dtype
from mir_plugin.model_adapters.weights.stored import open_checkpoint_weights
from mir_plugin.model_adapters.weights.streamed import StreamedLayers

if TYPE_CHECKING:
    from mir_plugin.model_adapters import LoadOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelAndProcessor:
    """Model in eval mode on its device, processor (with its PIL backend if there is one), and streamed layers."""

    model: Any
    processor: Any
    streamed: StreamedLayers | None
    notes: Mapping[str, str]


def load_model_and_processor(sources: Sources, options: LoadOptions) -> ModelAndProcessor:
    """Load a checkpoint strictly; its code may run.

    Raises:
        MirError: if an option does not apply, files are missing or damaged, or weights are missing, unknown, of
            another shape, or too large for the allowed memory.
    """
    config, weights = sources.config, sources.weights
    device, dtype = chosen_device(options.device), chosen_dtype(options.dtype)
    if options.device_memory is not None and (sources.rewritten or sources.adapter):
        raise MirError(
            f"{sources.checkpoint} cannot be streamed: its keys are renamed or an adapter is merged while it loads. "
            "Leave out --device-memory, or save the merged model first."
        )
    is_quantised = settings_in(sources) is not None
    with errors_name_the_folder(weights, "config.json or the weights files"):
        _require_sound(sources, options)
        placement = _placement(weights, device, dtype, options)
        # Quantised weights are placed while they are loaded: few methods can move them.
        placed = placement.device_map if placement else None
        device_map = {"": str(device)} if is_quantised else placed
        with placement_errors(placement):
            model, report = _with_report(sources, options, dtype=dtype, device_map=device_map)
    with_moca = _takes_moca(weights, config, report)
    _require_complete(weights, report, remedy=_remedy(config))
    if placement and with_moca:
        raise MirError(
            f"{weights} has MoCa weights; Hugging Face checkpoints with MoCa cannot be streamed. Leave out "
            "--device-memory."
        )
    streamed = streamed_layers(model, device, placement) if placement else None
    if with_moca:
        load_moca(model, weights)
    if sources.adapter:
        model = applied(model, sources.adapter) if is_quantised else merged(model, sources.adapter)
    model = model.eval() if streamed or is_quantised else model.to(device).eval()
    require_sound_parameters(model, weights)
    processor, completed = open_processor(sources, options)
    return ModelAndProcessor(model, processor, streamed, {**sources.notes, **completed})


def check_without_weights(sources: Sources, options: LoadOptions) -> ModelAndProcessor:
    """What ``load_model_and_processor`` returns, its parameters without memory: every check but those of values.

    Raises:
        MirError: as ``load_model_and_processor``.
    """
    with errors_name_the_folder(sources.weights, "config.json or the weights files"):
        _require_sound(sources, options)
        if settings_in(sources) is not None:
            if not sources.rewritten:
                with _quiet(True):
                    require_all_weights(sources, options)
            model: Any = skeleton(sources.config_from, trust_remote_code=options.trust_remote_code)
        else:
            model, report = _with_report(sources, options, on_meta=True)
            with_moca = _takes_moca(sources.weights, sources.config, report)
            _require_complete(sources.weights, report, remedy=_remedy(sources.config))
            if with_moca:
                load_moca(model, sources.weights)
    if sources.adapter:
        require_fitting_adapter(model, sources.adapter)
    processor, completed = open_processor(sources, options)
    return ModelAndProcessor(model.eval(), processor, None, {**sources.notes, **completed})


def require_allowed_code(folder: CheckpointFolder, options: LoadOptions) -> None:
    """Raise MirError for a model that is code in its folder, where that is not allowed to run."""
    if brings_code(folder.config) and not options.trust_remote_code:
        raise MirError(
            f"{folder.config_path.parent} needs Python code from its own folder (auto_map in config.json). Review the "
            "code, then allow it with --trust-remote-code."
        )


def _require_sound(sources: Sources, options: LoadOptions) -> None:
    if not brings_code(sources.config):
        require_sound_files(
            sources.weights,
            sources.config,
            sources.config_from,
            may_run_code=options.trust_remote_code,
            unpickle=options.unpickle,
        )
    require_loadable(sources, options, str(chosen_device(options.device)))


def _with_report(
    sources: Sources,
    options: LoadOptions,
    *,
    dtype: torch.dtype | None = None,
    device_map: Mapping[str, str] | None = None,
    on_meta: bool = False,
) -> tuple[Any, dict[str, Any]]:
    """The model, and transformers' report of keys.

    Mismatched sizes are "ignored" so that the report names their keys; ``_require_complete`` refuses them.
    """
    import transformers

    settings: dict[str, Any] = {"dtype": dtype or "auto", "ignore_mismatched_sizes": True, "output_loading_info": True}
    if not (sources.rewritten or on_meta):
        loaded: Any = transformers.AutoModelForImageTextToText.from_pretrained(
            sources.weights,
            device_map=device_map,
            trust_remote_code=options.trust_remote_code,
            local_files_only=True,
            **settings,
        )
        return loaded[0], loaded[1]
    stored = open_checkpoint_weights(sources.weights, unpickle=options.unpickle)
    described = skeleton(sources.config_from, trust_remote_code=options.trust_remote_code)
    state = {
        key: torch.empty(weight.shape, dtype=weight.dtype, device="meta") if on_meta else weight.read()
        for key, weight in stored.items()
    }
    with _quiet(on_meta):
        loaded = type(described).from_pretrained(
            None, config=described.config, state_dict=state, device_map="meta" if on_meta else device_map, **settings
        )
    return loaded[0], loaded[1]


@contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """No progress bar and no report of keys while nothing is read: what is wrong is said in one message."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if quiet:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _placement(
    checkpoint: Path, device: torch.device, dtype: torch.dtype | None, options: LoadOptions
) -> Placement | None:
    if options.device_memory is None:
        return None
    return placement_within(
        options.device_memory, checkpoint, device, dtype=dtype, trust_remote_code=options.trust_remote_code
    )


def open_processor(sources: Sources, options: LoadOptions) -> tuple[Any, Mapping[str, str]]:
    """The processor with its PIL backend if there is one, and what was taken from the model's config, for people.

    Raises:
        MirError: if there is none for images and text, or its settings are impossible.
    """
    import transformers

    checkpoint = sources.processor
    source: dict[str, Any] = {"trust_remote_code": options.trust_remote_code, "local_files_only": True}
    files = "processor_config.json, preprocessor_config.json or the tokenizer's files"
    with errors_name_the_folder(checkpoint, files):
        require_sound_template(checkpoint)
        processor = transformers.AutoProcessor.from_pretrained(checkpoint, **source)
        if not hasattr(processor, "image_processor"):
            raise MirError(
                f"{checkpoint} has no processor for images and text (found {type(processor).__name__}). Copy "
                "processor_config.json, preprocessor_config.json and the tokenizer's files from the base checkpoint, "
                "or name its folder with --base."
            )
        # The PIL backend resizes as the models were trained; torchvision's differs by about 1e-3 in hidden states.
        processor.image_processor = transformers.AutoImageProcessor.from_pretrained(
            checkpoint, **pil_backend(), **source
        )
    notes: dict[str, str] = {}
    for name, value in settings_left_open(processor, sources.config).items():
        setattr(processor, name, value)
        if name == "patch_size":
            notes["patch_size"] = f"{value}, from config.json; the processor has none"
            logger.warning("%s: patch_size: %s", checkpoint, notes["patch_size"])
    require_sensible_colours(processor.image_processor, checkpoint)
    if getattr(processor.tokenizer, "eos_token", None) is None:
        raise MirError(
            f"the tokenizer of {checkpoint} has no end token (eos_token), which prompts need. Copy "
            "tokenizer_config.json from the base checkpoint."
        )
    return processor, notes


def settings_left_open(processor: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a processor of LLaVA's kind must know to place image tokens and does not: name → value from config.json.

    Processors saved before transformers 4.45 do not hold these; models placed the image features themselves then.
    """
    vision = config.get("vision_config") or {}
    if getattr(processor, "patch_size", 0) is not None or "patch_size" not in vision:
        return {}
    values = {"patch_size": vision["patch_size"]}
    if hasattr(processor, "vision_feature_select_strategy"):
        values["vision_feature_select_strategy"] = config.get("vision_feature_select_strategy", "default")
    if hasattr(processor, "num_additional_image_tokens"):  # CLIP has a class token, SigLIP has none
        values["num_additional_image_tokens"] = int("clip" in str(vision.get("model_type", "clip")))
    return values


def pil_backend() -> dict[str, Any]:
    """The option that makes this version of transformers resize with PIL; 5.4 renamed it."""
    renamed = importlib.util.find_spec("transformers.image_processing_backends") is not None
    return {"backend": "pil"} if renamed else {"use_fast": False}


@contextmanager
def errors_name_the_folder(checkpoint: Path, files: str) -> Iterator[None]:
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
