// Activations on vectors, and their derivatives.

#ifndef SEXTET_ACTIVATIONS_H_
#define SEXTET_ACTIVATIONS_H_

#include <cstdint>

#include "native.h"

namespace {

typedef int32_t Integers __attribute__((vector_size(kLanes * sizeof(int32_t))));

inline Vector Clamp(Vector x, float low, float high) {
  const Vector lows = Vector{} + low, highs = Vector{} + high;
  x = x < lows ? lows : x;
  return x > highs ? highs : x;
}

// exp, as in the Cephes library: 2^n times a polynomial in what is left.
inline Vector Exp(Vector x) {
  x = Clamp(x, -87.0f, 88.0f);
  // Adding so large a number rounds to a whole one.
  constexpr float kRound = 12582912.0f;
  const Vector n = (x * 1.44269504088896341f + kRound) - kRound;
  x = x - n * 0.693359375f;
  x = x - n * -2.12194440e-4f;
  Vector y = x * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * x + 8.3334519073e-3f;
  y = y * x + 4.1665795894e-2f;
  y = y * x + 1.6666665459e-1f;
  y = y * x + 5.0000001201e-1f;
  y = y * (x * x) + x + 1.0f;
  Integers bits;
  std::memcpy(&bits, &y, sizeof(bits));
  bits += __builtin_convertvector(n, Integers) << 23;
  std::memcpy(&y, &bits, sizeof(bits));
  return y;
}

// erf, the rational approximation that XLA and Eigen use.
inline Vector Erf(Vector x) {
  x = Clamp(x, -4.0f, 4.0f);
  const Vector square = x * x;
  Vector p = square * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * square + -2.10102402082508e-06f;
  p = p * square + -5.69250639462346e-05f;
  p = p * square + -7.34990630326855e-04f;
  p = p * square + -2.95459980854025e-03f;
  p = p * square + -1.60960333262415e-02f;
  Vector q = square * -1.45660718464996e-05f + -2.13374055278905e-04f;
  q = q * square + -1.68282697438203e-03f;
  q = q * square + -7.37332916720468e-03f;
  q = q * square + -1.42647390514189e-02f;
  return x * p / q;
}

inline Vector NormalBelow(Vector x) {
  return 0.5f + 0.5f * Erf(x * 0.70710678118654752f);
}

struct Gelu {
  static Vector Value(Vector x) { return x * NormalBelow(x); }
  static Vector Grad(Vector x) {
    const Vector density = Exp(-0.5f * x * x) * 0.39894228040143268f;
    return NormalBelow(x) + x * density;
  }
};

struct Silu {
  static Vector Value(Vector x) { return x / (1.0f + Exp(-x)); }
  static Vector Grad(Vector x) {
    const Vector share = 1.0f / (1.0f + Exp(-x));
    return share * (1.0f + x * (1.0f - share));
  }
};

struct Relu {
  static Vector Value(Vector x) { return x < Vector{} ? Vector{} : x; }
  static Vector Grad(Vector x) {
    return x > Vector{} ? Vector{} + 1.0f : Vector{};
  }
};

struct Relu6 {
  static Vector Value(Vector x) { return Clamp(x, 0.0f, 6.0f); }
  static Vector Grad(Vector x) {
    const Vector below = x < Vector{} + 6.0f ? Vector{} + 1.0f : Vector{};
    return x > Vector{} ? below : Vector{};
  }
};

// No activation.
struct Identity {
  static Vector Value(Vector x) { return x; }
  static Vector Grad(Vector) { return Vector{} + 1.0f; }
};

// Calls work with the activation of that number in activations.py.
template <typename Work>
void With(int32_t activation, const Work& work) {
  switch (activation) {
    case 0: return work(Identity{});
    case 1: return work(Gelu{});
    case 2: return work(Silu{});
    case 3: return work(Relu{});
    case 4: return work(Relu6{});
  }
  Refuse("there is no such activation");
}

}  // namespace

#endif  // SEXTET_ACTIVATIONS_H_
