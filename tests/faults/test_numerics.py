"""Features that are extreme, degenerate or broken: right to rounding, or refused with layer and sample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import typer
from faults.battery import Bench, Case, Outcome, Refused, Right, each
from torch import Tensor, nn

from mir_plugin.engine.features import recorded_outputs
from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.metric.layer import mir
from mir_plugin.results import LayerDistance, MirConfig, MirResult
from mir_plugin.samples.sample_set import Sample, SampleSet
from mir_plugin.types import TokenFeatures

from toy import ToyAdapter, toy_samples

pytestmark = pytest.mark.slow

PLAIN = MirConfig(outliers="none")


def told(compute: Callable[[], object]) -> Callable[[Bench], Outcome]:
    """The outcome of a computation, as the command line would end."""

    def act(bench: Bench) -> Outcome:
        value: list[object] = []

        def command() -> None:
            try:
                value.append(compute())
            except MirError as error:
                typer.echo(f"mir: {error}", err=True)
                raise SystemExit(1) from error

        outcome = bench.called(command)
        return dataclasses.replace(outcome, value=value[0] if value else None)

    return act


def normal(n: int, d: int, seed: int, mean: float = 0.0, std: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(n, d, generator=generator, dtype=torch.float64)


def layer(vision: Tensor, text: Tensor, config: MirConfig = PLAIN) -> LayerDistance:
    features = TokenFeatures(1, vision, text, (len(vision),), (len(text),), ("only",))
    return PooledLayer.of(features, config).layer_distance()


def reference(vision: Tensor, text: Tensor, normalize: bool = True) -> float:
    """The squared Fréchet distance by the textbook, its trace term as the singular values of the two centred sets.

    That is exact where covariances are singular, too: no root of rounded zeros is taken.
    """
    vision, text = vision.double(), text.double()
    scale = 1 / text.norm(dim=1).mean() if normalize else 1.0
    vision, text = vision * scale, text * scale
    roots = [(rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (vision, text)]
    cross = torch.linalg.svdvals(roots[0] @ roots[1].t()).sum()
    means = (vision.mean(0) - text.mean(0)).square().sum()
    return float(means + roots[0].square().sum() + roots[1].square().sum() - 2 * cross)


def close(expected: float, *, rel: float = 1e-9, tolerance: float = 0.0, what: str = "distance") -> Right:
    def check(value: object, _: Bench) -> str:
        number = value.distance if isinstance(value, LayerDistance) else value
        assert isinstance(number, float)
        assert number == pytest.approx(expected, rel=rel, abs=tolerance)
        return f"{what} {number:.6g}; expected {expected:.6g}"

    return Right(check)


def features(name: str, done: str, vision: Tensor, text: Tensor, **tolerance: float) -> Case:
    """A layer whose distance must be the textbook's."""
    return Case(name, done, told(lambda: layer(vision, text)), close(reference(vision, text), **tolerance))


def scaled(factor: float, dtype: torch.dtype = torch.float32) -> Case:
    """MIR does not change when all features are multiplied: text-centric normalization divides by the text's length."""
    vision, text = normal(60, 12, 1, 0.5), normal(80, 12, 2)
    kept = (vision.to(dtype) * factor, text.to(dtype) * factor)
    name = f"norms times {factor:g} in {str(dtype)[6:]}"
    return Case(
        name,
        f"all features multiplied by {factor:g}, in {str(dtype)[6:]}",
        told(lambda: layer(*kept)),
        close(reference(*kept), rel=1e-9),
    )


def massive(size: float) -> tuple[Tensor, Tensor]:
    """Some tokens have one coordinate that is far larger than everything else, as attention sinks have."""
    vision, text = normal(300, 16, 3, std=0.1), normal(300, 16, 4, std=0.1)
    vision[::50, 5] = size
    text[0, 5] = -size
    return vision, text


def constant(value: float, n: int = 20, d: int = 8) -> Tensor:
    return torch.full((n, d), value, dtype=torch.float64)


BROKEN_SAMPLE = "toy-2"


class BrokenLayer(nn.Module):
    """A decoder layer that gives NaN or infinity for the third sample only."""

    def __init__(self, layer: nn.Module, value: float, length: int) -> None:
        super().__init__()
        self.layer, self.value, self.length = layer, value, length

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.layer(*args, **kwargs)
        states = output if isinstance(output, Tensor) else output[0]
        if states.shape[1] == self.length:
            states = states.clone()
            states[:, -1, 3] = self.value
        return states if isinstance(output, Tensor) else (states, *output[1:])


