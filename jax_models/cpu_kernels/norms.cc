// Layer normalisation for XLA's CPU backend, float32: one pass over the rows
// where XLA makes several, and writes what lies between to memory.

#include <cstdint>

#include "norms.h"

namespace {

// Rows whose gradients of scale and bias are summed before the sums are.
constexpr int64_t kRowsPerSum = 256;

// x [rows, C], scale [C], bias [C] -> out [rows, C].
void Forward(const Call& call) {
  const Array x = call.arguments[0], scale = call.arguments[1];
  const Array bias = call.arguments[2], out = call.results[0];
  const float epsilon = call.Number<float>("epsilon");
  const int64_t rows = x.dimensions[0], length = x.dimensions[1];
  Expect("scale", scale, {length});
  Expect("bias", bias, {length});
  Parallel(call.pool, rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      Normalize(x.data + row * length, length, scale.data, bias.data, epsilon,
                out.data + row * length);
    }
  });
}

// x, slope [rows, C], scale [C] -> to_x [rows, C], to_scale [C], to_bias [C].
void Backward(const Call& call) {
  const Array x = call.arguments[0], scale = call.arguments[1];
  const Array slope = call.arguments[2], to_x = call.results[0];
  const Array to_scale = call.results[1], to_bias = call.results[2];
  const float epsilon = call.Number<float>("epsilon");
  const int64_t rows = x.dimensions[0], length = x.dimensions[1];
  Expect("scale", scale, {length});
  Expect("slope", slope, {rows, length});
  const int64_t parts = (rows + kRowsPerSum - 1) / kRowsPerSum;
  Scratch scratch(parts * 2 * length / kLanes + 1);
  float* partial = reinterpret_cast<float*>(scratch.get());
  Parallel(call.pool, parts, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      float* scale_sum = partial + part * 2 * length;
      float* bias_sum = scale_sum + length;
      const int64_t last = std::min((part + 1) * kRowsPerSum, rows);
      for (int64_t row = part * kRowsPerSum; row < last; ++row) {
        const float* from = x.data + row * length;
        const float* back = slope.data + row * length;
        float* to = to_x.data + row * length;
        const Statistics found(from, length, epsilon);
        // What shifting and stretching a row would change has no effect.
        Sum shifts, stretches;
        Along(length, [&](int64_t i, auto t) {
          using T = decltype(t);
          const T normal = (Get<T>(from + i) - found.mean) * found.factor;
          const T given = Get<T>(back + i);
          const T scaled = given * Get<T>(scale.data + i);
          shifts += scaled;
          stretches += scaled * normal;
          Put<T>(scale_sum + i, Get<T>(scale_sum + i) + given * normal);
          Put<T>(bias_sum + i, Get<T>(bias_sum + i) + given);
        });
        const float shift = shifts.Total() / length;
        const float stretch = stretches.Total() / length;
        Along(length, [&](int64_t i, auto t) {
          using T = decltype(t);
          const T normal = (Get<T>(from + i) - found.mean) * found.factor;
          const T scaled =
              Get<T>(back + i) * Get<T>(scale.data + i);
          Put<T>(to + i, (scaled - shift - normal * stretch) * found.factor);
        });
      }
    }
  });
  for (int64_t i = 0; i < length; ++i) {
    float scale_sum = 0, bias_sum = 0;
    for (int64_t part = 0; part < parts; ++part) {
      scale_sum += partial[part * 2 * length + i];
      bias_sum += partial[part * 2 * length + length + i];
    }
    to_scale.data[i] = scale_sum;
    to_bias.data[i] = bias_sum;
  }
}

}  // namespace

SEXTET_HANDLER(sextet_layer_norm, Forward)
SEXTET_HANDLER(sextet_layer_norm_slopes, Backward)
