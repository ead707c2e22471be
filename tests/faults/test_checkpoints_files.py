"""Weight files that were cut short, damaged, mixed up or made to do harm."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.battery import Bench, Case, Outcome, Refused, Right, each
from faults.damage import (
    FULL,
    LORA,
    MICRO,
    MOCA,
    PROJECTOR,
    all_of,
    copy_original,
    cut,
    damaged,
    header,
    one_value,
    overwritten,
    removed,
    renamed,
    same_as,
    tensors,
    undamaged,
    without,
    written,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

pytestmark = pytest.mark.slow

WEIGHTS = "model/model.safetensors"
SHARD = "model/model-00002-of-00004.safetensors"
INDEX = "model/model.safetensors.index.json"
BIN = "model/mm_projector.bin"
AGAIN = "Copy or download it again"
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def first_entry(**fields: Any) -> Any:
    """Something else in the header's entry of one tensor."""
    return lambda entries: entries[Q_PROJ].update(fields)


def near_the_undamaged(value: object, _: Bench) -> str:
    """The number of the weights as they were, but for their rounding."""
    assert isinstance(value, float)
    assert value == pytest.approx(undamaged(FULL), abs=0.02)
    return f"MIR {value:.4f}, {value - undamaged(FULL):+.4f} of the undamaged by rounding"


def index(change: Any) -> Any:
    """The shard index changed."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / INDEX).read_text())
        change(content)
        (folder / INDEX).write_text(json.dumps(content))

    return damage


def all_in(name: str) -> Any:
    return index(lambda content: content["weight_map"].update(dict.fromkeys(content["weight_map"], name)))


class RunsCode:
    """What a hostile pickle does when it is loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran_code",)


def hostile(name: str) -> Any:
    """A pickle that would run a command, as the file's only content."""
    return lambda folder: torch.save({"model.mm_projector.0.weight": RunsCode()}, folder / name)


def hostile_inside_zip(folder: Path) -> None:
    """The archive that torch writes, its tensor records in place and its pickle exchanged."""
    source, target = folder / BIN, folder / "hostile.bin"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            harmful = entry.filename.endswith("data.pkl")
            new.writestr(entry, pickle.dumps(RunsCode()) if harmful else old.read(entry))
    target.replace(source)


def nothing_ran(act: Any) -> Any:
    def checked(bench: Bench) -> Outcome:
        outcome: Outcome = act(bench)
        assert not (bench.folder / "ran_code").exists(), "the pickle ran a command"
        return outcome

    return checked


def as_pickle(folder: Path) -> None:
    """The weights as pytorch_model.bin, as older versions save them."""
    torch.save(load_file(folder / WEIGHTS), folder / "model/pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def all_keys_twice(folder: Path) -> None:
    shutil.copy(folder / SHARD, folder / "model/model-00003-of-00004.safetensors")


def shared_tensor(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    torch.save(dict(state), folder / "model/pytorch_model.bin")


def huge_view(folder: Path) -> None:
    """A tensor of terabytes, stored as one number that is repeated."""
    state = torch.load(folder / BIN, weights_only=True)
    state["model.mm_projector.0.weight"] = torch.zeros(1).expand(1_000_000, 1_000_000)
    torch.save(state, folder / BIN)


def sparse(folder: Path) -> None:
    state = torch.load(folder / BIN, weights_only=True)
    state["model.mm_projector.0.weight"] = state["model.mm_projector.0.weight"].to_sparse()
    torch.save(state, folder / BIN)


def on_meta(folder: Path) -> None:
    state = torch.load(folder / BIN, weights_only=True)
    state["model.mm_projector.0.weight"] = state["model.mm_projector.0.weight"].to("meta")
    torch.save(state, folder / BIN)


def quantised(folder: Path) -> None:
    state = torch.load(folder / BIN, weights_only=True)
    weight = state["model.mm_projector.0.weight"]
    state["model.mm_projector.0.weight"] = torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)
    torch.save(state, folder / BIN)


def as_complex(folder: Path) -> None:
    state = torch.load(folder / BIN, weights_only=True)
    state["model.mm_projector.0.weight"] = state["model.mm_projector.0.weight"].to(torch.complex64)
    torch.save(state, folder / BIN)


def legacy_format(folder: Path) -> None:
    state = torch.load(folder / BIN, weights_only=True)
    torch.save(state, folder / BIN, _use_new_zipfile_serialization=False)


def safetensors_cut(name: str, keep: float, done: str) -> Case:
    return Case(f"safetensors {name}", done, damaged(FULL, cut(WEIGHTS, keep)), Refused("model.safetensors", AGAIN))


def bin_cut(name: str, keep: float, done: str, full: bool = False) -> Case:
    return Case(
        f"projector {name}", done, damaged(PROJECTOR, cut(BIN, keep)), Refused("mm_projector.bin", AGAIN), full=full
    )


def stands_twice(folder: Path) -> None:
    """A tensor has two entries in the header; the first is the place of another tensor."""
    path = folder / WEIGHTS
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    entries = json.loads(content[8 : 8 + size])
    other = entries[Q_PROJ.replace("layers.1", "layers.0")]
    new = f"{{{json.dumps(Q_PROJ)}: {json.dumps(other)}, ".encode() + content[9 : 8 + size]
    path.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + size :])


