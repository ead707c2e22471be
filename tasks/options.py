"""What a host tool's `mir` measures: the options, where each was set, and the sample set they stand for.

One rule for all hosts. An option is taken from the first of these that sets it:

1. the task itself (``samples: embedded`` in its YAML, or in VLMEvalKit's ``--data-config``): a task is what it says;
2. the model's arguments (``--model_args mir_samples=embedded``), for this package's own models;
3. the environment (``MIR_SAMPLES=embedded``);
4. the paper's protocol.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mir_plugin.errors import MirError
from mir_plugin.measurement.options import SampleOptions, parse_bool
from mir_plugin.results import MirConfig, Outliers
from mir_plugin.samples.sample_set import SampleSet

SOURCES = "paper, embedded, folders:IMAGES_DIR,TEXTS_DIR or dataset:NAME"


@dataclass(frozen=True)
class MirOptions:
    """Everything about a measurement but the model.

    Attributes:
        samples: "paper", "embedded", "folders:IMAGES_DIR,TEXTS_DIR" or "dataset:NAME", the name as --dataset takes it.
        n_samples: how many; None takes all pairs of folders, and 100 of any other source.
        seed: of the choice among more samples than asked for.
        outliers, normalize: see ``MirConfig``.
        origin: for each option, which of the four places set it; stored with every result.
    """

    samples: str = "paper"
    n_samples: int | None = None
    seed: int = 0
    outliers: str = "replace"
    normalize: bool = True
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def config(self) -> MirConfig:
        """The protocol. Raises MirError for an unknown way to handle outliers."""
        return MirConfig(outliers=cast("Outliers", self.outliers), normalize=self.normalize)

    def sample_set(self) -> SampleSet:
        """The samples, every image read once, so that a broken one shows before anything is computed.

        Raises:
            MirError: for an unknown source, a missing folder, a data set that cannot be loaded, an unreadable image.
        """
        kind, _, what = self.samples.partition(":")
        images = texts = dataset = None
        if kind == "folders" and what.count(",") == 1:
            images, texts = (Path(part.strip()) for part in what.split(","))
        elif kind == "dataset" and what:
            dataset = what
        elif self.samples not in ("paper", "embedded"):
            raise MirError(f"samples is {self.samples!r} ({self._set_by('samples')}); expected {SOURCES}.")
        options = SampleOptions(images, texts, dataset, self.samples == "embedded", self.n_samples, self.seed)
        return options.choose().checked().with_description(options={name: self._set_by(name) for name in OPTIONS})

    def _set_by(self, name: str) -> str:
        return self.origin.get(name, "default")


OPTIONS = tuple(f.name for f in dataclasses.fields(MirOptions) if f.name != "origin")


def resolve(
    task_fields: Mapping[str, Any],
    model_args: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    *,
    task_place: str = "task file",
) -> MirOptions:
    """Options by the rule above.

    Args:
        task_fields, model_args: option name → value, without the ``mir_`` that model arguments carry; None is unset.
        environment: defaults to this process's.
        task_place: what the user knows the place of ``task_fields`` by.
    Raises:
        MirError: for a value of the wrong kind; names the option and where it was set.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name in OPTIONS:
        variable = f"MIR_{name.upper()}"
        candidates = (
            (task_place, task_fields.get(name)),
            ("model_args", model_args.get(name)),
            (f"environment {variable}", environment.get(variable) or None),
        )
        for place, value in candidates:
            if value is not None:
                values[name] = _as_declared(name, value, place)
                origin[name] = place
                break
    return MirOptions(**values, origin=origin)


def _as_declared(name: str, value: Any, place: str) -> Any:
    if name in ("n_samples", "seed"):
        try:
            number = int(value)
        except (TypeError, ValueError, OverflowError):
            number = -1
        if number < (name == "n_samples"):
            raise MirError(f"{name} is {value!r} ({place}); expected a whole number, 1 or more (seed: 0 or more).")
        return number
    if name == "normalize":
        return parse_bool(value, f"normalize ({place})")
    return str(value)
