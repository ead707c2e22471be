"""What host tools, trainers and the command line hand over: arguments of any kind, and files still being written."""

from __future__ import annotations

import base64
import io
import json
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from typing import Any

import PIL.Image
import pytest
from faults.battery import Bench, Case, Outcome, Refused, Right, each, fuzz
from hypothesis import given
from hypothesis import strategies as st

from mir_plugin.errors import MirError
from mir_plugin.indicators.in_context import questions_from_tsv
from mir_plugin.indicators.training_loss import training_loss
from mir_plugin.measurement.options import LOADING, load_options, parse_size
from mir_plugin.selection.checkpoint_watcher import CheckpointWatcher, why_incomplete
from mir_plugin.tasks.generation_arguments import GenerationArguments
from mir_plugin.tasks.options import OPTIONS, resolve

pytestmark = pytest.mark.slow

said = Right(lambda value, _: str(value))


def noted(bench: Bench, what: str, came_out: str) -> None:
    bench.note("reports", what, came_out)


def told_by(call: Callable[[Bench], object]) -> Callable[[Bench], Outcome]:
    """What a host would print of the MirError that a call raises; any other error stays one."""

    def act(bench: Bench) -> Outcome:
        try:
            value = call(bench)
        except MirError as error:
            return Outcome(1, err=f"mir: {error}")
        return Outcome(0, value=value)

    return act


# ---- arguments -------------------------------------------------------------------------------------------------------


def argument(**given_: Any) -> Callable[[Bench], Outcome]:
    return told_by(lambda _: load_options(given_))


def generation(**asked: Any) -> Callable[[Bench], Outcome]:
    return told_by(lambda _: GenerationArguments.of(asked))


def option(**fields: Any) -> Callable[[Bench], Outcome]:
    return told_by(lambda _: resolve(fields, {}, {}))


def size(text: str) -> Callable[[Bench], Outcome]:
    return lambda bench: bench.mir("run", "nowhere", "--device-memory", text)


def falsehood(_: Bench) -> str:
    """The text "false" is true to Python."""
    assert load_options({"trust_remote_code": "false", "merge_lora": "False"}).trust_remote_code is False
    assert load_options({"merge_lora": "False"}).merge_lora is False
    return "no code of the checkpoint runs, LoRA is not merged"


ARGUMENT_CASES = (
    Case("false as text", 'a host hands over trust_remote_code="false"', told_by(falsehood), said),
    Case("neither true nor false", 'trust_remote_code="maybe"', argument(trust_remote_code="maybe"),
         Refused("trust_remote_code", "maybe", "true or false")),
    Case("memory without number", "device_memory=much", argument(device_memory="much"), Refused("much", "6GB")),
    Case("memory of nothing", "device_memory=0", argument(device_memory=0), Refused("'0'", "6GB")),
    Case("memory without end", "device_memory=9e999GB", argument(device_memory="9e999GB"), Refused("9e999GB", "6GB")),
    Case("two points", "device_memory=1.2.3GB", argument(device_memory="1.2.3GB"), Refused("1.2.3GB", "6GB")),
    Case("no new tokens", "max_new_tokens=-1", generation(max_new_tokens=-1), Refused("max_new_tokens", "-1")),
    Case("tokens without end", "max_new_tokens=inf", generation(max_new_tokens=float("inf")), Refused("inf")),
    Case("temperature NaN", "temperature=nan", generation(temperature="nan", do_sample=True),
         Refused("temperature", "0 or more")),
    Case("top_p 2", "top_p=2", generation(top_p=2), Refused("top_p", "1 at most")),
    Case("beams of none", "num_beams=-3", generation(num_beams=-3), Refused("num_beams", "1 or more")),
    Case("until a number", "until=[5]", generation(until=[5]), Refused("until", "texts")),
    Case("zero samples", "n_samples: 0 in a task file", option(n_samples=0), Refused("n_samples", "task file")),
    Case("samples as text", 'n_samples: "many"', option(n_samples="many"), Refused("n_samples", "many")),
    Case("seed without end", "seed: .inf", option(seed=float("inf")), Refused("seed", "inf")),
    Case("seed negative", "seed: -1", option(seed=-1), Refused("seed", "-1")),
    Case("normalize maybe", "normalize: maybe", option(normalize="maybe"), Refused("normalize", "maybe")),
    Case("samples of a list", "samples: [a]", told_by(lambda _: resolve({"samples": ["a"]}, {}, {}).sample_set()),
         Refused("samples is", "expected paper")),
)  # fmt: skip


