"use strict";
// Everything that comes from the server goes into the page as text, never as markup.

const at = (id) => document.getElementById(id);
let models = [];

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "polyline", "rect", "line"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`);
const number = (value) => (Number.isInteger(value) ? value.toLocaleString("en") : value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));
const ms = (value) => (value === null || value === undefined ? "–" : `${number(value)} ms`);

function duration(seconds) {
  const units = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
  const [size, name] = units.find(([size]) => seconds >= size) || units[3];
  const count = Math.floor(seconds / size);
  return `${count} ${name}${count === 1 ? "" : "s"}`;
}

function sparkline(values, what) {
  const known = values.map((value) => value ?? 0);
  const top = Math.max(...known, 1e-9);
  const points = known.map((value, n) => `${(100 * n) / Math.max(known.length - 1, 1)},${29 - (28 * value) / top}`);
  const svg = make("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img",
    "aria-label": `${what}, last ten minutes, at most ${number(top)}` });
  if (known.length > 1) svg.append(make("polyline", { points: points.join(" ") }));
  return svg;
}

function bar(share, mark) {
  const svg = make("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  svg.append(make("rect", { width: 100 * (share || 0), height: 10 }));
  if (mark !== null && mark !== undefined) svg.append(make("line", { x1: 100 * mark, x2: 100 * mark, y1: 0, y2: 10 }));
  return make("div", { class: "bar" }, svg);
}

function tile(title, value, values) {
  return make("div", { class: "tile" }, make("span", { class: "quiet" }, title), make("b", {}, value),
    ...(values ? [sparkline(values, title)] : []));
}

function drawLoad(load, history, lookup) {
  at("load").replaceChildren(
    tile("requests per second", number(load.requests_per_s), history.requests_per_s),
    tile("photos per second", number(load.images_per_s)),
    tile("half take at most", ms(load.p50_ms)),
    tile("99 of 100 take at most", ms(load.p99_ms), history.p99_ms),
    tile("photos waiting", number(load.queue_depth), history.queue_depth),
    ...(lookup.collections ? [tile(`items in ${lookup.collections} collection${lookup.collections === 1 ? "" : "s"}`,
      lookup.items.toLocaleString("en"))] : []),
  );
  const errors = Object.entries(load.errors_per_s).map(([code, rate]) => `${code} ${number(rate)}`);
  const dropped = Object.entries(load.dropped_per_s).map(([reason, rate]) => `${reason} ${number(rate)}`);
  at("errors").textContent = (errors.length ? `Errors per second: ${errors.join(", ")}. ` : "No errors in the last minute. ")
    + (dropped.length ? `Photos not answered, per second: ${dropped.join(", ")}.` : "");
  const phases = ["decode", "queue", "inference", "score", "lookup", "encode"].filter((name) => name in load.phases_ms);
  at("phases").replaceChildren(make("div", { class: "phases" }, ...(phases.length ? ["mean time in"] : []),
    ...phases.map((name) => make("span", {}, `${name} `, make("b", {}, ms(load.phases_ms[name]))))));
}

function drawModel(model) {
  const card = make("article", { class: "card" });
  card.append(make("h3", {}, `${model.model} version ${model.version}`),
    make("p", { class: "quiet" }, `${model.architecture} on ${model.provider.replace("ExecutionProvider", "")}, `
      + `${model.signed === "yes" ? "signed" : "not signed"}, ${model.fingerprint.slice(0, 12)}`));
  const lately = make("p", {}, `${model.answers.toLocaleString("en")} answers`);
  for (const [scorer, told] of Object.entries(model.confidence)) {
    lately.append(`, ${scorer} ${percent(told.mean)} sure`, told.baseline ? ` (validation ${percent(told.baseline)})` : "");
  }
  card.append(lately);
  if (model.novel_baseline !== null && model.novel_share !== null) {
    const isHigh = model.novel_share > 0.05 + 3 * model.novel_baseline;
    card.append(make("p", isHigh ? { class: "warn" } : {},
      `${percent(model.novel_share)} of the photos are unlike those learnt from (validation ${percent(model.novel_baseline)})`));
  }
  const order = [...model.classes].sort((a, b) => (b.share ?? b.baseline ?? 0) - (a.share ?? a.baseline ?? 0));
  const rows = order.slice(0, 12).map((each) => make("tr", {}, make("td", { class: "name" }, each.label),
    make("td", { class: "wide" }, bar(each.share, each.baseline)), make("td", { class: "number" }, percent(each.share)),
    make("td", { class: "number quiet" }, percent(each.baseline))));
  const head = ["class", "", "named", "validation"].map((text, n) =>
    make("th", { scope: "col", class: n > 1 ? "quiet" : "quiet name" }, text));
  card.append(make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
  if (order.length > 12) card.append(make("p", { class: "quiet" }, `and ${order.length - 12} classes more`));
  return card;
}

function drawEvents(events) {
  if (!events.length) return at("events").replaceChildren(make("p", { class: "quiet" }, "Nothing has been told."));
  const rows = events.map((event) => make("tr", {},
    make("td", { class: "number quiet" }, new Date(1000 * event.time).toLocaleTimeString()),
    make("td", event.outcome === "refused" ? { class: "warn" } : {}, event.outcome),
    make("td", { class: "which" }, `${event.model} ${event.version}`), make("td", { class: "name quiet" }, event.reason)));
  return at("events").replaceChildren(make("div", { class: "card" }, make("table", {}, make("tbody", {}, ...rows))));
}

function draw(status) {
  at("state").textContent = status.state;
  at("state").className = `state ${status.state}`;
  at("about").textContent = `version ${status.penult}, up for ${duration(status.uptime_s)}`;
  drawLoad(status.load, status.history, status.lookup);
  models = status.models;
  at("models").replaceChildren(models.length ? make("div", { class: "cards" }, ...models.map(drawModel))
    : make("p", { class: "warn" }, "No model is served."));
  drawEvents(status.events);
  at("try").hidden = !status.can_try;
  at("try-off").hidden = status.can_try;
}

async function ask() {
  try {
    const answer = await fetch("status.json", { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.statusText);
    draw(await answer.json());
  } catch {
    at("state").textContent = "no answer from the server; what stands below is old";
    at("state").className = "state gone";
  }
}

function drawClasses(name, classes, isDefault) {
  const rows = classes.map((each) => make("tr", {}, make("td", { class: "name" }, each.label),
    make("td", { class: "wide" }, bar(each.probability)), make("td", { class: "number" }, percent(each.probability))));
  return make("div", {}, make("h3", {}, isDefault ? `${name}, the default` : name),
    make("table", {}, make("tbody", {}, ...rows)));
}

async function tryPhoto(file) {
  const results = [];
  for (const model of models) {
    const which = new URLSearchParams({ model: model.model, version: model.version });
    const answer = await fetch(`try?${which}`, { method: "POST", body: file, headers: { "content-type": "application/octet-stream" } });
    const told = await answer.json();
    if (!answer.ok) {
      results.push(make("p", { class: "warn" }, told.error));
      continue;
    }
    results.push(make("h3", {}, `${told.model} version ${told.version}`));
    if (told.novelty !== null) {
      results.push(make("p", told.is_novel ? { class: "warn" } : {}, `${told.is_novel ? "Unlike" : "Like"} the photos learnt from: `
        + `novelty ${told.novelty.toFixed(3)}, threshold ${told.novelty_threshold.toFixed(3)}`));
    }
    const image = make("img", { alt: "the photo" });
    image.src = URL.createObjectURL(file);
    const scorers = Object.entries(told.scorers).map(([name, classes]) => drawClasses(name, classes, name === told.default_scorer));
    const near = told.neighbours.map((each) => make("tr", {}, make("td", { class: "name" }, each.id),
      make("td", { class: "name" }, each.label), make("td", { class: "number" }, each.similarity.toFixed(3)),
      make("td", { class: "name quiet" }, each.collection)));
    if (near.length) scorers.push(make("div", {}, make("h3", {}, "nearest stored items"), make("table", {}, make("tbody", {}, ...near))));
    results.push(make("div", { class: "tried" }, image, ...scorers));
  }
  at("answer").replaceChildren(...results);
}

at("file").addEventListener("change", (event) => { if (event.target.files[0]) tryPhoto(event.target.files[0]); });
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
at("drop").addEventListener("dragover", () => at("drop").classList.add("over"));
at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => {
  at("drop").classList.remove("over");
  if (event.dataTransfer.files[0]) tryPhoto(event.dataTransfer.files[0]);
});

ask();
setInterval(ask, 5000);
