// Appearances: the answer in a sentence, when and where, and a card each.
import { cropUrl, post } from "./api.js";
import { byId, clock, make, makeSvg, moment, percent, span } from "./dom.js";

const SIGNS = { likely: "●", uncertain: "◐", unlikely: "○" };
const LANE = 26;

export class Results {
  // onopen(index): an appearance is looked at; onrefine(): search again with the marks; onerror(text).
  constructor({ onopen, onrefine, onerror }) {
    Object.assign(this, { answer: null, marks: new Map(), onopen, onerror });
    byId("refine-search").addEventListener("click", onrefine);
    byId("refine-clear").addEventListener("click", () => {
      this.marks.clear();
      this.paintMarks();
    });
    for (const button of document.querySelectorAll("[data-format]"))
      button.addEventListener("click", () => this.export(button.dataset.format));
  }

  get appearances() {
    return this.answer?.appearances || [];
  }

  marked(mark) {
    return [...this.marks].filter(([, value]) => value === mark).map(([id]) => id);
  }

  // Marks by best detection; pressing the same mark again takes it back.
  mark(appearance, mark) {
    const id = appearance.best.id;
    if (this.marks.get(id) === mark) this.marks.delete(id);
    else this.marks.set(id, mark);
    this.paintMarks();
  }

  reset() {
    this.answer = null;
    this.marks.clear();
    byId("answer-part").hidden = true;
    byId("welcome").hidden = false;
  }

  show(answer) {
    this.answer = answer;
    this.used = new Map(this.marks);
    byId("welcome").hidden = true;
    byId("answer-part").hidden = false;
    byId("verdict").className = answer.found ? "verdict-line found" : "verdict-line missing";
    const [first, ...rest] = answer.statement.split(/(?<=[:.]) /);
    byId("answer").textContent = first.replace(/:$/, "");
    const more = rest.join(" ");
    byId("answer-detail").textContent = `${more.charAt(0).toUpperCase()}${more.slice(1)} ${answer.searched.toLocaleString()} detections compared in ${answer.seconds.toFixed(answer.seconds < 0.1 ? 2 : 1)} s.`.trim();
    byId("cards").replaceChildren(...this.appearances.map((appearance, index) => this.card(appearance, index)));
    byId("timeline").replaceChildren(...timeline(this.appearances, (index) => this.reveal(index)));
    this.paintMarks();
  }

  card(appearance, index) {
    const { best, verdict, camera, source } = appearance;
    const name = `Appearance ${index + 1}, ${verdict}, camera ${camera}`;
    return make(
      "li",
      { class: `card ${verdict}`, "data-id": best.id },
      make("button", { type: "button", class: "look", "aria-label": `${name}: look closer`, onclick: () => this.onopen(index) }, picture(best.id)),
      make(
        "div",
        { class: "words" },
        make("p", { class: "badge", text: `${SIGNS[verdict]} ${appearance.is_query ? "your query" : verdict}` }),
        make("p", { class: "number", title: "Cosine similarity of the whole appearance" }, appearance.similarity.toFixed(2)),
        make("p", { class: "where", text: camera, title: source.name }),
        make("p", { class: "soft when", text: span(appearance.start, appearance.end, appearance.start_offset, appearance.end_offset) }),
        make("p", { class: "soft rate", text: `${percent(appearance.false_match_rate)} false matches` }),
      ),
      make(
        "div",
        { class: "marks", role: "group", "aria-label": `Mark appearance ${index + 1}` },
        ...["right", "wrong"].map((mark) =>
          make("button", { type: "button", class: mark, "data-mark": mark, "aria-pressed": "false", "aria-label": mark === "right" ? "Right: this is the person" : "Wrong: somebody else", text: mark === "right" ? "✓ Right" : "✗ Wrong", onclick: () => this.mark(appearance, mark) }),
        ),
      ),
    );
  }

