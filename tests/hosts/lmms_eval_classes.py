"""Loads lmms-eval once and measures each model class in a fork of its own: ``python lmms_eval_classes.py OUT_DIR``.

Importing lmms-eval's evaluator takes half a minute or more; a fork of the process that has done it starts at once, and
what one class changes in torch or transformers does not reach the next.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

N_SAMPLES = 3
QWEN_SIZES = ",min_pixels=256,max_pixels=1024"


@dataclass(frozen=True)
class ModelClass:
    """A model class of lmms-eval, and what it loads.

    Attributes:
        name: for ``--model``; the chat class unless ``simple``.
        tiny: of ``tiny_host_models.BUILDERS``.
        arguments: further ``--model_args``.
        folder: name of the checkpoint's folder, by which some classes choose an architecture.
        refused: what the message has to say, where the class must not be measured.
    """

    name: str
    tiny: str
    arguments: str = ",device_map=cpu"
    simple: bool = False
    folder: str = ""
    refused: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For test ids and file names."""
        return "-".join(filter(None, (self.name, "simple" if self.simple else "", self.tiny, self.folder)))


CLASSES = (
    ModelClass("llava_hf", "llava"),
    ModelClass("llava_hf", "llava_onevision", simple=True),
    ModelClass("huggingface", "llava_next"),
    ModelClass("async_hf_model", "llava", arguments=""),
    ModelClass("lfm2_5_vl", "llava", arguments=""),
    ModelClass("internvl_hf", "internvl"),
    ModelClass("gemma3", "gemma3"),
    ModelClass("instructblip", "instructblip", arguments=""),
    ModelClass("idefics2", "idefics2"),
    ModelClass("mistral3_vl", "mistral3"),
    ModelClass("glm4v", "glm4v", folder="GLM-Flash"),
    ModelClass("qwen2_vl", "qwen2_vl", arguments=f",device_map=cpu{QWEN_SIZES}"),
    ModelClass("qwen2_5_vl", "qwen2_5_vl", arguments=f",device_map=cpu{QWEN_SIZES}"),
    ModelClass("qwen2_5_vl", "qwen2_5_vl", arguments=f",device_map=cpu{QWEN_SIZES}", simple=True),
    ModelClass("qwen3_vl", "qwen3_vl", arguments=f",device_map=cpu{QWEN_SIZES}"),
    ModelClass("qwen3_vl", "qwen3_vl", arguments=f",device_map=cpu{QWEN_SIZES}", simple=True),
    ModelClass("qwen3_vl", "qwen3_vl_moe", arguments=f",device_map=cpu{QWEN_SIZES}", folder="Qwen3-VL-30B-A3B"),
    ModelClass("qwen3_5", "qwen3_5", arguments=f",device_map=cpu{QWEN_SIZES}"),
    ModelClass("qwen3_5", "qwen3_5", arguments=f",device_map=cpu{QWEN_SIZES}", simple=True),
    # lmms-eval takes these for another architecture, because of their folder's name.
    ModelClass(
        "glm4v",
        "glm4v",
        folder="GLM-4.1V-9B",
        refused=("Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "mlp.experts"),
    ),
    ModelClass(
        "qwen3_vl",
        "qwen3_vl_moe",
        arguments=f",device_map=cpu{QWEN_SIZES}",
        folder="my-qwen3-vl-moe",
        refused=("Qwen3VLMoeForConditionalGeneration", "Qwen3VLForConditionalGeneration", "mlp.gate_proj.weight"),
    ),
)


def main(out_dir: Path) -> None:
    """Write ``LABEL.json`` for every class: host's MIR and the independent one, or the error."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "MIR_SAMPLES": "embedded", "MIR_N_SAMPLES": str(N_SAMPLES)}
    import lmms_eval.evaluator  # noqa: F401 - what all forks share
    from hosts.tiny_host_models import save_checkpoint

    for case in CLASSES:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            continue
        try:
            checkpoint = save_checkpoint(case.tiny, out_dir / (case.folder or case.tiny) / case.label)
            found = measured_both_ways(case, checkpoint if not case.folder else named(checkpoint, case.folder))
        except BaseException as error:  # whatever it is, the test shows it
            found = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
        (out_dir / f"{case.label}.json").write_text(json.dumps(found))
        os._exit(0)


def named(checkpoint: Path, name: str) -> Path:
    """The checkpoint under a folder name that a class looks at."""
    target = checkpoint.parent.parent / f"{checkpoint.name}-as" / name
    target.parent.mkdir()
    return checkpoint.rename(target)


def measured_both_ways(case: ModelClass, checkpoint: Path) -> dict[str, Any]:
    """MIR as lmms-eval's evaluator would get it, and of the module's own hidden states."""
    from lmms_eval.models import get_model

    from mir_plugin.tasks.lmms_eval.task import MirTask

    model_args = f"pretrained={checkpoint},device=cpu{case.arguments}"
    lm = get_model(case.name, case.simple).create_from_arg_string(model_args)
    task = MirTask({"task": "mir"})
    task.build_all_requests(limit=None, rank=0, world_size=1)
    result = json.loads(lm.mir(task.instances)[0])["result"]
    distances = layer_distances(*hidden_states(lm))
    return {
        "class": f"{type(lm).__module__}.{type(lm).__name__}",
        "mir": result["mir"],
        "layers": [layer["distance"] for layer in result["layers"]],
        "independent_mir": float(np.log10(sum(distances))),
        "independent_layers": distances,
        "n_vision_tokens": result["layers"][0]["n_vision_tokens"],
    }


def hidden_states(lm: Any) -> tuple[list[npt.NDArray[np.float64]], list[npt.NDArray[np.float64]]]:
    """Vision and text tokens of every layer, (tokens, d) each, from forward passes with ``output_hidden_states``."""
    import torch

    from mir_plugin.model_adapters.in_memory.host_parts import adapter_for, loaded_parts
    from mir_plugin.samples.embedded import embedded_samples

    model, _ = loaded_parts(lm)
    adapter: Any = adapter_for(lm)
    config = model.config
    image_token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    vision: list[list[Any]] = []
    text: list[list[Any]] = []
    for sample in embedded_samples(N_SAMPLES).samples:
        inputs = adapter.encode([sample]).inputs
        is_image = (inputs["input_ids"][0] == image_token).numpy()
        behind = np.arange(len(is_image)) > np.flatnonzero(is_image)[-1]
        with torch.no_grad():
            output = model(**inputs, output_hidden_states=True, use_cache=False)
        states = getattr(output, "language_model_outputs", output).hidden_states[1:]
        for k, state in enumerate(states):
            if len(vision) == k:
                vision.append([])
                text.append([])
            tokens = state[0].double().numpy()
            vision[k].append(tokens[is_image])
            text[k].append(tokens[behind])
    return [np.concatenate(rows) for rows in vision], [np.concatenate(rows) for rows in text]


def layer_distances(vision: list[Any], text: list[Any]) -> list[float]:
    """The paper's distance of each layer, in numpy alone."""
    return [frechet(*map(without_outliers, scaled(v, t))) for v, t in zip(vision, text, strict=True)]


def scaled(vision: Any, text: Any) -> tuple[Any, Any]:
    """Both in units of the text tokens' mean norm."""
    scale = 1 / np.linalg.norm(text, axis=1).mean()
    return vision * scale, text * scale


def without_outliers(tokens: Any) -> Any:
    """Rows whose norm is more than three standard deviations from the median norm become the median row."""
    norms = np.linalg.norm(tokens, axis=1)
    middle = (len(norms) - 1) // 2  # the lower of two
    outliers = np.abs(norms - np.sort(norms)[middle]) > 3 * norms.std(ddof=1)
    return np.where(outliers[:, None], np.sort(tokens, axis=0)[middle], tokens)


def frechet(vision: Any, text: Any) -> float:
    """Squared Fréchet distance of the two Gaussians."""
    vision_cov, text_cov = np.cov(vision, rowvar=False), np.cov(text, rowvar=False)
    values, vectors = np.linalg.eigh(vision_cov)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ text_cov @ root).clip(0)).sum()
    mean = vision.mean(0) - text.mean(0)
    return float(mean @ mean + np.trace(vision_cov) + np.trace(text_cov) - 2 * trace)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
