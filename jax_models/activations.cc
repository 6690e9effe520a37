// GELU and SiLU for XLA's CPU backend, float32, and their gradients: vectors
// throughout, where XLA's loops spend most of their time on erf and exp.

#include <cstdint>

#include "activations.h"

namespace {

constexpr int64_t kVectorsPerTask = 1024;

// Calls work(place, length) for vectors, then for what is left of one.
template <typename Work>
void Everywhere(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  constexpr int64_t kPerTask = kVectorsPerTask * kLanes;
  Parallel(pool, (count + kPerTask - 1) / kPerTask,
           [&](int64_t begin, int64_t end) {
             const int64_t last = std::min(end * kPerTask, count);
             int64_t i = begin * kPerTask;
             for (; i + kLanes <= last; i += kLanes) work(i, kLanes);
             if (i < last) work(i, last - i);
           });
}

inline Vector Some(const float* from, int64_t count) {
  if (count == kLanes) return Load(from);
  Vector value = {};
  std::memcpy(&value, from, count * sizeof(float));
  return value;
}

inline void Keep(float* to, Vector value, int64_t count) {
  std::memcpy(to, &value, count * sizeof(float));
}

// x [N] -> out [N].
template <typename Function>
ffi::Error Forward(ffi::ThreadPool pool, Array x, Result out) {
  Everywhere(pool, x.element_count(), [&](int64_t i, int64_t count) {
    const Vector at = Some(x.typed_data() + i, count);
    Keep(out->typed_data() + i, Function::Value(at), count);
  });
  return ffi::Error::Success();
}

// x, slope [N] -> to_x [N].
template <typename Function>
ffi::Error Backward(ffi::ThreadPool pool, Array x, Array slope, Result to_x) {
  Everywhere(pool, x.element_count(), [&](int64_t i, int64_t count) {
    const Vector at = Some(x.typed_data() + i, count);
    const Vector given = Some(slope.typed_data() + i, count);
    Keep(to_x->typed_data() + i, given * Function::Slope(at), count);
  });
  return ffi::Error::Success();
}

}  // namespace

#define SEXTET_FORWARD(name, function)                            \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, Forward<function>,          \
                                ffi::Ffi::Bind()                  \
                                    .Ctx<ffi::ThreadPool>()       \
                                    .Arg<Array>()                 \
                                    .Ret<Array>())
#define SEXTET_BACKWARD(name, function)                           \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, Backward<function>,         \
                                ffi::Ffi::Bind()                  \
                                    .Ctx<ffi::ThreadPool>()       \
                                    .Arg<Array>()                 \
                                    .Arg<Array>()                 \
                                    .Ret<Array>())

SEXTET_FORWARD(sextet_gelu, Gelu);
SEXTET_BACKWARD(sextet_gelu_slope, Gelu);
SEXTET_FORWARD(sextet_silu, Silu);
SEXTET_BACKWARD(sextet_silu_slope, Silu);
