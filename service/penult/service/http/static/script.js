"use strict";
// Polls status.json every five seconds and draws it.

const EVERY_MS = 5000;
const at = (id) => document.getElementById(id);
const drawn = new Map();
let latest = null;

// Redraws a part if its data changed. Keeps it while text in it is selected, and keeps the keyboard focus.
function redraw(id, data, draw) {
  const node = at(id), text = JSON.stringify(data), marked = getSelection();
  if (drawn.get(id) === text || (!marked.isCollapsed && node.contains(marked.anchorNode))) return;
  const key = node.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  node.replaceChildren(...draw(data).filter((each) => each !== null));
  drawn.set(id, text);
  if (key) [...node.querySelectorAll("[data-key]")].find((each) => each.dataset.key === key)?.focus();
}

// -- load -------------------------------------------------------------------------------------------------------------

function loadTiles({ load, total, history }) {
  const draw = (values, what, format) => curve(values, history.points, what, format);
  const rates = (found) => Object.entries(found).sort((a, b) => b[1] - a[1]);
  const errors = rates(load.errors_per_s), dropped = rates(load.dropped_per_s);
  const list = [...errors.map(([code, rate]) => [code, rate]), ...dropped.map(([reason, rate]) => [`photos: ${reason}`, rate])];
  const failed = errors.reduce((sum, [, rate]) => sum + rate, 0);
  const before = Object.values(total.errors).reduce((sum, each) => sum + each, 0);
  return [
    tile("Requests", number(load.requests_per_s), "per second", draw(history.requests_per_s, "requests per second", number),
      make("p", { class: "quiet" }, `${number(load.images_per_s)} photos per second; ${count(total.requests, "request")} since the start`)),
    tile("Answers within", time(load.p99_ms), isKnown(load.p99_ms) ? "for 99 of 100" : "", draw(history.p99_ms, "99th percentile", time),
      make("p", { class: "quiet" }, isKnown(load.p50_ms) ? `half of them within ${time(load.p50_ms)}` : "no requests in the last minute")),
    tile("Waiting", number(load.queue_depth), plural(load.queue_depth, "photo"), draw(history.queue_depth, "photos waiting", number),
      make("p", { class: "quiet" }, "accepted, not yet decoded or run")),
    tile("Errors", number(failed), "per second", list.length
      ? table([], list.map(([name, rate]) => make("tr", {}, rowHead("name", name), cell("number", `${number(rate)} /s`))))
      : make("p", { class: "calm" }, "None in the last minute."),
      make("p", { class: "quiet" }, `${number(before)} since the start`)),
  ];
}

const STEPS = { decode: "decode", queue: "wait", inference: "model", score: "score", lookup: "look up", encode: "encode" };

function steps(phases) {
  const names = Object.keys(STEPS).filter((name) => name in phases);
  if (!names.length) return [make("p", { class: "quiet" }, "No requests in the last minute.")];
  const most = Math.max(...names.map((name) => phases[name]));
  return [table([], names.map((name) => make("tr", {}, rowHead("name", STEPS[name]), cell("wide", bar(phases[name] / most)),
    cell("number", time(phases[name]))))),
  make("p", { class: "quiet note" }, "Mean per photo; scoring, lookup and encoding are per request.")];
}

// -- models -----------------------------------------------------------------------------------------------------------

// A share beside its share of validation photos, with an arrow if the server finds that chance does not explain the difference.
const SENSES = { more: ["▲", "more than usual"], less: ["▼", "less than usual"] };

function compared(name, { share, baseline, trend }, senses = SENSES, whole = 1) {
  const sign = senses[trend];
  const arrow = sign ? make("span", { class: "arrow", title: sign[1] }, make("span", { "aria-hidden": "true" }, sign[0]), make("span", { class: "unseen" }, sign[1])) : null;
  return make("tr", {}, rowHead("name", name), cell("wide", bar(share / whole, isKnown(baseline) ? baseline / whole : null)), cell("number", arrow, percent(share)),
    isKnown(baseline) ? cell("number quiet", percent(baseline)) : null);
}

function modelFacts(model) {
  const facts = [`${model.architecture} on ${model.provider.replace("ExecutionProvider", "")}`];
  if (model.precision && model.precision !== "float") facts.push(model.precision);
  if (model.class_count) facts.push(count(model.class_count, "class"), `descriptors of ${number(model.descriptor_length)}`);
  if (model.scorers?.length > 1) facts.push(`scorers ${model.scorers.map((each) => (each === model.default_scorer ? `${each} (default)` : each)).join(" and ")}`);
  else if (model.scorers) facts.push(`scorer ${model.default_scorer}`);
  facts.push(model.signed === "yes" ? "signed" : "not signed");
  return facts.join(" · ");
}

const SURENESS = { more: ["▲", "surer than usual"], less: ["▼", "less sure than usual"] };

function signs(model) {
  const rows = Object.entries(model.confidence).map(([scorer, data]) => compared(`confidence, ${scorer}`, { ...data, share: data.mean }, SURENESS));
  if (!isKnown(model.novel_share)) return rows;
  return [compared("unlike the training photos", { share: model.novel_share, baseline: model.novel_baseline, trend: model.novel_trend }), ...rows];
}

