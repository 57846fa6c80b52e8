// Functions of single elements, of two tensors that broadcast, and BatchNormalization as one multiplication and one
// addition per element; on plain and blocked tensors. The output may lie where an input of its size lies.

#include "functions.h"
#include "walk.h"

namespace dlas::DLAS_NS {
namespace {

bool is_blocked(const DLTensor* t) { return t->ndim == 5 && t->shape[4] == VL; }

// Lanes of the last block that hold no channel must stay finite, or a later multiplication by 0 would not clear them.
void clear_spare_lanes(const dlas_ctx* ctx, const DLTensor* y, float* data, int64_t channels) {
  const int used = static_cast<int>(channels % VL);
  if (y->ndim != 5 || used == 0) return;
  const int64_t height = y->shape[2], width = y->shape[3];
  float* last = data + (y->shape[1] - 1) * y->strides[1];
  parallel(ctx, y->shape[0] * height, [&](int64_t task, int) {
    float* row = last + task / height * y->strides[0] + task % height * y->strides[2];
    for (int64_t i = 0; i < width; ++i)
      for (int lane = used; lane < VL; ++lane) row[i * VL + lane] = 0;
  });
}

// p and q are the parameters of the function: slope, bounds, alpha and beta.
#define DLAS_UNARY(name, expression) \
  V name##_of(V x, [[maybe_unused]] float p, [[maybe_unused]] float q) { return expression; }

DLAS_UNARY(Relu, activate<kRelu>(x, p, q))
DLAS_UNARY(LeakyRelu, activate<kLeakyRelu>(x, p, q))
DLAS_UNARY(Clip, vmin(splat(q), vmax(splat(p), x)))
DLAS_UNARY(Sigmoid, vsigmoid(x))
DLAS_UNARY(Tanh, vtanh(x))
DLAS_UNARY(HardSwish, activate<kHardSwish>(x, p, q))
DLAS_UNARY(HardSigmoid, activate<kHardSigmoid>(x, p, q))
DLAS_UNARY(Silu, activate<kSilu>(x, p, q))
DLAS_UNARY(Elu, elu_all(x, p))
DLAS_UNARY(Selu, q * elu_all(x, p))
DLAS_UNARY(Erf, erf_all(x))
DLAS_UNARY(Gelu, 0.5f * x * (1.0f + erf_all(x * 0.707106781f)))
DLAS_UNARY(GeluTanh, 0.5f * x * (1.0f + vtanh(0.797884561f * (x + 0.044715f * x * x * x))))
DLAS_UNARY(Exp, exp_all(x))
DLAS_UNARY(Log, log_all(x))
DLAS_UNARY(Sqrt, lanewise<std::sqrt>(x))
DLAS_UNARY(Neg, -x)
DLAS_UNARY(Abs, absolute(x))
DLAS_UNARY(Reciprocal, 1.0f / x)
DLAS_UNARY(Softplus, softplus_all(x))
DLAS_UNARY(Softsign, x / (1.0f + absolute(x)))
DLAS_UNARY(Mish, x * vtanh(softplus_all(x)))
DLAS_UNARY(Floor, lanewise<std::floor>(x))
DLAS_UNARY(Ceil, lanewise<std::ceil>(x))
DLAS_UNARY(Round, lanewise<std::nearbyint>(x))
DLAS_UNARY(Sign, sign_all(x))
DLAS_UNARY(Sin, lanewise<std::sin>(x))
DLAS_UNARY(Cos, lanewise<std::cos>(x))
DLAS_UNARY(Identity, x)
DLAS_UNARY(Square, x * x)
DLAS_UNARY(Cube, x * x * x)

using UnaryRun = void (*)(const float* x, float* y, int64_t count, float p, float q);

template <V (*F)(V, float, float)>
void unary_run(const float* x, float* y, int64_t count, float p, float q) {
  int64_t i = 0;
  for (; i + VL <= count; i += VL) store(y + i, F(load(x + i), p, q));
  const int rest = static_cast<int>(count - i);
  if (rest) store_part(y + i, F(load_part(x + i, rest), p, q), rest);
}

struct NamedUnary {
  const char* op;
  UnaryRun run;
};

const NamedUnary kUnary[] = {
#define DLAS_ROW(name) {#name, unary_run<name##_of>}
    DLAS_ROW(Relu),     DLAS_ROW(LeakyRelu), DLAS_ROW(Clip),       DLAS_ROW(Sigmoid),     DLAS_ROW(Tanh),
    DLAS_ROW(HardSwish), DLAS_ROW(HardSigmoid), DLAS_ROW(Silu),    DLAS_ROW(Elu),         DLAS_ROW(Selu),
    DLAS_ROW(Erf),      DLAS_ROW(Gelu),      DLAS_ROW(GeluTanh),   DLAS_ROW(Exp),         DLAS_ROW(Log),
    DLAS_ROW(Sqrt),     DLAS_ROW(Neg),       DLAS_ROW(Abs),        DLAS_ROW(Reciprocal),  DLAS_ROW(Softplus),
    DLAS_ROW(Softsign), DLAS_ROW(Mish),      DLAS_ROW(Floor),      DLAS_ROW(Ceil),        DLAS_ROW(Round),
    DLAS_ROW(Sign),     DLAS_ROW(Sin),       DLAS_ROW(Cos),        DLAS_ROW(Identity),    DLAS_ROW(Square),
    DLAS_ROW(Cube),
};

UnaryRun find_unary(const std::string& op) {
  for (const auto& row : kUnary)
    if (op == row.op) return row.run;
  return nullptr;
}

// The function is the attribute `function`, or the operator; its parameters are `p` and `q`.
class Unary {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *y = output(node, 0);
    if (!find_unary(function(node))) return refuse("unary has no such function");
    if (!x || x->ndim != y->ndim || x->ndim > kMaxRank) return refuse("unary needs input and output in one layout");
    if (x->dtype.code != 2 || x->dtype.bits != 32) return refuse("unary takes float32");
    return 1;
  }

