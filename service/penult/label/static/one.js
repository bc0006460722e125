// The view of one photo: the picture, the guess, its neighbours and a button for each class.

import { at, bar, isKnown, make, percent, picture, redraw, show } from "./draw.js";

let shown = null;

// Draws the photo; the picture itself only if it is another one.
export function drawOne(item, classes, answer) {
  drawButtons(classes, answer);
  if (!item) {
    shown = null;
    at("stage").replaceChildren(make("p", { class: "waiting quiet" }, "choosing the next photo…"));
    at("why").textContent = at("guess").textContent = "";
    at("near").replaceChildren();
    return;
  }
  if (shown !== item || !at("stage").contains(item.picture)) at("stage").replaceChildren(item.picture, make("span", { class: "name" }, item.id));
  shown = item;
  at("why").replaceChildren(make("span", { class: "quiet" }, "Shown because: "), reasonOf(item));
  drawGuess(item);
  drawNear(item);
  markButtons(item);
  at("accept").disabled = !item.guess;
}

function reasonOf(item) {
  if (item.label) return `labelled ${item.label}: are you sure? (${item.reason})`;
  return item.reason || "next in the folder";
}

function drawGuess(item) {
  const line = item.guess && isKnown(item.probability)
    ? [make("span", { class: "quiet" }, "Guess "), make("b", {}, item.guess), ` ${percent(item.probability)} sure`, bar(item.probability)]
    : [make("span", { class: "quiet" }, "No guess yet: it takes a few labels of two classes.")];
  at("guess").replaceChildren(...line);
}

function drawNear(item) {
  const near = item.neighbours ?? [];
  show(at("near"), near.length > 0);
  at("near").replaceChildren(make("h3", { class: "quiet" }, "Nearest labelled"), make("ul", {}, ...near.map((each) =>
    make("li", {}, picture(each.thumbnail_url, `Photo ${each.id}`), make("span", {}, each.label)))));
}

function drawButtons(classes, answer) {
  redraw("answers", classes.map(({ name, key }) => [name, key]), (list) => list.map(([name, key]) => {
    const button = make("button", { "data-key": name, ...(key ? { "aria-keyshortcuts": key } : {}) },
      key ? make("kbd", {}, key) : null, make("span", { class: "text" }, name), make("span", { class: "sure" }));
    button.addEventListener("click", () => answer(name));
    return button;
  }));
}

// The guess has a mark and a frame beside its color.
function markButtons(item) {
  const sure = new Map(item.probabilities ?? []);
  for (const button of at("answers").children) {
    const name = button.dataset.key, isGuess = name === item.guess;
    button.classList.toggle("guessed", isGuess);
    const share = sure.get(name);
    button.lastChild.textContent = isKnown(share) ? `${isGuess ? "● " : ""}${percent(share)}` : "";
  }
}

export function inWords(item) {
  if (!item) return "";
  return item.guess ? `guess ${item.guess}, ${percent(item.probability)} sure` : "no guess";
}
