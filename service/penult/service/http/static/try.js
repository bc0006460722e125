"use strict";
// Sends a photo that was chosen, dropped or pasted to /try, and shows the answers of the models.

let turn = 0;
let shown = "";

// Offers a choice if there are several models.
function offer(models) {
  redraw("model", models.map((model) => [model.model, model.version]), (found) => {
    const options = found.map(([name, version]) => make("option", { value: JSON.stringify([name, version]) }, `${name} ${version}`));
    return options.length > 1 ? [make("option", { value: "" }, "all models"), ...options] : options;
  });
  at("which").hidden = models.length < 2;
}

function probabilities(name, classes, isDefault) {
  const title = name === "novelty" ? "Held-out photos that are at least as far" : name;
  const rows = classes.map((each) => make("tr", {}, rowHead("name", each.label), cell("wide", bar(each.probability)), cell("number", percent(each.probability))));
  return make("div", {}, make("h4", {}, title, isDefault && title === name ? make("span", { class: "quiet" }, ", the default") : null), table([], rows));
}

function nearest(items) {
  if (!items.length) return null;
  return make("div", { class: "near" }, make("h4", {}, "Nearest stored items"), make("ol", {}, ...items.map((each) => {
    const picture = each.thumbnail ? make("img", { alt: "", src: `data:image/jpeg;base64,${each.thumbnail}` }) : null;
    return make("li", {}, picture, make("span", {}, make("b", {}, each.label || "no label"), ` ${percent(each.similarity)} alike`, make("br"),
      make("span", { class: "quiet" }, `${each.id} in ${each.collection}`)));
  })));
}

function verdict(data) {
  const [best] = data.scorers[data.default_scorer];
  // A model of one class gives no probability of the class.
  const isOne = data.default_scorer === "novelty", said = isOne && data.is_novel ? `unlike ${best.label}` : best.label;
  return make("div", {}, make("p", { class: "figure" }, make("b", {}, said), isOne ? null : ` ${percent(best.probability)}`),
    withheld(data),
    make("p", { class: "quiet" }, `${data.model} version ${data.version}, in ${time(data.ms)}`),
    isKnown(data.novelty) ? novelty(data.novelty / data.novelty_threshold, data.is_novel, data) : null);
}

// Whether the default scorer withholds its answer, and for which share of wrong answers.
function withheld({ abstained, max_error: limits, default_scorer: scorer }) {
  if (!(scorer in limits)) return null;
  const limit = `At most ${percent(limits[scorer])} of the answers that it gives are wrong.`;
  if (!abstained[scorer]) return make("p", { class: "quiet" }, `The model is sure enough to answer. ${limit}`);
  const why = abstained[scorer] === "novel" ? "the photo is unlike its training photos" : "it is unsure";
  return make("p", { class: "warn" }, `▲ The model withholds this answer, because ${why}. ${limit}`);
}

// How far the photo is from the training photos, on a scale on which 1 is the model's limit. Below 1 nothing is promised.
function novelty(ratio, isNovel, { default_scorer: scorer, novelty_threshold: threshold, novelty_limit: limit }) {
  const top = 2, usual = limit.usual / threshold, times = `${ratio.toFixed(2)} × the limit`;
  const sentence = isNovel ? `▲ ${times}: further from the training photos than the model's own photos usually are.${scorer === "novelty" ? "" : " The class may mean nothing."}`
    : `${times}: no further from the training photos than the model's own photos usually are. A photo of something else can be that near, too.`;
  const few = limit.photos ? `${percent(1 - limit.share_above)} of ${number(limit.photos)} held-out photos are below 1, half of them below ${usual.toFixed(2)}. `
    + `Of further photos of their kind, ${percent(limit.interval[0])} to ${percent(limit.interval[1])} are above 1 (95 % interval).`
    : `${percent(1 - limit.share_above)} of the validation photos are below 1.`;
  return make("div", { class: "far" }, make("h4", {}, "Distance from the training photos"), bar(ratio / top, 1 / top, isNovel ? "beyond" : ""),
    make("p", { class: "ends quiet", "aria-hidden": "true" }, make("span", {}, "0"), make("span", {}, "1, the limit"), make("span", {}, `${top} or more`)),
    make("p", isNovel ? { class: "warn" } : {}, sentence), make("p", { class: "quiet" }, few));
}

