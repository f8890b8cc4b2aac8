// Segmentations: a class for each pixel, in the palette's colours.

class SegmentEditor extends RasterEditor {
  get nothing() {
    return this.settings.none;
  }

  get paper() {
    return "#000000";
  }

  get help() {
    return "Choose a class in the list, then draw with a mouse, a pen or a finger.";
  }

  something() {
    return this.chosen;
  }

  colours() {
    const colours = new Uint32Array(256);
    this.settings.classes.forEach(([, [red, green, blue]], index) => {
      colours[index] = ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    });
    return colours;
  }

  layerOpacity() {
    return this.photo ? this.opacity : 1;
  }

  usualSize(side) {
    return Math.max(4, Math.round(side / 20));
  }

  build() {
    this.opacity = 0.6;
    this.photoOpacity = 1;
    this.chosen = 2; // sky: most pictures begin with it
    super.build();
    this.photoSlider.element.replaceWith(this.mapSlider.element);
    this.choose(this.chosen);
  }

  tools() {
    this.mapSlider = slider("Map", { min: 0, max: 100, value: 60, unit: "%", oninput: (percent) => {
      this.opacity = percent / 100;
      this.stage.draw();
    } });
    return [this.toolButtons("brush", "eraser", "polygon", "fill", "pick")];
  }

  files() {
    const input = this.fileInput(Editor.accept, (file) => this.openMap(file));
    return [
      input,
      button("open", "Open a map: indices, or colours of the palette", () => input.click(), { text: "Open" }),
      button("save", "Save the class indices as PNG", () => this.save()),
    ];
  }

  // The list of classes
  side() {
    const search = make("input", {
      type: "search", placeholder: "Search 150 classes", "aria-label": "Search classes", oninput: () => this.find(search.value),
    });
    const count = new Map();
    for (const [, colour] of this.settings.classes) count.set(String(colour), (count.get(String(colour)) ?? 0) + 1);
    this.rows = this.settings.classes.map(([name, colour], index) => {
      const share = make("span", { class: "share" });
      const twin = count.get(String(colour)) > 1 && this.settings.classes.find(([other, its]) => other !== name && String(its) === String(colour));
      const swatch = make("span", { class: "swatch", style: `background: rgb(${colour.join(" ")})` });
      const title = twin ? `${name}: to the network the same colour as ${twin[0]}` : `${name}, rgb ${colour.join(" ")}`;
      const element = make("button", { type: "button", role: "option", title, "aria-selected": "false", onclick: () => this.choose(index) },
        swatch, make("span", { class: "name" }, name), share);
      return { element, share, name, index };
    });
    this.list = make("div", { class: "list", role: "listbox", "aria-label": "Classes" }, ...this.rows.map(({ element }) => element));
    this.list.addEventListener("keydown", (event) => this.walk(event));
    return make("div", { class: "side" }, search, this.list);
  }

  find(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    for (const { element, name } of this.rows) element.hidden = !words.every((word) => name.includes(word));
  }

  walk(event) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (!step) return;
    event.preventDefault();
    let next = document.activeElement[step];
    while (next?.hidden) next = next[step];
    next?.focus();
  }

  choose(index) {
    this.chosen = index;
    for (const row of this.rows) row.element.setAttribute("aria-selected", String(row.index === index));
    if (["pick", "eraser"].includes(this.tool)) this.use("brush");
    const [name] = this.settings.classes[index];
    this.say(`Painting ${name}`);
  }

  pick(index) {
    if (index === null || index === this.nothing) return this.say("There is no class");
    this.choose(index);
    const { element } = this.rows[index];
    element.hidden = false;
    const top = element.offsetTop - this.list.offsetTop - this.list.clientHeight / 2;
    this.list.scrollTop = top; // scrollIntoView would move the page too
  }

  hovers(point) {
    const index = this.indexAt(point);
    this.where.textContent = this.settings.classes[index]?.[0] ?? "";
  }

  // How much of the picture each class has; those that it has come first.
  changed() {
    super.changed();
    const counts = new Uint32Array(256);
    for (const index of this.pixels) counts[index]++;
    for (const { element, share, index } of this.rows) {
      const percent = (100 * counts[index]) / this.pixels.length;
      share.textContent = counts[index] ? (percent < 1 ? "<1%" : `${Math.round(percent)}%`) : "";
      element.style.order = counts[index] ? -1 : 0;
    }
    const free = Math.round((100 * counts[this.nothing]) / this.pixels.length);
    if (counts[this.nothing]) this.say(`${free || "<1"}% has no class yet, and is black in the hint`);
    else this.say("Every pixel has a class");
  }

  // Files
  async openMap(file) {
    const answer = await this.read(file, "read_map");
    if (!answer) return;
    this.take(answer.value);
    if (answer.off) this.say(`${answer.off.toLocaleString("en")} pixels were off the palette: each took the nearest colour's class`);
  }

  async save() {
    download(await this.indexPng(), "classes.png");
  }

  // A PNG with a palette, so that it shows colours and holds indices (W3C PNG, 11.2).
  async indexPng() {
    const { width, height, pixels } = this;
    const colours = new Uint8Array(3 * 256);
    this.settings.classes.forEach(([, colour], index) => colours.set(colour, 3 * index));
    const rows = new Uint8Array((width + 1) * height); // each begins with the filter's number, 0
    for (let y = 0; y < height; y++) rows.set(pixels.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
    const packed = new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"));
    const header = new DataView(new ArrayBuffer(13));
    header.setUint32(0, width);
    header.setUint32(4, height);
    header.setUint16(8, 0x0803); // 8 bits, palette
    const signature = new Uint8Array([0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10]);
    const parts = [["IHDR", new Uint8Array(header.buffer)], ["PLTE", colours],
      ["IDAT", new Uint8Array(await new Response(packed).arrayBuffer())], ["IEND", new Uint8Array()]];
    return new Blob([signature, ...parts.map(([name, data]) => pngChunk(name, data))], { type: "image/png" });
  }
}

function pngChunk(name, data) {
  const chunk = new Uint8Array(12 + data.length);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, data.length);
  chunk.set(new TextEncoder().encode(name), 4);
  chunk.set(data, 8);
  let crc = 0xffffffff; // bit by bit, W3C PNG, annex D
  for (let at = 4; at < chunk.length - 4; at++) {
    crc ^= chunk[at];
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  view.setUint32(8 + data.length, ~crc);
  return chunk;
}
