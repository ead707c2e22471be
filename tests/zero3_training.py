"""Trains the tiny LLaVA with DeepSpeed ZeRO stage 3 on two processes, with and without MIRCallback; prints both.

Started by tests/test_sharded_training.py, with an interpreter that has deepspeed.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from tiny_training import tiny_llava, trainer_of

from mir_plugin import MIRCallback, MirResult, measure
from mir_plugin.model_adapters.huggingface.adapter import from_loaded
from mir_plugin.samples.embedded import embedded_samples
from mir_plugin.samples.sample_set import SampleSet

from tolerances import SAME_FEATURES

CONFIG = {
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_clipping": 1.0,
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
}
N_PROCESSES = 2


def process(rank: int, folder: Path, port: int) -> None:
    """One process of the two trainings."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(N_PROCESSES)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(N_PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    import deepspeed

    chosen = embedded_samples(5).samples
    samples = SampleSet(tuple(dataclasses.replace(sample, text=sample.text[:80]) for sample in chosen))
    numbers: list[Any] = []
    # All before the first TrainingArguments: from then on transformers makes every model in shards.
    plain, *tinies = (tiny_llava() for _ in range(3))
    for measured, tiny in zip((False, True), tinies, strict=True):
        trainer = trainer_of(tiny, folder / str(measured), deepspeed=CONFIG, per_device_train_batch_size=1)
        if measured:
            trainer.add_callback(MIRCallback(trainer, samples, every_steps=1))
        trainer.train()
        rows = [row for row in trainer.state.log_history if "loss" in row]
        numbers.append([(row["loss"], row["grad_norm"]) for row in rows])
    parameters = dict(trainer.model.named_parameters())
    assert all(p.numel() == 0 for p in parameters.values()), "all parameters are sharded again"
    with deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=None):
        whole = {name: p.detach().clone() for name, p in parameters.items()}
    assert numbers[0] == numbers[1], numbers
    if rank == 0:
        plain.model.load_state_dict(whole, strict=False)
        alone = measure(from_loaded(plain.model, plain.processor), samples, checkpoint="gathered")
        found = MirResult.load(folder / "True" / "mir" / "checkpoint-2")
        print("losses and gradient norms without:", numbers[0])
        print("losses and gradient norms with:   ", numbers[1])
        print("MIR", found.mir, "gathered", alone.mir, found.engine["path"], found.facts["sharding"])
        assert abs(found.mir - alone.mir) <= SAME_FEATURES * abs(alone.mir)
        assert found.fingerprints["checkpoint"] == alone.fingerprints["checkpoint"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
        free.close()
        mp.spawn(process, (Path(place), number), nprocs=N_PROCESSES)
