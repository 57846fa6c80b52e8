// How a row of pixels is cut into the tiles that there are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace dlas::DLAS_NS {

// Indices into `sizes` (ascending, the first is 1) whose sizes sum to `pixels`. A tile of P pixels takes about as long
// as P + 2 of them, and those of fewer than `least` wait for their own sums.
inline std::vector<int> cut(int64_t pixels, const int* sizes, int count, int least) {
  std::vector<int64_t> cost(pixels + 1, 0);
  std::vector<int> choice(pixels + 1, 0), found;
  for (int64_t p = 1; p <= pixels; ++p) {
    cost[p] = INT64_MAX;
    for (int i = 0; i < count && sizes[i] <= p; ++i) {
      const int64_t with = cost[p - sizes[i]] + std::max(sizes[i], least) + 2;
      if (with < cost[p]) cost[p] = with, choice[p] = i;
    }
  }
  for (int64_t p = pixels; p > 0; p -= sizes[choice[p]]) found.push_back(choice[p]);
  return found;
}

}  // namespace dlas::DLAS_NS
