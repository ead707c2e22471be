"""What is pre-trained, and how every checkpoint is fine-tuned and measured: fixed before the run that RESULTS.md shows.

Sizes follow from time alone: three seeds in a quarter of an hour on two cores. They were set before any result of this
recipe was known, and are not to be changed because of one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass

N_TRAIN_DIGITS = 1297
LAST_STEP = 150


@dataclass(frozen=True)
class PreTraining:
    """One run of the projector stage; only what it names differs from the first run.

    Attributes:
        rate: peak learning rate; LLaVA's is 1e-3.
        n_digits: how many of the training digits have captions.
        connector: LLaVA's name of the projector.
        saved_steps: where checkpoints are taken.
    """

    name: str
    rate: float = 1e-3
    n_digits: int = N_TRAIN_DIGITS
    connector: str = "mlp2x_gelu"
    saved_steps: tuple[int, ...] = (LAST_STEP,)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers, besides the seeds, the packaged frozen parts and the libraries' versions.

    Attributes:
        pre_trainings: the first is the baseline that all studies share; each other differs from it in one thing.
        n_samples: image-text pairs in each sample set.
        n_in_context: multiple-choice questions with two examples each.
    """

    pre_trainings: tuple[PreTraining, ...]
    n_steps: int = LAST_STEP
    batch: int = 16
    fine_tuning_steps: int = 30
    fine_tuning_batch: int = 16
    fine_tuning_rate: float = 2e-4
    n_samples: int = 100
    n_in_context: int = 50

    @property
    def fingerprint(self) -> str:
        """Short hash of all numbers above."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Study:
    """One of the paper's comparisons.

    Attributes:
        varied: what differs: ``step``, ``n_digits``, ``rate`` or ``connector``.
        axis: the same for people.
        paper: where the paper has it.
    """

    name: str
    varied: str
    axis: str
    paper: str


STUDIES = (
    Study("training steps", "step", "step of pre-training", "Figure 4"),
    Study("amount of data", "n_digits", "captioned digits", "Figure 6, Table S1"),
    Study("learning rate", "rate", "peak learning rate", "Table 2"),
    Study("connector", "connector", "projector", "Table 4"),
)

RECIPE = Recipe(
    pre_trainings=(
        PreTraining("baseline", saved_steps=(2, 8, 20, 50, 100, LAST_STEP)),
        PreTraining("digits-10", n_digits=10),
        PreTraining("digits-40", n_digits=40),
        PreTraining("digits-160", n_digits=160),
        PreTraining("rate-1e-4", rate=1e-4),
        PreTraining("rate-3e-4", rate=3e-4),
        PreTraining("rate-3e-3", rate=3e-3),
        PreTraining("rate-1e-2", rate=1e-2),
        PreTraining("mlp1x", connector="mlp1x_gelu"),
        PreTraining("mlp4x", connector="mlp4x_gelu"),
    ),
)
