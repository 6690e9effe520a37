// Pillow's nearest neighbour, to the bit: affine maps, and resizing of masks.
// An image has four bytes a pixel, a mask one, and neither gaps between rows.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

// Copies the row of pixels from (x, y) on, as far as there are any.
template <typename Pixel>
void CopyMoved(const Pixel* image, int width, int height, int x, int y,
               Pixel fill, Pixel* to) {
  std::fill_n(to, width, fill);
  if (y < 0 || y >= height || x <= -width || x >= width) return;
  const Pixel* row = image + static_cast<size_t>(y) * width;
  if (x < 0) {
    std::copy(row, row + width + x, to - x);
  } else {
    std::copy(row + x, row + width, to);
  }
}

// Maps new to old pixels by a matrix of two rows; `fill` from outside.
template <typename Pixel>
void Affine(const Pixel* image, int width, int height, const double* matrix,
            Pixel fill, Pixel* result) {
  const auto fixed = [](double value) {  // with 16 fractional bits
    return static_cast<int>(std::floor(value * 65536.0 + 0.5));
  };
  const int x_by_x = fixed(matrix[0]), x_by_y = fixed(matrix[1]);
  const int y_by_x = fixed(matrix[3]), y_by_y = fixed(matrix[4]);
  // Of the middle of a pixel.
  int x_of_row = fixed(matrix[2] + matrix[0] * 0.5 + matrix[1] * 0.5);
  int y_of_row = fixed(matrix[5] + matrix[3] * 0.5 + matrix[4] * 0.5);
  const bool rows_stay_rows = x_by_x == 1 << 16 && y_by_x == 0;
  for (int row = 0; row < height; ++row, result += width) {
    if (rows_stay_rows) {
      CopyMoved(image, width, height, x_of_row >> 16, y_of_row >> 16, fill,
                result);
    } else {
      for (int column = 0; column < width; ++column) {
        const int x = (x_of_row + column * x_by_x) >> 16;
        const int y = (y_of_row + column * y_by_x) >> 16;
        const bool inside = static_cast<unsigned>(x) < unsigned(width) &&
                            static_cast<unsigned>(y) < unsigned(height);
        result[column] = inside ? image[y * width + x] : fill;
      }
    }
    x_of_row += x_by_y;
    y_of_row += y_by_y;
  }
}

// Which old pixel is the nearest of each new one; -1 outside.
std::vector<int> Nearest(int old_size, float low, float high, int new_size) {
  std::vector<int> found(new_size);
  // Summed up pixel by pixel, as Pillow does: the last bits count.
  const double step = static_cast<double>(high - low) / new_size;
  double position = low + step * 0.5;
  for (int& nearest : found) {
    nearest = position < 0 || position >= old_size ? -1 : static_cast<int>(position);
    position += step;
  }
  return found;
}

}  // namespace

extern "C" {

void sextet_affine(const uint32_t* image, int width, int height,
                   const double* matrix, uint32_t* result) {
  Affine<uint32_t>(image, width, height, matrix, 0, result);
}

void sextet_affine_mask(const uint8_t* mask, int width, int height,
                        const double* matrix, int fill, uint8_t* result) {
  Affine<uint8_t>(mask, width, height, matrix, fill, result);
}

// Shows `box` (left, top, right, bottom) of a mask in size x size pixels.
void sextet_resize_mask(const uint8_t* mask, int width, int height,
                        const float* box, int size, int mirrored,
                        uint8_t* result) {
  const std::vector<int> columns = Nearest(width, box[0], box[2], size);
  const std::vector<int> rows = Nearest(height, box[1], box[3], size);
  for (int y = 0; y < size; ++y, result += size) {
    const uint8_t* row = mask + static_cast<size_t>(std::max(rows[y], 0)) * width;
    for (int x = 0; x < size; ++x) {
      const bool inside = rows[y] >= 0 && columns[x] >= 0;
      result[mirrored ? size - 1 - x : x] = inside ? row[columns[x]] : 0;
    }
  }
}

}  // extern "C"
