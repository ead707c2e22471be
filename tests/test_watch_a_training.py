"""``mir sweep --watch`` beside a training that leaves checkpoints of every layout, a piece at a time."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.distributed.checkpoint as dcp
from adapters.tiny_models import TINY_MODELS, TinyModel
from command_line import mir
from safetensors.torch import save_file

from mir_plugin import measure
from mir_plugin.model_adapters.huggingface.adapter import from_loaded
from mir_plugin.samples.embedded import embedded_samples

from tolerances import HANGS, SAME_FEATURES

pytestmark = [pytest.mark.slow, pytest.mark.full]
Write = Callable[[Path, TinyModel], None]


def processor_of(tiny: TinyModel, folder: Path) -> None:
    tiny.processor.save_pretrained(folder)


def hugging_face(folder: Path, tiny: TinyModel) -> None:
    """The config first, then half of the weights, then the rest."""
    whole = folder.parent / f"tmp-{folder.name}"
    tiny.model.save_pretrained(whole)
    processor_of(tiny, whole)
    content = (whole / "model.safetensors").read_bytes()
    folder.mkdir()
    for part in (content[: len(content) // 2], content):
        for path in whole.iterdir():
            if path.name != "model.safetensors":
                shutil.copy(path, folder)
        (folder / "model.safetensors").write_bytes(part)
        time.sleep(1.0)  # longer than the settling time: half a file is still no checkpoint
    shutil.rmtree(whole)


def adapter_without_base(folder: Path, tiny: TinyModel) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    peft.get_peft_model(tiny.model, config).save_pretrained(folder)
    saved = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**saved, "base_model_name_or_path": "gone/away"}))


def fsdp_shards(folder: Path, tiny: TinyModel) -> None:
    folder.mkdir()
    tiny.model.config.save_pretrained(folder)
    processor_of(tiny, folder)
    dcp.save({"model": tiny.model.state_dict()}, checkpoint_id=folder / "pytorch_model_fsdp_0", no_dist=True)


def zero_partitions(folder: Path, tiny: TinyModel) -> None:
    (folder / "global_step40").mkdir(parents=True)
    tiny.model.config.save_pretrained(folder)
    torch.save({"module": {}}, folder / "global_step40" / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    (folder / "zero_to_fp32.py").write_text("")
    (folder / "latest").write_text("global_step40")


def lightning(folder: Path, tiny: TinyModel) -> None:
    folder.mkdir(parents=True)
    torch.save({"state_dict": tiny.model.state_dict()}, folder / "epoch=0-step=60.ckpt")


def damaged(folder: Path, tiny: TinyModel) -> None:
    """A finished file whose tensors are not those of its config."""
    folder.mkdir()
    tiny.model.config.save_pretrained(folder)
    processor_of(tiny, folder)
    save_file({"one": torch.zeros(2)}, folder / "model.safetensors")


class Training(threading.Thread):
    """Writes one checkpoint after another into a run; each is of other weights."""

    def __init__(self, run: Path, checkpoints: dict[str, Write]) -> None:
        super().__init__()
        self._run, self._checkpoints = run, checkpoints
        self.failed: BaseException | None = None
        run.mkdir(parents=True)

    def run(self) -> None:
        try:
            for number, (name, write) in enumerate(self._checkpoints.items()):
                write(self._run / name, model_of(number))
        except BaseException as error:
            self.failed = error


def model_of(number: int) -> TinyModel:
    tiny = TINY_MODELS["llava"]()
    torch.manual_seed(number)
    with torch.no_grad():
        for parameter in tiny.model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return tiny


@pytest.fixture
def watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, dict[str, Any], Any]]]:
    """Runs a training and a watch; gives the exit code, the rows of the table by folder, and what was printed."""

    def watch(checkpoints: dict[str, Write], *options: object) -> tuple[int, dict[str, Any], Any]:
        training = Training(tmp_path / "run", checkpoints)
        training.start()
        arguments = ["sweep", "--watch", tmp_path / "run", "--embedded", "--n-samples", 3, "--device", "cpu"]
        times = ["--watch-settle", 0.4, "--watch-idle", 6, "--no-report"]
        code = mir(monkeypatch, *arguments, *times, "--out", tmp_path / "out", *options)
        training.join(HANGS)
        assert training.failed is None
        document = json.loads((tmp_path / "out" / "sweep.json").read_text())
        rows = {Path(row["checkpoint"]).name: row for row in document["checkpoints"]}
        return code, {**rows, "selection": document["selection"]}, capsys.readouterr()

    yield watch


LAYOUTS: dict[str, Write] = {
    "checkpoint-10": hugging_face,
    "checkpoint-20": adapter_without_base,
    "checkpoint-30": fsdp_shards,
    "checkpoint-40": zero_partitions,
    "checkpoint-50": hugging_face,
    "checkpoints": lightning,
}
REASONS = {
    "checkpoint-20": ("adapter of 'gone/away'", "--base"),
    "checkpoint-30": ("not measured: no weights file is there yet.", "--unpickle", "dcp_to_torch"),
    "checkpoint-40": ("not measured: no weights file is there yet.", "zero_to_fp32.py"),
    "checkpoints": ("not measured: ", "Lightning checkpoint (epoch=0-step=60.ckpt)", "save_pretrained"),
}


def test_every_layout_is_in_the_table_measured_or_with_the_reason_and_what_to_do(watched: Any) -> None:
    code, rows, printed = watched(LAYOUTS)
    assert rows.keys() == {*LAYOUTS, "selection"}
    samples = embedded_samples(3)
    for number, name in ((0, "checkpoint-10"), (4, "checkpoint-50")):
        assert rows[name]["state"] == "measured", rows[name]
        alone = measure(from_loaded(model_of(number).model, model_of(number).processor), samples, checkpoint="alone")
        assert rows[name]["mir"] == pytest.approx(alone.mir, rel=SAME_FEATURES)
    for name, words in REASONS.items():
        row = rows[name]
        assert (row["state"], row["mir"]) == ("failed", None)
        for word in words:
            assert word in row["error"]
            assert word in printed.out, "the table's reasons are printed, too"
    for name, lacks in (("checkpoint-30", "no weights file"), ("checkpoint-40", "no weights file")):
        assert f"{name}: waiting: {lacks} is there yet" in printed.err
    # What never became a checkpoint is no failure of the sweep; the adapter was one, and could not be measured.
    assert code == 5


def test_a_watch_with_unpickle_measures_shards_when_they_are_whole(watched: Any) -> None:
    code, rows, _ = watched({"checkpoint-30": fsdp_shards}, "--unpickle")
    tiny = model_of(0)
    alone = measure(from_loaded(tiny.model, tiny.processor), embedded_samples(3), checkpoint="alone")
    assert rows["checkpoint-30"]["mir"] == pytest.approx(alone.mir, rel=SAME_FEATURES)
    assert code == 0


@pytest.mark.parametrize(
    ("checkpoints", "reason"),
    [
        ({}, "no folder below"),
        ({"checkpoints": lightning}, "Lightning checkpoint"),
        ({"checkpoint-20": adapter_without_base}, "--base"),
        ({"checkpoint-30": fsdp_shards}, "--unpickle"),
        ({"checkpoint-60": damaged}, "checkpoint-60"),
    ],
    ids=lambda value: next(iter(value), "nothing") if isinstance(value, dict) else "",
)
def test_exit_code_1_comes_with_its_reason(checkpoints: dict[str, Write], reason: str, watched: Any) -> None:
    code, rows, printed = watched(checkpoints)
    assert code == 1
    assert rows["selection"] is None
    assert reason in printed.out + printed.err
