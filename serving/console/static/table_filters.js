// The filters of the page on a table: the address is what they are, the controls show it, and counts stand beside them.
//
//   const filters = new Filters(form, facts, changed)    changed() is called when a person has changed one
//   filters.query()                                      "label=7&page=2", for the address and the console
//   filters.count(counts)                                shows what each choice would give

import { html, whole } from "./html.js";

const CHOSEN = ["label", "component", "error", "flag", "marked"];
const TYPED = ["key", "typicality_from", "typicality_to", "probability_from", "probability_to"];
const NAMES = [...CHOSEN, ...TYPED, "sort"];
const PAUSE_MS = 250; // after the last letter

export class Filters {
  constructor(form, facts, changed) {
    this.form = form;
    this.filled = new Set(facts.filled);
    this.changed = changed;
    this.page = 1;
    this.read();
    form.addEventListener("input", (event) => this.typed(event.target));
    form.elements.sort.addEventListener("input", (event) => this.typed(event.target)); // it stands elsewhere
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => this.clear(event));
    for (const part of form.querySelectorAll("[data-column]")) part.hidden = !this.filled.has(part.dataset.column);
    for (const option of form.elements.sort.options) {
      const column = option.value.replace("-", "");
      option.hidden = option.disabled = column !== "" && !this.filled.has(column);
    }
  }

  // What the address says.
  read() {
    const address = new URLSearchParams(location.search);
    this.chosen = Object.fromEntries(CHOSEN.map((name) => [name, address.get(name) ?? ""]));
    for (const name of [...TYPED, "sort"]) this.form.elements[name].value = address.get(name) ?? "";
    this.page = Number(address.get("page")) || 1;
  }

  query(page = this.page) {
    const address = new URLSearchParams();
    for (const name of NAMES) {
      const value = CHOSEN.includes(name) ? this.chosen[name] : this.form.elements[name].value.trim();
      if (value !== "") address.set(name, value);
    }
    if (page > 1) address.set("page", page);
    return address.toString();
  }

  get areSet() {
    return [...new URLSearchParams(this.query(1)).keys()].some((name) => name !== "sort");
  }

  typed(control) {
    if (!control.name || !NAMES.includes(control.name)) return;
    if (CHOSEN.includes(control.name)) this.chosen[control.name] = control.value;
    if (control.name === "label") this.chosen.component = "";
    clearTimeout(this.waiting);
    this.waiting = setTimeout(() => this.tell(), TYPED.includes(control.name) ? PAUSE_MS : 0);
  }

  tell() {
    if (!this.form.reportValidity()) return;
    this.page = 1;
    this.changed();
  }

  clear(event) {
    event.preventDefault();
    for (const name of CHOSEN) this.chosen[name] = "";
    for (const name of TYPED) this.form.elements[name].value = "";
    this.tell();
  }

  count(counts, marked) {
    const choices = {
      label: counts.label,
      component: counts.component.map(([value, name, count]) => [value, name ? `${value}: ${name}` : value, count]),
      error: [["none", "with an answer", counts.answered], ["any", "with any error", counts.failed], ...counts.error],
      flag: counts.flag,
      marked: [["yes", "marked", marked], ["no", "not marked", null]],
    };
    for (const [name, options] of Object.entries(choices)) this.show(name, options);
    this.part("component").hidden = counts.component.length === 0 && this.chosen.component === "";
    this.part("label").hidden = !this.filled.has("label");
    this.part("flag").hidden = !this.filled.has("flags") || (counts.flag.length === 0 && this.chosen.flag === "");
  }

  part(name) {
    return this.form.querySelector(`[data-choices="${name}"]`);
  }

  // Radio buttons of a filter; the one that is chosen is among them even if it would give nothing.
  show(name, options) {
    const part = this.part(name);
    const chosen = this.chosen[name];
    const all = [["", "all", null], ...options.map(([value, text, count]) => [String(value), String(text), count])];
    if (!all.some(([value]) => value === chosen)) all.push([chosen, chosen, 0]);
    const most = Math.max(...options.map(([, , count]) => count ?? 0));
    const focused = part.contains(document.activeElement) ? document.activeElement.value : null;
    const scrolled = part.querySelector(".choices")?.scrollTop ?? 0;
    const box = html("div", { class: "choices" }, all.map((one) => choice(name, one, chosen, most)));
    part.querySelector(".choices")?.remove();
    part.append(box);
    box.scrollTop = scrolled;
    if (focused !== null) [...box.querySelectorAll("input")].find((input) => input.value === focused)?.focus();
  }
}

function choice(name, [value, text, count], chosen, most) {
  const bar = html("i");
  bar.style.width = `${most ? (100 * (count ?? 0)) / most : 0}%`;
  return html("label", { class: "choice" }, [
    html("input", { type: "radio", name, value, checked: value === chosen }),
    html("span", { class: "name" }, text),
    count === null ? null : html("span", { class: "count" }, whole(count)),
    count === null ? null : html("span", { class: "share", "aria-hidden": "true" }, bar),
  ]);
}
