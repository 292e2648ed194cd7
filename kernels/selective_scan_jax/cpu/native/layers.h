// What a block computes around its scan, in one pass over memory each way: the layer norm, with or
// without a gate, the depthwise convolution with SiLU, and GELU.
//
// A task takes a stretch of rows or frames. Gradients of parameters are sums over all of them: each
// task writes its own into `partial`, and the caller adds those up in the order of the tasks, so
// that results do not depend on the number of threads.
#pragma once

#include "scan.h"
#include "vector.h"

namespace selective_scan {
namespace {

SCAN_INLINE V silu(V x) { return x * sigmoid(x); }

// The derivative of SiLU at x, whose sigmoid is s.
SCAN_INLINE V silu_slope(V x, V s) { return s + x * s * (1.0f - s); }

// The probability that a normal variable is below x, and its density there divided by
// 1/sqrt(2 pi). With t = 1 / (1 + 0.4 |x| / sqrt(2)), erfc(|x| / sqrt(2)) exp(x^2 / 2) is t times a
// polynomial in t, minimax in relative error; in float32 it is within 4e-7.
struct Normal {
  V below, density;
};

SCAN_INLINE Normal normal(V x) {
  V distance = abs(x) * 0.70710678f;
  distance = distance > 16.0f ? splat(16.0f) : distance;
  V t = 1.0f / (1.0f + 0.4f * distance);
  V p = splat(-0.02959391f);
  p = p * t + 0.19801067f;
  p = p * t - 0.49880502f;
  p = p * t + 0.54742621f;
  p = p * t - 0.28435855f;
  p = p * t + 0.27206164f;
  p = p * t + 0.12968126f;
  p = p * t + 0.21491873f;
  p = p * t + 0.22495207f;
  p = p * t + 0.22570691f;
  V density = exp_minus_abs(distance * distance);
  V tail = 0.5f * p * t * density;
  return {x > 0.0f ? 1.0f - tail : tail, density};
}

// A stretch of rows of `width`, each cut into vectors; the last vector may be shorter.
struct Stretch {
  int64_t first, last, vectors;
  int tail;  // lanes of a row's last vector

