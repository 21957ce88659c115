// The service's JSON API: requests, and the events of one build.
import { learnTime } from "./format.js";

const frame = document.documentElement.dataset;

/** Path before all addresses. */
export const base = frame.base;
/** Who looks; empty where nobody is asked. */
export const user = frame.user;
/** Whether everybody's builds are seen. */
export const isAdmin = "admin" in frame;

/** An answer that says no, in the service's words. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function headers(more) {
  // JupyterHub takes a cookie from scripts only together with this.
  return frame.xsrf ? { "X-Xsrftoken": frame.xsrf, ...more } : more;
}

async function refusal(answer) {
  let words = "";
  try {
    words = (await answer.json()).message ?? "";
  } catch {
    // A proxy before the service answers in its own way.
  }
  if (!words && answer.status >= 500) words = "The service does not answer at the moment. Please try again in a minute.";
  return new Refused(words || `The service answers ${answer.status}.`, answer.status);
}

/** Tell whether reloading the page, and so logging in, may help. */
export const needsLogin = (error) => error instanceof Refused && (error.status === 401 || error.status === 403);

async function send(path, options) {
  let answer;
  try {
    answer = await fetch(base + path, { redirect: "error", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service cannot be reached. Is there a network?", 0);
  }
  learnTime(answer.headers.get("Date"));
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

/** Return what is at a path. Throws Refused. */
export async function get(path, signal) {
  return (await send(path, { headers: headers({ Accept: "application/json" }), signal })).json();
}

/** Send an order, and return the answer. Throws Refused. */
export async function order(method, path, body) {
  const content = body === undefined ? {} : { body: JSON.stringify(body) };
  const type = body === undefined ? {} : { "Content-Type": "application/json" };
  const answer = await send(path, { method, headers: headers({ Accept: "application/json", ...type }), ...content });
  const text = await answer.text();
  return text ? JSON.parse(text) : {};
}

/** Return the path of a build in the API. */
export const pathOf = (id) => `api/builds/${encodeURIComponent(id)}`;
/** Return the address of a build's page. */
export const pageOf = (id) => `${base}builds/${encodeURIComponent(id)}`;

const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 30_000;
const SILENCE = Math.max(20_000, Number(frame.silence) * 3000);

/**
 * Follows the events of one build to their end, through lost connections and restarts of the service.
 *
 * The browser's own EventSource cannot send the header that JupyterHub demands beside its cookie.
 */
export class Events {
  #path;
  #tell;
  #last = "";
  #pause = FIRST_PAUSE;
  #stopped = false;
  #abort = null;
  #wake = null;

  /** `tell`: event(kind, data), lost(), found(), over(), refused(error). */
  constructor(path, tell) {
    this.#path = path;
    this.#tell = tell;
  }

  /** Follow until the end. */
  async run() {
    const hurry = () => this.#wake?.();
    const look = () => document.visibilityState === "visible" && hurry();
    window.addEventListener("online", hurry);
    document.addEventListener("visibilitychange", look);
    try {
      while (!this.#stopped && !(await this.#once())) {
        this.#tell.lost();
        await this.#rest();
      }
    } finally {
      window.removeEventListener("online", hurry);
      document.removeEventListener("visibilitychange", look);
    }
  }

  /** Listen no more. */
  stop() {
    this.#stopped = true;
    this.#abort?.abort();
    this.#wake?.();
  }

  #rest() {
    // Not all viewers of a service that was restarted come back in the same moment.
    const pause = this.#pause * (0.75 + Math.random() / 2);
    this.#pause = Math.min(LONGEST_PAUSE, this.#pause * 2);
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, pause);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Listen once; tell whether that was all. */
  async #once() {
    this.#abort = new AbortController();
    const resume = this.#last ? { "Last-Event-ID": this.#last } : {};
    let watch;
    const alive = () => {
      clearTimeout(watch);
      watch = setTimeout(() => this.#abort.abort(), SILENCE);
    };
    try {
      alive();
      const answer = await send(this.#path, {
        headers: headers({ Accept: "text/event-stream", ...resume }),
        signal: this.#abort.signal,
        cache: "no-store",
      });
      if (answer.status === 204) {
        this.#tell.over();
        return true;
      }
      this.#tell.found();
      return await this.#read(answer.body, alive);
    } catch (error) {
      if (error instanceof Refused && [400, 401, 403, 404].includes(error.status)) {
        this.#tell.refused(error);
        return true;
      }
      return false;
    } finally {
      clearTimeout(watch);
    }
  }

  async #read(body, alive) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return false;
      alive();
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (this.#block(block)) {
          reader.cancel().catch(() => {});
          this.#tell.over();
          return true;
        }
      }
    }
  }

  /** Take one event; tell whether it was the last one. */
  #block(block) {
    let id;
    let kind = "message";
    const data = [];
    for (const line of block.split("\n")) {
      const at = line.indexOf(":");
      const value = line.slice(at + 1).replace(/^ /, "");
      if (at <= 0) continue;
      const name = line.slice(0, at);
      if (name === "id") id = value;
      else if (name === "event") kind = value;
      else if (name === "data") data.push(value);
    }
    if (!data.length) return false;
    // Only who gets somewhere may come back soon: a service that ends every connection at once is left in peace.
    this.#pause = FIRST_PAUSE;
    this.#tell.event(kind, JSON.parse(data.join("\n")));
    if (id !== undefined) this.#last = id;
    return ["completed", "failed", "cancelled", "rejected"].includes(kind);
  }
}
