// Convolution with unstructured sparse weights: for every weight that is not 0, a splat times vectors of pixels.
//
// `csr-direct` reads the padded input at offsets that stand in place of the column numbers; output rows are as far apart
// as padded rows, and what falls between them is left out when a tile is stored. `csr-gemm` reads gathered columns, which
// are aligned and have no such gaps, but are KH KW times as many bytes.

#include <algorithm>
#include "padded.h"

namespace dlas::DLAS_NS {
namespace {

constexpr int kTile = 8;  // vectors of pixels in registers
constexpr int64_t kPitch = kTile * VL;

struct Entry {
  int32_t at;
  float value;
};

// y (T vectors) = start + sum of value * x[at ...]
template <int T>
__attribute__((noinline)) void row(const Entry* e, const Entry* end, const float* x, float bias, bool resume, bool relu,
                                   float* y) {
  V acc[T];
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) acc[t] = resume ? load(y + t * VL) : splat(bias);
  for (; e < end; ++e) {
    const V value = splat(e->value);
    const float* from = x + e->at;
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[t] += value * load(from + t * VL);
  }
  if (relu) {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) acc[t] = activate<kRelu>(acc[t], 0, 0);
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) store(y + t * VL, acc[t]);
}

using Row = void (*)(const Entry*, const Entry*, const float*, float, bool, bool, float*);

template <int... T>
Row row_of(int vectors, std::integer_sequence<int, T...>) {
  static constexpr Row table[] = {row<T + 1>...};
  return table[vectors - 1];
}

// Weights by passes over the columns, rows within each: a pass of the input stays in the cache for all its rows.
struct Sparse {
  std::vector<Entry> entries;
  std::vector<int64_t> first;  // [pass][row], and one more
  int64_t rows = 0, passes = 1;

  // `at(column)` is the offset that stands for a column; columns [0, width) in passes of `depth`.
  template <class At>
  void pack(const float* w, int64_t count, int64_t width, int64_t depth, const At& at) {
    rows = count;
    passes = std::max<int64_t>(1, (width + depth - 1) / depth);
    for (int64_t p = 0; p < passes; ++p) {
      for (int64_t r = 0; r < rows; ++r) {
        first.push_back(static_cast<int64_t>(entries.size()));
        for (int64_t c = p * depth; c < std::min(width, (p + 1) * depth); ++c)
          if (w[r * width + c] != 0) entries.push_back({static_cast<int32_t>(at(r, c - p * depth, p)), w[r * width + c]});
      }
    }
    first.push_back(static_cast<int64_t>(entries.size()));
  }
  const Entry* begin(int64_t pass, int64_t row) const { return entries.data() + first[pass * rows + row]; }
};

struct Shape {
  explicit Shape(const dlas_node* node)
      : window(node),
        epilogue(node),
        groups(get(node, "group", 1)),
        n(input(node, 0)->shape[0]),
        channels(input(node, 0)->shape[1]),
        area(input(node, 0)->shape[2] * input(node, 0)->shape[3]),
        outs(input(node, 1)->shape[0]),
        ins(input(node, 1)->shape[1]),
        taps(window.kh * window.kw),
        oh(output(node, 0)->shape[2]),
        ow(output(node, 0)->shape[3]),
        padded(window, input(node, 0)->shape[2], input(node, 0)->shape[3], oh, ow) {}

  Window window;
  Epilogue epilogue;
  int64_t groups, n, channels, area, outs, ins, taps, oh, ow;
  Padded padded;
};

int dense_plain(const dlas_node* node, const char* name) {
  const DLTensor *x = input(node, 0), *w = input(node, 1);
  if (!x || !w || x->ndim != 4 || w->ndim != 4 || x->dtype.code != 2 || x->dtype.bits != 32)
    return refuse(std::string(name) + " takes float32 feature maps (N, C, H, W)");
  if (!w->data) return refuse(std::string(name) + " needs constant weights");
  return 1;
}

int64_t rounded(int64_t floats) { return (floats + 15) / 16 * 16; }

