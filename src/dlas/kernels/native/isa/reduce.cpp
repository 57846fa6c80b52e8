// Sums, means and extremes over any axes of a plain tensor, and the place of an extreme along one axis.

#include <limits>

#include "functions.h"
#include "walk.h"

namespace dlas::DLAS_NS {
namespace {

struct Sum {
  static constexpr float first = 0;
  static DLAS_INLINE V take(V sum, V v) { return sum + v; }
};
struct SumSquares {
  static constexpr float first = 0;
  static DLAS_INLINE V take(V sum, V v) { return sum + v * v; }
};
struct SumSizes {
  static constexpr float first = 0;
  static DLAS_INLINE V take(V sum, V v) { return sum + absolute(v); }
};
struct Product {
  static constexpr float first = 1;
  static DLAS_INLINE V take(V product, V v) { return product * v; }
};
struct Highest {
  static constexpr float first = -std::numeric_limits<float>::infinity();
  static DLAS_INLINE V take(V high, V v) { return vmax(v, high); }
};
struct Lowest {
  static constexpr float first = std::numeric_limits<float>::infinity();
  static DLAS_INLINE V take(V low, V v) { return vmin(v, low); }
};

constexpr int64_t kStrip = 256;

// One result from runs along the last axis.
template <class F>
float reduce_runs(const float* x, const Walk<1>& reduced) {
  const int64_t run = reduced.size[reduced.rank - 1];
  V part[4];
  for (auto& p : part) p = splat(F::first);
  float rest = F::first;
  reduced.each(0, reduced.outer(), 1, [&](const int64_t (&at)[1]) {
    const float* from = x + at[0];
    int64_t i = 0;
    for (; i + 4 * VL <= run; i += 4 * VL)
      for (int k = 0; k < 4; ++k) part[k] = F::take(part[k], load(from + i + k * VL));
    for (; i + VL <= run; i += VL) part[0] = F::take(part[0], load(from + i));
    for (; i < run; ++i) rest = F::take(splat(rest), splat(from[i]))[0];
  });
  // Partial results are joined as they are, not squared again.
  using Join = std::conditional_t<F::first == 0, Sum, F>;
  const V all = Join::take(Join::take(part[0], part[1]), Join::take(part[2], part[3]));
  for (int lane = 0; lane < VL; ++lane) rest = Join::take(splat(rest), splat(all[lane]))[0];
  return rest;
}

// `count` neighbouring results, from rows that lie apart.
template <class F>
void reduce_rows(const float* x, float* y, int64_t count, const Walk<1>& reduced) {
  float sum[kStrip + 16];
  std::fill(sum, sum + count, F::first);
  reduced.each(0, reduced.outer(0), 0, [&](const int64_t (&at)[1]) {
    const float* from = x + at[0];
    int64_t i = 0;
    for (; i + VL <= count; i += VL) store(sum + i, F::take(load(sum + i), load(from + i)));
    const int rest = static_cast<int>(count - i);
    if (rest) store_part(sum + i, F::take(load_part(sum + i, rest), load_part(from + i, rest)), rest);
  });
  std::copy(sum, sum + count, y);
}

struct Reduction {
  const char* op;
  float (*runs)(const float*, const Walk<1>&);
  void (*rows)(const float*, float*, int64_t, const Walk<1>&);
};

template <class F>
Reduction reduction(const char* op) {
  return {op, reduce_runs<F>, reduce_rows<F>};
}

const Reduction* find_reduction(const std::string& op) {
  static const Reduction all[] = {
      reduction<Sum>("ReduceSum"),      reduction<Sum>("ReduceMean"),      reduction<SumSquares>("ReduceSumSquare"),
      reduction<SumSquares>("ReduceL2"), reduction<SumSizes>("ReduceL1"),  reduction<Product>("ReduceProd"),
      reduction<Highest>("ReduceMax"),  reduction<Lowest>("ReduceMin"),
  };
  for (const auto& row : all)
    if (op == row.op) return &row;
  return nullptr;
}

// The axes are the attribute `axes`, none negative; the output's shape does not matter, its order does.
class Reduce {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor* x = input(node, 0);
    if (!x || x->dtype.code != 2 || x->dtype.bits != 32) return refuse("reduce takes float32");
    if (!find_reduction(api().op(node)) || x->ndim > kMaxRank - 2) return refuse("reduce has no such operator");
    return 1;
  }

