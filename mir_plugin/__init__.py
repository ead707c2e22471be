"""Modality Integration Rate (MIR, arXiv 2410.07167) of vision-language model checkpoints.

Hidden states of a model of one's own:

    from mir_plugin import modality_integration_rate

    hidden = model(**inputs, output_hidden_states=True).hidden_states[1:]
    mir = modality_integration_rate([h[vision_mask] for h in hidden], [h[text_mask] for h in hidden])

All names of docs/reference/python.md are imported from here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mir_plugin.engine.features import layer_features as layer_features
    from mir_plugin.errors import MirError as MirError
    from mir_plugin.indicators.in_context import in_context_accuracy as in_context_accuracy
    from mir_plugin.indicators.indicators import model_indicators as model_indicators
    from mir_plugin.indicators.training_loss import training_loss as training_loss
    from mir_plugin.measurement.measure import measure as measure
    from mir_plugin.metric.frechet import frechet_distance as frechet_distance
    from mir_plugin.metric.frechet import mean_term as mean_term
    from mir_plugin.metric.frechet import trace_term as trace_term
    from mir_plugin.metric.layer import layer_distance as layer_distance
    from mir_plugin.metric.layer import mir as mir
    from mir_plugin.metric.layer import modality_integration_rate as modality_integration_rate
    from mir_plugin.metric.loss import frechet_loss as frechet_loss
    from mir_plugin.metric.loss import layer_loss as layer_loss
    from mir_plugin.metric.loss import mir_loss as mir_loss
    from mir_plugin.metric.moments import moments as moments
    from mir_plugin.metric.normalize import coordinate_median as coordinate_median
    from mir_plugin.metric.normalize import outlier_rows as outlier_rows
    from mir_plugin.metric.normalize import remove_outliers as remove_outliers
    from mir_plugin.metric.normalize import replace_outliers as replace_outliers
    from mir_plugin.metric.normalize import text_centric_scale as text_centric_scale
    from mir_plugin.metric.uncertainty import uncertainty as uncertainty
    from mir_plugin.model_adapters import Checkpoint as Checkpoint
    from mir_plugin.model_adapters import LoadOptions as LoadOptions
    from mir_plugin.model_adapters import load_adapter as load_adapter
    from mir_plugin.model_adapters import open_checkpoint as open_checkpoint
    from mir_plugin.model_adapters.in_memory.own_model import OwnModel as OwnModel
    from mir_plugin.model_adapters.llava.export import export_llava as export_llava
    from mir_plugin.model_adapters.moca.training import apply_moca as apply_moca
    from mir_plugin.model_adapters.moca.training import load_moca as load_moca
    from mir_plugin.model_adapters.moca.training import moca_parameters as moca_parameters
    from mir_plugin.model_adapters.moca.training import remove_moca as remove_moca
    from mir_plugin.model_adapters.moca.training import save_moca as save_moca
    from mir_plugin.model_adapters.recognition import CheckpointFolder as CheckpointFolder
    from mir_plugin.processes import current_group as current_group
    from mir_plugin.reports.board.config import ReportConfig as ReportConfig
    from mir_plugin.reports.build import build_report as build_report
    from mir_plugin.results import MirConfig as MirConfig
    from mir_plugin.results import MirResult as MirResult
    from mir_plugin.samples.embedded import embedded_samples as embedded_samples
    from mir_plugin.samples.sample_set import Sample as Sample
    from mir_plugin.samples.sample_set import SampleSet as SampleSet
    from mir_plugin.samples.sources import from_dataset as from_dataset
    from mir_plugin.samples.sources import from_folders as from_folders
    from mir_plugin.samples.sources import paper_samples as paper_samples
    from mir_plugin.selection.comparison import compare_results as compare_results
    from mir_plugin.selection.monitor import metrics_of as metrics_of
    from mir_plugin.selection.monitor import saturated as saturated
    from mir_plugin.selection.select import select as select
    from mir_plugin.tasks.training.live import measure_live as measure_live
    from mir_plugin.tasks.training.trainer import MIRCallback as MIRCallback

__version__ = "0.1.0"

# Imported on first use: the `mir` command and lmms-eval's discovery must not pay for torch and transformers.
_MODULE_OF = {
    "layer_features": "mir_plugin.engine.features",
    "MirError": "mir_plugin.errors",
    "in_context_accuracy": "mir_plugin.indicators.in_context",
    "model_indicators": "mir_plugin.indicators.indicators",
    "training_loss": "mir_plugin.indicators.training_loss",
    "measure": "mir_plugin.measurement.measure",
    "frechet_distance": "mir_plugin.metric.frechet",
    "mean_term": "mir_plugin.metric.frechet",
    "trace_term": "mir_plugin.metric.frechet",
    "layer_distance": "mir_plugin.metric.layer",
    "mir": "mir_plugin.metric.layer",
    "modality_integration_rate": "mir_plugin.metric.layer",
    "frechet_loss": "mir_plugin.metric.loss",
    "layer_loss": "mir_plugin.metric.loss",
    "mir_loss": "mir_plugin.metric.loss",
    "moments": "mir_plugin.metric.moments",
    "coordinate_median": "mir_plugin.metric.normalize",
    "outlier_rows": "mir_plugin.metric.normalize",
    "remove_outliers": "mir_plugin.metric.normalize",
    "replace_outliers": "mir_plugin.metric.normalize",
    "text_centric_scale": "mir_plugin.metric.normalize",
    "uncertainty": "mir_plugin.metric.uncertainty",
    "Checkpoint": "mir_plugin.model_adapters",
    "LoadOptions": "mir_plugin.model_adapters",
    "load_adapter": "mir_plugin.model_adapters",
    "open_checkpoint": "mir_plugin.model_adapters",
    "OwnModel": "mir_plugin.model_adapters.in_memory.own_model",
    "export_llava": "mir_plugin.model_adapters.llava.export",
    "apply_moca": "mir_plugin.model_adapters.moca.training",
    "load_moca": "mir_plugin.model_adapters.moca.training",
    "moca_parameters": "mir_plugin.model_adapters.moca.training",
    "remove_moca": "mir_plugin.model_adapters.moca.training",
    "save_moca": "mir_plugin.model_adapters.moca.training",
    "CheckpointFolder": "mir_plugin.model_adapters.recognition",
    "current_group": "mir_plugin.processes",
    "ReportConfig": "mir_plugin.reports.board.config",
    "build_report": "mir_plugin.reports.build",
    "MirConfig": "mir_plugin.results",
    "MirResult": "mir_plugin.results",
    "embedded_samples": "mir_plugin.samples.embedded",
    "Sample": "mir_plugin.samples.sample_set",
    "SampleSet": "mir_plugin.samples.sample_set",
    "from_dataset": "mir_plugin.samples.sources",
    "from_folders": "mir_plugin.samples.sources",
    "paper_samples": "mir_plugin.samples.sources",
    "compare_results": "mir_plugin.selection.comparison",
    "metrics_of": "mir_plugin.selection.monitor",
    "saturated": "mir_plugin.selection.monitor",
    "select": "mir_plugin.selection.select",
    "measure_live": "mir_plugin.tasks.training.live",
    "MIRCallback": "mir_plugin.tasks.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_MODULE_OF]