  Unary(const dlas_node* node, const dlas_ctx* ctx)
      : run_(find_unary(function(node))),
        p_(static_cast<float>(getf(node, "p", 0))),
        q_(static_cast<float>(getf(node, "q", 0))),
        channels_(get(node, "channels", 0)),
        ctx_(ctx) {
    const DLTensor *x = input(node, 0), *y = output(node, 0);
    for (int i = 0; i < y->ndim; ++i) walk_.axis(y->shape[i], {x->strides[i], y->strides[i]});
    walk_.simplify_to_runs();
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const float* x = floats(in[0]);
    float* y = floats(out[0]);
    walk_.runs(ctx_, [&](const int64_t (&at)[2], int64_t count) { run_(x + at[0], y + at[1], count, p_, q_); });
    clear_spare_lanes(ctx_, out[0], y, channels_);
  }

 private:
  static std::string function(const dlas_node* node) {
    const char* name = api().op(node);
    api().get_string(node, "function", &name);
    return name;
  }

  UnaryRun run_;
  float p_, q_;
  int64_t channels_;
  const dlas_ctx* ctx_;
  Walk<2> walk_;
};

DLAS_ENTER(Unary, "Unary", "unary");

#define DLAS_BINARY(name, expression) \
  V name##_of(V a, V b) { return expression; }

V pow_of_lanes(V a, V b) {
  for (int i = 0; i < VL; ++i) a[i] = std::pow(a[i], b[i]);
  return a;
}

DLAS_BINARY(Add, a + b)
DLAS_BINARY(Sub, a - b)
DLAS_BINARY(Mul, a* b)
DLAS_BINARY(Div, a / b)
DLAS_BINARY(Min, a < b ? a : (a != a ? a : b))
DLAS_BINARY(Max, a > b ? a : (a != a ? a : b))
DLAS_BINARY(Pow, pow_of_lanes(a, b))
DLAS_BINARY(PRelu, a > 0.0f ? a : a * b)

// How an operand goes along a run: element by element, or the same vector again and again.
enum Step { kMoves, kStays };

using BinaryRun = void (*)(const float* a, const float* b, float* y, int64_t count, bool splat_constant);

template <V (*F)(V, V), Step SA, Step SB>
void binary_run(const float* a, const float* b, float* y, int64_t count, bool splats) {
  V constant{};
  if constexpr (SA == kStays) constant = splats ? splat(*a) : load(a);
  if constexpr (SB == kStays) constant = splats ? splat(*b) : load(b);
  int64_t i = 0;
  for (; i + VL <= count; i += VL)
    store(y + i, F(SA == kMoves ? load(a + i) : constant, SB == kMoves ? load(b + i) : constant));
  const int rest = static_cast<int>(count - i);
  if (rest)
    store_part(y + i,
               F(SA == kMoves ? load_part(a + i, rest) : constant, SB == kMoves ? load_part(b + i, rest) : constant),
               rest);
}

struct NamedBinary {
  const char* op;
  BinaryRun both, first_stays, second_stays;
};

const NamedBinary kBinary[] = {
#define DLAS_ROW2(name) \
  {#name, binary_run<name##_of, kMoves, kMoves>, binary_run<name##_of, kStays, kMoves>, \
   binary_run<name##_of, kMoves, kStays>}
    DLAS_ROW2(Add), DLAS_ROW2(Sub), DLAS_ROW2(Mul), DLAS_ROW2(Div),
    DLAS_ROW2(Min), DLAS_ROW2(Max), DLAS_ROW2(Pow), DLAS_ROW2(PRelu),
};

const NamedBinary* find_binary(const std::string& op) {
  for (const auto& row : kBinary)
    if (op == row.op) return &row;
  return nullptr;
}

// Strides of an operand along the axes of the output; false where it does not broadcast. Under a blocked output an
// operand of five axes is blocked as well, and any other is plain: with one channel it is repeated over the lanes, a
// constant with several is given as if it were blocked (`packed`).
bool broadcast(const DLTensor* t, const DLTensor* y, int64_t* strides) {
  const bool blocked = is_blocked(y);
  int64_t shape[kMaxRank], from[kMaxRank];
  int rank = t->ndim;
  const int wanted = blocked && rank != 5 ? 4 : y->ndim;
  // An array of no axes may come as one of length 1.
  const int extra = std::max(0, rank - wanted);
  for (int i = 0; i < extra; ++i)
    if (t->shape[i] != 1) return false;
  rank -= extra;
  std::copy_n(t->shape + extra, rank, shape);
  std::copy_n(t->strides + extra, rank, from);
  const int missing = wanted - rank;
  for (int i = wanted - 1; i >= 0; --i) {
    shape[i] = i < missing ? 1 : shape[i - missing];
    from[i] = i < missing ? 0 : from[i - missing];
  }
  if (wanted == 4 && blocked) shape[4] = 1, from[4] = 0;
  for (int i = 0; i < y->ndim; ++i) {
    if (shape[i] != 1 && shape[i] != y->shape[i]) return false;
    strides[i] = shape[i] == 1 ? 0 : from[i];
  }
  return true;
}

// A plain constant with several channels under a blocked output: its values, lane by lane.
struct Repacked {
  std::unique_ptr<Packed> values;
  int64_t shape[5], strides[5];

  Repacked(const DLTensor* t, int64_t channels) {
    int64_t s[4] = {1, 1, 1, 1}, from[4] = {};
    for (int i = 0; i < t->ndim; ++i) {
      s[4 - t->ndim + i] = t->shape[i];
      from[4 - t->ndim + i] = t->strides[i];
    }
    const int64_t blocks = (channels + VL - 1) / VL;
    const int64_t sizes[5] = {s[0], blocks, s[2], s[3], VL};
    int64_t step = 1;
    for (int i = 4; i >= 0; --i) {
      shape[i] = sizes[i];
      strides[i] = step;
      step *= sizes[i];
    }
    values = std::make_unique<Packed>(step);
    for (int64_t n = 0; n < s[0]; ++n)
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t h = 0; h < s[2]; ++h)
          for (int64_t w = 0; w < s[3]; ++w)
            values->at[n * strides[0] + c / VL * strides[1] + h * strides[2] + w * strides[3] + c % VL] =
                floats(t)[n * from[0] + (s[1] == 1 ? 0 : c) * from[1] + h * from[2] + w * from[3]];
  }
};

int64_t channels_of(const DLTensor* t) { return t->ndim >= 3 ? t->shape[t->ndim - 3] : 1; }

class Binary {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *a = input(node, 0), *b = input(node, 1), *y = output(node, 0);
    if (!find_binary(api().op(node))) return refuse("binary has no such operation");
    if (!a || !b || y->ndim > kMaxRank) return refuse("binary takes two operands");
    int stay = 0;
    for (const DLTensor* t : {a, b}) {
      if (t->dtype.code != 2 || t->dtype.bits != 32) return refuse("binary takes float32");
      if (needs_packing(t, y)) {
        if (!t->data) return refuse("binary takes a plain operand of several channels as a constant only");
        continue;
      }
      int64_t strides[kMaxRank];
      if (!broadcast(t, y, strides)) return refuse("the shapes of the operands do not broadcast");
      stay += y->ndim > 0 && strides[y->ndim - 1] == 0 && y->shape[y->ndim - 1] != 1;
    }
    if (stay == 2) return refuse("binary needs an operand that moves along the last axis");
    return 1;
  }

