// A picture with boxes on it: persons to choose from, and a box that is drawn by mouse, finger or keys.
import { make, makeSvg } from "./dom.js";

const CLICK = 6; // pixels of the screen that a click may wander
const HANDLE = 18; // reach of a corner, in pixels of the screen
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

export class Stage {
  // Settings: draw (whether boxes can be drawn), label, onselect(key), ondraw(box).
  constructor(parent, settings = {}) {
    Object.assign(this, { draw: false, label: "Picture", onselect: () => {}, ondraw: () => {} }, settings);
    this.image = make("img", { alt: "", draggable: "false" });
    for (const name of ["load", "error"]) this.image.addEventListener(name, () => this.root.classList.remove("waiting"));
    this.svg = makeSvg("svg", { preserveAspectRatio: "none" });
    this.root = make("div", { class: this.draw ? "stage drawing" : "stage" }, this.image, this.svg);
    parent.append(this.root);
    this.persons = [];
    if (this.draw) this.listen();
  }

  show(url, width, height) {
    Object.assign(this, { width, height, box: null, selected: null, persons: [] });
    if (this.image.getAttribute("src") !== url) {
      this.root.classList.add("waiting");
      this.image.src = url;
    }
    this.root.style.setProperty("--ratio", width / height);
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.paint();
  }

  // Persons: [{ key, box, label }].
  setPersons(persons, selected = null) {
    Object.assign(this, { persons, selected });
    this.paint();
  }

  select(key) {
    this.selected = key;
    if (key !== null) this.box = null;
    this.paint();
  }

  setBox(box) {
    this.box = box;
    if (box) this.selected = null;
    this.paint();
  }

  paint() {
    const focused = this.svg.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
    this.svg.replaceChildren(...this.persons.map((person) => this.personBox(person)));
    if (this.draw) this.svg.append(this.pen());
    if (focused !== undefined) this.svg.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  }

  personBox({ key, box, label }) {
    const choose = () => this.choose(key);
    const chosen = key === this.selected;
    return makeSvg(
      "g",
      {
        class: chosen ? "person chosen" : "person", tabindex: "0", role: "button", "aria-label": label,
        "aria-pressed": String(chosen), "data-key": key,
        onclick: this.draw ? () => {} : choose,
        onkeydown: (event) => {
          if (event.key !== "Enter" && event.key !== " ") return;
          event.preventDefault();
          event.stopPropagation();
          choose();
        },
      },
      ...["halo", "line"].map((name) => rectangle(box, name)),
    );
  }

  choose(key) {
    this.select(key);
    this.onselect(key);
  }

  // The drawn box, and what keys move it by.
  pen() {
    const described = this.box
      ? `Box from ${this.box.slice(0, 2).map(Math.round)} to ${this.box.slice(2).map(Math.round)}.`
      : "No box is drawn.";
    const group = makeSvg("g", {
      class: "pen", tabindex: "0", role: "application", "data-key": "pen",
      "aria-label": `${described} Enter draws one, arrow keys move it, Shift with arrow keys changes its size.`,
      onkeydown: (event) => this.key(event),
    });
    group.append(rectangle([0, 0, this.width || 1, this.height || 1], "frame"));
    if (this.box) {
      group.append(...["halo", "line"].map((name) => rectangle(this.box, name)));
      group.append(...corners(this.box).map(([x, y]) => this.handle(x, y)));
    }
    return group;
  }

  handle(x, y) {
    const scale = this.width / (this.svg.getBoundingClientRect().width || this.width);
    return makeSvg("circle", { class: "handle", cx: x, cy: y, r: 6 * scale });
  }

  key(event) {
    if (event.target.dataset.key !== "pen") return;
    if (event.key === "Enter" || event.key === " ") this.drawn(this.box || this.middle());
    else if (KEYS[event.key]) {
      const step = Math.max(1, Math.min(this.width, this.height) / (event.altKey ? 400 : 60));
      const [dx, dy] = KEYS[event.key].map((value) => value * step);
      const [x0, y0, x1, y1] = this.box || this.middle();
      this.drawn(event.shiftKey ? [x0, y0, x1 + dx, y1 + dy] : this.moved([x0, y0, x1, y1], dx, dy));
    } else return;
    event.preventDefault();
  }

