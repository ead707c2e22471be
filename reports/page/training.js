// MIR, the main score and the training loss along training: one panel each, one line for each run.

(() => {
  const section = document.getElementById("training-section");
  if (!section) return;
  section.hidden = false;
  const panels = document.getElementById("training-panels");
  const { runs, quantities } = data.training;
  const steps = runs.flatMap(({ rows }) => rows.map((index) => data.rows[index].step));

  const valueOf = (index, key) => (key === "mir" ? data.rows[index].mir : data.rows[index].scores[key] ?? null);
  const measured = (rows, key) => rows.filter((index) => valueOf(index, key) !== null);

  const datasets = (key) => runs.map(({ label, rows }, place) => ({
    label,
    rows: measured(rows, key),
    data: measured(rows, key).map((index) => ({ x: data.rows[index].step, y: valueOf(index, key) })),
    borderColor: seriesColour(place),
    backgroundColor: seriesColour(place),
    borderDash: DASHES[place % DASHES.length],
    pointStyle: SHAPES[place % SHAPES.length],
    borderWidth: 2,
    pointRadius: 4,
    clip: false, // the first and last step stand on the edges
    pointHoverRadius: 6,
  }));

  function sentence({ label, rows }, place, key) {
    const row = data.rows[rows[place]];
    const range = key === "mir" && row.interval ? ` (95 % ${row.interval.map((end) => numberText(end)).join(" to ")})` : "";
    return `${label}: ${numberText(valueOf(rows[place], key))}${range}`;
  }

  const options = ({ key, label }, isFirst) => ({
    scales: {
      x: axis("Training step", { type: "linear", min: Math.min(...steps), max: Math.max(...steps), ticks: { precision: 0 } }),
      y: axis(label, { afterFit: (scale) => { scale.width = 76; }, ticks: { maxTicksLimit: 6 } }),
    },
    plugins: {
      legend: { display: isFirst && runs.length > 1, labels: { color: theme.colour("ink"), usePointStyle: true, boxWidth: 8, boxHeight: 8, font: { family: FONT } } },
      tooltip: {
        ...tooltipLook(),
        callbacks: {
          title: (items) => (items.length ? `Step ${numberText(items[0].parsed.x, 0)}` : ""),
          label: ({ dataset, dataIndex }) => sentence(dataset, dataIndex, key),
        },
      },
    },
  });

  const charts = quantities.map((quantity, place) => {
    const frame = panels.appendChild(document.createElement("div"));
    frame.className = "chart panel";
    const canvas = frame.appendChild(document.createElement("canvas"));
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${quantity.label} along training: ${runs.map(({ label }) => label).join(", ")}`);
    canvas.setAttribute("aria-describedby", "training-spoken");
    const chart = new Chart(canvas, { type: "line", data: { datasets: datasets(quantity.key) }, options: options(quantity, place === 0) });
    walkByKeyboard(chart, document.getElementById("training-spoken"), () =>
      chart.data.datasets.flatMap((dataset, datasetIndex) =>
        dataset.data.map(({ x }, index) => [[{ datasetIndex, index }], `Step ${x}, ${quantity.label}, ${sentence(dataset, index, quantity.key)}`])));
    return chart;
  });

  theme.onChange(() => charts.forEach((chart, place) => {
    chart.data.datasets = datasets(quantities[place].key);
    chart.options = options(quantities[place], place === 0);
    chart.update("none");
  }));
})();
