"""A host's second command notices every file of the checkpoint that changed between two identical commands."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opened_files import opened_below

from mir_plugin.measurement.comparable import allowed_differences, protocol_differences
from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.measurement import Measurement
from mir_plugin.model_adapters import Checkpoint, LoadOptions
from mir_plugin.model_adapters.in_memory.host_parts import adapter_for
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.embedded import embedded_samples
from mir_plugin.tasks.lmms_eval.saved import Command

SAME = ("samples", "protocol", "checkpoint", "versions")

pytestmark = [pytest.mark.slow, pytest.mark.host]


@pytest.fixture
def checkpoint(tiny_llava: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llava, tmp_path / "model"))


def own_class_of_lmms_eval(checkpoint: Path) -> Any:
    from lmms_eval.models import get_model

    return get_model("llava_hf", True).create_from_arg_string(f"pretrained={checkpoint},device=cpu,device_map=cpu")


def like_a_class_of_vlmevalkit(checkpoint: Path) -> Any:
    """Holds what its Hugging Face classes hold, under their names."""
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint, dtype="auto").eval()
    processor = transformers.AutoProcessor.from_pretrained(checkpoint)
    return SimpleNamespace(model=model, processor=processor, model_path=str(checkpoint))


def our_class(checkpoint: Path) -> Any:
    from mir_plugin.tasks.vlmevalkit.model import CheckpointModel

    return CheckpointModel(str(checkpoint), device="cpu")


def changed_in_place(path: Path) -> None:
    """Another content that still loads: a space behind text, the last bit of the last weight."""
    content = bytearray(path.read_bytes())
    if path.suffix == ".safetensors":
        content[-4] ^= 1
    else:
        content += b" "
    path.write_bytes(content)


LOADS: list[Callable[[Path], Any]] = [own_class_of_lmms_eval, like_a_class_of_vlmevalkit]


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.__name__)
def test_lmms_eval_measures_again_after_a_change_of_any_file_that_was_opened(
    load: Callable[[Path], Any], checkpoint: Path
) -> None:
    command, samples = Command("llava_hf", f"pretrained={checkpoint}", "out"), embedded_samples(2)

    def request() -> str:
        return command.request(adapter_for(load(checkpoint)).facts, MirConfig(), samples)

    with opened_below(checkpoint) as opened:
        first = request()
    assert request() == first
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= {path.name for path in opened}
    for path in sorted(opened):
        content = path.read_bytes()
        changed_in_place(path)
        assert request() != first, path
        path.write_bytes(content)
    assert request() == first


@pytest.mark.parametrize("load", [like_a_class_of_vlmevalkit, our_class], ids=lambda load: load.__name__)
def test_vlmevalkit_reuses_no_answer_of_other_files(load: Callable[[Path], Any], checkpoint: Path) -> None:
    pytest.importorskip("pandas")
    from mir_plugin.tasks.vlmevalkit.data_set import MirDataSet
    from mir_plugin.tasks.vlmevalkit.measurement import Inference, measured

    data_set = MirDataSet(samples="embedded", n_samples=2)
    out = checkpoint.parent / "01_MIR.pkl"

    def answered(model: Any) -> str:
        measured(Inference(model, "toy", checkpoint.parent, data_set, str(out)), SimpleNamespace())
        answer: str = pickle.loads(out.read_bytes())[data_set.index]
        return answer

    first = answered(load(checkpoint))
    (checkpoint.parent / "toy_MIR_PREV.pkl").write_bytes(pickle.dumps({data_set.index: first}))
    assert answered(None) == first, "an answer that holds needs no model"
    for name in ("model.safetensors", "tokenizer.json", "preprocessor_config.json", "processor_config.json"):
        path = checkpoint / name
        if not path.is_file():
            continue
        content = path.read_bytes()
        changed_in_place(path)
        assert answered(load(checkpoint)) != first, name
        path.write_bytes(content)


def test_a_host_and_mir_run_know_one_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    samples = embedded_samples(2)
    run = Measurement(Checkpoint(checkpoint, LoadOptions(device="cpu")), samples, MirConfig(), tmp_path / "out").run()
    host: MirResult = measure(adapter_for(own_class_of_lmms_eval(checkpoint)), samples, checkpoint=str(checkpoint))
    assert host.place == run.place == str(checkpoint.resolve())
    assert {name: host.fingerprints[name] for name in SAME} == {name: run.fingerprints[name] for name in SAME}
    assert protocol_differences(run, host) == []
    told = allowed_differences(run, host)
    if host.inputs["pixels"] == run.inputs["pixels"]:
        assert (told, host.layers) == ([], run.layers)
    else:  # the class resizes with torchvision, `mir run` with PIL
        assert [name in told[0] for name in ("2 of 2 samples", run.facts["image_processor_class"])] == [True, True]
