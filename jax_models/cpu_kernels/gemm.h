// A matrix product (GEMM) with a fused epilogue: tiles of the result are given
// to the caller while they are in registers and the rows in cache.

#ifndef SEXTET_GEMM_H_
#define SEXTET_GEMM_H_

#include "native.h"

namespace {

// A tile of sums takes 24 of the 32 registers that AVX-512 has, 12 of 16.
constexpr int64_t kTileRows = kLanes == 16 ? 8 : 4;
constexpr int kTileVectors = 3;

inline int64_t TilesOf(int64_t rows) {
  return (rows + kTileRows - 1) / kTileRows;
}

// What a thread takes at a time: values of a megabyte, or a unit if that is
// more; enough rows to be worth reading the matrix for; work for all threads.
constexpr int64_t kValues = 1 << 18;
constexpr int64_t kMostRows = 128;
constexpr int64_t kTasks = 4;  // for each thread

// Rows of so many values, in whole units.
inline int64_t RowsTogether(const Pool& pool, int64_t rows, int64_t values,
                            int64_t unit = kTileRows) {
  const int64_t fair = rows / (kTasks * pool.num_threads());
  const int64_t most = std::min({kMostRows, kValues / values, fair});
  return std::max<int64_t>(1, most / unit) * unit;
}

// Vectors in a panel, of so many that are left.
inline int PanelWidth(int64_t left) {
  return left == 4 ? 2 : std::min<int64_t>(left, kTileVectors);
}

// Matrices [inner, columns] cut into panels of a few vectors of columns, each
// of which is read from beginning to end. Zeros make the last vector whole.
class Panels {
 public:
  Panels(const Pool& pool, const float* kernel, int64_t inner, int64_t columns)
      : Panels(pool, inner, columns, 1,
               [=](int64_t i, int64_t v, Vector* to, int64_t) {
          const int64_t count =
              std::min<int64_t>(kLanes, columns - v * kLanes);
          *to = LoadSome(kernel + i * columns + v * kLanes, count);
        }) {}

  // Calls fill(row, vector, to, apart), which has to write that vector of all
  // matrices, `apart` vectors apart.
  template <typename Fill>
  Panels(const Pool& pool, int64_t inner, int64_t columns, int64_t matrices,
         const Fill& fill)
      : inner(inner),
        columns(columns),
        vectors(VectorsOf(columns)),
        apart_(vectors * inner),
        scratch_(matrices * apart_, false) {
    Parallel(pool, vectors, [&](int64_t begin, int64_t end) {
      for (int64_t first = 0; first < end; first += WidthAt(first)) {
        if (first < begin) continue;  // Whoever has its first vector, has it.
        const int width = WidthAt(first);
        Vector* to = scratch_.get() + first * inner;
        for (int64_t i = 0; i < inner; ++i) {
          for (int v = 0; v < width; ++v) fill(i, first + v, to++, apart_);
        }
      }
    });
  }

  // Vectors in the panel that begins with this one.
  int WidthAt(int64_t first) const { return PanelWidth(vectors - first); }
  const Vector* At(int64_t first, int64_t matrix = 0) const {
    return scratch_.get() + matrix * apart_ + first * inner;
  }

  const int64_t inner, columns, vectors;

 private:
  const int64_t apart_;
  Scratch scratch_;
};

// Writes sums [kTileRows, Width] of rows that are `stride` apart times a panel.
template <int Width>
[[gnu::noinline]] void Tile(const float* rows, int64_t stride, int64_t inner,
                            const Vector* panel, float* to,
                            int64_t to_stride) {
  Vector sums[kTileRows][Width] = {};
  for (int64_t i = 0; i < inner; ++i) {
#pragma GCC unroll 8
    for (int row = 0; row < kTileRows; ++row) {
      const float factor = rows[row * stride + i];
#pragma GCC unroll 4
      for (int v = 0; v < Width; ++v) {
        sums[row][v] += factor * panel[i * Width + v];
      }
    }
  }
  // Unrolled, or the sums would not be in registers.
#pragma GCC unroll 8
  for (int row = 0; row < kTileRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < Width; ++v) {
      Store(to + row * to_stride + v * kLanes, sums[row][v]);
    }
  }
}

