// Checks the native kernels without XLA or Python, so that they can be run for another processor
// under an emulator and with a thread sanitizer: exp2, the layers around the scan, and a cross scan
// and a selective scan with all their gradients, against the same in double precision and with four
// threads against one.
// LEVEL is the name of the instruction set's symbol.

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "denormals.h"
#include "scan.h"

using selective_scan::Path;
using selective_scan::Problem;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

static int failures = 0;

static void expect(bool holds, const char* what, double value) {
  if (holds) return;
  std::printf("FAILED: %s (%g)\n", what, value);
  ++failures;
}

static void check_exp2() {
  Floats x;
  for (double v = -160; v < 140; v += 0.00137) x.push_back(static_cast<float>(v));
  for (float v : {0.0f, -0.0f, 1e-45f, INFINITY, -INFINITY}) x.push_back(v);
  Floats bounded(x.size()), full(x.size());
  {
    selective_scan::FlushDenormals flush;
    LEVEL.exp2(x.data(), bounded.data(), full.data(), x.size());
  }
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    double exact = std::exp2(static_cast<double>(x[i]));
    if (exact < 1.1754943508222875e-38) {
      expect(full[i] <= 1.1754944e-38f, "exp2 underflow", x[i]);
    } else if (exact > 3.4028234663852886e38) {
      expect(std::isinf(full[i]) || full[i] > 3.4e38f, "exp2 overflow", x[i]);
    } else {
      float rounded = static_cast<float>(exact);
      double unit = std::nextafter(rounded, INFINITY) - static_cast<double>(rounded);
      if (!std::isfinite(unit)) continue;
      worst = std::fmax(worst, std::fabs(full[i] - exact) / unit);
      if (std::fabs(x[i]) < 125) worst = std::fmax(worst, std::fabs(bounded[i] - exact) / unit);
    }
  }
  expect(worst <= 2, "exp2 units in the last place", worst);
  float nan = NAN, a, b;
  LEVEL.exp2(&nan, &a, &b, 1);
  expect(std::isnan(b), "exp2 of NaN", b);
  std::printf("exp2: %.2f units in the last place\n", worst);
}

// The operands of a scan in double precision, in the order of `names`.
struct Operands {
  enum { u, delta, dt, weight, bias, A, B, C, D, z, initial, count };
  Doubles of[count];
};

// y . dy + last . dlast of the recurrence, step by step; optionally y itself.
static double loss(const Problem& p, const Operands& o, const Doubles& dy,
                   const Doubles& dlast, Doubles* y_out) {
  int64_t K = p.directions, E = p.channels, N = p.states, R = p.rank, L = p.length;
  int64_t row = p.merged ? E : K * E;
  Doubles y(p.batch * L * row, 0.0);
  double total = 0;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t k = 0; k < K; ++k)
      for (int64_t e = 0; e < E; ++e) {
        int64_t c = k * E + e;
        Doubles h(N, 0.0);
        for (int64_t n = 0; n < N && !o.of[o.initial].empty(); ++n)
          h[n] = o.of[o.initial][(b * K * E + c) * N + n];
        const Path& path = p.paths[k];
        for (int64_t l = 0; l < L; ++l) {
          int64_t at = path.start + l / path.inner * path.outer_stride +
                       l % path.inner * path.inner_stride;
          int64_t i = (b * L + at) * row + (p.merged ? e : c), s = (b * L + at) * K + k;
          double u = o.of[o.u][i], d = o.of[o.bias][c];
          if (p.takes_limbs && p.takes_limbs[k]) {
            u += o.of[o.u][i + (p.limb_walk[at % p.joints] - at % p.joints) * row];
          }
          if (p.delta) d += o.of[o.delta][i];
          for (int64_t r = 0; r < R; ++r) d += o.of[o.weight][c * R + r] * o.of[o.dt][s * R + r];
          if (p.softplus) d = std::log1p(std::exp(d));
          double out = o.of[o.D][c] * u;
          for (int64_t n = 0; n < N; ++n) {
            h[n] = std::exp(d * o.of[o.A][c * N + n]) * h[n] + d * o.of[o.B][s * N + n] * u;
            out += o.of[o.C][s * N + n] * h[n];
          }
          if (p.z) out *= o.of[o.z][i] / (1 + std::exp(-o.of[o.z][i]));
          y[i] += out;
        }
        for (int64_t n = 0; n < N && p.last; ++n) {
          total += h[n] * dlast[(b * K * E + c) * N + n];
        }
      }
  for (size_t i = 0; i < y.size(); ++i) total += y[i] * dy[i];
  if (y_out) *y_out = y;
  return total;
}

