"""Damaged, contradictory and hostile files given to ``mir report``, ``mir compare`` and ``mir select``."""

from __future__ import annotations

import csv
import datetime as dt
import itertools
import json
import os
import re
import shutil
import string
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from faults.battery import Bench, Case, Outcome, Refused, Right, each, fuzz
from hypothesis import given
from hypothesis import strategies as st
from report_boards import save_mir

from mir_plugin.errors import MirError
from mir_plugin.reports.board.config import ReportConfig
from mir_plugin.reports.board.joint import join
from mir_plugin.reports.build import build_report
from mir_plugin.reports.read.sources import read_sources
from mir_plugin.results import MirResult

from golden_data import require_golden

pytestmark = pytest.mark.slow

Row = dict[str, str]
GOOD_MIR = 2.3010299956639813  # log10 of the two layers' distances, 100 each


def good(folder: Path) -> Path:
    """A mir.json with MIR 2.301."""
    save_mir(folder / "mir.json", "models/good", 100.0)
    return folder / "mir.json"


def changed(**fields: Any) -> Callable[[Bench], Outcome]:
    """A good mir.json with other fields, and nothing else to report."""

    def act(bench: Bench) -> Outcome:
        path = good(bench.folder)
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        return reported(bench, path)

    return act


def rewritten(change: Callable[[bytes], bytes]) -> Callable[[Bench], Outcome]:
    """A good mir.json with other bytes."""

    def act(bench: Bench) -> Outcome:
        path = good(bench.folder)
        path.write_bytes(change(path.read_bytes()))
        return reported(bench, path)

    return act


def with_layer(**fields: Any) -> Callable[[Bench], Outcome]:
    def act(bench: Bench) -> Outcome:
        path = good(bench.folder)
        document = json.loads(path.read_text())
        document["layers"][1] |= fields
        path.write_text(json.dumps(document))
        return reported(bench, path)

    return act


def reported(bench: Bench, *sources: object, config: str = "formats: [csv]") -> Outcome:
    """``mir report`` of these; the value is the rows of report.csv."""
    (bench.folder / "config.yaml").write_text(config)
    outcome = bench.mir("report", *sources, "--config", "config.yaml", "--out", "report")
    table = bench.folder / "report" / "report.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8"))) if table.exists() else []
    return Outcome(outcome.exit_code, outcome.out, outcome.err, rows)


