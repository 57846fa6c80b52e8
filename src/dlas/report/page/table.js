// The table of all points: sorted, filtered and paged over numbers; only the rows in view exist as elements.
const table = { rows: [], page: 0, size: data.count <= 200 ? Infinity : 100, key: "latency_ms", down: false, open: new Set(), picked: -1 };

/** Columns: a name for sorting, a head, what to sort by, and the cell. */
const columns = [
  { name: "pareto", head: "★", title: "in the Pareto set", sort: (i) => (inFront.has(i) ? 0 : 1), cell: marks, fixed: true },
  ...axes.map((axis) => ({
    name: axis.name,
    head: axis.label,
    // Choices that are numbers sort as numbers.
    sort: axis.values.every((v) => v !== "" && !Number.isNaN(Number(v))) ? (i) => Number(choice(axis, i)) : (i) => choice(axis, i),
    cell: (i) => [choice(axis, i)],
    class: axis.name === "compress" ? "choice" : axis.name === "threads" ? "num" : "",
    shown: !(axis.name === "target" && axis.values.length < 2) || axes.length < 4,
  })),
  { name: "right", head: "Right?", sort: (i) => verdict(i), cell: judged },
  ...data.figures.flatMap((figure) => figureColumns(figure)),
].map((column) => ({ shown: true, class: "", title: "", ...column }));

function figureColumns(figure) {
  const found = [{
    name: figure.name,
    head: figure.label,
    title: figure.about,
    sort: (i) => figure.v[i],
    cell: (i) => number(figure, i),
    class: "num",
    shown: figure.column,
  }];
  if (figure.name === "top1" && data.baseline >= 0 && has(figure.v[data.baseline])) {
    const base = figure.v[data.baseline];
    const change = (i) => (has(figure.v[i]) ? 100 * (figure.v[i] - base) : null);
    found.push({
      name: "loss",
      head: "± points",
      title: "top-1 minus that of the baseline, in percentage points",
      sort: change,
      class: "num",
      cell: (i) => {
        const points = change(i);
        if (!has(points)) return ["–"];
        const text = Math.abs(points) < 0.005 ? "0.00" : `${points > 0 ? "+" : "−"}${Math.abs(points).toFixed(2)}`;
        return [make("span", { class: points < -1 ? "bad" : "" }, text)];
      },
    });
  }
  return found;
}

function marks(i) {
  return [
    inFront.has(i) ? make("span", { class: "star", title: "in the Pareto set" }, "★") : "",
    i === data.baseline ? make("span", { class: "chip", title: "what all others are compared with" }, "base") : "",
  ];
}

function judged(i) {
  const found = [chip(verdict(i), reason(i))];
  if (isNoisy(i)) found.push(" ", chip("noisy", "the machine was disturbed while this was measured"));
  if (reason(i)) found.push(make("div", { class: "why" }, reason(i)));
  return found;
}

function number(figure, i) {
  if (!has(figure.v[i])) return [make("span", { class: "none" }, "–")];
  const range = intervalWords(figure, i);
  const [text, unit] = parts(figure.v[i], figure.unit);
  const note = noteOf(figure, i);
  return [
    make("span", { title: note || undefined }, text, make("span", { class: "unit" }, unit === "×" ? "×" : unit ? ` ${unit}` : "")),
    sourceMark(sourceOf(figure, i)),
    range ? make("span", { class: "range" }, `[${range}]`) : "",
  ];
}

/** What the text filter looks through, made once per row when it is first needed. */
const searched = [];
function searchText(i) {
  if (searched[i] === undefined) {
    const notes = (data.notes[i] || []).map((n) => data.texts[n]);
    searched[i] = [...axes.map((axis) => choice(axis, i)), verdict(i), data.outcomes.values[data.outcomes.codes[i]], reason(i), isNoisy(i) ? "noisy" : "", ...notes, data.keys[i]].join(" ").toLowerCase();
  }
  return searched[i];
}

function applyFilter() {
  const wanted = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const outcome = byId("outcome").value;
  const paretoOnly = byId("pareto-only").checked;
  table.rows = [];
  for (let i = 0; i < data.count; i += 1) {
    if (paretoOnly && !inFront.has(i)) continue;
    if (outcome && verdict(i) !== outcome && data.outcomes.values[data.outcomes.codes[i]] !== outcome) continue;
    if (wanted.length && !wanted.every((word) => searchText(i).includes(word))) continue;
    table.rows.push(i);
  }
  sortRows();
  table.page = 0;
  drawTable();
}

const collator = new Intl.Collator("en", { numeric: true });

function sortRows() {
  const column = columns.find((c) => c.name === table.key) || columns[0];
  const sign = table.down ? -1 : 1;
  const keys = [];
  for (const i of table.rows) keys[i] = column.sort(i);
  // Texts are ranked once each: comparing them for every pair of rows is what would take long.
  const texts = [...new Set(table.rows.map((i) => keys[i]))].filter((key) => typeof key === "string").sort(collator.compare);
  const rank = new Map(texts.map((text, place) => [text, place]));
  for (const i of table.rows) if (rank.has(keys[i])) keys[i] = rank.get(keys[i]);
  table.rows.sort((a, b) => {
    if (!has(keys[a]) || !has(keys[b])) return has(keys[a]) ? -1 : has(keys[b]) ? 1 : a - b; // what is not known comes last either way
    return sign * (keys[a] - keys[b]) || a - b;
  });
}

