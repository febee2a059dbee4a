// The page on a table that `score` wrote: its filters stand in its address, so that going back and coming again work.

import { ask } from "./ask.js";
import { html, whole } from "./html.js";
import { Cards } from "./table_cards.js";
import { Filters } from "./table_filters.js";
import { Marking } from "./table_mark.js";
import { Writing } from "./table_write.js";

const PAGE_ROWS = 60;
const part = (id) => document.getElementById(id);
let filters, stop, last, areShown;

const cards = new Cards(part("cards"), (row) => marking.open(row));
const marking = new Marking(part("choose"), part("undo"), marked);
const writing = new Writing(part("write"), part("written"), say);
part("choose").addEventListener("close", () => cards.focus());
document.querySelector(".pager").addEventListener("click", (event) => turn(event.target.dataset.page));

function marked(row, count, words) {
  if (row === null) return fail(words);
  fail(null);
  say(words);
  cards.update(row);
  writing.count(count);
  filters.show("marked", [["yes", "marked", count], ["no", "not marked", null]]);
}

// For those who hear the page; the others see what has changed.
function say(words) {
  part("said").textContent = words;
}

function fail(words) {
  part("problem").replaceChildren(...(words ? [html("p", { class: "problem" }, words)] : []));
}

async function tellFacts() {
  const facts = await ask("/api/table");
  const lead = `${facts.table}: ${whole(facts.rows)} ${facts.rows === 1 ? "row" : "rows"}`;
  part("lead").textContent = lead;
  const notes = facts.images ? [...facts.notes, `No images are shown: ${facts.images}.`] : facts.notes;
  part("notes").replaceChildren(...notes.map((note) => html("p", { class: "note" }, note)));
  marking.labels = facts.labels;
  areShown = facts.images === null;
  return facts;
}

// Shows what the filters say; whatever was asked before does not matter any more.
async function load() {
  stop?.abort();
  stop = new AbortController();
  part("cards").setAttribute("aria-busy", "true");
  try {
    show(await ask(`/api/table/rows?${filters.query()}`, { signal: stop.signal }));
    fail(null);
  } catch (error) {
    if (error.name === "AbortError") return;
    part("range").textContent = "";
    fail(error.message);
  }
  part("cards").setAttribute("aria-busy", "false");
}

function show(answer) {
  last = answer;
  filters.page = answer.page;
  filters.count(answer.counts, answer.marked);
  writing.count(answer.marked);
  cards.show(answer.rows.map((row) => ({ ...row, isShown: areShown })));
  const first = (answer.page - 1) * PAGE_ROWS;
  part("range").textContent = answer.total
    ? `${whole(first + 1)} to ${whole(first + answer.rows.length)} of ${whole(answer.total)} rows`
    : filters.areSet ? "No row passes these filters." : "The table has no rows.";
  part("page").textContent = `page ${whole(answer.page)} of ${whole(answer.pages)}`;
  document.querySelector(".pager").hidden = answer.pages < 2;
  for (const button of document.querySelectorAll(".pager button")) {
    button.disabled = target(button.dataset.page) === answer.page;
  }
}

function target(name) {
  const { page, pages } = last;
  return { first: 1, previous: Math.max(1, page - 1), next: Math.min(pages, page + 1), last: pages }[name];
}

async function turn(name) {
  if (name === undefined) return;
  filters.page = target(name);
  await changed();
  part("range").scrollIntoView();
  cards.focus();
}

// A person has changed a filter or the page: the address says it, and going back undoes it.
function changed() {
  const query = filters.query();
  if (location.search.slice(1) !== query) history.pushState(null, "", query ? `?${query}` : location.pathname);
  return load();
}

addEventListener("popstate", () => {
  if (!filters) return;
  filters.read();
  load();
});
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible" && !part("choose").open && filters) tellFacts().then(load, (error) => fail(error.message));
});

if (innerWidth < 832) document.querySelector(".filters").open = false;
try {
  filters = new Filters(part("filters"), await tellFacts(), changed);
  await load();
} catch (error) {
  part("range").textContent = "";
  fail(error.message);
}
