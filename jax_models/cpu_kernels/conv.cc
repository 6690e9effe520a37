// Dense convolution for XLA's CPU backend, channels last, float32, as a matrix
// product of windows that are copied side by side a few at a time.

#include <cstdint>

#include "gemm.h"

namespace {

// images [B, H, W, C], kernel [k, k, C, O] -> out [B, h, w, O]. `top` and
// `left` of zeros lie before the images, as many as it takes behind them.
void Convolve(const Call& call) {
  const Array images = call.arguments[0], kernel = call.arguments[1];
  const Array out = call.results[0];
  const int64_t stride = call.Number<int64_t>("stride");
  const int64_t top = call.Number<int64_t>("top");
  const int64_t left = call.Number<int64_t>("left");
  const int64_t *in = images.dimensions, *to = out.dimensions;
  const int64_t size = kernel.dimensions[0], outputs = to[3];
  const int64_t line = size * in[3], window = size * line;
  const int64_t rows = to[0] * to[1] * to[2];
  Expect("kernel", kernel, {size, size, in[3], outputs});
  const int64_t together = RowsTogether(call.pool, rows, window);
  const Panels panels(call.pool, kernel.data, window, outputs);

  // Copies the window that the row of the result is made of.
  const auto copy = [&](int64_t row, float* window) {
    const int64_t x = row % to[2] * stride - left;
    const int64_t y = row / to[2] % to[1] * stride - top;
    const int64_t number = row / to[2] / to[1];
    const float* image = images.data + number * in[1] * in[2] * in[3];
    const int64_t begin = std::max<int64_t>(x, 0);
    const int64_t end = std::max(begin, std::min(x + size, in[2]));
    const int64_t before = std::min((begin - x) * in[3], line);
    const int64_t inside = (end - begin) * in[3];
    for (int64_t i = y; i < y + size; ++i, window += line) {
      if (i < 0 || i >= in[1]) {
        std::fill(window, window + line, 0.0f);
        continue;
      }
      std::fill(window, window + before, 0.0f);
      std::copy_n(image + (i * in[2] + begin) * in[3], inside, window + before);
      std::fill(window + before + inside, window + line, 0.0f);
    }
  };
  Parallel(call.pool, (rows + together - 1) / together,
           [&](int64_t begin, int64_t end) {
    Scratch scratch(VectorsOf(together * window));
    float* windows = reinterpret_cast<float*>(scratch.get());
    const int64_t bottom = std::min(end * together, rows);
    for (int64_t first = begin * together; first < bottom; first += together) {
      const int64_t count = std::min(together, rows - first);
      for (int64_t row = 0; row < count; ++row) {
        copy(first + row, windows + row * window);
      }
      Multiply(windows, window, count, panels,
               [&](int64_t row, int64_t v, Vector sum) {
        if (row >= count) return;
        const int64_t size = std::min<int64_t>(kLanes, outputs - v * kLanes);
        float* place = out.data + (first + row) * outputs + v * kLanes;
        StoreSome(place, sum, size);
      });
    }
  });
}

}  // namespace

SEXTET_HANDLER(sextet_conv, Convolve)
