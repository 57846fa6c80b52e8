// Grouped convolution on the blocked layout for groups of less than a block, or of no whole number of blocks.
#include "taps.h"

namespace dlas::DLAS_NS {
namespace {

class Gspc : public TapConv<true> {
 public:
  using TapConv::TapConv;
  static int supports(const dlas_node* node) { return TapConv::supports(node, "gspc"); }
};

DLAS_ENTER(Gspc, "Conv", "gspc");

}  // namespace
}  // namespace dlas::DLAS_NS
