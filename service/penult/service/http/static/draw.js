"use strict";
// Pieces of the page. Everything that comes from the server goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const make = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);
const shape = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const isKnown = (value) => value !== null && value !== undefined;

// -- numbers ----------------------------------------------------------------------------------------------------------

function number(value) {
  if (Number.isInteger(value) || Math.abs(value) >= 100) return Math.round(value).toLocaleString("en");
  return value.toFixed(Math.abs(value) >= 10 ? 1 : 2);
}

function percent(value) {
  if (!isKnown(value)) return "–";
  if (value > 0 && value < 0.0005) return "< 0.1 %";
  const digits = value > 0 && value < 0.0995 ? 1 : 0;
  return `${(100 * value).toFixed(digits)} %`;
}

function time(milliseconds) {
  if (!isKnown(milliseconds)) return "–";
  if (milliseconds > 0 && milliseconds < 0.005) return "< 0.01 ms";
  return milliseconds >= 1000 ? `${number(milliseconds / 1000)} s` : `${number(milliseconds)} ms`;
}

function duration(seconds) {
  const [size, name] = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]].find(([least]) => seconds >= least) || [1, "second"];
  return count(Math.floor(seconds / size), name);
}

function bytes(value) {
  const [size, unit] = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [1024, "KiB"]].find(([least]) => value >= least) || [1, "bytes"];
  return `${number(Math.round((10 * value) / size) / 10)} ${unit}`;
}

const plural = (amount, name) => (amount === 1 ? name : name.endsWith("s") ? `${name}es` : `${name}s`);
const count = (amount, name) => `${number(amount)} ${plural(amount, name)}`;

function when(seconds) {
  const date = new Date(1000 * seconds);
  const clock = date.toLocaleTimeString("en-GB");
  if (date.toDateString() === new Date().toDateString()) return clock;
  return `${date.toLocaleDateString("en-GB", { day: "numeric", month: "short" })}, ${clock}`;
}

// -- drawings ---------------------------------------------------------------------------------------------------------

// A curve with its newest value on the right; unknown values leave gaps.
function curve(values, places, what, format) {
  const known = values.filter(isKnown);
  const top = Math.max(...known, 1e-9);
  const x = (n) => (100 * (places - values.length + n)) / (places - 1);
  const runs = [];
  values.forEach((value, n) => {
    if (!isKnown(value)) return;
    if (n === 0 || !isKnown(values[n - 1])) runs.push([]);
    runs.at(-1).push([x(n), 30 - (27 * value) / top]);
  });
  const svg = shape("svg", { viewBox: "0 0 100 31", preserveAspectRatio: "none", role: "img", "aria-label": known.length
    ? `${what} over the last ten minutes: ${format(known.at(-1))} at last, ${format(Math.max(...known))} at most` : `${what}: nothing yet` });
  svg.append(shape("line", { class: "ground", x1: 0, x2: 100, y1: 30.5, y2: 30.5 }));
  for (const run of runs) {
    // A lone value is a dash, not nothing.
    if (run.length === 1) run.unshift([run[0][0] - 1, run[0][1]]);
    const line = run.map((point) => point.map((each) => each.toFixed(2)).join(",")).join(" ");
    svg.append(shape("polygon", { points: `${run[0][0].toFixed(2)},30.5 ${line} ${run.at(-1)[0].toFixed(2)},30.5` }));
    svg.append(shape("polyline", { points: line }));
  }
  const most = known.length ? `at most ${format(Math.max(...known))}` : "";
  return make("div", { class: "curve" }, svg, make("p", { class: "ends quiet", "aria-hidden": "true" },
    make("span", {}, "10 min ago"), make("span", {}, most), make("span", {}, "now")));
}

// A share as a bar, beside what is usual as an upright mark.
function bar(share, usual, kind = "") {
  const svg = shape("svg", { class: kind, viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(shape("rect", { width: 100 * Math.min(share || 0, 1), height: 10 }));
  // Twice, so that the mark is seen on the bar and beside it.
  const mark = (kind) => shape("line", { class: kind, x1: 100 * usual, x2: 100 * usual, y1: 0, y2: 10 });
  if (isKnown(usual)) svg.append(mark("halo"), mark("mark"));
  return make("div", { class: "bar" }, svg);
}

function tile(title, value, unit, ...below) {
  return make("article", { class: "tile" }, make("h3", {}, title), make("p", { class: "figure" }, make("b", {}, value), ` ${unit}`), ...below);
}

function table(heads, rows, ...groups) {
  const head = make("tr", {}, ...heads.map(([text, kind]) => make("th", { scope: "col", class: kind }, text)));
  const bodies = [rows, ...groups].filter((group) => group.length).map((group) => make("tbody", {}, ...group));
  return make("table", {}, ...(heads.length ? [make("thead", {}, head)] : []), ...bodies);
}

const cell = (kind, ...children) => make("td", { class: kind }, ...children);
const rowHead = (kind, ...children) => make("th", { scope: "row", class: kind }, ...children);

// More that can be unfolded; it stays so when it is drawn anew.
const unfolded = new Set();
function more(key, title, ...children) {
  const summary = make("summary", { "data-key": key }, title);
  const node = make("details", {}, summary, ...children);
  node.open = unfolded.has(key);
  node.addEventListener("toggle", () => (node.open ? unfolded.add(key) : unfolded.delete(key)));
  return node;
}
