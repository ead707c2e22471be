"""What a checkpoint folder in the Hugging Face format is made of, from its config and file names. Imports no torch."""

from __future__ import annotations

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions
from mir_plugin.model_adapters.recognition import CheckpointFolder, brings_code


def inspect(folder: CheckpointFolder, options: LoadOptions) -> dict[str, str]:
    """What loading would use; no weight is read. Raises MirError for options that do not apply or missing parts."""
    require_applicable(options)
    checkpoint, config = folder.path, folder.config
    text, vision = config.get("text_config", config), config.get("vision_config", {})
    if not (isinstance(text, dict) and isinstance(vision, dict)):
        raise MirError(
            f"{checkpoint / 'config.json'} has a text_config or vision_config that is not an object. Copy it again."
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
        "remote code": "needed: --trust-remote-code" if brings_code(config) else "none",
        "weights": f"{len(stored)} file(s), {stored[0]}" + (" ..." if len(stored) > 1 else ""),
        "saved as": str(config.get("dtype", config.get("torch_dtype", "not stated"))),
    }


def require_applicable(options: LoadOptions) -> None:
    """Raise MirError for an option that means nothing here."""
    for name in ("base_llm", "vision_tower", "vision_tower_aux"):
        if getattr(options, name) is not None:
            raise MirError(
                f"--{name.replace('_', '-')} does not apply: a Hugging Face checkpoint holds its language model and "
                "vision tower itself. Leave the option out, or name the family with --family if this is an "
                "original-format folder."
            )