  Stretch(const Layer& p, int64_t task)
      : first(task * kLayerRows),
        last(first + kLayerRows < p.rows ? first + kLayerRows : p.rows),
        vectors((p.width + kLanes - 1) / kLanes),
        tail(static_cast<int>(p.width - (vectors - 1) * kLanes)) {}
  int lanes(int64_t v) const { return v + 1 < vectors ? kLanes : tail; }
};

// Mean and 1 / standard deviation of up to kLanes rows, row i in lane i.
struct Moments {
  V mean, scale;
};

Moments moments(const Layer& p, const Stretch& s, const float* x, int rows) {
  V sums[kLanes] = {};
  float per_channel = 1.0f / static_cast<float>(p.width);
  for (int i = 0; i < rows; ++i) {
    for (int64_t v = 0; v < s.vectors; ++v) {
      sums[i] += load(x + i * p.width + v * kLanes, s.lanes(v));
    }
  }
  sum_lanes(sums);
  V mean = sums[0] * per_channel;
  for (int i = 0; i < kLanes; ++i) sums[i] = V{};
  for (int i = 0; i < rows; ++i) {
    V middle = splat(mean[i]);
    for (int64_t v = 0; v + 1 < s.vectors; ++v) {
      V deviation = load(x + i * p.width + v * kLanes, kLanes) - middle;
      sums[i] += deviation * deviation;
    }
    // Lanes past the end of the row are not the mean away from it.
    const float* end = x + i * p.width + (s.vectors - 1) * kLanes;
    V deviation = load(end, s.tail) - middle;
    for (int lane = s.tail; lane < kLanes; ++lane) deviation[lane] = 0.0f;
    sums[i] += deviation * deviation;
  }
  sum_lanes(sums);
  V variance = sums[0] * per_channel + p.eps, scale = {};
  for (int i = 0; i < rows; ++i) scale[i] = 1.0f / __builtin_sqrtf(variance[i]);
  return {mean, scale};
}

void norm_forward(const Layer& p, int64_t task, void*) {
  Stretch s(p, task);
  for (int64_t row = s.first; row < s.last; row += kLanes) {
    int rows = static_cast<int>(s.last - row < kLanes ? s.last - row : kLanes);
    const float* x = p.x + row * p.width;
    Moments m = moments(p, s, x, rows);
    for (int i = 0; i < rows; ++i) {
      V mean = splat(m.mean[i]), scale = splat(m.scale[i]);
      for (int64_t v = 0; v < s.vectors; ++v) {
        int lanes = s.lanes(v);
        int64_t channel = v * kLanes, at = (row + i) * p.width + channel;
        V y = (load(p.x + at, lanes) - mean) * scale * load(p.scale + channel, lanes) +
              load(p.bias + channel, lanes);
        if (p.z) y *= silu(load(p.z + at, lanes));
        store(p.y + at, y, lanes);
      }
    }
  }
}

// With n = (x - mean) / deviation, g the gradient by the norm's output and h = g scale:
//
//     dx = (h - mean(h) - n mean(h n)) / deviation,   dscale = sum(g n),   dbias = sum(g)
//
// where a gate y = (n scale + bias) silu(z) gives g = dy silu(z), dz = dy (n scale + bias) silu'(z).
void norm_backward(const Layer& p, int64_t task, void* memory) {
  Stretch s(p, task);
  V* dscale = static_cast<V*>(memory);
  V *dbias = dscale + s.vectors, *towards = dbias + s.vectors;  // towards: h of the rows in hand
  for (int64_t v = 0; v < 2 * s.vectors; ++v) dscale[v] = V{};
  float per_channel = 1.0f / static_cast<float>(p.width);
  for (int64_t row = s.first; row < s.last; row += kLanes) {
    int rows = static_cast<int>(s.last - row < kLanes ? s.last - row : kLanes);
    Moments m = moments(p, s, p.x + row * p.width, rows);
    V sum_h[kLanes] = {}, sum_hn[kLanes] = {};
    for (int i = 0; i < rows; ++i) {
      V mean = splat(m.mean[i]), inverse = splat(m.scale[i]);
      V sum = {}, product = {};
      for (int64_t v = 0; v < s.vectors; ++v) {
        int lanes = s.lanes(v);
        int64_t channel = v * kLanes, at = (row + i) * p.width + channel;
        V n = (load(p.x + at, lanes) - mean) * inverse, g = load(p.dy + at, lanes);
        V scale = load(p.scale + channel, lanes);
        if (p.z) {
          V z = load(p.z + at, lanes), open = sigmoid(z);
          V y = n * scale + load(p.bias + channel, lanes);
          store(p.dz + at, g * y * silu_slope(z, open), lanes);
          g *= z * open;
        }
        dscale[v] += g * n;
        dbias[v] += g;
        // Zero in the lanes past the end, as g and the scale are.
        V h = g * scale;
        towards[i * s.vectors + v] = h;
        sum += h;
        product += h * n;
      }
      sum_h[i] = sum, sum_hn[i] = product;
    }
    sum_lanes(sum_h);
    sum_lanes(sum_hn);
    for (int i = 0; i < rows; ++i) {
      V mean = splat(m.mean[i]), inverse = splat(m.scale[i]);
      V mean_h = splat(sum_h[0][i] * per_channel), mean_hn = splat(sum_hn[0][i] * per_channel);
      for (int64_t v = 0; v < s.vectors; ++v) {
        int lanes = s.lanes(v);
        int64_t at = (row + i) * p.width + v * kLanes;
        V n = (load(p.x + at, lanes) - mean) * inverse;
        store(p.dx + at, (towards[i * s.vectors + v] - mean_h - n * mean_hn) * inverse, lanes);
      }
    }
  }
  float* out = p.partial + task * 2 * p.width;
  for (int64_t v = 0; v < s.vectors; ++v) {
    store(out + v * kLanes, dscale[v], s.lanes(v));
    store(out + p.width + v * kLanes, dbias[v], s.lanes(v));
  }
}

// Calls use(at, lanes) for the vectors of a task's rows, laid end to end.
template <typename Use>
SCAN_INLINE void each_vector(const Layer& p, int64_t task, const Use& use) {
  int64_t begin = task * kLayerRows * p.width, end = begin + kLayerRows * p.width;
  if (end > p.rows * p.width) end = p.rows * p.width;
  for (int64_t at = begin; at < end; at += kLanes) {
    use(at, static_cast<int>(end - at < kLanes ? end - at : kLanes));
  }
}

void gelu_forward(const Layer& p, int64_t task, void*) {
  each_vector(p, task, [&](int64_t at, int lanes) {
    V x = load(p.x + at, lanes);
    store(p.y + at, x * normal(x).below, lanes);
  });
}

void gelu_backward(const Layer& p, int64_t task, void*) {
  each_vector(p, task, [&](int64_t at, int lanes) {
    V x = load(p.x + at, lanes);
    Normal n = normal(x);
    store(p.dx + at, load(p.dy + at, lanes) * (n.below + x * n.density * 0.39894228f), lanes);
  });
}

// A stretch of frames of one clip.
struct Frames {
  int64_t clip, first, last;

  Frames(const Layer& p, int64_t task) {
    int64_t per_clip = (p.frames + kLayerFrames - 1) / kLayerFrames;
    clip = task / per_clip;
    first = task % per_clip * kLayerFrames;
    last = first + kLayerFrames < p.frames ? first + kLayerFrames : p.frames;
  }
};

// Rows of three neighbouring frames at one vector of channels; zeros outside of the clip.
struct Neighbours {
  const float* row[3];
  int64_t step[3];
  int lanes;

