// Values as text for people.

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
const END_STATES = new Set(["completed", "failed", "cancelled", "rejected"]);

/** Return whether a state is final. */
export const isEnd = (state) => END_STATES.has(state);

/** Return the class of a state's badge. */
export const badgeClass = (state) => `badge ${isEnd(state) ? state : "running"}`;

/** Return a percent-encoded text decoded, or unchanged if its encoding is invalid. */
export function unescaped(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

const SHA = /^[0-9a-f]{40}$/;

/** Return a commit's first characters, and any other ref unchanged. */
export const shortRef = (ref) => (SHA.test(ref ?? "") ? ref.slice(0, 7) : (ref ?? ""));

/** Return a URL that may become a link; null unless it is http or https without credentials. */
export function linkable(url) {
  try {
    const parsed = new URL(url);
    return ["http:", "https:"].includes(parsed.protocol) && !parsed.username && !parsed.password ? parsed.href : null;
  } catch {
    return null;
  }
}

let clockSkew = 0;

/** Learn the difference between this clock and the service's from the header `Date` of a response. */
export function syncClock(date) {
  const serverTime = Date.parse(date ?? "");
  if (Number.isNaN(serverTime)) return;
  const difference = Date.now() - serverTime;
  // The header has whole seconds.
  clockSkew = Math.abs(difference) > 2000 ? difference : 0;
}

/** Return the milliseconds since 1970 by the service's clock. */
export const now = () => Date.now() - clockSkew;

const UNITS = [
  ["year", 31_536_000],
  ["month", 2_592_000],
  ["day", 86_400],
  ["hour", 3600],
  ["minute", 60],
];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

/** Return a past time relative to now: `5 minutes ago`. */
export function ago(time) {
  const seconds = Math.max(0, (now() - Date.parse(time)) / 1000);
  for (const [unit, length] of UNITS) {
    if (seconds >= length) return relative.format(-Math.floor(seconds / length), unit);
  }
  return "just now";
}

/** Return the hour and minute of a time. */
export const clockTime = (time) => new Date(time).toLocaleTimeString(undefined, { timeStyle: "short" });

/** Return a time with its date and seconds. */
export const exactTime = (time) => new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** Return a duration: `5 s`, `2 min 05 s`, `1 h 20 min`. */
export function formatDuration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  const twoDigits = (number) => String(number).padStart(2, "0");
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${twoDigits(whole % 60)} s`;
  return `${Math.floor(whole / 3600)} h ${twoDigits(Math.floor((whole % 3600) / 60))} min`;
}

/** Return the seconds between two times; the second one defaults to now. */
export const secondsBetween = (from, to) => ((to ? Date.parse(to) : now()) - Date.parse(from)) / 1000;

/** Return a size: `1.5 GB`. */
export function formatBytes(bytes) {
  const units = ["bytes", "kB", "MB", "GB", "TB"];
  let unit = 0;
  let size = bytes;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit && size < 100 ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}

/** Return a count with its noun: `2 builds`. */
export const pluralize = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
