// Winograd's minimal filtering, F(4x4, 3x3) and F(2x2, 3x3), on the blocked layout.
//
// A panel of tiles is transformed into scratch that stays in L2; then, for one chunk of output channels after another,
// the (m+2)^2 products [tiles x C] x [C x K] go through the shared register tile, and their sums are transformed back.
// The points of F(4x4) are 0, +-sqrt(1/2), +-sqrt(2) and infinity, whose factors are balanced: about a third of the
// error of 0, +-1, +-2. Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.

#include <algorithm>

#include "conv_tile.h"

namespace dlas::DLAS_NS {
namespace {

constexpr float kA = 0.70710678118654752f, kB = 1.41421356237309505f;

// The three transforms along one axis; `stride` in vectors.
template <int M>
struct Filter;

template <>
struct Filter<4> {
  static DLAS_INLINE void input(V x0, V x1, V x2, V x3, V x4, V x5, V* y, int stride) {
    const V even = x4 - 2.0f * x2, odd = x3 - 2.0f * x1, even2 = x4 - 0.5f * x2, odd2 = x3 - 0.5f * x1;
    y[0] = x4 - 2.5f * x2 + x0;
    y[stride] = even + kA * odd;
    y[2 * stride] = even - kA * odd;
    y[3 * stride] = even2 + kB * odd2;
    y[4 * stride] = even2 - kB * odd2;
    y[5 * stride] = x5 - 2.5f * x3 + x1;
  }
  static DLAS_INLINE void input(const V* x, int from, V* y, int to) {
    input(x[0], x[from], x[2 * from], x[3 * from], x[4 * from], x[5 * from], y, to);
  }
  static DLAS_INLINE void output(const V* m, int from, V* y, int to) {
    const V s1 = m[from] + m[2 * from], d1 = m[from] - m[2 * from];
    const V s2 = m[3 * from] + m[4 * from], d2 = m[3 * from] - m[4 * from];
    y[0] = m[0] + s1 + s2;
    y[to] = kA * d1 + kB * d2;
    y[2 * to] = 0.5f * s1 + 2.0f * s2;
    y[3 * to] = 0.5f * kA * d1 + (2.0f * kB * d2 + m[5 * from]);
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
  static DLAS_INLINE void input(const V* x, int from, V* y, int to) {
    y[0] = x[0] - x[2 * from];
    y[to] = x[from] + x[2 * from];
    y[2 * to] = x[2 * from] - x[from];
    y[3 * to] = x[from] - x[3 * from];
  }
  static DLAS_INLINE void output(const V* m, int from, V* y, int to) {
    y[0] = m[0] + m[from] + m[2 * from];
    y[to] = m[from] - m[2 * from] - m[3 * from];
  }
  static void weights(const double* g, int from, double* u, int to) {
    const double a = g[0], b = g[from], c = g[2 * from];
    u[0] = a;
    u[to] = (a + b + c) / 2;
    u[2 * to] = (a - b + c) / 2;
    u[3 * to] = c;
  }
};

// One block of channels of one tile: (M+2)^2 pixels at x to as many vectors, `step` floats apart.
template <int M>
void scatter(const float* x, int64_t row, float* to, int64_t step) {
  constexpr int S = M + 2;
  V t[S * S], line[S];
#pragma GCC unroll 6
  for (int i = 0; i < S; ++i) {
#pragma GCC unroll 6
    for (int j = 0; j < S; ++j) line[j] = load(x + i * row + j * VL);
    Filter<M>::input(line, 1, t + i * S, 1);
  }
#pragma GCC unroll 6
  for (int j = 0; j < S; ++j) {
    Filter<M>::input(t + j, S, line, 1);
#pragma GCC unroll 6
    for (int i = 0; i < S; ++i) store(to + (i * S + j) * step, line[i]);
  }
}

// The sums of one tile and block, back to M x M pixels.
template <int M>
void gather(const float* m, int64_t step, V* y) {
  constexpr int S = M + 2;
  V t[M * S], line[S];
#pragma GCC unroll 6
  for (int j = 0; j < S; ++j) {
#pragma GCC unroll 6
    for (int i = 0; i < S; ++i) line[i] = load(m + (i * S + j) * step);
    Filter<M>::output(line, 1, t + j, S);
  }
#pragma GCC unroll 4
  for (int i = 0; i < M; ++i) Filter<M>::output(t + i * S, 1, y + i * M, 1);
}

template <int M>
void transform_weights(const float* w, double* u) {
  constexpr int S = M + 2;
  double g[9], t[S * 3];
  std::copy(w, w + 9, g);
  for (int j = 0; j < 3; ++j) Filter<M>::weights(g + j, 3, t + j, 3);
  for (int i = 0; i < S; ++i) Filter<M>::weights(t + i * 3, 1, u + i * S, 1);
}

class Winograd {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0);
    if (!x || !w || x->ndim != 5 || y->ndim != 5 || x->shape[4] != VL || y->shape[4] != VL)
      return refuse("winograd needs blocked input and output");
    if (!w->data) return refuse("winograd needs constant weights");
    const Window v(node);
    if (v.kh != 3 || v.kw != 3 || v.sh != 1 || v.sw != 1 || v.dh != 1 || v.dw != 1 || get(node, "group", 1) != 1)
      return refuse("winograd is for windows of 3 x 3 with stride 1, dilation 1 and one group");
    const int64_t m = get(node, "tile", 4);
    if (m != 2 && m != 4) return refuse("winograd has tiles of 2 and 4");
    return 1;
  }

