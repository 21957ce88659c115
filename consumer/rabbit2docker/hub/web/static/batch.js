// The page of one batch.
import * as api from "./api.js";
import { countsOf, poll, progressOf, titleOf } from "./batchview.js";
import { byId, make, setText } from "./dom.js";
import { badgeClass, formatDuration, shortRef, STATES } from "./format.js";
import { target } from "./providers.js";

const id = byId("batch").dataset.id;
const body = byId("requests").tBodies[0];
let shown = "";

function repositoryOf(request) {
  if (!request.spec) return [request.request_id];
  const { name, ref } = target(request.provider, request.spec);
  return [name, " ", make("span", { class: "ref" }, shortRef(ref))];
}

function row(request) {
  const [name, ...more] = repositoryOf(request);
  const link = request.spec ? make("a", { href: api.pageOf(request.build_id) }, name) : name;
  const message = request.image ?? request.message;
  return make(
    "tr",
    { role: "row" },
    make("td", { role: "cell", class: "state" }, make("span", { class: badgeClass(request.state) }, STATES[request.state] ?? request.state)),
    make("td", { role: "cell", class: "repository" }, link, ...more, message ? make("span", { class: "message-line" }, message.split("\n")[0]) : null),
    make("td", { role: "cell", class: "number duration" }, request.seconds === undefined ? "" : formatDuration(request.seconds)),
  );
}

function show(batch) {
  const now = JSON.stringify(batch);
  if (now === shown) return;
  shown = now;
  const title = titleOf(batch);
  byId("name").textContent = title;
  document.title = `${title} · Image builds`;
  byId("summary").replaceChildren(...progressOf(batch));
  byId("announcement").textContent = countsOf(batch);
  body.replaceChildren(...batch.requests.map(row));
  byId("requests").hidden = !batch.requests.length;
}

poll(async () => {
  try {
    const batch = await api.get(`api/batches/${encodeURIComponent(id)}`);
    show(batch);
    setText(byId("error"), "");
    byId("loading").hidden = true;
    return batch.over && batch.size !== undefined;
  } catch (error) {
    setText(byId("error"), error.message);
    byId("loading").hidden = true;
    return api.needsLogin(error);
  }
});
