// XLA FFI handlers of the CPU kernels: they check every shape, so that a wrong direct call is an
// error and not a crash, and run the tasks of a call on XLA's own threads.

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "run.h"
#include "scan.h"
#include "xla/ffi/api/ffi.h"

// What the library exports; cpu/call.py loads it through ctypes.

#define SCAN_EXPORT extern "C" __attribute__((visibility("default")))

#define SCAN_HANDLER(symbol, function, binding)               \
  SCAN_EXPORT XLA_FFI_Error* symbol(XLA_FFI_CallFrame* call); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, function, binding)

#include "ffi_layers.h"

namespace selective_scan {
namespace {

void clear(Array x) { memset(x.untyped_data(), 0, x.size_bytes()); }

// Four integers per direction; a path must visit every position once.
std::vector<Path> read_paths(Integers numbers, const Problem& p, Checker& check) {
  std::vector<Path> paths;
  if (static_cast<int64_t>(numbers.size()) != 4 * p.directions) {
    check.fail("paths: expected 4 numbers for each of " + std::to_string(p.directions) +
               " directions, got " + std::to_string(numbers.size()));
    return paths;
  }
  for (int64_t k = 0; k < p.directions; ++k) {
    Path path = {numbers[4 * k], numbers[4 * k + 1], numbers[4 * k + 2], numbers[4 * k + 3]};
    bool valid = path.inner > 0 && path.inner <= p.length && p.length % path.inner == 0;
    if (valid) {
      int64_t outer = p.length / path.inner;
      int64_t s = std::llabs(path.inner_stride), S = std::llabs(path.outer_stride);
      valid = (s == 1 && S == path.inner) || (S == 1 && s == outer);
      if (valid) {
        int64_t a = path.inner_stride * (path.inner - 1), b = path.outer_stride * (outer - 1);
        int64_t low = path.start + (a < 0 ? a : 0) + (b < 0 ? b : 0);
        valid = path.start >= 0 && path.start < p.length && low == 0;
      }
    }
    if (!valid) {
      check.fail("paths: direction " + std::to_string(k) + " is no path through " +
                 std::to_string(p.length) + " positions");
    }
    paths.push_back(path);
  }
  return paths;
}

struct CrossArguments {
  Array x, dt, B, C, weight, bias, A, D;
  Integers paths, takes_limbs, limb_walk;
};

// Fills `p` from checked arguments; `paths` keeps what it points to.
void read_cross(const CrossArguments& in, Problem& p, std::vector<Path>& paths, Checker& check) {
  check.rank("x", in.x, 4);
  check.rank("dt", in.dt, 5);
  check.rank("B", in.B, 5);
  if (!check.ok()) return;
  int64_t b = in.x.dimensions()[0], F = in.x.dimensions()[1], J = in.x.dimensions()[2];
  p.merged = p.softplus = true;
  p.batch = b, p.length = F * J, p.joints = J, p.channels = in.x.dimensions()[3];
  p.directions = in.dt.dimensions()[3], p.rank = in.dt.dimensions()[4];
  p.states = in.B.dimensions()[4];
  int64_t K = p.directions, E = p.channels, N = p.states, R = p.rank;
  if (p.length < 1 || K < 1) check.fail("x: needs at least one position and one direction");
  p.u = in.x.typed_data();
  p.dt = check.shape("dt", in.dt, {b, F, J, K, R});
  p.B = check.shape("B", in.B, {b, F, J, K, N});
  p.C = check.shape("C", in.C, {b, F, J, K, N});
  p.weight = check.shape("dt_weight", in.weight, {K, E, R});
  p.bias = check.shape("dt_bias", in.bias, {K, E});
  p.A = check.shape("A", in.A, {K, E, N});
  p.D = check.shape("D", in.D, {K, E});
  paths = read_paths(in.paths, p, check);
  p.paths = paths.data();
  if (in.limb_walk.size() == 0) return;
  if (static_cast<int64_t>(in.takes_limbs.size()) != K) {
    check.fail("takes_limbs: expected one number per direction");
  }
  bool valid = static_cast<int64_t>(in.limb_walk.size()) == J;
  for (int64_t joint : in.limb_walk) valid = valid && joint >= 0 && joint < J;
  if (!valid) check.fail("limb_walk: expected one joint index per joint of x");
  p.takes_limbs = in.takes_limbs.begin();
  p.limb_walk = in.limb_walk.begin();
}

ffi::Error cross_forward(ffi::ThreadPool pool, Array x, Array dt, Array B, Array C, Array weight,
                         Array bias, Array A, Array D, Integers paths, Integers takes_limbs,
                         Integers limb_walk, Output y, Output boundaries) {
  Problem p;
  Checker check;
  std::vector<Path> all_paths;
  read_cross({x, dt, B, C, weight, bias, A, D, paths, takes_limbs, limb_walk}, p, all_paths, check);
  if (!check.ok()) return check.error();
  p.y = check.shape("y", *y, {p.batch, p.length / p.joints, p.joints, p.channels});
  p.boundaries = check.optional("boundaries", *boundaries,
                                {p.batch, p.directions, p.chunks(), p.states, p.channels});
  if (!check.ok()) return check.error();
  return run_tasks(pool, p, false);
}

ffi::Error cross_backward(ffi::ThreadPool pool, Array x, Array dt, Array B, Array C, Array weight,
                          Array bias, Array A, Array D, Array boundaries, Array dy,
                          Integers paths, Integers takes_limbs, Integers limb_walk,
                          bool limb_gradient, Output dx, Output ddt, Output dB,
                          Output dC, Output dweight, Output dbias, Output dA,
                          Output dD) {
  Problem p;
  Checker check;
  std::vector<Path> all_paths;
  read_cross({x, dt, B, C, weight, bias, A, D, paths, takes_limbs, limb_walk}, p, all_paths, check);
  if (!check.ok()) return check.error();
  int64_t b = p.batch, J = p.joints, F = p.length / J;
  int64_t K = p.directions, E = p.channels, N = p.states, R = p.rank;
  p.limb_gradient = limb_gradient;
  p.boundaries = check.shape("boundaries", boundaries, {b, K, p.chunks(), N, E});
  p.dy = check.shape("dy", dy, {b, F, J, E});
  p.du = check.shape("dx", *dx, {b, F, J, E});
  p.ddt = check.shape("ddt", *ddt, {b, F, J, K, R});
  p.dB = check.shape("dB", *dB, {b, F, J, K, N});
  p.dC = check.shape("dC", *dC, {b, F, J, K, N});
  p.dweight = check.shape("ddt_weight", *dweight, {K, E, R});
  p.dbias = check.shape("ddt_bias", *dbias, {K, E});
  p.dA = check.shape("dA", *dA, {K, E, N});
  p.dD = check.shape("dD", *dD, {K, E});
  if (!check.ok()) return check.error();
  if (b == 0 || E == 0) {
    for (Output* out : {&ddt, &dB, &dC, &dweight, &dbias, &dA, &dD}) {
      clear(**out);
    }
  }
  return run_tasks(pool, p, true);
}

struct SelectiveArguments {
  Array u, delta, A, B, C, D, bias, z, initial;
  bool softplus, reverse;
};

void read_selective(const SelectiveArguments& in, Problem& p, std::vector<Path>& paths,
                    Checker& check) {
  check.rank("u", in.u, 3);
  check.rank("B", in.B, 4);
  if (!check.ok()) return;
  int64_t b = in.u.dimensions()[0], L = in.u.dimensions()[1], channels = in.u.dimensions()[2];
  int64_t G = in.B.dimensions()[2], N = in.B.dimensions()[3];
  if (L < 1) return check.fail("u: the length must be at least 1");
  if (G < 1 || channels % G != 0) return check.fail("B: groups must divide the channels");
  p.softplus = in.softplus;
  p.batch = b, p.length = L, p.directions = G, p.channels = channels / G, p.states = N;
  p.u = in.u.typed_data();
  p.delta = check.shape("delta", in.delta, {b, L, channels});
  p.A = check.shape("A", in.A, {channels, N});
  p.B = check.shape("B", in.B, {b, L, G, N});
  p.C = check.shape("C", in.C, {b, L, G, N});
  p.D = check.optional("D", in.D, {channels});
  p.bias = check.optional("delta_bias", in.bias, {channels});
  p.z = check.optional("z", in.z, {b, L, channels});
  p.initial = check.optional("initial_state", in.initial, {b, channels, N});
  paths.assign(G, in.reverse ? Path{L - 1, -1, L, 0} : Path{0, 1, L, 0});
  p.paths = paths.data();
}

ffi::Error selective_forward(ffi::ThreadPool pool, Array u, Array delta, Array A, Array B, Array C,
                             Array D, Array bias, Array z, Array initial, bool softplus,
                             bool reverse, Output y, Output last, Output boundaries) {
  Problem p;
  Checker check;
  std::vector<Path> paths;
  read_selective({u, delta, A, B, C, D, bias, z, initial, softplus, reverse}, p, paths, check);
  if (!check.ok()) return check.error();
  int64_t channels = p.directions * p.channels;
  p.y = check.shape("y", *y, {p.batch, p.length, channels});
  p.last = check.shape("last_state", *last, {p.batch, channels, p.states});
  p.boundaries = check.optional("boundaries", *boundaries,
                                {p.batch, p.directions, p.chunks(), p.states, p.channels});
  if (!check.ok()) return check.error();
  return run_tasks(pool, p, false);
}

ffi::Error selective_backward(ffi::ThreadPool pool, Array u, Array delta, Array A, Array B, Array C,
                              Array D, Array bias, Array z, Array initial, Array boundaries,
                              Array dy, Array dlast, bool softplus, bool reverse,
                              Output du, Output ddelta, Output dA, Output dB,
                              Output dC, Output dD, Output dbias, Output dz,
                              Output dinitial) {
  Problem p;
  Checker check;
  std::vector<Path> paths;
  read_selective({u, delta, A, B, C, D, bias, z, initial, softplus, reverse}, p, paths, check);
  if (!check.ok()) return check.error();
  int64_t b = p.batch, L = p.length, channels = p.directions * p.channels, N = p.states;
  p.boundaries =
      check.shape("boundaries", boundaries, {b, p.directions, p.chunks(), N, p.channels});
  p.dy = check.shape("dy", dy, {b, L, channels});
  p.dlast = check.shape("dlast_state", dlast, {b, channels, N});
  p.du = check.shape("du", *du, {b, L, channels});
  p.ddelta = check.shape("ddelta", *ddelta, {b, L, channels});
  p.dA = check.shape("dA", *dA, {channels, N});
  p.dB = check.shape("dB", *dB, {b, L, p.directions, N});
  p.dC = check.shape("dC", *dC, {b, L, p.directions, N});
  p.dD = check.optional("dD", *dD, {channels});
  p.dbias = check.optional("ddelta_bias", *dbias, {channels});
  p.dz = check.optional("dz", *dz, {b, L, channels});
  p.dinitial = check.optional("dinitial_state", *dinitial, {b, channels, N});
  if (p.z != nullptr && p.dz == nullptr) check.fail("dz: must be given when z is");
  if (!check.ok()) return check.error();
  if (b == 0 || channels == 0) {
    for (Output* out : {&dA, &dB, &dC, &dD, &dbias}) clear(**out);
  }
  return run_tasks(pool, p, true);
}

}  // namespace
}  // namespace selective_scan

