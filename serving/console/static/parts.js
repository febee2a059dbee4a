// The parts of an answer as a card shows them: classes, component, typicality, prediction set, plane, cut, time.

import { send } from "./ask.js";
import { bars, cutDrawing, planeDrawing, typicalityDrawing } from "./drawings.js";
import { html, percent, whole } from "./html.js";

const LIKELIEST = 5;  // classes whose bars are always shown
const SHOWN_LABELS = 12;  // of a prediction set
const TINY = 64;  // pixels of a side, below which pixels are shown as such

// What is always shown, but for the prediction set, which changes by itself.
export function firstParts(result, model) {
  return [likeliestPart(result.answer), componentPart(result.answer, model), typicalityPart(result, model)].filter(Boolean);
}

// What is shown on demand; `of` says of which model and image.
export function detailParts(result, model, { file, url }, of) {
  return [
    planePart(result, model.facts),
    html("div", {}, [cutPart(model, file, url), timesPart(result)]),
    componentsPart(result.answer, model),
    classesPart(result.answer, of),
  ].filter(Boolean);
}

function likeliestPart(answer) {
  const { label, probability, flags = [] } = answer;
  const mark = flags.includes("atypical") ? html("span", { class: "badge" }, "⚠ atypical") : undefined;
  return html("div", { class: "part" }, [
    html("p", { class: "likeliest" }, [html("strong", {}, label), ` ${percent(probability)} `, mark]),
    bars("Likeliest classes", ranked(answer).slice(0, LIKELIEST)),
  ]);
}

function ranked({ probabilities, top_k: top }) {
  if (!probabilities) return top.map(({ label, probability }) => [label, probability]);
  return Object.entries(probabilities).sort((a, b) => b[1] - a[1]);
}

function classesPart(answer, of) {
  const all = ranked(answer);
  if (all.length <= LIKELIEST) return undefined;
  const label = `All classes: ${of}`;
  return part(`All ${all.length} classes`, html("div", { class: "scroll tall", tabindex: "0", role: "group", "aria-label": label }, bars("Posterior", all)));
}

function componentPart(answer, model) {
  if (answer.component === undefined) return undefined;
  const { label, component } = answer;
  const count = model.facts?.components;
  const words = `${percent(answer.component_probability)} of ${label}${count ? `; component ${component} of 0 to ${count - 1}` : ""}`;
  const pictures = picturesOf(model, label, component);
  return part(count === 1 ? "The class looks like" : "Component", html("figure", { class: "component" }, [
    pictures.length ? html("div", { class: "pictures" }, pictures) : undefined,
    html("figcaption", {}, count === 1 ? label : [html("strong", {}, componentName(answer)), html("br"), words]),
  ]));
}

function componentName({ component, component_name: name }) {
  return name ?? `component ${component}`;
}

// All components of the likeliest class with their shares; of interest if there is more than one.
function componentsPart(answer, model) {
  const shares = answer.components?.[answer.label];
  if (!shares || shares.length < 2) return undefined;
  const names = model.facts?.component_names?.[answer.label] ?? {};
  const figures = shares.map((share, n) =>
    html("li", {}, html("figure", {}, [
      ...picturesOf(model, answer.label, n).slice(0, 1),
      html("figcaption", {}, [html("strong", {}, names[n] ?? `component ${n}`), html("br"), percent(share)]),
    ])),
  );
  return part(`Components of ${answer.label}`, html("ul", { class: "components" }, figures));
}

function picturesOf({ facts, path }, label, component) {
  if (!facts) return [];
  const at = facts.labels.indexOf(label);
  const is = ([l, k]) => l === at && k === component;
  const of = (n, alt) => html("img", { src: `${path}/examples/${at}/${component}/${n}`, alt, onload: (event) => pixelate(event.target) });
  const nearest = facts.nearest.find(is)?.[2] ?? 0;
  return [
    ...(facts.means.some(is) ? [of(0, `Mean image of component ${component} of ${label}`)] : []),
    ...Array.from({ length: nearest }, (_, n) => of(n + 1, `Training image ${n + 1} of those nearest to it`)),
  ];
}

function typicalityPart({ answer, typicality_place: place }, { facts }) {
  if (answer.typicality === undefined) {
    return answer.log_density === undefined ? undefined : part("Log-density", html("p", {}, `${answer.log_density} nats`));
  }
  const odd = answer.flags?.includes("atypical") ? " Atypical: probably of none of the classes." : "";
  const words = typicalityWords(answer.typicality, facts?.held_out?.images) + odd;
  const histogram = facts?.held_out?.histogram;
  const picture = histogram && place !== undefined ? [typicalityDrawing(histogram, place, `Histogram of held-out images by typicality. ${words}`)] : [];
  return part("Typicality", html("figure", {}, [...picture, html("figcaption", {}, words)]));
}

