// GELU and SiLU for XLA's CPU backend, float32, and their gradients: vectors
// throughout, where XLA's loops spend most of their time on erf and exp.

#include <cstdint>

#include "activations.h"

namespace {

constexpr int64_t kVectorsPerTask = 1024;

// Calls work(place, length) for vectors, then for what is left of one.
template <typename Work>
void Everywhere(const Pool& pool, int64_t count, const Work& work) {
  constexpr int64_t kPerTask = kVectorsPerTask * kLanes;
  Parallel(pool, (count + kPerTask - 1) / kPerTask,
           [&](int64_t begin, int64_t end) {
             const int64_t last = std::min(end * kPerTask, count);
             int64_t i = begin * kPerTask;
             for (; i + kLanes <= last; i += kLanes) work(i, kLanes);
             if (i < last) work(i, last - i);
           });
}

// x [N] -> out [N].
template <typename Function>
void Forward(const Call& call) {
  const Array x = call.arguments[0], out = call.results[0];
  Everywhere(call.pool, x.size(), [&](int64_t i, int64_t count) {
    const Vector at = LoadSome(x.data + i, count);
    StoreSome(out.data + i, Function::Value(at), count);
  });
}

// x, slope [N] -> to_x [N].
template <typename Function>
void Backward(const Call& call) {
  const Array x = call.arguments[0], slope = call.arguments[1];
  const Array to_x = call.results[0];
  Everywhere(call.pool, x.size(), [&](int64_t i, int64_t count) {
    const Vector at = LoadSome(x.data + i, count);
    const Vector given = LoadSome(slope.data + i, count);
    StoreSome(to_x.data + i, given * Function::Slope(at), count);
  });
}

}  // namespace

SEXTET_HANDLER(sextet_gelu, Forward<Gelu>)
SEXTET_HANDLER(sextet_gelu_slope, Backward<Gelu>)
SEXTET_HANDLER(sextet_silu, Forward<Silu>)
SEXTET_HANDLER(sextet_silu_slope, Backward<Silu>)
