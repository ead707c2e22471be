"""What a user may choose about a measurement, as values, and how texts become such values.

Commands fill these in from their options, host tools from their models' arguments. Imports neither torch nor
transformers.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mir_plugin.errors import MirError
from mir_plugin.model_adapters import LoadOptions

if TYPE_CHECKING:
    from mir_plugin.samples.sample_set import SampleSet

LOADING = tuple(field.name for field in dataclasses.fields(LoadOptions))
_FOLDERS = ("base_llm", "vision_tower", "vision_tower_aux")
_SWITCHES = ("merge_lora", "trust_remote_code")


@dataclass(frozen=True)
class SampleOptions:
    """Which samples to measure on: at most one of folders, data set and embedded set; without any, the paper's.

    Attributes:
        images, texts: folders; the i-th image is paired with the i-th text.
        dataset: address of a Hugging Face data set, ``NAME[,config=...][,split=...][,image=COLUMN][,text=COLUMN]``.
        embedded: the set that ships with this package.
        n_samples: how many; None takes all pairs of folders, and 100 of any other source.
        seed: of the choice among more samples than asked for.
    """

    images: Path | None = None
    texts: Path | None = None
    dataset: str | None = None
    embedded: bool = False
    n_samples: int | None = None
    seed: int = 0

    def choose(self) -> SampleSet:
        """The sample set.

        Raises:
            MirError: if more than one source is named, one of ``images`` and ``texts`` is missing, or the source
                cannot be read.
        """
        from mir_plugin.samples import sources
        from mir_plugin.samples.embedded import embedded_samples

        if (self.images is None) != (self.texts is None):
            raise MirError("--images and --texts go together: the i-th image is paired with the i-th text.")
        if sum([self.images is not None, self.dataset is not None, self.embedded]) > 1:
            raise MirError("choose one source of samples: --images with --texts, --dataset, or --embedded.")
        if self.images is not None and self.texts is not None:
            return sources.from_folders(self.images, self.texts, n_samples=self.n_samples, seed=self.seed)
        n_samples = self.n_samples or sources.N_PAPER_SAMPLES
        if self.dataset is not None:
            return sources.from_dataset_address(self.dataset, n_samples=n_samples, seed=self.seed)
        if self.embedded:
            return embedded_samples(n_samples, seed=self.seed)
        return sources.paper_samples(n_samples, seed=self.seed)


def load_options(arguments: Mapping[str, Any]) -> LoadOptions:
    """Loading options from the arguments of a host tool's model, all of which may be texts.

    Args:
        arguments: those not in ``LOADING`` are ignored, and so is None.
    Raises:
        MirError: for a ``device_memory`` that is not a size, or a switch that is neither true nor false.
    """
    given = {name: arguments[name] for name in LOADING if arguments.get(name) is not None}
    given |= {name: Path(str(given[name])) for name in _FOLDERS if name in given}
    given |= {name: parse_bool(given[name], name) for name in _SWITCHES if name in given}
    if "device_memory" in given:
        given["device_memory"] = parse_size(str(given["device_memory"]))
    return on_own_device(LoadOptions(**given))


def on_own_device(options: LoadOptions) -> LoadOptions:
    """The same options; under a launcher such as torchrun, on this process's own accelerator."""
    if "LOCAL_RANK" not in os.environ:
        return options
    from mir_plugin.processes import own_device

    return dataclasses.replace(options, device=own_device(options.device))


def parse_bool(value: object, name: str) -> bool:
    """A switch given as a text or a number; Python's own ``bool("false")`` is true.

    >>> parse_bool("False", "merge_lora"), parse_bool("1", "merge_lora")
    (False, True)

    Args:
        name: of the option, for the message.
    Raises:
        MirError: if the value is neither true nor false.
    """
    words = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in words:
        raise MirError(f"{name} is {value!r}; expected true or false.")
    return words[str(value).lower()]


def parse_size(size: str) -> int:
    """Bytes of a size such as "6GB", "512MiB" or "8e9"; decimal units unless an i says otherwise.

    >>> parse_size("6GB"), parse_size("1.5 MiB")
    (6000000000, 1572864)

    Raises:
        MirError: if the text is not a size, or not a positive one.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", size, flags=re.IGNORECASE)
    try:
        if not match:
            raise ValueError(size)
        number, prefix, binary = match.groups()
        n_bytes = int(float(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " "))
    except (ValueError, OverflowError) as error:
        raise MirError(f"{size!r} is not a size; expected for example 6GB or 512MiB.") from error
    if n_bytes < 1:
        raise MirError(f"size must be positive, for example 6GB; got {size!r}.")
    return n_bytes
