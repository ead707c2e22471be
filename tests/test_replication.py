"""The miniature replication: what is concluded from outcomes, its workers, and one whole run at a tiny size."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

from examples.replication import __main__ as command_line
from examples.replication import replicate as driver
from examples.replication.findings import (
    INDICATORS,
    Indicator,
    relation,
    relations,
    rho,
)
from examples.replication.outcomes import (
    CheckpointPlan,
    Outcome,
    as_csv,
    of_study,
    planned,
)
from examples.replication.picture import write_picture
from examples.replication.processes import results_of, workers
from examples.replication.recipe import (
    RECIPE,
    STUDIES,
    PreTraining,
    Recipe,
)
from examples.replication.replicate import Replication, replicate
from examples.replication.results_page import results_page
from mir_plugin.errors import MirError

from tolerances import HANGS

ROOT = Path(__file__).parents[1]
TINY = Recipe(
    pre_trainings=(
        PreTraining("baseline", saved_steps=(1, 3)),
        PreTraining("mlp1x", connector="mlp1x_gelu", saved_steps=(3,)),
    ),
    n_steps=3,
    batch=2,
    fine_tuning_steps=1,
    fine_tuning_batch=4,
    n_samples=6,
    n_in_context=3,
)
LOW, HIGH = Indicator("low", -1, "lower is better"), Indicator("high", 1, "higher is better")


def outcomes(scores: list[float], n_seeds: int = 1, **columns: list[float]) -> list[Outcome]:
    """A run of its own for each score; an indicator that is not given is constant."""
    plain = dict.fromkeys([one.name for one in INDICATORS], 1.0)
    rows = [plain | {name: column[place] for name, column in columns.items()} for place in range(len(scores))]
    return [
        Outcome(seed, f"run-{place}", 150, 1297, 1e-3, "mlp2x_gelu", row, score)
        for seed in range(n_seeds)
        for place, (row, score) in enumerate(zip(rows, scores, strict=True))
    ]


def of_recipe(n_seeds: int = 3) -> list[Outcome]:
    """One outcome for every checkpoint of the real recipe, MIR and score both rising."""
    found = []
    for number, plan in enumerate(planned(Path("out"), RECIPE, range(n_seeds))):
        run, values = plan.pre_training, {one.name: float(number) for one in INDICATORS}
        found.append(
            Outcome(plan.seed, run.name, plan.step, run.n_digits, run.rate, run.connector, values, 2.0 * number)
        )
    return found


def line_of(page: str, name: str) -> list[str]:
    return next([cell.strip() for cell in line.split("|")] for line in page.splitlines() if f"| {name} |" in line)


@pytest.mark.parametrize(
    ("indicator", "values", "verdict"),
    [(LOW, "falling", "yes"), (LOW, "rising", "no, the opposite"), (HIGH, "rising", "yes"), (HIGH, "flat", None)],
)
def test_the_verdict_says_whether_an_indicator_orders_scores_in_its_useful_direction(
    indicator: Indicator, values: str, verdict: str | None
) -> None:
    scores = [float(place) for place in range(12)]
    column = {"falling": scores[::-1], "rising": scores, "flat": [1.0] * 12}[values]
    found = relation(indicator, outcomes(scores, n_seeds=2, **{indicator.name: column}))
    assert found.verdict == (verdict or "no correlation exists")
    assert found.by_seed == ((found.rho,) * 2)


def test_the_correlation_is_scipy_s_with_ties_too() -> None:
    generator = np.random.default_rng(0)
    for n in (3, 8, 45):
        a, b = generator.integers(0, n, n).tolist(), generator.integers(0, 5, n).tolist()
        assert rho(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)


def test_an_indicator_without_relation_is_undecided() -> None:
    scores = [1.0, 9.0, 2.0, 8.0, 3.0, 7.0, 4.0, 6.0]
    found = relation(LOW, outcomes(scores, low=[float(place) for place in range(8)]))
    assert found.verdict == "undecided"
    assert found.low is not None
    assert found.low < found.rho < found.high  # type: ignore[operator]


def test_the_interval_is_wider_where_checkpoints_belong_to_few_runs() -> None:
    """Twelve checkpoints, related the same way; in one case each is a run, in the other three runs have four each."""
    scores = [float(place) for place in range(12)]
    column = [3.0, 1.0, 2.0, 0.0, 7.0, 5.0, 6.0, 4.0, 11.0, 9.0, 10.0, 8.0]
    single = outcomes(scores, high=column)
    grouped = [dataclasses.replace(one, run=f"run-{place // 4}") for place, one in enumerate(single)]
    apart, together = relation(HIGH, single), relation(HIGH, grouped)
    assert apart.rho == together.rho
    assert apart.low is not None
    assert together.low is not None
    assert together.low < apart.low - 0.1


def test_checkpoints_without_an_indicator_do_not_count_for_it() -> None:
    rows = outcomes([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], high=[1.0, 2.0, 3.0, 4.0, 5.0, 0.0])
    values = dict(rows[-1].indicators)
    del values["high"]
    rows[-1] = dataclasses.replace(rows[-1], indicators=values)
    assert (relation(HIGH, rows).n, relation(HIGH, rows).rho) == (5, pytest.approx(1.0))


def test_studies_compare_the_baseline_with_runs_that_differ_in_one_thing() -> None:
    names = {study.name: [f"{o.run} {o.step}" for o in of_study(study, of_recipe(1), RECIPE)] for study in STUDIES}
    assert names == {
        "training steps": [f"baseline {step}" for step in (2, 8, 20, 50, 100, 150)],
        "amount of data": ["baseline 150", "digits-10 150", "digits-40 150", "digits-160 150"],
        "learning rate": [f"{run} 150" for run in ("baseline", "rate-1e-4", "rate-3e-4", "rate-3e-3", "rate-1e-2")],
        "connector": ["baseline 150", "mlp1x 150", "mlp4x 150"],
    }
    baseline = RECIPE.pre_trainings[0]
    for run in RECIPE.pre_trainings[1:]:
        assert sum(getattr(run, f) != getattr(baseline, f) for f in ("n_digits", "rate", "connector")) == 1, run


def test_the_page_says_what_the_numbers_say(tmp_path: Path) -> None:
    rows = of_recipe()
    page = results_page(Replication(RECIPE, tuple(rows), 12.0, 2), relations(rows))
    assert "45 checkpoints of the micro LLaVA, 3 seeds" in page
    assert (
        "true captions: lower MIR goes with **lower** scores, the opposite of what the paper finds (rho +1.00" in page
    )
    assert line_of(page, "mir")[3:8] == ["low", "+1.00", "+1.00 to +1.00", "+1.00 +1.00 +1.00", "no, the opposite"]
    assert line_of(page, "in_context_accuracy")[-2] == "yes"
    assert line_of(page, "training steps")[-2] == "no, the opposite"
    assert line_of(page, "training steps")[3] == "step of pre-training: 2 8 20 50 100 150"
    assert len(re.findall(r"^\| [012] \|", page, flags=re.MULTILINE)) == 45
    assert RECIPE.fingerprint in page

    turned = [dataclasses.replace(one, score=-one.score) for one in rows]
    other = results_page(Replication(RECIPE, tuple(turned), 12.0, 2), relations(turned))
    assert "true captions: lower MIR goes with higher scores, as the paper finds (rho -1.00" in other
    assert line_of(other, "training steps")[-2] == "yes"


def test_every_number_is_in_the_table() -> None:
    rows = outcomes([25.0, 50.0], mir=[2.5, 2.25])
    header, *lines = [line.split(",") for line in as_csv(rows).splitlines()]
    assert [line[header.index("mir")] for line in lines] == ["2.5", "2.25"]
    assert [line[-1] for line in lines] == ["25.0", "50.0"]


def test_the_picture_is_the_same_for_the_same_numbers(tmp_path: Path) -> None:
    rows = of_recipe()
    replication, found = Replication(RECIPE, tuple(rows), 1.0, 2), relations(rows)
    for name in ("a.png", "b.png"):
        write_picture(replication, found, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_picture_that_cannot_be_drawn_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = of_recipe()

    def cut_short(figure: Figure, path: Path, **_: Any) -> None:
        path.write_bytes(b"half of a picture")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", cut_short)
    with pytest.raises(MirError, match=r"cannot write .*replication\.png: no space left"):
        write_picture(Replication(RECIPE, tuple(rows), 1.0, 2), relations(rows), tmp_path / "replication.png")
    assert not list(tmp_path.iterdir())


def test_the_readme_names_the_recipe_that_is_there() -> None:
    assert f"`{RECIPE.fingerprint}`" in (ROOT / "examples" / "replication" / "README.md").read_text()


def test_another_recipe_s_folder_and_a_folder_lmms_eval_cannot_take_are_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({"fingerprint": "0123456789abcdef"}))
    with pytest.raises(MirError, match=f"another recipe \\(0123456789abcdef; this one is {TINY.fingerprint}\\)"):
        replicate(tmp_path, recipe=TINY)
    with pytest.raises(MirError, match="no path with a comma"):
        replicate(tmp_path / "a,b", recipe=TINY)


def test_workers_are_silent_and_an_error_of_theirs_reaches_the_caller(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with workers(2, tmp_path) as executor:
        assert list(results_of(executor, [(print, ("told by a worker",)), (print, ("and another",))])) == [None, None]
        with pytest.raises(ZeroDivisionError):
            list(results_of(executor, [(divmod, (1, 0))]))
    assert "told by a worker" in "".join(path.read_text() for path in tmp_path.glob("worker-*.log"))
    assert "told by a worker" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_started_them(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, time\n"
        "from pathlib import Path\n"
        "from examples.replication.processes import results_of, workers\n"
        "if __name__ == '__main__':\n"
        f"    with workers(1, Path({str(tmp_path)!r})) as executor:\n"
        "        [pid] = results_of(executor, [(os.getpid, ())])\n"
        "        waiting = executor.submit(time.sleep, 600)\n"
        "        print(pid, flush=True)\n"
        "        waiting.result()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)
    parent.send_signal(number)
    parent.wait(timeout=HANGS)
    deadline = time.monotonic() + HANGS
    while time.monotonic() < deadline and _is_running(worker):
        time.sleep(0.05)
    assert not _is_running(worker)


def _is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie: who adopts it may never ask for its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class _Here(Executor):
    """Runs every call at once, in this process."""

    def submit(self, call: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call(*args, **kwargs))
        return future


class Killed(BaseException):
    """Stands for a kill: nothing in the product catches it."""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work is done in this process, which afterwards computes as it did before."""

    @contextmanager
    def one_worker(n: int, log_dir: Path) -> Iterator[Executor]:
        yield _Here()

    monkeypatch.setattr(driver, "workers", one_worker)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    n_threads = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(n_threads)


