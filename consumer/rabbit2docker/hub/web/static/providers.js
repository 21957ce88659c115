// Repository providers: how specs are shown and URLs are recognised, from the descriptors that the service puts into the page.
import { unescaped } from "./format.js";

const PROVIDERS = new Map(JSON.parse(document.documentElement.dataset.providers).map((each) => [each.prefix, each]));
const SHORTHAND = /^([A-Za-z0-9][A-Za-z0-9-]*)\/([\w.-]+?)(\.git)?\/?$/;
const DOI = /^(?:doi:\s*|https?:\/\/(?:dx\.|www\.)?doi\.org\/)?(10\.\d+\/\S+)$/i;
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
  const found = new RegExp(`^(?:${pattern})$`).exec(text);
  return found && { ...found.groups };
}

function fill(template, values) {
  return template.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

/** Return {kind, name, ref} of what a provider builds for a spec with the default version. */
function described(provider, spec, ref) {
  return { kind: provider.name, name: target(provider.prefix, spec).name, ref, hasRef: provider.hasRef };
}

/** Return {kind, name, ref} by a provider's grammar; null if the URL is not one of its repositories. */
function parse(provider, parsed) {
  const grammar = provider.urlGrammar;
  const found = matchWhole(grammar.path, parsed.pathname.replace(/^\/+|\/+$/g, ""));
  const asked = new RegExp(grammar.query).exec(parsed.search.slice(1));
  if (!found || !asked) return null;
  const refs = grammar.refs.map(([pattern, template]) => {
    const groups = matchWhole(pattern, found.rest ?? "");
    return groups && fill(template, groups);
  });
  const ref = refs.find(Boolean) ?? "";
  const query = Object.fromEntries(Object.entries(asked.groups ?? {}).map(([name, text]) => [name, unescaped(text)]));
  let values = { ...query, ...found };
  if (provider.isUrlEncoded) values = Object.fromEntries(Object.entries(values).map(([name, text]) => [name, encodeURIComponent(unescaped(text ?? ""))]));
  const spec = fill(grammar.spec, { ...values, ref: provider.hasRef ? "HEAD" : ref, url: encodeURIComponent(parsed.href) });
  return described(provider, spec, provider.hasRef ? unescaped(ref) : "");
}

/** Return {kind, name, ref} of a DOI, null for other text. */
function detectDoi(text) {
  const doi = DOI.exec(text.trim())?.[1];
  const provider = doi && [...PROVIDERS.values()].find((each) => each.doiPattern && new RegExp(`^(?:${each.doiPattern})$`, "i").test(unescaped(doi)));
  return provider ? described(provider, unescaped(doi), "") : null;
}

/** Return {kind, name, ref, hasRef} as the service is likely to read a URL, null if it is not a repository's. The service decides. */
export function detect(url) {
  const dataset = detectDoi(url);
  if (dataset) return dataset;
  let parsed;
  try {
    parsed = new URL(url);
  } catch {
    return /^[\w.-]+@[\w.-]+:.+/.test(url) ? { kind: "Git", name: url, ref: "", hasRef: true } : null;
  }
  if (!SCHEMES.includes(parsed.protocol)) return null;
  const isWeb = parsed.protocol.startsWith("http");
  for (const provider of PROVIDERS.values()) {
    const grammar = provider.urlGrammar;
    if (!grammar || !((grammar.anyHost && isWeb) || plainHost(provider.host ?? "") === plainHost(parsed.host))) continue;
    const found = parse(provider, parsed);
    if (found) return found;
  }
  return { kind: "Git", name: withoutSuffix(`${parsed.host}${parsed.pathname}`), ref: "", hasRef: true };
}