static void run_tasks(const Problem& p, bool backward, int threads) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back([&] {
      selective_scan::FlushDenormals flush;
      void* scratch = std::aligned_alloc(64, (LEVEL.scratch_bytes(p) + 63) / 64 * 64);
      for (int64_t task; (task = next++) < p.tasks();) {
        (backward ? LEVEL.backward : LEVEL.forward)(p, task, scratch);
      }
      std::free(scratch);
    });
  }
  for (std::thread& thread : pool) thread.join();
}

static void run(Problem p, int threads) {
  std::vector<int64_t> counters(2 * p.tasks(), 0);
  p.chunks_done = counters.data(), p.directions_done = counters.data() + p.tasks();
  p.yield = [] { std::this_thread::yield(); };
  run_tasks(p, false, threads);
  run_tasks(p, true, threads);
}

static void check_scan(const char* name, Problem p) {
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  int64_t K = p.directions, E = p.channels, N = p.states, R = p.rank, L = p.length, b = p.batch;
  int64_t row = p.merged ? E : K * E;
  bool merged = p.merged;
  int64_t sizes[Operands::count] = {
      b * L * row,   merged ? 0 : b * L * row, merged ? b * L * K * R : 0, merged ? K * E * R : 0,
      K * E,         K * E * N,                b * L * K * N,              b * L * K * N,
      K * E,         merged ? 0 : b * L * row, merged ? 0 : b * K * E * N};
  Operands o, towards;
  std::vector<Floats> values(Operands::count), grads(Operands::count);
  for (int i = 0; i < Operands::count; ++i) {
    for (int64_t j = 0; j < sizes[i]; ++j) {
      double x = normal(random);
      if (i == Operands::A) x = -std::exp(x);
      if (i == Operands::bias) x -= 2;
      if (i == Operands::weight) x *= 0.3;
      values[i].push_back(static_cast<float>(x));
      o.of[i].push_back(values[i].back());
      towards.of[i].push_back(normal(random));
    }
    grads[i].assign(sizes[i], NAN);
  }
  auto data = [](Floats& x) { return x.empty() ? nullptr : x.data(); };
  p.u = data(values[Operands::u]), p.delta = data(values[Operands::delta]);
  p.dt = data(values[Operands::dt]), p.weight = data(values[Operands::weight]);
  p.bias = data(values[Operands::bias]), p.A = data(values[Operands::A]);
  p.B = data(values[Operands::B]), p.C = data(values[Operands::C]);
  p.D = data(values[Operands::D]), p.z = data(values[Operands::z]);
  p.initial = data(values[Operands::initial]);
  p.du = data(grads[Operands::u]), p.ddelta = data(grads[Operands::delta]);
  p.ddt = data(grads[Operands::dt]), p.dweight = data(grads[Operands::weight]);
  p.dbias = data(grads[Operands::bias]), p.dA = data(grads[Operands::A]);
  p.dB = data(grads[Operands::B]), p.dC = data(grads[Operands::C]);
  p.dD = data(grads[Operands::D]), p.dz = data(grads[Operands::z]);
  p.dinitial = data(grads[Operands::initial]);

  Floats y(b * L * row, NAN), last(merged ? 0 : b * K * E * N, NAN);
  Floats boundaries(b * K * p.chunks() * N * E, NAN), dy, dlast;
  Doubles dy64, dlast64;
  for (size_t i = 0; i < y.size(); ++i) {
    dy.push_back(static_cast<float>(normal(random)));
    dy64.push_back(dy.back());
  }
  for (size_t i = 0; i < last.size(); ++i) {
    dlast.push_back(static_cast<float>(normal(random)));
    dlast64.push_back(dlast.back());
  }
  p.y = y.data(), p.last = data(last), p.boundaries = boundaries.data();
  p.dy = dy.data(), p.dlast = data(dlast);
  std::vector<Floats*> outputs = {&y, &last};
  for (Floats& g : grads) outputs.push_back(&g);
  run(p, 4);
  std::vector<Floats> threaded;
  for (Floats* x : outputs) {
    threaded.push_back(*x);
    x->assign(x->size(), NAN);
  }
  run(p, 1);
  for (size_t i = 0; i < outputs.size(); ++i) {
    expect(*outputs[i] == threaded[i], "four threads and one agree: output", i);
  }

  Doubles expected;
  loss(p, o, dy64, dlast64, &expected);
  double difference = 0, size = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    difference += (y[i] - expected[i]) * (y[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  double forward_error = std::sqrt(difference / size);
  expect(forward_error < 1e-6, name, forward_error);

  // Each operand's gradient along a random direction against a central difference.
  double worst = 0, step = 1e-5;
  for (int i = 0; i < Operands::count; ++i) {
    double along = 0, scale = 0;
    for (int64_t j = 0; j < sizes[i]; ++j) {
      along += grads[i][j] * towards.of[i][j];
      scale += static_cast<double>(grads[i][j]) * grads[i][j];
    }
    if (sizes[i] == 0) continue;
    Operands up = o, down = o;
    for (int64_t j = 0; j < sizes[i]; ++j) {
      up.of[i][j] += step * towards.of[i][j];
      down.of[i][j] -= step * towards.of[i][j];
    }
    double difference = (loss(p, up, dy64, dlast64, nullptr) -
                         loss(p, down, dy64, dlast64, nullptr)) /
                        (2 * step);
    double error = std::fabs(along - difference) / std::sqrt(scale);
    expect(error < 1e-5, name, error);
    worst = std::fmax(worst, error);
  }
  std::printf("%s: forward %.1e, gradients %.1e\n", name, forward_error, worst);
}

// A layer's output and gradients from its tasks on some threads, sums over tasks included.
static Floats run_layer(selective_scan::Layer p, selective_scan::Level::Around* forward,
                        selective_scan::Level::Around* backward, int64_t tasks, int64_t sums,
                        int threads) {
  int64_t size = p.rows * p.width;
  Floats y(size, NAN), dx(size, NAN), dz(p.z ? size : 0, NAN), partial(tasks * sums, NAN);
  p.y = y.data(), p.dx = dx.data(), p.dz = dz.data(), p.partial = partial.data();
  for (auto* kernel : {forward, backward}) {
    std::atomic<int64_t> next{0};
    std::vector<std::thread> pool;
    for (int i = 0; i < threads; ++i) {
      pool.emplace_back([&] {
        void* scratch = std::aligned_alloc(64, (LEVEL.layer_scratch_bytes(p) + 63) / 64 * 64);
        for (int64_t task; (task = next++) < tasks;) kernel(p, task, scratch);
        std::free(scratch);
      });
    }
    for (std::thread& thread : pool) thread.join();
  }
  for (const Floats* more : {&dx, &dz, &partial}) y.insert(y.end(), more->begin(), more->end());
  return y;
}

// `exact(i)` is output i in double precision; gradients are compared with Python's elsewhere.
template <typename Exact>
static void check_layer(const char* name, const selective_scan::Layer& p,
                        selective_scan::Level::Around* forward,
                        selective_scan::Level::Around* backward, int64_t tasks, int64_t sums,
                        Exact exact) {
  Floats one = run_layer(p, forward, backward, tasks, sums, 1);
  expect(one == run_layer(p, forward, backward, tasks, sums, 4), name, 4);
  double worst = 0;
  for (int64_t i = 0; i < p.rows * p.width; ++i) {
    double y = exact(i);
    worst = std::fmax(worst, std::fabs(one[i] - y) / std::fmax(1, std::fabs(y)));
  }
  expect(worst < 2e-6, name, worst);
  std::printf("%s: forward %.1e\n", name, worst);
}

static void check_layers() {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  selective_scan::Layer p;
  p.clips = 2, p.frames = 35, p.joints = 5, p.width = 21, p.eps = 1e-5f;
  p.rows = p.clips * p.frames * p.joints;
  int64_t size = p.rows * p.width, W = p.width, J = p.joints, F = p.frames;
  Floats x(size), z(size), dy(size), scale(9 * W), bias(W);
  for (Floats* values : {&x, &z, &dy, &scale, &bias}) {
    for (float& value : *values) value = normal(random);
  }
  p.x = x.data(), p.dy = dy.data(), p.scale = scale.data(), p.bias = bias.data();
  auto sigmoid = [](double value) { return 1 / (1 + std::exp(-value)); };

  check_layer("gelu", p, LEVEL.gelu_forward, LEVEL.gelu_backward, p.row_tasks(), 0,
              [&](int64_t i) { return x[i] * std::erfc(-x[i] / std::sqrt(2.0)) / 2; });
  check_layer("convolution", p, LEVEL.conv_forward, LEVEL.conv_backward, p.frame_tasks(), 10 * W,
              [&](int64_t i) {
                int64_t c = i % W, j = i / W % J, f = i / W / J % F;
                double sum = bias[c];
                for (int64_t a = -1; a <= 1; ++a) {
                  for (int64_t b = -1; b <= 1; ++b) {
                    if (f + a < 0 || f + a >= F || j + b < 0 || j + b >= J) continue;
                    double weight = scale[(3 * (a + 1) + b + 1) * W + c];
                    sum += weight * x[i + (a * J + b) * W];
                  }
                }
                return sum * sigmoid(sum);
              });
  p.z = z.data();
  check_layer("norm", p, LEVEL.norm_forward, LEVEL.norm_backward, p.row_tasks(), 2 * W,
              [&](int64_t i) {
                const float* row = x.data() + i / W * W;
                double mean = 0, variance = 0;
                for (int64_t c = 0; c < W; ++c) mean += row[c] / double(W);
                for (int64_t c = 0; c < W; ++c) {
                  variance += (row[c] - mean) * (row[c] - mean) / double(W);
                }
                double n = (x[i] - mean) / std::sqrt(variance + 1e-5);
                return (n * scale[i % W] + bias[i % W]) * z[i] * sigmoid(z[i]);
              });
}

int main() {
  check_exp2();
  check_layers();

  Problem cross;
  cross.batch = 2, cross.joints = 5, cross.length = 15 * 5, cross.directions = 4, cross.channels = 70;
  cross.states = 5, cross.rank = 6, cross.merged = cross.softplus = cross.limb_gradient = true;
  Path paths[] = {{0, 1, 5, 5}, {0, 5, 15, 1}, {74, -1, 5, -5}, {74, -5, 15, -1}};
  int64_t takes_limbs[] = {1, 0, 1, 0}, limb_walk[] = {0, 0, 1, 0, 3};
  cross.paths = paths, cross.takes_limbs = takes_limbs, cross.limb_walk = limb_walk;
  cross.block = 16;  // several tasks, which have to wait for one another
  check_scan("cross scan", cross);

  Problem selective;
  selective.batch = 2, selective.length = 75, selective.directions = 2, selective.channels = 19;
  selective.states = 4, selective.softplus = true;
  Path reversed[] = {{74, -1, 75, 0}, {74, -1, 75, 0}};
  selective.paths = reversed;
  check_scan("selective scan", selective);
  return failures != 0;
}
