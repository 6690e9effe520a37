// Depthwise convolution for XLA's CPU backend, channels last, float32.
//
// Work is divided into (image, block of channels). The block's part of an image is copied
// into a slab with zeros around it, a vector of channels for each pixel, so
// the loops below know no edges, and everything that they read is in cache.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "native.h"

namespace {

// Sums that a tile keeps in registers: two units with a latency of four.
constexpr int kTile = 8;
// Images whose weight gradients are summed before the sums are summed.
constexpr int64_t kImagesPerSum = 4;

// Blocks of kLanes channels. The last one begins early enough to be whole:
// channels that it shares with the one before are computed twice, alike.
struct Blocks {
  explicit Blocks(int64_t channels)
      : channels(channels), count((channels + kLanes - 1) / kLanes) {}
  int64_t First(int64_t block) const {
    return std::min(block * kLanes, channels - kLanes);
  }
  int64_t channels;
  int64_t count;
};

// Where the pixels of an image lie in a slab.
struct Placement {
  int64_t height, width;  // of the slab
  int64_t top, left;      // of the first pixel
  int64_t spread;         // from one pixel to the next
};

// Copies a block of channels of one image [rows, columns, channels].
void Fill(Vector* slab, const float* image, int64_t rows, int64_t columns,
          int64_t channels, const Placement& place) {
  for (int64_t y = 0; y < rows; ++y) {
    const int64_t row = place.top + y * place.spread;
    if (row >= place.height) break;
    Vector* to = slab + row * place.width + place.left;
    const float* from = image + y * columns * channels;
    const int64_t fit =
        (place.width - place.left + place.spread - 1) / place.spread;
    for (int64_t x = 0; x < std::min(columns, fit); ++x) {
      to[x * place.spread] = Load(from + x * channels);
    }
  }
}

// A tile of Rows x Columns outputs. Here and below, D is an integer or a
// constant that stands for one.
template <int K, int S, int Rows, int Columns, typename D>
inline void Tile(const Vector* slab, int64_t width, D dilation,
                 const Vector* kernel, float* out, int64_t row_stride,
                 int64_t channels) {
  Vector sums[Rows][Columns] = {};
  for (int i = 0; i < K; ++i) {
#pragma GCC unroll 7
    for (int j = 0; j < K; ++j) {
      const Vector weight = kernel[i * K + j];
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) {
        const Vector* from =
            slab + (r * S + i * dilation) * width + j * dilation;
#pragma GCC unroll 8
        for (int c = 0; c < Columns; ++c) sums[r][c] += from[c * S] * weight;
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < Columns; ++c) {
      Store(out + r * row_stride + c * channels, sums[r][c]);
    }
  }
}

// A strip of Columns outputs, from top to bottom.
template <int K, int S, int Columns, typename D>
void Strip(const Vector* slab, int64_t width, D dilation, const Vector* kernel,
           float* out, int64_t rows, int64_t row_stride, int64_t channels) {
  constexpr int kRows = kTile / Columns;
  int64_t y = 0;
  for (; y + kRows <= rows; y += kRows) {
    Tile<K, S, kRows, Columns>(slab + y * S * width, width, dilation, kernel,
                               out + y * row_stride, row_stride, channels);
  }
  if constexpr (kRows > 1) {
    for (; y < rows; ++y) {
      Tile<K, S, 1, Columns>(slab + y * S * width, width, dilation, kernel,
                             out + y * row_stride, row_stride, channels);
    }
  }
}

template <int K, int S, typename D>
void Convolve(const Vector* slab, int64_t width, D dilation,
              const Vector* kernel, float* out, int64_t rows, int64_t columns,
              int64_t channels) {
  const int64_t row_stride = columns * channels;
  int64_t x = 0;
  auto strips = [&](auto size) {
    for (; x + size <= columns; x += size) {
      Strip<K, S, size>(slab + x * S, width, dilation, kernel,
                        out + x * channels, rows, row_stride, channels);
    }
  };
  strips(std::integral_constant<int, 8>());
  strips(std::integral_constant<int, 4>());
  strips(std::integral_constant<int, 2>());
  strips(std::integral_constant<int, 1>());
}

// Adds to sums [K, K] what Rows rows of the kernel get from one image.
template <int K, int S, int Rows, typename D>
inline void KernelRows(const Vector* slab, int64_t width, D dilation,
                       const Vector* grad, int64_t rows, int64_t columns,
                       Vector* sums) {
  Vector parts[Rows][K] = {};
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t x = 0; x < columns; ++x) {
      const Vector factor = grad[y * columns + x];
      const Vector* from = slab + y * S * width + x * S;
#pragma GCC unroll 8
      for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
        for (int j = 0; j < K; ++j) {
          parts[i][j] += from[(i * width + j) * dilation] * factor;
        }
      }
    }
  }
  for (int i = 0; i < Rows; ++i) {
    for (int j = 0; j < K; ++j) sums[i * K + j] += parts[i][j];
  }
}

template <int K, int S, typename D>
void KernelGrad(const Vector* slab, int64_t width, D dilation,
                const Vector* grad, int64_t rows, int64_t columns,
                Vector* sums) {
  constexpr int kRows = K == 3 ? 3 : 2;
  int i = 0;
  for (; i + kRows <= K; i += kRows) {
    KernelRows<K, S, kRows>(slab + i * dilation * width, width, dilation, grad,
                            rows, columns, sums + i * K);
  }
  if constexpr (K % kRows != 0) {
    KernelRows<K, S, 1>(slab + i * dilation * width, width, dilation, grad,
                        rows, columns, sums + i * K);
  }
}

