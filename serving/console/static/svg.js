// Drawings: SVG elements by name, attributes and children. Styles come from classes, for the policy allows no others.
//
//   const chart = drawing(300, 80, "Typicality of held-out images", [svg("path", { d: "M0 0h9", class: "line" })]);

const SPACE = "http://www.w3.org/2000/svg";

export function svg(name, attributes = {}, children = []) {
  const element = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...[children].flat());
  return element;
}

// A drawing of width x height units that scales with its place; `label` says what it shows to whoever cannot see it.
export function drawing(width, height, label, children) {
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label }, children);
}

// A linear scale: from the interval [a, b] to [left, right].
export function scale([a, b], [left, right]) {
  const factor = b === a ? 0 : (right - left) / (b - a);
  return (value) => left + (value - a) * factor;
}

// Points as one path of round dots, each drawn by the width of its line: thousands of elements less than circles.
export function dots(points, attributes = {}) {
  const path = points.map(([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`).join("");
  return svg("path", { d: path, fill: "none", "stroke-linecap": "round", ...attributes });
}
