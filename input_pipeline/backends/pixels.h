// Pixels as Pillow has them in memory: four bytes, red, green, blue and one
// that means nothing.

#ifndef SEXTET_NATIVE_PIXELS_H_
#define SEXTET_NATIVE_PIXELS_H_

#include <cstdint>

inline uint32_t Red(uint32_t pixel) { return pixel & 255; }
inline uint32_t Green(uint32_t pixel) { return pixel >> 8 & 255; }
inline uint32_t Blue(uint32_t pixel) { return pixel >> 16 & 255; }
inline uint32_t Pixel(uint32_t red, uint32_t green, uint32_t blue) {
  return red | green << 8 | blue << 16;
}

#endif  // SEXTET_NATIVE_PIXELS_H_
