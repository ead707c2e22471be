"""A limit on what a checkpoint's chat template may take: it is a program, and comes from whoever made the checkpoint.

transformers renders templates in Jinja's sandbox, which keeps them from files and functions, but not from nested loops
that end after years, nor from text that fills the memory. Neither can be stopped inside the own process: a thread
cannot be ended, and a signal does not reach a single long operation. So a template is first rendered in a process of
its own, which the kernel ends at its limits. That process imports Jinja alone, and takes a fifth of a second.
"""

from __future__ import annotations

import functools
import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

PROCESSOR_SECONDS = 10
WALL_SECONDS = 600  # for a child that waits instead of working; a busy machine stays far below it
MEMORY_BYTES = 2 << 30
MAX_CHARACTERS = 1_000_000  # a prompt of a hundred thousand tokens and more, for a few words
TOO_LONG = 3  # exit status of a child whose text is longer


@functools.cache
def excess_of(template: str, variables: str, conversations: str) -> str:
    """What a template takes too much of, in words; empty where it keeps within the limits, or fails for other reasons.

    Args:
        template: Jinja source.
        variables: JSON object of the names it may use, as the tokenizer's special tokens.
        conversations: JSON list of what is rendered: objects of ``messages`` and ``add_generation_prompt``.
    """
    child = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        child.communicate(json.dumps([template, variables, conversations]).encode(), timeout=WALL_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.returncode == TOO_LONG:
        return f"writes more than {MAX_CHARACTERS:,} characters for a few words"
    if child.returncode < 0:  # ended by the kernel, or by the line above
        return f"takes more than {PROCESSOR_SECONDS} seconds or {MEMORY_BYTES >> 30} GB for a few words"
    return ""


def _render(template: str, variables: Mapping[str, Any], conversations: Sequence[Mapping[str, Any]]) -> int:
    """Render as transformers does, as far as cost is concerned. Returns the exit status."""
    from jinja2 import Environment, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag of transformers that marks the assistant's words: here its content alone."""

        tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment: Environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda pattern: pattern}
    compiled = environment.from_string(template)
    for conversation in conversations:
        length = 0
        for piece in compiled.generate(**{**variables, **conversation}):
            length += len(piece)
            if length > MAX_CHARACTERS:
                return TOO_LONG
    return 0


def main() -> None:
    """The child: read from standard input what to render, and render it within the limits."""
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    template, variables, conversations = json.load(sys.stdin)
    try:
        status = _render(template, json.loads(variables), json.loads(conversations))
    except MemoryError:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(status)


if __name__ == "__main__":
    main()
