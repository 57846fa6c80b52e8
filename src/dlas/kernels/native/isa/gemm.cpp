// Gemm and MatMul: `gemm` for many rows, `gemv` for up to four.

#include "gemm.h"

#include <algorithm>
#include <array>

namespace dlas::DLAS_NS {
namespace {

enum Start { kZero, kResume, kRowBias, kColumnBias };

struct Tile {
  const float* a;
  int64_t a_row, a_k;
  const float* b;
  int64_t b_k;
  float* c;
  int64_t c_row, k;
  Start start;
  const float* bias;
  int64_t bias_row;
  const float* add;
  int64_t add_row;
  bool relu;
};

template <int M, int N>
__attribute__((noinline)) void tile(const Tile& t) {
  V acc[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      if (t.start == kZero) acc[m][n] = V{};
      else if (t.start == kResume) acc[m][n] = load(t.c + m * t.c_row + n * VL);
      else if (t.start == kRowBias) acc[m][n] = splat(t.bias[m * t.bias_row]);
      else acc[m][n] = load(t.bias + n * VL);
    }
  }
  const float *a = t.a, *b = t.b;
  const int64_t a_row = t.a_row, a_k = t.a_k, b_k = t.b_k;
  int64_t k = t.k;
  if constexpr (M == 1 && N == kWide) {
    // Two streams of B and two sums: one row alone waits for its own additions, and for the memory.
    const int64_t half = k / 2;
    const float *a2 = a + half * a_k, *b2 = b + half * b_k;
    V other[N] = {};
    for (int64_t i = half; i > 0; --i, a += a_k, b += b_k, a2 += a_k, b2 += b_k) {
      const V value = splat(*a), value2 = splat(*a2);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[0][n] += value * load(b + n * VL), other[n] += value2 * load(b2 + n * VL);
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) acc[0][n] += other[n];
    a = a2, b = b2, k -= 2 * half;
  }
  for (; k > 0; --k, a += a_k, b += b_k) {
    V column[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) column[n] = load(b + n * VL);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const V value = splat(a[m * a_row]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] += value * column[n];
    }
  }
  if (t.add) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] += load(t.add + m * t.add_row + n * VL);
  }
  if (t.relu) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) acc[m][n] = activate<kRelu>(acc[m][n], 0, 0);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(t.c + m * t.c_row + n * VL, acc[m][n]);
}

using Kernel = void (*)(const Tile&);

template <int N, int... M>
constexpr auto tiles(std::integer_sequence<int, M...>) {
  return std::array<Kernel, sizeof...(M)>{tile<M + 1, N>...};
}

Kernel tile_of(int rows, int vectors) {
  using Rows = std::make_integer_sequence<int, kRows>;
  static constexpr auto one = tiles<1>(Rows()), two = tiles<2>(Rows()), three = tiles<3>(Rows());
  static constexpr auto wide = tiles<kWide>(std::make_integer_sequence<int, kFew>());
  switch (vectors) {
    case 1: return one[rows - 1];
    case 2: return two[rows - 1];
    case 3: return three[rows - 1];
    default: return wide[rows - 1];
  }
}

// Results of a tile that no tile can store itself: part of a vector, alpha, or a bias of its own kind.
__attribute__((noinline)) void finish(const Product& p, int64_t row, int rows, int64_t column, int width, float* y,
                                      int pitch) {
  for (int r = 0; r < rows; ++r, y += pitch) {
    if (p.alpha != 1)
      for (int n = 0; n < width; ++n) y[n] *= p.alpha;
    if (p.bias) {
      const float* bias = p.bias + (row + r) * p.bias_row + column * p.bias_col;
      if (p.bias_col)
        for (int n = 0; n < width; ++n) y[n] += p.beta * bias[n];
      else
        for (int n = 0; n < width; ++n) y[n] += p.beta * bias[0];
    }
    if (p.add) {
      const float* add = p.add + (row + r) * p.add_row + column;
      for (int n = 0; n < width; ++n) y[n] += add[n];
    }
    if (p.epilogue.act) p.epilogue.over(y, width);
  }
}

