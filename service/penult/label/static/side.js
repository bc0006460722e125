// What is beside the photo: accuracy, suspects, labels per class, and what comes out.

import { at, bar, curve, make, number, percent, picture, redraw, show } from "./draw.js";

export function drawSide(state, { answerSuspect, publish }) {
  const left = state.photos - state.labelled;
  redraw("count", [state.labelled, state.photos, state.skipped], () => [make("b", {}, number(state.labelled)), ` of ${number(state.photos)} labelled`,
    state.skipped ? make("span", { class: "more" }, ` · ${number(state.skipped)} skipped`) : null]);
  const folder = state.folder.split("/").filter(Boolean).at(-1) ?? state.folder, file = state.labels_file.split("/").at(-1);
  redraw("about", [folder, file, state.network], () => [`${folder} → ${file} · ${state.network}`]);
  at("about").title = `${state.folder} → ${state.labels_file}`;
  document.title = `${number(state.labelled)} labelled · penult label`;
  redraw("accuracy", [state.accuracy, state.curve, state.gain, state.may_stop, state.advice], () => accuracyOf(state));
  redraw("classes", state.classes, () => [classTable(state.classes)]);
  const suspects = state.suspects ?? [];
  show(at("suspects-card"), suspects.length > 0);
  redraw("suspects", suspects, () => suspectList(suspects, answerSuspect));
  redraw("publish", [state.publish, state.labelled], () => publishing(state.publish, state.labelled, publish));
  redraw("results", [state.train_command, state.labels_file, left], () => results(state));
}

function accuracyOf({ accuracy, curve: points, gain, may_stop: mayStop, advice }) {
  if (!accuracy) return [make("p", { class: "quiet" }, advice || "Not known yet: it takes some labels of at least two classes.")];
  const figure = make("p", { class: "figure" }, make("b", {}, percent(accuracy.value)), ` between ${percent(accuracy.low)} and ${percent(accuracy.high)}`);
  const parts = [figure, points?.length > 1 ? curve(points) : null];
  if (points?.length > 1) parts.push(make("p", { class: "quiet note" }, "Share of right guesses against labels; the band is the 95 % interval."));
  if (gain) parts.push(make("p", {}, `The next ${gain.labels} labels may bring `, make("b", {}, `${signed(gain.points)} points`),
    make("span", { class: "quiet" }, ` (${signed(gain.low)} to ${signed(gain.high)})`), "."));
  if (advice && (mayStop || !gain)) parts.push(make("p", { class: mayStop ? "advice stop" : "advice" }, mayStop ? make("b", {}, "✓ ") : null, advice));
  return parts;
}

const signed = (points) => `${points < 0 ? "−" : "+"}${Math.abs(points).toFixed(1)}`;

function classTable(classes) {
  if (!classes.length) return make("p", { class: "quiet" }, "None yet.");
  const most = Math.max(1, ...classes.map((each) => each.count));
  return make("table", {}, make("tbody", {}, ...classes.map(({ name, key, count: labels }) => make("tr", {},
    make("th", { scope: "row" }, key ? make("kbd", {}, key) : null, " ", name), make("td", { class: "wide" }, bar(labels / most)), make("td", { class: "number" }, number(labels))))));
}

function suspectList(suspects, answer) {
  const line = (each) => {
    const keep = make("button", { "data-key": `keep ${each.id}`, "aria-label": `keep ${each.label}: ${each.id}` }, `keep ${each.label}`);
    const change = make("button", { "data-key": `change ${each.id}`, "aria-label": `change to ${each.suggested}: ${each.id}` }, `change to ${each.suggested}`);
    keep.addEventListener("click", () => answer(each, each.label));
    change.addEventListener("click", () => answer(each, each.suggested));
    return make("li", {}, picture(each.thumbnail_url, `Photo ${each.id}`), make("div", {},
      make("p", {}, "labelled ", make("b", {}, each.label), make("span", { class: "quiet" }, `, looks like ${each.suggested} (${percent(each.probability)})`)),
      make("p", { class: "pair" }, keep, change)));
  };
  return [make("ul", { class: "suspects" }, ...suspects.map(line))];
}

function publishing(job, labelled, publish) {
  if (!job?.model) return [make("p", { class: "quiet" }, "To publish versions of a model from here, start with ", make("code", {}, "--publish models/NAME"), ".")];
  const button = make("button", { class: "main", "data-key": "publish" }, job.is_running ? "publishing…" : "publish the next version");
  button.disabled = job.is_running || !labelled;
  button.addEventListener("click", publish);
  const bars = job.is_running ? make("progress", { "aria-label": "Publishing" }) : null;
  const done = job.version && !job.is_running ? "A server that watches the folder takes it up." : "";
  return [make("p", { class: "quiet" }, `Fits an SVM on the labels, for ${job.model}.`), button, bars,
    make("p", { role: "status" }, job.message ? `${job.message}${done ? ". " : ""}` : "", done)];
}

function results({ train_command: command, labels_file: file }) {
  const parts = [make("p", {}, "Every answer is in ", make("code", {}, file), ".")];
  if (command) {
    const copy = make("button", { "data-key": "copy" }, "copy"), line = make("code", {}, command);
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command);
        copy.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(line);
        copy.textContent = "selected";
      }
    });
    parts.push(make("h3", {}, "Fine-tune now"), make("div", { class: "command" }, line, copy));
  }
  parts.push(make("p", {}, make("a", { href: "api/label-studio", download: "label-studio.json", "data-key": "studio" }, "Download for Label Studio")));
  return parts;
}
