// Mean 0 and variance 1 over rows (LayerNormalization, InstanceNormalization, GroupNormalization), a line per channel
// (BatchNormalization), and LRN.

#include <algorithm>

#include "functions.h"
#include "layer.h"

namespace dlas::DLAS_NS {
namespace {

bool is_float(const DLTensor* t) { return t && t->dtype.code == 2 && t->dtype.bits == 32; }

// Sum of (x - mean)^Power over a row.
template <int Power>
float sum_of_row(const float* x, int64_t length, float mean) {
  V part[4] = {};
  int64_t i = 0;
  const auto term = [&](const float* p) {
    const V v = load(p) - mean;
    return Power == 1 ? v : v * v;
  };
  for (; i + 4 * VL <= length; i += 4 * VL)
    for (int k = 0; k < 4; ++k) part[k] += term(x + i + k * VL);
  for (; i + VL <= length; i += VL) part[0] += term(x + i);
  const V all = (part[0] + part[1]) + (part[2] + part[3]);
  float sum = 0;
  for (int lane = 0; lane < VL; ++lane) sum += all[lane];
  for (; i < length; ++i) sum += Power == 1 ? x[i] - mean : (x[i] - mean) * (x[i] - mean);
  return sum;
}

// A row is `segments` pieces of `length` elements, each with a scale and a shift of its own; the tables hold `sets`
// rows of them, which take turns.
class Normalise {
 public:
  static int supports(const dlas_node* node) {
    if (!is_float(input(node, 0)) || !is_float(input(node, 1))) return refuse("normalisation takes float32");
    if (!input(node, 1)->data) return refuse("normalisation needs a constant scale");
    return 1;
  }

  Normalise(const dlas_node* node, const dlas_ctx* ctx)
      : epilogue_(node),
        ctx_(ctx),
        rows_(get(node, "rows", 1)),
        sets_(get(node, "sets", 1)),
        segments_(get(node, "segments", 1)),
        length_(get(node, "length", 1)),
        epsilon_(static_cast<float>(getf(node, "epsilon", 1e-5))),
        center_(get(node, "center", 1) != 0),
        scale_(sets_ * segments_ + VL),
        shift_(sets_ * segments_ + VL) {
    const float *scale = floats(input(node, 1)), *shift = floats(input(node, 2));
    std::copy(scale, scale + sets_ * segments_, scale_.at);
    if (shift) std::copy(shift, shift + sets_ * segments_, shift_.at);
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const float* xs = floats(in[0]);
    float* ys = floats(out[0]);
    const int64_t size = segments_ * length_;
    parallel(ctx_, rows_, [&](int64_t row, int) {
      const float* x = xs + row * size;
      float* y = ys + row * size;
      const float mean = center_ ? sum_of_row<1>(x, size, 0) / size : 0.0f;
      const float inverse = 1.0f / std::sqrt(sum_of_row<2>(x, size, mean) / size + epsilon_);
      const float *scale = scale_.at + row % sets_ * segments_, *shift = shift_.at + row % sets_ * segments_;
      if (length_ == 1) {
        for (int64_t i = 0; i < size; i += VL) {
          const int n = static_cast<int>(std::min<int64_t>(VL, size - i));
          store_part(y + i, (load_part(x + i, n) - mean) * inverse * load(scale + i) + load(shift + i), n);
        }
      } else {
        for (int64_t s = 0; s < segments_; ++s)
          for (int64_t i = s * length_; i < (s + 1) * length_; ++i)
            y[i] = (x[i] - mean) * (inverse * scale[s]) + shift[s];
      }
      if (epilogue_.act) epilogue_.over(y, size);
    });
  }

 private:
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  int64_t rows_, sets_, segments_, length_;
  float epsilon_;
  bool center_;
  Packed scale_, shift_;  // with a vector to spare: whole ones are read at the end
};

DLAS_ENTER(Normalise, "Normalise", "normalise");

// y = scale x + shift, one pair per channel.
class Affine {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *y = output(node, 0);
    if (!is_float(x) || x->ndim != y->ndim || x->ndim < 2) return refuse("batch-norm takes float32 (N, C, ...)");
    if (!input(node, 1) || !input(node, 1)->data || !input(node, 2) || !input(node, 2)->data)
      return refuse("batch-norm needs constant statistics");
    return 1;
  }

