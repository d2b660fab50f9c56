// What the store holds, and how it forgets.
import { get, post } from "./api.js";
import { byId, make, moment, several } from "./dom.js";

export class Storage {
  // results: Results; onforgotten(): detections were deleted.
  constructor(results, onforgotten) {
    Object.assign(this, { results, onforgotten, dialog: byId("store") });
    byId("store-close").addEventListener("click", () => this.dialog.close());
    byId("forget").addEventListener("submit", (event) => {
      event.preventDefault();
      this.count();
    });
    byId("forget").addEventListener("input", () => this.unsure());
    byId("forget-confirm").addEventListener("click", () => this.forget());
    for (const [id, what] of [["forget-before", "before"], ["forget-camera", "cameras"]])
      byId(id).addEventListener("input", () => (byId("forget").elements.what.value = what));
  }

  async open(store) {
    this.unsure();
    byId("forget-note").textContent = "";
    this.dialog.showModal();
    this.paint(store);
    try {
      const faulty = (await get("/api/sources?limit=1000")).sources.filter(({ error }) => error);
      byId("store-faults").replaceChildren(...faulty.map(({ name, error }) => make("li", { text: `${name}: ${error}` })));
    } catch (error) {
      byId("forget-note").textContent = error.message;
    }
  }

  paint(store) {
    const facts = {
      Store: store.name,
      Model: `${store.model}, ${store.dimension} numbers a person`,
      Detections: store.detections.toLocaleString(),
      Kept: store.retention_days ? several(store.retention_days, "day") : "forever",
      Recordings: [`${store.sources}`, store.unfinished && `${store.unfinished} not finished`, store.damaged && `${store.damaged} with errors`].filter(Boolean).join(", "),
    };
    byId("store-facts").replaceChildren(...Object.entries(facts).map(([name, text]) => make("div", {}, make("dt", { text: name }), make("dd", { text }))));
    byId("store-cameras").tBodies[0].replaceChildren(
      ...store.cameras.map(({ name, sources, detections, first, last }) => make("tr", {}, make("th", { scope: "row", text: name }), ...[sources.toLocaleString(), detections.toLocaleString(), moment(first) || "unknown", moment(last) || "unknown"].map((text) => make("td", { text })))),
    );
    byId("forget-camera").replaceChildren(...store.cameras.map(({ name }) => make("option", { value: name, text: name })));
    const marked = this.tracklets().length;
    byId("forget-person").disabled = !marked;
    byId("forget-person-line").textContent = marked ? `The ${several(marked, "appearance")} marked right` : "A person: mark appearances right first";
  }

  tracklets() {
    const right = new Set(this.results.marked("right"));
    return this.results.appearances.filter(({ best }) => right.has(best.id)).map(({ tracklet }) => tracklet);
  }

  unsure() {
    byId("forget-confirm").hidden = true;
    this.selection = null;
  }

  chosen() {
    const what = byId("forget").elements.what.value;
    if (what === "cameras") return { cameras: [byId("forget-camera").value] };
    if (what === "tracklets") return { tracklets: this.tracklets() };
    const before = byId("forget-before").value;
    if (!before) throw new Error("Say before which time.");
    return { before: new Date(before).toISOString() };
  }

  async count() {
    this.unsure();
    const note = byId("forget-note");
    try {
      const selection = this.chosen();
      const { matching } = await post("/api/forget", selection);
      note.textContent = matching ? "" : "Nothing in the store meets this.";
      if (!matching) return;
      this.selection = selection;
      byId("forget-confirm").textContent = `Delete ${several(matching, "detection")} for good`;
      byId("forget-confirm").hidden = false;
    } catch (error) {
      note.textContent = error.message;
    }
  }

  async forget() {
    const button = byId("forget-confirm");
    button.disabled = true;
    try {
      const { deleted } = await post("/api/forget", { ...this.selection, confirm: true });
      byId("forget-note").textContent = `${several(deleted, "detection")} deleted.`;
      await this.onforgotten();
    } catch (error) {
      byId("forget-note").textContent = error.message;
    }
    button.disabled = false;
    this.unsure();
  }
}
