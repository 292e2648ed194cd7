// The backward pass of a task.
#pragma once

#include "chunk.h"

namespace selective_scan {
namespace {

constexpr int kBackwardStates = 2;  // in registers at a time
constexpr float kLn2 = 0.693147181f;

// Over one vector of channels and `group` states: recomputes the states of a chunk from its
// boundary, then runs the adjoint recurrence from its end. With g the adjoint of a state and e its
// decay exp(d A) (Gu and Dao, "Mamba", 2023, differentiated):
//
//     g_t = C_t dy_t + e_{t+1} g_{t+1}
//     dC_t += dy_t h_t            dB_t += g_t d_t u_t     (sums over channels)
//     ddrive_t += g_t B_t         dd_t += g_t e_t h_{t-1} A
//     dA += g_t e_t h_{t-1} d_t
//
// `rates` collects dd / ln(2), because a = A log2(e). With `gated`, y is collected as well.
template <int group, Range range, bool gated>
__attribute__((noinline)) void retreat(int count, int64_t states, const V* a, const V* d, const V* drive, const V* dy,
             const float* B, const float* C, const float* boundary, int64_t boundary_stride,
             int lanes, V* decays, V* before, V* y, V* carry, V* da, V* dB, V* dC,
             V* inputs, V* rates) {
  V h[group], g[group], decay_rate[group], sum_a[group];
#pragma GCC unroll 8
  for (int i = 0; i < group; ++i) {
    h[i] = load(boundary + i * boundary_stride, lanes);
    decay_rate[i] = a[i], g[i] = carry[i], sum_a[i] = da[i];
  }
  for (int t = 0; t < count; ++t) {
    V step = d[t], input = drive[t];
#pragma GCC unroll 8
    for (int i = 0; i < group; ++i) {
      V decay = exp2_product<range>(step, decay_rate[i]);
      decays[t * group + i] = decay;
      before[t * group + i] = h[i];
      h[i] = decay * h[i] + input * B[t * states + i];
      if (gated) y[t] += h[i] * C[t * states + i];
    }
  }
  for (int t = count - 1; t >= 0; --t) {
    V step = d[t], input = drive[t], out = dy[t], to_input = inputs[t], to_rate = rates[t];
#pragma GCC unroll 8
    for (int i = 0; i < group; ++i) {
      V adjoint = g[i] + out * C[t * states + i];
      dC[i * kT + t] += out * h[i];
      dB[i * kT + t] += adjoint * input;
      to_input += adjoint * B[t * states + i];
      h[i] = before[t * group + i];
      g[i] = adjoint * decays[t * group + i];
      V through_decay = g[i] * h[i];
      to_rate += through_decay * decay_rate[i];
      sum_a[i] += through_decay * step;
    }
    inputs[t] = to_input;
    rates[t] = to_rate;
  }
#pragma GCC unroll 8
  for (int i = 0; i < group; ++i) carry[i] = g[i], da[i] = sum_a[i];
}

struct BackwardScratch {
  Parameters parameters;
  V *u, *d, *drive, *slope, *dy, *y, *inputs, *rates;  // (vectors, steps)
  V *carry, *da, *dweight, *dbias, *dskip;             // (vectors, states | rank | 1)
  V *decays, *before, *row_B, *row_C;                  // (states of a group, steps)
  float *B, *C, *dt, *dB, *dC, *ddt;                   // (steps, states | rank)
  Range range[kMaxVectors];

