"""What comes from outside, on its way into tables, terminals and pages; files that are not what their names say."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import resource
import sys
from pathlib import Path

import pytest
from PIL import Image

from mir_plugin.commands.terminal import escape
from mir_plugin.errors import MirError
from mir_plugin.files.open_files import is_too_many_open_files
from mir_plugin.files.outside_text import accept_all_characters, csv_table
from mir_plugin.model_adapters.huggingface.prompts import PromptFormat
from mir_plugin.model_adapters.huggingface.template_limits import excess_of
from mir_plugin.model_adapters.weights.stored import open_weight_file
from mir_plugin.pictures.data import NORMS, Pictures
from mir_plugin.reports.read.pictures import read_pictures
from mir_plugin.reports.view.indicator_columns import indicator_table
from mir_plugin.samples.sample_set import Sample
from mir_plugin.selection.sweep import as_csv

HOSTILE = '=HYPERLINK("http:x","y")\x1b]0;title\x07\nsecond line'
ROOT = Path(__file__).parents[1]


def test_no_name_is_a_formula_in_any_csv() -> None:
    tables = {
        "sweep": as_csv([{"name": HOSTILE, "indicators": {}, "checkpoint": HOSTILE}]),
        "indicators": indicator_table({HOSTILE: {"perplexity": 1.5}}),
        "plain": csv_table([["name", "value"], [HOSTILE, 0.1], [None, 3]]),
    }
    for name, text in tables.items():
        cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
        assert any("HYPERLINK" in cell for cell in cells), name
        assert not any(cell.startswith(("=", "+", "@")) or "\x1b" in cell or "\n" in cell for cell in cells), name
    assert "0.1" in tables["plain"]


def test_every_csv_is_written_through_one_function() -> None:
    found = [
        path
        for folder in ("mir_plugin", "reports", "tasks", "model_adapters", "examples")
        for path in (ROOT / folder).rglob("*.py")
        if "csv.writer" in (text := path.read_text()) or "DictWriter" in text
    ]
    assert {path.name for path in found} == {"outside_text.py"}


def test_commands_take_text_from_outside_through_one_function() -> None:
    """rich's own ``escape`` lets control characters through."""
    for path in (ROOT / "mir_plugin" / "commands").glob("*.py"):
        imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        markup = [node for node in imports if node.module == "rich.markup"]
        assert not markup or path.name == "terminal.py", path


def test_what_a_terminal_is_given_steers_nothing() -> None:
    assert escape("a\x1b]0;t\x07b\nc [bold]d\u202e") == "a\ufffd]0;t\ufffdb c \\[bold]d\ufffd"


def test_an_output_of_another_encoding_gets_a_question_mark() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    accept_all_characters(stream, object())
    stream.write("2.0 … 2.1, é")
    stream.flush()
    assert raw.getvalue() == b"2.0 ? 2.1, \xe9"


# ---- pictures --------------------------------------------------------------------------------------------------------


def pictures(folder: Path) -> Path:
    """A pictures.json that names one picture, norms.png, which is there."""
    Pictures("m", "key", (1,), 1, 4, (), ()).save(folder / "pictures.json")
    Image.new("RGB", (4, 4)).save(folder / f"{NORMS}.png")
    return folder / "pictures.json"


def test_a_picture_is_read_where_it_lies(tmp_path: Path) -> None:
    read = read_pictures(pictures(tmp_path))
    assert [one.png for one in read.pictures] == [(tmp_path / f"{NORMS}.png").read_bytes()]
    assert not read.problems


