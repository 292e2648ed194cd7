"""What predict.py can be told, and its command line."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

from jsonargparse import ArgumentError, ArgumentParser

from posemamba_jax.errors import UserError
from posemamba_jax.limits import Limits
from posemamba_jax.predict.export import DEFAULT_OUTPUTS, WRITERS
from posemamba_jax.predict.keypoints import FORMATS, JOINT_SETS

Format = Literal[FORMATS]
JointSetName = Literal[tuple(JOINT_SETS)]


_LIMITS = {
    "webcam": Limits(at_least=0, at_most=1000),
    "delay": Limits(at_least=0, at_most=10**6),
    "people": Limits(at_least=1, at_most=100),
    "min_track_seconds": Limits(at_least=0, at_most=1e6),
    "max_gap": Limits(at_least=0, at_most=10**6),
    "batch_size": Limits(at_least=1, at_most=10**6),
    "min_confidence": Limits(at_least=0, at_most=1e6),
    "fps": Limits(at_least=0.01, at_most=1e5),
    "smooth_min_cutoff": Limits(above=0, at_most=1e5),
    "focal_px": Limits(above=0, at_most=1e5),
    "smooth_beta": Limits(at_least=0, at_most=1e5),
}


def _option(default, text: str):
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Everything predict.py can be told; `help` in a field's metadata says what it means."""

    keypoints: str | None = _option(None, "a video, or a keypoint file or a folder of them")
    checkpoint: str | None = _option(
        None, "folder of a run or of a model, or pretrained:NAME; else the model that is installed"
    )
    out: str = _option("out", "folder for the results")
    format: Format | None = _option(None, "format of the keypoints; recognised if not given")
    joint_set: JointSetName | None = _option(None, "joint set; recognised if not given")
    coordinates: Literal["pixels", "image", "model"] | None = _option(
        None, "what the keypoints are in: pixels, fractions of the image, the model's units"
    )
    clip: str | None = _option(None, "clip of a VideoPose3D file, VIDEO or VIDEO/ACTION/CAMERA")
    image_size: str | None = _option(None, "WIDTHxHEIGHT in pixels")
    video: str | None = _option(None, "the video: size, frame rate and number of frames")
    fps: float | None = _option(None, "frames per second; else the file's or the video's")
    webcam: int | None = _option(None, "lift a camera's picture live: its number, 0 if left out")
    stream: str | None = _option(
        None, "lift a stream live: a file, a pipe, - for standard input, or a URL that FFmpeg opens"
    )
    delay: int = _option(5, "live: how many frames the pose shown is behind the newest")
    people: int = _option(1, "of a video: how many people to lift, those most in view")
    detector: Literal["jax", "litert", "rtmpose"] = _option(
        "jax", "of a video: what runs the pose networks; the others are extras"
    )
    detector_model: Literal["heavy", "full", "lite"] = _option(
        "heavy", "of a video: full and lite are faster and take left for right more often"
    )
    detector_weights: str | None = _option(
        None, "file or folder with the pose networks; else the cache, else a download"
    )
    min_track_seconds: float = _option(
        0.5, "people seen for less than this, and for less than half of the clip, are dropped"
    )
    track: str = _option("all", "all, longest, or the identity of one person")
    max_gap: int = _option(30, "longest gap in frames that is bridged; longer ones split")
    min_confidence: float = _option(0.0, "joints with a confidence not above this are missing")
    implementation: str | None = _option(
        None, "of the model's scan; else the checkpoint's, or the default of the device"
    )
    overlap: int | None = _option(None, "frames that windows share; a third of the model's")
    batch_size: int | None = _option(
        None, "windows per forward pass; else as many as have 243 frames on a CPU, else 8 times 243"
    )
    resample: bool = _option(
        True, "lift at the frame rate that the model was trained at, where it is known"
    )
    flip: bool = _option(True, "average with the prediction of the mirrored input")
    smooth: bool = _option(False, "One-Euro filter over the 3D poses, forwards and backwards")
    smooth_min_cutoff: float = _option(1.5, "its cutoff at rest, hertz; lower is smoother")
    smooth_beta: float = _option(2.0, "its hertz per leg length per second; higher lags less")
    height_mm: float | None = _option(None, "the person's height, to scale to millimetres")
    bone_length: str | None = _option(None, "BONE=MM to scale by, for example l_hip-l_knee=440")
    trajectory: Literal["world", "image", "none"] = _option(
        "world", "place of the root: in the room, as it moves in the image plane, or none"
    )
    focal_px: float | None = _option(
        None, "focal length in pixels; else the video's metadata's, else it is estimated"
    )
    outputs: str = _option(",".join(DEFAULT_OUTPUTS), f"of {','.join(WRITERS)}")
    render: str | None = _option(None, "pictures to make, of mp4,gif,html")

    def __post_init__(self):
        for name, limits in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not limits.contain(value):
                raise UserError(f"--{name} {value}: must be {limits}")
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
    """The command line as options.

    Raises:
      UserError: an unknown option or a value of the wrong type.
    """
    parser = ArgumentParser(
        prog="predict.py",
        exit_on_error=False,
        description="Lifts people to 3D poses: in a video, before a camera, or in a detector's 2D "
        "keypoints.",
    )
    for field in dataclasses.fields(PredictOptions):
        text = field.metadata["help"]
        if field.name == "keypoints":
            parser.add_argument("keypoints", type=str, nargs="?", help=text)
        elif field.name == "webcam":
            parser.add_argument("--webcam", type=int, nargs="?", const=0, help=text)
        else:
            parser.add_argument(
                f"--{field.name}", type=field.type, default=field.default, help=text
            )
    try:
        values = parser.parse_args(list(argv))
    except ArgumentError as error:
        text = " ".join(str(error).split())
        wrong = re.fullmatch(r'Parser key "(\w+)": (.*)', text)
        raise UserError(f"--{wrong[1]}: {wrong[2]}" if wrong else text) from None
    return PredictOptions(**values.as_dict())
