// The canvas on which an editor shows its picture: how large, where, and what pointers do to it.
// Picture coordinates are pixels of the picture, with fractions, from its top left corner.

const FARTHEST_ZOOM = 32;
const AROUND = 462; // screen pixels of what else belongs in the window: the prompt above, what the network sees below

class Stage {
  constructor(editor) {
    this.editor = editor;
    this.canvas = make("canvas", { tabindex: 0, role: "application" });
    this.box = make("div", { class: "stage" }, this.canvas);
    this.scale = 1; // screen pixels of a picture's pixel
    this.left = this.top = 0; // of the picture, screen pixels
    this.isFitted = true;
    this.pointers = new Map();
    this.hover = null;
    const on = (type, react) => this.canvas.addEventListener(type, react.bind(this));
    on("pointerdown", this.down);
    on("pointermove", this.move);
    on("pointerup", this.up);
    on("pointercancel", this.up);
    on("pointerleave", this.leave);
    on("wheel", this.wheel);
    on("contextmenu", (event) => event.preventDefault());
    on("mousedown", (event) => event.button === 1 && event.preventDefault()); // which would scroll
    on("dblclick", (event) => editor.doubled?.(this.at(event)));
    on("keydown", (event) => event.key === " " && this.hold(event, true));
    on("keyup", (event) => event.key === " " && this.hold(event, false));
    on("blur", () => { this.isHeld = false; });
    new ResizeObserver(() => this.layout()).observe(this.box); // from size 0 too, when a hidden tab opens
  }

  name() {
    const { props, width, height } = this.editor;
    this.canvas.setAttribute("aria-label", `${props.label}: canvas of ${width ?? ""} by ${height ?? ""} pixels. ${this.editor.help}`);
  }

  zoomGroup() {
    this.percent = make("output", {}, "");
    return group("Zoom",
      button("minus", "Zoom out", () => this.zoom(1 / 1.25)), this.percent,
      button("plus", "Zoom in", () => this.zoom(1.25), { key: "Ctrl+wheel, or two fingers" }),
      button("fit", "Whole picture", () => this.fit(), { key: "0" }),
      this.wholeButton = button("whole", "Fill the window", () => this.fillWindow(), { "aria-pressed": "false" }));
  }

  fillWindow(isWhole = !this.isWhole) {
    this.isWhole = isWhole;
    this.editor.root.classList.toggle("whole", isWhole);
    this.wholeButton.setAttribute("aria-pressed", String(isWhole));
    this.isFitted = true;
    this.layout();
    this.canvas.focus();
  }

  // As wide as there is room; as high as the picture then is, but so that the window shows what is around it, too.
  layout() {
    const width = this.box.clientWidth;
    if (!width) return;
    const { width: w, height: h } = this.editor;
    const most = Math.max(250, window.innerHeight - AROUND - this.editor.bar.offsetHeight);
    this.box.style.height = this.isWhole ? "auto" : `${Math.min(most, Math.max(240, Math.round((width * h) / w)))}px`;
    const ratio = window.devicePixelRatio || 1;
    const [across, down] = [this.box.clientWidth, this.box.clientHeight];
    if (this.canvas.width !== Math.round(across * ratio) || this.canvas.height !== Math.round(down * ratio)) {
      this.canvas.width = Math.round(across * ratio);
      this.canvas.height = Math.round(down * ratio);
      this.canvas.style.width = `${across}px`;
      this.canvas.style.height = `${down}px`;
    }
    if (this.isFitted || this.shape !== `${w} ${h}`) this.fit();
    else this.draw();
    this.shape = `${w} ${h}`;
    this.name();
  }

  fit() {
    const { width, height } = this.editor;
    const [across, down] = [this.box.clientWidth, this.box.clientHeight];
    if (!across) return;
    const scale = Math.min(across / width, down / height, FARTHEST_ZOOM);
    this.scale = scale > 1 && scale < 1.15 ? 1 : scale; // pixels of the screen are the crispest
    this.left = (across - width * this.scale) / 2;
    this.top = (down - height * this.scale) / 2;
    this.isFitted = true;
    this.draw();
  }

