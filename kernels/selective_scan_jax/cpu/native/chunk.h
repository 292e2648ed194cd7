// What forward and backward share: where a task is, its scratch memory, and the inputs of a chunk,
// gathered from their grid positions with channels in lanes.
#pragma once

#include "scan.h"
#include "vector.h"

namespace selective_scan {
namespace {

constexpr int kT = kChunk;
constexpr int kMaxVectors = kMaxBlock / kLanes;
constexpr float kLog2E = 1.44269504f;

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

// Where a task is: a block of channels of one batch element, and the direction it is working on.
struct Place {
  int64_t batch, block, direction, first_channel;
  int vectors, first_direction, last_direction;
  int lanes[kMaxBlock / kLanes];

  Place(const Problem& p, int64_t task) {
    if (p.merged) {
      first_direction = 0, last_direction = p.directions;
    } else {
      first_direction = task % p.directions, last_direction = first_direction + 1;
      task /= p.directions;
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
    direction = first_direction;
  }

  int64_t channel(int v) const { return first_channel + v * kLanes; }
  // Offsets of channel(v): in an array like u at a grid position, in one of the parameters, and in
  // the boundary state of a chunk.
  int64_t at(const Problem& p, int64_t position, int v) const {
    int64_t row = p.merged ? p.channels : p.directions * p.channels;
    return (batch * p.length + position) * row + (p.merged ? 0 : direction * p.channels) + channel(v);
  }
  int64_t parameter(const Problem& p, int v) const { return direction * p.channels + channel(v); }
  int64_t step(const Problem& p, int64_t position) const {
    return (batch * p.length + position) * p.directions + direction;
  }
  int64_t boundary(const Problem& p, int64_t chunk, int v) const {
    return ((batch * p.directions + direction) * p.chunks() + chunk) * p.states * p.channels + channel(v);
  }
};

// The grid positions of a chunk, and where the limb term of each comes from.
struct Positions {
  int32_t own[kT], limb[kT];
  int count = 0;
  bool limbs;

  void set(const Problem& p, int64_t direction, int64_t chunk) {
    int64_t begin = chunk * kT, left = p.length - begin;
    count = left < 0 ? 0 : left < kT ? left : kT;
    limbs = p.takes_limbs && p.takes_limbs[direction];
    const Path& path = p.paths[direction];
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

// The parameters of a direction, channels in lanes.
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

// Rows of an array (batch, length, directions, width) at the positions of a chunk.
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
                 int v, const float* dt, V* u, V* d, V* drive, V* slope) {
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
    drive[t] = step * u[t];
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

// Expands `call` with the range as a constant.
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

}  // namespace
}  // namespace selective_scan
