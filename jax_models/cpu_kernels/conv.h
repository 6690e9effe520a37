// What the convolutions of the models share.

#ifndef SEXTET_CONV_H_
#define SEXTET_CONV_H_

#include <algorithm>
#include <cstdint>

#include "gemm.h"

namespace {

// A map [B, H, W, C], or one of which every cell is there twice, down and
// across.
struct Map {
  explicit Map(const Array& array, bool repeated = false)
      : data(array.data),
        batch(array.dimensions[0]),
        height(array.dimensions[1] << repeated),
        width(array.dimensions[2] << repeated),
        channels(array.dimensions[3]),
        repeated(repeated) {}

  float* At(int64_t image, int64_t y, int64_t x) const {
    const int64_t row = image * (height >> repeated) + (y >> repeated);
    return data + (row * (width >> repeated) + (x >> repeated)) * channels;
  }

  float* const data;
  const int64_t batch, height, width, channels;
  const bool repeated;
};

// A kernel [k, k, I, O], turned by 180 degrees: [k, k, O, I].
class Turned {
 public:
  Turned(const Pool& pool, const float* kernel, int64_t size, int64_t inputs,
         int64_t outputs)
      : scratch_(VectorsOf(size * size * inputs * outputs), false) {
    constexpr int64_t kBlock = 16;  // of both, which stay in cache
    const int64_t taps = size * size, area = inputs * outputs;
    const int64_t blocks = (outputs + kBlock - 1) / kBlock;
    Parallel(pool, taps * blocks, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t tap = task / blocks, left = task % blocks * kBlock;
        const float* from = kernel + (taps - 1 - tap) * area;
        float* to = data() + tap * area;
        const int64_t right = std::min(left + kBlock, outputs);
        for (int64_t top = 0; top < inputs; top += kBlock) {
          const int64_t bottom = std::min(top + kBlock, inputs);
          for (int64_t o = left; o < right; ++o) {
            for (int64_t i = top; i < bottom; ++i) {
              to[o * inputs + i] = from[i * outputs + o];
            }
          }
        }
      }
    });
  }
  float* data() const { return reinterpret_cast<float*>(scratch_.get()); }

 private:
  Scratch scratch_;
};

}  // namespace

#endif  // SEXTET_CONV_H_
