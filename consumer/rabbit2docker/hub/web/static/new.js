// Asking for a build.
import * as api from "./api.js";
import { byId, make, tell } from "./dom.js";
import { short } from "./format.js";

const form = byId("wish");
const field = (name) => form.elements[name];
const FIELDS = ["repo", "ref", "subdir"];
const SHORTHAND = /^([A-Za-z0-9][A-Za-z0-9-]*)\/([\w.-]+?)(\.git)?\/?$/;

/** Return the address that is meant: `owner/name` is GitHub's. */
function url() {
  const given = field("repo").value.trim();
  const match = SHORTHAND.exec(given);
  if (match) return `https://github.com/${match[1]}/${match[2]}`;
  return /^(www\.)?github\.com\//i.test(given) ? `https://${given}` : given;
}

/** Return how an address is likely to be understood; the service's own word is what counts. */
function understood() {
  const given = url();
  if (!given) return null;
  let parsed;
  try {
    parsed = new URL(given);
  } catch {
    return /^[\w.-]+@[\w.-]+:.+/.test(given) ? { kind: "Git", name: given } : null;
  }
  if (!["http:", "https:", "git:", "ssh:"].includes(parsed.protocol)) return null;
  const parts = parsed.pathname.replace(/^\/|\/$/g, "").split("/");
  if (parsed.hostname.replace(/^www\./, "") === "github.com" && parts.length >= 2) {
    const [owner, name, kind, ...rest] = parts;
    const inAddress = ["tree", "commit", "commits"].includes(kind) ? decodeURIComponent(rest.join("/")) : "";
    return { kind: "GitHub", name: `${owner}/${name.replace(/\.git$/, "")}`, ref: inAddress };
  }
  return { kind: "Git", name: `${parsed.host}${parsed.pathname}`.replace(/(\.git)?\/?$/, "") };
}

function showUnderstood() {
  const read = byId("repo-read");
  let found = null;
  try {
    found = understood();
  } catch {
    // A half-typed escape in an address.
  }
  if (!found) {
    read.textContent = "";
    return;
  }
  const ref = field("ref").value.trim() || found.ref;
  const text = `${found.kind}: ${found.name}, ${ref ? short(ref) : "default branch"}`;
  if (read.textContent === text) return;
  read.replaceChildren(`${found.kind}: `, make("strong", {}, found.name), `, ${ref ? short(ref) : "default branch"}`);
}

function complain(name, words) {
  tell(byId(`${name}-error`), words);
  if (words) field(name).setAttribute("aria-invalid", "true");
  else field(name).removeAttribute("aria-invalid");
}

/** Say what is wrong beside the field that it is about. */
function refused(error) {
  const name = FIELDS.slice(1).find((each) => new RegExp(`\\b${each}\\b`).test(error.message)) ?? "repo";
  if (name !== "repo") byId("options").open = true;
  complain(name, error.message);
  field(name).focus();
  if (api.needsLogin(error)) {
    const where = new URLSearchParams(FIELDS.map((each) => [each, field(each).value]));
    byId("repo-error").append(" ", make("a", { href: `${api.base}new?${where}` }, "Reload the page"));
  }
}

async function ask() {
  const ref = field("ref").value.trim();
  const subdir = field("subdir").value.trim();
  const wish = { url: url(), ...(ref && { ref }), ...(subdir && { subdir }), ...(field("force").checked && { force: true }) };
  const button = byId("ask");
  button.disabled = true;
  byId("doing").textContent = "Asking …";
  try {
    const build = await api.order("POST", "api/builds", wish);
    // Who comes back finds what they wrote.
    const given = FIELDS.map((name) => [name, field(name).value.trim()]).filter(([, value]) => value);
    history.replaceState(null, "", `?${new URLSearchParams(given)}`);
    location.assign(api.pageOf(build.id));
  } catch (error) {
    refused(error);
    button.disabled = false;
    byId("doing").textContent = "";
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  FIELDS.forEach((name) => complain(name, ""));
  if (!field("repo").value.trim()) {
    complain("repo", "Give the address of a repository.");
    field("repo").focus();
    return;
  }
  if (!byId("ask").disabled) ask();
});
form.addEventListener("input", (event) => {
  if (FIELDS.includes(event.target.name)) complain(event.target.name, "");
  showUnderstood();
});
window.addEventListener("pageshow", () => {
  // A page that the browser has kept as it was left.
  byId("ask").disabled = false;
  byId("doing").textContent = "";
  showUnderstood();
});
