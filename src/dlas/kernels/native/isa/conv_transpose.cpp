// Transposed convolution without the products that an upsampled input of zeros would have.
//
// With strides s the output falls into s_h * s_w phases, and each is an ordinary convolution of stride 1 with the taps
// of its own residue: MatMul + col2im, but gathered, so that nothing is added up in memory. Rows outside the input are
// left out; columns outside it are zeros, except where the input is one pixel wide.
// Two forms: blocked (a vector of output channels, the shared register tile) and plain (a vector of the pixels of one
// phase, for few output channels and for groups that are no whole blocks).

#include <algorithm>
#include <map>
#include <tuple>

#include "conv_tile.h"

namespace dlas::DLAS_NS {
namespace {

int64_t floor_mod(int64_t a, int64_t b) { return (a % b + b) % b; }

// One axis: output o reads, for each tap t of its phase, input (o + pad - t * dilation) / stride.
struct Axis {
  int64_t in, out, kernel, stride, dilation, pad;

  int64_t phase(int64_t o) const { return (o + pad) % stride; }
  int64_t first(int64_t phase) const { return floor_mod(phase - pad, stride); }  // output of the phase
  int64_t count(int64_t phase) const { return std::max<int64_t>(0, (out - first(phase) + stride - 1) / stride); }
  int64_t base(int64_t o) const { return (o + pad) / stride; }
  // Taps of a phase, in order, and how far before the base each reads.
  std::vector<int64_t> taps(int64_t phase) const {
    std::vector<int64_t> found;
    for (int64_t t = 0; t < kernel; ++t)
      if (t * dilation % stride == phase) found.push_back(t);
    return found;
  }
  int64_t back(int64_t tap) const { return tap * dilation / stride; }
  // The taps [from, to) of `taps` that read inside the input for some output based in [base, base + outputs).
  std::pair<int, int> range(const std::vector<int64_t>& taps, int64_t base, int64_t outputs) const {
    int from = 0, to = static_cast<int>(taps.size());
    while (from < to && base - back(taps[from]) >= in) ++from;
    while (to > from && base + outputs - 1 - back(taps[to - 1]) < 0) --to;
    return {from, to};
  }
};

class Transposed {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0);
    if (!x || !w || !w->data) return refuse("transpose-col2im needs constant weights");
    if (x->ndim != y->ndim || (x->ndim != 4 && x->ndim != 5))
      return refuse("transpose-col2im needs input and output both plain or both blocked");
    if (x->ndim == 4) return 1;
    const int64_t groups = get(node, "group", 1);
    if (x->shape[4] != VL || y->shape[4] != VL) return refuse("transpose-col2im needs blocks of one vector");
    if (groups > 1 && (w->shape[0] / groups % VL || w->shape[1] % VL))
      return refuse("transpose-col2im on blocks needs groups of whole blocks of channels");
    return 1;
  }

