// An editor has: its document (what travels), `load` and `blank` to set it, `paint` to show it, `down`, `move`, `up`
// and `cancel` for the pointer. It says `begin` before a change and `commit` after it.
class Editor {
  static accept = "image/png,image/jpeg,image/webp";

  static open(element, page) {
    return new this(element.querySelector(".editor"), page);
  }

  constructor(root, { props, trigger, server, upload, watch }) {
    Object.assign(this, { root, props, trigger, server, upload, settings: props.settings });
    this.history = new History();
    this.background = null;
    this.photo = null;
    this.photoOpacity = 0.5;
    this.stage = new Stage(this);
    this.status = make("div", { class: "status", role: "status" });
    this.build();
    this.blank(this.settings.width, this.settings.height);
    this.receive(props.value);
    watch("value", () => this.receive(this.props.value));
    watch("label", () => this.name());
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("paste", (event) => this.pasted(event));
    for (const type of ["dragover", "drop"]) this.stage.box.addEventListener(type, (event) => this.dropped(event));
  }

  build() {
    this.bar = make("div", { class: "bar", role: "toolbar" }, ...this.tools(), ...this.common());
    this.sides = ["Width", "Height"].map((label) =>
      make("input", {
        type: "number", "aria-label": `${label} in pixels`, title: `${label} in pixels`, step: 64,
        min: this.settings.smallest, max: this.settings.largest, onchange: () => this.resized(),
      }));
    const size = make("div", { class: "size" }, this.sides[0], "×", this.sides[1]);
    this.where = make("span", { class: "where" }); // what is under the pointer
    const foot = make("div", { class: "foot" }, this.status, this.where, size, this.stage.zoomGroup());
    const side = this.side();
    const body = make("div", { class: "body" }, this.stage.box, ...(side ? [side] : []));
    this.root.append(this.bar, body, foot);
    this.name();
  }

  common() {
    this.undoButton = button("undo", "Undo", () => this.undo(), { key: "Ctrl+Z" });
    this.redoButton = button("redo", "Redo", () => this.redo(), { key: "Ctrl+Shift+Z" });
    this.photoInput = this.fileInput(Editor.accept, (file) => this.openPhoto(file));
    this.photoSlider = slider("Photo", { min: 0, max: 100, value: 50, unit: "%", oninput: (percent) => {
      this.photoOpacity = percent / 100;
      this.stage.draw();
    } });
    const noPhoto = button("cross", "Remove photograph", () => this.removePhoto());
    this.photoGroup = group("Photograph", this.photoSlider.element, noPhoto);
    return [
      group("History", this.undoButton, this.redoButton, button("clear", "Clear", () => this.clear())),
      group("Files", button("photo", "Photograph behind", () => this.photoInput.click(), { text: "Photo" }),
        this.photoInput, ...this.files()),
      this.photoGroup,
    ];
  }

  fileInput(accept, take) {
    const input = make("input", { type: "file", accept, hidden: true, onchange: () => {
      if (input.files.length) take(input.files[0]);
      input.value = "";
    } });
    return input;
  }

  name() {
    this.bar.setAttribute("aria-label", `${this.props.label}: tools`);
    this.root.setAttribute("aria-label", this.props.label ?? "");
    this.root.setAttribute("role", "group");
    this.stage.name();
  }

  say(text) {
    this.status.textContent = text;
    this.status.title = text;
  }

  key(event) {
    if (event.target.matches?.("input:not([type=range])")) return;
    const letter = event.key.toLowerCase();
    const isCommand = event.ctrlKey || event.metaKey;
    const does = isCommand
      ? { z: () => (event.shiftKey ? this.redo() : this.undo()), y: () => this.redo(), ...this.commandKeys() }[letter]
      : event.altKey ? null : this.keysOf(event)[letter];
    if (!does) return;
    event.preventDefault();
    event.stopPropagation();
    does();
  }

  commandKeys() {
    return {};
  }

  keysOf(event) {
    const leave = this.stage.isWhole ? { escape: () => this.stage.fillWindow(false) } : {};
    return { ...leave, ...this.keys(event) };
  }

  // The document travels; what is equal to it is not loaded again, so that an echo disturbs no drawing.
  state() {
    return JSON.stringify(this.document());
  }

  begin() {
    this.before = this.state();
  }

  commit() {
    const now = this.state();
    if (this.before !== undefined && this.before !== now) this.history.push(this.before);
    this.before = undefined;
    this.changed();
    this.send();
  }

  send() {
    this.props.value = { ...this.document(), background: this.background };
    this.trigger("input");
  }

