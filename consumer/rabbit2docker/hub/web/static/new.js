// The form for a new build.
import * as api from "./api.js";
import { byId, make, setText } from "./dom.js";
import { shortRef } from "./format.js";
import { detect, fullUrl } from "./providers.js";

const form = byId("build-form");
const field = (name) => form.elements[name];
const valueOf = (name) => field(name).value.trim();
const FIELDS = ["repo", "ref", "subdir"];

/** Show how the repository is likely to be read. */
function showDetected() {
  const output = byId("repo-detected");
  const found = detect(fullUrl(valueOf("repo")));
  if (!found) {
    output.textContent = "";
    return;
  }
  const ref = valueOf("ref") || found.ref;
  const version = found.hasRef ? `, ${ref ? shortRef(ref) : "default branch"}` : "";
  if (output.textContent === `${found.kind}: ${found.name}${version}`) return;
  output.replaceChildren(`${found.kind}: `, make("strong", {}, found.name), version);
}

function setFieldError(name, message) {
  setText(byId(`${name}-error`), message);
  if (message) field(name).setAttribute("aria-invalid", "true");
  else field(name).removeAttribute("aria-invalid");
}

/** Show an error beside the field that it names, else beside the repository. */
function showError(error) {
  const name = FIELDS.slice(1).find((each) => new RegExp(`\\b${each}\\b`).test(error.message)) ?? "repo";
  if (name !== "repo") byId("options").open = true;
  setFieldError(name, error.message);
  field(name).focus();
  if (api.needsLogin(error)) {
    const query = new URLSearchParams(FIELDS.map((each) => [each, field(each).value]));
    byId("repo-error").append(" ", make("a", { href: `${api.base}new?${query}` }, "Reload the page"));
  }
}

function createRequest() {
  const [ref, subdir] = [valueOf("ref"), valueOf("subdir")];
  return { url: fullUrl(valueOf("repo")), ...(ref && { ref }), ...(subdir && { subdir }), ...(field("force").checked && { force: true }) };
}

function setBusy(isBusy) {
  byId("start-build").disabled = isBusy;
  byId("form-status").textContent = isBusy ? "Requesting …" : "";
}

async function submit() {
  setBusy(true);
  try {
    const build = await api.send("POST", "api/builds", createRequest());
    // The browser's back button returns to the filled form.
    const filled = FIELDS.map((name) => [name, valueOf(name)]).filter(([, value]) => value);
    history.replaceState(null, "", `?${new URLSearchParams(filled)}`);
    location.assign(api.pageOf(build.id));
  } catch (error) {
    showError(error);
    setBusy(false);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  FIELDS.forEach((name) => setFieldError(name, ""));
  if (!valueOf("repo")) {
    setFieldError("repo", "Enter the URL of a repository.");
    field("repo").focus();
    return;
  }
  if (!byId("start-build").disabled) submit();
});
form.addEventListener("input", (event) => {
  if (FIELDS.includes(event.target.name)) setFieldError(event.target.name, "");
  showDetected();
});
window.addEventListener("pageshow", () => {
  // The browser may restore the page from its cache in the state in which it was left.
  setBusy(false);
  showDetected();
});