@each(ARGUMENT_CASES)
def test_an_argument_of_the_wrong_kind_is_refused_by_name(case: Case, bench: Bench) -> None:
    bench.hold("reports", case)


values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.just(10**400), st.just("9" * 400),
)  # fmt: skip


def test_arguments_of_any_kind_are_taken_or_refused(bench: Bench, examples: int) -> None:
    names = st.sampled_from([*OPTIONS, "x"])
    generating = st.sampled_from(
        ["max_new_tokens", "max_gen_toks", "temperature", "do_sample", "top_p", "num_beams", "until"]
    )

    @fuzz(examples)
    @given(
        st.dictionaries(names, values),
        st.dictionaries(generating, values),
        st.dictionaries(st.sampled_from(LOADING), values),
    )
    def hold(options: dict[str, Any], asked: dict[str, Any], loading: dict[str, Any]) -> None:
        for call in (
            lambda: resolve(options, {}, {}).config,
            lambda: resolve({}, options, {}).config,
            lambda: GenerationArguments.of(asked).as_keywords(),
            lambda: load_options(loading),
        ):
            try:
                call()
            except MirError as error:
                assert str(error)

    hold()
    noted(bench, f"{examples} random arguments for task, generation and loading", "taken, or one message")


def test_sizes_of_any_text_are_taken_or_refused(bench: Bench, examples: int) -> None:
    @fuzz(examples)
    @given(st.text(max_size=12) | st.from_regex(r"[0-9.]{1,6}(e[0-9]{1,4})?[kmgtKMGT]?i?[bB]?", fullmatch=True))
    def hold(text: str) -> None:
        try:
            assert (parse_size(text) or 0) > 0
        except MirError as error:
            assert "6GB" in str(error)

    hold()
    noted(bench, f"{examples} random texts for --device-memory", "a number of bytes, or one message")


# ---- files of host tools and trainers --------------------------------------------------------------------------------


