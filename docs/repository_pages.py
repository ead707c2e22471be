"""What mkdocs is told besides mkdocs.yml: links out of docs/ lead to copies in the site, of those files named here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[1]
# Where the site keeps each file of the repository that pages link to.
COPIES = {
    "README.md": "repository/README.md",
    "CHANGELOG.md": "repository/CHANGELOG.md",
    "CONTRIBUTING.md": "repository/CONTRIBUTING.md",
    "CITATION.cff": "repository/CITATION.cff.txt",
    "LICENSE": "repository/LICENSE.txt",
    "benchmarks/RESULTS.md": "repository/benchmarks/RESULTS.md",
    "examples/replication/RESULTS.md": "repository/examples/replication/RESULTS.md",
    "examples/replication/replication.png": "repository/examples/replication/replication.png",
    "examples/moca/RESULTS.md": "repository/examples/moca/RESULTS.md",
    "examples/pretrain/README.md": "repository/examples/pretrain/README.md",
    "examples/pretrain/RESULTS.md": "repository/examples/pretrain/RESULTS.md",
    "examples/pretrain/STUDY.md": "repository/examples/pretrain/STUDY.md",
}
SITE_PLACES = {copy: original for original, copy in COPIES.items()}
NEEDS = re.compile(r"^```(?:console|bash)\n# needs: (.+)\n", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Add the copies."""
    for original, copy in COPIES.items():
        files.append(File.generated(config, copy, abs_src_path=str(REPOSITORY / original)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links at the copies, and say above a block what it needs.

    Copies link back into docs/, and what they link to elsewhere stays plain text.
    """
    place = page.file.src_uri
    here = Path(SITE_PLACES[place]).parent if place in SITE_PLACES else Path("docs") / Path(place).parent

    def moved(link: re.Match[str]) -> str:
        target = os.path.normpath(here / link.group(1))
        inside = target.removeprefix("docs/") if target.startswith("docs/") else COPIES.get(target)
        return os.path.relpath(inside, Path(place).parent) if inside else link.group(1)

    def captioned(opening: re.Match[str]) -> str:
        return f"*Needs {opening.group(1)}:*\n\n{opening.group(0).splitlines()[0]}\n"

    return NEEDS.sub(captioned, LINK.sub(moved, markdown))