// One block of rows times one panel.
DLAS_INLINE void one_tile(const Product& p, Tile& t, Kernel kernel, int64_t row, int rows, int64_t column, int width,
                          int vectors, bool begins, bool ends, bool whole) {
  float* c = p.c + row * p.c_row + column;
  if (whole) {
    t.c = c, t.c_row = p.c_row;
    t.start = !begins ? kResume : !p.bias ? kZero : p.bias_row ? kRowBias : kColumnBias;
    t.bias = p.bias ? p.bias + (p.bias_row ? row * p.bias_row : column) : nullptr;
    t.bias_row = p.bias_row;
    t.add = ends && p.add ? p.add + row * p.add_row + column : nullptr;
    t.add_row = p.add_row;
    t.relu = ends && p.epilogue.act == kRelu;
    kernel(t);
    if (ends && p.epilogue.act > kRelu)
      for (int r = 0; r < rows; ++r) p.epilogue.over(c + r * p.c_row, width);
    return;
  }
  alignas(64) float y[kRows * kWide * VL];
  const int pitch = vectors * VL;
  t.c = y, t.c_row = pitch, t.start = begins ? kZero : kResume, t.add = nullptr, t.relu = false;
  if (!begins) {
    for (int r = 0; r < rows; ++r) {
      std::memcpy(y + r * pitch, c + r * p.c_row, width * sizeof(float));
      std::fill(y + r * pitch + width, y + (r + 1) * pitch, 0.0f);
    }
  }
  kernel(t);
  if (ends) finish(p, row, rows, column, width, y, pitch);
  for (int r = 0; r < rows; ++r) std::memcpy(c + r * p.c_row, y + r * pitch, width * sizeof(float));
}

// Whether tiles can add the bias themselves.
bool simple(const Product& p) {
  if (p.alpha != 1) return false;
  return !p.bias || (p.beta == 1 && (p.bias_row != 0) != (p.bias_col != 0));
}

}  // namespace

void pack_rows(const float* a, int64_t a_row, int64_t a_k, int64_t m, int64_t k, int64_t first, int64_t last,
               float* to) {
  for (int64_t block = first; block < last; ++block) {
    const int64_t from = row_of_block(m, block), rows = row_of_block(m, block + 1) - from;
    const float* source = a + from * a_row;
    float* target = to + from * k;
    if (a_row == 1) {
      for (int64_t i = 0; i < k; ++i, source += a_k, target += rows) std::memcpy(target, source, rows * sizeof(float));
    } else {
      for (int64_t i = 0; i < k; ++i)
        for (int64_t r = 0; r < rows; ++r) target[i * rows + r] = source[r * a_row + i * a_k];
    }
  }
}

void pack_columns(const float* b, int64_t b_k, int64_t b_n, int64_t k, int64_t column, int64_t width, int64_t pitch,
                  float* to) {
  b += column * b_n;
  if (b_n == 1) {
    for (int64_t i = 0; i < k; ++i, b += b_k, to += pitch) {
      int64_t n = 0;
      for (; n + VL <= width; n += VL) store(to + n, load(b + n));
      for (; n < width; ++n) to[n] = b[n];
      for (; n < pitch; ++n) to[n] = 0;
    }
    return;
  }
  constexpr int64_t kStrip = 16;  // of one column: whole lines of the source at a time
  for (int64_t from = 0; from < k; from += kStrip) {
    const int64_t until = std::min(k, from + kStrip);
    for (int64_t n = 0; n < width; ++n)
      for (int64_t i = from; i < until; ++i) to[i * pitch + n] = b[n * b_n + i * b_k];
    for (int64_t i = from; i < until; ++i) std::fill(to + i * pitch + width, to + (i + 1) * pitch, 0.0f);
  }
}

void multiply(const Product& p, int64_t first, int64_t last, const float* b, int64_t b_k, int64_t column, int width,
              int64_t k0, int64_t k1) {
  const int vectors = (width + VL - 1) / VL;
  const bool whole = width % VL == 0 && simple(p);
  Tile t{};
  t.b = b, t.b_k = b_k, t.k = k1 - k0;
  for (int64_t block = first; block < last; ++block) {
    const int64_t row = row_of_block(p.m, block);
    const int rows = static_cast<int>(row_of_block(p.m, block + 1) - row);
    t.a = p.packed ? p.a + row * p.k + k0 * rows : p.a + row * p.a_row + k0 * p.a_k;
    t.a_row = p.packed ? 1 : p.a_row;
    t.a_k = p.packed ? rows : p.a_k;
    one_tile(p, t, tile_of(rows, vectors), row, rows, column, width, vectors, k0 == 0, k1 == p.k, whole);
  }
}

