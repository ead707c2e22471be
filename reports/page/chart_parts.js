// What both charts share: colours, number texts, labels beside points, and walking through points by keyboard.

const N_COLOURS = 8;
const SHAPES = ["circle", "rectRot", "triangle", "rect", "star", "crossRot"];
const UNFILLED = ["star", "crossRot"];
const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3]];
const FONT = getComputedStyle(document.body).fontFamily;

const seriesColour = (index) => theme.colour(`c${index % N_COLOURS}`);
const withAlpha = (colour, alpha) => colour.replace("rgb(", "rgba(").replace(")", `, ${alpha})`);

function numberText(value, digits) {
  const options = digits === undefined ? { maximumSignificantDigits: 4 } : { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return value.toLocaleString("en", options).replace("-", "−");
}

function axis(title, extra = {}) {
  return {
    title: { display: true, text: title, color: theme.colour("muted"), font: { family: FONT, size: 13 } },
    ticks: { color: theme.colour("muted"), font: { family: FONT }, maxRotation: 0, ...extra.ticks },
    grid: { color: theme.colour("grid") },
    border: { color: theme.colour("line") },
    ...Object.fromEntries(Object.entries(extra).filter(([key]) => key !== "ticks")),
  };
}

function tooltipLook() {
  return {
    backgroundColor: theme.colour("ink"),
    titleColor: theme.colour("surface"),
    bodyColor: theme.colour("surface"),
    titleFont: { family: FONT, weight: "600" },
    bodyFont: { family: FONT },
    padding: 10,
    cornerRadius: 8,
    boxPadding: 4,
    usePointStyle: true,
  };
}

const overlap = (a, b) => a.x < b.x + b.w && b.x < a.x + a.w && a.y < b.y + b.h && b.y < a.y + a.h;

// Names beside points, as many as fit without covering a point, an interval or each other; the first come first.
function drawLabels(chart, labels) {
  const { ctx, chartArea } = chart;
  const taken = labels.flatMap(({ x, y, left, right }) => [{ x: x - 6, y: y - 6, w: 12, h: 12 }, { x: left, y: y - 1, w: right - left, h: 2 }]);
  ctx.save();
  ctx.font = `12px ${FONT}`;
  ctx.textBaseline = "middle";
  ctx.fillStyle = theme.colour("muted");
  ctx.strokeStyle = theme.colour("surface"); // an outline keeps names readable on the fitted line
  ctx.lineWidth = 3;
  ctx.lineJoin = "round";
  for (const { x, y, text } of labels) {
    if (!text) continue;
    const short = text.length > 34 ? `${text.slice(0, 33)}…` : text;
    const w = ctx.measureText(short).width, h = 15;
    const places = [[x + 10, y], [x - w - 10, y], [x - w / 2, y - 16], [x - w / 2, y + 16], [x + 6, y - 15], [x + 6, y + 15], [x - w - 6, y - 15], [x - w - 6, y + 15]];
    const found = places
      .map(([left, middle]) => ({ x: left, y: middle - h / 2, w, h, middle }))
      .find((box) => box.x >= chartArea.left && box.x + w <= chartArea.right && box.y >= chartArea.top &&
        box.y + h <= chartArea.bottom && !taken.some((other) => overlap(box, other)));
    if (!found) continue;
    taken.push(found);
    ctx.strokeText(short, found.x, found.middle);
    ctx.fillText(short, found.x, found.middle);
  }
  ctx.restore();
}

// Arrow keys move through a chart; `steps()` lists [elements to activate, sentence to speak] in reading order.
function walkByKeyboard(chart, spoken, steps, pick = () => {}) {
  const { canvas } = chart;
  let place = -1;

  function show(list) {
    const [elements, sentence] = list[place];
    const { x, y } = chart.getDatasetMeta(elements[0].datasetIndex).data[elements[0].index];
    chart.setActiveElements(elements);
    chart.tooltip.setActiveElements(elements, { x, y });
    chart.update("none");
    spoken.textContent = sentence;
  }

  function clear() {
    place = -1;
    chart.setActiveElements([]);
    chart.tooltip.setActiveElements([], { x: 0, y: 0 });
    chart.update("none");
    spoken.textContent = "";
  }

  canvas.addEventListener("keydown", (event) => {
    const list = steps();
    const moves = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: list.length - 1 };
    if (event.key === "Escape") return clear();
    if (event.key === "Enter" && place >= 0) return pick(list[place][0][0]);
    if (!(event.key in moves) || list.length === 0) return undefined;
    event.preventDefault();
    place = Math.min(Math.max(moves[event.key], 0), list.length - 1);
    return show(list);
  });
  canvas.addEventListener("blur", clear);
}

Chart.defaults.animation = false;
Chart.defaults.maintainAspectRatio = false;
