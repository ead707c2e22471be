"""Replicate the paper's studies on a tiny LLaVA; see README.md. Run from the project's root.

python -m examples.replication [--out DIR] [--seeds N] [--processes N]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.replication.findings import relations
from examples.replication.joint_report import write_report
from examples.replication.picture import write_picture
from examples.replication.replicate import replicate
from examples.replication.results_page import PICTURE_NAME, results_page
from mir_plugin.files.atomic import write_atomically


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, fine-tune, score and report; a killed run continues where it stopped."""
    parser = argparse.ArgumentParser(prog="python -m examples.replication", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("replication-out"), help="folder for results and report")
    parser.add_argument("--seeds", type=int, default=3, help="how often, with other random numbers")
    parser.add_argument("--processes", type=int, default=2, help="side by side, one thread each")
    options = parser.parse_args(arguments)

    replication = replicate(options.out, n_seeds=options.seeds, n_processes=options.processes, tell=print)
    found = relations(replication.outcomes)
    page = results_page(replication, found)
    write_atomically(options.out / "RESULTS.md", page)
    write_picture(replication, found, options.out / PICTURE_NAME)
    files = write_report(replication, options.out)
    print(f"\n{page.partition('## What came out')[2].strip().partition(chr(10) * 2)[0]}\n")
    for path in (options.out / "RESULTS.md", options.out / PICTURE_NAME, *files.paths.values()):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