def toy_with(change: Callable[[ToyAdapter], object], n_samples: int = 4, **options: Any) -> Callable[[], MirResult]:
    """MIR of the toy decoder after something was done to it."""

    def compute() -> MirResult:
        adapter = ToyAdapter()
        change(adapter)
        return measure(adapter, SampleSet(tuple(toy_samples(n_samples))), checkpoint="toy", **options)

    return compute


def broken(at: int, value: float) -> Callable[[ToyAdapter], None]:
    def change(adapter: ToyAdapter) -> None:
        [batch] = [adapter.encode([sample]) for sample in toy_samples(4) if sample.sample_id == BROKEN_SAMPLE]
        wrapped = BrokenLayer(adapter.model.layers[at], value, batch.vision_mask.shape[1])
        adapter.model.layers[at] = wrapped
        adapter.decoder = dataclasses.replace(adapter.decoder, layers=list(adapter.model.layers))

    return change


def without_final_norm(adapter: ToyAdapter) -> None:
    adapter.model.norm = nn.Identity()  # type: ignore[assignment]
    adapter.decoder = dataclasses.replace(adapter.decoder, final_norm=adapter.model.norm)


def silent_norm(adapter: ToyAdapter) -> None:
    """The final norm multiplies by zero, as where its weight was never loaded."""
    nn.init.zeros_(adapter.model.norm.weight)


def as_measured_depth_first(change: Callable[[ToyAdapter], object]) -> float:
    """MIR from the hidden states of whole forward passes, one sample after the other."""
    adapter = ToyAdapter()
    change(adapter)
    rows: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in adapter.decoder.layers]
    for sample in toy_samples(4):
        batch = adapter.encode([sample])
        states: list[Tensor] = []
        with torch.no_grad(), recorded_outputs(adapter, states.append):
            adapter.forward(batch)
        for (vision, text), state in zip(rows, states, strict=True):
            vision.append(state[batch.vision_mask])
            text.append(state[batch.text_mask])
    return math.log10(math.fsum(layer(torch.cat(v), torch.cat(t), MirConfig()).distance for v, t in rows))


def in_float16(change: Callable[[ToyAdapter], object]) -> Callable[[ToyAdapter], None]:
    def changed(adapter: ToyAdapter) -> None:
        change(adapter)
        adapter.model.half()
        plain = adapter.encode

        def encode(samples: list[Sample]) -> Any:
            batch = plain(samples)
            inputs = {**batch.inputs, "inputs_embeds": batch.inputs["inputs_embeds"].half()}
            return dataclasses.replace(batch, inputs=inputs)

        adapter.encode = encode  # type: ignore[method-assign]

    return changed


def large_weights(adapter: ToyAdapter) -> None:
    for one in adapter.model.layers:
        one.mlp.down_proj.weight.data.mul_(1e6)


def mir_of(value: object) -> float:
    assert isinstance(value, MirResult)
    return value.mir


def result_of(change: Callable[[ToyAdapter], object]) -> Right:
    """The number must be that of whole forward passes, to the rounding of float32 in another order."""

    def check(value: object, _: Bench) -> str:
        expected = as_measured_depth_first(change)
        assert mir_of(value) == pytest.approx(expected, rel=1e-6)
        return f"MIR {mir_of(value):.6f}; expected {expected:.6f}"

    return Right(check)


def measured(
    name: str, done: str, change: Callable[[ToyAdapter], object], expected: Right | Refused, **options: Any
) -> Case:
    return Case(name, done, told(toy_with(change, **options)), expected)


def nothing(_: ToyAdapter) -> None:
    pass


DIAGONAL = torch.tensor([4.0, 1.0, 0.25, 9.0], dtype=torch.float64)


def with_exact_moments(mean: Tensor, variances: Tensor) -> Tensor:
    """2d points at ± one axis each: their mean and their diagonal covariance are exactly these."""
    d = len(variances)
    arms = torch.diag((variances * (2 * d - 1) / 2).sqrt())
    return torch.cat([mean + arms, mean - arms])