def labelled(name: str, is_: torch.dtype, says: str) -> Any:
    """Every number is of one format of 16 bits, and the header says that it is of the other."""
    return all_of(
        tensors(name, lambda state: state.update({key: value.to(is_) for key, value in state.items()})),
        header(name, lambda entries: [entries[key].update(dtype=says) for key in entries if key != "__metadata__"]),
    )


def zeros_in(part: str) -> Any:
    """Memory of a file that was set aside for these tensors and never written."""

    def change(state: dict[str, Tensor]) -> None:
        found = [key for key in state if part in key]
        assert found, f"no key has {part}"
        for key in found:
            state[key] = torch.zeros_like(state[key])

    return tensors(WEIGHTS, change)


def in_a_folder_of_bytes(bench: Bench) -> Outcome:
    """As an archive from an old Windows unpacks it; a name that is no UTF-8."""
    copy_original(FULL, bench.folder)
    os.rename(bench.folder / "model", os.fsencode(bench.folder) + b"/m\xf6del")  # noqa: PTH104 - bytes
    outcome = bench.mir("run", "m\udcf6del", "--images", "samples", "--texts", "samples", "--out", "out")
    assert not (bench.folder / "out").exists()
    return outcome


NEVER_WRITTEN = ("only zeros", "copy or download it again")
FINITE_NONSENSE = (
    Case(
        "header names a tensor twice",
        "the header of model.safetensors gives one tensor two places",
        damaged(FULL, stands_twice),
        Refused("model.safetensors", Q_PROJ, "duplicate key", AGAIN),
    ),
    *(
        Case(
            f"16 bits rightly labelled, {says}",
            f"the weights are stored as {says}, and the header says so: the number of that format",
            damaged(FULL, labelled(WEIGHTS, is_, says), "--dtype", "float32"),
            Right(near_the_undamaged),
        )
        for is_, says in ((torch.bfloat16, "BF16"), (torch.float16, "F16"))
    ),
    Case(
        "projector never written",
        "the projector's weights are zeros: an image would change nothing",
        damaged(FULL, zeros_in("mm_projector")),
        Refused("model.mm_projector.0.weight", "model.safetensors", *NEVER_WRITTEN),
    ),
    Case(
        "projector never written, Hugging Face",
        "the projector of a Hugging Face checkpoint is zeros",
        damaged(MICRO, zeros_in("multi_modal_projector")),
        Refused("multi_modal_projector.linear_1.weight", "model", *NEVER_WRITTEN),
    ),
    Case(
        "decoder matrix never written",
        "one matrix of a decoder layer is zeros",
        damaged(FULL, zeros_in("layers.2.mlp.up_proj")),
        Refused("model.layers.2.mlp.up_proj.weight", "model.safetensors", *NEVER_WRITTEN),
    ),
    Case(
        "tensor of no size",
        "a weight has the shape 0 x 64, as ZeRO-3 saves what another process holds",
        damaged(FULL, tensors(WEIGHTS, lambda state: state.update({Q_PROJ: torch.zeros(0, 64)}))),
        Refused(Q_PROJ, "model.safetensors", "shape [0, 64]"),
    ),
    Case(
        "header with deep metadata",
        "the header's metadata holds objects, not texts",
        damaged(FULL, header(WEIGHTS, lambda entries: entries.update(__metadata__={"a": {"b": {"c": "d"}}}))),
        Refused("model.safetensors", "expected a string", AGAIN),
    ),
    Case(
        "folder of bytes",
        "the checkpoint's folder has a name that is not UTF-8",
        in_a_folder_of_bytes,
        Refused("model.safetensors", "not UTF-8", "Rename the folder"),
    ),
)
CASES = (
    *FINITE_NONSENSE,
    safetensors_cut("empty", 0, "model.safetensors has no bytes"),
    safetensors_cut("inside the length", 5, "model.safetensors ends after 5 bytes, inside the header's length"),
    safetensors_cut("after the length", 8, "model.safetensors ends where its header begins"),
    safetensors_cut("inside the header", 200, "model.safetensors ends inside its header"),
    safetensors_cut("inside the data", 0.5, "model.safetensors ends in the middle of its data"),
    safetensors_cut("last byte", 0.999999, "model.safetensors lacks its last byte"),
    Case(
        "safetensors longer",
        "bytes are left over behind the data of model.safetensors",
        damaged(FULL, lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + bytes(100))),
        Refused("model.safetensors", AGAIN),
    ),
    Case(
        "header length huge",
        "the header of model.safetensors claims 2^63 bytes",
        damaged(FULL, overwritten(WEIGHTS, 0, struct.pack("<Q", 2**63))),
        Refused("model.safetensors", AGAIN),
    ),
    Case(
        "header length zero",
        "the header of model.safetensors claims no byte",
        damaged(FULL, overwritten(WEIGHTS, 0, bytes(8))),
        Refused("model.safetensors", AGAIN),
    ),
    Case(
        "header no json",
        "the header of model.safetensors is noise",
        damaged(FULL, overwritten(WEIGHTS, 8, bytes(range(100, 200)))),
        Refused("model.safetensors", AGAIN),
    ),
    Case(
        "header offsets overlap",
        "two tensors of model.safetensors claim the same bytes",
        damaged(FULL, header(WEIGHTS, first_entry(data_offsets=[0, 16384]))),
        Refused("model.safetensors", AGAIN),
    ),
    Case(
        "header shape beyond data",
        "a tensor of model.safetensors claims a larger shape than its bytes",
        damaged(FULL, header(WEIGHTS, first_entry(shape=[64, 65]))),
        Refused("model.safetensors", AGAIN),
    ),
    Case(
        "header shape negative",
        "a tensor of model.safetensors claims a negative shape",
        damaged(FULL, header(WEIGHTS, first_entry(shape=[-64, -64]))),
        Refused("model.safetensors", AGAIN),
    ),
    Case(
        "header shape transposed",
        "a tensor of model.safetensors claims 32 x 128 instead of 64 x 64",
        damaged(FULL, header(WEIGHTS, first_entry(shape=[32, 128]))),
        Refused(Q_PROJ, "model.safetensors", "shape [32, 128]", "config.json"),
    ),
    Case(
        "header dtype unknown",
        "a tensor of model.safetensors has a dtype that does not exist",
        damaged(FULL, header(WEIGHTS, first_entry(dtype="F77"))),
        Refused("model.safetensors", AGAIN),
    ),
    Case(
        "dtype float8",
        "a weight is stored in 8-bit floating point",
        damaged(FULL, tensors(WEIGHTS, lambda s: s.update({Q_PROJ: s[Q_PROJ].to(torch.float8_e4m3fn)}))),
        Refused(Q_PROJ, "model.safetensors", "F8_E4M3", "not measured"),
    ),
    Case(
        "dtype integer",
        "a weight is stored as 8-bit integers",
        damaged(FULL, tensors(WEIGHTS, lambda s: s.update({Q_PROJ: s[Q_PROJ].to(torch.int8)}))),
        Refused(Q_PROJ, "model.safetensors", "int8"),
    ),
    Case(
        "dtype mixed",
        "one weight is stored as float64 among float32",
        damaged(FULL, tensors(WEIGHTS, lambda s: s.update({Q_PROJ: s[Q_PROJ].to(torch.float64)}))),
        same_as(FULL),
    ),
    Case(
        "nan in a layer",
        "one number of a decoder weight is NaN",
        damaged(FULL, tensors(WEIGHTS, one_value(Q_PROJ, float("nan")))),
        Refused(Q_PROJ, "model.safetensors", "NaN", "damaged or its training diverged"),
    ),
    Case(
        "inf in the projector",
        "one number of the projector is infinite",
        damaged(PROJECTOR, tensors(BIN, one_value("model.mm_projector.0.weight", float("inf")))),
        Refused("mm_projector.0.weight", "mm_projector.bin", "infinite", "diverged"),
    ),
    Case(
        "nan in the vision tower",
        "one number of the vision tower is NaN",
        damaged(
            PROJECTOR,
            tensors(
                "vision_tower/model.safetensors",
                one_value("vision_model.encoder.layers.0.mlp.fc1.weight", float("nan")),
            ),
        ),
        Refused("vision_tower/model.safetensors", "NaN", "damaged"),
    ),
    Case(
        "beyond float16",
        "a weight of 1e6 and --dtype float16, which ends at 65504",
        damaged(FULL, tensors(WEIGHTS, one_value(Q_PROJ, 1e6)), "--dtype", "float16"),
        Refused(Q_PROJ, "model.safetensors", "float16", "--dtype float32"),
    ),
    Case(
        "no weights",
        "the folder holds config and tokenizer, but no weights",
        damaged(FULL, removed(WEIGHTS)),
        Refused("model holds no weights", "copy or download is complete"),
    ),
    Case(
        "key missing",
        "one tensor is missing from model.safetensors",
        damaged(FULL, tensors(WEIGHTS, without(Q_PROJ))),
        Refused("layers.1.self_attn.q_proj", "model.safetensors", "incomplete"),
    ),
    Case(
        "layer missing",
        "the last decoder layer is missing from model.safetensors",
        damaged(FULL, tensors(WEIGHTS, without("model.layers.3."))),
        Refused("config.json", "num_hidden_layers = 4", "have 3", "incomplete"),
    ),
    Case(
        "layer too many",
        "model.safetensors holds a fifth layer, config.json says four",
        damaged(
            FULL,
            tensors(
                WEIGHTS,
                lambda s: s.update(
                    {k.replace("layers.3.", "layers.4."): v.clone() for k, v in s.items() if "layers.3." in k}
                ),
            ),
        ),
        Refused("config.json", "num_hidden_layers = 4", "have 5"),
    ),
    Case(
        "key unknown",
        "a tensor of another architecture is among the weights",
        damaged(FULL, tensors(WEIGHTS, lambda s: s.update({"model.image_gate": torch.ones(64)}))),
        Refused("model.image_gate", "model.safetensors", "mir adapters"),
    ),
    Case(
        "keys prefixed",
        "every key begins with 'module.', as data-parallel training leaves it",
        damaged(FULL, tensors(WEIGHTS, renamed("", "module."))),
        same_as(FULL),
    ),
    Case(
        "projector keys shifted",
        "the projector's second layer is stored under another number",
        damaged(FULL, tensors(WEIGHTS, renamed("model.mm_projector.2.", "model.mm_projector.1."))),
        Refused("projector", "model.safetensors"),
    ),
    Case(
        "shard missing",
        "one of four shards is missing",
        damaged(MOCA, removed(SHARD)),
        Refused("model-00002-of-00004.safetensors", "missing", "Copy or download it"),
    ),
    Case(
        "shard empty",
        "one of four shards has no bytes",
        damaged(MOCA, cut(SHARD, 0)),
        Refused("model-00002-of-00004.safetensors", AGAIN),
    ),
    Case(
        "shard cut",
        "one of four shards ends in the middle",
        damaged(MOCA, cut(SHARD, 0.5)),
        Refused("model-00002-of-00004.safetensors", AGAIN),
    ),
    Case(
        "shard doubled",
        "one shard was copied over another",
        damaged(MOCA, all_keys_twice),
        Refused("stored twice", "model-00003-of-00004.safetensors", "copy the checkpoint again"),
    ),
    Case(
        "shard is a folder",
        "a folder bears the name of a shard",
        damaged(MOCA, all_of(removed(SHARD), lambda f: (f / SHARD).mkdir())),
        Refused("model-00002-of-00004.safetensors", "missing"),
    ),
    Case(
        "shards of another save beside",
        "a shard that the index does not name lies beside",
        damaged(
            MOCA, lambda f: save_file({"lm_head.weight": torch.ones(2)}, f / "model/model-00009-of-00009.safetensors")
        ),
        same_as(MOCA),
    ),
    Case(
        "index missing",
        "the shards' index is missing",
        damaged(MOCA, removed(INDEX)),
        Refused("no index", "Copy the index beside them"),
    ),
    Case(
        "index cut",
        "the shards' index ends in the middle",
        damaged(MOCA, cut(INDEX, 0.5)),
        Refused("model.safetensors.index.json", AGAIN),
    ),
    Case(
        "index empty object",
        "the shards' index is {}",
        damaged(MOCA, written(INDEX, "{}")),
        Refused("model.safetensors.index.json", "weight_map", AGAIN),
    ),
    Case(
        "index above the folder",
        "the index names ../../secret.safetensors",
        damaged(MOCA, all_in("../../secret.safetensors")),
        Refused("model.safetensors.index.json", "../../secret.safetensors", "plain file names"),
    ),
    Case(
        "index absolute",
        "the index names /etc/passwd",
        damaged(MOCA, all_in("/etc/passwd")),
        Refused("model.safetensors.index.json", "/etc/passwd", "plain file names"),
    ),
    Case(
        "index names a number",
        "the index places keys in 5",
        damaged(MOCA, all_in(5)),  # type: ignore[arg-type]
        Refused("model.safetensors.index.json", "plain file names"),
    ),
    Case(
        "index names another shard",
        "the index places a key in a shard that does not hold it",
        damaged(MOCA, index(lambda c: c["weight_map"].update({"lm_head.weight": "model-00001-of-00004.safetensors"}))),
        Refused("lm_head.weight", "model.safetensors.index.json", "does not hold it"),
    ),
    Case(
        "index lacks a key",
        "the index does not mention a key that a shard holds",
        damaged(MOCA, index(lambda c: c["weight_map"].pop(Q_PROJ))),
        same_as(MOCA),
    ),
    bin_cut("empty", 0, "mm_projector.bin has no bytes"),
    bin_cut("one byte", 1, "mm_projector.bin has one byte"),
    bin_cut("inside the first record", 300, "mm_projector.bin ends inside its pickle"),
    bin_cut("inside the data", 0.5, "mm_projector.bin ends in the middle of its data", full=True),
    bin_cut("last byte", 0.99999, "mm_projector.bin lacks its last byte"),
    Case(
        "projector directory damaged",
        "the zip directory of mm_projector.bin is noise",
        damaged(PROJECTOR, overwritten(BIN, -300, b"\x00" * 250)),
        Refused("mm_projector.bin", AGAIN),
    ),
    Case(
        "projector bits flipped",
        "four bytes of a tensor inside mm_projector.bin are others",
        damaged(PROJECTOR, overwritten(BIN, 3000, b"\x11\x22\x33\x3f")),
        Refused("mm_projector.bin", "checksum", AGAIN),
    ),
    Case(
        "projector is text",
        "mm_projector.bin is the web page of a failed download",
        damaged(PROJECTOR, written(BIN, "<!DOCTYPE html><html><body>404: Not Found</body></html>")),
        Refused("mm_projector.bin", "web page", "Download it again"),
    ),
    Case(
        "projector is a pointer",
        "mm_projector.bin is a Git LFS pointer",
        damaged(PROJECTOR, written(BIN, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")),
        Refused("mm_projector.bin", "git lfs pull"),
    ),
    Case(
        "weights are a pointer",
        "model.safetensors is a Git LFS pointer",
        damaged(FULL, written(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")),
        Refused("model.safetensors", "git lfs pull"),
    ),
    Case(
        "pickle runs code",
        "mm_projector.bin is a pickle that runs a command",
        nothing_ran(damaged(PROJECTOR, hostile(BIN))),
        Refused("mm_projector.bin", "could run code", "convert it to safetensors"),
    ),
    Case(
        "pickle runs code inside the archive",
        "the pickle inside mm_projector.bin was exchanged for one that runs a command",
        nothing_ran(damaged(PROJECTOR, hostile_inside_zip)),
        Refused("mm_projector.bin", "pickle of tensors", "nothing in it was run"),
    ),
    Case(
        "pickle runs code in an old layout",
        "mm_projector.bin is a bare pickle that runs a command",
        nothing_ran(damaged(PROJECTOR, written(BIN, pickle.dumps(RunsCode())))),
        Refused("mm_projector.bin", "pickle of tensors", "nothing in it was run"),
    ),
    Case(
        "pickle runs code in a whole model",
        "pytorch_model.bin runs a command",
        nothing_ran(damaged(FULL, all_of(removed(WEIGHTS), hostile("model/pytorch_model.bin")))),
        Refused("pytorch_model.bin", "could run code", "convert it to safetensors"),
    ),
    Case(
        "pickle runs code in LoRA's file",
        "non_lora_trainables.bin runs a command",
        nothing_ran(damaged(LORA, hostile("model/non_lora_trainables.bin"))),
        Refused("non_lora_trainables.bin", "could run code", "convert it to safetensors"),
    ),
    Case(
        "pickle runs code in a Hugging Face checkpoint",
        "pytorch_model.bin of a Hugging Face checkpoint runs a command",
        nothing_ran(damaged(MICRO, all_of(removed(WEIGHTS), hostile("model/pytorch_model.bin")))),
        Refused("model", "could run code", "convert it to safetensors"),
    ),
    Case(
        "pickle of a list",
        "mm_projector.bin holds a list of tensors",
        damaged(PROJECTOR, lambda f: torch.save([torch.ones(3)], f / BIN)),
        Refused("mm_projector.bin", "list", "expected a state dict"),
    ),
    Case(
        "pickle of nested dicts",
        "mm_projector.bin is a whole training checkpoint, its weights one level deeper",
        damaged(PROJECTOR, lambda f: torch.save({"model": torch.load(f / BIN, weights_only=True)}, f / BIN)),
        Refused("mm_projector.bin", "'model'", "expected a state dict"),
    ),
    Case(
        "pickle of a number",
        "mm_projector.bin holds 5",
        damaged(PROJECTOR, lambda f: torch.save(5, f / BIN)),
        Refused("mm_projector.bin", "int", "expected a state dict"),
    ),
    Case(
        "pickle empty",
        "mm_projector.bin is an empty state dict",
        damaged(PROJECTOR, lambda f: torch.save({}, f / BIN)),
        Refused("mm_projector.bin", "no tensors", AGAIN),
    ),
    Case(
        "safetensors without tensors",
        "model.safetensors holds no tensor",
        damaged(FULL, lambda f: save_file({}, f / WEIGHTS)),
        Refused("model.safetensors", "no tensors", AGAIN),
    ),
    Case(
        "pickle of terabytes",
        "a tensor of 4 TB, stored as one repeated number",
        damaged(PROJECTOR, huge_view),
        Refused("mm_projector.bin", "[1000000, 1000000]"),
    ),
    Case(
        "pickle sparse",
        "a projector weight is sparse",
        damaged(PROJECTOR, sparse),
        Refused("mm_projector.0.weight", "mm_projector.bin", "sparse"),
    ),
    Case(
        "pickle on meta",
        "a weight without data",
        damaged(PROJECTOR, on_meta),
        Refused("mm_projector.0.weight", "mm_projector.bin", "meta"),
    ),
    Case(
        "pickle quantised",
        "a quantised projector weight",
        damaged(PROJECTOR, quantised),
        Refused("mm_projector.0.weight", "mm_projector.bin", "qint8"),
    ),
    Case(
        "pickle complex",
        "a projector weight of complex numbers",
        damaged(PROJECTOR, as_complex),
        Refused("mm_projector.0.weight", "mm_projector.bin", "complex64"),
    ),
    Case(
        "pickle in the old layout",
        "mm_projector.bin as torch before 1.6 wrote it",
        damaged(PROJECTOR, legacy_format),
        same_as(PROJECTOR),
    ),
    Case(
        "pickled weights",
        "the same weights as pytorch_model.bin",
        damaged(FULL, as_pickle),
        same_as(FULL),
    ),
    Case(
        "two formats agree",
        "pytorch_model.bin beside model.safetensors: safetensors counts",
        damaged(FULL, shared_tensor),
        same_as(FULL),
        full=True,
    ),
)


@each(CASES)
def test_damaged_weight_files_are_refused_by_name_or_do_not_matter(case: Case, bench: Bench) -> None:
    bench.hold("checkpoints", case)
