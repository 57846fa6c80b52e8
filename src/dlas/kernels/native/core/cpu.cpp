#include "cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace dlas {

#if defined(__x86_64__)
std::vector<std::string> isa_levels() {
  __builtin_cpu_init();
  std::vector<std::string> found;
  if (__builtin_cpu_supports("x86-64-v4")) found.push_back("x86-64-v4");
  if (__builtin_cpu_supports("x86-64-v3")) found.push_back("x86-64-v3");
#ifdef DLAS_SSE4
  if (__builtin_cpu_supports("x86-64-v2")) found.push_back("x86-64-v2");
#endif
  return found;
}

bool has_vnni() { return __builtin_cpu_supports("avx512vnni") > 0; }

bool has_amx_int8() {
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & (1u << 24)) || !(d & (1u << 25))) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#else
std::vector<std::string> isa_levels() { return {"neon"}; }
bool has_vnni() { return false; }
bool has_amx_int8() { return false; }
#endif

}  // namespace dlas
