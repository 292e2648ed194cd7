"""What reports of all evaluation protocols have in common."""

import dataclasses
import json
import math
import os

from posemamba_jax.files import writing


@dataclasses.dataclass(frozen=True)
class JsonReport:
    """A dataclass of figures that can be written as JSON."""

    def to_dict(self) -> dict:
        """Turns a report into plain values that JSON can hold; figures that are not finite become
        None.
        """

        def plain(value):
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            if isinstance(value, float) and not math.isfinite(value):
                return None
            return list(value) if isinstance(value, tuple) else value

        return plain({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the report as a JSON file."""
        writing.write_text(path, self.to_json() + "\n")
