// What the page shows: the clip as Python wrote it, and the state of looking at it.
// Space is x to the right, y away from the viewer and z up.

const byId = (id) => document.getElementById(id);
const clip = JSON.parse(byId("clip").textContent);
const joints = clip.joints.length;
const fps = clip.fps[0] / clip.fps[1];
const FIELD_OF_VIEW = (32 * Math.PI) / 180;
const VIEW = { azimuth: (25 * Math.PI) / 180, elevation: (12 * Math.PI) / 180 };
const PERSON_COLORS = ["person-1", "person-2", "person-3", "person-4", "person-5", "person-6"];

// Arrays travel as base64 of little-endian bytes: exact, compact, and NaN needs no JSON.
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const floats = (text) => (text === null ? null : new Float32Array(bytes(text).buffer));
const tracks = clip.tracks.map((track, i) => ({
  name: track.name,
  color: PERSON_COLORS[i % PERSON_COLORS.length],
  shown: true,
  poses: floats(track.poses),
  truth: floats(track.truth),
  keypoints: floats(track.keypoints),
  observed: bytes(track.observed),
}));
const curves = clip.curves.map((curve) => ({
  name: curve.name,
  tracks: curve.tracks.map(floats),
}));
const hasTruth = tracks.some((t) => t.truth);
const hasKeypoints = tracks.some((t) => t.keypoints);

const scene = byId("scene");
const image = byId("image");
const graph = byId("graph");
const slider = byId("frame");
const state = {
  frame: 0, time: 0, playing: false, speed: 1, hover: null, cameraView: false, follow: "",
  curve: 0,
};
const camera = { ...VIEW, zoom: 1, pan: [0, 0] };
let palette = {};
let queued = false;
let lastTick = null;

function readPalette() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["left", "right", "middle", "truth", "unobserved", "grid", "shadow",
    "ink", "faint", "paper", "panel", "dot", "line", "floor", ...PERSON_COLORS]) {
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

function joint(poses, frame, j) {
  const at = (frame * joints + j) * 3;
  const point = [poses[at], poses[at + 1], poses[at + 2]];
  return point.every(Number.isFinite) ? point : null;
}

const shownTracks = () => tracks.filter((t) => t.shown);

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

const clockText = (seconds) =>
  `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(2).padStart(5, "0")}`;
