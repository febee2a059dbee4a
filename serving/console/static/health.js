// The page on health: asks the console every few seconds, while the page is looked at, how the server is.
//
// What is there is changed in place, so that whoever reads or has opened a part of it keeps that. Only the state of the
// server is announced to screen readers, and only when it changes.

import { ask } from "./ask.js";
import { html, percent, whole } from "./html.js";
import { drawing, scale, svg } from "./svg.js";

const OFTEN = 4000, SOON = 2100; // ms between two looks; sooner while there is no rate yet
const MOST_CLASSES = 20;
const TITLE = document.title;
const place = (id) => document.getElementById(id);
const cards = new Map();

const WORDS = {
  ready: ["✓ Ready", "every worker of every model can answer"],
  unready: ["✗ Not ready", "not every worker can answer, or the server is about to stop"],
  silent: ["✗ No answer", "the server does not say how it is"],
  none: ["No server", "the console asks none"],
  ended: ["✗ No console", "the console has ended"],
};
const CURES = {
  unready: ["See ", "python -m serving status", "; logs/model_log.log in the state folder holds a worker's last words."],
  silent: ["See ", "python -m serving status", "; begin it with ", "python -m serving start", ". This page goes on by itself."],
  none: ["Begin one here with ", "python -m serving start", ", and this page shows it; of a server elsewhere name ",
    "--metrics-url", "."],
  ended: ["Begin it again with ", "python -m serving console", "."],
};

let timer = null;

async function look() {
  clearTimeout(timer);
  const answer = await asked();
  show(answer);
  const isMeasured = answer.models?.every((model) => model.per_second !== null) ?? true;
  clearTimeout(timer); // of another look that was begun meanwhile
  if (!document.hidden) timer = setTimeout(look, isMeasured ? OFTEN : SOON);
}

async function asked() {
  try {
    return await ask(`/health/figures?since=${place("since").value}`);
  } catch ({ code, message }) {
    return code === "console_gone" ? { state: "ended" } : { state: "silent", problem: message };
  }
}

function show(answer) {
  showState(answer);
  place("figures").hidden = !answer.models;
  if (!answer.models) return;
  const names = answer.models.map((model) => `${model.name} ${model.version}`);
  if (names.join() !== [...cards.keys()].join()) build(names, answer.models);
  answer.models.forEach((model, n) => fill(cards.get(names[n]), model, answer));
  const { "4XX": refused, "5XX": failed } = answer.server;
  place("server").textContent = refused === undefined ? "" :
    `All answers of the server over the last minute, those of a full queue among them: ${rate(refused)} a second ` +
    `with a status of 4xx, ${rate(failed)} with 5xx.`;
}

function showState({ state, problem }) {
  const [word, meaning] = WORDS[state];
  const said = `${word}: ${meaning}.`;
  if (place("state").textContent !== said) {
    place("state").textContent = said;
    place("state").dataset.state = state;
    document.title = `${word.replace(/^\W+/, "")} – ${TITLE}`;
  }
  const cure = (CURES[state] ?? []).map((part, n) => (n % 2 ? html("code", {}, part) : part));
  place("cure").hidden = !cure.length;
  place("cure").replaceChildren(...(problem ? [`${problem}. `] : []), ...cure);
}

