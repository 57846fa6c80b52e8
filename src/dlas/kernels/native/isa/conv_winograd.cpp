// Winograd's minimal filtering, F(4x4, 3x3) and F(2x2, 3x3), on the blocked layout.
//
// The points of F(4x4) are 0, +-sqrt(1/2), +-sqrt(2) and infinity, whose factors are balanced: about a third of the
// error of 0, +-1, +-2. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.

#include "winograd.h"

namespace dlas::DLAS_NS {
namespace {

constexpr float kA = 0.70710678118654752f, kB = 1.41421356237309505f;

// The three transforms along one axis, that of the input in two parts: points 1 to M, and the first and the last.
template <int M>
struct Filter;

template <>
struct Filter<4> {
  template <class Get, class Put>
  static DLAS_INLINE void inner(const Get& x, const Put& y) {
    const V x1 = x(1), x2 = x(2), x3 = x(3), x4 = x(4);
    const V even = x4 - 2.0f * x2, odd = x3 - 2.0f * x1, even2 = x4 - 0.5f * x2, odd2 = x3 - 0.5f * x1;
    y(1, even + kA * odd), y(2, even - kA * odd);
    y(3, even2 + kB * odd2), y(4, even2 - kB * odd2);
  }
  template <class Get, class Put>
  static DLAS_INLINE void outer(const Get& x, const Put& y) {
    y(0, x(4) - 2.5f * x(2) + x(0)), y(5, x(5) - 2.5f * x(3) + x(1));
  }
  template <class Get, class Put>
  static DLAS_INLINE void output(const Get& m, const Put& y) {
    const V m1 = m(1), m2 = m(2), m3 = m(3), m4 = m(4), s1 = m1 + m2, d1 = m1 - m2, s2 = m3 + m4, d2 = m3 - m4;
    y(0, m(0) + s1 + s2), y(1, kA * d1 + kB * d2);
    y(2, 0.5f * s1 + 2.0f * s2), y(3, 0.5f * kA * d1 + (2.0f * kB * d2 + m(5)));
  }
  static void weights(const double* g, int from, double* u, int to) {
    const double a = g[0], b = g[from], c = g[2 * from], p = std::sqrt(0.5), q = std::sqrt(2.0);
    u[0] = a;
    u[to] = (a + p * b + 0.5 * c) / -1.5;
    u[2 * to] = (a - p * b + 0.5 * c) / -1.5;
    u[3 * to] = (a + q * b + 2.0 * c) / 6.0;
    u[4 * to] = (a - q * b + 2.0 * c) / 6.0;
    u[5 * to] = c;
  }
};

template <>
struct Filter<2> {
  template <class Get, class Put>
  static DLAS_INLINE void inner(const Get& x, const Put& y) {
    const V x1 = x(1), x2 = x(2);
    y(1, x1 + x2), y(2, x2 - x1);
  }
  template <class Get, class Put>
  static DLAS_INLINE void outer(const Get& x, const Put& y) {
    y(0, x(0) - x(2)), y(3, x(1) - x(3));
  }
  template <class Get, class Put>
  static DLAS_INLINE void output(const Get& m, const Put& y) {
    const V m1 = m(1), m2 = m(2);
    y(0, m(0) + m1 + m2), y(1, m1 - m2 - m(3));
  }
  static void weights(const double* g, int from, double* u, int to) {
    const double a = g[0], b = g[from], c = g[2 * from];
    u[0] = a;
    u[to] = (a + b + c) / 2;
    u[2 * to] = (a - b + c) / 2;
    u[3 * to] = c;
  }
};

// Column j of the points, from its sums along the rows.
template <int M>
DLAS_INLINE void column(const V (&t)[M + 2], int j, float* to, int64_t step) {
  const auto get = [&](int i) { return t[i]; };
  const auto put = [&](int i, V v) { store(to + (i * (M + 2) + j) * step, v); };
  Filter<M>::inner(get, put), Filter<M>::outer(get, put);
}

// One block of channels of one tile: S x S pixels at x to as many vectors, `step` floats apart. All sums along the rows
// at once would not fit the registers. Those of the inner columns do, and so do the two others; functions of their own,
// or the compiler keeps in memory what it thinks the other half could use.
template <int M>
__attribute__((noinline)) void scatter_inner(const float* x, int64_t row, float* to, int64_t step) {
  V t[M][M + 2];
#pragma GCC unroll 6
  for (int i = 0; i < M + 2; ++i)
    Filter<M>::inner([&](int j) { return load(x + i * row + j * VL); }, [&](int j, V v) { t[j - 1][i] = v; });
#pragma GCC unroll 4
  for (int j = 0; j < M; ++j) column<M>(t[j], j + 1, to, step);
}

template <int M>
__attribute__((noinline)) void scatter_outer(const float* x, int64_t row, float* to, int64_t step) {
  V t[2][M + 2];
#pragma GCC unroll 6
  for (int i = 0; i < M + 2; ++i)
    Filter<M>::outer([&](int j) { return load(x + i * row + j * VL); }, [&](int j, V v) { t[j > 0][i] = v; });
  column<M>(t[0], 0, to, step);
  column<M>(t[1], M + 1, to, step);
}

template <int M>
DLAS_INLINE void scatter(const float* x, int64_t row, float* to, int64_t step) {
  scatter_inner<M>(x, row, to, step);
  scatter_outer<M>(x, row, to, step);
}

// The sums of one tile and block, back to M x M pixels with their bias, and none less than `least`; NaN stays.
template <int M>
__attribute__((noinline)) void gather(const float* m, int64_t step, V bias, V least, float* y, int64_t row) {
  constexpr int S = M + 2;
  V t[M][S];
#pragma GCC unroll 6
  for (int j = 0; j < S; ++j)
    Filter<M>::output([&](int i) { return load(m + (i * S + j) * step); }, [&](int i, V v) { t[i][j] = v; });
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i)
    Filter<M>::output([&](int j) { return t[i][j]; },
                      [&](int j, V v) { store(y + i * row + j * VL, vmax(least, v + bias)); });
}

// One window of 3 x 3 to (M+2)^2 points.
template <int M>
void filter(const float* w, double* u) {
  constexpr int S = M + 2;
  double g[9], t[S * 3];
  std::copy(w, w + 9, g);
  for (int j = 0; j < 3; ++j) Filter<M>::weights(g + j, 3, t + j, 3);
  for (int i = 0; i < S; ++i) Filter<M>::weights(t + i * 3, 1, u + i * S, 1);
}

}  // namespace

