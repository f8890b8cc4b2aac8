// Skeletons: people of 18 joints, with hands and faces where a detector gave them, in the annotator's own colours.

const PARTS = {
  pose_keypoints_2d: "body",
  hand_left_keypoints_2d: "left",
  hand_right_keypoints_2d: "right",
  face_keypoints_2d: "face",
};
const WRISTS = { left: 7, right: 4 };
const NECK = 1;

const rgb = ([red, green, blue]) => `rgb(${red} ${green} ${blue})`;

function toPoints(numbers) {
  const points = [];
  for (let at = 0; at + 2 < (numbers?.length ?? 0); at += 3) {
    const [x, y, score] = numbers.slice(at, at + 3);
    points.push({ x, y, score, isSeen: score > 0 });
  }
  return points;
}

function toNumbers(points) {
  return points.flatMap(({ x, y, score, isSeen }) => (isSeen ? [tidy(x), tidy(y), score > 0 ? score : 1] : [0, 0, 0]));
}

const tidy = (number) => Math.round(number * 100) / 100;

class PoseEditor extends Editor {
  get paper() {
    return "#000000";
  }

  get help() {
    return "Tab goes from joint to joint, arrows move, Delete hides.";
  }

  build() {
    this.people = [];
    this.person = this.joint = null; // numbers of what is chosen
    super.build();
  }

  tools() {
    const chosen = [
      button("copy", "Copy person", () => this.copy(), { key: "Ctrl+D" }),
      button("mirror", "Mirror person", () => this.mirror(), { key: "M" }),
      button("remove", "Delete person", () => this.remove(), { key: "Delete" }),
    ];
    this.needsPerson = chosen;
    return [group("People", button("add", "Add person", () => this.add(), { text: "Add", key: "A" }), ...chosen)];
  }

  files() {
    const input = this.fileInput(".json,application/json", async (file) => {
      const value = await this.read(file, "read_pose");
      if (value) this.take(value);
    });
    return [
      input,
      button("open", "Open OpenPose JSON", () => input.click(), { text: "Open" }),
      button("save", "Save as OpenPose JSON", () =>
        download(new Blob([this.state()], { type: "application/json" }), "pose.json")),
    ];
  }

  openAny(file) {
    if (file.name.endsWith(".json")) this.read(file, "read_pose").then((value) => value && this.take(value));
    else this.openPhoto(file);
  }

  side() {
    this.tabs = make("div", { class: "people", role: "group", "aria-label": "People" });
    this.rows = this.settings.joints.map((name, joint) => {
      const eye = make("button", { type: "button", class: "eye", onclick: () => this.toggle(joint) });
      const choose = make("button", { type: "button", class: "name", onclick: () => this.select(this.person, joint) },
        make("span", { class: "swatch", style: `background: ${rgb(this.settings.colours[joint])}` }), name);
      return { eye, choose, name, element: make("div", { class: "joint" }, choose, eye) };
    });
    this.list = make("div", { class: "list", role: "group", "aria-label": "Joints" }, ...this.rows.map(({ element }) => element));
    return make("div", { class: "side" }, this.tabs, this.list);
  }

  // The document
  document() {
    const people = this.people.map((person) => Object.fromEntries(
      Object.entries(PARTS).filter(([, part]) => person[part].length).map(([key, part]) => [key, toNumbers(person[part])])));
    return { people, canvas_width: this.width, canvas_height: this.height };
  }

  stateOf(value) {
    const people = value.people.map((person) => Object.fromEntries(
      Object.keys(PARTS).filter((key) => person[key]?.length).map((key) => [key, toNumbers(toPoints(person[key]))])));
    return JSON.stringify({ people, canvas_width: value.canvas_width, canvas_height: value.canvas_height });
  }

  load(value) {
    this.width = value.canvas_width;
    this.height = value.canvas_height;
    const old = this.people;
    this.people = value.people.map((person, number) => {
      const loaded = Object.fromEntries(Object.entries(PARTS).map(([key, part]) => [part, toPoints(person[key])]));
      loaded.body.forEach((point, joint) => this.place(point, joint, loaded.body, old[number]?.body));
      return loaded;
    });
    if (this.person >= this.people.length) this.person = this.joint = null;
    if (this.person === null && this.people.length) this.person = 0;
  }

