// The view in which images are dropped, answered by one adapter or two, and explained.

import { askPatiently, duration, made, one, percent, say } from "./common.js";

const AT_ONCE = 4; // requests on their way
const NOTHING = "";
const KINDS = [
  ["image", () => "as the model sees it"],
  ["rollout", () => "attention"],
  ["favour", (found) => `in favour of ${found.of}`],
  ["tokens", () => "tokens kept"],
];
const READING = {
  image: "Resized and cropped as the adapter's images were.",
  rollout: "How much of each patch comes into what is read at the end, by attention alone: from the least of the image, dark, to the most of it, yellow.",
  favour: "Attention weighted by the gradient of that class: from the least of the image, dark, to the most of it, yellow.",
  tokens: "What comes to the last block: patches in one token have its mean colour and a white line around them, those that go around the block are dim, those that are gone black.",
};

export class Trial {
  constructor() {
    this.models = [];
    this.images = []; // { file, url, card, answers: Map of adapter to { box, stop } }
    this.queue = [];
    this.running = 0;
    this.listen();
  }

  listen() {
    const files = one("#files");
    files.addEventListener("change", () => { this.take(files.files); files.value = ""; });
    for (const select of ["#first", "#second", "#top"]) one(select).addEventListener("change", () => this.again());
    one("#clear").addEventListener("click", () => {
      for (const image of [...this.images]) this.remove(image);
      say("All images are removed.");
      files.focus();
    });
    const drop = one("#drop");
    const files_in = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    addEventListener("dragover", (event) => {
      if (!files_in(event)) return;
      event.preventDefault();
      drop.classList.add("over");
    });
    addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
    addEventListener("drop", (event) => {
      drop.classList.remove("over");
      if (!files_in(event)) return;
      event.preventDefault();
      this.take(event.dataTransfer.files);
    });
    addEventListener("paste", (event) => this.take(event.clipboardData?.files ?? []));
  }

  // The adapters that there are; what was chosen stays chosen.
  offer(models) {
    this.models = models;
    const names = models.map((model) => model.name);
    const options = () => names.map((name) => made("option", { value: name }, name));
    const before = [one("#first").value, one("#second").value];
    one("#first").replaceChildren(...options());
    one("#second").replaceChildren(made("option", { value: NOTHING }, "nothing"), ...options());
    if (names.includes(before[0])) one("#first").value = before[0];
    if (names.includes(before[1])) one("#second").value = before[1];
    one("#second").disabled = names.length < 2;
    this.describe();
  }

  get adapters() {
    return [...new Set([one("#first").value, one("#second").value])].filter(Boolean);
  }

  describe() {
    const facts = this.adapters.map((name) => {
      const model = this.models.find((each) => each.name === name);
      return made("div", {}, made("dt", {}, name), made("dd", {}, described(model)));
    });
    one("#chosen").replaceChildren(...facts);
  }

  take(list) {
    const files = [...list];
    for (const file of [...files].reverse()) this.images.unshift(this.carded(file));
    if (files.length) {
      say(`${files.length === 1 ? files[0].name : `${files.length} images`} taken.`);
      this.again();
    }
  }

  carded(file) {
    const url = URL.createObjectURL(file);
    const name = file.name || "pasted image";
    const picture = made("img", { src: url, alt: name });
    picture.addEventListener("error", () => picture.replaceWith(made("p", { class: "facts unseen" }, "This browser cannot show the file.")));
    const remove = made("button", { type: "button", "aria-label": `Remove ${name}` }, "Remove");
    const answers = made("div", { class: "answers" });
    const card = made("li", { class: "card" },
      made("div", { class: "shown" }, picture, made("div", { class: "bar-of-card" }, made("h3", { tabindex: "-1" }, name), remove)),
      made("div", { class: "told" }, made("p", { class: "verdict" }), answers));
    const image = { file, name, url, card, answers: new Map() };
    remove.addEventListener("click", () => {
      const next = this.images[this.images.indexOf(image) + 1] ?? this.images[this.images.indexOf(image) - 1];
      this.remove(image);
      say(`${name} removed.`);
      (next ? one("h3", next.card) : one("#files")).focus();
    });
    one("#cards").prepend(card);
    return image;
  }

  remove(image) {
    for (const answer of image.answers.values()) answer.stop.abort();
    URL.revokeObjectURL(image.url);
    image.card.remove();
    this.images = this.images.filter((each) => each !== image);
    one("#clear").hidden = !this.images.length;
  }

  // Asks what is chosen about every image; what was answered so already stays.
  again() {
    this.describe();
    one("#clear").hidden = !this.images.length;
    for (const image of this.images) {
      const wanted = this.adapters.map((name) => [name, `${one("#top").value} ${name}`]);
      for (const [key, answer] of image.answers) {
        if (wanted.some(([, each]) => each === key)) continue;
        answer.stop.abort();
        image.answers.delete(key);
      }
      for (const [name, key] of wanted) if (!image.answers.has(key)) this.put(image, name, key);
      one(".answers", image.card).replaceChildren(...wanted.map(([, key]) => image.answers.get(key).box));
      one(".answers", image.card).classList.toggle("two", wanted.length > 1);
      this.compare(image);
    }
    this.next();
  }

  put(image, name, key) {
    const box = made("section", { class: "answer", "aria-label": `${image.name}: ${name}`, "aria-busy": "true" },
      made("h4", {}, name), made("p", { class: "facts" }, "Waiting …"));
    const answer = { box, name, stop: new AbortController(), best: null };
    image.answers.set(key, answer);
    this.queue.push({ image, answer, top: one("#top").value });
  }

