// 3x3 convolutions of stride 1 for XLA's CPU backend, channels last, float32,
// by minimal filtering, F(2x2, 3x3) of Lavin & Gray, "Fast Algorithms for
// Convolutional Neural Networks", arXiv 1509.09308.
//
// A tile of 4x4 inputs x gives 2x2 outputs with 16 products for each pair of
// channels, instead of 36:
//
//   outputs = A^T [ sum over channels of (G kernel G^T) * (B^T x B) ] A
//
// The kernel's gradient is the transpose of that. Where the inputs are a map
// of which every cell is repeated, two across and two down, the middle two of
// a tile's four rows are alike, and so are the columns: B^T x B is zero at
// point 2 of each axis, and 9 products are left. A^T [] A has no use for that
// point where the outputs are summed over such repetitions, as in the
// gradient with respect to the map.

#include <cstdint>

#include "conv.h"
#include "winograd.h"

namespace {

// For each point a matrix [rows, columns], with whole vectors of columns.
// Their distance is odd, lest a row of all of them fall on one cache line.
struct Planes {
  Planes(int64_t points, int64_t rows, int64_t columns)
      : width(VectorsOf(columns) * kLanes),
        apart(rows * width + kLanes),
        scratch(points * apart / kLanes) {}
  float* at(int64_t point) {
    return reinterpret_cast<float*>(scratch.get()) + point * apart;
  }

  const int64_t width, apart;
  Scratch scratch;
};

// The tiles of 2x2 outputs, `dilation` apart, that cover a map.
struct Tiles {
  Tiles(const Map& map, int64_t dilation)
      : dilation(dilation),
        rows(dilation * ((map.height + 2 * dilation - 1) / (2 * dilation))),
        columns(dilation * ((map.width + 2 * dilation - 1) / (2 * dilation))),
        count(map.batch * rows * columns) {}

  // Calls work(i, image, y, x) for the tiles first + i, i in [begin, end),
  // with the place of their first output.
  template <typename Work>
  void ForEach(int64_t first, int64_t begin, int64_t end,
               const Work& work) const {
    int64_t column = (first + begin) % columns;
    int64_t row = (first + begin) / columns % rows;
    int64_t image = (first + begin) / columns / rows;
    for (int64_t i = begin; i < end; ++i) {
      work(i, image, Begin(row), Begin(column));
      if (++column < columns) continue;
      column = 0;
      if (++row < rows) continue;
      row = 0;
      ++image;
    }
  }

  int64_t Begin(int64_t i) const {
    if (dilation == 1) return 2 * i;
    return i % dilation + i / dilation * 2 * dilation;
  }

  const int64_t dilation, rows, columns, count;
};

// Transforms the Side x Side cells from (y, x) on, as far as they are in the
// map, to row `row` of the planes: vectors [first, last) of the channels.
template <typename Transform, int Side, int Points>
void ToPlanes(const Map& map, int64_t image, int64_t y, int64_t x,
              int64_t dilation, int64_t first, int64_t last, Planes& planes,
              int64_t row) {
  const float* cells[Side][Side];
#pragma GCC unroll 4
  for (int i = 0; i < Side; ++i) {
    const int64_t down = y + i * dilation;
#pragma GCC unroll 4
    for (int j = 0; j < Side; ++j) {
      const int64_t across = x + j * dilation;
      const bool inside =
          down >= 0 && down < map.height && across >= 0 && across < map.width;
      cells[i][j] = inside ? map.At(image, down, across) : nullptr;
    }
  }
  float* to = planes.at(0) + row * planes.width;
  const auto transform = [&](int64_t from, const auto& load) {
    Vector values[Side][Side], points[Points][Points];
#pragma GCC unroll 4
    for (int i = 0; i < Side; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < Side; ++j) {
        const float* cell = cells[i][j];
        values[i][j] = cell ? load(cell + from) : Vector{};
      }
    }
    Apply<Transform, Points>(values, points);
#pragma GCC unroll 4
    for (int i = 0; i < Points; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < Points; ++j) {
        Store(to + (i * Points + j) * planes.apart, points[i][j]);
      }
    }
    to += kLanes;
  };
  const int64_t whole = std::min(last, map.channels / kLanes);
  for (int64_t v = first; v < whole; ++v) transform(v * kLanes, Load);
  if (whole < last) {
    transform(whole * kLanes, [&](const float* from) {
      return LoadSome(from, map.channels % kLanes);
    });
  }
}

