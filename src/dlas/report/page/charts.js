// The charts: Vega-Lite draws them from the specifications of the page, with the data of the page, by name.
const chart = { view: null, renderer: "svg", hidden: { series: new Set(), shape: new Set() }, drawing: 0 };
const SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"];
const COLOURS = 8;

/** "channel:ratio=0.25 + int8" belongs to the family "channel + int8". */
const family = (text) => text.split("+").map((part) => part.trim().split(":")[0]).join(" + ");

/** Colour by compression; with more than eight of them by family, and what is still left over is "other". */
const series = (() => {
  const axis = axisNamed("compress") || { values: [""], codes: new Array(data.count).fill(0) };
  const byFamily = axis.values.length > COLOURS;
  let names = [...new Set(axis.values.map((v) => (byFamily ? family(v) : v)))];
  if (names.length > COLOURS) names = [...names.slice(0, COLOURS - 1), "other"];
  const of = axis.values.map((v) => { const n = byFamily ? family(v) : v; return names.includes(n) ? n : "other"; });
  return { names, byFamily, of: (i) => of[axis.codes[i]] };
})();
const shapes = (() => {
  const axis = axisNamed("backend") || { values: [""], codes: new Array(data.count).fill(0) };
  const names = axis.values.length > SHAPES.length ? [...axis.values.slice(0, SHAPES.length - 1), "other"] : axis.values;
  return { names, of: (i) => (names.includes(axis.values[axis.codes[i]]) ? axis.values[axis.codes[i]] : "other") };
})();

/** Resolve style sheet colours where the drawing is no part of the document's style (canvas). */
function resolved(spec) {
  const style = getComputedStyle(document.documentElement);
  const walk = (node) => {
    if (typeof node === "string") return node.startsWith("var(") ? style.getPropertyValue(node.slice(4, -1)).trim() : node;
    if (Array.isArray(node)) return node.map(walk);
    if (node && typeof node === "object") return Object.fromEntries(Object.entries(node).map(([k, v]) => [k, walk(v)]));
    return node;
  };
  return walk(spec);
}

async function draw(box, spec, datasets, renderer = "svg") {
  const { datasets: _, ...rest } = structuredClone(spec);
  const styled = renderer === "canvas" ? resolved(rest) : rest;
  // `ast` evaluates expressions without compiling code, which the page's security policy forbids.
  // The box itself is the picture with a description; what Vega says about single marks would only be noise.
  const inside = make("div", { "aria-hidden": "true" });
  box.replaceChildren(inside);
  return vegaEmbed(inside, { ...styled, datasets }, { mode: "vega-lite", actions: false, renderer, ast: true, defaultStyle: false, tooltip: false, logLevel: 1 });
}

/** Factor from stored values to the axis of a figure, and its title. */
function scaleOf(figure, rows) {
  if (figure.unit === "fraction") return [100, `${figure.label} (%)`];
  if (figure.unit === "ratio") return [1, `${figure.label} (×)`];
  const largest = Math.max(...rows.map((i) => Math.abs(figure.v[i])), 0);
  const [name, size] = (steps[figure.unit] || []).find(([, s]) => largest >= s) || [figure.unit === "bytes" ? "B" : figure.unit, 1];
  return [1 / size, name && figure.unit !== "count" ? `${figure.label} (${name})` : figure.unit === "count" && size > 1 ? `${figure.label} (${name})` : figure.label];
}

/** Rows no other row beats in these two figures, by the first. */
function frontOf(rows, x, y) {
  const sign = (figure) => (figure.low === false ? -1 : 1);
  const sorted = rows.slice().sort((a, b) => sign(x) * (x.v[a] - x.v[b]) || sign(y) * (y.v[a] - y.v[b]) || a - b);
  let best = Infinity;
  return sorted.filter((i) => {
    const v = sign(y) * y.v[i];
    if (v >= best) return false;
    best = v;
    return true;
  });
}

/**
 * Rows whose accuracy is still of use: down to 5 points below the baseline, or below those of the front that lie within
 * 10 points of it. Networks that lost nearly all accuracy would press everything of interest into one line.
 * Null when that cuts nothing off, or nearly everything.
 */
function nearRows(rows, front, y) {
  if (!front.length || y.unit !== "fraction" || y.low !== false) return null;
  const best = Math.max(...front.map((i) => y.v[i]));
  const anchor = rows.includes(data.baseline) ? y.v[data.baseline] : best;
  const kept = [anchor, ...front.map((i) => y.v[i]).filter((v) => v >= anchor - 0.1)];
  const near = rows.filter((i) => y.v[i] >= Math.min(...kept) - 0.05);
  return near.length < rows.length && near.length >= 3 ? near : null;
}

