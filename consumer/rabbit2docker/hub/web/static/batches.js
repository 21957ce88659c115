// The page that lists batches.
import * as api from "./api.js";
import { poll, progressOf, titleOf } from "./batchview.js";
import { byId, make, setText } from "./dom.js";

function article(batch) {
  const link = make("a", { href: `${api.base}batches/${encodeURIComponent(batch.id)}` }, titleOf(batch));
  return make("article", { class: "batch" }, make("h2", {}, link), ...progressOf(batch));
}

async function load() {
  try {
    const { batches } = await api.get("api/batches");
    setText(byId("error"), "");
    // A focused link keeps the keyboard.
    if (!byId("batches").contains(document.activeElement)) byId("batches").replaceChildren(...batches.map(article));
    byId("empty").hidden = batches.length > 0;
  } catch (error) {
    setText(byId("error"), error.message);
    if (api.needsLogin(error)) return true;
  }
  byId("loading").hidden = true;
  return false;
}

poll(load);
