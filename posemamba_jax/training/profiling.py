"""A trace of a few training steps, for TensorBoard's profile page, XProf or Perfetto."""

from pathlib import Path
from typing import Any

import jax

from posemamba_jax.errors import UserError


class StepTrace:
    """Records the steps that the configuration asks for into RUN_DIR/profile.

    Args:
      steps: to record, counted from 1; none if empty.
      run_dir: the run's folder.

    Raises:
      UserError: a trace cannot be taken in this process.
    """

    def __init__(self, steps: range, run_dir: str | Path):
        if steps and _libtpu_without_tpu():
            raise UserError(
                "train.profile: JAX has loaded libtpu and found no TPU, and its profiler would end "
                "this process then; set JAX_PLATFORMS=cpu (or cuda), or uninstall libtpu"
            )
        self._steps = steps
        self.folder = Path(run_dir) / "profile"
        self._running = False

    def __enter__(self) -> "StepTrace":
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop()

    def before(self, step: int) -> Any:
        """Starts where `step` is the first to be traced.

        Returns:
          A context in which the step is to be taken, so that viewers know it for one.
        """
        if not self._running and step in self._steps:
            jax.profiler.start_trace(self.folder)
            self._running = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def after(self, step: int, result: Any) -> bool:
        """Stops after the last step to be traced, once the device is done with it.

        Returns:
          Whether a trace has just been written.
        """
        if not self._running or step < self._steps[-1]:
            return False
        jax.block_until_ready(result)
        self._stop()
        return True

    def _stop(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def _libtpu_without_tpu() -> bool:
    """Tells whether libtpu is in this process (as far as Linux tells) and the devices are no
    TPUs.
    """
    try:
        loaded = "libtpu.so" in Path("/proc/self/maps").read_text()
    except OSError:
        return False
    return loaded and jax.default_backend() != "tpu"
