// 8-bit layers without weights: sums and products of two maps, pools, mean, softmax, tables, and the ways in and out.

#include "quant.h"

namespace dlas::DLAS_NS {
namespace {

using Quarter = Lanes<VL>::Quarter;

DLAS_INLINE VI widen(const uint8_t* p, uint8_t flip) {
  return __builtin_convertvector(*reinterpret_cast<const Quarter*>(p) ^ (Quarter{} + flip), VI);
}

// Vectors' constants for one multiplier.
struct Factor {
  Requantization way;
  Packed constants{kConstants * VL};
  // `largest` bounds the sums.
  Factor(int64_t multiplier, int64_t shift, Rounding rounding, int zero_point, int64_t largest)
      : way(multiplier, shift, rounding, zero_point) {
    fill(largest);
  }
  // What `node` says of its output.
  Factor(const dlas_node* node, int64_t largest)
      : way(rounding_of(node) == kFloat
                ? Requantization(static_cast<float>(getf(node, "factor", 0)), moved_zero(node))
                : Requantization(gets(node, "multipliers", {0})[0], gets(node, "shifts", {0})[0], rounding_of(node),
                                 moved_zero(node))) {
    fill(largest);
  }
  static int moved_zero(const dlas_node* node) {
    return static_cast<int>(get(node, "y_zero_point", 0)) + (is_signed(output(node, 0)) ? 128 : 0);
  }
  void fill(int64_t largest) {
    way.bound(0, -largest, largest);
    for (int l = 0; l < VL; ++l) way.fill(at(), VL, l, 0);
  }
  int32_t* at() { return reinterpret_cast<int32_t*>(constants.at); }
  const int32_t* at() const { return reinterpret_cast<const int32_t*>(constants.at); }
  DLAS_INLINE VI operator()(VI sums) const {
    return way.number<VL>((VI)((Lanes<VL>::U)sums + way.bias_offset()), at());
  }
};

// ---- two maps ----------------------------------------------------------------------------------------------------

// One side of an addition: ((x - zero point) << left) times its factor, as TFLite rounds it.
struct Side {
  int zero_point, left;
  uint8_t flip;
  bool half;  // the factor is 1/2, which needs no rounding
  Factor factor;
  Side(const dlas_node* node, int index, const std::string& name)
      : zero_point(static_cast<int>(get(node, (name + "_zero_point").c_str(), 0))),
        left(static_cast<int>(get(node, "left_shift", 20))),
        flip(is_signed(input(node, index)) ? 0x80 : 0),
        half(get(node, (name + "_multiplier").c_str(), 0) == 1 << 30 && get(node, (name + "_shift").c_str(), 0) == 0),
        factor(get(node, (name + "_multiplier").c_str(), 0), get(node, (name + "_shift").c_str(), 0),
               rounding_of(node) == kFloat ? kDouble : rounding_of(node), 0, int64_t{256} << left) {
    if (flip) zero_point += 128;
  }
  DLAS_INLINE VI operator()(VI x) const {
    const VI centred = x - zero_point;
    return half ? centred << (left - 1) : factor(centred << left);
  }
};

struct Sum {
  Side a, b;
  Factor factor;
  // XNNPACK: both times factors of 21 bits, one shift, halves up.
  bool once;
  int32_t first, second, start, shift, zero_point;
  explicit Sum(const dlas_node* node)
      : a(node, 0, "a"),
        b(node, 1, "b"),
        factor(node, int64_t{512} << a.left),
        once(rounding_of(node) == kFloat),
        first(static_cast<int32_t>(get(node, "a_multiplier", 0))),
        second(static_cast<int32_t>(get(node, "b_multiplier", 0))),
        shift(static_cast<int32_t>(gets(node, "shifts", {1})[0])),
        zero_point(Factor::moved_zero(node)) {
    const int64_t half = once ? int64_t{1} << (shift - 1) : 0;
    start = static_cast<int32_t>(half - int64_t{a.zero_point} * first - int64_t{b.zero_point} * second);
  }
  DLAS_INLINE VI operator()(VI x, VI z) const {
    if (once) return ((x * first + z * second + start) >> shift) + zero_point;
    return factor(a(x) + b(z));
  }
};

struct Product {
  int a_zero, b_zero;
  Factor factor;
  explicit Product(const dlas_node* node)
      : a_zero(static_cast<int>(get(node, "a_zero_point", 0)) + (is_signed(input(node, 0)) ? 128 : 0)),
        b_zero(static_cast<int>(get(node, "b_zero_point", 0)) + (is_signed(input(node, 1)) ? 128 : 0)),
        factor(node, 65536) {}
  DLAS_INLINE VI operator()(VI x, VI z) const { return factor((x - a_zero) * (z - b_zero)); }
};

template <class Operation>
class Binary {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *a = input(node, 0), *b = input(node, 1), *y = output(node, 0);
    if (!is_byte(a) || !is_byte(b) || !is_byte(y) || a->ndim != y->ndim || b->ndim != y->ndim)
      return refuse("both inputs are bytes, of the output's rank");
    bool same = true;
    for (int d = 0; d < y->ndim; ++d) {
      if (a->shape[d] != y->shape[d]) return refuse("input 0 has the output's shape");
      same = same && b->shape[d] == y->shape[d];
    }
    const bool pixel = y->ndim == 4 && b->shape[0] == y->shape[0] && b->shape[3] == y->shape[3] &&
                       b->shape[1] == 1 && b->shape[2] == 1;
    if (!same && !pixel) return refuse("input 1 has the output's shape, or one pixel");
    return 1;
  }
  Binary(const dlas_node* node, const dlas_ctx* ctx)
      : ctx_(ctx),
        operation_(node),
        ends_(node, 1, is_signed(output(node, 0))),
        flip_a_(is_signed(input(node, 0)) ? 0x80 : 0),
        flip_b_(is_signed(input(node, 1)) ? 0x80 : 0) {}
  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const DLTensor *a = in[0], *b = in[1];
    DLTensor* y = out[0];
    const Runs runs(y);
    const bool pixel = Runs(b).size != runs.size || Runs(b).count != runs.count;
    const int64_t step = pixel ? y->shape[3] : runs.size;
    parallel(ctx_, runs.count, [&](int64_t run, int) {
      const uint8_t* as = bytes_of(a) + Runs::offset(a, run);
      const uint8_t* bs = bytes_of(b) + (pixel ? run / y->shape[1] * b->strides[0] : Runs::offset(b, run));
      uint8_t* ys = bytes_of(y) + Runs::offset(y, run);
      for (int64_t from = 0; from < runs.size; from += step) over(as + from, pixel ? bs : bs + from, ys + from, step);
    });
  }

