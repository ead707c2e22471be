"""The training loss at a checkpoint, from what the Trainer wrote beside it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.files.strict_json import is_number, json_document
from mir_plugin.measurement.checkpoint_names import step_in_name


def training_loss(checkpoint: Path, n_last: int = 10) -> float:
    """Mean of the last ``n_last`` losses that the Trainer logged up to the checkpoint's step, fewer if there are fewer.

    They are in the checkpoint's ``trainer_state.json``. An intermediate checkpoint (a folder named after its step)
    without one takes that of the folder above, up to its step: LLaVA's trainer keeps it there.

    Raises:
        MirError: if there is no such file, it cannot be read, or it holds no loss up to that step.
    """
    step = step_in_name(checkpoint.name)
    folders = [checkpoint] if step is None else [checkpoint, checkpoint.absolute().parent]
    path = next((path for folder in folders if (path := folder / "trainer_state.json").is_file()), None)
    if path is None:
        raise MirError(f"no trainer_state.json at {checkpoint}; the Trainer writes it with the checkpoints it saves.")
    try:
        rows: list[dict[str, Any]] = json_document(path.read_text(encoding="utf-8"))["log_history"]
        losses = [row["loss"] for row in rows if "loss" in row and (step is None or row["step"] <= step)]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise MirError(f"{path} is not a trainer state ({error!r}). Copy it again from the training run.") from error
    wrong = [loss for loss in losses if not is_number(loss)]
    if wrong:
        raise MirError(
            f"{path} has a loss of {wrong[0]!r:.40}, which is not a finite number: the training "
            "diverged, or the file is damaged."
        )
    if not losses:
        up_to = "" if step is None else f" up to step {step}"
        raise MirError(f"{path} has no loss{up_to}: nothing was logged (logging_steps) before this checkpoint.")
    last = losses[-n_last:]
    return math.fsum(last) / len(last)
