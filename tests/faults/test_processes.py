"""Kills, full and read-only disks, several runs in one folder, clocks that go back, processes that die."""

from __future__ import annotations

import csv
import functools
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from faults.battery import Bench, Case, Outcome, Refused, Right, each
from faults.children import Child, Ended, all_of, files_below, mir

from golden_data import require_golden
from tolerances import FORWARD, HANGS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forked processes with torch loaded need Linux"),
]

Work = Callable[[], object]
VOLATILE = ("timing", "peak_memory", "created", "engine")
NOBODY = 65534


def samples() -> tuple[object, ...]:
    folder = require_golden("llava/llava_full") / "samples"
    return "--images", folder, "--texts", folder, "--n-samples", 3, "--device", "cpu"


def model() -> Path:
    return require_golden("llava/llava_full") / "model"


def run(*options: object) -> Work:
    return mir("run", model(), *samples(), "--out", "out", *options)


def depth_first() -> None:
    """As for a model whose layers cannot be replayed: features go through the temporary file."""
    import dataclasses

    import mir_plugin.measurement.measure

    check = mir_plugin.measurement.measure.check_replay
    mir_plugin.measurement.measure.check_replay = lambda *a: dataclasses.replace(check(*a), path="depth-first")


def sweep() -> Work:
    runs = Path("runs")
    runs.mkdir(exist_ok=True)
    for step in (1, 2, 3):
        if not (runs / f"checkpoint-{step}").exists():
            shutil.copytree(model(), runs / f"checkpoint-{step}")  # links would be one checkpoint
    return mir(
        "sweep", "runs/checkpoint-*", "--vision-tower", model().parent / "vision_tower", *samples(), "--out", "out"
    )


def report() -> Work:
    rows = [f"model-{n},{50 + n}.5,{1400 + n},{1 + n / 10}" for n in range(6)]
    Path("scores.csv").write_text("\n".join(["checkpoint,MMStar,MME,MIR", *rows]) + "\n")
    return mir("report", "scores.csv", "--out", "out")


COMMANDS: dict[str, Callable[[], Work]] = {
    "run": run,
    "run of a model that spools": lambda: all_of(depth_first, run()),
    "sweep": sweep,
    "report": report,
}


