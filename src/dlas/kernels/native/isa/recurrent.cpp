// LSTM and GRU: what the inputs contribute to all gates as one product of matrices for many steps, then step by step a
// strip of gates of VL hidden units at a time: their product with the state, and the new state while it is at hand.
//
// Order of the gates in a row of `z`: [strip][gate][VL]. `lstm-csr` and `gru-csr` leave the zeros of R out: the columns
// of VL rows are kept in slices, one value and one column per lane, that pick from two vectors of the state in registers.

#include <algorithm>
#include <cctype>

#include "gemm.h"

namespace dlas::DLAS_NS {
namespace {

constexpr int kReach = 2 * VL;  // columns that a slice picks from

int64_t rounded(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Some rows of R, ordered by strips of `width` vectors, times a state of `depth` floats.
class States {
 public:
  virtual ~States() = default;
  // `rows` states h (`pitch` apart) times a strip: rows of y, `width` vectors each. `backwards` may begin with the last
  // columns, which the cache still holds.
  virtual void times(int64_t strip, const float* h, int64_t pitch, int rows, bool backwards, float* y) const = 0;
};

// `weight(strip, vector, lane, k)` is an element of R, 0 beyond it.
class Dense : public States {
 public:
  template <class Weight>
  Dense(const dlas_node* node, int64_t strips, int width, int64_t depth, const Weight& weight)
      : epilogue_(node), depth_(depth), width_(width), packed_(strips * depth * width * VL) {
    float* to = packed_.at;
    for (int64_t s = 0; s < strips; ++s)
      for (int64_t k = 0; k < depth; ++k)
        for (int v = 0; v < width; ++v)
          for (int l = 0; l < VL; ++l) *to++ = weight(s, v, l, k);
  }

  void times(int64_t strip, const float* h, int64_t pitch, int rows, bool backwards, float* y) const override {
    const int64_t columns = static_cast<int64_t>(width_) * VL, last = backwards ? depth_ - 1 : 0;
    const int64_t forth = backwards ? -1 : 1;
    const float* b = packed_.at + (strip * depth_ + last) * columns;
    const Product p{rows, depth_, h + last, false, pitch, forth, y, columns, 1, 1, nullptr, 0, 0, nullptr, 0, epilogue_};
    multiply_few(p, 0, rows, b, forth * columns, 0, static_cast<int>(columns));
  }

 private:
  Epilogue epilogue_;
  int64_t depth_;
  int width_;
  Packed packed_;
};

class Slices : public States {
 public:
  template <class Weight>
  Slices(const dlas_node*, int64_t strips, int width, int64_t depth, const Weight& weight) : width_(width) {
    reaches_ = (depth + kReach - 1) / kReach;
    for (int64_t s = 0; s < strips; ++s)
      for (int v = 0; v < width; ++v)
        for (int64_t reach = 0; reach < reaches_; ++reach) {
          first_.push_back(slices());
          pack(reach * kReach, std::min(depth, (reach + 1) * kReach),
               [&](int l, int64_t k) { return weight(s, v, l, k); });
        }
    first_.push_back(slices());
  }

  void times(int64_t strip, const float* h, int64_t pitch, int rows, bool, float* y) const override {
    for (int r = 0; r < rows; ++r, h += pitch)
      for (int v = 0; v < width_; ++v, y += VL) store(y, sum(&first_[(strip * width_ + v) * reaches_], h));
  }

 private:
  V sum(const int64_t* first, const float* h) const {
    V even{}, odd{};
    for (int64_t reach = 0; reach < reaches_; ++reach, h += kReach) {
      const V low = load(h), high = load(h + VL);
      int64_t i = first[reach];
      for (; i + 2 <= first[reach + 1]; i += 2) {
        even += pick(low, high, i) * load(&values_[i * VL]);
        odd += pick(low, high, i + 1) * load(&values_[(i + 1) * VL]);
      }
      if (i < first[reach + 1]) even += pick(low, high, i) * load(&values_[i * VL]);
    }
    return even + odd;
  }

  // A lane of `columns_` holds the columns of four slices. The shuffle takes an index modulo kReach, so that the other
  // three need not be masked out.
  DLAS_INLINE V pick(V low, V high, int64_t i) const {
    const VI four = *reinterpret_cast<const VIu*>(&columns_[i / 4 * VL]);
    return __builtin_shuffle(low, high, four >> static_cast<int>(i % 4 * 8));
  }

  template <class Weight>
  void pack(int64_t from, int64_t until, const Weight& weight) {
    const int64_t begin = slices();
    for (int l = 0; l < VL; ++l) {
      int64_t slice = begin;
      for (int64_t k = from; k < until; ++k) {
        const float value = weight(l, k);
        if (value == 0) continue;
        if (slice == slices()) {
          values_.resize(values_.size() + VL, 0.0f);
          columns_.resize((slices() + 3) / 4 * VL, 0);
        }
        columns_[slice / 4 * VL + l] |= static_cast<int32_t>(k - from) << slice % 4 * 8;
        values_[slice++ * VL + l] = value;
      }
    }
  }

  int64_t slices() const { return static_cast<int64_t>(values_.size() / VL); }

  int width_;
  int64_t reaches_;
  std::vector<int64_t> first_;  // slice of each vector and reach, and one more
  std::vector<int32_t> columns_;
  std::vector<float> values_;
};

enum Kind { kLstm, kGru, kGruReset };  // GRU with the reset gate behind the product with R, or before it

// Weights of one direction.
struct Direction {
  std::unique_ptr<Packed> w, bias, bias_h, peep;  // panels of W; a row of z; one gate; three gates
  std::unique_ptr<States> r, r_h;                 // r_h: the third gate of kGruReset
};

class Recurrent {
 public:
  Recurrent(const dlas_node* node, const dlas_ctx* ctx, bool sparse) : ctx_(ctx), epilogue_(node) {
    const DLTensor *x = input(node, 0), *w = input(node, 1), *r = input(node, 2);
    kind_ = std::string(api().op(node)) == "LSTM" ? kLstm : get(node, "linear_before_reset", 0) ? kGru : kGruReset;
    gates_ = kind_ == kLstm ? 4 : 3;
    t_ = x->shape[0], n_ = x->shape[1], i_ = x->shape[2], h_ = r->shape[2];
    const char* text = "forward";
    api().get_string(node, "direction", &text);
    reverse_ = std::tolower(text[0]) == 'r';
    strips_ = (h_ + VL - 1) / VL;
    pitch_ = rounded(h_, 4 * VL), row_ = strips_ * gates_ * VL;
    chunk_ = std::max<int64_t>(1, std::min(t_, std::max<int64_t>(kRows, 256 * 1024 / 4 / (n_ * row_ + 1)) ));
    // A step of less work than it takes to wake a thread is done by one.
    parallel_ = n_ * gates_ * h_ * h_ > 65536;
    outputs(node);
    for (int64_t d = 0; d < w->shape[0]; ++d) directions_.push_back(pack(node, d, sparse));
  }

  size_t workspace() const { return (rounded(chunk_ * n_ * row_, 16) + 4 * n_ * pitch_) * sizeof(float); }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int n_out, void* scratch) {
    const auto given = [&](int i) { return i < n_in ? in[i] : nullptr; };
    const auto made = [&](int i) { return i >= 0 && i < n_out && out[i] ? floats(out[i]) : nullptr; };
    const auto* lengths = given(4) ? static_cast<const int32_t*>(given(4)->data) : nullptr;
    Step s{};
    s.lengths = lengths;
    float* z = static_cast<float*>(scratch);
    s.h = z + rounded(chunk_ * n_ * row_, 16), s.next = s.h + n_ * pitch_, s.c = s.next + n_ * pitch_;
    s.fed = s.c + n_ * pitch_;
    const int64_t count = static_cast<int64_t>(directions_.size()), size = n_ * h_;
    for (int64_t d = 0; d < count; ++d) {
      const Direction& weights = directions_[d];
      const bool backwards = reverse_ || d == 1;
      std::fill(s.h, s.fed + n_ * pitch_, 0.0f);
      enter(floats(given(5)), d * size, s.h);
      if (kind_ == kLstm) enter(floats(given(6)), d * size, s.c);
      for (int64_t done = 0; done < t_; done += chunk_) {
        const int64_t steps = std::min(chunk_, t_ - done), first = backwards ? t_ - done - steps : done;
        project(weights, floats(in[0]) + first * n_ * i_, steps * n_, z);
        for (int64_t k = 0; k < steps; ++k) {
          s.t = backwards ? first + steps - 1 - k : first + k;
          s.z = z + (s.t - first) * n_ * row_;
          s.y = made(y_) ? made(y_) + (s.t * count + d) * size : nullptr;
          step(weights, s);
          std::swap(s.h, s.next);
        }
      }
      leave(s.h, made(y_h_), d * size);
      leave(s.c, made(y_c_), d * size);
    }
  }

 protected:
  static int fits(const dlas_node* node, const char* name) {
    for (int i : {0, 1, 2}) {
      const DLTensor* t = input(node, i);
      if (!t || t->ndim != 3 || t->dtype.code != 2 || t->dtype.bits != 32)
        return refuse(std::string(name) + " takes float32 sequences (T, N, I) and weights");
      if (i && !t->data) return refuse(std::string(name) + " needs constant weights");
    }
    for (int i : {3, 7})
      if (input(node, i) && !input(node, i)->data) return refuse(std::string(name) + " needs constant biases");
    return 1;
  }

 private:
  struct Step {
    int64_t t;
    const int32_t* lengths;
    float *z, *h, *next, *c, *fed, *y;  // fed: the state behind the reset gate
  };

  // Y has four axes, Y_h and Y_c three; `omitted` numbers the outputs that were left out.
  void outputs(const dlas_node* node) {
    auto omitted = gets(node, "omitted", {});
    if (omitted.empty() && output(node, 0)->ndim == 3) omitted = {0};
    int next = 0, *places[] = {&y_, &y_h_, &y_c_};
    for (int i = 0; i < 3; ++i)
      *places[i] = std::count(omitted.begin(), omitted.end(), i) ? -1 : next++;
  }

  Direction pack(const dlas_node* node, int64_t d, bool sparse) const {
    const float *w = floats(input(node, 1)) + d * gates_ * h_ * i_, *r = floats(input(node, 2)) + d * gates_ * h_ * h_;
    const float *b = floats(input(node, 3)), *p = floats(input(node, 7));
    Direction made;
    made.bias = std::make_unique<Packed>(row_), made.bias_h = std::make_unique<Packed>(pitch_);
    std::vector<float> by_row(row_ * i_, 0.0f);
    for (int64_t g = 0; g < gates_; ++g) {
      for (int64_t u = 0; u < h_; ++u) {
        const int64_t at = place(g, u), from = g * h_ + u;
        std::copy(w + from * i_, w + (from + 1) * i_, &by_row[at * i_]);
        if (!b) continue;
        const float *bw = b + d * 2 * gates_ * h_, *br = bw + gates_ * h_;
        const bool apart = kind_ == kGru && g == 2;
        made.bias->at[at] = bw[from] + (apart ? 0 : br[from]);
        if (apart) made.bias_h->at[u] = br[from];
      }
    }
    made.w = std::make_unique<Packed>(panels(row_) * i_ * kPanel + VL);
    for (int64_t q = 0; q < panels(row_); ++q)
      pack_columns(by_row.data(), 1, i_, i_, q * kPanel, std::min<int64_t>(kPanel, row_ - q * kPanel), kPanel,
                   made.w->at + q * i_ * kPanel);
    if (p && kind_ == kLstm) {
      made.peep = std::make_unique<Packed>(3 * pitch_);
      for (int g = 0; g < 3; ++g) std::copy(p + (d * 3 + g) * h_, p + (d * 3 + g + 1) * h_, made.peep->at + g * pitch_);
    }
    const auto weight = [&](int64_t g, int64_t u, int64_t k) { return u < h_ ? r[(g * h_ + u) * h_ + k] : 0.0f; };
    const int together = kind_ == kGruReset ? 2 : static_cast<int>(gates_);
    made.r = states(node, sparse, strips_, together,
                    [&](int64_t s, int v, int l, int64_t k) { return weight(v, s * VL + l, k); });
    if (kind_ == kGruReset)
      made.r_h = states(node, sparse, pitch_ / VL / 4, 4,
                        [&](int64_t s, int v, int l, int64_t k) { return weight(2, (s * 4 + v) * VL + l, k); });
    return made;
  }

  template <class Weight>
  std::unique_ptr<States> states(const dlas_node* node, bool sparse, int64_t strips, int width, const Weight& w) const {
    if (sparse) return std::make_unique<Slices>(node, strips, width, h_, w);
    return std::make_unique<Dense>(node, strips, width, h_, w);
  }

  int64_t place(int64_t gate, int64_t unit) const { return (unit / VL * gates_ + gate) * VL + unit % VL; }

  void enter(const float* from, int64_t at, float* to) const {
    for (int64_t n = 0; from && n < n_; ++n) std::copy(from + at + n * h_, from + at + (n + 1) * h_, to + n * pitch_);
  }
  void leave(const float* from, float* to, int64_t at) const {
    for (int64_t n = 0; to && n < n_; ++n) std::copy(from + n * pitch_, from + n * pitch_ + h_, to + at + n * h_);
  }

  // z of some steps: what x and the biases contribute.
  void project(const Direction& d, const float* x, int64_t rows, float* z) const {
    if (!rows) return;
    const Product p{rows, i_, x, false, i_, 1, z, row_, 1, 1, d.bias->at, 0, 1, nullptr, 0, epilogue_};
    parallel(ctx_, panels(row_), [&](int64_t panel, int) {
      const int width = static_cast<int>(std::min<int64_t>(kPanel, row_ - panel * kPanel));
      int64_t k = 0;
      do {
        const int64_t until = std::min(i_, k + kDepth);
        multiply(p, 0, row_blocks(rows), d.w->at + (panel * i_ + k) * kPanel, kPanel, panel * kPanel, width, k, until);
        k = until;
      } while (k < i_);
    });
  }

  // Every other step goes through the strips backwards, each thread through its own: the last ones are still in the
  // cache.
  template <class Body>
  void strips(int64_t count, int64_t t, const Body& body) const {
    const int64_t threads = parallel_ ? api().threads(ctx_) : 1;
    const auto one = [&](int64_t thread, int) {
      const int64_t first = count * thread / threads, last = count * (thread + 1) / threads;
      for (int64_t i = first; i < last; ++i) body(t % 2 ? first + last - 1 - i : i);
    };
    parallel(ctx_, threads, one);
  }

  void step(const Direction& d, const Step& s) const {
    if (kind_ == kGruReset) {
      strips(strips_, s.t, [&](int64_t strip) {
        rows(s, *d.r, strip, s.h, 2, [&](int64_t n, const float* y) { reset(s, strip, n, y); });
      });
      strips(pitch_ / VL / 4, s.t, [&](int64_t strip) {
        rows(s, *d.r_h, strip, s.fed, 4, [&](int64_t n, const float* y) {
          for (int64_t v = strip * 4; v < std::min(strips_, strip * 4 + 4); ++v) {
            const float* z = s.z + n * row_ + v * 3 * VL;
            const V update = load(z), g = vtanh(load(z + 2 * VL) + load(y + v % 4 * VL));
            put(s, v, n, g + update * (load(s.h + n * pitch_ + v * VL) - g));
          }
        });
      });
      return;
    }
    strips(strips_, s.t, [&](int64_t strip) {
      rows(s, *d.r, strip, s.h, static_cast<int>(gates_), [&](int64_t n, const float* y) {
        if (kind_ == kLstm) lstm(d, s, strip, n, y);
        else gru(d, s, strip, n, y);
      });
    });
  }

  // The product of a strip with all states, and `then` for each of its rows.
  template <class Then>
  void rows(const Step& s, const States& r, int64_t strip, const float* h, int width, const Then& then) const {
    alignas(64) float y[kFew * kWide * VL];
    for (int64_t n = 0; n < n_; n += kFew) {
      const int count = static_cast<int>(std::min<int64_t>(kFew, n_ - n));
      r.times(strip, h + n * pitch_, pitch_, count, s.t % 2, y);
      for (int i = 0; i < count; ++i) then(n + i, y + i * width * VL);
    }
  }

  void lstm(const Direction& d, const Step& s, int64_t strip, int64_t n, const float* y) const {
    const float* z = s.z + n * row_ + strip * 4 * VL;
    float* cell = s.c + n * pitch_ + strip * VL;
    V gate[4], c = load(cell);
    for (int g = 0; g < 4; ++g) gate[g] = load(z + g * VL) + load(y + g * VL);
    const float* peep = d.peep ? d.peep->at + strip * VL : nullptr;
    if (peep) gate[0] += load(peep) * c, gate[2] += load(peep + 2 * pitch_) * c;
    const V made = vsigmoid(gate[2]) * c + vsigmoid(gate[0]) * vtanh(gate[3]);
    if (peep) gate[1] += load(peep + pitch_) * made;
    if (running(s, n)) store(cell, made);
    put(s, strip, n, vsigmoid(gate[1]) * vtanh(made));
  }

  void gru(const Direction& d, const Step& s, int64_t strip, int64_t n, const float* y) const {
    const float* z = s.z + n * row_ + strip * 3 * VL;
    const V update = vsigmoid(load(z) + load(y)), reset = vsigmoid(load(z + VL) + load(y + VL));
    const V g = vtanh(load(z + 2 * VL) + reset * (load(y + 2 * VL) + load(d.bias_h->at + strip * VL)));
    put(s, strip, n, g + update * (load(s.h + n * pitch_ + strip * VL) - g));
  }

  // The gates of kGruReset: the update gate into z, the state behind the reset gate into `fed`.
  void reset(const Step& s, int64_t strip, int64_t n, const float* y) const {
    float* z = s.z + n * row_ + strip * 3 * VL;
    const int64_t at = n * pitch_ + strip * VL;
    store(s.fed + at, vsigmoid(load(z + VL) + load(y + VL)) * load(s.h + at));
    store(z, vsigmoid(load(z) + load(y)));
  }

  bool running(const Step& s, int64_t n) const { return !s.lengths || s.t < s.lengths[n]; }

  // The new state of a strip; a sequence that is over (or, backwards, has not begun) keeps the old one and gives 0.
  void put(const Step& s, int64_t strip, int64_t n, V made) const {
    const int64_t at = n * pitch_ + strip * VL;
    const bool runs = running(s, n);
    store(s.next + at, runs ? made : load(s.h + at));
    if (s.y)
      store_part(s.y + n * h_ + strip * VL, runs ? made : V{}, static_cast<int>(std::min<int64_t>(VL, h_ - strip * VL)));
  }

  const dlas_ctx* ctx_;
  Epilogue epilogue_;
  Kind kind_;
  bool reverse_, parallel_;
  int64_t gates_, t_, n_, i_, h_, strips_, pitch_, row_, chunk_;
  int y_ = 0, y_h_ = 1, y_c_ = 2;
  std::vector<Direction> directions_;
};

struct DenseLayer : Recurrent {
  DenseLayer(const dlas_node* node, const dlas_ctx* ctx) : Recurrent(node, ctx, false) {}
  static int supports(const dlas_node* node) { return fits(node, "a recurrent layer"); }
};

struct SparseLayer : Recurrent {
  SparseLayer(const dlas_node* node, const dlas_ctx* ctx) : Recurrent(node, ctx, true) {}
  static int supports(const dlas_node* node) { return fits(node, "a sparse recurrent layer"); }
};

DLAS_ENTER(DenseLayer, "LSTM", "lstm");
DLAS_ENTER(DenseLayer, "GRU", "gru");
DLAS_ENTER(SparseLayer, "LSTM", "lstm-csr");
DLAS_ENTER(SparseLayer, "GRU", "gru-csr");

}  // namespace
}  // namespace dlas::DLAS_NS
