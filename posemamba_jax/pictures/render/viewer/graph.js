// A curve over time (an angle, a height) for everybody shown, with the cursor at the frame.

const MARGIN = { left: 44, right: 12, top: 22, bottom: 8 };

function curveRange(curve) {
  let [low, high] = [Infinity, -Infinity];
  tracks.forEach((track, i) => {
    if (!track.shown) return;
    for (const value of curve.tracks[i]) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  });
  if (low > high) return [0, 1];
  const room = Math.max((high - low) * 0.06, 1e-3);
  return [low - room, high + room];
}

// About three round numbers between two bounds.
function ticks(low, high) {
  const power = 10 ** Math.floor(Math.log10((high - low) / 3));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => (high - low) / s <= 4);
  const found = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) found.push(k * step);
  return found;
}

function drawGraph() {
  if (byId("graph-panel").hidden || !curves.length) return;
  const { context, width, height } = prepare(graph);
  const curve = curves[state.curve];
  const [low, high] = curveRange(curve);
  const [w, h] = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
  const x = (frame) => MARGIN.left + (w * frame) / Math.max(1, clip.frames - 1);
  const y = (value) => MARGIN.top + h * (1 - (value - low) / (high - low));
  context.font = "11px system-ui, sans-serif";
  context.textAlign = "right";
  context.fillStyle = palette.faint;
  for (const value of ticks(low, high)) {
    line(context, { x: MARGIN.left, y: y(value) }, { x: MARGIN.left + w, y: y(value) }, palette.line, 1);
    context.fillText(String(Number(value.toPrecision(6))), MARGIN.left - 6, y(value) + 4);
  }
  line(context, { x: x(state.frame), y: MARGIN.top }, { x: x(state.frame), y: MARGIN.top + h },
    palette.ink, 1.5);
  let textAt = MARGIN.left;
  tracks.forEach((track, i) => {
    if (!track.shown) return;
    const values = curve.tracks[i];
    context.strokeStyle = palette[track.color];
    context.lineWidth = 1.75;
    context.beginPath();
    let open = false;
    values.forEach((value, frame) => {
      const there = Number.isFinite(value);
      if (there) open ? context.lineTo(x(frame), y(value)) : context.moveTo(x(frame), y(value));
      open = there;
    });
    context.stroke();
    const now = values[state.frame];
    if (Number.isFinite(now)) {
      context.fillStyle = palette[track.color];
      context.beginPath();
      context.arc(x(state.frame), y(now), 3.5, 0, 2 * Math.PI);
      context.fill();
    }
    const said = Number.isFinite(now) ? String(Number(now.toPrecision(4))) : "–";
    const text = tracks.length > 1 ? `${track.name}: ${said}` : said;
    context.textAlign = "left";
    context.fillStyle = palette[track.color];
    const length = context.measureText(text).width;
    if (textAt + length < width - byId("curve").offsetWidth - 12) context.fillText(text, textAt, 14);
    textAt += length + 14;
  });
}

function seekInGraph(event) {
  const box = graph.getBoundingClientRect();
  const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
  setPlaying(false);
  setFrame(share * (clip.frames - 1));
}

graph.addEventListener("pointerdown", (event) => {
  graph.setPointerCapture(event.pointerId);
  seekInGraph(event);
});
graph.addEventListener("pointermove", (event) => {
  if (event.buttons) seekInGraph(event);
});
