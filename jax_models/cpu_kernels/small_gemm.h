// Products of matrices that fit the cache, and of their transposes.
//
// gemm.h is for many rows and one matrix, which it cuts into panels first;
// these are used once.

#ifndef SEXTET_SMALL_GEMM_H_
#define SEXTET_SMALL_GEMM_H_

#include <cstdint>

#include "native.h"

namespace {

// Numbers that are read one at a time, of a matrix or of its transpose.
struct Factors {
  const float* data;
  int64_t row, column;  // How far it is to the next one.
};

// Numbers in whole vectors.
struct Matrix {
  explicit Matrix(int64_t rows, int64_t columns)
      : width(VectorsOf(columns)), scratch(rows * width) {}
  Vector* row(int64_t i) { return scratch.get() + i * width; }
  float* numbers(int64_t i) { return reinterpret_cast<float*>(row(i)); }
  Factors as_it_is() { return {numbers(0), width * kLanes, 1}; }
  Factors transposed() { return {numbers(0), 1, width * kLanes}; }

  const int64_t width;
  Scratch scratch;
};

template <int Rows, int Columns>
inline void Tile(const Factors& a, int64_t inner, Matrix& b, int64_t column,
                 Matrix& out, int64_t row) {
  Vector sums[Rows][Columns] = {};
  const float* from = a.data + row * a.row;
  for (int64_t k = 0; k < inner; ++k) {
    const Vector* other = b.row(k) + column;
#pragma GCC unroll 4
    for (int r = 0; r < Rows; ++r) {
      const float factor = from[r * a.row + k * a.column];
#pragma GCC unroll 2
      for (int c = 0; c < Columns; ++c) sums[r][c] += factor * other[c];
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int c = 0; c < Columns; ++c) out.row(row + r)[column + c] = sums[r][c];
  }
}

// out [rows, ...] = a [rows, inner] times b [inner, ...].
void Multiply(const Factors& a, Matrix& b, Matrix& out, int64_t rows,
              int64_t inner) {
  int64_t column = 0;
  for (; column + 2 <= b.width; column += 2) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) Tile<4, 2>(a, inner, b, column, out, row);
    for (; row < rows; ++row) Tile<1, 2>(a, inner, b, column, out, row);
  }
  for (; column < b.width; ++column) {
    int64_t row = 0;
    for (; row + 4 <= rows; row += 4) Tile<4, 1>(a, inner, b, column, out, row);
    for (; row < rows; ++row) Tile<1, 1>(a, inner, b, column, out, row);
  }
}

}  // namespace

#endif  // SEXTET_SMALL_GEMM_H_