@pytest.mark.slow
def test_a_killed_replication_goes_on_and_ends_with_page_picture_and_report(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from examples.replication import work

    studied: list[str] = []
    original = work.study_checkpoint

    def killed_at_the_second(recipe: Recipe, plan: CheckpointPlan) -> Outcome:
        if len(studied) == 1:
            studied.append("killed")
            raise Killed
        studied.append(plan.results_dir.name)
        return original(recipe, plan)

    monkeypatch.setattr(work, "study_checkpoint", killed_at_the_second)
    with pytest.raises(Killed):
        replicate(tmp_path, n_seeds=1, recipe=TINY, tell=lambda _: None)
    first = tmp_path / "checkpoints" / "baseline-seed-0" / "checkpoint-1"
    written = {path: path.stat().st_mtime_ns for path in (*first.iterdir(), *tmp_path.rglob("outcome.json"))}
    assert sum(path.name == "outcome.json" for path in written) == 1
    lost = tmp_path / "checkpoints" / "baseline-seed-0" / "checkpoint-3"
    before = (lost / "mm_projector.bin").read_bytes()
    for path in lost.iterdir():
        path.unlink()
    lost.rmdir()

    monkeypatch.setattr(driver.replicate, "__kwdefaults__", {**driver.replicate.__kwdefaults__, "recipe": TINY})
    command_line.main(["--out", str(tmp_path), "--seeds", "1"])
    told = capsys.readouterr().out
    assert "1 of 3 checkpoints were finished before" in told
    assert set(re.findall(r"^[12]/2 seed 0, ([\w-]+), step 3: MIR", told, flags=re.MULTILINE)) == {"baseline", "mlp1x"}
    assert studied[1:] == ["killed", "baseline-seed-0-step-3", "mlp1x-seed-0-step-3"]
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert (lost / "mm_projector.bin").read_bytes() == before

    found = {path.parent.name: Outcome.load(path) for path in tmp_path.rglob("outcome.json")}
    one = found["baseline-seed-0-step-1"]
    assert {*one.indicators, *one.not_computed} >= {indicator.name for indicator in INDICATORS}
    assert "samples; 20 are needed" in one.not_computed["mutual_information_sum"]
    page = (tmp_path / "RESULTS.md").read_text()
    assert "`mutual_information_sum` could not be computed for 3 of 3 checkpoints" in page
    assert f"| {one.score:.1f} |\n| 0 | baseline | 3 |" in page
    assert (tmp_path / "replication.png").stat().st_size > 10_000
    leaderboard = openpyxl.load_workbook(tmp_path / "report" / "report.xlsx")["Leaderboard"]
    cells = {str(cell) for row in leaderboard.iter_rows(values_only=True) for cell in row}
    assert {"baseline, step 1, seed 0", "baseline, step 3, seed 0", "mlp1x, step 3, seed 0"} <= cells


@pytest.mark.slow
def test_frozen_parts_stay_frozen_and_every_checkpoint_starts_fine_tuning_from_them(here: None) -> None:
    from examples.replication import training, work

    parts, pictures = work.workshop()
    before = [tensor.clone() for tensor in parts.language_model.state_dict().values()]
    stage = training.Stage(n_steps=2, batch=2, rate=1e-2, seed=0)
    *_, (_, _, projector) = training.train_projector(parts, pictures.first(4), stage)
    tuned, _ = training.finetune(parts, projector, pictures.first(4), stage)
    after = list(parts.language_model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, tuned.language_model.state_dict().values(), strict=True))


def test_command_line_options_reach_the_replication(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[dict[str, Any]] = []

    def stop(out: Path, **options: Any) -> None:
        asked.append({"out": out, "n_seeds": options["n_seeds"], "n_processes": options["n_processes"]})
        raise KeyboardInterrupt

    monkeypatch.setattr(command_line, "replicate", stop)
    with pytest.raises(KeyboardInterrupt):
        command_line.main(["--out", str(tmp_path), "--seeds", "2", "--processes", "1"])
    assert asked == [{"out": tmp_path, "n_seeds": 2, "n_processes": 1}]