// Calls function(K, S, D), the first two as constants: those that models have,
// since each takes the compiler its time.
template <typename Function>
void WithConstants(int64_t size, int64_t stride, int64_t dilation,
                   Function function) {
  const std::integral_constant<int, 1> one;
  const std::integral_constant<int, 2> two;
  const std::integral_constant<int, 3> three;
  const std::integral_constant<int, 5> five;
  const std::integral_constant<int, 7> seven;
  if (dilation == 1) {
    if (size == 3 && stride == 1) return function(three, one, one);
    if (size == 3 && stride == 2) return function(three, two, one);
    if (size == 5 && stride == 1) return function(five, one, one);
    if (size == 5 && stride == 2) return function(five, two, one);
    if (size == 7 && stride == 1) return function(seven, one, one);
  } else {
    if (size == 3 && stride == 1) return function(three, one, dilation);
    if (size == 5 && stride == 1) return function(five, one, dilation);
  }
  Refuse("there is no such kernel size, stride and dilation");
}

// images [B, H, W, C], kernel [K, K, C] -> out [B, h, w, C]. Pixels of the
// images are `spread` apart, with zeros between, `top` and `left` of zeros
// before. The kernel's taps are `dilation` apart. `flip` turns the kernel by 180 degrees.
void ConvolveAll(const Call& call) {
  const Array images = call.arguments[0], kernel = call.arguments[1];
  const Array out = call.results[0];
  const int64_t stride = call.Number<int64_t>("stride");
  const int64_t dilation = call.Number<int64_t>("dilation");
  const bool flip = call.Number<bool>("flip");
  const int64_t *in = images.dimensions, *to = out.dimensions;
  const int64_t size = kernel.dimensions[0];
  Expect("kernel", kernel, {size, size, in[3]});
  const Blocks blocks(in[3]);
  const int64_t taps = size * size;
  Scratch packed(blocks.count * taps);
  for (int64_t block = 0; block < blocks.count; ++block) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      packed.get()[block * taps + (flip ? taps - 1 - tap : tap)] =
          Load(kernel.data + tap * in[3] + blocks.First(block));
    }
  }
  const Placement place{
      (to[1] - 1) * stride + (size - 1) * dilation + 1,
      (to[2] - 1) * stride + (size - 1) * dilation + 1,
      call.Number<int64_t>("top"), call.Number<int64_t>("left"),
      call.Number<int64_t>("spread")};
  WithConstants(size, stride, dilation, [&](auto k, auto s, auto d) {
    Parallel(call.pool, in[0] * blocks.count, [&](int64_t begin, int64_t end) {
      Scratch slab(place.height * place.width);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t image = task / blocks.count;
        const int64_t block = task % blocks.count;
        const int64_t first = blocks.First(block);
        Fill(slab.get(),
             images.data + image * in[1] * in[2] * in[3] + first,
             in[1], in[2], in[3], place);
        Convolve<k, s>(slab.get(), place.width, d,
                       packed.get() + block * taps,
                       out.data + image * to[1] * to[2] * to[3] +
                           first,
                       to[1], to[2], to[3]);
      }
    });
  });
}

// images [B, H, W, C], grad [B, h, w, C] -> out [K, K, C].
void KernelGradAll(const Call& call) {
  const Array images = call.arguments[0], grad = call.arguments[1];
  const Array out = call.results[0];
  const int64_t stride = call.Number<int64_t>("stride");
  const int64_t dilation = call.Number<int64_t>("dilation");
  const int64_t *in = images.dimensions, *from = grad.dimensions;
  const int64_t size = out.dimensions[0], taps = size * size;
  Expect("gradient", grad, {in[0], from[1], from[2], in[3]});
  const Blocks blocks(in[3]);
  const int64_t sums = (in[0] + kImagesPerSum - 1) / kImagesPerSum;
  const Placement place{
      (from[1] - 1) * stride + (size - 1) * dilation + 1,
      (from[2] - 1) * stride + (size - 1) * dilation + 1,
      call.Number<int64_t>("top"), call.Number<int64_t>("left"), 1};
  const Placement whole{from[1], from[2], 0, 0, 1};
  Scratch partial(sums * blocks.count * taps);
  WithConstants(size, stride, dilation, [&](auto k, auto s, auto d) {
    Parallel(call.pool, sums * blocks.count, [&](int64_t begin, int64_t end) {
      Scratch slab(place.height * place.width), grads(from[1] * from[2]);
      for (int64_t task = begin; task < end; ++task) {
        const int64_t sum = task / blocks.count;
        const int64_t first = blocks.First(task % blocks.count);
        const int64_t last = std::min((sum + 1) * kImagesPerSum, in[0]);
        for (int64_t image = sum * kImagesPerSum; image < last; ++image) {
          Fill(slab.get(),
               images.data + image * in[1] * in[2] * in[3] + first,
               in[1], in[2], in[3], place);
          Fill(grads.get(),
               grad.data + image * from[1] * from[2] * from[3] +
                   first,
               from[1], from[2], from[3], whole);
          KernelGrad<k, s>(slab.get(), place.width, d, grads.get(), from[1],
                           from[2], partial.get() + task * taps);
        }
      }
    });
  });
  for (int64_t block = 0; block < blocks.count; ++block) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      Vector total = {};
      for (int64_t sum = 0; sum < sums; ++sum) {
        total += partial.get()[(sum * blocks.count + block) * taps + tap];
      }
      Store(out.data + tap * in[3] + blocks.First(block), total);
    }
  }
}

}  // namespace

extern "C" int64_t sextet_lanes() { return kLanes; }

SEXTET_HANDLER(sextet_depthwise, ConvolveAll)
SEXTET_HANDLER(sextet_depthwise_kernel_grad, KernelGradAll)
