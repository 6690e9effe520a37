// Dense convolution for XLA's CPU backend, channels last, float32, as matrix
// products of windows that are copied side by side a few at a time.

#include <cstdint>

#include "conv.h"

namespace {

// Copies `count` cells from (y, x) on to the right; zeros where there is none.
void CopyLine(const Map& map, int64_t image, int64_t y, int64_t x,
              int64_t count, float* to) {
  const int64_t size = count * map.channels;
  if (y < 0 || y >= map.height) {
    std::fill(to, to + size, 0.0f);
    return;
  }
  const int64_t begin = std::max<int64_t>(x, 0);
  const int64_t end = std::max(begin, std::min(x + count, map.width));
  const int64_t before = std::min(begin - x, count) * map.channels;
  const int64_t inside = (end - begin) * map.channels;
  std::fill(to, to + before, 0.0f);
  std::copy_n(map.At(image, y, begin), inside, to + before);
  std::fill(to + before + inside, to + size, 0.0f);
}

// Every `step`-th cell of a map, and the windows [height, width] of another
// that belong to them: `stride` apart, the first one `top` and `left` of it.
struct Cells {
  Cells(const Map& map, int64_t y, int64_t x, int64_t step)
      : y(y),
        x(x),
        step(step),
        rows((map.height - y + step - 1) / step),
        columns((map.width - x + step - 1) / step),
        count(map.batch * rows * columns) {}

  const int64_t y, x, step, rows, columns, count;
};

struct Windows {
  int64_t height, width, stride, top, left;
};

// Writes those cells: the windows times the matrix [window, O].
void Convolve(const Pool& pool, const Map& in, const Windows& windows,
              const Panels& panels, const Map& out, const Cells& cells) {
  const int64_t line = windows.width * in.channels;
  const int64_t window = windows.height * line;
  const int64_t together =
      RowsTogether(pool, cells.count, std::max<int64_t>(window, 1));
  Parallel(pool, (cells.count + together - 1) / together,
           [&](int64_t begin, int64_t end) {
    Scratch scratch(VectorsOf(together * window));
    float* copied = reinterpret_cast<float*>(scratch.get());
    float* places[kMostRows];
    const int64_t bottom = std::min(end * together, cells.count);
    for (int64_t first = begin * together; first < bottom; first += together) {
      const int64_t count = std::min(together, bottom - first);
      for (int64_t row = 0; row < count; ++row) {
        const int64_t cell = first + row;
        const int64_t x = cell % cells.columns;
        const int64_t y = cell / cells.columns % cells.rows;
        const int64_t image = cell / cells.columns / cells.rows;
        places[row] = out.At(image, cells.y + y * cells.step,
                             cells.x + x * cells.step);
        for (int64_t i = 0; i < windows.height; ++i) {
          CopyLine(in, image, y * windows.stride - windows.top + i,
                   x * windows.stride - windows.left, windows.width,
                   copied + row * window + i * line);
        }
      }
      Multiply(copied, window, TilesOf(count) * kTileRows, panels,
               [&](int64_t row, int64_t v, Vector sum) {
        if (row >= count) return;
        const int64_t size =
            std::min<int64_t>(kLanes, out.channels - v * kLanes);
        StoreSome(places[row] + v * kLanes, sum, size);
      });
    }
  });
}

// images [B, H, W, I], kernel [k, k, I, O] -> out [B, h, w, O]. `top` and
// `left` of zeros lie before the images, as many as it takes behind them.
void Forward(const Call& call) {
  const Map in(call.arguments[0]), out(call.results[0]);
  const Array kernel = call.arguments[1];
  const int64_t size = kernel.dimensions[0];
  Expect("kernel", kernel, {size, size, in.channels, out.channels});
  const Windows windows{size, size, call.Number<int64_t>("stride"),
                        call.Number<int64_t>("top"),
                        call.Number<int64_t>("left")};
  const Panels panels(call.pool, kernel.data, size * size * in.channels,
                      out.channels);
  Convolve(call.pool, in, windows, panels, out, Cells(out, 0, 0, 1));
}

// The taps of a kernel, on one axis, that every stride-th cell of the images
// from `cell` on was seen by, and where their window begins in the results.
struct Seen {
  Seen(int64_t size, int64_t stride, int64_t cell, int64_t before)
      : first((cell + before) % stride),
        count(first < size ? (size - 1 - first) / stride + 1 : 0),
        before(count - 1 - (cell + before - first) / stride) {}

