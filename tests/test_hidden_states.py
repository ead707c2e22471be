"""The functions for hidden states of one's own: clear errors, the README's lines against ``mir run``, torch alone."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.tiny_models import TINY_MODELS
from documented import REPOSITORY, blocks
from torch import Tensor

from mir_plugin import MirError, layer_distance, modality_integration_rate
from mir_plugin.measurement.pooled import PooledLayer
from mir_plugin.metric.layer import mir
from mir_plugin.results import MirConfig
from mir_plugin.types import TokenFeatures


def layers(n: int = 3, n_vision: int = 40, n_text: int = 30, d: int = 6, seed: int = 0) -> tuple[list[Tensor], ...]:
    generator = torch.Generator().manual_seed(seed)
    return (
        [2 * torch.randn(n_vision, d, generator=generator) + 1 for _ in range(n)],
        [torch.randn(n_text, d, generator=generator) for _ in range(n)],
    )


def test_the_rate_is_the_logarithm_of_the_sum_of_the_layers_distances() -> None:
    vision, text = layers()
    rate = modality_integration_rate(vision, text)
    assert (rate.shape, rate.dtype) == ((), torch.float64)
    assert rate.item() == mir([layer_distance(v, t).item() for v, t in zip(vision, text, strict=True)])
    assert modality_integration_rate(torch.stack(vision), torch.stack(text)) == rate  # layers along the first axis


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_float_dtype_is_measured_in_float64(dtype: torch.dtype) -> None:
    (vision,), (text,) = layers(1)
    distance = layer_distance(vision.to(dtype), text.to(dtype))
    assert distance == layer_distance(vision.to(dtype).double(), text.to(dtype).double())


def test_options_are_those_of_the_protocol() -> None:
    (vision,), (text,) = layers(1)
    vision[3] *= 30
    replaced, removed, kept = (layer_distance(vision, text, outliers=o) for o in ("replace", "remove", "none"))  # type: ignore[arg-type]
    assert len({replaced.item(), removed.item(), kept.item()}) == 3
    assert layer_distance(vision, text) == replaced
    assert layer_distance(vision, text, n_sigma=1e3) == kept
    scale = 1 / text.double().norm(dim=1).mean()
    assert layer_distance(vision, text, normalize=False).item() == pytest.approx((replaced / scale**2).item())
    rates = {modality_integration_rate([vision], [text], outliers=o).item() for o in ("replace", "remove", "none")}  # type: ignore[arg-type]
    assert len(rates) == 3


def test_measuring_leaves_no_graph_and_no_trace_in_the_tokens() -> None:
    (vision,), (text,) = layers(1)
    vision.requires_grad_()
    before = vision.detach().clone()
    assert not layer_distance(vision, text).requires_grad
    assert torch.equal(vision, before)


GOOD = torch.eye(5)


@pytest.mark.parametrize(
    ("vision", "text", "message"),
    [
        (torch.zeros(2, 5, 5), GOOD, r"vision has shape \(2, 5, 5\)"),
        (GOOD, torch.zeros(5), r"text has shape \(5,\)"),
        (GOOD, torch.ones(4, 6), "width 5.*6"),
        (GOOD.long(), GOOD, "vision has dtype torch.int64"),
        (GOOD.numpy(), GOOD, "vision.*ndarray"),
        (GOOD, GOOD.masked_fill(GOOD > 0, torch.nan), "5 of 5 text tokens are NaN"),
        (GOOD / 0, GOOD, "5 of 5 vision tokens are NaN or infinite"),
        (GOOD[:1], GOOD, r"1 token\(s\)"),
        (GOOD, GOOD[:0], "no text token"),
        (GOOD, GOOD * 0, "norm zero"),
        (GOOD.to("meta"), GOOD, "meta"),
    ],
)
def test_tokens_that_cannot_be_measured_are_refused(vision: Any, text: Any, message: str) -> None:
    with pytest.raises(MirError, match=message):
        layer_distance(vision, text)
    with pytest.raises(MirError, match=f"layer 2: .*{message}"):
        modality_integration_rate([2 * GOOD + 1, vision], [GOOD, text])


def test_layers_that_do_not_pair_up_and_unknown_options_are_refused() -> None:
    vision, text = layers()
    with pytest.raises(MirError, match="3 layers of vision and 2 of text"):
        modality_integration_rate(vision, text[:2])
    with pytest.raises(MirError, match="0 layers"):
        modality_integration_rate([], [])
    with pytest.raises(MirError, match="'drop'"):
        layer_distance(vision[0], text[0], outliers="drop")  # type: ignore[arg-type]
    with pytest.raises(MirError, match="no logarithm"):
        modality_integration_rate(vision, vision)


@pytest.mark.parametrize("n", [5, 7, 40, 200])
@pytest.mark.parametrize("d", [2, 6, 33])
def test_a_set_has_no_distance_to_itself_whatever_rounding_leaves(n: int, d: int) -> None:
    tokens = torch.randn(n, d, generator=torch.Generator().manual_seed(n * d)) + 1
    assert layer_distance(tokens, tokens.clone()) == 0
    features = TokenFeatures(1, tokens, tokens.clone(), (n,), (n,))
    assert PooledLayer.of(features, MirConfig()).layer_distance().distance == 0


@pytest.mark.slow
def test_the_lines_of_the_readme_give_what_mir_run_gives(tmp_path: Path) -> None:
    import transformers
    from typer.testing import CliRunner

    from mir_plugin import LoadOptions, embedded_samples, load_adapter
    from mir_plugin.cli import app

    tiny = TINY_MODELS["llava"]()
    # As a trained one: behind a final norm of equal weights all tokens are equally long, and rounding finds outliers.
    torch.nn.init.normal_(tiny.model.model.language_model.norm.weight, mean=1.0, std=0.2)
    tiny.model.save_pretrained(tmp_path / "llava")
    tiny.processor.save_pretrained(tmp_path / "llava")
    command = ["run", str(tmp_path / "llava"), "--embedded", "--n-samples", "4", "--batch-size", "4", "--device", "cpu"]
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "out"), "--json"], catch_exceptions=False)
    measured = json.loads(done.stdout)

    (block,) = (one for one in blocks(REPOSITORY / "README.md") if "modality_integration_rate(" in one.text)
    adapter = load_adapter(tmp_path / "llava", LoadOptions(device="cpu"))
    names: dict[str, Any] = {
        "model": transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "llava"),
        "inputs": adapter.encode(embedded_samples(4).samples).inputs,
    }
    with torch.no_grad():
        exec(compile(block.text, str(block), "exec"), names)
    # The same float32 layers on the same batch; statistics once over chunks, once over whole tensors.
    assert names["mir"].item() == pytest.approx(measured["mir"], abs=1e-6)


TORCH_ALONE = """
import sys
sys.modules["numpy"] = None  # torch does without, if it has to
import torch

