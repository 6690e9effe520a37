// What the C++ of the models shares: vectors, scratch memory, threads.
//
// How work is divided over threads changes no sum: results do not depend on
// the number of threads.

#ifndef SEXTET_NATIVE_H_
#define SEXTET_NATIVE_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <new>

#include "handler.h"

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float))));

inline Vector Load(const float* from) {
  Vector value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

inline void Store(float* to, Vector value) {
  std::memcpy(to, &value, sizeof(value));
}

// Of the last numbers, which may fill no vector; the rest is zero.
inline Vector LoadSome(const float* from, int64_t count) {
  if (count == kLanes) return Load(from);
  Vector value = {};
  std::memcpy(&value, from, count * sizeof(float));
  return value;
}

inline void StoreSome(float* to, Vector value, int64_t count) {
  if (count == kLanes) return Store(to, value);
  std::memcpy(to, &value, count * sizeof(float));
}

inline int64_t VectorsOf(int64_t length) {
  return (length + kLanes - 1) / kLanes;
}

// Vectors of an aligned scratch memory, all zero unless that does not matter.
class Scratch {
 public:
  explicit Scratch(int64_t count, bool zero = true)
      : data_(static_cast<Vector*>(::operator new(
            count * sizeof(Vector), std::align_val_t(sizeof(Vector))))) {
    const size_t bytes = count * sizeof(Vector);
    if (zero) std::memset(static_cast<void*>(data_), 0, bytes);
  }
  ~Scratch() {
    ::operator delete(data_, std::align_val_t(sizeof(Vector)));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  Vector* get() const { return data_; }

 private:
  Vector* data_;
};

// Calls work(begin, end) for ranges that cover [0, tasks), on all threads.
// What one of them throws is thrown, when all have ended.
template <typename Work>
void Parallel(const Pool& pool, int64_t tasks, const Work& work) {
  const int64_t threads = std::min(pool.num_threads(), tasks);
  if (threads <= 1) {
    work(0, tasks);
    return;
  }
  struct Shared {
    std::atomic<int64_t> next{0};
    std::mutex mutex;
    std::condition_variable all_done;
    int64_t done = 0;
    std::exception_ptr thrown;
  };
  auto shared = std::make_shared<Shared>();
  const int64_t pieces = std::min(tasks, 4 * threads);
  // A helper that comes late finds no piece left, and touches nothing else.
  auto run = [shared, pieces, tasks, &work] {
    for (int64_t i; (i = shared->next++) < pieces;) {
      std::exception_ptr thrown;
      try {
        work(i * tasks / pieces, (i + 1) * tasks / pieces);
      } catch (...) {
        thrown = std::current_exception();
      }
      std::lock_guard<std::mutex> lock(shared->mutex);
      if (thrown) shared->thrown = thrown;
      if (++shared->done == pieces) shared->all_done.notify_all();
    }
  };
  try {
    for (int64_t i = 1; i < threads; ++i) pool.Schedule(run);
  } catch (const std::bad_alloc&) {  // This thread does what is left.
  }
  run();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == pieces; });
  if (shared->thrown) std::rethrow_exception(shared->thrown);
}

}  // namespace

#endif  // SEXTET_NATIVE_H_
