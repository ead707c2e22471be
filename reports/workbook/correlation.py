"""The Correlation sheet: coefficients per score, and MIR against the average as a native chart."""

from __future__ import annotations

import math
from collections.abc import Sequence

from openpyxl.chart import Reference, ScatterChart, Series
from openpyxl.chart.shapes import GraphicalProperties
from openpyxl.chart.trendline import Trendline
from openpyxl.formatting.rule import ColorScaleRule
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet

from mir_plugin.reports.board.board import Board, BoardRow
from mir_plugin.reports.view.columns import COEFFICIENT_COLUMNS, COEFFICIENTS, correlation_columns
from mir_plugin.reports.workbook.leaderboard import layout
from mir_plugin.reports.workbook.sheets import (
    BOLD_FONT,
    MUTED_FONT,
    put,
    put_formula,
    write_table,
)

EXPLANATION = (
    "Lower MIR is better, so a negative correlation means that a lower MIR goes with higher scores. "
    "p: two-sided. 95 %: bootstrap over rows. LOO: range when any one row is left out."
)
HEADER_ROW = 3
HEADER_ROW_BELOW_CHART = 30
COLOURS = ("1F77B4", "D62728", "2CA02C", "9467BD", "FF7F0E", "17BECF")


def write_correlation(sheet: Worksheet, board: Board) -> None:
    """Fill the sheet: the chart, the table below it, and the chart's data to the right of the table."""
    columns = correlation_columns(board)
    has_chart = any(_plotted(row) for row in board.rows)
    top = HEADER_ROW_BELOW_CHART if has_chart else HEADER_ROW
    put(sheet.cell(1, 1), EXPLANATION, font=MUTED_FONT)
    write_table(sheet, columns, board.correlations, top=top)
    sheet.freeze_panes = "C1"
    last = top + len(board.correlations)
    if board.correlations:
        for place in range(len(COEFFICIENTS)):
            letter = get_column_letter(4 + place * len(COEFFICIENT_COLUMNS))
            rule = ColorScaleRule("num", -1, "63BE7B", "num", 0, "FFFFFF", "num", 1, "F4A582")
            sheet.conditional_formatting.add(f"{letter}{top + 1}:{letter}{last}", rule)
    else:
        put(sheet.cell(top + 1, 1), "No two checkpoints have both MIR and a score.", font=MUTED_FONT)
    if has_chart:
        _write_chart(sheet, board, top=top, left=len(columns) + 2)


def _write_chart(sheet: Worksheet, board: Board, top: int, left: int) -> None:
    plan = layout(board)
    points = [(number, row) for number, row in enumerate(board.rows, start=plan.first_row) if _plotted(row)]
    for index, heading in enumerate(("Charted", "Cohort", "MIR", "Average"), start=left):
        put(sheet.cell(top, index), heading, font=BOLD_FONT)
    sheet.column_dimensions[get_column_letter(left)].width = 38
    mir, average = plan.letter("MIR"), plan.letter("Average")
    chart = ScatterChart()
    chart.style, chart.scatterStyle = 13, "marker"
    chart.title = "MIR against the average score"
    chart.x_axis.title, chart.y_axis.title = "MIR (lower is better)", "average, %"
    chart.x_axis.delete = chart.y_axis.delete = False
    chart.x_axis.number_format, chart.y_axis.number_format = "0.0", "0"
    chart.x_axis.majorGridlines = None
    chart.width, chart.height = 24, 13
    by_cohort: dict[str, list[int]] = {}
    for offset, (number, row) in enumerate(points, start=1):
        put(sheet.cell(top + offset, left), row.name)
        put(sheet.cell(top + offset, left + 1), row.cohort)
        put_formula(sheet.cell(top + offset, left + 2), f"=Leaderboard!{mir}{number}", row.mir, "0.000")
        put_formula(
            sheet.cell(top + offset, left + 3), or_no_point(f"Leaderboard!{average}{number}"), row.average, "0.0"
        )
        by_cohort.setdefault(row.cohort, []).append(top + offset)
    for place, (cohort, numbers) in enumerate(by_cohort.items()):
        series = Series(
            Reference(sheet, min_col=left + 3, min_row=numbers[0], max_row=numbers[-1]),
            Reference(sheet, min_col=left + 2, min_row=numbers[0], max_row=numbers[-1]),
            title=f"cohort {cohort}",
        )
        colour = COLOURS[place % len(COLOURS)]
        series.marker.symbol, series.marker.size = "circle", 7
        series.marker.graphicalProperties = GraphicalProperties(solidFill=colour)
        series.marker.graphicalProperties.line.solidFill = colour
        series.graphicalProperties.line.noFill = True
        if len(numbers) > 2:
            series.trendline = Trendline(trendlineType="linear", dispRSqr=False, dispEq=False)
        chart.series.append(series)
    for axis, values in (
        (chart.x_axis, [float(row.mir or 0) for _, row in points]),
        (chart.y_axis, [float(row.average or 0) for _, row in points]),
    ):
        axis.scaling.min, axis.scaling.max = _limits(values)
    if len(by_cohort) == 1:
        chart.legend = None
    sheet.add_chart(chart, f"A{HEADER_ROW}")


def or_no_point(cell: str) -> str:
    """The cell's number; where it holds an empty text, which a chart would draw as 0, what a chart leaves out."""
    return f'=IF({cell}="",NA(),{cell})'


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis that holds the values with a margin, in as many digits as their span asks for.

    >>> _limits([2.51, 2.53]), _limits([44.9, 59.8]), _limits([3.0])
    ((2.508, 2.532), (44.0, 61.0), (2.0, 4.0))
    """
    span = max(values) - min(values)
    margin = 0.08 * span or 1.0
    digits = max(0, 2 - math.ceil(math.log10(span or 1.0)))  # rounds by a twentieth of the span at most
    return round(min(values) - margin, digits), round(max(values) + margin, digits)


def _plotted(row: BoardRow) -> bool:
    return row.mir is not None and row.average is not None
