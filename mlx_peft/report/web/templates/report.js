"use strict";
(() => {
  const one = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const SVG = "http://www.w3.org/2000/svg";

  // Names come from files: they are only ever set as text, never as HTML.
  function made(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }
  function drawn(name, attributes = {}, ...children) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }
  const say = (text) => { one("#live").textContent = text; };

  // The theme: the system's, until somebody chooses one.
  const themes = ["auto", "light", "dark"];
  function kept(value) {
    try {
      if (value === undefined) return localStorage.getItem("theme");
      localStorage.setItem("theme", value);
    } catch { /* a browser that keeps nothing for files */ }
    return null;
  }
  function paint(theme) {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    one("#theme").textContent = `Theme: ${theme}`;
  }
  let theme = themes.includes(kept()) ? kept() : "auto";
  paint(theme);
  one("#theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    kept(theme);
    paint(theme);
  });

  // What stands in a cell, without the marks of its footnotes, which would be read as digits.
  const shown = (cell) => (cell.firstChild ? cell.firstChild.textContent : "");

  // Sorting: numbers from the highest on, names from the first on, what is missing last.
  const number = (text) => parseFloat(text.replace(/,/g, "").replace(/^< /, "").replace(/^−/, "-"));
  const words = new Intl.Collator(undefined, { numeric: true });
  function sort(table, column, head) {
    const numeric = head.classList.contains("n");
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? other : first;
    const sign = order === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [shown(row.cells[column]), row]);
    keyed.sort(([a], [b]) => {
      if (!numeric) return sign * words.compare(a, b);
      const [x, y] = [number(a), number(b)];
      if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y);
      return sign * (x - y);
    });
    body.append(...keyed.map(([, row]) => row));
    for (const cell of table.tHead.rows[0].cells) cell.setAttribute("aria-sort", cell === head ? order : "none");
    say(`sorted by ${head.textContent.trim()}, ${order}`);
  }
  for (const table of all("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      one("button", head).addEventListener("click", () => sort(table, column, head));
    });
  }

  // Filters: words anywhere in a row, choices in their column, and the runs of one row of a comparison.
  let chosen = null;
  function filter(box) {
    const table = one(`#${box.dataset.table}`);
    const sought = one("input", box).value.toLowerCase().split(/\s+/).filter(Boolean);
    const choices = all("select", box).filter((choice) => choice.value !== "");
    const rows = [...table.tBodies[0].rows];
    let left = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !sought.every((word) => text.includes(word))
        || !choices.every((choice) => shown(row.cells[choice.dataset.column]) === choice.value)
        || (chosen !== null && row.dataset.run !== undefined && !chosen.has(row.dataset.run));
      left += !row.hidden;
    }
    one(".status", box).textContent = `${left} of ${rows.length} shown`;
  }
  const boxes = all(".filters");
  for (const box of boxes) {
    box.addEventListener("input", () => filter(box));
    one("button", box).addEventListener("click", () => {
      if (box.dataset.table === "runs-table") chosen = null;
      one("input", box).value = "";
      for (const choice of all("select", box)) choice.value = "";
      filter(box);
      one("input", box).focus();
    });
    filter(box);
  }
  for (const button of all("button[data-runs]")) {
    button.addEventListener("click", () => {
      chosen = new Set(button.dataset.runs.split(" "));
      const box = one('.filters[data-table="runs-table"]');
      filter(box);
      one("#runs").scrollIntoView();
      one("#runs h2").focus({ preventScroll: true });
      say(`${chosen.size} runs of ${button.textContent.trim()}`);
    });
  }

  // A run: what the table has, its curves, whom it takes for whom, and its configuration.
  const dialog = one("#run");
  let data = null;
  const known = () => (data ??= JSON.parse(one("#data").textContent));
  const short = (value) => Number(value.toPrecision(4)).toString();

  function ticks(low, high) {
    const rough = (high - low) / 3 || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((times) => times * power).find((width) => width >= rough);
    const found = [];
    for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(value);
    return found;
  }
  function chart(title, epochs, values) {
    const [width, height, left, bottom, top] = [340, 200, 48, 30, 8];
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
    const [first, last] = [epochs[0], epochs[epochs.length - 1]];
    const x = (epoch) => left + (width - left - 8) * (last === first ? 0.5 : (epoch - first) / (last - first));
    const y = (value) => top + (height - top - bottom) * (1 - (value - low + room) / (high - low + 2 * room));
    const label = `${title}: from ${short(values[0])} to ${short(values[values.length - 1])} in ${epochs.length} epochs`;
    const svg = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    for (const tick of ticks(low, high)) {
      svg.append(drawn("line", { class: "grid", x1: left, x2: width - 8, y1: y(tick), y2: y(tick) }),
        drawn("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, short(tick)));
    }
    const every = Math.max(1, Math.ceil(epochs.length / 8));
    epochs.forEach((epoch, at) => {
      if (at % every) return;
      svg.append(drawn("text", { x: x(epoch), y: height - bottom + 16, "text-anchor": "middle" }, String(epoch)));
    });
    svg.append(drawn("text", { x: width - 8, y: height - 1, "text-anchor": "end" }, "epoch"));
    svg.append(drawn("polyline", { class: "curve", points: epochs.map((epoch, at) => `${x(epoch)},${y(values[at])}`).join(" ") }));
    if (epochs.length <= 60) {
      epochs.forEach((epoch, at) => svg.append(drawn("circle", { class: "dot", cx: x(epoch), cy: y(values[at]), r: 3 },
        drawn("title", {}, `epoch ${epoch}: ${short(values[at])}`))));
    }
    return made("figure", {}, made("figcaption", {}, title), svg);
  }
  function confusion(classes, counts) {
    const head = made("tr", {}, made("th", { scope: "col" }, "true \\ said"), ...classes.map((name) => made("th", { scope: "col" }, name)));
    const body = counts.map((row, at) => {
      const total = row.reduce((sum, count) => sum + count, 0);
      const cells = row.map((count) => {
        const cell = made("td", {}, count ? String(count) : "");
        cell.style.setProperty("--share", total ? count / total : 0);
        return cell;
      });
      return made("tr", {}, made("th", { scope: "row" }, classes[at]), ...cells);
    });
    const table = made("table", { class: "confusion" }, made("thead", {}, head), made("tbody", {}, ...body));
    table.prepend(made("caption", { class: "hidden" }, "Images of the true class of the row that were taken for the class of the column"));
    return made("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "confusion matrix" }, table);
  }
  function confused(pairs) {
    const rows = pairs.map(([truth, said, count]) => made("tr", {}, made("th", { scope: "row" }, truth), made("td", {}, said), made("td", { class: "n" }, String(count))));
    const head = made("tr", {}, ...["true class", "taken for", "images"].map((name) => made("th", { scope: "col" }, name)));
    return made("div", { class: "scroll", tabindex: "0" }, made("table", {}, made("thead", {}, head), made("tbody", {}, ...rows)));
  }
  function show(index) {
    const row = one(`#runs-table tr[data-run="${index}"]`);
    const run = known().runs[index];
    if (!row || !run) return;
    const heads = [...row.closest("table").tHead.rows[0].cells].map((head) => head.textContent.trim());
    const facts = [...row.cells].slice(1).map((cell, at) => [heads[at + 1], cell.textContent.trim()]);
    const parts = [made("h3", {}, "Measured"), made("dl", {}, ...facts.filter(([, value]) => value !== "–").map(([name, value]) => made("div", {}, made("dt", {}, name), made("dd", {}, value))))];
    if (run.curves.length) {
      parts.push(made("h3", {}, "Epoch by epoch"), made("div", { class: "charts" }, ...run.curves.map(([title, epochs, values]) => chart(title, epochs, values))));
    }
    if (run.confusion) parts.push(made("h3", {}, "Which classes are taken for which"), confusion(known().classes[run.classes], run.confusion));
    if (run.confused) parts.push(made("h3", {}, "What is mistaken most often"), confused(run.confused));
    if (run.notes.length) parts.push(made("h3", {}, "Notes"), made("ul", {}, ...run.notes.map((note) => made("li", {}, note))));
    if (run.config !== null) parts.push(made("h3", {}, "Configuration"), made("pre", { tabindex: "0" }, `${run.seed}${known().configs[run.config]}`));
    one("#run-title").textContent = one("th", row).textContent.trim();
    one(".content", dialog).replaceChildren(...parts);
    dialog.dataset.run = index;
    dialog.scrollTop = 0;
    if (!dialog.open) dialog.showModal();
    history.replaceState(null, "", `#run-${index}`);
  }
  function step(by) {
    const rows = all("#runs-table tbody tr").filter((row) => !row.hidden);
    const at = rows.findIndex((row) => row.dataset.run === dialog.dataset.run);
    const next = rows[(at + by + rows.length) % rows.length];
    if (next) show(next.dataset.run);
  }
  one("#runs-table tbody").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) show(button.closest("tr").dataset.run);
  });
  one("#close").addEventListener("click", () => dialog.close());
  one("#previous").addEventListener("click", () => step(-1));
  one("#next").addEventListener("click", () => step(1));
  dialog.addEventListener("keydown", (event) => {
    if (event.target.closest(".scroll, pre")) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => history.replaceState(null, "", "#runs"));
  const asked = /^#run-(\d+)$/.exec(location.hash);
  if (asked) show(asked[1]);
})();
