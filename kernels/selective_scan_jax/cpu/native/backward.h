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
//     g_t = C_t grad_y_t + e_{t+1} g_{t+1}
//     grad_C_t += grad_y_t h_t          grad_B_t += g_t d_t u_t     (sums over channels)
//     grad_du_t += g_t B_t              grad_d_t += g_t e_t h_{t-1} A
//     grad_A   += g_t e_t h_{t-1} d_t
//
// `rates` collects grad_d / ln(2), because a = A log2(e). With `gated`, y is collected as well.
template <int group, Range range, bool gated>
__attribute__((noinline)) void retreat(int count, int64_t states, const V* a, const V* d, const V* du, const V* grad_y,
             const float* B, const float* C, const float* boundary, int64_t boundary_stride,
             int lanes, V* decays, V* before, V* y, V* carry, V* grad_a, V* grad_B, V* grad_C,
             V* inputs, V* rates) {
  V h[group], g[group], decay_rate[group], sum_a[group];
#pragma GCC unroll 8
  for (int i = 0; i < group; ++i) {
    h[i] = load(boundary + i * boundary_stride, lanes);
    decay_rate[i] = a[i], g[i] = carry[i], sum_a[i] = grad_a[i];
  }
  for (int t = 0; t < count; ++t) {
    V step = d[t], input = du[t];
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
    V step = d[t], input = du[t], out = grad_y[t], to_input = inputs[t], to_rate = rates[t];
#pragma GCC unroll 8
    for (int i = 0; i < group; ++i) {
      V adjoint = g[i] + out * C[t * states + i];
      grad_C[i * kT + t] += out * h[i];
      grad_B[i * kT + t] += adjoint * input;
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
  for (int i = 0; i < group; ++i) carry[i] = g[i], grad_a[i] = sum_a[i];
}

struct BackwardScratch {
  Parameters parameters;
  V *u, *d, *du, *slope, *grad_y, *y, *inputs, *rates;      // (vectors, steps)
  V *carry, *grad_a, *grad_weight, *grad_bias, *grad_skip;  // (vectors, states | rank | 1)
  V *decays, *before, *row_B, *row_C;                       // (states of a group, steps)
  float *B, *C, *dt, *grad_B, *grad_C, *grad_dt;            // (steps, states | rank)
  Range range[kMaxVectors];

  BackwardScratch(const Problem& p, Arena& arena) : parameters(p, arena, kMaxVectors) {
    for (V** x : {&u, &d, &du, &slope, &grad_y, &y, &inputs, &rates}) {
      *x = arena.take<V>(kMaxVectors * kT);
    }
    carry = arena.take<V>(kMaxVectors * p.states);
    grad_a = arena.take<V>(kMaxVectors * p.states);
    grad_weight = arena.take<V>(kMaxVectors * p.rank);
    grad_bias = arena.take<V>(kMaxVectors);
    grad_skip = arena.take<V>(kMaxVectors);
    for (V** x : {&decays, &before, &row_B, &row_C}) *x = arena.take<V>(kBackwardStates * kT);
    for (float** x : {&B, &C, &grad_B, &grad_C}) *x = arena.take<float>(kT * p.states);
    dt = arena.take<float>(kT * p.rank);
    grad_dt = arena.take<float>(kT * p.rank);
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
  (count, p.states, s.parameters.a + k, s.d + w, s.du + w, s.grad_y + w, s.B + n, s.C + n,      \
   boundary, p.channels, place.lanes[v], s.decays, s.before, y, s.carry + k, s.grad_a + k,      \
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
      write_sums(s.row_B + i * kT, count, s.grad_B + n, p.states);
      write_sums(s.row_C + i * kT, count, s.grad_C + n, p.states);
    }
  }
}

void read_chunk(const Problem& p, const Place& place, const Positions& at, BackwardScratch& s) {
  copy_rows(p.B, p, place, at, p.states, s.B);
  copy_rows(p.C, p, place, at, p.states, s.C);
  if (p.dt) copy_rows(p.dt, p, place, at, p.rank, s.dt);
  for (int v = 0; v < place.vectors; ++v) {
    int64_t w = v * kT;
    s.range[v] = read_steps(p, place, at, s.parameters, v, s.dt, s.u + w, s.d + w, s.du + w,
                            s.slope + w);
    for (int t = 0; t < at.count; ++t) {
      int64_t offset = place.at(p, at.own[t], v);
      V grad = load(p.grad_y + offset, place.lanes[v]);
      if (p.z) {
        V z = load(p.z + offset, place.lanes[v]);
        grad *= z * sigmoid(z);
        s.y[w + t] = s.parameters.skip[v] * s.u[w + t];
      }
      s.grad_y[w + t] = grad;
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
    V grad_y = s.grad_y[w + t], u = s.u[w + t];
    V grad_u = s.d[w + t] * s.inputs[w + t] + s.parameters.skip[v] * grad_y;
    V grad_step = (s.rates[w + t] * kLn2 + u * s.inputs[w + t]) * s.slope[w + t];
    s.grad_skip[v] += grad_y * u;
    s.grad_bias[v] += grad_step;
    s.rates[w + t] = grad_step;
    if (p.grad_delta) store(p.grad_delta + offset, grad_step, lanes);
    if (p.merged) {
      add_to(p.grad_u + offset, grad_u, lanes);
    } else {
      store(p.grad_u + offset, grad_u, lanes);
    }
    if (at.limbs && p.limb_gradient) {
      add_to(p.grad_u + place.at(p, at.limb[t], v), grad_u, lanes);
    }
    if (p.z) {
      V z = load(p.z + offset, lanes), gate = sigmoid(z);
      V slope = gate + z * gate * (1.0f - gate);
      store(p.grad_z + offset, load(p.grad_y + offset, lanes) * s.y[w + t] * slope, lanes);
    }
  }
}

// Gradients of the step projection: its input's is a sum over channels, its weight's over time.
void backward_projection(const Problem& p, const Place& place, int count, BackwardScratch& s) {
  for (int64_t r = 0; r < p.rank; ++r) {
    zero(s.row_B, kT);
    for (int v = 0; v < place.vectors; ++v) {
      V weight = s.parameters.weight[v * p.rank + r], sum = s.grad_weight[v * p.rank + r];
      const V* grad_step = s.rates + v * kT;
      for (int t = 0; t < count; ++t) {
        s.row_B[t] += weight * grad_step[t];
        sum += grad_step[t] * s.dt[t * p.rank + r];
      }
      s.grad_weight[v * p.rank + r] = sum;
    }
    write_sums(s.row_B, count, s.grad_dt + r, p.rank);
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

// Gradients of a stream's parameters, added up over the batch.
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
    add(p.grad_A, p.states, s.grad_a);
    add(p.grad_weight, p.rank, s.grad_weight);
    add(p.grad_bias, 1, s.grad_bias);
    add(p.grad_D, 1, s.grad_skip);
  }
}

void backward(const Problem& p, int64_t task, void* scratch) {
  Arena arena(scratch);
  BackwardScratch s(p, arena);
  Place place(p, task);
  Positions at;
  // Tasks are numbered batch element (and stream) fastest: see Place.
  int64_t per_element = p.merged ? 1 : p.streams, per_block = p.batch * per_element;
  if (p.merged) {
    for (int64_t l = 0; l < p.length; ++l) {
      for (int v = 0; v < place.vectors; ++v) store(p.grad_u + place.at(p, l, v), V{}, place.lanes[v]);
    }
  }
  int64_t chunks_done = 0;
  for (; place.stream < place.last_stream; ++place.stream) {
    int64_t states_of = place.batch * p.streams * p.channels;
    s.parameters.set(p, place);
    zero(s.grad_a, place.vectors * p.states);
    zero(s.grad_weight, place.vectors * p.rank);
    zero(s.grad_bias, place.vectors);
    zero(s.grad_skip, place.vectors);
    for (int v = 0; v < place.vectors; ++v) {
      read_state(p, p.grad_last, states_of + place.parameter(p, v), place.lanes[v],
                 s.carry + v * p.states);
    }
    for (int64_t chunk = p.chunks() - 1; chunk >= 0; --chunk) {
      at.set(p, place.stream, chunk);
      read_chunk(p, place, at, s);
      backward_states(p, place, at.count, chunk, s);
      for (int v = 0; v < place.vectors; ++v) write_chunk(p, place, at, v, s);
      if (p.dt) backward_projection(p, place, at.count, s);
      ++chunks_done;
      if (place.block > 0) wait_for(p, p.chunks_done + task - per_block, chunks_done);
      add_rows(p, place, at, p.states, s.grad_B, p.grad_B);
      add_rows(p, place, at, p.states, s.grad_C, p.grad_C);
      if (p.dt) add_rows(p, place, at, p.rank, s.grad_dt, p.grad_dt);
      __atomic_store_n(p.chunks_done + task, chunks_done, __ATOMIC_RELEASE);
    }
    for (int v = 0; v < place.vectors; ++v) {
      write_state(p, p.grad_initial, states_of + place.parameter(p, v), place.lanes[v],
                  s.carry + v * p.states);
    }
    int64_t streams_done = place.stream - place.first_stream + 1;
    if (place.batch > 0) wait_for(p, p.streams_done + task - per_element, streams_done);
    add_parameters(p, place, s);
    __atomic_store_n(p.streams_done + task, streams_done, __ATOMIC_RELEASE);
  }
}

}  // namespace
}  // namespace selective_scan
