"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const clip = JSON.parse(byId("clip").textContent);
  const joints = clip.joints.length;
  const fps = clip.fps[0] / clip.fps[1];
  const FIELD_OF_VIEW = (32 * Math.PI) / 180;
  const VIEW = { azimuth: (25 * Math.PI) / 180, elevation: (12 * Math.PI) / 180 };

  // Arrays travel as base64 of little-endian bytes: exact, compact, and NaN needs no JSON.
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const floats = (text) => (text === null ? null : new Float32Array(bytes(text).buffer));
  const tracks = clip.tracks.map((track) => ({
    name: track.name,
    shown: true,
    poses: floats(track.poses),
    truth: floats(track.truth),
    keypoints: floats(track.keypoints),
    observed: bytes(track.observed),
  }));
  const hasTruth = tracks.some((t) => t.truth);
  const hasKeypoints = tracks.some((t) => t.keypoints);

  const scene = byId("scene");
  const image = byId("image");
  const slider = byId("frame");
  const state = { frame: 0, time: 0, playing: false, speed: 1, hover: null };
  const camera = { ...VIEW, zoom: 1, pan: [0, 0] };
  let palette = {};
  let queued = false;
  let lastTick = null;

  function readPalette() {
    const style = getComputedStyle(document.documentElement);
    for (const name of ["left", "right", "middle", "truth", "unobserved", "grid", "shadow",
      "ink", "faint", "paper", "panel", "dot"]) {
      palette[name] = style.getPropertyValue("--" + name).trim();
    }
  }

  // Mixed rather than see-through: bones that overlap at a joint would show it.
  function mix(color, paper, share) {
    const channel = (hex, k) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
    const mixed = [0, 1, 2].map((k) =>
      Math.round(channel(color, k) * share + channel(paper, k) * (1 - share)));
    return `rgb(${mixed.join(",")})`;
  }

  // ---- geometry: x to the right, y away from the viewer, z up

  function centreOfView() {
    if (!byId("follow").checked) return clip.centre;
    const roots = tracks.filter((t) => t.shown)
      .map((t) => joint(t.poses, state.frame, clip.root)).filter((p) => p);
    if (!roots.length) return clip.centre;
    return [0, 1, 2].map((k) =>
      k === 2 ? clip.centre[2] : roots.reduce((sum, p) => sum + p[k], 0) / roots.length);
  }

  function joint(poses, frame, j) {
    const at = (frame * joints + j) * 3;
    const point = [poses[at], poses[at + 1], poses[at + 2]];
    return point.every(Number.isFinite) ? point : null;
  }

  function makeProjection() {
    const { clientWidth: width, clientHeight: height } = scene;
    const [ca, sa] = [Math.cos(camera.azimuth), Math.sin(camera.azimuth)];
    const [ce, se] = [Math.cos(camera.elevation), Math.sin(camera.elevation)];
    const right = [ca, sa, 0];
    const ahead = [-sa * ce, ca * ce, -se];
    const up = [-sa * se, ca * se, ce];
    const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
    const distance = ((1.08 * clip.radius) / Math.sin(FIELD_OF_VIEW / 2)) / camera.zoom;
    const scale = Math.min(width, height) / 2 / Math.tan(FIELD_OF_VIEW / 2);
    const centre = centreOfView();
    const project = (point) => {
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
    return project;
  }

  // ---- drawing

  function prepare(canvas) {
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.lineCap = "round";
    return { context, width, height };
  }

  function line(context, a, b, color, width) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(a.x, a.y);
    context.lineTo(b.x, b.y);
    context.stroke();
  }

  function drawGround(context, project) {
    const { centre: [x, y], half, step, z } = clip.ground;
    const count = Math.round((2 * half) / step);
    for (let i = 0; i <= count; i++) {
      const offset = -half + i * step;
      for (const [a, b] of [
        [[x + offset, y - half, z], [x + offset, y + half, z]],
        [[x - half, y + offset, z], [x + half, y + offset, z]],
      ]) {
        const [from, to] = [project(a), project(b)];
        if (from && to) line(context, from, to, palette.grid, 1);
      }
    }
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
        width: Math.max(1.2, ((from.size + to.size) / 2) * thickness),
        depth: (from.depth + to.depth) / 2,
        onGround: [p, q].map((point) => project([point[0], point[1], clip.ground.z])),
      });
      // A joint lies in front of the bone that it ends.
      if (kind === "pose") into.push({ dot: to, width: to.size * thickness, depth: to.depth - thickness });
    });
  }

  function drawShadows(context, bones) {
    // One stroke for all, so that overlapping shadows are no darker.
    context.strokeStyle = palette.shadow;
    context.beginPath();
    for (const bone of bones) {
      if (bone.kind !== "pose" || !bone.onGround.every((point) => point)) continue;
      const [a, b] = bone.onGround;
      context.moveTo(a.x, a.y);
      context.lineTo(b.x, b.y);
      context.lineWidth = bone.width;
    }
    context.stroke();
  }

  function drawScene() {
    const { context } = prepare(scene);
    const project = makeProjection();
    drawGround(context, project);
    const parts = [];
    for (const track of tracks.filter((t) => t.shown)) {
      collectBones(track, track.poses, "pose", project, parts);
      if (track.truth && byId("truth").checked) {
        collectBones(track, track.truth, "truth", project, parts);
      }
    }
    drawShadows(context, parts);
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
    if (tracks.length > 1) drawNames(context, project);
    drawHover(project);
  }

  function drawNames(context, project) {
    context.fillStyle = palette.faint;
    context.font = "12px system-ui, sans-serif";
    context.textAlign = "center";
    for (const track of tracks.filter((t) => t.shown)) {
      let top = null;
      for (let j = 0; j < joints; j++) {
        const point = project(joint(track.poses, state.frame, j));
        if (point && (!top || point.y < top.y)) top = point;
      }
      if (top) context.fillText(track.name, top.x, top.y - 14);
    }
  }

  function drawHover(project) {
    const label = byId("joint");
    label.hidden = true;
    if (!state.hover) return;
    let best = null;
    for (const track of tracks.filter((t) => t.shown)) {
      for (let j = 0; j < joints; j++) {
        const place = joint(track.poses, state.frame, j);
        const point = project(place);
        if (!point) continue;
        const away = Math.hypot(point.x - state.hover[0], point.y - state.hover[1]);
        if (away < 14 && (!best || away < best.away)) best = { away, point, place, j };
      }
    }
    if (!best) return;
    const numbers = best.place.map((v) => Number(v.toPrecision(4)).toString()).join(", ");
    label.textContent = `${clip.joints[best.j]}  (${numbers}) ${clip.units}`;
    label.hidden = false;
    const room = scene.clientWidth - label.offsetWidth - 4;
    label.style.left = Math.max(4, Math.min(room, best.point.x + 12)) + "px";
    label.style.top = Math.max(4, best.point.y - 28) + "px";
  }

  function drawImage() {
    if (!hasKeypoints || !byId("keypoints").checked) return;
    const { context, width, height } = prepare(image);
    const [w, h] = clip.image_size;
    const scale = Math.min(width / w, height / h);
    const [left, top] = [(width - w * scale) / 2, (height - h * scale) / 2];
    context.strokeStyle = palette.grid;
    context.lineWidth = 1;
    context.strokeRect(left + 0.5, top + 0.5, w * scale - 1, h * scale - 1);
    context.save();
    context.beginPath();
    context.rect(left, top, w * scale, h * scale);
    context.clip();
    for (const track of tracks.filter((t) => t.shown && t.keypoints)) {
      const point = (j) => {
        const at = (state.frame * joints + j) * 3;
        const [x, y, confidence] = track.keypoints.subarray(at, at + 3);
        if (!Number.isFinite(x + y)) return null;
        return { x: left + x * scale, y: top + y * scale, confidence };
      };
      clip.bones.forEach(([a, b], i) => {
        const [from, to] = [point(a), point(b)];
        if (!from || !to) return;
        const sure = Math.max(0.2, Math.min(from.confidence, to.confidence));
        const share = sure * (track.observed[state.frame] ? 1 : 0.4);
        const color = mix(palette[clip.sides[i]], palette.panel, share);
        line(context, from, to, color, Math.max(2, Math.min(width, height) / 110));
      });
    }
    context.restore();
  }

  function draw() {
    queued = false;
    drawScene();
    drawImage();
    slider.value = state.frame;
    const seconds = state.frame / fps;
    const clock = `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(2).padStart(5, "0")}`;
    byId("clock").textContent = `${clock} · ${state.frame + 1}/${clip.frames}`;
    slider.setAttribute("aria-valuetext", `frame ${state.frame + 1}, ${clock}`);
    byId("notice").textContent = describeGap();
  }

  function describeGap() {
    const shown = tracks.filter((t) => t.shown);
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
    redraw();
  }

  function setPlaying(playing) {
    state.playing = playing;
    lastTick = null;
    const button = byId("play");
    button.classList.toggle("playing", playing);
    button.setAttribute("aria-label", playing ? "Pause" : "Play");
    if (playing) requestAnimationFrame(tick);
  }

  function tick(now) {
    if (!state.playing) return;
    if (lastTick !== null) {
      // A page in the background gets no ticks; it goes on from where it was.
      state.time += Math.min(0.25, (now - lastTick) / 1000) * state.speed;
      state.time %= clip.frames / fps;
      // Half a thousandth of a frame, lest rounding show a frame twice.
      const frame = Math.min(clip.frames - 1, Math.floor(state.time * fps + 5e-4));
      if (frame !== state.frame) {
        state.frame = frame;
        draw();
      }
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
    camera.zoom = Math.max(0.2, Math.min(12, camera.zoom * factor));
    redraw();
  }

  function resetView() {
    Object.assign(camera, VIEW, { zoom: 1, pan: [0, 0] });
    redraw();
  }

  document.addEventListener("keydown", (event) => {
    // The slider and the menus have their own use for arrows; a button has one for space.
    const busy = ["INPUT", "SELECT", "BUTTON"].includes(event.target.tagName);
    if (event.key === " " && !["BUTTON", "SELECT"].includes(event.target.tagName)) {
      setPlaying(!state.playing);
    } else if (event.key === "ArrowRight" && !busy) setFrame(state.frame + 1);
    else if (event.key === "ArrowLeft" && !busy) setFrame(state.frame - 1);
    else if (event.key === "r" && !event.ctrlKey && !event.metaKey) resetView();
    else return;
    event.preventDefault();
  });

  // ---- controls

  slider.max = clip.frames - 1;
  slider.addEventListener("input", () => {
    setPlaying(false);
    setFrame(Number(slider.value));
  });
  byId("play").addEventListener("click", () => setPlaying(!state.playing));
  byId("reset").addEventListener("click", resetView);
  byId("speed").addEventListener("change", (event) => { state.speed = Number(event.target.value); });
  byId("truth").addEventListener("change", redraw);
  byId("follow").addEventListener("change", redraw);
  byId("keypoints").addEventListener("change", (event) => {
    byId("image-panel").hidden = !event.target.checked;
    redraw();
  });
  for (const id of ["truth-option", "truth-legend"]) byId(id).hidden = !hasTruth;
  for (const id of ["image-option", "image-panel"]) byId(id).hidden = !hasKeypoints;
  byId("follow-option").hidden = !clip.travels;
  byId("scale").textContent = `grid ${Number(clip.ground.step.toPrecision(6))} ${clip.units}`;
  if (tracks.length > 1) {
    for (const track of tracks) {
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
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
  draw();
  if (!window.matchMedia("(prefers-reduced-motion: reduce)").matches) setPlaying(true);

  // For scripts that drive the page.
  window.poseViewer = {
    state,
    camera,
    setFrame,
    setPlaying,
    screenJoints: (track = 0) => {
      const project = makeProjection();
      return clip.joints.map((_, j) => {
        const point = project(joint(tracks[track].poses, state.frame, j));
        return point && [point.x, point.y];
      });
    },
  };
})();
