// Elements out of plain text: nothing in these pages ever becomes markup that was a text before.

/** Return an element. `about`: properties and attributes; `inside`: texts and elements, empty ones left out. */
export function make(tag, about = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(about)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...inside.filter((each) => each !== null && each !== undefined && each !== ""));
  return element;
}

/** Return the element with this id. */
export const byId = (id) => document.getElementById(id);

/** Put a text where another one is or none, so that nothing is read out twice; hide what has none. */
export function tell(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}

/** Put rows [term, text or element] into a <dl>, without those that have nothing. */
export function list(element, rows) {
  const present = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  const before = [...element.querySelectorAll("dt, dd")].map((each) => each.outerHTML).join("");
  const parts = present.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]);
  if (parts.map((each) => each.outerHTML).join("") !== before) element.replaceChildren(...parts);
}
