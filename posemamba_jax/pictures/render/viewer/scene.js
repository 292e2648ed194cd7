// The room: ground, shadows, skeletons and the camera that filmed them.

function followed() {
  if (state.follow === "all") return shownTracks();
  return state.follow === "" ? [] : [tracks[Number(state.follow)]].filter((t) => t.shown);
}

// The middle of the view, and the radius around it that is to be seen. A person who is away is
// looked for where the person was last.
function centreOfView() {
  const places = [];
  for (const track of followed()) {
    for (let frame = state.frame; frame >= 0; frame--) {
      const root = joint(track.poses, frame, clip.root);
      if (root) {
        places.push(root);
        break;
      }
    }
  }
  if (!places.length) return { centre: clip.centre, radius: clip.radius };
  const mean = [0, 1].map((k) => places.reduce((sum, p) => sum + p[k], 0) / places.length);
  const apart = Math.max(...places.map((p) => Math.hypot(p[0] - mean[0], p[1] - mean[1])));
  const centre = [...mean, clip.ground.z + clip.person_size * 0.52];
  return { centre, radius: Math.min(clip.radius, apart + 0.75 * clip.person_size) };
}

const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

function makeProjection() {
  return state.cameraView && clip.camera ? filmProjection() : orbitProjection();
}

// Through the camera that filmed: the picture as large as the panel allows.
function filmProjection() {
  const { focal_px: focal, rotation, position, image_size: [w, h] } = clip.camera;
  const { clientWidth: width, clientHeight: height } = scene;
  const scale = Math.min(width / w, height / h) * camera.zoom;
  return (point) => {
    if (!point) return null;
    const p = [point[0] - position[0], point[1] - position[1], point[2] - position[2]];
    const [x, y, depth] = rotation.map((row) => dot(row, p));
    if (depth < 1e-6 * clip.radius + 0.02 * clip.person_size) return null;
    const size = (focal * scale) / depth;
    return {
      x: width / 2 + camera.pan[0] + x * size, y: height / 2 + camera.pan[1] + y * size, depth, size,
    };
  };
}

function orbitProjection() {
  const { clientWidth: width, clientHeight: height } = scene;
  const [ca, sa] = [Math.cos(camera.azimuth), Math.sin(camera.azimuth)];
  const [ce, se] = [Math.cos(camera.elevation), Math.sin(camera.elevation)];
  const right = [ca, sa, 0];
  const ahead = [-sa * ce, ca * ce, -se];
  const up = [-sa * se, ca * se, ce];
  const { centre, radius } = centreOfView();
  const distance = ((0.94 * radius) / Math.sin(FIELD_OF_VIEW / 2)) / camera.zoom;
  const scale = Math.min(width, height) / 2 / Math.tan(FIELD_OF_VIEW / 2);
  return (point) => {
    if (!point) return null;
    const p = [point[0] - centre[0], point[1] - centre[1], point[2] - centre[2]];
    const depth = dot(p, ahead) + distance;
    if (depth < distance * 0.02) return null;
    const size = scale / depth;
    return {
      x: width / 2 + camera.pan[0] + dot(p, right) * size,
      y: height / 2 + camera.pan[1] - dot(p, up) * size,
      depth,
      size,
    };
  };
}

function drawGround(context, project) {
  const { centre: [x, y], half, step, z } = clip.ground;
  const count = Math.round((2 * half) / step);
  const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([a, b]) =>
    project([x + a * half, y + b * half, z]));
  if (corners.every((corner) => corner)) {
    context.fillStyle = palette.floor;
    context.beginPath();
    corners.forEach((p, i) => (i ? context.lineTo(p.x, p.y) : context.moveTo(p.x, p.y)));
    context.fill();
  }
  // In pieces, so that a line that passes behind the viewer is drawn up to there.
  const pieces = 8;
  for (let i = 0; i <= count; i++) {
    const offset = -half + i * step;
    for (const place of [(t) => [x + offset, y + t, z], (t) => [x + t, y + offset, z]]) {
      let before = null;
      for (let k = 0; k <= pieces; k++) {
        const now = project(place(-half + (2 * half * k) / pieces));
        if (before && now) line(context, before, now, palette.grid, 1);
        before = now;
      }
    }
  }
}

function drawFrustum(context, project) {
  if (!clip.camera || state.cameraView || !byId("frustum").checked) return;
  const { focal_px: focal, rotation, position, image_size: [w, h] } = clip.camera;
  const depth = 0.5 * clip.person_size;
  const corners = [[-w, -h], [w, -h], [w, h], [-w, h]].map(([u, v]) => {
    const ray = [(u / 2 / focal) * depth, (v / 2 / focal) * depth, depth];
    return project([0, 1, 2].map((k) => position[k] +
      rotation[0][k] * ray[0] + rotation[1][k] * ray[1] + rotation[2][k] * ray[2]));
  });
  const apex = project(position);
  const foot = project([position[0], position[1], clip.ground.z]);
  if (apex && foot) {
    context.setLineDash([3, 4]);
    line(context, apex, foot, palette.faint, 1);
    context.setLineDash([]);
  }
  corners.forEach((corner, i) => {
    const next = corners[(i + 1) % 4];
    if (corner && next) line(context, corner, next, palette.faint, 1.5);
    if (corner && apex) line(context, apex, corner, palette.faint, 1.5);
  });
}