def in_place(work: Work, place: Path) -> Work:
    """The same in an own working directory, with an own folder for temporary files."""

    def there() -> None:
        (place / "tmp").mkdir(parents=True, exist_ok=True)
        os.chdir(place)
        tempfile.tempdir = str(place / "tmp")
        work()

    return there


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have every module loaded that the commands use, before anything is forked."""
    folder = tmp_path_factory.mktemp("warm")
    before = Path.cwd()
    os.chdir(folder)
    try:
        bench = Bench(folder)
        assert bench.mir("run", model(), *samples(), "--out", "run").exit_code == 0
        assert bench.mir("report", "run", "--out", "report").exit_code == 0
    finally:
        os.chdir(before)


UNDISTURBED: dict[Callable[[], Work], tuple[Path, float]] = {}


class Disturbed:
    """A command in a folder of its own, and the same undisturbed, which is done once."""

    def __init__(self, command: Callable[[], Work], bench: Bench) -> None:
        self._command, self.bench = command, bench
        self.place, self.n_places = bench.folder / "disturbed", 0
        if command not in UNDISTURBED:
            place = bench.folder / "undisturbed"
            whole = self.done(place)
            assert whole.code == 0, whole.printed
            UNDISTURBED[command] = place, whole.seconds
        self.reference, self.seconds = UNDISTURBED[command]

    def start(self, place: Path | None = None, before: Work = lambda: None) -> Child:
        place = place or self.place
        (place / "tmp").mkdir(parents=True, exist_ok=True)
        os.chdir(place)
        work = self._command()
        os.chdir(self.bench.folder)
        return Child(in_place(all_of(before, work), place))

    def done(self, place: Path | None = None) -> Ended:
        return self.start(place).ended()

    def next_place(self) -> None:
        self.n_places += 1
        self.place = self.bench.folder / f"disturbed-{self.n_places}"

    def holds_the_same(self) -> None:
        """The disturbed folder holds what the undisturbed one does, and the temporary folder nothing."""
        assert files_below(self.place / "tmp") == []
        assert files_below(self.place / "out") == files_below(self.reference / "out")
        for name in files_below(self.reference / "out"):
            ours, other = self.place / "out" / name, self.reference / "out" / name
            if other.is_file() and not name.startswith("report/"):  # a sweep's report tells dates
                assert content(ours) == content(other), name


def content(path: Path) -> Any:
    """What a file says, without times."""
    if path.name in ("mir.json", "sweep.json"):
        document = json.loads(path.read_text())
        for row in document.get("checkpoints", []):
            del row["seconds"], row["state"]
        document.get("fingerprints", {}).pop("request", None)  # it tells the place, and so do these
        document.pop("place", None)  # and folders: each command ran in its own
        document.get("facts", {}).pop("source_folders", None)
        return {key: value for key, value in document.items() if key not in VOLATILE}
    if path.name == "sweep.csv":
        rows = list(csv.DictReader(path.open()))
        return [{k: v for k, v in row.items() if k not in ("seconds", "state")} for row in rows]
    if path.name == "sweep.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        last = {line["checkpoint"]: line for line in lines}  # a failed attempt has its own line, where one found room
        return [{k: v for k, v in line.items() if k not in ("time", "seconds", "state")} for line in last.values()]
    if path.suffix == ".xlsx":
        book = openpyxl.load_workbook(path)
        return {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book}
    return path.read_bytes()


def kills(command: str, number: signal.Signals, n_moments: int) -> Callable[[Bench], Outcome]:
    """Kill at random moments, do the command again, and hold the result against the undisturbed one."""

    def act(bench: Bench) -> Outcome:
        disturbed = Disturbed(COMMANDS[command], bench)
        moments = random.Random(f"{command} {number}")
        n_killed = n_tries = 0
        while n_killed < n_moments:
            n_tries += 1
            assert n_tries < 20 * n_moments + 50, "most kills come too late"
            disturbed.next_place()
            child = disturbed.start()
            child.kill(number, after=moments.uniform(0.0, disturbed.seconds))
            ended = child.ended()
            n_killed += ended.code != 0
            if ended.code == 0:  # the kill came too late: the machine has less to do than before
                disturbed.seconds = ended.seconds
            if number != signal.SIGKILL:
                assert ended.code in (0, 128 + number, -number), ended
                assert "Traceback" not in ended.printed, ended.printed
                left = files_below(disturbed.place)
                assert not [name for name in left if name.endswith(".part") or name.startswith("tmp/")], left
            again = disturbed.done()
            assert again.code == 0, again.printed
            disturbed.holds_the_same()
        times = "1 moment" if n_moments == 1 else f"{n_moments} moments"
        return Outcome(0, value=f"killed at {times}, done again: the undisturbed result, no stray file")

    return act


said = Right(lambda value, _: str(value))


# Three signals make fifty moments and more of each command.
MOMENTS = {"run": 17, "run of a model that spools": 6, "sweep": 17, "report": 17}


def kill_case(command: str, number: signal.Signals, n_moments: int, full: bool) -> Case:
    return Case(
        f"{command}, {number.name}" + (f", {n_moments} moments" if full else ""),
        f"`mir {command}` gets {number.name} at a random moment" + (f", {n_moments} times" if full else ""),
        kills(command, number, n_moments),
        said,
        full=full,
    )


KILLS = [
    kill_case(command, number, MOMENTS[command] if full else 1, full)
    for full in (False, True)
    for command in COMMANDS
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
]


@each(KILLS)
def test_a_killed_command_done_again_gives_the_undisturbed_result(case: Case, bench: Bench) -> None:
    bench.hold("processes", case)


# ---- disks -----------------------------------------------------------------------------------------------------------


def failing(command: str, before: Work, again: Work = lambda: None) -> Callable[[Bench], Outcome]:
    """The command where something fails (``before``, in its process); then again where it does not."""

    def act(bench: Bench) -> Outcome:
        disturbed = Disturbed(COMMANDS[command], bench)
        disturbed.next_place()
        disturbed.place.mkdir()
        ended = disturbed.start(before=before).ended()
        assert ended.code not in (0, -signal.SIGXFSZ), ended
        left = files_below(disturbed.place)
        assert not [name for name in left if name.endswith(".part") or name.startswith("tmp/")], left
        again()
        after = disturbed.done()
        assert after.code == 0, after.printed
        disturbed.holds_the_same()
        return Outcome(ended.code, err=ended.printed[ended.printed.find("mir: ") :].replace(f"{disturbed.place}/", ""))

    return act


def at_most(n_bytes: int) -> Work:
    """No file may become longer: the kernel refuses what is more, as a full disk does."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    return limit


