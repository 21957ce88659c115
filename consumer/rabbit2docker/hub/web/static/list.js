// The page that lists builds.
import * as api from "./api.js";
import { byId, make, setText } from "./dom.js";
import { ago, badgeClass, exactTime, formatDuration, isEnd, pluralize, secondsBetween, shortRef, STATES } from "./format.js";
import { target } from "./providers.js";

// Polling every few seconds, only while a build runs and the page is visible, costs less than an open connection for each page.
const POLL_MS = 5000;
const LONGEST_POLL_MS = 60_000;
const TYPING_MS = 300;
const PAGE_SIZE = 50;
const RUNNING = ["queued", "waiting", "fetching", "building", "pushing"];

const body = byId("builds").tBodies[0];
const filters = byId("filters");
let shown = new Map();
let pollMs = POLL_MS;
let timer = 0;
let loading = null;

/** Return the filters and the position in the list, from the URL. */
function currentQuery() {
  const given = new URLSearchParams(location.search);
  return Object.fromEntries(["q", "state", "owner", "before"].map((name) => [name, given.get(name) ?? ""]));
}

/** Return the address of this page with some parameters changed. */
function addressWith(changes) {
  const all = Object.entries({ ...currentQuery(), ...changes }).filter(([, value]) => value);
  return `${api.base}${all.length ? `?${new URLSearchParams(all)}` : ""}`;
}

function apiPath() {
  const { q, state, owner, before } = currentQuery();
  const query = new URLSearchParams({ limit: PAGE_SIZE });
  if (q) query.set("q", q);
  if (before) query.set("before", before);
  if (owner === "me" && api.user) query.set("requester", api.user);
  for (const each of state === "running" ? RUNNING : [state]) if (each) query.append("state", each);
  return `api/builds?${query}`;
}

function row(build, showsRequesters) {
  const running = isEnd(build.state) ? {} : { "data-since": build.requested_at };
  const time = make("time", { datetime: build.requested_at, title: exactTime(build.requested_at) }, ago(build.requested_at));
  return make(
    "tr",
    { role: "row" },
    make("td", { role: "cell", class: "state" }, make("span", { class: badgeClass(build.state) }, STATES[build.state] ?? build.state)),
    make("td", { role: "cell", class: "repository" }, ...repositoryCell(build)),
    showsRequesters ? make("td", { role: "cell", class: "requester" }, requesterText(build)) : null,
    make("td", { role: "cell", class: "requested" }, time),
    make("td", { role: "cell", class: "number duration", ...running }, isEnd(build.state) && !build.ended_at ? "" : durationText(build)),
  );
}

function repositoryCell(build) {
  const { name, ref } = target(build.provider, build.spec);
  const commit = build.resolved_ref ? shortRef(build.resolved_ref) : shortRef(ref);
  const version = ref && build.resolved_ref && ref !== build.resolved_ref ? `${ref} · ${commit}` : commit;
  const message = isEnd(build.state) ? build.problem?.message : build.message;
  return [
    make("a", { href: api.pageOf(build.id), id: `build-${build.id}` }, name),
    " ",
    make("span", { class: "ref" }, version),
    message ? make("span", { class: "message-line" }, message.split("\n")[0]) : null,
  ];
}

const durationText = (build) => formatDuration(secondsBetween(build.requested_at, build.ended_at));

function requesterText(build) {
  const others = build.requesters.length - 1;
  const first = build.requester ?? build.requesters[0] ?? "";
  return others > 0 ? `${first} and ${pluralize(others, "other")}` : first;
}

function showPage(page) {
  showRows(page.builds);
  byId("builds").hidden = !page.builds.length;
  byId("loading").hidden = true;
  setText(byId("error"), "");
  showPlaceholder(page.builds);
  const count = page.builds.length ? `${pluralize(page.builds.length, "build")} shown` : "";
  if (byId("count").textContent !== count) byId("count").textContent = count;
  showPageLinks(page);
}