def png(width: int = 2, height: int = 2) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (2, 2)).save(file, "PNG")
    content = file.getvalue()
    header = struct.pack(">II", width, height) + content[24:29]
    return content[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + content[33:]


def questions(image: bytes | str, answer: str = "A", heading: str = "index\timage\tquestion\tA\tB\tanswer") -> Any:
    def call(bench: Bench) -> object:
        text = image if isinstance(image, str) else base64.b64encode(image).decode()
        path = bench.folder / "questions.tsv"
        path.write_text(f"{heading}\n1\t{text}\twhat?\tcat\tdog\t{answer}\n", encoding="utf-8", errors="surrogatepass")
        return questions_from_tsv(path)

    return told_by(call)


def bytes_as_questions(content: bytes) -> Any:
    def call(bench: Bench) -> object:
        (bench.folder / "questions.tsv").write_bytes(content)
        return questions_from_tsv(bench.folder / "questions.tsv")

    return told_by(call)


def trainer_state(text: str) -> Any:
    def call(bench: Bench) -> object:
        (bench.folder / "trainer_state.json").write_text(text)
        return training_loss(bench.folder)

    return told_by(call)


def data_set() -> Any:
    from mir_plugin.tasks.vlmevalkit.data_set import MirDataSet

    return MirDataSet(samples="embedded", n_samples=2)


def predictions(change: Callable[[str], str], suffix: str = ".tsv") -> Any:
    """A prediction file of VLMEvalKit, changed, is scored."""

    def call(bench: Bench) -> object:
        ours = data_set()
        answer = json.dumps({"mir": 2.5, "mir_published": None, "n_samples": 2}).replace('"', '""')
        path = bench.folder / f"model_MIR{suffix}"
        path.write_text(change(f'index\tprediction\n{ours.index}\t"{answer}"\n'))
        return ours.evaluate(str(path))["mir"]

    return told_by(call)


def earlier_answers(content: bytes) -> Any:
    """What VLMEvalKit put in place of an earlier run's answers is damaged."""

    def call(bench: Bench) -> object:
        from mir_plugin.tasks.vlmevalkit.measurement import Inference, _earlier_answer

        inference = Inference("m", "m", bench.folder, data_set(), "out.pkl")
        inference.path("_PREV.pkl").write_bytes(content)
        return _earlier_answer(inference)

    return told_by(call)


FILE_CASES = (
    Case("question: half an image", "the image of a question is cut", questions(png()[:40]),
         Refused("questions.tsv, row 2", "cannot be decoded", "Download")),
    Case("question: no base64", "the image of a question is no base64", questions("<html>404</html>"),
         Refused("questions.tsv, row 2", "cannot be decoded")),
    Case("question: decompression bomb", "the image of a question says it has 50 000 × 50 000 pixels",
         questions(png(50_000, 50_000)), Refused("questions.tsv, row 2", "cannot be decoded", "bomb")),
    Case("question: wrong answer", "the answer is no letter of an option", questions(png(), answer="Z"),
         Refused("questions.tsv, row 2", "'Z'")),
    Case("question: other columns", "the file has other columns", questions(png(), heading="a\tb\tc\td\te\tf"),
         Refused("questions.tsv, row 2", "index, image")),
    Case("questions: binary", "the file is binary", bytes_as_questions(bytes(range(256))), Refused("questions.tsv")),
    Case("trainer state: half", "trainer_state.json is half written", trainer_state('{"log_history": [{"loss": 1'),
         Refused("trainer_state.json", "trainer state", "Copy it again")),
    Case("trainer state: NaN", "a loss is NaN: the training diverged",
         trainer_state('{"log_history": [{"loss": 1.0}, {"loss": NaN}]}'), Refused("trainer_state.json", "nan")),
    Case("trainer state: text", "a loss is a text", trainer_state('{"log_history": [{"loss": "1.0"}]}'),
         Refused("trainer_state.json", "'1.0'")),
    Case("trainer state: list", "the log is a list of numbers", trainer_state('{"log_history": [1, 2]}'),
         Refused("trainer_state.json")),
    Case("predictions: good", "VLMEvalKit scores a good prediction file", predictions(str), said),
    Case("predictions: half", "a prediction file is half written", predictions(lambda t: t[:60]),
         Refused("model_MIR.tsv", "Measure again")),
    Case("predictions: empty", "a prediction file is empty", predictions(lambda t: ""), Refused("model_MIR.tsv")),
    Case("predictions: NaN", "the MIR of a prediction file is NaN", predictions(lambda t: t.replace("2.5", "NaN")),
         Refused("model_MIR.tsv", "mir is not a number")),
    Case("predictions: text", "the MIR of a prediction file is a text",
         predictions(lambda t: t.replace("2.5", '""2.5""')), Refused("model_MIR.tsv", "mir is not a number")),
    Case("predictions: of others", "a prediction file is that of other samples",
         predictions(lambda t: t.replace("mir-", "other-")), Refused("model_MIR.tsv", "no measurement")),
    Case("predictions: no workbook", "a prediction file called .xlsx is text", predictions(str, ".xlsx"),
         Refused("model_MIR.xlsx", "Measure again")),
    Case("earlier answers: half", "a pickle of earlier answers is cut", earlier_answers(pickle.dumps({"a": "b"})[:-3]),
         Refused("m_MIR_PREV.pkl", "Delete it")),
    Case("earlier answers: list", "a pickle of earlier answers holds a list", earlier_answers(pickle.dumps([1])),
         Refused("m_MIR_PREV.pkl", "Delete it")),
)  # fmt: skip


@each(FILE_CASES)
def test_a_damaged_file_of_a_host_is_refused_by_name(case: Case, bench: Bench) -> None:
    bench.hold("reports", case)


json_text = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
).map(json.dumps)


