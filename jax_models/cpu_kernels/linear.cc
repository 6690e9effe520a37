// A matrix product with all that stands around it in a network when it is
// evaluated, for XLA's CPU backend, float32: a gate per image and channel
// before, batch normalisation, an activation and a shortcut behind.

#include <cstdint>

#include "activations.h"
#include "gemm.h"

namespace {

// x [rows, inputs], kernel [inputs, outputs], factor, shift [outputs], then
// gate [images, inputs] and shortcut [rows, outputs], of which either may be
// empty -> activation(x * gate @ kernel * factor + shift) + shortcut.
void Linear(const Call& call) {
  const Array x = call.arguments[0], kernel = call.arguments[1];
  const Array factor = call.arguments[2], shift = call.arguments[3];
  const Array gate = call.arguments[4], shortcut = call.arguments[5];
  const Array out = call.results[0];
  const int64_t rows = x.dimensions[0], inputs = x.dimensions[1];
  const int64_t outputs = kernel.dimensions[1];
  const bool gated = gate.size() > 0, joined = shortcut.size() > 0;
  Expect("kernel", kernel, {inputs, outputs});
  Expect("factor", factor, {outputs});
  Expect("shift", shift, {outputs});
  if (joined) Expect("shortcut", shortcut, {rows, outputs});
  if (gated) {
    Expect("gate", gate, {gate.dimensions[0], inputs});
    if (rows % gate.dimensions[0]) Refuse("there are other rows than gates");
  }
  const int64_t rows_of_gate = gated ? rows / gate.dimensions[0] : 1;
  const int64_t together = RowsTogether(call.pool, rows, inputs);

  const Panels panels(call.pool, kernel.data, inputs, outputs);
  Scratch factors(panels.vectors), shifts(panels.vectors);
  const size_t bytes = outputs * sizeof(float);
  std::memcpy(static_cast<void*>(factors.get()), factor.data, bytes);
  std::memcpy(static_cast<void*>(shifts.get()), shift.data, bytes);
  // Copies rows, times their gates, to where there is room for whole tiles.
  const auto copy = [&](int64_t top, int64_t count, float* to) {
    for (int64_t row = top; row < top + count; ++row, to += inputs) {
      const float* from = x.data + row * inputs;
      const float* gates = gate.data + row / rows_of_gate * inputs;
      if (!gated) std::memcpy(to, from, inputs * sizeof(float));
      for (int64_t i = 0; gated && i < inputs; ++i) to[i] = from[i] * gates[i];
    }
  };
  With(call.Number<int32_t>("activation"), [&](auto function) {
    Parallel(call.pool, (rows + together - 1) / together,
             [&](int64_t begin, int64_t end) {
      Scratch copied(gated || end * together > rows
                         ? VectorsOf(together * inputs) : 0);
      float* copies = reinterpret_cast<float*>(copied.get());
      const int64_t bottom = std::min(end * together, rows);
      for (int64_t top = begin * together; top < bottom; top += together) {
        const int64_t count = std::min(together, rows - top);
        const bool in_place = !gated && count % kTileRows == 0;
        if (!in_place) copy(top, count, copies);
        Multiply(in_place ? x.data + top * inputs : copies, inputs, count,
                 panels, [&](int64_t row, int64_t v, Vector sum) {
          if (row >= count) return;
          const int64_t place = (top + row) * outputs + v * kLanes;
          const int64_t size = std::min<int64_t>(kLanes, outputs - v * kLanes);
          sum = sum * factors.get()[v] + shifts.get()[v];
          sum = function.Value(sum);
          if (joined) sum += LoadSome(shortcut.data + place, size);
          StoreSome(out.data + place, sum, size);
        });
      }
    });
  });
}

}  // namespace

SEXTET_HANDLER(sextet_linear, Linear)