// Transforms row `row` of the planes to Side x Side cells from (y, x) on.
template <typename Transform, int Points, int Side>
void FromPlanes(Planes& planes, int64_t row, const Map& map, int64_t image,
                int64_t y, int64_t x, int64_t dilation) {
  const float* from = planes.at(0) + row * planes.width;
  for (int64_t c = 0; c < map.channels; c += kLanes, from += kLanes) {
    const int64_t size = std::min<int64_t>(kLanes, map.channels - c);
    Vector points[Points][Points], values[Side][Side];
#pragma GCC unroll 4
    for (int i = 0; i < Points; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < Points; ++j) {
        points[i][j] = Load(from + (i * Points + j) * planes.apart);
      }
    }
    Apply<Transform, Points>(points, values);
    for (int i = 0; i < Side; ++i) {
      for (int j = 0; j < Side; ++j) {
        const int64_t down = y + i * dilation, across = x + j * dilation;
        if (down >= map.height || across >= map.width) continue;
        StoreSome(map.At(image, down, across) + c, values[i][j], size);
      }
    }
  }
}

// G kernel G^T of a kernel [3, 3, I, O], a matrix [I, O] for each point.
template <int Points>
Panels TransformKernel(const Pool& pool, const float* kernel, int64_t inputs,
                       int64_t outputs) {
  const auto fill = [=](int64_t i, int64_t v, Vector* to, int64_t apart) {
    const int64_t size = std::min<int64_t>(kLanes, outputs - v * kLanes);
    Vector taps[3][3], points[Points][Points];
#pragma GCC unroll 9
    for (int tap = 0; tap < 9; ++tap) {
      taps[tap / 3][tap % 3] = LoadSome(
          kernel + (tap * inputs + i) * outputs + v * kLanes, size);
    }
    Apply<OfKernel, Points>(taps, points);
#pragma GCC unroll 16
    for (int p = 0; p < Points * Points; ++p) {
      to[p * apart] = points[p / Points][p % Points];
    }
  };
  return Panels(pool, inputs, outputs, Points * Points, fill);
}

// Transformed kernels of more bytes are read once for many tiles, by all
// threads together, and not by each thread for its own few.
constexpr int64_t kLargeKernel = 1 << 21;
constexpr int64_t kTilesOfLarge = 64;

