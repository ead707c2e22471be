"""The script `lmms_eval`: lmms-eval's command line, with an exit code that tells whether every task has a result."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping
from typing import Any

from mir_plugin.errors import MirError
from mir_plugin.files.outside_text import accept_all_characters
from mir_plugin.manifest import after_import
from mir_plugin.tasks.host_internals import COMMAND_LINE, SINGLE_RUN


def main() -> None:
    """Run ``lmms-eval`` with this process's arguments.

    Exits with 1 when a task raised or has no result, where lmms-eval exits with 0; an error of the user's is one line.
    """
    from lmms_eval.cli import dispatch

    accept_all_characters(sys.stdout, sys.stderr)
    problems: list[str] = []
    after_import(SINGLE_RUN.module, lambda host: _watch(host, problems))
    COMMAND_LINE.found_in(dispatch)()
    if problems:
        sys.exit("\n".join(f"lmms_eval: {problem}" for problem in problems))


def _watch(host: Any, problems: list[str]) -> None:
    """Note down every evaluation of ``--model`` (or of a ``--config`` entry) that did not give all results."""
    evaluate = SINGLE_RUN.found_in(host)

    @functools.wraps(evaluate)
    def watched(args: Any = None) -> Any:
        if args.tasks is None:
            sys.exit("lmms_eval: no task named; write --tasks mir or --tasks mir,mmstar.")
        try:
            results, samples = evaluate(args)
        except MirError as error:
            problems.append(str(error))
            problems.extend(_saved())
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise  # the others may wait for this process: lmms-eval's way out skips its barrier
            return None, None
        except Exception as error:
            problems.append(f"{type(error).__name__}: {error}")
            problems.extend(_saved())
            raise
        if results is not None:  # None on all processes but the first
            problems.extend(f"task {name} has no result." for name in tasks_without_result(results))
        return results, samples

    host.cli_evaluate_single = watched


def _saved() -> list[str]:
    """What was measured before the error; nothing if the task `mir` was not even imported."""
    saved = sys.modules.get("mir_plugin.tasks.lmms_eval.saved")
    return saved.what_is_measured() if saved else []


def tasks_without_result(results: Mapping[str, Any]) -> list[str]:
    """Tasks of one evaluation none of whose metrics has a value.

    A task whose only metric is ``submission`` writes a file for somebody else to score, and counts as done.
    """
    empty = []
    for task in results["configs"]:
        entries = results["results"].get(task, {})
        metrics = {key.rpartition(",")[0]: value for key, value in entries.items() if "," in key}
        scores = {name: value for name, value in metrics.items() if "_stderr" not in name}
        if set(scores) != {"submission"} and all(value in (None, "N/A", []) for value in scores.values()):
            empty.append(task)
    return empty


if __name__ == "__main__":
    main()
