"""MIR on many choices of the samples from one run of the model.

The median that replaces outliers, the threshold that finds them and the text-centric scale depend on which samples are
pooled, so no choice can be put together from the statistics of others: every choice is computed from the features
themselves, layer by layer, while these are held. Only the forward passes are shared. (Exact, causal decoders provided:
one sample's hidden states do not depend on another's.)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import torch
from torch import Tensor

from mir_plugin.engine.progress import progress
from mir_plugin.files.atomic import write_atomically
from mir_plugin.files.fingerprint import fingerprint
from mir_plugin.files.strict_json import json_document, read_as
from mir_plugin.measurement.measurement import Measurement
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.metric.layer import mir
from mir_plugin.results import MirConfig
from mir_plugin.robustness.results import ChoiceResult
from mir_plugin.robustness.studies import Choice, Plan
from mir_plugin.types import TokenFeatures


def chosen_features(features: TokenFeatures, indices: Sequence[int]) -> TokenFeatures:
    """The features of some of the samples, in the order of ``indices``."""
    return TokenFeatures(
        features.layer,
        _rows(features.vision, features.vision_counts, indices),
        _rows(features.text, features.text_counts, indices),
        tuple(features.vision_counts[index] for index in indices),
        tuple(features.text_counts[index] for index in indices),
    )


def _rows(tokens: Tensor, counts: Sequence[int], indices: Sequence[int]) -> Tensor:
    of_samples = tokens.split(list(counts))
    return torch.cat([of_samples[index] for index in indices])


class ChoiceDistances:
    """Layer distances of every choice; give it to ``Measurement.measure`` as ``on_layer``."""

    def __init__(self, choices: Sequence[Choice], config: MirConfig) -> None:
        self._choices = choices
        self._config = config
        self._distances: list[list[float]] = [[] for _ in choices]

    def __call__(self, features: TokenFeatures) -> None:
        """Add one layer of all samples."""
        for choice, distances in progress(
            list(zip(self._choices, self._distances, strict=True)), f"choices, layer {features.layer}", "choice"
        ):
            pooled = PooledLayer.of(chosen_features(features, choice.indices), self._config)
            distances.append(pooled.layer_distance().distance)

    def results(self, checkpoint: str) -> list[ChoiceResult]:
        """MIR of every choice, when all layers were added."""
        return [
            ChoiceResult(checkpoint, choice.n_samples, choice.seed, mir(distances))
            for choice, distances in zip(self._choices, self._distances, strict=True)
        ]


class KeptChoices:
    """The choices' results on disk, behind the key of what they answer."""

    def __init__(self, measurement: Measurement, plan: Plan) -> None:
        """Read what is kept in the folder of a measurement, if it answers the choices of this plan."""
        indices = [(choice.seed, choice.indices) for choice in plan.choices]
        self._path = measurement.folder / "choices.json"
        self._key = fingerprint([measurement.fingerprint, indices])  # with the protocol, which the measurement holds
        self.results: tuple[ChoiceResult, ...] = ()
        try:
            data = json_document(self._path.read_text(encoding="utf-8"))
            if data["key"] == self._key:
                self.results = tuple(read_as(ChoiceResult, one) for one in data["choices"])
        except (OSError, ValueError, TypeError, KeyError):  # none yet, or cut short: they are computed again
            return

    def save(self, results: Sequence[ChoiceResult]) -> None:
        """Keep them for the next time."""
        self.results = tuple(results)
        rows = [dataclasses.asdict(one) for one in results]
        write_atomically(self._path, json.dumps({"key": self._key, "choices": rows}, indent=1) + "\n")
