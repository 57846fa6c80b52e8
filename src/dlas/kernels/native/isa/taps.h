// Convolution on the blocked layout where the channels of one output block read different input channels: groups of
// less than a block ("grouped spatial pack"), groups that straddle blocks, and depthwise.
//
// A tile is P neighbouring pixels of a row, one accumulator each. An input pixel is loaded (and, for groups, permuted so
// that each lane holds the channel it wants) once for up to three taps of the window's row: it is tap 0 of one output,
// tap 1 of the one before and tap 2 of the one before that.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "cut.h"
#include "layer.h"

namespace dlas::DLAS_NS {
namespace {

constexpr int kTaps = 3;  // weight vectors that wait in registers
#if DLAS_VL == 16 || defined(DLAS_NEON)
constexpr int kStrips[] = {1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16};  // of 32 registers
#else
constexpr int kStrips[] = {1, 2, 3, 4, 5, 6, 7, 8, 10};  // of 16
#endif
constexpr int kStripCount = sizeof(kStrips) / sizeof(kStrips[0]);

// One input channel for each lane of a block of outputs.
struct Term {
  VI lanes;       // which lane of the input vector
  int64_t block;  // floats from the first input block
};

struct Strip {
  const float* x;  // first pixel, at the window's first tap
  const float* w;  // [KH][chunk of taps][term][taps of the chunk][VL]
  const float* bias;
  float* y;
  const float* add;  // residual with the pixels of y, or null
  const Term* terms;
  int term_count, kh, kw, most_taps;
  int64_t x_row, x_tap;  // floats from one tap to that below, and to that beside it
  int64_t x_pixel;       // and from one pixel that a tile reads to the next
  int64_t y_pixel;
  const Epilogue* epilogue;
};

template <bool Permuted, int P, int S, int T>
DLAS_INLINE void sweep(V (&acc)[P], const float* x, const float* w, int64_t pixel, VI lanes) {
  V weight[T];
#pragma GCC unroll 3
  for (int j = 0; j < T; ++j) weight[j] = load(w + j * VL);
#pragma GCC unroll 40
  for (int q = 0; q < (P - 1) * S + T; ++q) {
    V value = load(x + q * pixel);
    if constexpr (Permuted) value = __builtin_shuffle(value, lanes);
#pragma GCC unroll 3
    for (int j = 0; j < T; ++j) {
      const int p = (q - j) / S;
      if (q >= j && (q - j) % S == 0 && p < P) acc[p] += weight[j] * value;
    }
  }
}

template <bool Permuted, int P, int S>
void strip(const Strip& s) {
  V acc[P];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) acc[p] = load(s.bias);
  const float* w = s.w;
  const int64_t pixel = s.x_pixel;
  for (int i = 0; i < s.kh; ++i) {
    const float* row = s.x + i * s.x_row;
    for (int left = s.kw; left > 0;) {
      const int taps = std::min(left, s.most_taps);
      for (const Term *term = s.terms, *end = term + s.term_count; term != end; ++term, w += taps * VL) {
        const float* x = row + term->block;
        if (taps == 3)
          sweep<Permuted, P, S, 3>(acc, x, w, pixel, term->lanes);
        else if (taps == 1)
          sweep<Permuted, P, S, 1>(acc, x, w, pixel, term->lanes);
        else
          sweep<Permuted, P, S, 2>(acc, x, w, pixel, term->lanes);
      }
      row += taps * s.x_tap;
      left -= taps;
    }
  }
  if (s.add) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) acc[p] += load(s.add + p * s.y_pixel);
  }
  if (s.epilogue->act == kRelu) {
#pragma GCC unroll 16
    for (int p = 0; p < P; ++p) acc[p] = activate<kRelu>(acc[p], 0, 0);
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) store(s.y + p * s.y_pixel, acc[p]);
  if (s.epilogue->act > kRelu)
    for (int p = 0; p < P; ++p) s.epilogue->over(s.y + p * s.y_pixel, VL);
}

using StripRun = void (*)(const Strip&);

template <bool Permuted, int S, int... I>
StripRun strip_of(int index, std::integer_sequence<int, I...>) {
  static constexpr StripRun table[] = {strip<Permuted, kStrips[I], S>...};
  return table[index];
}

