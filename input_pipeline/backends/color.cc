// What pillow.py does, to the bit: see there and cpp.py.
//
// An image is rows of pixels without gaps. Compiled without contraction to
// fused multiply-adds, which round once where Pillow and NumPy round twice.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__AVX512VBMI__)
#include <immintrin.h>
#endif

#include "pixels.h"

namespace {

// ITU-R 601 luminance with 16 fractional bits, rounded.
inline uint32_t Grey(uint32_t pixel) {
  return (Red(pixel) * 19595 + Green(pixel) * 38470 + Blue(pixel) * 7471 +
          0x8000) >> 16;
}

}  // namespace

extern "C" {

// ---- Statistics ------------------------------------------------------------

int64_t sextet_grey_sum(const uint32_t* image, int64_t count) {
  constexpr int64_t kAtOnce = 1 << 16;
  int64_t sum = 0;
  for (int64_t begin = 0; begin < count; begin += kAtOnce) {
    const int64_t end = std::min(count, begin + kAtOnce);
    uint32_t part = 0;
    for (int64_t i = begin; i < end; ++i) part += Grey(image[i]);
    sum += part;
  }
  return sum;
}

// How often each value is found in each channel, [3][256].
void sextet_histograms(const uint32_t* image, int64_t count,
                       int64_t* histograms) {
  std::fill(histograms, histograms + 3 * 256, 0);
  for (int64_t i = 0; i < count; ++i) {
    ++histograms[Red(image[i])];
    ++histograms[256 + Green(image[i])];
    ++histograms[512 + Blue(image[i])];
  }
}

// ---- Colours ---------------------------------------------------------------

// Reindices every value by that of a table, [256]. The next channel's begins
// `step` values on.
void sextet_look_up(const uint32_t* image, int64_t count,
                    const uint8_t* table, int step, uint32_t* result) {
  int64_t i = 0;
#if defined(__AVX512VBMI__)
  // A table is four registers; of one half of it a value's lower seven bits
  // choose a byte, and its uppermost bit one of the halves.
  __m512i parts[12];
  for (int part = 0; part < 12; ++part) {
    parts[part] =
        _mm512_loadu_si512(table + part / 4 * step + part % 4 * 64);
  }
  const auto values_of = [&](__m512i pixels, int channel) {
    const __m512i* of = parts + 4 * channel;
    return _mm512_mask_blend_epi8(
        _mm512_movepi8_mask(pixels),
        _mm512_permutex2var_epi8(of[0], pixels, of[1]),
        _mm512_permutex2var_epi8(of[2], pixels, of[3]));
  };
  for (; i + 16 <= count; i += 16) {
    const __m512i pixels = _mm512_loadu_si512(image + i);
    __m512i found = values_of(pixels, 0);
    found = _mm512_mask_blend_epi8(0x2222222222222222, found,
                                   values_of(pixels, 1));
    found = _mm512_mask_blend_epi8(0x4444444444444444, found,
                                   values_of(pixels, 2));
    _mm512_storeu_si512(result + i, found);
  }
#endif
  for (; i < count; ++i) {
    const uint32_t pixel = image[i];
    result[i] = Pixel(table[Red(pixel)], table[step + Green(pixel)],
                      table[2 * step + Blue(pixel)]);
  }
}

void sextet_grayscale(const uint32_t* image, int64_t count,
                      uint32_t* result) {
  for (int64_t i = 0; i < count; ++i) result[i] = Grey(image[i]) * 0x010101;
}

// Multiplies colours by a matrix of three rows, the last column added.
void sextet_mix_colours(const uint32_t* image, int64_t count,
                        const float* matrix, uint32_t* result) {
  float m[12];
  std::copy(matrix, matrix + 12, m);
  for (int64_t i = 0; i < count; ++i) {
    const float red = static_cast<int>(Red(image[i]));
    const float green = static_cast<int>(Green(image[i]));
    const float blue = static_cast<int>(Blue(image[i]));
    uint32_t mixed = 0;
    for (int row = 0; row < 3; ++row) {
      const float* of = m + 4 * row;
      float value = of[0] * red + of[1] * green + of[2] * blue + of[3] + 0.5f;
      value = value < 0.0f ? 0.0f : value;
      value = value > 255.0f ? 255.0f : value;
      mixed |= static_cast<uint32_t>(static_cast<int>(value)) << 8 * row;
    }
    result[i] = mixed;
  }
}

// Turns hues; the tables are those of pixel_math.hue_tables.
void sextet_hue(const uint32_t* image, int64_t count, int shift,
                const uint8_t* hues, const uint32_t* deductions,
                uint32_t* result) {
  constexpr int kAtOnce = 512;
  int32_t indices[kAtOnce], spreads[kAtOnce];
  for (int64_t begin = 0; begin < count; begin += kAtOnce) {
    const int many = std::min<int64_t>(kAtOnce, count - begin);
    const uint32_t* from = image + begin;
    uint32_t* to = result + begin;
    for (int i = 0; i < many; ++i) {
      const int red = Red(from[i]), green = Green(from[i]);
      const int blue = Blue(from[i]);
      const int high = std::max(std::max(red, green), blue);
      const int low = std::min(std::min(red, green), blue);
      const int middle = red + green + blue - high - 2 * low;
      const int order = 3 * (green >= blue) + (red >= green) + (red >= blue);
      spreads[i] = (high - low) << 8;
      indices[i] = order << 16 | spreads[i] | middle;
      to[i] = high * 0x010101;
    }
    // None borrows, as the spread is never above the highest.
    for (int i = 0; i < many; ++i) {
      const int turned = (hues[indices[i]] + shift) & 255;
      to[i] -= deductions[spreads[i] | turned];
    }
  }
}

// center * value + around * (sum of the 3x3 plus 4 times the value), cut; the
// outermost pixels stay.
void sextet_sharpen(const uint8_t* image, int width, int height, float center,
                    float around, uint8_t* result) {
  const int64_t row = 4 * static_cast<int64_t>(width);
  std::memcpy(result, image, row * height);
  std::vector<int16_t> columns(row);
  for (int y = 1; y < height - 1; ++y) {
    const uint8_t* from = image + y * row;
    uint8_t* to = result + y * row;
    int16_t* sums = columns.data();
    for (int64_t i = 0; i < row; ++i) {
      sums[i] = from[i - row] + from[i] + from[i + row];
    }
    for (int64_t i = 4; i < row - 4; ++i) {
      const int total = sums[i - 4] + sums[i] + sums[i + 4] + 4 * from[i];
      float value = from[i] * center + total * around;
      value = value < 0.0f ? 0.0f : value;
      value = value > 255.0f ? 255.0f : value;
      to[i] = static_cast<int>(value);
    }
  }
}

// ---- The way out -----------------------------------------------------------

// Leaves out every fourth byte.
void sextet_pack(const uint32_t* image, int64_t count, uint8_t* result) {
  for (int64_t i = 0; i + 1 < count; ++i) {
    std::memcpy(result + 3 * i, image + i, 4);  // The next one covers the 4th.
  }
  std::memcpy(result + 3 * (count - 1), image + count - 1, 3);
}

}  // extern "C"