  const int64_t first, count, before;
};

// grad [B, h, w, O], kernel [k, k, I, O] -> out [B, H, W, I], the gradient
// with respect to the images; attributes as of Forward.
void ImagesGrad(const Call& call) {
  const Map grad(call.arguments[0]), out(call.results[0]);
  const Array kernel = call.arguments[1];
  const int64_t size = kernel.dimensions[0];
  Expect("kernel", kernel, {size, size, out.channels, grad.channels});
  const int64_t stride = call.Number<int64_t>("stride");
  const Turned turned(call.pool, kernel.data, size, out.channels,
                      grad.channels);
  // Cells that lie alike between the windows were seen by the same taps.
  for (int64_t phase = 0; phase < stride * stride; ++phase) {
    const Cells cells(out, phase / stride, phase % stride, stride);
    const Seen down(size, stride, cells.y, call.Number<int64_t>("top"));
    const Seen across(size, stride, cells.x, call.Number<int64_t>("left"));
    if (cells.count <= 0) continue;
    const Panels panels(
        call.pool, down.count * across.count * grad.channels, out.channels, 1,
        [&](int64_t row, int64_t v, Vector* to, int64_t) {
          const int64_t channel = row % grad.channels;
          const int64_t tap = row / grad.channels;
          // The last one that saw a cell lies first in the results.
          const auto at = [&](const Seen& seen, int64_t i) {
            return size - 1 - seen.first - stride * (seen.count - 1 - i);
          };
          const int64_t place = at(down, tap / across.count) * size +
                                at(across, tap % across.count);
          const int64_t count =
              std::min<int64_t>(kLanes, out.channels - v * kLanes);
          *to = LoadSome(
              turned.data() +
                  (place * grad.channels + channel) * out.channels + v * kLanes,
              count);
        });
    const Windows windows{down.count, across.count, 1, down.before,
                          across.before};
    Convolve(call.pool, grad, windows, panels, out, cells);
  }
}

// Tasks of the kernel's gradient: for a line of its taps each, and a part of
// the rows, of which none is empty. They do not depend on the number of threads,
// which so changes no sum.
constexpr int64_t kTasksOfGrad = 24;
constexpr int64_t kRowsPerPart = 512;

// images [B, H, W, I], grad [B, h, w, O] -> out [k, k, I, O], the gradient
// with respect to the kernel; attributes as of Forward.
void KernelGrad(const Call& call) {
  const Map in(call.arguments[0]), grad(call.arguments[1]);
  const Array out = call.results[0];
  const int64_t size = out.dimensions[0];
  Expect("gradient", out, {size, size, in.channels, grad.channels});
  const int64_t stride = call.Number<int64_t>("stride");
  const int64_t top = call.Number<int64_t>("top");
  const int64_t left = call.Number<int64_t>("left");
  const Cells cells(grad, 0, 0, 1);
  const int64_t parts = std::max<int64_t>(
      1, std::min(cells.count / kRowsPerPart, kTasksOfGrad / size));
  const int64_t per_part = (cells.count + parts - 1) / parts;
  const int64_t together = std::min(per_part, kMostRows);
  const int64_t line = size * in.channels;
  const int64_t width = TilesOf(line) * kTileRows;
  const int64_t vectors = VectorsOf(grad.channels);
  Scratch scratch(parts * size * width * vectors, false);
  const auto sums_of = [&](int64_t part, int64_t tap) {
    return reinterpret_cast<float*>(scratch.get() + (part * size + tap) *
                                                        width * vectors);
  };
  Parallel(call.pool, parts * size, [&](int64_t begin, int64_t end) {
    Scratch copied_lines(VectorsOf(together * width));
    Scratch copied_grads(together * vectors);
    float* lines = reinterpret_cast<float*>(copied_lines.get());
    float* grads = reinterpret_cast<float*>(copied_grads.get());
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task / size, tap = task % size;
      const int64_t bottom = std::min((part + 1) * per_part, cells.count);
      for (int64_t first = part * per_part; first < bottom;
           first += together) {
        const int64_t count = std::min(together, bottom - first);
        for (int64_t row = 0; row < count; ++row) {
          const int64_t cell = first + row;
          const int64_t x = cell % cells.columns, y = cell / cells.columns;
          CopyLine(in, y / cells.rows, y % cells.rows * stride - top + tap,
                   x * stride - left, size, lines + row * width);
          std::copy_n(grad.data + cell * grad.channels, grad.channels,
                      grads + row * vectors * kLanes);
        }
        MultiplyOuter(lines, width, width, grads, vectors, count,
                      first > part * per_part, sums_of(part, tap));
      }
    }
  });
  Parallel(call.pool, size * line, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* to = out.data + i * grad.channels;
      std::fill(to, to + grad.channels, 0.0f);
      for (int64_t part = 0; part < parts; ++part) {
        const float* from =
            sums_of(part, i / line) + i % line * vectors * kLanes;
        for (int64_t o = 0; o < grad.channels; ++o) to[o] += from[o];
      }
    }
  });
}

}  // namespace

SEXTET_HANDLER(sextet_conv, Forward)
SEXTET_HANDLER(sextet_conv_images_grad, ImagesGrad)
SEXTET_HANDLER(sextet_conv_kernel_grad, KernelGrad)
