// Counts what a process asks the C library's heap for between two marks, on any of its threads. For LD_PRELOAD.
#include <atomic>
#include <cerrno>
#include <cstddef>

extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

static std::atomic<bool> counting{false};
static std::atomic<long> count{0};
static void note() {
  if (counting.load(std::memory_order_relaxed)) ++count;
}

void* malloc(size_t size) { return note(), __libc_malloc(size); }
void* calloc(size_t items, size_t size) { return note(), __libc_calloc(items, size); }
void* realloc(void* old, size_t size) { return note(), __libc_realloc(old, size); }
void* aligned_alloc(size_t alignment, size_t size) { return note(), __libc_memalign(alignment, size); }
int posix_memalign(void** made, size_t alignment, size_t size) {
  note();
  *made = __libc_memalign(alignment, size);
  return *made ? 0 : ENOMEM;
}

void count_from_here() {
  count = 0;
  counting = true;
}
long counted() {
  counting = false;
  return count;
}
}
