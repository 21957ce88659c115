// The progress of a batch, as both of its pages show it.
import { make } from "./dom.js";
import { ago, exactTime, pluralize, STATES } from "./format.js";

export const POLL_MS = 5000;
const KINDS = { prebuild: "Prebuild", replay: "Replay" };

/** Return the title of a batch. */
export const titleOf = (batch) => `${KINDS[batch.kind] ?? batch.kind} of ${exactTime(batch.began_at)}`;

/** Return the counts of a batch in words. */
export function countsOf(batch) {
  const total = batch.size ?? batch.answered;
  const states = Object.entries(batch.counts).map(([state, number]) => `${number} ${(STATES[state] ?? state).toLowerCase()}`);
  const open = total - batch.answered;
  if (open > 0) states.push(`${open} not answered yet`);
  return `${batch.ended} of ${pluralize(total, "request")} ended: ${states.join(", ")}.`;
}

/** Return a bar and the counts. */
export function progressOf(batch) {
  const total = batch.size ?? batch.answered;
  return [
    make("progress", { max: total, value: batch.ended, "aria-label": "Requests that have ended" }),
    make("p", { class: "counts" }, countsOf(batch)),
    make("p", { class: "muted" }, make("time", { datetime: batch.began_at, title: exactTime(batch.began_at) }, ago(batch.began_at)), ` · ${batch.id}`),
  ];
}

/** Call `load` now and then, while the page is visible and until it returns true. */
export async function poll(load) {
  let over = await load();
  while (!over) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    if (document.visibilityState === "visible") over = await load();
  }
}
