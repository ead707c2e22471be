"""Measuring a model in training: leave the training as it was, name the values, tell when they stop falling."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.quantization import in_training_mode
from mir_plugin.results import MirResult
from mir_plugin.selection.comparison import compare_results


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Code run inside leaves the training of ``model`` unchanged.

    Inside, the model is in evaluation mode, no gradient is recorded and autocast is off, so that a layer computes in
    the dtype of its weights, as it does when the saved checkpoint is measured. Afterwards every module is in the mode
    it was in (a frozen tower may be in evaluation mode while the rest trains), the random states of Python, NumPy,
    torch and the model's accelerators are restored, and memory that was cached on them is returned. Parameters and
    their gradients are not touched: gradients of an accumulation in progress stay.
    """
    training = in_training_mode(model)
    accelerators = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    with ExitStack() as stack:
        stack.callback(_return_memory, accelerators)
        stack.enter_context(_random_states_restored(accelerators))
        stack.callback(_set_mode, training, True)
        _set_mode(training, False)
        stack.enter_context(torch.no_grad())
        for device_type in {"cpu", *(device.type for device in accelerators)}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        yield


def metrics_of(result: MirResult) -> dict[str, float]:
    """What is logged of a result: ``mir/mir``, ``mir/layer_1`` to ``mir/layer_L``, and what is known beside MIR.

    Beside it are ``mir/standard_error``, ``mir/length_share`` and ``mir/at_equal_length``.
    Layer values are distances, in units of the squared mean length of the layer's text tokens.
    """
    metrics = {"mir/mir": result.mir}
    if "standard_error" in result.uncertainty:
        metrics["mir/standard_error"] = float(result.uncertainty["standard_error"])
    if result.length_share is not None and result.mir_at_equal_length is not None:
        metrics |= {"mir/length_share": result.length_share, "mir/at_equal_length": result.mir_at_equal_length}
    return metrics | {f"mir/layer_{layer.layer}": layer.distance for layer in result.layers}


def saturated(results: Sequence[MirResult], patience: int) -> bool:
    """Whether none of the last ``patience`` results is distinguishably lower than the one before them.

    A fall too small for one step to show is seen, as every result is compared with the same earlier one, and on the
    same samples the comparison is paired.

    Args:
        results: of one training run, in order, on the same samples and with their uncertainty.
        patience: at least 1.
    Raises:
        MirError: if the results are not comparable, or were measured without uncertainty.
    """
    if patience < 1:
        raise MirError(f"patience is {patience}; expected at least one measurement to wait for.")
    if len(results) <= patience:
        return False
    before, *later = results[-patience - 1 :]
    for result in later:
        difference = compare_results(before, result).mir
        if difference.distinguishable is None:
            raise MirError(
                f"{before.checkpoint} and {result.checkpoint} were measured without uncertainty, so progress cannot be "
                "distinguished from noise. Measure at least 2 samples, with uncertainty."
            )
        if difference.distinguishable and difference.difference < 0:
            return False
    return True


def _set_mode(modules: Sequence[nn.Module], training: bool) -> None:
    for module in modules:
        module.training = training


@contextmanager
def _random_states_restored(accelerators: set[torch.device]) -> Iterator[None]:
    python, legacy_numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_accelerators: Mapping[torch.device, Tensor] = {device: _random_state(device) for device in accelerators}
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)
        torch.set_rng_state(cpu)
        for device, state in on_accelerators.items():
            module = torch.get_device_module(device)
            module.set_rng_state(state) if device.type == "mps" else module.set_rng_state(state, device)


def _random_state(device: torch.device) -> Tensor:
    module = torch.get_device_module(device)
    state: Tensor = (
        module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    )  # mps is one device
    return state


def _return_memory(accelerators: set[torch.device]) -> None:
    for device_type in {device.type for device in accelerators}:
        torch.get_device_module(device_type).empty_cache()
