// The pictures of the person who is looked for, and the box in each.
import { cropUrl, send } from "./api.js";
import { byId, make, several } from "./dom.js";
import { Stage } from "./stage.js";

export class Query {
  // onchange(): something about the pictures changed; onerror(text).
  constructor(onchange, onerror) {
    Object.assign(this, { items: [], active: null, onchange, onerror });
    this.stage = new Stage(byId("editor-stage"), {
      draw: true,
      onselect: (key) => this.choose({ person: Number(key) }),
      ondraw: (box) => this.choose({ box }),
    });
    this.listen();
  }

  listen() {
    const file = byId("file");
    file.addEventListener("change", () => {
      this.upload([...file.files]);
      file.value = "";
    });
    const drop = byId("drop");
    for (const name of ["dragenter", "dragover"])
      document.addEventListener(name, (event) => {
        if (![...event.dataTransfer.types].includes("Files")) return;
        event.preventDefault();
        drop.classList.add("over");
      });
    document.addEventListener("dragleave", (event) => event.relatedTarget || drop.classList.remove("over"));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      this.upload([...event.dataTransfer.files]);
    });
    document.addEventListener("paste", (event) => this.upload([...event.clipboardData.files]));
  }

  configure(store) {
    this.canUpload = store.can_embed;
    this.maxBytes = store.max_upload_bytes;
    byId("file").disabled = !store.can_embed;
    byId("file-label").classList.toggle("off", !store.can_embed);
    if (!store.can_embed) byId("drop-hint").textContent = "The server runs without weights: only persons of the footage can be searched for.";
  }

  async upload(files) {
    if (!files.length || !this.canUpload) return;
    byId("drop").classList.add("busy");
    this.onerror("");
    for (const file of files) {
      try {
        if (file.size > this.maxBytes) throw new Error(`${file.name} is larger than ${Math.round(this.maxBytes / 1e6)} MB.`);
        const form = new FormData();
        form.append("file", file);
        const picture = await send("POST", "/api/pictures", form);
        const choice = picture.persons.length === 1 ? { person: 0 } : null;
        this.add({ picture, choice, image: await load(`/api/pictures/${picture.id}`) });
      } catch (error) {
        this.onerror(error.message);
      }
    }
    byId("drop").classList.remove("busy");
  }

  addDetection(id) {
    if (!this.items.some((item) => item.detection === id)) this.add({ detection: id });
  }

  add(item) {
    this.items.push(item);
    this.active = item;
    this.paint();
    this.onchange();
  }

  remove(item) {
    this.items.splice(this.items.indexOf(item), 1);
    if (this.active === item) this.active = this.items.at(-1) || null;
    this.paint();
    this.onchange();
  }

  clear() {
    this.items = [];
    this.active = null;
    this.paint();
  }

  choose(choice) {
    this.active.choice = choice;
    this.paintList();
    this.paintHelp();
    this.onchange();
  }

  // What the server is asked with.
  message() {
    return this.items.map(({ picture, choice, detection }) => (detection ? { detection } : { picture: picture.id, ...choice }));
  }

  // Why one cannot search yet, "" if one can.
  obstacle() {
    if (!this.items.length) return "Choose a picture first, or pick a person from the footage.";
    const open = this.items.find((item) => item.picture && !item.choice);
    if (!open) return "";
    this.activate(open);
    return `Which person in ${open.picture.name}? Click one or draw a box.`;
  }

  activate(item) {
    this.active = item;
    this.paint();
  }

  paint() {
    this.paintList();
    const item = this.active;
    byId("editor").hidden = !item?.picture;
    byId("drop").classList.toggle("small", this.items.length > 0);
    if (!item?.picture) return;
    const { id, width, height, persons } = item.picture;
    this.stage.show(`/api/pictures/${id}`, width, height);
    const boxes = persons.map((person, index) => ({ key: String(index), box: person.box, label: `Person ${index + 1}` }));
    this.stage.setPersons(boxes, item.choice?.person === undefined ? null : String(item.choice.person));
    if (item.choice?.box) this.stage.setBox(item.choice.box);
    this.paintHelp();
  }

  paintHelp() {
    const { picture, choice, image } = this.active;
    const found = picture.persons.length;
    let help = `${several(found, "person")} found. Click the right one, or draw a box around the person.`;
    if (!found) help = "Nobody was detected here. Draw a box around the person.";
    if (choice?.box) help = `Box of ${choice.box.slice(2).map((end, axis) => Math.round(end - choice.box[axis])).join(" × ")} pixels. Drag a corner to change it.`;
    else if (choice) help = found === 1 ? "One person found. Draw a box if another is meant." : `Person ${choice.person + 1} of ${found} is chosen. Draw a box if another is meant.`;
    byId("editor-help").textContent = help;
    const offered = found > 1 ? picture.persons.slice(0, 12) : [];
    byId("editor-persons").replaceChildren(
      ...offered.map((person, index) =>
        make(
          "button",
          {
            type: "button", "aria-label": `Person ${index + 1}`, "aria-pressed": String(choice?.person === index),
            onclick: () => {
              this.stage.select(String(index));
              this.choose({ person: index });
              byId("editor-persons").children[index].focus();
            },
          },
          cutOut(image, person.box),
        ),
      ),
    );
  }

  paintList() {
    byId("queries").replaceChildren(
      ...this.items.map((item, index) => {
        const name = item.picture?.name || "person of the footage";
        const shown = item.detection
          ? make("img", { src: cropUrl(item.detection), alt: "" })
          : cutOut(item.image, item.choice?.box || item.picture.persons[item.choice?.person]?.box || [0, 0, item.picture.width, item.picture.height]);
        return make(
          "li",
          { class: item === this.active ? "active" : "" },
          make("button", { type: "button", class: item.picture && !item.choice ? "thumb open" : "thumb", "aria-label": `Query ${index + 1}: ${name}`, "aria-pressed": String(item === this.active), onclick: () => this.activate(item) }, shown),
          make("button", { type: "button", class: "remove", "aria-label": `Remove query ${index + 1}`, text: "✕", onclick: () => this.remove(item) }),
        );
      }),
    );
  }
}

async function load(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}

// A part of a picture as a small canvas.
function cutOut(image, [x0, y0, x1, y1]) {
  const canvas = make("canvas", { width: 96, height: 144 });
  const scale = Math.min(canvas.width / (x1 - x0), canvas.height / (y1 - y0));
  const [width, height] = [(x1 - x0) * scale, (y1 - y0) * scale];
  canvas.getContext("2d").drawImage(image, x0, y0, x1 - x0, y1 - y0, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  return canvas;
}
