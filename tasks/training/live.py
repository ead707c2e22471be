"""MIR of a model that is being trained, for any training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters.huggingface.adapter import from_loaded
from mir_plugin.model_adapters.in_memory.initial_weights import warn_of_initial_parts
from mir_plugin.model_adapters.introspection.decoder import unwrapped
from mir_plugin.processes import current_group
from mir_plugin.results import MirConfig, MirResult
from mir_plugin.samples.sample_set import SampleSet
from mir_plugin.selection.monitor import undisturbed

HOST = "training"


def measure_live(
    model: nn.Module,
    processor: Any,
    sample_set: SampleSet,
    config: MirConfig | None = None,
    *,
    checkpoint: str = "live model",
    place: str = "",
    batch_size: int | None = None,
) -> MirResult:
    """Measure the model as it is now, without disturbing its training (``mir_plugin.selection.monitor.undisturbed``).

    Parameters that are trained may start from anything; frozen ones that the model's checkpoint has no weights for are
    a warning at the first call.

    Call it between an optimizer step and the next forward pass. Under ``accelerate`` or ``torchrun`` every process has
    to call it: they share the samples, and all return the same result.

    Args:
        model: a transformers vision-language model, possibly inside DistributedDataParallel, PEFT or torch.compile.
            Its weights must be whole in every process (not ZeRO stage 3 or FSDP).
        processor: its processor, with ``tokenizer`` and ``image_processor``.
        sample_set: the same at every call, so that the values are comparable.
        config: the protocol; the paper's by default.
        checkpoint: what the result is filed under.
        place: the folder that this state of the model is or will be saved in, absolute; empty where there is none.
        batch_size: samples per forward pass; None takes one on a CPU and several on an accelerator.
    Raises:
        MirError: as ``from_loaded`` of the Hugging Face adapter, and ``measure``.
    """
    inner = unwrapped(model)
    with undisturbed(model), without_autocast(inner):
        warn_of_initial_parts(inner)
        adapter = from_loaded(inner, processor)
        size = min(batch_size, adapter.max_batch or batch_size) if batch_size else None
        return measure(
            adapter,
            sample_set,
            config,
            checkpoint=checkpoint,
            place=place,
            host=HOST,
            batch_size=size,
            group=current_group(),
        )


@contextmanager
def without_autocast(model: nn.Module) -> Iterator[None]:
    """The model's own forward pass, without the mixed precision that accelerate has wrapped around it.

    Left in place where weights are of several dtypes: such a model runs under autocast only.
    """
    attributes = vars(model)
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    if "_original_forward" not in attributes or "forward" not in attributes or len(dtypes) > 1:
        yield
        return
    wrapped = attributes["forward"]
    attributes["forward"] = attributes["_original_forward"]
    try:
        yield
    finally:
        attributes["forward"] = wrapped
