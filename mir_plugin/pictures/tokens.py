"""Tokens in the plane and histograms of their norms, layer by layer while a measurement holds the features."""

from __future__ import annotations

import datetime
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mir_plugin.errors import MirError
from mir_plugin.measurement.pooled_tokens import pooled_norms
from mir_plugin.metric.normalize import outlier_rows, scale_from_norms
from mir_plugin.pictures.data import (
    METHODS,
    WIDE_RATIO,
    NormHistogram,
    Pictures,
    Points,
    TokenMap,
)
from mir_plugin.types import TokenFeatures

N_BINS = 60
# As is customary before t-SNE and UMAP: what lies beyond is noise to them, and most of their time.
N_COMPONENTS = 50
PERPLEXITY = 30.0
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PictureOptions:
    """What to draw.

    Attributes:
        layers: 1..L.
        methods: keys of ``METHODS``.
        n_tokens: of each modality, in a map.
        seed: of the choice of tokens, of t-SNE and of UMAP.
        n_sigma: beyond how many standard deviations of the norm a token is an outlier.
    """

    layers: tuple[int, ...]
    methods: tuple[str, ...]
    n_tokens: int = 500
    seed: int = 0
    n_sigma: float = 3.0


def require_methods(methods: Sequence[str]) -> None:
    """Raises MirError for an unknown method, or one whose package is not installed."""
    for method in methods:
        if method not in METHODS:
            raise MirError(f"unknown method {method!r}; expected {', '.join(METHODS)}.")
    if "umap" in methods and importlib.util.find_spec("umap") is None:
        raise MirError("UMAP is not installed: pip install umap-learn, or leave umap out of --methods.")


def spread_layers(n_layers: int, n: int = 4) -> tuple[int, ...]:
    """n layers at equal distances, the first and the last included; all where there are fewer.

    >>> spread_layers(32), spread_layers(3)
    ((1, 11, 22, 32), (1, 2, 3))
    """
    if n_layers <= n:
        return tuple(range(1, n_layers + 1))
    return tuple(round(1 + place * (n_layers - 1) / (n - 1)) for place in range(n))


class PictureRecorder:
    """Draws its layers' data when it is given their features; give it to ``measure`` as ``watch``."""

    def __init__(self, options: PictureOptions) -> None:
        self._options = options
        self._maps: list[TokenMap] = []
        self._norms: list[NormHistogram] = []
        self._n_layers = 0
        self._n_samples = 0

    def __call__(self, features: TokenFeatures) -> None:
        """Take one layer of all samples; other layers than the asked-for cost nothing."""
        self._n_layers = features.layer
        self._n_samples = len(features.text_counts)
        if features.layer not in self._options.layers:
            return
        norms = {"vision": pooled_norms(features.vision), "text": pooled_norms(features.text)}
        self._norms += norm_histograms(features.layer, norms, self._options.n_sigma)
        scale = scale_from_norms(norms["text"])
        vision = self._some_tokens(features.vision, norms["vision"], scale)
        text = self._some_tokens(features.text, norms["text"], scale)
        self._maps += token_maps(features.layer, vision, text, self._options)

    def pictures(self, checkpoint: str, key: str) -> Pictures:
        """Everything, when all layers were given."""
        return Pictures(
            checkpoint=checkpoint,
            key=key,
            layers=self._options.layers,
            n_layers=self._n_layers,
            n_samples=self._n_samples,
            maps=tuple(self._maps),
            norms=tuple(self._norms),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )

    def _some_tokens(self, tokens: Tensor, norms: Tensor, scale: Tensor) -> Matrix:
        """The same seeded choice of rows at every layer, without its outliers, (tokens, d)."""
        generator = torch.Generator().manual_seed(self._options.seed)
        rows = torch.randperm(len(tokens), generator=generator)[: self._options.n_tokens].sort().values
        rows = rows.to(tokens.device)
        rows = rows[~outlier_rows(norms[rows], self._options.n_sigma, among=norms)]
        chosen: Matrix = (tokens[rows].double() * scale).cpu().numpy()
        return chosen


