// Marking images: the choice of a class, and taking back what was marked last.
//
//   const marking = new Marking(dialog, undo, marked)    marked(row, count, words) is called when a mark has changed
//   marking.labels = facts.labels
//   marking.open(row)

import { sendJson } from "./ask.js";
import { html } from "./html.js";
import { picture } from "./table_cards.js";

const QUICK = 40; // classes that have a button of their own

export class Marking {
  constructor(dialog, undo, marked) {
    this.dialog = dialog;
    this.form = dialog.querySelector("form");
    this.undoButton = undo;
    this.marked = marked;
    this.labels = [];
    this.done = []; // [row, its label before]
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.choose(this.form.elements.label.value.trim());
    });
    dialog.querySelector("[data-act=remove]").addEventListener("click", () => this.choose(null));
    dialog.querySelector("[data-act=cancel]").addEventListener("click", () => dialog.close());
    undo.addEventListener("click", () => this.undo());
  }

  open(row) {
    this.row = row;
    const says = row.error_code === null ? `The table says ${row.label}.` : `The table has no answer: ${row.error_code}.`;
    this.dialog.querySelector(".shown").replaceWith(picture(row));
    this.dialog.querySelector(".about").replaceChildren(row.key, html("br"), html("span", { class: "soft" }, says));
    this.form.elements.label.value = row.mark ?? "";
    this.dialog.querySelector("[data-act=remove]").hidden = row.mark === null;
    this.refuse(null);
    this.offer();
    this.dialog.showModal();
    this.form.elements.label.focus();
  }

  // The classes to choose from: all to be typed, some as buttons.
  offer() {
    const quick = this.labels.length <= QUICK ? this.labels : [];
    const pressed = (label) => (label === this.row.mark ? "true" : "false");
    this.dialog.querySelector(".quick").replaceChildren(
      ...quick.map((label) =>
        html("button", { type: "button", "aria-pressed": pressed(label), onclick: () => this.choose(label) }, label),
      ),
    );
    this.dialog.querySelector("datalist").replaceChildren(...this.labels.map((value) => html("option", { value })));
  }

  async choose(label) {
    const [row, before] = [this.row, this.row.mark];
    try {
      await this.set(row, label);
    } catch (error) {
      this.refuse(error.message);
      return;
    }
    this.done.push([row, before]);
    this.undoButton.disabled = false;
    this.dialog.close();
  }

  async undo() {
    const [row, before] = this.done.at(-1);
    try {
      await this.set(row, before);
    } catch (error) {
      this.marked(null, null, error.message);
      return;
    }
    this.done.pop();
    this.undoButton.disabled = this.done.length === 0;
  }

  async set(row, label) {
    const { marked } = await sendJson("/api/table/marks", { row: row.row, label });
    row.mark = label;
    if (label !== null && !this.labels.includes(label)) this.labels = [...this.labels, label];
    this.marked(row, marked, label === null ? `${row.key} is not marked any more.` : `${row.key} is marked as ${label}.`);
  }

  refuse(words) {
    const problem = this.dialog.querySelector(".problem");
    problem.hidden = words === null;
    problem.textContent = words ?? "";
  }
}
