// 8-bit depthwise convolution: four taps of 16, 32 or 64 channels at a time.
//
// Bytes of four taps are interleaved, so that one 32-bit lane holds the four taps of one channel and one instruction
// adds their four products. Where the window moves by one pixel and is at most three wide, the four columns that two
// neighbouring outputs see are interleaved once for both. x stands inside a halo of its zero point.

#include "quant.h"

namespace dlas::DLAS_NS {
namespace {

constexpr int kPixels = 8;  // whose sums are collected before they become bytes

// Four vectors of bytes a, b, c, d as lanes (a, b, c, d) of channels l / 4 * 16 + v * 4 + l % 4.
template <int L>
DLAS_INLINE void interleave(typename Lanes<L>::I v[4]) {
  using I = typename Lanes<L>::I;
#if defined(__AVX512BW__)
  if constexpr (L == 16) {
    const __m512i a = (__m512i)v[0], b = (__m512i)v[1], c = (__m512i)v[2], d = (__m512i)v[3];
    const __m512i ab0 = _mm512_unpacklo_epi8(a, b), ab1 = _mm512_unpackhi_epi8(a, b);
    const __m512i cd0 = _mm512_unpacklo_epi8(c, d), cd1 = _mm512_unpackhi_epi8(c, d);
    v[0] = (I)_mm512_unpacklo_epi16(ab0, cd0), v[1] = (I)_mm512_unpackhi_epi16(ab0, cd0);
    v[2] = (I)_mm512_unpacklo_epi16(ab1, cd1), v[3] = (I)_mm512_unpackhi_epi16(ab1, cd1);
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (L == 8) {
    const __m256i a = (__m256i)v[0], b = (__m256i)v[1], c = (__m256i)v[2], d = (__m256i)v[3];
    const __m256i ab0 = _mm256_unpacklo_epi8(a, b), ab1 = _mm256_unpackhi_epi8(a, b);
    const __m256i cd0 = _mm256_unpacklo_epi8(c, d), cd1 = _mm256_unpackhi_epi8(c, d);
    v[0] = (I)_mm256_unpacklo_epi16(ab0, cd0), v[1] = (I)_mm256_unpackhi_epi16(ab0, cd0);
    v[2] = (I)_mm256_unpacklo_epi16(ab1, cd1), v[3] = (I)_mm256_unpackhi_epi16(ab1, cd1);
    return;
  }
#endif
  if constexpr (L == 4) {
    using B = typename Lanes<4>::B;
    using S = typename Lanes<4>::S;
    const B low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
    const S low2 = {0, 8, 1, 9, 2, 10, 3, 11};
    const B a = (B)v[0], b = (B)v[1], c = (B)v[2], d = (B)v[3];
    const S ab0 = (S)__builtin_shuffle(a, b, low), ab1 = (S)__builtin_shuffle(a, b, low + 8);
    const S cd0 = (S)__builtin_shuffle(c, d, low), cd1 = (S)__builtin_shuffle(c, d, low + 8);
    v[0] = (I)__builtin_shuffle(ab0, cd0, low2), v[1] = (I)__builtin_shuffle(ab0, cd0, low2 + 4);
    v[2] = (I)__builtin_shuffle(ab1, cd1, low2), v[3] = (I)__builtin_shuffle(ab1, cd1, low2 + 4);
  }
}

// Output pixels of one row, of up to 4 L channels.
struct Run {
  const uint8_t* x;  // window of the first pixel
  const int64_t* taps;  // four for each item
  const int32_t* w;
  const int32_t* constants;
  int items, flip;
  int64_t next;   // from the weights of an item to those of the following one
  int64_t other;  // from those of the first pixel to those of the second
};

template <int L, class Way, int P>
DLAS_INLINE void sums(const Run& r, const uint8_t* x, int32_t* out) {
  using I = typename Lanes<L>::I;
  I acc[P][4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v)
#pragma GCC unroll 2
    for (int p = 0; p < P; ++p) acc[p][v] = load_lanes<L>(r.constants + v * kConstants * L);
  const I flip = I{} + r.flip;
  const int32_t* w = r.w;
  for (int item = 0; item < r.items; ++item, w += r.next) {
    I v[4];
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) v[t] = load_lanes<L>(x + r.taps[4 * item + t]) ^ flip;
    interleave<L>(v);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const typename Way::template Bytes<L> bytes(v[i]);
#pragma GCC unroll 2
      for (int p = 0; p < P; ++p) bytes.add_to(acc[p][i], w + p * r.other + i * Way::kVectors * L);
    }
  }
#pragma GCC unroll 2
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) store_lanes<L>(out + (p * 4 + v) * L, acc[p][v]);
}

