// One build: where it stands, why it failed, and its log as it grows.
import * as api from "./api.js";
import { Terminal } from "./ansi.js";
import { byId, list, make, tell } from "./dom.js";
import { ago, badgeClass, between, counted, exactly, isEnd, lasting, linkable, short, sized, STATES, target } from "./format.js";
import { LogView } from "./logview.js";

const PHASES = ["queued", "waiting", "fetching", "building", "pushing"];
const PROBLEMS = { user: "in the repository", infrastructure: "in the infrastructure", operator: "in the service’s settings", timeout: "it took too long" };
const DONE = 2000;

const article = byId("build");
let id = article.dataset.id;
let build = null;
let events = null;
let ahead = null;
let ending = false;
// How far the events are: those of a build that was met in its middle begin at its beginning.
let attempt = 0;
let reached = 0;
let began = {};
const view = new LogView(byId("log"), showLog);

// What happens

function phase(name, time, number) {
  if (number > attempt) {
    attempt = number;
    // Another attempt goes through them anew.
    if (attempt > 1) began = {};
    reached = 0;
  }
  const at = PHASES.indexOf(name);
  if (at < reached) return;
  reached = at;
  began[name] ??= time;
  const isNew = attempt > build.attempt || (attempt === build.attempt && at > PHASES.indexOf(build.state));
  if (isNew && !isEnd(build.state)) build.state = name;
  build.attempt = Math.max(build.attempt, attempt);
}

function end(state, time, changes) {
  Object.assign(build, changes, { state, ended_at: build.ended_at ?? time });
  if (changes.timings) build.timings = changes.timings;
  ending = false;
}

const TAKE = {
  accepted({ data, time }) {
    const { build_name, repo_url, resolved_ref, image, cached, options } = data;
    Object.assign(build, { build_name, repo_url, resolved_ref, cached, image: build.image ?? image, options: options ?? build.options });
    build.started_at ??= time;
    ahead = null;
    if (data.build_id !== id) {
      id = data.build_id;
      history.replaceState(null, "", api.pageOf(id) + location.hash);
    }
    if (!cached) phase("waiting", time, 0);
  },
  rejected({ data, time }) {
    const { reason, message, retryable } = data;
    end("rejected", time, { problem: { reason, message, retryable, hint: "", tail: [] } });
  },
  progress({ data, time }) {
    phase(data.phase, time, data.attempt);
    build.message = data.message;
  },
  log({ data }) {
    for (const line of data.lines) phase(line.phase, line.ts, data.attempt);
    view.lines(data.attempt, data.n, data.lines.map((line) => line.text));
  },
  gap({ data }) {
    view.gap(data.attempt, data.first, data.last, data.message);
  },
  completed({ data, time }) {
    const { image, digest, size, resolved_ref, cached, timings } = data;
    end("completed", time, { image, digest, size, resolved_ref, cached, timings });
  },
  failed({ data, time }) {
    const { reason, category, message, hint, exit_code, failed_step, tail, timings } = data;
    end("failed", time, { problem: { reason, category, message, hint, exit_code, failed_step, tail: tail ?? [] }, timings });
  },
  cancelled({ data, time }) {
    end("cancelled", time, { cancelled_by: data.by });
  },
};

function take(kind, event) {
  if (kind === "queue") ahead = event.ahead;
  else TAKE[kind]?.(event);
  later();
}

// What is seen

let frame = 0;
function later() {
  if (!frame && build) {
    frame = requestAnimationFrame(() => {
      frame = 0;
      render();
    });
  }
}

function render() {
  showHead();
  showProblem();
  showImage();
  showPhases();
  showFacts();
  showNow();
  showLog();
}

function showHead() {
  const { name, ref } = target(build.provider, build.spec);
  const version = ref && !ref.startsWith("refs/") ? short(ref) : ref;
  const words = STATES[build.state] ?? build.state;
  tell(byId("name"), name);
  const badge = byId("state");
  if (badge.textContent !== words) {
    badge.textContent = words;
    badge.className = badgeClass(build.state);
    byId("said").textContent = `The build is ${words.toLowerCase()}.`;
  }
  document.title = `${words}: ${name}${version ? ` at ${version}` : ""} · Image builds`;
  byId("rebuild").hidden = !isEnd(build.state);
  byId("cancel").hidden = isEnd(build.state);
  byId("cancel").disabled = ending;
  if (isEnd(build.state) && byId("sure").open) byId("sure").close();
}

