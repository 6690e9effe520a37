// Batch normalisation and the activation behind it for XLA's CPU backend,
// float32: two passes over the rows forward and two backward, where XLA makes
// seven and keeps what lies between norm and activation.

#include <cmath>
#include <cstdint>
#include <numeric>

#include "activations.h"

namespace {

// 64 KB: what is read a second time is still near.
constexpr int64_t kVectorsPerPart = (1 << 14) / kLanes;

// Rows of channels, taken so many at a time that they fill whole vectors.
struct Rows {
  Rows(int64_t rows, int64_t channels)
      : channels(channels),
        together(kLanes / std::gcd(channels, int64_t{kLanes})),
        vectors(channels * together / kLanes),
        groups(rows / together),
        groups_per_part(std::max<int64_t>(1, kVectorsPerPart / vectors)),
        parts((groups + groups_per_part - 1) / groups_per_part) {}

  // Calls work(part, first group, last group) for all parts, on all threads.
  template <typename Work>
  void InParts(const Pool& pool, const Work& work) const {
    Parallel(pool, parts, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) {
        const int64_t first = part * groups_per_part;
        work(part, first, std::min(first + groups_per_part, groups));
      }
    });
  }

  int64_t PlaceOf(int64_t group, int64_t vector) const {
    return (group * vectors + vector) * kLanes;
  }

  // The channel and all places in a group that belong to it.
  template <typename Work>
  void OfChannel(int64_t channel, const Work& work) const {
    for (int64_t row = 0; row < together; ++row) work(row * channels + channel);
  }

  const int64_t channels, together, vectors, groups, groups_per_part, parts;
};

// A number per channel, repeated for every row of a group.
class Repeated {
 public:
  template <typename Value>
  Repeated(const Rows& rows, const Value& value) : scratch_(rows.vectors) {
    float* to = reinterpret_cast<float*>(scratch_.get());
    for (int64_t i = 0; i < rows.vectors * kLanes; ++i)
      to[i] = value(i % rows.channels);
  }
  Vector operator[](int64_t vector) { return scratch_.get()[vector]; }

 private:
  Scratch scratch_;
};

// Mean and variance of every channel, by those of the parts (Chan et al. 1979).
void Moments(const Pool& pool, const Rows& rows, const float* x,
             float* mean, float* variance) {
  Scratch scratch(rows.parts * 2 * rows.vectors);
  rows.InParts(pool, [&](int64_t part, int64_t begin, int64_t end) {
    Vector* means = scratch.get() + part * 2 * rows.vectors;
    Vector* squares = means + rows.vectors;
    for (int64_t group = begin; group < end; ++group)
      for (int64_t v = 0; v < rows.vectors; ++v)
        means[v] += Load(x + rows.PlaceOf(group, v));
    for (int64_t v = 0; v < rows.vectors; ++v)
      means[v] /= static_cast<float>(end - begin);
    for (int64_t group = begin; group < end; ++group)
      for (int64_t v = 0; v < rows.vectors; ++v) {
        const Vector centred = Load(x + rows.PlaceOf(group, v)) - means[v];
        squares[v] += centred * centred;
      }
  });
  const auto count = [&](int64_t part) {
    const int64_t first = part * rows.groups_per_part;
    return std::min(rows.groups_per_part, rows.groups - first);
  };
  const double total = static_cast<double>(rows.groups) * rows.together;
  const int64_t length = rows.vectors * kLanes;
  const float* found = reinterpret_cast<float*>(scratch.get());
  for (int64_t c = 0; c < rows.channels; ++c) {
    double sum = 0, square = 0;
    for (int64_t part = 0; part < rows.parts; ++part)
      rows.OfChannel(c, [&](int64_t place) {
        sum += static_cast<double>(found[part * 2 * length + place]) *
               count(part);
      });
    const double middle = sum / total;
    for (int64_t part = 0; part < rows.parts; ++part)
      rows.OfChannel(c, [&](int64_t place) {
        const float* of_part = found + part * 2 * length + place;
        const double off = *of_part - middle;
        square += of_part[length] + off * off * count(part);
      });
    mean[c] = middle;
    variance[c] = square / total;
  }
}

