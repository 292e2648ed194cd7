// The selective scan on vector registers of channels, forward and backward.
//
// Compiled once per instruction set, with SCAN_LEVEL its name and SCAN_LANES the floats in a
// register. A task takes a block of channels of one batch element along its whole path, in chunks of
// kChunk steps. For each chunk it gathers the inputs from their grid positions into scratch memory
// that fits the cache, a register's worth of channels at a time, runs the recurrence with a few
// states in registers and time innermost, and puts the outputs back to their positions.

#include "cpu_scan.h"

#include "cpu_vector.h"

namespace selective_scan {
namespace {

constexpr int kT = kChunk;
constexpr int kForwardStates = 4;   // states in registers at a time, forward
constexpr int kBackwardStates = 2;  // and backward
constexpr int kMaxVectors = kMaxBlock / kLanes;
constexpr float kLog2E = 1.44269504f;
constexpr float kLn2 = 0.693147181f;

// Hands out aligned pieces of a task's scratch memory; with no memory, only counts them.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}
  template <typename T>
  T* take(int64_t count) {
    T* piece = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  char* memory_;
  size_t used_ = 0;
};

// Where a task is: a block of channels of one batch element, and the stream it is working on.
struct Place {
  int64_t batch, block, stream, first_channel;
  int vectors, first_stream, last_stream;
  int lanes[kMaxBlock / kLanes];

  Place(const Problem& p, int64_t task) {
    if (p.merged) {
      first_stream = 0, last_stream = p.streams;
    } else {
      first_stream = task % p.streams, last_stream = first_stream + 1;
      task /= p.streams;
    }
    batch = task % p.batch;
    block = task / p.batch;
    first_channel = block * p.block;
    int64_t count = p.channels - first_channel;
    count = count < p.block ? count : p.block;
    vectors = (count + kLanes - 1) / kLanes;
    for (int v = 0; v < vectors; ++v) {
      int64_t left = count - v * kLanes;
      lanes[v] = left < kLanes ? left : kLanes;
    }
    stream = first_stream;
  }

  int64_t channel(int v) const { return first_channel + v * kLanes; }
  // Offsets of channel(v): in an array like u at a grid position, in one of the parameters, and in
  // the boundary state of a chunk.
  int64_t at(const Problem& p, int64_t position, int v) const {
    int64_t row = p.merged ? p.channels : p.streams * p.channels;
    return (batch * p.length + position) * row + (p.merged ? 0 : stream * p.channels) + channel(v);
  }
  int64_t parameter(const Problem& p, int v) const { return stream * p.channels + channel(v); }
  int64_t step(const Problem& p, int64_t position) const {
    return (batch * p.length + position) * p.streams + stream;
  }
  int64_t boundary(const Problem& p, int64_t chunk, int v) const {
    return ((batch * p.streams + stream) * p.chunks() + chunk) * p.states * p.channels + channel(v);
  }
};

// The grid positions of a chunk, and where the limb term of each comes from.
struct Positions {
  int32_t own[kT], limb[kT];
  int count = 0;
  bool limbs;

  void set(const Problem& p, int64_t stream, int64_t chunk) {
    int64_t begin = chunk * kT, left = p.length - begin;
    count = left < 0 ? 0 : left < kT ? left : kT;
    limbs = p.takes_limbs && p.takes_limbs[stream];
    const Path& path = p.paths[stream];
    int64_t outer = begin / path.inner, inner = begin % path.inner;
    for (int t = 0; t < count; ++t) {
      own[t] = path.start + outer * path.outer_stride + inner * path.inner_stride;
      if (++inner == path.inner) inner = 0, ++outer;
    }
    uint32_t joints = p.joints;
    for (int t = 0; limbs && t < count; ++t) {
      uint32_t joint = static_cast<uint32_t>(own[t]) % joints;
      limb[t] = own[t] - static_cast<int32_t>(joint) + static_cast<int32_t>(p.limb_walk[joint]);
    }
  }
};

// The parameters of a stream, channels in lanes.
struct Parameters {
  V *a, *weight, *bias, *skip;  // a = A log2(e), (vectors, states); weight (vectors, rank)
  V *largest_a, *most_a;        // per vector: the largest |a| and the largest a over the states

  Parameters(const Problem& p, Arena& arena, int64_t vectors)
      : a(arena.take<V>(vectors * p.states)),
        weight(arena.take<V>(vectors * p.rank)),
        bias(arena.take<V>(vectors)),
        skip(arena.take<V>(vectors)),
        largest_a(arena.take<V>(vectors)),
        most_a(arena.take<V>(vectors)) {}