void multiply_few(const Product& p, int64_t row, int rows, const float* b, int64_t b_k, int64_t column, int width) {
  const int vectors = (width + VL - 1) / VL;
  Tile t{};
  t.b = b, t.b_k = b_k, t.k = p.k, t.a = p.a + row * p.a_row, t.a_row = p.a_row, t.a_k = p.a_k;
  one_tile(p, t, tile_of(rows, vectors), row, rows, column, width, vectors, true, true, width % VL == 0 && simple(p));
}

namespace {

// Shapes and strides of Gemm and MatMul, and what both kernels share.
struct Matrices {
  int64_t m = 0, n = 0, k = 0;
  int64_t a_row = 0, a_k = 0, b_k = 0, b_n = 0;
  std::vector<int64_t> a_at, b_at;  // offset of each product of a batch
  std::vector<int64_t> b_distinct;  // offsets of the different matrices B ...
  std::vector<int64_t> b_which;     // ... and which of them a product takes
  float alpha = 1, beta = 1;
  int64_t bias_row = 0, bias_col = 0;
  Epilogue epilogue;

  explicit Matrices(const dlas_node* node) : epilogue(node) {
    const DLTensor *a = input(node, 0), *b = input(node, 1);
    const std::vector<int64_t> as(a->shape, a->shape + a->ndim), bs(b->shape, b->shape + b->ndim);
    if (std::string(api().op(node)) == "Gemm") {
      const bool ta = get(node, "transA", 0), tb = get(node, "transB", 0);
      m = as[ta ? 1 : 0], k = as[ta ? 0 : 1], n = bs[tb ? 0 : 1];
      a_row = ta ? 1 : k, a_k = ta ? m : 1, b_k = tb ? 1 : n, b_n = tb ? k : 1;
      alpha = static_cast<float>(getf(node, "alpha", 1)), beta = static_cast<float>(getf(node, "beta", 1));
      a_at = b_at = {0};
    } else {
      batch(as, bs);
    }
    for (int64_t at : b_at) {
      auto found = std::find(b_distinct.begin(), b_distinct.end(), at);
      b_which.push_back(found - b_distinct.begin());
      if (found == b_distinct.end()) b_distinct.push_back(at);
    }
    if (const DLTensor* c = input(node, 2)) {
      const int64_t columns = c->ndim > 0 ? c->shape[c->ndim - 1] : 1, rows = c->ndim > 1 ? c->shape[c->ndim - 2] : 1;
      bias_col = columns > 1, bias_row = rows > 1 ? columns : 0;
    }
  }

  void batch(std::vector<int64_t> as, std::vector<int64_t> bs) {
    if (as.size() == 1) as.insert(as.begin(), 1);
    if (bs.size() == 1) bs.push_back(1);
    m = as[as.size() - 2], k = as.back(), n = bs.back();
    as.resize(as.size() - 2), bs.resize(bs.size() - 2);
    a_row = k, a_k = 1, b_k = n, b_n = 1;
    const size_t rank = std::max(as.size(), bs.size());
    as.insert(as.begin(), rank - as.size(), 1), bs.insert(bs.begin(), rank - bs.size(), 1);
    a_at = b_at = {0};
    int64_t b_count = 1;
    for (int64_t size : bs) b_count *= size;
    if (b_count == 1) {  // one B: the products are rows of one
      for (int64_t size : as) m *= size;
      return;
    }
    int64_t a_size = m * k, b_size = k * n;
    for (size_t i = rank; i-- > 0;) {
      const int64_t size = as[i] == 1 ? bs[i] : as[i];
      std::vector<int64_t> a_new, b_new;
      for (int64_t s = 0; s < size; ++s) {
        for (int64_t at : a_at) a_new.push_back(at + (as[i] == 1 ? 0 : s * a_size));
        for (int64_t at : b_at) b_new.push_back(at + (bs[i] == 1 ? 0 : s * b_size));
      }
      a_at = a_new, b_at = b_new;
      a_size *= as[i], b_size *= bs[i];
    }
  }

