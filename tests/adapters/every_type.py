"""What becomes of every image-text type of transformers: the table in docs/reference/families.md.

    python tests/adapters/every_type.py            # measure a tiny random model of every type, write the page
    python tests/adapters/every_type.py --check    # exit 1, naming the types whose row is another one

It takes one to two minutes of processor time. tests/adapters/test_every_type.py holds each row to what is measured.
"""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch
import transformers

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from adapters.tensor_processor import TensorProcessor, image_tensors
from adapters.tiny_configs import MODEL_TYPES, tiny_config

from mir_plugin.engine.replay import check_replay
from mir_plugin.errors import MirError
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters.huggingface.adapter import HuggingFaceAdapter, from_loaded
from mir_plugin.model_adapters.introspection.image_positions import feature_rows, owner_of
from mir_plugin.results import MirResult
from mir_plugin.samples.sample_set import Sample, SampleSet

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "families.md"
# In transformers 4, these return other things behind the features, in one tuple.
RESULTS_BEHIND = {"blip-2", "instructblip", "ovis2", "qwen3_vl", "qwen3_vl_moe"}
MEASURED, REFUSED, NOT_BUILT = "measured", "refused", "not built"

# Their widths are the seeds of their pixels (TensorProcessor).
SAMPLES = (
    Sample("first", PIL.Image.new("RGB", (8, 8)), "A cat sat on the mat."),
    Sample("second", PIL.Image.new("RGB", (9, 8)), "And now for something longer than that: two sentences. Indeed."),
    Sample("third", PIL.Image.new("RGB", (10, 8)), "Nothing."),
)


@dataclass(frozen=True)
class Row:
    """A type's line of the table."""

    model_type: str
    status: str
    reason: str = ""

    def __str__(self) -> str:
        return f"| `{self.model_type}` | `{MODEL_TYPES[self.model_type]}` | {self.status} | {self.reason} |"


class NotBuilt(Exception):
    """No tiny model of this type can be made here; says why."""


def tiny_model(model_type: str) -> Any:
    """A random model in eval mode.

    Raises:
        NotBuilt: if transformers cannot make one from the small configuration.
    """
    try:
        return random_model(model_type, tiny_config(model_type))
    except Exception as error:  # whatever a model's code raises for sizes that no published model has
        raise NotBuilt(f"{type(error).__name__}: {' '.join(str(error).split())[:150]}") from error


def random_model(model_type: str, config: Any) -> Any:
    """A model of this configuration in eval mode, no matrix of it zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, MODEL_TYPES[model_type])(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():  # Gemma 3's projection begins as zeros
                torch.nn.init.normal_(parameter, std=0.1)
        return model


def tiny_adapter(model: Any, model_type: str) -> HuggingFaceAdapter:
    """The model with a processor that writes as many image tokens as the model makes features.

    Raises:
        MirError: if the model is refused.
    """
    return from_loaded(model, TensorProcessor(model, model_type, n_image_tokens(model, model_type)))


def n_image_tokens(model: Any, model_type: str) -> int:
    """Features of one image; 1 where the model cannot say."""
    owner: Any = owner_of(model, "get_image_features")
    if owner is None:
        return 1
    taken = inspect.signature(owner.get_image_features).parameters
    tensors = {name: value for name, value in image_tensors(model, model_type, 0).items() if name in taken}
    settings = {name: getattr(model.config, name, None) for name in taken if name.startswith("vision_feature_")}
    if "vision_feature_select_strategy" in taken and model_type == "llama4":
        settings["vision_feature_select_strategy"] = model.config.vision_config.vision_feature_select_strategy
    with torch.no_grad():
        features = owner.get_image_features(**tensors, **{k: v for k, v in settings.items() if v is not None})
    return feature_rows(features[0] if model_type in RESULTS_BEHIND and isinstance(features, tuple) else features)


def measured(adapter: HuggingFaceAdapter) -> MirResult:
    """MIR of the three samples. Raises MirError if the model is refused while it runs."""
    return measure(adapter, SampleSet(SAMPLES), checkpoint="tiny", with_uncertainty=False)


def row_of(model_type: str) -> Row:
    """Build, wrap and measure a tiny model."""
    try:
        model = tiny_model(model_type)
    except NotBuilt as why:
        return Row(model_type, NOT_BUILT, str(why))
    try:
        adapter = tiny_adapter(model, model_type)
        measured(adapter)
        path = check_replay(adapter, SAMPLES[0]).path
    except MirError as refusal:
        return Row(model_type, REFUSED, _without_sizes(str(refusal)))
    return Row(model_type, MEASURED, path)


def page(rows: list[Row]) -> str:
    """The page, with its numbers counted."""
    counts = {status: sum(row.status == status for row in rows) for status in (MEASURED, REFUSED, NOT_BUILT)}
    lines = [
        "# Hugging Face model types\n",
        f"What `mir` does with each of the {len(rows)} image-text types of transformers {transformers.__version__}: "
        f"{counts[MEASURED]} are measured, {counts[REFUSED]} are refused, {counts[NOT_BUILT]} could not be tried.\n",
        "Tried with a tiny random model of each type, made from its own default configuration; its inputs are tensors, "
        "not files of a published processor. The measured ones have, layer by layer, the distances that NumPy computes "
        "from `output_hidden_states` of the same model, and their image positions are those at which another image "
        "changes what the first layer is given.\n",
        "Breadth-first runs each layer on all samples before the next one; depth-first runs whole forward passes, for "
        "layers that cannot be called one by one. Both give the same numbers.\n",
        "| type | class | here | how, or why not |",
        "|---|---|---|---|",
        *map(str, rows),
        "\n<!-- Written by tests/adapters/every_type.py. -->",
    ]
    return "\n".join(lines) + "\n"


def rows_of_page(text: str) -> dict[str, Row]:
    """The table's rows by type."""
    found = re.findall(r"^\| `([^`]+)` \| `[^`]+` \| ([^|]+) \| (.*) \|$", text, flags=re.MULTILINE)
    return {model_type: Row(model_type, status, reason) for model_type, status, reason in found}


def version_of_page(text: str) -> str:
    """Of transformers, as the page names it."""
    [version] = re.findall(r"types of transformers ([\w.]+):", text)
    return str(version)


def _without_sizes(message: str) -> str:
    """A refusal without the numbers of the tiny model, in one cell of a table."""
    return re.sub(r"^sample \w+: ", "", message).replace("|", "\\|")


def main() -> None:
    """Write the page, or say which rows are not current."""
    rows = [row_of(model_type) for model_type in sorted(MODEL_TYPES)]
    before = rows_of_page(PAGE.read_text("utf-8")) if PAGE.exists() else {}
    changed = [row for row in rows if before.get(row.model_type) != row]
    gone = sorted(before.keys() - MODEL_TYPES.keys())
    for row in changed:
        print(f"{row.model_type}: {row.status}, {row.reason}")
    if gone:
        print(f"no longer there: {', '.join(gone)}")
    if "--check" in sys.argv:
        sys.exit(1 if changed or gone else 0)
    PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