function drawHead() {
  const row = make("tr", {}, make("th", { scope: "col" }, make("span", { class: "hidden" }, "Details")));
  for (const column of columns.filter((c) => c.shown)) {
    const active = column.name === table.key;
    const button = make("button", { type: "button", title: column.title || undefined, "data-sort": column.name }, column.head, make("span", { class: "arrow", "aria-hidden": "true" }, active ? (table.down ? "▼" : "▲") : "")); // prettier-ignore
    button.addEventListener("click", () => {
      table.down = table.key === column.name ? !table.down : false;
      table.key = column.name;
      sortRows();
      table.page = 0;
      drawTable();
      byId("table").querySelector(`button[data-sort="${CSS.escape(column.name)}"]`).focus();
    });
    row.append(make("th", { scope: "col", class: column.class, "aria-sort": active ? (table.down ? "descending" : "ascending") : "none" }, button));
  }
  byId("table").tHead.replaceChildren(row);
}

function drawTable() {
  drawHead();
  const first = table.size === Infinity ? 0 : table.page * table.size;
  const shown = table.rows.slice(first, table.size === Infinity ? undefined : first + table.size);
  const visible = columns.filter((c) => c.shown);
  const body = document.createDocumentFragment();
  for (const i of shown) {
    body.append(drawRow(i, visible));
    if (table.open.has(i)) body.append(drawDetails(i, visible.length + 1));
  }
  if (!shown.length) body.append(make("tr", {}, make("td", { colspan: visible.length + 1, class: "empty" }, data.count ? "No point fits the filter." : "No point has been tried yet.")));
  byId("table").tBodies[0].replaceChildren(body);
  const total = data.count.toLocaleString("en");
  byId("count").textContent = table.rows.length === data.count ? counted(data.count) : `${table.rows.length.toLocaleString("en")} of ${total} points`;
  const pages = Math.max(1, Math.ceil(table.rows.length / table.size));
  byId("pager").hidden = table.size === Infinity || pages === 1;
  byId("page").textContent = `Page ${table.page + 1} of ${pages.toLocaleString("en")}`;
  byId("previous").disabled = table.page === 0;
  byId("next").disabled = table.page >= pages - 1;
}

function drawRow(i, visible) {
  const open = table.open.has(i);
  const toggle = make("button", { type: "button", class: "toggle", "aria-expanded": String(open), "aria-label": `Details of ${label(i)}` }, open ? "−" : "+");
  toggle.addEventListener("click", () => {
    if (!table.open.delete(i)) table.open.add(i);
    drawTable();
    byId("table").querySelector(`tr[data-row="${i}"] .toggle`).focus();
  });
  const row = make("tr", { "data-row": i, class: [isRight(i) ? "" : "failed", i === table.picked ? "picked" : "", inFront.has(i) ? "best" : ""].join(" ").trim() || undefined, "aria-current": i === table.picked ? "true" : undefined }, make("td", {}, toggle)); // prettier-ignore
  for (const column of visible) row.append(make("td", { class: column.class || undefined }, ...column.cell(i)));
  row.addEventListener("click", (event) => {
    if (!event.target.closest("button, a, pre")) pick(i);
  });
  return row;
}

function drawDetails(i, span) {
  const list = make("dl");
  for (const figure of data.figures.filter((f) => has(f.v[i]))) list.append(make("dt", { title: figure.about }, figure.label), make("dd", {}, inFull(figure, i)));
  const left = make("div", {}, list);
  const right = make("div");
  if (reason(i)) right.append(make("p", {}, make("b", {}, "Reason: "), reason(i)));
  for (const note of data.notes[i] || []) right.append(make("p", {}, make("b", {}, "Note: "), data.texts[note]));
  if (has(data.tails[i])) right.append(make("details", { open: true }, make("summary", {}, "Last lines of the worker's error output"), make("pre", { class: "tail", tabindex: "0" }, data.texts[data.tails[i]])));
  const bars = layerBars(i, null, 12);
  if (bars) right.append(make("h4", {}, "Slowest layers"), bars);
  const command = commandFor(i);
  if (command) right.append(make("h4", {}, "Try it again"), codeBox(command, "the command of this point"));
  right.append(make("p", { class: "aside" }, `Key in the study's database: ${data.keys[i]}…`));
  return make("tr", { class: "details" }, make("td", { colspan: span }, make("div", { class: "split" }, left, right)));
}

/** Turn to the page that holds a point; filters that hide it are taken off. */
function showRow(i) {
  if (!table.rows.includes(i)) {
    byId("filter").value = "";
    byId("outcome").value = "";
    byId("pareto-only").checked = false;
    applyFilter();
  }
  if (table.size !== Infinity) table.page = Math.floor(table.rows.indexOf(i) / table.size);
  drawTable();
}

function setUpTable() {
  const lead = data.objectives[0] && figures.has(data.objectives[0].figure) ? data.objectives[0] : null;
  table.key = lead ? lead.figure : "pareto";
  table.down = lead ? !lead.minimise : false;
  for (const name of new Set([...data.verdicts.values, ...data.outcomes.values])) byId("outcome").append(make("option", { value: name }, name === "ok" ? "ok (right)" : name));
  byId("filter").addEventListener("input", applyFilter);
  byId("outcome").addEventListener("change", applyFilter);
  byId("pareto-only").addEventListener("change", applyFilter);
  for (const [id, step] of [["previous", -1], ["next", 1]]) byId(id).addEventListener("click", () => {
    table.page += step;
    drawTable();
  }); // prettier-ignore
  for (const column of columns.filter((c) => !c.fixed)) {
    const box = make("input", { type: "checkbox", checked: column.shown });
    box.addEventListener("change", () => {
      column.shown = box.checked;
      drawTable();
    });
    byId("column-list").append(make("label", { class: "check" }, box, ` ${column.head}`));
  }
  applyFilter();
}
