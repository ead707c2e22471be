"""MIR of a model that is being trained, for any training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.files.fingerprint import IN_MEMORY
from mir_plugin.measurement.measure import measure
from mir_plugin.model_adapters.huggingface.adapter import HuggingFaceAdapter, from_loaded
from mir_plugin.model_adapters.huggingface.identity import memory_fingerprint
from mir_plugin.model_adapters.in_memory.host_parts import is_processor
from mir_plugin.model_adapters.in_memory.initial_weights import warn_of_initial_parts
from mir_plugin.model_adapters.in_memory.own_model import Encode, OwnModel, OwnModelAdapter
from mir_plugin.model_adapters.in_memory.sharded import ShardedModel, sharding_of
from mir_plugin.model_adapters.introspection.decoder import unwrapped
from mir_plugin.model_adapters.weights.module_fingerprint import module_fingerprint
from mir_plugin.processes import Group, current_group
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
    adapter: Encode | OwnModel | None = None,
    checkpoint: str = "live model",
    place: str = "",
    batch_size: int | None = None,
) -> MirResult:
    """Measure the model as it is now, without disturbing its training (``mir_plugin.selection.monitor.undisturbed``).

    Parameters that are trained may start from anything; frozen ones that the model's checkpoint has no weights for are
    a warning at the first call.

    Call it between an optimizer step and the next forward pass. Under ``accelerate`` or ``torchrun`` every process has
    to call it: they share the samples, and all return the same result. Weights that are shards between processes (ZeRO
    stage 3, FSDP) are gathered one decoder layer at a time, as they are stored.

    Args:
        model: a transformers vision-language model, possibly inside DistributedDataParallel, FSDP, DeepSpeed, PEFT or
            torch.compile; with ``adapter`` a model of any class.
        processor: its processor, with ``tokenizer`` and ``image_processor``; None with ``adapter``.
        sample_set: the same at every call, so that the values are comparable.
        config: the protocol; the paper's by default.
        adapter: for a model of one's own class: what makes the forward pass's arguments and the masks of samples
            (``mir_plugin.model_adapters.in_memory.own_model.OwnModel``).
        checkpoint: what the result is filed under.
        place: the folder that this state of the model is or will be saved in, absolute; empty where there is none.
        batch_size: samples per forward pass; None takes one on a CPU and several on an accelerator.
    Raises:
        MirError: for tensor, context, sequence or pipeline parallelism, or a processor that is none; as ``from_loaded``
            of the Hugging Face adapter, and ``measure``.
    """
    group = current_group()
    with undisturbed(model), without_autocast(unwrapped(model)):
        live = live_adapter(model, processor, adapter, group)
        size = min(batch_size, live.max_batch or batch_size) if batch_size else None
        return measure(
            live, sample_set, config, checkpoint=checkpoint, place=place, host=HOST, batch_size=size, group=group
        )


def live_adapter(
    model: nn.Module, processor: Any, adapter: Encode | OwnModel | None, group: Group, *, identified: bool = True
) -> HuggingFaceAdapter | OwnModelAdapter:
    """The model as the engine sees it. Collective.

    Args:
        identified: whether its facts say which weights these are. Process 0 reads all of them for it, and the others
            gather them with it where they are shards. A measurement needs that, a look at the model does not.
    Raises:
        MirError: as ``measure_live`` for a model that cannot be measured.
    """
    if adapter is None and not is_processor(processor):
        raise MirError(
            f"expected the model's processor for images and text, got {type(processor).__name__}. Give "
            "AutoProcessor.from_pretrained(...), or adapter= for a model of your own class."
        )
    own = adapter if adapter is None or isinstance(adapter, OwnModel) else OwnModel(adapter)
    kind = sharding_of(model)
    if kind is not None:
        return _adapter_of_shards(ShardedModel(model, kind, group), processor, own, group, identified=identified)
    inner = unwrapped(model)
    warn_of_initial_parts(inner)
    live = OwnModelAdapter(inner, own) if own else from_loaded(inner, processor, identity={})
    if identified:
        with group.agreed("reading the weights"):
            content = _content(inner, processor, own) if group.rank == 0 else ""
        live.facts = {**live.facts, "checkpoint_fingerprint": group.broadcast(content)}
    return live


def _adapter_of_shards(
    sharded: ShardedModel, processor: Any, own: OwnModel | None, group: Group, *, identified: bool
) -> HuggingFaceAdapter | OwnModelAdapter:
    twin = sharded.twin
    warn_of_initial_parts(twin, known_as=sharded.root)
    live = OwnModelAdapter(twin, own) if own else HuggingFaceAdapter(twin, processor, family="huggingface", identity={})
    live.decoder = sharded.decoder(live.decoder)
    live.facts = {**live.facts, "sharding": sharded.kind}
    if identified:
        with group.agreed("reading the weights"), live.decoder.outside(), sharded.reading(live.decoder) as read:
            if group.rank == 0:
                content = _content(twin, processor, own, read)
            else:  # gathers what process 0 reads
                content = ""
                for name, placeholder in list(twin.named_parameters()):
                    read(name, placeholder)
        live.facts = {**live.facts, "checkpoint_fingerprint": group.broadcast(content)}
    return live


def _content(
    model: nn.Module,
    processor: Any,
    own: OwnModel | None,
    read: Callable[[str, Tensor], Tensor] = lambda _, parameter: parameter,
) -> str:
    """Which weights these are, and for a model of a known class its configuration and processor."""
    return IN_MEMORY + module_fingerprint(model, read) if own else memory_fingerprint(model, processor, read=read)


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
