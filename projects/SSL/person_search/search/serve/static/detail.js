// One appearance: its whole frame with everybody in it, the video at the moment, and the marks.
import { frameUrl, get } from "./api.js";
import { byId, clock, make, makeSvg, percent, several, span } from "./dom.js";
import { Stage, rectangle } from "./stage.js";

const AROUND = 2; // seconds shown before and after an appearance

export class Detail {
  // results: Results; onsearch(detection, join).
  constructor(results, onsearch) {
    Object.assign(this, { results, index: 0, dialog: byId("detail") });
    this.stage = new Stage(byId("detail-stage"), { onselect: (key) => this.choose(key) });
    const actions = {
      play: () => this.play(), right: () => this.mark("right"), wrong: () => this.mark("wrong"),
      previous: () => this.step(-1), next: () => this.step(1), close: () => this.dialog.close(),
      join: () => this.search(onsearch, true), new: () => this.search(onsearch, false),
    };
    for (const [name, action] of Object.entries(actions)) byId(`detail-${name}`).addEventListener("click", action);
    this.dialog.addEventListener("close", () => this.stop());
    document.addEventListener("keydown", (event) => this.key(event));
    document.addEventListener("marked", () => this.paintMarks());
  }

  key(event) {
    if (!this.dialog.open || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "VIDEO") return;
    const action = { p: () => this.play(), r: () => this.mark("right"), w: () => this.mark("wrong"), ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1) }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  get appearance() {
    return this.results.appearances[this.index];
  }

  mark(mark) {
    this.results.mark(this.appearance, mark);
  }

  step(by) {
    const index = this.index + by;
    if (index >= 0 && index < this.results.appearances.length) this.open(index);
  }

  search(onsearch, join) {
    this.dialog.close();
    onsearch(this.chosen, join);
  }

  choose(key) {
    this.chosen = key;
    byId("detail-note").textContent = key === this.appearance.best.id ? "" : "Another person of this frame is chosen.";
  }

  async open(index) {
    this.stop();
    this.index = index;
    const { best, camera, source } = this.appearance;
    this.chosen = best.id;
    byId("detail-title").textContent = `${index + 1}. ${camera}`;
    byId("detail-previous").disabled = index === 0;
    byId("detail-next").disabled = index === this.results.appearances.length - 1;
    if (!this.dialog.open) this.dialog.showModal();
    byId("detail-play").hidden = source.kind !== "video";
    byId("detail-note").textContent = "";
    this.paintFacts();
    this.paintMarks();
    this.stage.show(frameUrl(best.id), best.width, best.height);
    this.stage.setPersons([{ key: best.id, box: best.box, label: "This person" }], best.id);
    this.stage.image.onerror = () => (byId("detail-note").textContent = source.kind === "stream" ? "A live stream is not recorded: there is no picture." : `The picture cannot be read. Is ${source.name} still there?`);
    try {
      const frame = await get(`/api/detections/${encodeURIComponent(best.id)}/persons`);
      if (this.index !== index || this.chosen !== best.id) return;
      this.stage.setPersons(frame.persons.map(({ id, box }, number) => ({ key: id, box, label: id === best.id ? "This person" : `Another person, ${number + 1}` })), best.id);
      if (frame.persons.length > 1 && !byId("detail-note").textContent) byId("detail-note").textContent = `${several(frame.persons.length, "person")} in this frame: click one to search for that person.`;
    } catch (error) {
      byId("detail-note").textContent = error.message;
    }
  }

  paintFacts() {
    const one = this.appearance;
    const facts = {
      Verdict: `${one.verdict}: of the results that are as similar (${one.similarity.toFixed(3)}) or more, ${percent(one.false_match_rate)} are expected to be someone else`,
      Time: span(one.start, one.end, one.start_offset, one.end_offset),
      Recording: one.source.kind === "photo" ? one.source.name : `${one.source.name}, at ${clock(one.best.offset)} (frame ${one.best.frame})`,
      Seen: several(one.detections, "detection"),
    };
    byId("detail-facts").replaceChildren(...Object.entries(facts).map(([name, text]) => make("div", {}, make("dt", { text: name }), make("dd", { text }))));
  }

