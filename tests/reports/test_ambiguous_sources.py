"""Sources that could be read in two ways: read in the right one, or told; never the last one by name."""

from __future__ import annotations

import json
from pathlib import Path

import openpyxl
import pytest

from mir_plugin.reports.board.board import Board
from mir_plugin.reports.board.joint import join
from mir_plugin.reports.read.sources import read_sources


def board(*sources: Path) -> Board:
    return join(read_sources(sources))


def scores(*sources: Path) -> dict[str, dict[str, float]]:
    """Name → scores of the board."""
    return {row.name: dict(row.scores) for row in board(*sources).rows}


def told(one: Board, *words: str) -> bool:
    """Whether a problem or warning holds all words."""
    return any(all(word in f"{p.where} {p.what}" for word in words) for p in one.problems)


def lmms(path: Path, metrics: dict[str, float], shots: int = 0, n: int = 1500, date: str = "20261121_095319") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "results": {"mmstar": metrics},
        "n-samples": {"mmstar": {"original": n, "effective": n}},
        "n-shot": {"mmstar": shots},
        "config": {"model": "llava", "limit": None},
        "model_name": "/m/a",
        "date": date,
    }
    path.write_text(json.dumps(document))


def test_an_8_shot_score_does_not_replace_the_0_shot_one(tmp_path: Path) -> None:
    lmms(tmp_path / "a/20261121_095319_results.json", {"average,none": 0.31})
    lmms(tmp_path / "a/20261121_105319_results.json", {"average,none": 0.52}, shots=8, date="20261121_105319")
    assert scores(tmp_path) == {"a": {"mmstar": pytest.approx(31.0), "mmstar (8-shot)": 0.52}}


def test_of_two_filters_that_disagree_none_is_taken(tmp_path: Path) -> None:
    lmms(tmp_path / "a/20261121_095319_results.json", {"average,flexible": 0.5, "average,strict": 0.2})
    found = board(tmp_path)
    assert not any(row.scores for row in found.rows)
    assert told(found, "mmstar", "average,flexible", "average,strict")
    lmms(tmp_path / "a/20261121_095319_results.json", {"average,flexible": 0.5, "average,none": 0.2})
    assert scores(tmp_path)["a"] == {"mmstar": pytest.approx(20.0)}


def test_a_score_over_0_of_0_samples_is_none(tmp_path: Path) -> None:
    lmms(tmp_path / "a/20261121_095319_results.json", {"average,none": 0.0}, n=0)
    found = board(tmp_path)
    assert not any(row.scores for row in found.rows)
    assert told(found, "mmstar", "0 samples")


def vlm(folder: Path, data_set: str, value: float, judge: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model = folder.parent.name if folder.name.startswith("T2026") else folder.name
    name = f"{model}_{data_set}{f'_{judge}' if judge else ''}_{'score' if judge else 'acc'}.csv"
    text = f'"Category","tot","acc"\n"Overall","20","{value}"\n' if judge else f'"split","Overall"\n"none","{value}"\n'
    (folder / name).write_text(text)


def test_two_trees_with_one_model_name_are_not_decided_by_the_clock(tmp_path: Path) -> None:
    vlm(tmp_path / "seed0/llava/T20261121-004534", "MMStar", 0.31)
    vlm(tmp_path / "seed1/llava/T20261121-004600", "MMStar", 0.55)
    found = board(tmp_path / "seed0", tmp_path / "seed1")
    assert not any("mmstar" in row.scores for row in found.rows)
    assert told(found, "31.00", "55.00", "seed0", "seed1")
    # Runs in one folder of the model follow each other.
    vlm(tmp_path / "seed0/llava/T20261122-004534", "MMStar", 0.33)
    assert scores(tmp_path / "seed0") == {"llava": {"mmstar": pytest.approx(33.0)}}


def test_two_judges_are_shown_apart(tmp_path: Path) -> None:
    folder = tmp_path / "llava/T20261121-004534"
    vlm(folder, "MMVet", 25.0, "gpt-4-turbo")
    assert scores(tmp_path) == {"llava": {"mmvet": 25.0}}
    vlm(folder, "MMVet", 31.0, "gpt-4o")
    found = board(tmp_path)
    assert found.rows[0].scores == {"MMVet (gpt-4-turbo)": 25.0, "MMVet (gpt-4o)": 31.0}
    assert told(found, "MMVet", "gpt-4-turbo", "gpt-4o")


@pytest.mark.parametrize("data_set", ["MMStar_KO", "MMBench_DEV_EN_V11_X"])
def test_another_data_set_is_not_the_one_its_name_begins_with(data_set: str, tmp_path: Path) -> None:
    vlm(tmp_path / "llava/T20261121-004534", data_set, 0.71)
    assert scores(tmp_path) == {"llava": {data_set: 0.71}}


def test_percent_cells_and_hidden_sheets_of_a_workbook(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    hidden = book.active
    hidden.title = "old"
    hidden.append(["checkpoint", "MMStar"])
    hidden.append(["a", 11.0])
    hidden.sheet_state = "hidden"
    sheet = book.create_sheet("scores")
    sheet.append(["checkpoint", "MMStar", "POPE"])
    sheet.append(["a", 0.575, 0.009])
    for column in "BC":
        sheet[f"{column}2"].number_format = "0.0%"
    path = tmp_path / "scores.xlsx"
    book.save(path)
    found = board(path)
    assert found.rows[0].scores == {"mmstar": 57.5, "pope": 0.9}
    assert told(found, "old")


def test_rows_that_sum_up_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    rows = ["a,30", "b,40", "Average,35", "**Δ**,10", "Δ to baseline,5", "mean of all,35", "average-pooling-7b,33"]
    path.write_text("checkpoint,MMStar\n" + "\n".join(rows) + "\n")
    assert set(scores(path)) == {"a", "b", "average-pooling-7b"}
    assert told(board(path), "Average", "Δ to baseline")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("a;1.512;57,5\nb;1.401;31,0\n", {"mme": 1512.0, "mmstar": 57.5}),  # 1.512 has a thousands separator there
        ("a;1510.7;57.5\nb;1401.2;31.0\n", {"mme": 1510.7, "mmstar": 57.5}),
        ("a;1.510,7;57,5\nb;1401,2;31\n", {"mme": 1510.7, "mmstar": 57.5}),
    ],
)
def test_decimal_commas_between_semicolons(rows: str, expected: dict[str, float], tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text("checkpoint;MME;MMStar\n" + rows)
    assert scores(path)["a"] == expected