/** Numbers of the front's points; where two would stand on each other the later one carries both. */
function ranks(front, x, y, logarithmic, rows) {
  const place = (figure, log) => {
    const of = (i) => (log ? Math.log(figure.v[i]) : figure.v[i]);
    let [low, high] = [Infinity, -Infinity];
    for (const i of rows) [low, high] = [Math.min(low, of(i)), Math.max(high, of(i))];
    return (i) => (of(i) - low) / (high - low || 1);
  };
  const [across, up] = [place(x, logarithmic(x)), place(y, logarithmic(y))];
  const width = byId("pareto-chart").clientWidth || 800;
  const texts = front.map((_, k) => String(k + 1));
  for (let k = 1; k < front.length; k += 1) {
    const close = Math.abs(across(front[k]) - across(front[k - 1])) * width < 18 && Math.abs(up(front[k]) - up(front[k - 1])) * 400 < 14;
    if (close) [texts[k], texts[k - 1]] = [`${texts[k - 1]}, ${texts[k]}`, ""];
  }
  return texts;
}

function shownRows(x, y) {
  const wrongToo = byId("wrong-too").checked;
  const rows = [];
  for (let i = 0; i < data.count; i += 1) {
    if (!has(x.v[i]) || !has(y.v[i]) || !(wrongToo || isRight(i))) continue;
    if (chart.hidden.series.has(series.of(i)) || chart.hidden.shape.has(shapes.of(i))) continue;
    rows.push(i);
  }
  return rows;
}

async function drawPareto() {
  const turn = (chart.drawing += 1);
  const x = figures.get(byId("x-figure").value);
  const y = figures.get(byId("y-figure").value);
  const all = x && y ? shownRows(x, y) : [];
  const front = all.length ? frontOf(all.filter(isRight), x, y) : [];
  const near = nearRows(all, front, y);
  byId("near").parentElement.hidden = !near;
  const rows = near && byId("near").checked ? near : all;
  byId("pareto-empty").hidden = rows.length > 0;
  byId("pareto-chart").hidden = rows.length === 0;
  const visible = new Set(rows);
  drawFront(front, visible, x, y);
  if (!rows.length) {
    byId("pareto-caption").textContent = "";
    return;
  }
  const [xs, xTitle] = scaleOf(x, rows);
  const [ys, yTitle] = scaleOf(y, rows);
  const spec = structuredClone(data.specs.pareto);
  const log = (figure) => !["fraction", "dB"].includes(figure.unit) && rows.every((i) => figure.v[i] > 0);
  const drawn = rows.length > 400 ? front.filter((i) => visible.has(i)) : rows;
  const onAxis = (figure, i, scale, end) => {
    const ends = byId("intervals").checked && interval(figure, i);
    if (!ends) return figure.v[i] * scale;
    return Math.max(ends[end], log(figure) ? figure.v[i] / 100 : -Infinity) * scale;
  };
  const place = (i) => ({ i, x: x.v[i] * xs, y: y.v[i] * ys });
  for (const layer of spec.layer) {
    const { encoding } = layer;
    const type = (figure) => (log(figure) ? { type: "log" } : { type: "linear", zero: false });
    if (encoding.x) Object.assign(encoding.x, { title: xTitle, scale: { ...encoding.x.scale, ...type(x) }, axis: { format: ".4~g", tickCount: 8 } });
    if (encoding.y) Object.assign(encoding.y, { title: yTitle, scale: { ...encoding.y.scale, ...type(y) }, axis: { format: ".4~g" } });
    if (encoding.color && encoding.color.scale) encoding.color.scale = { domain: series.names, range: series.names.map((_, k) => `var(--s${k})`) };
    if (encoding.shape && encoding.shape.scale) encoding.shape.scale = { domain: shapes.names, range: shapes.names.map((_, k) => SHAPES[k]) };
  }
  // The lower end of an interval is the start of its rule.
  const bars = byId("intervals").checked ? drawn.flatMap((i) => [
    { x: onAxis(x, i, xs, 0), xh: onAxis(x, i, xs, 1), y: y.v[i] * ys, yh: y.v[i] * ys },
    { x: x.v[i] * xs, xh: x.v[i] * xs, y: onAxis(y, i, ys, 0), yh: onAxis(y, i, ys, 1) },
  ]) : []; // prettier-ignore
  const onFront = new Set(front);
  const numbers = ranks(front, x, y, log, rows);
  const line = front.map((i, k) => ({ ...place(i), i, order: k, rank: front.length <= 15 ? numbers[k] : "" })).filter((d) => visible.has(d.i));
  const big = rows.length > 1500 ? 22 : rows.length > 300 ? 48 : 90;
  const datasets = {
    points: rows.map((i) => ({ ...place(i), series: series.of(i), shape: shapes.of(i), size: onFront.has(i) ? Math.max(70, big * 1.3) : big })),
    bars,
    front: line,
    base: visible.has(data.baseline) ? [place(data.baseline)] : [],
    selected: visible.has(table.picked) ? [place(table.picked)] : [],
  };
  chart.renderer = rows.length > 1500 ? "canvas" : "svg";
  const { view } = await draw(byId("pareto-chart"), spec, datasets, chart.renderer);
  if (turn !== chart.drawing) return view.finalize(); // a later drawing has begun
  if (chart.view) chart.view.finalize();
  chart.view = view;
  chart.place = (i) => (visible.has(i) ? place(i) : null);
  const index = (item) => (item && item.datum && has(item.datum.i) ? item.datum.i : -1);
  view.addEventListener("click", (_, item) => index(item) >= 0 && pick(index(item)));
  view.addEventListener("mousemove", (event, item) => showTip(event, index(item)));
  view.addEventListener("mouseout", () => (byId("tip").hidden = true));
  const limits = drawn === rows || !bars.length ? "" : " Intervals are drawn for the line's points only.";
  const away = rows.length < all.length ? ` ${counted(all.length - rows.length)} far below the baseline: not in the picture.` : "";
  byId("pareto-caption").textContent = `${counted(rows.length)} with both figures.${away} The line joins those that no other beats in these two. Thin bars are 95 % intervals; ring: baseline.${limits} Source of every figure: in the tooltip and the table.`;
  const named = front.slice(0, 8).map(label).join("; ");
  byId("pareto-chart").setAttribute("aria-label", `Scatter chart of ${x.label} against ${y.label} for ${rows.length} points. Best trade-offs: ${named || "none"}. The same figures are in the table of all points.`);
}

