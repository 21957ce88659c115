// A growing log: drawn in animation frames, limited to the newest lines, followed until the user scrolls back.
import { Terminal } from "./ansi.js";
import { make } from "./dom.js";

const CHUNK_LINES = 200;
const LINES_PER_FRAME = 2000;
const END_DISTANCE_PX = 40;

/** Return the element id of a line, from attempt and number as rabbit2docker counts them everywhere. */
const idOf = (attempt, n) => `L${attempt}.${n}`;

export class LogView {
  #box;
  #maxLines;
  #onChange;
  #queue = [];
  #drawn = 0;
  #next = new Map();
  #terminal = new Terminal();
  #attempt = null;
  #frame = 0;
  #top = 0;
  #height = 0;
  #soughtId = "";
  #markedLine = null;
  // Chunks out of sight have estimated heights, so that the end moves when they come into sight, also without new lines.
  #heights = new ResizeObserver(() => this.isFollowing && this.#scrollToEnd());
  /** Number of lines that are no longer shown. */
  dropped = 0;
  /** Whether the log scrolls along with new lines. */
  isFollowing = true;

  /** `onChange`: called when `isFollowing` or `dropped` changes; `maxLines`: lines that are kept. */
  constructor(box, onChange, maxLines = 20_000) {
    this.#box = box;
    this.#maxLines = maxLines;
    this.#onChange = onChange;
    box.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    window.addEventListener("hashchange", () => this.seek());
  }

  /** Add lines `n`, `n`+1, … of an attempt; those that are already there are skipped. */
  addLines(attempt, n, texts) {
    const next = this.#next.get(attempt) ?? 0;
    for (let index = Math.max(0, next - n); index < texts.length; index += 1) this.#queue.push({ attempt, n: n + index, text: texts[index] });
    this.#next.set(attempt, Math.max(next, n + texts.length));
    this.#scheduleDraw();
  }

  /** Add a remark that lines are missing. */
  addGap(attempt, first, last, reason) {
    if ((this.#next.get(attempt) ?? 0) > last) return;
    this.#next.set(attempt, last + 1);
    const lines = first === last ? `Line ${first} is` : `Lines ${first} to ${last} are`;
    this.#queue.push({ attempt, remark: `${lines} missing${reason ? `: ${reason}` : "."}` });
    this.#scheduleDraw();
  }

  /** Start or stop scrolling along with new lines. */
  follow(isFollowing) {
    if (isFollowing) this.#soughtId = "";
    this.#setFollowing(isFollowing);
    if (isFollowing) this.#scrollToEnd();
  }

  #setFollowing(isFollowing) {
    if (this.isFollowing === isFollowing) return;
    this.isFollowing = isFollowing;
    this.#onChange();
  }

  #scheduleDraw() {
    // A hidden window draws nothing, so the queue must be limited as well.
    const excess = this.#queue.length - this.#maxLines;
    if (excess > LINES_PER_FRAME) {
      this.dropped += this.#queue.splice(0, excess).filter((entry) => entry.remark === undefined).length;
    }
    if (!this.#frame) this.#frame = requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#frame = 0;
    const droppedBefore = this.dropped;
    for (const entry of this.#queue.splice(0, LINES_PER_FRAME)) this.#append(entry);
    while (this.#drawn > this.#maxLines + CHUNK_LINES) this.#drop();
    if (this.isFollowing) this.#scrollToEnd();
    if (this.dropped !== droppedBefore) this.#onChange();
    if (this.#soughtId) this.#scrollToSought();
    if (this.#queue.length) this.#scheduleDraw();
  }

  #append({ attempt, n, text, remark }) {
    if (attempt !== this.#attempt && attempt !== null) {
      if (this.#attempt !== null) this.#insert(make("div", { class: "remark" }, `Attempt ${attempt} begins.`));
      this.#attempt = attempt;
      this.#terminal = new Terminal();
    }
    if (remark !== undefined) {
      this.#insert(make("div", { class: "remark" }, remark));
      return;
    }
    const id = idOf(attempt, n);
    const number = make("a", { href: `#${id}`, "aria-label": `Line ${n}`, tabindex: "-1" }, String(n));
    this.#insert(make("div", { class: "line", id }, number, make("span", { class: "text" }, ...this.#terminal.line(text))));
  }

  #insert(element) {
    let chunk = this.#box.lastElementChild;
    if (!chunk || chunk.childElementCount >= CHUNK_LINES) {
      chunk?.classList.add("full");
      chunk = make("div", { class: "chunk" });
      this.#box.append(chunk);
      this.#heights.observe(chunk);
    }
    chunk.append(element);
    this.#drawn += 1;
  }

  #drop() {
    const oldest = this.#box.firstElementChild;
    this.#drawn -= oldest.childElementCount;
    this.dropped += oldest.querySelectorAll(".line").length;
    this.#heights.unobserve(oldest);
    oldest.remove();
  }

  #scrollToEnd() {
    this.#box.scrollTop = this.#box.scrollHeight;
    this.#top = this.#box.scrollTop;
    this.#height = this.#box.scrollHeight;
  }

  #onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.#box;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < END_DISTANCE_PX;
    const distance = scrollTop - this.#top;
    const hasShrunk = scrollHeight < this.#height;
    this.#height = scrollHeight;
    // Less than a pixel is rounding, or the beginning of a longer way.
    if (Math.abs(distance) <= 1) return;
    this.#top = scrollTop;
    // Also close to the end: the next line would scroll to it, and so end the browser's smooth scrolling.
    if (distance < 0) hasShrunk || this.#setFollowing(false);
    else if (isAtEnd && !this.#soughtId) this.#setFollowing(true);
  }

  /** Scroll to the line that the URL's fragment names, as soon as it exists. */
  seek() {
    const lineId = location.hash.slice(1);
    if (!/^L\d+\.\d+$/.test(lineId)) return;
    this.#soughtId = lineId;
    this.#setFollowing(false);
    this.#scrollToSought();
  }

  #scrollToSought() {
    const line = document.getElementById(this.#soughtId);
    if (!line) return;
    this.#soughtId = "";
    this.#markedLine?.classList.remove("marked");
    line.classList.add("marked");
    this.#markedLine = line;
    line.scrollIntoView({ block: "center" });
  }
}
