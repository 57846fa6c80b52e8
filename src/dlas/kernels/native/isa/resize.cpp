// Resize along H and W: each output is a weighted sum of a few rows and columns, which were worked out beforehand.

#include "walk.h"

namespace dlas::DLAS_NS {
namespace {

// Which inputs an output along one axis is made of, and by how much: `taps` of each per output.
struct Axis {
  int taps = 1;
  std::vector<int64_t> index;
  std::unique_ptr<Packed> weight;

  void read(const dlas_node* node, const char* name, const DLTensor* weights, int64_t length) {
    index = gets(node, name, {});
    taps = static_cast<int>(static_cast<int64_t>(index.size()) / length);
    weight = std::make_unique<Packed>(index.size());
    std::copy(floats(weights), floats(weights) + index.size(), weight->at);
  }
};

// Inputs: the map, and constants with the weights of rows and columns; the attributes `rows` and `columns` say which.
class Resize {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *y = output(node, 0);
    if (!x || x->dtype.code != 2 || x->dtype.bits != 32) return refuse("resize takes float32");
    if (x->ndim != y->ndim || (x->ndim != 4 && (x->ndim != 5 || x->shape[4] != VL)))
      return refuse("resize takes (N, C, H, W), plain or blocked on both sides");
    for (int k : {1, 2})
      if (!input(node, k) || !input(node, k)->data) return refuse("resize needs its weights");
    return 1;
  }

  Resize(const dlas_node* node, const dlas_ctx* ctx) : ctx_(ctx) {
    const DLTensor* y = output(node, 0);
    rows_.read(node, "rows", input(node, 1), y->shape[2]);
    columns_.read(node, "columns", input(node, 2), y->shape[3]);
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const DLTensor *x = in[0], *y = out[0];
    const int64_t height = y->shape[2], width = y->shape[3];
    parallel(ctx_, y->shape[0] * y->shape[1] * height, [&](int64_t task, int) {
      const int64_t h = task % height, c = task / height % y->shape[1], n = task / height / y->shape[1];
      const float* plane = floats(x) + n * x->strides[0] + c * x->strides[1];
      float* to = floats(out[0]) + n * y->strides[0] + c * y->strides[1] + h * y->strides[2];
      const int64_t* index = columns_.index.data();
      const float* weight = columns_.weight->at;
      for (int64_t w = 0; w < width; ++w, index += columns_.taps, weight += columns_.taps) {
        if (x->ndim == 5)
          store(to + w * VL, one<V>(plane, x->strides[2], h, index, weight));
        else
          to[w] = one<float>(plane, x->strides[2], h, index, weight);
      }
    });
  }

 private:
  template <class T>
  DLAS_INLINE T one(const float* plane, int64_t pitch, int64_t h, const int64_t* index, const float* weight) const {
    constexpr int64_t lanes = sizeof(T) / sizeof(float);
    const auto seen = [](const float* p) {
      if constexpr (lanes == 1)
        return *p;
      else
        return load(p);
    };
    const float* across = rows_.weight->at + h * rows_.taps;
    const int64_t* row = rows_.index.data() + h * rows_.taps;
    // An element that is copied stays what it is, infinite or not.
    if (rows_.taps == 1 && columns_.taps == 1) return seen(plane + row[0] * pitch + index[0] * lanes);
    T sum{};
    for (int i = 0; i < rows_.taps; ++i) {
      T line{};
      for (int j = 0; j < columns_.taps; ++j) line += weight[j] * seen(plane + row[i] * pitch + index[j] * lanes);
      sum += across[i] * line;
    }
    return sum;
  }

  const dlas_ctx* ctx_;
  Axis rows_, columns_;
};

DLAS_ENTER(Resize, "Resize", "resize");

}  // namespace
}  // namespace dlas::DLAS_NS
