// Numbers over layers: one line for each marked checkpoint; at first those at the top of the leaderboard are marked.

(() => {
  const section = document.getElementById("layers-section");
  if (!section) return;
  section.hidden = false;
  const metricSelect = document.getElementById("layers-metric");
  const addSelect = document.getElementById("layers-add");
  const logBox = document.getElementById("layers-log");
  const chips = document.getElementById("layers-chips");
  const note = document.getElementById("layers-note");
  const N_AT_FIRST = 5;
  const withLayers = [...data.rows.keys()].filter((index) => data.rows[index].layers.length > 0);
  const cohorts = [...new Set(withLayers.map((index) => data.rows[index].cohort))];
  const atFirst = withLayers.filter((index) => data.rows[index].cohort === cohorts[0]).slice(0, N_AT_FIRST);

  for (const { key, label } of data.metrics) metricSelect.append(new Option(label, key));

  const metric = () => data.metrics[metricSelect.selectedIndex];
  const shown = () => withLayers.filter((index) => selection.marked.has(index));
  const curve = (index) => data.rows[index].layers[metricSelect.selectedIndex];
  const canBeLog = () => shown().every((index) => curve(index).every((value) => value === null || value > 0));

  const longest = () => Math.max(2, ...shown().map((index) => curve(index).length));

  function datasets() {
    return shown().map((index, place) => ({
      label: data.rows[index].name,
      data: curve(index).map((y, layer) => ({ x: layer + 1, y })),
      borderColor: seriesColour(place),
      backgroundColor: seriesColour(place),
      borderDash: DASHES[Math.floor(place / N_COLOURS) % DASHES.length],
      borderWidth: 2,
      pointRadius: curve(index).length > 12 ? 0 : 3,
      pointHoverRadius: 5,
      pointHitRadius: 8,
      clip: false, // the first and last layer stand on the edges
    }));
  }

  function options() {
    const log = logBox.checked && canBeLog();
    const few = (value) => numberText(value);
    const values = shown().flatMap(curve).filter((value) => value > 0);
    const wide = Math.max(...values) > 4 * Math.min(...values);
    const spaced = (value) => ([1, 2, 5].includes(Number(value.toExponential().slice(0, 1))) && /^\de/.test(value.toExponential()) ? few(value) : null);
    return {
      interaction: { mode: "index", intersect: false },
      scales: {
        x: axis("Layer", { type: "linear", min: 1, max: longest(), ticks: { precision: 0 } }),
        y: axis(metric().label, {
          type: log ? "logarithmic" : "linear",
          ticks: log ? { callback: wide ? spaced : few, autoSkip: true, maxTicksLimit: 9 } : { callback: few },
        }),
      },
      plugins: {
        legend: { display: false },
        tooltip: {
          ...tooltipLook(),
          itemSort: (a, b) => b.parsed.y - a.parsed.y,
          callbacks: {
            title: (items) => (items.length ? `Layer ${items[0].parsed.x}` : ""),
            label: ({ dataset, parsed }) => `${dataset.label}: ${numberText(parsed.y)}`,
          },
        },
      },
    };
  }

  function writeChips() {
    chips.replaceChildren(...shown().map((index, place) => {
      const { name, cohort } = data.rows[index];
      const item = document.createElement("li");
      const button = item.appendChild(document.createElement("button"));
      button.type = "button";
      button.setAttribute("aria-label", `Remove ${name}`);
      const swatch = button.appendChild(document.createElement("span"));
      swatch.className = "swatch";
      swatch.style.borderTopColor = seriesColour(place);
      swatch.style.borderTopStyle = place < N_COLOURS ? "solid" : "dashed";
      const label = button.appendChild(document.createElement("span"));
      label.className = "label";
      label.textContent = cohorts.length > 1 ? `${name} (cohort ${cohort})` : name;
      button.append("×");
      button.addEventListener("click", () => selection.mark(index, false));
      return item;
    }));
    const rest = withLayers.filter((index) => !selection.marked.has(index));
    addSelect.replaceChildren(new Option("a checkpoint…", ""), ...rest.map((index) => new Option(data.rows[index].name, index)));
    addSelect.disabled = rest.length === 0;
  }

  function writeNote() {
    const mixed = new Set(shown().map((index) => data.rows[index].cohort)).size > 1;
    const texts = [
      shown().length === 0 ? "No checkpoint is marked: add one here or tick it in the leaderboard." : "",
      mixed ? "These curves come from different cohorts: do not compare their heights." : "",
      logBox.checked && !canBeLog() ? "Some values are not positive, so the scale is linear." : "",
    ].filter(Boolean);
    note.textContent = texts.join(" ");
    note.hidden = texts.length === 0;
  }

  for (const index of atFirst) selection.mark(index, true);
  const chart = new Chart(document.getElementById("layers"), { type: "line", data: { datasets: datasets() }, options: options() });

  function draw() {
    chart.data.datasets = datasets();
    chart.options = options();
    chart.update("none");
    chart.canvas.setAttribute("aria-label", `${metric().label} over layers: ${shown().map((index) => data.rows[index].name).join(", ")}`);
    writeChips();
    writeNote();
  }

  function steps() {
    return Array.from({ length: longest() }, (_, index) => {
      const present = [...chart.data.datasets.entries()].filter(([, dataset]) => dataset.data[index]?.y != null);
      const values = present.map(([, dataset]) => `${dataset.label} ${numberText(dataset.data[index].y)}`);
      return [present.map(([datasetIndex]) => ({ datasetIndex, index })), `Layer ${index + 1}: ${values.join(", ")}`];
    }).filter(([elements]) => elements.length > 0);
  }

  for (const control of [metricSelect, logBox]) control.addEventListener("change", draw);
  addSelect.addEventListener("change", () => addSelect.value !== "" && selection.mark(Number(addSelect.value), true));
  theme.onChange(draw);
  selection.onChange(draw);
  walkByKeyboard(chart, document.getElementById("layers-spoken"), steps);
  draw();
})();