template <int Points>
void Convolve(const Call& call, const Map& in, const Map& out,
              const float* kernel) {
  constexpr int kPlanes = Points * Points;
  const int64_t dilation = call.Number<int64_t>("dilation");
  const int64_t top = call.Number<int64_t>("top");
  const int64_t left = call.Number<int64_t>("left");
  const Panels panels =
      TransformKernel<Points>(call.pool, kernel, in.channels, out.channels);
  const Tiles tiles(out, dilation);
  const int64_t bytes = panels.vectors * kLanes * in.channels * kPlanes * 4;
  const bool is_large = bytes > kLargeKernel;
  const int64_t together =
      is_large ? std::min(kTilesOfLarge, TilesOf(tiles.count) * kTileRows)
               : RowsTogether(call.pool, tiles.count,
                              kPlanes * (in.channels + out.channels));
  // `spread` divides tasks over threads, or does not.
  const auto convolve = [&](int64_t first, Planes& inputs, Planes& products,
                            const auto& spread) {
    const int64_t count = std::min(together, tiles.count - first);
    spread(count, [&](int64_t begin, int64_t end) {
      tiles.ForEach(first, begin, end,
                    [&](int64_t i, int64_t image, int64_t y, int64_t x) {
        ToPlanes<OfInputs, 4, Points>(in, image, y - top, x - left, dilation, 0,
                                      VectorsOf(in.channels), inputs, i);
      });
    });
    spread(kPlanes, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        Multiply(inputs.at(p), inputs.width, TilesOf(count) * kTileRows, panels,
                 p, products.at(p), products.width);
      }
    });
    spread(count, [&](int64_t begin, int64_t end) {
      tiles.ForEach(first, begin, end,
                    [&](int64_t i, int64_t image, int64_t y, int64_t x) {
        if (out.repeated) {
          FromPlanes<OfProductsSummed, Points, 1>(products, i, out, image, y, x,
                                                  dilation);
        } else {
          FromPlanes<OfProducts, Points, 2>(products, i, out, image, y, x,
                                            dilation);
        }
      });
    });
  };
  const auto work = [&](int64_t begin, int64_t end, const auto& spread) {
    Planes inputs(kPlanes, together, in.channels);
    Planes products(kPlanes, together, out.channels);
    for (int64_t i = begin; i < end; ++i) {
      convolve(i * together, inputs, products, spread);
    }
  };
  const int64_t groups = (tiles.count + together - 1) / together;
  if (is_large) {
    work(0, groups, [&](int64_t tasks, const auto& task) {
      Parallel(call.pool, tasks, task);
    });
  } else {
    Parallel(call.pool, groups, [&](int64_t begin, int64_t end) {
      work(begin, end,
           [](int64_t tasks, const auto& task) { task(0, tasks); });
    });
  }
}

// images [B, H, W, I], kernel [3, 3, I, O] -> out [B, h, w, O]. `top` and
// `left` of zeros lie before the images, as many as it takes behind them.
// `repeated`: every cell of the images is there twice, down and across.
void Forward(const Call& call) {
  const Array images = call.arguments[0], kernel = call.arguments[1];
  const bool repeated = call.Number<bool>("repeated");
  const Map in(images, repeated), out(call.results[0]);
  Expect("kernel", kernel, {3, 3, in.channels, out.channels});
  repeated ? Convolve<3>(call, in, out, kernel.data)
           : Convolve<4>(call, in, out, kernel.data);
}

// grad [B, h, w, O], kernel [3, 3, I, O] -> out [B, H, W, I], the gradient
// with respect to images. `top` and `left` of zeros lie before `grad`.
void ImagesGrad(const Call& call) {
  const Array grad = call.arguments[0], kernel = call.arguments[1];
  const bool repeated = call.Number<bool>("repeated");
  const Map in(grad), out(call.results[0], repeated);
  Expect("kernel", kernel, {3, 3, out.channels, in.channels});
  const Turned turned(call.pool, kernel.data, 3, out.channels, in.channels);
  repeated ? Convolve<3>(call, in, out, turned.data())
           : Convolve<4>(call, in, out, turned.data());
}

// Tasks of the kernel's gradient: for so many vectors of the inputs' channels
// each, and parts of the tiles, of which none is empty. They do not depend on
// the number of threads, which so changes no sum.
constexpr int64_t kChunk = 4;
constexpr int64_t kTasksOfGrad = 16;
constexpr int64_t kTilesPerPart = 256;
constexpr int64_t kLeastTiles = 128;
constexpr int64_t kMostTiles = 256;

