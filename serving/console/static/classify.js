// The page that classifies images: what is chosen, who is asked, and how far that has come.

import { ask, AskError, send, UNREACHED } from "./ask.js";
import { Card, failure } from "./card.js";
import { html, percent, whole } from "./html.js";

const TOGETHER = 4;  // requests
const MOST_IMAGES = 256;
const OPEN_AT_ONCE = 2;  // with no more images than this, details are open
const PAUSE_MS = 250;  // after the last move of the slider
const LEAST_COVERAGE = 0.5;
const STEP = 0.005;

const at = (id) => document.getElementById(id);
const cards = [];
const models = new Map();
let asking = new AbortController();
let pause = 0;
let pasted = 0;

async function begin() {
  try {
    const { place, models: served } = await ask("/api/models");
    for (const { name, version } of served) {
      const [key, path] = [`${name}:${version}`, `/api/models/${encodeURIComponent(name)}/${version}`];
      models.set(key, { key, path, title: `${name}, version ${version}` });
      for (const select of [at("model"), at("other")]) select.append(html("option", { value: key }, `${name}, version ${version}`));
    }
    if (!served.length) throw new AskError("no_model", `${place} serves no model.`);
    say(`Answers come from ${place}.`);
    await choose();
  } catch (error) {
    say("");
    tell(error, "Ask for the models again", begin);
  }
}

// The models that are chosen, the second one only if it is another.
function chosen() {
  const keys = new Set([at("model").value, at("other").value].filter(Boolean));
  return [...keys].map((key) => models.get(key));
}

async function choose() {
  at("problem").replaceChildren();
  const wanted = chosen();
  try {
    for (const model of wanted) {
      if (model.facts === undefined) model.facts = await ask(model.path);
    }
  } catch (error) {
    tell(error, "Try again", choose);
    return;
  }
  if (chosen().some((model) => !wanted.includes(model))) return;  // others have been chosen in the meantime
  for (const option of at("other").options) option.disabled = option.value === at("model").value;
  at("differing-only").hidden = chosen().length < 2;
  if (chosen().length < 2) at("differing").checked = false;
  about();
  await askAll();
}

function about() {
  const known = chosen().filter((model) => model.facts);
  const words = known.map(({ title, facts }) =>
    `${title}: ${facts.labels.length} classes${facts.components > 1 ? ` of ${facts.components} components` : ""}, head ${facts.head}, trained on ${facts.dataset}` +
    (facts.held_out ? `, compared with ${whole(facts.held_out.images)} held-out images.` : "."));
  at("about").textContent = words.join(" ");
  const missing = chosen().flatMap(({ title, facts }) =>
    facts ? facts.missing.map((text) => `${title}: ${text}`) : [`${title}: nothing is known of it here but its answers. Name its bundle's folder when you begin the console.`]);
  at("missing").replaceChildren(...missing.map((text) => html("li", {}, text)));
  limitCoverage(known.map(({ facts }) => facts.held_out?.most_coverage).filter(Boolean));
}

// The slider goes as far as the held-out images of the models allow.
function limitCoverage(most) {
  const slider = at("coverage");
  slider.disabled = chosen().every(({ facts }) => facts && !facts.held_out);
  const greatest = Math.min(0.995, ...most);
  const steps = Math.floor((greatest - LEAST_COVERAGE) / STEP + 1e-9);
  slider.max = steps > 0 ? (LEAST_COVERAGE + steps * STEP).toFixed(3) : greatest;
  slider.min = Math.min(LEAST_COVERAGE, slider.max);
  showCoverage();
}

function showCoverage() {
  at("coverage-shown").textContent = at("coverage").disabled ? "not known" : percent(Number(at("coverage").value));
}

function coverage() {
  return at("coverage").disabled ? null : Number(at("coverage").value);
}

async function add(files) {
  const taken = [...files].slice(0, MOST_IMAGES - cards.length);
  const isOpen = cards.length + taken.length <= OPEN_AT_ONCE;
  for (const file of taken) cards.push(new Card(file, isOpen, remove));
  at("images").append(...cards.slice(-taken.length || cards.length).map((card) => card.element));
  const left = files.length - taken.length;
  await askAll();
  if (left) tell(new AskError("too_many", `The page holds ${MOST_IMAGES} images; ${left} were left out.`));
}

