"""What pictures of tokens are drawn from, as plain numbers: standard library only, to and from JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from mir_plugin.errors import MirError
from mir_plugin.files.atomic import write_atomically
from mir_plugin.files.strict_json import json_document, read_as

SCHEMA_VERSION = 1
FILE_NAME = "pictures.json"
FOLDER_NAME = "pictures"
NORMS = "norms"
METHODS = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP"}
WIDE_RATIO = 50.0  # longest to shortest token
Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class TokenMap:
    """Some tokens of one layer in the plane.

    Attributes:
        layer: 1..L; the last is taken after the final norm.
        method: a key of ``METHODS``.
        vision, text: a point for each token, (x, y).
        note: what the method says about itself: shares of variance, perplexity.
    """

    layer: int
    method: str
    vision: Points
    text: Points
    note: str


@dataclass(frozen=True)
class NormHistogram:
    """How long the tokens of one modality are at one layer, and where outliers begin.

    Attributes:
        modality: "vision" or "text".
        edges: of the bins, L2 norms before scaling, the same for both modalities; one more than ``counts``.
        counts: tokens in each bin.
        low, high: a token whose norm lies outside is an outlier: median ∓ n_sigma · standard deviation.
    """

    layer: int
    modality: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    median: float
    low: float
    high: float
    n_outliers: int

    @property
    def logarithmic(self) -> bool:
        """Whether the bins grow with the norm, so that a few very long tokens do not squeeze all others."""
        return self.edges[0] > 0 and self.edges[-1] / self.edges[0] > WIDE_RATIO


@dataclass(frozen=True)
class Pictures:
    """The data of all pictures of one checkpoint.

    Attributes:
        checkpoint: path or hub name.
        key: hash of all that was asked for: equal keys, equal pictures.
        layers: those that are drawn.
        n_layers: of the decoder.
        n_samples: image-text pairs.
        maps: every layer by every method; outliers are left out, as MIR replaces them.
        norms: every layer, vision and text.
    """

    checkpoint: str
    key: str
    layers: tuple[int, ...]
    n_layers: int
    n_samples: int
    maps: tuple[TokenMap, ...]
    norms: tuple[NormHistogram, ...]
    created: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods that there are maps of."""
        return tuple(dict.fromkeys(one.method for one in self.maps))

    @property
    def file_names(self) -> tuple[str, ...]:
        """Of the drawn pictures, without suffix: a map of each method, and the norms."""
        return (*(f"tokens-{method}" for method in self.methods), NORMS)

    def save(self, path: Path) -> Path:
        """Write the JSON document; a reader sees the old file or the whole new one."""
        write_atomically(path, json.dumps(dataclasses.asdict(self), allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, path: Path) -> Pictures:
        """Read what ``save`` wrote; fields of later versions are ignored.

        Raises:
            MirError: if the file cannot be read or is not whole; names it.
        """
        try:
            return read_as(cls, json_document(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise MirError(
                f"{path} does not hold the data of pictures ({error}). Make it again with `mir pictures`."
            ) from error
