"""The Correlation sheet: coefficients per score, and MIR against the average as a native chart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mir_plugin.files.outside_text import storable
from mir_plugin.reports.board.board import AVERAGE, Board, BoardRow
from mir_plugin.reports.board.joint import score_of
from mir_plugin.reports.view.columns import AVERAGE_COLUMN, COEFFICIENT_COLUMNS, COEFFICIENTS, correlation_columns
from mir_plugin.reports.view.series import main_column, score_columns
from mir_plugin.reports.view.tables import NEGATIVE_AGREES
from mir_plugin.reports.view.training import dependence
from mir_plugin.reports.workbook.leaderboard import layout
from mir_plugin.reports.workbook.sheets import (
    BOLD_LOOK,
    COLOURS,
    GRID,
    MUTED_LOOK,
    Sheet,
    column_letter,
    write_table,
)

EXPLANATION = (
    "p: two-sided; Holm: corrected for all scores of the same rows. 95 %: bootstrap over checkpoints. "
    "LOO: range when any one checkpoint is left out."
)
HEADER_ROW = 3
HEADER_ROW_BELOW_CHART = 30
COEFFICIENT_SCALE = {
    "type": "3_color_scale",
    "min_type": "num",
    "min_value": -1,
    "min_color": "#63BE7B",
    "mid_type": "num",
    "mid_value": 0,
    "mid_color": "#FFFFFF",
    "max_type": "num",
    "max_value": 1,
    "max_color": "#F4A582",
}


def write_correlation(sheet: Sheet, board: Board) -> None:
    """Fill the sheet: the chart, the table below it, and the chart's data to the right of the table."""
    columns = correlation_columns(board)
    if not any(one.note for one in board.correlations):
        columns = columns[:-1]
    key = main_column(board)
    has_chart = key is not None and any(_plotted(row, key) for row in board.rows)
    top = HEADER_ROW_BELOW_CHART if has_chart else HEADER_ROW
    sheet.put(1, 1, " ".join((NEGATIVE_AGREES, EXPLANATION, *dependence(board))), look=MUTED_LOOK)
    write_table(sheet, columns, board.correlations, top=top)
    sheet.xlsx.freeze_panes(0, 2)
    last = top + len(board.correlations)
    if board.correlations:
        for place in range(len(COEFFICIENTS)):
            letter = column_letter(4 + place * len(COEFFICIENT_COLUMNS))
            sheet.xlsx.conditional_format(f"{letter}{top + 1}:{letter}{last}", COEFFICIENT_SCALE)
    else:
        sheet.put(top + 1, 1, "No two checkpoints have both MIR and a score.", look=MUTED_LOOK)
    if key is not None and has_chart:
        _write_chart(sheet, board, key, top, left=len(columns) + 2)


def _write_chart(sheet: Sheet, board: Board, key: str, top: int, left: int) -> None:
    by_cohort = _write_points(sheet, board, key, top, left)
    plotted = [row for row in board.rows if _plotted(row, key)]
    label = storable(dict(score_columns(board))[key])
    label = f"'{label}" if label.startswith("=") else label  # XlsxWriter takes the rest for a reference
    chart = sheet.book.chart({"type": "scatter"})
    chart.set_title(
        {"name": f"MIR against {'the average score' if key == AVERAGE else label}", "name_font": {"size": 13}}
    )
    for set_axis, name, values, grid in (
        (chart.set_x_axis, "MIR (lower is better)", [row.mir for row in plotted], {"visible": False}),
        (chart.set_y_axis, label, [score_of(row, key) for row in plotted], GRID),
    ):
        low, high, step = _ticks([float(value or 0) for value in values])
        # Axes cross at their lower ends: at 0, the default, one would stand in the middle of negative values.
        options = {
            "min": low,
            "max": high,
            "crossing": "min",
            "major_unit": step,
            "num_format": _tick_format(step),
            "major_gridlines": grid,
        }
        set_axis({"name": name, **options})
    for place, (cohort, (first, last)) in enumerate(by_cohort.items()):
        colour = {"color": COLOURS[place % len(COLOURS)]}
        line = {"trendline": {"type": "linear", "line": {**colour, "width": 1}}} if last - first > 1 else {}
        chart.add_series(
            {
                "name": f"Cohort {cohort}",
                "categories": [sheet.name, first - 1, left + 1, last - 1, left + 1],
                "values": [sheet.name, first - 1, left + 2, last - 1, left + 2],
                "marker": {"type": "circle", "size": 7, "fill": colour, "border": colour},
                **line,
            }
        )
    if len(by_cohort) == 1:
        chart.set_legend({"none": True})
    chart.set_size({"width": 910, "height": 490})
    sheet.xlsx.insert_chart(f"A{HEADER_ROW}", chart)


def _write_points(sheet: Sheet, board: Board, key: str, top: int, left: int) -> dict[str, tuple[int, int]]:
    """Write the chart's data from column ``left`` on; first and last row of every cohort, which stand together."""
    plan = layout(board)
    heading = AVERAGE_COLUMN.heading if key == AVERAGE else board.benchmark(key).name
    mir, score = plan.letter("MIR"), plan.letter(heading)
    for index, text in enumerate(("Charted", "Cohort", "MIR", heading), start=left):
        sheet.put(top, index, text, look=BOLD_LOOK)
    sheet.xlsx.set_column(left - 1, left - 1, 38)
    spans: dict[str, tuple[int, int]] = {}
    points = [(number, row) for number, row in enumerate(board.rows, start=plan.first_row) if _plotted(row, key)]
    for at, (number, row) in enumerate(points, start=top + 1):
        sheet.put(at, left, row.name)
        sheet.put(at, left + 1, row.cohort)
        sheet.put_formula(at, left + 2, f"=Leaderboard!{mir}{number}", row.mir, "0.000")
        sheet.put_formula(at, left + 3, or_no_point(f"Leaderboard!{score}{number}"), score_of(row, key), "0.0")
        spans[row.cohort] = (spans.get(row.cohort, (at, at))[0], at)
    return spans


def or_no_point(cell: str) -> str:
    """The cell's number; where it holds an empty text, which a chart would draw as 0, what a chart leaves out."""
    return f'=IF({cell}="",NA(),{cell})'


def _ticks(values: Sequence[float]) -> tuple[float, float, float]:
    """Ends of an axis that holds the values with a margin, and the distance of its ticks: round numbers.

    >>> _ticks([2.51, 2.53]), _ticks([44.9, 59.8]), _ticks([3.0])
    ((2.505, 2.535, 0.005), (40.0, 65.0, 5.0), (2.0, 4.0, 0.5))
    """
    span = max(values) - min(values)
    margin = 0.06 * span or 1.0
    rough = (span + 2 * margin) / 8
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= 0.99 * rough)
    digits = max(0, -math.floor(math.log10(step)))
    low, high = math.floor((min(values) - margin) / step), math.ceil((max(values) + margin) / step)
    return round(low * step, digits), round(high * step, digits), round(step, digits)


def _tick_format(step: float) -> str:
    """The decimals of the ticks.

    >>> _tick_format(0.005), _tick_format(2.0)
    ('0.000', '0')
    """
    return f"{0:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _plotted(row: BoardRow, key: str) -> bool:
    return row.mir is not None and score_of(row, key) is not None