function typicalityWords(typicality, images) {
  const all = images ? `the ${whole(images)} held-out images` : "held-out images";
  if (images && typicality < 1.5 / (images + 1)) return `Less typical than all of ${all}.`;
  return `At least as typical as ${percent(typicality)} of ${all}.`;
}

export function setParts({ answer, refused }) {
  if (!answer.labels_at) {
    return refused?.coverage ? [html("h4", {}, "Prediction set"), note(`None: ${refused.coverage}.`)] : [];
  }
  const { coverage, set } = answer.labels_at;
  const more = set.length - SHOWN_LABELS;
  const labels = set.slice(0, SHOWN_LABELS).map((label) => html("li", {}, label));
  return [
    html("h4", {}, `Possible at ${percent(coverage)}`),
    html("ul", { class: "labels" }, [...labels, more > 0 ? html("li", { class: "more" }, `and ${more} more`) : undefined]),
  ];
}

function planePart({ answer, plane_place: place }, facts) {
  if (!facts?.plane || !place) return undefined;
  const { label } = answer;
  const words = `Held-out images (dots; those of ${label} larger), components (ellipses; of ${label} bold), and this image (cross). `;
  const classes = ranked(answer).map(([name]) => name);
  const near = neighbour(facts, place);
  return part("On the feature plane", html("figure", {}, [
    planeDrawing(facts.plane, facts.labels, classes, place, `The image on the feature plane. ${near}`),
    html("figcaption", {}, words + near),
  ]));
}

function neighbour({ plane, labels, component_names: names }, place) {
  const away = ({ centre }) => Math.hypot(centre[0] - place[0], centre[1] - place[1]);
  const nearest = plane.ellipses.reduce((best, one) => (away(one) < away(best) ? one : best), plane.ellipses[0]);
  if (!nearest) return "";
  const name = names[labels[nearest.label]]?.[nearest.component];
  return `The nearest component in it is one of ${labels[nearest.label]}${name ? `, ${name}` : ""}.`;
}

function timesPart({ answer, round_trip_s: seconds }) {
  const stages = Object.entries(answer.timings ?? {});
  const rows = [...stages, ["round trip", 1000 * seconds]].map(([name, ms]) =>
    html("tr", {}, [html("th", { scope: "row" }, name), html("td", { class: "number" }, `${ms.toFixed(1)} ms`)]));
  return part("Time", html("table", { class: "times" }, [
    html("caption", {}, stages.length ? "The stages of its batch, and all of it as the console saw it" : "As the console saw it"),
    html("tbody", {}, rows),
  ]));
}

function cutPart({ facts, path }, file, url) {
  if (!facts) return undefined;
  const place = part("What was cut and resized", note("Looking…"));
  send(`${path}/seen`, file).then(
    (seen) => place.lastElementChild.replaceWith(cutDrawing(url, seen, facts.input), note(cutWords(seen, facts.input))),
    (error) => place.lastElementChild.replaceWith(problem(error)),
  );
  return place;
}

function cutWords({ size: [width, height], box: [left, top, right, bottom] }, spec) {
  const [kept, wide] = [`${Math.round(right - left)} × ${Math.round(bottom - top)}`, `${width} × ${height}`];
  const whole = right - left >= width - 0.5 && bottom - top >= height - 0.5;
  const made = `${spec.width} × ${spec.height} pixels${spec.channels === 1 ? " of gray" : ""}`;
  if (whole && width === spec.width && height === spec.height) return `All of its ${wide} pixels, as they are${spec.channels === 1 ? ", in gray" : ""}.`;
  return whole ? `All of ${wide} pixels, made into ${made}.` : `The centre, ${kept} of ${wide} pixels, made into ${made}.`;
}

export function problem({ code, message }) {
  return html("p", { class: "problem" }, [html("strong", {}, "No answer: "), message, " ", html("code", {}, code)]);
}

function part(title, ...children) {
  return html("div", { class: "part" }, [html("h4", {}, title), ...children]);
}

function note(text) {
  return html("p", { class: "soft" }, text);
}

export function pixelate(image) {
  image.classList.toggle("pixels", Math.max(image.naturalWidth, image.naturalHeight) <= TINY);
}
