"""The ``device`` option: a device that holds no numbers is refused before anything is loaded."""

from __future__ import annotations

import pytest
import torch

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.device import chosen_device

pytestmark = pytest.mark.slow


def test_the_cpu_and_whatever_auto_finds_can_be_chosen() -> None:
    assert chosen_device("cpu") == torch.device("cpu")
    assert torch.zeros(1, device=chosen_device("auto")).item() == 0


def test_a_device_number_too_many_is_refused() -> None:
    absent = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(MirError, match=rf"device '{absent}' cannot be used: .*Choose cpu.* or auto"):
        chosen_device(absent)


def test_the_devices_that_are_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB\nGPU 0 has a total capacity")

    monkeypatch.setattr(torch, "zeros", out_of_memory)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(MirError) as refused:
        chosen_device("cuda:1")
    assert str(refused.value) == (
        "device 'cuda:1' cannot be used: CUDA out of memory. Tried to allocate 2.00 MiB. CUDA devices that torch sees "
        "here: 2. Choose cpu, cuda:0, cuda:1 or auto, or check driver and CUDA_VISIBLE_DEVICES."
    )


def test_a_device_without_values_is_refused() -> None:
    with pytest.raises(MirError, match=r"device is 'meta', where weights have no values\. .*Choose cpu"):
        chosen_device("meta")


@pytest.mark.parametrize("name", ["cuda", "mps", "xpu", "hpu", "xla", "mtia", "ipu", "vulkan", "privateuseone", "maia"])
def test_every_kind_of_device_is_usable_or_refused(name: str) -> None:
    try:
        assert chosen_device(name).type == name
    except MirError as refused:
        assert repr(name) in str(refused)
