// The selective scan on vector registers of channels, forward and backward.
//
// Compiled once per instruction set, with SCAN_LEVEL its name and SCAN_LANES the floats in a
// register. A task takes a block of channels of one batch element along its whole path, in chunks of
// kChunk steps. For each chunk it gathers the inputs from their grid positions into scratch memory
// that fits the cache, a register's worth of channels at a time, runs the recurrence with a few
// states in registers and time innermost, and puts the outputs back to their positions.

#include "backward.h"
#include "forward.h"
#include "layers.h"

namespace selective_scan {
namespace {

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
const Level SCAN_NAME(SCAN_LEVEL) = {
    SCAN_STRING(SCAN_LEVEL), scratch_bytes, forward,       backward,     layer_scratch_bytes,
    norm_forward,            norm_backward, conv_forward,  conv_backward, gelu_forward,
    gelu_backward,           exp2_all};

}  // namespace selective_scan
