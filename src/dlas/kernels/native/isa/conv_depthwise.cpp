// Depthwise convolution on the blocked layout: a vector is one pixel of a block of channels.
#include "taps.h"

namespace dlas::DLAS_NS {
namespace {

class Depthwise : public TapConv<false> {
 public:
  using TapConv::TapConv;
  static int supports(const dlas_node* node) {
    const DLTensor* w = input(node, 1);
    if (w && (w->shape[1] != 1 || w->shape[0] != get(node, "group", 1)))
      return refuse("depthwise needs one channel in and out of every group");
    return TapConv::supports(node, "depthwise");
  }
};

DLAS_ENTER(Depthwise, "Conv", "depthwise");

}  // namespace
}  // namespace dlas::DLAS_NS
