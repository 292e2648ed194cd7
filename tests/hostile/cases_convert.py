"""Weights of others, and where the converted model goes."""

from pathlib import Path

from cases_predict import fifo, text
from trial import Trial


def weights(change):
    """Changes the state dict in weights.bin."""

    def prepare(folder: Path) -> None:
        import torch

        state = torch.load(folder / "weights.bin")["model_pos"]
        torch.save({"model_pos": change(state, torch)}, folder / "weights.bin")

    return prepare


def refused(name: str, change, *says: str) -> Trial:
    return Trial(name, "convert weights.bin out --scan global", says, prepare=weights(change))


BIAS = "head.1.bias"
CASES = [
    Trial("as it should be", "convert weights.bin out", ("9 frames",), (0,), ("out/*",)),
    Trial(
        "over a model",
        "convert weights.bin model",
        ("9 frames",),
        (0,),
        ("model/*",),
        loses=("model/params/*",),
    ),
    Trial("into the home folder", "convert weights.bin ~/m", ("9 frames",), (0,), ("home/m/*",)),
    Trial("over a run", "convert weights.bin run", ("not empty and not a model",)),
    Trial("over a file", "convert weights.bin tiny.yaml", ("tiny.yaml",)),
    Trial("below a file", "convert weights.bin tiny.yaml/m", ("tiny.yaml",)),
    Trial("into a bucket", "convert weights.bin gs://b/m", ("of this machine",)),
    Trial("a pipe", "convert pipe out", ("a pipe",), prepare=fifo("pipe")),
    Trial("an endless device", "convert /dev/zero out", ("a device",)),
    Trial("a folder", "convert home out", ("a folder",)),
    Trial("no such file", "convert gone.bin out", ("no such file",)),
    Trial("text", "convert tiny.yaml out", ("tiny.yaml",)),
    Trial("nothing", "convert e.bin out", ("e.bin",), prepare=text("e.bin", "")),
    refused("NaN", lambda s, t: s | {BIAS: s[BIAS] * t.nan}, BIAS, "nan"),
    refused("infinite", lambda s, t: s | {BIAS: s[BIAS] * t.inf}, BIAS, "inf"),
    refused(
        "too large for float32", lambda s, t: s | {BIAS: s[BIAS].double() + 1e300}, BIAS, "1e+300"
    ),
    refused("x and module.x", lambda s, t: s | {f"module.{BIAS}": s[BIAS]}, f"module.{BIAS}"),
    refused("a key that is a number", lambda s, t: s | {3: s[BIAS]}, "key 3"),
    refused("sparse", lambda s, t: s | {BIAS: s[BIAS].to_sparse()}, BIAS, "sparse"),
    refused("meta", lambda s, t: s | {BIAS: s[BIAS].to("meta")}, BIAS, "meta"),
    refused("whole numbers", lambda s, t: s | {BIAS: s[BIAS].long()}, BIAS, "int64"),
    refused(
        "a missing key", lambda s, t: {k: v for k, v in s.items() if k != BIAS}, "missing", BIAS
    ),
    refused("a key too many", lambda s, t: s | {"tail": s[BIAS]}, "unexpected", "tail"),
    refused("another shape", lambda s, t: s | {BIAS: s[BIAS][:2]}, "another shape", BIAS),
    Trial(
        "a walk of words", "convert weights.bin out --limb_walk a,b", ("expected joint indices",)
    ),
    Trial("a walk of ²", "convert weights.bin out --limb_walk ²", ("expected joint indices",)),
]