  Winograd(const dlas_node* node, const dlas_ctx* ctx) : window_(node), epilogue_(node), none_(epilogue_), ctx_(ctx) {
    const DLTensor *w = input(node, 1), *x = input(node, 0), *y = output(node, 0);
    none_.act = kNone;
    m_ = static_cast<int>(get(node, "tile", 4)), points_ = (m_ + 2) * (m_ + 2);
    K_ = w->shape[0], C_ = w->shape[1];
    kb_ = (K_ + VL - 1) / VL, cb_ = (C_ + VL - 1) / VL;
    oh_ = y->shape[2], ow_ = y->shape[3];
    across_ = (ow_ + m_ - 1) / m_, image_ = (oh_ + m_ - 1) / m_ * across_, tiles_ = x->shape[0] * image_;
    choose();
    for (int64_t c = 0; c < cb_; ++c) steps_.push_back(c * panel_ * VL);
    pack(w);
    bias_ = std::make_unique<Packed>(kb_ * VL);
    zeros_ = std::make_unique<Packed>(4 * VL);
    if (const DLTensor* b = input(node, 2)) std::copy(floats(b), floats(b) + K_, bias_->at);
  }

  size_t workspace() const {
    const int64_t threads = api().threads(ctx_);
    return ((apart_ ? threads : 1) * points_ * v_step_ + threads * points_ * m_step_) * sizeof(float);
  }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void* scratch) {
    const DLTensor *x = in[0], *add = n_in > 3 ? in[3] : nullptr;
    const DLTensor* y = out[0];
    float* memory = static_cast<float*>(scratch);
    float* sums = memory + (apart_ ? api().threads(ctx_) : 1) * points_ * v_step_;
    const int64_t chunks = kb_ / cut_[0].blocks, panels = (tiles_ + panel_ - 1) / panel_;
    if (apart_) {
      parallel(ctx_, panels, [&](int64_t panel, int thread) {
        float* v = memory + thread * points_ * v_step_;
        for (int64_t c = 0; c < cb_; ++c) fill(x, panel, c, v);
        for (int64_t k = 0; k < chunks; ++k) multiply(y, add, panel, k, v, sums + thread * points_ * m_step_);
      });
      return;
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      parallel(ctx_, cb_, [&](int64_t c, int) { fill(x, panel, c, memory); });
      parallel(ctx_, chunks, [&](int64_t k, int thread) {
        multiply(y, add, panel, k, memory, sums + thread * points_ * m_step_);
      });
    }
  }

 private:
  void choose() {
    // An eighth of L2 for the panel: sums, and weights that pass through, need the rest. More tiles where all weights
    // do not fit and would come from further away for every panel.
    const int64_t weights = points_ * cb_ * kb_ * VL * VL * sizeof(float);
    const int64_t most =
        std::max<int64_t>(weights > kL2 ? 16 : 7, kL2 / 8 / (points_ * cb_ * VL * sizeof(float)));
    int64_t panels = (tiles_ + most - 1) / most;
    const int threads = api().threads(ctx_);
    // Threads share the weights of a panel unless every L2 holds them anyway.
    apart_ = threads == 1 || (weights <= kL2 && tiles_ >= 8 * threads);
    if (apart_) panels = (panels + threads - 1) / threads * threads;
    panel_ = (tiles_ + panels - 1) / panels;
    const int64_t rest = tiles_ % panel_;
    cut_[0] = Cut(VL, kb_, panel_, cb_ * VL);
    cut_[1] = cut_[0];
    if (rest) cut_[1] = Cut(VL, cut_[0].blocks, rest, cb_ * VL, cut_[0].blocks);
    // One spare vector: equal distances of 4 KiB would fall on the same lines of L1.
    v_step_ = cb_ * panel_ * VL + VL;
    m_step_ = cut_[0].blocks * panel_ * VL + VL;
  }

