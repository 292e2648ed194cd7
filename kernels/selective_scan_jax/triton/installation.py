"""Whether the installed jax, jax-triton, Triton and CUDA assembler work together.

Triton writes PTX, an assembly language with versions, and JAX hands it to an assembler of its own
(ptxas), which refuses versions later than it knows. Triton writes the version of the assembler that
it would itself use, so it is told to use JAX's where that is the older one.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import jax

# The first assembler that knows an architecture, by compute capability.
_FIRST_ASSEMBLER = {80: (11, 0), 86: (11, 1), 89: (11, 8), 90: (11, 8), 100: (12, 8), 120: (12, 8)}
# Where Triton takes its assemblers from, that for the latest architectures second.
_VARIABLES = ("TRITON_PTXAS_PATH", "TRITON_PTXAS_BLACKWELL_PATH")


def mismatch(capability: int | None) -> str | None:
    """Returns what does not work together and what to install instead, or None.

    Args:
      capability: compute capability of the GPU, 90 for 9.0; None if not known.
    """
    jax_triton, triton = _version("jax-triton"), _version("triton")
    if jax_triton >= (0, 4) and triton < (3, 7):
        return (
            f"jax-triton {_text(jax_triton)} needs Triton 3.7 or later, this is {_text(triton)}: "
            'pip install "triton>=3.7", or with this Triton pip install "jax-triton==0.3.1"'
        )
    if jax.__version_info__ >= (0, 12) and jax_triton <= (0, 4, 1):
        return (
            f"jax-triton {_text(jax_triton)} does not work with jax {jax.__version__}: "
            'pip install "jax<0.12"'
        )
    assembler = oldest_assembler()
    if assembler is None or capability is None:
        return None
    wanted = max((v for c, v in _FIRST_ASSEMBLER.items() if c <= capability), default=(11, 0))
    if assembler[0] < wanted:
        return (
            f"{assembler[1]} is of CUDA {_text(assembler[0])} and does not know compute capability "
            f'{capability / 10}, CUDA {_text(wanted)} does: pip install --upgrade "jax[cuda13]"'
        )
    return None


def write_for_assembler() -> None:
    """Has Triton write PTX for the oldest assembler that JAX may take.

    A path that the user has set for Triton's assembler stays.
    """
    assembler = oldest_assembler()
    if assembler is None:
        return
    from triton.backends.nvidia import compiler

    for variable, capability in zip(_VARIABLES, (80, 100), strict=True):
        if variable in os.environ:
            continue
        own = compiler.get_ptxas(capability).version
        if tuple(map(int, own.split("."))) > assembler[0]:
            os.environ[variable] = str(assembler[1])


@functools.cache
def oldest_assembler() -> tuple[tuple[int, ...], pathlib.Path] | None:
    """Returns CUDA version and path of the oldest ptxas that JAX may find; None if there is
    none.
    """
    found = []
    for path in _assemblers():
        try:
            said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
        except OSError:
            continue
        if release := re.search(r"release (\d+)\.(\d+)", said):
            found.append(((int(release[1]), int(release[2])), path))
    return min(found, default=None)


def _assemblers() -> Iterator[pathlib.Path]:
    """Returns where JAX looks: the CUDA packages beside it, the toolkit, the path."""
    for folder in dict.fromkeys(sys.path):
        for where in ("nvidia/cuda_nvcc/bin", "nvidia/cu13/bin"):
            yield pathlib.Path(folder, where, "ptxas")
    yield pathlib.Path("/usr/local/cuda/bin/ptxas")
    if on_path := shutil.which("ptxas"):
        yield pathlib.Path(on_path)


def _version(package: str) -> tuple[int, ...]:
    try:
        text = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return (0,)
    return tuple(map(int, re.findall(r"\d+", text)[:3]))


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
