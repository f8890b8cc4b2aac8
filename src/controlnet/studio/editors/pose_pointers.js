// What pointers do to skeletons: they drag a joint, a person, a corner of the frame around one, or the handle above it.

const HANDLE = 9; // screen pixels from its middle to its edge

Object.assign(PoseEditor.prototype, {
  box(person = this.people[this.person]) {
    const seen = this.points(person).filter(({ isSeen }) => isSeen);
    const [xs, ys] = [seen.map(({ x }) => x), seen.map(({ y }) => y)];
    if (!seen.length) return { left: 0, right: this.width, top: 0, bottom: this.height };
    return { left: Math.min(...xs), right: Math.max(...xs), top: Math.min(...ys), bottom: Math.max(...ys) };
  },

  // The frame around the chosen person, a little outside, with a handle at each corner and one above to turn.
  frame() {
    const { left, right, top, bottom } = this.box();
    const margin = 16 / this.stage.scale;
    const frame = { left: left - margin, right: right + margin, top: top - margin, bottom: bottom + margin };
    frame.middle = { x: (left + right) / 2, y: (top + bottom) / 2 };
    frame.corners = [[frame.left, frame.top], [frame.right, frame.top], [frame.right, frame.bottom], [frame.left, frame.bottom]];
    const above = frame.top - 28 / this.stage.scale;
    const highest = (HANDLE - this.stage.top) / this.stage.scale; // that is in view
    frame.turner = { x: frame.middle.x, y: Math.max(above, highest) };
    return frame;
  },

  // The nearest of the frame's handles and of the joints; else the person whose limb or box is there.
  grab(point, event) {
    const reach = (event.pointerType === "touch" ? 24 : 12) / this.stage.scale;
    const joint = this.nearestJoint(point, reach);
    const handles = this.person === null ? [] : this.handles().map((handle) => ({
      ...handle, away: Math.hypot(point.x - handle.x, point.y - handle.y),
    }));
    const handle = handles.filter(({ away }) => away <= reach && away < (joint?.away ?? Infinity)).sort((a, b) => a.away - b.away)[0];
    return handle ?? joint ?? this.under(point, reach);
  },

  handles() {
    const { corners, turner, middle } = this.frame();
    const scalers = corners.map(([x, y], at) => ({ kind: "scale", x, y, from: corners[(at + 2) % 4] }));
    return [{ kind: "turn", ...turner, middle }, ...scalers];
  },

  // The chosen person's joints come first, then those of others.
  nearestJoint(point, reach) {
    const found = this.people.flatMap((person, number) => person.body.filter(({ isSeen }) => isSeen).map((joint) => {
      const away = Math.hypot(joint.x - point.x, joint.y - point.y);
      return { kind: "joint", person: number, joint: person.body.indexOf(joint), away, rank: away - (number === this.person ? reach / 2 : 0) };
    })).filter(({ away }) => away <= reach);
    return found.sort((a, b) => a.rank - b.rank)[0] ?? null;
  },

  under(point, reach) {
    const isOn = (person) => this.settings.limbs.some(([start, end]) => {
      const [a, b] = [person.body[start], person.body[end]];
      if (!a.isSeen || !b.isSeen) return false;
      const length2 = (b.x - a.x) ** 2 + (b.y - a.y) ** 2 || 1;
      const along = Math.min(1, Math.max(0, ((point.x - a.x) * (b.x - a.x) + (point.y - a.y) * (b.y - a.y)) / length2));
      return Math.hypot(a.x + along * (b.x - a.x) - point.x, a.y + along * (b.y - a.y) - point.y) <= reach;
    });
    const isWithin = (person) => {
      const { left, right, top, bottom } = this.box(person);
      return point.x >= left && point.x <= right && point.y >= top && point.y <= bottom;
    };
    let number = this.people.findLastIndex(isOn);
    if (number < 0 && this.person !== null && isWithin(this.people[this.person])) number = this.person;
    if (number < 0) number = this.people.findLastIndex(isWithin);
    return number < 0 ? null : { kind: "person", person: number };
  },

  down(point, event) {
    const grabbed = this.grab(point, event);
    if (!grabbed) return this.select(null, null);
    if (grabbed.person !== undefined) this.select(grabbed.person, grabbed.joint ?? null);
    this.begin();
    this.grabbed = { ...grabbed, start: point, original: structuredClone(this.people[this.person]) };
  },

  move(point, event) {
    const { grabbed } = this;
    if (!grabbed) return;
    const person = structuredClone(grabbed.original);
    this.people[this.person] = person;
    const [dx, dy] = [point.x - grabbed.start.x, point.y - grabbed.start.y];
    if (grabbed.kind === "joint") this.moveJoint(person, this.joint, person.body[this.joint].x + dx, person.body[this.joint].y + dy);
    if (grabbed.kind === "person") this.transform(person, ({ x, y }) => ({ x: x + dx, y: y + dy }));
    if (grabbed.kind === "turn") this.turnTo(person, grabbed, point, event.shiftKey);
    if (grabbed.kind === "scale") this.scaleTo(person, grabbed, point);
    this.tell();
    this.stage.draw();
  },

  turnTo(person, { middle, start }, point, isStepped) {
    const angle = (at) => Math.atan2(at.y - middle.y, at.x - middle.x);
    const step = Math.PI / 12;
    const turned = angle(point) - angle(start);
    this.rotate(person, middle, isStepped ? Math.round(turned / step) * step : turned);
  },

  scaleTo(person, { from: [fx, fy], start }, point) {
    const far = Math.hypot(start.x - fx, start.y - fy);
    const along = ((point.x - fx) * (start.x - fx) + (point.y - fy) * (start.y - fy)) / far; // towards the corner
    const factor = Math.max(0.05, along / far);
    this.transform(person, ({ x, y }) => ({ x: fx + (x - fx) * factor, y: fy + (y - fy) * factor }));
  },

  up() {
    if (!this.grabbed) return;
    this.grabbed = null;
    if (this.before === this.state()) this.before = undefined; // a click
    else this.commit();
  },

  cancel() {
    if (this.grabbed) this.people[this.person] = this.grabbed.original;
    this.grabbed = null;
    this.before = undefined;
  },

  hovers(point, event) {
    const kinds = { joint: "crosshair", person: "move", scale: "nwse-resize", turn: "grab" };
    this.stage.canvas.style.cursor = kinds[this.grab(point, event)?.kind] ?? "default";
  },
});
