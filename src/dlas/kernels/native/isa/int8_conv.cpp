// 8-bit convolution and matrix product: pixels by vectors of output channels, four input channels at a time.
//
// x is (N, H, W, C) inside a halo of its zero point, so the window never sees an edge, and one row of the window is a
// run of KW * C neighbouring bytes (without dilation and groups): those are the "taps" below, each a run of bytes.
// Sums start at bias - zero_point * sum(w), which takes the zero point off. Weights are packed
// [chunk of 4 vectors of output channels][tap][bytes / 4][vector][lane][4], and a register tile is up to P pixels,
// from anywhere in the image, by the vectors of one chunk.

#include "int8_amx.h"
#include "quant.h"

namespace dlas::DLAS_NS {
namespace {

constexpr int kVnniTile[5] = {0, 12, 12, 8, 6};  // pixels for NB vectors
constexpr int kPairsTile[5] = {0, 8, 4, 3, 2};
constexpr int kMostPixels = 32;  // AMX takes that many
enum Amx { kNoAmx, kAmx, kAmxModel };

struct Tile {
  const uint8_t* x[kMostPixels];
  uint8_t* y[kMostPixels];
  const int32_t* w;
  const int32_t* constants;  // Requantization's, NB vectors
  const int64_t* taps;       // where each begins, from the pixel's x
  int tap_count, steps;      // 4 bytes each
  int32_t flip;
  int count;                 // channels to be written
  const Requantization* requantization;
};

template <int P, int NB, class Way>
void sums(const Tile& t, int32_t* out) {
  VI acc[P][NB];
#pragma GCC unroll 4
  for (int b = 0; b < NB; ++b) {
    const VI bias = load_lanes<VL>(t.constants + b * kConstants * VL);
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) acc[p][b] = bias;
  }
  const int32_t* w = t.w;
  const VI flip = VI{} + t.flip;
  for (int tap = 0; tap < t.tap_count; ++tap) {
    const uint8_t* x[P];
#pragma GCC unroll 12
    for (int p = 0; p < P; ++p) x[p] = t.x[p] + t.taps[tap];
    for (int64_t k = 0; k < 4 * t.steps; k += 4, w += NB * Way::kVectors * VL) {
#pragma GCC unroll 12
      for (int p = 0; p < P; ++p) {
        const typename Way::template Bytes<VL> bytes(four_flipped<VL>(x[p] + k, flip));
#pragma GCC unroll 4
        for (int b = 0; b < NB; ++b) bytes.add_to(acc[p][b], w + b * Way::kVectors * VL);
      }
    }
  }
#pragma GCC unroll 12
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int b = 0; b < NB; ++b) store_lanes<VL>(out + (p * NB + b) * VL, acc[p][b]);
}

using Sums = void (*)(const Tile&, int32_t*);

template <int NB, class Way, int... P>
Sums pick(int pixels, std::integer_sequence<int, P...>) {
  static constexpr Sums table[] = {sums<P + 1, NB, Way>...};
  return table[pixels - 1];
}

template <class Way, const int* Size>
Sums pick(int nb, int pixels) {
  switch (nb) {
    case 1: return pick<1, Way>(pixels, std::make_integer_sequence<int, Size[1]>());
    case 2: return pick<2, Way>(pixels, std::make_integer_sequence<int, Size[2]>());
    case 3: return pick<3, Way>(pixels, std::make_integer_sequence<int, Size[3]>());
    default: return pick<4, Way>(pixels, std::make_integer_sequence<int, Size[4]>());
  }
}

Sums pick_any(bool vnni, int nb, int pixels) {
#if DLAS_VL == 16
  if (vnni) return pick<Vnni, kVnniTile>(nb, pixels);
#endif
  (void)vnni;
  return pick<Pairs, kPairsTile>(nb, pixels);
}

template <int NB>
__attribute__((noinline)) void finish(const Tile& t, int32_t* sums, int pixels) {
  t.requantization->finish<VL, NB, false>(sums, t.constants, pixels, t.y, t.count);
}
using Finish = void (*)(const Tile&, int32_t*, int);
constexpr Finish kFinish[5] = {nullptr, finish<1>, finish<2>, finish<3>, finish<4>};

bool has_amx() {
  static const bool has = dlas::has_amx_int8();
  return has;
}

// Up to 4 vectors of output channels of one group.
struct Chunk {
  int first, count, nb, group;  // output channels, and vectors
  const int32_t* w;
  const int32_t* constants;
  int64_t tiles, small;  // tiles of all pixels have `small` or small + 1 of them
  Sums small_sums, large_sums;
};

// Walks over output pixels in order.
struct Cursor {
  const uint8_t* x;
  uint8_t* y;
  int64_t oh, ow;
};