template <bool Permuted>
class TapConv {
 public:
  static int supports(const dlas_node* node, const char* name) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0);
    if (!x || !w || x->ndim != 5 || y->ndim != 5 || x->shape[4] != VL || y->shape[4] != VL)
      return refuse(std::string(name) + " needs blocked input and output");
    if (!w->data) return refuse(std::string(name) + " needs constant weights");
    if (y->shape[2] < 1 || y->shape[3] < 1) return refuse(std::string(name) + " was given an output without pixels");
    return 1;
  }

  TapConv(const dlas_node* node, const dlas_ctx* ctx) : window_(node), epilogue_(node), ctx_(ctx) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0);
    n_ = x->shape[0], oh_ = y->shape[2], ow_ = y->shape[3];
    outs_ = w->shape[0], ins_ = w->shape[1], outs_of_group_ = outs_ / get(node, "group", 1);
    blocks_ = (outs_ + VL - 1) / VL;
    x_block_ = x->strides[1];
    // Taps share loads where their pixels are those of neighbouring outputs. A dilated row is as many rows side by side.
    phases_ = window_.sw == 1 ? window_.dw : 1;
    most_taps_ = window_.sw == 1 || (window_.sw == 2 && window_.dw == 1) ? kTaps : 1;
    pack(floats(w), input(node, 2));
    cut_row();
    const int threads = api().threads(ctx_);
    const int64_t planes = n_ * blocks_;
    while (threads > 1 && planes * bands_ % threads && planes * bands_ < 8 * threads && bands_ < oh_) ++bands_;
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void*) {
    const DLTensor *x = in[0], *add = n_in > 3 ? in[3] : nullptr;
    DLTensor* y = out[0];
    parallel(ctx_, n_ * blocks_ * bands_, [&](int64_t task, int) {
      const int64_t band = task % bands_, block = task / bands_ % blocks_, n = task / bands_ / blocks_;
      const Block& b = table_[block];
      Strip s{nullptr, weights_->at + b.weights, bias_->at + block * VL, nullptr, nullptr, terms_.data() + b.first,
              b.count, window_.kh, window_.kw, most_taps_, x->strides[2] * window_.dh, VL * window_.dw,
              VL * (window_.sw == 1 ? window_.dw : window_.sw == 2 && most_taps_ > 1 ? 1 : window_.sw), VL * phases_,
              &epilogue_};
      const float* xs = floats(x) + n * x->strides[0] - window_.top * x->strides[2] - window_.left * VL;
      float* ys = floats(y) + n * y->strides[0] + block * y->strides[1];
      const float* adds = add ? floats(add) + n * add->strides[0] + block * add->strides[1] : nullptr;
      for (int64_t oh = oh_ * band / bands_; oh < oh_ * (band + 1) / bands_; ++oh) {
        for (const Piece& piece : pieces_) {
          s.x = xs + oh * window_.sh * x->strides[2] + piece.from * window_.sw * VL;
          s.y = ys + oh * y->strides[2] + piece.from * VL;
          s.add = adds ? adds + oh * add->strides[2] + piece.from * VL : nullptr;
          piece.run(s);
        }
      }
    });
  }

 private:
  struct Block {
    int64_t weights;
    int first, count;  // of terms
  };
  struct Piece {
    StripRun run;
    int64_t from;
  };

  // The terms of an output block: for every input block it reads, as many as the lane with most channels there needs.
  void pack(const float* w, const DLTensor* bias) {
    const int kh = window_.kh, kw = window_.kw;
    std::vector<std::vector<int64_t>> channels;  // of every term and lane; -1: none
    int64_t size = 0;
    for (int64_t block = 0; block < blocks_; ++block) {
      const int first = static_cast<int>(terms_.size());
      const int64_t last = std::min((block + 1) * VL, outs_) - 1;
      const int64_t low = block * VL / outs_of_group_ * ins_ / VL, high = (last / outs_of_group_ + 1) * ins_ - 1;
      for (int64_t from = low; from <= high / VL; ++from) {
        for (int64_t nth = 0, found = 1; found; ++nth) {
          found = 0;
          Term term{VI{}, from * x_block_};
          std::vector<int64_t> channel(VL, -1);
          for (int lane = 0; lane < VL && block * VL + lane < outs_; ++lane) {
            const int64_t begin = (block * VL + lane) / outs_of_group_ * ins_, at = std::max(begin, from * VL) + nth;
            if (at >= std::min(begin + ins_, (from + 1) * VL)) continue;
            term.lanes[lane] = static_cast<int32_t>(at % VL), channel[lane] = at - begin, found = 1;
          }
          if (found) terms_.push_back(term), channels.push_back(channel);
        }
      }
      const int count = static_cast<int>(terms_.size()) - first;
      table_.push_back({size, first, count});
      size += static_cast<int64_t>(count) * kh * kw * VL;
    }
    weights_ = std::make_unique<Packed>(size);
    bias_ = std::make_unique<Packed>(blocks_ * VL);
    if (bias) std::copy_n(floats(bias), outs_, bias_->at);
    float* to = weights_->at;
    for (int64_t block = 0; block < blocks_; ++block)
      for (int i = 0; i < kh; ++i)
        for (int j = 0; j < kw; j += most_taps_)
          for (int t = 0; t < table_[block].count; ++t)
            for (int tap = j; tap < std::min(j + most_taps_, kw); ++tap, to += VL)
              for (int lane = 0; lane < VL; ++lane) {
                const int64_t c = channels[table_[block].first + t][lane];
                if (c >= 0) to[lane] = w[(((block * VL + lane) * ins_ + c) * kh + i) * kw + tap];
              }
  }

  void cut_row() {
    const auto all = std::make_integer_sequence<int, kStripCount>();
    const bool skips = window_.sw == 2 && most_taps_ > 1;
    for (int64_t phase = 0; phase < std::min<int64_t>(phases_, ow_); ++phase) {
      int64_t from = phase;
      for (const int i : cut((ow_ - phase + phases_ - 1) / phases_, kStrips, kStripCount, 4)) {
        pieces_.push_back({skips ? strip_of<Permuted, 2>(i, all) : strip_of<Permuted, 1>(i, all), from});
        from += kStrips[i] * phases_;
      }
    }
  }

  Window window_;
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  int most_taps_, phases_;
  int64_t n_, oh_, ow_, outs_, ins_, outs_of_group_, blocks_, x_block_, bands_ = 1;
  std::vector<Term> terms_;
  std::vector<Block> table_;
  std::vector<Piece> pieces_;
  std::unique_ptr<Packed> weights_, bias_;
};

}  // namespace
}  // namespace dlas::DLAS_NS
