// The page: which view is shown, the keys, and what is said about saving.

import { addClass, follow, publish } from "./api.js";
import { Answers } from "./answers.js";
import { at, count, make, show } from "./draw.js";
import { Grid } from "./grid.js";
import { drawOne, inWords } from "./one.js";
import { drawSide } from "./side.js";

const KEYS = "penult-label-keys"; // in the browser's storage: "off" if keys were switched off

let state = null;
let isNaming = false; // whether the first classes are on their way
let isLost = false; // whether the server gave no answer to the last request
let isUnsaved = false; // whether answers came back, and none was saved since
const answers = new Answers({ changed: drawWork, sending: drawSaved, saved, refused, failed });
const grid = new Grid(answers, { failed, said: say });

// -- what the server says ---------------------------------------------------------------------------------------------

function draw(next) {
  if (state && next.revision < state.revision && !isLost) return; // two requests have overtaken each other
  state = next;
  drawSide(state, { answerSuspect: (suspect, given) => answers.answerSuspect(suspect, given), publish: () => run(publish) });
  drawProblem();
  drawWork();
}

function changed(next) {
  draw(next);
  isLost = false;
  if (!isUnsaved) fail(""); // what could not be saved stays said until something is
  if (state.classes.length >= 1 || state.labelled) answers.refill();
}

function saved(next) {
  draw(next);
  isLost = isUnsaved = false;
  fail("");
  drawSaved();
  grid.settled();
}

// Nothing was written: the photos are back, and one line says why.
function failed(photos, failure) {
  isLost ||= failure.status === 0;
  if (photos.length || !isUnsaved) {
    const back = photos.length ? ` Not saved: ${count(photos.length, "answer")}. ${photos.length > 1 ? "Their photos are" : "The photo is"} back; answer again.` : "";
    fail(`${failure.message.replace(/[^.?!]$/, "$&.")}${back}`);
  }
  isUnsaved ||= photos.length > 0;
  drawSaved();
  if (photos.length) grid.settled();
}

function fail(line) {
  show(at("failure"), Boolean(line));
  if (at("failure").textContent !== line) at("failure").textContent = line;
  drawProblem();
}

// What is wrong with the label file, unless the line above says it already.
function drawProblem() {
  const line = state?.problem ?? "";
  show(at("problem"), Boolean(line) && !at("failure").textContent.startsWith(line));
  if (at("problem").textContent !== line) at("problem").textContent = line;
}

// Another page has labelled the photo differently.
function refused({ wire, change }, failure) {
  const theirs = failure.body.label;
  isUnsaved = false;
  fail("");
  const close = make("button", {}, theirs ? `keep ${theirs}` : "leave it");
  const take = wire.label && make("button", {}, `change to ${wire.label}`);
  const hide = () => { show(at("conflict"), false); at("stage").focus({ preventScroll: true }); };
  close.addEventListener("click", hide);
  if (take) take.addEventListener("click", () => { hide(); answers.answerSuspect({ id: wire.id, label: theirs }, wire.label); });
  at("conflict").replaceChildren(make("p", {}, make("b", {}, wire.id), theirs ? ` was labelled ${theirs} in another page.` : " lost its label in another page.",
    ` Your answer ${wire.skip ? "skip" : wire.label ?? "to take it back"} was not saved.`), make("p", { class: "pair" }, close, take || null));
  show(at("conflict"), true);
  drawSaved();
  if (change.item && grid.isOpen) grid.settled();
}

function drawSaved() {
  const waiting = answers.outbox.size, isBad = !at("failure").hidden;
  at("saved").className = `saved ${isBad ? "bad" : waiting ? "busy" : "good"}`;
  at("saved").textContent = isBad ? "✕ not saved" : waiting ? "◐ saving…" : "✓ saved";
}

// -- views --------------------------------------------------------------------------------------------------------------

function drawWork() {
  if (!state) return;
  const isStart = isNaming || (!state.classes.length && !state.labelled);
  const isGrid = !isStart && grid.wanted, isDone = !isStart && !isGrid && answers.isOver;
  show(at("start"), isStart);
  show(at("grid"), isGrid);
  show(at("done"), isDone);
  show(at("one"), !isStart && !isGrid && !isDone);
  document.body.classList.toggle("wide-grid", isGrid);
  if (isGrid) grid.drawClasses(state.classes);
  if (isDone) {
    at("done-text").textContent = `${count(state.labelled, "photo")} of ${state.photos} have a label. Publish a version, or train on the label file.`;
  } else if (!isStart && !isGrid) {
    drawOne(answers.current, state.classes, (name) => answer(name));
  }
  at("back").disabled = at("grid-back").disabled = at("done-back").disabled = !answers.history.length;
  if (!at("failure").hidden || !answers.outbox.size) drawSaved();
}

function say(text) {
  at("live").textContent = text;
}

// -- what the person does -------------------------------------------------------------------------------------------------

function answer(name, isSkip = false) {
  const item = answers.current;
  if (!item) return;
  show(at("conflict"), false);
  answers.answer(isSkip ? null : name, isSkip);
  say(`${isSkip ? "skipped" : `labelled ${name}`}. ${answers.current ? `Next: ${inWords(answers.current)}` : ""}`);
}

