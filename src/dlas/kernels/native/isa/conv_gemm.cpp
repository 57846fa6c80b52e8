// Convolution as a product of matrices: the weights times columns of pixels that are gathered panel by panel ("im2col").
//
// A panel holds what one row of register tiles needs, kPanel pixels by all taps, and at most 512 KiB of them, so that it
// never leaves L2. The gathering copies whole vectors and lets the next copy overwrite what was too much.

#include "gemm.h"
#include "padded.h"

namespace dlas::DLAS_NS {
namespace {

constexpr int64_t kMostTaps = 512 * 1024 / 4 / kPanel;  // rows of a panel

class Im2col {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *w = input(node, 1);
    if (!x || !w || x->ndim != 4 || w->ndim != 4 || x->dtype.code != 2 || x->dtype.bits != 32)
      return refuse("im2col-gemm takes float32 feature maps (N, C, H, W)");
    if (!w->data) return refuse("im2col-gemm needs constant weights");
    return 1;
  }

  Im2col(const dlas_node* node, const dlas_ctx* ctx)
      : window_(node),
        epilogue_(node),
        ctx_(ctx),
        threads_(api().threads(ctx)),
        groups_(get(node, "group", 1)),
        n_(input(node, 0)->shape[0]),
        channels_(input(node, 0)->shape[1]),
        area_(input(node, 0)->shape[2] * input(node, 0)->shape[3]),
        oh_(output(node, 0)->shape[2]),
        ow_(output(node, 0)->shape[3]),
        padded_(window_, input(node, 0)->shape[2], input(node, 0)->shape[3], oh_, ow_) {
    const DLTensor* w = input(node, 1);
    m_ = w->shape[0] / groups_, ins_ = w->shape[1], taps_ = window_.kh * window_.kw, k_ = ins_ * taps_;
    weights_ = std::make_unique<Packed>(groups_ * m_ * k_);
    for (int64_t g = 0; g < groups_; ++g)
      pack_rows(floats(w) + g * m_ * k_, k_, 1, m_, k_, 0, row_blocks(m_), weights_->at + g * m_ * k_);
    copies_ = taps_ > 1 || window_.sh > 1 || window_.sw > 1 || window_.top || window_.left || window_.bottom ||
              window_.right;
    offsets_ = padded_.offsets();
    pass_ = std::max<int64_t>(1, std::min(ins_, kMostTaps / taps_));
    panels_ = panels(oh_ * ow_);
    const int64_t tasks = groups_ * panels_;
    while (threads_ > 1 && tasks * splits_ % threads_ && tasks * splits_ < 8 * threads_ && splits_ < row_blocks(m_))
      ++splits_;
  }

  size_t workspace() const { return (plane_floats() + threads_ * panel_floats()) * sizeof(float); }

  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int, void* scratch) {
    float *planes = static_cast<float*>(scratch), *own = planes + plane_floats();
    const float *bias = n_in > 2 ? floats(in[2]) : nullptr, *add = n_in > 3 ? floats(in[3]) : nullptr;
    const int64_t pixels = oh_ * ow_;
    for (int64_t n = 0; n < n_; ++n) {
      const float* x = floats(in[0]) + n * channels_ * area_;
      if (copies_) {
        parallel(ctx_, channels_,
                 [&](int64_t c, int) { padded_.fill(x + c * area_, planes + c * padded_.plane); });
        x = planes;
      }
      parallel(ctx_, groups_ * splits_ * panels_, [&](int64_t task, int thread) {
        const int64_t panel = task % panels_, split = task / panels_ % splits_, g = task / panels_ / splits_;
        const int64_t blocks = row_blocks(m_), at = (n * groups_ + g) * m_ * pixels;
        const Product p{m_, k_, weights_->at + g * m_ * k_, true, 0, 0, floats(out[0]) + at, pixels, 1, 1,
                        bias ? bias + g * m_ : nullptr, 1, 0, add ? add + at : nullptr, pixels, epilogue_};
        columns(p, x + g * ins_ * plane(), panel, blocks * split / splits_, blocks * (split + 1) / splits_,
                own + thread * panel_floats());
      });
    }
  }

 private:
  int64_t plane() const { return copies_ ? padded_.plane : area_; }
  int64_t plane_floats() const { return copies_ ? (channels_ * padded_.plane + VL + 15) / 16 * 16 : 0; }
  int64_t panel_floats() const { return (pass_ * taps_ * kPanel + VL + 15) / 16 * 16; }

  // All taps of the pixels of one panel times blocks of output channels.
  void columns(const Product& p, const float* x, int64_t panel, int64_t first, int64_t last, float* own) const {
    const int64_t from = panel * kPanel;
    const int width = static_cast<int>(std::min<int64_t>(kPanel, oh_ * ow_ - from));
    if (taps_ == 1 && width == kPanel && in_place()) {
      multiply(p, first, last, x + from, plane(), from, width, 0, k_);
      return;
    }
    Run runs[kPanel];
    const int count = taps_ > 1 ? runs_of(from, width, ow_, padded_.pitch, runs) : 0;
    int64_t c = 0;
    do {
      const int64_t until = std::min(ins_, c + pass_);
      if (taps_ == 1)
        pack_columns(x + c * plane(), plane(), 1, until - c, from, width, kPanel, own);
      else
        gather(x + c * plane(), plane(), until - c, offsets_, runs, count, kPanel, own);
      multiply(p, first, last, own, kPanel, from, width, c * taps_, until * taps_);
      c = until;
    } while (c < ins_);
  }

  bool in_place() const { return m_ < 64; }  // fewer products than it costs to pack

  Window window_;
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  int64_t threads_, groups_, n_, channels_, area_, oh_, ow_;
  Padded padded_;
  int64_t m_ = 0, ins_ = 0, taps_ = 0, k_ = 0, pass_ = 1, panels_ = 0, splits_ = 1;
  bool copies_ = false;
  std::vector<int64_t> offsets_;
  std::unique_ptr<Packed> weights_;
};

DLAS_ENTER(Im2col, "Conv", "im2col-gemm");

}  // namespace
}  // namespace dlas::DLAS_NS
