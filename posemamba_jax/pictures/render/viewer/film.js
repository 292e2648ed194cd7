// The video with the 2D keypoints over it, in step with the skeletons.

const film = byId("film");
let hasFilm = Boolean(clip.video);
let awaited = false;

if (hasFilm) {
  // A blob can be searched in, which a data address cannot on phones.
  film.src = URL.createObjectURL(new Blob([bytes(clip.video)], { type: "video/mp4" }));
  film.muted = true;
  film.addEventListener("error", () => {
    hasFilm = false;
    film.hidden = true;
    byId("sound-option").hidden = true;
    byId("scale").textContent += " · this browser cannot play the video";
  });
}

// Where the film is, in seconds, if it leads; null where the clock has to.
function filmTime() {
  return hasFilm && state.playing && !film.paused && !film.ended && film.readyState >= 2
    ? film.currentTime : null;
}

function showFilmFrame() {
  if (!hasFilm || state.playing) return;
  const wanted = (state.frame + 0.5) / fps;
  if (Math.abs(film.currentTime - wanted) > 0.2 / fps) {
    film.currentTime = wanted;
    awaitFilmFrame();
  }
}

// Chromium on a busy machine leaves the frame that a paused film was moved to undrawn unless
// somebody asks to be told of it.
function awaitFilmFrame() {
  if (awaited || !film.requestVideoFrameCallback) return;
  awaited = true;
  film.requestVideoFrameCallback((now, drawn) => {
    awaited = false;
    if (!state.playing && Math.abs(drawn.mediaTime - film.currentTime) > 1 / fps) awaitFilmFrame();
  });
}

function runFilm() {
  if (!hasFilm) return;
  film.playbackRate = state.speed;
  if (state.playing && state.time < clip.video_seconds) {
    film.currentTime = state.time;
    film.play().catch((error) => {
      // Sound needs a click first; without it playing is allowed. A pause ends it by another error.
      if (error.name !== "NotAllowedError") return;
      film.muted = true;
      byId("sound").checked = false;
      film.play().catch(() => {});
    });
  } else {
    film.pause();
  }
}

function drawImage() {
  if (byId("image-panel").hidden) return;
  const { context, width, height } = prepare(image);
  const [w, h] = clip.image_size;
  const scale = Math.min(width / w, height / h);
  const [left, top] = [(width - w * scale) / 2, (height - h * scale) / 2];
  if (!hasFilm) {
    context.strokeStyle = palette.grid;
    context.lineWidth = 1;
    context.strokeRect(left + 0.5, top + 0.5, w * scale - 1, h * scale - 1);
  }
  if (!hasKeypoints || !byId("keypoints").checked) return;
  context.save();
  context.beginPath();
  context.rect(left, top, w * scale, h * scale);
  context.clip();
  const thick = Math.max(2, Math.min(width, height) / 130);
  for (const track of shownTracks().filter((t) => t.keypoints)) {
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
      if (hasFilm) line(context, from, to, "rgba(255,255,255,0.75)", thick + 2);
      const paper = hasFilm ? "#ffffff" : palette.panel;
      line(context, from, to, mix(palette[clip.sides[i]], paper, share), thick);
    });
  }
  context.restore();
}