// `count` channels of `pixels` outputs of one row; `single` has the taps of a pixel without neighbour.
template <int L, class Way>
void row(Run r, const int64_t* single, bool pairs, int pixels, int64_t x_step, uint8_t* y, int64_t y_step, int count,
         const Requantization& requantization) {
  alignas(64) int32_t collected[kPixels * 4 * L];
  const int64_t* both = r.taps;
  for (int from = 0; from < pixels; from += kPixels) {
    const int size = std::min(kPixels, pixels - from);
    uint8_t* to[kPixels];
    for (int p = 0; p < size; ++p) to[p] = y + (from + p) * y_step;
    const uint8_t* x = r.x + from * x_step;
    int p = 0;
    if (pairs)
      for (; p + 2 <= size; p += 2) sums<L, Way, 2>(r, x + p * x_step, collected + p * 4 * L);
    r.taps = single;
    for (; p < size; ++p) sums<L, Way, 1>(r, x + p * x_step, collected + p * 4 * L);
    r.taps = both;
    requantization.finish<L, 4, true>(collected, r.constants, size, to, count);
  }
}

using Row = void (*)(Run, const int64_t*, bool, int, int64_t, uint8_t*, int64_t, int, const Requantization&);

template <class Way>
Row pick_row(int lanes) {
#if DLAS_VL >= 16
  if (lanes == 16) return row<16, Way>;
#endif
#if DLAS_VL >= 8
  if (lanes == 8) return row<8, Way>;
#endif
  (void)lanes;
  return row<4, Way>;
}

struct Chunk {
  int first, count, lanes;
  const int32_t *w, *constants;
  Row row;
};

