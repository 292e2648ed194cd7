"""Small files that are whole or as they were before, whenever the program is killed."""

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replaces a file by one with this text, in one step.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