function showProblem() {
  const { problem, state } = build;
  const section = byId("problem");
  section.hidden = !(problem || state === "cancelled");
  if (section.hidden) return;
  section.classList.toggle("cancelled", state === "cancelled");
  const titles = { cancelled: "This build was cancelled", rejected: "This cannot be built" };
  tell(byId("problem-title"), titles[state] ?? "Why it failed");
  tell(byId("problem-message"), state === "cancelled" ? `By ${build.cancelled_by || "somebody"}.` : problem.message);
  tell(byId("problem-hint"), problem?.hint || (problem?.retryable ? "The same may work later." : ""));
  if (!problem) return;
  const category = PROBLEMS[problem.category];
  list(byId("problem-facts"), [
    ["Failed step", problem.failed_step && make("code", {}, problem.failed_step)],
    ["Exit code", problem.exit_code === null || problem.exit_code === undefined ? "" : String(problem.exit_code)],
    ["Reason", make("span", {}, make("code", {}, problem.reason), category ? `, ${category}` : "")],
  ]);
  const tail = byId("problem-tail");
  tail.hidden = !problem.tail?.length;
  const lines = tail.querySelector("pre");
  if (tail.hidden || lines.childNodes.length) return;
  const terminal = new Terminal();
  problem.tail.forEach((line, at) => lines.append(...(at ? ["\n"] : []), ...terminal.line(line)));
  lines.scrollTop = lines.scrollHeight;
}

function showImage() {
  byId("image").hidden = !(build.state === "completed" && build.image);
  tell(byId("image-name"), build.image ?? "");
  const facts = [build.size ? sized(build.size) : "", build.digest ?? "", build.cached ? "The image existed already: nothing had to be built." : ""];
  tell(byId("image-facts"), facts.filter(Boolean).join(" · "));
}

function timeOf(name) {
  const known = build.timings?.[name];
  if (known !== null && known !== undefined) return known;
  if (name === "queued") return build.started_at ? between(build.requested_at, build.started_at) : isEnd(build.state) ? null : between(build.requested_at);
  if (!began[name]) return null;
  const next = PHASES.slice(PHASES.indexOf(name) + 1).find((later) => began[later]);
  return between(began[name], next ? began[next] : build.ended_at);
}

function statusOf(at) {
  if (build.state === "completed") return "done";
  const current = isEnd(build.state) ? furthest() : PHASES.indexOf(build.state);
  if (at < current) return "done";
  if (at > current) return "todo";
  return isEnd(build.state) ? "broken" : "current";
}

function furthest() {
  const timed = PHASES.findLastIndex((name) => build.timings?.[name] !== null && build.timings?.[name] !== undefined);
  return Math.max(reached, timed);
}

function showPhases() {
  const element = byId("phases");
  element.hidden = build.cached || build.state === "rejected";
  if (element.hidden) return;
  if (!element.children.length) {
    for (const name of PHASES) {
      element.append(make("li", {}, make("span", {}, STATES[name]), make("span", { class: "visually-hidden" }), make("span", { class: "time" })));
    }
  }
  const words = { done: "done", current: "now", broken: "ended here", todo: "to come" };
  [...element.children].forEach((item, at) => {
    const status = statusOf(at);
    item.className = status;
    if (status === "current") item.setAttribute("aria-current", "step");
    else item.removeAttribute("aria-current");
    const said = `, ${words[status]} `;
    if (item.children[1].textContent !== said) item.children[1].textContent = said;
    const seconds = status === "todo" ? null : timeOf(PHASES[at]);
    const text = seconds === null ? "" : lasting(seconds);
    if (item.lastChild.textContent !== text) item.lastChild.textContent = text;
  });
}

function link(url, text) {
  const address = linkable(url);
  return address ? make("a", { href: address, rel: "noopener noreferrer" }, text) : text;
}

const when = (time) => time && make("time", { datetime: time, title: exactly(time) }, ago(time));

function showFacts() {
  const { name, ref } = target(build.provider, build.spec);
  const options = build.options ?? {};
  const others = build.requesters.filter((each) => each !== build.requester);
  const count = (given, word) => (Object.keys(given ?? {}).length ? counted(Object.keys(given).length, word) : "");
  const extra = [
    options.subdir && `in ${options.subdir}`,
    options.force && "built even if it existed",
    count(options.build_args, "build argument"),
    count(options.labels, "label"),
    options.appendix && "with an appendix",
    options.timeout_seconds && `at most ${lasting(options.timeout_seconds)}`,
  ];
  list(byId("facts"), [
    ["Repository", link(build.repo_url ?? "", build.repo_url ?? name)],
    ["Version", ref && short(ref) !== short(build.resolved_ref) ? ref : ""],
    ["Commit", build.resolved_ref && make("code", { title: build.resolved_ref }, short(build.resolved_ref))],
    ["Options", extra.filter(Boolean).join(", ")],
    ["Asked by", [build.requester, ...others].filter(Boolean).join(", ")],
    ["Asked", when(build.requested_at)],
    [isEnd(build.state) ? "Took" : "So far", make("span", { class: "ticking" }, lasting(between(build.requested_at, build.ended_at)))],
    ["Attempt", build.attempt > 1 ? String(build.attempt) : ""],
  ]);
}