def read_only() -> None:
    """A folder that belongs to somebody else."""
    if os.geteuid():
        Path.cwd().chmod(0o500)
    else:
        Path(tempfile.gettempdir()).chmod(0o777)
        os.seteuid(NOBODY)


def becomes_writable() -> None:
    for place in Path.cwd().glob("disturbed*"):
        place.chmod(0o700)


def a_file_is_there() -> None:
    Path("out").write_text("a file, not a folder")


def no_file_is_there() -> None:
    for place in Path.cwd().glob("disturbed*"):
        (place / "out").unlink()


def a_folder_is_there(name: str) -> Work:
    return lambda: Path("out", name).mkdir(parents=True)


def no_folder_is_there(name: str) -> Work:
    return lambda: [path.rmdir() for path in Path.cwd().glob(f"disturbed*/out/{name}")]


DISK_CASES = (
    Case("disk full at the journal", "`mir run`: files of 0 bytes at most", failing("run", at_most(0)),
         Refused("mir.partial.jsonl", "File too large", "--out")),
    Case("disk full at layer 1", "`mir run`: files of 300 bytes at most", failing("run", at_most(300)),
         Refused("mir.partial.jsonl", "File too large", "--out")),
    Case("disk full at layer 2", "`mir run`: files of 1 kB at most", failing("run", at_most(1000)),
         Refused("mir.partial.jsonl", "File too large", "--out")),
    Case("disk full at the result", "`mir run`: files of 5 kB at most", failing("run", at_most(5000)),
         Refused("mir.json", "File too large", "--out")),
    Case("disk full at the spool", "`mir run` of a model that spools: files of 100 kB at most",
         failing("run of a model that spools", at_most(100_000)), Refused("temporary file", "tmp", "TMPDIR")),
    Case("disk full at the sweep's table", "`mir sweep`: files of 100 bytes at most", failing("sweep", at_most(100)),
         Refused("sweep.json", "File too large", "--out")),
    Case("disk full at the workbook", "`mir report`: files of 3 kB at most", failing("report", at_most(3000)),
         Refused("report.xlsx", "File too large", "--out")),
    Case("disk full at the page", "`mir report`: files of 100 kB at most", failing("report", at_most(100_000)),
         Refused("report.html", "File too large", "--out")),
    *(
        Case(f"read-only, {command}", f"`mir {command}` may not write where it is told to",
             failing(command, read_only, becomes_writable), Refused("out", "Permission denied", "--out"))
        for command in ("run", "sweep", "report")
    ),
    *(
        Case(f"file for a folder, {command}", f"`mir {command} --out` names a file",
             failing(command, a_file_is_there, no_file_is_there), Refused("out", "File exists", "--out"))
        for command in ("run", "sweep", "report")
    ),
    Case("folder for mir.json", "a folder stands where `mir run` writes mir.json",
         failing("run", a_folder_is_there("mir.json"), no_folder_is_there("mir.json")),
         Refused("mir.json", "Is a directory", "--out")),
    Case("folder for a workbook", "a folder stands where `mir report` writes report.xlsx",
         failing("report", a_folder_is_there("report.xlsx"), no_folder_is_there("report.xlsx")),
         Refused("report.xlsx", "Is a directory", "--out")),
)  # fmt: skip