  // A hidden joint travels without its place: it takes the one that it had, or the one beside its neighbour.
  place(point, joint, body, before) {
    if (point.isSeen) return;
    const [from] = this.settings.limbs.find(([, end]) => end === joint) ?? [NECK];
    const [a, b] = [this.settings.standing[from], this.settings.standing[joint]];
    const seen = body.filter(({ isSeen }) => isSeen);
    const size = Math.max(...seen.map(({ y }) => y), 0) - Math.min(...seen.map(({ y }) => y), this.height);
    const start = body[from].isSeen ? body[from] : seen[0] ?? { x: this.width / 2, y: this.height / 2 };
    const guess = { x: start.x + (b[0] - a[0]) * Math.max(60, size), y: start.y + (b[1] - a[1]) * Math.max(60, size) };
    const { x, y } = before?.[joint] && (before[joint].x || before[joint].y) ? before[joint] : guess;
    Object.assign(point, { x, y });
  }

  blank(width, height) {
    Object.assign(this, { width, height, people: [], person: null, joint: null });
  }

  isBlank() {
    return !this.people.length;
  }

  resizeTo(width, height) {
    const [dx, dy] = [(width - this.width) / 2, (height - this.height) / 2];
    Object.assign(this, { width, height });
    for (const person of this.people) this.transform(person, ({ x, y }) => ({ x: x + dx, y: y + dy }));
  }

  changed() {
    super.changed();
    this.tabs.replaceChildren(...this.people.map((_, number) =>
      make("button", { type: "button", "aria-pressed": String(number === this.person), onclick: () => this.select(number, null) },
        `Person ${number + 1}`)));
    if (!this.people.length) this.tabs.append(make("p", {}, "No people yet: add one, or open a JSON."));
    const body = this.people[this.person]?.body;
    this.list.hidden = !body;
    for (const each of this.needsPerson) each.disabled = !body;
    this.rows.forEach(({ eye, choose, name }, joint) => {
      const isSeen = Boolean(body?.[joint].isSeen);
      eye.replaceChildren(icon(isSeen ? "shown" : "hidden"));
      eye.setAttribute("aria-label", `${isSeen ? "Hide" : "Show"} ${name}`);
      eye.title = eye.getAttribute("aria-label");
      choose.classList.toggle("unseen", !isSeen);
      choose.setAttribute("aria-pressed", String(joint === this.joint));
    });
  }

  select(person, joint) {
    Object.assign(this, { person, joint });
    this.changed();
    this.tell();
  }

  tell() {
    const point = this.people[this.person]?.body[this.joint];
    if (point) this.say(`${this.settings.joints[this.joint]} ${point.isSeen ? `${Math.round(point.x)}, ${Math.round(point.y)}` : "hidden"}`);
    else this.say(this.people.length ? `${this.people.length} ${this.people.length === 1 ? "person" : "people"}` : "");
  }

  // Changes
  change(act) {
    this.begin();
    act();
    this.commit();
    this.tell();
  }

  points(person) {
    return [...person.body, ...person.left, ...person.right, ...person.face];
  }

  transform(person, map) {
    for (const point of this.points(person)) Object.assign(point, map(point));
  }

  add() {
    if (this.isFull()) return;
    const size = Math.min(this.height, this.width * 2) * 0.85;
    const [x, y] = [this.width / 2, this.height * 0.52];
    const body = this.settings.standing.map(([dx, dy]) => ({ x: x + dx * size, y: y + dy * size, score: 1, isSeen: true }));
    this.change(() => this.append({ body, left: [], right: [], face: [] }, (this.people.length % 5) * 0.06 * this.width));
  }

  copy() {
    if (this.person === null || this.isFull()) return;
    this.change(() => this.append(structuredClone(this.people[this.person]), this.width * 0.08));
  }