// The share of right answers: estimated from probabilities, and measured by feedback.
const REPORTED = { right: "right", wrong: "wrong", unknown: "cannot be judged" };

function accuracyRow(name, found) {
  return make("tr", {}, rowHead("name", name), cell("wide", bar(found.accuracy)), cell("number", percent(found.accuracy)),
    cell("number quiet", `${percent(found.low)} – ${percent(found.high)}`));
}

function accuracy({ estimate, live }) {
  if (!estimate && !live) return null;
  const rows = [], notes = [];
  if (estimate) {
    rows.push(accuracyRow(estimate.unreliable.length ? "estimated, unreliable" : "estimated", estimate));
    notes.push(...estimate.unreliable.map((reason) => make("p", { class: "warn note" }, `▲ The estimate is unreliable: ${reason}.`)));
    notes.push(make("p", { class: "quiet note" }, `Estimated from the probabilities of the last ${count(estimate.answers, "answer")}.`));
  }
  if (isKnown(live?.accuracy)) rows.push(accuracyRow("by feedback", live));
  if (live) {
    const counts = Object.entries(REPORTED).filter(([outcome]) => live.counts[outcome]).map(([outcome, text]) => `${number(live.counts[outcome])} ${text}`);
    const mistakes = live.mistakes.map(([answered, label, amount]) => `${answered} for ${label} (${number(amount)})`);
    notes.push(make("p", { class: "quiet note" }, `Feedback: ${counts.join(", ")}. `
      + (mistakes.length ? `Most frequent mistakes: ${mistakes.join(", ")}.` : "")));
  }
  return make("div", { class: "accuracy" }, table([["Right answers", "name"], ["", "wide"], ["share", "number"], ["95 % interval", "number"]], rows), ...notes);
}

function modelCard(model, hasReports) {
  const card = make("article", { class: "card" },
    make("h3", {}, model.model, " ", make("span", { class: "quiet" }, `version ${model.version}`)),
    make("p", { class: "quiet" }, modelFacts(model), " · ", make("code", { title: `fingerprint ${model.fingerprint}` }, model.fingerprint.slice(0, 12)),
      ...(hasReports && model.has_report ? [" · ", make("a", { href: `report/${model.model}/${model.version}` }, "report of its training")] : [])));
  const known = accuracy(model);
  if (!model.answers) {
    card.append(make("p", { class: "calm" }, "No answers in the last ten minutes."), known ?? "");
    return card;
  }
  const found = model.classes, left = model.classes_left_out;
  const hasUsual = found.some((each) => isKnown(each.baseline));
  const whole = Math.max(...found.map((each) => Math.max(each.share ?? 0, each.baseline ?? 0)));
  const row = (each) => compared(each.label, each, undefined, whole);
  const seen = found.filter((each) => each.share || each.baseline).length;
  const few = found.length <= 10 && !left ? found.length : Math.min(Math.max(seen, 1), 8);
  card.append(table([[count(model.answers, "answer"), "name"], ["", "wide"], ["lately", "number"],
    ...(hasUsual ? [["validation", "number"]] : [])], found.slice(0, few).map(row), signs(model)));
  const photos = isKnown(model.baseline_photos) ? `${number(model.baseline_photos)} validation photos` : "validation photos";
  if (hasUsual) card.append(make("p", { class: "quiet note" }, `Bars: the last ten minutes; the bars of classes are relative to the largest. Upright marks: ${photos}. `
    + "An arrow needs 20 answers, and a difference that chance explains in less than 1 of 1,000 cases."));
  if (known) card.append(known);
  const rest = found.slice(few), hidden = rest.length + (left?.count ?? 0);
  if (hidden) {
    const cut = left ? make("p", { class: "quiet" }, `and ${count(left.count, "class")} more, with ${percent(left.share)} of the answers`) : null;
    card.append(more(`${model.model}/${model.version}`, `${count(hidden, "class")} more`, table([], rest.map(row)), cut));
  }
  return card;
}

// Versions that are only compared, each beside the version that clients get.
const VERDICTS = { both_right: "both right", only_primary_right: "only version P right", only_shadow_right: "only version S right",
  both_wrong: "both wrong", unclear: "unclear" };

function ranged({ share, low, high }) {
  return make("span", {}, percent(share), make("span", { class: "quiet range" }, `${percent(low)} – ${percent(high)}`));
}