function drawFilmFrame(context) {
  if (!state.cameraView || !clip.camera) return;
  const [w, h] = clip.camera.image_size;
  const scale = Math.min(scene.clientWidth / w, scene.clientHeight / h) * camera.zoom;
  const [x, y] = [scene.clientWidth / 2 + camera.pan[0], scene.clientHeight / 2 + camera.pan[1]];
  context.strokeStyle = palette.faint;
  context.lineWidth = 1;
  context.strokeRect(x - (w * scale) / 2, y - (h * scale) / 2, w * scale, h * scale);
}

function collectBones(track, poses, kind, project, into) {
  const faded = kind === "pose" && !track.observed[state.frame];
  const thickness = clip.thickness * (kind === "truth" ? 0.45 : 1);
  clip.bones.forEach(([a, b], i) => {
    const [p, q] = [a, b].map((j) => joint(poses, state.frame, j));
    const [from, to] = [project(p), project(q)];
    if (!from || !to) return;
    const plain = palette[kind === "truth" ? "truth" : clip.sides[i]];
    into.push({
      from,
      to,
      kind,
      color: faded ? mix(plain, palette.paper, 0.4) : plain,
      width: Math.max(2, ((from.size + to.size) / 2) * thickness),
      depth: (from.depth + to.depth) / 2,
      onGround: [p, q].map((point) => project([point[0], point[1], clip.ground.z])),
    });
    // A joint lies in front of the bone that it ends.
    if (kind === "pose") into.push({ dot: to, width: to.size * thickness, depth: to.depth - thickness });
  });
}

function drawShadows(context, bones) {
  // One stroke for all of a width, so that overlapping shadows are no darker.
  context.strokeStyle = palette.shadow;
  context.beginPath();
  for (const bone of bones) {
    if (bone.kind !== "pose" || !bone.onGround.every((point) => point)) continue;
    const [a, b] = bone.onGround;
    context.moveTo(a.x, a.y);
    context.lineTo(b.x, b.y);
    context.lineWidth = bone.width * 1.3;
  }
  context.stroke();
}

function drawTrail(context, project) {
  if (!byId("trail").checked) return;
  for (const track of shownTracks()) {
    context.strokeStyle = palette[track.color];
    context.lineWidth = 1.5;
    context.beginPath();
    let open = false;
    for (let frame = 0; frame < clip.frames; frame += Math.max(1, Math.floor(fps / 15))) {
      const root = joint(track.poses, frame, clip.root);
      const point = root && project([root[0], root[1], clip.ground.z]);
      if (point) open ? context.lineTo(point.x, point.y) : context.moveTo(point.x, point.y);
      open = Boolean(point);
    }
    context.stroke();
  }
}

function drawScene() {
  const { context } = prepare(scene);
  const project = makeProjection();
  drawGround(context, project);
  drawTrail(context, project);
  const parts = [];
  for (const track of shownTracks()) {
    collectBones(track, track.poses, "pose", project, parts);
    if (track.truth && byId("truth").checked) {
      collectBones(track, track.truth, "truth", project, parts);
    }
  }
  drawShadows(context, parts);
  drawFrustum(context, project);
  parts.sort((a, b) => b.depth - a.depth);
  for (const part of parts) {
    if (part.dot) {
      context.fillStyle = palette.dot;
      context.beginPath();
      context.arc(part.dot.x, part.dot.y, part.width * 0.3, 0, 2 * Math.PI);
      context.fill();
    } else {
      line(context, part.from, part.to, part.color, part.width);
    }
  }
  drawFilmFrame(context);
  if (tracks.length > 1) drawNames(context, project);
  drawHover(project);
}

// Names above heads; one that would lie on another moves up.
function drawNames(context, project) {
  context.font = "600 12px system-ui, sans-serif";
  context.textAlign = "center";
  const placed = [];
  for (const track of shownTracks()) {
    let top = null;
    for (let j = 0; j < joints; j++) {
      const point = project(joint(track.poses, state.frame, j));
      if (point && (!top || point.y < top.y)) top = point;
    }
    if (top) placed.push({ track, x: top.x, y: top.y - 14, half: context.measureText(track.name).width / 2 });
  }
  placed.sort((a, b) => b.y - a.y);
  placed.forEach((label, i) => {
    for (const other of placed.slice(0, i)) {
      const close = Math.abs(other.x - label.x) < other.half + label.half + 6;
      if (close && Math.abs(other.y - label.y) < 15) label.y = other.y - 15;
    }
    context.fillStyle = palette[label.track.color];
    context.fillText(label.track.name, label.x, label.y);
  });
}

function drawHover(project) {
  const label = byId("joint");
  label.hidden = true;
  if (!state.hover) return;
  let best = null;
  for (const track of shownTracks()) {
    for (let j = 0; j < joints; j++) {
      const place = joint(track.poses, state.frame, j);
      const point = project(place);
      if (!point) continue;
      const away = Math.hypot(point.x - state.hover[0], point.y - state.hover[1]);
      if (away < 14 && (!best || away < best.away)) best = { away, point, place, j };
    }
  }
  if (!best) return;
  const numbers = givenAxes(best.place).map((v) => Number(v.toPrecision(4)).toString()).join(", ");
  label.textContent = `${clip.joints[best.j]}  (${numbers}) ${clip.units}`;
  label.hidden = false;
  const room = scene.clientWidth - label.offsetWidth - 4;
  label.style.left = Math.max(4, Math.min(room, best.point.x + 12)) + "px";
  label.style.top = Math.max(4, best.point.y - 28) + "px";
}

// A place in the axes of the poses that were given.
function givenAxes([x, y, z]) {
  return { "-y": [x, -z, y], y: [x, z, -y], z: [x, y, z] }[clip.up];
}
