"""Where people are: their way through the room, the ground and the camera."""

from posemamba_jax.predict.world.contract import Camera, Placed, Sighting, World
from posemamba_jax.predict.world.focal import Focal, focal_from_metadata, guess_focal, known_focal
from posemamba_jax.predict.world.place import find_world

__all__ = [
    "Camera",
    "Focal",
    "Placed",
    "Sighting",
    "World",
    "find_world",
    "focal_from_metadata",
    "guess_focal",
    "known_focal",
]