  Binary(const dlas_node* node, const dlas_ctx* ctx)
      : epilogue_(node), channels_(get(node, "channels", 0)), ctx_(ctx) {
    const DLTensor* y = output(node, 0);
    int64_t strides[2][kMaxRank];
    for (int k = 0; k < 2; ++k) {
      const DLTensor* t = input(node, k);
      if (!needs_packing(t, y)) {
        broadcast(t, y, strides[k]);
        continue;
      }
      packed_[k] = std::make_unique<Repacked>(t, channels_);
      DLTensor view = *t;
      view.ndim = 5, view.shape = packed_[k]->shape, view.strides = packed_[k]->strides;
      broadcast(&view, y, strides[k]);
    }
    for (int i = 0; i < y->ndim; ++i) walk_.axis(y->shape[i], {strides[0][i], strides[1][i], y->strides[i]});
    walk_.simplify_to_runs();
    choose(find_binary(api().op(node)), node);
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const float* a = packed_[0] ? packed_[0]->values->at : floats(in[0]);
    const float* b = packed_[1] ? packed_[1]->values->at : floats(in[1]);
    float* y = floats(out[0]);
    walk_.runs(ctx_, [&](const int64_t (&at)[3], int64_t count) {
      if (unary_)
        unary_(a + at[0], y + at[2], count, 0, 0);
      else
        run_(a + at[0], b + at[1], y + at[2], count, splats_);
      if (epilogue_.act) epilogue_.over(y + at[2], count);
    });
    clear_spare_lanes(ctx_, out[0], y, channels_);
  }