WinogradForm::WinogradForm(const dlas_node* node, const dlas_ctx* ctx)
    : window_(node), epilogue_(node), ctx_(ctx) {
  const DLTensor *w = input(node, 1), *x = input(node, 0), *y = output(node, 0);
  m_ = static_cast<int>(get(node, "tile", 4)), points_ = (m_ + 2) * (m_ + 2);
  groups_ = get(node, "group", 1);
  K_ = w->shape[0], C_ = w->shape[1];
  oh_ = y->shape[2], ow_ = y->shape[3];
  across_ = (ow_ + m_ - 1) / m_, image_ = (oh_ + m_ - 1) / m_ * across_, tiles_ = x->shape[0] * image_;
  bias_ = std::make_unique<Packed>((K_ + VL - 1) / VL * VL);
  if (const DLTensor* b = input(node, 2)) std::copy_n(floats(b), K_, bias_->at);
}

void WinogradForm::points(const float* w, double* u) const { m_ == 4 ? filter<4>(w, u) : filter<2>(w, u); }

// Calls body(tile within the panel, image, first row, first column).
template <class Body>
DLAS_INLINE void WinogradForm::each(int64_t panel, const Body& body) const {
  const int64_t first = panel * panel_, most = count(panel);
  int64_t n = first / image_, row = first % image_ / across_, column = first % across_;
  for (int64_t t = 0; t < most; ++t) {
    body(t, n, row * m_, column * m_);
    if (++column < across_) continue;
    column = 0;
    if (++row * across_ == image_) row = 0, ++n;
  }
}

