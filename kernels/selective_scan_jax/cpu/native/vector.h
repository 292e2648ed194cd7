// Vectors of SCAN_LANES floats by compiler extension, and the elementary functions on them.
//
// Everything is static: this file is compiled for several instruction sets into one library, and
// no function may be shared between them.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace selective_scan {
namespace {

constexpr int kLanes = SCAN_LANES;
typedef float V __attribute__((vector_size(SCAN_LANES * 4)));
typedef int32_t I __attribute__((vector_size(SCAN_LANES * 4)));
typedef uint32_t U __attribute__((vector_size(SCAN_LANES * 4)));  // wraps around, as exponents do

#define SCAN_INLINE inline __attribute__((always_inline))

SCAN_INLINE V splat(float x) { return x - V{}; }
SCAN_INLINE U bits(V x) { return reinterpret_cast<U>(x); }
SCAN_INLINE V from_bits(U x) { return reinterpret_cast<V>(x); }
SCAN_INLINE V abs(V x) { return from_bits(bits(x) & 0x7fffffffu); }

// The first `lanes` floats at p; the others are zero and are never stored.
SCAN_INLINE V load(const float* p, int lanes) {
  V x;
  if (__builtin_expect(lanes == kLanes, 1)) {
    memcpy(&x, p, sizeof(V));
  } else {
    float part[kLanes] = {};
    for (int i = 0; i < lanes; ++i) part[i] = p[i];
    memcpy(&x, part, sizeof(V));
  }
  return x;
}

SCAN_INLINE void store(float* p, V x, int lanes) {
  if (__builtin_expect(lanes == kLanes, 1)) {
    memcpy(p, &x, sizeof(V));
  } else {
    float part[kLanes];
    memcpy(part, &x, sizeof(V));
    for (int i = 0; i < lanes; ++i) p[i] = part[i];
  }
}

// 2^f for |f| <= 1/2, a minimax polynomial under p(0) = 1, so that a step of size zero keeps the
// state exactly. With fused multiply-adds degree 5 stays within 1.8 units in the last place; every
// product rounded by itself needs one degree more to stay within 2.
SCAN_INLINE V exp2_fraction(V f) {
#if defined(__FMA__) || defined(__aarch64__)
  V p = splat(0.0013225710717961192f);
  p = p * f + 0.009671762585639954f;
  p = p * f + 0.05550891533493996f;
  p = p * f + 0.24022236466407776f;
  p = p * f + 0.693146824836731f;
#else
  V p = splat(0.00015353361786020302f);
  p = p * f + 0.0013398874397047174f;
  p = p * f + 0.009618437358053518f;
  p = p * f + 0.05550332471177523f;
  p = p * f + 0.24022647913626755f;
  p = p * f + 0.6931472028550353f;
#endif
  return p * f + 1.0f;
}

// Adding it rounds to an integer, which is then in the low bits of the sum.
constexpr float kRound = 12582912.0f;

// How far d * a can be trusted, found out once per chunk.
enum Range {
  kBounded,      // |d a| < 125: neither overflow nor underflow
  kNonPositive,  // -inf < d a <= 0: underflow at worst
  kAny,
};

// 2^(d a). Results below the smallest normal number are zero, as everywhere in XLA on a CPU, which
// runs with denormals flushed; so do the threads of these kernels.
template <Range range>
SCAN_INLINE V exp2_product(V d, V a) {
  if (range == kBounded) {
    V r = d * a + kRound;
    V k = r - kRound;
    V p = exp2_fraction(d * a - k);
    return from_bits(bits(p) + (bits(r) << 23));
  }
  V x = d * a;
  if (range == kNonPositive) {
    // From -126.49 the exponent field becomes 0: a denormal, read as zero.
    x = x < -126.49f ? splat(-126.49f) : x;
    V r = x + kRound;
    V p = exp2_fraction(x - (r - kRound));
    return from_bits(bits(p) + (bits(r) << 23));
  }
  V y = x < -151.0f ? splat(-151.0f) : x;
  y = y > 129.0f ? splat(129.0f) : y;
  V r = y + kRound;
  V p = exp2_fraction(y - (r - kRound));
  U k = bits(r) - 0x4b400000u;
  U half = reinterpret_cast<U>(reinterpret_cast<I>(k) >> 1);
  p = p * from_bits((half + 127u) << 23) * from_bits((k - half + 127u) << 23);
  return x == x ? p : x;
}

// exp(-|x|), with log2(e) in two parts; underflows like kNonPositive.
SCAN_INLINE V exp_minus_abs(V x) {
  V y = -abs(x);
  y = y < -87.67f ? splat(-87.67f) : y;
  V r = y * 1.44269504f + kRound;
  V f = y * 1.44269504f - (r - kRound);
  f = y * 1.925963033500e-8f + f;
  return from_bits(bits(exp2_fraction(f)) + (bits(r) << 23));
}

// log(1 + v) for 0 <= v <= 1: minimax in relative error, 3e-8.
SCAN_INLINE V log1p_unit(V v) {
  V p = splat(0.005364829877490485f);
  p = p * v - 0.030065813807184642f;
  p = p * v + 0.0792045693090585f;
  p = p * v - 0.13753805077672582f;
  p = p * v + 0.1915365615610429f;
  p = p * v - 0.24857163955331707f;
  p = p * v + 0.33321322650063273f;
  p = p * v - 0.4999964796466906f;
  return p * (v * v) + v;
}

SCAN_INLINE V softplus(V x) {
  V positive = x <= 0.0f ? V{} : x;  // keeps a NaN
  return positive + log1p_unit(exp_minus_abs(x));
}

// The derivative of softplus.
SCAN_INLINE V sigmoid(V x) {
  V v = exp_minus_abs(x);
  return (x < 0.0f ? v : splat(1.0f)) / (1.0f + v);
}

// Lane i of the result: the lower (upper) half of each group of 2m lanes comes from a (b); with
// `high`, from the upper half of that group instead of the lower one.
template <int m, int high>
constexpr int pick(int lane) {
  int group = lane / (2 * m) * (2 * m), within = lane % (2 * m);
  return within < m ? group + within + high * m : kLanes + group + within - m + high * m;
}

template <int m, int high, size_t... lane>
SCAN_INLINE V interleave(V a, V b, std::index_sequence<lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, pick<m, high>(lane)...);
#else
  return __builtin_shuffle(a, b, I{pick<m, high>(lane)...});
#endif
}

// rows[0] becomes the vector whose lane i is the sum of the lanes of rows[i], i < kLanes.
template <int m = kLanes / 2>
SCAN_INLINE void sum_lanes(V* rows) {
  if constexpr (m > 0) {
    using Lanes = std::make_index_sequence<kLanes>;
    for (int i = 0; i < m; ++i) {
      rows[i] = interleave<m, 0>(rows[i], rows[i + m], Lanes()) +
                interleave<m, 1>(rows[i], rows[i + m], Lanes());
    }
    sum_lanes<m / 2>(rows);
  }
}

}  // namespace
}  // namespace selective_scan
