"""What tasks of lmms-eval ask of generation (`generation_kwargs`, `--gen_kwargs`), in our adapters' terms."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loguru import logger

from mir_plugin.errors import MirError
from mir_plugin.measurement.options import parse_bool

DEFAULT_NEW_TOKENS = 1024  # what lmms-eval's own llava_hf takes when a task names no limit
HANDLED = frozenset({"max_new_tokens", "max_gen_toks", "temperature", "do_sample", "top_p", "num_beams", "until"})
_warned_about: set[str] = set()


@dataclass(frozen=True, order=True)
class GenerationArguments:
    """Arguments of ``Generator.generate``; equal ones may share a batch."""

    max_new_tokens: int = DEFAULT_NEW_TOKENS
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    until: tuple[str, ...] = ()

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> GenerationArguments:
        """Translate a task's arguments. Those we do not know are named in one warning per run.

        ``do_sample: false`` means greedy whatever the temperature; ``do_sample: true`` without a temperature means 1.

        Raises:
            MirError: for a value of the wrong kind.
        """
        for name in sorted(asked.keys() - HANDLED - _warned_about):
            _warned_about.add(name)
            # By its name alone: what we do not know may be a key.
            logger.warning(f"ignoring generation argument {name!r}, which mir_llava does not support.")
        sample = None if asked.get("do_sample") is None else parse_bool(asked["do_sample"], "do_sample")
        temperature = asked.get("temperature")
        if temperature is None:
            temperature = 1.0 if sample else 0.0
        until = asked.get("until") or ()
        limit = asked.get("max_new_tokens") or asked.get("max_gen_toks") or DEFAULT_NEW_TOKENS
        try:
            arguments = cls(
                max_new_tokens=int(limit),
                temperature=0.0 if sample is False else float(temperature),
                top_p=1.0 if asked.get("top_p") is None else float(asked["top_p"]),
                num_beams=int(asked.get("num_beams") or 1),
                until=(until,) if isinstance(until, str) else tuple(until),
            )
        except (TypeError, ValueError, OverflowError) as error:
            known = {name: asked[name] for name in sorted(HANDLED & asked.keys())}
            raise MirError(f"invalid generation arguments {known!r}: {error}.") from error
        arguments._check()
        return arguments

    def _check(self) -> None:
        for name, usable, expected in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, 1 at most"),
            ("num_beams", self.num_beams >= 1, "1 or more"),
            ("until", all(isinstance(text, str) for text in self.until), "texts"),
        ):
            if not usable:
                raise MirError(f"generation argument {name} is {getattr(self, name)!r}; expected {expected}.")

    def as_keywords(self) -> dict[str, Any]:
        """For ``Generator.generate``."""
        return dataclasses.asdict(self) | {"top_p": None if self.top_p == 1 else self.top_p}
