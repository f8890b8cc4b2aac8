// Editors of pixels: each pixel has an index, and every tool is exact, without softened edges.

class RasterEditor extends Editor {
  get help() {
    return "Draw with a mouse, a pen or a finger.";
  }

  build() {
    this.tool = "brush";
    this.last = null; // where the last stroke ended
    this.corners = []; // of the polygon that is being drawn
    this.palette = this.colours(); // of each index, as 32 bits: alpha, blue, green, red
    super.build();
  }

  toolButtons(...names) {
    const tools = {
      brush: ["Brush", "B"], eraser: ["Eraser", "E"], polygon: ["Polygon", "P"], fill: ["Fill", "F"], pick: ["Pick", "I"],
    };
    this.toolOf = Object.fromEntries(names.map((name) => {
      const [label, key] = tools[name];
      return [name, button(name, label, () => this.use(name), { key, "aria-pressed": String(name === this.tool) })];
    }));
    this.size = 6;
    this.sizeSlider = slider("Size", { min: 1, max: 128, value: 6, unit: " px", oninput: (size) => this.setSize(size, true) });
    return group("Tools", ...Object.values(this.toolOf), this.sizeSlider.element);
  }

  use(name) {
    this.cancel();
    this.tool = name;
    for (const [each, element] of Object.entries(this.toolOf)) element.setAttribute("aria-pressed", String(each === name));
    this.sizeSlider.element.classList.toggle("idle", !["brush", "eraser"].includes(name));
    this.say({
      polygon: "Click the corners; double click, Enter or the first corner closes it, Escape drops it",
      fill: "Click an area to fill it",
      pick: "Click the picture to take its class",
    }[name] ?? "");
    this.stage.draw();
  }

  setSize(size, isChosen = false) {
    this.size = Math.max(1, Math.min(128, size));
    this.isSizeChosen ||= isChosen;
    this.sizeSlider.set(this.size);
    this.stage.draw();
  }

  keys() {
    const keys = {
      "[": () => this.setSize(this.size - Math.max(1, Math.round(this.size / 8)), true),
      "]": () => this.setSize(this.size + Math.max(1, Math.round(this.size / 8)), true),
      0: () => this.stage.fit(),
    };
    const letters = { b: "brush", e: "eraser", p: "polygon", f: "fill", i: "pick" };
    for (const [letter, name] of Object.entries(letters)) if (this.toolOf[name]) keys[letter] = () => this.use(name);
    if (this.corners.length) Object.assign(keys, { enter: () => this.close(), escape: () => this.cancel() });
    return keys;
  }

  // The document
  document() {
    return { width: this.width, height: this.height, runs: encodeRuns(this.pixels) };
  }

  stateOf({ width, height, runs }) {
    return JSON.stringify({ width, height, runs });
  }

  load({ width, height, runs }) {
    this.set(width, height, decodeRuns(runs, width * height));
  }

  blank(width, height) {
    this.set(width, height, new Uint8Array(width * height).fill(this.nothing));
  }

  isBlank() {
    return this.pixels.every((index) => index === this.nothing);
  }

  set(width, height, pixels) {
    if (!this.layer || width !== this.width || height !== this.height) {
      Object.assign(this, { width, height });
      this.layer = new OffscreenCanvas(width, height).getContext("2d");
      this.image = new ImageData(width, height);
      this.shown = new Uint32Array(this.image.data.buffer);
      if (!this.isSizeChosen) this.setSize(this.settings.brush ?? this.usualSize(Math.min(width, height)));
    }
    this.pixels = pixels;
    this.refresh(0, 0, width, height);
  }

  // Around the middle, pixel by pixel.
  resizeTo(width, height) {
    const pixels = new Uint8Array(width * height).fill(this.nothing);
    const [dx, dy] = [Math.floor((width - this.width) / 2), Math.floor((height - this.height) / 2)];
    const [from, to] = [Math.max(0, -dx), Math.min(this.width, width - dx)];
    for (let y = Math.max(0, -dy); y < Math.min(this.height, height - dy); y++)
      pixels.set(this.pixels.subarray(y * this.width + from, y * this.width + to), (y + dy) * width + from + dx);
    this.set(width, height, pixels);
  }

  refresh(left, top, right, bottom) {
    for (let y = top; y < bottom; y++)
      for (let at = y * this.width + left, end = y * this.width + right; at < end; at++) this.shown[at] = this.palette[this.pixels[at]];
    this.layer.putImageData(this.image, 0, 0, left, top, right - left, bottom - top);
    this.stage.draw();
  }

  // Tools
  down(point, event) {
    if (this.tool === "polygon") return this.corner(point);
    if (this.tool === "pick") return this.pick(this.indexAt(point));
    this.begin();
    if (this.tool === "fill") {
      this.fill(Math.floor(point.x), Math.floor(point.y), this.index());
      return this.commit();
    }
    this.kept = this.pixels.slice();
    const start = this.snapped(point);
    this.stroke(event.shiftKey && this.last ? this.last : start, start);
    this.last = start;
  }

  move(point) {
    if (!this.kept) return;
    const next = this.snapped(point);
    if (next.x === this.last.x && next.y === this.last.y) return;
    this.stroke(this.last, next);
    this.last = next;
  }

  up() {
    if (!this.kept) return;
    this.kept = null;
    this.commit();
  }

  cancel() {
    this.corners = [];
    if (this.kept) this.set(this.width, this.height, this.kept);
    this.kept = null;
    this.before = undefined;
    this.stage.draw();
  }

  doubled() {
    if (this.tool === "polygon") this.close();
  }

  index() {
    return this.tool === "eraser" ? this.nothing : this.something();
  }