function answered(data, frame) {
  const scorers = Object.entries(data.scorers).sort(([name]) => (name === data.default_scorer ? -1 : 1));
  return make("article", { class: "tried" }, looked(data, frame), verdict(data),
    make("div", { class: "scorers" }, ...scorers.map(([name, classes]) => probabilities(name, classes, name === data.default_scorer))), nearest(data.neighbours), data.can_judge ? judge(data) : null);
}

// Asks whether the default scorer's answer was right, and sends the verdict.
function judge(data) {
  const [best] = data.scorers[data.default_scorer];
  const said = make("p", { class: "quiet", role: "status" });
  const send = async (finding) => {
    try {
      const answer = await fetch("feedback", { method: "POST", headers: { "content-type": "application/json" },
        body: JSON.stringify({ truths: [{ request_id: data.request_id, index: 0, ...finding }] }) });
      const result = await answer.json(), failure = result.error ?? result.results[0].error?.message;
      said.textContent = failure ? `Not counted: ${failure}` : `Counted as ${result.results[0].outcome}.${result.results[0].is_photo_kept ? " The photo is stored with its label." : ""}`;
    } catch {
      said.textContent = "The server does not answer.";
    }
  };
  const button = (text, finding) => {
    const node = make("button", { type: "button" }, text);
    node.addEventListener("click", () => send(finding()));
    return node;
  };
  const others = data.classes.filter((name) => name !== best.label);
  const select = make("select", { "aria-label": "the right class" }, make("option", { value: "" }, "wrong, it is …"),
    ...others.map((name) => make("option", { value: `=${name}` }, name)), make("option", { value: "no_class" }, "none of these"), make("option", { value: "wrong" }, "something else"));
  select.addEventListener("change", () => {
    if (select.value) send(select.value.startsWith("=") ? { label: select.value.slice(1) } : { verdict: select.value });
  });
  return make("div", { class: "judge" }, make("h4", {}, "Is that right?"),
    make("p", {}, button("right", () => ({ verdict: "right" })), " ", select, " ", button("cannot judge", () => ({ verdict: "unknown" }))), said);
}

const problem = (text) => make("p", { class: "warn" }, text);

async function askModel(file, frame, name, version) {
  const answer = await fetch(`try?${new URLSearchParams({ model: name, version })}`, {
    method: "POST", body: file, headers: { "content-type": "application/octet-stream" } });
  const data = await answer.json();
  return answer.ok ? answered(data, frame) : problem(`${name} version ${version}: ${data.error}`);
}

async function tryPhoto(file) {
  const mine = ++turn, results = [];
  if (!latest?.try.is_on) return;
  URL.revokeObjectURL(shown);
  shown = URL.createObjectURL(file);
  const photo = make("img", { class: "photo", alt: "the photo", src: shown });
  const frame = mappable(photo);
  photo.addEventListener("error", () => frame.node.remove());  // the browser cannot show it; the server may still know it
  at("answer").replaceChildren(frame.node, make("p", { class: "quiet" }, "asking…"));
  const chosen = at("model").value ? [JSON.parse(at("model").value)] : latest.models.map((model) => [model.model, model.version]);
  if (file.size > latest.try.max_bytes) results.push(problem(`The photo has ${bytes(file.size)}; at most ${bytes(latest.try.max_bytes)} are accepted.`));
  else if (!chosen.length) results.push(problem("No model is served."));
  else for (const [name, version] of chosen) {
    try {
      results.push(await askModel(file, frame, name, version));
    } catch {
      results.push(problem("The server does not answer."));
    }
    if (mine !== turn) return;  // another photo came meanwhile
  }
  at("answer").replaceChildren(frame.node, ...results);
}

const first = (files) => { if (files?.[0]) tryPhoto(files[0]); };
at("file").addEventListener("change", (event) => { first(event.target.files); });
at("file").addEventListener("click", (event) => { event.target.value = ""; });  // the same photo can be chosen again
window.addEventListener("paste", (event) => first(event.clipboardData?.files));
window.addEventListener("dragover", (event) => { event.preventDefault(); at("drop").classList.add("over"); });
window.addEventListener("dragleave", (event) => { if (!event.relatedTarget) at("drop").classList.remove("over"); });
window.addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  first(event.dataTransfer.files);
});
