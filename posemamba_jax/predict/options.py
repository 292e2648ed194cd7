"""What predict.py can be told, and its command line."""

import argparse
import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from posemamba_jax.config.options import convert, keys_of, parse_options
from posemamba_jax.errors import UserError
from posemamba_jax.files.reading import user_path
from posemamba_jax.limits import number
from posemamba_jax.predict.export import DEFAULT_OUTPUTS, WRITERS
from posemamba_jax.predict.keypoints import FORMATS, JOINT_SETS

Format = Literal[FORMATS]
JointSetName = Literal[tuple(JOINT_SETS)]
# Options that are files or folders and nothing else.
_PATHS = ("keypoints", "out", "video", "detector_weights")


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """These options are everything that predict.py can be told.

    Attributes:
      keypoints: a video, or a keypoint file or a folder of them.
      checkpoint: folder of a run or of a model, or pretrained:NAME; else the model that is
        installed.
      out: folder for the results.
      format: format of the keypoints; recognised if not given.
      joint_set: joint set; recognised if not given.
      coordinates: what the keypoints are in: pixels, fractions of the image, the model's units.
      clip: clip of a VideoPose3D file, VIDEO or VIDEO/ACTION/CAMERA.
      image_size: WIDTHxHEIGHT in pixels.
      video: the video: size, frame rate and number of frames.
      fps: frames per second; else the file's or the video's.
      webcam: lift a camera's picture live: its number, 0 if left out.
      stream: lift a stream live: a file, a pipe, - for standard input, or a URL that FFmpeg opens.
      delay: live: how many frames the pose shown is behind the newest.
      people: of a video: how many people to lift, those most in view.
      detector: of a video: what runs the pose networks; the others are extras.
      detector_model: of a video: full and lite are faster and take left for right more often.
      detector_weights: file or folder with the pose networks; else the cache, else a download.
      min_track_seconds: people seen for less than this, and for less than half of the clip, are
        dropped.
      track: all, longest, or the identity of one person.
      max_gap: longest gap in frames that is bridged; longer ones split.
      min_confidence: joints with a confidence not above this are missing.
      implementation: of the model's scan; else the checkpoint's, or the default of the device.
      overlap: frames that windows share; a third of the model's.
      batch_size: windows per forward pass; else as many as have 243 frames on a CPU, else 8 times
        243.
      resample: lift at the frame rate that the model was trained at, where it is known.
      flip: average with the prediction of the mirrored input.
      smooth: One-Euro filter over the 3D poses, forwards and backwards.
      smooth_min_cutoff: its cutoff at rest, hertz; lower is smoother.
      smooth_beta: its hertz per leg length per second; higher lags less.
      height_mm: the person's height, to scale to millimetres.
      bone_length: BONE=MM to scale by, for example l_hip-l_knee=440.
      trajectory: place of the root: in the room, as it moves in the image plane, or none.
      focal_px: focal length in pixels; else the video's metadata's, else it is estimated.
      outputs: what to write: npz, json, csv, bvh, angles.csv, trc, mot.
      render: pictures to make, of mp4,gif,html.

    Raises:
      UserError: a value is out of its range or means nothing.
    """

    keypoints: str | None = None
    checkpoint: str | None = None
    out: str = "out"
    format: Format | None = None
    joint_set: JointSetName | None = None
    coordinates: Literal["pixels", "image", "model"] | None = None
    clip: str | None = None
    image_size: str | None = None
    video: str | None = None
    fps: float | None = number(None, at_least=0.01, at_most=1e5)
    webcam: int | None = number(None, at_least=0, at_most=1000)
    stream: str | None = None
    delay: int = number(5, at_least=0, at_most=10**6)
    people: int = number(1, at_least=1, at_most=100)
    detector: Literal["jax", "litert", "rtmpose"] = "jax"
    detector_model: Literal["heavy", "full", "lite"] = "heavy"
    detector_weights: str | None = None
    min_track_seconds: float = number(0.5, at_least=0, at_most=1e6)
    track: str = "all"
    max_gap: int = number(30, at_least=0, at_most=10**6)
    min_confidence: float = number(0.0, at_least=0, at_most=1e6)
    implementation: str | None = None
    overlap: int | None = None
    batch_size: int | None = number(None, at_least=1, at_most=10**6)
    resample: bool = True
    flip: bool = True
    smooth: bool = False
    smooth_min_cutoff: float = number(1.5, above=0, at_most=1e5)
    smooth_beta: float = number(2.0, at_least=0, at_most=1e5)
    height_mm: float | None = None
    bone_length: str | None = None
    trajectory: Literal["world", "image", "none"] = "world"
    focal_px: float | None = number(None, above=0, at_most=1e5)
    outputs: str = ",".join(DEFAULT_OUTPUTS)
    render: str | None = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            limits, value = field.metadata.get("limits"), getattr(self, field.name)
            if limits is not None and value is not None and not limits.contain(value):
                raise UserError(f"--{field.name} {value}: must be {limits}")
            if field.name in _PATHS and value is not None:
                object.__setattr__(self, field.name, str(user_path(value)))
        if [self.keypoints, self.webcam, self.stream].count(None) != 2:
            raise UserError(
                "give one of: a video or keypoint file, --webcam, --stream; predict.py --help says "
                "more"
            )
        if self.height_mm is not None and self.bone_length is not None:
            raise UserError("--height_mm and --bone_length: give one of them")
        if self.image_size is not None:
            parse_image_size(self.image_size)
        if self.bone_length is not None:
            parse_bone_length(self.bone_length)
        if not parse_list("outputs", self.outputs, tuple(WRITERS)) and self.render is None:
            raise UserError(
                f"--outputs {ascii(self.outputs)}: names nothing to write; expected some of "
                f"{','.join(WRITERS)}"
            )
        parse_list("render", self.render or "", ("mp4", "gif", "html"))


