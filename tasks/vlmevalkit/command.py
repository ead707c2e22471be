"""The script `mir-vlmeval`: VLMEvalKit's own run.py, which then also knows MIR and our checkpoints."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.files.outside_text import accept_all_characters, on_a_line
from mir_plugin.files.redaction import without_secrets
from mir_plugin.tasks.vlmevalkit import hooks as vlmeval_hooks

INSTALL = "git clone https://github.com/open-compass/VLMEvalKit && pip install -e VLMEvalKit"


def main() -> None:
    """Run ``run.py`` with this process's arguments: ``mir-vlmeval --model NAME --data MIR MMStar``.

    ``--model`` also takes ``NAME=CHECKPOINT_DIR[,base_llm=DIR,…]`` for checkpoints that our adapters load.
    Exits with 1 when MIR could not be measured, where run.py logs it and exits with 0.
    """
    accept_all_characters(sys.stdout, sys.stderr)
    problems: list[str] = []
    try:
        script = run_script()
        arguments, checkpoints = own_checkpoints(sys.argv[1:])
        refuse_api_mode(arguments)
    except MirError as error:
        sys.exit(without_secrets(f"mir-vlmeval: {error}"))

    def note(model: str, error: Exception) -> None:
        cause = str(error) if isinstance(error, MirError) else f"{type(error).__name__}: {error}"
        problems.append(f"{model}: MIR was not measured. {cause}")

    vlmeval_hooks.install(checkpoints, note)
    sys.argv = [str(script), *arguments]
    sys.path.insert(0, str(script.parent))  # as `python run.py` does
    try:
        runpy.run_path(str(script), run_name="__main__")
    except MirError as error:
        problems.append(str(error))
    except Exception:  # VLMEvalKit's own; the user sees it whole, and what is not lost
        for path in _saved():
            print(on_a_line(f"mir-vlmeval: MIR was measured before and is saved in {path}."), file=sys.stderr)
        raise
    if problems:
        sys.exit(without_secrets("\n".join(f"mir-vlmeval: {problem}" for problem in problems)))


def _saved() -> list[Path]:
    measurement = sys.modules.get("mir_plugin.tasks.vlmevalkit.measurement")
    return measurement.saved_results if measurement else []


def run_script() -> Path:
    """VLMEvalKit's run.py: of the clone that is the working directory, else of the installed package's clone.

    Found without importing VLMEvalKit, which takes a minute.

    Raises:
        MirError: if VLMEvalKit is not installed, or was installed without run.py; says how to install it.
    """
    here = Path.cwd()
    if (here / "run.py").is_file() and (here / "vlmeval" / "__init__.py").is_file():
        return here / "run.py"
    spec = importlib.util.find_spec("vlmeval")
    if spec is None or spec.origin is None:
        raise MirError(f"VLMEvalKit is not installed. Install it from its repository:\n  {INSTALL}")
    script = Path(spec.origin).parents[1] / "run.py"
    if not script.is_file():
        raise MirError(
            f"VLMEvalKit is installed in {script.parent}, but without its run.py, which is not part of the package. "
            f"Run this command in a clone of its repository, or install the clone itself:\n  {INSTALL}"
        )
    return script


def own_checkpoints(arguments: Sequence[str]) -> tuple[list[str], dict[str, dict[str, str]]]:
    """run.py's arguments with ``NAME=DIR,…`` behind ``--model`` shortened to the name, and what the names stand for.

    >>> own_checkpoints(["--model", "stage2=ckpt/s2,base_llm=vicuna", "GPT4o", "--data", "MIR"])
    (['--model', 'stage2', 'GPT4o', '--data', 'MIR'], {'stage2': {'pretrained': 'ckpt/s2', 'base_llm': 'vicuna'}})

    Raises:
        MirError: for a name that cannot be a file name, an option without a value, or a name given twice.
    """
    plain: list[str] = []
    checkpoints: dict[str, dict[str, str]] = {}
    option = ""
    for argument in arguments:
        if argument.startswith("--"):
            option = argument
        elif option == "--model" and "=" in argument:
            name, _, described = argument.partition("=")
            if not name or "/" in name or name in checkpoints:
                raise MirError(
                    f"--model {argument}: {name!r} cannot be used in file names, or is given twice. "
                    "Write NAME=CHECKPOINT_DIR."
                )
            checkpoints[name] = _described(argument, described)
            argument = name
        plain.append(argument)
    return plain, checkpoints


def refuse_api_mode(arguments: Sequence[str]) -> None:
    """Raises MirError if MIR is to be measured where no model is loaded: VLMEvalKit would skip it without an error."""
    if "--api-mode" in arguments and vlmeval_hooks.DATA_SET in arguments:
        raise MirError(
            "MIR cannot be measured with --api-mode, because it needs the hidden states of every layer. "
            "Leave it out of --data, or run it without --api-mode."
        )


def _described(argument: str, described: str) -> dict[str, str]:
    pretrained, *options = described.split(",")
    parts = [option.partition("=") for option in options]
    unusable = [name for name, equals, value in parts if not (name and equals and value)]
    if not pretrained or unusable:
        raise MirError(
            f"--model {argument}: expected NAME=CHECKPOINT_DIR,option=value,… with the options of `mir run`."
        )
    return {"pretrained": pretrained, **{name.replace("-", "_"): value for name, _, value in parts}}


if __name__ == "__main__":
    main()
