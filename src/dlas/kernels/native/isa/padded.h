// The input of a convolution, padded and split by stride, so that each tap of the window is a shift.
//
// A plane becomes [row phase][column phase][rows][pitch]: phase p holds every stride-th row (column) from p on. Tap (i, j)
// of pixel (oh, ow) then stands at offset(i, j) + oh * pitch + ow, whatever the stride.
#pragma once

#include <algorithm>

#include "layer.h"

namespace dlas::DLAS_NS {

struct Padded {
  Padded(const Window& window, int64_t height, int64_t width, int64_t oh, int64_t ow)
      : w_(window), height_(height), width_(width) {
    const int64_t down = static_cast<int64_t>(w_.kh - 1) * w_.dh, across = static_cast<int64_t>(w_.kw - 1) * w_.dw;
    row_phases_ = std::min<int64_t>(w_.sh, down + 1), column_phases_ = std::min<int64_t>(w_.sw, across + 1);
    rows = oh + down / w_.sh, pitch = ow + across / w_.sw;
    plane = row_phases_ * column_phases_ * rows * pitch;
  }

  int64_t offset(int i, int j) const {
    const int64_t y = static_cast<int64_t>(i) * w_.dh, x = static_cast<int64_t>(j) * w_.dw;
    return ((y % w_.sh * column_phases_ + x % w_.sw) * rows + y / w_.sh) * pitch + x / w_.sw;
  }

  // One channel, (height, width) contiguous, into `plane` floats.
  void fill(const float* x, float* to) const {
    for (int64_t p = 0; p < row_phases_; ++p)
      for (int64_t q = 0; q < column_phases_; ++q)
        for (int64_t r = 0; r < rows; ++r, to += pitch) row(x, p + r * w_.sh - w_.top, q - w_.left, to);
  }

  int64_t rows = 0, pitch = 0, plane = 0;

 private:
  // Columns first, first + sw, ... of row y.
  void row(const float* x, int64_t y, int64_t first, float* to) const {
    if (y < 0 || y >= height_) {
      std::fill(to, to + pitch, 0.0f);
      return;
    }
    const int64_t s = w_.sw;
    const int64_t from = first < 0 ? std::min(pitch, (-first + s - 1) / s) : 0;
    const int64_t until = first < width_ ? std::max(from, std::min(pitch, (width_ - first + s - 1) / s)) : from;
    std::fill(to, to + from, 0.0f);
    const float* source = x + y * width_ + first;
    if (s == 1)
      std::memcpy(to + from, source + from, (until - from) * sizeof(float));
    else if (s == 2)
      for (int64_t i = from; i < until; ++i) to[i] = source[2 * i];
    else
      for (int64_t i = from; i < until; ++i) to[i] = source[s * i];
    std::fill(to + until, to + pitch, 0.0f);
  }

  Window w_;
  int64_t height_ = 0, width_ = 0, row_phases_ = 1, column_phases_ = 1;
};

}  // namespace dlas::DLAS_NS