function showNow() {
  let words = "";
  if (ending) words = "It is being cancelled …";
  else if (build.state === "queued") {
    words = "Waiting for a free build slot.";
    if (ahead > 0) words = `Waiting for a free build slot: ${counted(ahead, "build")} ${ahead === 1 ? "is" : "are"} before this one.`;
    else if (ahead === 0) words = "Waiting for a free build slot: this build is next.";
  } else if (!isEnd(build.state)) words = build.message;
  // Steps of a build are many: read out is only what somebody waits for.
  byId("now").setAttribute("aria-live", ending || build.state === "queued" ? "polite" : "off");
  if (byId("now").textContent !== words) byId("now").textContent = words;
}

function showLog() {
  const isOver = build && isEnd(build.state);
  byId("log").dataset.empty = isOver ? "There is no log." : "The log begins as soon as the build does.";
  byId("follow").setAttribute("aria-pressed", String(view.following));
  byId("follow").hidden = Boolean(isOver);
  byId("latest").hidden = view.following;
  byId("plain").href = `${api.base}${api.pathOf(id)}/log`;
  byId("download").href = `${byId("plain").href}?download=1`;
  byId("log-part").hidden = Boolean(isOver && (build.cached || build.state === "rejected"));
  tell(byId("trimmed"), view.dropped ? `${counted(view.dropped, "line")} before these are in the full text.` : "");
}

// What can be done

function trouble(error) {
  const element = byId("trouble");
  tell(element, error.message);
  if (api.needsLogin(error)) element.append(make("a", { class: "button", href: location.href }, "Reload"));
}

async function again() {
  byId("rebuild").disabled = true;
  try {
    const made = await api.order("POST", `${api.pathOf(id)}/rebuild`);
    location.assign(api.pageOf(made.id));
  } catch (error) {
    trouble(error);
    byId("rebuild").disabled = false;
  }
}

async function cancel() {
  byId("end").disabled = true;
  tell(byId("sure-error"), "");
  try {
    await api.order("DELETE", api.pathOf(id));
    ending = !isEnd(build.state);
    byId("sure").close();
  } catch (error) {
    tell(byId("sure-error"), error.message);
  }
  byId("end").disabled = false;
  later();
}

/** Put a text into the clipboard, also where the page did not come over TLS and browsers offer no way of their own. */
async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const range = document.createRange();
  range.selectNodeContents(byId("image-name"));
  const selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
  if (!document.execCommand("copy")) throw new Error("The browser does not let this page copy; the name is marked now.");
  selection.removeAllRanges();
}

let copied = 0;
async function copyImage() {
  const button = byId("copy");
  try {
    await copy(build.image);
    button.textContent = "Copied";
    byId("said").textContent = "The image’s name was copied.";
    clearTimeout(copied);
    copied = setTimeout(() => {
      button.textContent = "Copy";
    }, DONE);
  } catch (error) {
    trouble(error);
  }
}

function wrap(wish) {
  byId("log").classList.toggle("wrapped", wish);
  byId("wrap").setAttribute("aria-pressed", String(wish));
  if (view.following) view.follow(true);
}

function remembered() {
  try {
    return localStorage.getItem("rabbit2docker-wrap") !== "no";
  } catch {
    return true;
  }
}

byId("rebuild").addEventListener("click", again);
byId("cancel").addEventListener("click", () => {
  tell(byId("sure-error"), "");
  byId("sure").showModal();
});
byId("keep").addEventListener("click", () => byId("sure").close());
byId("end").addEventListener("click", cancel);
byId("copy").addEventListener("click", copyImage);
byId("follow").addEventListener("click", () => view.follow(!view.following));
byId("latest").addEventListener("click", () => {
  view.follow(true);
  byId("log").focus({ preventScroll: true });
});
byId("wrap").addEventListener("click", () => {
  const wish = byId("wrap").getAttribute("aria-pressed") !== "true";
  wrap(wish);
  try {
    localStorage.setItem("rabbit2docker-wrap", wish ? "yes" : "no");
  } catch {
    // A browser that remembers nothing.
  }
});

// Beginning

function connection(words) {
  tell(byId("connection"), words);
}

async function start() {
  try {
    build = await api.get(api.pathOf(id));
  } catch (error) {
    trouble(error);
    if (!api.needsLogin(error) && error.status !== 404) setTimeout(() => start(), 5000);
    return;
  }
  tell(byId("trouble"), "");
  id = build.id;
  render();
  setInterval(() => document.visibilityState === "visible" && !isEnd(build.state) && (showPhases(), showFacts()), 1000);
  events = new api.Events(`${api.pathOf(id)}/events`, {
    event: take,
    lost: () => connection("The connection is lost. The build goes on; so does this page as soon as the service answers."),
    found: () => connection(""),
    over: () => connection(""),
    refused: (error) => {
      connection("");
      trouble(error);
    },
  });
  await events.run();
}

wrap(remembered());
showLog();
view.seek();
start();