 private:
  void over(const uint8_t* a, const uint8_t* b, uint8_t* y, int64_t size) const {
    constexpr int kStep = 4 * VL;
    int64_t i = 0;
    for (; i + kStep <= size; i += kStep) block(a + i, b + i, y + i, kStep);
    if (i == size) return;
    uint8_t rest_a[kStep] = {}, rest_b[kStep] = {};
    std::memcpy(rest_a, a + i, size - i), std::memcpy(rest_b, b + i, size - i);
    block(rest_a, rest_b, y + i, static_cast<int>(size - i));
  }
  DLAS_INLINE void block(const uint8_t* a, const uint8_t* b, uint8_t* y, int count) const {
    VI v[4];
    for (int i = 0; i < 4; ++i) v[i] = operation_(widen(a + i * VL, flip_a_), widen(b + i * VL, flip_b_));
    store_bytes<VL>(y, ends_.template packed<VL, false>(v), count);
  }

  const dlas_ctx* ctx_;
  Operation operation_;
  Requantization ends_;
  uint8_t flip_a_, flip_b_;
};

DLAS_ENTER(Binary<Sum>, "QAdd", "int8-add");
DLAS_ENTER(Binary<Product>, "QMul", "int8-mul");

// ---- windows -----------------------------------------------------------------------------------------------------

constexpr int kChannels = 64;  // at a time

int pools(const dlas_node* node) {
  const DLTensor *x = input(node, 0), *y = output(node, 0);
  if (!is_byte(x) || x->ndim != 4 || y->ndim != 4 || x->dtype.code != y->dtype.code)
    return refuse("int8 pools take and give bytes of one type, nhwc");
  return 1;
}

