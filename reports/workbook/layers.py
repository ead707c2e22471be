"""The Layers sheet: per-layer numbers of every checkpoint, and distance over layers as a native chart."""

from __future__ import annotations

from openpyxl.chart import LineChart, Reference
from openpyxl.utils import get_column_letter
from openpyxl.worksheet.worksheet import Worksheet

from mir_plugin.reports.board.board import Board
from mir_plugin.reports.view.columns import MAX_DETAILED_ROWS, layer_columns, layer_rows
from mir_plugin.reports.workbook.sheets import (
    BOLD_FONT,
    MUTED_FONT,
    put,
    write_table,
)

HEADER_ROW = 33  # the chart stands above
N_CHARTED = 10  # more lines than this cannot be told apart


def write_layers(sheet: Worksheet, board: Board) -> None:
    """Fill the sheet; the chart shows the first checkpoints that have layers, of one cohort: others do not compare."""
    rows = layer_rows(board)
    if not rows:
        put(sheet.cell(1, 1), "No source holds per-layer numbers; mir.json files do.", font=MUTED_FONT)
        return
    columns = layer_columns(rows)
    if len(rows) > MAX_DETAILED_ROWS:
        put(sheet.cell(1, 1), "The mir.json files hold more about each layer.", font=MUTED_FONT)
    write_table(sheet, columns, rows, top=HEADER_ROW)
    sheet.freeze_panes = sheet.cell(1, [column.heading for column in columns].index("Layer") + 2)
    _write_chart(sheet, board, left=len(columns) + 2)


def _write_chart(sheet: Worksheet, board: Board, left: int) -> None:
    with_layers = [row for row in board.rows if row.layers]
    charted = [row for row in with_layers if row.cohort == with_layers[0].cohort][:N_CHARTED]
    n_layers = max(len(row.layers) for row in charted)
    put(sheet.cell(HEADER_ROW, left), "Layer", font=BOLD_FONT)
    for layer in range(1, n_layers + 1):
        put(sheet.cell(HEADER_ROW + layer, left), layer, "0")
    for index, row in enumerate(charted, start=left + 1):
        put(sheet.cell(HEADER_ROW, index), row.name, font=BOLD_FONT)
        sheet.column_dimensions[get_column_letter(index)].width = 14
        for measured in row.layers:
            put(sheet.cell(HEADER_ROW + measured.layer, index), measured.distance, "#,##0.00")
    chart = LineChart()
    of = f" of cohort {charted[0].cohort}" if len(board.cohorts) > 1 else ""
    chart.title = f"Layer distance{of} (the sum's log10 is MIR)"
    chart.x_axis.title, chart.y_axis.title = "layer", "squared Fréchet distance"
    chart.x_axis.delete = chart.y_axis.delete = False
    chart.width, chart.height = 28, 15
    chart.add_data(
        Reference(
            sheet, min_col=left + 1, max_col=left + len(charted), min_row=HEADER_ROW, max_row=HEADER_ROW + n_layers
        ),
        titles_from_data=True,
    )
    chart.set_categories(Reference(sheet, min_col=left, min_row=HEADER_ROW + 1, max_row=HEADER_ROW + n_layers))
    for series in chart.series:
        series.smooth = False
        series.graphicalProperties.line.width = 19_050  # 1.5 pt in EMU
    chart.legend.position = "b"
    sheet.add_chart(chart, "A2")
