// The list of builds.
import * as api from "./api.js";
import { byId, make, tell } from "./dom.js";
import { ago, badgeClass, between, counted, exactly, isEnd, lasting, short, STATES, target } from "./format.js";

// Builds are few and pages that show the list are many: a look every few seconds at what hardly ever changes, and only
// while something runs and the page is looked at, costs less than a connection that is held for each of them.
const LOOK = 5000;
const LONGEST_LOOK = 60_000;
const TYPING = 300;
const LIMIT = 50;
const RUNNING = ["queued", "waiting", "fetching", "building", "pushing"];

const body = byId("builds").tBodies[0];
const filters = byId("filters");
let shown = new Map();
let pause = LOOK;
let timer = 0;
let asking = null;

function wish() {
  const given = new URLSearchParams(location.search);
  return Object.fromEntries(["q", "state", "whose", "before"].map((name) => [name, given.get(name) ?? ""]));
}

function addressOf(changes) {
  const all = Object.entries({ ...wish(), ...changes }).filter(([, value]) => value);
  return `${api.base}${all.length ? `?${new URLSearchParams(all)}` : ""}`;
}

function path() {
  const { q, state, whose, before } = wish();
  const query = new URLSearchParams({ limit: LIMIT });
  if (q) query.set("q", q);
  if (before) query.set("before", before);
  if (whose === "mine" && api.user) query.set("requester", api.user);
  for (const each of state === "running" ? RUNNING : [state]) if (each) query.append("state", each);
  return `api/builds?${query}`;
}

function row(build, showsWho) {
  const { name, ref } = target(build.provider, build.spec);
  const link = make("a", { href: api.pageOf(build.id), id: `build-${build.id}` }, name);
  const version = build.resolved_ref ? short(build.resolved_ref) : short(ref);
  const said = ref && build.resolved_ref && ref !== build.resolved_ref ? `${ref} · ${version}` : version;
  const why = isEnd(build.state) ? build.problem?.message : build.message;
  const time = make("time", { datetime: build.requested_at, title: exactly(build.requested_at) }, ago(build.requested_at));
  const running = isEnd(build.state) ? {} : { "data-since": build.requested_at };
  return make(
    "tr",
    { role: "row" },
    make("td", { role: "cell", class: "state" }, make("span", { class: badgeClass(build.state) }, STATES[build.state] ?? build.state)),
    make("td", { role: "cell", class: "repository" }, link, " ", make("span", { class: "ref" }, said), why ? make("span", { class: "why" }, why.split("\n")[0]) : null),
    showsWho ? make("td", { role: "cell", class: "asked" }, who(build)) : null,
    make("td", { role: "cell", class: "when" }, time),
    make("td", { role: "cell", class: "number took", ...running }, isEnd(build.state) && !build.ended_at ? "" : took(build)),
  );
}

const took = (build) => lasting(between(build.requested_at, build.ended_at));

function who(build) {
  const others = build.requesters.length - 1;
  const first = build.requester ?? build.requesters[0] ?? "";
  return others > 0 ? `${first} and ${counted(others, "other")}` : first;
}

function show(page) {
  const showsWho = page.builds.some((build) => who(build) && (api.isAdmin || build.requesters.length > 1));
  document.querySelector("th.asked").hidden = !showsWho;
  const focused = document.activeElement?.id;
  const next = new Map();
  for (const build of page.builds) {
    const signature = JSON.stringify([build, showsWho]);
    const known = shown.get(build.id);
    next.set(build.id, known?.signature === signature ? known : { signature, element: row(build, showsWho) });
  }
  const elements = [...next.values()].map((each) => each.element);
  if (elements.length !== body.children.length || elements.some((each, at) => each !== body.children[at])) {
    body.replaceChildren(...elements);
    if (focused?.startsWith("build-")) byId(focused)?.focus({ preventScroll: true });
  }
  shown = next;
  byId("builds").hidden = !page.builds.length;
  byId("loading").hidden = true;
  tell(byId("trouble"), "");
  showEmpty(page);
  const said = page.builds.length ? `${counted(page.builds.length, "build")} shown` : "";
  if (byId("count").textContent !== said) byId("count").textContent = said;
  const { before } = wish();
  byId("newest").hidden = !before;
  byId("newest").href = addressOf({ before: "" });
  byId("older").hidden = !page.next;
  byId("older").href = page.next ? addressOf({ before: page.next }) : "";
  byId("pages").hidden = !before && !page.next;
}

function showEmpty(page) {
  const empty = byId("empty");
  empty.hidden = page.builds.length > 0;
  if (page.builds.length) return;
  const { q, state, whose, before } = wish();
  const parts =
    q || state || whose || before
      ? [make("h2", {}, "No build is like this"), make("p", {}, "Another search or state may find it."), make("a", { class: "button", href: api.base }, "Show all")]
      : [
          make("h2", {}, "Nothing has been built yet"),
          make("p", {}, "Give the address of a repository, and its environment becomes an image that servers can start with."),
          make("a", { class: "button primary", href: `${api.base}new` }, "Build a repository"),
        ];
  if (empty.textContent !== parts.map((each) => each.textContent).join("")) empty.replaceChildren(...parts);
}

async function load() {
  clearTimeout(timer);
  asking?.abort();
  asking = new AbortController();
  const { signal } = asking;
  try {
    const page = await api.get(path(), signal);
    if (signal.aborted) return;
    show(page);
    pause = LOOK;
    if (page.builds.some((build) => !isEnd(build.state))) again();
  } catch (error) {
    if (signal.aborted) return;
    failed(error);
  }
}

function failed(error) {
  byId("loading").hidden = true;
  const trouble = byId("trouble");
  tell(trouble, error.message);
  if (api.needsLogin(error)) {
    trouble.append(make("a", { class: "button", href: location.href }, "Reload"));
    return;
  }
  pause = Math.min(LONGEST_LOOK, pause * 2);
  again();
}

function again() {
  clearTimeout(timer);
  timer = setTimeout(() => document.visibilityState === "visible" && load(), pause * (0.9 + Math.random() / 5));
}

function fill() {
  for (const [name, value] of Object.entries(wish())) if (filters.elements[name] && filters.elements[name] !== document.activeElement) filters.elements[name].value = value;
}

function filter({ keep }) {
  const values = Object.fromEntries(new FormData(filters));
  const address = addressOf({ ...values, q: values.q.trim(), before: "" });
  if (address === location.pathname + location.search) return;
  history[keep ? "replaceState" : "pushState"](null, "", address);
  load();
}

function tick() {
  for (const cell of document.querySelectorAll("td.took[data-since]")) cell.textContent = lasting(between(cell.dataset.since));
  for (const time of body.querySelectorAll("time")) {
    const text = ago(time.dateTime);
    if (time.textContent !== text) time.textContent = text;
  }
}

let typing = 0;
filters.addEventListener("submit", (event) => {
  event.preventDefault();
  clearTimeout(typing);
  filter({ keep: false });
});
filters.addEventListener("input", (event) => {
  clearTimeout(typing);
  if (event.target.tagName === "SELECT") filter({ keep: false });
  else typing = setTimeout(() => filter({ keep: true }), TYPING);
});
window.addEventListener("popstate", () => {
  fill();
  load();
});
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && load());
window.addEventListener("online", load);
setInterval(() => document.visibilityState === "visible" && tick(), 1000);
fill();
load();
