// XLA FFI handlers of the layers around the scan; part of ffi.cc.
#pragma once

#include <cstring>
#include <vector>

#include "check.h"
#include "run.h"
#include "scan.h"

namespace selective_scan {
namespace {

using Output = ffi::Result<Array>;

// Runs the tasks of a layer; `task` picks the kernel of an instruction set.
ffi::Error run_layer(ffi::ThreadPool& pool, const Layer& p, int64_t tasks,
                     Level::Around* Level::* task) {
  const Level* level = current_level.load();
  auto* kernel = level->*task;
  return run_all(pool, tasks, level->layer_scratch_bytes(p),
                 [p, kernel](int64_t i, void* scratch) { kernel(p, i, scratch); });
}

// The same backward: afterwards the tasks' sums, `to` (count), are added up in order.
ffi::Error run_layer_with_sums(ffi::ThreadPool& pool, Layer p, int64_t tasks,
                               Level::Around* Level::* task,
                               std::initializer_list<std::pair<float*, int64_t>> to) {
  int64_t count = 0;
  for (auto& [out, size] : to) count += size;
  std::vector<float> partial(tasks * count);
  p.partial = partial.data();
  ffi::Error error = run_layer(pool, p, tasks, task);
  if (error.failure()) return error;
  const float* from = partial.data();
  for (auto& [out, size] : to) {
    for (int64_t i = 0; i < size; ++i) out[i] = 0.0f;
    for (int64_t t = 0; t < tasks; ++t) {
      for (int64_t i = 0; i < size; ++i) out[i] += from[t * count + i];
    }
    from += size;
  }
  return error;
}

// Rows of the last axis; an array without elements has none.
Layer read_rows(Array x, Checker& check) {
  Layer p;
  if (x.dimensions().size() == 0) {
    check.fail("x: expected at least one dimension");
    return p;
  }
  p.width = x.dimensions().back();
  p.rows = p.width == 0 ? 0 : x.element_count() / p.width;
  p.x = x.typed_data();
  return p;
}

Layer read_norm(Array x, Array scale, Array bias, Array z, float eps, Checker& check) {
  Layer p = read_rows(x, check);
  p.eps = eps;
  p.scale = check.shape("scale", scale, {p.width});
  p.bias = check.shape("bias", bias, {p.width});
  // A gate has as many dimensions as x, and more than one.
  if (z.dimensions().size() != 1) p.z = check.like("z", z, x);
  return p;
}

ffi::Error norm_forward(ffi::ThreadPool pool, Array x, Array scale, Array bias, Array z, float eps,
                        Output y) {
  Checker check;
  Layer p = read_norm(x, scale, bias, z, eps, check);
  p.y = check.like("y", *y, x);
  if (!check.ok()) return check.error();
  return run_layer(pool, p, p.row_tasks(), &Level::norm_forward);
}

ffi::Error norm_backward(ffi::ThreadPool pool, Array x, Array scale, Array bias, Array z, Array dy,
                         float eps, Output dx, Output dscale, Output dbias, Output dz) {
  Checker check;
  Layer p = read_norm(x, scale, bias, z, eps, check);
  p.dy = check.like("dy", dy, x);
  p.dx = check.like("dx", *dx, x);
  if (p.z) p.dz = check.like("dz", *dz, x);
  float* to_scale = check.shape("dscale", *dscale, {p.width});
  float* to_bias = check.shape("dbias", *dbias, {p.width});
  if (!check.ok()) return check.error();
  return run_layer_with_sums(pool, p, p.row_tasks(), &Level::norm_backward,
                             {{to_scale, p.width}, {to_bias, p.width}});
}

Layer read_conv(Array x, Array kernel, Array bias, Checker& check) {
  Layer p;
  check.rank("x", x, 4);
  if (!check.ok()) return p;
  auto dims = x.dimensions();
  p.clips = dims[0], p.frames = dims[1], p.joints = dims[2], p.width = dims[3];
  // Without a joint there is nothing to slide over.
  if (p.joints == 0) p.frames = 0;
  p.x = x.typed_data();
  p.scale = check.shape("kernel", kernel, {3, 3, p.width});
  p.bias = check.shape("bias", bias, {p.width});
  return p;
}

ffi::Error conv_forward(ffi::ThreadPool pool, Array x, Array kernel, Array bias, Output y) {
  Checker check;
  Layer p = read_conv(x, kernel, bias, check);
  p.y = check.like("y", *y, x);
  if (!check.ok()) return check.error();
  return run_layer(pool, p, p.frame_tasks(), &Level::conv_forward);
}

ffi::Error conv_backward(ffi::ThreadPool pool, Array x, Array kernel, Array bias, Array dy,
                         Output dx, Output dkernel, Output dbias) {
  Checker check;
  Layer p = read_conv(x, kernel, bias, check);
  p.dy = check.like("dy", dy, x);
  p.dx = check.like("dx", *dx, x);
  float* to_kernel = check.shape("dkernel", *dkernel, {3, 3, p.width});
  float* to_bias = check.shape("dbias", *dbias, {p.width});
  if (!check.ok()) return check.error();
  return run_layer_with_sums(pool, p, p.frame_tasks(), &Level::conv_backward,
                             {{to_kernel, 9 * p.width}, {to_bias, p.width}});
}

ffi::Error gelu_forward(ffi::ThreadPool pool, Array x, Output y) {
  Checker check;
  Layer p = read_rows(x, check);
  p.y = check.like("y", *y, x);
  if (!check.ok()) return check.error();
  return run_layer(pool, p, p.row_tasks(), &Level::gelu_forward);
}

ffi::Error gelu_backward(ffi::ThreadPool pool, Array x, Array dy, Output dx) {
  Checker check;
  Layer p = read_rows(x, check);
  p.dy = check.like("dy", dy, x);
  p.dx = check.like("dx", *dx, x);
  if (!check.ok()) return check.error();
  return run_layer(pool, p, p.row_tasks(), &Level::gelu_backward);
}

}  // namespace

#define LAYER_BIND ffi::Ffi::Bind().Ctx<ffi::ThreadPool>()
#define LAYER_3_ARGS Arg<Array>().Arg<Array>().Arg<Array>()

SCAN_HANDLER(selective_scan_cpu_norm_forward, norm_forward,
             LAYER_BIND.LAYER_3_ARGS.Arg<Array>().Attr<float>("eps").Ret<Array>());
SCAN_HANDLER(selective_scan_cpu_norm_backward, norm_backward,
             LAYER_BIND.LAYER_3_ARGS.Arg<Array>()
                 .Arg<Array>()
                 .Attr<float>("eps")
                 .Ret<Array>()
                 .Ret<Array>()
                 .Ret<Array>()
                 .Ret<Array>());
SCAN_HANDLER(selective_scan_cpu_conv_forward, conv_forward,
             LAYER_BIND.LAYER_3_ARGS.Ret<Array>());
SCAN_HANDLER(selective_scan_cpu_conv_backward, conv_backward,
             LAYER_BIND.LAYER_3_ARGS.Arg<Array>().Ret<Array>().Ret<Array>().Ret<Array>());
SCAN_HANDLER(selective_scan_cpu_gelu_forward, gelu_forward,
             LAYER_BIND.Arg<Array>().Ret<Array>());
SCAN_HANDLER(selective_scan_cpu_gelu_backward, gelu_backward,
             LAYER_BIND.Arg<Array>().Arg<Array>().Ret<Array>());

}  // namespace selective_scan