@each(DISK_CASES)
def test_what_cannot_be_written_is_one_message_and_nothing_is_lost(case: Case, bench: Bench) -> None:
    bench.hold("processes", case)


def on_a_full_tmpfs(command: str, size: str, again: str = "1m") -> Callable[[Bench], Outcome]:
    """The same with a real file system that is full, in an own mount."""

    def act(bench: Bench) -> Outcome:
        disturbed = Disturbed(COMMANDS[command], bench)
        disturbed.next_place()
        disk = disturbed.place / "out"
        disk.mkdir(parents=True)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True)
        if mounted.returncode:
            pytest.skip("mounting a tmpfs needs rights")
        try:
            (disk / "ballast").write_bytes(bytes(disk.stat().st_blksize))
            ended = disturbed.done()
            (disk / "ballast").unlink()
            subprocess.run(["mount", "-o", f"remount,size={again}", disk], check=True)
            after = disturbed.done()
            assert after.code == 0, after.printed
            disturbed.holds_the_same()
        finally:
            subprocess.run(["umount", disk], check=True)
        return Outcome(ended.code, err=ended.printed[ended.printed.find("mir: ") :])

    return act


def on_a_read_only_tmpfs(command: str) -> Callable[[Bench], Outcome]:
    """A file system mounted read-only, which stops a superuser as well."""

    def act(bench: Bench) -> Outcome:
        disturbed = Disturbed(COMMANDS[command], bench)
        disturbed.next_place()
        disk = disturbed.place / "out"
        disk.mkdir(parents=True)
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=8m", "tmpfs", disk], capture_output=True)
        if mounted.returncode:
            pytest.skip("mounting a tmpfs needs rights")
        try:
            ended = disturbed.done()
            subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
            after = disturbed.done()
            assert after.code == 0, after.printed
            disturbed.holds_the_same()
        finally:
            subprocess.run(["umount", disk], check=True)
        return Outcome(ended.code, err=ended.printed[ended.printed.find("mir: ") :])

    return act


def prints_to_a_full_disk(bench: Bench) -> Outcome:
    disturbed = Disturbed(lambda: run("--json"), bench)
    disturbed.next_place()

    def full_output() -> None:
        sys.stdout = open("/dev/full", "w")  # noqa: SIM115, PTH123 - lives as long as the child

    ended = disturbed.start(before=full_output).ended()
    again = disturbed.done()
    disturbed.holds_the_same()
    assert json.loads(again.printed[again.printed.index("{") :])["mir"] is not None
    return Outcome(ended.code, err=ended.printed[ended.printed.find("mir: ") :])


FULL_CASES = (
    Case("full tmpfs", "`mir run` into a file system of two pages, one of them taken",
         on_a_full_tmpfs("run", "8k"), Refused("mir.json", "No space left on device", "--out")),
    Case("full tmpfs, sweep", "`mir sweep` into a file system of six pages, one of them taken",
         on_a_full_tmpfs("sweep", "24k"), Refused("out", "No space left on device", "--out")),
    Case("full tmpfs, report", "`mir report` into a file system of 40 kB", on_a_full_tmpfs("report", "40k", "8m"),
         Refused("report", "No space left on device", "--out")),
    *(
        Case(f"read-only file system, {command}", f"`mir {command}` into a file system that is mounted read-only",
             on_a_read_only_tmpfs(command), Refused("out", "--out"))
        for command in ("run", "sweep", "report")
    ),
    Case("full standard output", "`mir run --json > /dev/full`", prints_to_a_full_disk,
         Refused("No space left on device")),
)  # fmt: skip


