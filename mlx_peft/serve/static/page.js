// The page: its theme, its two views, and the token where the server asks for one.

import { ask, kept, one, say, useToken } from "./common.js";
import { Health } from "./health.js";
import { Trial } from "./trial.js";

// The theme: the system's, until somebody chooses one.
const themes = ["auto", "light", "dark"];
const disk = () => localStorage;
function paint(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  one("#theme").textContent = `Theme: ${theme}`;
}
let theme = themes.includes(kept(disk, "theme")) ? kept(disk, "theme") : "auto";
paint(theme);
one("#theme").addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  kept(disk, "theme", theme);
  paint(theme);
});

// What is served.
const trial = new Trial();
const health = new Health();
const trouble = one("#trouble");
function told(sentence) {
  trouble.textContent = sentence;
  trouble.hidden = !sentence;
}
async function models() {
  try {
    const { models: found } = await (await ask("v1/models")).json();
    const bases = [...new Set(found.map((model) => model.base))];
    const count = found.length === 1 ? "1 adapter" : `${found.length} adapters`;
    one("#facts").textContent = found.length ? `${count} on ${bases.join(", ")}` : "No adapter is served yet.";
    trial.offer(found);
    health.list(found);
    told("");
  } catch (problem) {
    if (problem.status !== 401) told(`What is served could not be found out. ${problem.message}`);
  }
}
health.onModels = models;

// The views, by the address behind #.
function show() {
  const name = location.hash === "#health" ? "health" : "try";
  for (const view of ["try", "health"]) {
    one(`#${view}`).hidden = view !== name;
    const link = one(`nav a[href="#${view}"]`);
    if (view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "health") health.start();
  else health.stop();
  return name;
}
addEventListener("hashchange", () => {
  if (!["#try", "#health", ""].includes(location.hash)) return;
  one(`#${show()}-title`).focus();
});
addEventListener("visibilitychange", () => (document.hidden ? health.stop() : show()));

// The token.
const form = one("#token");
document.addEventListener("token-wanted", (event) => {
  one("#token-reason").textContent = event.detail;
  if (!form.hidden) return;
  form.hidden = false;
  one("input", form).focus();
});
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  useToken(one("input", form).value.trim());
  form.hidden = true;
  await models();
  if (!form.hidden) return;
  say("The token is used from now on.");
  trial.again();
  one("#first").focus();
});

show();
models();
