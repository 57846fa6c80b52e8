// Which instruction sets this processor has.
#pragma once

#include <string>
#include <vector>

namespace dlas {

// Built ones that this processor can run, best first: x86-64-v4, x86-64-v3, x86-64-v2, or neon.
std::vector<std::string> isa_levels();
bool has_vnni();
// Also asks the kernel for permission to use the tiles.
bool has_amx_int8();

}  // namespace dlas
