// What this processor can do at most, measured with loops of nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace dlas {

// `fp32` GFLOP/s of FMA; `int8` GOP/s of exact 8-bit products with 32-bit sums and `int8_acc16` with 16-bit sums; where
// there are tiles `amx_int8` and `amx_bf16`; GB/s of reads from a buffer of half of each cache, `read_l1`, `read_l2`,
// `read_l3`, and from memory, `read_dram`; and the bytes of those buffers for each thread, `bytes_l1` and so on.
//
// Each figure is the best of blocks of 1 ms (or one pass over the buffer) in `seconds`: by the processor time of one
// thread, by the clock on the wall for several. Empty where `isa` was not built.
std::map<std::string, double> roofline(const std::string& isa, int threads, double seconds);

// GB/s of reads from a buffer of `bytes` for each thread, measured in the same way; 0 where `isa` was not built.
double read_bandwidth(const std::string& isa, int threads, double seconds, size_t bytes);

// A loop of nothing but one kind of instruction. `run` repeats it and gives a number that depends on every result.
struct Loop {
  const char* name;
  double operations;  // of one repetition
  double (*run)(uint64_t repetitions);
};

// The loops of one instruction set; each of `reads` reads `bytes` (a multiple of 4096) from `at` once. There are several
// because none is the fastest on every processor, and a bound that a kernel passes is none.
struct Loops {
  std::vector<Loop> all;
  std::vector<double (*)(const void* at, size_t bytes)> reads;
};

// Enters what gives the loops of an instruction set; it is called only where the processor has that set.
struct EnterLoops {
  EnterLoops(const char* isa, Loops (*list)());
};

}  // namespace dlas