EXACT_V = with_exact_moments(torch.zeros(4, dtype=torch.float64), DIAGONAL)
EXACT_T = with_exact_moments(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64), DIAGONAL.flip(0))
CLOSED_FORM = 30.0 + float((DIAGONAL.sqrt() - DIAGONAL.flip(0).sqrt()).square().sum())
UNSCALED = MirConfig(outliers="none", normalize=False)

CASES = (
    Case(
        "closed form",
        "two diagonal Gaussians with moments known exactly",
        told(lambda: layer(EXACT_V, EXACT_T, UNSCALED)),
        close(CLOSED_FORM),
    ),
    Case(
        "closed form in float32",
        "the same stored as float32",
        told(lambda: layer(EXACT_V.float(), EXACT_T.float(), UNSCALED)),
        close(CLOSED_FORM, rel=1e-6),
    ),
    *(scaled(factor) for factor in (1e-6, 1e-3, 1e3, 1e6, 1e30)),
    *(scaled(factor, torch.bfloat16) for factor in (1e-6, 1e6, 1e30)),
    *(scaled(factor, torch.float16) for factor in (1e-3, 1e3)),
    *(
        features(
            f"massive activation of {size:g}",
            f"one coordinate of some tokens is {size:g}, all others near 0.1",
            *massive(size),
            rel=1e-7,
        )
        for size in (1e2, 1e4, 1e6)
    ),
    features(
        "far from the origin",
        "all features lie 10^6 from the origin and vary by 1",
        normal(200, 8, 5, 1e6),
        normal(200, 8, 6, 1e6),
        rel=1e-3,
    ),
    features("fewer tokens than dimensions", "20 and 30 tokens in 64 dimensions", normal(20, 64, 7), normal(30, 64, 8)),
    features(
        "fewer vision tokens than dimensions",
        "20 vision tokens, 200 text tokens in 64 dimensions",
        normal(20, 64, 9),
        normal(200, 64, 10),
    ),
    features(
        "fewer text tokens than dimensions",
        "200 vision tokens, 20 text tokens in 64 dimensions",
        normal(200, 64, 11),
        normal(20, 64, 12),
    ),
    features(
        "as many tokens as dimensions", "16 and 16 tokens in 16 dimensions", normal(16, 16, 13), normal(16, 16, 14)
    ),
    features("two tokens each", "two vision and two text tokens", normal(2, 8, 15), normal(2, 8, 16)),
    features("one dimension", "features of one dimension", normal(50, 1, 17, 1.0), normal(60, 1, 18)),
    features(
        "collinear",
        "vision tokens on one line",
        normal(50, 1, 19) * torch.ones(8, dtype=torch.float64),
        normal(60, 8, 20),
        rel=1e-6,  # 7 eigenvalues are roots of rounded zeros
    ),
    features(
        "duplicated coordinates",
        "every coordinate stored twice: singular covariances",
        normal(50, 6, 21).repeat(1, 2),
        normal(60, 6, 22).repeat(1, 2),
        rel=1e-6,  # 6 eigenvalues are roots of rounded zeros
    ),
    features(
        "dead coordinates",
        "half of all coordinates are 0",
        normal(50, 12, 23) * torch.tensor([1.0, 0.0] * 6),
        normal(60, 12, 24) * torch.tensor([1.0, 0.0] * 6),
        rel=1e-6,  # 6 eigenvalues are roots of rounded zeros
    ),
    features("constant vision", "all vision tokens are the same", constant(0.3), normal(60, 8, 25)),
    features("constant text", "all text tokens are the same", normal(60, 8, 26), constant(0.3)),
    features("both constant", "all vision tokens are one point, all text tokens another", constant(0.3), constant(0.5)),
    features(
        "spectra of 12 orders",
        "variances from 1 to 10^-12",
        normal(400, 13, 27) * torch.logspace(0, -6, 13, dtype=torch.float64),
        normal(400, 13, 28) * torch.logspace(-6, 0, 13, dtype=torch.float64),
        rel=1e-7,
    ),
    Case(
        "a set against itself",
        "vision and text tokens are the same 100 rows",
        told(lambda: layer(normal(100, 8, 29), normal(100, 8, 29)).distance),
        close(0.0, rel=0, tolerance=1e-12),
    ),
    Case(
        "a set against itself, singular",
        "the same 10 rows in 64 dimensions",
        told(lambda: layer(normal(10, 64, 30), normal(10, 64, 30)).distance),
        close(0.0, rel=0, tolerance=1e-12),
    ),
    Case(
        "all the same",
        "vision and text tokens are one and the same point in every layer",
        told(lambda: mir([layer(constant(0.3), constant(0.3)).distance])),
        Refused("no logarithm", "Check that the samples"),
    ),
    Case(
        "one vision token",
        "one vision token",
        told(lambda: layer(normal(1, 8, 31), normal(9, 8, 32))),
        Refused("1 token", "at least 2", "Use more or longer samples"),
    ),
    Case(
        "one text token",
        "one text token",
        told(lambda: layer(normal(9, 8, 33), normal(1, 8, 34))),
        Refused("1 token", "at least 2", "Use more or longer samples"),
    ),
    Case(
        "no vision token",
        "no vision token",
        told(lambda: layer(normal(0, 8, 35), normal(9, 8, 36))),
        Refused("0 token", "at least 2"),
    ),
    Case(
        "no text token",
        "no text token",
        told(lambda: layer(normal(9, 8, 37), normal(0, 8, 38))),
        Refused("no text token", "Every sample needs text"),
    ),
    Case(
        "text of zeros",
        "all text tokens are 0",
        told(lambda: layer(normal(9, 8, 39), constant(0.0))),
        Refused("norm zero", "Check the checkpoint"),
    ),
    Case(
        "text of zeros, unscaled",
        "all text tokens are 0, without normalization",
        told(lambda: layer(normal(9, 8, 39), constant(0.0), UNSCALED)),
        Refused("norm zero", "Check the checkpoint"),
    ),
    Case(
        "removal leaves one",
        "outliers are removed until one token is left",
        told(
            lambda: layer(
                normal(9, 8, 40),
                torch.cat([constant(0.3, 1), constant(90.0, 1)]),
                MirConfig(outliers="remove", n_sigma=0.1),
            )
        ),
        Refused("1 token", "at least 2"),
    ),
    measured(
        "nan in the first layer",
        "layer 1 gives NaN for one of four samples",
        broken(0, math.nan),
        Refused("layer 1", BROKEN_SAMPLE, "text tokens", "--dtype"),
    ),
    measured(
        "nan in the middle layer",
        "layer 2 gives NaN for one of four samples",
        broken(1, math.nan),
        Refused("layer 2", BROKEN_SAMPLE, "--dtype"),
    ),
    measured(
        "nan in the last layer",
        "layer 3 gives NaN for one of four samples",
        broken(2, math.nan),
        Refused("layer 3", BROKEN_SAMPLE, "--dtype"),
    ),
    measured(
        "inf in the middle layer",
        "layer 2 gives infinity for one of four samples",
        broken(1, math.inf),
        Refused("layer 2", BROKEN_SAMPLE, "--dtype"),
    ),
    measured(
        "-inf in batches of four",
        "layer 2 gives minus infinity for one of four samples, all in one batch",
        broken(1, -math.inf),
        Refused("layer 2", "toy-", "--dtype"),
        batch_size=1,
    ),
    measured(
        "float16 overflow",
        "weights so large that float16 overflows in layer 1",
        in_float16(large_weights),
        Refused("layer 1", "toy-0", "--dtype bfloat16 or float32"),
    ),
    measured(
        "no overflow in float32",
        "the same weights in float32",
        large_weights,
        result_of(large_weights),
    ),
    measured(
        "last layer not normalised",
        "a decoder without final norm: the last hidden state as it is",
        without_final_norm,
        result_of(without_final_norm),
    ),
    measured(
        "final norm of zeros",
        "the final norm's weight is 0: every token becomes 0",
        silent_norm,
        Refused("norm zero", "Check the checkpoint"),
    ),
    measured(
        "one sample",
        "one sample",
        nothing,
        Right(lambda value, _: f"MIR {mir_of(value):.6f}; uncertainty: {value.uncertainty['not_computed']}"),
        n_samples=1,
    ),
    measured(
        "more samples a batch than samples",
        "four samples in batches of 100",
        nothing,
        result_of(nothing),
        batch_size=100,
    ),
    measured(
        "batches of three",
        "four samples in batches of three, padded",
        nothing,
        result_of(nothing),
        batch_size=3,
    ),
)


@each(CASES)
def test_numbers_are_right_to_rounding_or_refused(case: Case, bench: Bench) -> None:
    bench.hold("numerics", case)
