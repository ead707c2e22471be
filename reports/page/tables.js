// Tables that sort by their headings, inside each of their bodies: cohorts stay apart whatever the order.

function sortValue(row, index) {
  const cell = row.cells[index];
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  const text = cell.textContent.trim();
  return text === "" ? null : text;
}

const byText = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

function compareValues(a, b) {
  return typeof a === "number" && typeof b === "number" ? a - b : byText.compare(a, b);
}

function sortTable(table, index, direction) {
  const sign = direction === "ascending" ? 1 : -1;
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.classList.contains("section"));
    const keyed = rows.map((row) => [sortValue(row, index), row]);
    keyed.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // what was not measured stays last
      return sign * compareValues(a, b);
    });
    body.append(...keyed.map(([, row]) => row));
  }
  for (const heading of table.tHead.rows[0].cells) heading.removeAttribute("aria-sort");
  table.tHead.rows[0].cells[index].setAttribute("aria-sort", direction);
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const heading of table.tHead.rows[0].cells) {
    heading.querySelector("button")?.addEventListener("click", () => {
      const first = heading.dataset.best === "high" ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const current = heading.getAttribute("aria-sort");
      sortTable(table, heading.cellIndex, current === first ? second : first);
    });
  }
}

for (const element of document.querySelectorAll(".needs-script")) element.hidden = false;

(() => {
  const menu = document.getElementById("columns");
  const sheet = document.head.appendChild(document.createElement("style"));
  const boxes = [...menu.querySelectorAll("input")];

  function hideColumns() {
    const hidden = boxes.filter((box) => !box.checked).map((box) => Number(box.value) + 1);
    const cells = hidden.map((n) => `#leaderboard tr:not(.section) > :nth-child(${n})`);
    sheet.textContent = cells.length ? `${cells.join(",")} { display: none; }` : "";
  }

  menu.addEventListener("change", hideColumns);
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });
  document.addEventListener("click", (event) => {
    if (!menu.contains(event.target)) menu.open = false;
  });
  hideColumns();
})();

(() => {
  const select = document.getElementById("correlation-scope");
  if (!select) return;
  const rows = [...document.querySelectorAll("#correlations tbody tr")];
  if (new Set(rows.map((row) => row.dataset.scope)).size < 2) return select.parentElement.remove(); // nothing to choose
  const labels = new Map(rows.map((row) => [row.dataset.scope, row.cells[1].textContent]));
  for (const [key, label] of labels) select.append(new Option(label, key));
  select.append(new Option("every one", ""));

  function filter() {
    for (const row of rows) row.hidden = select.value !== "" && row.dataset.scope !== select.value;
  }

  select.addEventListener("change", filter);
  filter();
})();