def table(text: str | bytes, name: str = "scores.csv", config: str = "formats: [csv]") -> Callable[[Bench], Outcome]:
    """``mir report`` of a table with this content."""

    def act(bench: Bench) -> Outcome:
        (bench.folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return reported(bench, name, config=config)

    return act


def shows(**cells: str) -> Right:
    """The first row has these cells; for keys, ``_`` stands for a space."""

    def check(rows: Any, bench: Bench) -> str:
        found = {name: rows[0].get(name.replace("_", " "), "") for name in cells} if rows else {}
        found |= {name: f"{float(value):.3f}" for name, value in found.items() if name == "MIR" and value}
        assert found == cells, rows
        return ", ".join(f"{name} {value or '(empty)'}" for name, value in cells.items())

    return Right(check)


NOT_WHOLE = Refused("mir.json", "not a complete MIR result", "Measure again")
MIR_JSON_CASES = (
    Case("empty", "mir.json is empty", rewritten(lambda _: b""), NOT_WHOLE),
    Case("half", "mir.json is half written", rewritten(lambda b: b[: len(b) // 2]), NOT_WHOLE),
    Case("all but the last byte", "mir.json lacks its last brace", rewritten(lambda b: b.rstrip()[:-1]), NOT_WHOLE),
    Case("twice", "mir.json was appended to itself", rewritten(lambda b: b + b), NOT_WHOLE),
    Case("utf-16", "mir.json is in UTF-16", rewritten(lambda b: b.decode().encode("utf-16")), Refused("mir.json")),
    Case("nul bytes", "mir.json is all zero bytes, as after a crash", rewritten(lambda b: bytes(len(b))), NOT_WHOLE),
    Case("a list", "mir.json holds a list", rewritten(lambda b: b"[" + b + b"]"), NOT_WHOLE),
    Case("nested", "mir.json is 100 000 brackets", rewritten(lambda _: b"[" * 100_000), NOT_WHOLE),
    Case("double key", "mir.json has two values of mir",
         rewritten(lambda b: b.replace(b'"mir":', b'"mir": 1.5, "mir":', 1)), NOT_WHOLE),
    Case("conflict marks", "mir.json holds a merge conflict", rewritten(lambda b: b"<<<<<<< HEAD\n" + b), NOT_WHOLE),
    Case("mir as text", 'mir is "2.301"', changed(mir="2.301"), NOT_WHOLE),
    Case("mir NaN", "mir is NaN", changed(mir=float("nan")), NOT_WHOLE),
    Case("mir infinite", "mir is Infinity", changed(mir=float("inf")), NOT_WHOLE),
    Case("mir null", "mir is null", changed(mir=None), NOT_WHOLE),
    Case("mir true", "mir is true", changed(mir=True), NOT_WHOLE),
    Case("mir of 400 digits", "mir is a whole number of 400 digits", changed(mir=10**400), NOT_WHOLE),
    Case("mir by hand", "mir was lowered by hand, the layers were not", changed(mir=2.2), NOT_WHOLE),
    Case("layer changed", "one digit of a layer's distance is another", with_layer(distance=900.0), NOT_WHOLE),
    Case("layer missing", "the first layer is missing", with_layer(layer=3), NOT_WHOLE),
    Case("layer negative", "a layer's distance makes the sum negative", with_layer(distance=-500.0), NOT_WHOLE),
    Case("layer NaN", "a layer's mean term is NaN", with_layer(mean_term=float("nan")), NOT_WHOLE),
    Case("layer is text", "the layers are a text", changed(layers="1, 2"), NOT_WHOLE),
    Case("no layers", "there are no layers", changed(layers=[]), NOT_WHOLE),
    Case("no fingerprints", "fingerprints is null", changed(fingerprints=None), NOT_WHOLE),
    Case("fingerprints of numbers", "the fingerprint of the samples is a number", changed(fingerprints={"samples": 1}),
         NOT_WHOLE),
    Case("nameless", "the checkpoint's name is blank", changed(checkpoint=" \t"), NOT_WHOLE),
    Case("no samples", "n_samples is 0", changed(n_samples=0), NOT_WHOLE),
    Case("outliers unknown", "the protocol knows no such treatment of outliers", changed(config={"outliers": "?"}),
         NOT_WHOLE),
    Case("interval wrong way round", "the interval of MIR ends before it begins",
         changed(uncertainty={"standard_error": 0.1, "low": 3.0, "high": 2.0}), NOT_WHOLE),
    Case("influences of others", "the influences are those of other samples",
         changed(uncertainty={"standard_error": 0.1, "low": 2.0, "high": 3.0, "influences": "0.1 0.2"}), NOT_WHOLE),
    Case("later field", "a later version added a field", changed(comes_later={"a": 1}), shows(MIR="2.301")),
)  # fmt: skip


ODD_MIR_JSON_CASES = (
    Case("mir 1e999", "mir is 1e999, which no number can hold",
         rewritten(lambda b: re.sub(rb'"mir": [0-9.]+', b'"mir": 1e999', b)), NOT_WHOLE),
    Case("byte-order mark", "mir.json begins with a byte-order mark",
         rewritten(lambda b: b"\xef\xbb\xbf" + b), NOT_WHOLE),
    Case("deep facts", "the facts are 5 000 objects in each other", rewritten(
        lambda b: b.replace(b'"facts": {}', b'"facts": ' + b'{"a": ' * 5000 + b"1" + b"}" * 5000, 1)), NOT_WHOLE),
    Case("published wild", "mir_published is 1e300", changed(mir_published=1e300), NOT_WHOLE),
    Case("published bound too low", "mir_published_upper lies below mir_published", changed(mir_published_upper=-5.0),
         NOT_WHOLE),
    Case("fewer than no tokens", "a layer has -5 vision tokens", with_layer(n_vision_tokens=-5), NOT_WHOLE),
    Case("later schema", "the result is of a later version's form", changed(schema_version=999),
         Refused("mir.json", "schema_version 999", "update")),
)  # fmt: skip


@each((*MIR_JSON_CASES, *ODD_MIR_JSON_CASES))
def test_a_damaged_result_is_refused_by_name(case: Case, bench: Bench) -> None:
    bench.hold("reports", case)


# ---- tables ----------------------------------------------------------------------------------------------------------


def workbook(
    fill: Callable[[Any], None], change: Callable[[Path], None] = lambda _: None
) -> Callable[[Bench], Outcome]:
    def act(bench: Bench) -> Outcome:
        book = openpyxl.Workbook()
        fill(book.active)
        path = bench.folder / "scores.xlsx"
        book.save(path)
        change(path)
        return reported(bench, path)

    return act


def one_row(sheet: Any) -> None:
    sheet.append(["checkpoint", "MMStar"])
    sheet.append(["a", 57.5])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_inside(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("xl/worksheets/sheet1.xml").header_offset
    content[start + 80] ^= 0xFF
    path.write_bytes(content)


def encrypted(path: Path) -> None:
    content = bytearray(path.read_bytes())
    at = -1
    while (at := content.find(b"PK\x01\x02", at + 1)) >= 0:
        content[at + 8] |= 1  # the flag of encryption
    path.write_bytes(content)


def with_400_digits(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    sheet = "xl/worksheets/sheet1.xml"
    contents[sheet] = contents[sheet].replace(b"<v>57.5</v>", b"<v>" + b"9" * 400 + b"</v>")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def far_cell(sheet: Any) -> None:
    one_row(sheet)
    sheet.cell(5_000, 100).value = 1


TABLE_CASES = (
    Case("empty table", "scores.csv is empty", table(""), Refused("scores.csv", "no column names the checkpoint")),
    Case("no checkpoint column", "no column names the checkpoint", table("MMStar\n57.5\n"),
         Refused("scores.csv", "MMStar", "model_path")),
    Case("binary table", "scores.csv is binary", table(bytes(range(256)) * 4), Refused("scores.csv", "not read")),
    Case("latin-1 table", "scores.csv is in Latin-1", table("checkpoint,MMStar\nä,57.5\n".encode("latin-1")),
         Refused("scores.csv", "not read", "Save the table again")),
    Case("open quote", "a quote is never closed", table('checkpoint,MMStar\n"a,57.5\nb,50\n'),
         Refused("scores.csv", "not read")),
    Case("comma in a name", "a name holds a comma without quotes: all its numbers are shifted",
         table("checkpoint,MMStar,MME\nllava, 7b,57.5,1400\n"), Refused("scores.csv row 2", "more cells", "Correct")),
    Case("heading twice", "two columns are headed MMStar and differ", table("checkpoint,MMStar,MMStar\na,57.5,20\n"),
         Refused("scores.csv", "2 columns", "Keep one")),
    Case("cut inside a number", "the file was cut: 57.5 became 5", table("checkpoint,MMStar\na,60.0\nb,5"),
         Right(lambda rows, bench: told(bench, "last line", rows))),
    Case("999", "an accuracy of 999", table("checkpoint,MMStar\na,999\n"), Refused("MMStar", "999", "0 to 100 %")),
    Case("negative", "an accuracy of -1, which some tools write for a failure", table("checkpoint,MMStar\na,-1\n"),
         Refused("MMStar", "-1", "0 to 100 %")),
    Case("MME as percent of itself", "an MME perception of 28000", table("checkpoint,MME\na,28000\n"),
         Refused("MME", "28000", "2800")),
    Case("MIR 999", "a MIR of 999", table("checkpoint,MIR,POPE\na,999,80\n"), shows(Checkpoint="a", MIR="")),
    Case("numbers as text", "a workbook holds its numbers as text",
         workbook(lambda sheet: [sheet.append(["checkpoint", "MMStar"]), sheet.append(["a", "57.5"])]),
         shows(MMStar="57.5")),
    Case("decimal comma", "57,5 with semicolons between", table("checkpoint;MMStar;POPE\na;57,5;80\n"),
         shows(MMStar="57.5", POPE="80.0")),
    Case("workbook cut", "scores.xlsx lacks 200 bytes", workbook(one_row, cut), Refused("scores.xlsx", "XLSX")),
    Case("workbook byte changed", "one byte inside scores.xlsx is another", workbook(one_row, flip_inside),
         Refused("scores.xlsx", "XLSX")),
    Case("workbook encrypted", "scores.xlsx asks for a password", workbook(one_row, encrypted),
         Refused("scores.xlsx", "XLSX")),
    Case("workbook is text", "scores.xlsx is a CSV file", table("checkpoint,MMStar\na,57.5\n", "scores.xlsx"),
         Refused("scores.xlsx", "XLSX")),
    Case("whole number of 400 digits", "a cell of a workbook holds a number of 400 digits",
         workbook(lambda s: [s.append(["checkpoint", "POPE", "MMStar"]), s.append(["a", 80, 57.5])], with_400_digits),
         shows(POPE="80.0")),
    Case("formula without value", "a cell holds a formula that no spreadsheet has computed",
         workbook(lambda s: [s.append(["checkpoint", "MMStar", "POPE"]), s.append(["a", "=1/0", 80])]),
         shows(POPE="80.0")),
    Case("row 5 000", "a workbook whose last cell is far away", workbook(far_cell),
         Refused("scores.xlsx row", "names no checkpoint")),
)  # fmt: skip


def second_sheet(sheet: Any) -> None:
    one_row(sheet)
    other = sheet.parent.create_sheet("Corrected")
    other.append(["checkpoint", "MMStar"])
    other.append(["a", 99])


def in_sheet(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """The first sheet's XML changed."""

    def damage(path: Path) -> None:
        with zipfile.ZipFile(path) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        contents["xl/worksheets/sheet1.xml"] = change(contents["xl/worksheets/sheet1.xml"])
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(name, content)

    return damage


def laughing(xml: bytes) -> bytes:
    """Ten entities, each ten times the one before: a cell of 10^10 letters."""
    names = "abcdefghij"
    more = "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in itertools.pairwise(names))
    return f'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">{more}]>'.encode() + xml.replace(b"<v>57.5</v>", b"<v>&j;</v>")


def reading_files(xml: bytes) -> bytes:
    head = b'<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    return head + xml.replace(b"<v>57.5</v>", b"<v>&a;</v>")


def swollen(xml: bytes) -> bytes:
    """Some hundred kilobytes that unpack to 40 MB of rows, all with one number."""
    return xml.replace(b"</sheetData>", b'<row r="9"><c r="A9"><v>1</v></c></row>' * 1_000_000 + b"</sheetData>")


EMPTY_REPORT = Refused("scores.csv", "no report was written", "Name")
ODD_TABLE_CASES = (
    Case("headings only", "scores.csv holds headings and no row", table("checkpoint,MMStar\n"), EMPTY_REPORT),
    Case("no score", "no row of scores.csv holds a score", table("checkpoint,MMStar\na,\nb,\n"), EMPTY_REPORT),
    Case("NaN cells", "cells hold NaN, N/A and null",
         table("checkpoint,MMStar,MME,POPE\na,NaN,N/A,null\n"), EMPTY_REPORT),
    Case("rows contradict", "two rows name one checkpoint with two scores", table("checkpoint,MMStar\na,57.5\na,20\n"),
         Refused("scores.csv", "rows 2 and 3", "57.5 and 20.0", "Keep one")),
    Case("rows contradict in MIR", "two rows name one checkpoint with two values of MIR",
         table("checkpoint,MIR\na,2.5\n a ,2.9\n"), Refused("scores.csv", "rows 2 and 3", "MIR 2.5 and 2.9")),
    Case("rows repeat", "two rows are the same", table("checkpoint,MMStar\na,57.5\na,57.5\n"), shows(MMStar="57.5")),
    Case("rows of two dates", "two rows name one checkpoint, of two dates: the later",
         table("checkpoint,MMStar,date\na,57.5,2026-02-01\na,20,2026-01-01\n"), shows(MMStar="57.5")),
    Case("rows complete each other", "two rows name one checkpoint, each with another benchmark",
         table("checkpoint,MMStar,POPE\na,57.5,\na,,80\n"), shows(MMStar="57.5", POPE="80.0")),
    Case("underscore in a number", "a cell is 3_4, which Python reads as 34",
         table("checkpoint,MMStar,POPE\na,3_4,80\n"),
         shows(MMStar="", POPE="80.0")),
    Case("zero byte in a table", "a zero byte in the middle of a number", table("checkpoint,MMStar\na,3\x004\n"),
         Refused("scores.csv", "not text", "Save the table again")),
    Case("table in UTF-16", "scores.csv is in UTF-16, as Excel's \"Unicode text\"",
         table("checkpoint,MMStar\na,57.5\n".encode("utf-16")),
         Refused("scores.csv", "not read", "Save the table again")),
    Case("table with a byte-order mark", "scores.csv begins with a byte-order mark",
         table("\ufeffcheckpoint,MMStar\na,57.5\n"), shows(MMStar="57.5")),
    Case("cell of 200 000 letters", "a name has 200 000 letters", table(f"checkpoint,MMStar\n{'a' * 200_000},57.5\n"),
         Refused("scores.csv", "field limit")),
    Case("several numbers that are none", "cells are 1e999, 0x22, Infinity, True and a date",
         table("checkpoint,MMStar,MME,POPE,GQA,TextVQA,SEED-Image\na,1e999,0x22,Infinity,True,2024-05-01,60\n"),
         shows(MMStar="", POPE="", GQA="", TextVQA="", **{"SEED-Image": "60.0"})),
    Case("second sheet", "the second sheet of a workbook contradicts the first", workbook(second_sheet),
         Right(lambda rows, bench: of_first_sheet(rows, bench))),
    Case("workbook of entities", "a cell of a workbook stands for 10^10 letters",
         workbook(one_row, in_sheet(laughing)), Refused("scores.xlsx", "XLSX", "Save the table again")),
    Case("workbook that reads files", "a cell of a workbook wants /etc/passwd read",
         workbook(one_row, in_sheet(reading_files)), Refused("scores.xlsx", "XLSX", without=("root:",))),
    Case("workbook that swells", "a workbook of 100 kB unpacks to 40 MB of rows",
         workbook(one_row, in_sheet(swollen)), shows(MMStar="57.5")),
    Case("error in a cell", "cells of a workbook hold #DIV/0! and a date", workbook(
        lambda s: [s.append(["checkpoint", "MMStar", "POPE", "GQA"]),
                   s.append(["a", "#DIV/0!", 80, dt.date(2024, 5, 1)])]),
        shows(MMStar="", POPE="80.0", GQA="")),
)  # fmt: skip


def of_first_sheet(rows: Any, bench: Bench) -> str:
    words = "Corrected"
    assert rows[0]["MMStar"] == "57.5"
    assert words in " ".join(reported(bench, "scores.xlsx").out.split())
    return f"MMStar 57.5, with a note: {words}"


def told(bench: Bench, words: str, rows: list[Row]) -> str:
    """The note stands in the report as well as in the terminal."""
    outcome = reported(bench, "scores.csv", config="formats: [html]")
    assert words in outcome.out.replace("\n", " "), outcome.out
    assert words in (bench.folder / "report" / "report.html").read_text(encoding="utf-8")
    return f"MMStar {rows[-1]['MMStar']}, with a note: {words}"


@each((*TABLE_CASES, *ODD_TABLE_CASES))
def test_a_damaged_table_gives_no_wrong_number(case: Case, bench: Bench) -> None:
    bench.hold("reports", case)


# ---- trees of host tools ---------------------------------------------------------------------------------------------


def lmms_eval(
    change: Callable[[dict[str, Any]], object], text: Callable[[str], str] = str
) -> Callable[[Bench], Outcome]:
    """A recorded results file of lmms-eval with changes."""

    def act(bench: Bench) -> Outcome:
        tree = require_golden("lmms_eval/results") / "models__tiny-llava-a"
        (bench.folder / "tree").mkdir()
        (path,) = tree.glob("*_results.json")
        document = json.loads(path.read_text())
        change(document)
        (bench.folder / "tree" / path.name).write_text(text(json.dumps(document)))
        return reported(bench, "tree")

    return act


def vlmevalkit(change: Callable[[Path], object]) -> Callable[[Bench], Outcome]:
    """A recorded tree of VLMEvalKit with changes."""

    def act(bench: Bench) -> Outcome:
        model = require_golden("vlmevalkit/outputs") / "llava_v1.5_tiny"
        copy = shutil.copytree(model, bench.folder / "outputs" / model.name, symlinks=True)
        change(copy)
        return reported(bench, "outputs")

    return act


def score_of_mmstar(tree: Path) -> Path:
    return next(tree.glob("T*/*_MMStar_acc.csv"))


def link_to_itself(bench: Bench) -> Outcome:
    good(bench.folder)
    (bench.folder / "loop").symlink_to("loop")
    return reported(bench, ".", "loop")


def empty_folder(bench: Bench) -> Outcome:
    (bench.folder / "tree").mkdir()
    return reported(bench, "tree")


def link_upwards(bench: Bench) -> Outcome:
    good(bench.folder / "tree")
    (bench.folder / "tree" / "up").symlink_to("..")
    return reported(bench, "tree")


def pipe(bench: Bench) -> Outcome:
    (bench.folder / "tree").mkdir()
    os.mkfifo(bench.folder / "tree" / "20260101_000000_results.json")
    os.mkfifo(bench.folder / "tree" / "mir.json")
    good(bench.folder)
    return reported(bench, "tree", "mir.json")


def named_pipe(bench: Bench) -> Outcome:
    os.mkfifo(bench.folder / "mir.json")
    return reported(bench, "mir.json")


def twice_the_same(bench: Bench) -> Outcome:
    good(bench.folder / "a")
    return reported(bench, "a", "a/mir.json", "./a/", bench.folder / "a")


def contradictory(bench: Bench) -> Outcome:
    save_mir(bench.folder / "a" / "mir.json", "m", 100.0, created="2026-01-01T00:00:00+00:00")
    save_mir(bench.folder / "b" / "mir.json", "m", 1000.0, created="2026-02-01T00:00:00+00:00")
    return reported(bench, "a", "b")


def other_samples(bench: Bench) -> Outcome:
    save_mir(bench.folder / "a" / "mir.json", "m1", 100.0)
    save_mir(bench.folder / "b" / "mir.json", "m2", 50.0, samples="others")
    return reported(bench, "a", "b")


def stated(*words: str) -> Right:
    def check(rows: Any, bench: Bench) -> str:
        outcome = bench.mir("report", *(p for p in ("a", "b") if Path(p).exists()), "--out", "again")
        text = " ".join(outcome.out.split())
        missing = [word for word in words if word not in text]
        assert not missing, text
        return f"the report says: {' ... '.join(words)}"

    return Right(check)


def set_in(document: dict[str, Any], task: str, value: Any) -> None:
    document["results"][task]["average,none"] = value


TREE_CASES = (
    Case("lmms-eval half", "a results file of lmms-eval is half written", lmms_eval(lambda d: 0, lambda t: t[:2000]),
         Refused("_results.json", "JSON", "Run the evaluation again")),
    Case("lmms-eval double key", "a results file has two values of one score",
         lmms_eval(lambda d: 0, lambda t: t.replace('"average,none":', '"average,none": 0.9, "average,none":', 1)),
         Refused("_results.json", "duplicate key")),
    Case("lmms-eval list", "results is a list", lmms_eval(lambda d: d.update(results=[1])),
         Refused("_results.json", 'no "results" table')),
    Case("lmms-eval nameless", "neither model_name nor config.model is there",
         lmms_eval(lambda d: (d.pop("model_name"), d.pop("config"))), Refused("_results.json", "names no model")),
    Case("lmms-eval 999", "an accuracy is the 999 of a bypassed metric", lmms_eval(lambda d: set_in(d, "mmstar", 999)),
         Refused("MMStar", "99900", "0 to 100 %")),
    Case("lmms-eval percent for fraction", "an accuracy of 34.2 where a fraction belongs",
         lmms_eval(lambda d: set_in(d, "mmstar", 34.2)), Refused("MMStar", "3420", "0 to 100 %")),
    Case("lmms-eval NaN", "an accuracy is NaN", lmms_eval(lambda d: set_in(d, "mmstar", float("nan"))),
         shows(MMStar="")),
    Case("lmms-eval huge", "an accuracy is a whole number of 400 digits",
         lmms_eval(lambda d: set_in(d, "mmstar", 10**400)), shows(MMStar="")),
    Case("lmms-eval true", "an accuracy is true", lmms_eval(lambda d: set_in(d, "mmstar", True)), shows(MMStar="")),
    Case("lmms-eval counts are lists", "the numbers of documents are lists",
         lmms_eval(lambda d: d.update({"n-samples": {t: {"effective": [1], "original": [1]} for t in d["results"]}})),
         Right(lambda rows, _: "the scores are shown" if rows[0]["MMStar"] else pytest.fail(str(rows)))),
    Case("lmms-eval everything null", "every table of the file is null",
         lmms_eval(lambda d: d.update({k: None for k in d if k not in ("results", "model_name")})),
         Right(lambda rows, _: "the scores are shown" if rows[0]["MMStar"] else pytest.fail(str(rows)))),
    Case("vlmevalkit impossible date", "a run folder is dated the 99th month",
         vlmevalkit(lambda t: next(t.glob("T2*")).rename(t / "T20269999-999999")),
         Right(lambda rows, _: "the scores are shown" if rows[0]["MMStar"] else pytest.fail(str(rows)))),
    Case("vlmevalkit score cut", "a score file was cut inside its heading",
         vlmevalkit(lambda t: score_of_mmstar(t).write_text("split,Over")), Refused("MMStar_acc.csv", "no number")),
    Case("vlmevalkit score empty", "a score file is empty", vlmevalkit(lambda t: score_of_mmstar(t).write_bytes(b"")),
         Refused("MMStar_acc.csv", "no number", "Score this data set again")),
    Case("vlmevalkit status half", "status.json is half written",
         vlmevalkit(lambda t: next(t.glob("T*/status.json")).write_text('{"datasets": {')),
         Refused("status.json", "not read")),
    Case("vlmevalkit folder for a result", "a folder is called mir.json",
         vlmevalkit(lambda t: (t / "sub" / "mir.json").mkdir(parents=True)),
         Right(lambda rows, _: "the scores are shown" if rows[0]["MMStar"] else pytest.fail(str(rows)))),
    Case("nothing in a folder", "a folder holds no result", empty_folder,
         Refused("tree", "no report was written", "Name")),
    Case("link to the folder above", "a folder of results holds a link to itself", link_upwards, shows(MIR="2.301")),
    Case("link to itself", "a source is a link to itself", link_to_itself, Refused("loop", "leads nowhere")),
    Case("pipes in a folder", "a folder holds pipes with the names of results", pipe, shows(MIR="2.301")),
    Case("pipe", "a pipe is given for a result", named_pipe, Refused("mir.json", "regular file")),
    Case("nothing", "a source does not exist", lambda b: reported(b, "nowhere"), Refused("nowhere", "expected a file")),
    Case("source of 5000 characters", "a source's name is longer than any path", lambda b: reported(b, "x" * 5000),
         Refused("matches nothing")),
    Case("the same four times", "one result is named in four ways", twice_the_same, shows(MIR="2.301", Rank="1")),
    Case("contradictory runs", "one checkpoint was measured twice, with other numbers", contradictory,
         stated("MIR 3.301", "is used, not 2.301")),
    Case("other samples", "two checkpoints were measured on other samples", other_samples,
         stated("must not be compared", "they differ in samples")),
)  # fmt: skip


@each(TREE_CASES)
def test_a_damaged_tree_gives_no_wrong_number(case: Case, bench: Bench) -> None:
    bench.hold("reports", case)


# ---- configurations --------------------------------------------------------------------------------------------------


def configured(text: str) -> Callable[[Bench], Outcome]:
    return table("checkpoint,MMStar\na,57.5\n", config=text)


# Each line nine times the one before: some hundred bytes that stand for ten thousand million values.
LAUGHS = "".join(f" - &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True))
CONFIG_CASES = (
    Case("config says two things", "the configuration has two values of formats",
         configured("formats: [csv]\nformats: [html]"), Refused("config.yaml", "'formats'")),
    Case("two configurations", "the configuration is two documents", configured("formats: [csv]\n---\nformats: [html]"),
         Refused("config.yaml", "single document")),
    Case("config names a class", "the configuration names a Python object",
         configured("formats: [!!python/name:os.system ]"), Refused("config.yaml", "python/name:os.system")),
    Case("config with tabs", "the configuration is indented by tabs", configured("formats:\n\t- csv"),
         Refused("config.yaml", "line 2")),
    Case("config says no", "the formats are no, which YAML takes for false", configured("formats: [no]"),
         Refused("'False'", "expected xlsx")),
    Case("config is no YAML", "the configuration is no YAML", configured("models: [}"), Refused("config.yaml")),
    Case("config is a list", "the configuration is a list", configured("- a"), Refused("config.yaml", "mapping")),
    Case("impossible date", "a value looks like a date that does not exist", configured("title: 2026-13-45"),
         Refused("config.yaml")),
    Case("billion laughs", "a few lines of aliases stand for a billion values",
         configured(f"weights:\n - &a [x, x]\n{LAUGHS}"),
         Refused("config.yaml")),
    Case("alias to itself", "an alias holds itself", configured("models: &m [*m]"), Refused("config.yaml", "models")),
    Case("nested configuration", "the configuration is 5 000 brackets deep", configured("models: " + "[" * 5000),
         Refused("config.yaml")),
    Case("python tag", "the configuration asks to run a program",
         configured("title: !!python/object/apply:os.system ['touch pwned']"), Refused("config.yaml", "python")),
    Case("unknown key", "a key is misspelt", configured("wieghts: {mmstar: 1}"),
         Refused("config.yaml", "wieghts", "did you mean weights")),
    Case("weight as text", "a weight is a text", configured('weights: {mmstar: "1"}'),
         Refused("config.yaml", "weights.mmstar")),
    Case("weight infinite", "a weight is infinite", configured("weights: {mmstar: .inf}"), Refused("weights.mmstar")),
    Case("weight of 400 digits", "a weight is a number of 400 digits", configured(f"weights: {{mmstar: {10**400}}}"),
         Refused("config.yaml", "weights.mmstar")),
    Case("truth as text", 'averaged is "no", which is true to Python',
         configured('define: [{key: x, averaged: "no"}]'), Refused("define[0].averaged", "true or false")),
    Case("factor as text", "to_percent is a text", configured("define: [{key: x, to_percent: half}]"),
         Refused("config.yaml", "define[0].to_percent")),
    Case("benchmark twice", "a benchmark is defined twice", configured("define: [{key: x}, {key: x}]"),
         Refused("config.yaml", "'x' twice")),
    Case("home of nobody", "a match names the home folder of a user that does not exist",
         configured("formats: [csv]\nmodels: [{match: ~nobody-here/model, name: b}]"), shows(Checkpoint="a")),
    Case("two checkpoints, one name", "two checkpoints get one name",
         table("checkpoint,MMStar\na,50\nb,60\n", config="models: [{match: a, name: x}, {match: b, name: x}]"),
         Refused("'x'", "name of its own")),
)  # fmt: skip


@each(CONFIG_CASES)
def test_a_hostile_configuration_is_refused_by_key(case: Case, bench: Bench) -> None:
    bench.hold("reports", case)
    assert not (bench.folder / "pwned").exists()


# ---- names -----------------------------------------------------------------------------------------------------------

NAMES = {
    "formula": "=cmd|'/c calc'!A1",
    "sum": "@SUM(1+1)*cmd",
    "script": "<script>alert(1)</script>",
    "end of script": "</script><img src=x onerror=alert(1)>",
    "quotes": "a\"b'c`d",
    "line ends": "first\nsecond\r\nthird",
    "right to left": "model\u202e5.2",
    "500 characters": "x" * 500,
    "path of 2000 characters": "d/" * 1000,
    "mathematics": r"$\frac{1}{0}$",
    "half mathematics": "a $ b_{",
    "table": "a | b || c",
    "markup": "[red]x[/red] [link=file:///]y",
    "template": "{{ 7 * 7 }} {% raw %} ${x} %s {0}",
    "home of nobody": "~nobody-here/model",
    "escape sequences": "\x1b]0;title\x07\x1b[31mred",
    "nul": "a\x00b",
    "lone surrogate": "a\ud800b",
    "emoji and scripts": "模型 🦙 नमूना العربية",
    "latex": r"\input{/etc/passwd} 100% #1 & ~^",
}


def called(name: str) -> Callable[[Bench], Outcome]:
    """A result and a score of a checkpoint of this name, reported in every format."""

    def act(bench: Bench) -> Outcome:
        save_mir(bench.folder / "mir.json", name, 100.0)
        save_mir(bench.folder / "b" / "mir.json", "other", 200.0)
        with (bench.folder / "scores.csv").open("w", encoding="utf-8", newline="", errors="surrogatepass") as file:
            csv.writer(file).writerows([["checkpoint", "MMStar"], ["other", 50.0], [name.replace("\0", ""), 40.0]])
        if "\ud800" in name:
            (bench.folder / "scores.csv").write_text("checkpoint,MMStar\nother,50\n")
        outcome = bench.mir("report", "mir.json", "b", "scores.csv", "--out", "report")
        return Outcome(outcome.exit_code, outcome.out, outcome.err, outcome.out)

    return act


def harmless(printed: Any, bench: Bench) -> str:
    """MIR stands in every format, and nothing of the name acts."""
    report = bench.folder / "report"
    assert "MIR 2.301" in printed
    assert not set(printed) & {"\x1b", "\x07", "\u202e"}
    texts = {
        path.suffix: path.read_text(encoding="utf-8") for path in report.glob("report.*") if path.suffix != ".xlsx"
    }
    assert all("\u202e" not in text for text in texts.values())
    page = texts[".html"]
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "{{ 7 * 7 }}" in page or "7 * 7" not in page
    widths = {line.count("|") - line.count(r"\|") for line in texts[".md"].splitlines() if line.startswith("|")}
    assert len(widths) <= 2, texts[".md"]  # the tables of rows and of problems
    for row in csv.reader(texts[".csv"].splitlines()):
        assert not any(cell.startswith(("=", "+", "@")) for cell in row), row
    assert r"\input" not in texts[".tex"]
    book = openpyxl.load_workbook(report / "report.xlsx")
    formulas = [str(c.value) for sheet in book for row in sheet.iter_rows() for c in row if c.data_type == "f"]
    assert not [formula for formula in formulas if "cmd" in formula], formulas
    assert not [path for path in report.rglob("*") if path.stat().st_size == 0]
    return "shown as text in workbook, page, CSV, Markdown, LaTeX, figures and terminal; MIR 2.301"


QUICK = ("formula", "script", "line ends", "right to left", "500 characters", "half mathematics", "escape sequences")
NAME_CASES = [
    Case(f"name: {kind}", f"a checkpoint is called {name[:60]!r}", called(name), Right(harmless),
         full=kind not in QUICK)
    for kind, name in NAMES.items()
]  # fmt: skip


@each(NAME_CASES)
def test_a_hostile_name_is_shown_and_does_nothing(case: Case, bench: Bench) -> None:
    bench.hold("reports", case)


# ---- compare and select ----------------------------------------------------------------------------------------------


def compared(command: str, **fields: Any) -> Callable[[Bench], Outcome]:
    def act(bench: Bench) -> Outcome:
        path = good(bench.folder / "a")
        save_mir(bench.folder / "b" / "mir.json", "other", 50.0)
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
        return bench.mir(command, "a", "b")

    return act


COMPARE_CASES = [
    Case(f"{command}: {name}", f"`mir {command}`: {done}", compared(command, **fields), NOT_WHOLE)
    for command in ("compare", "select")
    for name, done, fields in (
        ("NaN", "one MIR is NaN", {"mir": float("nan")}),
        ("by hand", "one MIR was lowered by hand", {"mir": 1.0}),
        ("text", "one MIR is a text", {"mir": "1.0"}),
    )
] + [
    Case(f"{command}: samples", f"`mir {command}`: the two were measured on other samples",
         compared(command, fingerprints={"samples": "others", "protocol": "p1"}), Refused("samples", "--anyway"))
    for command in ("compare", "select")
]  # fmt: skip


@each(COMPARE_CASES)
def test_damaged_results_are_not_compared(case: Case, bench: Bench) -> None:
    bench.hold("reports", case)


# ---- property-based --------------------------------------------------------------------------------------------------


damage = st.lists(
    st.tuples(st.sampled_from(["cut", "flip", "insert", "delete", "repeat"]), st.floats(0, 1), st.binary(max_size=8)),
    min_size=1,
    max_size=4,
)


def damaged_bytes(content: bytes, steps: list[tuple[str, float, bytes]]) -> bytes:
    for kind, where, other in steps:
        at = int(where * max(0, len(content) - 1))
        if kind == "cut":
            content = content[:at]
        elif kind == "flip" and content:
            content = content[:at] + bytes([content[at] ^ (other[0] if other else 1)]) + content[at + 1 :]
        elif kind == "insert":
            content = content[:at] + other + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + 1 + len(other) :]
        elif kind == "repeat":
            content = content[:at] + content[max(0, at - 40) :]
    return content


def all_shown(path: Path, out: Path | None = None) -> dict[str, tuple[float | None, dict[str, float]]]:
    """What a report shows of a file: name → MIR and scores; whatever is in the file, nothing but MirError is raised."""
    parsed = read_sources([path])
    board = join(parsed)
    if out is not None:
        build_report([path], out, ReportConfig(formats=("csv", "md", "tex", "html", "xlsx")))
    assert board.rows or parsed.problems, "neither shown nor told"
    return {row.name: (row.mir, dict(row.scores)) for row in board.rows}


def noted(bench: Bench, what: str, came_out: str) -> None:
    bench.note("reports", what, came_out)


def test_a_result_with_damaged_bytes_is_refused_or_has_its_own_mir(bench: Bench, examples: int) -> None:
    original = good(bench.folder).read_bytes()
    outcomes = {"refused": 0, "the same MIR": 0}

    @fuzz(examples)
    @given(damage)
    def hold(steps: list[tuple[str, float, bytes]]) -> None:
        path = bench.folder / "mir.json"
        path.write_bytes(damaged_bytes(original, steps))
        for mir, _ in all_shown(path).values():
            assert mir == pytest.approx(GOOD_MIR, abs=1e-8)
            outcomes["the same MIR"] += 1
            return
        outcomes["refused"] += 1

    hold()
    assert all(outcomes.values())
    noted(bench, f"{examples} random damages to the bytes of a mir.json", f"refused, or the same MIR: {outcomes}")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("999") | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def test_a_result_with_any_json_for_a_field_is_refused_or_has_its_own_mir(bench: Bench, examples: int) -> None:
    path = good(bench.folder)
    document = json.loads(path.read_text())

    @fuzz(examples)
    @given(st.sampled_from(sorted(document)), json_values)
    def hold(field: str, value: Any) -> None:
        path.write_text(json.dumps({**document, field: value}))
        for mir, _ in all_shown(path).values():
            assert mir == pytest.approx(GOOD_MIR, abs=1e-8)

    hold()
    noted(bench, f"{examples} random JSON values for the fields of a mir.json", "refused, or the same MIR")


def test_lmms_eval_files_with_any_json_inside_raise_nothing_and_keep_to_the_scales(bench: Bench, examples: int) -> None:
    tree = require_golden("lmms_eval/results") / "models__tiny-llava-a"
    document = json.loads(next(tree.glob("*_results.json")).read_text())
    path = bench.folder / "20260101_000000_results.json"

    @fuzz(examples)
    @given(st.sampled_from(sorted(document)), json_values, st.sampled_from(sorted(document["results"])), json_values)
    def hold(field: str, value: Any, task: str, score: Any) -> None:
        results = {**document["results"], task: {"average,none": score, "exact_match,none": score}}
        path.write_text(json.dumps({**document, "results": results, field: value}))
        for mir, scores in all_shown(path).values():
            assert mir is None or abs(mir) < 400
            assert all(-1e-6 <= number <= 100.001 for key, number in scores.items() if not key.startswith("mme")), (
                scores
            )

    hold()
    noted(bench, f"{examples} random JSON values inside a results file of lmms-eval", "no score off its scale")


cells = st.one_of(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=12),
    st.floats().map(str),
    st.sampled_from(["", "NaN", "999", "-1", "57,5", "1e400", "=1+1", "<b>", "\u202e", "50%", "٥", "1_0"]),
)


def test_tables_of_any_cells_raise_nothing_in_any_format(bench: Bench, examples: int) -> None:
    path = bench.folder / "scores.csv"

    @fuzz(max(6, examples // 10))
    @given(st.lists(st.lists(cells, min_size=1, max_size=6), max_size=4))
    def hold(rows: list[list[str]]) -> None:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["checkpoint", "MMStar", "MME", "MIR", "date"], *rows])
        for _, scores in all_shown(path, bench.folder / "report").values():
            assert -1e-6 <= scores.get("mmstar", 0) <= 100.001

    hold()
    noted(
        bench, f"{max(6, examples // 10)} random tables, reported in five formats", "no error, no score off its scale"
    )


def test_a_table_that_was_cut_shows_its_own_numbers_or_says_so(bench: Bench) -> None:
    path = bench.folder / "scores.csv"
    whole = {"a": 57.5, "b": 61.25, "c": 7.0}
    text = "checkpoint,MMStar\n" + "".join(f"{name},{value}\n" for name, value in whole.items())
    for length in range(len(text)):
        path.write_text(text[:length])
        parsed = read_sources([path])
        for row in join(parsed).rows:
            own = row.scores.get("mmstar") in (None, whole.get(row.name))
            assert own or any("cut short" in problem.what for problem in parsed.problems), text[:length]
    noted(bench, f"a table cut at each of its {len(text)} bytes", "its own numbers, or a note that it was cut short")


def test_configurations_of_any_yaml_raise_only_our_message(bench: Bench, examples: int) -> None:
    path = bench.folder / "config.yaml"
    keys = st.sampled_from(["title", "models", "benchmarks", "weights", "define", "formats", "notes", "x"])
    entries = st.dictionaries(st.sampled_from(["match", "name", "key", "unit", "step", "to_percent"]), json_values)

    @fuzz(examples)
    @given(st.dictionaries(keys, json_values | st.lists(entries, max_size=2)) | json_values)
    def hold(document: Any) -> None:
        path.write_text(json.dumps(document), encoding="utf-8", errors="surrogatepass")
        try:
            ReportConfig.load(path)
        except MirError as error:
            assert "config.yaml" in str(error)

    hold()
    noted(bench, f"{examples} random configurations", "read, or one message that names the file")


def test_texts_that_are_no_yaml_raise_only_our_message(bench: Bench, examples: int) -> None:
    path = bench.folder / "config.yaml"

    @fuzz(examples)
    @given(st.text(alphabet=string.printable, max_size=60) | st.binary(max_size=40))
    def hold(text: str | bytes) -> None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            ReportConfig.load(path)
        except MirError as error:
            assert "config.yaml" in str(error)

    hold()
    noted(bench, f"{examples} random texts and bytes as configuration", "read, or one message that names the file")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".xlsx", ".json", "_results.json"])
def test_random_bytes_under_any_name_are_told_and_show_nothing(suffix: str, bench: Bench, examples: int) -> None:
    path = bench.folder / f"x{suffix}"

    @fuzz(examples)
    @given(st.binary(max_size=200))
    def hold(content: bytes) -> None:
        path.write_bytes(content)
        assert not any(mir is not None for mir, _ in all_shown(path).values())

    hold()
    noted(bench, f"{examples} files of random bytes called x{suffix}", "told by name, nothing shown")


def test_a_workbook_with_damaged_bytes_is_refused_or_has_its_own_numbers(bench: Bench, examples: int) -> None:
    path = bench.folder / "scores.xlsx"
    book = openpyxl.Workbook()
    one_row(book.active)
    book.save(path)
    original = path.read_bytes()

    @fuzz(examples)
    @given(damage)
    def hold(steps: list[tuple[str, float, bytes]]) -> None:
        path.write_bytes(damaged_bytes(original, steps))
        for _, scores in all_shown(path).values():
            assert scores in ({"mmstar": 57.5}, {})

    hold()
    noted(bench, f"{examples} random damages to the bytes of a workbook", "refused, or the same numbers")


def test_a_result_reads_back_as_it_was_written(tmp_path: Path) -> None:
    result = save_mir(tmp_path / "mir.json", "m", 100.0)
    assert MirResult.load(tmp_path / "mir.json") == result