  Reduce(const dlas_node* node, const dlas_ctx* ctx) : ctx_(ctx), reduction_(find_reduction(api().op(node))) {
    const DLTensor* x = input(node, 0);
    const auto axes = gets(node, "axes", {});
    int64_t y_stride[kMaxRank], step = 1, count = 1;
    for (int i = x->ndim - 1; i >= 0; --i) {
      const bool goes = std::find(axes.begin(), axes.end(), i) != axes.end();
      y_stride[i] = step;
      (goes ? count : step) *= x->shape[i];
    }
    bool last_goes = true;
    for (int i = 0; i < x->ndim; ++i) {
      if (x->shape[i] == 1) continue;
      last_goes = std::find(axes.begin(), axes.end(), i) != axes.end();
      if (last_goes)
        reduced_.axis(x->shape[i], {x->strides[i]});
      else
        kept_.axis(x->shape[i], {x->strides[i], y_stride[i]});
    }
    reduced_.simplify();
    kept_.simplify();
    along_runs_ = last_goes;
    const std::string op = reduction_->op;
    mean_ = op == "ReduceMean" ? static_cast<float>(count) : 1.0f;
    root_ = op == "ReduceL2";
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const float* x = floats(in[0]);
    float* y = floats(out[0]);
    if (along_runs_) {
      const int64_t together = std::max<int64_t>(1, 1024 / reduced_.outer(0)), results = kept_.outer(0);
      parallel(ctx_, (results + together - 1) / together, [&](int64_t task, int) {
        kept_.each(task * together, std::min(results, (task + 1) * together), 0, [&](const int64_t (&at)[2]) {
          y[at[1]] = reduction_->runs(x + at[0], reduced_);
          finish(y + at[1], 1);
        });
      });
      return;
    }
    const int64_t run = kept_.size[kept_.rank - 1], strips = (run + kStrip - 1) / kStrip;
    parallel(ctx_, kept_.outer() * strips, [&](int64_t task, int) {
      const int64_t first = task % strips * kStrip, count = std::min(kStrip, run - first);
      kept_.each(task / strips, task / strips + 1, 1, [&](const int64_t (&at)[2]) {
        reduction_->rows(x + at[0] + first, y + at[1] + first, count, reduced_);
        finish(y + at[1] + first, count);
      });
    });
  }

 private:
  void finish(float* y, int64_t count) const {
    if (mean_ != 1)
      for (int64_t i = 0; i < count; ++i) y[i] /= mean_;
    if (root_)
      for (int64_t i = 0; i < count; ++i) y[i] = std::sqrt(y[i]);
  }

  const dlas_ctx* ctx_;
  const Reduction* reduction_;
  Walk<1> reduced_;
  Walk<2> kept_;
  bool along_runs_, root_;
  float mean_;
};

DLAS_ENTER(Reduce, "ReduceSum", "reduce");
DLAS_ENTER(Reduce, "ReduceMean", "reduce");
DLAS_ENTER(Reduce, "ReduceSumSquare", "reduce");
DLAS_ENTER(Reduce, "ReduceL1", "reduce");
DLAS_ENTER(Reduce, "ReduceL2", "reduce");
DLAS_ENTER(Reduce, "ReduceProd", "reduce");
DLAS_ENTER(Reduce, "ReduceMax", "reduce");
DLAS_ENTER(Reduce, "ReduceMin", "reduce");

class ArgExtreme {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *y = output(node, 0);
    if (!x || x->dtype.code != 2 || x->dtype.bits != 32 || y->dtype.bits != 64)
      return refuse("arg-extreme goes from float32 to int64");
    return 1;
  }

  ArgExtreme(const dlas_node* node, const dlas_ctx* ctx)
      : ctx_(ctx),
        last_(get(node, "select_last_index", 0) != 0),
        sign_(std::string(api().op(node)) == "ArgMax" ? 1.0f : -1.0f) {
    const DLTensor* x = input(node, 0);
    const int axis = static_cast<int>(get(node, "axis", 0));
    for (int i = 0; i < axis; ++i) outer_ *= x->shape[i];
    length_ = x->shape[axis];
    for (int i = axis + 1; i < x->ndim; ++i) inner_ *= x->shape[i];
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    int64_t* y = static_cast<int64_t*>(out[0]->data);
    parallel(ctx_, outer_, [&](int64_t task, int) {
      for (int64_t i = 0; i < inner_; ++i) {
        const float* x = floats(in[0]) + task * length_ * inner_ + i;
        int64_t best = 0;
        for (int64_t k = 1; k < length_; ++k) {
          const float now = sign_ * x[k * inner_], before = sign_ * x[best * inner_];
          if (last_ ? now >= before : now > before) best = k;
        }
        y[task * inner_ + i] = best;
      }
    });
  }

 private:
  const dlas_ctx* ctx_;
  bool last_;
  float sign_;
  int64_t outer_ = 1, length_ = 1, inner_ = 1;
};

DLAS_ENTER(ArgExtreme, "ArgMax", "arg-extreme");
DLAS_ENTER(ArgExtreme, "ArgMin", "arg-extreme");

}  // namespace
}  // namespace dlas::DLAS_NS
