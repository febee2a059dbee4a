// What the page draws of an answer: bars, the place among held-out images, the feature plane, the box that was kept.

import { html, percent } from "./html.js";
import { dots, drawing, scale, svg } from "./svg.js";

const [SIZE, MARGIN] = [280, 12];  // of the plane
const FEW = 20;  // classes that all have room on the plane
const SHOWN = 4;  // of more

// Rows of name, bar and share as a table; `rows` are [name, share].
export function bars(caption, rows) {
  const body = rows.map(([name, share]) =>
    html("tr", {}, [
      html("th", { scope: "row" }, name),
      html("td", { class: "bar" }, bar(share)),
      html("td", { class: "number" }, percent(share)),
    ]),
  );
  return html("table", { class: "bars" }, [html("caption", {}, caption), html("tbody", {}, body)]);
}

function bar(share) {
  const attributes = { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true", focusable: "false" };
  return svg("svg", attributes, [
    svg("rect", { class: "ground", width: 100, height: 10 }),
    svg("rect", { class: "share", width: 100 * share, height: 10 }),
  ]);
}

// The held-out images by their typicality, and where an image of a place from 0 to 1 is among them.
export function typicalityDrawing(histogram, place, label) {
  const [width, height, foot] = [240, 64, 14];
  const most = Math.max(...histogram);
  const step = width / histogram.length;
  const columns = histogram.map((count, n) => {
    const tall = (height - 6) * (count / most);
    return svg("rect", { class: "column", x: n * step + 0.5, y: height - tall, width: step - 1, height: tall });
  });
  const x = Math.min(width - 2, Math.max(2, place * width));
  return drawing(width, height + foot, label, [
    ...columns,
    svg("line", { class: "axis", x1: 0, x2: width, y1: height, y2: height }),
    svg("path", { class: "here", d: `M${x} 4V${height}M${x - 4} 0h8l-4 7z` }),
    svg("text", { x: 0, y: height + 11 }, "atypical"),
    svg("text", { x: width, y: height + 11, "text-anchor": "end" }, "typical"),
  ]);
}

// Held-out images and component ellipses on the feature plane, and an image at `place` between them. Where there are
// too many classes to show all ellipses, those of `classes` are, the likeliest first.
export function planeDrawing(plane, labels, classes, place, label) {
  const across = scale(extent(plane, place, 0), [MARGIN, SIZE - MARGIN]);
  const down = scale(extent(plane, place, 1), [SIZE - MARGIN, MARGIN]);
  const at = ([x, y]) => [across(x), down(y)];
  const shown = labels.length <= FEW ? labels : classes.slice(0, SHOWN);
  const chosen = labels.indexOf(classes[0]);
  const ellipses = plane.ellipses.filter((one) => shown.includes(labels[one.label]));
  const of = (isOwn) => plane.points.filter((_, n) => (plane.labels[n] === chosen) === isOwn).map(at);
  const [x, y] = at(place).map((value) => Math.min(SIZE - 7, Math.max(7, value)));
  return drawing(SIZE, SIZE, label, [
    svg("rect", { class: "frame", x: 0.5, y: 0.5, width: SIZE - 1, height: SIZE - 1 }),
    dots(of(false), { class: "others" }),
    dots(of(true), { class: "own" }),
    ...ellipses.map((one) => ellipse(one, at, one.label === chosen)),
    ...names(ellipses, at, labels, chosen),
    svg("path", { class: "here", d: `M${x - 6} ${y - 6}l12 12m0 -12l-12 12` }),
  ]);
}

// From where to where the plane is shown: all of it, and the image unless it is far away, which is drawn at the edge.
function extent(plane, place, axis) {
  const reach = plane.ellipses.flatMap(({ centre, half_axes: [a, b], angle }) => {
    const half = axis ? Math.hypot(a * Math.sin(angle), b * Math.cos(angle)) : Math.hypot(a * Math.cos(angle), b * Math.sin(angle));
    return [centre[axis] - half, centre[axis] + half];
  });
  const values = [...plane.points.map((point) => point[axis]), ...reach];
  const [low, high] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
  const far = (high - low) / 2;
  return [Math.max(low - far, Math.min(low, place[axis])), Math.min(high + far, Math.max(high, place[axis]))];
}

function ellipse({ centre: [x, y], half_axes: [a, b], angle }, at, isChosen) {
  const points = Array.from({ length: 37 }, (_, n) => {
    const [u, v] = [a * Math.cos((n * Math.PI) / 18), b * Math.sin((n * Math.PI) / 18)];
    return at([x + u * Math.cos(angle) - v * Math.sin(angle), y + u * Math.sin(angle) + v * Math.cos(angle)]);
  });
  const path = points.map(([left, top]) => `${left.toFixed(1)} ${top.toFixed(1)}`).join("L");
  return svg("path", { class: isChosen ? "ellipse chosen" : "ellipse", d: `M${path}Z` });
}

// A name for each class at its first ellipse, that of the chosen one first; moved, or left out, where another is.
function names(ellipses, at, labels, chosen) {
  const first = [...new Map(ellipses.toReversed().map((one) => [one.label, one])).values()];
  const taken = [];
  return first.sort((a, b) => (b.label === chosen) - (a.label === chosen)).flatMap((one) => {
    const [x, y] = at(one.centre);
    const half = 3.4 * labels[one.label].length + 2;
    const isFree = (top) => taken.every(([left, height, wide]) => Math.abs(left - x) > wide + half || Math.abs(height - top) > 12);
    const top = [0, 12, -12, 24, -24].map((offset) => y + 4 + offset).find(isFree);
    if (top === undefined) return [];
    taken.push([x, top, half]);
    return [svg("text", { class: one.label === chosen ? "chosen" : "class", x, y: top, "text-anchor": "middle" }, labels[one.label])];
  });
}

// The original with the box that was kept, beside what the graph takes.
export function cutDrawing(url, { size: [width, height], box: [left, top, right, bottom], input }, spec) {
  const outside = `M0 0H${width}V${height}H0ZM${left} ${top}V${bottom}H${right}V${top}Z`;
  const overlay = { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" };
  return html("div", { class: "cut" }, [
    html("div", { class: "original" }, [
      html("img", { src: url, alt: "The image as it was sent; what lies outside the box is dimmed" }),
      svg("svg", overlay, [
        svg("path", { class: "outside", d: outside, "fill-rule": "evenodd" }),
        svg("path", { class: "box", d: `M${left} ${top}V${bottom}H${right}V${top}Z`, "vector-effect": "non-scaling-stroke" }),
      ]),
    ]),
    html("img", { class: spec.width <= 64 ? "input pixels" : "input", src: input, alt: "What the model sees" }),
  ]);
}
