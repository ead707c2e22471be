"""The Layers sheet: per-layer numbers of every checkpoint, and distance over layers as a native chart."""

from __future__ import annotations

from mir_plugin.reports.board.board import Board
from mir_plugin.reports.view.columns import MAX_DETAILED_ROWS, layer_columns, layer_rows
from mir_plugin.reports.workbook.sheets import BOLD_LOOK, COLOURS, GRID, MUTED_LOOK, Sheet, write_table

HEADER_ROW = 33  # the chart stands above
N_CHARTED = 10  # more lines than this cannot be told apart


def write_layers(sheet: Sheet, board: Board) -> None:
    """Fill the sheet; the chart shows the first checkpoints that have layers, of one cohort: others do not compare."""
    rows = layer_rows(board)
    if not rows:
        sheet.put(1, 1, "No source has per-layer values; mir.json files have.", look=MUTED_LOOK)
        return
    columns = layer_columns(rows)
    if len(rows) > MAX_DETAILED_ROWS:
        sheet.put(1, 1, "The mir.json files have more columns for each layer.", look=MUTED_LOOK)
    write_table(sheet, columns, rows, top=HEADER_ROW)
    sheet.xlsx.freeze_panes(0, [column.heading for column in columns].index("Layer") + 1)
    _write_chart(sheet, board, left=len(columns) + 2)


def _write_chart(sheet: Sheet, board: Board, left: int) -> None:
    with_layers = [row for row in board.rows if row.layers]
    charted = [row for row in with_layers if row.cohort == with_layers[0].cohort][:N_CHARTED]
    last = HEADER_ROW + max(len(row.layers) for row in charted)
    sheet.put(HEADER_ROW, left, "Layer", look=BOLD_LOOK)
    for layer in range(1, last - HEADER_ROW + 1):
        sheet.put(HEADER_ROW + layer, left, layer, "0")
    of = f" of cohort {charted[0].cohort}" if len(board.cohorts) > 1 else ""
    chart = sheet.book.chart({"type": "line"})
    first = f", first {len(charted)} of {len(with_layers)} checkpoints" if len(charted) < len(with_layers) else ""
    chart.set_title({"name": f"Layer distance{of}{first} (MIR is log10 of the sum)", "name_font": {"size": 13}})
    chart.set_x_axis({"name": "Layer"})
    chart.set_y_axis({"name": "Squared Fréchet distance", "major_gridlines": GRID})
    chart.set_legend({"position": "bottom"})
    chart.set_size({"width": 1060, "height": 570})
    for index, row in enumerate(charted, start=left + 1):
        sheet.put(HEADER_ROW, index, row.name, look=BOLD_LOOK)
        for measured in row.layers:
            sheet.put(HEADER_ROW + measured.layer, index, measured.distance, "#,##0.00")
        chart.add_series(
            {
                "name": [sheet.name, HEADER_ROW - 1, index - 1],
                "categories": [sheet.name, HEADER_ROW, left - 1, last - 1, left - 1],
                "values": [sheet.name, HEADER_ROW, index - 1, last - 1, index - 1],
                "line": {"width": 1.5, "color": COLOURS[(index - left - 1) % len(COLOURS)]},
            }
        )
    sheet.xlsx.set_column(left, left + len(charted) - 1, 14)
    sheet.xlsx.insert_chart("A2", chart)
