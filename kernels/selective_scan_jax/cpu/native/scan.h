// What the XLA handlers (ffi.cc) and the kernels (scan.cc, compiled once per instruction
// set) agree on.
#pragma once

#include <cstddef>
#include <cstdint>

namespace selective_scan {

// Steps between the states that the forward pass keeps for the backward pass.
constexpr int64_t kChunk = 64;

// Channels of one task, a multiple of 16. Backward it is always the largest number: it fixes the
// order of the sums over channels, so results cannot depend on the number of threads.
constexpr int64_t kMinBlock = 16;
constexpr int64_t kMaxBlock = 64;

// Step l of a path is grid position start + (l / inner) * outer_stride + (l % inner) * inner_stride.
struct Path {
  int64_t start, inner_stride, inner, outer_stride;
};

// One call. `directions` are those of a cross scan, which read the same channels and add up
// (`merged`), or the groups of a selective scan, which own `channels` channels each. Arrays are
// dense, in the order given; an absent one is null. Positions are grid positions.
struct Problem {
  int64_t batch = 0, length = 0, directions = 0, channels = 0, states = 0, rank = 0;
  int64_t block = kMaxBlock;
  bool merged = false, softplus = false, limb_gradient = false;

  const Path* paths = nullptr;         // (directions)
  const int64_t* takes_limbs = nullptr;  // (directions), whether the limb term is added
  const int64_t* limb_walk = nullptr;    // (joints)
  int64_t joints = 0;

  const float* u = nullptr;       // (batch, length, row), row = merged ? channels : directions * channels
  const float* delta = nullptr;   // like u, or null when there is a step projection:
  const float* dt = nullptr;      // (batch, length, directions, rank)
  const float* weight = nullptr;  // (directions, channels, rank)
  const float* bias = nullptr;    // (directions, channels)
  const float* A = nullptr;       // (directions, channels, states)
  const float* B = nullptr;       // (batch, length, directions, states)
  const float* C = nullptr;       // (batch, length, directions, states)
  const float* D = nullptr;       // (directions, channels)
  const float* z = nullptr;       // like u
  const float* initial = nullptr;  // (batch, directions, channels, states)

  float* y = nullptr;           // like u
  float* last = nullptr;        // like initial
  float* boundaries = nullptr;  // (batch, directions, chunks, states, channels), written forward

  const float* dy = nullptr;     // like u
  const float* dlast = nullptr;  // like initial
  float *du = nullptr, *ddelta = nullptr, *ddt = nullptr, *dweight = nullptr,
        *dbias = nullptr, *dA = nullptr, *dB = nullptr, *dC = nullptr,
        *dD = nullptr, *dz = nullptr, *dinitial = nullptr;

  // Backward: per task, how many chunks and how many directions it has added to the shared sums.
  // Tasks add in the order of their channels and of their batch elements; a task waits only for
  // tasks of a lower number, which have been started before it.
  int64_t* chunks_done = nullptr;
  int64_t* directions_done = nullptr;
  void (*yield)() = nullptr;

  int64_t chunks() const { return (length + kChunk - 1) / kChunk; }
  int64_t tasks() const {
    return (channels + block - 1) / block * batch * (merged ? 1 : directions);
  }
};

// Rows and frames of one task of a layer around the scan. They fix the order of sums.
constexpr int64_t kLayerRows = 128;
constexpr int64_t kLayerFrames = 16;

// One call of a layer around the scan; see layers.h. Arrays are dense, an absent one is null.
struct Layer {
  int64_t rows = 0, width = 0;                 // norms and GELU
  int64_t clips = 0, frames = 0, joints = 0;   // the convolution, with `width` channels
  float eps = 0;

  const float* x = nullptr;      // (rows, width) or (clips, frames, joints, width)
  const float* z = nullptr;      // a norm's gate, like x
  const float* scale = nullptr;  // (width), or the convolution's weights (3, 3, width)
  const float* bias = nullptr;   // (width)
  const float* dy = nullptr;     // like x

  float *y = nullptr, *dx = nullptr, *dz = nullptr;  // like x
  // Backward: each task's sums for the parameters' gradients, (tasks, 2 or 10, width).
  float* partial = nullptr;

  int64_t row_tasks() const { return (rows + kLayerRows - 1) / kLayerRows; }
  int64_t frame_tasks() const { return clips * ((frames + kLayerFrames - 1) / kLayerFrames); }
};

// The kernels for one instruction set.
struct Level {
  using Scan = void(const Problem&, int64_t task, void* scratch);
  using Around = void(const Layer&, int64_t task, void* scratch);

  const char* name;
  size_t (*scratch_bytes)(const Problem&);
  Scan *forward, *backward;
  size_t (*layer_scratch_bytes)(const Layer&);
  Around *norm_forward, *norm_backward, *conv_forward, *conv_backward, *gelu_forward,
      *gelu_backward;
  void (*exp2)(const float* x, float* bounded, float* full, int64_t count);
};

extern const Level level_baseline;
#if defined(__x86_64__)
extern const Level level_avx2;
extern const Level level_avx512;
#endif

}  // namespace selective_scan
