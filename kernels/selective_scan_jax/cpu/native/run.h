// Which instruction set runs, and the tasks of a call on XLA's own threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "denormals.h"
#include "scan.h"
#include "xla/ffi/api/ffi.h"

namespace selective_scan {
namespace {

namespace ffi = xla::ffi;

std::vector<const Level*> supported_levels() {  // best first
  std::vector<const Level*> levels;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    levels.push_back(&level_avx512);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    levels.push_back(&level_avx2);
  }
#endif
  levels.push_back(&level_baseline);
  return levels;
}

std::atomic<const Level*> current_level{supported_levels().front()};
std::atomic<int64_t> thread_limit{0};  // 0: as many as XLA has

// The tasks of one call. Helpers that XLA starts late find none left and never touch the buffers,
// which is why they share ownership of this and why the caller need not wait for them.
struct Run {
  std::function<void(int64_t, void*)> task;
  size_t scratch_bytes;
  int64_t tasks;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::condition_variable all_done;
  int64_t done = 0;

  // Takes tasks in order until none is left; false if there is no memory for scratch.
  bool work() {
    if (next.load() >= tasks) return true;
    void* scratch = ::operator new(scratch_bytes, std::align_val_t{64}, std::nothrow);
    if (scratch == nullptr) return false;
    {
      FlushDenormals flush;
      int64_t mine = 0;
      for (int64_t i; (i = next.fetch_add(1)) < tasks; ++mine) task(i, scratch);
      std::lock_guard<std::mutex> lock(mutex);
      done += mine;
      if (done == tasks) all_done.notify_all();
    }
    ::operator delete(scratch, std::align_val_t{64});
    return true;
  }

  void wait() {
    std::unique_lock<std::mutex> lock(mutex);
    all_done.wait(lock, [this] { return done == tasks; });
  }
};

int64_t threads_of(ffi::ThreadPool& pool) {
  int64_t threads = pool.num_threads(), limit = thread_limit.load();
  return limit > 0 && limit < threads ? limit : threads;
}

// Runs task(0) to task(tasks - 1), each with scratch memory, and returns when all are done.
ffi::Error run_all(ffi::ThreadPool& pool, int64_t tasks, size_t scratch_bytes,
                   std::function<void(int64_t, void*)> task) {
  auto run = std::make_shared<Run>();
  run->task = std::move(task);
  run->scratch_bytes = scratch_bytes;
  run->tasks = tasks;
  int64_t threads = threads_of(pool);
  if (tasks < threads) threads = tasks;
  for (int64_t i = 1; i < threads; ++i) pool.Schedule([run] { run->work(); });
  if (!run->work()) {
    // Helpers may have taken some tasks; none may be left running when the buffers go away.
    int64_t taken = run->next.exchange(run->tasks);
    if (taken < run->tasks) {
      std::lock_guard<std::mutex> lock(run->mutex);
      run->done += run->tasks - taken;
    }
    run->wait();
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "selective scan: no scratch memory");
  }
  run->wait();
  return ffi::Error::Success();
}

ffi::Error run_tasks(ffi::ThreadPool& pool, Problem p, bool backward) {
  const Level* level = current_level.load();
  // Wide tasks read B, C and dt less often; narrow ones keep more threads busy.
  int64_t threads = threads_of(pool);
  while (!backward && p.block > kMinBlock && p.tasks() < 2 * threads) p.block /= 2;
  p.yield = [] { std::this_thread::yield(); };
  std::vector<int64_t> counters(backward ? 2 * p.tasks() : 0, 0);
  p.chunks_done = counters.data();
  p.directions_done = counters.data() + counters.size() / 2;
  auto* task = backward ? level->backward : level->forward;
  return run_all(pool, p.tasks(), level->scratch_bytes(p),
                 [p, task](int64_t i, void* scratch) { task(p, i, scratch); });
}

}  // namespace
}  // namespace selective_scan