  append(person, aside) {
    this.transform(person, ({ x, y }) => ({ x: x + aside, y }));
    this.people.push(person);
    this.person = this.people.length - 1;
    this.joint = null;
  }

  isFull() {
    const isFull = this.people.length >= this.settings.most_people;
    if (isFull) this.say(`${this.settings.most_people} people are the most`);
    return isFull;
  }

  remove() {
    if (this.person === null) return;
    this.change(() => {
      this.people.splice(this.person, 1);
      this.person = this.people.length ? Math.min(this.person, this.people.length - 1) : null;
      this.joint = null;
    });
  }

  // As in a mirror, but left stays left: who is mirrored shows the other side.
  mirror() {
    if (this.person === null) return;
    const { left, right } = this.box();
    this.change(() => {
      const person = this.people[this.person];
      this.transform(person, ({ x, y }) => ({ x: left + right - x, y }));
      this.settings.joints.forEach((name, joint) => {
        const other = this.settings.joints.indexOf(name.replace("right ", "left "));
        if (other !== joint) [person.body[joint], person.body[other]] = [person.body[other], person.body[joint]];
      });
      [person.left, person.right] = [person.right, person.left];
    });
  }

  toggle(joint) {
    if (this.person === null) return;
    this.joint = joint;
    this.change(() => { this.people[this.person].body[joint].isSeen = !this.people[this.person].body[joint].isSeen; });
  }

  shift(dx, dy) {
    const person = this.people[this.person];
    if (!person) return;
    this.change(() => {
      if (this.joint === null) this.transform(person, ({ x, y }) => ({ x: x + dx, y: y + dy }));
      else this.moveJoint(person, this.joint, person.body[this.joint].x + dx, person.body[this.joint].y + dy);
    });
  }

  // A hand goes with its wrist.
  moveJoint(person, joint, x, y) {
    const point = person.body[joint];
    const hand = Object.keys(WRISTS).find((side) => WRISTS[side] === joint);
    for (const each of hand ? person[hand] : []) Object.assign(each, { x: each.x + x - point.x, y: each.y + y - point.y });
    Object.assign(point, { x, y });
  }

  turn(degrees) {
    if (this.person === null) return;
    const { left, right, top, bottom } = this.box();
    const middle = { x: (left + right) / 2, y: (top + bottom) / 2 };
    this.change(() => this.rotate(this.people[this.person], middle, (degrees * Math.PI) / 180));
  }

  rotate(person, { x: cx, y: cy }, angle) {
    const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
    this.transform(person, ({ x, y }) => ({
      x: cx + (x - cx) * cos - (y - cy) * sin,
      y: cy + (x - cx) * sin + (y - cy) * cos,
    }));
  }

  // Keys
  keys(event) {
    const step = event.shiftKey ? 10 : 1;
    const keys = {
      arrowleft: () => this.shift(-step, 0),
      arrowright: () => this.shift(step, 0),
      arrowup: () => this.shift(0, -step),
      arrowdown: () => this.shift(0, step),
      delete: () => (this.joint === null ? this.remove() : this.toggle(this.joint)),
      a: () => this.add(),
      m: () => this.mirror(),
      ",": () => this.turn(-5),
      ".": () => this.turn(5),
      0: () => this.stage.fit(),
    };
    if (this.joint !== null) keys.escape = () => this.select(this.person, null);
    keys.backspace = keys.delete;
    const next = this.nextJoint(event.shiftKey ? -1 : 1);
    if (event.target === this.stage.canvas && next !== null) keys.tab = () => this.select(this.person, next);
    if (event.target !== this.stage.canvas) for (const name of Object.keys(keys)) if (name.startsWith("arrow")) delete keys[name];
    return keys;
  }

  commandKeys() {
    return { d: () => this.copy() };
  }

  // After the last one the key leaves the canvas, as it leaves any other element.
  nextJoint(step) {
    const body = this.people[this.person]?.body;
    if (!body) return null;
    let joint = this.joint ?? (step > 0 ? -1 : body.length);
    do joint += step; while (body[joint] && !body[joint].isSeen);
    return body[joint] ? joint : null;
  }
}