allowed = {*sys.stdlib_module_names, *(name.partition(".")[0] for name in sys.modules), "mir_plugin"}

class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in allowed:
            raise ModuleNotFoundError(f"{name} is blocked")

sys.meta_path.insert(0, Nothing())
import importlib, pkgutil
import mir_plugin.metric
for module in pkgutil.iter_modules(mir_plugin.metric.__path__):
    importlib.import_module(f"mir_plugin.metric.{module.name}")
PLACE
from mir_plugin import modality_integration_rate, mir_loss
torch.manual_seed(0)
vision, text = torch.randn(3, 50, 4), torch.randn(3, 60, 4)
vision[0, 3] *= 40  # an outlier, so that medians are taken
print(float(modality_integration_rate(vision, text)))
states = torch.cat([vision, text], dim=1)[:, None].requires_grad_()
mir_loss(states, torch.arange(110)[None] < 50, torch.arange(110)[None] >= 50).backward()
assert states.grad.abs().sum() > 0
"""


def alone_with_torch(further: str = "") -> subprocess.CompletedProcess[str]:
    code = TORCH_ALONE.replace("PLACE", further)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_metric_needs_torch_and_nothing_else() -> None:
    done = alone_with_torch()
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    vision, text = torch.randn(3, 50, 4), torch.randn(3, 60, 4)
    vision[0, 3] *= 40
    assert float(done.stdout) == pytest.approx(modality_integration_rate(vision, text).item(), rel=1e-12)


def test_the_metric_imports_nothing_else_of_ours() -> None:
    imported = set()
    for path in (REPOSITORY / "mir_plugin" / "metric").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
    assert {name for name in imported if not name.startswith("mir_plugin.metric.")} <= {
        *sys.stdlib_module_names,
        *("collections.abc", "torch", "torch.autograd.function", "mir_plugin.errors"),
        "scipy.special",  # inside half_width: Student's quantile, for the interval of a measured result
    }


@pytest.mark.slow
@pytest.mark.parametrize("module", ["numpy", "scipy", "transformers", "mir_plugin.samples.images"])
def test_whatever_else_would_be_found(module: str) -> None:
    done = alone_with_torch(f"import {module}")
    assert done.returncode != 0
    assert "blocked" in done.stderr or "numpy" in done.stderr