  int64_t products() const { return static_cast<int64_t>(a_at.size()); }

  Product product(const DLTensor* const* in, int n_in, DLTensor* out, int64_t i) const {
    const float *bias = n_in > 2 ? floats(in[2]) : nullptr, *add = n_in > 3 ? floats(in[3]) : nullptr;
    return {m, k, floats(in[0]) + a_at[i], false, a_row, a_k, floats(out) + i * m * n, n, alpha, beta,
            beta == 0 ? nullptr : bias, bias_row, bias_col, add ? add + i * m * n : nullptr, n, epilogue};
  }
};

int plain(const dlas_node* node, const char* name) {
  for (int i = 0; i < api().inputs(node); ++i) {
    const DLTensor* t = input(node, i);
    if (t && (t->dtype.code != 2 || t->dtype.bits != 32)) return refuse(std::string(name) + " multiplies float32");
  }
  const DLTensor *a = input(node, 0), *b = input(node, 1);
  if (!a || !b || a->ndim < 1 || b->ndim < 1) return refuse(std::string(name) + " needs two matrices");
  return 1;
}

class Gemm {
 public:
  static int supports(const dlas_node* node) { return plain(node, "gemm"); }

  Gemm(const dlas_node* node, const dlas_ctx* ctx) : s_(node), ctx_(ctx), threads_(api().threads(ctx)) {
    const DLTensor* b = input(node, 1);
    constant_ = b->data != nullptr;
    panels_ = panels(s_.n);
    if (constant_) {
      b_ = std::make_unique<Packed>(s_.b_distinct.size() * panels_ * s_.k * kPanel + VL);
      for (size_t i = 0; i < s_.b_distinct.size(); ++i)
        for (int64_t p = 0; p < panels_; ++p)
          pack_columns(floats(b) + s_.b_distinct[i], s_.b_k, s_.b_n, s_.k, p * kPanel, width(p), kPanel,
                       b_->at + (i * panels_ + p) * s_.k * kPanel);
    }
    // Rows of other panels than the first are read again and again: from blocks, unless there are few of both.
    pack_a_ = s_.a_row == 1 || (panels_ > 4 && s_.m > kRows);
    const int64_t blocks = row_blocks(s_.m);
    chunk_ = std::max<int64_t>(1, std::min<int64_t>(blocks, 128 / kRows));  // 256 KiB of A
    while (chunk_ > 1 && s_.products() * panels_ * ((blocks + chunk_ - 1) / chunk_) < 2 * threads_ && threads_ > 1)
      chunk_ = (chunk_ + 1) / 2;
    chunks_ = (blocks + chunk_ - 1) / chunk_;
  }

  size_t workspace() const { return (a_floats() + (constant_ ? 0 : threads_ * b_floats())) * sizeof(float); }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void* scratch) {
    if (!s_.m || !s_.n) return;
    float* packed = static_cast<float*>(scratch);
    float* own = packed + a_floats();
    const int64_t blocks = row_blocks(s_.m);
    if (pack_a_) {
      parallel(ctx_, s_.products() * chunks_, [&](int64_t task, int) {
        const int64_t i = task / chunks_, chunk = task % chunks_;
        pack_rows(floats(in[0]) + s_.a_at[i], s_.a_row, s_.a_k, s_.m, s_.k, chunk * chunk_,
                  std::min(blocks, (chunk + 1) * chunk_), packed + i * s_.m * s_.k);
      });
    }
    parallel(ctx_, s_.products() * chunks_ * panels_, [&](int64_t task, int thread) {
      const int64_t panel = task % panels_, chunk = task / panels_ % chunks_, i = task / panels_ / chunks_;
      Product p = s_.product(in, n_in, out[0], i);
      if (pack_a_) p.a = packed + i * s_.m * s_.k, p.packed = true;
      const float* b;
      if (constant_) {
        b = b_->at + (s_.b_which[i] * panels_ + panel) * s_.k * kPanel;
      } else {
        float* target = own + thread * b_floats();
        pack_columns(floats(in[1]) + s_.b_at[i], s_.b_k, s_.b_n, s_.k, panel * kPanel, width(panel), kPanel, target);
        b = target;
      }
      const int64_t last = std::min(blocks, (chunk + 1) * chunk_);
      int64_t k = 0;
      do {
        const int64_t until = std::min(s_.k, k + kDepth);
        multiply(p, chunk * chunk_, last, b + k * kPanel, kPanel, panel * kPanel, width(panel), k, until);
        k = until;
      } while (k < s_.k);
    });
  }

