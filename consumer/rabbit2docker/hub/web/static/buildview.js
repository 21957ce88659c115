// Shows the state of one build in its page.
import * as api from "./api.js";
import { Terminal } from "./ansi.js";
import { PHASES } from "./buildstate.js";
import { byId, make, setList, setText } from "./dom.js";
import { ago, badgeClass, clockTime, exactTime, formatBytes, formatDuration, isEnd, linkable, pluralize, secondsBetween, shortRef, STATES } from "./format.js";
import { target } from "./providers.js";

const CATEGORIES = {
  user: "caused by the repository",
  infrastructure: "caused by the infrastructure",
  operator: "caused by the service’s configuration",
  timeout: "time limit exceeded",
};
const PHASE_STATUS = { done: "done", current: "in progress", broken: "ended here", todo: "not started" };

/** Update the whole page. */
export function render(state) {
  showHeader(state);
  showProblem(state.build);
  showImage(state.build);
  showPhases(state);
  showFacts(state.build);
  showProgress(state);
}

function showHeader({ build, isCancelling }) {
  const { name, ref } = target(build.provider, build.spec);
  const label = STATES[build.state] ?? build.state;
  setText(byId("name"), name);
  const badge = byId("state");
  if (badge.textContent !== label) {
    badge.textContent = label;
    badge.className = badgeClass(build.state);
    byId("announcement").textContent = `The build is ${label.toLowerCase()}.`;
  }
  document.title = `${label}: ${name}${ref ? ` at ${shortRef(ref)}` : ""} · Image builds`;
  byId("rebuild").hidden = !isEnd(build.state);
  byId("cancel").hidden = isEnd(build.state);
  byId("cancel").disabled = isCancelling;
  if (isEnd(build.state) && byId("cancel-dialog").open) byId("cancel-dialog").close();
}

function showProblem({ problem, state, cancelled_by }) {
  const section = byId("problem");
  section.hidden = !(problem || state === "cancelled");
  if (section.hidden) return;
  section.classList.toggle("cancelled", state === "cancelled");
  const isWithdrawn = problem?.reason === "cancelled";
  const titles = {
    cancelled: "This build was cancelled",
    rejected: isWithdrawn ? "This request was cancelled before its build began" : "This request was rejected",
  };
  setText(byId("problem-title"), titles[state] ?? "This build failed");
  setText(byId("problem-message"), state === "cancelled" ? `Cancelled by ${cancelled_by || "an unknown user"}.` : problem.message);
  setText(byId("problem-hint"), problem?.hint || (problem?.retryable ? "Try again later: the cause may be temporary." : ""));
  if (!problem) return;
  const category = CATEGORIES[problem.category];
  setList(byId("problem-facts"), [
    ["Failed step", problem.failed_step && make("code", {}, problem.failed_step)],
    ["Exit code", problem.exit_code === null || problem.exit_code === undefined ? "" : String(problem.exit_code)],
    ["Reason", make("span", {}, make("code", {}, problem.reason), category ? `, ${category}` : "")],
  ]);
  showTail(problem.tail ?? []);
}

function showTail(lines) {
  const section = byId("problem-tail");
  section.hidden = !lines.length;
  const box = section.querySelector("pre");
  if (section.hidden || box.childNodes.length) return;
  const terminal = new Terminal();
  lines.forEach((line, index) => box.append(...(index ? ["\n"] : []), ...terminal.line(line)));
  box.scrollTop = box.scrollHeight;
}

function showImage({ state, image, size, digest, cached, warnings }) {
  byId("image").hidden = !(state === "completed" && image);
  setText(byId("image-name"), image ?? "");
  const facts = [size ? formatBytes(size) : "", digest ?? "", cached ? "The image already existed, so nothing was built." : ""];
  setText(byId("image-facts"), facts.filter(Boolean).join(" · "));
  setText(byId("image-warnings"), (warnings ?? []).join("\n"));
}

/** Update the phases with their durations. */
export function showPhases(state) {
  const list = byId("phases");
  list.hidden = state.build.cached || state.build.state === "rejected";
  if (list.hidden) return;
  if (!list.children.length) {
    for (const name of PHASES) {
      list.append(make("li", {}, make("span", {}, STATES[name]), make("span", { class: "visually-hidden" }), make("span", { class: "time" })));
    }
  }
  [...list.children].forEach((item, index) => showPhase(item, state.phaseStatus(index), state.phaseSeconds(PHASES[index])));
}

