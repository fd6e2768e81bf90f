// The charts on top. Everything is drawn with the DOM, so no text can become markup.

const SVG = "http://www.w3.org/2000/svg";
const CHART = { width: 380, height: 150, left: 30, right: 8, top: 8, bottom: 20 };
// Okabe and Ito's colours, told apart by readers with any colour vision.
const KIND_COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a200", "#7f6bb0"];

/** An element with attributes; strings among the children become text, never markup. */
function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

function shape(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

function signed(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  return (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
}

function plain(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  return value.toFixed(digits).replace("-", "−");
}

function legend(id, entries) {
  byId(id).replaceChildren(
    ...entries.map(([colour, text]) => {
      const swatch = element("i");
      swatch.style.background = colour;
      return element("span", {}, swatch, text);
    }),
  );
}

function linear(from, to, start, end) {
  return (value) => start + ((value - from) / (to - from || 1)) * (end - start);
}

function niceTicks(from, to, count) {
  const rough = (to - from) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const ticks = [];
  for (let tick = Math.ceil(from / step) * step; tick <= to + step / 1e6; tick += step) ticks.push(tick);
  return ticks;
}

/** A chart's frame: scales, grid lines and tick labels. */
function frame(label, [x0, x1], [y0, y1], xTicks, yTicks, xText, yText) {
  const { width, height, left, right, top, bottom } = CHART;
  const x = linear(x0, x1, left, width - right);
  const y = linear(y0, y1, height - bottom, top);
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const tick of yTicks) {
    svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }));
    svg.append(shape("text", { x: left - 5, y: y(tick) + 3.5, "text-anchor": "end" }, yText(tick)));
  }
  for (const tick of xTicks) {
    svg.append(shape("text", { x: x(tick), y: height - 5, "text-anchor": "middle" }, xText(tick)));
  }
  return { svg, x, y };
}

function iterationRange(iterations) {
  return [Math.min(...iterations) - 0.6, Math.max(...iterations) + 0.6];
}

function iterationTicks([from, to]) {
  return niceTicks(Math.max(0, Math.floor(from)), to, 7).filter((t) => Number.isInteger(t) && t >= from && t <= to);
}

function movingMean(values, window) {
  return values.map((_, end) => {
    const some = values.slice(Math.max(0, end - window + 1), end + 1);
    return some.reduce((sum, value) => sum + value, 0) / some.length;
  });
}

function noChart(id, text) {
  byId(id).replaceChildren(element("p", { class: "empty" }, text));
}

function drawSuccess(summary) {
  const { success, evaluations } = summary;
  if (!success.rates.length && !evaluations.length) return noChart("success-chart", "No metrics were recorded.");
  const range = iterationRange([...success.rates.map((row) => row[0]), ...evaluations.map((row) => row[0])]);
  const percent = (value) => `${Math.round(100 * value)} %`;
  const { svg, x, y } = frame(
    "Success rate by iteration", range, [0, 1], iterationTicks(range), [0, 0.25, 0.5, 0.75, 1], String, percent,
  );
  for (const [iteration, rate] of success.rates) {
    const title = shape("title", {}, `iteration ${iteration}: ${percent(rate)}`);
    svg.append(shape("circle", { cx: x(iteration), cy: y(rate), r: 2.2, fill: "var(--up)", opacity: 0.6 }, title));
  }
  const means = movingMean(success.rates.map((row) => row[1]), 5);
  const points = success.rates.map(([iteration], index) => `${x(iteration)},${y(means[index])}`).join(" ");
  svg.append(shape("polyline", { points, fill: "none", stroke: "var(--up)", "stroke-width": 1.8 }));
  for (const [iteration, rate, low, high, count] of evaluations) {
    const [cx, cy] = [x(iteration), y(rate)];
    const title = shape("title", {}, `evaluation after iteration ${iteration}: ${percent(rate)} of ${count}`);
    svg.append(
      shape("line", { x1: cx, x2: cx, y1: y(low), y2: y(high), stroke: "var(--down)", "stroke-width": 1.6 }),
      shape("path", { d: `M${cx} ${cy - 5}l5 5l-5 5l-5 -5z`, fill: "var(--down)" }, title),
    );
  }
  byId("success-chart").replaceChildren(svg);
  const entries = success.rates.length ? [["var(--up)", `${success.of}, mean of 5`]] : [];
  if (evaluations.length) entries.push(["var(--down)", "held-out evaluation, 95 % interval"]);
  legend("success-legend", entries);
}

