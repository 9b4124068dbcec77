// What both views share: elements, words for a person who listens, and the server asked.

export const one = (selector, root = document) => root.querySelector(selector);
export const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const SVG = "http://www.w3.org/2000/svg";

// Names come from files and from the server: they are only ever set as text, never as HTML.
function filled(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
export const made = (name, attributes = {}, ...children) => filled(document.createElement(name), attributes, children);
export const drawn = (name, attributes = {}, ...children) => filled(document.createElementNS(SVG, name), attributes, children);
export const say = (text) => { one("#live").textContent = text; };

export const percent = (share) => `${(100 * share).toFixed(1)} %`;
export const duration = (milliseconds) => `${milliseconds < 10 ? milliseconds.toFixed(1) : Math.round(milliseconds)} ms`;

// What went wrong, as a sentence for a person.
export class Problem extends Error {
  constructor(status, sentence, wait = 0) {
    super(sentence);
    this.status = status;
    this.wait = wait;
  }
}

export function kept(store, key, value) {
  try {
    if (value === undefined) return store().getItem(key);
    store().setItem(key, value);
  } catch { /* a browser that keeps nothing */ }
  return null;
}
const tab = () => sessionStorage;
export const useToken = (value) => kept(tab, "token", value);

const WORDS = {
  401: "The server wants a token.",
  403: "This token may not do that.",
  404: "The server knows nothing of that name.",
  413: "That is more than the server takes.",
  500: "Something went wrong inside the server.",
  503: "The server is busy, or not ready yet.",
};

// An answer of the server. Throws Problem with its own sentence, where it has one.
export async function ask(path, options = {}) {
  const token = kept(tab, "token");
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, "The server does not answer: is it still running, and is the network there?");
  }
  if (answer.ok) return answer;
  const said = await answer.json().then((body) => body?.error?.reason, () => undefined);
  const sentence = typeof said === "string" && said ? said : WORDS[answer.status] ?? `The server answered ${answer.status}.`;
  if (answer.status === 401) document.dispatchEvent(new CustomEvent("token-wanted", { detail: sentence }));
  throw new Problem(answer.status, sentence, Number(answer.headers.get("Retry-After")) || 0);
}

const TIMES = 4;
const pause = (seconds, signal) => new Promise((done, gone) => {
  const timer = setTimeout(done, 1000 * seconds);
  signal?.addEventListener("abort", () => { clearTimeout(timer); gone(new DOMException("", "AbortError")); });
});

// The same, and where the server is busy once more after the time that it names.
export async function askPatiently(path, options = {}, waiting = () => {}) {
  for (let turn = 1; ; turn += 1) {
    try {
      return await ask(path, options);
    } catch (problem) {
      if (problem.status !== 503 || turn === TIMES) throw problem;
      const seconds = Math.min(problem.wait || 1, 30);
      waiting(`${problem.message} Asking again in ${seconds} s.`);
      await pause(seconds, options.signal);
    }
  }
}
