// What was answered here: photos ahead, answers on their way, and what can be taken back.

import { getNext, Outbox, whyBroken } from "./api.js";
import { make } from "./draw.js";

// Photos kept ready, the one that is shown included: their pictures are loaded and decoded before they are needed.
const AHEAD = 7, LEAST = 6;
const HISTORY = 500;

export class Answers {
  queue = [];
  history = [];
  isAsking = false;
  isOver = false;

  // Events: `changed()` when the first photo of the queue may be another one, `saved(state)`, `sending()`,
  // `refused(answer, failure)`, `failed(photos, failure)`.
  constructor(events) {
    this.events = events;
    this.outbox = new Outbox({
      saved: (state) => events.saved(state),
      refused: (answer, failure) => { this.#forget(answer.entry); events.refused(answer, failure); },
      failed: (answers, failure) => this.#bringBack(answers, failure),
    });
  }

  get current() {
    return this.queue[0];
  }

  // Gets photos until enough are ahead.
  async refill() {
    if (this.isAsking || this.queue.length >= LEAST) return;
    this.isAsking = true;
    try {
      const found = await getNext(AHEAD - this.queue.length, this.queue.map(({ id }) => id));
      const known = new Set(this.queue.map(({ id }) => id));
      for (const item of found) if (!known.has(item.id)) this.queue.push(prepared(item));
      this.isOver = !this.queue.length;
      this.events.changed();
    } catch (failure) {
      this.events.failed([], failure);
    } finally {
      this.isAsking = false;
    }
  }

  // Answers the photo that is shown: `label` null and `skip` to leave it.
  answer(label, skip = false) {
    const item = this.queue.shift();
    if (!item) return;
    this.#put([{ item, label, skip }]);
    this.refill();
  }

  // Gives one label to many photos that are not in the queue; they are taken back together.
  answerMany(items, label, kind) {
    this.#put(items.map((item) => ({ item, label, skip: false, kind })), true);
  }

  // Answers a suspect. That it stays as it is cannot be taken back.
  answerSuspect({ id, label }, given) {
    const change = { item: { id, label }, label: given, skip: false, kind: "check" };
    if (label === given) this.#send([{ wire: wireOf(change), change }]);
    else this.#put([change], true);
  }

  // Takes the last answers back; returns them, none if there are none.
  takeBack() {
    const entry = this.history.pop();
    if (!entry) return [];
    this.#send(entry.changes.map((change) => ({ wire: undoOf(change), change, entry, isUndo: true })));
    if (!entry.isAside) this.#unshift(entry.changes[0].item);
    this.events.changed();
    return entry.changes;
  }

  #put(changes, isAside = false) {
    const entry = { changes, isAside };
    this.history.push(entry);
    this.history.splice(0, this.history.length - HISTORY);
    this.events.changed();
    this.#send(changes.map((change) => ({ wire: wireOf(change), change, entry })));
  }

  #send(answers) {
    this.outbox.put(answers);
    this.events.sending();
  }

  #unshift(item) {
    this.queue = [item.picture ? item : prepared(item), ...this.queue.filter(({ id }) => id !== item.id)];
    this.isOver = false;
  }

  #forget(entry) {
    this.history = this.history.filter((each) => each !== entry);
  }

  // Nothing of these was written: their photos come back, and what was to be taken back can be so again.
  #bringBack(answers, failure) {
    const photos = new Set();
    for (const { change, entry, isUndo } of answers.reverse()) {
      photos.add(change.item.id);
      if (isUndo) {
        this.queue = this.queue.filter(({ id }) => id !== change.item.id);
        if (!this.history.includes(entry)) this.history.push(entry);
      } else {
        this.#forget(entry);
        if (entry && !entry.isAside) this.#unshift(change.item);
      }
    }
    this.events.changed();
    this.events.failed([...photos], failure);
  }
}

function wireOf({ item, label, skip, kind }) {
  const wire = { id: item.id, label, was: item.label ?? null, kind: kind ?? item.kind ?? "" };
  return skip ? { id: item.id, label: null, skip: true, was: wire.was } : { ...wire, ...(item.guess ? { guess: item.guess } : {}) };
}

function undoOf({ item, label, skip }) {
  return { id: item.id, label: item.label ?? null, kind: item.kind ?? "", ...(skip ? {} : { was: label }) };
}

// Begins to load and decode a photo's picture.
function prepared(item) {
  const picture = make("img", { alt: `Photo ${item.id}`, draggable: "false" });
  picture.addEventListener("load", () => picture.classList.toggle("tiny", Math.max(picture.naturalWidth, picture.naturalHeight) < 100));
  picture.addEventListener("error", async () => {
    const why = await whyBroken(picture.src);
    const broken = make("p", { class: "broken" }, make("b", {}, "✕ This photo cannot be shown."), ` ${why} Skip it, or open the file with another program.`);
    item.picture = broken;
    picture.replaceWith(broken);
  });
  picture.src = item.image_url;
  item.picture = picture;
  picture.decode().catch(() => {}); // so that it can be painted at once; an error has its own event
  for (const near of item.neighbours ?? []) new Image().src = near.thumbnail_url;
  return item;
}