function drawFront(front, visible, x, y) {
  byId("front-box").hidden = !front.length;
  const items = front.slice(0, 15).map((i) => {
    const name = make("button", { type: "button", class: "link", onclick: () => pick(i) }, label(i));
    return make("li", {}, name, make("span", { class: "aside" }, `${words(x.v[i], x.unit)}, ${words(y.v[i], y.unit)}${i === data.baseline ? ", baseline" : ""}${visible.has(i) ? "" : ", not in the picture"}`));
  });
  if (front.length > 15) items.push(make("li", { class: "more" }, `and ${front.length - 15} more`));
  byId("front").replaceChildren(...items);
}

/** All choices and figures of the point under the mouse. */
function showTip(event, i) {
  const tip = byId("tip");
  tip.hidden = i < 0;
  if (i < 0) return;
  const list = make("dl");
  for (const axis of axes) if (choice(axis, i)) list.append(make("dt", {}, axis.label), make("dd", {}, choice(axis, i)));
  list.append(make("dt", {}, "Right?"), make("dd", {}, verdict(i)));
  for (const figure of data.figures.filter((f) => f.column && has(f.v[i]))) list.append(make("dt", {}, figure.label), make("dd", {}, inFull(figure, i)));
  tip.replaceChildren(make("b", {}, label(i)), list);
  const x = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
  const below = event.clientY + 14 + tip.offsetHeight < window.innerHeight;
  tip.style.left = `${Math.max(8, x)}px`;
  tip.style.top = `${below ? event.clientY + 14 : Math.max(8, event.clientY - tip.offsetHeight - 14)}px`;
}

function ring(i) {
  const at = chart.view && chart.place(i);
  if (chart.view) chart.view.data("selected", at ? [at] : []).run();
}

/** Buttons that show and hide a colour or a shape. */
function drawLegend(box, kind, names, symbol) {
  if (names.length < 2) return;
  for (const [k, name] of names.entries()) {
    const button = make("button", { type: "button", "aria-pressed": "true" }, symbol(k), name);
    button.addEventListener("click", () => {
      const hidden = chart.hidden[kind];
      if (!hidden.delete(name)) hidden.add(name);
      button.setAttribute("aria-pressed", String(!hidden.has(name)));
      drawPareto();
    });
    box.append(button);
  }
}

const PATHS = {
  circle: "M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0Z",
  square: "M-3.6,-3.6h7.2v7.2h-7.2Z",
  "triangle-up": "M0,-4.4L4.4,3.6H-4.4Z",
  diamond: "M0,-5L4,0L0,5L-4,0Z",
  cross: "M-1.5,-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z",
  "triangle-down": "M0,4.4L4.4,-3.6H-4.4Z",
  "triangle-right": "M4.4,0L-3.6,4.4V-4.4Z",
  "triangle-left": "M-4.4,0L3.6,4.4V-4.4Z",
};

function symbol(shape, fill) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  for (const [k, v] of Object.entries({ viewBox: "-6 -6 12 12", width: 12, height: 12, "aria-hidden": "true" })) svg.setAttribute(k, v);
  path.setAttribute("d", PATHS[shape]);
  path.setAttribute("fill", fill);
  svg.append(path);
  return svg;
}