  next() {
    while (this.running < AT_ONCE && this.queue.length) {
      const { image, answer, top } = this.queue.shift();
      if (answer.stop.signal.aborted) continue;
      this.running += 1;
      this.answer(image, answer, top).finally(() => { this.running -= 1; this.next(); });
    }
  }

  async answer(image, answer, top) {
    const { box, name, stop } = answer;
    const waiting = (sentence) => { one(".facts", box).textContent = sentence; };
    try {
      const began = performance.now();
      const asked = await askPatiently("v1/classify", { method: "POST", body: form(image.file, name, top), signal: stop.signal }, waiting);
      const { results: [found], milliseconds } = await asked.json();
      answer.best = found.classes[0];
      box.replaceChildren(made("h4", {}, name), bars(found.classes),
        made("p", { class: "facts" }, times(milliseconds, performance.now() - began)), this.explaining(image, answer, top));
      say(`${image.name}, ${name}: ${answer.best.label}, ${percent(answer.best.probability)}`);
    } catch (problem) {
      if (problem.name === "AbortError") return;
      const again = made("button", { type: "button" }, "Ask again");
      again.addEventListener("click", () => {
        box.replaceChildren(made("h4", {}, name), made("p", { class: "facts" }, "Waiting …"));
        this.queue.push({ image, answer, top });
        this.next();
      });
      box.replaceChildren(made("h4", {}, name), made("p", { class: "error" }, problem.message), again);
      say(`${image.name}, ${name}: ${problem.message}`);
    }
    box.setAttribute("aria-busy", "false");
    this.compare(image);
  }

  compare(image) {
    const best = [...image.answers.values()].map((answer) => answer.best);
    const verdict = one(".verdict", image.card);
    if (best.length < 2 || best.includes(null)) verdict.textContent = "";
    else if (best[0].label === best[1].label) verdict.textContent = `Both say ${best[0].label}.`;
    else verdict.textContent = `They differ: ${best[0].label} and ${best[1].label}.`;
  }

  explaining(image, answer, top) {
    const button = made("button", { type: "button", "aria-label": `Where did ${answer.name} look in ${image.name}?` }, "Where did it look?");
    button.addEventListener("click", async () => {
      const waiting = made("p", { class: "facts", role: "status" }, "Looking …");
      button.replaceWith(waiting);
      try {
        const asked = await askPatiently("v1/explain", { method: "POST", body: form(image.file, answer.name, top), signal: answer.stop.signal },
          (sentence) => { waiting.textContent = sentence; });
        const { result, milliseconds } = await asked.json();
        const figure = pictures(result, milliseconds, `${image.name}, ${answer.name}`);
        waiting.replaceWith(figure);
        one("input:checked", figure).focus();
        say(`${image.name}, ${answer.name}: the picture shows attention.`);
      } catch (problem) {
        if (problem.name === "AbortError") return;
        waiting.replaceWith(made("p", { class: "error", role: "alert" }, problem.message), button);
        button.addEventListener("click", () => button.previousElementSibling?.remove(), { once: true });
      }
    });
    return button;
  }
}

function form(file, adapter, top) {
  const body = new FormData();
  body.append("images", file, "image"); // the file's own name stays here
  body.append("adapter", adapter);
  body.append("top_k", top);
  return body;
}

function described(model) {
  if (!model) return "";
  const classes = model.classes.length === 1 ? "1 class" : `${model.classes.length} classes`;
  return [model.method, classes, ...measured(model)].filter(Boolean).join(" · ");
}

// The first of its metrics: what its run is compared by, and what stands beside that.
const FIRST = 3;
export const measured = (model) => Object.entries(model.metrics ?? {}).slice(0, FIRST)
  .map(([name, value]) => `${name} ${Number(value.toPrecision(4))}`);

function bars(classes) {
  return made("ol", { class: "bars" }, ...classes.map(({ label, probability }) => {
    const bar = made("span", { class: "track", "aria-hidden": "true" }, made("span", { class: "fill" }));
    bar.firstChild.style.setProperty("--share", Math.min(1, Math.max(0, probability)));
    return made("li", {}, made("span", { class: "label" }, label), " ", made("span", { class: "n" }, percent(probability)), bar);
  }));
}

function times(server, whole) {
  const parts = ["decode", "queue", "device"].filter((part) => part in server).map((part) => `${part} ${duration(server[part])}`);
  return `${duration(server.total)} in the server (${parts.join(", ")}), ${duration(whole)} with the way there and back`;
}

let groups = 0;
function pictures(found, milliseconds, of) {
  groups += 1;
  const shown = made("img", { alt: "" });
  const caption = made("figcaption", { class: "facts" });
  const there = KINDS.filter(([kind]) => found.pictures[kind]);
  function show(kind, title) {
    shown.src = `data:image/png;base64,${found.pictures[kind]}`;
    shown.alt = `${of}: ${title}`;
    const tokens = kind === "tokens" ? ` Tokens of each block: ${found.tokens.join(", ")}.` : "";
    caption.textContent = `${READING[kind]}${tokens} Took ${duration(milliseconds.total)}.`;
  }
  const choices = there.map(([kind, title]) => {
    const input = made("input", { type: "radio", name: `picture-${groups}`, value: kind });
    input.checked = kind === "rollout";
    input.addEventListener("change", () => show(kind, title(found)));
    return made("label", {}, input, title(found));
  });
  show("rollout", "attention");
  const legend = made("legend", { class: "hidden" }, `Which picture of ${of}`);
  return made("figure", { class: "picture" }, shown, made("fieldset", {}, legend, ...choices), caption);
}
