// Requests to the server, the state that pages share, and the answers on their way to the disk.

const TIMEOUT_MS = 20000, POLL_MS = 40000;

// An error with one line for people; `status` 0 if the server gave no answer.
export class Failure extends Error {
  constructor(message, status, body = {}) {
    super(message);
    Object.assign(this, { status, body });
  }
}

async function ask(path, options = {}, timeout = TIMEOUT_MS) {
  const signals = [AbortSignal.timeout(timeout), ...(options.signal ? [options.signal] : [])];
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", credentials: "same-origin", ...options, signal: AbortSignal.any(signals) });
  } catch {
    throw new Failure("The server does not answer. Is penult label still running in its terminal?", 0);
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Failure(body.error ?? `the server answered ${answer.status}`, answer.status, body);
  return body;
}

const post = (path, body) => ask(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
const query = (pairs) => new URLSearchParams(pairs).toString();

export const getState = () => ask("api/state");
export const getNext = async (amount, holding) => (await ask(`api/next?${query([["count", amount], ...holding.map((id) => ["holding", id])])}`)).items;
export const getGrid = async (label, amount) => (await ask(`api/grid?${query({ label, count: amount })}`)).items;
export const addClass = (name) => post("api/classes", { name });
export const publish = () => post("api/publish", {});

// Why a picture cannot be shown.
export async function whyBroken(url) {
  try {
    await ask(url);
    return "";
  } catch (failure) {
    return failure.message;
  }
}

// Sends answers in their order, all that wait in one request: keys may come faster than the disk.
export class Outbox {
  #waiting = [];
  #isSending = false;

  // Answers are {wire: what is sent, …}. Events: `saved(state)`, `refused(answer, failure)` for a conflict, `failed(answers, failure)` when nothing of them was written.
  constructor(events) {
    this.events = events;
  }

  get size() {
    return this.#waiting.length;
  }

  put(answers) {
    this.#waiting.push(...answers);
    if (!this.#isSending) this.#send();
  }

  async #send() {
    this.#isSending = true;
    while (this.#waiting.length) {
      // Of one photo at most one answer a request: each says which label it replaces.
      const seen = new Set();
      const end = this.#waiting.findIndex(({ wire }) => seen.size === seen.add(wire.id).size);
      const sent = this.#waiting.slice(0, Math.min(end < 0 ? Infinity : end, 100));
      try {
        const state = await post("api/labels", { items: sent.map(({ wire }) => wire) });
        this.#waiting.splice(0, sent.length);
        this.events.saved(state);
      } catch (failure) {
        this.#settle(sent, failure);
      }
    }
    this.#isSending = false;
  }

  #settle(sent, failure) {
    const { id, label } = failure.body ?? {};
    const place = failure.status === 409 ? sent.findIndex(({ wire }) => wire.id === id) : -1;
    if (place < 0) { // nothing was written; what was pressed since builds on it
      this.events.failed(this.#waiting.splice(0), failure);
      return;
    }
    const [answer] = this.#waiting.splice(place, 1);
    // The server may have had it before the connection broke.
    if (answer.wire.skip || answer.wire.label !== label) this.events.refused(answer, failure);
  }
}

// Calls `changed(state)` for each revision, and `lost(failure)` while the server does not answer. Only what is visible
// waits: a browser opens few connections to one server.
export async function follow(changed, lost) {
  let revision = null, waits = 0;
  for (;;) {
    if (document.hidden) await new Promise((seen) => document.addEventListener("visibilitychange", seen, { once: true }));
    const hidden = new AbortController(), hide = () => document.hidden && hidden.abort();
    document.addEventListener("visibilitychange", hide);
    try {
      const state = revision === null ? await getState() : await ask(`api/state?${query({ after: revision })}`, { signal: hidden.signal }, POLL_MS);
      revision = state.revision;
      waits = 0;
      changed(state);
    } catch (failure) {
      if (!hidden.signal.aborted) {
        lost(failure);
        revision = null;
        await new Promise((done) => setTimeout(done, Math.min(500 * 2 ** waits++, 5000)));
      }
    } finally {
      document.removeEventListener("visibilitychange", hide);
    }
  }
}
