// Pillow's resize by the triangle filter, to the bit: see cpp.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "pixels.h"

namespace {

// Pixels that are computed at a time: side by side, or above each other.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef uint32_t Vector __attribute__((vector_size(4 * kLanes)));

constexpr int kPrecision = 32 - 8 - 2;
constexpr uint32_t kHalf = 1 << (kPrecision - 1);

// The triangle filter along one axis: which pixels make up each new one.
struct Weights {
  std::vector<int> first, count;
  std::vector<int32_t> values;  // `most` of each new pixel
  int most, begin, end;         // of the old pixels that are needed

  Weights(int old_size, float low, float high, int new_size)
      : first(new_size), count(new_size) {
    const double scale = static_cast<double>(high - low) / new_size;
    const double support = std::max(scale, 1.0);
    most = static_cast<int>(std::ceil(support)) * 2 + 1;
    values.assign(static_cast<size_t>(new_size) * most, 0);
    std::vector<double> shares(most);
    begin = old_size, end = 0;
    for (int i = 0; i < new_size; ++i) {
      const double center = low + (i + 0.5) * scale;
      const double narrow = 1.0 / support;
      first[i] = std::max(static_cast<int>(center - support + 0.5), 0);
      const int last =
          std::min(static_cast<int>(center + support + 0.5), old_size);
      count[i] = last - first[i];
      double sum = 0;
      for (int k = 0; k < count[i]; ++k) {
        const double away = std::abs((k + first[i] - center + 0.5) * narrow);
        shares[k] = away < 1 ? 1 - away : 0;
        sum += shares[k];
      }
      for (int k = 0; k < count[i]; ++k) {
        if (sum != 0) shares[k] /= sum;
        values[static_cast<size_t>(i) * most + k] =
            static_cast<int32_t>(0.5 + shares[k] * (1 << kPrecision));
      }
      begin = std::min(begin, first[i]);
      end = std::max(end, last);
    }
  }

  const int32_t* of(int i) const {
    return &values[static_cast<size_t>(i) * most];
  }
};

// The weights of a pixel are at least 0 and add up to 1, but for rounding:
// results are between 0 and 255.
struct Sums {
  Vector red = Vector{} + kHalf, green = red, blue = red;

  void Add(const uint32_t* from, uint32_t weight) {
    Vector pixels;
    std::memcpy(&pixels, from, sizeof(pixels));
    red += (pixels & 255) * weight;
    green += (pixels >> 8 & 255) * weight;
    blue += (pixels >> 16 & 255) * weight;
  }

  void Store(uint32_t* to, int count) const {
    const Vector pixels = red >> kPrecision | green >> kPrecision << 8 |
                          blue >> kPrecision << 16;
    std::memcpy(to, &pixels, 4 * count);
  }
};

// Rows of pixels, with room for whole vectors in both directions.
class Image {
 public:
  Image(int width, int height)
      : stride(RoundedUp(width)),
        pixels_(new uint32_t[static_cast<size_t>(stride) *
                             RoundedUp(height)]()) {}
  uint32_t* row(int y) {
    return pixels_.get() + static_cast<size_t>(y) * stride;
  }
  const int stride;  // pixels from one row to the next

 private:
  static int RoundedUp(int size) {
    return (size + kLanes - 1) / kLanes * kLanes;
  }
  const std::unique_ptr<uint32_t[]> pixels_;
};

// Pixels of 3 or 4 bytes, somebody else's.
struct Source {
  const uint8_t* pixels;
  int64_t bytes_a_row;
  int bytes_a_pixel;

  // Copies pixels `begin` to `end` of a row to every `step`-th element.
  void Copy(int y, int begin, int end, int step, uint32_t* to) const {
    const uint8_t* from =
        pixels + y * bytes_a_row + static_cast<int64_t>(begin) * bytes_a_pixel;
    if (bytes_a_pixel == 4) {
      for (int x = begin; x < end; ++x, from += 4, to += step) {
        std::memcpy(to, from, 4);
      }
    } else {
      for (int x = begin; x < end; ++x, from += 3, to += step) {
        *to = Pixel(from[0], from[1], from[2]);
      }
    }
  }
};

// Changes the width of `rows` rows from `first` on, `kLanes` of them at a time,
// with pixels of one column side by side.
void Across(const Source& source, int first, int rows, const Weights& weights,
            bool mirrored, Image& result) {
  const int width = weights.first.size();
  const std::unique_ptr<uint32_t[]> columns(
      new uint32_t[static_cast<size_t>(weights.end) * kLanes]);
  for (int row = 0; row < rows; row += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      source.Copy(first + std::min(row + i, rows - 1), weights.begin,
                  weights.end, kLanes,
                  &columns[static_cast<size_t>(weights.begin) * kLanes + i]);
    }
    for (int x = 0; x < width; ++x) {
      const int32_t* values = weights.of(x);
      const uint32_t* pixels =
          &columns[static_cast<size_t>(weights.first[x]) * kLanes];
      Sums sums;
      for (int k = 0; k < weights.count[x]; ++k) {
        sums.Add(pixels + k * kLanes, values[k]);
      }
      uint32_t done[kLanes];
      sums.Store(done, kLanes);
      uint32_t* to = result.row(row) + (mirrored ? width - 1 - x : x);
      for (int i = 0; i < kLanes; ++i) to[i * result.stride] = done[i];
    }
  }
}

// Changes the height; the rows of `image` begin with the first that is needed.
void Down(Image& image, const Weights& weights, int width, uint32_t* result,
          int stride) {
  for (size_t y = 0; y < weights.first.size(); ++y, result += stride) {
    const int32_t* values = weights.of(y);
    const uint32_t* from = image.row(weights.first[y] - weights.begin);
    for (int x = 0; x < width; x += kLanes) {
      Sums sums;
      for (int k = 0; k < weights.count[y]; ++k) {
        sums.Add(from + static_cast<size_t>(k) * image.stride + x, values[k]);
      }
      sums.Store(result + x, std::min(kLanes, width - x));
    }
  }
}

}  // namespace

extern "C" {

// Shows `box` (left, top, right, bottom) of an image with 3 or 4 bytes a pixel
// in size x size pixels.
void sextet_resize(const uint8_t* pixels, int64_t bytes_a_row,
                   int bytes_a_pixel, int width, int height, const float* box,
                   int size, int down_first, int mirrored, uint32_t* result) {
  const Source source = {pixels, bytes_a_row, bytes_a_pixel};
  const Weights across(width, box[0], box[2], size);
  const Weights down(height, box[1], box[3], size);
  const int rows = down.end - down.begin;
  if (!down_first) {
    Image narrow(size, rows);
    Across(source, down.begin, rows, across, mirrored, narrow);
    Down(narrow, down, size, result, size);
    return;
  }
  Image whole(width, rows), low(width, size), done(size, size);
  for (int y = 0; y < rows; ++y) {
    source.Copy(down.begin + y, across.begin, across.end, 1,
                whole.row(y) + across.begin);
  }
  Down(whole, down, width, low.row(0), low.stride);
  const Source lowered = {reinterpret_cast<uint8_t*>(low.row(0)),
                          4ll * low.stride, 4};
  Across(lowered, 0, size, across, mirrored, done);
  for (int y = 0; y < size; ++y) {
    std::memcpy(result + static_cast<size_t>(y) * size, done.row(y), 4 * size);
  }
}

}  // extern "C"