class Convolution {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *b = input(node, 2);
    const DLTensor* y = output(node, 0);
    if (!is_byte(x) || !is_byte(y) || x->ndim != y->ndim || (x->ndim != 4 && x->ndim != 2))
      return refuse("int8 convolutions take and give bytes, nhwc");
    if (!is_weight(w) || w->ndim != x->ndim) return refuse("int8 convolutions have constant int8 or int16 weights");
    if (b && (!b->data || b->dtype.bits != 32 || b->dtype.code != 0)) return refuse("the bias is constant int32");
    if (!requantizes(node, w->shape[0])) return refuse("multipliers and shifts are one for each channel, or one");
    const int64_t groups = get(node, "group", 1), last = x->ndim - 1;
    if (groups < 1 || w->shape[0] % groups || x->shape[last] != w->shape[1] * groups || y->shape[last] != w->shape[0])
      return refuse("channels of input, weights and output do not fit");
    return 1;
  }

  Convolution(const dlas_node* node, const dlas_ctx* ctx)
      : ctx_(ctx),
        requantization_(node, static_cast<int>(input(node, 1)->shape[0]), is_signed(output(node, 0))) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0);
    const bool flat = x->ndim == 2;
    const Window window(node);
    const int64_t groups = get(node, "group", 1), K = w->shape[0], C = w->shape[1];
    const int kh = flat ? 1 : window.kh, kw = flat ? 1 : window.kw;
    flip_ = is_signed(x) ? static_cast<int32_t>(0x80808080) : 0;
    zero_point_ = static_cast<int>(get(node, "x_zero_point", 0)) + (flip_ ? 128 : 0);
    n_ = x->shape[0], oh_ = flat ? 1 : y->shape[1], ow_ = flat ? 1 : y->shape[2];
    if (flat) {
      x_n_ = x->strides[0], y_n_ = y->strides[0];
      x_h_ = x_w_ = y_h_ = y_w_ = start_ = 0;
      // A plain matrix ends with its last byte, and steps of 4 would read past it.
      padded_ = C % 4 ? (C + 3) / 4 * 4 : 0;
    } else {
      x_n_ = x->strides[0], x_h_ = x->strides[1] * window.sh, x_w_ = x->strides[2] * window.sw;
      y_n_ = y->strides[0], y_h_ = y->strides[1], y_w_ = y->strides[2];
      start_ = -window.top * x->strides[1] - window.left * x->strides[2];
    }
    merged_ = groups == 1 && (window.dw == 1 || kw == 1) && (flat || x->strides[2] == C);
    if (padded_) x_n_ = padded_;
    channels_ = C, kh_ = kh, kw_ = kw;
    lay_taps(node, flat ? nullptr : x, window);
    pack(node, groups, K);
  }

  size_t workspace() const {
    const size_t panels = amx_ ? static_cast<size_t>(api().threads(ctx_)) * kMostPixels * 64 * depth_ : 0;
    return copy_size() + panels;
  }

#if DLAS_VL == 16
  template <class Tiles>
  auto by_amx(Tiles& tiles, const Chunk& chunk, uint8_t* panel) const {
    return [this, &tiles, &chunk, panel](const Tile& t, int size, int32_t* sums) {
      const int bytes = 4 * t.steps;
      for (int p = 0; p < size; ++p) {
        uint8_t* to = panel + static_cast<int64_t>(p) * 64 * depth_;
        for (int tap = 0; tap < t.tap_count; ++tap, to += bytes) {
          const uint8_t* from = t.x[p] + t.taps[tap];
          for (int i = 0; i < bytes; ++i) to[i] = from[i] ^ static_cast<uint8_t>(t.flip);
        }
      }
      amx_sums(tiles, panel, size, t.w, t.constants, chunk.nb, depth_, sums);
    };
  }
