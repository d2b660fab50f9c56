// The page: what was asked, what was found, and what one does with it.
import { frameUrl, get, post } from "./api.js";
import { Browse } from "./browse.js";
import { Detail } from "./detail.js";
import { byId, make, several } from "./dom.js";
import { Query } from "./query.js";
import { Results } from "./results.js";
import { Storage } from "./storage.js";

const PREVIEWS = 12;

let store = null;
let searching = null;

const query = new Query(queryChanged, complain);
const results = new Results({ onopen: (index) => detail.open(index), onrefine: () => search(true), onerror: complain });
const detail = new Detail(results, searchDetection);
const browse = new Browse(searchDetection);
const storage = new Storage(results, async () => {
  results.reset();
  query.clear();
  await readStore();
  storage.paint(store);
});

function complain(text) {
  byId("alert").textContent = text;
  byId("alert").hidden = !text;
}

function queryChanged() {
  complain("");
  results.marks.clear(); // they were about another query
  results.paintMarks();
}

function searchDetection(id, join) {
  if (!join) query.clear();
  query.addDetection(id);
  if (join) byId("queries").scrollIntoView({ block: "nearest" });
  else search(false);
}

async function search(refine) {
  const obstacle = query.obstacle();
  complain(obstacle);
  if (obstacle) return;
  if (!refine) results.marks.clear();
  searching?.abort();
  const controller = (searching = new AbortController());
  busy(true);
  try {
    const request = { queries: query.message(), ...filters(), right: results.marked("right"), wrong: results.marked("wrong") };
    const answer = await post("/api/search", request, controller.signal);
    results.show(answer);
    byId("results").focus({ preventScroll: true });
    if (byId("results").getBoundingClientRect().top > innerHeight / 2) byId("results").scrollIntoView();
    else scrollTo({ top: 0 });
    byId("status").textContent = "";
  } catch (error) {
    if (error.name === "AbortError") return;
    byId("status").textContent = "";
    complain(error.message);
  }
  if (searching === controller) {
    searching = null;
    busy(false);
  }
}

// Says that it goes on, and for how long.
function busy(on) {
  clearInterval(busy.timer);
  byId("search").classList.toggle("busy", on);
  byId("results").setAttribute("aria-busy", String(on));
  if (!on) return;
  const began = Date.now();
  byId("status").textContent = "Searching …";
  busy.timer = setInterval(() => (byId("status").textContent = `Searching … ${Math.round((Date.now() - began) / 1000)} s`), 1000);
}

function filters() {
  const checked = [...document.querySelectorAll("#cameras input:checked")].map(({ value }) => value);
  const all = store && checked.length === store.cameras.length;
  return { cameras: all ? [] : checked, since: time("since"), until: time("until"), top: Number(byId("top").value), rerank: byId("rerank").checked };
}

const time = (id) => (byId(id).value ? new Date(byId(id).value).toISOString() : null);

function filtersChanged() {
  const { cameras, since, until } = filters();
  const parts = [cameras.length ? several(cameras.length, "camera") : "", since || until ? "a time" : ""].filter(Boolean);
  byId("filters-line").textContent = parts.length ? `: ${parts.join(", ")}` : "";
}

async function readStore() {
  store = await get("/api/store");
  byId("store-line").textContent = store.detections ? `${several(store.detections, "detection")} from ${several(store.cameras.length, "camera")} in ${store.name}` : "Nothing is indexed yet: run person-search index";
  const kept = new Set([...document.querySelectorAll("#cameras input:checked")].map(({ value }) => value));
  byId("cameras").replaceChildren(
    ...store.cameras.map(({ name }) => make("label", { class: "check" }, make("input", { type: "checkbox", value: name, checked: kept.has(name) }), ` ${name}`)),
  );
  query.configure(store);
  byId("pick").disabled = byId("browse-open").disabled = !store.detections;
  byId("previews").replaceChildren(...store.cameras.filter(({ sample }) => sample).slice(0, PREVIEWS).map(preview));
}

// What a camera sees, and the way into its footage.
function preview({ name, sample }) {
  const image = make("img", { src: frameUrl(sample), alt: "", loading: "lazy" });
  return make("li", {}, make("button", { type: "button", onclick: () => browse.open(store.cameras, name) }, image, name));
}

byId("query").addEventListener("submit", (event) => {
  event.preventDefault();
  search(false);
});
byId("filters").addEventListener("input", filtersChanged);
byId("browse-open").addEventListener("click", () => browse.open(store.cameras));
byId("pick").addEventListener("click", () => browse.open(store.cameras));
byId("store-open").addEventListener("click", () => storage.open(store));
byId("zone").textContent = `(${Intl.DateTimeFormat().resolvedOptions().timeZone})`;
readStore().catch((error) => {
  byId("store-line").textContent = "The store cannot be read.";
  complain(error.message);
});
