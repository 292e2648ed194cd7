"""The model and its configuration."""

from posemamba_jax.model.config import PoseMambaConfig
from posemamba_jax.model.posemamba import PoseMamba

__all__ = ["PoseMamba", "PoseMambaConfig"]
