// The cards of a page of images: one is in the order of Tab, arrow keys go to the others.
//
//   const cards = new Cards(list, open)                  open(row) is called when a person has chosen one
//   cards.show(rows)
//   cards.update(row)                                    after its mark has changed

import { html } from "./html.js";

const TINY = 64; // pixels; smaller images are shown larger, pixel by pixel

export class Cards {
  constructor(list, open) {
    this.list = list;
    this.open = open;
    this.rows = [];
    this.current = 0;
    list.addEventListener("keydown", (event) => this.key(event));
    list.addEventListener("focusin", (event) => this.reach(this.buttons().indexOf(event.target)));
  }

  show(rows) {
    const kept = this.rows[this.current]?.row;
    const hadFocus = this.list.contains(document.activeElement);
    this.rows = rows;
    this.list.replaceChildren(...rows.map((row) => html("li", {}, this.tile(row))));
    this.reach(Math.max(0, rows.findIndex((row) => row.row === kept)));
    if (hadFocus) this.focus();
  }

  buttons() {
    return [...this.list.querySelectorAll(".tile")];
  }

  focus() {
    this.buttons()[this.current]?.focus();
  }

  // Makes a card the one that Tab comes to.
  reach(index) {
    if (index < 0) return;
    this.current = index;
    for (const [at, button] of this.buttons().entries()) button.tabIndex = at === index ? 0 : -1;
  }

  update(row) {
    const at = this.rows.findIndex((one) => one.row === row.row);
    if (at < 0) return;
    this.rows[at].mark = row.mark; // the row may have been asked for again since it was marked
    const [old, hadFocus] = [this.buttons()[at], this.buttons()[at] === document.activeElement];
    old.querySelector(".mark")?.remove();
    old.classList.toggle("marked", row.mark !== null);
    if (row.mark !== null) old.append(mark(row.mark));
    if (hadFocus) old.focus();
  }

  key(event) {
    const columns = this.columns();
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
    const ends = { Home: 0, End: this.rows.length - 1 };
    const to = event.key in steps ? this.current + steps[event.key] : ends[event.key];
    if (to === undefined || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (to < 0 || to >= this.rows.length) return;
    this.reach(to);
    this.focus();
  }

  columns() {
    const tops = this.buttons().map((button) => button.getBoundingClientRect().top);
    return Math.max(1, tops.filter((top) => top === tops[0]).length);
  }

  tile(row) {
    const facts = row.error_code === null ? answered(row) : failed(row);
    const name = html("span", { class: "key", title: row.key }, breakable(row.key));
    const parts = [picture(row), ...facts, name, row.mark === null ? null : mark(row.mark)];
    const classes = row.mark === null ? "tile" : "tile marked";
    return html("button", { type: "button", class: classes, tabindex: -1, onclick: () => this.open(row) }, parts);
  }
}

function answered(row) {
  const component = row.component === null ? null : (row.component_name ?? `component ${row.component}`);
  const typicality = row.typicality === null ? null : `typicality ${short(row.typicality)}`;
  const density = row.typicality === null && row.log_density !== null ? `log-density ${row.log_density.toFixed(2)}` : null;
  const facts = [component, typicality, density].filter((fact) => fact !== null);
  return [
    html("span", { class: "label" }, [row.label, html("span", {}, row.probability === null ? "" : short(row.probability))]),
    ...facts.map((fact) => html("span", { class: "fact" }, fact)),
    ...row.flags.map((flag) => html("span", { class: "flagged" }, flag.replaceAll("_", " "))),
  ];
}

function failed(row) {
  return [html("span", { class: "label" }, row.error_code), html("span", { class: "failed" }, row.error_message)];
}

function short(share) {
  if (share > 0 && share < 0.001) return share.toExponential(1);
  return share > 0.999 && share < 1 ? "> 0.999" : share.toFixed(3);
}

// A name that is broken where its parts begin, if it must be broken.
function breakable(name) {
  return name.split(/(?<=[/_.-])/).flatMap((part) => [html("wbr"), part]);
}

function mark(label) {
  return html("span", { class: "mark" }, `marked: ${label}`);
}

// The thumbnail of a row, or in its place why there is none, if the row itself or the page does not say it already.
export function picture(row) {
  const place = html("span", { class: "shown" });
  if (!row.isShown) {
    place.textContent = "no image";
    return place;
  }
  const address = `/api/table/thumbnails/${row.row}`;
  const image = html("img", { src: address, alt: "", loading: "lazy" });
  image.addEventListener("load", () => image.classList.toggle("tiny", Math.max(image.naturalWidth, image.naturalHeight) <= TINY));
  image.addEventListener("error", async () => {
    place.textContent = "no image";
    try {
      const body = await (await fetch(address)).json();
      if (body.error.message !== row.error_message) place.textContent = body.error.message;
    } catch {
      // the console does not answer any more: the page says so elsewhere
    }
  });
  place.append(image);
  return place;
}
