// The card of one image: what each model says of it, side by side.

import { html } from "./html.js";
import { detailParts, firstParts, pixelate, problem, setParts } from "./parts.js";

export class Card {
  // file: an image; isOpen: whether its details are open at first; remove(card): takes it off the page.
  constructor(file, isOpen, remove) {
    this.file = file;
    this.isOpen = isOpen;
    this.url = URL.createObjectURL(file);
    this.results = new Map();  // by the model's key: { coverage, result } or { coverage, error }
    this.sections = new Map();
    this.mark = html("p", { class: "mark", hidden: true });
    this.answers = html("div", { class: "answers" });
    const thumbnail = html("img", { class: "thumbnail", src: this.url, alt: "", onload: (event) => pixelate(event.target),
      onerror: (event) => event.target.replaceWith(html("span", { class: "thumbnail soft" }, "no picture")) });
    this.element = html("li", { class: "card" }, [
      html("div", { class: "head" }, [
        thumbnail,
        html("div", {}, [html("h2", {}, file.name), html("p", { class: "soft" }, size(file.size)), this.mark]),
        html("button", { type: "button", "aria-label": `Remove ${file.name}`, onclick: () => remove(this) }, "Remove"),
      ]),
      this.answers,
    ]);
  }

  // Show the answers of these models, which may still have to come.
  expect(models) {
    this.models = models;
    for (const model of models) {
      if (!this.sections.has(model.key)) this.sections.set(model.key, new Section(this, model));
    }
    this.answers.replaceChildren(...models.map((model) => this.sections.get(model.key).element));
    this.compare();
  }

  wants(model, coverage) {
    const got = this.results.get(model.key);
    return !got || got.error !== undefined || got.coverage !== coverage;
  }

  take(model, outcome) {
    this.results.set(model.key, outcome);
    this.sections.get(model.key).show(outcome);
    this.compare();
  }

  labels() {
    const answers = this.models.map((model) => this.results.get(model.key)?.result?.answer);
    return answers.map((answer) => answer?.label);
  }

  get differs() {
    const labels = this.labels();
    return labels.length === 2 && labels.every((label) => label !== undefined) && labels[0] !== labels[1];
  }

  get failed() {
    return this.models.some((model) => failure(this.results.get(model.key)));
  }

  compare() {
    this.mark.hidden = !this.differs;
    this.mark.textContent = this.differs ? `≠ The models disagree: ${this.labels().join(" or ")}` : "";
    this.element.classList.toggle("differs", this.differs);
  }

  openDetails(open) {
    for (const model of this.models) this.sections.get(model.key).open(open);
  }

  close() {
    URL.revokeObjectURL(this.url);
    this.element.remove();
  }
}

export function failure(outcome) {
  return outcome?.error ?? outcome?.result?.answer.error;
}

class Section {
  constructor(card, model) {
    this.card = card;
    this.model = model;
    this.body = html("div", {}, html("p", { class: "soft" }, "Waiting for the answer…"));
    this.element = html("div", { class: "answer", role: "group", "aria-label": `${model.title} on ${card.file.name}` }, [
      html("h3", {}, model.title),
      this.body,
    ]);
  }

  show({ result, error }) {
    const failed = error ?? result.answer.error;
    if (failed) {
      this.details = this.set = undefined;
      this.body.replaceChildren(problem(failed));
    } else if (this.set) {
      this.set.replaceChildren(...setParts(result));  // only the coverage has changed: what is open stays open
    } else {
      this.showAnswer(result);
    }
  }

  showAnswer(result) {
    this.set = html("div", { class: "part" }, setParts(result));
    this.details = html("details", { ontoggle: () => this.details.open && this.fill(result) }, [
      html("summary", {}, ["Details", html("span", { class: "unseen" }, ` of ${this.element.getAttribute("aria-label")}`)]),
      html("div", { class: "parts" }),
    ]);
    this.open(this.card.isOpen);
    this.body.replaceChildren(
      html("div", { class: "parts" }, [...firstParts(result, this.model), this.set]),
      this.details,
    );
  }

  open(open) {
    if (this.details) this.details.open = open;
  }

  fill(result) {
    if (this.filled === result) return;
    this.filled = result;
    const parts = detailParts(result, this.model, this.card, this.element.getAttribute("aria-label"));
    this.details.lastElementChild.replaceChildren(...parts);
  }
}

function size(bytes) {
  if (bytes < 1e3) return bytes === 1 ? "1 byte" : `${bytes} bytes`;
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(1)} MB`;
}
