"""`python -m posemamba_jax.scaling --config FILE --topology v5e:16x16 --mesh data=64,fsdp=4`."""

import os
import re
from collections.abc import Sequence

import jax

from posemamba_jax.config import run_program


def main(argv: Sequence[str]) -> int:
    from posemamba_jax.scaling.request import parse_request

    request = parse_request(argv)
    _use_cpu(request.virtual_devices)
    # After the options: a mistake shows at once.
    from posemamba_jax.scaling import report

    return report.run(request)


def _use_cpu(devices: int | None) -> None:
    """Starts JAX on the CPU, whatever else is there, with virtual devices where asked for."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    jax.config.update("jax_platforms", "cpu")
    if devices:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags)
        jax.config.update("jax_num_cpu_devices", devices)


if __name__ == "__main__":
    run_program(main)