  indexAt({ x, y }) {
    const [column, row] = [Math.floor(x), Math.floor(y)];
    const isInside = column >= 0 && row >= 0 && column < this.width && row < this.height;
    return isInside ? this.pixels[row * this.width + column] : null;
  }

  // To the middle of a pixel or, for an even size, to where four meet: so that the brush is round.
  snapped({ x, y }) {
    return this.size % 2 ? { x: Math.floor(x) + 0.5, y: Math.floor(y) + 0.5 } : { x: Math.round(x), y: Math.round(y) };
  }

  // All pixels whose middle is no farther than the brush's radius from the line between two points.
  stroke(from, to) {
    const radius = this.size / 2;
    const index = this.index();
    const [dx, dy] = [to.x - from.x, to.y - from.y];
    const length2 = dx * dx + dy * dy;
    const left = Math.max(0, Math.floor(Math.min(from.x, to.x) - radius));
    const top = Math.max(0, Math.floor(Math.min(from.y, to.y) - radius));
    const right = Math.min(this.width, Math.ceil(Math.max(from.x, to.x) + radius));
    const bottom = Math.min(this.height, Math.ceil(Math.max(from.y, to.y) + radius));
    if (left >= right || top >= bottom) return;
    for (let row = top; row < bottom; row++) {
      for (let column = left; column < right; column++) {
        const [x, y] = [column + 0.5 - from.x, row + 0.5 - from.y];
        const along = length2 ? Math.min(1, Math.max(0, (x * dx + y * dy) / length2)) : 0;
        const [ax, ay] = [x - along * dx, y - along * dy];
        if (ax * ax + ay * ay <= radius * radius + 1e-9) this.pixels[row * this.width + column] = index;
      }
    }
    this.refresh(left, top, right, bottom);
  }

  // The area of one index around a pixel, over its four sides, row by row.
  fill(column, row, index) {
    const { pixels, width, height } = this;
    const old = this.indexAt({ x: column, y: row });
    if (old === null || old === index) return;
    const waiting = [[column, row]];
    while (waiting.length) {
      const [x, y] = waiting.pop();
      const start = y * width;
      if (pixels[start + x] !== old) continue;
      let [left, right] = [x, x];
      while (left > 0 && pixels[start + left - 1] === old) left--;
      while (right < width - 1 && pixels[start + right + 1] === old) right++;
      pixels.fill(index, start + left, start + right + 1);
      for (const next of [y - 1, y + 1]) {
        if (next < 0 || next >= height) continue;
        for (let at = left; at <= right; at++) {
          const isStart = pixels[next * width + at] === old && (at === left || pixels[next * width + at - 1] !== old);
          if (isStart) waiting.push([at, next]);
        }
      }
    }
    this.refresh(0, 0, width, height);
  }

  corner(point) {
    const [first] = this.corners;
    const reach = 10 / this.stage.scale; // ten pixels of the screen
    if (this.corners.length > 2 && Math.hypot(point.x - first.x, point.y - first.y) < reach) return this.close();
    this.corners.push({ x: Math.round(point.x), y: Math.round(point.y) });
  }

  close() {
    const corners = this.corners;
    this.corners = [];
    this.begin();
    if (corners.length > 2) this.polygon(corners, this.index());
    this.commit();
  }

  // All pixels whose middle is inside, by the even-odd rule.
  polygon(corners, index) {
    for (let row = 0; row < this.height; row++) {
      const y = row + 0.5;
      const crossings = corners.flatMap((a, at) => {
        const b = corners[(at + 1) % corners.length];
        return a.y > y === b.y > y ? [] : [a.x + ((y - a.y) * (b.x - a.x)) / (b.y - a.y)];
      }).sort((a, b) => a - b);
      for (let at = 0; at + 1 < crossings.length; at += 2) {
        const [from, to] = crossings.slice(at, at + 2).map((x) => Math.min(this.width, Math.max(0, Math.ceil(x - 0.5))));
        this.pixels.fill(index, row * this.width + from, row * this.width + to);
      }
    }
    this.refresh(0, 0, this.width, this.height);
  }

  // What is seen
  paint(context, scale, width, height) {
    context.globalAlpha = this.layerOpacity();
    context.imageSmoothingEnabled = scale < 1;
    context.drawImage(this.layer.canvas, 0, 0, width, height);
    context.globalAlpha = 1;
    if (this.corners.length) this.paintCorners(context, scale);
    else if (this.stage.hover && ["brush", "eraser"].includes(this.tool)) this.paintBrush(context, scale);
  }

  paintBrush(context, scale) {
    const { x, y } = this.stage.hover;
    const radius = Math.max(2, (this.size * scale) / 2);
    for (const [colour, grown] of [["#fff", 0.5], ["#000", -0.5]]) {
      context.beginPath();
      context.arc(x * scale, y * scale, radius + grown, 0, 2 * Math.PI);
      context.lineWidth = 1;
      context.strokeStyle = colour;
      context.stroke();
    }
  }

  paintCorners(context, scale) {
    const points = this.stage.hover ? [...this.corners, this.stage.hover] : this.corners;
    context.lineJoin = "round";
    for (const [colour, width] of [["#000", 4], ["#fff", 2]]) {
      context.beginPath();
      points.forEach(({ x, y }) => context.lineTo(x * scale, y * scale));
      context.strokeStyle = colour;
      context.lineWidth = width;
      context.stroke();
      for (const { x, y } of this.corners) {
        context.beginPath();
        context.arc(x * scale, y * scale, width + 2, 0, 2 * Math.PI);
        context.fillStyle = colour;
        context.fill();
      }
    }
  }
}
