"""What is pre-trained, and how every checkpoint is fine-tuned: fixed before the run whose results are in RESULTS.md."""

from __future__ import annotations

from dataclasses import dataclass

N_TRAIN_DIGITS = 1297
LAST_STEP = 150


@dataclass(frozen=True)
class PreTraining:
    """One run of the projector stage; only what it names differs from the first run.

    Attributes:
        rate: peak learning rate; LLaVA's is 1e-3.
        n_digits: how many of the training digits have captions.
        saved_steps: where checkpoints are taken.
    """

    name: str
    rate: float = 1e-3
    n_digits: int = N_TRAIN_DIGITS
    saved_steps: tuple[int, ...] = (LAST_STEP,)


@dataclass(frozen=True)
class FineTuning:
    """The second stage, the same for every checkpoint: projector and language model learn to answer questions."""

    steps: int = 30
    batch: int = 16
    rate: float = 2e-4
    seed: int = 0


PRE_TRAININGS = (
    # The paper's Figure 4: training steps.
    PreTraining("steps", saved_steps=(2, 8, 20, 50, 100, LAST_STEP)),
    # Its Figure 6: amount of data.
    PreTraining("10 digits", n_digits=10),
    PreTraining("40 digits", n_digits=40),
    PreTraining("160 digits", n_digits=160),
    # Its Table 2: recipes; here the learning rate.
    PreTraining("rate 1e-4", rate=1e-4, saved_steps=(50, LAST_STEP)),
    PreTraining("rate 1e-2", rate=1e-2, saved_steps=(50, LAST_STEP)),
)