 private:
  int width(int64_t panel) const { return static_cast<int>(std::min<int64_t>(kPanel, s_.n - panel * kPanel)); }
  int64_t a_floats() const { return pack_a_ ? (s_.products() * s_.m * s_.k + 15) / 16 * 16 : 0; }
  int64_t b_floats() const { return s_.k * kPanel + 16; }

  Matrices s_;
  const dlas_ctx* ctx_;
  int threads_;
  bool constant_, pack_a_;
  int64_t panels_, chunk_, chunks_;
  std::unique_ptr<Packed> b_;
};

class Gemv {
 public:
  static constexpr int64_t kStrip = kWide * VL;

  static int supports(const dlas_node* node) {
    if (!plain(node, "gemv")) return 0;
    const Matrices s(node);
    if (s.m > 4) return refuse("gemv has up to 4 rows, this product has " + std::to_string(s.m));
    return 1;
  }

  Gemv(const dlas_node* node, const dlas_ctx* ctx) : s_(node), ctx_(ctx), threads_(api().threads(ctx)) {
    const DLTensor* b = input(node, 1);
    strips_ = (s_.n + kStrip - 1) / kStrip;
    constant_ = b->data != nullptr;
    if (!constant_) return;
    b_ = std::make_unique<Packed>(s_.b_distinct.size() * strips_ * s_.k * kStrip + VL);
    for (size_t i = 0; i < s_.b_distinct.size(); ++i)
      for (int64_t p = 0; p < strips_; ++p)
        pack_columns(floats(b) + s_.b_distinct[i], s_.b_k, s_.b_n, s_.k, p * kStrip, width(p), kStrip,
                     b_->at + (i * strips_ + p) * s_.k * kStrip);
  }

  size_t workspace() const { return constant_ ? 0 : threads_ * b_floats() * sizeof(float); }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void* scratch) {
    if (!s_.m || !s_.n) return;
    parallel(ctx_, s_.products() * strips_, [&](int64_t task, int thread) {
      const int64_t i = task / strips_, strip = task % strips_;
      const Product p = s_.product(in, n_in, out[0], i);
      const float* b;
      int64_t b_k = kStrip;
      if (constant_) {
        b = b_->at + (s_.b_which[i] * strips_ + strip) * s_.k * kStrip;
      } else if (s_.b_n == 1 && width(strip) == kStrip) {
        b = floats(in[1]) + s_.b_at[i] + strip * kStrip, b_k = s_.b_k;
      } else {
        float* target = static_cast<float*>(scratch) + thread * b_floats();
        pack_columns(floats(in[1]) + s_.b_at[i], s_.b_k, s_.b_n, s_.k, strip * kStrip, width(strip), kStrip, target);
        b = target;
      }
      for (int64_t row = 0; row < s_.m; row += kFew)
        multiply_few(p, row, static_cast<int>(std::min<int64_t>(kFew, s_.m - row)), b, b_k, strip * kStrip, width(strip));
    });
  }

 private:
  int width(int64_t strip) const { return static_cast<int>(std::min<int64_t>(kStrip, s_.n - strip * kStrip)); }
  int64_t b_floats() const { return s_.k * kStrip + 16; }

  Matrices s_;
  const dlas_ctx* ctx_;
  int threads_;
  bool constant_;
  int64_t strips_;
  std::unique_ptr<Packed> b_;
};

DLAS_ENTER(Gemm, "Gemm", "gemm");
DLAS_ENTER(Gemm, "MatMul", "gemm");
DLAS_ENTER(Gemv, "Gemm", "gemv");
DLAS_ENTER(Gemv, "MatMul", "gemv");

}  // namespace
}  // namespace dlas::DLAS_NS
