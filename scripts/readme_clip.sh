#!/usr/bin/env bash
# Makes the README's moving picture: a real video, lifted by predict.py with the model that is
# installed, as docs/images/clip.webp. Keypoints that an earlier call found are used again.
#
#   bash scripts/readme_clip.sh [OPTIONS OF predict.py ...]
#
# The video is the demonstration clip of Sports2D (BSD-3-Clause, Copyright (c) 2022, perfanalytics),
# which its package on PyPI holds.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
work=build/readme_clip
mkdir -p "$work"
if [ ! -f "$work/demo.mp4" ]; then
    "$python" -m pip download -q --no-deps -d "$work" sports2d==0.8.34
    "$python" - "$work" <<'PYTHON'
import sys
import zipfile
from pathlib import Path

folder = Path(sys.argv[1])
(wheel,) = folder.glob("sports2d-*.whl")
with zipfile.ZipFile(wheel) as archive:
    (folder / "demo.mp4").write_bytes(archive.read("Sports2D/Demo/demo.mp4"))
PYTHON
fi
input=("$work/demo.mp4")
[ ! -f "$work/keypoints.json" ] || input=("$work/keypoints.json" --video "$work/demo.mp4")
"$python" predict.py "${input[@]}" --out "$work/out" --render mp4,html "$@"
[ ! -f "$work/out/keypoints.json" ] || cp "$work/out/keypoints.json" "$work/keypoints.json"
ffmpeg=$("$python" -c "import imageio_ffmpeg; print(imageio_ffmpeg.get_ffmpeg_exe())")
"$ffmpeg" -v error -y -ss 1 -t 4.5 -i "$work/out/poses.mp4" \
    -vf "fps=12.5,scale=760:-2:flags=area" -c:v libwebp_anim -quality 50 -compression_level 4 -loop 0 docs/images/clip.webp
size=$(wc -c < docs/images/clip.webp)
echo "docs/images/clip.webp: $size bytes"
[ "$size" -lt 2000000 ] || { echo "error: docs/images/clip.webp is 2 MB or more" >&2; exit 1; }
