"""Prompts that are longer than a model's context cost their own answer, and no other result."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mir_plugin.model_adapters.prompts.generation import PromptTooLong
from mir_plugin.samples.embedded import micro_checkpoints

from golden_data import REPOSITORY, require_golden

EIGHT_FRAMES = REPOSITORY / "tests" / "cases" / "seedbench_8frames"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model class warns of; lmms-eval takes other sinks off its logger."""
    from mir_plugin.tasks.lmms_eval import model

    lines: list[str] = []
    monkeypatch.setattr(model, "logger", SimpleNamespace(warning=lines.append))
    return lines


class Short:
    """Answers prompts of three letters at most, and cuts those of three."""

    device = "cpu"
    n_cut_prompts = 0

    def generate(self, prompts: Any, **_: Any) -> list[str]:
        if any(len(prompt.text) > 3 for prompt in prompts):
            raise PromptTooLong("no room")
        self.n_cut_prompts += sum(len(prompt.text) == 3 for prompt in prompts)
        return [prompt.text.upper() for prompt in prompts]

    def loglikelihood(self, prompts: Any, continuations: Any) -> list[tuple[float, bool]]:
        self.generate(prompts)
        return [(-float(len(text)), True) for text in continuations]


def request(task: str, text: str, second: Any) -> Any:
    return SimpleNamespace(args=(text, second, lambda doc: [], 0, task, "s"), task_name=task)


def model_over(adapter: Any) -> Any:
    from mir_plugin.tasks.lmms_eval.model import MirModel

    model = MirModel.__new__(MirModel)
    documents = {task: {"s": [{}]} for task in "tu"}
    model.__dict__ |= {"adapter": adapter, "batch_size_per_gpu": 3, "_rank": 0, "task_dict": documents}
    model.cache_hook = SimpleNamespace(add_partial=lambda *_: None)
    return model


def test_such_a_prompt_is_answered_with_nothing_and_counted_for_its_task(said: list[str]) -> None:
    given = [("t", "a"), ("t", "long"), ("u", "bbb"), ("t", "longer"), ("u", "ccc"), ("t", "d")]
    answers = model_over(Short()).generate_until([request(task, text, {"until": "."}) for task, text in given])
    assert answers == ["A", "", "BBB", "", "CCC", "D"]
    assert [line.partition(" prompts were ")[0] for line in said] == ["u: 2 of 2", "t: 2 of 4"]
    assert "cut to" in said[0] and "answered with nothing" in said[1]


def test_a_continuation_behind_such_a_prompt_is_the_least_likely_of_all(said: list[str]) -> None:
    scores = model_over(Short()).loglikelihood([request("t", text, "yes") for text in ("a", "long", "b")])
    assert scores[0] == scores[2] == (3.0, True)
    assert scores[1][0] > 1e6 and not scores[1][1]
    assert json.loads(json.dumps(scores[1][0])) == scores[1][0]
    assert said == ["t: 1 of 3 prompts were longer than the model's context, and given no likelihood."]


def short_micro(folder: Path) -> Path:
    """The packaged checkpoint with room for one picture and a question, not for eight pictures."""
    shutil.copytree(micro_checkpoints()[-1], folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["max_position_embeddings"] = 290  # eight pictures and a question take 315
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.host
@pytest.mark.full
@pytest.mark.parametrize("family", ["llava-1.5", "huggingface"])
def test_eight_frames_of_a_video_lose_no_other_result(
    family: str, offline: Path, tmp_path: Path, said: list[str]
) -> None:
    """SEED-Bench as the real set is: a quarter of the questions shows eight frames, 4,608 tokens of LLaVA-1.5."""
    import lmms_eval.evaluator
    import lmms_eval.tasks

    (offline / "lmms-lab-encoder").unlink()
    (offline / "lmms-lab-encoder").mkdir()
    (offline / "lmms-lab-encoder" / "SEED-Bench").symlink_to(EIGHT_FRAMES)
    cuts = family == "llava-1.5"
    checkpoint = require_golden("llava/llava_full") / "model" if cuts else short_micro(tmp_path / "micro")
    tasks_dir = Path(lmms_eval.tasks.__file__).parent
    model = "mir_llava" if cuts else "mir_hf"
    manager = lmms_eval.tasks.TaskManager(
        include_defaults=False, include_path=[str(tasks_dir / name) for name in ("mmstar", "seedbench")],
        model_name=model,
    )  # fmt: skip
    found: dict[str, Any] = lmms_eval.evaluator.simple_evaluate(
        model=model,
        model_args=f"pretrained={checkpoint},device=cpu,mir_n_samples=2",
        tasks=["mir_embedded", "mmstar", "seedbench"],
        task_manager=manager,
        batch_size=2,
        gen_kwargs="max_new_tokens=2",
    )
    gc.collect()
    assert isinstance(found["results"]["mir_embedded"]["mir,none"], float)
    assert isinstance(found["results"]["mmstar"]["average,none"], float)
    scores = found["results"]["seedbench"]
    assert all(isinstance(scores[f"seed_{kind},none"], float) for kind in ("image", "video", "all"))
    videos = [doc for doc in found["samples"]["seedbench"] if doc["doc"]["data_type"] == "video"]
    assert len(videos) == 3
    assert all((doc["filtered_resps"][0] == "") is not cuts for doc in videos)
    what = "cut to the model's context" if cuts else "answered with nothing"
    assert [line for line in said if what in line and line.startswith("seedbench: 3 of 12 prompts")]
