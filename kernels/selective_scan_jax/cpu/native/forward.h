// The forward pass of a task.
#pragma once

#include "chunk.h"

namespace selective_scan {
namespace {

constexpr int kForwardStates = 4;  // in registers at a time

// y[t] += sum over `group` states; B and C are (steps, states). Not inlined, so that
// benchmarks/cpu_kernel.py finds its instructions.
template <int group, Range range>
__attribute__((noinline)) void advance(int count, int64_t states, const V* a, const V* d, const V* drive, const float* B,
             const float* C, V* state, V* y) {
  V h[group], decay_rate[group];
#pragma GCC unroll 8
  for (int i = 0; i < group; ++i) h[i] = state[i], decay_rate[i] = a[i];
  for (int t = 0; t < count; ++t, B += states, C += states) {
    V step = d[t], input = drive[t], out = y[t];
#pragma GCC unroll 8
    for (int i = 0; i < group; ++i) {
      h[i] = exp2_product<range>(step, decay_rate[i]) * h[i] + input * B[i];
      out += h[i] * C[i];
    }
    y[t] = out;
  }
#pragma GCC unroll 8
  for (int i = 0; i < group; ++i) state[i] = h[i];
}

struct ForwardScratch {
  Parameters parameters;
  V *state, *u, *d, *drive, *y;
  float *B, *C, *dt;

  ForwardScratch(const Problem& p, Arena& arena)
      : parameters(p, arena, kMaxVectors),
        state(arena.take<V>(kMaxVectors * p.states)),
        u(arena.take<V>(kT)),
        d(arena.take<V>(kT)),
        drive(arena.take<V>(kT)),
        y(arena.take<V>(kT)),
        B(arena.take<float>(kT * p.states)),
        C(arena.take<float>(kT * p.states)),
        dt(arena.take<float>(kT * p.rank)) {}
};

void forward_chunk(const Problem& p, const Place& place, const Positions& at, int64_t chunk, int v,
                   ForwardScratch& s) {
  int lanes = place.lanes[v];
  const V* a = s.parameters.a + v * p.states;
  V* state = s.state + v * p.states;
  if (p.boundaries) {
    float* out = p.boundaries + place.boundary(p, chunk, v);
    for (int64_t n = 0; n < p.states; ++n) store(out + n * p.channels, state[n], lanes);
  }
  Range range = read_steps(p, place, at, s.parameters, v, s.dt, s.u, s.d, s.drive, nullptr);
  for (int t = 0; t < at.count; ++t) s.y[t] = s.parameters.skip[v] * s.u[t];
  int64_t n = 0;
#define SCAN_CALL(range)                                                                       \
  for (; n + kForwardStates <= p.states; n += kForwardStates)                                  \
    advance<kForwardStates, range>(at.count, p.states, a + n, s.d, s.drive, s.B + n, s.C + n,     \
                                   state + n, s.y);                                            \
  for (; n < p.states; ++n)                                                                    \
    advance<1, range>(at.count, p.states, a + n, s.d, s.drive, s.B + n, s.C + n, state + n, s.y);
  SCAN_WITH_RANGE(range, SCAN_CALL)
#undef SCAN_CALL
  bool add = place.direction > place.first_direction;
  for (int t = 0; t < at.count; ++t) {
    int64_t offset = place.at(p, at.own[t], v);
    V y = s.y[t];
    if (p.z) {
      V z = load(p.z + offset, lanes);
      y *= z * sigmoid(z);
    }
    if (add) y = load(p.y + offset, lanes) + y;
    store(p.y + offset, y, lanes);
  }
}

void forward(const Problem& p, int64_t task, void* scratch) {
  Arena arena(scratch);
  ForwardScratch s(p, arena);
  Place place(p, task);
  Positions at;
  for (; place.direction < place.last_direction; ++place.direction) {
    s.parameters.set(p, place);
    int64_t states_of = place.batch * p.directions * p.channels;
    for (int v = 0; v < place.vectors; ++v) {
      read_state(p, p.initial, states_of + place.parameter(p, v), place.lanes[v],
                 s.state + v * p.states);
    }
    for (int64_t chunk = 0; chunk < p.chunks(); ++chunk) {
      at.set(p, place.direction, chunk);
      copy_rows(p.B, p, place, at, p.states, s.B);
      copy_rows(p.C, p, place, at, p.states, s.C);
      if (p.dt) copy_rows(p.dt, p, place, at, p.rank, s.dt);
      for (int v = 0; v < place.vectors; ++v) forward_chunk(p, place, at, chunk, v, s);
    }
    for (int v = 0; v < place.vectors; ++v) {
      write_state(p, p.last, states_of + place.parameter(p, v), place.lanes[v],
                  s.state + v * p.states);
    }
  }
}

}  // namespace
}  // namespace selective_scan