function remove(card) {
  const next = cards[cards.indexOf(card) + 1] ?? cards[cards.indexOf(card) - 1];
  cards.splice(cards.indexOf(card), 1);
  card.close();
  (next?.element.querySelector("button") ?? at("files")).focus();
  progress();
}

// Ask for every answer that is missing or of another coverage; what is still on its way is given up.
async function askAll() {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const [share, wanted] = [coverage(), chosen()];
  for (const card of cards) card.expect(wanted);
  if (wanted.some((model) => model.facts === undefined)) return progress();  // `choose` asks when they are there
  const open = cards.flatMap((card) => wanted.filter((model) => card.wants(model, share)).map((model) => [card, model]));
  progress();
  const askSome = async () => {
    for (let next; !signal.aborted && (next = open.shift()); ) await askOne(...next, share, signal);
  };
  await Promise.all(Array.from({ length: TOGETHER }, askSome));
  if (!signal.aborted) finish();
}

async function askOne(card, model, share, signal) {
  const limit = model.facts?.max_bytes ?? Infinity;
  try {
    if (card.file.size > limit) throw new AskError("image_too_large", `image must have at most ${limit} bytes, got ${card.file.size}`);
    const result = await send(`${model.path}/answer${share === null ? "" : `?coverage=${share}`}`, card.file, signal);
    card.take(model, { coverage: share, result });
  } catch (error) {
    if (signal.aborted) return;  // it is asked anew
    card.take(model, { coverage: share, error });
  }
  progress();
}

function progress() {
  at("tools").hidden = cards.length === 0;
  const wanted = chosen();
  const share = coverage();
  const done = cards.filter((card) => wanted.every((model) => !card.wants(model, share) || failure(card.results.get(model.key))));
  const failed = cards.filter((card) => card.failed);
  const differing = cards.filter((card) => card.differs);
  const images = (count) => (count === 1 ? "1 image" : `${count} images`);
  const answered = done.length - failed.length;
  const parts = [done.length < cards.length ? `Asking: ${done.length} of ${images(cards.length)}.` : `${images(answered)} answered.`];
  if (failed.length) parts.push(`${failed.length} without an answer.`);
  if (wanted.length === 2) parts.push(`The models disagree on ${differing.length}.`);
  if (cards.length) say(parts.join(" "));
  filter();
}

function finish() {
  const errors = cards.flatMap((card) => chosen().map((model) => failure(card.results.get(model.key)))).filter(Boolean);
  const unreached = errors.find((error) => UNREACHED.includes(error.code));
  at("problem").replaceChildren();
  if (unreached) tell(unreached, "Ask again", askAll);
}

function filter() {
  for (const card of cards) card.element.hidden = at("differing").checked && !card.differs;
}

// A trouble that concerns the whole page, with what to do about it.
function tell(error, label, action) {
  const button = label ? [html("button", { type: "button", onclick: action }, label)] : [];
  at("problem").replaceChildren(html("p", { class: "problem" }, [html("strong", {}, "Something is wrong: "), error.message]), ...button);
}

function say(text) {
  if (at("status").textContent !== text) at("status").textContent = text;
}

at("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
at("model").addEventListener("change", choose);
at("other").addEventListener("change", choose);
at("coverage").addEventListener("input", () => {
  showCoverage();
  clearTimeout(pause);
  pause = setTimeout(askAll, PAUSE_MS);
});
at("differing").addEventListener("change", filter);
at("all-details").addEventListener("click", () => cards.forEach((card) => card.openDetails(true)));
at("clear").addEventListener("click", () => {
  asking.abort();
  for (const card of cards.splice(0)) card.close();
  at("tools").hidden = true;
  say("No images.");
  at("files").focus();
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  if (event.dataTransfer.files.length) add(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files].map((file) => new File([file], `pasted ${++pasted}`, { type: file.type }));
  if (files.length) add(files);
});
begin();
