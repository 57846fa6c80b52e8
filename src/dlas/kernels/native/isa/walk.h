// Nested loops over several tensors that share a shape but not their strides.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "layer.h"

namespace dlas::DLAS_NS {

constexpr int kMaxRank = 12;

// K tensors; strides in elements, 0 where a tensor is repeated.
template <int K>
struct Walk {
  int rank = 0;
  int64_t size[kMaxRank] = {}, stride[K][kMaxRank] = {};

  void axis(int64_t length, const int64_t (&strides)[K]) {
    size[rank] = length;
    for (int k = 0; k < K; ++k) stride[k][rank] = strides[k];
    ++rank;
  }

  // Drops axes of length 1 and joins neighbours that all tensors step through evenly; at least one axis stays.
  void simplify() {
    int kept = 0;
    for (int i = 0; i < rank; ++i) {
      if (size[i] == 1) continue;
      bool joins = kept > 0;
      for (int k = 0; k < K && joins; ++k) joins = stride[k][kept - 1] == stride[k][i] * size[i];
      const int to = joins ? kept - 1 : kept++;
      size[to] = joins ? size[to] * size[i] : size[i];
      for (int k = 0; k < K; ++k) stride[k][to] = stride[k][i];
    }
    if (kept == 0) {
      size[0] = 1;
      for (int k = 0; k < K; ++k) stride[k][0] = 0;
      kept = 1;
    }
    rank = kept;
  }

  // Axes in the order in which tensor k lies in memory.
  void sort_by(int k) {
    for (int i = 1; i < rank; ++i)
      for (int j = i; j > 0 && std::abs(stride[k][j - 1]) < std::abs(stride[k][j]); --j) swap_axes(j - 1, j);
  }

  void swap_axes(int i, int j) {
    std::swap(size[i], size[j]);
    for (auto& s : stride) std::swap(s[i], s[j]);
  }

  // As `simplify`; afterwards tensors go along the last axis by 0 or 1, were it by runs of one element.
  void simplify_to_runs() {
    simplify();
    bool even = true;
    for (int k = 0; k < K; ++k) even = even && (stride[k][rank - 1] == 0 || stride[k][rank - 1] == 1);
    if (even) return;
    size[rank] = 1;
    for (int k = 0; k < K; ++k) stride[k][rank] = 0;
    ++rank;
  }

  int64_t outer(int inner_axes = 1) const {
    int64_t count = 1;
    for (int i = 0; i < rank - inner_axes; ++i) count *= size[i];
    return count;
  }

  // body(offset) for the outer positions [from, to); offset[k] is where the inner axes of tensor k begin.
  template <class Body>
  void each(int64_t from, int64_t to, int inner_axes, const Body& body) const {
    const int axes = rank - inner_axes;
    int64_t at[kMaxRank], offset[K] = {};
    int64_t rest = from;
    for (int i = axes - 1; i >= 0; --i) {
      at[i] = rest % size[i];
      rest /= size[i];
      for (int k = 0; k < K; ++k) offset[k] += at[i] * stride[k][i];
    }
    for (int64_t position = from; position < to; ++position) {
      body(offset);
      for (int i = axes - 1; i >= 0; --i) {
        for (int k = 0; k < K; ++k) offset[k] += stride[k][i];
        if (++at[i] < size[i]) break;
        for (int k = 0; k < K; ++k) offset[k] -= stride[k][i] * size[i];
        at[i] = 0;
      }
    }
  }

  // body(offset, count) on the pool: pieces of at most 4096 elements of the last axis, starting at multiples of VL.
  template <class Body>
  void runs(const dlas_ctx* ctx, const Body& body) const {
    constexpr int64_t kPiece = 4096;
    const int64_t rows = outer(), run = size[rank - 1];
    if (rows == 0 || run == 0) return;
    if (run > kPiece) {
      const int64_t pieces = (run + kPiece - 1) / kPiece;
      parallel(ctx, rows * pieces, [&](int64_t task, int) {
        const int64_t row = task / pieces, first = task % pieces * kPiece;
        each(row, row + 1, 1, [&](const int64_t (&offset)[K]) {
          int64_t moved[K];
          for (int k = 0; k < K; ++k) moved[k] = offset[k] + first * stride[k][rank - 1];
          body(moved, std::min(kPiece, run - first));
        });
      });
      return;
    }
    const int64_t together = std::max<int64_t>(1, kPiece / run);
    parallel(ctx, (rows + together - 1) / together, [&](int64_t task, int) {
      each(task * together, std::min(rows, (task + 1) * together), 1,
           [&](const int64_t (&offset)[K]) { body(offset, run); });
    });
  }
};

}  // namespace dlas::DLAS_NS
