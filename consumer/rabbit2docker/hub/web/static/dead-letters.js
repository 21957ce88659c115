// The page of dead letters, for administrators.
import * as api from "./api.js";
import { byId, make, setList, setText } from "./dom.js";
import { ago, exactTime, formatBytes, pluralize } from "./format.js";
import { target } from "./providers.js";

const PAGE_SIZE = 50;
let letters = [];

/** Return the request of a letter in words; without one, its routing key. */
function titleOf(letter) {
  if (!letter.provider || !letter.spec) return letter.routing_key || "(no routing key)";
  const { name, ref } = target(letter.provider, letter.spec);
  return ref ? `${name} at ${ref}` : name;
}

function factsOf(letter) {
  return [
    ["Requested by", letter.requester],
    ["Tenant", letter.tenant],
    ["Routing key", letter.routing_key],
    ["Message id", letter.message_id],
    ["Id", letter.id],
  ];
}

function headOf(letter) {
  const time = letter.published_at
    ? make("time", { datetime: letter.published_at, title: exactTime(letter.published_at) }, ago(letter.published_at))
    : null;
  return make(
    "div",
    { class: "title" },
    make("h2", { id: `letter-${letter.id}` }, titleOf(letter)),
    make("span", { class: "badge failed" }, letter.reason),
    time && make("span", { class: "muted" }, time),
  );
}

function actionsOf(letter) {
  const redrive = make("button", { class: "button", type: "button", "aria-describedby": `letter-${letter.id}` }, "Publish again");
  const discard = make("button", { class: "button danger", type: "button", "aria-describedby": `letter-${letter.id}` }, "Discard");
  redrive.addEventListener("click", () => redriveLetters([letter]));
  discard.addEventListener("click", () => discardLetters([letter]));
  return make("div", { class: "actions" }, letter.forged ? null : redrive, discard);
}

/** Return the part of a letter that loads its content when it is opened. */
function contentOf(letter) {
  const body = make("pre", { class: "log tail", tabindex: "0", "aria-label": "Body" });
  const facts = make("dl", { class: "facts" });
  const note = make("p", { class: "muted", hidden: true });
  const details = make("details", {}, make("summary", {}, "Content"), facts, body, note);
  setList(facts, factsOf(letter));
  details.addEventListener("toggle", async () => {
    if (!details.open || body.textContent) return;
    try {
      const found = await api.get(`api/dead-letters/${letter.id}`);
      body.textContent = found.body || "(empty)";
      const headers = Object.entries(found.headers);
      setList(facts, [...factsOf(letter), ["Size", formatBytes(found.body_bytes)], ["Undecodable", found.undecodable], ...headers]);
    } catch (error) {
      setText(note, error.message);
    }
  });
  return details;
}

function article(letter) {
  return make(
    "article",
    { class: "letter problem", "aria-labelledby": `letter-${letter.id}` },
    headOf(letter),
    make("p", { class: "message" }, letter.message),
    make("p", {}, `${letter.cause} ${letter.action}`),
    letter.unverified ? make("p", { class: "notice warning" }, letter.unverified) : null,
    contentOf(letter),
    actionsOf(letter),
  );
}

function show(page) {
  letters = page.letters;
  byId("letters").replaceChildren(...letters.map(article));
  byId("loading").hidden = true;
  byId("empty").hidden = letters.length > 0;
  byId("more").hidden = !page.more;
  byId("discard-all").hidden = letters.length < 2;
  byId("redrive-all").hidden = letters.filter((letter) => !letter.forged).length < 2;
  showReasons();
  setText(byId("error"), "");
  byId("announcement").textContent = letters.length ? `${pluralize(letters.length, "dead letter")} shown` : "";
}

/** Offer the reasons that were seen; a chosen one stays. */
function showReasons() {
  const select = byId("reason");
  const known = new Set([...select.options].map((option) => option.value));
  for (const { reason } of letters) {
    if (!known.has(reason)) select.append(make("option", { value: reason }, reason));
    known.add(reason);
  }
}

async function load() {
  const query = new URLSearchParams({ limit: PAGE_SIZE });
  if (byId("reason").value) query.set("reason", byId("reason").value);
  try {
    show(await api.get(`api/dead-letters?${query}`));
  } catch (error) {
    byId("loading").hidden = true;
    setText(byId("error"), error.message);
  }
}

/** Ask for a confirmation and return whether it was given. */
function confirmed(title, text, yes) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  dialog.showModal();
  return new Promise((resolve) => {
    const decide = (answer) => {
      dialog.onclose = null;
      dialog.close();
      resolve(answer);
    };
    byId("confirm-yes").onclick = () => decide(true);
    byId("confirm-no").onclick = () => decide(false);
    dialog.onclose = () => resolve(false);
  });
}

async function redriveLetters(chosen) {
  const doubtful = chosen.filter((letter) => letter.unverified);
  let unverified = false;
  if (doubtful.length) {
    const text = "RabbitMQ cannot prove the sender. Publish again only if all users of this RabbitMQ are trusted.";
    unverified = await confirmed(`Publish ${pluralize(doubtful.length, "letter")} of uncertain origin?`, text, "Publish");
    if (!unverified && doubtful.length === chosen.length) return;
  }
  await change("redrive", { ids: chosen.map((letter) => letter.id), unverified });
}

async function discardLetters(chosen) {
  const text = "Its message is deleted for good. It cannot be published again.";
  const many = "Their messages are deleted for good. They cannot be published again.";
  const one = chosen.length === 1;
  if (await confirmed(`Discard ${pluralize(chosen.length, "dead letter")}?`, one ? text : many, "Discard")) {
    await change("discard", { ids: chosen.map((letter) => letter.id) });
  }
}

const WORDS = { published: "published again", discarded: "discarded", kept: "kept", missing: "no longer there" };

/** Change letters, report the results and show what is left. */
async function change(action, body) {
  setText(byId("error"), "");
  byId("letters").inert = true;
  try {
    const { results } = await api.send("POST", `api/dead-letters/${action}`, body);
    const counts = new Map();
    for (const { outcome } of results) counts.set(outcome, (counts.get(outcome) ?? 0) + 1);
    const sums = [...counts].map(([outcome, count]) => `${pluralize(count, "letter")} ${WORDS[outcome]}`);
    const messages = new Set(results.map((result) => result.message).filter(Boolean));
    setText(byId("result"), `${sums.join(", ")}. ${[...messages].join(" ")}`.trim());
    await load();
  } catch (error) {
    setText(byId("error"), error.message);
  } finally {
    byId("letters").inert = false;
  }
}

byId("refresh").addEventListener("click", load);
byId("reason").addEventListener("change", load);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("redrive-all").addEventListener("click", () => redriveLetters(letters.filter((letter) => !letter.forged)));
byId("discard-all").addEventListener("click", () => discardLetters(letters));
load();
