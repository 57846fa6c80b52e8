// Winograd's minimal filtering, F(4x4, 3x3) and F(2x2, 3x3), on the blocked layout: what its two forms share.
#pragma once

#include <algorithm>
#include <memory>

#include "layer.h"

namespace dlas::DLAS_NS {

// A convolution cut into tiles; both forms transform there and back alike.
class WinogradForm {
 public:
  virtual ~WinogradForm() = default;
  virtual size_t workspace() const = 0;
  virtual void run(const DLTensor* x, const DLTensor* add, const DLTensor* y, float* scratch) = 0;

 protected:
  WinogradForm(const dlas_node* node, const dlas_ctx* ctx);

  // One window of 3 x 3 to points_ points.
  void points(const float* w, double* u) const;

  int64_t count(int64_t panel) const { return std::min(panel_, tiles_ - panel * panel_); }

  // Block c of the input into v: point p of tile t at v + p * step + t * VL.
  void there(const DLTensor* x, int64_t panel, int64_t c, float* v, int64_t step) const;

  // Sums, laid out likewise, into block k of the output.
  void back(const DLTensor* y, const DLTensor* add, int64_t panel, int64_t k, const float* sums, int64_t step) const;

  Window window_;
  Epilogue epilogue_;
  const dlas_ctx* ctx_;
  int m_, points_;
  int64_t groups_, K_, C_, oh_, ow_, across_, image_, tiles_, panel_ = 0;
  std::unique_ptr<Packed> bias_;

 private:
  template <class Body>
  void each(int64_t panel, const Body& body) const;
  template <int M>
  void there(const DLTensor* x, int64_t panel, int64_t c, float* v, int64_t step) const;
  template <int M>
  void back(const DLTensor* y, const DLTensor* add, int64_t panel, int64_t k, const float* sums, int64_t step) const;
};

// Groups of whole blocks, and one group of any channels.
std::unique_ptr<WinogradForm> winograd_blocks(const dlas_node* node, const dlas_ctx* ctx);

// Groups of less than a block, or of one.
bool winograd_has_lanes(int64_t outs, int64_t ins);
std::unique_ptr<WinogradForm> winograd_lanes(const dlas_node* node, const dlas_ctx* ctx);

}  // namespace dlas::DLAS_NS
