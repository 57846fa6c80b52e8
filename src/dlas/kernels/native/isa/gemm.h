// Products of float32 matrices: register tiles, packing, and the loop over the tiles of one panel.
//
// C (M, N) = A (M, K) B (K, N). A tile is up to kRows rows by 3 vectors of columns. B comes in panels of kPanel columns,
// packed [K][kPanel]; A is read in place, by strides, or packed [K][rows] in blocks of rows. Each result is summed by one
// thread over ascending k, so that neither threads nor tiles change it.
#pragma once

#include "layer.h"

namespace dlas::DLAS_NS {

#if DLAS_VL == 16 || defined(DLAS_NEON)
constexpr int kRows = 8;  // 24 accumulators of 32 registers
#else
constexpr int kRows = 4;  // 12 of 16
#endif
constexpr int kVectors = 3;
constexpr int kPanel = kVectors * VL;
constexpr int64_t kDepth = 512;  // rows of B that one pass takes: a panel of it stays in L2

struct Product {
  int64_t m = 0, k = 0;
  const float* a = nullptr;
  bool packed = false;            // A as pack_rows leaves it; else element (r, k) is a[r * a_row + k * a_k]
  int64_t a_row = 0, a_k = 1;
  float* c = nullptr;
  int64_t c_row = 0;
  float alpha = 1, beta = 1;
  const float* bias = nullptr;    // beta * bias[r * bias_row + n * bias_col] is added
  int64_t bias_row = 0, bias_col = 0;
  const float* add = nullptr;     // residual (M, N), or null
  int64_t add_row = 0;
  Epilogue epilogue;
};

// Rows are cut into blocks of nearly equal height.
DLAS_INLINE int64_t row_blocks(int64_t m) { return (m + kRows - 1) / kRows; }
DLAS_INLINE int64_t row_of_block(int64_t m, int64_t block) { return m * block / row_blocks(m); }
DLAS_INLINE int64_t panels(int64_t n) { return (n + kPanel - 1) / kPanel; }

// Blocks [first, last) of A into `to`: block after block, [K][rows]; block i starts at row_of_block(i) * K.
void pack_rows(const float* a, int64_t a_row, int64_t a_k, int64_t m, int64_t k, int64_t first, int64_t last, float* to);

// Columns [column, column + width) and rows [0, k) of B, element (k, n) at b[k * b_k + n * b_n], as [K][pitch]; the rest
// of a row becomes 0. `to` needs room for one vector more.
void pack_columns(const float* b, int64_t b_k, int64_t b_n, int64_t k, int64_t column, int64_t width, int64_t pitch,
                  float* to);

// Row blocks [first, last) times rows [k0, k1) of a panel (b: row k0 first, rows b_k apart, whole vectors readable) into
// columns [column, column + width) of C. k0 = 0 starts the sums, k1 = K ends them.
void multiply(const Product& p, int64_t first, int64_t last, const float* b, int64_t b_k, int64_t column, int width,
              int64_t k0, int64_t k1);

// Up to kFew rows at once by kWide vectors: streams B and keeps it nowhere.
constexpr int kWide = 4;
constexpr int kFew = kRows / 2;
void multiply_few(const Product& p, int64_t row, int rows, const float* b, int64_t b_k, int64_t column, int width);

}  // namespace dlas::DLAS_NS
