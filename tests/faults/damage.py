"""Good checkpoints to damage, and the ways to damage them."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.battery import Bench, Outcome, Right
from safetensors.torch import load_file, save_file
from torch import Tensor

from mir_plugin.results import MirResult

from golden_data import REPOSITORY, require_golden
from tolerances import SAME_FEATURES

Damage = Callable[[Path], object]
"""Does something to the folder that holds ``model/``, ``vision_tower/``, ``samples/`` and, in some, ``base_llm/``."""

FULL, MOCA, LORA = "llava/llava_full", "llava/llava_moca", "llava/llava_lora"
PROJECTOR, QFORMER = "llava/llava_projector", "llava/llava_qformer"
MINI_GEMINI, SHARE4V = "mini_gemini/mgm_full", "sharegpt4v/share4v_full"
MICRO = "micro_llava"
_MICRO_DIR = REPOSITORY / "mir_plugin" / "data" / "micro_llava" / "step-300"


def damaged(original: str, damage: Damage, *options: str) -> Callable[[Bench], Outcome]:
    """Copy a good checkpoint, damage it, and measure it on one sample."""

    def act(bench: Bench) -> Outcome:
        copy_original(original, bench.folder)
        damage(bench.folder)
        return measured(bench, *options)

    return act


def measured(bench: Bench, *options: str, run: Callable[..., Outcome] | None = None, n_samples: int = 1) -> Outcome:
    """``mir run model`` on the first samples; the value is MIR. A run that is refused must leave no result."""
    outcome = (run or bench.mir)(
        "run", "model", "--images", "samples", "--texts", "samples", "--n-samples", n_samples,
        "--out", "out", "--device", "cpu", *options,
    )  # fmt: skip
    result = bench.folder / "out" / "mir.json"
    assert result.exists() == (outcome.exit_code == 0), f"exit {outcome.exit_code}, but mir.json: {result.exists()}"
    if not result.exists():
        return outcome
    return dataclasses.replace(outcome, value=MirResult.load(result).mir)


def copy_original(original: str, folder: Path) -> None:
    """The original's folders, and the samples of a LLaVA one."""
    source = _MICRO_DIR if original == MICRO else require_golden(original)
    if original == MICRO:
        shutil.copytree(source, folder / "model")
    for part in ("model", "vision_tower", "vision_tower_aux", "base_llm"):
        if original != MICRO and (source / part).is_dir():
            shutil.copytree(source / part, folder / part)
    shutil.copytree(require_golden(FULL) / "samples", folder / "samples")


@functools.cache
def undamaged(original: str, *options: str) -> float:
    """MIR of the original as it is, on the same sample."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        copy_original(original, Path(folder))
        value = measured(Bench(Path(folder)), *options).value
    assert isinstance(value, float), f"{original} cannot be measured"
    return value


def same_as(original: str, *options: str) -> Right:
    """The number must be that of the undamaged checkpoint, to the last bits."""

    def check(value: object, _: Bench) -> str:
        assert isinstance(value, float)
        assert value == pytest.approx(undamaged(original, *options), rel=SAME_FEATURES)
        return f"MIR {value:.4f}, as undamaged"

    return Right(check)


def cut(name: str, keep: float) -> Damage:
    """Only the beginning of a file: so many bytes, or below 1 this share of it."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])

    return damage


def written(name: str, content: bytes | str) -> Damage:
    """Another content for a file."""
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def removed(*names: str) -> Damage:
    """Files or folders that are gone."""

    def damage(folder: Path) -> None:
        for name in names:
            shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return damage


def overwritten(name: str, at: int, content: bytes) -> Damage:
    """Some bytes of a file replaced; a negative place counts from the end."""

    def damage(folder: Path) -> None:
        whole = bytearray((folder / name).read_bytes())
        at_ = at % len(whole)
        whole[at_ : at_ + len(content)] = content
        (folder / name).write_bytes(whole)

    return damage


def config(name: str, **fields: Any) -> Damage:
    """Fields of a JSON file set; ``...`` removes one. A name with two underscores lies one level deeper."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        for field, value in fields.items():
            *outer, last = field.split("__")
            place = functools.reduce(lambda level, key: level[key], outer, content)
            if value is ...:
                del place[last]
            else:
                place[last] = value
        (folder / name).write_text(json.dumps(content))

    return damage


def tensors(name: str, change: Callable[[dict[str, Tensor]], object]) -> Damage:
    """Tensors of a safetensors file, or of a pickled state dict, changed in place."""

    def damage(folder: Path) -> None:
        path = folder / name
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        change(state)
        if path.suffix == ".safetensors":
            save_file({key: value.contiguous() for key, value in state.items()}, path)
        else:
            torch.save(state, path)

    return damage


def one_value(key: str, value: float) -> Callable[[dict[str, Tensor]], None]:
    """One number of one tensor set."""

    def change(state: dict[str, Tensor]) -> None:
        state[key].view(-1)[state[key].numel() // 2] = value

    return change


def renamed(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    """Every key that begins with ``old`` begins with ``new`` instead."""

    def change(state: dict[str, Tensor]) -> None:
        found = [key for key in state if key.startswith(old)]
        assert found, f"no key begins with {old}"
        for key in found:
            state[new + key.removeprefix(old)] = state.pop(key)

    return change


def without(prefix: str) -> Callable[[dict[str, Tensor]], None]:
    """The tensors below a name gone."""

    def change(state: dict[str, Tensor]) -> None:
        found = [key for key in state if key.startswith(prefix)]
        assert found, f"no key begins with {prefix}"
        for key in found:
            del state[key]

    return change


def header(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """The header of a safetensors file changed, its data left as they are."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + size])
        change(entries)
        new = json.dumps(entries).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(new)) + new + content[8 + size :])

    return damage


def all_of(*damages: Damage) -> Damage:
    """One after the other."""
    return lambda folder: [damage(folder) for damage in damages]