  receive(value) {
    try {
      const before = this.state();
      if (!value) this.blank(this.settings.width, this.settings.height);
      else if (this.stateOf(value) !== before) this.load(value);
      if (this.state() !== before && this.isReceived) this.history.push(before);
      this.isReceived = true;
      if (!value || "background" in value) this.showBackground(value?.background);
      this.changed();
    } catch (error) {
      this.say(`This cannot be shown: ${error.message}`);
    }
  }

  restore(state) {
    if (state === null) return;
    this.cancel();
    this.load(JSON.parse(state));
    this.changed();
    this.send();
  }

  undo() {
    this.restore(this.history.undo(this.state()));
  }

  redo() {
    this.restore(this.history.redo(this.state()));
  }

  clear() {
    this.begin();
    this.cancel();
    this.blank(this.width, this.height);
    this.commit();
    this.say("Cleared; undo brings it back");
  }

  changed() {
    this.undoButton.disabled = !this.history.past.length;
    this.redoButton.disabled = !this.history.future.length;
    this.sides[0].value = this.width;
    this.sides[1].value = this.height;
    this.photoGroup.hidden = !this.background;
    this.stage.layout();
  }

  resized() {
    const { smallest, largest } = this.settings;
    const bound = (input, now) => Math.round(Math.min(largest, Math.max(smallest, Number(input.value) || now)));
    this.begin();
    this.cancel();
    this.resizeTo(bound(this.sides[0], this.width), bound(this.sides[1], this.height));
    this.commit();
  }

  // Files
  isTooLarge(file) {
    if (file.size <= this.settings.file_bytes) return false;
    this.say(`${file.name} has over ${this.settings.file_bytes >> 20} MB; make it smaller first`);
    return true;
  }

  async openPhoto(file) {
    if (this.isTooLarge(file)) return;
    if (!Editor.accept.split(",").includes(file.type)) return this.say("Expected a PNG, JPEG or WEBP picture");
    try {
      const { path, url } = await this.upload(file);
      await this.setBackground({ path, url, meta: { _type: "gradio.FileData" } });
      if (this.isBlank()) this.takeSizeOf(this.photo);
      this.commit();
    } catch (error) {
      this.setBackground(null);
      this.say(`The photograph cannot be shown: ${error.message ?? error}`);
    }
  }

  takeSizeOf({ naturalWidth, naturalHeight }) {
    const { smallest, largest } = this.settings;
    const longest = Math.max(naturalWidth, naturalHeight);
    const factor = Math.min(1, largest / longest);
    const bound = (side) => Math.max(smallest, Math.round(side * factor));
    this.begin();
    this.blank(bound(naturalWidth), bound(naturalHeight));
    if (factor < 1) this.say(`The photograph is larger than a canvas: shown at ${this.width} × ${this.height}`);
  }

  removePhoto() {
    this.setBackground(null);
    this.stage.draw();
    this.send();
  }

  async setBackground(file) {
    if (file && file.path === this.background?.path && this.photo) return;
    this.background = file ?? null;
    this.photo = null;
    this.photoGroup.hidden = !file;
    this.stage.draw();
    if (!file) return;
    const url = new URL(file.url, location.href);
    if (url.origin !== location.origin) throw new Error("it is not on this server");
    const photo = new Image();
    photo.src = url.href;
    await photo.decode().catch(() => { throw new Error("it is broken, or of an unknown format"); });
    if (this.background !== file) return;
    this.photo = photo;
    this.stage.draw();
  }

  showBackground(file) {
    this.setBackground(file).catch((error) => this.say(`The photograph cannot be shown: ${error.message}`));
  }

  // Sends a file to a function of the server, which reads it as everything else of the project does.
  async read(file, name) {
    if (this.isTooLarge(file)) return null;
    this.say(`Reading ${file.name} ...`);
    const answer = await this.server[name](await toBase64(file)).catch((error) => ({ error: String(error.message ?? error) }));
    this.say(answer.error ?? "");
    return answer.error ? null : answer;
  }

  take(value) {
    this.begin();
    this.cancel();
    this.load(value);
    this.commit();
    this.stage.fit();
  }

  pasted(event) {
    const file = [...(event.clipboardData?.files ?? [])][0];
    if (!file) return;
    event.preventDefault();
    this.openAny(file);
  }

  dropped(event) {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.type === "drop" && event.dataTransfer.files.length) this.openAny(event.dataTransfer.files[0]);
  }

  openAny(file) {
    this.openPhoto(file);
  }
}
