"""The focal length: given, from the file, or a guess with its uncertainty."""

import dataclasses
import math
import re

ESTIMATED, ASSUMED = "estimated", "assumed"
# Video of phones and cameras: 24 to 35 mm of a full frame (diagonal 43.3 mm) before the crop of
# stabilisation, webcams near 30, and longer lenses: 0.8 diagonals, give or take a third.
GUESS_DIAGONALS = 0.8
GUESS_DEVIATION = 0.3
_FULL_FRAME_DIAGONAL = math.hypot(36.0, 24.0)
_EQUIVALENT = re.compile(
    r"focal_?length[^:\n]*35[^:\n]*:\s*([0-9]+(?:\.[0-9]+)?)|"
    r"35mm[^:\n]*focal[^:\n]*:\s*([0-9]+(?:\.[0-9]+)?)",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Focal:
    """A focal length in pixels, the deviation of its logarithm (0 to keep it), and its source."""

    pixels: float
    deviation: float
    source: str


def known_focal(pixels: float) -> Focal:
    """Takes the focal length that the user gives."""
    return Focal(float(pixels), 0.0, "given")


def guess_focal(image_size: tuple[int, int]) -> Focal:
    """Guesses what cameras usually have, for an image of (width, height) pixels."""
    return Focal(GUESS_DIAGONALS * math.hypot(*image_size), GUESS_DEVIATION, ESTIMATED)


def assumed_focal(image_size: tuple[int, int]) -> Focal:
    """Takes the guess as it is, for a video that cannot tell better."""
    return Focal(guess_focal(image_size).pixels, 0.0, ASSUMED)


def focal_from_metadata(words: str, image_size: tuple[int, int]) -> Focal | None:
    """Reads the focal length that a video's metadata tell, as FFmpeg prints them; None if they do
    not.

    Phones write the length that a full-frame camera would need, in millimetres
    (`com.apple.quicktime.camera.focal_length.35mm_equivalent` and the like), which stands in the
    same ratio to 43.3 mm as pixels to the image's diagonal. Stabilisation crops the image by up to
    a fifth without saying so, so that the value is taken as uncertain by a tenth.
    """
    match = _EQUIVALENT.search(words)
    millimetres = float(match[1] or match[2]) if match else 0.0
    if not 5 <= millimetres <= 1000:
        return None
    pixels = millimetres / _FULL_FRAME_DIAGONAL * math.hypot(*image_size)
    return Focal(pixels, 0.1, f"from the file ({millimetres:g} mm equivalent)")
