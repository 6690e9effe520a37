// LayerNorm, a matrix that widens, GELU, optional GRN, a matrix that narrows,
// and the shortcut around them, for XLA's CPU backend, float32: in one pass
// over the rows, whose inner values are used while they are near.

#include <cmath>
#include <cstdint>

#include "activations.h"
#include "gemm.h"

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

struct Grn {
  const float *scale, *bias;
  float epsilon;
};

// Global response normalisation of the rows of one image, in place.
void Respond(float* image, int64_t rows, int64_t channels, const Grn& grn,
             float* factors) {
  Sum norms;
  for (int64_t i = 0; i < channels; i += kLanes) {
    Vector energy = {}, norm = {};
    for (int64_t row = 0; row < rows; ++row) {
      const Vector value = Load(image + row * channels + i);
      energy += value * value;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      norm[lane] = std::sqrt(energy[lane]);
    }
    norms += norm;
    Store(factors + i, norm);
  }
  const float share = 1 / (norms.Total() / channels + grn.epsilon);
  for (int64_t i = 0; i < channels; i += kLanes) {
    const Vector norm = Load(factors + i) * share;
    Store(factors + i, 1.0f + Load(grn.scale + i) * norm);
  }
  for (int64_t row = 0; row < rows; ++row) {
    float* values = image + row * channels;
    for (int64_t i = 0; i < channels; i += kLanes) {
      Store(values + i,
            Load(values + i) * Load(factors + i) + Load(grn.bias + i));
    }
  }
}

// x, shortcut [rows, C], scale, bias [C], widen [C, inner], bias [inner],
// narrow [inner, C], bias [C] -> out [rows, C]; with GRN also its scale and
// bias [inner]. `inner` fills vectors, `unit` is the rows of an image.
void Mlp(const Call& call) {
  const Array x = call.arguments[0], shortcut = call.arguments[1];
  const Array scale = call.arguments[2], bias = call.arguments[3];
  const Array widen = call.arguments[4], widen_bias = call.arguments[5];
  const Array narrow = call.arguments[6], narrow_bias = call.arguments[7];
  const Array out = call.results[0];
  const float epsilon = call.Number<float>("epsilon");
  const int64_t rows = x.dimensions[0], channels = x.dimensions[1];
  const int64_t inner = widen.dimensions[1];
  const bool responds = call.arguments.size() > 8;
  Expect("shortcut", shortcut, {rows, channels});
  for (const Array& one : {scale, bias, narrow_bias})
    Expect("scale, bias or last bias", one, {channels});
  Expect("first matrix", widen, {channels, inner});
  Expect("first bias", widen_bias, {inner});
  Expect("second matrix", narrow, {inner, channels});
  for (int64_t i = 8; i < call.arguments.size(); ++i)
    Expect("scale or bias of GRN", call.arguments[i], {inner});
  const Grn grn = {responds ? call.arguments[8].data : nullptr,
                   responds ? call.arguments[9].data : nullptr, epsilon};
  const int64_t unit = responds ? call.Number<int64_t>("rows_per_image") : kTileRows;
  const int64_t together = RowsTogether(call.pool, rows, inner, unit);

  const Panels first(call.pool, widen.data, channels, inner);
  const Panels second(call.pool, narrow.data, inner, channels);
  Scratch last_bias(second.vectors);
  std::memcpy(static_cast<void*>(last_bias.get()), narrow_bias.data,
              channels * sizeof(float));
  Parallel(call.pool, (rows + together - 1) / together,
           [&](int64_t begin, int64_t end) {
    const int64_t room = TilesOf(together) * kTileRows;
    Scratch normal_room(VectorsOf(room * channels));
    Scratch wide_room(VectorsOf(room * inner)), factors(VectorsOf(inner));
    float* normal = reinterpret_cast<float*>(normal_room.get());
    float* wide = reinterpret_cast<float*>(wide_room.get());
    for (int64_t top = begin * together; top < std::min(end * together, rows);
         top += together) {
      const int64_t count = std::min(together, rows - top);
      const int64_t whole = TilesOf(count) * kTileRows;
      for (int64_t row = 0; row < count; ++row) {
        Normalize(x.data + (top + row) * channels, channels, scale.data,
                  bias.data, epsilon, normal + row * channels);
      }
      Multiply(normal, channels, whole, first,
               [&](int64_t row, int64_t v, Vector sum) {
        const Vector before = sum + Load(widen_bias.data + v * kLanes);
        Store(wide + row * inner + v * kLanes, Gelu::Value(before));
      });
      if (responds) {
        for (int64_t row = 0; row < count; row += unit) {
          Respond(wide + row * inner, unit, inner, grn,
                  reinterpret_cast<float*>(factors.get()));
        }
      }
      Multiply(wide, inner, whole, second,
               [&](int64_t row, int64_t v, Vector sum) {
        if (row >= count) return;
        const int64_t place = (top + row) * channels + v * kLanes;
        const int64_t size = std::min<int64_t>(kLanes, channels - v * kLanes);
        const Vector given = LoadSome(shortcut.data + place, size);
        StoreSome(out.data + place, given + (sum + last_bias.get()[v]), size);
      });
    }
  });
}

}  // namespace

SEXTET_HANDLER(sextet_mlp, Mlp)
