"""What Triton kernels that take the segments of a sequence side by side hand from one to the next.

A first pass gives what each segment makes of zero, and the sum of its step sizes; a state that
enters a segment decays by that sum and adds to that end. Adjoints do the same from the last segment
to the first.

Shapes, in the letters of `Layout`: ends (b, k, s, n, e), sums (b, k, s, e), what is given before
the first step or behind the last (b, k, e, n).
"""

import triton
import triton.language as tl

from selective_scan_jax.triton.primitives import (
    load_channel,
    load_channels,
    store_channels,
    zeros,
)


@triton.jit
def store_end(
    vectors, total, ends, sums, segment, k, part, batch, channel, inside, L: tl.constexpr
):
    """Writes what a segment makes of zero, and the sum of its step sizes."""
    N: tl.constexpr = L.block_n
    row = (batch * L.directions + k) * L.segments + segment
    end_at = ends + (row * L.states + part * N) * L.channels + channel
    store_channels(end_at, vectors, inside, N, L.channels)
    if part == 0:
        tl.store(sums + row * L.channels + channel, total, mask=inside)


@triton.jit
def enter_segment(
    given, ends, sums, segment, k, part, batch, channel, inside, a,
    L: tl.constexpr, GIVEN: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """Returns the state that enters a segment: what is `given` before the first one, or zero, taken
    through all segments before. With BACK the adjoint: what is given behind the last one, taken
    through all segments behind.
    """
    N: tl.constexpr = L.block_n
    first = part * N
    if GIVEN:
        at = (batch * L.directions + k) * (L.channels * L.states) + channel * L.states + first
        vectors = load_channels(given + at, inside, N, 1)
    else:
        vectors = zeros(channel, N)
    if L.segments > 1:
        row = (batch * L.directions + k) * L.segments
        count = segment
        if BACK:
            count = L.segments - 1 - segment
        for s in range(count):
            between = row + s
            if BACK:
                between = row + L.segments - 1 - s
            total = load_channel(sums + between * L.channels + channel, inside)
            end_at = ends + (between * L.states + first) * L.channels + channel
            end = load_channels(end_at, inside, N, L.channels)
            new = ()
            for n in tl.static_range(N):
                new += (tl.exp2(total * a[n]) * vectors[n] + end[n],)
            vectors = new
    return vectors