def norm_histograms(layer: int, norms: Mapping[str, Tensor], n_sigma: float) -> list[NormHistogram]:
    """Counts of each modality's norms in the same bins, and the thresholds of ``outlier_rows``.

    Bins go from the shortest to the longest token. They are equal, or grow by a constant factor where the longest is
    much longer than the shortest.
    """
    values = {modality: of_tokens.double().cpu().numpy() for modality, of_tokens in norms.items()}
    shortest, longest = min(map(np.min, values.values())), max(map(np.max, values.values()))
    wide = shortest > 0 and longest / shortest > WIDE_RATIO
    # NumPy widens a range of length zero; its own edges are taken for both modalities.
    bins = np.geomspace(shortest, longest, N_BINS + 1) if wide else N_BINS
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins)
    return [_norm_histogram(layer, modality, norms[modality], values[modality], edges, n_sigma) for modality in norms]


def _norm_histogram(
    layer: int, modality: str, norms: Tensor, values: Matrix, edges: Matrix, n_sigma: float
) -> NormHistogram:
    median, reach = float(norms.median()), n_sigma * float(norms.std()) if len(norms) > 1 else 0.0
    return NormHistogram(
        layer=layer,
        modality=modality,
        edges=tuple(edges.tolist()),
        counts=tuple(np.histogram(values, bins=edges)[0].tolist()),
        median=median,
        low=median - reach,
        high=median + reach,
        n_outliers=int(outlier_rows(norms, n_sigma).sum()),
    )


def token_maps(layer: int, vision: Matrix, text: Matrix, options: PictureOptions) -> list[TokenMap]:
    """The tokens in the plane by every method.

    Args:
        vision, text: (tokens, d), scaled.
    Raises:
        MirError: for fewer than three tokens together.
    """
    n_vision, n = len(vision), len(vision) + len(text)
    if n < 3:
        raise MirError(f"{n} tokens at layer {layer} are too few for a picture. Use more or longer samples.")
    components, shares = principal_components(np.concatenate([vision, text]), n_vision)
    maps = []
    for method in options.methods:
        if method == "pca":
            plane, note = components[:, :2], f"{shares[0]:.0%} and {shares[1]:.0%} of the variance"
        elif method == "tsne":
            plane, note = _tsne(components, options.seed)
        else:
            plane, note = _umap(components, options.seed)
        maps.append(TokenMap(layer, method, _points(plane[:n_vision]), _points(plane[n_vision:]), note))
    return maps


def principal_components(tokens: Matrix, n_vision: int) -> tuple[Matrix, Matrix]:
    """Coordinates along the directions of largest variance, (tokens, up to 50), and their shares of the variance.

    Directions have no sign of their own; here the vision tokens, the first ``n_vision`` rows, have the larger mean, so
    that layers can be compared by eye.
    """
    centred = tokens - tokens.mean(axis=0)
    left, scales, _ = np.linalg.svd(centred, full_matrices=False)
    total = float((scales**2).sum())
    shares = scales**2 / total if total > 0 else np.zeros_like(scales)
    components = (left * scales)[:, :N_COMPONENTS]
    if components.shape[1] < 2:
        components = np.pad(components, ((0, 0), (0, 2 - components.shape[1])))
        shares = np.pad(shares, (0, 2 - len(shares)))
    towards_text = components[:n_vision].sum(axis=0) < 0
    return np.where(towards_text, -components, components), shares


def _tsne(components: Matrix, seed: int) -> tuple[Matrix, str]:
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(components) - 1) / 3)
    method = TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed)
    return method.fit_transform(components), f"perplexity {perplexity:g}"


def _umap(components: Matrix, seed: int) -> tuple[Matrix, str]:
    from umap import UMAP  # pyright: ignore[reportMissingImports] - an optional dependency

    n_neighbors = min(15, len(components) - 1)
    method = UMAP(n_components=2, n_neighbors=n_neighbors, random_state=seed, n_jobs=1)
    return method.fit_transform(components), f"{n_neighbors} neighbours"


def _points(plane: Matrix) -> Points:
    """Four digits: more than a picture can show."""
    return tuple((float(f"{x:.4g}"), float(f"{y:.4g}")) for x, y in plane.tolist())
