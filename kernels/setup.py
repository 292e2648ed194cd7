"""Builds the optional native CPU kernels of selective_scan_jax; all else is in pyproject.toml.

The kernels are a plain shared library, not a Python extension: one source compiled for several
instruction sets, and the XLA handlers. Without a compiler, or where compiling fails, the
installation goes on and leaves the reason in a file that selective_scan_jax reports.

CXX names the compiler, CXXFLAGS adds flags, ARCHFLAGS (macOS) names the architecture.
"""

import concurrent.futures
import importlib.util
import os
import pathlib
import platform
import shlex
import shutil
import subprocess

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

PACKAGE = "selective_scan_jax"
BACKEND = pathlib.Path(PACKAGE) / "cpu"
LIBRARY, FAILURE = "_cpu_scan.so", "_cpu_scan.failed"

# No fast-math: infinities and NaN keep their meaning. Contraction into fused multiply-adds is part
# of the algorithm's accuracy, so it is asked for rather than left to the compiler's default.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-psabi",
]
# name: lanes of a vector register, compiler flags.
LEVELS = {
    "x86_64": {
        "baseline": (4, []),
        "avx2": (8, ["-mavx2", "-mfma"]),
        "avx512": (
            16,
            ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mavx2", "-mfma"],
        ),
    },
    # NEON, which every 64-bit Arm processor has.
    "aarch64": {"baseline": (4, [])},
}


class Unbuildable(Exception):
    """The library cannot be built here; the message says why."""


def target_machine() -> str:
    flags = shlex.split(os.environ.get("ARCHFLAGS", ""))
    named = {flags[i + 1] for i, flag in enumerate(flags[:-1]) if flag == "-arch"}
    if len(named) > 1:
        raise Unbuildable(f"ARCHFLAGS names {len(named)} architectures, a library is for one")
    machine = named.pop() if named else platform.machine()
    machine = {"arm64": "aarch64", "amd64": "x86_64"}.get(machine.lower(), machine.lower())
    if machine not in LEVELS:
        raise Unbuildable(f"there are no native kernels for {machine} processors")
    return machine


def find_compiler() -> list[str]:
    if os.name == "nt":
        raise Unbuildable("the native kernels are not built on Windows")
    named = os.environ.get("CXX")
    for command in [named] if named else ["c++", "g++", "clang++"]:
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    raise Unbuildable(f"no C++ compiler was found ({named or 'c++, g++, clang++'})")


def xla_headers() -> str:
    spec = importlib.util.find_spec("jaxlib")
    for place in (spec.submodule_search_locations or []) if spec else []:
        include = pathlib.Path(place) / "include"
        if (include / "xla" / "ffi" / "api" / "ffi.h").exists():
            return str(include)
    raise Unbuildable("jaxlib, which has the headers of XLA's interface, is not installed")


def run(command: list[str]) -> None:
    print(" ".join(command), flush=True)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        print(done.stderr, flush=True)
        first = next((x for x in done.stderr.splitlines() if "error" in x.lower()), "no message")
        raise Unbuildable(f"{command[0]} failed: {first.strip()}")


def build_library(target: pathlib.Path, temporary: pathlib.Path) -> None:
    """Compiles every level and the handlers, and links them into `target`."""
    machine, compiler, headers = target_machine(), find_compiler(), xla_headers()
    arch = shlex.split(os.environ.get("ARCHFLAGS", ""))
    flags = [*FLAGS, *arch, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    temporary.mkdir(parents=True, exist_ok=True)
    units = {
        f"cpu_scan_{name}.o": [*level, f"-DSCAN_LEVEL={name}", f"-DSCAN_LANES={lanes}", "scan.cc"]
        for name, (lanes, level) in LEVELS[machine].items()
    }
    units["cpu_ffi.o"] = ["-isystem", headers, "ffi.cc"]
    objects, commands = [], []
    for name, [*options, source] in units.items():
        objects.append(str(temporary / name))
        source = str(BACKEND / "native" / source)
        commands.append([*compiler, *flags, *options, "-c", source, "-o", objects[-1]])
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as compilers:
        list(compilers.map(run, commands))
    target.parent.mkdir(parents=True, exist_ok=True)
    # Renamed into place: processes that use the old library keep it, new ones find a whole one.
    linked = target.with_suffix(".linking")
    run([*compiler, *flags, "-shared", *objects, "-o", str(linked), "-pthread"])
    linked.replace(target)


class BuildLibrary(build_ext):
    """build_ext for the one library of this package."""

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")[:-1], LIBRARY)

    def run(self):
        # The base class would look for a configured C compiler first; none is needed.
        for ext in self.extensions:
            self.build_extension(ext)

    def build_extension(self, ext):
        target = pathlib.Path(self.get_ext_fullpath(ext.name))
        if self.editable_mode or self.inplace:
            target = BACKEND / LIBRARY
        failure = target.with_name(FAILURE)
        try:
            build_library(target, pathlib.Path(self.build_temp))
            failure.unlink(missing_ok=True)
        except Unbuildable as reason:
            target.unlink(missing_ok=True)
            self.warn(f"the native CPU kernels are not built: {reason}")
            failure.parent.mkdir(parents=True, exist_ok=True)
            failure.write_text(f"they were not built: {reason}\n")

    def get_outputs(self):
        target = pathlib.Path(self.get_ext_fullpath(self.extensions[0].name))
        return [str(p) for p in (target, target.with_name(FAILURE)) if p.exists()]

    def get_output_mapping(self):
        return {}


class PlatformWheel(bdist_wheel):
    """One wheel per platform: the library does not depend on the version of Python."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension(f"{PACKAGE}.cpu._cpu_scan", sources=[], optional=True)],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
