// A long log that grows: drawn in animation frames, the newest lines only, followed until somebody looks back.
import { Terminal } from "./ansi.js";
import { make } from "./dom.js";

const CHUNK = 200;
const PER_FRAME = 2000;
const NEAR = 40;

/** Return the id, and so the address, of a line: attempt and number, as all of rabbit2docker counts them. */
const idOf = (attempt, n) => `L${attempt}.${n}`;

export class LogView {
  #box;
  #most;
  #changed;
  #queue = [];
  #drawn = 0;
  #next = new Map();
  #terminal = new Terminal();
  #attempt = null;
  #frame = 0;
  #top = 0;
  #wanted = "";
  #marked = null;
  /** Lines that are no longer shown. */
  dropped = 0;
  /** Whether the newest line is kept in sight. */
  following = true;

  /** `most`: lines that are kept; `changed`: called when `following` or `dropped` is another. */
  constructor(box, changed, most = 20_000) {
    this.#box = box;
    this.#most = most;
    this.#changed = changed;
    box.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    window.addEventListener("hashchange", () => this.seek());
  }

  /** Add lines `n`, `n`+1, … of an attempt; those that are there already are passed over. */
  lines(attempt, n, texts) {
    const next = this.#next.get(attempt) ?? 0;
    for (let at = Math.max(0, next - n); at < texts.length; at += 1) this.#queue.push({ attempt, n: n + at, text: texts[at] });
    this.#next.set(attempt, Math.max(next, n + texts.length));
    this.#soon();
  }

  /** Say that lines are missing. */
  gap(attempt, first, last, why) {
    if ((this.#next.get(attempt) ?? 0) > last) return;
    this.#next.set(attempt, last + 1);
    const which = first === last ? `Line ${first} is` : `Lines ${first} to ${last} are`;
    this.#queue.push({ attempt, remark: `${which} missing${why ? `: ${why}` : "."}` });
    this.#soon();
  }

  /** Say something between the lines. */
  remark(text) {
    this.#queue.push({ attempt: this.#attempt, remark: text });
    this.#soon();
  }

  /** Keep the newest line in sight, or stay. */
  follow(wish) {
    if (wish) this.#wanted = "";
    this.#setFollowing(wish);
    if (wish) this.#toEnd();
  }

  #setFollowing(wish) {
    if (this.following === wish) return;
    this.following = wish;
    this.#changed();
  }

  #soon() {
    // In a window that is not looked at nothing is drawn, and a log must not grow without end there either.
    const beyond = this.#queue.length - this.#most;
    if (beyond > PER_FRAME) {
      this.dropped += this.#queue.splice(0, beyond).filter((each) => each.remark === undefined).length;
    }
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#frame = 0;
    const before = this.dropped;
    for (const each of this.#queue.splice(0, PER_FRAME)) this.#append(each);
    while (this.#drawn > this.#most + CHUNK) this.#drop();
    if (this.following) this.#toEnd();
    if (this.dropped !== before) this.#changed();
    if (this.#wanted) this.#reach();
    if (this.#queue.length) this.#soon();
  }

  #append({ attempt, n, text, remark }) {
    if (attempt !== this.#attempt && attempt !== null) {
      if (this.#attempt !== null) this.#place(make("div", { class: "remark" }, `Attempt ${attempt} begins.`));
      this.#attempt = attempt;
      this.#terminal = new Terminal();
    }
    if (remark !== undefined) {
      this.#place(make("div", { class: "remark" }, remark));
      return;
    }
    const id = idOf(attempt, n);
    const number = make("a", { href: `#${id}`, "aria-label": `Line ${n}`, tabindex: "-1" }, String(n));
    this.#place(make("div", { class: "line", id }, number, make("span", { class: "text" }, ...this.#terminal.line(text))));
  }

  #place(element) {
    let chunk = this.#box.lastElementChild;
    if (!chunk || chunk.childElementCount >= CHUNK) {
      chunk = make("div", { class: "chunk" });
      this.#box.append(chunk);
    }
    chunk.append(element);
    this.#drawn += 1;
  }

  #drop() {
    const oldest = this.#box.firstElementChild;
    this.#drawn -= oldest.childElementCount;
    this.dropped += oldest.querySelectorAll(".line").length;
    oldest.remove();
  }

  #toEnd() {
    this.#box.scrollTop = this.#box.scrollHeight;
    this.#top = this.#box.scrollTop;
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.#box;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    if (isAtEnd && !this.#wanted) this.#setFollowing(true);
    else if (scrollTop < this.#top - 1) this.#setFollowing(false);
    this.#top = scrollTop;
  }

  /** Go to the line that the address names, as soon as it is there. */
  seek() {
    const wanted = location.hash.slice(1);
    if (!/^L\d+\.\d+$/.test(wanted)) return;
    this.#wanted = wanted;
    this.#setFollowing(false);
    this.#reach();
  }

  #reach() {
    const line = document.getElementById(this.#wanted);
    if (!line) return;
    this.#wanted = "";
    this.#marked?.classList.remove("marked");
    line.classList.add("marked");
    this.#marked = line;
    line.scrollIntoView({ block: "center" });
  }
}