  Transposed(const dlas_node* node, const dlas_ctx* ctx) : epilogue_(node), ctx_(ctx) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *y = output(node, 0);
    const Window v(node);
    groups_ = get(node, "group", 1);
    n_ = x->shape[0], c_ = w->shape[0] / groups_, k_ = w->shape[1];
    rows_ = {x->shape[2], y->shape[2], v.kh, v.sh, v.dh, v.top};
    columns_ = {x->shape[3], y->shape[3], v.kw, v.sw, v.dw, v.left};
    blocked_ = x->ndim == 5;
    const DLTensor* b = input(node, 2);
    blocked_ ? prepare_blocked(floats(w), floats(b), x) : prepare_plain(floats(w), floats(b));
  }

  size_t workspace() const { return blocked_ ? 0 : (frame_ + api().threads(ctx_) * line_) * sizeof(float); }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void* scratch) {
    if (blocked_) run_blocked(in[0], out[0]);
    else run_plain(in[0], out[0], static_cast<float*>(scratch));
  }

 private:
  // ---- blocked

  struct Steps {
    std::vector<int64_t> x, w;
  };
  struct Piece {  // pixels [from, from + count) of a column phase
    int64_t from, count, phase;
    Tile tile;
  };
  struct Line {  // an output row
    int64_t base, kind;
  };

  void prepare_blocked(const float* w, const float* b, const DLTensor* x) {
    cb_ = (c_ + VL - 1) / VL, kb_ = (k_ + VL - 1) / VL;
    const int64_t widest = columns_.count(columns_.phase(0));
    nb_ = Cut(VL, kb_, widest, cb_ * VL).blocks;
    const int64_t most = columns_.in == 1 ? 1 : kPixels[nb_];
    for (int64_t phase = 0; phase < columns_.stride; ++phase) {
      const int64_t count = columns_.count(phase), tiles = (count + most - 1) / most;
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t from = count * t / tiles, size = count * (t + 1) / tiles - from;
        pieces_.push_back({from, size, phase, tile_of(VL, nb_, static_cast<int>(size))});
      }
    }
    // Weights: [group][chunk][row phase][column phase][tap][tap][C/B][B][NB][B], that is a slab for each pair of taps.
    slab_ = cb_ * VL * nb_ * VL;
    std::map<std::pair<int64_t, int64_t>, int64_t> slabs;
    for (int64_t r = 0; r < rows_.stride; ++r)
      for (int64_t s = 0; s < columns_.stride; ++s)
        for (int64_t i : rows_.taps(r))
          for (int64_t j : columns_.taps(s)) slabs.insert({{i, j}, static_cast<int64_t>(slabs.size())});
    chunk_ = static_cast<int64_t>(slabs.size()) * slab_;
    pack_blocked(w, b, slabs);
    // Rows with the same taps share their tables of steps.
    std::map<std::tuple<int64_t, int, int>, int64_t> kinds;
    for (int64_t o = 0; o < rows_.out; ++o) {
      const int64_t phase = rows_.phase(o), base = rows_.base(o);
      const auto taps = rows_.taps(phase);
      const auto [from, to] = rows_.range(taps, base, 1);
      const auto [found, fresh] = kinds.insert({{phase, from, to}, static_cast<int64_t>(kinds.size())});
      lines_.push_back({base, found->second});
      if (!fresh) continue;
      for (const Piece& piece : pieces_) {
        steps_.emplace_back();
        const auto across = columns_.taps(piece.phase);
        const int64_t left = columns_.base(columns_.first(piece.phase)) + piece.from;
        const auto [first, last] = columns_.range(across, left, piece.count);
        for (int i = from; i < to; ++i)
          for (int j = first; j < last; ++j)
            for (int64_t c = 0; c < cb_; ++c) {
              steps_.back().x.push_back(c * x->strides[1] - rows_.back(taps[i]) * x->strides[2] +
                                        (left - columns_.back(across[j])) * VL);
              steps_.back().w.push_back(slabs[{taps[i], across[j]}] * slab_ + c * VL * nb_ * VL);
            }
      }
    }
    const int threads = api().threads(ctx_);
    const int64_t chunks = n_ * groups_ * (kb_ / nb_);
    bands_ = 1;
    while (threads > 1 && chunks * bands_ % threads && chunks * bands_ < 8 * threads && bands_ < rows_.out) ++bands_;
  }

  void pack_blocked(const float* w, const float* b, const std::map<std::pair<int64_t, int64_t>, int64_t>& slabs) {
    const int64_t chunks = kb_ / nb_;
    weights_ = std::make_unique<Packed>(groups_ * chunks * chunk_);
    bias_ = std::make_unique<Packed>(groups_ * kb_ * VL);
    for (int64_t g = 0; g < groups_; ++g) {
      for (int64_t k = 0; k < k_; ++k) {
        const int64_t block = k / VL;
        if (b) bias_->at[(g * kb_ + block) * VL + k % VL] = b[g * k_ + k];
        float* to = weights_->at + (g * chunks + block / nb_) * chunk_ + block % nb_ * VL + k % VL;
        for (const auto& [taps, at] : slabs)
          for (int64_t c = 0; c < c_; ++c)
            to[at * slab_ + c * nb_ * VL] =
                w[(((g * c_ + c) * k_ + k) * rows_.kernel + taps.first) * columns_.kernel + taps.second];
      }
    }
  }

  void run_blocked(const DLTensor* x, DLTensor* y) const {
    const int64_t chunks = kb_ / nb_;
    parallel(ctx_, n_ * groups_ * chunks * bands_, [&](int64_t task, int) {
      const int64_t band = task % bands_, chunk = task / bands_ % (groups_ * chunks);
      const int64_t n = task / bands_ / (groups_ * chunks), g = chunk / chunks, block = g * kb_ + chunk % chunks * nb_;
      TileJob job{};
      job.w = weights_->at + chunk * chunk_, job.bias = bias_->at + block * VL, job.epilogue = &epilogue_;
      job.y_block = y->strides[1], job.y_pixel = columns_.stride * VL;
      const float* from = floats(x) + n * x->strides[0] + g * cb_ * x->strides[1];
      float* to = floats(y) + n * y->strides[0] + block * y->strides[1];
      const int64_t first = rows_.out * band / bands_, last = rows_.out * (band + 1) / bands_;
      const int64_t count = static_cast<int64_t>(pieces_.size());
      // Rows and pieces of one phase follow each other, because they share their weights.
      for (int64_t phase = 0; phase < rows_.stride; ++phase) {
        for (int64_t p = 0; p < count;) {
          int64_t end = p;
          while (end < count && pieces_[end].phase == pieces_[p].phase) ++end;
          for (int64_t o = first + floor_mod(rows_.first(phase) - first, rows_.stride); o < last; o += rows_.stride) {
            for (int64_t q = p; q < end; ++q) {
              const Steps& steps = steps_[lines_[o].kind * count + q];
              job.steps = steps.x.data(), job.w_steps = steps.w.data(), job.count = static_cast<int64_t>(steps.x.size());
              job.x = from + lines_[o].base * x->strides[2];
              job.y = to + o * y->strides[2] +
                      (columns_.first(pieces_[q].phase) + pieces_[q].from * columns_.stride) * VL;
              pieces_[q].tile(job);
            }
          }
          p = end;
        }
      }
    });
  }

  // ---- plain

  struct Filters {  // neighbouring output channels of a group
    int64_t k, count, weights;
  };

  void prepare_plain(const float* w, const float* b) {
    bias_ = std::make_unique<Packed>(groups_ * k_);
    if (b) std::copy(b, b + groups_ * k_, bias_->at);
    for (int64_t j = 0; j < columns_.kernel; ++j)
      before_ = std::max(before_, columns_.back(j) - columns_.base(columns_.first(j * columns_.dilation % columns_.stride)));
    const int64_t widest = (columns_.out + columns_.stride - 1) / columns_.stride;
    width_ = (widest + VL - 1) / VL * VL;
    const int64_t after = std::max<int64_t>(columns_.in, columns_.base(columns_.stride - 1) + width_);
    pitch_ = (before_ + after + VL) / VL * VL;
    frame_ = (groups_ * c_ * rows_.in * pitch_ + 15) / 16 * 16;
    line_ = kFilters * width_ * columns_.stride;
    const int64_t taps = rows_.kernel * columns_.kernel;
    weights_ = std::make_unique<Packed>(groups_ * c_ * k_ * taps);
    for (int64_t g = 0, at = 0; g < groups_; ++g) {
      for (int64_t k = 0, count; k < k_; k += count) {
        count = std::min<int64_t>(kFilters, k_ - k);
        filters_.push_back({g * k_ + k, count, at});
        for (int64_t c = 0; c < c_; ++c)
          for (int64_t t = 0; t < taps; ++t)
            for (int64_t f = 0; f < count; ++f) weights_->at[at++] = w[((g * c_ + c) * k_ + k + f) * taps + t];
      }
    }
    for (int64_t r = 0; r < rows_.stride; ++r) row_taps_.push_back(rows_.taps(r));
    for (int64_t s = 0; s < columns_.stride; ++s) column_taps_.push_back(columns_.taps(s));
  }

  void run_plain(const DLTensor* x, DLTensor* y, float* scratch) const {
    const int64_t channels = groups_ * c_, count = static_cast<int64_t>(filters_.size());
    for (int64_t n = 0; n < n_; ++n) {
      parallel(ctx_, channels * rows_.in, [&](int64_t row, int) {
        float* to = scratch + row * pitch_;
        const float* from = floats(x) + n * x->strides[0] + row / rows_.in * x->strides[1] + row % rows_.in * x->strides[2];
        std::fill(to, to + before_, 0.0f);
        std::copy(from, from + columns_.in, to + before_);
        std::fill(to + before_ + columns_.in, to + pitch_, 0.0f);
      });
      parallel(ctx_, count * rows_.out, [&](int64_t task, int thread) {
        const Filters& filters = filters_[task / rows_.out];
        row_of(filters, task % rows_.out, scratch, scratch + frame_ + thread * line_,
               floats(y) + n * y->strides[0] + filters.k * y->strides[1] + task % rows_.out * y->strides[2],
               y->strides[1]);
      });
    }
  }

  // One output row of some filters: each phase into its own line, then every line to its place.
  void row_of(const Filters& filters, int64_t o, const float* frame, float* lines, float* y, int64_t y_channel) const {
    const int64_t base = rows_.base(o);
    const auto& taps = row_taps_[rows_.phase(o)];
    const auto range = rows_.range(taps, base, 1);
    const float* x = frame + filters.k / k_ * c_ * rows_.in * pitch_ + base * pitch_ + before_;
    for (int64_t phase = 0; phase < columns_.stride; ++phase) {
      const int64_t count = columns_.count(phase), first = columns_.first(phase);
      float* line = lines + phase * kFilters * width_;
      const Part part{&taps, &column_taps_[phase], range, x + columns_.base(first), weights_->at + filters.weights,
                      bias_->at + filters.k, line};
      for (int64_t m = 0; m < count;) m += pixels(static_cast<int>(filters.count), part, m, count - m);
      for (int64_t f = 0; f < filters.count; ++f) {
        float* to = y + f * y_channel + first;
        const float* from = line + f * width_;
        if (columns_.stride == 1) std::copy(from, from + count, to);
        else if (columns_.stride == 2) for (int64_t m = 0; m < count; ++m) to[2 * m] = from[m];
        else for (int64_t m = 0; m < count; ++m) to[m * columns_.stride] = from[m];
      }
    }
    if (epilogue_.act)
      for (int64_t f = 0; f < filters.count; ++f) epilogue_.over(y + f * y_channel, columns_.out);
  }

  struct Part {
    const std::vector<int64_t>*row_taps, *column_taps;
    std::pair<int, int> range;
    const float *x, *w, *bias;
    float* line;
  };

  template <int F, int P>
  void multiply(const Part& part, int64_t m) const {
    V acc[F][P];
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) acc[f][p] = splat(part.bias[f]);
    const int64_t taps = rows_.kernel * columns_.kernel;
    for (int64_t c = 0; c < c_; ++c) {
      for (int i = part.range.first; i < part.range.second; ++i) {
        const int64_t tap = (*part.row_taps)[i];
        const float* row = part.x + (c * rows_.in - rows_.back(tap)) * pitch_ + m;
        const float* weights = part.w + (c * taps + tap * columns_.kernel) * F;
        for (int64_t j : *part.column_taps) {
          const float* x = row - columns_.back(j);
          const float* w = weights + j * F;
#pragma GCC unroll 4
          for (int p = 0; p < P; ++p) {
            const V value = load(x + p * VL);
#pragma GCC unroll 4
            for (int f = 0; f < F; ++f) acc[f][p] += value * w[f];
          }
        }
      }
    }
