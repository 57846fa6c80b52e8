// Convolution on the plain layout: a vector of neighbouring outputs by a few output channels ("pixel-vector" form of
// grouped spatial pack convolution).
//
// A group's input rows are copied into a frame of zeros, sorted by their phase of the strides, with the pitch P of the
// output: OW and what a window reads to the right of it. Output q = oh * P + ow then needs, for tap t, element
// offset[t] + q, whatever the stride and the dilation. So the rows are one long vector, of which OW in P are kept.

#include <algorithm>
#include <utility>

#include "layer.h"

namespace dlas::DLAS_NS {
namespace {

constexpr int kOuts[] = {8, 4, 3, 2, 1};  // output channels of a tile, and how many vectors then fit
#if DLAS_VL == 16 || defined(DLAS_NEON)
constexpr int kVectors[] = {3, 6, 8, 12, 12};
#else
constexpr int kVectors[] = {1, 3, 4, 6, 8};
#endif
constexpr int64_t kBandBytes = 128 << 10;  // of framed input: well inside the second cache

struct Flat {
  const float* x;
  const int64_t* offsets;
  int64_t steps;
  const float* w;  // [step][O]
  const float* bias;
  float* y;
  int64_t pitch;  // of the output channels in y
};

template <int O, int M>
void flat(const Flat& f) {
  V acc[O][M];
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o)
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) acc[o][m] = splat(f.bias[o]);
  const float* w = f.w;
  for (int64_t s = 0; s < f.steps; ++s, w += O) {
    const float* x = f.x + f.offsets[s];
    if constexpr (O <= M) {
      V weight[O];
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) weight[o] = splat(w[o]);
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) {
        const V value = load(x + m * VL);
#pragma GCC unroll 8
        for (int o = 0; o < O; ++o) acc[o][m] += weight[o] * value;
      }
    } else {
      V value[M];
#pragma GCC unroll 12
      for (int m = 0; m < M; ++m) value[m] = load(x + m * VL);
#pragma GCC unroll 8
      for (int o = 0; o < O; ++o) {
        const V weight = splat(w[o]);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) acc[o][m] += weight * value[m];
      }
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < O; ++o)
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) store(f.y + o * f.pitch + m * VL, acc[o][m]);
}

using FlatRun = void (*)(const Flat&);

template <int I, int... M>
FlatRun flat_of(int vectors, std::integer_sequence<int, M...>) {
  static constexpr FlatRun table[] = {flat<kOuts[I], M + 1>...};
  return table[vectors - 1];
}

FlatRun flat_of(int index, int vectors) {
  switch (index) {
    case 0: return flat_of<0>(vectors, std::make_integer_sequence<int, kVectors[0]>());
    case 1: return flat_of<1>(vectors, std::make_integer_sequence<int, kVectors[1]>());
    case 2: return flat_of<2>(vectors, std::make_integer_sequence<int, kVectors[2]>());
    case 3: return flat_of<3>(vectors, std::make_integer_sequence<int, kVectors[3]>());
    default: return flat_of<4>(vectors, std::make_integer_sequence<int, kVectors[4]>());
  }
}

int64_t whole(int64_t floats) { return (floats + 15) / 16 * 16; }

