// HTML elements by name, properties and children; text is never read as HTML.
//
//   html("p", { class: "soft" }, ["12 images, ", html("strong", {}, "3 differ")])

export function html(name, attributes = {}, children = []) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...[children].flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// A share from 0 to 1 in percent; one that is too small to show, or all but whole, is said to be so.
export function percent(share) {
  if (share > 0 && share < 0.0001) return "< 0.01 %";
  if (share < 1 && share >= 0.9995) return "> 99.9 %";
  return share > 0 && share < 0.001 ? `${(100 * share).toFixed(2)} %` : `${(100 * share).toFixed(1)} %`;
}

// A whole number as people read it: 1,234.
export const whole = new Intl.NumberFormat("en").format;