@pytest.mark.parametrize(
    "kind",
    ["link", "link to a picture", "pipe", "full pipe", "device", "text", "trailer", "half", "folder"],
)
def test_nothing_but_a_picture_in_its_place_reaches_a_page(kind: str, tmp_path: Path) -> None:
    source = pictures(tmp_path)
    png = tmp_path / f"{NORMS}.png"
    whole = png.read_bytes()
    outside = tmp_path / "outside"
    outside.write_bytes(b"OUTSIDE" if kind == "link" else whole)
    png.unlink()
    if kind.startswith("link"):
        png.symlink_to(outside)
    elif kind == "device":
        png.symlink_to("/dev/zero")
    elif kind.endswith("pipe"):
        os.mkfifo(png)
        if kind == "full pipe":
            os.write(os.open(png, os.O_RDWR | os.O_NONBLOCK), whole)  # open until the test process ends
    elif kind == "folder":
        png.mkdir()
    else:
        png.write_bytes({"text": b"plain text", "trailer": whole + b"OUTSIDE", "half": whole[: len(whole) // 2]}[kind])
    read = read_pictures(source)
    assert not read.pictures
    assert [problem.where for problem in read.problems] == [str(png)]


def test_a_picture_that_a_later_version_draws_is_told_not_a_traceback(tmp_path: Path) -> None:
    source = pictures(tmp_path)
    text = source.read_text()
    document = json.loads(text)
    document["maps"] = [{"method": "../../etc", "layer": 1, "vision": [], "text": [], "note": ""}]
    source.write_text(json.dumps(document))
    read = read_pictures(source)
    assert not read.pictures
    assert [problem.where for problem in read.problems] == [str(source)]


# ---- open files ------------------------------------------------------------------------------------------------------


def test_a_sound_file_is_not_called_damaged_where_no_more_files_may_be_opened(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 2)}, path)
    image = tmp_path / "image.png"
    Image.new("RGB", (40, 40)).save(image)
    sample = Sample("one", image, "text")
    sample.check_image()
    open_weight_file(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = os.open(os.devnull, os.O_RDONLY)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (held, hard))
        for what, act in ((str(path), lambda: open_weight_file(path)), ("one", sample.check_image)):
            with pytest.raises(MirError) as raised:
                act()
            assert what in str(raised.value)
            assert is_too_many_open_files(raised.value)
            assert "ulimit -n" in str(raised.value)
            assert not any(word in str(raised.value) for word in ("damaged", "Replace", "download"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(held)


def n_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_small_tensors_that_are_kept_hold_no_file_open(tmp_path: Path) -> None:
    """Half of a model's tensors are small, and each map holds a file."""
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({f"norm.{k}": torch.full((8,), float(k)) for k in range(100)} | {"big": torch.ones(512, 1024)}, path)
    before = n_open_files()
    kept = {name: weight.read() for name, weight in open_weight_file(path).items()}
    assert n_open_files() <= before + 1
    assert all((kept[f"norm.{k}"] == k).all() for k in range(100)) and kept["big"].sum() == 512 * 1024


def test_a_map_for_which_no_file_may_be_opened_says_so(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"big": torch.ones(512, 1024)}, path)
    [weight] = open_weight_file(path).values()
    weight.read()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = os.open(os.devnull, os.O_RDONLY)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + 2, hard))  # the file, but not its map as well
        with pytest.raises(MirError, match=r"Too many open files.*ulimit -n") as raised:
            kept = [weight.read(), weight.read()]
            del kept
        assert "damaged" not in str(raised.value)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        os.close(held)


# ---- chat templates --------------------------------------------------------------------------------------------------


class Processor:
    """What the prompt takes from a processor."""

    def __init__(self, template: object) -> None:
        self.chat_template = template
        self.tokenizer = type("Tokenizer", (), {"special_tokens_map": {"bos_token": "<s>"}})()

    def apply_chat_template(self, messages: object, **_: object) -> str:
        """Must not be reached by a template that is refused."""
        return f"rendered {messages}"


MODERATE = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}{% generation %}x{% endgeneration %}{% endfor %}"
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "template", ["{{ 'a' * 10**10 }}", "{{ 'ab' * 1000000 }}", "{{ messages|indent(width=2**33) }}"]
)
def test_a_template_that_fills_the_memory_is_refused_before_it_is_rendered(template: str) -> None:
    with pytest.raises(MirError, match="chat_template"):
        PromptFormat("llava", Processor(template)).question("why", 1)
    with pytest.raises(MirError, match="chat_template"):  # one of several, by name
        PromptFormat("llava", Processor({"default": MODERATE, "tool_use": template})).question("why", 1)


@pytest.mark.slow
def test_a_template_of_endless_loops_is_refused() -> None:
    """It takes the ten seconds that a template has."""
    assert "seconds" in excess_of(ENDLESS, "{}", json.dumps([{"messages": []}]))


@pytest.mark.parametrize("template", [MODERATE, "{{ raise_exception('no') }}", "{{ unclosed", "{{ messages.x.y }}"])
def test_templates_within_the_limits_are_left_to_the_processor(template: str) -> None:
    assert "rendered" in PromptFormat("llava", Processor(template)).question("why", 1).question


def test_the_child_needs_nothing_but_jinja() -> None:
    path = Path(sys.modules[excess_of.__module__].__file__ or "")
    imported = {
        name.name.split(".")[0] if isinstance(node, ast.Import) else str(node.module).split(".")[0]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in node.names
    }
    assert imported - set(sys.stdlib_module_names) == {"jinja2"}
