"""Measures model classes of lmms-eval: ``python lmms_eval_classes.py OUT_DIR``; see ``fork_server``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hosts.fork_server import N_SAMPLES, ModelClass, both_ways, measured_in_forks

ON_CPU = ",device_map=cpu"
QWEN = f"{ON_CPU},min_pixels=256,max_pixels=1024"
CLASSES = (
    ModelClass("llava_hf", "llava", ON_CPU),
    ModelClass("llava_hf", "llava_onevision", ON_CPU, simple=True),
    ModelClass("huggingface", "llava_next", ON_CPU),
    ModelClass("async_hf_model", "llava"),
    ModelClass("lfm2_5_vl", "llava"),
    ModelClass("internvl_hf", "internvl", ON_CPU),
    ModelClass("gemma3", "gemma3", ON_CPU),
    ModelClass("instructblip", "instructblip"),
    ModelClass("idefics2", "idefics2", ON_CPU),
    ModelClass("mistral3_vl", "mistral3", ON_CPU),
    ModelClass("glm4v", "glm4v", ON_CPU, folder="GLM-4.6V-Flash"),
    ModelClass("qwen2_vl", "qwen2_vl", QWEN),
    ModelClass("qwen2_5_vl", "qwen2_5_vl", QWEN),
    ModelClass("qwen2_5_vl", "qwen2_5_vl", QWEN, simple=True),
    ModelClass("qwen3_vl", "qwen3_vl", QWEN),
    ModelClass("qwen3_vl", "qwen3_vl", QWEN, simple=True),
    ModelClass("qwen3_vl", "qwen3_vl_moe", QWEN, folder="Qwen3-VL-30B-A3B"),
    ModelClass("qwen3_5", "qwen3_5", QWEN),
    ModelClass("qwen3_5", "qwen3_5", QWEN, simple=True),
    # lmms-eval takes these for another architecture, because of their folder's name.
    ModelClass(
        "glm4v",
        "glm4v",
        ON_CPU,
        folder="GLM-4.1V-9B",
        refused=("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "mlp.experts"),
    ),
    ModelClass(
        "qwen3_vl",
        "qwen3_vl_moe",
        QWEN,
        folder="my-qwen3-vl-moe",
        refused=("Qwen3VLMoeForConditionalGeneration", "Qwen3VLForConditionalGeneration", "mlp.gate_proj.weight"),
    ),
)


def measured(case: ModelClass, checkpoint: Path) -> dict[str, Any]:
    """MIR as lmms-eval's evaluator would get it, and of the module's own hidden states."""
    from hosts.independent_mir import independent_layers
    from lmms_eval.models import get_model

    from mir_plugin.model_adapters.in_memory.host_parts import adapter_for, loaded_parts
    from mir_plugin.samples.embedded import embedded_samples
    from mir_plugin.tasks.lmms_eval.task import MirTask

    model_args = f"pretrained={checkpoint},device=cpu{case.arguments}"
    lm = get_model(case.name, case.simple).create_from_arg_string(model_args)
    task = MirTask({"task": "mir"})
    task.build_all_requests(limit=None, rank=0, world_size=1)
    result = json.loads(lm.mir(task.instances)[0])["result"]
    independent = independent_layers(loaded_parts(lm)[0], adapter_for(lm), embedded_samples(N_SAMPLES).samples)
    return both_ways(type(lm), result, independent)


if __name__ == "__main__":
    import lmms_eval.evaluator  # noqa: F401 - what all forks share

    measured_in_forks(CLASSES, measured)
