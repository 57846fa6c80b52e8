// What ties the parts together: one point is picked at a time, in the chart, the lists and the table alike.

/** Pick a point: its row is marked, its command shown, its place ringed. */
function pick(i) {
  table.picked = i;
  showRow(i);
  const list = make("dl");
  for (const figure of data.figures.filter((f) => f.column && has(f.v[i]))) list.append(make("dt", {}, figure.label), make("dd", {}, inFull(figure, i)));
  const jump = make("button", { type: "button", class: "plain" }, "Show in the table");
  jump.addEventListener("click", () => {
    table.open.add(i);
    drawTable();
    const row = byId("table").querySelector(`tr[data-row="${i}"]`);
    row.scrollIntoView({ block: "center" });
    row.querySelector(".toggle").focus({ preventScroll: true });
  });
  const command = commandFor(i);
  byId("picked").replaceChildren(
    make("p", {}, make("b", {}, label(i)), " ", chip(verdict(i), reason(i)), isNoisy(i) ? chip("noisy") : "", inFront.has(i) ? make("span", { class: "star", title: "in the Pareto set" }, " ★") : ""),
    reason(i) ? make("p", {}, reason(i)) : "",
    list,
    command ? codeBox(command, "the command of this point") : "",
    jump,
  ); // prettier-ignore
  ring(i);
}

function setUpPage() {
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copyText(byId(button.dataset.copy).textContent, button));
  for (const button of document.querySelectorAll("[data-select]")) button.addEventListener("click", () => {
    pick(Number(button.dataset.select));
    byId("picked-box").scrollIntoView({ block: "center" });
  }); // prettier-ignore
  for (const figure of data.figures) byId("figure-legend").append(make("dt", {}, figure.label), make("dd", {}, `${figure.about}${figure.low === true ? "; lower is better" : figure.low === false ? "; higher is better" : ""}`));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") byId("tip").hidden = true;
  });
  document.addEventListener("click", (event) => {
    if (!event.target.closest("#columns")) byId("columns").open = false;
  });
  // A drawing on canvas holds the colours it was drawn with.
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chart.renderer === "canvas" && drawPareto());
}

setUpTable();
setUpLayers();
setUpPage();
await Promise.all([setUpPareto(), drawEffects()]);
document.documentElement.dataset.ready = "yes";