def parse_list(name: str, text: str, known: Sequence[str]) -> list[str]:
    """The words of "npz,bvh". Raises UserError for one that is not known."""
    words = [word.strip().lstrip(".") for word in text.split(",") if word.strip()]
    wrong = [word for word in words if word not in known]
    if wrong:
        raise UserError(f"--{name} {wrong[0]}: expected some of {','.join(known)}")
    return list(dict.fromkeys(words))


def parse_image_size(text: str) -> tuple[int, int]:
    """(1920, 1080) of "1920x1080"."""
    match = re.fullmatch(r"\s*([0-9]{1,6})\s*[xX,*]\s*([0-9]{1,6})\s*", text)
    if not match or "0" in (match[1].lstrip("0") or "0", match[2].lstrip("0") or "0"):
        raise UserError(f"--image_size {ascii(text)}: expected WIDTHxHEIGHT, such as 1920x1080")
    return int(match[1]), int(match[2])


def parse_bone_length(text: str) -> tuple[str, float]:
    """("l_hip-l_knee", 440.0) of "l_hip-l_knee=440"."""
    bone, _, length = text.partition("=")
    try:
        return bone.strip(), float(length)
    except ValueError:
        raise UserError(
            f"--bone_length {ascii(text)}: expected BONE=MM, such as l_hip-l_knee=440"
        ) from None


def parse_arguments(argv: Sequence[str]) -> PredictOptions:
    """Reads the command line of predict.py.

    Raises:
      UserError: an unknown option or a value of the wrong type.
    """
    keys = keys_of(PredictOptions)
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description="Lifts people to 3D poses: in a video, before a camera, or in a detector's 2D "
        "keypoints.",
    )
    file, webcam = keys.pop("keypoints"), keys.pop("webcam")
    add = parser.add_argument
    add(
        "keypoints",
        nargs="?",
        type=file.read_option,
        default=argparse.SUPPRESS,
        help=file.help,
    )
    add(
        "--webcam",
        nargs="?",
        type=webcam.read_option,
        const="0",
        metavar="NUMBER",
        help=webcam.help,
    )
    texts = parse_options(parser, argv, keys)
    keys |= {"keypoints": file, "webcam": webcam}
    return PredictOptions(
        **{
            name: convert(f"--{name}", keys[name].hint, text)
            for name, text in texts.items()
            if text is not None
        }
    )
