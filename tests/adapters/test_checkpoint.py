"""Weight files and key rules: everything that is not exactly right is one error naming key and file."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mir_plugin.errors import MirError
from mir_plugin.model_adapters.weights.assignment import assign, build_empty, release
from mir_plugin.model_adapters.weights.key_rules import KeyRule, rename, weights_below
from mir_plugin.model_adapters.weights.stored import open_checkpoint_weights, open_weight_file

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def write_shards(folder: Path, shards: dict[str, dict[str, Tensor]], weight_map: dict[str, str] | None = None) -> None:
    for name, tensors in shards.items():
        if name.endswith(".bin"):
            torch.save(tensors, folder / name)
        else:
            save_file(tensors, folder / name)
    kind = "pytorch_model.bin" if next(iter(shards)).endswith(".bin") else "model.safetensors"
    index = weight_map or {key: name for name, tensors in shards.items() for key in tensors}
    (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": index}))


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_shards_of_either_kind_are_one_mapping_with_shapes_known_before_reading(tmp_path: Path, ending: str) -> None:
    first, second = f"model-1-of-2.{ending}", f"model-2-of-2.{ending}"
    write_shards(tmp_path, {first: {"a": torch.ones(2, 3)}, second: {"b": torch.zeros(4, dtype=torch.float16)}})
    weights = open_checkpoint_weights(tmp_path)
    assert {key: (weight.shape, weight.dtype) for key, weight in weights.items()} == {
        "a": ((2, 3), torch.float32),
        "b": ((4,), torch.float16),
    }
    assert torch.equal(weights["a"].read(), torch.ones(2, 3))


@pytest.mark.parametrize("shards_are_left", [True, False])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_one_file_counts_before_the_index_of_an_earlier_save(
    tmp_path: Path, ending: str, shards_are_left: bool
) -> None:
    """As transformers loads it; its ``save_pretrained`` deletes older shards, but not their index."""
    shard = f"{'model' if ending == 'safetensors' else 'pytorch_model'}-00001-of-00001.{ending}"
    write_shards(tmp_path, {shard: {"a": torch.zeros(2)}})
    if ending == "safetensors":
        save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    else:
        torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    if not shards_are_left:
        (tmp_path / shard).unlink()
    assert torch.equal(open_checkpoint_weights(tmp_path)["a"].read(), torch.ones(2))


def test_an_index_that_points_outside_the_folder_is_refused(tmp_path: Path) -> None:
    inside = tmp_path / "checkpoint"
    inside.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "stolen.safetensors")
    write_shards(inside, {"model-1-of-1.safetensors": {"a": torch.ones(1)}}, {"a": "../stolen.safetensors"})
    with pytest.raises(MirError, match=r"'a' in '\.\./stolen\.safetensors'; shards must be plain file names"):
        open_checkpoint_weights(inside)


def test_missing_doubled_and_misplaced_shards_are_named(tmp_path: Path) -> None:
    first, second = "model-1-of-2.safetensors", "model-2-of-2.safetensors"
    write_shards(tmp_path, {first: {"a": torch.ones(1)}, second: {"b": torch.ones(1)}})
    (tmp_path / second).rename(tmp_path / "elsewhere")
    with pytest.raises(MirError, match=f"{second} named by .* is missing"):
        open_checkpoint_weights(tmp_path)
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / second)
    with pytest.raises(MirError, match="'a' is stored twice"):
        open_checkpoint_weights(tmp_path)
    save_file({"c": torch.ones(1)}, tmp_path / second)
    with pytest.raises(MirError, match=f"places 'b' in {second}, but .* does not hold it"):
        open_checkpoint_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_truncated_files_are_named(tmp_path: Path, name: str, kept: float) -> None:
    write_shards(tmp_path, {name: {"a": torch.ones(1000)}})
    (tmp_path / f"{name}.index.json").unlink()
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(MirError, match=f"{name}.*damaged"):
        open_checkpoint_weights(tmp_path)["a"].read()


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return open, (str(tmp_path / "it-ran"), "w")  # type: ignore[return-value]

    path = tmp_path / "mm_projector.bin"
    path.write_bytes(pickle.dumps({"a": Payload()}, protocol=2))
    with pytest.raises(MirError, match=r"mm_projector\.bin .*not loaded"):
        open_weight_file(path)
    assert not (tmp_path / "it-ran").exists()


def test_a_state_dict_holding_other_things_than_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "step": 3}, tmp_path / "mm_projector.bin")
    with pytest.raises(MirError, match=r"mm_projector\.bin holds 'step': int"):
        open_weight_file(tmp_path / "mm_projector.bin")


def test_the_first_matching_rule_wins_and_wildcards_carry_over(tmp_path: Path) -> None:
    save_file({key: torch.ones(1) for key in ("m.0.w", "m.0.inv", "h.w")}, tmp_path / "w.safetensors")
    rules = (KeyRule("m.*.inv", None, "computed"), KeyRule("m.*.", "layers.*.x."), KeyRule("h.", "head."))
    assert set(rename(open_weight_file(tmp_path / "w.safetensors"), rules, family="toy")) == {"layers.0.x.w", "head.w"}


def test_keys_without_a_rule_and_doubled_parameters_are_named(tmp_path: Path) -> None:
    save_file({"a.w": torch.ones(1), "model.image_newline": torch.ones(1)}, tmp_path / "w.safetensors")
    weights = open_weight_file(tmp_path / "w.safetensors")
    with pytest.raises(MirError, match=r"toy has no rule for 1 of 2 .*'model\.image_newline' in .*w\.safetensors"):
        rename(weights, (KeyRule("a.", "a."),), family="toy")
    with pytest.raises(MirError, match=r"both the parameter 'x'"):
        rename(weights, (KeyRule("a.w", "x"), KeyRule("model.image_newline", "x")), family="toy")


def linear_weights(folder: Path, **tensors: Tensor) -> dict[str, object]:
    save_file(tensors, folder / "w.safetensors")
    return open_weight_file(folder / "w.safetensors")  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.ones(2, 3)}, r"no weights for 1 of 2 parameters: 'bias'.*w\.safetensors"),
        ({"weight": torch.ones(2, 3), "bias": torch.ones(2), "more": torch.ones(1)}, r"fit no parameter .*'more' in"),
        ({"weight": torch.ones(3, 3), "bias": torch.ones(2)}, r"'weight' in .* has shape \[3, 3\].*has \[2, 3\]"),
        ({"weight": torch.full((2, 3), torch.nan), "bias": torch.ones(2)}, r"'weight' in .* NaN or infinite"),
        ({"weight": torch.full((2, 3), 1e6), "bias": torch.ones(2)}, r"infinite values as float16.*--dtype float32"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, tensors: dict[str, Tensor], message: str) -> None:
    weights = linear_weights(tmp_path, **tensors)
    with pytest.raises(MirError, match=message):
        assign(build_empty(lambda: nn.Linear(3, 2)), weights, CPU, torch.float16)  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [False, True])
def test_an_empty_llama_becomes_the_one_that_was_saved_one_layer_at_a_time(tmp_path: Path, tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        tie_word_embeddings=tied, rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )  # fmt: skip
    saved = LlamaForCausalLM(config).eval()
    saved.save_pretrained(tmp_path)
    weights = open_checkpoint_weights(tmp_path)
    assert ("lm_head.weight" in weights) is not tied
    model = build_empty(lambda: LlamaForCausalLM(config))
    assert all(parameter.is_meta for parameter in model.parameters())
    assign(model, weights, CPU, torch.float32)
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(model(ids).logits, saved(ids).logits)
    release(model.model.layers[1])
    assert all(parameter.is_meta for parameter in model.model.layers[1].parameters())
    assign(model.model.layers[1], weights_below(weights, "model.layers.1."), CPU, torch.float32)
    assert torch.equal(model(ids).logits, saved(ids).logits)