  void pack(const DLTensor* w) {
    const int64_t nb = cut_[0].blocks;
    weights_ = std::make_unique<Packed>(points_ * cb_ * kb_ * VL * VL);
    double u[36];
    for (int64_t k = 0; k < K_; ++k) {
      for (int64_t c = 0; c < C_; ++c) {
        const float* from = floats(w) + (k * C_ + c) * 9;
        m_ == 4 ? transform_weights<4>(from, u) : transform_weights<2>(from, u);
        const int64_t block = k / VL;
        float* to = weights_->at + ((block / nb * points_ * cb_ * VL + c) * nb + block % nb) * VL + k % VL;
        for (int p = 0; p < points_; ++p) to[p * cb_ * VL * nb * VL] = static_cast<float>(u[p]);
      }
    }
  }

  // Calls body(tile within the panel, image, first row, first column).
  template <class Body>
  DLAS_INLINE void each(int64_t panel, const Body& body) const {
    const int64_t first = panel * panel_, count = std::min(panel_, tiles_ - first);
    int64_t n = first / image_, row = first % image_ / across_, column = first % across_;
    for (int64_t t = 0; t < count; ++t) {
      body(t, n, row * m_, column * m_);
      if (++column < across_) continue;
      column = 0;
      if (++row * across_ == image_) row = 0, ++n;
    }
  }

  void fill(const DLTensor* x, int64_t panel, int64_t c, float* v) const {
    const float* from = floats(x) + c * x->strides[1] - window_.top * x->strides[2] - window_.left * VL;
    each(panel, [&](int64_t t, int64_t n, int64_t row, int64_t column) {
      const float* tile = from + n * x->strides[0] + row * x->strides[2] + column * VL;
      float* to = v + (c * panel_ + t) * VL;
      m_ == 4 ? scatter<4>(tile, x->strides[2], to, v_step_) : scatter<2>(tile, x->strides[2], to, v_step_);
    });
  }

  void multiply(const DLTensor* y, const DLTensor* add, int64_t panel, int64_t chunk, const float* v, float* m) const {
    const int64_t count = std::min(panel_, tiles_ - panel * panel_);
    const Cut& cut = cut_[count != panel_];
    TileJob job{};
    job.bias = zeros_->at, job.epilogue = &none_, job.steps = steps_.data(), job.count = cb_;
    job.y_block = panel_ * VL, job.y_pixel = VL;
    const int64_t slice = cb_ * VL * cut.blocks * VL;
    for (int p = 0; p < points_; ++p) {
      job.w = weights_->at + (chunk * points_ + p) * slice;
      for (int t = 0; t < cut.tiles; ++t) {
        job.x = v + p * v_step_ + cut.from(t) * VL;
        job.y = m + p * m_step_ + cut.from(t) * VL;
        cut.run(t, job);
      }
    }
    for (int b = 0; b < cut.blocks; ++b) {
      const int64_t k = chunk * cut.blocks + b;
      const float* sums = m + b * panel_ * VL;
      m_ == 4 ? finish<4>(y, add, panel, k, sums) : finish<2>(y, add, panel, k, sums);
    }
  }

  template <int M>
  void finish(const DLTensor* y, const DLTensor* add, int64_t panel, int64_t k, const float* sums) const {
    const V bias = load(bias_->at + k * VL);
    each(panel, [&](int64_t t, int64_t n, int64_t row, int64_t column) {
      V tile[M * M];
      gather<M>(sums + t * VL, m_step_, tile);
      const int64_t rows = std::min<int64_t>(M, oh_ - row), columns = std::min<int64_t>(M, ow_ - column);
      float* to = static_cast<float*>(y->data) + n * y->strides[0] + k * y->strides[1] + row * y->strides[2] + column * VL;
      const float* more = nullptr;
      if (add) more = floats(add) + n * add->strides[0] + k * add->strides[1] + row * add->strides[2] + column * VL;
      for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
          V value = tile[i * M + j] + bias;
          if (more) value += load(more + i * add->strides[2] + j * VL);
          if (epilogue_.act == kRelu) value = activate<kRelu>(value, 0, 0);
          store(to + i * y->strides[2] + j * VL, value);
        }
        if (epilogue_.act > kRelu) epilogue_.over(to + i * y->strides[2], columns * VL);
      }
    });
  }

  static constexpr int64_t kL2 = 1 << 20;
  Window window_;
  Epilogue epilogue_, none_;
  const dlas_ctx* ctx_;
  int m_, points_;
  int64_t K_, C_, kb_, cb_, oh_, ow_, across_, image_, tiles_, panel_, v_step_, m_step_;
  bool apart_;
  Cut cut_[2];  // of a panel, and of the last one
  std::vector<int64_t> steps_;
  std::unique_ptr<Packed> weights_, bias_, zeros_;
};

DLAS_ENTER(Winograd, "Conv", "winograd");

}  // namespace
}  // namespace dlas::DLAS_NS