#define SCAN_8_ARGS \
  Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>().Arg<Array>()
#define SCAN_8_RETS \
  Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>().Ret<Array>()

namespace selective_scan {

SCAN_HANDLER(selective_scan_cpu_cross_forward, cross_forward,
             ffi::Ffi::Bind()
                 .Ctx<ffi::ThreadPool>()
                 .SCAN_8_ARGS.Attr<Integers>("paths")
                 .Attr<Integers>("takes_limbs")
                 .Attr<Integers>("limb_walk")
                 .Ret<Array>()
                 .Ret<Array>());

SCAN_HANDLER(selective_scan_cpu_cross_backward, cross_backward,
             ffi::Ffi::Bind()
                 .Ctx<ffi::ThreadPool>()
                 .SCAN_8_ARGS.Arg<Array>()
                 .Arg<Array>()
                 .Attr<Integers>("paths")
                 .Attr<Integers>("takes_limbs")
                 .Attr<Integers>("limb_walk")
                 .Attr<bool>("limb_gradient")
                 .SCAN_8_RETS);

SCAN_HANDLER(selective_scan_cpu_forward, selective_forward,
             ffi::Ffi::Bind()
                 .Ctx<ffi::ThreadPool>()
                 .SCAN_8_ARGS.Arg<Array>()
                 .Attr<bool>("softplus")
                 .Attr<bool>("reverse")
                 .Ret<Array>()
                 .Ret<Array>()
                 .Ret<Array>());

SCAN_HANDLER(selective_scan_cpu_backward, selective_backward,
             ffi::Ffi::Bind()
                 .Ctx<ffi::ThreadPool>()
                 .SCAN_8_ARGS.Arg<Array>()
                 .Arg<Array>()
                 .Arg<Array>()
                 .Arg<Array>()
                 .Attr<bool>("softplus")
                 .Attr<bool>("reverse")
                 .SCAN_8_RETS.Ret<Array>());

}  // namespace selective_scan

