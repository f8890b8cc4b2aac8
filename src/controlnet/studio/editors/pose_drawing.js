// How skeletons look in the editor: as the annotator draws them, in sizes of the picture, with handles in those of the
// screen.

Object.assign(PoseEditor.prototype, {
  paint(context, scale) {
    const seen = this.people.map((person) => person.body);
    const { limbs, colours, radius, opacity } = this.settings;
    seen.forEach((body) => body.forEach((point, joint) => point.isSeen && dot(context, scale, point, radius, colours[joint])));
    context.globalAlpha = opacity;
    limbs.forEach(([start, end], limb) => seen.forEach((body) => {
      if (body[start].isSeen && body[end].isSeen) paintLimb(context, scale, body[start], body[end], radius, colours[limb]);
    }));
    context.globalAlpha = 1;
    for (const person of this.people) this.paintDetails(context, scale, person);
    if (this.person !== null) this.paintHandles(context, scale);
  },

  paintDetails(context, scale, { left, right, face }) {
    const { bones, bone_colours, hand_colour, radius, face_radius } = this.settings;
    for (const hand of [left, right].filter(({ length }) => length)) {
      bones.forEach(([start, end], bone) => {
        if (!hand[start].isSeen || !hand[end].isSeen) return;
        line(context, [hand[start], hand[end]].map(({ x, y }) => [x * scale, y * scale]), rgb(bone_colours[bone]), 2 * scale);
      });
      for (const point of hand) if (point.isSeen) dot(context, scale, point, radius, hand_colour);
    }
    for (const point of face) if (point.isSeen) dot(context, scale, point, face_radius, [255, 255, 255]);
  },

  paintHandles(context, scale) {
    const { body } = this.people[this.person];
    const { corners, turner, top } = this.frame();
    const onScreen = corners.map(([x, y]) => [x * scale, y * scale]);
    context.setLineDash([5, 4]);
    line(context, [...onScreen, onScreen[0]], "#ffffffb0", 1);
    line(context, [[turner.x * scale, top * scale], [turner.x * scale, turner.y * scale]], "#ffffffb0", 1);
    context.setLineDash([]);
    for (const [x, y] of onScreen) {
      context.fillStyle = "#ffffff";
      context.strokeStyle = "#1f2937";
      context.lineWidth = 1;
      context.fillRect(x - 5, y - 5, 10, 10);
      context.strokeRect(x - 5, y - 5, 10, 10);
    }
    ring(context, turner.x * scale, turner.y * scale, 6, "#ffffff", "#1f2937");
    body.forEach(({ x, y, isSeen }, joint) => {
      if (!isSeen) return;
      const isChosen = joint === this.joint;
      ring(context, x * scale, y * scale, isChosen ? 9 : 6, null, isChosen ? "#ffffff" : "#ffffffa0", isChosen ? 2.5 : 1.2);
    });
  },
});

function dot(context, scale, { x, y }, radius, colour) {
  context.beginPath();
  context.arc(x * scale, y * scale, radius * scale, 0, 2 * Math.PI);
  context.fillStyle = rgb(colour);
  context.fill();
}

function paintLimb(context, scale, a, b, radius, colour) {
  const half = Math.hypot(a.x - b.x, a.y - b.y) / 2;
  context.beginPath();
  const angle = Math.atan2(a.y - b.y, a.x - b.x);
  context.ellipse(((a.x + b.x) / 2) * scale, ((a.y + b.y) / 2) * scale, half * scale, radius * scale, angle, 0, 2 * Math.PI);
  context.fillStyle = rgb(colour);
  context.fill();
}

function ring(context, x, y, radius, inside, edge, width = 1) {
  context.beginPath();
  context.arc(x, y, radius, 0, 2 * Math.PI);
  if (inside) {
    context.fillStyle = inside;
    context.fill();
  }
  context.strokeStyle = edge;
  context.lineWidth = width;
  context.stroke();
}

function line(context, points, colour, width) {
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x, y);
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke();
}