  BackwardScratch(const Problem& p, Arena& arena) : parameters(p, arena, kMaxVectors) {
    for (V** x : {&u, &d, &drive, &slope, &dy, &y, &inputs, &rates}) {
      *x = arena.take<V>(kMaxVectors * kT);
    }
    carry = arena.take<V>(kMaxVectors * p.states);
    da = arena.take<V>(kMaxVectors * p.states);
    dweight = arena.take<V>(kMaxVectors * p.rank);
    dbias = arena.take<V>(kMaxVectors);
    dskip = arena.take<V>(kMaxVectors);
    for (V** x : {&decays, &before, &row_B, &row_C}) *x = arena.take<V>(kBackwardStates * kT);
    for (float** x : {&B, &C, &dB, &dC}) *x = arena.take<float>(kT * p.states);
    dt = arena.take<float>(kT * p.rank);
    ddt = arena.take<float>(kT * p.rank);
  }
};

// Sums each row's lanes: to[t * width] for the steps of a chunk. Rows past `count` are scratch.
void write_sums(V* rows, int count, float* to, int64_t width) {
  for (int t = 0; t < count; t += kLanes) {
    sum_lanes(rows + t);
    int left = count - t < kLanes ? count - t : kLanes;
    for (int i = 0; i < left; ++i) to[(t + i) * width] = rows[t][i];
  }
}

void backward_states(const Problem& p, const Place& place, int count, int64_t chunk,
                     BackwardScratch& s) {
  for (int64_t n = 0; n < p.states;) {
    int group = n + kBackwardStates <= p.states ? kBackwardStates : 1;
    zero(s.row_B, group * kT);
    zero(s.row_C, group * kT);
    for (int v = 0; v < place.vectors; ++v) {
      const float* boundary = p.boundaries + place.boundary(p, chunk, v) + n * p.channels;
      int64_t w = v * kT, k = v * p.states + n;
      V* y = s.y + w;
#define SCAN_ARGUMENTS                                                                          \
  (count, p.states, s.parameters.a + k, s.d + w, s.drive + w, s.dy + w, s.B + n, s.C + n,      \
   boundary, p.channels, place.lanes[v], s.decays, s.before, y, s.carry + k, s.da + k,      \
   s.row_B, s.row_C, s.inputs + w, s.rates + w)
#define SCAN_CALL(range)                                          \
  if (group == 1 && p.z)                                          \
    retreat<1, range, true> SCAN_ARGUMENTS;                       \
  else if (group == 1)                                            \
    retreat<1, range, false> SCAN_ARGUMENTS;                      \
  else if (p.z)                                                   \
    retreat<kBackwardStates, range, true> SCAN_ARGUMENTS;         \
  else                                                            \
    retreat<kBackwardStates, range, false> SCAN_ARGUMENTS
      SCAN_WITH_RANGE(s.range[v], SCAN_CALL)
#undef SCAN_CALL
#undef SCAN_ARGUMENTS
    }
    for (int i = 0; i < group; ++i, ++n) {
      write_sums(s.row_B + i * kT, count, s.dB + n, p.states);
      write_sums(s.row_C + i * kT, count, s.dC + n, p.states);
    }
  }
}

void read_chunk(const Problem& p, const Place& place, const Positions& at, BackwardScratch& s) {
  copy_rows(p.B, p, place, at, p.states, s.B);
  copy_rows(p.C, p, place, at, p.states, s.C);
  if (p.dt) copy_rows(p.dt, p, place, at, p.rank, s.dt);
  for (int v = 0; v < place.vectors; ++v) {
    int64_t w = v * kT;
    s.range[v] = read_steps(p, place, at, s.parameters, v, s.dt, s.u + w, s.d + w, s.drive + w,
                            s.slope + w);
    for (int t = 0; t < at.count; ++t) {
      int64_t offset = place.at(p, at.own[t], v);
      V grad = load(p.dy + offset, place.lanes[v]);
      if (p.z) {
        V z = load(p.z + offset, place.lanes[v]);
        grad *= z * sigmoid(z);
        s.y[w + t] = s.parameters.skip[v] * s.u[w + t];
      }
      s.dy[w + t] = grad;
      s.inputs[w + t] = s.rates[w + t] = V{};
    }
  }
}

SCAN_INLINE void add_to(float* p, V x, int lanes) { store(p, load(p, lanes) + x, lanes); }

// From the sums over states to the gradients of the inputs; leaves the gradient of the step size
// before softplus in `rates`.
void write_chunk(const Problem& p, const Place& place, const Positions& at, int v,
                 BackwardScratch& s) {
  int lanes = place.lanes[v];
  int64_t w = v * kT;
  for (int t = 0; t < at.count; ++t) {
    int64_t offset = place.at(p, at.own[t], v);
    V dy = s.dy[w + t], u = s.u[w + t];
    V du = s.d[w + t] * s.inputs[w + t] + s.parameters.skip[v] * dy;
    V dstep = (s.rates[w + t] * kLn2 + u * s.inputs[w + t]) * s.slope[w + t];
    s.dskip[v] += dy * u;
    s.dbias[v] += dstep;
    s.rates[w + t] = dstep;
    if (p.ddelta) store(p.ddelta + offset, dstep, lanes);
    if (p.merged) {
      add_to(p.du + offset, du, lanes);
    } else {
      store(p.du + offset, du, lanes);
    }
    if (at.limbs && p.limb_gradient) {
      add_to(p.du + place.at(p, at.limb[t], v), du, lanes);
    }
    if (p.z) {
      V z = load(p.z + offset, lanes), gate = sigmoid(z);
      V slope = gate + z * gate * (1.0f - gate);
      store(p.dz + offset, load(p.dy + offset, lanes) * s.y[w + t] * slope, lanes);
    }
  }
}

// Gradients of the step projection: its input's is a sum over channels, its weight's over time.
void backward_projection(const Problem& p, const Place& place, int count, BackwardScratch& s) {
  for (int64_t r = 0; r < p.rank; ++r) {
    zero(s.row_B, kT);
    for (int v = 0; v < place.vectors; ++v) {
      V weight = s.parameters.weight[v * p.rank + r], sum = s.dweight[v * p.rank + r];
      const V* dstep = s.rates + v * kT;
      for (int t = 0; t < count; ++t) {
        s.row_B[t] += weight * dstep[t];
        sum += dstep[t] * s.dt[t * p.rank + r];
      }
      s.dweight[v * p.rank + r] = sum;
    }
    write_sums(s.row_B, count, s.ddt + r, p.rank);
  }
}

void wait_for(const Problem& p, const int64_t* counter, int64_t value) {
  while (__atomic_load_n(counter, __ATOMIC_ACQUIRE) < value) p.yield();
}

void add_rows(const Problem& p, const Place& place, const Positions& at, int64_t width,
              const float* from, float* to) {
  for (int t = 0; t < at.count; ++t) {
    float* row = to + place.step(p, at.own[t]) * width;
    const float* sums = from + t * width;
    if (place.block == 0) {
      memcpy(row, sums, width * sizeof(float));
    } else {
      for (int64_t i = 0; i < width; ++i) row[i] += sums[i];
    }
  }
}

// Gradients of a direction's parameters, added up over the batch.
void add_parameters(const Problem& p, const Place& place, BackwardScratch& s) {
  bool first = place.batch == 0;
  for (int v = 0; v < place.vectors; ++v) {
    int64_t row = place.parameter(p, v);
    auto add = [&](float* to, int64_t width, const V* from) {
      for (int64_t j = 0; to && j < width; ++j) {
        for (int i = 0; i < place.lanes[v]; ++i) {
          float* x = to + (row + i) * width + j;
          *x = first ? from[v * width + j][i] : *x + from[v * width + j][i];
        }
      }
    };
    add(p.dA, p.states, s.da);
    add(p.dweight, p.rank, s.dweight);
    add(p.dbias, 1, s.dbias);
    add(p.dD, 1, s.dskip);
  }
}

void backward(const Problem& p, int64_t task, void* scratch) {
  Arena arena(scratch);
  BackwardScratch s(p, arena);
  Place place(p, task);
  Positions at;
  // Tasks are numbered batch element (and direction) fastest: see Place.
  int64_t per_element = p.merged ? 1 : p.directions, per_block = p.batch * per_element;
  if (p.merged) {
    for (int64_t l = 0; l < p.length; ++l) {
      for (int v = 0; v < place.vectors; ++v) store(p.du + place.at(p, l, v), V{}, place.lanes[v]);
    }
  }
  int64_t chunks_done = 0;
  for (; place.direction < place.last_direction; ++place.direction) {
    int64_t states_of = place.batch * p.directions * p.channels;
    s.parameters.set(p, place);
    zero(s.da, place.vectors * p.states);
    zero(s.dweight, place.vectors * p.rank);
    zero(s.dbias, place.vectors);
    zero(s.dskip, place.vectors);
    for (int v = 0; v < place.vectors; ++v) {
      read_state(p, p.dlast, states_of + place.parameter(p, v), place.lanes[v],
                 s.carry + v * p.states);
    }
    for (int64_t chunk = p.chunks() - 1; chunk >= 0; --chunk) {
      at.set(p, place.direction, chunk);
      read_chunk(p, place, at, s);
      backward_states(p, place, at.count, chunk, s);
      for (int v = 0; v < place.vectors; ++v) write_chunk(p, place, at, v, s);
      if (p.dt) backward_projection(p, place, at.count, s);
      ++chunks_done;
      if (place.block > 0) wait_for(p, p.chunks_done + task - per_block, chunks_done);
      add_rows(p, place, at, p.states, s.dB, p.dB);
      add_rows(p, place, at, p.states, s.dC, p.dC);
      if (p.dt) add_rows(p, place, at, p.rank, s.ddt, p.ddt);
      __atomic_store_n(p.chunks_done + task, chunks_done, __ATOMIC_RELEASE);
    }
    for (int v = 0; v < place.vectors; ++v) {
      write_state(p, p.dinitial, states_of + place.parameter(p, v), place.lanes[v],
                  s.carry + v * p.states);
    }
    int64_t directions_done = place.direction - place.first_direction + 1;
    if (place.batch > 0) wait_for(p, p.directions_done + task - per_element, directions_done);
    add_parameters(p, place, s);
    __atomic_store_n(p.directions_done + task, directions_done, __ATOMIC_RELEASE);
  }
}

}  // namespace
}  // namespace selective_scan
