"""What a checkpoint folder in the Hugging Face format is made of, and whether it would load: no weight is read."""

from __future__ import annotations

from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.huggingface.quantization import settings_in
from mir_plugin.model_adapters.huggingface.sources import find_sources
from mir_plugin.model_adapters.recognition import CheckpointFolder, brings_code
from mir_plugin.model_adapters.weights.quantization import in_words
from mir_plugin.samples.sample_set import Sample


def inspect(folder: CheckpointFolder, options: LoadOptions) -> dict[str, str]:
    """What loading would use, from files. Raises MirError for those that are missing or contradict each other."""
    sources = find_sources(folder, options)
    config = sources.config
    text, vision = config.get("text_config", config), config.get("vision_config", {})
    if not (isinstance(text, dict) and isinstance(vision, dict)):
        raise MirError(
            f"{sources.config_from / 'config.json'} has a text_config or vision_config that is not an object. Copy it "
            "again."
        )
    stored, quantised = _weight_files(sources.weights), settings_in(sources)
    return {
        "model type": str(config.get("model_type")),
        "layers": f"{text.get('num_hidden_layers', '?')} of width {text.get('hidden_size', '?')}",
        "language model": str(text.get("model_type", "inside the model")),
        "vision tower": str(vision.get("model_type", "inside the model")),
        "remote code": "needed: --trust-remote-code" if brings_code(config) else "none",
        "weights": stored[0] if len(stored) == 1 else f"{len(stored)} files, {stored[0]} ...",
        "saved as": str(config.get("dtype", config.get("torch_dtype", "not stated"))),
        **({"quantised": in_words(quantised)} if quantised else {}),
        **sources.notes,
    }


def check(folder: CheckpointFolder, options: LoadOptions) -> dict[str, str]:
    """Go through what loading and the first sample go through, with parameters that have no memory.

    Code that a checkpoint brings is not run: of such a checkpoint only files are looked at.

    Raises:
        MirError: as loading, for all but the values of weights.
    """
    from PIL import Image

    from mir_plugin.model_adapters.huggingface.adapter import HuggingFaceAdapter
    from mir_plugin.model_adapters.huggingface.checkpoint import check_without_weights, require_allowed_code

    sources = find_sources(folder, options)
    if brings_code(sources.config):
        return {}
    require_allowed_code(folder, options)
    checked = check_without_weights(sources, options)
    adapter = HuggingFaceAdapter(checked.model, checked.processor, family="huggingface", identity={})
    adapter.encode([Sample("a blank picture", Image.new("RGB", (64, 48)), "a")])
    return {**checked.notes, "prompt": str(adapter.facts["prompt_source"])}


def _weight_files(folder: Path) -> list[str]:
    names = [path.name for path in sorted(folder.glob("*.safetensors")) if not path.name.startswith("adapter_model")]
    return names or [path.name for path in sorted(folder.glob("pytorch_model*"))] or ["shards of a training"]
