// Terminal output as spans with classes. Text from a build never becomes markup.
import { make } from "./dom.js";

// Matches SGR sequences (colours and styles); all other control sequences (cursor, titles, links); and control characters.
const ESCAPES =
  /\x1b\[([0-9;:]*)m|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[PX^_][^\x1b\x9c]*(?:\x1b\\|\x9c)?|\x1b[ -/]*[0-~]?|[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f]/g;

const BASIC = [
  [0, 0, 0], [205, 0, 0], [0, 205, 0], [205, 205, 0], [0, 0, 238], [205, 0, 205], [0, 205, 205], [229, 229, 229],
  [127, 127, 127], [255, 0, 0], [0, 255, 0], [255, 255, 0], [92, 92, 255], [255, 0, 255], [0, 255, 255], [255, 255, 255],
];
const PLAIN = { fg: null, bg: null, bold: false, dim: false, italic: false, underline: false, inverse: false, hidden: false, strike: false };
const STYLES = {
  1: ["bold", true], 2: ["dim", true], 3: ["italic", true], 4: ["underline", true], 7: ["inverse", true], 8: ["hidden", true], 9: ["strike", true],
  21: ["underline", true], 23: ["italic", false], 24: ["underline", false], 27: ["inverse", false], 28: ["hidden", false], 29: ["strike", false],
};

/** Return the nearest of the sixteen basic colours: only those have sufficient contrast on the log's background. */
function nearest(red, green, blue) {
  let best = 0;
  let least = Infinity;
  BASIC.forEach(([r, g, b], index) => {
    const distance = (r - red) ** 2 + (g - green) ** 2 + (b - blue) ** 2;
    if (distance < least) [best, least] = [index, distance];
  });
  return best;
}

function fromPalette(number) {
  if (number < 16) return number;
  if (number >= 232) return nearest(...Array(3).fill(8 + 10 * (number - 232)));
  const level = (value) => (value ? 55 + 40 * value : 0);
  const offset = number - 16;
  return nearest(level(Math.floor(offset / 36)), level(Math.floor(offset / 6) % 6), level(offset % 6));
}

/** Parses lines in sequence: a style lasts until it is reset. */
export class Terminal {
  #style = { ...PLAIN };

  /** Return the nodes of one line. */
  line(text) {
    // A carriage return overwrites the line: only the part after the last one is visible.
    const passes = text.replace(/\r+$/, "").split("\r");
    passes.slice(0, -1).forEach((pass) => this.#pieces(pass));
    return this.#pieces(passes.at(-1));
  }

  #pieces(text) {
    const nodes = [];
    let from = 0;
    for (const match of text.matchAll(ESCAPES)) {
      this.#add(nodes, text.slice(from, match.index));
      from = match.index + match[0].length;
      if (match[1] !== undefined) this.#apply(match[1]);
    }
    this.#add(nodes, text.slice(from));
    return nodes;
  }

  #add(nodes, text) {
    if (!text) return;
    const classes = this.#classes();
    nodes.push(classes ? make("span", { class: classes }, text) : document.createTextNode(text));
  }

  #classes() {
    const style = this.#style;
    let { fg, bg } = style;
    if (style.inverse) [fg, bg] = [bg ?? 0, fg ?? 7];
    const found = [];
    if (fg !== null) found.push(`fg${fg}`);
    if (bg !== null) found.push(`bg${bg}`);
    for (const name of ["bold", "dim", "italic", "underline", "strike"]) if (style[name]) found.push(name);
    if (style.hidden) found.push("hidden-text");
    return found.join(" ");
  }

  #apply(parameters) {
    const codes = parameters.split(/[;:]/).map((code) => Number(code) || 0);
    while (codes.length) {
      const code = codes.shift();
      if (code === 0) this.#style = { ...PLAIN };
      else if (code === 22) Object.assign(this.#style, { bold: false, dim: false });
      else if (code in STYLES) this.#style[STYLES[code][0]] = STYLES[code][1];
      else if (code >= 30 && code <= 37) this.#style.fg = code - 30;
      else if (code >= 90 && code <= 97) this.#style.fg = code - 82;
      else if (code >= 40 && code <= 47) this.#style.bg = code - 40;
      else if (code >= 100 && code <= 107) this.#style.bg = code - 92;
      else if (code === 39) this.#style.fg = null;
      else if (code === 49) this.#style.bg = null;
      else if (code === 38 || code === 48) this.#colour(code === 38 ? "fg" : "bg", codes);
    }
  }

  #colour(where, codes) {
    const kind = codes.shift();
    if (kind === 5) this.#style[where] = fromPalette(Math.min(255, codes.shift() ?? 0));
    else if (kind === 2) this.#style[where] = nearest(...codes.splice(0, 3).concat(0, 0, 0).slice(0, 3));
  }
}
