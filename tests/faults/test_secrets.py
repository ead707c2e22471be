"""Tokens and keys in the environment, in arguments and in other programs' files: none comes out again."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults.battery import Bench, Case, Outcome, Refused, Right, each

from mir_plugin.errors import MirError
from mir_plugin.files.redaction import without_secrets

from golden_data import require_golden

pytestmark = pytest.mark.slow

# Made up; each can be told from the others wherever it comes out.
TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWx"
KEY = "sk-proj-" + "0123456789abcdefABCDEF"
PASSWORD = "correct-horse-battery"
ENVIRONMENT = {
    "HF_TOKEN": TOKEN,
    "OPENAI_API_KEY": KEY,
    "WANDB_API_KEY": "a1b2c3d4e5f6a7b8c9d0",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCY",
    "MY_PASSWORD": PASSWORD,
}
ADDRESS = f"https://me:{PASSWORD}@hub.example/data"
SECRETS = (*ENVIRONMENT.values(),)


def everything_in(folder: Path) -> str:
    """The content of every file, of archives their parts."""
    texts = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            texts.append(content.decode("utf-8", errors="replace"))
            if zipfile.is_zipfile(io.BytesIO(content)):
                with zipfile.ZipFile(path) as archive:
                    texts += [archive.read(name).decode("utf-8", errors="replace") for name in archive.namelist()]
    return "\n".join(texts)


def kept(outcome: Outcome, folder: Path, n_told: int = 0) -> Outcome:
    """The outcome, if no secret is in it nor in the files of the folder."""
    said = "\n".join([outcome.out, outcome.err, everything_in(folder)])
    found = [said[max(0, said.index(secret) - 200) :][:300] for secret in SECRETS if secret in said]
    assert not found, found
    assert said.count("***") >= n_told, "what should have been hidden was never there"
    return outcome


def with_environment(*arguments: Callable[[Bench], list[object]]) -> Callable[[Bench], Outcome]:
    """Commands with secrets in the environment; nothing they print or write may hold one."""

    def act(bench: Bench) -> Outcome:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            outcomes = [bench.mir(*command(bench)) for command in arguments]
            for outcome in outcomes:
                kept(outcome, bench.folder)
        return outcomes[-1]

    return act


def model_and_samples(_: Bench) -> list[object]:
    case = require_golden("llava/llava_full")
    samples = case / "samples"
    tower = case / "vision_tower"
    return [case / "model", "--vision-tower", tower, "--images", samples, "--texts", samples, "--n-samples", 2]


def run(bench: Bench) -> list[object]:
    return ["run", *model_and_samples(bench), "--out", "out", "--device", "cpu"]


def sweep(bench: Bench) -> list[object]:
    """With a checkpoint that fails, so that its error comes into the table."""
    return ["sweep", "no-such-folder", *model_and_samples(bench), "--out", "sweep"]


def printed_report(folder: str) -> Callable[[Bench], list[object]]:
    return lambda _: ["report", folder, "--out", "report"]


def named_with_a_password(bench: Bench) -> Outcome:
    return kept(bench.mir("run", require_golden("llava/llava_full") / "model", "--dataset", ADDRESS), bench.folder, 1)


def unknown_model_argument(bench: Bench) -> Outcome:
    from mir_plugin.tasks.vlmevalkit.model import CheckpointModel

    return refused(bench, lambda: CheckpointModel(pretrained="x", token=TOKEN, api_key=KEY))


def unusable_generation_argument(bench: Bench) -> Outcome:
    from mir_plugin.tasks.generation_arguments import GenerationArguments

    return refused(bench, lambda: GenerationArguments.of({"temperature": "warm", "extra_headers": KEY}))


def unknown_generation_argument(bench: Bench) -> Outcome:
    from loguru import logger

    from mir_plugin.tasks.generation_arguments import GenerationArguments

    lines: list[str] = []
    handle = logger.add(lines.append)
    try:
        GenerationArguments.of({"openai_api_key": KEY})
    finally:
        logger.remove(handle)
    assert any("openai_api_key" in line for line in lines), lines
    return kept(Outcome(0, "".join(lines), value="the log names the argument, not its value"), bench.folder)


def vlmeval_model_argument(bench: Bench) -> Outcome:
    from mir_plugin.tasks.vlmevalkit import command as vlmeval_command

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vlmeval_command, "run_script", lambda: Path("run.py"))
        patch.setattr("sys.argv", ["mir-vlmeval", "--model", f"a=,token={TOKEN}", "--data", "MIR"])
        with pytest.raises(SystemExit) as ended:
            vlmeval_command.main()
    return kept(Outcome(1, err=str(ended.value).replace("mir-vlmeval: ", "mir: ", 1)), bench.folder, 1)


def refused(bench: Bench, call: Callable[[], object]) -> Outcome:
    """What a host would print of the MirError that the call raises."""
    try:
        call()
    except MirError as error:
        return kept(Outcome(1, err=f"mir: {error}"), bench.folder)
    return Outcome(0)


def lmms_eval_tree(bench: Bench) -> Outcome:
    """lmms-eval writes its whole command line into its results."""
    tree = require_golden("lmms_eval/results") / "models__tiny-llava-a"
    document = json.loads(next(tree.glob("*_results.json")).read_text())
    document["config"]["model_args"] = f"pretrained=models/a,token={TOKEN},api_key={KEY}"
    document["config"]["resolved_cli_args"] = {"hf_hub_log_args": f"token={TOKEN}", "wandb_args": KEY}
    document["configs"] = {task: {"metadata": {"api_key": KEY}} for task in document["results"]}
    (bench.folder / "tree").mkdir()
    (bench.folder / "tree" / "20260101_000000_results.json").write_text(json.dumps(document))
    outcome = bench.mir("report", "tree", "--out", "report")
    return kept(outcome, bench.folder / "report")


def vlmevalkit_tree(bench: Bench) -> Outcome:
    """A judge that refused the key says it in its error, which VLMEvalKit keeps and the report shows."""
    copy = bench.folder / "outputs" / "llava_v1.5_tiny"
    shutil.copytree(require_golden("vlmevalkit/outputs") / copy.name, copy, symlinks=True)
    for path in copy.glob("T*/status.json"):
        status = json.loads(path.read_text())
        reason = f"AuthenticationError: Incorrect API key provided: {KEY}"
        status["datasets"]["MMVet"] = {"status": "done", "error_message": reason}
        path.write_text(json.dumps(status))
    outcome = bench.mir("report", "outputs", "--out", "report")
    return kept(outcome, bench.folder / "report", 1)


def nothing_came_out(value: str = "no secret in any file or line") -> Right:
    return Right(lambda found, _: str(found or value))


CASES = (
    Case("run", "`mir run` and `mir report` with five keys in the environment",
         with_environment(run, printed_report("out")), nothing_came_out()),
    Case("sweep", "`mir sweep` and `mir report` with five keys in the environment",
         with_environment(sweep, printed_report("sweep")), nothing_came_out()),
    Case("sweep of an address", "`mir sweep https://me:PASSWORD@…`",
         lambda bench: kept(bench.mir("sweep", ADDRESS, "--embedded", "--n-samples", 1), bench.folder, 1),
         Refused("hub.example", "***", "Download")),
    Case("run of an address", "`mir run https://me:PASSWORD@…`",
         lambda bench: kept(bench.mir("run", ADDRESS, "--embedded", "--n-samples", 1), bench.folder, 1),
         Refused("hub.example", "***", "no such folder")),
    Case("address of a data set", "`--dataset https://me:PASSWORD@…`", named_with_a_password,
         Refused("hub.example", "cannot be loaded", "***")),
    Case("model argument", "a model of VLMEvalKit gets `token=` and `api_key=`", unknown_model_argument,
         Refused("unknown model argument", "api_key")),
    Case("model argument on the command line", "`mir-vlmeval --model a=,token=…`", vlmeval_model_argument,
         Refused("--model a=", "***", "expected NAME=CHECKPOINT_DIR")),
    Case("generation argument of the wrong kind", "generation arguments that hold a key cannot be used",
         unusable_generation_argument, Refused("temperature", "warm")),
    Case("unknown generation argument", "a task asks for `openai_api_key`", unknown_generation_argument,
         nothing_came_out()),
    Case("lmms-eval tree", "lmms-eval's results hold a token and keys", lmms_eval_tree, nothing_came_out()),
    Case("VLMEvalKit tree", "VLMEvalKit's status repeats a key in an error", vlmevalkit_tree, nothing_came_out()),
)  # fmt: skip


@each(CASES)
def test_no_secret_comes_out(case: Case, bench: Bench) -> None:
    bench.hold("secrets", case)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"token {TOKEN}.", "token ***."),
        (f"provided: {KEY}", "provided: ***"),
        ("ghp_0123456789abcdefghij", "***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
        ("https://me:pw@host/x, https://host:8080/a@b", "https://***@host/x, https://host:8080/a@b"),
        ("a folder https:/me:pw@host/x, mail me@host", "a folder https:/***@host/x, mail me@host"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer ***"),
        ("pretrained=a,api_key=b,dtype=c", "pretrained=a,api_key=***,dtype=c"),
        ("hf_converted/sk-learn/max_new_tokens=5", "hf_converted/sk-learn/max_new_tokens=5"),
    ],
)
def test_what_looks_like_a_secret_is_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_a_secret_of_the_environment_is_hidden_whatever_it_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SHORT_KEY", "a")
    shown: Any = without_secrets(" and a ".join(ENVIRONMENT.values()))
    assert shown == " and a ".join(["***"] * len(ENVIRONMENT))