@each(FULL_CASES)
def test_a_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(case: Case, bench: Bench) -> None:
    bench.hold("processes", case)


# ---- two at once, and clocks -----------------------------------------------------------------------------------------


def pausing_after_the_first_layer() -> None:
    """In a child: finish one layer, say so with a file, and wait for another."""
    from mir_plugin.measurement.resume import Journal

    add = Journal.add

    def paused(journal: Journal, layer: object) -> None:
        add(journal, layer)  # type: ignore[arg-type]
        Path("paused").touch()
        while not Path("go").exists():
            time.sleep(0.01)

    Journal.add = paused  # type: ignore[method-assign]


def two_at_once(command: str, second: Callable[[], Work]) -> Callable[[Bench], Outcome]:
    """A second one while the first is in the middle; the first must not notice."""

    def act(bench: Bench) -> Outcome:
        disturbed = Disturbed(COMMANDS[command], bench)
        disturbed.next_place()
        first = disturbed.start(before=pausing_after_the_first_layer)
        while not (disturbed.place / "paused").exists():
            time.sleep(0.01)
        other = Child(in_place(second(), disturbed.place)).ended()
        (disturbed.place / "go").touch()
        ended = first.ended()
        assert ended.code == 0, ended.printed
        disturbed.holds_the_same()
        return Outcome(other.code, err=other.printed[other.printed.find("mir: ") :])

    return act


def from_another_time(seconds: float) -> Callable[[Bench], Outcome]:
    """Files that a killed run left are dated as by a clock that was wrong; then it goes on."""

    def act(bench: Bench) -> Outcome:
        disturbed = Disturbed(COMMANDS["run"], bench)
        disturbed.next_place()
        child = disturbed.start(before=pausing_after_the_first_layer)
        while not (disturbed.place / "paused").exists():
            time.sleep(0.01)
        child.kill(signal.SIGKILL)
        child.ended()
        (disturbed.place / "out" / ".mir.json.0123.part").write_text("half")
        for path in (disturbed.place / "out").iterdir():
            os.utime(path, (time.time() + seconds,) * 2)
        again = disturbed.done()
        assert again.code == 0, again.printed
        assert "1 layers were finished by an earlier run" in again.printed
        disturbed.holds_the_same()
        return Outcome(0, value="the finished layer is kept, the half-written file removed, the result the same")

    return act


def clock_goes_back(bench: Bench) -> Outcome:
    """Every look at the wall clock shows an hour less than the last."""
    disturbed = Disturbed(COMMANDS["sweep"], bench)
    disturbed.next_place()

    def backwards() -> None:
        now = iter(range(2_000_000_000, 0, -3600))
        time.time = lambda: float(next(now))

    ended = disturbed.start(before=backwards).ended()
    assert ended.code == 0, ended.printed
    disturbed.holds_the_same()
    timing = json.loads((disturbed.place / "out" / "runs_checkpoint-2" / "mir.json").read_text())["timing"]
    assert all(0 <= seconds < 3600 for seconds in timing.values()), timing
    return Outcome(0, value="the same results, and no negative duration")


def beside_a_report(bench: Bench) -> Outcome:
    from mir_plugin.files.atomic import only_writer

    work = report()
    with only_writer(Path("out")):  # as the first holds it while it writes
        other = Child(work).ended()
    assert files_below(bench.folder) == ["scores.csv"]
    return Outcome(other.code, err=other.printed[other.printed.find("mir: ") :])


