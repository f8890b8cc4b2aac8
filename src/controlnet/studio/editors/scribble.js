// Drawings, black on white paper, and masks, red over a photograph.

class ScribbleEditor extends RasterEditor {
  get isMask() {
    return this.settings.mode === "mask";
  }

  get nothing() {
    return 0;
  }

  get paper() {
    return this.isMask ? "#8a8d93" : "#ffffff";
  }

  something() {
    return 1;
  }

  colours() {
    const colours = new Uint32Array(256);
    colours[1] = this.isMask ? 0xff3b30ef : 0xff000000;
    return colours;
  }

  layerOpacity() {
    return this.isMask ? 0.6 : 1;
  }

  usualSize(side) {
    return Math.max(2, Math.round(side / (this.isMask ? 12 : 85))); // 6 of 512: thin, as controls have learned
  }

  build() {
    if (this.isMask) this.photoOpacity = 1;
    super.build();
    if (this.isMask) this.photoSlider.set(100);
  }

  tools() {
    return [this.toolButtons("brush", "eraser", ...(this.isMask ? ["polygon", "fill"] : ["fill"]))];
  }

  side() {
    return null;
  }

  files() {
    const what = this.isMask ? "mask" : "drawing";
    const input = this.fileInput(Editor.accept, async (file) => {
      const value = await this.read(file, "read_drawing");
      if (value) this.take(value);
    });
    return [
      input,
      button("open", `Open a ${what}, of any polarity`, () => input.click(), { text: "Open" }),
      button("save", `Save the ${what} as PNG`, () => this.save(what)),
      ...(this.isMask ? [button("invert", "Exchange painted and not painted", () => this.invert())] : []),
    ];
  }

  invert() {
    this.begin();
    this.set(this.width, this.height, this.pixels.map((index) => 1 - index));
    this.commit();
  }

  async save(name) {
    const { width, height } = this;
    const grey = this.isMask ? [0, 255] : [255, 0]; // a drawing as on paper, a mask white where painted
    const image = new ImageData(width, height);
    const bits = new Uint32Array(image.data.buffer);
    this.pixels.forEach((index, at) => { bits[at] = 0xff000000 | (grey[index] * 0x10101); });
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(image, 0, 0);
    download(await canvas.convertToBlob({ type: "image/png" }), `${name}.png`);
  }
}
