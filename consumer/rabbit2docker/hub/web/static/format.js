// How things are written for people.

export const STATES = {
  queued: "Queued",
  waiting: "Waiting",
  fetching: "Fetching",
  building: "Building",
  pushing: "Pushing",
  completed: "Completed",
  failed: "Failed",
  cancelled: "Cancelled",
  rejected: "Rejected",
};
const ENDS = new Set(["completed", "failed", "cancelled", "rejected"]);

/** Tell whether nothing follows a state. */
export const isEnd = (state) => ENDS.has(state);

/** Return the class of a state's badge. */
export const badgeClass = (state) => `badge ${isEnd(state) ? state : "running"}`;

function unescaped(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

const SHA = /^[0-9a-f]{40}$/;

/** Return a commit's first characters, and anything else as it is. */
export const short = (ref) => (SHA.test(ref ?? "") ? ref.slice(0, 7) : (ref ?? ""));

/** Return what is built as {name, ref}, from provider and spec. */
export function target(provider, spec) {
  const parts = spec.split("/");
  if (provider === "gh" && parts.length >= 3) return { name: parts.slice(0, 2).join("/"), ref: parts.slice(2).join("/") };
  if (["git", "gl", "ckan", "hydroshare"].includes(provider) && parts.length >= 2) {
    const name = unescaped(parts[0]).replace(/^https?:\/\//, "").replace(/(\.git)?\/?$/, "");
    return { name, ref: unescaped(parts.slice(1).join("/")) };
  }
  return { name: unescaped(spec), ref: "" };
}

/** Return an address that may become a link, null for anything else than http and https. */
export function linkable(url) {
  try {
    const parsed = new URL(url);
    return ["http:", "https:"].includes(parsed.protocol) && !parsed.username && !parsed.password ? parsed.href : null;
  } catch {
    return null;
  }
}

let skew = 0;

/** Learn from an answer how far this clock is from the service's. */
export function learnTime(date) {
  const there = Date.parse(date ?? "");
  if (Number.isNaN(there)) return;
  const difference = Date.now() - there;
  // The header has whole seconds.
  skew = Math.abs(difference) > 2000 ? difference : 0;
}

/** Return the milliseconds since 1970, by the service's clock. */
export const now = () => Date.now() - skew;

const UNITS = [
  ["year", 31_536_000],
  ["month", 2_592_000],
  ["day", 86_400],
  ["hour", 3600],
  ["minute", 60],
];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

/** Return how long ago something was. */
export function ago(time) {
  const seconds = Math.max(0, (now() - Date.parse(time)) / 1000);
  for (const [unit, length] of UNITS) {
    if (seconds >= length) return relative.format(-Math.floor(seconds / length), unit);
  }
  return "just now";
}

/** Return the exact time. */
export const exactly = (time) => new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** Return a number of seconds in words. */
export function lasting(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const two = (number) => String(number).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
}

/** Return the seconds between two times; without the second one until now. */
export const between = (from, to) => ((to ? Date.parse(to) : now()) - Date.parse(from)) / 1000;

/** Return a number of bytes in words. */
export function sized(bytes) {
  const names = ["bytes", "kB", "MB", "GB", "TB"];
  let at = 0;
  let left = bytes;
  while (left >= 1000 && at < names.length - 1) {
    left /= 1000;
    at += 1;
  }
  return `${at && left < 100 ? left.toFixed(1) : Math.round(left)} ${names[at]}`;
}

/** Return a number with its word: `2 builds`. */
export const counted = (number, word) => `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