// Bytes of up to 64 channels of one window, combined; `number` says what a byte stands for.
template <bool average>
class Pool {
 public:
  static int supports(const dlas_node* node) { return pools(node); }
  Pool(const dlas_node* node, const dlas_ctx* ctx) : ctx_(ctx), window_(node) {
    const bool is_int = is_signed(output(node, 0));
    flip_ = is_int ? 0x80 : 0, zero_ = is_int ? 128 : 0;
    low_ = static_cast<int>(get(node, "act_min", -zero_)) + zero_;
    high_ = static_cast<int>(get(node, "act_max", 255 - zero_)) + zero_;
  }
  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const DLTensor* x = in[0];
    DLTensor* y = out[0];
    const int64_t height = y->shape[1], C = y->shape[3], chunks = (C + kChannels - 1) / kChannels;
    parallel(ctx_, y->shape[0] * height * chunks, [&](int64_t task, int) {
      const int64_t c = task % chunks * kChannels, oh = task / chunks % height, n = task / chunks / height;
      const int64_t h0 = oh * window_.sh - window_.top;
      const int64_t top = std::max<int64_t>(h0, 0), bottom = std::min<int64_t>(h0 + window_.kh, x->shape[1]);
      for (int64_t ow = 0; ow < y->shape[2]; ++ow) {
        const int64_t w0 = ow * window_.sw - window_.left;
        const int64_t left = std::max<int64_t>(w0, 0), right = std::min<int64_t>(w0 + window_.kw, x->shape[2]);
        const uint8_t* from = bytes_of(x) + n * x->strides[0] + c;
        uint8_t* to = bytes_of(y) + n * y->strides[0] + oh * y->strides[1] + ow * y->strides[2] + c;
        one(from, x->strides[1], x->strides[2], top, bottom, left, right, to,
            static_cast<int>(std::min<int64_t>(kChannels, C - c)));
      }
    });
  }

 private:
  void one(const uint8_t* x, int64_t row, int64_t pixel, int64_t top, int64_t bottom, int64_t left, int64_t right,
           uint8_t* y, int count) const {
    int32_t found[kChannels] = {};
    for (int64_t h = top; h < bottom; ++h)
      for (int64_t w = left; w < right; ++w) {
        const uint8_t* p = x + h * row + w * pixel;
        for (int c = 0; c < count; ++c) {
          const int v = p[c] ^ flip_;
          found[c] = average ? found[c] + v : std::max(found[c], v);
        }
      }
    const int64_t size = (bottom - top) * (right - left);
    for (int c = 0; c < count; ++c) {
      int v = found[c];
      if (average) v = mean(found[c], static_cast<int>(size));
      y[c] = static_cast<uint8_t>(std::clamp(v, low_, high_)) ^ flip_;
    }
  }
  // Of the bytes as they are: halves of negative means go down.
  DLAS_INLINE int mean(int total, int size) const {
    const int sum = total - zero_ * size, half = size / 2;
    return (sum > 0 ? (sum + half) / size : -((half - sum) / size)) + zero_;
  }

  const dlas_ctx* ctx_;
  Window window_;
  int low_, high_, zero_;
  uint8_t flip_;
};

DLAS_ENTER(Pool<true>, "QAveragePool", "int8-average-pool");
DLAS_ENTER(Pool<false>, "QMaxPool", "int8-max-pool");

// Mean over height and width with another scale: the division is part of the factor.
class Mean {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *y = output(node, 0);
    if (!is_byte(x) || !is_byte(y) || x->ndim != 4 || y->ndim != 4) return refuse("it takes and gives bytes, nhwc");
    if (rounding_of(node) != kFloat && !requantizes(node, 1)) return refuse("it needs one multiplier and shift");
    return 1;
  }
  Mean(const dlas_node* node, const dlas_ctx* ctx)
      : ctx_(ctx), ends_(node, 1, is_signed(output(node, 0))), flip_(is_signed(input(node, 0)) ? 0x80 : 0) {
    const DLTensor* x = input(node, 0);
    const int64_t count = x->shape[1] * x->shape[2];
    zero_sum_ = static_cast<int32_t>((get(node, "x_zero_point", 0) + (flip_ ? 128 : 0)) * count);
    factor_ = std::make_unique<Factor>(node, 256 * count);
  }
  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const DLTensor* x = in[0];
    DLTensor* y = out[0];
    constexpr int kStep = 4 * VL;
    const int64_t C = y->shape[3], chunks = (C + kStep - 1) / kStep;
    parallel(ctx_, y->shape[0] * chunks, [&](int64_t task, int) {
      const int64_t n = task / chunks, c = task % chunks * kStep;
      const int count = static_cast<int>(std::min<int64_t>(kStep, C - c));
      VI total[4] = {};
      for (int64_t h = 0; h < x->shape[1]; ++h)
        for (int64_t w = 0; w < x->shape[2]; ++w) {
          const uint8_t* p = bytes_of(x) + n * x->strides[0] + h * x->strides[1] + w * x->strides[2] + c;
          for (int i = 0; i < 4; ++i) total[i] += widen(p + i * VL, flip_);
        }
      for (auto& v : total) v = (*factor_)(v - zero_sum_);
      store_bytes<VL>(bytes_of(y) + n * y->strides[0] + c, ends_.packed<VL, false>(total), count);
    });
  }

 private:
  const dlas_ctx* ctx_;
  Requantization ends_;
  uint8_t flip_;
  int32_t zero_sum_;
  std::unique_ptr<Factor> factor_;
};

