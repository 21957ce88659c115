// The service's JSON API: requests, and the event stream of one build.
import { syncClock } from "./format.js";

const page = document.documentElement.dataset;

/** Path that all addresses start with. */
export const base = page.base;
/** Name of the user; empty without authentication. */
export const user = page.user;
/** Whether the user sees all builds. */
export const isAdmin = "admin" in page;

/** An error response, with the service's message. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function withXsrf(headers) {
  // JupyterHub accepts a script's cookie only together with this header.
  return page.xsrf ? { "X-Xsrftoken": page.xsrf, ...headers } : headers;
}

async function asError(response) {
  let message = "";
  try {
    message = (await response.json()).message ?? "";
  } catch {
    // A proxy in front of the service answers in a format of its own.
  }
  if (!message && response.status >= 500) message = "The service does not answer at the moment. Please try again in a minute.";
  return new ApiError(message || `The service answered with status ${response.status}.`, response.status);
}

/** Return whether reloading the page, and thereby logging in, may help. */
export const needsLogin = (error) => error instanceof ApiError && (error.status === 401 || error.status === 403);

async function request(path, options) {
  let response;
  try {
    response = await fetch(base + path, { redirect: "error", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The service cannot be reached. Check your network connection.", 0);
  }
  syncClock(response.headers.get("Date"));
  if (!response.ok) throw await asError(response);
  return response;
}

/** Return the JSON at a path. Throws ApiError. */
export async function get(path, signal) {
  return (await request(path, { headers: withXsrf({ Accept: "application/json" }), signal })).json();
}

/** Send a request that changes something, and return the response's JSON. Throws ApiError. */
export async function send(method, path, body) {
  const content = body === undefined ? {} : { body: JSON.stringify(body) };
  const type = body === undefined ? {} : { "Content-Type": "application/json" };
  const response = await request(path, { method, headers: withXsrf({ Accept: "application/json", ...type }), ...content });
  const text = await response.text();
  return text ? JSON.parse(text) : {};
}

/** Return the path of a build in the API. */
export const pathOf = (id) => `api/builds/${encodeURIComponent(id)}`;
/** Return the address of a build's page. */
export const pageOf = (id) => `${base}builds/${encodeURIComponent(id)}`;

const FIRST_PAUSE = 1000;
const LONGEST_PAUSE = 30_000;
const SILENCE_LIMIT = Math.max(20_000, Number(page.keepalive) * 3000);

/**
 * Follows the events of one build to their end, across lost connections and restarts of the service.
 *
 * The browser's own EventSource cannot send the header that JupyterHub requires beside its cookie.
 */
export class EventStream {
  #path;
  #handlers;
  #lastId = "";
  #pause = FIRST_PAUSE;
  #abort = null;
  #wake = null;
  #reason = undefined;

  /** `handlers`: event(kind, data), disconnected(reason): a text if the service gave one, connected(), ended(), refused(error). */
  constructor(path, handlers) {
    this.#path = path;
    this.#handlers = handlers;
  }

  /** Follow until the end. */
  async run() {
    const wake = () => this.#wake?.();
    const wakeIfVisible = () => document.visibilityState === "visible" && wake();
    window.addEventListener("online", wake);
    document.addEventListener("visibilitychange", wakeIfVisible);
    try {
      while (!(await this.#connect())) {
        this.#handlers.disconnected(this.#reason);
        await this.#backOff();
      }
    } finally {
      window.removeEventListener("online", wake);
      document.removeEventListener("visibilitychange", wakeIfVisible);
    }
  }

  #backOff() {
    // Jitter: the viewers of a restarted service do not all reconnect in the same moment.
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

  /** Connect once; return whether the stream has ended for good. */
  async #connect() {
    this.#abort = new AbortController();
    const resume = this.#lastId ? { "Last-Event-ID": this.#lastId } : {};
    let watchdog;
    const keepAlive = () => {
      clearTimeout(watchdog);
      watchdog = setTimeout(() => this.#abort.abort(), SILENCE_LIMIT);
    };
    this.#reason = undefined;
    try {
      keepAlive();
      const response = await request(this.#path, {
        headers: withXsrf({ Accept: "text/event-stream", ...resume }),
        signal: this.#abort.signal,
        cache: "no-store",
      });
      if (response.status === 204) {
        this.#handlers.ended();
        return true;
      }
      this.#handlers.connected();
      return await this.#read(response.body, keepAlive);
    } catch (error) {
      if (error instanceof ApiError && [400, 401, 403, 404].includes(error.status)) {
        this.#handlers.refused(error);
        return true;
      }
      // The client has too many streams open; the one that it closes makes room for this one.
      if (error instanceof ApiError && error.status === 429) this.#reason = error.message;
      return false;
    } finally {
      clearTimeout(watchdog);
    }
  }

  async #read(body, keepAlive) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return false;
      keepAlive();
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (this.#dispatch(block)) {
          reader.cancel().catch(() => {});
          this.#handlers.ended();
          return true;
        }
      }
    }
  }

  /** Parse and dispatch one event; return whether it is the last one. */
  #dispatch(block) {
    let id;
    let kind = "message";
    const data = [];
    for (const line of block.split("\n")) {
      const colon = line.indexOf(":");
      const value = line.slice(colon + 1).replace(/^ /, "");
      if (colon <= 0) continue;
      const name = line.slice(0, colon);
      if (name === "id") id = value;
      else if (name === "event") kind = value;
      else if (name === "data") data.push(value);
    }
    if (!data.length) return false;
    // Only an event resets the pause: a service that closes every connection at once is not flooded.
    this.#pause = FIRST_PAUSE;
    this.#handlers.event(kind, JSON.parse(data.join("\n")));
    if (id !== undefined) this.#lastId = id;
    return ["completed", "failed", "cancelled", "rejected"].includes(kind);
  }
}
