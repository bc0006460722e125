// Pieces of the page. What comes from the server goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export const at = (id) => document.getElementById(id);
export const make = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
export const shape = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
export const isKnown = (value) => value !== null && value !== undefined;
export const number = (value) => value.toLocaleString("en");
export const count = (amount, name) => `${number(amount)} ${amount === 1 ? name : name.endsWith("s") ? `${name}es` : `${name}s`}`;

export function percent(share) {
  if (share > 0.995 && share < 1) return "> 99 %";
  return `${Math.round(100 * share)} %`;
}

// Shows or hides by one condition.
export function show(node, isShown) {
  if (node.hidden === isShown) node.hidden = !isShown;
}

// Draws a part again if its data changed. Text that is selected stays, and the keyboard focus finds its place again.
const drawn = new Map();
export function redraw(id, data, draw) {
  const node = at(id), text = JSON.stringify(data), marked = getSelection();
  if (drawn.get(id) === text || (!marked.isCollapsed && node.contains(marked.anchorNode))) return;
  const key = node.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  node.replaceChildren(...draw(data).filter((each) => each !== null));
  drawn.set(id, text);
  if (key) [...node.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key)?.focus();
}

export function bar(share) {
  const svg = shape("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(shape("rect", { width: 100 * Math.min(Math.max(share, 0), 1), height: 10 }));
  return make("div", { class: "bar" }, svg);
}

// A round step of at most four parts: 1, 2 or 5 times a power of ten.
function step(range) {
  const least = range / 4, ten = 10 ** Math.floor(Math.log10(least));
  return [1, 2, 5, 10].map((each) => each * ten).find((each) => each >= least);
}

// Accuracy against labels, with its interval as a band. Points: [labels, value, low, high].
export function curve(points) {
  const width = 320, height = 150, left = 42, right = 8, top = 8, bottom = 22;
  const last = points.at(-1)[0], first = Math.min(points[0][0], last - 1);
  const floor = Math.max(0, Math.floor(10 * Math.min(...points.map((each) => each[2]))) / 10);
  const x = (labels) => left + ((width - left - right) * (labels - first)) / (last - first);
  const y = (share) => top + ((height - top - bottom) * (1 - share)) / (1 - floor);
  const place = (labels, share) => `${x(labels).toFixed(1)},${y(share).toFixed(1)}`;
  const svg = shape("svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label":
    `Accuracy against labels: ${points.length > 1 ? `${percent(points[0][1])} at ${points[0][0]} labels, ` : ""}${percent(points.at(-1)[1])} at ${last}` });
  const high = step(1 - floor);
  for (let share = Math.ceil(floor / high - 1e-6) * high; share <= 1.0001; share += high) {
    svg.append(shape("line", { class: "ground", x1: left, x2: width - right, y1: y(share), y2: y(share) }),
      shape("text", { x: left - 5, y: y(share) + 4, "text-anchor": "end" }, percent(Math.min(share, 1))));
  }
  const wide = Math.max(1, step(last - first));
  for (let labels = Math.ceil(first / wide) * wide; labels <= last; labels += wide) {
    const anchor = x(labels) > width - 25 ? "end" : "middle";
    svg.append(shape("text", { x: x(labels), y: height - 6, "text-anchor": anchor }, number(labels)));
  }
  const over = points.map(([labels, , , high]) => place(labels, high));
  const under = points.map(([labels, , low]) => place(labels, low)).reverse();
  svg.append(shape("polygon", { points: [...over, ...under].join(" ") }));
  svg.append(shape("polyline", { points: points.map(([labels, value]) => place(labels, value)).join(" ") }));
  svg.append(shape("circle", { cx: x(last), cy: y(points.at(-1)[1]), r: 3.5 }));
  return svg;
}

// A picture that cannot be shown is replaced by a drawn frame with its reason.
export function picture(url, alt, attributes = {}) {
  const image = make("img", { src: url, alt, draggable: "false", ...attributes });
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "broken", role: "img", "aria-label": `${alt}: cannot be shown` }, "✕")), { once: true });
  return image;
}
