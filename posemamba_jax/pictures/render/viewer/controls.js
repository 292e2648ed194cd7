// Playing, pointers, keys and buttons.

function draw() {
  queued = false;
  drawScene();
  drawImage();
  drawGraph();
  slider.value = state.frame;
  const clock = clockText(state.frame / fps);
  byId("clock").textContent = `${clock} · ${state.frame + 1}/${clip.frames}`;
  slider.setAttribute("aria-valuetext", `frame ${state.frame + 1}, ${clock}`);
  byId("notice").textContent = describeGap();
}

function describeGap() {
  const shown = shownTracks();
  const empty = shown.filter((t) => {
    for (let j = 0; j < joints; j++) if (joint(t.poses, state.frame, j)) return false;
    return true;
  });
  if (shown.length && empty.length === shown.length) return "no pose";
  return empty.length || shown.some((t) => !t.observed[state.frame]) ? "not observed" : "";
}

function redraw() {
  if (!queued) requestAnimationFrame(draw);
  queued = true;
}

// ---- playing

function setFrame(frame) {
  state.frame = Math.max(0, Math.min(clip.frames - 1, Math.round(frame)));
  state.time = state.frame / fps;
  if (state.playing) runFilm();
  else showFilmFrame();
  redraw();
}

function setPlaying(playing) {
  if (playing === state.playing) return;
  state.playing = playing;
  lastTick = null;
  const button = byId("play");
  button.classList.toggle("playing", playing);
  button.setAttribute("aria-label", playing ? "Pause" : "Play");
  runFilm();
  if (playing) requestAnimationFrame(tick);
  else showFilmFrame();
}

function setSpeed(speed) {
  state.speed = speed;
  byId("speed").value = String(speed);
  if (hasFilm) film.playbackRate = speed;
}

function tick(now) {
  if (!state.playing) return;
  const led = filmTime();
  if (led !== null) {
    state.time = led;
  } else if (lastTick !== null) {
    // A page in the background gets no ticks; it goes on from where it was.
    state.time += Math.min(0.25, (now - lastTick) / 1000) * state.speed;
  }
  if (state.time >= clip.frames / fps || (led === null && hasFilm && film.ended &&
      clip.video_seconds >= clip.frames / fps - 0.5 / fps)) {
    state.time = 0;
    runFilm();
  }
  // A thousandth of a frame, lest rounding show a frame twice.
  const frame = Math.min(clip.frames - 1, Math.floor(state.time * fps + 1e-3));
  if (frame !== state.frame) {
    state.frame = frame;
    draw();
  }
  lastTick = now;
  requestAnimationFrame(tick);
}

// ---- pointers: one orbits, two pinch and pan, shift or the right button pans

const pointers = new Map();
scene.addEventListener("pointerdown", (event) => {
  scene.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  state.hover = null;
});
scene.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  const now = [event.clientX, event.clientY];
  if (!before) {
    const box = scene.getBoundingClientRect();
    state.hover = [now[0] - box.left, now[1] - box.top];
    return redraw();
  }
  const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
  if (pointers.size === 1 && !event.shiftKey && !(event.buttons & 2)) {
    if (state.cameraView) setCameraView(false);
    camera.azimuth -= dx * 0.008;
    camera.elevation = Math.max(-1.5, Math.min(1.5, camera.elevation + dy * 0.008));
  } else {
    const share = 1 / Math.max(1, pointers.size);
    camera.pan = [camera.pan[0] + dx * share, camera.pan[1] + dy * share];
    if (pointers.size === 2) {
      const [other] = [...pointers].filter(([id]) => id !== event.pointerId).map(([, p]) => p);
      const apart = (p) => Math.max(10, Math.hypot(p[0] - other[0], p[1] - other[1]));
      zoomBy(apart(now) / apart(before));
    }
  }
  pointers.set(event.pointerId, now);
  redraw();
});
for (const name of ["pointerup", "pointercancel"]) {
  scene.addEventListener(name, (event) => pointers.delete(event.pointerId));
}
scene.addEventListener("pointerleave", () => {
  state.hover = null;
  redraw();
});
scene.addEventListener("contextmenu", (event) => event.preventDefault());
scene.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoomBy(Math.exp(-Math.max(-60, Math.min(60, event.deltaY)) * 0.004));
}, { passive: false });
scene.addEventListener("dblclick", resetView);

function zoomBy(factor) {
  camera.zoom = Math.max(0.1, Math.min(20, camera.zoom * factor));
  redraw();
}

function resetView() {
  Object.assign(camera, VIEW, { zoom: 1, pan: [0, 0] });
  redraw();
}

function setCameraView(on) {
  state.cameraView = on && Boolean(clip.camera);
  byId("camera-view").setAttribute("aria-pressed", String(state.cameraView));
  Object.assign(camera, { zoom: 1, pan: [0, 0] });
  redraw();
}

function setFollow(value) {
  state.follow = value;
  byId("follow").value = value;
  camera.pan = [0, 0];
  redraw();
}

function setGraph(shown) {
  byId("graph-panel").hidden = !shown || !curves.length;
  byId("graph-toggle").setAttribute("aria-pressed", String(!byId("graph-panel").hidden));
  redraw();
}

function setSound(on) {
  film.muted = !on;
  byId("sound").checked = on;
}

// ---- the pose of the frame as a file