function showRows(builds) {
  const showsRequesters = builds.some((build) => requesterText(build) && (api.isAdmin || build.requesters.length > 1));
  document.querySelector("th.requester").hidden = !showsRequesters;
  const focusedId = document.activeElement?.id;
  const next = new Map();
  for (const build of builds) {
    const signature = JSON.stringify([build, showsRequesters]);
    const known = shown.get(build.id);
    next.set(build.id, known?.signature === signature ? known : { signature, element: row(build, showsRequesters) });
  }
  const elements = [...next.values()].map((each) => each.element);
  if (elements.length !== body.children.length || elements.some((each, index) => each !== body.children[index])) {
    body.replaceChildren(...elements);
    if (focusedId?.startsWith("build-")) byId(focusedId)?.focus({ preventScroll: true });
  }
  shown = next;
}

function showPageLinks(page) {
  const { before } = currentQuery();
  byId("newest").hidden = !before;
  byId("newest").href = addressWith({ before: "" });
  byId("older").hidden = !page.next;
  byId("older").href = page.next ? addressWith({ before: page.next }) : "";
  byId("pages").hidden = !before && !page.next;
}

function showPlaceholder(builds) {
  const element = byId("empty");
  element.hidden = builds.length > 0;
  if (builds.length) return;
  const isFiltered = Object.values(currentQuery()).some(Boolean);
  const parts = isFiltered
    ? [make("h2", {}, "No builds match"), make("p", {}, "Change the search or the filters."), make("a", { class: "button", href: api.base }, "Show all builds")]
    : [
        make("h2", {}, "No builds yet"),
        make("p", {}, "Build the environment of a repository as an image, then start servers from it."),
        make("a", { class: "button primary", href: `${api.base}new` }, "Build a repository"),
      ];
  if (element.textContent !== parts.map((each) => each.textContent).join("")) element.replaceChildren(...parts);
}

async function load() {
  clearTimeout(timer);
  loading?.abort();
  loading = new AbortController();
  const { signal } = loading;
  try {
    const page = await api.get(apiPath(), signal);
    if (signal.aborted) return;
    showPage(page);
    pollMs = POLL_MS;
    if (page.builds.some((build) => !isEnd(build.state))) schedulePoll();
  } catch (error) {
    if (!signal.aborted) showError(error);
  }
}

function showError(error) {
  byId("loading").hidden = true;
  const element = byId("error");
  setText(element, error.message);
  if (api.needsLogin(error)) {
    element.append(make("a", { class: "button", href: location.href }, "Reload"));
    return;
  }
  pollMs = Math.min(LONGEST_POLL_MS, pollMs * 2);
  schedulePoll();
}

function schedulePoll() {
  clearTimeout(timer);
  timer = setTimeout(() => document.visibilityState === "visible" && load(), pollMs * (0.9 + Math.random() / 5));
}

/** Show the URL's parameters in the filters, except in the one that has the focus. */
function fillFilters() {
  for (const [name, value] of Object.entries(currentQuery())) {
    const field = filters.elements[name];
    if (field && field !== document.activeElement) field.value = value;
  }
}

function applyFilters({ replace }) {
  const values = Object.fromEntries(new FormData(filters));
  const address = addressWith({ ...values, q: values.q.trim(), before: "" });
  if (address === location.pathname + location.search) return;
  history[replace ? "replaceState" : "pushState"](null, "", address);
  load();
}

function tick() {
  for (const cell of document.querySelectorAll("td.duration[data-since]")) cell.textContent = formatDuration(secondsBetween(cell.dataset.since));
  for (const time of body.querySelectorAll("time")) {
    const text = ago(time.dateTime);
    if (time.textContent !== text) time.textContent = text;
  }
}

let typing = 0;
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  applyFilters({ replace: false });
});
filters.addEventListener("input", (event) => {
  clearTimeout(typing);
  if (event.target.tagName === "SELECT") applyFilters({ replace: false });
  else typing = setTimeout(() => applyFilters({ replace: true }), TYPING_MS);
});
window.addEventListener("popstate", () => {
  fillFilters();
  load();
});
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && load());
window.addEventListener("online", load);
setInterval(() => document.visibilityState === "visible" && tick(), 1000);
fillFilters();
load();
