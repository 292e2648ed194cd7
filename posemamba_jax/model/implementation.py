"""Which implementation of the scan a program uses: one asked for, a preferred one, or the default.

What a checkpoint says is what the run that wrote it preferred, on its machine. What a user asks for
is used or refused.
"""

from selective_scan_jax import backends

from posemamba_jax.errors import ConfigError

KEY = "model.implementation"


def check_implementation(name: str | None) -> None:
    """Refuses an implementation that is not there or cannot run on this machine.

    Raises:
      ConfigError: says which can run.
    """
    try:
        if name is not None:
            backends.resolve(name)
    except ValueError:
        raise ConfigError(f"{name!r}, {_what_can_run()}", key=KEY) from None
    except RuntimeError:
        reason = backends.unavailable_reason(name)
        raise ConfigError(
            f"{name!r} cannot run here: {reason}; {_what_can_run()}", key=KEY
        ) from None


def choose_implementation(
    preferred: str | None, asked: str | None
) -> tuple[str | None, str | None]:
    """Chooses between what a checkpoint prefers and what the user asks for.

    Args:
      preferred: what the run that wrote the checkpoint used; None for the default.
      asked: what the user asks for; None for nothing.

    Returns:
      The name, None for the default; and a sentence for the user where the preferred one cannot
      run, else None.

    Raises:
      ConfigError: what is asked for cannot run; says what can.
    """
    if asked is not None:
        check_implementation(asked)
        return asked, None
    try:
        check_implementation(preferred)
    except ConfigError:
        return None, (
            f"the run preferred the scan {preferred!r}, which cannot run here; "
            f"{backends.default_implementation()} is used (--implementation chooses)"
        )
    return preferred, None


def _what_can_run() -> str:
    return f"expected one that can run here: {', '.join(backends.available())}"
