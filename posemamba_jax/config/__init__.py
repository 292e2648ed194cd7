"""The configuration of a run: its keys, reading them, and running a program on them."""

from posemamba_jax.config.loading import differences, from_dict, load_config, to_dict, to_yaml
from posemamba_jax.config.program import run_program
from posemamba_jax.config.schema import (
    Config,
    DistributedConfig,
    EvalConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
)
from posemamba_jax.errors import ConfigError

__all__ = [
    "Config", "ConfigError", "DistributedConfig", "EvalConfig", "MeshConfig", "OptimConfig",
    "TrainConfig", "differences", "from_dict", "load_config", "run_program", "to_dict", "to_yaml",
]  # fmt: skip
