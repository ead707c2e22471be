"""MIR in a Lightning training: ``python -m examples.training.lightning_callback``; needs ``pip install lightning``."""

from __future__ import annotations

import tempfile
from typing import Any

import lightning
import torch
from torch import Tensor

from examples.training.small_vlm import SmallVLM, encode
from mir_plugin import MirResult, embedded_samples, measure_live, metrics_of

N_STEPS, EVERY = 4, 2


class MIR(lightning.Callback):
    """Measures after every so many optimizer steps and logs where the loss is logged."""

    def __init__(self, every_steps: int) -> None:
        self.every_steps, self.samples = every_steps, embedded_samples(8)
        self.results: dict[int, MirResult] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Every process comes here, so all measure together."""
        step = trainer.global_step
        if step % self.every_steps == 0 and step not in self.results:
            self.results[step] = measure_live(module.model, None, self.samples, adapter=encode)
            module.log_dict(metrics_of(self.results[step]), rank_zero_only=True)


class Module(lightning.LightningModule):
    """A training of the small model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = SmallVLM()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of the text."""
        targets = batch["input_ids"].masked_fill(batch["vision"], -100)
        loss: Tensor = self.model(batch["input_ids"], batch["image"], targets)[1]
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def rows() -> list[dict[str, Tensor]]:
    """One batch of each training pair."""
    encoded = (encode([sample]) for sample in embedded_samples(N_STEPS, seed=1).samples)
    return [{**inputs, "vision": vision} for inputs, vision, _ in encoded]


def main(**options: Any) -> tuple[MIR, Any]:
    """Train a little; the callback, and Lightning's trainer."""
    torch.manual_seed(0)
    measured = MIR(every_steps=EVERY)
    trainer = lightning.Trainer(max_steps=N_STEPS, callbacks=[measured], logger=False, **options)
    trainer.fit(Module(), torch.utils.data.DataLoader(rows(), batch_size=None))  # type: ignore[arg-type]
    return measured, trainer


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for at, result in main(default_root_dir=folder)[0].results.items():
            print(at, f"MIR {result.mir:.4f}")