  Affine(const dlas_node* node, const dlas_ctx* ctx)
      : epilogue_(node), ctx_(ctx), blocked_(get(node, "blocked", 0) != 0), scale_(input(node, 1)->shape[0]), shift_(input(node, 1)->shape[0]) {
    const float *scale = floats(input(node, 1)), *shift = floats(input(node, 2));
    const int64_t channels = input(node, 1)->shape[0];
    std::copy(scale, scale + channels, scale_.at);
    std::copy(shift, shift + channels, shift_.at);
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const DLTensor *x = in[0], *y = out[0];
    const bool blocked = blocked_;
    // Rows of maps; anything else is one row per channel.
    int64_t height = blocked ? x->shape[2] : 1, row = 1;
    for (int i = blocked ? 3 : 2; i < x->ndim; ++i) row *= x->shape[i];
    const int64_t planes = x->shape[1];
    parallel(ctx_, x->shape[0] * planes * height, [&](int64_t task, int) {
      const int64_t h = task % height, c = task / height % planes, n = task / height / planes;
      const float* from = floats(x) + n * x->strides[0] + c * x->strides[1] + (blocked ? h * x->strides[2] : 0);
      float* to = floats(out[0]) + n * y->strides[0] + c * y->strides[1] + (blocked ? h * y->strides[2] : 0);
      const V scale = blocked ? load(scale_.at + c * VL) : splat(scale_.at[c]);
      const V shift = blocked ? load(shift_.at + c * VL) : splat(shift_.at[c]);
      int64_t i = 0;
      for (; i + VL <= row; i += VL) store(to + i, load(from + i) * scale + shift);
      const int rest = static_cast<int>(row - i);
      if (rest) store_part(to + i, load_part(from + i, rest) * scale + shift, rest);
      if (epilogue_.act) epilogue_.over(to, row);
    });
  }

 private:
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  bool blocked_;
  Packed scale_, shift_;
};

DLAS_ENTER(Affine, "BatchNormalization", "batch-norm");

// Each value over a power of the squares in the channels around it; a vector of pixels at a time.
class Lrn {
 public:
  static int supports(const dlas_node* node) {
    if (!is_float(input(node, 0)) || input(node, 0)->ndim < 2) return refuse("lrn takes float32 (N, C, ...)");
    return 1;
  }

  Lrn(const dlas_node* node, const dlas_ctx* ctx)
      : ctx_(ctx),
        size_(get(node, "size", 1)),
        alpha_(static_cast<float>(getf(node, "alpha", 1e-4)) / size_),
        beta_(static_cast<float>(getf(node, "beta", 0.75))),
        bias_(static_cast<float>(getf(node, "bias", 1.0))) {}

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const DLTensor* x = in[0];
    const int64_t channels = x->shape[1];
    int64_t pixels = 1;
    for (int i = 2; i < x->ndim; ++i) pixels *= x->shape[i];
    const int64_t strips = (pixels + VL - 1) / VL;
    parallel(ctx_, x->shape[0] * strips, [&](int64_t task, int) {
      const int64_t first = task / strips * channels * pixels + task % strips * VL;
      const int n = static_cast<int>(std::min<int64_t>(VL, pixels - task % strips * VL));
      const float* from = floats(x) + first;
      float* to = floats(out[0]) + first;
      for (int64_t c = 0; c < channels; ++c) {
        V sum{};
        const int64_t last = std::min(c + size_ / 2, channels - 1);
        for (int64_t k = std::max<int64_t>(0, c - (size_ - 1) / 2); k <= last; ++k) {
          const V v = load_part(from + k * pixels, n);
          sum += v * v;
        }
        const V power = vexp(log_all(bias_ + alpha_ * sum) * -beta_);
        store_part(to + c * pixels, load_part(from + c * pixels, n) * power, n);
      }
    });
  }

 private:
  const dlas_ctx* ctx_;
  int64_t size_;
  float alpha_, beta_, bias_;
};

DLAS_ENTER(Lrn, "LRN", "lrn");

}  // namespace
}  // namespace dlas::DLAS_NS
