// The transforms of minimal filtering; winograd.cc tells what they are for.

#ifndef SEXTET_WINOGRAD_H_
#define SEXTET_WINOGRAD_H_

#include "native.h"

namespace {

// The number, of 4, of the computed points of an axis: all, or all but 2.
template <int Points>
constexpr int PointAt(int i) {
  return Points == 4 ? i : i + i / 2;
}

// One axis of the transforms: element i of the result, of the elements x(j).
struct OfInputs {  // B^T, of 4
  template <int Points, typename Get>
  static Vector At(int i, const Get& x) {
    switch (PointAt<Points>(i)) {
      case 0: return x(0) - x(2);
      case 1: return x(1) + x(2);
      case 2: return x(2) - x(1);
      default: return x(1) - x(3);
    }
  }
};

struct OfKernel {  // G, of 3
  template <int Points, typename Get>
  static Vector At(int i, const Get& x) {
    switch (PointAt<Points>(i)) {
      case 0: return x(0);
      case 1: return 0.5f * (x(0) + x(1) + x(2));
      case 2: return 0.5f * (x(0) - x(1) + x(2));
      default: return x(2);
    }
  }
};

struct OfGrads {  // A, of 2
  template <int Points, typename Get>
  static Vector At(int i, const Get& x) {
    switch (PointAt<Points>(i)) {
      case 0: return x(0);
      case 1: return x(0) + x(1);
      case 2: return x(0) - x(1);
      default: return -x(1);
    }
  }
};

struct OfProducts {  // A^T, to 2
  template <int Points, typename Get>
  static Vector At(int i, const Get& x) {
    if constexpr (Points == 3) return i == 0 ? x(0) + x(1) : x(1) - x(2);
    return i == 0 ? x(0) + x(1) + x(2) : x(1) - x(2) - x(3);
  }
};

struct OfProductsSummed {  // A^T, to the sum of 2
  template <int Points, typename Get>
  static Vector At(int, const Get& x) {
    return x(0) + 2.0f * x(1) - x(Points - 1);
  }
};

struct OfKernelGrad {  // G^T, to 3
  template <int Points, typename Get>
  static Vector At(int i, const Get& x) {
    const Vector last = x(Points - 1);
    const Vector sum = Points == 3 ? x(1) : x(1) + x(2);
    const Vector difference = Points == 3 ? x(1) : x(1) - x(2);
    return i == 0 ? x(0) + 0.5f * sum
                  : i == 1 ? 0.5f * difference : 0.5f * sum + last;
  }
};

// A transform along both axes, of From x From vectors to To x To.
template <typename Transform, int Points, int From, int To>
[[gnu::always_inline]] inline void Apply(const Vector (&from)[From][From],
                                         Vector (&to)[To][To]) {
  Vector half[To][From];
#pragma GCC unroll 4
  for (int j = 0; j < From; ++j) {
#pragma GCC unroll 4
    for (int i = 0; i < To; ++i) {
      half[i][j] = Transform::template At<Points>(
          i, [&](int k) { return from[k][j]; });
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < To; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < To; ++j) {
      to[i][j] = Transform::template At<Points>(
          j, [&](int k) { return half[i][k]; });
    }
  }
}

}  // namespace

#endif  // SEXTET_WINOGRAD_H_
