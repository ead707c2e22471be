"""Every checkpoint family answers the paper's benchmarks inside lmms-eval, over drawn stand-ins, beside its MIR."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from mir_plugin.samples.embedded import micro_checkpoints

from golden_data import require_golden

pytestmark = [pytest.mark.slow, pytest.mark.host]

# The static variant of MMBench: the plain one asks a judge over the network about answers it cannot read as an option.
BENCHMARKS = {
    "mmstar": "average",
    "mmbench_en_dev_static": "gpt_eval_score",
    "seedbench": "seed_image",
    "textvqa_val": "exact_match",
    "gqa": "exact_match",
}
FOLDERS = ("mmstar", "mmbench", "seedbench", "textvqa", "gqa")


def checkpoints() -> dict[str, tuple[str, str]]:
    """Family → (lmms-eval's model name, its model_args)."""
    return {
        "llava-1.5": ("mir_llava", f"pretrained={require_golden('llava/llava_projector') / 'model'}"),
        "llava-1.5 with LoRA": ("mir_llava", f"pretrained={require_golden('llava/llava_lora') / 'model'}"),
        "llava-1.5 with MoCa": ("mir_llava", f"pretrained={require_golden('llava/llava_moca') / 'model'}"),
        "sharegpt4v": ("mir_sharegpt4v", f"pretrained={require_golden('sharegpt4v/share4v_full') / 'model'}"),
        "mini-gemini": ("mir_mini_gemini", f"pretrained={require_golden('mini_gemini/mgm_full') / 'model'}"),
        "huggingface": ("mir_hf", f"pretrained={micro_checkpoints()[-1]}"),
    }


@pytest.mark.parametrize("family", list(checkpoints()))
def test_a_family_is_measured_and_benchmarked_in_one_run(family: str, offline: Path) -> None:
    import lmms_eval.evaluator
    import lmms_eval.tasks

    model, model_args = checkpoints()[family]
    tasks_dir = Path(lmms_eval.tasks.__file__).parent
    manager = lmms_eval.tasks.TaskManager(
        include_defaults=False, include_path=[str(tasks_dir / name) for name in FOLDERS], model_name=model
    )
    found: dict[str, Any] = lmms_eval.evaluator.simple_evaluate(
        model=model,
        model_args=f"{model_args},device=cpu,mir_n_samples=2",
        tasks=["mir_embedded", *BENCHMARKS],
        task_manager=manager,
        limit=2,
        batch_size=2,
        gen_kwargs="max_new_tokens=2",
    )
    gc.collect()
    assert found["configs"]["mir_embedded"]["metadata"]["mir_result"]["n_samples"] == 2
    assert isinstance(found["results"]["mir_embedded"]["mir,none"], float)
    for task, metric in BENCHMARKS.items():
        assert isinstance(found["results"][task][f"{metric},none"], (int, float)), task
        assert len(found["samples"][task]) == 2
