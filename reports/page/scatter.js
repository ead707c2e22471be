// MIR against a score: one series per group, the fitted line with its band, intervals of MIR, names where they fit.

(() => {
  const section = document.getElementById("scatter-section");
  if (data.columns.length === 0 || data.mainScope === null) return;
  section.hidden = false;
  const columnSelect = document.getElementById("scatter-column");
  const scopeSelect = document.getElementById("scatter-scope");
  const statistics = document.getElementById("scatter-statistics");
  const groups = [...new Set(data.rows.map((row) => row.group))].sort();
  const N_NAMED = 20; // with more points only the marked ones are named
  const BAND_STEPS = 40;

  for (const { key, label } of data.columns) columnSelect.append(new Option(label, key, false, key === data.mainColumn));
  for (const { key, label, rows } of data.scopes) scopeSelect.append(new Option(`${label} (${rows.length})`, key, false, key === data.mainScope));
  scopeSelect.parentElement.hidden = data.scopes.length === 1;

  const scope = () => data.scopes[scopeSelect.selectedIndex];
  const column = () => data.columns[columnSelect.selectedIndex];

  function pointsOf(group) {
    return scope().rows
      .filter((index) => data.rows[index].group === group && data.rows[index].scores[column().key] !== undefined)
      .map((index) => ({ x: data.rows[index].mir, y: data.rows[index].scores[column().key], row: index }));
  }

  function lineData(line) {
    const xs = Array.from({ length: BAND_STEPS + 1 }, (_, i) => line.low + ((line.high - line.low) * i) / BAND_STEPS);
    const half = (x) => line.margin * Math.sqrt(1 / line.n + (x - line.mean) ** 2 / line.spread);
    const at = (x) => line.intercept + line.slope * x;
    return {
      middle: xs.map((x) => ({ x, y: at(x) })),
      low: xs.map((x) => ({ x, y: at(x) - half(x) })),
      high: xs.map((x) => ({ x, y: at(x) + half(x) })),
    };
  }

  const faded = (index) => !selection.passing.has(index);

  function groupSeries(group) {
    const place = groups.indexOf(group);
    const colour = seriesColour(place);
    const shape = SHAPES[place % SHAPES.length];
    const points = pointsOf(group);
    return {
      type: "scatter",
      label: group || "checkpoints",
      data: points,
      pointStyle: shape,
      pointRadius: points.map(({ row }) => (selection.marked.has(row) ? 8 : 5.5)),
      pointHoverRadius: 9,
      pointHitRadius: 6,
      pointBackgroundColor: points.map(({ row }) => withAlpha(colour, faded(row) ? 0.1 : 0.8)),
      pointBorderColor: points.map(({ row }) => (selection.marked.has(row) ? theme.colour("ink") : withAlpha(colour, faded(row) ? 0.2 : 1))),
      pointBorderWidth: points.map(({ row }) => (selection.marked.has(row) || UNFILLED.includes(shape) ? 2 : 1.2)),
    };
  }

  function lineSeries() {
    const line = scope().lines[column().key];
    if (!line) return [];
    const { middle, low, high } = lineData(line);
    const ink = theme.colour("muted");
    const common = { type: "line", pointRadius: 0, pointHitRadius: 0, pointHoverRadius: 0, borderWidth: 0 };
    return [
      { ...common, label: "fit", data: middle, borderColor: ink, borderWidth: 1.8 },
      { ...common, label: "band", data: low, fill: "+1", backgroundColor: withAlpha(ink, 0.14) },
      { ...common, label: "band", data: high },
    ];
  }

  function datasets() {
    const series = groups.map(groupSeries).filter((one) => one.data.length > 0);
    return [...series, ...lineSeries()];
  }

  const isPoints = (dataset) => dataset.type === "scatter";

  // The axes hold all points and intervals; a wide band at the ends of few points must not squeeze them.
  function ranges() {
    const points = groups.flatMap(pointsOf);
    const xs = points.flatMap(({ x, row }) => [x, ...(data.rows[row].interval ?? [])]);
    const ys = points.map(({ y }) => y);
    const around = (values) => {
      const low = Math.min(...values), high = Math.max(...values);
      const margin = 0.09 * (high - low) || 0.02 * Math.abs(high) || 1;
      return { min: low - margin, max: high + margin };
    };
    return points.length ? { x: around(xs), y: around(ys) } : { x: {}, y: {} };
  }

  function scales() {
    const { x, y } = ranges();
    const inner = { includeBounds: false };
    return {
      x: axis("MIR (lower is better)", { type: "linear", ticks: inner, ...x }),
      y: axis(`${column().label}${column().higherIsBetter === false ? ", lower is better" : ""}`, { ticks: inner, ...y }),
    };
  }

  function describePoint({ row }) {
    const { mir, interval, scores, rank, group } = data.rows[row];
    const range = interval ? ` [${numberText(interval[0], 3)}, ${numberText(interval[1], 3)}]` : "";
    const lines = [`MIR ${numberText(mir, 3)}${range}`, `${column().label} ${numberText(scores[column().key], column().places)}`, `rank ${rank}`];
    return group ? [...lines, group] : lines;
  }

  function intervalPixels(scale, { x, row }) {
    return (data.rows[row].interval ?? [x, x]).map((value) => scale.getPixelForValue(value));
  }

  const extras = {
    id: "extras",
    beforeDatasetsDraw(chart) {
      const { ctx, scales: { x } } = chart;
      ctx.save();
      ctx.lineWidth = 1.2;
      for (const [number, dataset] of chart.data.datasets.entries()) {
        if (!isPoints(dataset) || !chart.isDatasetVisible(number)) continue;
        for (const [index, element] of chart.getDatasetMeta(number).data.entries()) {
          const [left, right] = intervalPixels(x, dataset.data[index]);
          if (left === right) continue;
          ctx.strokeStyle = withAlpha(theme.colour("muted"), 0.6);
          ctx.beginPath();
          ctx.moveTo(left, element.y);
          ctx.lineTo(right, element.y);
          ctx.stroke();
        }
      }
      ctx.restore();
    },
    afterDatasetsDraw(chart) {
      const points = chart.data.datasets.flatMap((dataset, number) =>
        isPoints(dataset) && chart.isDatasetVisible(number)
          ? chart.getDatasetMeta(number).data.map(({ x, y }, index) => {
            const [left, right] = intervalPixels(chart.scales.x, dataset.data[index]);
            return { x, y, left, right, row: dataset.data[index].row };
          })
          : []);
      const ordered = [...points].sort((a, b) => selection.marked.has(b.row) - selection.marked.has(a.row));
      const few = points.length <= N_NAMED;
      const named = ordered.map((point) => ({ ...point, text: few || selection.marked.has(point.row) ? data.rows[point.row].name : "" }));
      drawLabels(chart, named.filter(({ row }) => !faded(row)));
    },
  };

  const chart = new Chart(document.getElementById("scatter"), {
    data: { datasets: datasets() },
    options: options(),
    plugins: [extras],
  });

  function options() {
    return {
      interaction: { mode: "nearest", intersect: true },
      scales: scales(),
      plugins: {
        legend: {
          display: groups.length > 1,
          position: "bottom",
          labels: {
            filter: (item, { datasets: all }) => isPoints(all[item.datasetIndex]),
            usePointStyle: true, color: theme.colour("ink"), font: { family: FONT }, boxHeight: 7,
          },
        },
        tooltip: {
          ...tooltipLook(),
          filter: (item) => isPoints(item.dataset),
          callbacks: {
            title: (items) => items.map(({ raw }) => data.rows[raw.row].name),
            label: ({ raw }) => describePoint(raw),
          },
        },
      },
      onHover: (event, elements) => selection.activate(rowAt(elements) ?? -1),
      onClick: (event, elements) => pick(elements[0]),
    };
  }

  function rowAt(elements) {
    const hit = elements.find(({ datasetIndex }) => isPoints(chart.data.datasets[datasetIndex]));
    return hit && chart.data.datasets[hit.datasetIndex].data[hit.index].row;
  }

  function pick(element) {
    const row = element && rowAt([element]);
    if (row === undefined) return;
    selection.mark(row, !selection.marked.has(row));
  }

  function writeStatistics() {
    const found = scope().statistics[column().key];
    statistics.replaceChildren();
    const add = (text, bold = "", className = "") => {
      const item = statistics.appendChild(document.createElement("li"));
      item.className = className;
      item.append(text);
      if (bold) item.insertBefore(document.createElement("b"), item.firstChild.nextSibling).textContent = bold;
      return item;
    };
    if (!found) {
      add("Fewer than two rows have both: nothing to correlate.", "", "muted");
      return;
    }
    if (!found.note.startsWith(`n = ${found.n}:`)) add(`n = ${found.n}`);
    for (const { name, value, interval, p, leftOut } of found.coefficients) {
      const item = add(`${name} `, value);
      const detail = item.appendChild(document.createElement("span"));
      detail.className = "muted small";
      const chance = p && (p.startsWith("<") ? `p ${p}` : `p = ${p}`);
      detail.textContent = ` ${[interval, chance, leftOut && `LOO ${leftOut}`].filter(Boolean).join(" · ")}`;
    }
    if (found.note) add(found.note, "", "warning-text");
  }

  function draw() {
    chart.data.datasets = datasets();
    chart.options = options();
    chart.update("none");
    chart.canvas.setAttribute("aria-label", `MIR against ${column().label}, ${scope().label}: ${groups.flatMap(pointsOf).length} checkpoints`);
    writeStatistics();
  }

  function steps() {
    return chart.data.datasets
      .flatMap((dataset, datasetIndex) => isPoints(dataset) && chart.isDatasetVisible(datasetIndex)
        ? dataset.data.map((point, index) => ({ point, element: { datasetIndex, index } })) : [])
      .sort((a, b) => a.point.x - b.point.x)
      .map(({ point, element }) => [[element], `${data.rows[point.row].name}: ${describePoint(point).join(", ")}`]);
  }

  columnSelect.addEventListener("change", draw);
  scopeSelect.addEventListener("change", draw);
  theme.onChange(draw);
  selection.onChange(draw);
  selection.onHover((row) => {
    const elements = chart.data.datasets.flatMap((dataset, datasetIndex) =>
      isPoints(dataset) ? dataset.data.flatMap((point, index) => (point.row === row ? [{ datasetIndex, index }] : [])) : []);
    chart.setActiveElements(elements);
    chart.draw();
  });
  walkByKeyboard(chart, document.getElementById("scatter-spoken"), steps, pick);
  draw();
})();
