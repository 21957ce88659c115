// Repository providers: how specs are shown and URLs are recognised, from the descriptors that the service puts into the page.
import { unescaped } from "./format.js";

const PROVIDERS = new Map(JSON.parse(document.documentElement.dataset.providers).map((each) => [each.prefix, each]));
const SHORTHAND = /^([A-Za-z0-9][A-Za-z0-9-]*)\/([\w.-]+?)(\.git)?\/?$/;
const SCHEMES = ["http:", "https:", "git:", "ssh:"];

const plainHost = (host) => host.toLowerCase().replace(/^www\./, "");
const withoutSuffix = (name) => name.replace(/(\.git)?\/?$/, "");

/** Return {name, ref} of what is built, from provider and spec. */
export function target(provider, spec) {
  const { repoParts = 0, isUrlEncoded = false } = PROVIDERS.get(provider) ?? {};
  const parts = spec.split("/");
  if (!repoParts || parts.length <= repoParts) return { name: unescaped(spec), ref: "" };
  const name = parts.slice(0, repoParts).join("/");
  const ref = parts.slice(repoParts).join("/");
  if (!isUrlEncoded) return { name, ref };
  return { name: withoutSuffix(unescaped(name).replace(/^https?:\/\//, "")), ref: unescaped(ref) };
}

/** Return the full URL for what a user types: `owner/name` and `github.com/…` are short for GitHub's. */
export function fullUrl(typed) {
  const host = PROVIDERS.get("gh").host;
  const match = SHORTHAND.exec(typed);
  if (match) return `https://${host}/${match[1]}/${match[2]}`;
  return plainHost(typed).startsWith(`${host}/`) ? `https://${typed}` : typed;
}

function matchWhole(pattern, text) {
  return new RegExp(`^(?:${pattern})$`).exec(text)?.groups;
}

function fill(template, values) {
  return template.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

/** Return {kind, name, ref} by a provider's grammar; null if the URL's path is not one of its repositories. */
function parsePath(provider, path) {
  const found = matchWhole(provider.urlGrammar.path, path);
  if (!found) return null;
  const refs = provider.urlGrammar.refs.map(([pattern, template]) => {
    const groups = matchWhole(pattern, found.rest ?? "");
    return groups && fill(template, groups);
  });
  const ref = refs.find(Boolean) ?? "";
  const { name } = target(provider.prefix, fill(provider.urlGrammar.spec, { ...found, ref: "HEAD" }));
  return { kind: provider.name, name, ref: unescaped(ref) };
}

/** Return {kind, name, ref} as the service is likely to read a URL, null if it is not a repository's. The service decides. */
export function detect(url) {
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    return /^[\w.-]+@[\w.-]+:.+/.test(url) ? { kind: "Git", name: url, ref: "" } : null;
  }
  if (!SCHEMES.includes(parsed.protocol)) return null;
  const path = parsed.pathname.replace(/^\/+|\/+$/g, "");
  for (const provider of PROVIDERS.values()) {
    if (!provider.isAvailable || !provider.urlGrammar || provider.host !== plainHost(parsed.host)) continue;
    const found = parsePath(provider, path);
    if (found) return found;
  }
  return { kind: "Git", name: withoutSuffix(`${parsed.host}${parsed.pathname}`), ref: "" };
}