// 1000 major + minor version of the XLA interface this was compiled for.
SCAN_EXPORT int selective_scan_cpu_interface_version() {
  return 1000 * XLA_FFI_API_MAJOR + XLA_FFI_API_MINOR;
}

// Names of the instruction sets this machine can run, best first, separated by spaces.
SCAN_EXPORT const char* selective_scan_cpu_levels() {
  static const std::string names = [] {
    std::string text;
    for (const auto* level : selective_scan::supported_levels()) {
      text += (text.empty() ? "" : " ") + std::string(level->name);
    }
    return text;
  }();
  return names.c_str();
}

// Uses the named instruction set from now on; false if this machine cannot.
SCAN_EXPORT bool selective_scan_cpu_set_level(const char* name) {
  for (const auto* level : selective_scan::supported_levels()) {
    if (strcmp(level->name, name) == 0) {
      selective_scan::current_level = level;
      return true;
    }
  }
  return false;
}

SCAN_EXPORT const char* selective_scan_cpu_level() {
  return selective_scan::current_level.load()->name;
}

// At most this many threads per call; 0 for as many as XLA has.
SCAN_EXPORT void selective_scan_cpu_set_threads(int64_t limit) {
  selective_scan::thread_limit = limit;
}

SCAN_EXPORT void selective_scan_cpu_exp2(const float* x, float* bounded, float* full,
                                         int64_t count) {
  selective_scan::FlushDenormals flush;
  selective_scan::current_level.load()->exp2(x, bounded, full, count);
}
