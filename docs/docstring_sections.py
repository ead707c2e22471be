"""What griffe, which reads the docstrings for the site, is told besides mkdocs.yml."""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTION = re.compile(r"\n( *(?:Args|Attributes|Returns|Yields|Raises|Reference|>>>)\b)")


class SectionsApart(griffe.Extension):
    """Our sections follow each other without an empty line, which griffe wants between them."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Put an empty line before each section, and read ``code`` as Markdown does."""
        if obj.docstring:
            obj.docstring.value = SECTION.sub(r"\n\n\1", obj.docstring.value)