#pragma GCC unroll 4
    for (int f = 0; f < F; ++f)
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) store(part.line + f * width_ + m + p * VL, acc[f][p]);
  }

  template <int F>
  int64_t pixels(const Part& part, int64_t m, int64_t left) const {
    if (left > 2 * VL) return multiply<F, 3>(part, m), 3 * VL;
    if (left > VL) return multiply<F, 2>(part, m), 2 * VL;
    return multiply<F, 1>(part, m), VL;
  }
  int64_t pixels(int filters, const Part& part, int64_t m, int64_t left) const {
    switch (filters) {
      case 1: return pixels<1>(part, m, left);
      case 2: return pixels<2>(part, m, left);
      case 3: return pixels<3>(part, m, left);
      default: return pixels<4>(part, m, left);
    }
  }

  static constexpr int64_t kFilters = 4;
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  bool blocked_;
  int64_t groups_, n_, c_, k_;
  Axis rows_, columns_;
  std::unique_ptr<Packed> weights_, bias_;
  // blocked
  int64_t cb_ = 0, kb_ = 0, slab_ = 0, chunk_ = 0, bands_ = 1;
  int nb_ = 1;
  std::vector<Piece> pieces_;
  std::vector<Line> lines_;
  std::vector<Steps> steps_;  // [kind of row][piece]
  // plain
  int64_t before_ = 0, width_ = 0, pitch_ = 0, frame_ = 0, line_ = 0;
  std::vector<Filters> filters_;
  std::vector<std::vector<int64_t>> row_taps_, column_taps_;
};

DLAS_ENTER(Transposed, "ConvTranspose", "transpose-col2im");

}  // namespace
}  // namespace dlas::DLAS_NS