  paintMarks() {
    if (!this.dialog.open || !this.appearance) return;
    const mark = this.results.marks.get(this.appearance.best.id);
    for (const name of ["right", "wrong"]) byId(`detail-${name}`).setAttribute("aria-pressed", String(mark === name));
  }

  stop() {
    this.player?.remove();
    this.player = null;
    this.stage.root.hidden = false;
    byId("detail-play").textContent = "▶ Play";
  }

  async play() {
    if (this.appearance.source.kind !== "video") return;
    if (this.player) {
      this.stop();
      byId("detail-note").textContent = "";
      return;
    }
    const { appearance, index } = this;
    const note = byId("detail-note");
    note.textContent = "Preparing the video …";
    try {
      const [playback, track] = await Promise.all([
        get(`/api/sources/${appearance.source.id}/playback`),
        get(`/api/tracklets/${encodeURIComponent(appearance.tracklet)}`),
      ]);
      if (this.index !== index || this.player || !this.dialog.open) return;
      if (playback.mode === "none") throw new Error(playback.reason);
      this.player = new Player(appearance, track, playback.mode, (text) => (note.textContent = text));
      this.stage.root.hidden = true;
      byId("detail-stage").append(this.player.root);
      byId("detail-play").textContent = "■ Stop";
    } catch (error) {
      note.textContent = error.message;
    }
  }
}

// The video from shortly before an appearance, with a box that follows the person.
class Player {
  constructor(appearance, track, mode, say) {
    Object.assign(this, { appearance, track, say });
    this.start = Math.max(0, appearance.start_offset - AROUND);
    this.end = appearance.end_offset + AROUND;
    this.video = make("video", { controls: true, playsinline: true, "aria-label": `Video of camera ${appearance.camera}` });
    this.video.muted = true;
    this.svg = makeSvg("svg", { viewBox: `0 0 ${track.width} ${track.height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.root = make("div", { class: "stage playing" }, this.video, this.svg);
    this.root.style.setProperty("--ratio", track.width / track.height);
    this.video.addEventListener("error", () => this.failed());
    this.load(mode);
    this.follow();
  }

  load(mode) {
    const path = `/api/sources/${this.appearance.source.id}`;
    this.mode = mode;
    // The clip begins at `start`; the file itself at 0.
    this.base = mode === "clip" ? this.start : 0;
    this.video.src = mode === "clip" ? `${path}/clip?start=${this.start.toFixed(3)}&end=${this.end.toFixed(3)}` : `${path}/video#t=${this.start.toFixed(3)}`;
    this.say(mode === "clip" ? "Preparing this part of the video …" : "");
    this.video.addEventListener("loadeddata", () => this.say(""), { once: true });
    this.video.play().catch(() => {}); // where browsers forbid it, the play button is there
  }

  failed() {
    if (this.mode === "video") this.load("clip"); // this browser lacks the format after all
    else this.say("The video cannot be played. Is the file still there?");
  }

  follow() {
    const box = boxAt(this.track.points, this.video.currentTime + this.base);
    this.svg.replaceChildren(...(box ? ["halo", "line"].map((name) => rectangle(box, name)) : []));
    if (this.mode === "video" && this.video.currentTime > this.end && !this.past) {
      this.past = true; // stops once behind the appearance; after that it plays on
      this.video.pause();
    }
    this.timer = requestAnimationFrame(() => this.follow());
  }

  remove() {
    cancelAnimationFrame(this.timer);
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.root.remove();
  }
}

// The box at a time, between the two detections around it; null outside the appearance.
function boxAt(points, time) {
  const slack = 0.15;
  if (!points.length || time < points[0].offset - slack || time > points.at(-1).offset + slack) return null;
  const next = points.findIndex(({ offset }) => offset >= time);
  if (next <= 0) return points.at(next).box;
  const [before, after] = [points[next - 1], points[next]];
  const share = (time - before.offset) / (after.offset - before.offset || 1);
  return before.box.map((value, axis) => value + share * (after.box[axis] - value));
}
