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

  // Of all taps, in the order of a filter's weights.
  std::vector<int64_t> offsets() const {
    std::vector<int64_t> found;
    for (int i = 0; i < w_.kh; ++i)
      for (int j = 0; j < w_.kw; ++j) found.push_back(offset(i, j));
    return found;
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

// Neighbouring pixels of one output row.
struct Run {
  int to;        // place among the pixels asked for
  int length;
  int64_t from;  // place in a padded plane
};

// Pixels [first, first + width) of output rows of `ow`, padded rows `pitch` apart; up to `width` runs.
inline int runs_of(int64_t first, int64_t width, int64_t ow, int64_t pitch, Run* runs) {
  int count = 0;
  for (int64_t at = 0; at < width; ++count) {
    const int64_t line = (first + at) / ow, column = (first + at) % ow, length = std::min(ow - column, width - at);
    runs[count] = {static_cast<int>(at), static_cast<int>(length), line * pitch + column};
    at += length;
  }
  return count;
}

// All taps of `channels` planes at these pixels, one row of `pitch` floats per tap. Writes up to one vector too much
// behind the last row, and reads as much behind the last plane.
inline void gather(const float* planes, int64_t plane, int64_t channels, const std::vector<int64_t>& offsets,
                   const Run* runs, int count, int64_t pitch, float* to) {
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t offset : offsets) {
      const float* tap = planes + c * plane + offset;
      for (const Run* run = runs; run < runs + count; ++run)
        for (int v = 0; v < run->length; v += VL) store(to + run->to + v, load(tap + run->from + v));
      to += pitch;
    }
  }
}

}  // namespace dlas::DLAS_NS
