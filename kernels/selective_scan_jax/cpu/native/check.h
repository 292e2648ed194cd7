// Shape checks of a direct call.
#pragma once

#include <initializer_list>
#include <string>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace selective_scan {
namespace {

namespace ffi = xla::ffi;

using Array = ffi::Buffer<ffi::F32>;
using Integers = ffi::Span<const int64_t>;

std::string to_string(Integers dims) {
  std::string text = "(";
  for (size_t i = 0; i < dims.size(); ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + ")";
}

// Collects the first mismatch of a call.
class Checker {
 public:
  void fail(std::string message) {
    if (message_.empty()) message_ = "selective scan: " + std::move(message);
  }

  void rank(const char* name, Array x, size_t expected) {
    if (x.dimensions().size() != expected) {
      fail(std::string(name) + ": expected " + std::to_string(expected) + " dimensions, got shape " +
           to_string(x.dimensions()));
    }
  }

  // The array's data if it has the shape.
  float* shape(const char* name, Array x, std::initializer_list<int64_t> expected) {
    Integers dims = x.dimensions(), wanted(expected.begin(), expected.size());
    bool same = dims.size() == wanted.size();
    for (size_t i = 0; same && i < dims.size(); ++i) same = dims[i] == wanted[i];
    if (!same) {
      fail(std::string(name) + ": expected shape " + to_string(wanted) + ", got " + to_string(dims));
    }
    return x.typed_data();
  }

  // The array's data if it has the shape of another one.
  float* like(const char* name, Array x, Array other) {
    auto dims = x.dimensions(), wanted = other.dimensions();
    bool same = dims.size() == wanted.size();
    for (size_t i = 0; same && i < dims.size(); ++i) same = dims[i] == wanted[i];
    if (!same) {
      fail(std::string(name) + ": expected shape " + to_string(wanted) + ", got " + to_string(dims));
    }
    return x.typed_data();
  }

  // The array's data if it has the shape, null if it is absent, which an array of shape (0,) says.
  float* optional(const char* name, Array x, std::initializer_list<int64_t> expected) {
    if (x.dimensions().size() == 1 && x.dimensions()[0] == 0) return nullptr;
    return shape(name, x, expected);
  }

  bool ok() const { return message_.empty(); }
  ffi::Error error() const {
    return ok() ? ffi::Error::Success() : ffi::Error::InvalidArgument(message_);
  }

 private:
  std::string message_;
};

}  // namespace
}  // namespace selective_scan
