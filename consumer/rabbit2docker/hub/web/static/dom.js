// DOM helpers. Text never becomes markup: nothing here parses HTML.

/** Return an element. `attributes`: null, undefined and false are left out; `children`: texts and elements, empty ones left out. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** Return the element with this id. */
export const byId = (id) => document.getElementById(id);

/** Set an element's text and hide the element if the text is empty. An unchanged text is left alone: screen readers would read it again. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
  element.hidden = !text;
}

/** Fill a <dl> with rows [term, text or element], without those that have no value. */
export function setList(element, rows) {
  const present = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  const before = [...element.querySelectorAll("dt, dd")].map((each) => each.outerHTML).join("");
  const parts = present.flatMap(([term, value]) => [make("dt", {}, term), make("dd", {}, value)]);
  if (parts.map((each) => each.outerHTML).join("") !== before) element.replaceChildren(...parts);
}
