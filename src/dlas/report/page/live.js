// A served page asks its own address from time to time whether it would look different now.
const root = document.documentElement;
const news = document.getElementById("news");
const often = 1000 * Number(root.dataset.every || ("running" in root.dataset ? 4 : 15));
let touched = false;
for (const kind of ["input", "change", "click"]) addEventListener(kind, (event) => (touched ||= kind !== "click" || !!event.target.closest("main :is(button, summary, tr, .chart)")));

function tell(text, action) {
  if (news.dataset.text === text) return;
  news.dataset.text = text;
  news.hidden = !text;
  const button = action ? Object.assign(document.createElement("button"), { type: "button", textContent: action }) : "";
  if (button) button.addEventListener("click", () => location.reload());
  news.replaceChildren(text, " ", button);
}

async function look() {
  const started = performance.now();
  if (!document.hidden) {
    try {
      const answer = await fetch(location.pathname, { method: "HEAD", cache: "no-store", redirect: "error" });
      const version = answer.headers.get("ETag");
      if (!answer.ok || !version) tell("This study can no longer be read.", "Look again");
      else if (version === `"${root.dataset.version}"`) tell("");
      // Whoever has sorted, filtered or opened something keeps it until they say so.
      else if (touched) tell("There is something new.", "Show it");
      else location.reload();
    } catch {
      tell("The server has ended: this is what was there.");
    }
  }
  // Where an answer takes long, asking less often leaves the machine to those who measure on it.
  setTimeout(look, Math.max(often, 30 * (performance.now() - started)));
}

setTimeout(look, often);
