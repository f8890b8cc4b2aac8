// What editors are made of: elements, icons, runs, history, files.
// Text of visitors and of files goes into the page as text only, never as HTML.

const ICONS = {
  brush: "M3 21c3.5 0 6-1 6-4a2.5 2.5 0 0 0-5 0c0 2 -.3 3-1 4zM8.5 14 18 3.8a1.6 1.6 0 0 1 2.4 2.2L11 16",
  eraser: "M8 20h12M5.5 14.5l8-9a2 2 0 0 1 3 0l3 3a2 2 0 0 1 0 3L12 20H9l-3.5-3a1.8 1.8 0 0 1 0-2.5zM9.5 10l6 6",
  polygon: "M5 8l7-4 7 5-3 10H7zM5 8v0M12 4v0M19 9v0M16 19v0M7 19v0",
  fill: "M4 13l8-8 7 7-6.5 6.5a2 2 0 0 1-3 0L4 13zM4 13h14M9 2l3 3M20.5 16c1 1.5 1.5 2.3 1.5 3a1.5 1.5 0 0 1-3 0c0-.7.5-1.5 1.5-3z",
  pick: "M4 20l1-4 8-8 3 3-8 8zM12 5l7 7M14.5 8.500l3-4a2 2 0 0 1 3 3l-4 3",
  undo: "M8 4L4 8l4 4M4 8h10a6 6 0 0 1 0 12H8",
  redo: "M16 4l4 4-4 4M20 8H10a6 6 0 0 0 0 12h6",
  clear: "M4 7h16M9 7V4h6v3M6.500 7l1 13h9l1-13M10 11v5M14 11v5",
  photo: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.500 9v0",
  open: "M3 19V5h6l2 3h10v11zM12 17v-5M9.500 14l2.500-2.500 2.500 2.500",
  save: "M12 4v11M7.500 11l4.500 4.500 4.500-4.500M4 20h16",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  fit: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
  cross: "M7 7l10 10M17 7L7 17",
  whole: "M14 4h6v6M20 4l-7 7M10 20H4v-6M4 20l7-7",
  invert: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  add: "M10 4a3 3 0 1 1 0 6 3 3 0 0 1 0-6zM4 20c0-5 2.500-7 6-7s6 2 6 7M19 7v6M16 10h6",
  copy: "M8 8h12v12H8zM16 8V4H4v12h4",
  mirror: "M12 3v18M9 7L3 18h6zM15 7l6 11h-6z",
  remove: "M10 4a3 3 0 1 1 0 6 3 3 0 0 1 0-6zM4 20c0-5 2.500-7 6-7s6 2 6 7M16 10h6",
  shown: "M2 12c3-5 6-7 10-7s7 2 10 7c-3 5-6 7-10 7s-7-2-10-7zM12 9a3 3 0 1 1 0 6 3 3 0 0 1 0-6z",
  hidden: "M4 4l16 16M9 5.500c1-.3 2-.5 3-.5 4 0 7 2 10 7-1 1.600-2 2.900-3 3.900M15 18.500c-1 .3-2 .5-3 .5-4 0-7-2-10-7 1-1.700 2.100-3 3.200-4.100",
};

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS(svg.namespaceURI, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

function button(name, label, onclick, { text = "", key = "", ...attributes } = {}) {
  const title = key ? `${label} (${key})` : label;
  return make("button", { type: "button", title, "aria-label": label, onclick, ...attributes }, icon(name), text);
}

function group(label, ...children) {
  return make("div", { class: "group", role: "group", "aria-label": label }, ...children);
}

function slider(label, { min, max, step = 1, value, oninput, unit = "" }) {
  const shown = make("output", {}, `${value}${unit}`);
  const input = make("input", { type: "range", min, max, step, value, "aria-label": label });
  const set = (number) => {
    input.value = number;
    shown.textContent = `${input.value}${unit}`;
  };
  input.addEventListener("input", () => {
    set(input.value);
    oninput(Number(input.value));
  });
  return { set, element: make("label", { class: "slider", title: label }, make("span", {}, label), input, shown) };
}

// Pictures of indices travel as base64 of triples of bytes: an index and how often it comes, low byte first.
const LONGEST_RUN = 0xffff;

function encodeRuns(pixels) {
  const parts = [];
  let bytes = [];
  for (let start = 0; start < pixels.length; ) {
    let end = start + 1;
    const last = Math.min(pixels.length, start + LONGEST_RUN);
    while (end < last && pixels[end] === pixels[start]) end++;
    bytes.push(pixels[start], (end - start) & 255, (end - start) >> 8);
    if (bytes.length >= 24576) {
      parts.push(String.fromCharCode(...bytes));
      bytes = [];
    }
    start = end;
  }
  return btoa(parts.join("") + String.fromCharCode(...bytes));
}

function decodeRuns(text, length) {
  const bytes = atob(text);
  const pixels = new Uint8Array(length);
  let place = 0;
  for (let at = 0; at < bytes.length; at += 3) {
    const end = place + bytes.charCodeAt(at + 1) + 256 * bytes.charCodeAt(at + 2);
    pixels.fill(bytes.charCodeAt(at), place, end);
    place = end;
  }
  if (place !== length) throw new Error(`${place} pixels for a canvas of ${length}`);
  return pixels;
}

// What was before and what came after, as text, so that the states share nothing.
class History {
  static most = 24e6; // letters in all, some hundred strokes on a large canvas

  constructor() {
    this.past = [];
    this.future = [];
  }

  push(state) {
    this.past.push(state);
    this.future = [];
    let size = 0;
    let kept = this.past.length;
    while (kept > 0 && (size += this.past[kept - 1].length) < History.most) kept--;
    if (kept < this.past.length) this.past.splice(0, kept);
  }

  undo(now) {
    if (!this.past.length) return null;
    this.future.push(now);
    return this.past.pop();
  }

  redo(now) {
    if (!this.future.length) return null;
    this.past.push(now);
    return this.future.pop();
  }
}

async function toBase64(file) {
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  return url.slice(url.indexOf(",") + 1);
}

function download(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
