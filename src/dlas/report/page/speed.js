// Draws the charts of a page about speed. Every text of a file reaches the page as text, never as markup.
const figures = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");

function put(parent, name, text, attributes = {}) {
  const element = document.createElement(name);
  if (text !== undefined) element.textContent = text;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

function showTip(event, item) {
  const told = item && item.datum && item.datum.tip;
  tip.hidden = !told;
  if (!told) return;
  tip.replaceChildren();
  put(tip, "b", told.head);
  const list = put(tip, "dl");
  for (const [name, value] of told.pairs) {
    put(list, "dt", name);
    put(list, "dd", value);
  }
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, window.innerWidth - box.width - 8);
  const below = event.clientY + 14 + box.height < window.innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? event.clientY + 14 : Math.max(8, event.clientY - box.height - 14)}px`;
}

/** Scroll to the row of a step and mark it. */
function pick(number) {
  for (const old of document.querySelectorAll("tr.picked")) old.classList.remove("picked");
  const row = document.getElementById(`row-${number}`);
  if (!row) return;
  row.classList.add("picked");
  row.scrollIntoView({ block: "center" });
}

/** Fixed ends of logarithmic axes, with a label at 1, 2 and 5 times every power of ten. */
function framed(spec, domains) {
  if (!domains) return spec;
  const copy = structuredClone(spec);
  copy.config.axis.labelOverlap = false;
  for (const layer of copy.layer) {
    for (const name of ["x", "y"]) {
      const channel = layer.encoding && layer.encoding[name];
      if (!channel || !channel.scale) continue;
      const [low, high] = (channel.scale.domain = domains[name]);
      const values = [];
      for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
        for (const step of [1, 2, 5]) if (step * 10 ** power >= low && step * 10 ** power <= high) values.push(step * 10 ** power);
      }
      if (channel.axis) Object.assign(channel.axis, { values, labelOverlap: false });
    }
  }
  return copy;
}

async function draw(figure) {
  const box = document.getElementById(figure.id);
  const inside = put(box, "div", undefined, { "aria-hidden": "true" });
  const spec = { ...framed(figure.spec, figure.domains), height: figure.height, datasets: figure.datasets };
  // `ast` evaluates expressions without compiling code, which the page's security policy forbids.
  const { view } = await vegaEmbed(inside, spec, {
    mode: "vega-lite", actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: false, logLevel: 1,
  });
  view.addEventListener("mousemove", showTip);
  view.addEventListener("mouseout", () => { tip.hidden = true; });
  view.addEventListener("click", (_, item) => { if (item && item.datum && item.datum.row !== undefined) pick(item.datum.row); });
}

(async () => {
  for (const figure of figures) await draw(figure);
  document.documentElement.setAttribute("data-ready", "");
})();
