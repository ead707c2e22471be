"""What is in a pickled state dict, found out without torch: the same as torch says, and nothing is run."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.pickle_header import pickle_header
from mir_plugin.model_adapters.weights.stored import open_weight_file

DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def saved(folder: Path, state: Any, **options: Any) -> Path:
    torch.save(state, folder / "pytorch_model.bin", **options)
    return folder / "pytorch_model.bin"


def test_headers_are_those_of_the_tensors(tmp_path: Path) -> None:
    base = torch.arange(24).reshape(4, 6)
    state: dict[str, torch.Tensor] = {name: torch.ones(2, 3, dtype=getattr(torch, name)) for name in DTYPES}
    state |= {"view": base[1:, ::2], "scalar": torch.tensor(1.0), "empty": torch.zeros(0, 4)}
    state["parameter"] = nn.Parameter(torch.zeros(5))
    headers = pickle_header(saved(tmp_path, state))
    assert headers is not None
    assert {key: (one.shape, one.dtype) for key, one in headers.items()} == {
        key: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for key, tensor in state.items()
    }
    for key, weight in open_weight_file(tmp_path / "pytorch_model.bin").items():
        assert torch.equal(weight.read(), state[key])


def test_a_state_dict_with_its_versions_is_plain(tmp_path: Path) -> None:
    state = nn.BatchNorm1d(3).state_dict()
    assert isinstance(state, OrderedDict)
    headers = pickle_header(saved(tmp_path, state))
    assert headers is not None and headers.keys() == state.keys()


class Calls:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('the code ran')",)


@pytest.mark.parametrize(
    "state",
    [{"a": Calls()}, {"a": [torch.zeros(1)]}, [torch.zeros(1)], {1: torch.zeros(1)}, {"a": torch.zeros(1).cfloat()}],
)
def test_anything_else_is_left_to_torch(tmp_path: Path, state: Any) -> None:
    path = saved(tmp_path, state)
    assert pickle_header(path) is None
    with pytest.raises(MirError, match=r"pytorch_model\.bin"):
        open_weight_file(path)


def test_the_layout_before_torch_1_6_is_left_to_torch(tmp_path: Path) -> None:
    path = saved(tmp_path, {"a": torch.ones(3)}, _use_new_zipfile_serialization=False)
    assert pickle_header(path) is None
    assert open_weight_file(path)["a"].shape == (3,)


def test_a_record_that_is_cut_short_is_left_to_torch(tmp_path: Path) -> None:
    whole = saved(tmp_path, {"a": torch.ones(64)})
    cut = tmp_path / "cut.bin"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(cut, "w") as target:
        for one in source.infolist():
            content = source.read(one)
            target.writestr(one.filename, content[:-4] if one.filename.endswith("data/0") else content)
    assert pickle_header(whole) is not None
    assert pickle_header(cut) is None


def test_a_bare_pickle_is_left_to_torch(tmp_path: Path) -> None:
    (tmp_path / "bare.bin").write_bytes(pickle.dumps({"a": 1}))
    assert pickle_header(tmp_path / "bare.bin") is None