DLAS_ENTER(Mean, "QMean", "int8-mean");

// ---- softmax -----------------------------------------------------------------------------------------------------

int64_t high_product(int64_t a, int64_t b) { return std::min<int64_t>((a * b + (1 << 30)) >> 31, INT32_MAX); }
int64_t rounding_shift(int64_t x, int by) {
  const int64_t mask = (int64_t{1} << by) - 1;
  return (x >> by) + ((x & mask) > (mask >> 1) + (x < 0));
}
int64_t saturated(int64_t x) { return std::clamp<int64_t>(x, INT32_MIN, INT32_MAX); }

// Along the last axis of a plain tensor. Input 1 holds exp(-d scale) for d = 0..255: as Q0.31, -1 where it counts as 0
// (TFLite), or as float32 (XNNPACK).
class Softmax {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *e = input(node, 1);
    if (!is_byte(x) || !is_byte(output(node, 0)) || x->ndim < 1) return refuse("it takes and gives bytes");
    if (!e || !e->data || e->dtype.bits != 32 || e->ndim != 1 || e->shape[0] != 256)
      return refuse("its exponentials are 256 constant int32");
    return 1;
  }
  Softmax(const dlas_node* node, const dlas_ctx*)
      : flip_(is_signed(input(node, 0)) ? 0x80 : 0), flip_y_(is_signed(output(node, 0)) ? 0x80 : 0) {
    if (input(node, 1)->dtype.code == 2) {
      reals_.assign(floats(input(node, 1)), floats(input(node, 1)) + 256);
      return;
    }
    const int32_t* e = static_cast<const int32_t*>(input(node, 1)->data);
    exponentials_.assign(e, e + 256);
    for (int32_t v : exponentials_) terms_.push_back(v < 0 ? 0 : static_cast<int32_t>(rounding_shift(v, 12)));
  }
  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const DLTensor* x = in[0];
    const int64_t C = x->shape[x->ndim - 1];
    int64_t rows = 1;
    for (int d = 0; d < x->ndim - 1; ++d) rows *= x->shape[d];
    for (int64_t r = 0; r < rows; ++r)
      reals_.empty() ? one(bytes_of(x) + r * C, bytes_of(out[0]) + r * C, C)
                     : real(bytes_of(x) + r * C, bytes_of(out[0]) + r * C, C);
  }

 private:
  void one(const uint8_t* x, uint8_t* y, int64_t C) const {
    int seen[256] = {};
    for (int64_t i = 0; i < C; ++i) ++seen[x[i] ^ flip_];
    int most = 255;
    while (most && !seen[most]) --most;
    int64_t total = 0;
    for (int v = 0; v <= most; ++v) total += static_cast<int64_t>(seen[v]) * terms_[most - v];
    const int leading = __builtin_clz(static_cast<unsigned>(std::max<int64_t>(total, 1)));
    const int64_t half_sum = (((total << leading) - (int64_t{1} << 31)) + (int64_t{1} << 31)) >> 1;
    int64_t d = 1515870810 + high_product(half_sum, -1010580540);  // 48/17 - 32/17 d as Q2.29
    for (int i = 0; i < 3; ++i) {
      const int64_t error = (1 << 29) - high_product(half_sum, d);
      d += saturated(high_product(d, error) * 4);
    }
    const int64_t reciprocal = saturated(d * 2);
    const int shift = 12 - leading + 31 - 8;
    uint8_t result[256];
    for (int v = 0; v <= most; ++v) {
      const int32_t e = exponentials_[most - v];
      if (!seen[v]) continue;
      const int64_t found = e < 0 ? 0 : rounding_shift(high_product(e, reciprocal), shift);
      result[v] = static_cast<uint8_t>(std::clamp<int64_t>(found, 0, 255)) ^ flip_y_;
    }
    for (int64_t i = 0; i < C; ++i) y[i] = result[x[i] ^ flip_];
  }

  void real(const uint8_t* x, uint8_t* y, int64_t C) const {
    int most = 0;
    for (int64_t i = 0; i < C; ++i) most = std::max(most, x[i] ^ flip_);
    float total = 0;
    for (int64_t i = 0; i < C; ++i) total += reals_[most - (x[i] ^ flip_)];
    const float factor = 1.0f / (total * (1.0f / 256.0f));
    for (int64_t i = 0; i < C; ++i) {
      float share = reals_[most - (x[i] ^ flip_)] * factor;
      asm("" : "+m"(share));  // rounded before the half is added
      y[i] = static_cast<uint8_t>(std::min(static_cast<int>(share + 0.5f), 255)) ^ flip_y_;
    }
  }

  uint8_t flip_, flip_y_;
  std::vector<float> reals_;
  std::vector<int32_t> exponentials_, terms_;
};

