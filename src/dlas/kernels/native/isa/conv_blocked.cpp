// Convolution on the blocked layout: a vector of output channels by a row of pixels ("spatial pack", oc-vector form).
//
// x (N, C/B, H, W, B) inside a halo that covers the padding, so that the kernel never sees an edge. Weights are packed
// [group][K/(NB*B)][C/B][KH][KW][B or less][NB][B]; a register tile is P pixels by NB blocks of output channels. Grouped
// convolutions whose groups are whole blocks take the same way.

#include <algorithm>
#include <array>
#include <utility>

#include "cut.h"
#include "layer.h"

namespace dlas::DLAS_NS {
namespace {

// Pixels of the tiles of NB blocks, for strides of 1 and 2; every size costs time to build.
#if DLAS_VL == 16
constexpr int kMost[] = {0, 28, 14, 9, 7};  // 28 accumulators of 32 registers
constexpr int kSizes1[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 28}, kSkip1[] = {1, 2, 4, 7, 8, 14, 16, 28};
constexpr int kSizes2[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14}, kSkip2[] = {1, 2, 3, 4, 7, 8, 10, 14};
constexpr int kSizes3[] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, kSkip3[] = {1, 2, 4, 5, 7, 8};
constexpr int kSizes4[] = {1, 2, 3, 4, 5, 6, 7}, kSkip4[] = {1, 2, 3, 4, 5, 7};
#elif defined(DLAS_NEON)
constexpr int kMost[] = {0, 16, 12, 8, 6};  // 24 of 32
constexpr int kSizes1[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16}, kSkip1[] = {1, 2, 4, 7, 8, 14, 16};
constexpr int kSizes2[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12}, kSkip2[] = {1, 2, 3, 4, 7, 8, 10, 12};
constexpr int kSizes3[] = {1, 2, 3, 4, 5, 6, 7, 8}, kSkip3[] = {1, 2, 4, 5, 7, 8};
constexpr int kSizes4[] = {1, 2, 3, 4, 5, 6}, kSkip4[] = {1, 2, 4, 5, 6};
#else
constexpr int kMost[] = {0, 12, 6, 4, 3};  // 12 of 16
constexpr int kSizes1[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12}, kSkip1[] = {1, 2, 4, 7, 8, 10, 12};
constexpr int kSizes2[] = {1, 2, 3, 4, 5, 6}, kSkip2[] = {1, 2, 3, 4, 5, 6};
constexpr int kSizes3[] = {1, 2, 3, 4}, kSkip3[] = {1, 2, 3, 4};
constexpr int kSizes4[] = {1, 2, 3}, kSkip4[] = {1, 2, 3};
#endif

struct Row {
  const float* x;       // first pixel of the tile, at the window's first tap
  const float* w;
  const float* bias;    // NB vectors
  float* y;
  const float* add;     // residual, laid out as y, or null
  int64_t x_block, x_tap_h, x_tap_w, y_block, add_block;
  int64_t x_row, y_row, add_row;  // to the next row of outputs
  int blocks, last_lanes, kh, kw;
  Epilogue epilogue;
};

// R rows of Q pixels, most often one row.
template <int Q, int R, int NB, int SW>
void tile(const Row& r) {
  constexpr int P = Q * R;
  V acc[NB][P];
#pragma GCC unroll 4
  for (int b = 0; b < NB; ++b) {
    const V bias = load(r.bias + b * VL);
#pragma GCC unroll 28
    for (int p = 0; p < P; ++p) acc[b][p] = bias;
  }
  const float* w = r.w;
  const int64_t row = R > 1 ? r.x_row : 0;
  for (int c = 0; c < r.blocks; ++c) {
    const float* plane = r.x + c * r.x_block;
    const int lanes = c + 1 < r.blocks ? VL : r.last_lanes;
    for (int i = 0; i < r.kh; ++i) {
      for (int j = 0; j < r.kw; ++j) {
        const float* x = plane + i * r.x_tap_h + j * r.x_tap_w;
#pragma GCC unroll 2
        for (int l = 0; l < lanes; ++l, w += NB * VL) {
          V weight[NB];
#pragma GCC unroll 4
          for (int b = 0; b < NB; ++b) weight[b] = load(w + b * VL);
#pragma GCC unroll 28
          for (int p = 0; p < P; ++p) {
            const V value = splat(x[p / Q * row + p % Q * SW * VL + l]);
#pragma GCC unroll 4
            for (int b = 0; b < NB; ++b) acc[b][p] += weight[b] * value;
          }
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int b = 0; b < NB; ++b) {
    float* y = r.y + b * r.y_block;
    const int64_t y_row = R > 1 ? r.y_row : 0;
    if (r.add) {
      const float* add = r.add + b * r.add_block;
      const int64_t add_row = R > 1 ? r.add_row : 0;
#pragma GCC unroll 28
      for (int p = 0; p < P; ++p) acc[b][p] += load(add + p / Q * add_row + p % Q * VL);
    }
    if (r.epilogue.act == kRelu) {
#pragma GCC unroll 28
      for (int p = 0; p < P; ++p) acc[b][p] = activate<kRelu>(acc[b][p], 0, 0);
    }
#pragma GCC unroll 28
    for (int p = 0; p < P; ++p) store(y + p / Q * y_row + p % Q * VL, acc[b][p]);
    if (r.epilogue.act > kRelu)
      for (int i = 0; i < R; ++i) r.epilogue.over(y + i * y_row, Q * VL);
  }
}

using Tile = void (*)(const Row&);

template <int NB, int SW, const auto& Sizes, size_t... I>
std::vector<std::pair<Tile, int>> cut_into(int64_t pixels, std::index_sequence<I...>) {
  static constexpr Tile table[] = {tile<Sizes[I], 1, NB, Sizes[I] == 1 ? 1 : SW>...};
  std::vector<std::pair<Tile, int>> found;
  for (const int i : cut(pixels, Sizes, sizeof...(I), NB > 1 ? 2 : 4)) found.push_back({table[i], Sizes[i]});
  return found;
}

template <int NB, int SW, const auto& Sizes>
std::vector<std::pair<Tile, int>> cut_into(int64_t pixels) {
  return cut_into<NB, SW, Sizes>(pixels, std::make_index_sequence<std::size(Sizes)>());
}

// The tiles of a row and their pixels.
std::vector<std::pair<Tile, int>> cut_row(int nb, int sw, int64_t pixels) {
  switch (nb * 2 + sw) {
    case 3: return cut_into<1, 1, kSizes1>(pixels);
    case 4: return cut_into<1, 2, kSkip1>(pixels);
    case 5: return cut_into<2, 1, kSizes2>(pixels);
    case 6: return cut_into<2, 2, kSkip2>(pixels);
    case 7: return cut_into<3, 1, kSizes3>(pixels);
    case 8: return cut_into<3, 2, kSkip3>(pixels);
    case 9: return cut_into<4, 1, kSizes4>(pixels);
    default: return cut_into<4, 2, kSkip4>(pixels);
  }
}

// Rows of 1 to 3 pixels: the weights, four blocks wide, are most of the traffic, and each vector serves several rows.
template <int Q, int SW, int... R>
Tile rows_of(int rows, std::integer_sequence<int, R...>) {
  static constexpr Tile table[] = {tile<Q, R + 1, 4, SW>...};
  return table[rows - 1];
}

template <int SW>
Tile rows_of(int pixels, int rows) {
  switch (pixels) {
    case 1: return rows_of<1, 1>(rows, std::make_integer_sequence<int, kMost[4]>());
    case 2: return rows_of<2, SW>(rows, std::make_integer_sequence<int, std::max(kMost[4] / 2, 1)>());
    default: return rows_of<3, SW>(rows, std::make_integer_sequence<int, std::max(kMost[4] / 3, 1)>());
  }
}

class Blocked {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor* x = input(node, 0);
    const DLTensor* w = input(node, 1);
    const DLTensor* y = output(node, 0);
    if (!x || !w || x->ndim != 5 || y->ndim != 5 || x->shape[4] != VL || y->shape[4] != VL)
      return refuse("spatial-pack needs blocked input and output");
    if (!w->data) return refuse("spatial-pack needs constant weights");
    if (y->shape[2] < 1 || y->shape[3] < 1) return refuse("spatial-pack was given an output without pixels");
    const int64_t groups = get(node, "group", 1);
    if (groups > 1 && (w->shape[0] / groups % VL || w->shape[1] % VL))
      return refuse("spatial-pack needs groups of whole blocks of channels");
    const Window window(node);
    if (window.sw > 2) return refuse("spatial-pack has strides of 1 and 2 along the row");
    return 1;
  }

  Blocked(const dlas_node* node, const dlas_ctx* ctx) : window_(node), epilogue_(node), ctx_(ctx) {
    const DLTensor* w = input(node, 1);
    const DLTensor* x = input(node, 0);
    const DLTensor* y = output(node, 0);
    groups_ = static_cast<int>(get(node, "group", 1));
    const int64_t K = w->shape[0], C = w->shape[1];
    kb_ = static_cast<int>((K / groups_ + VL - 1) / VL);
    cb_ = static_cast<int>((C + VL - 1) / VL);
    last_lanes_ = static_cast<int>(C - int64_t{cb_ - 1} * VL);
    n_ = x->shape[0], oh_ = y->shape[2], ow_ = y->shape[3];
    join_rows(x, y, input(node, 3));
    choose();
    const int kh = window_.kh, kw = window_.kw;
    chunks_ = kb_ / nb_;
    chunk_size_ = C * kh * kw * nb_ * VL;
    weights_ = std::make_unique<Packed>(groups_ * chunks_ * chunk_size_);
    bias_ = std::make_unique<Packed>(groups_ * kb_ * VL);
    const float* from = floats(w);
    const int64_t KG = K / groups_;
    for (int64_t k = 0; k < K; ++k) {
      const int64_t g = k / KG, in_group = k % KG, block = in_group / VL, lane = in_group % VL;
      float* chunk = weights_->at + (g * chunks_ + block / nb_) * chunk_size_;
      for (int64_t c = 0; c < C; ++c)
        for (int64_t t = 0; t < kh * kw; ++t) {
          const int64_t lanes = c / VL + 1 < cb_ ? VL : last_lanes_;
          chunk[(c / VL * VL * kh * kw + t * lanes + c % VL) * nb_ * VL + block % nb_ * VL + lane] =
              from[(k * C + c) * kh * kw + t];
        }
      if (const DLTensor* b = input(node, 2)) bias_->at[(g * kb_ + block) * VL + lane] = floats(b)[k];
    }
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void*) {
    const DLTensor *x = in[0], *add = n_in > 3 ? in[3] : nullptr;
    DLTensor* y = out[0];
    const int64_t tasks = n_ * groups_ * chunks_ * bands_;
    const int64_t x_row = x->strides[2] * window_.sh;
    parallel(ctx_, tasks, [&](int64_t task, int) {
      // Neighbouring tasks share their weights, so that a thread streams each chunk once.
      const int64_t band = task % bands_, rest = task / bands_;
      const int64_t chunk = rest % (groups_ * chunks_), n = rest / (groups_ * chunks_);
      const int64_t g = chunk / chunks_, first = g * kb_ + chunk % chunks_ * nb_;
      Row r{nullptr, weights_->at + chunk * chunk_size_, bias_->at + first * VL, nullptr, nullptr, x->strides[1],
            x->strides[2] * window_.dh, x->strides[3] * window_.dw, y->strides[1], add ? add->strides[1] : 0,
            x_row, y->strides[2], add ? add->strides[2] : 0,
            cb_, last_lanes_, window_.kh, window_.kw, epilogue_};
      const float* xs = floats(x) + n * x->strides[0] + g * cb_ * x->strides[1] - window_.top * x->strides[2] -
                        window_.left * x->strides[3];
      float* ys = floats(y) + n * y->strides[0] + first * y->strides[1];
      const float* adds = add ? floats(add) + n * add->strides[0] + first * add->strides[1] : nullptr;
      for (int64_t s = steps_ * band / bands_; s < steps_ * (band + 1) / bands_; ++s) {
        const int64_t oh = oh_ * s / steps_, rows = oh_ * (s + 1) / steps_ - oh;
        int64_t from = 0;
        for (const auto& [run, pixels] : tiles_) {
          r.x = xs + oh * x_row + from * window_.sw * VL;
          r.y = ys + oh * y->strides[2] + from * VL;
          r.add = adds ? adds + oh * add->strides[2] + from * VL : nullptr;
          (rows > few_ ? more_rows_ : run)(r);
          from += pixels;
        }
      }
    });
  }

 private:
  // One long row instead of many short ones, where the pixels follow each other in memory: windows of one pixel, and
  // maps of one column.
  void join_rows(const DLTensor* x, const DLTensor* y, const DLTensor* add) {
    const auto dense = [](const DLTensor* t) { return !t || t->strides[2] == t->shape[3] * VL; };
    if (!dense(x) || !dense(y) || !dense(add)) return;
    Window& w = window_;
    if (x->shape[3] == 1 && ow_ == 1 && w.kw == 1 && w.sh <= 2) {
      std::swap(w.kh, w.kw), std::swap(w.sh, w.sw), std::swap(w.dh, w.dw), std::swap(w.top, w.left);
      std::swap(oh_, ow_);
    } else if (w.kh * w.kw * w.sh * w.sw == 1 && oh_ == x->shape[2] && ow_ == x->shape[3]) {
      ow_ *= oh_, oh_ = 1;
    }
  }

  void choose() {
    // The least loads per multiplication that the registers allow: several blocks, unless the row is too short.
    nb_ = kb_ % 4 == 0 && ow_ <= 2 * kMost[4] && ow_ % kMost[4] == 0 ? 4 : kb_ % 2 == 0 ? 2 : kb_ % 3 == 0 ? 3 : 1;
    if (ow_ <= kMost[4] && kb_ % 4 == 0) nb_ = 4;
    const int64_t most_rows = nb_ == 4 && ow_ <= 3 ? std::max<int64_t>(kMost[4] / ow_, 1) : 1;
    steps_ = (oh_ + most_rows - 1) / most_rows;
    few_ = oh_ / steps_;
    if (most_rows > 1) {
      const auto pick = [&](int64_t rows) {
        const int q = static_cast<int>(ow_), r = static_cast<int>(rows);
        return window_.sw == 1 ? rows_of<1>(q, r) : rows_of<2>(q, r);
      };
      tiles_ = {{pick(few_), static_cast<int>(ow_)}};
      more_rows_ = pick((oh_ + steps_ - 1) / steps_);
    } else {
      tiles_ = cut_row(nb_, window_.sw, ow_);
    }
    // Rows of a band go through the caches together; with threads, enough bands that all are busy.
    const int64_t chunks = n_ * groups_ * (kb_ / nb_);
    const int threads = api().threads(ctx_);
    bands_ = 1;
    while (threads > 1 && chunks * bands_ % threads && chunks * bands_ < 8 * threads && bands_ < steps_) ++bands_;
  }

  Window window_;
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  int groups_, kb_, cb_, nb_, last_lanes_;
  int64_t n_, oh_, ow_, chunks_, chunk_size_, few_, steps_, bands_;
  std::vector<std::pair<Tile, int>> tiles_;  // of a row, with their pixels
  Tile more_rows_ = nullptr;
  std::unique_ptr<Packed> weights_, bias_;
};

DLAS_ENTER(Blocked, "Conv", "spatial-pack");

}  // namespace
}  // namespace dlas::DLAS_NS
