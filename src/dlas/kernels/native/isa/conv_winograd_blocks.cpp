// Winograd's minimal filtering where groups are whole blocks of channels.
//
// A panel of tiles is transformed into scratch that stays in L2; then, for one chunk of output channels after another,
// the (m+2)^2 products [tiles x C] x [C x K] go through the shared register tile, and their sums are transformed back.

#include "conv_tile.h"
#include "winograd.h"

namespace dlas::DLAS_NS {
namespace {

class WinogradBlocks : public WinogradForm {
 public:
  WinogradBlocks(const dlas_node* node, const dlas_ctx* ctx) : WinogradForm(node, ctx), none_(epilogue_) {
    none_.act = kNone;
    kb_ = (K_ / groups_ + VL - 1) / VL, cb_ = (C_ + VL - 1) / VL;
    choose();
    for (int64_t c = 0; c < cb_; ++c) steps_.push_back(c * panel_ * VL);
    pack(floats(input(node, 1)));
    zeros_ = std::make_unique<Packed>(4 * VL);
  }

  size_t workspace() const override {
    const int64_t threads = api().threads(ctx_);
    return ((apart_ ? threads : 1) * points_ * v_step_ + threads * points_ * m_step_) * sizeof(float);
  }

  void run(const DLTensor* x, const DLTensor* add, const DLTensor* y, float* memory) override {
    float* sums = memory + (apart_ ? api().threads(ctx_) : 1) * points_ * v_step_;
    const int64_t chunks = kb_ / cut_[0].blocks, panels = (tiles_ + panel_ - 1) / panel_;
    if (apart_) {
      parallel(ctx_, groups_ * panels, [&](int64_t task, int thread) {
        const int64_t g = task / panels, panel = task % panels;
        float* v = memory + thread * points_ * v_step_;
        for (int64_t c = 0; c < cb_; ++c) there(x, panel, g * cb_ + c, v + c * panel_ * VL, v_step_);
        for (int64_t k = 0; k < chunks; ++k)
          multiply(y, add, panel, g * chunks + k, v, sums + thread * points_ * m_step_);
      });
      return;
    }
    for (int64_t panel = 0; panel < panels; ++panel) {
      parallel(ctx_, cb_, [&](int64_t c, int) { there(x, panel, c, memory + c * panel_ * VL, v_step_); });
      parallel(ctx_, chunks, [&](int64_t k, int thread) {
        multiply(y, add, panel, k, memory, sums + thread * points_ * m_step_);
      });
    }
  }

 private:
  void choose() {
    // An eighth of L2 for the panel: sums, and weights that pass through, need the rest. More tiles where all weights
    // do not fit and would come from further away for every panel.
    const int64_t weights = points_ * cb_ * kb_ * VL * VL * sizeof(float);
    const int64_t most =
        std::max<int64_t>(weights > kL2 ? 16 : 7, kL2 / 8 / (points_ * cb_ * VL * sizeof(float)));
    int64_t panels = (tiles_ + most - 1) / most;
    const int threads = api().threads(ctx_);
    // Threads share the weights of a panel unless every L2 holds them anyway, or each thread has a group of its own.
    apart_ = threads == 1 || groups_ > 1 || (weights <= kL2 && tiles_ >= 8 * threads);
    if (apart_ && groups_ % threads) panels = (panels + threads - 1) / threads * threads;
    panel_ = (tiles_ + panels - 1) / panels;
    const int64_t rest = tiles_ % panel_;
    cut_[0] = Cut(VL, kb_, panel_, cb_ * VL);
    cut_[1] = cut_[0];
    if (rest) cut_[1] = Cut(VL, cut_[0].blocks, rest, cb_ * VL, cut_[0].blocks);
    // One spare vector: equal distances of 4 KiB would fall on the same lines of L1.
    v_step_ = cb_ * panel_ * VL + VL;
    m_step_ = cut_[0].blocks * panel_ * VL + VL;
  }

  // [group and chunk][point][C][block of the chunk][VL]
  void pack(const float* w) {
    const int64_t nb = cut_[0].blocks, outs = K_ / groups_;
    weights_ = std::make_unique<Packed>(groups_ * points_ * cb_ * kb_ * VL * VL);
    double u[36];
    for (int64_t k = 0; k < K_; ++k) {
      const int64_t block = k / outs * kb_ + k % outs / VL;
      for (int64_t c = 0; c < C_; ++c) {
        points(w + (k * C_ + c) * 9, u);
        float* to = weights_->at + ((block / nb * points_ * cb_ * VL + c) * nb + block % nb) * VL + k % outs % VL;
        for (int p = 0; p < points_; ++p) to[p * cb_ * VL * nb * VL] = static_cast<float>(u[p]);
      }
    }
  }

  void multiply(const DLTensor* y, const DLTensor* add, int64_t panel, int64_t chunk, const float* v, float* m) const {
    const Cut& cut = cut_[count(panel) != panel_];
    TileJob job{};
    job.bias = zeros_->at, job.epilogue = &none_, job.steps = steps_.data(), job.count = cb_;
    job.y_block = panel_ * VL, job.y_pixel = VL;
    const int64_t slice = cb_ * VL * cut.blocks * VL;
    for (int p = 0; p < points_; ++p) {
      job.w = weights_->at + (chunk * points_ + p) * slice;
      for (int t = 0; t < cut.tiles; ++t) {
        job.x = v + p * v_step_ + cut.from(t) * VL;
        job.y = m + p * m_step_ + cut.from(t) * VL;
        cut.run(t, job);
      }
    }
    for (int b = 0; b < cut.blocks; ++b) back(y, add, panel, chunk * cut.blocks + b, m + b * panel_ * VL, m_step_);
  }

  static constexpr int64_t kL2 = 1 << 20;
  Epilogue none_;
  int64_t kb_, cb_, v_step_, m_step_;  // blocks of one group
  bool apart_;
  Cut cut_[2];  // of a panel, and of the last one
  std::vector<int64_t> steps_;
  std::unique_ptr<Packed> weights_, zeros_;
};

}  // namespace

std::unique_ptr<WinogradForm> winograd_blocks(const dlas_node* node, const dlas_ctx* ctx) {
  return std::make_unique<WinogradBlocks>(node, ctx);
}

}  // namespace dlas::DLAS_NS
