"""Lists and empties the cache of parsed motion capture files.

    python -m posemamba_jax.motion_cache list
    python -m posemamba_jax.motion_cache empty
    python -m posemamba_jax.motion_cache empty --unused

The folder is that of `data.mocap.cache_dir`; `--cache_dir` names another. `--unused` empties only
entries that no run can use any more: their motion file is gone, or they do not name it.
"""

from posemamba_jax.config import run_program
from posemamba_jax.data.formats.motion_cache import main

__all__ = ["main"]

if __name__ == "__main__":
    run_program(main)
