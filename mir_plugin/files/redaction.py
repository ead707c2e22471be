"""Keeps tokens and keys out of what is printed, saved and reported: error texts of other programs repeat them."""

from __future__ import annotations

import os
import re

HIDDEN = "***"
# Names under which programs are given secrets, in the environment and among arguments.
_SECRET_NAME = re.compile(r"(?:token|api_?key|secret|password|passwd|credentials?)$|_key$", re.IGNORECASE)
_PATTERNS = (
    # Tokens that say what they are: Hugging Face, OpenAI and those like it, GitHub, GitLab, Slack, AWS, Google.
    re.compile(
        r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
        r"|xox[abprs]-[\w-]{10,}|A[KS]IA[A-Z0-9]{16}|AIza[\w-]{30,})"
    ),
    re.compile(r"(?:(?<=://)|(?<=:/)(?!/))[^/\s@]+(?=@)"),  # https://user:password@host, also where a path made it :/
    re.compile(r"(?<=Bearer )[\w.~+/=-]{8,}"),
    re.compile(r"(?i)(?:(?<=token=)|(?<=api_key=)|(?<=apikey=)|(?<=secret=)|(?<=password=))[^\s,;:&'\"]+"),
)
SHORTEST = 8  # characters; a shorter value of the environment would be found in ordinary words


def without_secrets(text: str) -> str:
    """The text with everything that looks like a secret, or is one of the environment's, replaced by ``***``.

    >>> without_secrets("401 for https://me:pa55@hub.example/x with token=abc,dtype=auto")
    '401 for https://***@hub.example/x with token=***,dtype=auto'
    """
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and _SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(HIDDEN, text)
    return text
