// Operators that choose or convert elements: Gather, Where, Cast.

#include <stdexcept>
#include <string>
#include <type_traits>

#include "walk.h"

namespace dlas::DLAS_NS {
namespace {

int64_t bytes_of(const DLTensor* t) { return (t->dtype.bits + 7) / 8; }

// Slices of the data along `axis`, which is not negative, one per index. Negative indices count from the end.
class Gather {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *index = input(node, 1);
    if (!x || !index || index->dtype.code != 0 || index->dtype.bits < 32)
      return refuse("gather takes int32 or int64 indices");
    if (x->dtype.bits != output(node, 0)->dtype.bits) return refuse("gather keeps the dtype");
    return 1;
  }

  Gather(const dlas_node* node, const dlas_ctx* ctx) : ctx_(ctx) {
    const DLTensor *x = input(node, 0), *index = input(node, 1);
    const int axis = static_cast<int>(get(node, "axis", 0));
    for (int i = 0; i < axis; ++i) outer_ *= x->shape[i];
    length_ = x->shape[axis];
    inner_ = bytes_of(x);
    for (int i = axis + 1; i < x->ndim; ++i) inner_ *= x->shape[i];
    for (int i = 0; i < index->ndim; ++i) indices_ *= index->shape[i];
    wide_ = index->dtype.bits == 64;
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const char* x = static_cast<const char*>(in[0]->data);
    char* y = static_cast<char*>(out[0]->data);
    for (int64_t i = 0; i < indices_; ++i) {
      const int64_t index = at(in[1], i);
      if (index < -length_ || index >= length_)
        throw std::runtime_error("index " + std::to_string(index) + " is outside an axis of " + std::to_string(length_));
    }
    const int64_t together = std::max<int64_t>(1, 16384 / std::max<int64_t>(1, inner_));
    const int64_t parts = (indices_ + together - 1) / together;
    parallel(ctx_, outer_ * parts, [&](int64_t task, int) {
      const int64_t o = task / parts, first = task % parts * together;
      for (int64_t i = first; i < std::min(indices_, first + together); ++i) {
        const int64_t index = at(in[1], i);
        std::memcpy(y + (o * indices_ + i) * inner_, x + (o * length_ + (index < 0 ? index + length_ : index)) * inner_,
                    inner_);
      }
    });
  }

 private:
  int64_t at(const DLTensor* index, int64_t i) const {
    return wide_ ? static_cast<const int64_t*>(index->data)[i] : static_cast<const int32_t*>(index->data)[i];
  }

  const dlas_ctx* ctx_;
  int64_t outer_ = 1, length_ = 1, inner_ = 1, indices_ = 1;
  bool wide_ = true;
};

DLAS_ENTER(Gather, "Gather", "gather");

class Where {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *c = input(node, 0), *a = input(node, 1), *b = input(node, 2), *y = output(node, 0);
    if (!c || !a || !b || c->dtype.bits != 8) return refuse("where takes a bool and two tensors");
    if (a->dtype.bits != y->dtype.bits || b->dtype.bits != y->dtype.bits) return refuse("where keeps the dtype");
    for (const DLTensor* t : {c, a, b})
      if (t->ndim > y->ndim || y->ndim > kMaxRank - 1) return refuse("the shapes do not broadcast");
    return 1;
  }

  Where(const dlas_node* node, const dlas_ctx* ctx) : ctx_(ctx), bytes_(bytes_of(output(node, 0))) {
    const DLTensor* y = output(node, 0);
    for (int i = 0; i < y->ndim; ++i) {
      int64_t step[3];
      for (int k = 0; k < 3; ++k) {
        const DLTensor* t = input(node, k);
        const int own = i - (y->ndim - t->ndim);
        step[k] = own < 0 || t->shape[own] == 1 ? 0 : t->strides[own];
      }
      walk_.axis(y->shape[i], {step[0], step[1], step[2], y->strides[i]});
    }
    walk_.simplify();
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    switch (bytes_) {
      case 1: return choose<uint8_t>(in, out[0]);
      case 2: return choose<uint16_t>(in, out[0]);
      case 4: return choose<uint32_t>(in, out[0]);
      default: return choose<uint64_t>(in, out[0]);
    }
  }