function setUpPareto() {
  const wanted = [0, 1].map((k) => data.objectives[k] && figures.get(data.objectives[k].figure));
  const options = data.figures.filter((f) => f.v.filter(has).length > 0);
  byId("picked-box").hidden = !data.count;
  byId("pareto-controls").hidden = !options.length;
  byId("series").hidden = byId("shapes").hidden = !options.length;
  const pickFrom = (fallbacks) => fallbacks.map((name) => figures.get(name)).find(Boolean) || options[0];
  const x = wanted[0] || pickFrom(["latency_ms", "model_bytes"]);
  const y = wanted[1] || pickFrom(["top1", "agreement", "peak_memory_bytes"]);
  for (const [id, chosen] of [["x-figure", x], ["y-figure", y]]) {
    const box = byId(id);
    for (const figure of options) box.append(make("option", { value: figure.name, selected: figure === chosen }, figure.label));
    box.addEventListener("change", drawPareto);
  }
  byId("intervals").addEventListener("change", drawPareto);
  byId("near").addEventListener("change", drawPareto);
  byId("wrong-too").addEventListener("change", drawPareto);
  if (series.names.length > 1) byId("series").append(make("span", { class: "aside" }, series.byFamily ? "Compression, by method" : "Compression"));
  if (shapes.names.length > 1) byId("shapes").append(make("span", { class: "aside" }, "Back end"));
  drawLegend(byId("series"), "series", series.names, (k) => symbol("circle", `var(--s${k})`));
  drawLegend(byId("shapes"), "shape", shapes.names, (k) => symbol(SHAPES[k], "var(--ink)"));
  return drawPareto();
}

/** Points that differ from a point with the axis' first choice in this axis only: choice to ratios of latency. */
function pairsOf(axis) {
  const latency = figures.get("latency_ms");
  const others = axes.filter((a) => a !== axis);
  const place = (i) => others.map((a) => a.codes[i]).join(",");
  const first = data.baseline >= 0 ? axis.codes[data.baseline] : 0;
  const reference = new Map();
  for (let i = 0; i < data.count; i += 1) if (axis.codes[i] === first && isRight(i) && has(latency.v[i])) reference.set(place(i), latency.v[i]);
  const found = new Map();
  for (let i = 0; i < data.count; i += 1) {
    const base = reference.get(place(i));
    if (axis.codes[i] === first || !isRight(i) || !has(latency.v[i]) || !base || !(latency.v[i] > 0)) continue;
    const name = choice(axis, i);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(latency.v[i] / base);
  }
  return [axis.values[first], found];
}

const MOST = 16;

async function drawEffects() {
  const boxes = [];
  if (figures.has("latency_ms")) for (const axis of axes) {
    const [reference, found] = pairsOf(axis);
    if (!found.size) continue;
    const stats = [...found].map(([name, ratios]) => {
      ratios.sort((a, b) => a - b);
      const middle = ratios.length >> 1;
      const median = ratios.length % 2 ? ratios[middle] : Math.sqrt(ratios[middle - 1] * ratios[middle]);
      const [low, high] = [ratios[0], ratios[ratios.length - 1]];
      return { value: name, ratio: median, low, high, n: ratios.length, tone: high < 1 ? "faster" : low > 1 ? "slower" : "open", words: `${digits(median)}×`, text: axis.name === "threads" ? threads(name) : name };
    }).sort((a, b) => a.ratio - b.ratio); // prettier-ignore
    const shown = stats.slice(0, MOST);
    for (const s of shown) if (s.text.length > 46) s.text = `${s.text.slice(0, 45)}…`;
    const pairs = shown.flatMap((s) => found.get(s.value).filter((_, k, all) => k % Math.ceil(all.length / 60) === 0).map((ratio) => ({ value: s.value, ratio, tone: ratio < 1 ? "faster" : "slower" })));
    const box = make("div", { class: "chart", role: "img", "aria-label": `Latency over that of ${reference}: ${shown.map((s) => `${s.text} ${s.words}`).join(", ")}` });
    boxes.push([make("figure", {}, make("figcaption", {}, make("b", {}, axis.label), make("span", { class: "aside" }, ` latency relative to ${axis.name === "threads" ? threads(reference) : reference}${stats.length > shown.length ? ` (${shown.length} fastest of ${stats.length})` : ""}`)), box), box, { stats: shown, pairs, one: [{ ratio: 1 }] }]);
  } // prettier-ignore
  byId("effect-charts").replaceChildren(...boxes.map(([outer]) => outer));
  byId("effects-empty").hidden = boxes.length > 0;
  for (const [, box, datasets] of boxes) await draw(box, { ...data.specs.effect, height: 36 * datasets.stats.length }, datasets);
}
