"""What tests of sharded scans look at."""

import re

import jax


def collectives(compiled) -> dict[str, list[tuple[int, ...]]]:
    """Finds the shapes of what each kind of collective gives in a compiled program's text."""
    found = {}
    pattern = r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)\S*\("
    for outputs, kind in re.findall(pattern, compiled.as_text()):
        if kind.endswith("-done"):
            continue
        for shape in re.findall(r"[a-z]+\d+\[([\d,]*)\]", outputs):
            found.setdefault(kind, []).append(tuple(int(n) for n in shape.split(",") if n))
    return found


def with_gradients(scan):
    def run(arrays, grads):
        outputs, pull_back = jax.vjp(scan, arrays)
        return outputs, pull_back(grads)[0]

    return jax.jit(run)