DLAS_ENTER(Softmax, "QSoftmax", "int8-softmax");

// ---- byte by byte ------------------------------------------------------------------------------------------------

// y = table[x]: any function of one quantised value.
class Table {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *t = input(node, 1);
    if (!is_byte(x) || !is_byte(output(node, 0)) || x->ndim != output(node, 0)->ndim)
      return refuse("it takes and gives bytes");
    if (!is_byte(t) || !t->data || t->ndim != 1 || t->shape[0] != 256) return refuse("its table is 256 constant bytes");
    return 1;
  }
  Table(const dlas_node* node, const dlas_ctx* ctx) : ctx_(ctx) {
    std::memcpy(table_, input(node, 1)->data, 256);
  }
  size_t workspace() const { return 0; }
  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const Runs runs(out[0]);
    parallel(ctx_, runs.count, [&](int64_t run, int) {
      const uint8_t* x = bytes_of(in[0]) + Runs::offset(in[0], run);
      uint8_t* y = bytes_of(out[0]) + Runs::offset(out[0], run);
      for (int64_t i = 0; i < runs.size; ++i) y[i] = table_[x[i]];
    });
  }

 private:
  const dlas_ctx* ctx_;
  uint8_t table_[256];
};

DLAS_ENTER(Table, "QTable", "int8-table");

// Between a plain tensor in the order N, H, W, C (or anything with as many bytes) and an nhwc one, which may have a halo.
template <bool in>
class Copy {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *y = output(node, 0);
    if (!is_byte(x) || !is_byte(y) || (in ? y : x)->ndim != 4) return refuse("it copies bytes from or to nhwc");
    return 1;
  }
  Copy(const dlas_node*, const dlas_ctx* ctx) : ctx_(ctx) {}
  size_t workspace() const { return 0; }
  void run(const DLTensor* const* ins, int, DLTensor* const* outs, int, void*) {
    const DLTensor* image = in ? outs[0] : ins[0];
    const Runs runs(image);
    parallel(ctx_, runs.count, [&](int64_t run, int) {
      const int64_t offset = Runs::offset(image, run);
      if (in)
        std::memcpy(bytes_of(outs[0]) + offset, bytes_of(ins[0]) + run * runs.size, runs.size);
      else
        std::memcpy(bytes_of(outs[0]) + run * runs.size, bytes_of(ins[0]) + offset, runs.size);
    });
  }

 private:
  const dlas_ctx* ctx_;
};

DLAS_ENTER(Copy<true>, "QImage", "int8-image");
DLAS_ENTER(Copy<false>, "QRows", "int8-rows");

// ---- in and out --------------------------------------------------------------------------------------------------

int64_t size_of(const DLTensor* t) {
  int64_t size = 1;
  for (int d = 0; d < t->ndim; ++d) size *= t->shape[d];
  return size;
}