// Tiles of nearly equal size over `vectors` vectors.
struct Tiles {
  Tiles() = default;
  Tiles(int64_t vectors, int64_t most) : vectors(vectors), count((vectors + most - 1) / most) {}
  int64_t first(int64_t tile) const { return vectors * tile / count; }
  int64_t vectors = 0, count = 0;
};

class Csr {
 public:
  Csr(const dlas_node* node, const dlas_ctx* ctx, bool gathers)
      : s_(node), ctx_(ctx), threads_(api().threads(ctx)), gathers_(gathers), offsets_(s_.padded.offsets()) {
    const float* w = floats(input(node, 1));
    const int64_t width = s_.ins * s_.taps, per_group = s_.outs / s_.groups;
    const int64_t positions = gathers_ ? s_.oh * s_.ow : (s_.oh - 1) * s_.padded.pitch + s_.ow;
    tiles_ = Tiles((positions + VL - 1) / VL, kTile);
    choose_depth(std::count_if(w, w + s_.outs * width, [](float v) { return v != 0; }));
    weights_.pack(w, s_.outs, width, depth_ * s_.taps, [&](int64_t r, int64_t column, int64_t pass) {
      if (gathers_) return column * kPitch;
      const int64_t channel = r / per_group * s_.ins + pass * depth_ + column / s_.taps;
      return channel * s_.padded.plane + offsets_[column % s_.taps];
    });
    const int64_t tasks = s_.groups * tiles_.count;
    while (threads_ > 1 && tasks * splits_ % threads_ && tasks * splits_ < 8 * threads_ && splits_ < per_group)
      ++splits_;
  }

