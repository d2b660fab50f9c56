// Footage frame by frame: pick somebody who is indexed already.
import { frameUrl, get } from "./api.js";
import { byId, clock, make, moment, several } from "./dom.js";
import { Stage } from "./stage.js";

const PAGE = 1000;

export class Browse {
  constructor(onsearch) {
    Object.assign(this, { dialog: byId("browse"), asked: 0, chosen: null });
    this.stage = new Stage(byId("browse-stage"), { onselect: (key) => this.choose(key) });
    byId("browse-close").addEventListener("click", () => this.dialog.close());
    byId("browse-camera").addEventListener("change", () => this.loadSources());
    byId("browse-source").addEventListener("change", () => this.load(0));
    byId("browse-frame").addEventListener("input", (event) => this.load(Number(event.target.value)));
    byId("browse-back").addEventListener("click", () => this.step(-1));
    byId("browse-forth").addEventListener("click", () => this.step(1));
    for (const join of [true, false])
      byId(join ? "browse-join" : "browse-new").addEventListener("click", () => {
        this.dialog.close();
        onsearch(this.chosen, join);
      });
  }

  // Where one was before, or at a camera.
  async open(cameras, camera) {
    const select = byId("browse-camera");
    this.dialog.showModal();
    if (this.frame && cameras.some(({ name }) => name === select.value) && [undefined, select.value].includes(camera)) return;
    select.replaceChildren(...cameras.map(({ name }) => make("option", { value: name, text: name })));
    if (camera !== undefined) select.value = camera;
    await this.loadSources();
  }

  async loadSources() {
    const camera = byId("browse-camera").value;
    try {
      const page = await get(`/api/sources?limit=${PAGE}&camera=${encodeURIComponent(camera)}`);
      byId("browse-source").replaceChildren(...page.sources.map((source) => make("option", { value: source.id, text: source.start ? `${source.name}, ${moment(source.start)}` : source.name })));
      this.rest = page.total > PAGE ? ` The first ${PAGE} of ${page.total} recordings are listed.` : "";
      await this.load(0);
    } catch (error) {
      this.say(error.message);
    }
  }

  // Photos hold one frame each: one steps from file to file.
  step(by) {
    const frame = byId("browse-frame");
    const index = Number(frame.value) + by;
    if (index >= 0 && index <= Number(frame.max)) return this.load(index);
    const select = byId("browse-source");
    const next = select.selectedIndex + by;
    if (next < 0 || next >= select.options.length) return undefined;
    select.selectedIndex = next;
    return this.load(by > 0 ? 0 : Number.MAX_SAFE_INTEGER);
  }

  async load(index) {
    const asked = ++this.asked;
    this.choose(null);
    try {
      const frame = await get(`/api/sources/${byId("browse-source").value}/frames?index=${index}`);
      if (asked !== this.asked) return; // the slider has moved on
      this.frame = frame;
      const slider = byId("browse-frame");
      Object.assign(slider, { max: frame.frames - 1, value: frame.index });
      slider.setAttribute("aria-valuetext", clock(frame.offset));
      this.stage.show(frameUrl(frame.persons[0].id), frame.width, frame.height);
      this.stage.setPersons(frame.persons.map(({ id, box }, number) => ({ key: id, box, label: `Person ${number + 1}` })));
      const when = frame.time ? moment(frame.time) : clock(frame.offset);
      this.say(`${when}, ${several(frame.persons.length, "person")}. Click one.${this.rest}`);
    } catch (error) {
      if (asked === this.asked) this.say(error.message);
    }
  }

  say(text) {
    byId("browse-note").textContent = text;
  }

  choose(key) {
    this.chosen = key;
    byId("browse-join").disabled = byId("browse-new").disabled = key === null;
  }
}
