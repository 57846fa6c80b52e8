// What this processor can do at most, measured with loops of nothing else.
#pragma once

#include <map>
#include <string>

namespace dlas {

// GFLOP/s of float32 FMA, GOP/s of int8 products, GB/s of reads from a buffer of each size; by name.
std::map<std::string, double> roofline(const std::string& isa, int threads, double seconds);

}  // namespace dlas