template <int M>
void WinogradForm::there(const DLTensor* x, int64_t panel, int64_t c, float* v, int64_t step) const {
  const float* from = floats(x) + c * x->strides[1] - window_.top * x->strides[2] - window_.left * VL;
  each(panel, [&](int64_t t, int64_t n, int64_t row, int64_t column) {
    scatter<M>(from + n * x->strides[0] + row * x->strides[2] + column * VL, x->strides[2], v + t * VL, step);
  });
}

template <int M>
void WinogradForm::back(
    const DLTensor* y, const DLTensor* add, int64_t panel, int64_t k, const float* sums, int64_t step) const {
  const V bias = load(bias_->at + k * VL), none = splat(-INFINITY);
  const bool simple = !add && epilogue_.act <= kRelu;
  each(panel, [&](int64_t t, int64_t n, int64_t row, int64_t column) {
    const int64_t rows = std::min<int64_t>(M, oh_ - row), columns = std::min<int64_t>(M, ow_ - column);
    float* to = static_cast<float*>(y->data) + n * y->strides[0] + k * y->strides[1] + row * y->strides[2];
    to += column * VL;
    if (simple && rows == M && columns == M)
      return gather<M>(sums + t * VL, step, bias, epilogue_.act ? V{} : none, to, y->strides[2]);
    alignas(64) float tile[M * M * VL];
    gather<M>(sums + t * VL, step, bias, none, tile, M * VL);
    const float* more = nullptr;
    if (add) more = floats(add) + n * add->strides[0] + k * add->strides[1] + row * add->strides[2] + column * VL;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < columns; ++j) {
        V value = load(tile + (i * M + j) * VL);
        if (more) value += load(more + i * add->strides[2] + j * VL);
        if (epilogue_.act == kRelu) value = vmax(V{}, value);
        store(to + i * y->strides[2] + j * VL, value);
      }
      if (epilogue_.act > kRelu) epilogue_.over(to + i * y->strides[2], columns * VL);
    }
  });
}

void WinogradForm::there(const DLTensor* x, int64_t panel, int64_t c, float* v, int64_t step) const {
  m_ == 4 ? there<4>(x, panel, c, v, step) : there<2>(x, panel, c, v, step);
}

void WinogradForm::back(
    const DLTensor* y, const DLTensor* add, int64_t panel, int64_t k, const float* sums, int64_t step) const {
  m_ == 4 ? back<4>(y, add, panel, k, sums, step) : back<2>(y, add, panel, k, sums, step);
}

namespace {

class Winograd {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0);
    if (!x || !w || x->ndim != 5 || y->ndim != 5 || x->shape[4] != VL || y->shape[4] != VL)
      return refuse("winograd needs blocked input and output");
    if (!w->data) return refuse("winograd needs constant weights");
    const Window v(node);
    if (v.kh != 3 || v.kw != 3 || v.sh != 1 || v.sw != 1 || v.dh != 1 || v.dw != 1)
      return refuse("winograd is for windows of 3 x 3 with stride 1 and dilation 1");
    const int64_t groups = get(node, "group", 1), outs = w->shape[0] / groups, ins = w->shape[1];
    if (groups > 1 && (outs % VL || ins % VL) && !winograd_has_lanes(outs, ins))
      return refuse("winograd needs groups of whole blocks of channels, or blocks of whole groups");
    const int64_t m = get(node, "tile", 4);
    if (m != 2 && m != 4) return refuse("winograd has tiles of 2 and 4");
    return 1;
  }

  Winograd(const dlas_node* node, const dlas_ctx* ctx) {
    const DLTensor* w = input(node, 1);
    const int64_t groups = get(node, "group", 1);
    if (groups > 1 && winograd_has_lanes(w->shape[0] / groups, w->shape[1])) form_ = winograd_lanes(node, ctx);
    else form_ = winograd_blocks(node, ctx);
  }

  size_t workspace() const { return form_->workspace(); }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void* scratch) {
    form_->run(in[0], n_in > 3 ? in[3] : nullptr, out[0], static_cast<float*>(scratch));
  }

 private:
  std::unique_ptr<WinogradForm> form_;
};

DLAS_ENTER(Winograd, "Conv", "winograd");

}  // namespace
}  // namespace dlas::DLAS_NS
