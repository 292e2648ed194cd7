"""Frame numbers out of the names of files and images, in the order that people mean.

`frame9` comes before `frame10`. Where all names are the same text around numbers, the number that
changes from name to name is the frame's, wherever it stands: `frame12_2d.json` is frame 12. Numbers
that grow by the same step, as times in milliseconds do, are counted in steps.
"""

import collections
import dataclasses
import itertools
import math
import re

# Longer runs of digits are identifiers, not numbers of frames.
_LONGEST_NUMBER = 15
# This many equal steps between neighbours are no accident.
_LEAST_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Numbering:
    """Frame numbers of names.

    numbers: name -> frame number.
    step: what the numbers in the names grow by from one frame to the next; a name's own number is
      `origin + step * numbers[name]` where it is above 1.
    origin: the first number in the names where `step` is above 1, else 0.
    notes: sentences for the user on what was decided.
    """

    numbers: dict[str, int]
    step: int = 1
    origin: int = 0
    notes: tuple[str, ...] = ()


def natural_key(name: str) -> list:
    """Makes a sort key under which numbers inside names count as numbers: `a9` before `a10`."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def number_names(names: list[str], *, what: str, order: str) -> Numbering:
    """Numbers the frames that names stand for.

    Args:
      names: of images or files; the same name may come several times.
      what: what the names are of, for the notes, such as "files".
      order: what order they are given in, for the notes, such as "appearance".

    Returns:
      The numbers; where the names hold none that tell them apart, they are numbered as they are
      given, which a note says.
    """
    unique = list(dict.fromkeys(names))
    numbers = _changing_numbers(unique)
    if numbers is None:
        note = (
            f"the names of the {what} hold no single number that tells frames apart; numbered in "
            f"the order of {order}"
        )
        return Numbering({name: i for i, name in enumerate(unique)}, notes=(note,))
    values = sorted(numbers.values())
    step = find_step(values)
    if step == 1:
        return Numbering(numbers, notes=tuple(_gaps(values, what)))
    first = values[0]
    counted = {name: (value - first) // step for name, value in numbers.items()}
    rate = f" (in milliseconds that is --fps {1000 / step:g})" if 8 <= step <= 1000 else ""
    note = (
        f"the numbers of the {what} grow in steps of {step}: {first}, {first + step}, ...; each "
        f"step is taken as one frame, and --fps counts those{rate}"
    )
    notes = (note, *_gaps(sorted(counted.values()), what, first, step))
    return Numbering(counted, step, first, notes)


def find_step(numbers: list[int]) -> int:
    """Finds the constant step of frame numbers, in ascending order; 1 where there is none.

    A frame may be missing, so a step has to divide all differences and be most of them.
    """
    differences = [b - a for a, b in itertools.pairwise(numbers) if b > a]
    step = math.gcd(*differences) if differences else 1
    most, times = collections.Counter(differences).most_common(1)[0] if differences else (1, 0)
    same = most == step and times >= max(_LEAST_STEPS, len(differences) / 2)
    return step if step > 1 and same else 1


def _changing_numbers(names: list[str]) -> dict[str, int] | None:
    """Finds for each name the number that tells it from the others, or None."""
    stems = [name.rsplit(".", 1)[0] if "." in name else name for name in names]
    runs = [re.findall(r"[0-9]+", stem) for stem in stems]
    if not names or any(not found or len(found[-1]) > _LONGEST_NUMBER for found in runs):
        return None
    last = [int(found[-1]) for found in runs]
    frames = {re.sub(r"[0-9]+", "0", stem) for stem in stems}
    if len(frames) == 1:  # the same text around the numbers
        columns = list(zip(*runs, strict=True))
        changing = [column for column in columns if len(set(column)) > 1]
        if len(changing) == 1:
            if any(len(word) > _LONGEST_NUMBER for word in changing[0]):
                return None
            last = [int(word) for word in changing[0]]
    if len(set(last)) < len(names):
        return None
    return dict(zip(names, last, strict=True))


def _gaps(values: list[int], what: str, first: int = 0, step: int = 1) -> list[str]:
    """Makes a note on numbers that are missing between the first and the last."""
    missing = values[-1] - values[0] + 1 - len(values)
    if not missing:
        return []
    gap = next(a + 1 for a, b in itertools.pairwise(values) if b - a > 1)
    total = values[-1] - values[0] + 1
    return [
        f"{missing} of {total} frames are not among the {what}, the first of them "
        f"{first + step * gap}; nobody is taken to be seen in them"
    ]
