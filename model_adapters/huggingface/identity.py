"""Which checkpoint a transformers model is, and what a host does otherwise than the checkpoint says."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import IN_MEMORY, digest, fingerprint, folder_fingerprint
from mir_plugin.model_adapters.weights.hub import local_folder
from mir_plugin.model_adapters.weights.module_fingerprint import holds_stored, module_fingerprint
from mir_plugin.model_adapters.weights.quantization import as_plain
from mir_plugin.model_adapters.weights.stored import open_checkpoint_weights

_REMOTE_CODE = "transformers_modules."
# Where something was loaded from and how it is kept, and ids that only generation reads.
_WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path", "name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version",
        "processor_class", "_processor_class", "image_processor_type", "use_cache", "return_dict",
        "pad_token_id", "bos_token_id", "eos_token_id",
    }
)  # fmt: skip


def code_elsewhere(folder: Path, model: nn.Module, processor: Any) -> list[Path]:
    """Folders of code that ran and is no file of the checkpoint's folder: its config may name another repository."""
    names = {type(one).__module__ for one in (*model.modules(), processor, processor.image_processor)}
    files = [Path(str(sys.modules[name].__file__)) for name in sorted(names) if name.startswith(_REMOTE_CODE)]
    return sorted({file.parent for file in files if not (folder / file.name).is_file()})


def image_settings(processor: Any) -> dict[str, Any]:
    """How images are prepared, name → plain value; nothing of an image processor that does not say."""
    settings = getattr(processor.image_processor, "to_dict", dict)
    return _plain(settings())


def memory_fingerprint(
    model: Any, *prepares: Any, read: Callable[[str, Tensor], Tensor] = lambda _, parameter: parameter
) -> str:
    """Content of a model in memory: parameters, configuration, and what prepares its inputs.

    Args:
        read: as for ``module_fingerprint``.
    """
    parts = [module_fingerprint(model, read), _plain(model.config.to_dict()), *map(_content_of, prepares)]
    return IN_MEMORY + fingerprint(parts)


def identified(model: Any, processor: Any, checkpoint: str | None) -> dict[str, Any]:
    """Facts about the identity of a model that a host holds.

    Args:
        checkpoint: what the host loaded, as far as it says.
    """
    folder = local_folder(checkpoint) if checkpoint else None
    if folder is None:
        return {"checkpoint_fingerprint": memory_fingerprint(model, processor)}
    facts: dict[str, Any] = {"host_settings": host_settings(model, processor, folder)}
    try:
        before = folder_fingerprint([folder])
        stored = open_checkpoint_weights(folder).values()
        if holds_stored(model, stored) and folder_fingerprint([folder]) == before:
            return {**facts, "checkpoint_fingerprint": before, "source_folders": [str(folder)]}
    except MirError:  # a file that is being written, or cannot be read
        pass
    return {**facts, "checkpoint_fingerprint": memory_fingerprint(model, processor)}


def host_settings(model: Any, processor: Any, folder: Path) -> dict[str, Any]:
    """What a host uses otherwise than the checkpoint's files say: name → the checkpoint's value and the host's.

    Empty too where the files cannot be read by transformers alone: then nothing is known.
    """
    import transformers

    try:
        own = transformers.AutoProcessor.from_pretrained(folder, local_files_only=True)
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception:  # damaged files, remote code: what transformers raises is no closed list
        return {}
    pairs = {
        "image processor": (image_settings(own), image_settings(processor)),
        # How weights are quantised is no setting of a host: it reads the same in none of the two.
        "config": (_plain(as_plain(config).to_dict()), _plain(model.config.to_dict())),
        "chat template": ({"": own.chat_template}, {"": processor.chat_template}),
        "tokenizer": ({"": _content_of(own.tokenizer)}, {"": _content_of(processor.tokenizer)}),
    }
    return {
        f"{part} {name}".strip(): [ours.get(name), used[name]]
        for part, (ours, used) in pairs.items()
        for name in used
        if name in ours and ours[name] != used[name]
    }


def _content_of(part: Any) -> Any:
    """What a processor, an image processor or a tokenizer does, as plain values."""
    if hasattr(part, "tokenizer"):
        own = getattr(part, "chat_template", None)
        return [own, _content_of(part.tokenizer), _content_of(getattr(part, "image_processor", None))]
    backend = getattr(part, "backend_tokenizer", None)
    if backend is not None:  # without the padding and truncation that its last call left behind
        rules = {k: v for k, v in json.loads(backend.to_str()).items() if k not in ("padding", "truncation")}
        return digest([json.dumps(rules, sort_keys=True).encode()])
    if hasattr(part, "get_vocab"):
        return fingerprint(part.get_vocab())
    return _plain(part.to_dict()) if hasattr(part, "to_dict") else str(type(part))


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON values, without those that move no number."""
    kept = {name: value for name, value in settings.items() if name not in _WITHOUT_EFFECT}
    return {
        name: _plain(value) if isinstance(value, Mapping) else json.loads(json.dumps(value, default=str))
        for name, value in sorted(kept.items(), key=lambda item: str(item[0]))
    }