FOLDER_CASES = (
    Case("two runs", "a second `mir run` into the folder of the first", two_at_once("run", run),
         Refused("out", "another run", "Wait")),
    Case("two different runs", "`mir run --outliers none` into the folder of a run with replacement",
         two_at_once("run", lambda: run("--outliers", "none")), Refused("out", "another run", "Wait")),
    Case("force beside a run", "`mir run --force` into the folder of a run", two_at_once("run", lambda: run("--force")),
         Refused("out", "another run", "Wait")),
    Case("two sweeps", "a second `mir sweep` into the folder of the first",
         two_at_once("sweep", lambda: mir("sweep", model(), *samples(), "--out", "out")),
         Refused("out", "another run", "Wait")),
    Case("run beside a sweep", "`mir run` into the folder of a checkpoint that a sweep is measuring",
         two_at_once("sweep", lambda: mir("run", model(), *samples(), "--out", "out/runs_checkpoint-1")),
         Refused("runs_checkpoint-1", "another run", "Wait")),
    Case("two reports", "a second `mir report` into the folder of the first", beside_a_report,
         Refused("out", "another run", "Wait")),
    Case("files from the future", "what a killed run left is dated a day ahead: the clock was set back",
         from_another_time(86_400), said),
    Case("files from 1970", "what a killed run left is dated 1970", from_another_time(-time.time()), said),
    Case("clock goes back", "every look at the clock during `mir sweep` shows an hour less", clock_goes_back, said),
)  # fmt: skip


@each(FOLDER_CASES)
def test_one_run_at_a_time_writes_a_folder_whatever_the_clock_says(case: Case, bench: Bench) -> None:
    bench.hold("processes", case)


# ---- several processes -----------------------------------------------------------------------------------------------