class Depthwise {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *b = input(node, 2);
    const DLTensor* y = output(node, 0);
    if (!is_byte(x) || !is_byte(y) || x->ndim != 4 || y->ndim != 4)
      return refuse("int8 convolutions take and give bytes, nhwc");
    if (!is_weight(w) || w->ndim != 4) return refuse("int8 convolutions have constant int8 or int16 weights");
    if (b && (!b->data || b->dtype.bits != 32 || b->dtype.code != 0)) return refuse("the bias is constant int32");
    if (!requantizes(node, w->shape[0])) return refuse("multipliers and shifts are one for each channel, or one");
    if (w->shape[1] != 1 || x->shape[3] != w->shape[0] || y->shape[3] != w->shape[0])
      return refuse("int8-depthwise has one filter for each channel");
    return 1;
  }

  Depthwise(const dlas_node* node, const dlas_ctx* ctx)
      : ctx_(ctx),
        requantization_(node, static_cast<int>(input(node, 1)->shape[0]), is_signed(output(node, 0))),
        window_(node) {
    const DLTensor *x = input(node, 0), *y = output(node, 0);
    flip_ = is_signed(x) ? static_cast<int32_t>(0x80808080) : 0;
    zero_point_ = static_cast<int>(get(node, "x_zero_point", 0)) + (flip_ ? 128 : 0);
    n_ = x->shape[0], oh_ = y->shape[1], ow_ = y->shape[2];
    pairs_ = window_.sw == 1 && window_.dw == 1 && window_.kw > 1 && window_.kw <= 3;
    vnni_ = use_vnni() && get(node, "vnni", 1);  // 0: as on a processor without it
    lay_taps(input(node, 1), x);
    pack(node);
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const DLTensor* x = in[0];
    DLTensor* y = out[0];
    const int threads = api().threads(ctx_);
    const int64_t rows = n_ * oh_, bands = std::min<int64_t>(rows, threads > 1 ? 4 * threads : 1);
    parallel(ctx_, bands, [&](int64_t band, int) {
      for (int64_t at = rows * band / bands; at < rows * (band + 1) / bands; ++at) {
        const int64_t n = at / oh_, oh = at % oh_;
        const uint8_t* xs = bytes_of(x) + n * x->strides[0] + (oh * window_.sh - window_.top) * x->strides[1] -
                            window_.left * x->strides[2];
        uint8_t* ys = bytes_of(y) + n * y->strides[0] + oh * y->strides[1];
        for (const Chunk& c : chunks_) {
          const int vector = c.lanes * (vnni_ ? 1 : 2);
          const Run r{xs + c.first, taps_.data(), c.w, c.constants, items_, flip_, (pairs_ ? 8 : 4) * vector,
                      4 * vector};
          c.row(r, single_.data(), pairs_, static_cast<int>(ow_), x->strides[2] * window_.sw, ys + c.first,
                y->strides[2], c.count, requantization_);
        }
      }
    });
  }

 private:
  // Where the four taps of each item are; `places_` says which weights those are (-1: none).
  void lay_taps(const DLTensor* w, const DLTensor* x) {
    const int64_t h = x->strides[1] * window_.dh, v = x->strides[2] * window_.dw;
    std::vector<int> order;
    for (int i = 0; i < window_.kh; ++i) {
      for (int j = 0; j < window_.kw; ++j) order.push_back(i * window_.kw + j);
      while (pairs_ && order.size() % 4) order.push_back(-1);
    }
    while (order.size() % 4) order.push_back(-1);
    for (size_t at = 0; at < order.size(); ++at) {
      // Columns without weight are read for the second pixel of a pair alone.
      const int place = order[at], before = place < 0 ? order[at / 4 * 4] : place;
      const int64_t start = before / window_.kw * h + before % window_.kw * v;
      single_.push_back(start);
      const int64_t column = static_cast<int64_t>(at % 4);
      taps_.push_back(!pairs_                 ? start
                      : column <= window_.kw  ? before / window_.kw * h + column * v
                                              : before / window_.kw * h);
    }
    places_ = order;
    for (int64_t i = 0; vnni_ && i < w->shape[0] * window_.kh * window_.kw; ++i)
      twice_ = twice_ || weight_at(w, i) > 127 || weight_at(w, i) < -128;
    if (twice_) {
      taps_.insert(taps_.end(), taps_.begin(), taps_.end());
      single_.insert(single_.end(), single_.begin(), single_.end());
      places_.insert(places_.end(), order.begin(), order.end());
    }
    items_ = static_cast<int>(taps_.size() / 4);
  }

  void pack(const dlas_node* node) {
    const DLTensor *w = input(node, 1), *b = input(node, 2);
    const int32_t* bias = b ? static_cast<const int32_t*>(b->data) : nullptr;
    const int C = static_cast<int>(w->shape[0]), window = window_.kh * window_.kw;
    for (int c = 0; c < C; ++c) {
      int64_t low = bias ? bias[c] : 0, high = low;
      for (int t = 0; t < window; ++t) {
        const int64_t v = weight_at(w, c * window + t);
        low += std::min(v * (255 - zero_point_), -v * zero_point_);
        high += std::max(v * (255 - zero_point_), -v * zero_point_);
      }
      requantization_.bound(c, low, high);
    }
    const int ways = vnni_ ? 1 : 2, copies = pairs_ ? 2 : 1;
    const int64_t rounded = (C + 63) / 64 * 64;
    weights_ = std::make_unique<Packed>(rounded * items_ * copies * ways);
    constants_ = std::make_unique<Packed>(rounded * kConstants);
    int32_t* to = reinterpret_cast<int32_t*>(weights_->at);
    int32_t* constants = reinterpret_cast<int32_t*>(constants_->at);
    for (int first = 0; first < C;) {
      const int rest = C - first;
      const int lanes = VL >= 16 && rest > 32 ? 16 : VL >= 8 && rest > 16 ? 8 : 4;
      const int count = std::min(rest, 4 * lanes);
      for (int i = 0; i < count; ++i) {
        const int vector = i % 16 / 4, lane = i / 16 * 4 + i % 4, c = first + i;
        int64_t total = 0;
        for (int t = 0; t < window; ++t) total += weight_at(w, c * window + t);
        int32_t* at = constants + vector * kConstants * lanes;
        const int64_t start = (bias ? bias[c] : 0) - zero_point_ * total + static_cast<int64_t>(requantization_.bias_offset());
        at[kBias * lanes + lane] = static_cast<int32_t>(static_cast<uint32_t>(start));
        requantization_.fill(at, lanes, lane, c);
        pack_channel(w, c, to, vector, lanes, lane);
      }
      chunks_.push_back({first, count, lanes, to, constants,
#if DLAS_VL == 16
                         vnni_ ? pick_row<Vnni>(lanes) :
#endif
                               pick_row<Pairs>(lanes)});
      to += static_cast<int64_t>(items_) * copies * ways * 4 * lanes;
      constants += 4 * kConstants * lanes;
      first += count;
    }
  }

  void pack_channel(const DLTensor* w, int c, int32_t* to, int vector, int lanes, int lane) const {
    const int window = window_.kh * window_.kw, ways = vnni_ ? 1 : 2, copies = pairs_ ? 2 : 1;
    for (int tap = 0; tap < static_cast<int>(places_.size()); ++tap) {
      if (places_[tap] < 0) continue;
      const int whole = weight_at(w, c * window + places_[tap]), part = std::clamp(whole, -128, 127);
      const int value = !twice_ ? whole : tap < static_cast<int>(places_.size()) / 2 ? part : whole - part;
      for (int copy = 0; copy < copies; ++copy) {
        int32_t* at = to + ((tap / 4 * copies + copy) * 4 + vector) * ways * lanes;
        if (vnni_)
          Vnni::pack(at, lanes, lane, tap % 4 + copy, value);
        else
          Pairs::pack(at, lanes, lane, tap % 4 + copy, value);
      }
    }
  }

  const dlas_ctx* ctx_;
  Requantization requantization_;
  Window window_;
  int32_t flip_;
  int zero_point_, items_;
  bool pairs_, vnni_ = false, twice_ = false;
  int64_t n_, oh_, ow_;
  std::vector<int64_t> taps_, single_;
  std::vector<int> places_;
  std::vector<Chunk> chunks_;
  std::unique_ptr<Packed> weights_, constants_;
};

DLAS_ENTER(Depthwise, "QDepthwise", "int8-depthwise");

}  // namespace
}  // namespace dlas::DLAS_NS
