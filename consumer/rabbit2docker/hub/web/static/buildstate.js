// The state of one build, as its events change it.
import { isEnd, secondsBetween } from "./format.js";

export const PHASES = ["queued", "waiting", "fetching", "building", "pushing"];

export class BuildState {
  /** The build as the API describes it, updated by events. */
  build;
  /** Number of builds ahead in the queue; null while it is unknown. */
  ahead = null;
  /** Time at which the build is expected to start; null while it is unknown. */
  expectedStart = null;
  /** Whether a cancellation was requested. */
  isCancelling = false;
  // Position in the events: a stream starts at the build's beginning, also for a build that is halfway through.
  #attempt = 0;
  #reached = 0;
  #started = {};
  #log;

  /** `log`: the LogView that takes the lines. */
  constructor(build, log) {
    this.build = build;
    this.#log = log;
  }

  /** Apply one event of the stream. */
  apply(kind, event) {
    if (kind === "queue") {
      this.ahead = event.ahead;
      this.expectedStart = event.expected_start;
    } else if (kind in HANDLERS) HANDLERS[kind](this, event.data, event.time);
  }

  accept(data, time) {
    const { build, build: { image, options } } = this;
    const { build_name, repo_url, resolved_ref, cached, notice } = data;
    Object.assign(build, { build_name, repo_url, resolved_ref, cached, notice, image: image ?? data.image, options: data.options ?? options });
    // A request that joins a running build takes that build's id.
    build.id = data.build_id;
    build.started_at ??= time;
    this.ahead = null;
    if (!cached) this.enterPhase("waiting", time, 0);
  }

  enterPhase(name, time, attempt) {
    const { build } = this;
    if (attempt > this.#attempt) {
      this.#attempt = attempt;
      // A later attempt goes through all phases again.
      if (attempt > 1) this.#started = {};
      this.#reached = 0;
    }
    const index = PHASES.indexOf(name);
    if (index < this.#reached) return;
    this.#reached = index;
    this.#started[name] ??= time;
    const isNew = this.#attempt > build.attempt || (this.#attempt === build.attempt && index > PHASES.indexOf(build.state));
    if (isNew && !isEnd(build.state)) build.state = name;
    build.attempt = Math.max(build.attempt, this.#attempt);
  }

  addLines({ attempt, n, lines }) {
    for (const line of lines) this.enterPhase(line.phase, line.ts, attempt);
    this.#log.addLines(attempt, n, lines.map((line) => line.text));
  }

  addGap({ attempt, first, last, message }) {
    this.#log.addGap(attempt, first, last, message);
  }

  end(state, time, changes) {
    const { build } = this;
    const timings = changes.timings ?? build.timings;
    Object.assign(build, changes, { state, timings, ended_at: build.ended_at ?? time });
    this.isCancelling = false;
  }

  /** Return the seconds spent in a phase; null while they are unknown. */
  phaseSeconds(name) {
    const { build } = this;
    const known = build.timings?.[name];
    if (known !== null && known !== undefined) return known;
    if (name === "queued") return this.#queuedSeconds();
    if (!this.#started[name]) return null;
    const next = PHASES.slice(PHASES.indexOf(name) + 1).find((later) => this.#started[later]);
    return secondsBetween(this.#started[name], next ? this.#started[next] : build.ended_at);
  }

  #queuedSeconds() {
    const { requested_at, started_at, state } = this.build;
    if (started_at) return secondsBetween(requested_at, started_at);
    return isEnd(state) ? null : secondsBetween(requested_at);
  }

  /** Return `done`, `current`, `broken` or `todo` for the phase at an index. */
  phaseStatus(index) {
    const { state } = this.build;
    if (state === "completed") return "done";
    const current = isEnd(state) ? this.#furthest() : PHASES.indexOf(state);
    if (index < current) return "done";
    if (index > current) return "todo";
    return isEnd(state) ? "broken" : "current";
  }

  #furthest() {
    const timed = PHASES.findLastIndex((name) => this.build.timings?.[name] !== null && this.build.timings?.[name] !== undefined);
    return Math.max(this.#reached, timed);
  }
}

const HANDLERS = {
  accepted: (state, data, time) => state.accept(data, time),
  rejected(state, { reason, message, retryable }, time) {
    state.end("rejected", time, { problem: { reason, message, retryable, hint: "", tail: [] } });
  },
  progress(state, { phase, attempt, message, detail }, time) {
    state.enterPhase(phase, time, attempt);
    state.build.message = message;
    state.build.retry_at = detail?.retry_at;
  },
  log: (state, data) => state.addLines(data),
  gap: (state, data) => state.addGap(data),
  completed(state, { image, digest, size, resolved_ref, cached, timings, warnings }, time) {
    state.end("completed", time, { image, digest, size, resolved_ref, cached, timings, warnings: warnings ?? [] });
  },
  failed(state, { reason, category, message, hint, exit_code, failed_step, tail, timings }, time) {
    state.end("failed", time, { problem: { reason, category, message, hint, exit_code, failed_step, tail: tail ?? [] }, timings });
  },
  cancelled: (state, data, time) => state.end("cancelled", time, { cancelled_by: data.by }),
};
