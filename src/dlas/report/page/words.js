// The data of the page, and how they are put into words. Every text of the study reaches the page as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const axes = data.axes;
const figures = new Map(data.figures.map((figure) => [figure.name, figure]));
const inFront = new Set(data.pareto);
const sources = { m: "measured", s: "simulated", e: "estimated", p: "predicted" };
const isRight = (i) => data.outcomes.values[data.outcomes.codes[i]] === "ok";

const byId = (id) => document.getElementById(id);

/** An element: make("td", { class: "num" }, "text", child). */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") element.addEventListener("click", value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(key, value);
  }
  for (const child of children) if (child !== null && child !== undefined && child !== "") element.append(child);
  return element;
}

const choice = (axis, i) => axis.values[axis.codes[i]];
const axisNamed = (name) => axes.find((axis) => axis.name === name);
const verdict = (i) => data.verdicts.values[data.verdicts.codes[i]];
const reason = (i) => data.texts[data.reasons[i]];
const value = (figure, i) => (figure ? figure.v[i] : null);
const has = (x) => x !== null && x !== undefined;
const sourceOf = (figure, i) => figure.s[i];
const noteOf = (figure, i) => (has(figure.note[i]) ? data.texts[figure.note[i]] : "");
const isNoisy = (i) => data.figures.some((figure) => noteOf(figure, i).includes("noisy"));

function samples(figure, i) {
  return Array.isArray(figure.n) ? figure.n[i] : has(figure.n) ? figure.n : null;
}

/** Low and high end of the interval, or null. */
function interval(figure, i) {
  if (!figure || !figure.lo || !figure.hi || !has(figure.lo[i]) || !has(figure.hi[i])) return null;
  return [figure.lo[i], figure.hi[i]];
}

/** The choices of a point in one line, as in the sentences of the page; an axis without alternatives is left out. */
function label(i) {
  return axes
    .filter((axis) => choice(axis, i) !== "" && (axis.values.length > 1 || ["compress", "backend", "threads"].includes(axis.name)))
    .map((axis) => (axis.name === "threads" ? threads(choice(axis, i)) : choice(axis, i)))
    .join(" · ");
}

const counted = (n) => `${n.toLocaleString("en")} point${n === 1 ? "" : "s"}`;
const threads = (text) => `${text} thread${text === "1" ? "" : "s"}`;

/** Three significant digits without an exponent where people do not write one. */
function digits(x, count = 3) {
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size < 1e-4 || size >= 1e6) return x.toPrecision(count).replace("e", " e");
  return x.toFixed(Math.max(0, count - 1 - Math.floor(Math.log10(size)))).replace("-", "−");
}

const steps = {
  bytes: [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]],
  count: [["G", 1e9], ["M", 1e6], ["k", 1e3]],
};

/** A number of a unit as [text, unit]: (0.8094, "fraction") is ["80.94", "%"]. */
function parts(x, unit) {
  if (unit === "fraction") return [(100 * x).toFixed(2), "%"];
  if (unit === "ratio") return [digits(x), "×"];
  for (const [name, size] of steps[unit] || []) if (Math.abs(x) >= size) return [digits(x / size), name];
  if (unit === "bytes") return [x.toFixed(0), "B"];
  if (unit === "count") return [digits(x), ""];
  return [digits(x), unit];
}

function words(x, unit) {
  const [text, suffix] = parts(x, unit);
  return suffix === "×" ? `${text}×` : suffix ? `${text} ${suffix}` : text;
}

/** "0.408–0.419" in the unit of the value itself. */
function intervalWords(figure, i) {
  const ends = interval(figure, i);
  if (!ends) return "";
  const [, unit] = parts(figure.v[i], figure.unit);
  const scale = figure.unit === "fraction" ? 0.01 : ((steps[figure.unit] || []).find(([name]) => name === unit) || ["", 1])[1];
  const size = Math.max(Math.abs(ends[0]), Math.abs(ends[1])) / scale;
  const shown = ends.map((end) =>
    figure.unit === "fraction" ? (end / scale).toFixed(2) : (end / scale).toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3),
  );
  return `${shown[0]}, ${shown[1]}`;
}

/** A figure in full: value, unit, interval, number of samples, source, note. */
function inFull(figure, i) {
  const range = intervalWords(figure, i);
  const count = samples(figure, i);
  const note = noteOf(figure, i);
  return [
    words(figure.v[i], figure.unit),
    range && `[${range}]`,
    has(count) && count > 1 && `n ${count.toLocaleString("en")}`,
    sources[sourceOf(figure, i)],
    note,
  ].filter(Boolean).join(", ").replace(", [", " [");
}

/** The command that tries this point again, beside the uncompressed network. */
function commandFor(i) {
  if (!data.command.length) return "";
  const quoted = (text) => JSON.stringify(text).replace(/[\u007f-\uffff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  const shell = (text) => `'${text.replaceAll("'", `'"'"'`)}'`;
  const keys = { compress: "compress.pipeline", backend: "runtime.backend", threads: "runtime.threads", target: "hardware.target" };
  const settings = axes.flatMap((axis) => {
    const chosen = choice(axis, i);
    if (!keys[axis.name] || chosen === "") return [];
    const list = axis.name === "threads" ? `[${Number(chosen)}]` : `[${quoted(chosen)}]`;
    return ["--set", shell(`${keys[axis.name]}=${list}`)];
  });
  return [...data.command, ...settings].join(" ");
}

/** Put a text on the clipboard; the older way is for pages opened as a file in a browser that allows nothing else. */
async function copyText(text, button) {
  let done = false;
  try {
    await navigator.clipboard.writeText(text);
    done = true;
  } catch {
    const area = make("textarea", { class: "hidden" });
    area.value = text;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
    button.focus();
  }
  const before = button.dataset.label || button.textContent;
  button.dataset.label = before;
  button.textContent = done ? "Copied" : "Press Ctrl+C";
  setTimeout(() => (button.textContent = before), 1600);
}

function codeBox(text, what) {
  const button = make("button", { type: "button", class: "copy", "aria-label": `Copy ${what}` }, "Copy");
  button.addEventListener("click", () => copyText(text, button));
  return make("div", { class: "code" }, make("pre", { tabindex: "0" }, make("code", {}, text)), button);
}

function chip(name, title) {
  const known = ["equal", "score-only", "label-diff", "score-diff", "degenerate", "nan", "shape", "wrong", "crash", "timeout", "unsupported", "ok", "noisy"];
  return make("span", { class: `chip v-${known.includes(name) ? name : "wrong"}`, title }, name);
}

const sourceMark = (letter) => make("sup", { class: "src", title: sources[letter] }, letter);
