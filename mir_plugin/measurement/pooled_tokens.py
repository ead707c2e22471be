"""One modality's tokens at one layer, over the samples of all processes: norms, medians, outliers, moments.

Each is ``mir_plugin.metric``'s, on the tokens as they are: outliers to be replaced are marked, and replaced in copies
of some thousand rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mir_plugin.engine.memory import CHUNK_ROWS
from mir_plugin.metric.frechet import way_on
from mir_plugin.metric.moments import Moments, require_two, root_of_centred
from mir_plugin.metric.normalize import lower_medians, outlier_rows, row_norms, share_of_longest
from mir_plugin.processes import ALONE, Group
from mir_plugin.results import MirConfig


@dataclass(frozen=True)
class PooledTokens:
    """One modality at one layer after outlier handling; rows to be replaced are marked, not copied.

    Attributes:
        features: (tokens, d), this process's rows without removed ones.
        counts: rows per sample of ``features``, (samples,).
        replaced: bool (tokens,), rows that count as ``replacement``, (d,); None if there are none.
        n_outliers: in all processes, scalar.
        longest: part of the sum of squared lengths that the longest tokens of all processes have, scalar.
        moments: of all processes, not scaled.
    """

    features: Tensor
    counts: Tensor
    replaced: Tensor | None
    replacement: Tensor | None
    n_outliers: Tensor
    longest: Tensor
    moments: Moments

    def without_covariance(self) -> PooledTokens:
        """The same for a process that does not decompose covariances."""
        one = self.moments
        return replace(self, moments=Moments(one.n, one.mean, one.cov.new_empty(0, 0)))

    def moments_without(self, left_out: Tensor, group: Group) -> Moments | None:
        """Moments of the samples that are kept: those of all, less what the others add around the mean. Collective.

        Nothing but small differences of one mean is subtracted, so no digits are lost, and only the rows left out are
        read.

        Args:
            left_out: bool, (this process's samples,).
        Returns:
            None where fewer than two tokens of all processes remain.
        """
        everything = self.moments
        mean = everything.mean
        d = len(mean)
        rows = torch.repeat_interleave(left_out.to(self.counts.device), self.counts)
        replaced = None if self.replaced is None else self.replaced[rows]
        total, products = torch.zeros_like(mean), mean.new_zeros(d, d)
        features = self.features[rows]
        for chunk in token_chunks(features, replaced, self.replacement):
            centred = chunk.sub_(mean)
            total += centred.sum(dim=0)
            products.addmm_(centred.t(), centred)
        n_kept = everything.n - sum(group.all_gather_object(len(features)))
        if n_kept < 2:
            return None
        shift, products = -group.all_reduce(total) / n_kept, group.all_reduce(products)
        if not len(everything.cov):
            return Moments(n_kept, mean + shift, everything.cov)
        kept = everything.cov * (everything.n - 1) - products - n_kept * torch.outer(shift, shift)
        return Moments(n_kept, mean + shift, kept / (n_kept - 1))


def pooled_tokens(
    features: Tensor, counts: Sequence[int], own_norms: Tensor, norms: Tensor, config: MirConfig, group: Group
) -> PooledTokens:
    """Outliers and moments of one modality. Collective.

    Args:
        features: (tokens, d), this process's rows; not modified.
        counts: rows of each sample.
        own_norms, norms: of this process's rows and of those of all processes.
    """
    rows_per_sample = counts_on(features.device, counts)
    of_all = outlier_rows(norms, config.n_sigma)
    n_outliers = of_all.sum()
    if config.outliers == "none" or (reads_early(norms.device) and n_outliers == 0):
        moments, none = pooled_moments(features, group=group), torch.zeros_like(n_outliers)
        return PooledTokens(features, rows_per_sample, None, None, none, share_of_longest(norms), moments)
    outliers = outlier_rows(own_norms, config.n_sigma, among=norms)
    if config.outliers == "remove":
        kept = features[~outliers]
        longest = share_of_longest(norms[~of_all])
        rows_per_sample = per_sample(~outliers, rows_per_sample)
        return PooledTokens(kept, rows_per_sample, None, None, n_outliers, longest, pooled_moments(kept, group=group))
    median = pooled_median(features, group)
    longest = share_of_longest(torch.where(of_all, row_norms(median[None]), norms))
    most = None if reads_early(norms.device) else _most_outliers(len(norms), config.n_sigma)
    moments = pooled_moments(features, outliers, median, group, most_replaced=most)
    return PooledTokens(features, rows_per_sample, outliers, median, n_outliers, longest, moments)


def reads_early(device: torch.device) -> bool:
    """Whether numbers may be looked at on the way: in host memory it is free, and covariances that go to the CPU to be
    decomposed are waited for anyway."""
    return device.type == "cpu" or way_on(device) != "polar"


def pooled_moments(
    features: Tensor,
    replaced: Tensor | None = None,
    replacement: Tensor | None = None,
    group: Group = ALONE,
    *,
    most_replaced: int | None = None,
) -> Moments:
    """``metric.moments.moments`` of the tokens of all processes, some thousand rows at a time. Collective.

    Args:
        features: (tokens, d), this process's rows; not modified.
        replaced: bool (tokens,), rows that count as ``replacement`` instead.
        replacement: (d,).
        group: the processes whose rows are taken together.
        most_replaced: an upper bound of the rows replaced in all processes; None counts them.
    Raises:
        MirError: for fewer than two tokens in all processes together.
    """
    n, d = sum(group.all_gather_object(len(features))), features.shape[1]
    require_two(n)
    total = torch.zeros(d, dtype=torch.float64, device=features.device)
    for chunk in token_chunks(features, replaced, replacement):
        total += chunk.sum(dim=0)
    mean = group.all_reduce(total) / n
    products = torch.zeros(d, d, dtype=torch.float64, device=features.device)
    for chunk in token_chunks(features, replaced, replacement):
        _add_upper_products(products, chunk.sub_(mean))
    products = products.triu_() + products.triu(1).t()
    if replaced is None:
        n_replaced = 0
    elif most_replaced is not None and n - most_replaced > d:
        n_replaced = most_replaced
    else:
        n_replaced = sum(group.all_gather_object(int(replaced.sum())))
    root = None
    if n - max(n_replaced, 1) < d:
        own = features if replaced is None else features[~replaced]
        distinct = group.all_gather(own.double() - mean)
        counts = torch.ones(len(distinct), device=features.device)
        if n_replaced and replacement is not None:
            distinct = torch.cat([distinct, (replacement.double() - mean)[None]])
            counts = torch.cat([counts, counts.new_tensor([n_replaced])])
        root = root_of_centred(distinct, counts) / (n - 1) ** 0.5
    return Moments(n, mean, group.all_reduce(products) / (n - 1), root)


def pooled_median(features: Tensor, group: Group = ALONE) -> Tensor:
    """``metric.normalize.coordinate_median`` over the tokens of all processes, (tokens, d) → (d,). Collective.

    Coordinates are taken in blocks made contiguous along the tokens: a whole transposed copy would double the memory of
    a layer. Processes share each block's coordinates, so every median is taken over all tokens and is exact.
    """
    medians = features.new_empty(features.shape[1])
    width = (64 if features.device.type == "cpu" else 1024) * group.size  # a GPU takes one thread block a coordinate
    for block, own in zip(features.split(width, dim=1), medians.split(width), strict=True):
        # First contiguous, then transposed: torch transposes whole matrices in tiles, and parts element by element.
        columns = group.all_to_all_columns(block).contiguous().t().clone(memory_format=torch.contiguous_format)
        own.copy_(group.all_gather(_lower_medians_in_place(columns)))
    return medians


def pooled_norms(features: Tensor) -> Tensor:
    """``metric.normalize.row_norms`` of this process's tokens, without a float64 copy of all of them."""
    norms = torch.empty(len(features), dtype=torch.float64, device=features.device)
    # Into one tensor: small results allocated between the copies would keep the heap from using their room again.
    for rows, own in zip(features.split(CHUNK_ROWS), norms.split(CHUNK_ROWS), strict=True):
        torch.linalg.vector_norm(rows.double(), dim=1, out=own)
    return norms


def per_sample(values: Tensor, counts: Tensor) -> Tensor:
    """Sum of the values of each sample's tokens: (tokens,) and (samples,) → (samples,), in the values' type or int64.

    >>> per_sample(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([2, 0, 1])).tolist()
    [3.0, 0.0, 4.0]
    """
    values = values.long() if values.dtype == torch.bool else values
    samples = torch.arange(len(counts), device=counts.device)
    sample = torch.repeat_interleave(samples, counts, output_size=len(values))
    return torch.zeros(len(counts), dtype=values.dtype, device=values.device).index_add_(0, sample, values)


def token_chunks(
    features: Tensor,
    replaced: Tensor | None = None,
    replacement: Tensor | None = None,
    dtype: torch.dtype = torch.float64,
) -> Iterator[Tensor]:
    """Copies of the tokens, some thousand rows at a time (at least one chunk), with replaced rows replaced."""
    for start in range(0, max(len(features), 1), CHUNK_ROWS):
        chunk = features[start : start + CHUNK_ROWS].to(dtype, copy=True)
        if replaced is not None and replacement is not None:
            torch.where(replaced[start : start + CHUNK_ROWS, None], replacement.to(dtype), chunk, out=chunk)
        yield chunk


def counts_on(device: torch.device, counts: Sequence[int]) -> Tensor:
    """The counts on a device, (samples,); copied from pinned memory, or the host would wait for all queued work."""
    on_host = torch.tensor(counts, dtype=torch.long, pin_memory=device.type == "cuda")
    return on_host.to(device, non_blocking=True)


def _most_outliers(n: int, n_sigma: float) -> int:
    """How many of n norms can be n_sigma deviations from their median: Chebyshev, the median being within one of the
    mean."""
    return n if n_sigma <= 2 else int(n / (n_sigma - 1) ** 2)


def _add_upper_products(products: Tensor, centred: Tensor) -> None:
    """Add centredᵀ centred to a (d, d) tensor, on and above its diagonal only: two thirds of the work."""
    width = -(-centred.shape[1] // 3)
    for start in range(0, centred.shape[1], width):
        products[start : start + width, start:].addmm_(centred[:, start : start + width].t(), centred[:, start:])


def _lower_medians_in_place(rows: Tensor) -> Tensor:
    """Lower median of each row, (rows, n) → (rows,); the order of the rows' values is lost."""
    if rows.device.type != "cpu":
        return lower_medians(rows)
    # NumPy selects with vector instructions, in a third of torch's time; half precision is exact in float32.
    values = (rows if rows.dtype == torch.float64 else rows.float()).numpy()
    middle = (values.shape[1] - 1) // 2
    values.partition(middle, axis=1)
    return torch.from_numpy(values[:, middle].copy()).to(rows.dtype)