  reveal(index) {
    const card = byId("cards").children[index];
    card.scrollIntoView({ block: "center", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    card.querySelector(".look").focus({ preventScroll: true });
  }

  paintMarks() {
    for (const card of byId("cards").children) {
      const mark = this.marks.get(card.dataset.id) || "";
      card.dataset.marked = mark;
      for (const button of card.querySelectorAll("[data-mark]")) button.setAttribute("aria-pressed", String(button.dataset.mark === mark));
    }
    const [right, wrong] = [this.marked("right").length, this.marked("wrong").length];
    const same = this.used && this.used.size === this.marks.size && [...this.marks].every(([id, mark]) => this.used.get(id) === mark);
    byId("refine").hidden = !right && !wrong;
    byId("refine-search").hidden = same;
    byId("refine-line").textContent = `${right} right, ${wrong} wrong${same ? " (used)" : ""}`;
    document.dispatchEvent(new CustomEvent("marked"));
  }

  async export(format) {
    try {
      const request = { format, right: this.marked("right"), wrong: this.marked("wrong") };
      const content = await post(`/api/answers/${this.answer.id}/export`, request);
      const url = URL.createObjectURL(content);
      make("a", { href: url, download: `appearances.${format}` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    } catch (error) {
      this.onerror(error.message);
    }
  }
}

function picture(id) {
  const image = make("img", { src: cropUrl(id), alt: "", loading: "lazy" });
  image.addEventListener("error", () => image.replaceWith(make("span", { class: "nothing", text: "no picture" })));
  return image;
}

// Bars over time, a lane a camera; a lane a recording where times are unknown.
function timeline(appearances, reveal) {
  if (appearances.length < 2 || appearances.every(({ source }) => source.kind === "photo" && !source.start)) return [];
  const timed = appearances.every(({ start }) => start);
  const places = appearances.map((one) => ({
    lane: timed ? one.camera : `${one.camera}: ${one.source.name}`,
    from: timed ? Date.parse(one.start) / 1000 : one.start_offset,
    to: timed ? Date.parse(one.end || one.start) / 1000 : one.end_offset,
    verdict: one.verdict,
  }));
  const lanes = [...new Set(places.map(({ lane }) => lane))].sort();
  const first = timed ? Math.min(...places.map(({ from }) => from)) : 0;
  const last = Math.max(...places.map(({ to }) => to), first + 1);
  const at = (time) => (1000 * (time - first)) / (last - first);
  const svg = makeSvg("svg", { viewBox: `0 0 1000 ${LANE * lanes.length}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  lanes.forEach((_, row) => svg.append(makeSvg("line", { class: "lane", x1: 0, x2: 1000, y1: LANE * (row + 0.5), y2: LANE * (row + 0.5) })));
  // The least likely first: what is likely lies on top.
  const order = ["unlikely", "uncertain", "likely"];
  [...places.keys()].sort((a, b) => order.indexOf(places[a].verdict) - order.indexOf(places[b].verdict)).forEach((index) => {
    const { lane, from, to, verdict } = places[index];
    const width = Math.max(7, at(to) - at(from));
    svg.append(makeSvg("rect", { class: `bar-${verdict}`, x: Math.min(at(from), 1000 - width), width, y: LANE * lanes.indexOf(lane) + 5, height: LANE - 10, rx: 3, onclick: () => reveal(index) }));
  });
  svg.style.height = `${LANE * lanes.length}px`;
  const text = timed ? (time) => moment(new Date(time * 1000)) : clock;
  return [
    make("figcaption", { class: "unseen", text: "When and where the appearances are; the list below says the same." }),
    make("div", { class: "lanes", "aria-hidden": "true" }, ...lanes.map((lane) => make("span", { text: lane, title: lane }))),
    make("div", { class: "plot" }, svg, make("div", { class: "axis soft", "aria-hidden": "true" }, make("span", { text: text(first) }), make("span", { text: text(last) }))),
  ];
}