 private:
  template <class T>
  void choose(const DLTensor* const* in, DLTensor* out) const {
    const auto* c = static_cast<const uint8_t*>(in[0]->data);
    const auto *a = static_cast<const T*>(in[1]->data), *b = static_cast<const T*>(in[2]->data);
    auto* y = static_cast<T*>(out->data);
    const int last = walk_.rank - 1;
    const int64_t cs = walk_.stride[0][last], as = walk_.stride[1][last], bs = walk_.stride[2][last],
                  ys = walk_.stride[3][last];
    walk_.runs(ctx_, [&](const int64_t (&at)[4], int64_t count) {
      for (int64_t i = 0; i < count; ++i)
        y[at[3] + i * ys] = c[at[0] + i * cs] ? a[at[1] + i * as] : b[at[2] + i * bs];
    });
  }

  const dlas_ctx* ctx_;
  int64_t bytes_;
  Walk<4> walk_;
};

DLAS_ENTER(Where, "Where", "where");

using Convert = void (*)(const void* x, void* y, int64_t count);

template <class From, class To>
void convert(const void* x, void* y, int64_t count) {
  const From* from = static_cast<const From*>(x);
  To* to = static_cast<To*>(y);
#pragma GCC unroll 1
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_same_v<To, bool>)
      to[i] = from[i] != From(0);
    else if constexpr (std::is_floating_point_v<From> && sizeof(To) < 4)
      to[i] = static_cast<To>(static_cast<int32_t>(from[i]));  // wraps, as the reference implementation does
    else
      to[i] = static_cast<To>(from[i]);
  }
}

template <class From>
Convert converter(DLDataType to) {
  const int kind = to.code * 100 + to.bits;
  switch (kind) {
    case 232: return convert<From, float>;
    case 32: return convert<From, int32_t>;
    case 64: return convert<From, int64_t>;
    case 8: return convert<From, int8_t>;
    case 108: return convert<From, uint8_t>;
    case 608: return convert<From, bool>;
    default: return nullptr;
  }
}

Convert converter(DLDataType from, DLDataType to) {
  const int kind = from.code * 100 + from.bits;
  switch (kind) {
    case 232: return converter<float>(to);
    case 32: return converter<int32_t>(to);
    case 64: return converter<int64_t>(to);
    case 8: return converter<int8_t>(to);
    case 108: return converter<uint8_t>(to);
    case 608: return converter<bool>(to);
    default: return nullptr;
  }
}

class Cast {
 public:
  static int supports(const dlas_node* node) {
    if (!input(node, 0) || !converter(input(node, 0)->dtype, output(node, 0)->dtype))
      return refuse("cast knows float32, int8, uint8, int32, int64 and bool");
    return 1;
  }

  Cast(const dlas_node* node, const dlas_ctx* ctx)
      : ctx_(ctx), convert_(converter(input(node, 0)->dtype, output(node, 0)->dtype)) {
    const DLTensor *x = input(node, 0), *y = output(node, 0);
    from_ = bytes_of(x), to_ = bytes_of(y);
    for (int i = 0; i < y->ndim; ++i) count_ *= y->shape[i];
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    constexpr int64_t kPiece = 4096;
    parallel(ctx_, (count_ + kPiece - 1) / kPiece, [&](int64_t task, int) {
      const int64_t first = task * kPiece;
      convert_(static_cast<const char*>(in[0]->data) + first * from_, static_cast<char*>(out[0]->data) + first * to_,
               std::min(kPiece, count_ - first));
    });
  }

 private:
  const dlas_ctx* ctx_;
  Convert convert_;
  int64_t from_, to_, count_ = 1;
};

DLAS_ENTER(Cast, "Cast", "cast");

}  // namespace
}  // namespace dlas::DLAS_NS