def test_trainer_states_of_any_kind_give_a_number_or_a_message(bench: Bench, examples: int) -> None:
    path = bench.folder / "trainer_state.json"
    row = st.dictionaries(st.sampled_from(["loss", "step", "x"]), values.filter(lambda v: v != "9" * 400), max_size=3)

    @fuzz(examples)
    @given(
        st.lists(row, max_size=4).map(lambda rows: json.dumps({"log_history": rows})) | json_text | st.text(max_size=20)
    )
    def hold(text: str) -> None:
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            assert abs(training_loss(bench.folder)) < float("inf")
        except MirError as error:
            assert "trainer_state.json" in str(error)

    hold()
    noted(bench, f"{examples} random trainer_state.json", "a finite loss, or one message that names the file")


FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "trainer_state.json")


def test_a_checkpoint_in_any_state_of_being_written_does_not_end_a_watch(bench: Bench, examples: int) -> None:
    folder = bench.folder / "checkpoint-1"
    folder.mkdir()
    header = struct.pack("<Q", 2**62)
    content = st.one_of(
        st.binary(max_size=40), json_text.map(str.encode), st.just(header), st.just(b"[" * 100_000),
        json_text.map(lambda text: struct.pack("<Q", len(text)) + text.encode()),
        st.just(b'{"weight_map": [1]}'), st.just(b'{"weight_map": {"a": 5}}'),
        st.just(b'{"weight_map": {"a": "/etc"}}'),
    )  # fmt: skip

    @fuzz(examples)
    @given(st.dictionaries(st.sampled_from(FILES), content, max_size=4))
    def hold(files: dict[str, bytes]) -> None:
        for path in folder.iterdir():
            path.unlink()
        for name, written in files.items():
            (folder / name).write_bytes(written)
        assert why_incomplete(folder) is None or isinstance(why_incomplete(folder), str)
        watch = CheckpointWatcher(bench.folder, settle_seconds=0)
        watch.ready()
        watch.ready()

    hold()
    noted(bench, f"{examples} random states of a checkpoint that is being written, under `mir sweep --watch`",
          "complete, or what it lacks; the watch goes on")  # fmt: skip


def test_files_that_go_back_in_time_are_seen_as_changed(bench: Bench) -> None:
    """A restored backup has an older date than what it replaces."""
    folder = bench.folder / "checkpoint-1"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"1234")
    watch = CheckpointWatcher(bench.folder, settle_seconds=0)
    watch.ready(now=0)
    assert watch.ready(now=1) == [folder]
    assert watch.ready(now=2) == []
    os.utime(folder / "pytorch_model.bin", (1, 1))
    watch.ready(now=3)
    assert watch.ready(now=4) == [folder]
    noted(bench, "a watched checkpoint is replaced by one that is older", "measured again")


def test_random_bytes_as_questions_raise_only_our_message(bench: Bench, examples: int) -> None:
    path = bench.folder / "questions.tsv"
    row = st.lists(st.text(max_size=8) | st.just("A"), min_size=6, max_size=6).map("\t".join)

    @fuzz(examples)
    @given(
        st.binary(max_size=80)
        | row.map(lambda line: f"index\timage\tquestion\tA\tB\tanswer\n{line}".encode(errors="replace"))
    )
    def hold(content: bytes) -> None:
        path.write_bytes(content)
        try:
            questions_from_tsv(path)
        except MirError as error:
            assert "questions.tsv" in str(error)

    hold()
    noted(bench, f"{examples} random question files", "read, or one message that names file and row")