// x [rows, C], scale [C], bias [C] -> out [rows, C], mean [C], variance [C].
void Forward(const Call& call) {
  const Array x = call.arguments[0], scale = call.arguments[1];
  const Array bias = call.arguments[2], out = call.results[0];
  const Array mean = call.results[1], variance = call.results[2];
  const float epsilon = call.Number<float>("epsilon");
  const Rows rows(x.dimensions[0], x.dimensions[1]);
  Expect("scale", scale, {rows.channels});
  Expect("bias", bias, {rows.channels});
  const float* from = x.data;
  float* to = out.data;
  const float* means = mean.data;
  const float* variances = variance.data;
  Moments(call.pool, rows, from, mean.data, variance.data);
  Repeated middle(rows, [&](int64_t c) { return means[c]; });
  Repeated shift(rows, [&](int64_t c) { return bias.data[c]; });
  Repeated factor(rows, [&](int64_t c) {
    return scale.data[c] / std::sqrt(variances[c] + epsilon);
  });
  With(call.Number<int32_t>("activation"), [&](auto function) {
    rows.InParts(call.pool, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group)
        for (int64_t v = 0; v < rows.vectors; ++v) {
          const int64_t place = rows.PlaceOf(group, v);
          const Vector centred = Load(from + place) - middle[v];
          Store(to + place, function.Value(centred * factor[v] + shift[v]));
        }
    });
  });
}

// x, grad [rows, C], scale, bias, mean, variance [C]
// -> x_grad [rows, C], scale_grad [C], bias_grad [C].
void Backward(const Call& call) {
  const Array x = call.arguments[0], scale = call.arguments[1];
  const Array bias = call.arguments[2], mean = call.arguments[3];
  const Array variance = call.arguments[4], grad = call.arguments[5];
  const Array x_grad = call.results[0];
  const Array scale_grad = call.results[1], bias_grad = call.results[2];
  const float epsilon = call.Number<float>("epsilon");
  const Rows rows(x.dimensions[0], x.dimensions[1]);
  for (const Array& one : {scale, bias, mean, variance})
    Expect("scale, bias, mean or variance", one, {rows.channels});
  Expect("gradient", grad, {x.dimensions[0], rows.channels});
  const auto inverse = [&](int64_t c) {
    return 1.0f / std::sqrt(variance.data[c] + epsilon);
  };
  Repeated middle(rows, [&](int64_t c) { return mean.data[c]; });
  Repeated factor(rows, inverse);
  Repeated stretch(rows, [&](int64_t c) { return scale.data[c]; });
  Repeated shift(rows, [&](int64_t c) { return bias.data[c]; });
  Scratch scratch(rows.parts * 2 * rows.vectors);
  // The normalised input, and the gradient before the activation.
  const auto at = [&](auto function, int64_t place, int64_t v) {
    const Vector normal = (Load(x.data + place) - middle[v]) * factor[v];
    const Vector before = normal * stretch[v] + shift[v];
    const Vector given = Load(grad.data + place);
    return std::make_pair(normal, given * function.Grad(before));
  };
  With(call.Number<int32_t>("activation"), [&](auto function) {
    rows.InParts(call.pool, [&](int64_t part, int64_t begin, int64_t end) {
      Vector* to_shift = scratch.get() + part * 2 * rows.vectors;
      Vector* to_stretch = to_shift + rows.vectors;
      for (int64_t group = begin; group < end; ++group)
        for (int64_t v = 0; v < rows.vectors; ++v) {
          const auto [normal, given] = at(function, rows.PlaceOf(group, v), v);
          to_shift[v] += given;
          to_stretch[v] += given * normal;
        }
    });
    const int64_t length = rows.vectors * kLanes;
    const float* sums = reinterpret_cast<float*>(scratch.get());
    for (int64_t c = 0; c < rows.channels; ++c) {
      double to_shift = 0, to_stretch = 0;
      for (int64_t part = 0; part < rows.parts; ++part)
        rows.OfChannel(c, [&](int64_t place) {
          to_shift += sums[part * 2 * length + place];
          to_stretch += sums[(part * 2 + 1) * length + place];
        });
      bias_grad.data[c] = to_shift;
      scale_grad.data[c] = to_stretch;
    }
    const float count = rows.groups * rows.together;
    Repeated all_shift(rows, [&](int64_t c) {
      return bias_grad.data[c] / count;
    });
    Repeated all_stretch(rows, [&](int64_t c) {
      return scale_grad.data[c] / count;
    });
    rows.InParts(call.pool, [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t group = begin; group < end; ++group)
        for (int64_t v = 0; v < rows.vectors; ++v) {
          const int64_t place = rows.PlaceOf(group, v);
          const auto [normal, given] = at(function, place, v);
          const Vector left = given - all_shift[v] - normal * all_stretch[v];
          Store(x_grad.data + place, left * (stretch[v] * factor[v]));
        }
    });
  });
}

}  // namespace

SEXTET_HANDLER(sextet_batch_norm, Forward)
SEXTET_HANDLER(sextet_batch_norm_grad, Backward)
