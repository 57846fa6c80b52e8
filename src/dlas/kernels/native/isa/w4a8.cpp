// The operators of 4-bit weights in column blocks: MatMulW4A8, MatMulNBits of ONNX Runtime, and powers of two.

#include "low_bit.h"

namespace dlas::DLAS_NS {
namespace {

// Inputs: a, packed codes (formats/int4.py), scales, codes that mean 0, bias (the sixth input for MatMulNBits).
class LowBit {
 public:
  static constexpr int64_t kMost = 131072;  // rows that int32 sums hold in any case

  static int supports(const dlas_node* node) {
    const DLTensor *a = input(node, 0), *packed = input(node, 1), *scales = input(node, 2), *y = output(node, 0);
    const int64_t k = get(node, "K", 0), n = get(node, "N", 0), group = get(node, "group_size", 0);
    if (!a || !(is(a, kFloat, 32) || is(a, kInt, 8) || is(a, kUint, 8)) || a->ndim < 1 || a->shape[a->ndim - 1] != k)
      return refuse("the activations must be float32, int8 or uint8 with K columns");
    if (k < 1 || n < 1 || k > kMost) return refuse("K must be within 1 .. 131072 and N positive");
    if (!packed || !packed->data || !is(packed, kUint, 8) || packed->ndim != 3 ||
        packed->shape[0] != (n + kColumns - 1) / kColumns || packed->shape[1] != (k + kRows - 1) / kRows ||
        packed->shape[2] != kBlock)
      return refuse("the packed weights must be constant uint8 of shape (ceil(N/16), ceil(K/8), 64)");
    if (group && (group % kRows || group < 1 || k % group)) return refuse("groups must be multiples of 8 that divide K");
    if (scales ? !is(scales, kFloat, 32) || !scales->data || size(scales) != n * (group ? k / group : 1) : group != 0)
      return refuse("scales must be constant float32, one per group and column");
    if (!scales && is(a, kFloat, 32)) return refuse("float32 activations need scales");
    if (!is(y, scales ? kFloat : kInt, 32)) return refuse("results are float32 with scales, else int32");
    const DLTensor *zeros = input(node, 3), *bias = input(node, bias_index(node));
    if (zeros && (!is(zeros, kUint, 8) || !zeros->data || !scales || size(zeros) != size(scales)))
      return refuse("codes of 0 must be constant uint8, one per scale");
    if (bias && (!is(bias, scales ? kFloat : kInt, 32) || !bias->data || size(bias) != n))
      return refuse("the bias must be constant, one per column, of the dtype of the results");
    const auto table = gets(node, "table", {});
    if (!table.empty() && (table.size() != 16 || zeros)) return refuse("a table has 16 values and no codes of 0");
    for (int64_t value : table)
      if (value < -128 || value > 127) return refuse("the values of a table must fit int8");
    return 1;
  }

  LowBit(const dlas_node* node, const dlas_ctx* ctx) {
    const int64_t k = get(node, "K", 0), n = get(node, "N", 0), group = get(node, "group_size", 0);
    const auto table = gets(node, "table", {});
    const int offset = table.empty() ? 8 : 128, zero_point = static_cast<int>(get(node, "zero_point", 0));
    auto w = std::make_unique<Weights>(k, n, group, table.empty() ? Codes::four : Codes::table, offset);
    for (int i = 0; i < 4 * VL && !table.empty(); ++i) w->table[i] = static_cast<uint8_t>(table[i % 16] + 128);
    const auto* from = static_cast<const uint8_t*>(input(node, 1)->data);
    const int64_t steps = w->steps * w->segments;
    for (int64_t b = 0; b < w->tiling.blocks; ++b)
      for (int64_t s = 0; s < steps; ++s, from += kBlock) std::memcpy(w->step(b, s), from, kBlock);
    if (const DLTensor* scales = input(node, 2))
      w->set_scales([&](int64_t g, int64_t c) { return floats(scales)[g * n + c]; });
    if (const DLTensor* zeros = input(node, 3)) set_zeros(*w, static_cast<const uint8_t*>(zeros->data));
    const DLTensor* a = input(node, 0);
    if (!is(a, kFloat, 32) && (is(a, kUint, 8) ? zero_point != 128 : zero_point != 0)) set_sums(*w, table);
    product_ = std::make_unique<Product>(std::move(w), node, ctx, Quantizer::rows, zero_point,
                                         input(node, bias_index(node)));
  }

  size_t workspace() const { return product_->workspace(); }
  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void* scratch) {
    product_->run(in[0], out[0], scratch);
  }

 private:
  static int bias_index(const dlas_node* node) { return std::strcmp(api().op(node), "MatMulNBits") ? 4 : 5; }
  static int64_t size(const DLTensor* t) {
    int64_t count = 1;
    for (int i = 0; i < t->ndim; ++i) count *= t->shape[i];
    return count;
  }

  static void set_zeros(Weights& w, const uint8_t* zeros) {
    w.zeros = std::make_unique<Bytes>(w.tiling.blocks * w.segments * kColumns);
    for (int64_t g = 0; g < w.segments; ++g)
      for (int64_t c = 0; c < w.n; ++c)
        w.zeros->at[w.tiling.place(c / kColumns, g, w.segments, kColumns) + c % kColumns] = zeros[g * w.n + c];
  }

  static void set_sums(Weights& w, const std::vector<int64_t>& table) {
    w.sums = std::make_unique<Bytes>(w.tiling.blocks * w.segments * kColumns * 4);
    for (int64_t b = 0; b < w.tiling.blocks; ++b) {
      for (int64_t s = 0; s < w.steps * w.segments; ++s) {
        const uint8_t* block = w.step(b, s);
        auto* to = reinterpret_cast<int32_t*>(w.sums->at) + w.tiling.place(b, s / w.steps, w.segments, kColumns);
        for (int i = 0; i < kBlock; ++i) {
          // Rows that only fill the last step meet activations of 0, whatever their codes: they must not count here.
          const int64_t row = s * kRows + i % 4;
          const int low = block[i] & 15, high = block[i] >> 4;
          if (row < w.k) to[i / 4] += table.empty() ? low - 8 : static_cast<int>(table[low]);
          if (row + 4 < w.k) to[i / 4] += table.empty() ? high - 8 : static_cast<int>(table[high]);
        }
      }
    }
  }

  std::unique_ptr<Product> product_;
};

DLAS_ENTER(LowBit, "MatMulW4A8", "w4a8");
DLAS_ENTER(LowBit, "MatMulNBits", "w4a8");
DLAS_ENTER(LowBit, "MatMulPo2", "po2-gemv");

}  // namespace
}  // namespace dlas::DLAS_NS
