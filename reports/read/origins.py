"""What a checkpoint was trained from, where its folder says so: fine-tuned models name the pre-trained one.

Read are the places where trainings write it: LLaVA's forks the projector and VILA the stage before in ``config.json``,
transformers 4 the folder that was loaded (``_name_or_path``), PEFT the base in ``adapter_config.json``, ms-swift its
arguments in ``args.json``, and the model cards of Trainer, TRL, PEFT and LLaMA-Factory ``base_model``. The original
LLaVA writes the projector nowhere in its output folder.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from mir_plugin.files.strict_json import json_document
from mir_plugin.measurement.checkpoint_names import step_in_name
from mir_plugin.reports.read.identity import NAME, PATH, resolved
from mir_plugin.reports.read.records import CheckpointRef, Origin

# The most telling first: a LLaVA fork names the projector and the language model that it was trained with.
KEYS = ("pretrain_mm_mlp_adapter", "resume_path", "model_name_or_path", "_name_or_path", "base_model_name_or_path")
FILES = {
    "config.json": KEYS,
    "trainer_state.json": KEYS,
    "training_args.json": KEYS,
    "args.json": (*KEYS, "model"),
    "adapter_config.json": KEYS,
}
MODEL_CARD = "README.md"
WEIGHT_FILES = frozenset({".bin", ".safetensors", ".pt", ".pth"})


def read_origins(scored: Iterable[CheckpointRef]) -> tuple[Origin, ...]:
    """What the folders of these checkpoints name, as far as they are on this machine."""
    found = []
    for reference in dict.fromkeys(scored):
        for key in reference.keys:
            if key.startswith(PATH):
                found += [Origin(reference, keys, said) for keys, said in _named(Path(key.removeprefix(PATH)))]
    return tuple(found)


def _named(folder: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys of each checkpoint that a folder's files name, and where it says so."""
    if not folder.is_dir():
        return
    of_run = [folder.parent] if step_in_name(folder.name) is not None else []  # arguments lie beside a run's steps
    for place in (folder, *of_run):
        for name, keys in FILES.items():
            data = _json(place / name)
            for key in keys:
                if isinstance(data.get(key), str) and data[key].strip():
                    yield _keys_of(data[key].strip(), folder), f"{name}: {key} = {data[key]}"
        base = _base_of_card(place / MODEL_CARD)
        if base:
            yield _keys_of(base, folder), f"{MODEL_CARD}: base_model = {base}"


def _keys_of(name: str, trained: Path) -> tuple[str, ...]:
    """Ways to know a checkpoint by that a training named: nobody wrote down the folder that it was started in."""
    path = PurePosixPath(posixpath.normpath(name))
    if path.suffix in WEIGHT_FILES:
        path = path.parent
    places = (path, *(PurePosixPath(above) / path for above in trained.parents))
    found = [f"{PATH}{place}" for one in places if (place := resolved(str(one)))]
    return (*dict.fromkeys(found), f"{NAME}{path}")


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json_document(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # what cannot be read names nothing
        return {}
    return data if isinstance(data, dict) else {}


def _base_of_card(path: Path) -> str:
    """``base_model`` in the front matter of a model card."""
    try:
        text = path.read_text(encoding="utf-8")
        head = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else {}
        base = head.get("base_model")
    except (OSError, ValueError, IndexError, AttributeError, RecursionError, yaml.YAMLError):
        return ""
    return base.strip() if isinstance(base, str) else ""
