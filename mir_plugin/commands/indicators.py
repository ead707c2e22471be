"""``mir indicators``: the other measures of one checkpoint that the paper compares MIR with."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mir_plugin.measurement import options

if TYPE_CHECKING:
    from mir_plugin.indicators.in_context import ChoiceQuestion
    from mir_plugin.indicators.indicators import Indicators
    from mir_plugin.samples.sample_set import SampleSet
    from mir_plugin.types import ModelAdapter

IN_CONTEXT = "In-context questions"
N_QUESTIONS = 50
EMBEDDED_DIGITS = "embedded digits"


def indicators(
    checkpoint: options.Checkpoint,
    base_llm: options.BaseLlm = None,
    vision_tower: options.VisionTower = None,
    vision_tower_aux: options.VisionTowerAux = None,
    family: options.Family = None,
    images: options.Images = None,
    texts: options.Texts = None,
    dataset: options.Dataset = None,
    embedded: options.Embedded = False,
    n_samples: options.NSamples = None,
    seed: options.Seed = 0,
    questions: Annotated[
        Path | None,
        typer.Option(
            help="Multiple-choice benchmark, a TSV file as VLMEvalKit's; default: handwritten digits.",
            rich_help_panel=IN_CONTEXT,
        ),
    ] = None,
    n_questions: Annotated[
        int, typer.Option(min=0, help="How many; 0 asks none.", rich_help_panel=IN_CONTEXT)
    ] = N_QUESTIONS,
    dtype: options.Dtype = options.DtypeChoice.AUTO,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    merge_lora: options.MergeLora = True,
    trust_remote_code: options.TrustRemoteCode = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for indicators.json; default as of `mir run`.", rich_help_panel=options.OUTPUT),
    ] = None,
    json: options.Json = False,
) -> None:
    """Measure what the paper compares MIR with: losses, in-context answers, MMD, KID, and MIR's own variants.

    All on the samples that `mir run` takes with the same options.

    Examples:

      mir indicators runs/pretrain/checkpoint-1000 --base-llm vicuna-7b-v1.5

      mir indicators CHECKPOINT --questions MMBench_DEV_EN.tsv --n-questions 200
    """
    from mir_plugin.measurement.loading import load_options
    from mir_plugin.model_adapters import checkpoint_spec, load_adapter
    from mir_plugin.selection.sweep import INDICATORS_NAME, result_name

    # A mistaken name is told at once, not after samples were fetched.
    folder, _ = checkpoint_spec(checkpoint, family)
    path = (out or options.DEFAULT_OUT / result_name(checkpoint)) / INDICATORS_NAME
    _require_own(path, checkpoint)
    sample_set = options.chosen_samples(images, texts, dataset, embedded, n_samples, seed)
    load = load_options(locals())
    asked = chosen_questions(questions, n_questions)
    adapter = load_adapter(checkpoint, load)
    found = measure_indicators(adapter, folder, sample_set, asked, batch_size=batch_size, seed=seed)
    save_indicators(path, found, adapter, checkpoint, sample_set, about_questions(asked, questions, seed))
    if json:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
    else:
        _print(found, checkpoint, path)


def measure_indicators(
    adapter: ModelAdapter,
    folder: Path,
    sample_set: SampleSet,
    questions: Sequence[ChoiceQuestion],
    *,
    batch_size: int | None = None,
    seed: int = 0,
) -> Indicators:
    """All indicators of one loaded checkpoint; the in-context accuracy only where there are questions.

    Args:
        adapter: the checkpoint, loaded.
        folder: where it was loaded from; its trainer_state.json has the training loss.
        batch_size: samples per forward pass; None takes ``engine.default_batch_size``.
        seed: of the choice of tokens and of in-context examples.
    Raises:
        MirError: if the samples cannot be measured.
    """
    from mir_plugin.errors import MirError
    from mir_plugin.indicators.in_context import in_context_accuracy
    from mir_plugin.indicators.indicators import indicator, model_indicators
    from mir_plugin.indicators.training_loss import training_loss
    from mir_plugin.model_adapters.prompts.generation import Generator

    def accuracy() -> tuple[float]:
        if not questions:
            raise MirError("no questions were asked for")
        if not isinstance(adapter, Generator):
            raise MirError(f"the adapter {adapter.family} answers no prompts")
        return (in_context_accuracy(adapter, questions, seed=seed),)

    found = model_indicators(adapter, sample_set, batch_size=batch_size, seed=seed)
    found = found.merged(indicator(["training_loss"], lambda: (training_loss(folder),)))
    return found.merged(indicator(["in_context_accuracy"], accuracy))


def save_indicators(
    path: Path,
    found: Indicators,
    adapter: ModelAdapter,
    checkpoint: Path,
    sample_set: SampleSet,
    questions: Mapping[str, Any],
) -> None:
    """Write ``indicators.json``: values, reasons, and of which weights, samples and questions they are."""
    from mir_plugin.files.atomic import write_atomically

    document: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "checkpoint_fingerprint": adapter.facts["checkpoint_fingerprint"],
        "values": dict(found.values),
        "not_computed": dict(found.not_computed),
        "samples": {**sample_set.description, "fingerprint": sample_set.fingerprint},
        "questions": questions,
    }
    write_atomically(path, json_format.dumps(document, indent=2, allow_nan=False) + "\n")


def chosen_questions(path: Path | None = None, n: int = N_QUESTIONS) -> list[ChoiceQuestion]:
    """The first n questions of a TSV file, or of the embedded digits."""
    from mir_plugin.indicators.in_context import questions_from_tsv
    from mir_plugin.samples.embedded import digit_questions

    if n == 0:
        return []
    return list(questions_from_tsv(path, n) if path else digit_questions("test", n))


def about_questions(asked: Sequence[ChoiceQuestion], path: Path | None = None, seed: int = 0) -> dict[str, Any]:
    """What ``indicators.json`` tells about the in-context questions."""
    return {"source": str(path or EMBEDDED_DIGITS), "n_questions": len(asked), "seed": seed}


def answered(recorded: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Whether an ``indicators.json`` holds what is asked for: its in-context accuracy is of these questions.

    One of a user's own questions stands, because embedded ones do not better it.

    Args:
        recorded: its content; empty if there is none.
        about: the embedded questions that are asked for, as ``about_questions`` tells them.
    """
    held = recorded.get("questions")
    if not recorded or not about["n_questions"]:
        return bool(recorded)
    if not isinstance(held, dict) or not held.get("n_questions"):
        return False
    return held.get("source") != about["source"] or held == about


def _require_own(path: Path, checkpoint: Path) -> None:
    """Raise MirError if the file holds what was measured of another checkpoint."""
    from mir_plugin.files.strict_json import json_document
    from mir_plugin.measurement.resume import require_same_checkpoint

    try:
        filed = str(json_document(path.read_text(encoding="utf-8"))["checkpoint"])
    except (OSError, ValueError, TypeError, KeyError):  # none yet, or nothing of ours
        return
    require_same_checkpoint(path, filed, checkpoint, "remove it")


def _print(found: Indicators, checkpoint: Path, path: Path) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from mir_plugin.indicators.indicators import DESCRIPTIONS

    console = Console()
    table = Table(title=escape(f"Indicators of {checkpoint}"), title_justify="left", box=SIMPLE_HEAD)
    table.add_column("indicator", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("what it is")
    for name, description in DESCRIPTIONS.items():
        if name in found.values:
            table.add_row(name, f"{found.values[name]:.4f}", description)
        else:
            table.add_row(name, "–", escape(f"not computed: {found.not_computed[name]}"))
    console.print(table)
    console.print(escape(f"saved to {path}"), soft_wrap=True)
