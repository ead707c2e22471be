"""What a folder without whole weights holds instead, and the command that makes a checkpoint of it. Imports no torch.

Trainings save their own state in layouts that only their own programs read. Who meets such a folder wants to be told
which one it is and what to type, not that a download is incomplete.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

ADAPTER_CONFIG = "adapter_config.json"
_MEGATRON_FILES = ("model_optim_rng.pt", "model_rng.pt", "latest_checkpointed_iteration.txt")
# Of one checkpoint; a folder full of other things is not searched to its end.
_MOST_FILES = 2000


def remedy_for(folder: Path) -> str | None:
    """What the folder is and what to do with it, in two sentences; None if it is nothing known."""
    files = _files_below(folder)
    found = (
        _zero_partitions(folder, files)
        or _distributed(folder, files)
        or _megatron(files)
        or _lightning(folder, files)
        or _accelerate_state(folder)
        or _xtuner(folder)
        or _tinyllava(folder)
        or _projectors_of_steps(folder)
    )
    return None if found is None else " ".join(found)


def distributed_folder(folder: Path) -> Path | None:
    """The folder with the ``.distcp`` files of torch.distributed.checkpoint: this one, or one inside it."""
    return next((path.parent for path in _files_below(folder) if path.suffix == ".distcp"), None)


def partitions_folder(folder: Path) -> Path | None:
    """The ``global_stepN`` folder with DeepSpeed's model states."""
    return next((path.parent for path in _files_below(folder) if path.name.endswith("_model_states.pt")), None)


def _zero_partitions(folder: Path, files: list[Path]) -> tuple[str, str] | None:
    states = partitions_folder(folder)
    if states is None:
        return None
    script, name = folder / "zero_to_fp32.py", shlex.quote(str(folder))
    what = f"It holds the state of a DeepSpeed training ({states.name}/), which only DeepSpeed reads."
    if not script.is_file():
        return what, (
            'Make weights of it where DeepSpeed is installed: `python -c "from deepspeed.utils.zero_to_fp32 import '
            f'convert_zero_checkpoint_to_fp32_state_dict as convert; convert({str(folder)!r}, {str(folder)!r})"`.'
        )
    return what, (
        f"Make weights of it with the script that lies there: `python {shlex.quote(str(script))} {name} "
        f"{shlex.quote(str(folder / 'pytorch_model.bin'))}`; or add --unpickle where DeepSpeed is installed."
    )


def _distributed(folder: Path, files: list[Path]) -> tuple[str, str] | None:
    place = distributed_folder(folder)
    if place is None:
        return None
    target = shlex.quote(str(folder / "pytorch_model.bin"))
    return (
        f"It holds shards of torch.distributed.checkpoint ({os.path.relpath(place, folder)}/*.distcp), as FSDP saves.",
        f"Measure it with --unpickle, or make one file of them: `python -m torch.distributed.checkpoint.format_utils "
        f"dcp_to_torch {shlex.quote(str(place))} {target}` (`accelerate merge-weights` for what accelerate saved).",
    )


def _megatron(files: list[Path]) -> tuple[str, str] | None:
    if not any(path.name in _MEGATRON_FILES for path in files):
        return None
    return (
        "It holds the shards of a Megatron training.",
        "Convert it to the Hugging Face format with the training code's own converter (Megatron Bridge: "
        "`AutoBridge.export_ckpt`; ms-swift: `swift export --to_hf true`).",
    )


def _lightning(folder: Path, files: list[Path]) -> tuple[str, str] | None:
    saved = next((path for path in files if path.suffix == ".ckpt"), None)
    if saved is None:
        return None
    return (
        f"It holds a Lightning checkpoint ({saved.relative_to(folder)}).",
        'Save the model inside it: `MODULE.load_from_checkpoint("....ckpt").model.save_pretrained(FOLDER)`.',
    )


def _accelerate_state(folder: Path) -> tuple[str, str] | None:
    if not any(folder.glob("random_states_*.pkl")):
        return None
    return (
        "It holds what accelerate's save_state wrote to go on training.",
        "Save the model itself: `accelerator.unwrap_model(model).save_pretrained(FOLDER, "
        "state_dict=accelerator.get_state_dict(model))`.",
    )


def _xtuner(folder: Path) -> tuple[str, str] | None:
    config = folder / "config.json"
    is_part = config.is_file() and '"ProjectorModel"' in config.read_text(encoding="utf-8", errors="replace")
    if not (is_part or (folder / "xtuner_config.py").is_file() or (folder / "projector" / "config.json").is_file()):
        return None
    return (
        "It holds parts that xtuner exported in its own layout.",
        "Export it in LLaVA's: `xtuner convert pth_to_hf CONFIG.py ITER.pth FOLDER --save-format official`, or "
        "`--save-format huggingface`.",
    )


def _tinyllava(folder: Path) -> tuple[str, str] | None:
    config = folder / "config.json"
    if not config.is_file() or '"tinyllava"' not in config.read_text(encoding="utf-8", errors="replace"):
        return None
    return (
        "It is a model of TinyLLaVA Factory, whose layout and feature selection are its own.",
        "Save language_model, vision_tower and connector as a LlavaForConditionalGeneration of transformers, or "
        "measure the loaded model in Python (docs/how-to/own-model.md).",
    )


def _projectors_of_steps(folder: Path) -> tuple[str, str] | None:
    steps = sorted((folder / "mm_projector").glob("checkpoint-*.bin"), key=lambda path: (len(path.name), path.name))
    if not steps:
        return None
    last, config = steps[-1], shlex.quote(str(folder / "config.json"))
    made = folder / last.stem
    target = shlex.quote(str(made))
    return (
        f"It holds projectors that LLaVA saved on the way ({', '.join(step.name for step in steps[:4])}).",
        f"Give each a folder: `mkdir -p {target} && cp {config} {target} && cp {shlex.quote(str(last))} "
        f"{shlex.quote(str(made / 'mm_projector.bin'))}`.",
    )


def _files_below(folder: Path) -> list[Path]:
    """Files of the folder and its subfolders, but not of other checkpoints inside it."""
    found: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(("checkpoint-", ".")))
        found += [Path(where) / name for name in sorted(names)]
        if len(found) > _MOST_FILES:
            break
    return found