constexpr int64_t kPiece = 16384;  // elements of a task

// float32 to bytes: x / scale (XNNPACK: x (1 / scale)), halves away from zero (TFLite) or to even, plus zero point.
class Quantize {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor* x = input(node, 0);
    if (!x || x->dtype.code != 2 || x->dtype.bits != 32 || !is_byte(output(node, 0)))
      return refuse("it takes float32 and gives bytes, plain");
    return 1;
  }
  Quantize(const dlas_node* node, const dlas_ctx* ctx)
      : ctx_(ctx), scale_(static_cast<float>(getf(node, "scale", 1))), even_(rounding_of(node) == kFloat) {
    const char* rounding = "";
    api().get_string(node, "rounding", &rounding);
    if (std::string(rounding) == "xnnpack") times_ = 1.0f / scale_, scale_ = 1.0f;
    flip_ = is_signed(output(node, 0)) ? 0x80 : 0;
    zero_point_ = Factor::moved_zero(node);
    ends_ = std::make_unique<Requantization>(node, 1, flip_ != 0);
  }
  size_t workspace() const { return 0; }
  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const int64_t size = size_of(in[0]);
    parallel(ctx_, (size + kPiece - 1) / kPiece, [&](int64_t task, int) {
      const int64_t to = std::min(size, (task + 1) * kPiece);
      int64_t i = task * kPiece;
      const float* x = floats(in[0]);
      uint8_t* y = bytes_of(out[0]);
      for (; i + 4 * VL <= to; i += 4 * VL) block(x + i, y + i, 4 * VL);
      if (i == to) return;
      float rest[4 * VL] = {};
      std::memcpy(rest, x + i, (to - i) * sizeof(float));
      block(rest, y + i, static_cast<int>(to - i));
    });
  }

 private:
  DLAS_INLINE void block(const float* x, uint8_t* y, int count) const {
    VI v[4];
    for (int i = 0; i < 4; ++i) v[i] = nearest(load(x + i * VL) * times_ / scale_) + zero_point_;
    store_bytes<VL>(y, ends_->packed<VL, false>(v), count);
  }
  DLAS_INLINE VI nearest(V v) const {
    v = vmin(vmax(v, splat(-1024.0f)), splat(1024.0f));
    if (even_) return nearest_even<VL>(v, -1024.0f);
    const VI whole = __builtin_convertvector(v, VI);
    const V rest = v - __builtin_convertvector(whole, V);
    return whole - (rest >= 0.5f) + (rest <= -0.5f);  // a comparison that holds is -1
  }

  const dlas_ctx* ctx_;
  float scale_, times_ = 1.0f;
  bool even_;
  uint8_t flip_;
  int zero_point_;
  std::unique_ptr<Requantization> ends_;
};

DLAS_ENTER(Quantize, "Quantize", "quantize");

class Dequantize {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor* y = output(node, 0);
    if (!is_byte(input(node, 0)) || y->dtype.code != 2 || y->dtype.bits != 32)
      return refuse("it takes bytes and gives float32, plain");
    return 1;
  }
  Dequantize(const dlas_node* node, const dlas_ctx* ctx)
      : ctx_(ctx), scale_(static_cast<float>(getf(node, "scale", 1))) {
    flip_ = is_signed(input(node, 0)) ? 0x80 : 0;
    zero_point_ = static_cast<int>(get(node, "x_zero_point", 0)) + (flip_ ? 128 : 0);
  }
  size_t workspace() const { return 0; }
  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const int64_t size = size_of(in[0]);
    parallel(ctx_, (size + kPiece - 1) / kPiece, [&](int64_t task, int) {
      const int64_t to = std::min(size, (task + 1) * kPiece);
      const uint8_t* x = bytes_of(in[0]);
      float* y = floats(out[0]);
      for (int64_t i = task * kPiece; i < to; ++i) y[i] = static_cast<float>((x[i] ^ flip_) - zero_point_) * scale_;
    });
  }

 private:
  const dlas_ctx* ctx_;
  float scale_;
  uint8_t flip_;
  int zero_point_;
};

DLAS_ENTER(Dequantize, "Dequantize", "dequantize");

}  // namespace
}  // namespace dlas::DLAS_NS
