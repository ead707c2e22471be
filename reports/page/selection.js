// Which checkpoints pass the filters, and which are marked; the leaderboard shows both, and the charts listen.

const data = JSON.parse(document.getElementById("data").textContent);

const selection = (() => {
  const table = document.getElementById("leaderboard");
  const rows = [...table.querySelectorAll("tr[data-row]")];
  const rowOf = new Map(rows.map((row) => [Number(row.dataset.row), row]));
  const texts = data.rows.map((row) => `${row.name} ${row.group} ${row.identity}`.toLowerCase());
  const filter = document.getElementById("filter");
  const group = document.getElementById("group-filter");
  const marked = new Set();
  const passing = new Set(data.rows.keys());
  const listeners = [];
  const announce = () => listeners.forEach((listener) => listener());

  function applyFilter() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    passing.clear();
    for (const [index, row] of rowOf) {
      const fits = words.every((word) => texts[index].includes(word)) && (!group?.value || data.rows[index].group === group.value);
      row.hidden = !fits;
      if (fits) passing.add(index);
    }
    for (const body of table.tBodies) {
      body.hidden = ![...body.rows].some((row) => row.dataset.row !== undefined && !row.hidden);
    }
    document.getElementById("no-match").hidden = passing.size > 0 || rows.length === 0;
    document.getElementById("filter-count").textContent = `${passing.size} of ${rows.length} checkpoints shown.`;
    announce();
  }

  function mark(index, on) {
    if (on) marked.add(index);
    else marked.delete(index);
    rowOf.get(index).querySelector("input").checked = on;
    announce();
  }

  function activate(index) {
    table.querySelector("tr.active")?.classList.remove("active");
    rowOf.get(index)?.classList.add("active");
  }

  table.addEventListener("change", (event) => mark(Number(event.target.closest("tr").dataset.row), event.target.checked));
  filter.addEventListener("input", applyFilter);
  group?.addEventListener("change", applyFilter);
  document.getElementById("clear-filter").addEventListener("click", () => {
    filter.value = "";
    if (group) group.value = "";
    applyFilter();
    filter.focus();
  });

  applyFilter();
  return {
    marked,
    passing,
    mark,
    activate,
    onChange: (listener) => listeners.push(listener),
    onHover(listener) {
      for (const [index, row] of rowOf) {
        row.addEventListener("mouseenter", () => listener(index));
        row.addEventListener("mouseleave", () => listener(null));
      }
    },
  };
})();