  size_t workspace() const { return (plane_floats() + threads_ * (panel_floats() + result_floats())) * sizeof(float); }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void* scratch) {
    float *planes = static_cast<float*>(scratch), *own = planes + plane_floats();
    const float *bias = n_in > 2 ? floats(in[2]) : nullptr, *add = n_in > 3 ? floats(in[3]) : nullptr;
    const int64_t per_group = s_.outs / s_.groups, size = s_.outs * s_.oh * s_.ow;
    for (int64_t n = 0; n < s_.n; ++n) {
      const float* x = floats(in[0]) + n * s_.channels * s_.area;
      parallel(ctx_, s_.channels,
               [&](int64_t c, int) { s_.padded.fill(x + c * s_.area, planes + c * s_.padded.plane); });
      parallel(ctx_, s_.groups * splits_ * tiles_.count, [&](int64_t task, int thread) {
        const int64_t tile = task % tiles_.count, split = task / tiles_.count % splits_;
        const int64_t group = task / tiles_.count / splits_;
        float* panel = own + thread * (panel_floats() + result_floats());
        one(planes, tile, group, group * per_group + per_group * split / splits_,
            group * per_group + per_group * (split + 1) / splits_, bias, add ? add + n * size : nullptr,
            floats(out[0]) + n * size, panel, panel + panel_floats());
      });
    }
  }

 private:
  // Pixels of one tile: where they lie in the output, and in padded planes.
  struct Pixels {
    int64_t at, count;
    int runs;
    Run run[kTile * VL];
  };

  // Channels of a pass: so few that what a tile reads of them stays in L1 (gathered, at most twice L1), but enough
  // that a row has some 24 entries, or starting its sum costs more than it saves.
  void choose_depth(int64_t entries) {
    const int64_t reads = gathers_ ? s_.taps * kPitch : kPitch + offsets_.back();
    const int64_t fits = (gathers_ ? 56 : 24) * 1024 / 4 / std::max<int64_t>(1, std::min(reads, s_.padded.plane * s_.taps));
    const int64_t weights = std::max<int64_t>(1, s_.outs * s_.ins);
    const int64_t pays = entries ? (24 * weights + entries - 1) / entries : s_.ins;
    depth_ = std::max(fits, pays);
    if (gathers_) depth_ = std::min(depth_, 512 * 1024 / 4 / (s_.taps * kPitch));
    depth_ = std::max<int64_t>(1, std::min(depth_, s_.ins));
  }

  int64_t plane_floats() const { return rounded(s_.channels * s_.padded.plane + kPitch + VL); }
  int64_t panel_floats() const { return gathers_ ? rounded(depth_ * s_.taps * kPitch + VL) : 0; }
  int64_t result_floats() const { return (weights_.passes > 1 ? s_.outs / s_.groups : 1) * kPitch; }

  // Rows [from, until) of one tile of pixels.
  void one(const float* planes, int64_t tile, int64_t group, int64_t from, int64_t until, const float* bias,
           const float* add, float* y, float* panel, float* results) const {
    const int64_t first = tiles_.first(tile) * VL;
    const int vectors = static_cast<int>(tiles_.first(tile + 1) - tiles_.first(tile));
    const Row kernel = row_of(vectors, std::make_integer_sequence<int, kTile>());
    Pixels pixels;
    find(first, vectors * VL, pixels);
    const float* x = planes + first;
    for (int64_t pass = 0; pass < weights_.passes; ++pass) {
      if (gathers_) {
        const int64_t c = pass * depth_, channels = std::min(depth_, s_.ins - c);
        gather(planes + (group * s_.ins + c) * s_.padded.plane, s_.padded.plane, channels, offsets_, pixels.run,
               pixels.runs, kPitch, panel);
        x = panel;
      }
      const bool last = pass + 1 == weights_.passes;
      for (int64_t r = from; r < until; ++r) {
        float* result = weights_.passes > 1 ? results + (r - from) * kPitch : results;
        kernel(weights_.begin(pass, r), weights_.begin(pass, r + 1), x, bias ? bias[r] : 0.0f, pass > 0,
               last && !add && s_.epilogue.act == kRelu, result);
        if (last) {
          const int64_t at = r * s_.oh * s_.ow + pixels.at;
          leave(pixels, first, result, add ? add + at : nullptr, y + at);
        }
      }
    }
  }

  void find(int64_t first, int64_t width, Pixels& p) const {
    const int64_t area = s_.oh * s_.ow, pitch = s_.padded.pitch;
    const auto place = [&](int64_t at) {
      return gathers_ ? std::min(area, at) : std::min(area, at / pitch * s_.ow + std::min(at % pitch, s_.ow));
    };
    p.at = place(first), p.count = place(first + width) - p.at;
    p.runs = runs_of(p.at, p.count, s_.ow, pitch, p.run);
  }

  // The pixels of a result to where they belong, without what was computed between the rows.
  void leave(const Pixels& p, int64_t first, const float* result, const float* add, float* y) const {
    if (gathers_) {
      std::memcpy(y, result, p.count * sizeof(float));
    } else {
      for (const Run* run = p.run; run < p.run + p.runs; ++run)
        std::memcpy(y + run->to, result + run->from - first, run->length * sizeof(float));
    }
    if (add)
      for (int64_t i = 0; i < p.count; ++i) y[i] += add[i];
    if (s_.epilogue.act > kRelu || (add && s_.epilogue.act)) s_.epilogue.over(y, p.count);
  }

  Shape s_;
  const dlas_ctx* ctx_;
  int64_t threads_;
  bool gathers_;
  std::vector<int64_t> offsets_;
  int64_t depth_ = 1, splits_ = 1;
  Tiles tiles_;
  Sparse weights_;
};

struct Direct : Csr {
  Direct(const dlas_node* node, const dlas_ctx* ctx) : Csr(node, ctx, false) {}
  static int supports(const dlas_node* node) { return dense_plain(node, "csr-direct"); }
};

struct Gathered : Csr {
  Gathered(const dlas_node* node, const dlas_ctx* ctx) : Csr(node, ctx, true) {}
  static int supports(const dlas_node* node) { return dense_plain(node, "csr-gemm"); }
};

DLAS_ENTER(Direct, "Conv", "csr-direct");
DLAS_ENTER(Gathered, "Conv", "csr-gemm");

}  // namespace
}  // namespace dlas::DLAS_NS