template <int Points>
void KernelGradOf(const Call& call, const Map& in, const Map& grad,
                  float* out) {
  constexpr int kPlanes = Points * Points;
  const int64_t dilation = call.Number<int64_t>("dilation");
  const int64_t top = call.Number<int64_t>("top");
  const int64_t left = call.Number<int64_t>("left");
  const Tiles tiles(grad, dilation);
  const int64_t vectors = VectorsOf(in.channels);
  const int64_t outputs = VectorsOf(grad.channels);
  const int64_t chunks = (vectors + kChunk - 1) / kChunk;
  const int64_t parts = std::max<int64_t>(
      1, std::min(tiles.count / kTilesPerPart, kTasksOfGrad / chunks));
  const int64_t per_part = (tiles.count + parts - 1) / parts;
  const int64_t fit =
      kValues / (kPlanes * kLanes * (std::min(vectors, kChunk) + outputs));
  const int64_t together = std::min(
      {per_part, kMostTiles, std::max(kLeastTiles, fit)});
  // [part, point, input, output]
  const int64_t of_point = vectors * kLanes * outputs * kLanes;
  Scratch scratch(parts * kPlanes * of_point / kLanes, false);
  float* sums = reinterpret_cast<float*>(scratch.get());
  Parallel(call.pool, parts * chunks, [&](int64_t begin, int64_t end) {
    Planes inputs(kPlanes, together, kChunk * kLanes);
    Planes grads(kPlanes, together, grad.channels);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / chunks, chunk = task % chunks;
      const int64_t low = chunk * kChunk;
      const int64_t high = std::min(low + kChunk, vectors);
      const int64_t bottom = std::min((part + 1) * per_part, tiles.count);
      for (int64_t first = part * per_part; first < bottom;
           first += together) {
        const int64_t count = std::min(together, bottom - first);
        tiles.ForEach(first, 0, count,
                      [&](int64_t i, int64_t image, int64_t y, int64_t x) {
          ToPlanes<OfGrads, 2, Points>(grad, image, y, x, dilation, 0, outputs,
                                       grads, i);
          ToPlanes<OfInputs, 4, Points>(in, image, y - top, x - left, dilation,
                                        low, high, inputs, i);
        });
        for (int64_t p = 0; p < kPlanes; ++p) {
          MultiplyOuter(inputs.at(p), inputs.width, (high - low) * kLanes,
                        grads.at(p), outputs, count, first > part * per_part,
                        sums + (part * kPlanes + p) * of_point +
                            low * kLanes * outputs * kLanes);
        }
      }
    }
  });
  Parallel(call.pool, in.channels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t v = 0; v < outputs; ++v) {
        Vector points[Points][Points] = {}, taps[3][3];
        for (int64_t part = 0; part < parts; ++part) {
          for (int p = 0; p < kPlanes; ++p) {
            points[p / Points][p % Points] +=
                Load(sums + (part * kPlanes + p) * of_point +
                     (i * outputs + v) * kLanes);
          }
        }
        Apply<OfKernelGrad, Points>(points, taps);
        const int64_t size =
            std::min<int64_t>(kLanes, grad.channels - v * kLanes);
        for (int tap = 0; tap < 9; ++tap) {
          StoreSome(out + (tap * in.channels + i) * grad.channels + v * kLanes,
                    taps[tap / 3][tap % 3], size);
        }
      }
    }
  });
}

// images [B, H, W, I], grad [B, h, w, O] -> out [3, 3, I, O], the gradient
// with respect to the kernel; attributes as of Forward.
void KernelGrad(const Call& call) {
  const Array images = call.arguments[0], out = call.results[0];
  const bool repeated = call.Number<bool>("repeated");
  const Map in(images, repeated), grad(call.arguments[1]);
  Expect("gradient", out, {3, 3, in.channels, grad.channels});
  repeated ? KernelGradOf<3>(call, in, grad, out.data)
           : KernelGradOf<4>(call, in, grad, out.data);
}

}  // namespace

SEXTET_HANDLER(sextet_winograd, Forward)
SEXTET_HANDLER(sextet_winograd_images_grad, ImagesGrad)
SEXTET_HANDLER(sextet_winograd_kernel_grad, KernelGrad)