function drawWeights(summary) {
  const { edges, positive, negative, first_label, last_label } = summary.histogram;
  const most = Math.max(0, ...positive, ...negative);
  if (!most) return noChart("weight-chart", "No token of these trajectories was weighted.");
  const ticks = niceTicks(edges[0], edges.at(-1), 4);
  const { svg, x, y } = frame(
    "Histogram of teacher weights", [edges[0], edges.at(-1)], [0, most], ticks, niceTicks(0, most, 3),
    (value) => value.toFixed(2), (value) => (value >= 1000 ? `${value / 1000}k` : String(value)),
  );
  const series = [[positive, "var(--up)", "A > 0", 0], [negative, "var(--down)", "A < 0", 0.5]];
  for (const [counts, fill, name, offset] of series) {
    counts.forEach((count, bin) => {
      const width = (x(edges[bin + 1]) - x(edges[bin])) / 2 - 0.6;
      const left = x(edges[bin]) + offset * (width * 2 + 1.2) + 0.3;
      const where = bin === 0 ? first_label : bin === counts.length - 1 ? last_label
        : `${edges[bin].toFixed(3)} to ${edges[bin + 1].toFixed(3)}`;
      const title = shape("title", {}, `${name}, weight ${where}: ${count} tokens`);
      const box = { x: left, y: y(count), width, height: Math.max(0, y(0) - y(count)), fill };
      svg.append(shape("rect", box, title));
    });
  }
  byId("weight-chart").replaceChildren(svg);
  const total = (counts) => counts.reduce((sum, count) => sum + count, 0).toLocaleString("en");
  legend("weight-legend", [
    ["var(--up)", `advantage > 0 (${total(positive)} tokens)`],
    ["var(--down)", `advantage < 0 (${total(negative)})`],
  ]);
}

function kindColour(kind, index) {
  if (kind === "no evidence") return "#8b93a1";
  return kind.startsWith("not asked") ? "var(--line)" : KIND_COLOURS[index % KIND_COLOURS.length];
}

function drawEvidence(summary, pickIteration) {
  const { kinds, by_iteration: rows } = summary.evidence;
  if (!rows.length) return noChart("evidence-chart", "The learner reported nothing of these steps.");
  const range = iterationRange(rows.map((row) => row[0]));
  const { svg, x, y } = frame(
    "Share of recorded steps with each kind of evidence, by iteration", range, [0, 1], iterationTicks(range),
    [0, 0.5, 1], String, (value) => `${100 * value} %`,
  );
  const width = Math.min(26, Math.max(1, x(1) - x(0) - 1));
  for (const [iteration, counts] of rows) {
    const total = counts.reduce((sum, count) => sum + count, 0);
    let below = 0;
    counts.forEach((count, index) => {
      if (!count) return;
      const top = y((below + count) / total);
      const title = shape("title", {}, `iteration ${iteration}, ${kinds[index]}: ${count} of ${total} steps`);
      const fill = kindColour(kinds[index], index);
      const box = { x: x(iteration) - width / 2, y: top, width, height: y(below / total) - top };
      const bar = shape("rect", { ...box, fill, class: "pickable" }, title);
      bar.addEventListener("click", () => pickIteration(iteration));
      svg.append(bar);
      below += count;
    });
  }
  byId("evidence-chart").replaceChildren(svg);
  legend("evidence-legend", kinds.map((kind, index) => [kindColour(kind, index), kind]));
}

/** The curve of one metric; its values are pairs of an iteration and a number. */
function drawMetric(name, curves) {
  const points = curves[name] ?? [];
  if (!points.length) return noChart("curve-chart", "No metrics were recorded.");
  const range = iterationRange(points.map((point) => point[0]));
  const values = points.map((point) => point[1]);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = (high - low || Math.abs(high) || 1) * 0.05;
  const short = (value) => Number(value.toPrecision(3)).toLocaleString("en", { notation: "compact" });
  const { svg, x, y } = frame(
    `${name} by iteration`, range, [low - margin, high + margin], iterationTicks(range), niceTicks(low, high, 3),
    String, short,
  );
  for (const [iteration, value] of points) {
    const title = shape("title", {}, `iteration ${iteration}: ${value}`);
    svg.append(shape("circle", { cx: x(iteration), cy: y(value), r: 2.2, fill: "var(--up)", opacity: 0.6 }, title));
  }
  const line = points.map(([iteration, value]) => `${x(iteration)},${y(value)}`).join(" ");
  svg.append(shape("polyline", { points: line, fill: "none", stroke: "var(--up)", "stroke-width": 1.6 }));
  byId("curve-chart").replaceChildren(svg);
}
