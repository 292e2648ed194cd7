"""Finds the files of the pose networks: where the user says, in the cache, or by a download.

The weights (Apache-2.0, by Google) do not travel with this package. They are in the npm package
`@mediapipe/pose`, in wheels of `mediapipe` and in the `.task` bundles of MediaPipe's documentation;
what a file holds is told by its contents, not by its name.
"""

import dataclasses
import hashlib
import os
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from posemamba_jax.files.reading import user_path
from posemamba_jax.files.writing import write_bytes
from posemamba_jax.predict.detect.tflite import (
    IDENTIFIER,
    DamagedNetworkError,
    Graph,
    NetworkError,
    read_graph,
)

MODELS = ("heavy", "full", "lite")
# Landmark networks are told apart by their size in bytes; the three are 2.8, 6.4 and 27.7 MB.
_SIZES = {"lite": (0, 4.5e6), "full": (4.5e6, 15e6), "heavy": (15e6, 64e6)}
_LARGEST_FILE = 64 << 20
# A copy of the npm package's files; `POSEMAMBA_DETECTOR_URL` names a mirror.
DEFAULT_URL = "https://cdn.jsdelivr.net/npm/@mediapipe/pose@0.5.1675469404"
# Name in the package, size, SHA-256.
_PUBLISHED = {
    "detector": (
        "pose_solution_packed_assets.data",
        2962288,
        "a63c614bef30d35947f13be361820b1e4e3bec9cfeebf4d11216a18373108e85",
    ),
    "heavy": (
        "pose_landmark_heavy.tflite",
        27709200,
        "59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe",
    ),
    "full": (
        "pose_landmark_full.tflite",
        6440512,
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    ),
    "lite": (
        "pose_landmark_lite.tflite",
        2819824,
        "f17bfbecadb61c3be1baa8b8d851cc6619c870a87167b32848ad20db306b9d61",
    ),
}
_COMMANDS = (
    "npm pack @mediapipe/pose@0.5.1675469404",
    "pip download --no-deps --only-binary :all: --python-version 3.11 mediapipe==0.10.21",
)

# Called with the name of a file, the bytes read so far and the bytes in all.
Report = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Network:
    """One network: its bytes as in the file, its graph, and the outputs that are used, in order."""

    content: bytes
    graph: Graph
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Networks:
    """The detector, and the landmark network of a model; `origin` says where they came from."""

    detector: Network
    landmarks: Network
    model: str
    origin: str


def find_networks(
    model: str, source: str | None, url: str | None = None, report: Report | None = None
) -> Networks:
    """Returns the detector and the landmark network of a model.

    They are taken from `source` if it is given, and kept in the cache for the next time; else from
    the cache; else they are downloaded into it.

    Args:
      model: heavy, full or lite.
      source: a .task bundle, the npm package (.tgz), a wheel of mediapipe, a .tflite file or a
        folder of such files.
      url: where to download from; None takes `POSEMAMBA_DETECTOR_URL` or `DEFAULT_URL`.
      report: hears how far a download is.

    Raises:
      NetworkError: a file is damaged or of another kind, or nothing is cached and nothing can be
        downloaded.
    """
    if source is not None:
        found = _from_source(user_path(source), model)
        _keep(found, model)
        return found
    parts, origin = {}, "the cache"
    for part in ("detector", model):
        path = _cached_path(part)
        if path is None:
            origin = url or os.environ.get("POSEMAMBA_DETECTOR_URL") or DEFAULT_URL
            path = _download(part, origin, report or (lambda *_: None))
        content = path.read_bytes()
        if not _digest(content).startswith(path.stem.rpartition("-")[2]):
            raise NetworkError(f"{path}: damaged; remove it, and it will be fetched again")
        parts[part] = _describe(content, str(path))[1]
    return Networks(parts["detector"], parts[model], model, origin)