function shadowCard(shadow) {
  const { version, primary, images } = shadow;
  const card = make("article", { class: "card shadow" },
    make("h3", {}, shadow.model, " ", make("span", { class: "quiet" }, `version ${version}, a shadow${isKnown(primary) ? ` of version ${primary}` : ""}: clients do not get its answers`)));
  const left = [["shed", "left out, because requests came first"], ["failed", "failed"]].filter(([name]) => images[name]);
  card.append(make("p", { class: "quiet" }, [count(images.compared, "photo") + " compared", ...left.map(([name, text]) => `${number(images[name])} ${text}`)].join("; ") + "."));
  if (!shadow.agreement) return card;
  const rows = [
    ["right, by feedback", shadow.accuracy?.map(ranged)],
    ["mean confidence", shadow.confidence?.map(percent)],
    ["mean time of a photo", shadow.ms?.map(time)],
  ].filter(([, values]) => values).map(([name, values]) => make("tr", {}, rowHead("name", name), ...values.map((value) => cell("number", value))));
  card.append(table([["", "name"], [`version ${primary}`, "number"], [`version ${version}`, "number"]], rows));
  const { share, low, high, answers } = shadow.agreement;
  card.append(make("p", { class: "note" }, `Both name the same class for ${percent(share)} of ${count(answers, "photo")} (95 % interval ${percent(low)} – ${percent(high)}).`));
  const found = Object.entries(VERDICTS).filter(([name]) => shadow.found[name]).map(([name, text]) =>
    `${number(shadow.found[name])} ${text.replace(" P ", ` ${primary} `).replace(" S ", ` ${version} `)}`);
  if (shadow.is_worse) card.append(make("p", { class: "warn note" }, `▲ Version ${version} is worse than version ${primary}, by more than chance explains.`));
  card.append(make("p", { class: "quiet note" }, !found.length ? "No feedback about these photos yet."
    : `Feedback: ${found.join(", ")}.` + (shadow.is_worse ? "" : " No sign that the shadow is worse.")));
  return card;
}

function notServed(others) {
  if (!others.length) return null;
  return make("article", { class: "card" }, make("h3", {}, "Not served"), table([], others.map((each) =>
    make("tr", {}, rowHead("name", `${each.name} version ${each.version}`), cell("name", each.state.toLowerCase()), cell("name quiet", each.reason)))));
}

const modelCards = ({ models, shadows, others, hasReports }) => [
  ...(models.length ? models.map((model) => modelCard(model, hasReports)) : [make("p", { class: "card" }, "No model is served.")]),
  ...shadows.map(shadowCard), notServed(others)];

// -- collections and history ------------------------------------------------------------------------------------------

function collectionTable({ collections, models }) {
  return [table([["name", "name"], ["items", "number"], ["fits", "name"], ["memory", "number"]], collections.map((each) => {
    const fitting = models.filter((model) => model.fingerprint === each.fingerprint).map((model) => `${model.model} ${model.version}`);
    return make("tr", {}, rowHead("name", each.name), cell("number", number(each.items)),
      cell(fitting.length ? "name" : "name quiet", fitting.join(", ") || "no model served"), cell("number", bytes(each.memory_bytes)));
  }))];
}

const SIGNS = { loaded: "✓", refused: "✕", retired: "–" };

function eventTable(events) {
  return [make("ol", { class: "events" }, ...events.map((event) => make("li", { class: event.outcome },
    make("time", { class: "quiet", datetime: new Date(1000 * event.time).toISOString() }, when(event.time)),
    make("span", {}, make("span", { class: "sign", "aria-hidden": "true" }, SIGNS[event.outcome] ?? "·"), ` ${event.outcome} `,
      make("b", {}, `${event.model} ${event.version}`)),
    event.reason ? make("span", { class: "reason quiet" }, event.reason) : null)))];
}

// -- the whole --------------------------------------------------------------------------------------------------------

function draw(status) {
  latest = status;
  at("state").className = `state ${status.state}`;
  if (at("state").textContent !== status.state) at("state").textContent = status.state;  // a screen reader need not repeat it
  document.title = `${status.state} · penult`;
  const workers = status.fronts ? `, ${count(status.fronts.ready, "worker")} ready` + (status.fronts.deaths ? `, ${count(status.fronts.deaths, "death")}` : "") : "";
  at("about").textContent = `version ${status.penult}, up for ${duration(status.uptime_s)}${workers}`;
  redraw("load", { load: status.load, total: status.total, history: status.history }, loadTiles);
  redraw("models", { models: status.models, shadows: status.shadows, others: status.not_served.filter((each) => each.reason !== "SHADOW"), hasReports: status.has_reports }, modelCards);
  redraw("phases", status.load.phases_ms, steps);
  at("stored").hidden = !status.collections.length;
  redraw("collections", { collections: status.collections, models: status.models }, collectionTable);
  at("past").hidden = !status.events?.length;
  redraw("events", status.events ?? [], eventTable);
  at("try").hidden = !status.try.is_on;
  at("try-off").hidden = status.try.is_on;
  at("try-off").textContent = status.try.why;
  offer(status.models);
}

function sayLost() {
  at("state").className = "state lost";
  at("state").textContent = "no answer";
  document.title = "no answer · penult";
  at("gone").textContent = "The server does not answer. " + (latest ? `The data below is from ${when(latest.time)}. ` : "") + "This page retries every five seconds.";
  at("gone").hidden = false;
  document.body.classList.add("old");
}

async function ask() {
  let status;
  try {
    const answer = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(EVERY_MS) });
    status = await answer.json();
  } catch {
    return sayLost();
  }
  at("gone").hidden = true;
  document.body.classList.remove("old");
  return draw(status);
}

async function follow() {
  setTimeout(follow, EVERY_MS);
  if (!document.hidden) await ask();
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
follow();
