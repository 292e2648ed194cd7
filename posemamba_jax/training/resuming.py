"""What may differ when a run is resumed: one table, by which programs go and which the docs print.

    python -m posemamba_jax.training.resuming

prints it. The keys that are compared are those of the checkpoint, not of config.yaml, which can be
edited; and the data is compared by the files' content besides (`posemamba_jax.data.identity`).
"""

import dataclasses
import fnmatch
from collections.abc import Sequence
from typing import Literal

from posemamba_jax import config as config_lib
from posemamba_jax.config.loading import leaves
from posemamba_jax.config.schema import Config
from posemamba_jax.errors import UserError

Verdict = Literal["refused", "told", "free"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a difference in some keys means for a run that is resumed.

    Attributes:
      keys: patterns of keys, in which `*` stands for anything.
      verdict: "refused" ends the program, "told" goes on with a line, "free" goes on in silence.
      reason: why.
    """

    keys: tuple[str, ...]
    verdict: Verdict
    reason: str


# The first that matches holds.
RULES = (
    Rule(
        ("run_dir", "train.resume", "distributed.*"),
        "free",
        "where and how the command is given",
    ),
    Rule(
        ("train.compilation_cache", "train.profile", "data.*.cache_dir"),
        "free",
        "no number depends on it",
    ),
    Rule(
        ("train.init_from",),
        "free",
        "the start is over; a resumed run begins at its checkpoint",
    ),
    Rule(
        (
            *(
                "data.skeleton",
                "data.h36m.path",
                "data.mpi_inf_3dhp.*_path",
                "data.posetrack.folder",
            ),
            *("data.instavariety.*_path", "data.mocap.train", "data.arrays.train"),
        ),
        "told",
        "files may move; what is in them is compared instead",
    ),
    Rule(
        ("data.mocap.test", "data.arrays.test", "data.h36m.cover_ends", "data.mixture.test"),
        "told",
        "another test set; the best checkpoint so far is set aside and a new one begins",
    ),
    Rule(
        ("data.flip_probability", "data.augment.*"),
        "told",
        "the same clips in the same order, changed in another way from here on",
    ),
    Rule(
        ("seed", "train.batch_size", "data.*"),
        "refused",
        "the position in the stream of clips would mean other clips",
    ),
    Rule(
        ("model.drop_path", "model.limb_gradient"),
        "told",
        "the same model, trained in another way from here on",
    ),
    Rule(
        ("model.dtype", "model.implementation", "model.remat", "model.scan_layers"),
        "told",
        "the same model, computed in another way; results agree to rounding",
    ),
    Rule(("model.*",), "refused", "another model; the weights would mean something else"),
    Rule(("mesh.*",), "told", "the same results to rounding on other devices"),
    Rule(
        ("loss.*", "optim.*", "train.*", "eval.*"),
        "told",
        "a choice that can be made anew at any step",
    ),
)


def find_rule(key: str) -> Rule:
    """Finds the rule for a key of the configuration."""
    return next(
        rule for rule in RULES if any(fnmatch.fnmatchcase(key, pattern) for pattern in rule.keys)
    )


def compare(stored: Config, now: Config) -> list[str]:
    """Compares the configuration of a checkpoint with the one that is to go on from it.

    Options of data sources that neither of them uses do not count.

    Args:
      stored: the checkpoint's.
      now: of the command.

    Returns:
      What differs and is told, one line each.

    Raises:
      UserError: something differs that may not; the message lists all of it.
    """
    old, new = config_lib.to_dict(stored), config_lib.to_dict(now)
    in_use = {source for config in (stored, now) for source in sources_of(config)}
    refused, told = [], []
    for key, (before, after) in config_lib.differences(old, new).items():
        section = key.split(".")[1] if key.count(".") > 1 and key.startswith("data.") else ""
        if section and section != "augment" and section not in in_use:
            continue
        rule = find_rule(key)
        line = f"{key}: {before} -> {after}"
        if rule.verdict == "refused":
            refused.append(f"{line} ({rule.reason})")
        elif rule.verdict == "told":
            told.append(line)
    if refused:
        raise UserError(
            f"{now.run_dir}: a resumed run has to keep {'; '.join(refused)}. Leave it as it was, "
            "or start another run with --run_dir FOLDER (--train.init_from takes these weights "
            "along)"
        )
    return told


def sources_of(config: Config) -> Sequence[str]:
    """Names the data sources that a configuration uses, and the sections that go with them."""
    if config.data.source != "mixture":
        return (config.data.source,)
    return ("mixture", *config.data.mixture.sources, *filter(None, [config.data.mixture.test]))


def table() -> str:
    """Writes the rules as a Markdown table, a row for each, in the order of their trial."""
    words = {
        "refused": "refused",
        "told": "allowed, and told in a line",
        "free": "free",
    }
    rows = [
        f"| {', '.join(f'`{key}`' for key in rule.keys)} | {words[rule.verdict]} | {rule.reason} |"
        for rule in RULES
    ]
    return "\n".join(
        ["| keys that differ | a resumed run | because |", "| --- | --- | --- |", *rows]
    )


def known_keys() -> list[str]:
    """Lists every key of the configuration."""
    return sorted(key for key, _ in leaves(config_lib.to_dict(Config())))


if __name__ == "__main__":
    print(table())