function describePose() {
  const people = shownTracks().map((track) => {
    const places = {};
    clip.joints.forEach((name, j) => {
      const place = joint(track.poses, state.frame, j);
      places[name] = place && givenAxes(place);
    });
    const values = {};
    for (const curve of curves) {
      const value = curve.tracks[tracks.indexOf(track)][state.frame];
      values[curve.name] = Number.isFinite(value) ? value : null;
    }
    return { name: track.name, joints: places, curves: values };
  });
  return { title: clip.title, frame: state.frame, time: state.frame / fps, units: clip.units,
    up: clip.up, people };
}

function savePose() {
  const link = document.createElement("a");
  const text = JSON.stringify(describePose(), null, 1);
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `pose_frame_${state.frame}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- keys

const SPEEDS = [...byId("speed").options].map((option) => Number(option.value));
const KEYS = {
  " ": () => setPlaying(!state.playing),
  ArrowRight: (event) => setFrame(state.frame + (event.shiftKey ? 10 : 1)),
  ArrowLeft: (event) => setFrame(state.frame - (event.shiftKey ? 10 : 1)),
  Home: () => setFrame(0),
  End: () => setFrame(clip.frames - 1),
  "+": () => setSpeed(SPEEDS[Math.min(SPEEDS.length - 1, SPEEDS.indexOf(state.speed) + 1)]),
  "-": () => setSpeed(SPEEDS[Math.max(0, SPEEDS.indexOf(state.speed) - 1)]),
  r: () => resetView(),
  c: () => setCameraView(!state.cameraView),
  f: () => {
    const values = [...byId("follow").options].map((option) => option.value);
    setFollow(values[(values.indexOf(state.follow) + 1) % values.length]);
  },
  g: () => setGraph(byId("graph-panel").hidden),
  m: () => hasFilm && setSound(film.muted),
  s: () => savePose(),
  "?": () => { byId("help").hidden = !byId("help").hidden; },
  Escape: () => { byId("help").hidden = true; },
};
document.addEventListener("keydown", (event) => {
  // The slider and the menus have their own use for arrows and letters; a button one for space.
  const tag = event.target.tagName;
  const busy = event.key === " " ? ["BUTTON", "SELECT"].includes(tag)
    : ["INPUT", "SELECT"].includes(tag) || (tag === "BUTTON" && event.key.startsWith("Arrow"));
  if (busy || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  KEYS[event.key](event);
  event.preventDefault();
});

// ---- controls

function addOption(select, value, text) {
  const option = document.createElement("option");
  option.value = value;
  option.textContent = text;
  select.append(option);
}

slider.max = clip.frames - 1;
slider.addEventListener("input", () => {
  setPlaying(false);
  setFrame(Number(slider.value));
});
byId("play").addEventListener("click", () => setPlaying(!state.playing));
byId("reset").addEventListener("click", () => {
  setCameraView(false);
  resetView();
});
byId("camera-view").addEventListener("click", () => setCameraView(!state.cameraView));
byId("graph-toggle").addEventListener("click", () => setGraph(byId("graph-panel").hidden));
byId("save").addEventListener("click", savePose);
byId("help-toggle").addEventListener("click", KEYS["?"]);
byId("help").addEventListener("click", KEYS.Escape);
byId("speed").addEventListener("change", (event) => setSpeed(Number(event.target.value)));
byId("sound").addEventListener("change", (event) => setSound(event.target.checked));
byId("follow").addEventListener("change", (event) => setFollow(event.target.value));
byId("curve").addEventListener("change", (event) => {
  state.curve = Number(event.target.value);
  redraw();
});
for (const id of ["truth", "trail", "frustum"]) byId(id).addEventListener("change", redraw);
byId("keypoints").addEventListener("change", (event) => {
  byId("image-panel").hidden = !hasFilm && !event.target.checked;
  redraw();
});

for (const id of ["truth-option", "truth-legend"]) byId(id).hidden = !hasTruth;
byId("image-option").hidden = !hasKeypoints;
byId("image-panel").hidden = !hasKeypoints && !hasFilm;
byId("sound-option").hidden = !hasFilm || !clip.video_sound;
film.hidden = !hasFilm;
for (const id of ["camera-view", "frustum-option"]) byId(id).hidden = !clip.camera;
byId("graph-toggle").hidden = !curves.length;
byId("follow-option").hidden = !clip.travels && tracks.length < 2;
byId("trail-option").hidden = !clip.travels;
byId("scale").textContent = `grid ${Number(clip.ground.step.toPrecision(6))} ${clip.units}`;
addOption(byId("follow"), "", "nobody");
if (tracks.length > 1) addOption(byId("follow"), "all", "everybody");
tracks.forEach((track, i) => addOption(byId("follow"), String(i), track.name));
curves.forEach((curve, i) => addOption(byId("curve"), String(i), curve.name));
if (tracks.length > 1) {
  for (const track of tracks) {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    box.style.accentColor = `var(--${track.color})`;
    box.addEventListener("change", () => {
      track.shown = box.checked;
      redraw();
    });
    label.append(box, " " + track.name);
    byId("tracks").append(label);
  }
}

window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readPalette();
  redraw();
});
new ResizeObserver(redraw).observe(byId("stage"));
readPalette();
setGraph(curves.length > 0 && window.innerHeight > 560 && window.innerWidth > 700);
draw();
if (!window.matchMedia("(prefers-reduced-motion: reduce)").matches) setPlaying(true);

// For scripts that drive the page.
window.poseViewer = {
  state,
  camera,
  film,
  setFrame,
  setPlaying,
  setCameraView,
  setFollow,
  describePose,
  screenJoints: (track = 0) => {
    const project = makeProjection();
    return clip.joints.map((_, j) => {
      const point = project(joint(tracks[track].poses, state.frame, j));
      return point && [point.x, point.y];
    });
  },
};