function showPhase(item, status, seconds) {
  const [, statusText, time] = item.children;
  item.className = status;
  if (status === "current") item.setAttribute("aria-current", "step");
  else item.removeAttribute("aria-current");
  const spoken = `, ${PHASE_STATUS[status]} `;
  if (statusText.textContent !== spoken) statusText.textContent = spoken;
  const duration = status === "todo" || seconds === null ? "" : formatDuration(seconds);
  if (time.textContent !== duration) time.textContent = duration;
}

function link(url, text) {
  const href = linkable(url);
  return href ? make("a", { href, rel: "noopener noreferrer" }, text) : text;
}

const timeElement = (time) => time && make("time", { datetime: time, title: exactTime(time) }, ago(time));

/** Return when the service tries again, while that is in the future. */
function nextTry({ state, retry_at }) {
  const seconds = retry_at ? -secondsBetween(retry_at) : 0;
  if (isEnd(state) || seconds <= 0) return "";
  return make("time", { datetime: retry_at, title: exactTime(retry_at) }, `in ${formatDuration(seconds)}`);
}

function optionTexts(options) {
  const count = (values, noun) => (Object.keys(values ?? {}).length ? pluralize(Object.keys(values).length, noun) : "");
  const texts = [
    options.subdir && `directory ${options.subdir}`,
    options.force && (options.keep_cache ? "build even if the image exists, with the engine's cache" : "build even if the image exists"),
    count(options.build_args, "build argument"),
    count(options.labels, "label"),
    options.appendix && "with an appendix",
    options.timeout_seconds && `at most ${formatDuration(options.timeout_seconds)}`,
  ];
  return texts.filter(Boolean).join(", ");
}

/** Update the facts, among them the duration. */
export function showFacts(build) {
  const { name, ref } = target(build.provider, build.spec);
  const others = build.requesters.filter((each) => each !== build.requester);
  setList(byId("facts"), [
    ["Repository", link(build.repo_url ?? "", build.repo_url ?? name)],
    ["Version", ref && shortRef(ref) !== shortRef(build.resolved_ref) ? ref : ""],
    ["Note", build.notice ?? ""],
    ["Commit", build.resolved_ref && make("code", { title: build.resolved_ref }, shortRef(build.resolved_ref))],
    ["Options", optionTexts(build.options ?? {})],
    ["Requested by", [build.requester, ...others].filter(Boolean).join(", ")],
    ["Requested", timeElement(build.requested_at)],
    [isEnd(build.state) ? "Duration" : "Running for", formatDuration(secondsBetween(build.requested_at, build.ended_at))],
    ["Next try", nextTry(build)],
    ["Attempt", build.attempt > 1 ? String(build.attempt) : ""],
  ]);
}

function showProgress({ build, ahead, expectedStart, isCancelling }) {
  const text = progressText(build, ahead, expectedStart, isCancelling);
  // Build steps are many; screen readers announce only what the user waits for.
  byId("progress").setAttribute("aria-live", isCancelling || build.state === "queued" ? "polite" : "off");
  if (byId("progress").textContent !== text) byId("progress").textContent = text;
}

function progressText(build, ahead, expectedStart, isCancelling) {
  if (isCancelling) return "Cancelling …";
  if (isEnd(build.state)) return "";
  if (build.state !== "queued") return build.message;
  if (ahead === null) return "Waiting for a free build slot.";
  const before = ahead === 0 ? "this build is next" : `${pluralize(ahead, "build")} ${ahead === 1 ? "is" : "are"} before this one`;
  const expected = expectedStart ? ` It is expected to start at about ${clockTime(expectedStart)}.` : "";
  return `Waiting for a free build slot: ${before}.${expected}`;
}

/** Update the log's toolbar and notices. `build`: null until it is loaded. */
export function showLog(id, build, log) {
  const hasEnded = Boolean(build && isEnd(build.state));
  byId("log").dataset.empty = hasEnded ? "This build has no log." : "The log starts as soon as the build does.";
  byId("follow").setAttribute("aria-pressed", String(log.isFollowing));
  byId("follow").hidden = hasEnded;
  byId("latest").hidden = log.isFollowing;
  byId("full-log").href = `${api.base}${api.pathOf(id)}/log`;
  byId("download").href = `${byId("full-log").href}?download=1`;
  byId("log-section").hidden = Boolean(hasEnded && (build.cached || build.state === "rejected"));
  setText(byId("trimmed"), log.dropped ? `${pluralize(log.dropped, "earlier line")}: see the full log.` : "");
}