  zoom(factor, x = this.box.clientWidth / 2, y = this.box.clientHeight / 2) {
    const { width, height } = this.editor;
    const least = Math.min(this.box.clientWidth / width, this.box.clientHeight / height) / 4;
    const scale = Math.min(FARTHEST_ZOOM, Math.max(least, this.scale * factor));
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.isFitted = false;
    this.draw();
  }

  pan(dx, dy) {
    this.left += dx;
    this.top += dy;
    this.isFitted = false;
    this.draw();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  }

  at(event) {
    const { x, y } = this.place(event);
    return { x: (x - this.left) / this.scale, y: (y - this.top) / this.scale };
  }

  // Pointers: one draws, two fingers move and zoom, the middle button or the space bar moves.
  down(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.place(event));
    if (this.pointers.size > 1) {
      if (this.isDrawing) this.editor.cancel();
      this.isDrawing = false;
      this.isMoving = true;
    } else if (event.button === 1 || this.isHeld) {
      this.isMoving = true;
    } else if (event.button === 0) {
      this.isDrawing = true;
      this.editor.down(this.at(event), event);
    }
  }

  move(event) {
    this.hover = event.pointerType === "touch" ? null : this.at(event);
    if (this.isMoving && this.pointers.has(event.pointerId)) this.drag(event);
    else if (this.isDrawing) {
      const events = event.getCoalescedEvents?.() ?? [];
      for (const each of events.length ? events : [event]) this.editor.move(this.at(each), each);
    } else this.editor.hovers?.(this.at(event), event);
    this.draw();
  }

  drag(event) {
    const spread = () => {
      const [a, b] = [...this.pointers.values()];
      return b ? { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, width: Math.hypot(a.x - b.x, a.y - b.y) } : { ...a, width: 1 };
    };
    const before = spread();
    this.pointers.set(event.pointerId, this.place(event));
    const after = spread();
    this.pan(after.x - before.x, after.y - before.y);
    if (before.width > 1) this.zoom(after.width / before.width, after.x, after.y);
  }

  up(event) {
    if (!this.pointers.delete(event.pointerId)) return;
    if (this.isDrawing) {
      this.isDrawing = false;
      if (event.type === "pointercancel") this.editor.cancel();
      else this.editor.up(this.at(event), event);
    }
    if (!this.pointers.size) this.isMoving = false; // the last of two fingers draws nothing
    this.draw();
  }

  leave() {
    this.hover = null;
    this.draw();
  }

  wheel(event) {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
    event.preventDefault();
    const { x, y } = this.place(event);
    this.zoom(Math.exp(-event.deltaY / 300), x, y);
  }

  hold(event, isHeld) {
    event.preventDefault();
    this.isHeld = isHeld;
  }

  draw() {
    if (this.isAsked) return;
    this.isAsked = true;
    requestAnimationFrame(() => {
      this.isAsked = false;
      this.paint();
    });
  }

  paint() {
    const { editor, canvas } = this;
    const context = canvas.getContext("2d");
    const ratio = canvas.width / Math.max(1, this.box.clientWidth);
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(ratio, 0, 0, ratio, ratio * this.left, ratio * this.top);
    const [width, height] = [editor.width * this.scale, editor.height * this.scale];
    context.fillStyle = editor.paper;
    context.fillRect(0, 0, width, height);
    if (editor.photo) this.paintPhoto(context, width, height);
    editor.paint(context, this.scale, width, height);
    if (this.percent) this.percent.textContent = `${Math.round(this.scale * 100)}%`;
  }

  // Whole, in the middle, as large as fits.
  paintPhoto(context, width, height) {
    const { photo, photoOpacity } = this.editor;
    const scale = Math.min(width / photo.naturalWidth, height / photo.naturalHeight);
    const [across, down] = [photo.naturalWidth * scale, photo.naturalHeight * scale];
    context.globalAlpha = photoOpacity;
    context.imageSmoothingEnabled = true;
    context.drawImage(photo, (width - across) / 2, (height - down) / 2, across, down);
    context.globalAlpha = 1;
  }
}