// A card for each version of each model, whose parts are filled in later.
function build(names, models) {
  cards.clear();
  place("models").replaceChildren(...models.map((model, n) => {
    const parts = {};
    const heading = html("h2", { id: `model-${n}` }, [`${model.name} `, html("span", { class: "soft" }, `version ${model.version}`)]);
    parts.workers = html("p");
    parts.load = html("dl", { class: "figures" });
    parts.images = html("dl", { class: "figures" });
    parts.unknown = html("p", { class: "soft" }, ["To compare its components with the test split, name its bundle: ",
      html("code", {}, "python -m serving console --url … BUNDLE"), "."]);
    parts.typicality = html("figure");
    parts.rate = html("figure");
    parts.wait = html("figure");
    parts.summary = html("summary");
    parts.table = html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Components of ${model.name}` });
    parts.components = html("details", {}, [parts.summary, parts.table]);
    cards.set(names[n], parts);
    return html("section", { class: "panel model", "aria-labelledby": `model-${n}` }, [
      heading, parts.workers,
      html("div", { class: "groups" }, [
        html("div", {}, [html("h3", {}, "Load, over the last minute"), parts.load, parts.rate, parts.wait]),
        html("div", {}, [html("h3", {}, "Images"), parts.images, parts.typicality]),
      ]),
      parts.components, parts.unknown,
    ]);
  }));
}

function fill(card, model, answer) {
  const isReady = model.workers > 0 && model.workers === model.workers_ready;
  card.workers.className = isReady ? "good" : "bad";
  card.workers.textContent = `${isReady ? "✓" : "✗"} ${model.workers_ready} of ${model.workers} workers ready`;
  const others = answer.models.filter((one) => one.name === model.name).length > 1 ? ", all versions" : "";
  card.load.replaceChildren(...definitions([
    ["requests a second", perSecond(model.per_second)],
    [`wait of a request${others}`, percentiles(model.request)],
    [`of it in the queue${others}`, percentiles(model.queue)],
    ["a batch in the worker", percentiles(model.batch)],
    ["images a batch", model.images_a_batch === null ? "–" : rate(model.images_a_batch)],
  ]));
  card.rate.replaceChildren(...past(model.past, "per_second", "requests a second", rate));
  card.wait.replaceChildren(...past(model.past, "p99", `p99 of a request's wait${others}`, seconds));
  card.images.replaceChildren(...definitions([
    ["answered", whole(model.answered)],
    ["atypical", model.atypical === null ? "–" : `${percent(model.atypical)} (about ${percent(model.atypical_expected)} if nothing has changed)`],
    ["mean confidence", model.confidence === null ? "–" : percent(model.confidence)],
    ["errors", Object.entries(model.errors).map(([code, count]) => `${code}: ${count}`).join(", ") || "none"],
  ]));
  card.typicality.replaceChildren(...typicality(model.typicality));
  card.unknown.hidden = model.is_known;
  card.components.hidden = !model.occupancy;
  if (model.occupancy) showComponents(card, model.occupancy);
}

function definitions(pairs) {
  return pairs.flatMap(([term, value]) => [html("dt", {}, term), html("dd", {}, value)]);
}

function perSecond(byStatus) {
  if (byStatus === null) return "in a moment";
  const all = Object.values(byStatus).reduce((sum, value) => sum + value, 0);
  const parts = Object.entries(byStatus).filter(([, value]) => value > 0).map(([status, value]) => `${status}: ${rate(value)}`);
  return parts.length ? `${rate(all)} (${parts.join(", ")})` : "0";
}

function percentiles(found) {
  return found ? `p50 ${seconds(found.p50)}, p99 ${seconds(found.p99)}` : "–";
}

// Two digits that count, and never an exponent.
function rate(value) {
  return Number(value.toPrecision(2)).toLocaleString("en", { maximumSignificantDigits: 2 });
}

function seconds(value) {
  return value < 1 ? `${rate(1000 * value)} ms` : `${rate(value)} s`;
}

// A small chart of one figure from look to look.
function past(points, name, what, words) {
  const known = points.filter((point) => point[name] !== null);
  const most = Math.max(...known.map((point) => point[name]));
  if (known.length < 2 || most === 0) return [];
  const width = 280, height = 48, last = known[known.length - 1];
  const x = scale([known[0].until, last.until], [2, width - 2]);
  const y = scale([0, most], [height - 3, 3]);
  const minutes = Math.max(1, Math.round((last.until - known[0].until) / 60));
  const time = minutes === 1 ? "the last minute" : `the last ${minutes} minutes`;
  const label = `${what} over ${time}: at most ${words(most)}, now ${words(last[name])}`;
  const line = known.map((point) => `${x(point.until).toFixed(1)},${y(point[name]).toFixed(1)}`).join(" ");
  return [
    html("figcaption", {}, label),
    drawing(width, height, label, [
      svg("line", { x1: 0, x2: width, y1: height - 1, y2: height - 1, class: "axis" }),
      svg("polyline", { points: line, class: "past" }),
    ]),
  ];
}

// Images by tenths of the typicality, with the line that they would follow if nothing had changed.
function typicality(counts) {
  if (!counts) return [];
  const all = counts.reduce((sum, value) => sum + value, 0);
  const width = 280, height = 110, foot = 92, each = all / counts.length;
  const y = scale([0, Math.max(...counts, each)], [foot, 6]);
  const label = `Typicality of ${whole(all)} images by tenths, from the least typical: ${counts.join(", ")}; ` +
    `${each.toPrecision(3)} in each if nothing has changed`;
  const bars = counts.map((count, n) =>
    svg("rect", { x: 28 * n + 2, y: y(count), width: 24, height: foot - y(count), class: "share" }));
  return [
    html("figcaption", {}, "Typicality, by tenths; images like the held-out ones are at the dashed line"),
    drawing(width, height, label, [
      ...bars,
      svg("line", { x1: 0, x2: width, y1: y(each), y2: y(each), class: "even" }),
      svg("line", { x1: 0, x2: width, y1: foot, y2: foot, class: "axis" }),
      svg("text", { x: 0, y: height - 4 }, "0, atypical"),
      svg("text", { x: width, y: height - 4, "text-anchor": "end" }, "1, most typical"),
    ]),
  ];
}

function showComponents(card, classes) {
  const shown = classes.slice(0, MOST_CLASSES);
  const differing = classes.filter((one) => one.is_notable);
  card.summary.textContent = `Components of ${classes.length} classes, against the test split: ` +
    (differing.length ? `${differing.length} ${differing.length === 1 ? "differs" : "differ"} much` : "none differs much");
  const header = ["class", "Cohen's w", "component", "here", "test split", "both, here above"];
  card.table.replaceChildren(html("table", { class: "occupancy" }, [
    html("caption", {}, "Shares of the components among the images that were found to be of a class" +
      (shown.length < classes.length ? `; the ${shown.length} classes that differ most` : "") +
      ". w is 0.1 for a small, 0.3 for a medium and 0.5 for a large difference."),
    html("thead", {}, html("tr", {}, header.map((name) => html("th", { scope: "col" }, name)))),
    ...shown.map(componentsOf),
  ]));
}

function componentsOf(one) {
  const rows = one.names.map((name, k) => {
    const found = one.found?.[k] ?? null, expected = one.expected[k];
    const first = k > 0 ? [] : [
      html("th", { scope: "rowgroup", rowspan: one.names.length }, one.label),
      html("td", { rowspan: one.names.length }, [
        one.cohens_w === null ? "" : one.cohens_w.toFixed(2), html("div", { class: "soft" }, one.effect),
        html("div", { class: "soft" }, `${whole(one.images)} images`)]),
    ];
    return html("tr", {}, [...first, html("td", {}, name), html("td", { class: "number" }, found === null ? "–" : percent(found)),
      html("td", { class: "number" }, percent(expected)), html("td", {}, bars(found ?? 0, expected))]);
  });
  return html("tbody", {}, rows);
}

// What the two cells before say once more, for the eye.
function bars(found, expected) {
  return svg("svg", { viewBox: "0 0 100 14", width: 120, height: 17, "aria-hidden": "true" }, [
    svg("rect", { x: 0, y: 1, width: 100 * found, height: 6, class: "share" }),
    svg("rect", { x: 0, y: 8, width: 100 * expected, height: 4, class: "test" }),
  ]);
}

place("since").addEventListener("change", look);
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
look();