def cache_folder() -> Path:
    """Returns where networks are kept: `posemamba-jax/detector` of the user's cache folder.

    Raises:
      UserError: no home folder is known to have one in.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    return user_path(base) / "posemamba-jax" / "detector"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _cached_path(part: str) -> Path | None:
    """Returns the newest file of a network in the cache; its name ends with the start of its
    SHA-256.
    """
    found = sorted(cache_folder().glob(f"{part}-*.tflite"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None


def _write_cached(part: str, content: bytes) -> Path:
    path = cache_folder() / f"{part}-{_digest(content)[:16]}.tflite"
    write_bytes(path, content)
    return path


def _keep(networks: Networks, model: str) -> None:
    for part, network in (("detector", networks.detector), (model, networks.landmarks)):
        path = cache_folder() / f"{part}-{_digest(network.content)[:16]}.tflite"
        if path.exists():
            path.touch()
        else:
            _write_cached(part, network.content)


def _download(part: str, url: str, report: Report) -> Path:
    name, size, digest = _PUBLISHED[part]
    address = f"{url.rstrip('/')}/{name}"
    content = bytearray()
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:
            while block := answer.read(1 << 16):
                content += block
                report(name, len(content), size)
                if len(content) > size:
                    break
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise NetworkError(
            f"the pose networks are not in {cache_folder()} and could not be downloaded "
            f"({address}: {reason}). Get them with `{_COMMANDS[0]}`, or only --detector_model full "
            f"with `{_COMMANDS[1]}`, and give the file with --detector_weights FILE"
        ) from None
    if len(content) != size or _digest(bytes(content)) != digest:
        raise NetworkError(
            f"{address}: {len(content)} bytes came that are not the {size} expected (SHA-256 "
            f"begins {digest[:8]}); try again, or get them with `{_COMMANDS[0]}` and give the file "
            f"with --detector_weights FILE"
        )
    return _write_cached(part, bytes(content))


def _from_source(path: Path, model: str) -> Networks:
    found: dict[str, Network] = {}
    damaged = []
    for name, content in _contents(path):
        try:
            part, network = _describe(content, name)
        except DamagedNetworkError as error:
            damaged.append(error)
        except NetworkError:
            if name == str(path):  # the file itself; an archive may hold other networks
                raise
        else:
            found.setdefault(part, network)
    if "detector" in found and model in found:
        return Networks(found["detector"], found[model], model, str(path))
    if damaged:
        raise damaged[0]
    others = [name for name in MODELS if name in found]
    if "detector" in found and others:
        raise NetworkError(
            f"--detector_weights {path}: holds the model {' and '.join(others)}, not {model}; give "
            f"--detector_model {others[0]}, or a file with {model}"
        )
    if not found:
        raise NetworkError(f"--detector_weights {path}: holds no pose network")
    missing = f"the landmark network ({model})" if "detector" in found else "the detector"
    raise NetworkError(
        f"--detector_weights {path}: {missing} is missing; give a folder or an archive with both"
    )


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Returns name and bytes of every TFLite network in a file, an archive or a folder."""
    label = f"--detector_weights {path}"
    if path.is_dir():
        for inner in sorted(p for p in path.iterdir() if p.is_file()):
            if inner.stat().st_size <= _LARGEST_FILE:
                with inner.open("rb") as file:
                    start = file.read(8)
                if start[4:8] == IDENTIFIER:
                    yield str(inner), inner.read_bytes()
        return
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if start[:4] == b"PK\x03\x04":
            yield from _from_zip(path)
        elif start[:2] == b"\x1f\x8b":
            yield from _from_tar(path)
        elif start[4:8] == IDENTIFIER:
            yield str(path), path.read_bytes()
        else:
            raise NetworkError(
                f"{label}: neither a .task or .whl (zip), a .tgz, nor a .tflite network"
            )
    except OSError as error:
        raise NetworkError(f"{label}: cannot be read ({error.strerror or error})") from None
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, RuntimeError,
            NotImplementedError) as error:  # fmt: skip
        raise NetworkError(f"{label}: a damaged archive ({error}); get it again") from None


def _from_zip(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if 8 <= entry.file_size <= _LARGEST_FILE and not entry.is_dir():
                with archive.open(entry) as file:
                    content = file.read(8)
                    if content[4:8] == IDENTIFIER:
                        content += file.read(_LARGEST_FILE)
                        yield f"{path}: {entry.filename}", content


def _from_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:gz") as archive:
        for entry in archive:
            if entry.isfile() and 8 <= entry.size <= _LARGEST_FILE:
                with archive.extractfile(entry) as file:
                    content = file.read(8)
                    if content[4:8] == IDENTIFIER:
                        content += file.read()
                        yield f"{path}: {entry.name}", content


def _describe(content: bytes, name: str) -> tuple[str, Network]:
    """Returns what a TFLite network is, detector, heavy, full or lite, by its inputs and outputs.

    Raises:
      NetworkError: it is damaged, or none of these.
    """
    graph = read_graph(content, name)
    shapes = {graph.tensors[i].shape: i for i in graph.outputs}
    inputs = [graph.tensors[i].shape for i in graph.inputs]
    detector = ((1, 2254, 12), (1, 2254, 1))
    landmarks = ((1, 195), (1, 1), (1, 64, 64, 39))
    if inputs == [(1, 224, 224, 3)] and set(detector) <= set(shapes):
        return "detector", Network(content, graph, tuple(shapes[s] for s in detector))
    if inputs == [(1, 256, 256, 3)] and set(landmarks) <= set(shapes):
        (model,) = (m for m, (low, high) in _SIZES.items() if low <= len(content) < high)
        return model, Network(content, graph, tuple(shapes[s] for s in landmarks))
    raise NetworkError(
        f"{name}: a TFLite network, but neither BlazePose's detector nor its landmark network (it "
        f"takes {inputs} and gives {sorted(shapes)})"
    )
