"""Whether a model that somebody else loaded holds weights that no checkpoint gave it.

Where a checkpoint lacks weights, or a host chose another class than the checkpoint's own, transformers fills the gaps
with random numbers and only warns. Three signs tell:

* The class: ``config.architectures`` names one whose configuration class is not the model's.
* What loading reported: ``observe_loading`` notes parameters that ``from_pretrained`` called missing or mismatched,
  with their values. Those that hold the same values when the model is measured were filled by nobody. Tied weights are
  never reported; weights that the host fills later (a projector, a vision tower) have changed or gone by then.
* A load without weights (``absent_from_checkpoint``), for a model that was loaded unobserved, as in a training: it
  knows what was missing, but not what has been filled since.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.quantization import as_plain, left_unfilled, plain_tensors

log = logging.getLogger(__name__)
N_ENDS = 8  # values compared at each end of a parameter
N_SHOWN = 3


class _Initial(NamedTuple):
    """A parameter that loading left as the constructor made it, and its first and last values."""

    parameter: weakref.ref[nn.Parameter]
    ends: Tensor


_initial: list[_Initial] = []


def observe_loading(modeling_utils: ModuleType) -> None:
    """Note, for every model that ``from_pretrained`` loads from now on, which parameters the checkpoint did not fill.

    Args:
        modeling_utils: ``transformers.modeling_utils``, just imported.
    """
    base = modeling_utils.PreTrainedModel
    original = base.from_pretrained.__func__

    @functools.wraps(original)
    def from_pretrained(cls: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        model, report = original(cls, *args, output_loading_info=True, **kwargs)
        _note(model, report)
        return (model, report) if output_loading_info else model

    setattr(base, original.__name__, classmethod(cast("Any", from_pretrained)))


def require_loaded_weights(model: nn.Module, checkpoint: str) -> None:
    """Refuse a model of another architecture than its checkpoint's, or with parameters that are still initial.

    Args:
        checkpoint: what to call the checkpoint in the message.
    Raises:
        MirError: names both classes and the parameters.
    """
    complaints = [architecture_conflict(model), _not_in_checkpoint(initial_parameters(model))]
    found = " ".join(complaint for complaint in complaints if complaint)
    if found:
        raise MirError(
            f"{checkpoint} was not loaded as it was saved. {found} Hosts choose some classes by the folder's name: "
            f"give the folder its hub name, use another model class, or measure it with `mir run {checkpoint}`."
        )


def architecture_conflict(model: nn.Module) -> str:
    """A sentence naming both classes, where the model's is not of the architecture in its configuration; else "".

    Only classes of transformers can be compared. A base model, and a class derived from the one that is named, are of
    the same architecture.
    """
    import transformers

    named = [str(name) for name in getattr(getattr(model, "config", None), "architectures", None) or ()]
    known = [cls for name in named if isinstance(cls := getattr(transformers, name, None), type)]
    own = getattr(type(model), "config_class", None)
    if own is None or len(known) < len(named) or not known:
        return ""
    if any(isinstance(model, cls) or _related(own, getattr(cls, "config_class", None)) for cls in known):
        return ""
    return f"config.json names {' or '.join(named)}, but {type(model).__name__} was loaded."


def initial_parameters(model: nn.Module) -> list[str]:
    """Names of the model's parameters that an observed ``from_pretrained`` did not fill, and nobody has since."""
    noted = {id(parameter): known.ends for known in _initial if (parameter := known.parameter()) is not None}
    return [
        name
        for name, parameter in model.named_parameters()
        if id(parameter) in noted and _unchanged(parameter, noted[id(parameter)])
    ]


def absent_from_checkpoint(model: nn.Module) -> list[str]:
    """Names of parameters that the checkpoint of a transformers model has no weights for; none where that is unknown.

    Loads the checkpoint's keys once more, without its weights, into a model on the meta device.
    """
    name = getattr(model, "name_or_path", "")
    if not name or not type(model).__module__.startswith("transformers."):
        return []
    loader: Any = type(model)
    try:
        with _quiet():
            _, report = loader.from_pretrained(
                name,
                config=as_plain(model.config),
                device_map="meta",
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:  # a folder that is gone, ZeRO stage 3 …: then nothing is known
        log.debug("the weights of %s cannot be compared with the model: %r", name, error)
        return []
    parameters = dict(model.named_parameters())
    is_quantised = getattr(model.config, "quantization_config", None) is not None
    return sorted(key for key in (left_unfilled if is_quantised else _unfilled)(report) if key in parameters)


def warn_of_initial_parts(model: nn.Module, known_as: nn.Module | None = None) -> None:
    """Warn once about a live model whose frozen parameters may be random; what is trained may start from anything.

    Args:
        known_as: the module that lasts, where ``model`` was made for one measurement.
    """
    lasting = model if known_as is None else known_as
    if lasting in _warned:
        return
    _warned.add(lasting)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    absent = [name for name in absent_from_checkpoint(model) if name in frozen]
    found = " ".join(filter(None, (architecture_conflict(model), _not_in_checkpoint(absent))))
    if found:
        log.warning(
            "%s %s MIR counts these frozen parameters as they are; load their weights if nothing else has filled them.",
            getattr(model, "name_or_path", "") or type(model).__name__,
            found,
        )


_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _related(own: type, other: type | None) -> bool:
    return other is not None and (issubclass(own, other) or issubclass(other, own))


def _note(model: nn.Module, report: Mapping[str, Any]) -> None:
    _initial[:] = [known for known in _initial if known.parameter() is not None]
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for key in _unfilled(report):
        parameter = parameters.get(key)
        if parameter is not None and not parameter.is_meta and parameter.numel():
            _initial.append(_Initial(weakref.ref(parameter), _ends(parameter)))


def _unfilled(report: Mapping[str, Any]) -> Iterator[str]:
    """Keys that a loading report calls missing or of another shape; the latter come with both shapes."""
    for kind in ("missing_keys", "mismatched_keys"):
        for key in report.get(kind) or ():
            yield str(key[0] if isinstance(key, tuple) else key)


def _ends(parameter: Tensor) -> Tensor:
    flat = next(plain_tensors(parameter))[1].detach().flatten()
    return torch.cat([flat[:N_ENDS], flat[-N_ENDS:]]).cpu().clone()


def _unchanged(parameter: Tensor, ends: Tensor) -> bool:
    if parameter.is_meta or not parameter.numel():
        return False
    now = _ends(parameter)
    return now.shape == ends.shape and torch.equal(ends.to(now.dtype), now)


def _not_in_checkpoint(names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:N_SHOWN]) + (", …" if len(names) > N_SHOWN else "")
    return f"The checkpoint has no weights for {len(names)} parameters, which hold initial random values: {shown}."


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without progress bars and load reports for the length of the block."""
    from transformers.utils import logging as host_logging

    verbosity, bars = host_logging.get_verbosity(), host_logging.is_progress_bar_enabled()
    host_logging.set_verbosity_error()
    host_logging.disable_progress_bar()
    try:
        yield
    finally:
        host_logging.set_verbosity(verbosity)
        if bars:
            host_logging.enable_progress_bar()