// The product of `rows` rows with a matrix, tile by tile: calls work(row,
// vector, width, tile), which has to call tile(to, stride of its rows). There
// have to be as many rows as whole tiles have.
template <typename Work>
void MultiplyTiles(const float* from, int64_t stride, int64_t rows,
                   const Panels& panels, int64_t matrix, const Work& work) {
  for (int64_t first = 0; first < panels.vectors;
       first += panels.WidthAt(first)) {
    const int width = panels.WidthAt(first);
    const auto tile = width == 3 ? Tile<3> : width == 2 ? Tile<2> : Tile<1>;
    const Vector* panel = panels.At(first, matrix);
    for (int64_t top = 0; top < rows; top += kTileRows) {
      work(top, first, width, [&](float* to, int64_t to_stride) {
        tile(from + top * stride, stride, panels.inner, panel, to, to_stride);
      });
    }
  }
}

// Writes the product with one of the matrices, whole vectors of columns.
inline void Multiply(const float* from, int64_t stride, int64_t rows,
                     const Panels& panels, int64_t matrix, float* to,
                     int64_t to_stride) {
  MultiplyTiles(from, stride, rows, panels, matrix,
                [&](int64_t row, int64_t v, int, const auto& tile) {
    tile(to + row * to_stride + v * kLanes, to_stride);
  });
}

// Calls finish(row, vector, sum) for the product with the only matrix.
template <typename Finish>
void Multiply(const float* from, int64_t stride, int64_t rows,
              const Panels& panels, const Finish& finish) {
  Vector sums[kTileRows * kTileVectors];
  MultiplyTiles(from, stride, rows, panels, 0,
                [&](int64_t top, int64_t first, int width, const auto& tile) {
    tile(reinterpret_cast<float*>(sums), width * kLanes);
    for (int64_t row = 0; row < kTileRows; ++row) {
      for (int v = 0; v < width; ++v) {
        finish(top + row, first + v, sums[row * width + v]);
      }
    }
  });
}

// Sums [kTileRows, Width] the outer products of `count` pairs of rows; to what
// is there if `add`.
template <int Width>
[[gnu::noinline]] void OuterTile(const float* left, int64_t left_stride,
                                 const float* right, int64_t right_stride,
                                 int64_t count, bool add, float* to,
                                 int64_t to_stride) {
  Vector sums[kTileRows][Width] = {};
  for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 8
    for (int row = 0; row < kTileRows; ++row) {
      const float factor = left[i * left_stride + row];
#pragma GCC unroll 4
      for (int v = 0; v < Width; ++v) {
        sums[row][v] += factor * Load(right + i * right_stride + v * kLanes);
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < kTileRows; ++row) {
#pragma GCC unroll 4
    for (int v = 0; v < Width; ++v) {
      float* place = to + row * to_stride + v * kLanes;
      Store(place, add ? Load(place) + sums[row][v] : sums[row][v]);
    }
  }
}

// Writes to `to` [rows, vectors], or adds to it, the product of left [count,
// rows], transposed, with right [count, vectors]. There have to be whole tiles
// of rows.
inline void MultiplyOuter(const float* left, int64_t left_stride,
                          int64_t rows, const float* right, int64_t vectors,
                          int64_t count, bool add, float* to) {
  const int64_t stride = vectors * kLanes;
  for (int64_t v = 0; v < vectors; v += PanelWidth(vectors - v)) {
    const int width = PanelWidth(vectors - v);
    const auto tile = width == 3   ? OuterTile<3>
                      : width == 2 ? OuterTile<2>
                                   : OuterTile<1>;
    for (int64_t row = 0; row < rows; row += kTileRows) {
      tile(left + row, left_stride, right + v * kLanes, stride, count,
           add, to + row * stride + v * kLanes, stride);
    }
  }
}

}  // namespace

#endif  // SEXTET_GEMM_H_