#endif
  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void* scratch) {
    const uint8_t* x = bytes_of(in[0]) + start_;
    uint8_t* y = bytes_of(out[0]);
    if (padded_) x = copied(in[0], static_cast<uint8_t*>(scratch));
    const int64_t tasks = static_cast<int64_t>(chunks_.size()) * bands_;
    parallel(ctx_, tasks, [&](int64_t task, int thread) {
      const Chunk& chunk = chunks_[task / bands_];
      const int64_t band = task % bands_, from = chunk.tiles * band / bands_, to = chunk.tiles * (band + 1) / bands_;
#if DLAS_VL == 16
      uint8_t* panel = static_cast<uint8_t*>(scratch) + copy_size() + int64_t{thread} * kMostPixels * 64 * depth_;
      if (amx_ == kAmx) {
        HardwareTiles tiles;
        return one(chunk, x, y, from, to, by_amx(tiles, chunk, panel));
      }
      if (amx_ == kAmxModel) {
        ModelTiles tiles;
        return one(chunk, x, y, from, to, by_amx(tiles, chunk, panel));
      }
#endif
      (void)thread;
      one(chunk, x, y, from, to, [&chunk](const Tile& t, int size, int32_t* sums) {
        (size == chunk.small ? chunk.small_sums : chunk.large_sums)(t, sums);
      });
    });
  }

 private:
  size_t copy_size() const { return padded_ ? (n_ * padded_ + 127) / 64 * 64 : 0; }

  template <class Compute>
  void one(const Chunk& chunk, const uint8_t* x, uint8_t* y, int64_t from, int64_t to, const Compute& compute) const {
    alignas(64) int32_t sums[kMostPixels * 4 * VL];
    Tile t;
    t.w = chunk.w, t.constants = chunk.constants, t.taps = taps_.data();
    t.tap_count = static_cast<int>(taps_.size()), t.steps = steps_, t.flip = flip_, t.count = chunk.count;
    t.requantization = &requantization_;
    const int64_t pixels = n_ * oh_ * ow_;
    const int64_t first = pixels * from / chunk.tiles;
    const uint8_t* image = x + chunk.group * channels_ + first / (oh_ * ow_) * x_n_;
    uint8_t* result = y + chunk.first + first / (oh_ * ow_) * y_n_;
    int64_t oh = first / ow_ % oh_, ow = first % ow_;
    const uint8_t* row = image + oh * x_h_;
    uint8_t* y_row = result + oh * y_h_;
    for (int64_t tile = from, at = first; tile < to; ++tile) {
      const int64_t next = pixels * (tile + 1) / chunk.tiles;
      const int size = static_cast<int>(next - at);
      at = next;
      for (int p = 0; p < size; ++p) {
        t.x[p] = row + ow * x_w_;
        t.y[p] = y_row + ow * y_w_;
        if (++ow < ow_) continue;
        ow = 0, row += x_h_, y_row += y_h_;
        if (++oh < oh_) continue;
        oh = 0, image += x_n_, result += y_n_;
        row = image, y_row = result;
      }
      compute(t, size, sums);
      kFinish[chunk.nb](t, sums, size);
    }
  }

  // Offsets of the runs of bytes that one output sees; a second set where int16 weights are two int8 ones.
  void lay_taps(const dlas_node* node, const DLTensor* x, const Window& window) {
    const DLTensor* w = input(node, 1);
    const int64_t run = merged_ ? kw_ * channels_ : channels_;
    steps_ = static_cast<int>((run + 3) / 4);
    for (int i = 0; i < kh_; ++i)
      for (int j = 0; j < (merged_ ? 1 : kw_); ++j)
        taps_.push_back(x ? i * window.dh * x->strides[1] + j * window.dw * x->strides[2] : 0);
    vnni_ = use_vnni() && get(node, "vnni", 1);  // 0: as on a processor without it
    if (VL == 16) {
      const int64_t wanted = get(node, "amx", kAmx);  // kAmxModel: as on a processor with it
      amx_ = wanted == kAmxModel ? kAmxModel : wanted == kAmx && has_amx() ? kAmx : kNoAmx;
      vnni_ = vnni_ || amx_;
    }
    if (!vnni_ || w->dtype.bits == 8) return;
    int64_t size = 1;
    for (int d = 0; d < w->ndim; ++d) size *= w->shape[d];
    for (int64_t i = 0; i < size && !twice_; ++i) twice_ = std::abs(weight_at(w, i)) > 127;
    if (twice_) taps_.insert(taps_.end(), taps_.begin(), taps_.end());
  }

  void pack(const dlas_node* node, int64_t groups, int64_t K) {
    const DLTensor *w = input(node, 1), *b = input(node, 2);
    const int64_t in_group = K / groups, vectors = (in_group + VL - 1) / VL, per_group = (vectors + 3) / 4;
    const int ways = vnni_ ? 1 : 2;
    int64_t depth = static_cast<int64_t>(taps_.size()) * steps_;
    if (amx_) depth_ = static_cast<int>((depth + 15) / 16), depth = depth_ * 16;
    const int64_t row = depth * ways * VL;  // of one vector of channels
    weights_ = std::make_unique<Packed>(groups * vectors * row);
    constants_ = std::make_unique<Packed>(groups * vectors * kConstants * VL);
    int32_t* to = reinterpret_cast<int32_t*>(weights_->at);
    int32_t* constants = reinterpret_cast<int32_t*>(constants_->at);
    const int32_t* bias = b ? static_cast<const int32_t*>(b->data) : nullptr;
    const int64_t window = kh_ * kw_;
    std::vector<int64_t> total(K);
    for (int64_t k = 0; k < K; ++k) {
      int64_t low = bias ? bias[k] : 0, high = low;
      for (int64_t i = k * channels_ * window; i < (k + 1) * channels_ * window; ++i) {
        const int64_t v = weight_at(w, i);
        total[k] += v;
        low += std::min(v * (255 - zero_point_), -v * zero_point_);
        high += std::max(v * (255 - zero_point_), -v * zero_point_);
      }
      requantization_.bound(static_cast<int>(k), low, high);
    }
    for (int64_t g = 0; g < groups; ++g)
      for (int64_t c = 0; c < per_group; ++c) {
        const int64_t v0 = vectors * c / per_group, v1 = vectors * (c + 1) / per_group, nb = v1 - v0;
        const int64_t first = g * in_group + v0 * VL, count = std::min<int64_t>(nb * VL, in_group - v0 * VL);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t k = first + i, v = i / VL, lane = i % VL;
          int32_t* vector = constants + v * kConstants * VL;
          const int64_t start = (bias ? bias[k] : 0) - zero_point_ * total[k] + static_cast<int64_t>(requantization_.bias_offset());
          vector[kBias * VL + lane] = static_cast<int32_t>(static_cast<uint32_t>(start));
          requantization_.fill(vector, VL, static_cast<int>(lane), static_cast<int>(k));
          pack_channel(w, k, to + v * ways * VL, nb * ways * VL, static_cast<int>(lane));
        }
        add_chunk(static_cast<int>(first), static_cast<int>(count), static_cast<int>(nb), static_cast<int>(g), to,
                  constants);
        to += nb * row, constants += nb * kConstants * VL;
      }
    split(groups);
  }

  // One output channel into lane `lane` of its vector; `step` is from one set of four bytes to the next.
  void pack_channel(const DLTensor* w, int64_t k, int32_t* to, int64_t step, int lane) const {
    const int64_t run = merged_ ? kw_ * channels_ : channels_, window = kh_ * kw_;
    const int64_t single = static_cast<int64_t>(taps_.size()) / (twice_ ? 2 : 1);
    for (int64_t tap = 0; tap < static_cast<int64_t>(taps_.size()); ++tap)
      for (int64_t i = 0; i < run; ++i) {
        const int64_t place = merged_ ? tap % single * kw_ + i / channels_ : tap % single;
        const int whole = weight_at(w, (k * channels_ + i % channels_) * window + place);
        const int part = std::clamp(whole, -128, 127);
        const int value = !twice_ ? whole : tap < single ? part : whole - part;
        int32_t* at = to + (tap * steps_ + i / 4) * step;
        if (vnni_)
          Vnni::pack(at, VL, lane, static_cast<int>(i % 4), value);
        else
          Pairs::pack(at, VL, lane, static_cast<int>(i % 4), value);
      }
  }

  void add_chunk(int first, int count, int nb, int group, const int32_t* w, const int32_t* constants) {
    const int most = amx_ ? kMostPixels : (vnni_ ? kVnniTile : kPairsTile)[nb];
    const int64_t pixels = n_ * oh_ * ow_, tiles = std::max<int64_t>(1, (pixels + most - 1) / most);
    const int small = static_cast<int>(pixels / tiles), large = static_cast<int>((pixels + tiles - 1) / tiles);
    const auto pick = [&](int size) { return amx_ ? nullptr : pick_any(vnni_, nb, std::max(size, 1)); };
    chunks_.push_back({first, count, nb, group, w, constants, tiles, small, pick(small), pick(large)});
  }

  void split(int64_t) {
    const int64_t threads = api().threads(ctx_), chunks = static_cast<int64_t>(chunks_.size());
    bands_ = 1;
    const int64_t tiles = chunks_.front().tiles;
    while (threads > 1 && chunks * bands_ % threads && chunks * bands_ < 8 * threads && bands_ < tiles) ++bands_;
  }

  const uint8_t* copied(const DLTensor* x, uint8_t* scratch) const {
    for (int64_t i = 0; i < n_; ++i) std::memcpy(scratch + i * padded_, bytes_of(x) + i * x->strides[0], channels_);
    return scratch;
  }

  const dlas_ctx* ctx_;
  Requantization requantization_;
  int32_t flip_;
  int zero_point_, steps_, kh_, kw_;
  bool merged_, vnni_ = false, twice_ = false;
  Amx amx_ = kNoAmx;
  int depth_ = 0;  // runs of 64 bytes that AMX multiplies
  int64_t n_, oh_, ow_, x_n_, x_h_, x_w_, y_n_, y_h_, y_w_, start_, channels_, padded_ = 0, bands_ = 1;
  std::vector<int64_t> taps_;
  std::vector<Chunk> chunks_;
  std::unique_ptr<Packed> weights_, constants_;
};

DLAS_ENTER(Convolution, "QConv", "int8-conv");
DLAS_ENTER(Convolution, "QDense", "int8-dense");

}  // namespace
}  // namespace dlas::DLAS_NS
