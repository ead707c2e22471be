"""MIR as a data set of VLMEvalKit: one row, whose prediction is the measurement. Imports nothing of VLMEvalKit.

VLMEvalKit takes a prediction file of an earlier run over (``--reuse``) when it holds every index of the data set, and
compares nothing else. So our one index is made of samples and protocol: a measurement of others is never taken over.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from loguru import logger

from mir_plugin.errors import MirError
from mir_plugin.files.atomic import write_atomically
from mir_plugin.files.fingerprint import fingerprint
from mir_plugin.files.strict_json import is_number, json_document
from mir_plugin.measurement.resume import changed_since, folders_of
from mir_plugin.results import MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.tasks.options import MirOptions, resolve
from mir_plugin.tasks.vlmevalkit.hooks import DATA_SET
from mir_plugin.tasks.vlmevalkit.model_settings import settings_fingerprint

RESULT_SUFFIX = "_mir.json"
METRICS = ("mir", "mir_published", "mir_published_upper", "mir_stderr", "n_samples")
MEASURE_AGAIN = "Measure again, with --mode all."
_READERS = {".xlsx": pd.read_excel, ".json": pd.read_json}


class MirDataSet:
    """What a class of ``vlmeval.dataset`` needs besides its base class; see ``vlmeval_hooks.register_data_set``.

    ``--data-config '{"MIR": {"class": "MIRDataset", "dataset": "MIR", "samples": "embedded", "n_samples": 50}}'``, or
    the ``data`` of a ``--config`` file, choose what is measured; else the environment (``MIR_SAMPLES``) or the paper's
    protocol.

    Samples that cannot be had are no error here but in ``sample_set``: VLMEvalKit builds data sets on its first process
    while the others wait, and one that raises there would leave them waiting.

    Raises:
        MirError: for another name than MIR, or an option of the wrong kind.
    """

    TYPE = "MIR"
    MODALITY = "IMAGE"

    def __init__(
        self,
        dataset: str = DATA_SET,
        samples: str | None = None,
        n_samples: int | None = None,
        seed: int | None = None,
        outliers: str | None = None,
        normalize: bool | None = None,
    ) -> None:
        if dataset != DATA_SET:
            raise MirError(
                f"MIRDataset cannot be named {dataset!r}; its only name is {DATA_SET!r}, also in --data-config."
            )
        fields = {
            "samples": samples, "n_samples": n_samples, "seed": seed, "outliers": outliers, "normalize": normalize
        }  # fmt: skip
        self.dataset_name = dataset
        self.options: MirOptions = resolve(fields, {}, task_place="data config")
        self._samples: SampleSet | MirError
        try:
            self._samples = chosen = self.options.sample_set()
            self.index = f"mir-{fingerprint([chosen.fingerprint, dataclasses.asdict(self.options.config)])}"
            question = f"MIR of {len(chosen)} image-text pairs ({self.options.samples})"
        except MirError as error:
            logger.warning(f"MIR cannot be measured: {error}")
            self._samples, self.index, question = error, "mir-without-samples", str(error)
        self.data = pd.DataFrame({"index": [self.index], "question": [question]})

    @classmethod
    def supported_datasets(cls) -> list[str]:
        """Names for ``--data``."""
        return [DATA_SET]

    @property
    def sample_set(self) -> SampleSet:
        """What is measured. Raises MirError if it could not be read."""
        if isinstance(self._samples, MirError):
            raise self._samples
        return self._samples

    def build_prompt(self, line: Any) -> Any:
        """There is nothing to ask.

        Raises:
            MirError: always; only inference modes that never see the model's layers come here.
        """
        raise MirError(
            "MIR cannot be measured in this mode, because it asks for answers through an API (--api-mode). MIR needs "
            "the hidden states of every layer: use a model class that holds the weights."
        )

    def evaluate(self, eval_file: str, **judge_kwargs: Any) -> dict[str, float | int]:
        """Write ``{model}_MIR_score.csv`` beside the prediction file, and return its numbers.

        Raises:
            MirError: if the prediction file holds no measurement of these samples.
        """
        path = Path(eval_file)
        try:
            table = _READERS.get(path.suffix, _read_tsv)(path)
            predictions = {str(index): text for index, text in zip(table["index"], table["prediction"], strict=True)}
            measured = json_document(predictions[self.index]) if self.index in predictions else None
            wrong = [name for name in METRICS if measured and not is_number(measured.get(name, 0) or 0)]
        except Exception as error:  # what pandas and the libraries below it raise for damaged files is no closed list
            raise MirError(f"{path} cannot be read ({type(error).__name__}: {error}). {MEASURE_AGAIN}") from error
        if wrong:
            raise MirError(f"{path}: {wrong[0]} is not a number. {MEASURE_AGAIN}")
        if not measured:
            raise MirError(f"{path} holds no measurement {self.index!r}. {MEASURE_AGAIN}")
        if is_outdated(measured):
            raise MirError(
                f"{path}: the files in {', '.join(measured['folders'])} have changed since MIR was measured. Run again "
                "without --reuse."
            )
        if is_of_other_settings(measured, path.stem.removesuffix(f"_{self.dataset_name}")):
            raise MirError(
                f"{path}: MIR was measured of a model built with other arguments under this name. Run again without "
                "--reuse."
            )
        row = {name: measured.get(name) for name in (*METRICS, "samples", "protocol", "measurement")}
        text = pd.DataFrame([row]).to_csv(index=False, quoting=csv.QUOTE_ALL)
        write_atomically(path.with_name(f"{path.stem}_score.csv"), text)
        return {name: row[name] for name in METRICS if row[name] is not None}

    @classmethod
    def report_primary_metric(cls, metrics: Mapping[str, Any] | None) -> dict[str, float]:
        """MIR, for VLMEvalKit's summary; its own choice goes by names such as "Overall"."""
        return {"mir": float(metrics["mir"])} if metrics and "mir" in metrics else {}


def prediction_of(result: MirResult, settings: str | None = None) -> str:
    """The pooled values as JSON: small enough for a cell of a spreadsheet, which the whole result is not.

    Args:
        settings: of the model, as ``settings_fingerprint`` has them.
    """
    return json.dumps(
        {
            "mir": result.mir,
            "mir_published": result.mir_published,
            "mir_published_upper": result.mir_published_upper,
            "mir_stderr": result.uncertainty.get("standard_error"),
            "n_samples": result.n_samples,
            "samples": result.fingerprints["samples"],
            "protocol": result.fingerprints["protocol"],
            "checkpoint": result.fingerprints["checkpoint"],
            "folders": folders_of(result),
            "settings": settings,
            "measurement": fingerprint(dataclasses.asdict(result)),
        },
        allow_nan=False,
    )


def is_outdated(measured: Any) -> bool:
    """Whether the checkpoint of a prediction has other files now; False where the prediction does not tell."""
    if not isinstance(measured, dict) or not isinstance(measured.get("folders"), list):
        return False
    return changed_since(list(map(str, measured["folders"])), str(measured.get("checkpoint")))


def is_of_other_settings(measured: Any, model_name: str) -> bool:
    """Whether a model of this name is built with other arguments now; False where either side does not tell."""
    before = measured.get("settings") if isinstance(measured, dict) else None
    now = settings_fingerprint(model_name)
    return None not in (before, now) and before != now


def _read_tsv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t")
