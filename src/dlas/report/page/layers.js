// What changed per layer, and where the time goes.

/** Bars of the layer times of a point, in the order of the network or the slowest first; null when it has none. */
function layerBars(i, longest, most = Infinity) {
  const row = data.layers.times[i];
  if (!row) return null;
  const [set, times] = row;
  const total = times.reduce((sum, t) => sum + (t || 0), 0);
  const top = longest || Math.max(...times, 1e-12);
  let order = times.map((_, k) => k);
  if (most < order.length) order = order.sort((a, b) => times[b] - times[a]).slice(0, most);
  const body = make("tbody");
  for (const k of order) {
    const [nameCode, opCode, source] = data.layers.sets[set][k];
    const [name, op] = [data.texts[nameCode], data.texts[opCode]];
    const bar = make("span", { class: "bar" });
    bar.style.width = `${Math.max(0.5, (100 * (times[k] || 0)) / top)}%`;
    body.append(make("tr", {}, make("td", { class: "name", title: `${name} (${op})` }, name || op, make("span", { class: "aside" }, ` ${op}`)), make("td", { class: "bars" }, bar), make("td", { class: "num" }, words(times[k] || 0, "ms"), sourceMark(source)), make("td", { class: "num" }, total ? `${((100 * (times[k] || 0)) / total).toFixed(1)} %` : ""))); // prettier-ignore
  }
  const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Layer"), make("th", { scope: "col" }, make("span", { class: "hidden" }, "Bar")), make("th", { scope: "col", class: "num" }, "Time"), make("th", { scope: "col", class: "num" }, "Share")));
  return make("div", { class: "scroll short", role: "region", "aria-label": `Layer times of ${label(i)}`, tabindex: "0" }, make("table", { class: "layers" }, head, body));
}

function drawChanges() {
  const rows = data.changes[byId("variant").value] || [];
  const body = rows.slice(0, 2000).map((row) => make("tr", {}, ...row.map((code, k) => make("td", { class: k === 0 ? "name" : "" }, data.texts[code]))));
  if (rows.length > 2000) body.push(make("tr", {}, make("td", { colspan: 4, class: "empty" }, `and ${rows.length - 2000} more layers`)));
  byId("change-table").tBodies[0].replaceChildren(...body);
}

function drawLayers() {
  const chosen = ["layers-left", "layers-right"].map((id) => Number(byId(id).value));
  const longest = Math.max(...chosen.flatMap((i) => (data.layers.times[i] ? data.layers.times[i][1] : [0])), 1e-12);
  byId("layer-times").replaceChildren(...chosen.map((i) => {
    const [, times] = data.layers.times[i] || [0, []];
    const sum = times.reduce((total, t) => total + (t || 0), 0);
    return make("div", {}, make("p", {}, make("b", {}, label(i)), make("span", { class: "aside" }, ` ${times.length} layers, together ${words(sum, "ms")}`)), layerBars(i, longest) || "");
  })); // prettier-ignore
}

function setUpLayers() {
  if (byId("variant")) {
    byId("variant").addEventListener("change", drawChanges);
    drawChanges();
  }
  if (!byId("layers-left")) return;
  const latency = figures.get("latency_ms");
  const known = Object.keys(data.layers.times).map(Number);
  known.sort((a, b) => (value(latency, a) ?? Infinity) - (value(latency, b) ?? Infinity));
  // What a reader most likely wants beside the baseline: the recommended point, or the fastest that is nearly as good.
  const quality = figures.get("top1") || figures.get("agreement");
  const floor = (value(quality, data.baseline) ?? -Infinity) - 0.01;
  const useful = known.filter((i) => i !== data.baseline && isRight(i) && (value(quality, i) ?? Infinity) >= floor);
  const right = known.includes(data.best) ? data.best : useful[0] ?? known.find((i) => i !== data.baseline) ?? known[0];
  const left = known.includes(data.baseline) ? data.baseline : known[1] ?? known[0];
  const listed = [...new Set([left, right, ...known])].slice(0, 300);
  for (const [id, chosen] of [["layers-left", left], ["layers-right", right]]) {
    for (const i of listed) byId(id).append(make("option", { value: i, selected: i === chosen }, `${inFront.has(i) ? "★ " : ""}${label(i)}${i === data.baseline ? " (baseline)" : ""}`));
    byId(id).addEventListener("change", drawLayers);
  }
  const missing = data.layers.left_out ? ` ${data.layers.left_out.toLocaleString("en")} points lost theirs to keep this file small; they are in the study's database.` : "";
  byId("layers-caption").textContent = `Both sides share one scale. Profiling adds a little to every layer, so the sum may exceed the latency.${missing}`;
  drawLayers();
}
