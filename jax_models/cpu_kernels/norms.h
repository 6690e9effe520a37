// Layer normalisation of one row.

#ifndef SEXTET_NORMS_H_
#define SEXTET_NORMS_H_

#include <cmath>
#include <cstdint>

#include "native.h"

namespace {

// Vectors for as far as they go, then single numbers.
template <typename Work>
inline void Along(int64_t length, Work work) {
  int64_t i = 0;
  for (; i + kLanes <= length; i += kLanes) work(i, Vector{});
  for (; i < length; ++i) work(i, float{});
}

template <typename T>
inline T Get(const float* from) {
  T value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <typename T>
inline void Put(float* to, T value) {
  std::memcpy(to, &value, sizeof(value));
}

// A sum in which vectors stay vectors until the end.
struct Sum {
  void operator+=(Vector value) { vector += value; }
  void operator+=(float value) { single += value; }
  float Total() const {
    float total = single;
    for (int lane = 0; lane < kLanes; ++lane) total += vector[lane];
    return total;
  }
  Vector vector = {};
  float single = 0;
};

struct Statistics {
  Statistics(const float* row, int64_t length, float epsilon) {
    Sum sum, squares;
    Along(length, [&](int64_t i, auto t) { sum += Get<decltype(t)>(row + i); });
    mean = sum.Total() / length;
    Along(length, [&](int64_t i, auto t) {
      const auto centred = Get<decltype(t)>(row + i) - mean;
      squares += centred * centred;
    });
    factor = 1 / std::sqrt(squares.Total() / length + epsilon);
  }
  float mean, factor;
};

// row, scale, bias [length] -> to [length].
inline void Normalize(const float* row, int64_t length, const float* scale,
                      const float* bias, float epsilon, float* to) {
  const Statistics found(row, length, epsilon);
  Along(length, [&](int64_t i, auto t) {
    using T = decltype(t);
    const T normal = (Get<T>(row + i) - found.mean) * found.factor;
    Put<T>(to + i, normal * Get<T>(scale + i) + Get<T>(bias + i));
  });
}

}  // namespace

#endif  // SEXTET_NORMS_H_