function accept() {
  if (answers.current?.guess) answer(answers.current.guess);
}

function takeBack() {
  const undone = answers.takeBack();
  if (undone.length) say(undone.length > 1 ? `${count(undone.length, "answer")} taken back` : "taken back");
}

function openGrid() {
  const label = answers.current?.guess || grid.label || state.classes[0]?.name;
  if (!label) return;
  grid.wanted = true;
  drawWork();
  grid.open(label, state.classes);
}

function closeGrid() {
  grid.wanted = false;
  drawWork();
  at("stage").focus({ preventScroll: true });
}

async function run(request) {
  try {
    draw(await request());
  } catch (failure) {
    failed([], failure);
  }
}

// -- dialogs --------------------------------------------------------------------------------------------------------------

function openDialog(name) {
  if (!answers.current) return;
  at(`${name}-name`).value = "";
  at("new-error").textContent = at("find-found").textContent = "";
  at(`${name}-dialog`).showModal();
}

at("new-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const name = at("new-name").value.normalize("NFC").trim();
  try {
    draw(await addClass(name));
    at("new-dialog").close();
    answer(name);
  } catch (failure) {
    at("new-error").textContent = failure.message;
  }
});

const matching = () => {
  const text = at("find-name").value.trim().toLowerCase();
  const names = state.classes.map(({ name }) => name);
  return text ? [...names.filter((name) => name.toLowerCase().startsWith(text)), ...names.filter((name) => name.toLowerCase().slice(1).includes(text))] : [];
};

at("find-name").addEventListener("input", () => {
  const [first] = matching();
  at("find-found").textContent = first ? `enter labels it ${first}` : "no class is called so";
});

at("find-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const [first] = matching();
  if (!first) return;
  at("find-dialog").close();
  answer(first);
});

at("start-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const names = [...new Set(at("start-names").value.split(/[\n,]/).map((name) => name.trim()).filter(Boolean))];
  if (names.length < 2) {
    at("start-error").textContent = "Name at least two classes, one a line.";
    return;
  }
  try {
    isNaming = true;
    let next = null;
    for (const name of names) next = await addClass(name);
    isNaming = false;
    changed(next);
    at("stage").focus({ preventScroll: true });
  } catch (failure) {
    at("start-error").textContent = failure.message;
  } finally {
    isNaming = false;
  }
});

function openHelp() {
  at("help-classes").replaceChildren(...(state?.classes ?? []).filter(({ key }) => key).map(({ name, key }) =>
    make("tr", {}, make("th", { scope: "row" }, make("kbd", {}, key)), make("td", {}, name))));
  at("help").showModal();
}

at("keys-on").checked = localStorage.getItem(KEYS) !== "off";
at("keys-on").addEventListener("change", () => localStorage.setItem(KEYS, at("keys-on").checked ? "on" : "off"));
for (const name of ["new", "find"]) at(`${name}-cancel`).addEventListener("click", () => at(`${name}-dialog`).close());

// -- keys and buttons -----------------------------------------------------------------------------------------------------

const ONE = {
  " ": accept, Backspace: takeBack, s: () => answer(null, true), n: () => openDialog("new"), "/": () => openDialog("find"),
  g: openGrid, "?": openHelp,
};
const GRID = { Enter: () => grid.confirm(), Backspace: takeBack, Escape: closeGrid, g: closeGrid, "?": openHelp };
const DONE = { Backspace: takeBack, g: openGrid, "?": openHelp };

function actionOf({ key }) {
  if (!at("grid").hidden) return GRID[key];
  if (!at("done").hidden) return DONE[key];
  if (at("one").hidden) return key === "?" ? openHelp : undefined;
  const named = state.classes.find((each) => each.key && each.key === key);
  return named ? () => answer(named.name) : ONE[key];
}

document.addEventListener("keydown", (event) => {
  const target = event.target instanceof Element ? event.target : document.body;
  if (!state || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || document.querySelector("dialog[open]")) return;
  if (target.closest("input, textarea, select")) return;
  if (!at("keys-on").checked && event.key !== "?" && event.key !== "Escape") return;
  // A button that has the focus keeps its own keys, but Enter confirms the grid from any of its photos.
  const isButton = target.closest("button, a, summary") !== null;
  if (isButton && (event.key === " " || (event.key === "Enter" && !target.closest(".shot")))) return;
  const action = actionOf(event);
  if (!action) return;
  event.preventDefault();
  if (!event.repeat || event.key === "Backspace") action();
});

const BUTTONS = {
  accept, back: takeBack, skip: () => answer(null, true), new: () => openDialog("new"), "open-grid": openGrid, "open-help": openHelp,
  "grid-back": takeBack, "grid-close": closeGrid, "done-back": takeBack,
};
for (const [id, action] of Object.entries(BUTTONS)) at(id).addEventListener("click", action);

// After a click the keys are the photo's again; who came by the keyboard stays where they are.
at("one").addEventListener("click", (event) => {
  if (event.detail && event.target.closest("button") && !document.querySelector("dialog[open]") && !at("one").hidden) at("stage").focus({ preventScroll: true });
});

follow(changed, (failure) => failed([], failure));
