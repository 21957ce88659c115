// The page of one build: follows its events and offers to cancel or repeat it.
import * as api from "./api.js";
import { BuildState } from "./buildstate.js";
import { render, showFacts, showLog, showPhases } from "./buildview.js";
import { byId, make, setText } from "./dom.js";
import { isEnd } from "./format.js";
import { LogView } from "./logview.js";

const COPIED_MS = 2000;
const RETRY_MS = 5000;
const WRAP_KEY = "rabbit2docker-wrap";

let id = byId("build").dataset.id;
let state = null;
const log = new LogView(byId("log"), updateLog);

// Rendering

let frame = 0;
function scheduleRender() {
  if (frame || !state) return;
  frame = requestAnimationFrame(() => {
    frame = 0;
    render(state);
    updateLog();
  });
}

function updateLog() {
  showLog(id, state?.build ?? null, log);
}

function showError(error) {
  const element = byId("error");
  setText(element, error.message);
  if (api.needsLogin(error)) element.append(make("a", { class: "button", href: location.href }, "Reload"));
}

// Actions

async function rebuild() {
  byId("rebuild").disabled = true;
  try {
    const build = await api.send("POST", `${api.pathOf(id)}/rebuild?after=${state.build.state}`);
    location.assign(api.pageOf(build.id));
  } catch (error) {
    showError(error);
    byId("rebuild").disabled = false;
  }
}

async function cancel() {
  byId("confirm-cancel").disabled = true;
  setText(byId("cancel-error"), "");
  try {
    await api.send("DELETE", api.pathOf(id));
    state.isCancelling = !isEnd(state.build.state);
    byId("cancel-dialog").close();
  } catch (error) {
    setText(byId("cancel-error"), error.message);
  }
  byId("confirm-cancel").disabled = false;
  scheduleRender();
}

/** Copy a text to the clipboard, also on pages without TLS, where browsers offer no clipboard API. */
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
  if (!document.execCommand("copy")) throw new Error("The browser does not allow copying. The name is selected; copy it by hand.");
  selection.removeAllRanges();
}

let copyTimer = 0;
async function copyImage() {
  const button = byId("copy-image");
  try {
    await copy(state.build.image);
    button.textContent = "Copied";
    byId("announcement").textContent = "The image name was copied.";
    clearTimeout(copyTimer);
    copyTimer = setTimeout(() => {
      button.textContent = "Copy";
    }, COPIED_MS);
  } catch (error) {
    showError(error);
  }
}

function setWrap(isWrapped) {
  byId("log").classList.toggle("wrapped", isWrapped);
  byId("wrap").setAttribute("aria-pressed", String(isWrapped));
  if (log.isFollowing) log.follow(true);
}

function storedWrap() {
  try {
    return localStorage.getItem(WRAP_KEY) !== "no";
  } catch {
    return true;
  }
}

function toggleWrap() {
  const isWrapped = byId("wrap").getAttribute("aria-pressed") !== "true";
  setWrap(isWrapped);
  try {
    localStorage.setItem(WRAP_KEY, isWrapped ? "yes" : "no");
  } catch {
    // The browser blocks storage; the choice lasts for this page.
  }
}

byId("rebuild").addEventListener("click", rebuild);
byId("cancel").addEventListener("click", () => {
  setText(byId("cancel-error"), "");
  byId("cancel-dialog").showModal();
});
byId("keep-building").addEventListener("click", () => byId("cancel-dialog").close());
byId("confirm-cancel").addEventListener("click", cancel);
byId("copy-image").addEventListener("click", copyImage);
byId("follow").addEventListener("click", () => log.follow(!log.isFollowing));
byId("latest").addEventListener("click", () => {
  log.follow(true);
  byId("log").focus({ preventScroll: true });
});
byId("wrap").addEventListener("click", toggleWrap);

// Events

function setId(newId) {
  if (newId === id) return;
  id = newId;
  history.replaceState(null, "", api.pageOf(id) + location.hash);
}

const setConnectionNotice = (text) => setText(byId("connection"), text);

const handlers = {
  event(kind, event) {
    state.apply(kind, event);
    setId(state.build.id);
    scheduleRender();
  },
  disconnected: (reason = "The connection is lost. The build continues, and this page reconnects as soon as the service answers.") =>
    setConnectionNotice(reason),
  connected: () => setConnectionNotice(""),
  ended: () => setConnectionNotice(""),
  refused(error) {
    setConnectionNotice("");
    showError(error);
  },
};

function tick() {
  if (document.visibilityState !== "visible" || isEnd(state.build.state)) return;
  showPhases(state);
  showFacts(state.build);
}

async function start() {
  let build;
  try {
    build = await api.get(api.pathOf(id));
  } catch (error) {
    showError(error);
    if (!api.needsLogin(error) && error.status !== 404) setTimeout(start, RETRY_MS);
    return;
  }
  setText(byId("error"), "");
  id = build.id;
  state = new BuildState(build, log);
  render(state);
  updateLog();
  setInterval(tick, 1000);
  await new api.EventStream(`${api.pathOf(id)}/events`, handlers).run();
}

setWrap(storedWrap());
updateLog();
log.seek();
start();