  void set(const Problem& p, const Place& place) {
    for (int v = 0; v < place.vectors; ++v) {
      int64_t first = place.parameter(p, v);
      int lanes = place.lanes[v];
      largest_a[v] = most_a[v] = V{};
      for (int64_t n = 0; n < p.states; ++n) {
        V x = {};
        for (int i = 0; i < lanes; ++i) x[i] = p.A[(first + i) * p.states + n] * kLog2E;
        a[v * p.states + n] = x;
        // Written so that a NaN is kept.
        largest_a[v] = abs(x) <= largest_a[v] ? largest_a[v] : abs(x);
        most_a[v] = x <= most_a[v] ? most_a[v] : x;
      }
      for (int64_t r = 0; r < p.rank; ++r) {
        V x = {};
        for (int i = 0; i < lanes; ++i) x[i] = p.weight[(first + i) * p.rank + r];
        weight[v * p.rank + r] = x;
      }
      bias[v] = p.bias ? load(p.bias + first, lanes) : V{};
      skip[v] = p.D ? load(p.D + first, lanes) : V{};
    }
  }
};

// Rows of an array (batch, length, streams, width) at the positions of a chunk.
void copy_rows(const float* from, const Problem& p, const Place& place, const Positions& at,
               int64_t width, float* to) {
  for (int t = 0; t < at.count; ++t, to += width) {
    const float* row = from + place.step(p, at.own[t]) * width;
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) store(to + i, load(row + i, kLanes), kLanes);
    for (; i < width; ++i) to[i] = row[i];
  }
}

// d[t] += `group` terms of weight . dt[t].
template <int group>
void project(int count, int64_t rank, const V* weight, const float* dt, V* d) {
  V w[group];
#pragma GCC unroll 8
  for (int r = 0; r < group; ++r) w[r] = weight[r];
  for (int t = 0; t < count; ++t, dt += rank) {
    V sum = d[t];
#pragma GCC unroll 8
    for (int r = 0; r < group; ++r) sum += w[r] * dt[r];
    d[t] = sum;
  }
}

// Reads the inputs of one vector of channels over a chunk: u with its limb term, the step size d,
// d u, and (if wanted) the derivative of the step size; `dt` has the chunk's rows. Returns the
// range of d a.
Range read_steps(const Problem& p, const Place& place, const Positions& at, const Parameters& w,
                 int v, const float* dt, V* u, V* d, V* du, V* slope) {
  int lanes = place.lanes[v], count = at.count;
  for (int t = 0; t < count; ++t) u[t] = load(p.u + place.at(p, at.own[t], v), lanes);
  for (int t = 0; at.limbs && t < count; ++t) {
    u[t] += load(p.u + place.at(p, at.limb[t], v), lanes);
  }
  V bias = w.bias[v];
  if (p.delta) {
    for (int t = 0; t < count; ++t) {
      d[t] = bias + load(p.delta + place.at(p, at.own[t], v), lanes);
    }
  } else {
    const V* weight = w.weight + v * p.rank;
    for (int t = 0; t < count; ++t) d[t] = bias;
    int64_t r = 0;
    for (; r + 4 <= p.rank; r += 4) project<4>(count, p.rank, weight + r, dt + r, d);
    for (; r < p.rank; ++r) project<1>(count, p.rank, weight + r, dt + r, d);
  }
  if (slope) {
    for (int t = 0; t < count; ++t) slope[t] = p.softplus ? sigmoid(d[t]) : splat(1.0f);
  }
  if (p.softplus) {
    for (int t = 0; t < count; ++t) d[t] = softplus(d[t]);
  }
  // Comparisons are written so that a NaN is kept.
  V largest = {}, least = {};
  for (int t = 0; t < count; ++t) {
    V step = d[t];
    du[t] = step * u[t];
    largest = abs(step) <= largest ? largest : abs(step);
    least = step >= least ? least : step;
  }
  bool bounded = true, non_positive = true;
  V product = largest * w.largest_a[v];
  for (int i = 0; i < lanes; ++i) {
    bounded &= product[i] < 125.0f;
    non_positive &= least[i] >= 0.0f && largest[i] < 3e38f && w.most_a[v][i] <= 0.0f &&
                    w.largest_a[v][i] < 3e38f;
  }
  return bounded ? kBounded : non_positive ? kNonPositive : kAny;
}

V* zero(V* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) x[i] = V{};
  return x;
}

// Runs `count` states (`group` is a compile-time number of them, the rest one by one) through a
// function that is called with the range as a constant.
#define SCAN_WITH_RANGE(range, call)          \
  switch (range) {                            \
    case kBounded:                            \
      call(kBounded);                         \
      break;                                  \
    case kNonPositive:                        \
      call(kNonPositive);                     \
      break;                                  \
    default:                                  \
      call(kAny);                             \
  }

