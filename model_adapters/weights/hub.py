"""Where a checkpoint's parts lie: folders named in its config, relative to several places, or names on the hub."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.stored import has_checkpoint_weights, read_json

_LONGEST_SHOWN = 500
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# Of a repository: configs, tokenizers, chat templates, and code, which runs only where it is allowed to.
_BESIDE_WEIGHTS = ("*.json", "*.jinja", "*.model", "*.py", "*.txt")


def find_folder(name: str, near: Sequence[Path], *, part: str, option: str, marker: str = "config.json") -> Path:
    """The model folder that ``name`` means: below the working directory, then below each of ``near``, then on the hub.

    Args:
        part: for error messages, "base LLM".
        option: the command-line option that names it directly, "--base-llm".
        marker: the file by which such a folder is known.

    Raises:
        MirError: if it is found nowhere; lists where it was searched.
    """
    places = [Path(name), *(folder / name for folder in near)] if not Path(name).is_absolute() else [Path(name)]
    for place in places:
        if _is_there(place / marker):
            return place
    reason = hub_folder(name)
    if isinstance(reason, Path):
        return reason
    if len(name) > _LONGEST_SHOWN:
        raise MirError(
            f"the {part} that config.json or {option} names has a name of {len(name)} letters: {name[:20]!r}... Name "
            f"its folder with {option} DIR."
        )
    searched = ", ".join(str(place) for place in places)
    raise MirError(
        f"the {part} {name!r} was not found ({reason}); no {marker} in: {searched}. Name its folder with {option} DIR."
    )


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except PermissionError:
        raise
    except OSError:  # a name that is too long for a file, as hostile configs have it
        return False


def folder_of_base(adapter: Path) -> Path | str:
    """The folder on this machine that adapter_config.json names as base, or that name if there is none."""
    name = str(read_json(adapter / "adapter_config.json").get("base_model_name_or_path") or "its base")
    for place in (Path(name), *(folder / name for folder in (adapter, adapter.parent, adapter.parent.parent))):
        if _is_there(place / "config.json"):
            return place
    return local_folder(name) or name


def local_folder(name: str) -> Path | None:
    """The folder of that name, or the local copy of the hub repository of that name; None without one."""
    try:
        if Path(name).is_dir():
            return Path(name).resolve()
    except OSError:  # a name that is too long for a file
        return None
    if not _HUB_NAME.fullmatch(name):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return None


def hub_folder(name: str) -> Path | str:
    """The snapshot folder of a hub repository, from the local cache or the network; or why there is none."""
    if not _HUB_NAME.fullmatch(name):
        return "no such folder"
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_BESIDE_WEIGHTS, "*.safetensors"]))
        if not has_checkpoint_weights(folder):
            folder = Path(snapshot_download(name, allow_patterns=[*_BESIDE_WEIGHTS, "*.bin"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        return f"not a local folder, and not available from the hub: {reason}"
    return folder
