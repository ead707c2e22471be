"""Models of one's own class, measured in loops of one's own and in Lightning; trackers of the Trainer."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import tiny_llava, trainer_of

from examples.training.small_vlm import SmallVLM, encode
from mir_plugin import MIRCallback, MirError, OwnModel, embedded_samples, measure_live, metrics_of

from tolerances import SAME_FEATURES

pytestmark = pytest.mark.slow


def test_the_plain_loop_is_measured_as_it_trains() -> None:
    from examples.training.plain_loop import main

    first, last = main()
    assert first.engine["path"] == "breadth-first"
    assert first.mir != last.mir
    assert first.family == "SmallVLM"
    assert first.inputs["n_vision_tokens"] == 8 * 16


def test_lightning_logs_the_values(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="lightning is not installed")
    from examples.training.lightning_callback import main

    measured, trainer = main(default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False)
    assert list(measured.results) == [2, 4]
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("mir/")}
    assert logged == pytest.approx(metrics_of(measured.results[4]), rel=1e-6)  # Lightning keeps float32


def test_hidden_states_are_those_of_the_model() -> None:
    from mir_plugin import modality_integration_rate

    torch.manual_seed(0)
    model, samples = SmallVLM(), embedded_samples(4)
    states: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for sample in samples.samples:
        inputs, vision, text = encode([sample])
        hooked = [*list(model.decoder.blocks)[:-1], model.decoder.norm]
        handles = [
            module.register_forward_hook(
                lambda _, __, out, k=k, v=vision, t=text: states.setdefault(k, []).append((out[v], out[t]))
            )
            for k, module in enumerate(hooked)
        ]
        with torch.no_grad():
            model(**inputs)
        for handle in handles:
            handle.remove()
    expected = modality_integration_rate(
        [torch.cat([v for v, _ in one]) for one in states.values()],
        [torch.cat([t for _, t in one]) for one in states.values()],
    )
    found = measure_live(model, None, samples, adapter=encode)
    assert found.mir == pytest.approx(expected.item(), rel=SAME_FEATURES)
    assert (
        measure_live(model, None, samples, adapter=OwnModel(encode, "decoder.blocks", "decoder.norm")).mir == found.mir
    )


def test_what_does_not_fit_is_told() -> None:
    model, samples = SmallVLM(), embedded_samples(2)
    with pytest.raises(MirError, match=r"decoder\.layers"):
        measure_live(model, None, samples, adapter=OwnModel(encode, layers="decoder.layers"))
    with pytest.raises(MirError, match="must not overlap"):
        measure_live(model, None, samples, adapter=lambda s: (encode(s)[0], encode(s)[1], encode(s)[1]))
    with pytest.raises(MirError, match=r"NoneType.*adapter="):
        measure_live(model, None, samples)


def read_tensorboard(folder: Path) -> dict[str, float]:
    from test_monitor import scalars

    return {tag: value for step, tag, value in scalars(folder) if step == 1}


def read_mlflow(folder: Path) -> dict[str, float]:
    import mlflow

    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return dict(runs[-1].data.metrics)


def read_trackio(folder: Path) -> dict[str, float]:
    import sqlite3

    [path] = (folder / "trackio").glob("*.db")
    with sqlite3.connect(path) as connection:
        import json

        rows = connection.execute("SELECT metrics FROM metrics").fetchall()
    return {name: value for (row,) in rows for name, value in json.loads(row).items()}


def read_wandb(folder: Path) -> dict[str, float]:
    """What the run that is still open tells of itself; its file has no public reader."""
    import wandb

    assert wandb.run is not None
    return dict(wandb.run.summary)


def read_swanlab(folder: Path) -> dict[str, float]:
    """A folder of values for each name, numbered in the order in which the log names them."""
    import json
    import re

    [log] = folder.rglob("*.swanlab")
    names = list(dict.fromkeys(name.decode() for name in re.findall(rb"train/[a-z_0-9/]+", log.read_bytes())))
    values = {}
    for path in log.parent.glob("logs/*/1000.log"):
        values[int(path.parent.name)] = json.loads(path.read_text().splitlines()[0])["data"]
    return {names[number - 1]: value for number, value in sorted(values.items()) if number <= len(names)}


@pytest.mark.parametrize(
    ("tracker", "module", "read", "name"),
    [
        ("tensorboard", "tensorboardX", read_tensorboard, "train/mir/mir"),
        ("wandb", "wandb", read_wandb, "train/mir/mir"),
        ("mlflow", "mlflow", read_mlflow, "mir/mir"),
        ("trackio", "trackio", read_trackio, "train/mir/mir"),
        ("swanlab", "swanlab", read_swanlab, "train/mir/mir"),
    ],
)
def test_trackers_of_the_trainer_get_the_values(
    tracker: str, module: str, read: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    monkeypatch.chdir(tmp_path)
    for variable, value in {
        "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true", "SWANLAB_MODE": "local",
        "SWANLAB_LOG_DIR": str(tmp_path), "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }.items():  # fmt: skip
        monkeypatch.setenv(variable, value)
    if tracker == "swanlab":  # transformers 5.23 asks for a run, and SwanLab 0.10 raises where there is none
        import swanlab

        swanlab.init(mode="local")
    trainer = trainer_of(tiny_llava(), tmp_path / "out", report_to=tracker, max_steps=1, run_name="mir")
    callback = MIRCallback(trainer, embedded_samples(2), every_steps=1)
    trainer.add_callback(callback)
    trainer.train()
    if tracker == "swanlab":
        swanlab.finish()
    found = read(tmp_path)
    if tracker == "wandb":
        import wandb

        wandb.finish()
    assert found[name] == pytest.approx(callback.history[1].mir, rel=1e-6)