// ---- forward

// y[t] += sum over `group` states; B and C are (steps, states).
template <int group, Range range>
void advance(int count, int64_t states, const V* a, const V* d, const V* du, const float* B,
             const float* C, V* state, V* y) {
  V h[group], decay_rate[group];
#pragma GCC unroll 8
  for (int i = 0; i < group; ++i) h[i] = state[i], decay_rate[i] = a[i];
  for (int t = 0; t < count; ++t, B += states, C += states) {
    V step = d[t], input = du[t], out = y[t];
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
  V *state, *u, *d, *du, *y;
  float *B, *C, *dt;

  ForwardScratch(const Problem& p, Arena& arena)
      : parameters(p, arena, kMaxVectors),
        state(arena.take<V>(kMaxVectors * p.states)),
        u(arena.take<V>(kT)),
        d(arena.take<V>(kT)),
        du(arena.take<V>(kT)),
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
  Range range = read_steps(p, place, at, s.parameters, v, s.dt, s.u, s.d, s.du, nullptr);
  for (int t = 0; t < at.count; ++t) s.y[t] = s.parameters.skip[v] * s.u[t];
  int64_t n = 0;
#define SCAN_CALL(range)                                                                       \
  for (; n + kForwardStates <= p.states; n += kForwardStates)                                  \
    advance<kForwardStates, range>(at.count, p.states, a + n, s.d, s.du, s.B + n, s.C + n,     \
                                   state + n, s.y);                                            \
  for (; n < p.states; ++n)                                                                    \
    advance<1, range>(at.count, p.states, a + n, s.d, s.du, s.B + n, s.C + n, state + n, s.y);
  SCAN_WITH_RANGE(range, SCAN_CALL)
#undef SCAN_CALL
  bool add = place.stream > place.first_stream;
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

// initial (channels, states) to state (states), channels in lanes; zeros without it.
void read_state(const Problem& p, const float* from, int64_t offset, int lanes, V* state) {
  for (int64_t n = 0; n < p.states; ++n) {
    state[n] = V{};
    for (int i = 0; from && i < lanes; ++i) state[n][i] = from[(offset + i) * p.states + n];
  }
}

void write_state(const Problem& p, float* to, int64_t offset, int lanes, const V* state) {
  for (int64_t n = 0; to && n < p.states; ++n) {
    for (int i = 0; i < lanes; ++i) to[(offset + i) * p.states + n] = state[n][i];
  }
}

void forward(const Problem& p, int64_t task, void* scratch) {
  Arena arena(scratch);
  ForwardScratch s(p, arena);
  Place place(p, task);
  Positions at;
  for (; place.stream < place.last_stream; ++place.stream) {
    s.parameters.set(p, place);
    int64_t states_of = place.batch * p.streams * p.channels;
    for (int v = 0; v < place.vectors; ++v) {
      read_state(p, p.initial, states_of + place.parameter(p, v), place.lanes[v],
                 s.state + v * p.states);
    }
    for (int64_t chunk = 0; chunk < p.chunks(); ++chunk) {
      at.set(p, place.stream, chunk);
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

// ---- backward

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
void retreat(int count, int64_t states, const V* a, const V* d, const V* du, const V* grad_y,
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

// ---- what the handlers see

size_t scratch_bytes(const Problem& p) {
  Arena forward_arena(nullptr), backward_arena(nullptr);
  ForwardScratch forward_scratch(p, forward_arena);
  BackwardScratch backward_scratch(p, backward_arena);
  size_t f = forward_arena.used(), b = backward_arena.used();
  return f > b ? f : b;
}

// 2^x for tests, by the version for |x| < 125 and by the one for any x.
void exp2_all(const float* x, float* bounded, float* full, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    int lanes = count - i < kLanes ? count - i : kLanes;
    V value = load(x + i, lanes);
    store(bounded + i, exp2_product<kBounded>(value, splat(1.0f)), lanes);
    store(full + i, exp2_product<kAny>(value, splat(1.0f)), lanes);
  }
}

}  // namespace

#define SCAN_PASTE(a, b) a##b
#define SCAN_NAME(level) SCAN_PASTE(level_, level)
#define SCAN_QUOTE(x) #x
#define SCAN_STRING(x) SCAN_QUOTE(x)

extern const Level SCAN_NAME(SCAN_LEVEL);
const Level SCAN_NAME(SCAN_LEVEL) = {SCAN_STRING(SCAN_LEVEL), scratch_bytes, forward, backward,
                                     exp2_all};

}  // namespace selective_scan