  Neighbours(const Layer& p, int64_t clip, int64_t frame, int64_t channel, int lanes)
      : lanes(lanes) {
    alignas(64) static const float zeros[kLanes] = {};
    for (int i = 0; i < 3; ++i) {
      int64_t at = frame + i - 1;
      bool inside = at >= 0 && at < p.frames;
      row[i] = inside ? p.x + (clip * p.frames + at) * p.joints * p.width + channel : zeros;
      step[i] = inside ? p.width : 0;
    }
  }
  SCAN_INLINE V operator()(int i, int64_t joint) const {
    return load(row[i] + joint * step[i], lanes);
  }
};

// Moves a window of 3 x 3 positions along the joints of a frame: use(joint, window) for each, with
// window[3 * frame + joint] of the neighbours, zero beyond the first and the last joint.
template <typename Read, typename Use>
SCAN_INLINE void slide(int64_t joints, const Read& read, const Use& use) {
  V window[9];
  for (int i = 0; i < 3; ++i) window[3 * i + 1] = V{}, window[3 * i + 2] = read(i, 0);
  for (int64_t j = 0; j < joints; ++j) {
    for (int i = 0; i < 3; ++i) {
      window[3 * i] = window[3 * i + 1];
      window[3 * i + 1] = window[3 * i + 2];
      window[3 * i + 2] = j + 1 < joints ? read(i, j + 1) : V{};
    }
    use(j, window);
  }
}

// The nine weights of one vector of channels.
struct Filter {
  V weight[9], bias;

  Filter(const Layer& p, int64_t channel, int lanes) {
    for (int i = 0; i < 9; ++i) weight[i] = load(p.scale + i * p.width + channel, lanes);
    bias = load(p.bias + channel, lanes);
  }
  SCAN_INLINE V operator()(const V* window) const {
    V sum = bias;
#pragma GCC unroll 9
    for (int i = 0; i < 9; ++i) sum += window[i] * weight[i];
    return sum;
  }
};

void conv_forward(const Layer& p, int64_t task, void*) {
  Frames s(p, task);
  for (int64_t channel = 0; channel < p.width; channel += kLanes) {
    int lanes = static_cast<int>(p.width - channel < kLanes ? p.width - channel : kLanes);
    Filter filter(p, channel, lanes);
    for (int64_t frame = s.first; frame < s.last; ++frame) {
      float* y = p.y + (s.clip * p.frames + frame) * p.joints * p.width + channel;
      slide(p.joints, Neighbours(p, s.clip, frame, channel, lanes),
            [&](int64_t j, const V* window) { store(y + j * p.width, silu(filter(window)), lanes); });
    }
  }
}

// The convolution is computed again, so that its output need not be kept. The gradient before the
// SiLU of the stretch's frames, and of one frame on either side, is held in `memory`; the gradient
// by x is its convolution with the filter turned around.
void conv_backward(const Layer& p, int64_t task, void* memory) {
  Frames s(p, task);
  V* inner = static_cast<V*>(memory);  // (frames and two more, joints)
  for (int64_t channel = 0; channel < p.width; channel += kLanes) {
    int lanes = static_cast<int>(p.width - channel < kLanes ? p.width - channel : kLanes);
    Filter filter(p, channel, lanes), turned = filter;
    turned.bias = V{};
    for (int i = 0; i < 9; ++i) turned.weight[i] = filter.weight[8 - i];
    V dweight[9] = {}, dbias = {};
    for (int64_t frame = s.first - 1; frame <= s.last; ++frame) {
      V* out = inner + (frame - s.first + 1) * p.joints;
      if (frame < 0 || frame >= p.frames) {
        for (int64_t j = 0; j < p.joints; ++j) out[j] = V{};
        continue;
      }
      const float* dy = p.dy + (s.clip * p.frames + frame) * p.joints * p.width + channel;
      bool own = frame >= s.first && frame < s.last;
      slide(p.joints, Neighbours(p, s.clip, frame, channel, lanes),
            [&](int64_t j, const V* window) {
              V x = filter(window);
              V grad = load(dy + j * p.width, lanes) * silu_slope(x, sigmoid(x));
              out[j] = grad;
              if (!own) return;
              dbias += grad;
              for (int i = 0; i < 9; ++i) dweight[i] += grad * window[i];
            });
    }
    for (int64_t frame = s.first; frame < s.last; ++frame) {
      float* dx = p.dx + (s.clip * p.frames + frame) * p.joints * p.width + channel;
      const V* rows = inner + (frame - s.first) * p.joints;
      slide(p.joints, [&](int i, int64_t j) { return rows[i * p.joints + j]; },
            [&](int64_t j, const V* window) { store(dx + j * p.width, turned(window), lanes); });
    }
    float* out = p.partial + task * 10 * p.width + channel;
    for (int i = 0; i < 9; ++i) store(out + i * p.width, dweight[i], lanes);
    store(out + 9 * p.width, dbias, lanes);
  }
}

size_t layer_scratch_bytes(const Layer& p) {
  int64_t vectors = (p.width + kLanes - 1) / kLanes;
  int64_t norm = (2 + kLanes) * vectors, conv = (kLayerFrames + 2) * p.joints;
  return (norm > conv ? norm : conv) * sizeof(V);
}

}  // namespace
}  // namespace selective_scan
