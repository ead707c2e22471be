"""Measures model classes of VLMEvalKit: ``python vlmeval_classes.py OUT_DIR``; see ``fork_server``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from hosts.fork_server import N_SAMPLES, ModelClass, both_ways, measured_in_forks

CLASSES = (
    ModelClass("LLaVA_Next", "llava_next"),
    ModelClass("LLaVA_Next", "llava", folder="llava-interleave"),
    ModelClass("LLaVA_OneVision_HF", "llava_onevision"),
    ModelClass("Qwen2VLChat", "qwen2_vl"),
    ModelClass("Qwen2VLChat", "qwen2_5_vl"),
    ModelClass("Qwen3VLChat", "qwen3_vl"),
    ModelClass("Qwen3VLChat", "qwen3_vl_moe"),
    ModelClass("SmolVLM", "idefics3"),
    ModelClass("SmolVLM2", "idefics3"),
    ModelClass("PaliGemma", "paligemma"),
    ModelClass("Gemma3", "gemma3"),
    # VLMEvalKit takes it for a plain LLaVA, because of its folder's name; no weight is missing.
    ModelClass(
        "LLaVA_Next",
        "llava_next",
        folder="my-interleave",
        refused=("LlavaNextForConditionalGeneration", "LlavaForConditionalGeneration"),
    ),
)


def measured(case: ModelClass, checkpoint: Path) -> dict[str, Any]:
    """MIR as ``mir-vlmeval`` gets it of a loaded model, and of the module's own hidden states."""
    import vlmeval.vlm
    from hosts.independent_mir import independent_layers

    from mir_plugin.model_adapters.in_memory.host_parts import adapter_for, loaded_parts
    from mir_plugin.results import MirResult
    from mir_plugin.samples.embedded import embedded_samples
    from mir_plugin.tasks.vlmevalkit import measurement
    from mir_plugin.tasks.vlmevalkit.data_set import RESULT_SUFFIX, MirDataSet

    folder = checkpoint.parent
    model = getattr(vlmeval.vlm, case.name)(model_path=str(checkpoint))
    call = measurement.Inference(model, case.name, folder, MirDataSet(), str(folder / "01_MIR.pkl"))
    measurement.measured(call, vlmeval)
    result = dataclasses.asdict(MirResult.load(call.path(RESULT_SUFFIX)))
    independent = independent_layers(loaded_parts(model)[0], adapter_for(model), embedded_samples(N_SAMPLES).samples)
    return both_ways(type(model), result, independent)


def without_an_accelerator() -> None:
    """VLMEvalKit's classes name CUDA and FlashAttention throughout; what they ask for lands on the CPU instead."""
    import torch
    import transformers
    import vlmeval.vlm.qwen2_vl.model as qwen2
    import vlmeval.vlm.qwen3_vl.model as qwen3

    base, to = transformers.PreTrainedModel, torch.nn.Module.to
    original = base.from_pretrained.__func__  # type: ignore[attr-defined]

    def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs |= {"device_map": "cpu", "attn_implementation": "sdpa"}
        kwargs.pop("_attn_implementation", None)
        return original(cls, *args, **kwargs)

    base.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign, assignment]
    torch.nn.Module.cuda = lambda self, *_: self  # type: ignore[method-assign, assignment]
    torch.nn.Module.to = lambda self, *args, **more: to(  # type: ignore[method-assign, assignment]
        self, *["cpu" if argument == "cuda" else argument for argument in args], **more
    )
    for module in (qwen2, qwen3):
        module.get_gpu_memory = lambda: [1]


if __name__ == "__main__":
    import transformers

    from mir_plugin.model_adapters.in_memory.initial_weights import observe_loading

    without_an_accelerator()
    observe_loading(transformers.modeling_utils)  # as mir-vlmeval does
    measured_in_forks(CLASSES, measured)