  middle() {
    return [0.4 * this.width, 0.2 * this.height, 0.6 * this.width, 0.8 * this.height];
  }

  moved([x0, y0, x1, y1], dx, dy) {
    const [mx, my] = [clip(dx, -x0, this.width - x1), clip(dy, -y0, this.height - y1)];
    return [x0 + mx, y0 + my, x1 + mx, y1 + my];
  }

  drawn(box) {
    const [x, y] = [[box[0], box[2]], [box[1], box[3]]].map((pair) => pair.sort((a, b) => a - b));
    this.setBox([clip(x[0], 0, this.width - 4), clip(y[0], 0, this.height - 4), clip(Math.max(x[1], x[0] + 4), 4, this.width), clip(Math.max(y[1], y[0] + 4), 4, this.height)]);
    this.ondraw(this.box);
  }

  // Mouse and finger.
  listen() {
    // A finger that draws is no gesture of the browser's: lifted in motion it would leave a fling behind, and the tap
    // that stops a fling (on "Search", say) clicks nothing; resting it would open the context menu.
    this.svg.addEventListener("touchstart", (event) => event.preventDefault(), { passive: false });
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || this.drag) return;
      event.preventDefault(); // no text is selected, no picture dragged away
      this.svg.setPointerCapture(event.pointerId);
      this.drag = { pointer: event.pointerId, from: this.place(event), at: [event.clientX, event.clientY], ...this.grip(event) };
    });
    this.svg.addEventListener("pointermove", (event) => {
      const drag = this.drag;
      if (!drag || event.pointerId !== drag.pointer) return;
      drag.wandered ||= Math.hypot(event.clientX - drag.at[0], event.clientY - drag.at[1]) > CLICK;
      if (!drag.wandered) return;
      const [x, y] = this.place(event);
      if (drag.move) this.setBox(this.moved(drag.move, x - drag.from[0], y - drag.from[1]));
      else this.setBox(ordered([...drag.anchor, x, y]));
    });
    this.svg.addEventListener("pointerup", (event) => this.release(event));
    this.svg.addEventListener("pointercancel", () => (this.drag = null));
  }

  // What a press takes hold of: a corner, the box, or nothing (a new box begins there).
  grip(event) {
    const [x, y] = this.place(event);
    if (this.box) {
      const scale = this.width / this.svg.getBoundingClientRect().width;
      const near = corners(this.box).findIndex(([cx, cy]) => Math.hypot(cx - x, cy - y) < HANDLE * scale);
      if (near >= 0) return { anchor: corners(this.box)[(near + 2) % 4] };
      if (inside(this.box, x, y)) return { move: this.box };
    }
    return { anchor: [x, y] };
  }

  release(event) {
    const drag = this.drag;
    this.drag = null;
    if (!drag || event.pointerId !== drag.pointer) return;
    if (drag.wandered) this.drawn(this.box);
    else {
      const hit = this.persons.filter(({ box }) => inside(box, ...drag.from)).sort((a, b) => area(a.box) - area(b.box))[0];
      if (hit) this.choose(hit.key);
    }
    this.svg.querySelector(".pen")?.focus({ preventScroll: true });
  }

  place(event) {
    const { left, top, width, height } = this.svg.getBoundingClientRect();
    return [
      clip(((event.clientX - left) / width) * this.width, 0, this.width),
      clip(((event.clientY - top) / height) * this.height, 0, this.height),
    ];
  }
}

export function rectangle([x0, y0, x1, y1], name) {
  return makeSvg("rect", { class: name, x: x0, y: y0, width: x1 - x0, height: y1 - y0, rx: 2 });
}

const clip = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));
const inside = ([x0, y0, x1, y1], x, y) => x >= x0 && x <= x1 && y >= y0 && y <= y1;
const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
const corners = ([x0, y0, x1, y1]) => [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
const ordered = ([x0, y0, x1, y1]) => [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
