// The grid: photos of one guess, confirmed at once but for those that are marked as wrong.

import { getGrid } from "./api.js";
import { at, count, make, percent, picture } from "./draw.js";

const TILES = 20, MOST = 100;

export class Grid {
  #items = [];
  #wrong = new Set(); // ids, of this class, of all pages seen
  #last = 0;
  #isBusy = false;
  wanted = false; // whether the grid is shown instead of one photo

  constructor(answers, events) {
    Object.assign(this, { answers, events, label: "" });
    at("grid-class").addEventListener("change", () => this.#choose(at("grid-class").value));
    at("confirm").addEventListener("click", () => this.confirm());
    at("tiles").addEventListener("keydown", (event) => this.#move(event));
  }

  get isOpen() {
    return !at("grid").hidden;
  }

  open(label, classes) {
    this.drawClasses(classes, label);
    this.#choose(label);
    at("grid-title").focus();
  }

  drawClasses(classes, label = this.label) {
    const names = classes.map(({ name }) => name);
    if ([...at("grid-class").options].map(({ value }) => value).join("\n") !== names.join("\n")) {
      at("grid-class").replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    }
    at("grid-class").value = label;
  }

  #choose(label) {
    this.label = label;
    this.#wrong.clear();
    at("grid-name").textContent = label;
    this.load();
  }

  // Gets the surest photos of the guess, without those that were marked before.
  async load() {
    const label = this.label, marked = new Set(this.#wrong);
    this.#busy(true);
    try {
      const found = await getGrid(label, Math.min(TILES + marked.size, MOST));
      if (label !== this.label) return;
      this.#items = found.filter(({ id }) => !marked.has(id)).slice(0, TILES);
      this.#draw();
    } catch (failure) {
      this.events.failed([], failure);
    } finally {
      this.#busy(false);
    }
  }

  // Labels all that are not marked, and shows the next ones once that is on the disk.
  confirm() {
    const right = this.#items.filter(({ id }) => !this.#wrong.has(id));
    if (this.#isBusy || !this.#items.length) return;
    this.#items = [];
    if (!right.length) {
      this.load();
      return;
    }
    this.#busy(true);
    this.answers.answerMany(right, this.label, "grid");
    this.events.said(`${count(right.length, "photo")} labelled ${this.label}`);
  }

  // After answers are saved, or have failed.
  settled() {
    if (this.isOpen && !this.answers.outbox.size) this.load();
  }

  #busy(isBusy) {
    this.#isBusy = isBusy;
    at("tiles").setAttribute("aria-busy", isBusy);
    this.#count();
  }

  #count() {
    const right = this.#items.filter(({ id }) => !this.#wrong.has(id)).length;
    at("confirm").disabled = this.#isBusy || !this.#items.length;
    const text = right ? `confirm ${count(right, "photo")} as ${this.label}` : "none of these: show the next ones";
    at("confirm").replaceChildren(make("kbd", {}, "enter"), make("span", { class: "text" }, this.#items.length ? text : "nothing to confirm"));
  }

  #draw() {
    this.#last = 0;
    const hadFocus = at("tiles").contains(document.activeElement);
    const tiles = this.#items.map((item, place) => {
      const tile = make("button", { class: "shot", "aria-pressed": "false", tabindex: place ? "-1" : "0" },
        picture(item.thumbnail_url, `Photo ${item.id}`), make("span", { class: "sure" }, percent(item.probability ?? 0)), make("span", { class: "mark" }, "✕ wrong"));
      tile.addEventListener("click", (event) => this.#mark(place, event.shiftKey));
      return tile;
    });
    const none = make("p", { class: "card quiet" }, `No open photo is guessed to be ${this.label}. Choose another guess, or label single photos first.`);
    at("tiles").replaceChildren(...(tiles.length ? tiles : [none]));
    this.#items.forEach((_, place) => this.#show(place));
    if (hadFocus) at("tiles").querySelector("button")?.focus();
    this.#count();
  }

  // Marks or unmarks a photo; with shift, all from the last one get its state.
  #mark(place, isRange) {
    const { id } = this.#items[place];
    const isWrong = isRange ? this.#wrong.has(this.#items[this.#last].id) || !this.#wrong.has(id) : !this.#wrong.has(id);
    const [from, to] = isRange ? [Math.min(place, this.#last), Math.max(place, this.#last)] : [place, place];
    for (let each = from; each <= to; each += 1) {
      if (isWrong) this.#wrong.add(this.#items[each].id);
      else this.#wrong.delete(this.#items[each].id);
      this.#show(each);
    }
    this.#last = place;
    this.#focus(place);
    this.#count();
  }

  #show(place) {
    at("tiles").children[place].setAttribute("aria-pressed", this.#wrong.has(this.#items[place].id));
  }

  #focus(place) {
    [...at("tiles").children].forEach((tile, each) => tile.setAttribute("tabindex", each === place ? "0" : "-1"));
    at("tiles").children[place].focus();
  }

  // Arrow keys go from photo to photo; up and down by the rows that there are on this screen.
  #move(event) {
    const tiles = [...at("tiles").children], place = tiles.indexOf(event.target.closest(".shot"));
    if (place < 0) return;
    const across = Math.max(1, tiles.filter(({ offsetTop }) => offsetTop === tiles[0].offsetTop).length);
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
    const next = { Home: 0, End: tiles.length - 1 }[event.key] ?? place + (steps[event.key] ?? NaN);
    if (!(next >= 0 && next < tiles.length)) return;
    event.preventDefault();
    this.#focus(next);
  }
}