class GspcPixel {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0);
    if (!x || !w || x->ndim != 4 || y->ndim != 4) return refuse("gspc-pixel needs plain images in and out");
    if (!w->data) return refuse("gspc-pixel needs constant weights");
    if (y->shape[2] < 1 || y->shape[3] < 1) return refuse("gspc-pixel was given an output without pixels");
    return 1;
  }

  GspcPixel(const dlas_node* node, const dlas_ctx* ctx) : window_(node), epilogue_(node), ctx_(ctx) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0);
    n_ = x->shape[0], h_ = x->shape[2], w_ = x->shape[3], oh_ = y->shape[2], ow_ = y->shape[3];
    groups_ = get(node, "group", 1), ins_ = w->shape[1], outs_ = w->shape[0] / groups_;
    const int64_t reach_h = int64_t{window_.kh - 1} * window_.dh, reach_w = int64_t{window_.kw - 1} * window_.dw;
    extra_rows_ = reach_h / window_.sh, pitch_ = ow_ + reach_w / window_.sw;
    phases_h_ = static_cast<int>(std::min<int64_t>(window_.sh, reach_h + 1));
    phases_w_ = static_cast<int>(std::min<int64_t>(window_.sw, reach_w + 1));
    cut_bands(api().threads(ctx));
    for (int64_t c = 0; c < ins_; ++c)
      for (int i = 0; i < window_.kh; ++i)
        for (int j = 0; j < window_.kw; ++j) {
          const int64_t row = int64_t{i} * window_.dh, column = int64_t{j} * window_.dw;
          offsets_.push_back(c * plane_ + (row % window_.sh * phases_w_ + column % window_.sw) * phase_ +
                             row / window_.sh * pitch_ + column / window_.sw);
        }
    pack(floats(w), input(node, 2));
  }

  size_t workspace() const { return static_cast<size_t>(api().threads(ctx_)) * (frame_ + result_) * sizeof(float); }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void* scratch) {
    const float *x = floats(in[0]), *add = n_in > 3 ? floats(in[3]) : nullptr;
    const float* x_end = x + n_ * groups_ * ins_ * h_ * w_;
    float* y = floats(out[0]);
    parallel(ctx_, n_ * groups_ * bands_, [&](int64_t task, int thread) {
      const int64_t band = task % bands_, plane = task / bands_, g = plane % groups_;
      const int64_t first = oh_ * band / bands_, rows = oh_ * (band + 1) / bands_ - first;
      float* framed = static_cast<float*>(scratch) + thread * (frame_ + result_);
      float* result = framed + frame_;
      frame(x + plane * ins_ * h_ * w_, x_end, first, rows + extra_rows_, framed);
      for (const Part& part : parts_) {
        multiply(part, g, framed, result, rows);
        for (int o = 0; o < kOuts[part.size]; ++o) {
          const int64_t at = ((plane * outs_ + part.first + o) * oh_ + first) * ow_;
          finish(result + o * flat_pitch_, rows, y + at, add ? add + at : nullptr);
        }
      }
    });
  }

 private:
  struct Part {  // of the output channels of a group
    int size;    // index into kOuts
    int64_t first, weights;
  };

  // Bands of rows whose framed input stays in the second cache; with threads, enough that all are busy.
  void cut_bands(int threads) {
    const int64_t row = ins_ * phases_h_ * phases_w_ * pitch_ * static_cast<int64_t>(sizeof(float));
    const int64_t most = std::max<int64_t>(kBandBytes / row - extra_rows_, std::min<int64_t>(oh_, 4));
    bands_ = (oh_ + most - 1) / most;
    const int64_t planes = n_ * groups_;
    while (threads > 1 && planes * bands_ % threads && planes * bands_ < 8 * threads && bands_ < oh_) ++bands_;
    const int64_t rows = (oh_ + bands_ - 1) / bands_;
    phase_ = (rows + extra_rows_) * pitch_;
    plane_ = phases_h_ * phases_w_ * phase_;
    if (plane_ % 1024 == 0) plane_ += VL;  // else all channels would meet in the same lines of the first cache
    flat_pitch_ = whole(rows * pitch_) + 16;
    frame_ = whole(ins_ * plane_) + 2 * 16;  // the last vector may read beyond the last row
    result_ = kOuts[0] * flat_pitch_;
  }

  void pack(const float* w, const DLTensor* bias) {
    const int64_t steps = static_cast<int64_t>(offsets_.size());
    int64_t size = 0;
    for (int64_t left = outs_; left > 0;) {
      int index = 0;
      while (kOuts[index] > left || (left == 5 && kOuts[index] == 4)) ++index;  // 5 is 3 and 2
      parts_.push_back({index, outs_ - left, size});
      left -= kOuts[index], size += kOuts[index] * steps;
    }
    group_weights_ = size;
    weights_ = std::make_unique<Packed>(groups_ * size);
    bias_ = std::make_unique<Packed>(groups_ * outs_);
    if (bias) std::copy_n(floats(bias), groups_ * outs_, bias_->at);
    for (int64_t g = 0; g < groups_; ++g)
      for (const Part& part : parts_)
        for (int64_t s = 0; s < steps; ++s)
          for (int o = 0; o < kOuts[part.size]; ++o)
            weights_->at[g * size + part.weights + s * kOuts[part.size] + o] =
                w[(g * outs_ + part.first + o) * steps + s];
  }

  // Copies the rows that a band of outputs reads into the frame, all channels of a group. Vectors may be written past
  // the end of a row: the next one comes later, and the frame ends with spare floats.
  void frame(const float* x, const float* x_end, int64_t first, int64_t rows, float* to) const {
    for (int64_t c = 0; c < ins_; ++c, x += h_ * w_) {
      for (int fh = 0; fh < phases_h_; ++fh) {
        for (int fw = 0; fw < phases_w_; ++fw) {
          float* row = to + c * plane_ + (fh * phases_w_ + fw) * phase_;
          // Columns m * sw + fw - left of [0, w) exist.
          const int64_t sw = window_.sw, shift = fw - window_.left;
          const int64_t begin = std::min<int64_t>(shift < 0 ? (sw - 1 - shift) / sw : 0, pitch_);
          const int64_t end = std::clamp<int64_t>(w_ > shift ? (w_ - shift + sw - 1) / sw : 0, begin, pitch_);
          for (int64_t m = 0; m < rows; ++m, row += pitch_) {
            const int64_t h = (first + m) * window_.sh + fh - window_.top;
            const bool inside = h >= 0 && h < h_;
            zero(row, inside ? begin : pitch_);
            if (!inside) continue;
            take(x + h * w_ + shift + begin * sw, x_end, row + begin, end - begin);
            zero(row + end, pitch_ - end);
          }
        }
      }
    }
  }

  static void zero(float* to, int64_t count) {
    if (count > 0) store(to, V{});
    for (int64_t i = VL; i < count; i += VL) store(to + i, V{});
  }

  // Every sw-th float; reads nothing at or past `end`.
  void take(const float* from, const float* end, float* to, int64_t count) const {
    const int sw = window_.sw;
    int64_t i = 0;
    if (sw == 1) {
      for (; i < count && from + i + VL <= end; i += VL) store(to + i, load(from + i));
    } else if (sw == 2) {
      VI even{};
      for (int l = 0; l < VL; ++l) even[l] = 2 * l;
      for (; i < count && from + 2 * i + 2 * VL <= end; i += VL)
        store(to + i, __builtin_shuffle(load(from + 2 * i), load(from + 2 * i + VL), even));
    }
    for (; i < count; ++i) to[i] = from[i * sw];
  }

  void multiply(const Part& part, int64_t g, const float* framed, float* result, int64_t rows) const {
    const int64_t vectors = ((rows - 1) * pitch_ + ow_ + VL - 1) / VL, most = kVectors[part.size];
    const int64_t tiles = (vectors + most - 1) / most;
    Flat f{nullptr, offsets_.data(), static_cast<int64_t>(offsets_.size()),
           weights_->at + g * group_weights_ + part.weights, bias_->at + g * outs_ + part.first, nullptr, flat_pitch_};
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t from = vectors * t / tiles, to = vectors * (t + 1) / tiles;
      f.x = framed + from * VL;
      f.y = result + from * VL;
      flat_of(part.size, static_cast<int>(to - from))(f);
    }
  }

  // Drops what lies between the rows, adds the residual, activates.
  void finish(const float* from, int64_t rows, float* y, const float* add) const {
    const int64_t last = ow_ - VL;  // where the last vector of a row starts; it overlaps the one before
    for (int64_t r = 0; r < rows; ++r, from += pitch_) {
      float* to = y + r * ow_;
      const float* more = add ? add + r * ow_ : nullptr;
      if (last >= 0) {
        const V tail = finished(load(from + last), more ? load(more + last) : V{});  // before `to`, perhaps `add`, changes
        for (int64_t i = 0; i < last; i += VL)
          store(to + i, finished(load(from + i), more ? load(more + i) : V{}));
        store(to + last, tail);
      } else if (more || (rows - r) * ow_ < VL) {
        const int count = static_cast<int>(ow_);
        store_part(to, finished(load(from), more ? load_part(more, count) : V{}), count);
      } else {
        store(to, finished(load(from), V{}));  // the next row overwrites what is too much
      }
    }
    if (epilogue_.act > kRelu) epilogue_.over(y, rows * ow_);
  }

  DLAS_INLINE V finished(V v, V add) const {
    v += add;
    return epilogue_.act == kRelu ? activate<kRelu>(v, 0, 0) : v;
  }

  Window window_;
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  int phases_h_, phases_w_;
  int64_t n_, groups_, ins_, outs_, h_, w_, oh_, ow_, extra_rows_, pitch_, bands_, phase_, plane_, flat_pitch_, frame_,
      result_, group_weights_;
  std::vector<int64_t> offsets_;
  std::vector<Part> parts_;
  std::unique_ptr<Packed> weights_, bias_;
};

DLAS_ENTER(GspcPixel, "Conv", "gspc-pixel");

}  // namespace
}  // namespace dlas::DLAS_NS
