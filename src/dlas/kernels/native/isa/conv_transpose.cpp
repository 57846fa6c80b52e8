// Transposed convolution without the products that an upsampled input of zeros would have.
//
// With strides s the output falls into s_h * s_w phases, and each is an ordinary convolution of stride 1 with the taps
// of its own residue. On blocks that convolution is computed as it stands, by the shared register tile: rows outside
// the input are left out; columns outside it are zeros, except where the input is one pixel wide. On plain tensors (few
// output channels, groups that are no whole blocks) vectors of pixels are multiplied by the weights of all taps, and
// the products of a band of rows are added up by phases: MatMul + col2im.

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

  Transposed(const dlas_node* node, const dlas_ctx* ctx) : epilogue_(node), none_(epilogue_), ctx_(ctx) {
    none_.act = kNone;
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

  size_t workspace() const { return api().threads(ctx_) * room_ * sizeof(float); }

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

  // ---- plain: columns[k, i, j][pixel] = weights x pixels for a band of rows, then added up by output row and phase

  void prepare_plain(const float* w, const float* b) {
    taps_ = rows_.kernel * columns_.kernel, products_ = k_ * taps_;
    bias_ = std::make_unique<Packed>(groups_ * k_);
    if (b) std::copy(b, b + groups_ * k_, bias_->at);
    weights_ = std::make_unique<Packed>(groups_ * c_ * products_);  // [group][C][K, KH, KW], as they come
    std::copy(w, w + groups_ * c_ * products_, weights_->at);
    zeros_ = std::make_unique<Packed>(kWide * VL);
    for (int nb = 1; nb <= kWide; ++nb) cuts_[nb] = Cut(1, nb, products_, c_, nb);
    for (int64_t r = 0; r < rows_.stride; ++r) row_taps_.push_back(rows_.taps(r));
    for (int64_t s = 0; s < columns_.stride; ++s) column_taps_.push_back(columns_.taps(s));
    // Zeros between rows of pixels, so that sums of taps need no edges: what is read before and after a row.
    for (int64_t s = 0; s < columns_.stride; ++s) {
      for (int64_t j : column_taps_[s]) {
        const int64_t from = columns_.base(columns_.first(s)) - columns_.back(j);
        before_ = std::max(before_, -from), after_ = std::max(after_, from + columns_.count(s) - columns_.in);
      }
    }
    row_ = columns_.in + std::max(before_, after_);
    width_ = (columns_.out / columns_.stride + 1 + VL) / VL * VL;
    choose();
    for (int64_t c = 0; c < c_; ++c) w_steps_.push_back(c * pitch_), x_steps_.push_back(c * products_);
  }

  void choose() {
    // A band's pixels and columns stay in L2; a band is not so low that most of its rows are its neighbours' as well.
    const auto rows = [&](int64_t band) {
      return std::min(rows_.in, (band - 1 + (rows_.kernel - 1) * rows_.dilation) / rows_.stride + 2);
    };
    const int threads = api().threads(ctx_);
    band_ = rows_.out;
    while (band_ > 4 * (rows_.kernel * rows_.dilation + rows_.stride) &&
           ((products_ + c_) * rows(band_) * row_ > kBand ||
            n_ * groups_ * ((rows_.out + band_ - 1) / band_) < 2 * threads - 2))
      band_ = (band_ + 1) / 2;
    // Two spare vectors: whole ones are written, and equal distances of 4 KiB would fall on the same lines of L1.
    pitch_ = (before_ + rows(band_) * row_ + VL - 1) / VL * VL + 2 * VL;
    room_ = (products_ + c_) * pitch_ + columns_.stride * width_;
  }

  void run_plain(const DLTensor* x, DLTensor* y, float* scratch) const {
    const int64_t bands = (rows_.out + band_ - 1) / band_;
    parallel(ctx_, n_ * groups_ * bands, [&](int64_t task, int thread) {
      const int64_t g = task / bands % groups_, n = task / bands / groups_;
      const int64_t first = task % bands * band_, last = std::min(first + band_, rows_.out);
      // Input rows that the band reads.
      const int64_t reach = (rows_.kernel - 1) * rows_.dilation;
      const int64_t from = std::clamp<int64_t>((first + rows_.pad - reach) / rows_.stride, 0, rows_.in);
      const int64_t to = std::clamp<int64_t>(rows_.base(last - 1) + 1, from, rows_.in);
      float* columns = scratch + thread * room_;
      float* pixels = columns + products_ * pitch_;
      float* lines = pixels + c_ * pitch_;
      const float* image = floats(x) + n * x->strides[0];
      copy(image + g * c_ * x->strides[1] + from * x->strides[2], image + x->strides[0], x->strides, to - from, pixels);
      multiply(pixels, before_ + (to - from) * row_ - row_ + columns_.in + after_, weights_->at + g * c_ * products_, columns);
      for (int64_t k = 0; k < k_; ++k)
        for (int64_t o = first; o < last; ++o)
          add_up(columns + k * taps_ * pitch_ + before_, o, from, bias_->at[g * k_ + k], lines,
                 floats(y) + n * y->strides[0] + (g * k_ + k) * y->strides[1] + o * y->strides[2]);
    });
  }

  // Whole vectors, in order: what one writes behind its row the next overwrites. Nothing is read behind `end`.
  void copy(const float* x, const float* end, const int64_t* strides, int64_t rows, float* to) const {
    for (int64_t c = 0; c < c_; ++c, to += pitch_) {
      std::fill(to, to + before_, 0.0f);
      float* row = to + before_;
      for (int64_t r = 0; r < rows; ++r, row += row_) {
        const float* from = x + c * strides[1] + r * strides[2];
        int64_t i = 0;
        for (; i < columns_.in && end - from >= i + VL; i += VL) store(row + i, load(from + i));
        for (; i < columns_.in; ++i) row[i] = from[i];
        for (i = columns_.in; i < row_; i += VL) store(row + i, V{});
      }
      for (; row < to + pitch_ - VL; row += VL) store(row, V{});
    }
  }

  void multiply(const float* pixels, int64_t count, const float* weights, float* columns) const {
    TileJob job{};
    job.bias = zeros_->at, job.epilogue = &none_, job.steps = x_steps_.data(), job.w_steps = w_steps_.data();
    job.count = c_, job.y_block = VL, job.y_pixel = pitch_;
    for (int64_t m = 0, nb; m < count; m += nb * VL) {
      nb = std::min<int64_t>(kWide, (count - m + VL - 1) / VL);
      job.w = pixels + m;
      for (int t = 0; t < cuts_[nb].tiles; ++t) {
        job.x = weights + cuts_[nb].from(t);
        job.y = columns + cuts_[nb].from(t) * pitch_ + m;
        cuts_[nb].run(t, job);
      }
    }
  }

  // One output row of one channel; `first_row` is the input row of the first column.
  void add_up(const float* columns, int64_t o, int64_t first_row, float bias, float* lines, float* y) const {
    const int64_t base = rows_.base(o), stride = columns_.stride;
    const auto& taps = row_taps_[rows_.phase(o)];
    const auto range = rows_.range(taps, base, 1);
    for (int64_t phase = 0; phase < stride; ++phase) {
      const int64_t count = columns_.count(phase), first = columns_.first(phase), left = columns_.base(first);
      float* line = lines + first * width_;
      for (int64_t m = 0; m < count; m += VL) {
        V sum = splat(bias);
        for (int i = range.first; i < range.second; ++i) {
          const float* row = columns + taps[i] * columns_.kernel * pitch_ +
                             (base - rows_.back(taps[i]) - first_row) * row_ + left + m;
          for (int64_t j : column_taps_[phase]) sum += load(row + j * pitch_ - columns_.back(j));
        }
        store(line + m, sum);
      }
    }
    const int64_t whole = columns_.out / stride;
    if (stride == 1) {
      std::copy(lines, lines + whole, y);
    } else if (stride == 2) {
      const float* odd = lines + width_;
      for (int64_t m = 0; m < whole; ++m) y[2 * m] = lines[m], y[2 * m + 1] = odd[m];
    } else {
      for (int64_t m = 0; m < whole; ++m)
        for (int64_t s = 0; s < stride; ++s) y[m * stride + s] = lines[s * width_ + m];
    }
    for (int64_t s = whole * stride; s < columns_.out; ++s) y[s] = lines[s % stride * width_ + whole];
    if (epilogue_.act) epilogue_.over(y, columns_.out);
  }

  static constexpr int kWide = 4;
  static constexpr int64_t kBand = 160 * 1024;  // floats
  Epilogue epilogue_, none_;
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
  int64_t taps_ = 0, products_ = 0, before_ = 0, after_ = 0, row_ = 0, band_ = 0, pitch_ = 0, width_ = 0;
  int64_t room_ = 0;
  Cut cuts_[kWide + 1];
  std::vector<int64_t> x_steps_, w_steps_;
  std::vector<std::vector<int64_t>> row_taps_, column_taps_;
  std::unique_ptr<Packed> zeros_;
};

DLAS_ENTER(Transposed, "ConvTranspose", "transpose-col2im");

}  // namespace
}  // namespace dlas::DLAS_NS