 private:
  static bool needs_packing(const DLTensor* t, const DLTensor* y) {
    return is_blocked(y) && t->ndim != 5 && t->ndim <= 4 && channels_of(t) > 1;
  }

  void choose(const NamedBinary* operation, const dlas_node* node) {
    const int last = walk_.rank - 1;
    int64_t a = walk_.stride[0][last], b = walk_.stride[1][last];
    splats_ = true;
    if (walk_.size[last] == VL && last > 0 && a != 0 && b != 0) {
      // One vector per channel block under a row of pixels: the vector is repeated, not its elements.
      const int64_t before[3] = {walk_.stride[0][last - 1], walk_.stride[1][last - 1], walk_.stride[2][last - 1]};
      const bool a_stays = before[0] == 0 && before[1] == VL, b_stays = before[1] == 0 && before[0] == VL;
      if (before[2] == VL && (a_stays || b_stays)) {
        walk_.size[last - 1] *= VL;
        for (auto& stride : walk_.stride) stride[last - 1] = 1;
        (a_stays ? a : b) = 0;
        walk_.stride[a_stays ? 0 : 1][last - 1] = 0;
        --walk_.rank;
        splats_ = false;
      }
    }
    // Both stand still where the run is one element long.
    run_ = b == 0 && (a != 0 || walk_.size[last] == 1) ? operation->second_stays
           : a == 0 && b != 0                         ? operation->first_stays
                                                      : operation->both;
    const DLTensor* exponent = input(node, 1);
    if (std::string(operation->op) != "Pow" || !exponent->data || b != 0) return;
    for (int i = 0; i < exponent->ndim; ++i)
      if (exponent->shape[i] != 1) return;
    const float value = floats(exponent)[0];
    unary_ = value == 2.0f ? find_unary("Square") : value == 3.0f ? find_unary("Cube")
             : value == 0.5f ? find_unary("Sqrt") : value == -1.0f ? find_unary("Reciprocal")
             : value == 1.0f ? find_unary("Identity") : nullptr;
  }

  Epilogue epilogue_;
  int64_t channels_;
  const dlas_ctx* ctx_;
  Walk<3> walk_;
  std::unique_ptr<Repacked> packed_[2];
  BinaryRun run_;
  UnaryRun unary_ = nullptr;
  bool splats_;
};

DLAS_ENTER(Binary, "Add", "binary");
DLAS_ENTER(Binary, "Sub", "binary");
DLAS_ENTER(Binary, "Mul", "binary");
DLAS_ENTER(Binary, "Div", "binary");
DLAS_ENTER(Binary, "Min", "binary");
DLAS_ENTER(Binary, "Max", "binary");
DLAS_ENTER(Binary, "Pow", "binary");
DLAS_ENTER(Binary, "PRelu", "binary");

}  // namespace
}  // namespace dlas::DLAS_NS
