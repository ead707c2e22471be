"""TF32 is off while a measurement runs, and afterwards as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mir_plugin.engine.precision import full_float32
from mir_plugin.metric.normalize import coordinate_median

SETTINGS = (
    ((torch.backends.cudnn.conv, "fp32_precision"), (torch.backends.cuda.matmul, "fp32_precision"))
    if hasattr(torch.backends.cudnn, "conv")
    else ((torch.backends.cudnn, "allow_tf32"), (torch.backends.cuda.matmul, "allow_tf32"))
)
ON = "tf32" if hasattr(torch.backends.cudnn, "conv") else True


def settings() -> list[object]:
    return [getattr(owner, name) for owner, name in SETTINGS]


@pytest.fixture
def switched_on() -> Iterator[None]:
    before = settings()
    for owner, name in SETTINGS:
        setattr(owner, name, ON)
    yield
    for (owner, name), value in zip(SETTINGS, before, strict=True):
        setattr(owner, name, value)


@pytest.mark.usefixtures("switched_on")
def test_tf32_is_off_inside_and_as_it_was_outside_also_after_an_error() -> None:
    with pytest.raises(KeyError), full_float32():
        assert ON not in settings()
        raise KeyError
    assert settings() == [ON, ON]


def test_medians_leave_deterministic_mode_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU refuses medians in that mode; here the branch for accelerators runs on a CPU's numbers."""
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    expected = rows.median(dim=0).values
    modes = []
    plain = torch.Tensor.median

    def watched(*args: object, **kwargs: object) -> object:
        modes.append(torch.get_deterministic_debug_mode())
        return plain(*args, **kwargs)  # type: ignore[call-overload]

    class OnAccelerator(torch.Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda")

    monkeypatch.setattr(torch.Tensor, "median", watched)
    torch.set_deterministic_debug_mode("error")
    try:
        assert torch.equal(coordinate_median(rows.as_subclass(OnAccelerator)).as_subclass(torch.Tensor), expected)
        assert set(modes) == {0}
        assert torch.get_deterministic_debug_mode() == 2
    finally:
        torch.set_deterministic_debug_mode("default")
