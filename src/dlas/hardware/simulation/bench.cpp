// Drives one accelerator: words in, words out, counters at the end. One call runs a whole stream, so that Python is
// never crossed per cycle. VTOP, COUNTERS and READ_COUNTERS come from the command line and from counters.h.
#include <cstdint>
#include <cstring>

#include "Vtop.h"
#include "counters.h"
#include "verilated.h"

// Verilator spells the "__" of a port's name as "___05F": "__" is its own.

namespace {

struct Bench {
  VerilatedContext context;
  Vtop top{&context};
  uint64_t lots = 0;

  // Whether a side that hesitates moves this cycle: one of 256 tickets against `odds`.
  bool moves(uint32_t odds) {
    if (!odds) return true;
    lots ^= lots << 13, lots ^= lots >> 7, lots ^= lots << 17;
    return (lots >> 20 & 255) >= odds;
  }

  void tick() {
    top.clk = 1;
    top.eval();
    top.clk = 0;
  }
};

}  // namespace

extern "C" {

void* dlas_open() {
  auto* bench = new Bench;
  bench->top.clk = 0;
  bench->top.rst = 1;
  for (int i = 0; i < 4; i++) bench->top.eval(), bench->tick();
  bench->top.rst = 0;
  return bench;
}

void dlas_close(void* handle) { delete static_cast<Bench*>(handle); }

int dlas_counters() { return COUNTERS; }

// Feeds `count` words of 16 bytes and takes results until the last one. Returns the number of words taken, -1 if
// `limit` cycles pass without an end, -2 if there are more results than `room`, -3 if input is left over at the end.
// `hesitate_in` and `hesitate_out` of 256 cycles, on average, the host neither offers a word nor takes one.
long dlas_run(void* handle, const uint8_t* words, long count, uint8_t* results, long room, uint64_t limit,
              uint32_t hesitate_in, uint32_t hesitate_out, uint64_t seed, uint64_t* cycles, uint32_t* counters) {
  auto& bench = *static_cast<Bench*>(handle);
  auto& top = bench.top;
  bench.lots = seed * 2654435769u + 88172645463325252ull;
  long sent = 0, taken = 0;
  bool offered = false, ended = false;
  uint64_t cycle = 0;
  uint32_t before[COUNTERS], after[COUNTERS];
  top.eval();
  READ_COUNTERS(top, before);
  for (; !ended; cycle++) {
    if (cycle == limit) return -1;
    if (sent < count && (offered || bench.moves(hesitate_in))) {
      if (!offered) std::memcpy(top.source___05Fdata.data(), words + 16 * sent, 16);
      offered = true;
    }
    top.source___05Fvalid = offered;
    top.source___05Flast = sent == count - 1;
    top.sink___05Fready = bench.moves(hesitate_out);
    top.eval();
    if (top.sink___05Fvalid && top.sink___05Fready) {
      if (taken == room) return -2;
      std::memcpy(results + 16 * taken++, top.sink___05Fdata.data(), 16);
      ended = top.sink___05Flast;
    }
    if (offered && top.source___05Fready) offered = false, sent++;
    bench.tick();
  }
  top.source___05Fvalid = 0;
  top.eval();
  READ_COUNTERS(top, after);
  for (int i = 0; i < COUNTERS; i++) counters[i] = after[i] - before[i];
  *cycles = cycle;
  return sent < count ? -3 : taken;
}
}
