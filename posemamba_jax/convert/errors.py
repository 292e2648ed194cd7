"""The error of whatever holds no PoseMamba."""

from posemamba_jax.errors import UserError


class ConvertError(UserError, ValueError):
    """A file or a state dict that does not hold a PoseMamba; the message says what is wrong."""