def launched(size: int, place: Path) -> list[Child]:
    """``mir run`` in several gloo processes, as a launcher starts them."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]

    def process(rank: int) -> None:
        os.environ.update(
            WORLD_SIZE=str(size), RANK=str(rank), LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip
        run()()

    return [Child(in_place(functools.partial(process, rank), place)) for rank in range(size)]


def one_dies(size: int, victim: int, number: signal.Signals, n_moments: int) -> Callable[[Bench], Outcome]:
    """One process is killed once all have joined; then all start again without harm."""

    def act(bench: Bench) -> Outcome:
        moments = random.Random(f"{size} {victim} {number}")
        told = n_tries = 0
        while told < n_moments:
            n_tries += 1
            assert n_tries < 20 * n_moments, "most kills come too late"
            place = bench.folder / f"place-{n_tries}"
            children = launched(size, place)
            while not (place / "out" / "mir.partial.jsonl").exists():
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 0.5 / n_tries))
            children[victim].kill(number)
            ended = [child.ended() for child in children]
            others = [one for rank, one in enumerate(ended) if rank != victim]
            if ended[victim].code == 0 or all(one.code == 0 for one in others):
                continue  # the kill came too late
            for one in others:
                assert one.code != 0, one
                assert "Traceback" not in one.printed, one.printed
                assert "lost its connection" in one.printed or f"process {victim} of {size} failed" in one.printed, one
            told += 1
            again = [child.ended() for child in launched(size, place)]
            assert [one.code for one in again] == [0] * size, again
            assert files_below(place) == ["out", "out/mir.json", "tmp"]
        return Outcome(0, value="the others end and say that they lost it; done again: right")

    return act


DYING = [
    Case(
        f"process {victim} of {size}, {number.name}" + (f", {n} moments" if full else ""),
        f"one of {size} gloo processes (rank {victim}) gets {number.name}" + (f", at {n} moments" if full else ""),
        one_dies(size, victim, number, n), said, full=full,
    )
    for full, n, kinds in (
        (False, 2, [(2, 1, signal.SIGKILL)]),
        (True, 6, [(2, 0, signal.SIGKILL), (3, 1, signal.SIGKILL), (2, 1, signal.SIGTERM), (2, 1, signal.SIGINT)]),
    )
    for size, victim, number in kinds
]  # fmt: skip


def dies_before_joining(bench: Bench) -> Outcome:
    """Under a launcher, which notices; without one the others wait for the missing process until a timeout."""
    program = bench.folder / "one_dies.py"
    program.write_text(
        "import os, signal, sys\n"
        "if os.environ['RANK'] == '1':\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "from mir_plugin.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(program), "run", str(model()),
         *map(str, samples()), "--out", str(bench.folder / "out")],
        capture_output=True, text=True, timeout=HANGS, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "SIGKILL" in done.stderr or "Signal 9" in done.stderr, done.stderr
    assert not (bench.folder / "out").exists()
    return Outcome(0, value="torchrun ends the other and names the process that died")


DYING.append(
    Case("process dies before joining", "one of two processes under torchrun dies before it joins the other",
         dies_before_joining, said, full=True)
)  # fmt: skip


def dies_in_a_sweep(bench: Bench) -> Outcome:
    """Under a launcher, between two checkpoints or inside one; then once more without."""
    for step in range(1, 9):
        shutil.copytree(model(), bench.folder / f"checkpoint-{step}")
    command = ["sweep", "checkpoint-*", "--vision-tower", model().parent / "vision_tower", *samples(), "--no-report"]
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "mir_plugin.cli",
         *map(str, command), "--out", "out"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not list(bench.folder.glob("out/*/mir.json")) and launcher.poll() is None:
        time.sleep(0.02)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    printed = launcher.communicate(timeout=HANGS)[0]
    assert launcher.returncode != 0
    assert "SIGKILL" in printed, printed
    again = bench.mir(*command, "--out", "out")
    assert again.exit_code == 0, again.err
    found = sorted(json.loads(path.read_text())["mir"] for path in bench.folder.glob("out/*/mir.json"))
    assert len(found) == 8
    assert found[-1] == pytest.approx(found[0], rel=FORWARD)  # two processes of one thread each, and one of several
    assert not list(bench.folder.glob("out/**/.*.part"))
    return Outcome(0, value="torchrun ends the other and names it; done again: all 8 the same")


DYING.append(
    Case("process dies in a sweep", "one of two processes under torchrun gets SIGKILL in the middle of `mir sweep`",
         dies_in_a_sweep, said, full=True)
)  # fmt: skip


@each(DYING)
def test_a_process_that_dies_ends_the_others(case: Case, bench: Bench) -> None:
    bench.hold("processes", case)


# ---- through the real command line -----------------------------------------------------------------------------------


def real_process(number: signal.Signals) -> Callable[[Bench], Outcome]:
    """The command as a program of its own, killed while it measures; then again."""

    def act(bench: Bench) -> Outcome:
        command = [sys.executable, "-m", "mir_plugin.cli", "run", model(), *samples(), "--out", bench.folder / "out"]
        (bench.folder / "tmp").mkdir()
        environment = {**os.environ, "TMPDIR": str(bench.folder / "tmp")}
        journal = bench.folder / "out" / "mir.partial.jsonl"
        for _ in range(20):
            process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.PIPE, text=True)
            while not journal.exists() and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(number)
            errors = process.communicate(timeout=HANGS)[1]
            if process.returncode != 0:
                break
            shutil.rmtree(bench.folder / "out")  # the signal came too late
        assert process.returncode in (-number, 128 + number), (process.returncode, errors)
        assert "Traceback" not in errors, errors
        again = bench.mir(*command[3:])
        assert again.exit_code == 0, again.err
        assert files_below(bench.folder) == ["out", "out/mir.json", "tmp"]
        return Outcome(0, value=f"exit {process.returncode}; done again: a result, no stray file")

    return act


REAL = [
    Case(f"program, {number.name}", f"`mir run` as a program of its own gets {number.name}", real_process(number), said,
         full=True)
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
]  # fmt: skip


@each(REAL)
def test_a_killed_program_done_again_gives_a_result(case: Case, bench: Bench) -> None:
    bench.hold("processes", case)
