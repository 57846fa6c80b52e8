#include "pool.h"

#include <climits>
#include <ctime>

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dlas {
namespace {

constexpr int64_t kSpinNanoseconds = 50000;

void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake_all(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Each worker has a processor of its own, and the first one allowed is left to the caller: a scheduler that wakes both on
// one processor, while another idles, makes two threads slower than one.
void settle(int thread) {
  cpu_set_t allowed, own;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  const int count = CPU_COUNT(&allowed);
  if (count < 2) return;
  int left = thread % count;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed) || left-- > 0) continue;
    CPU_ZERO(&own);
    CPU_SET(cpu, &own);
    sched_setaffinity(0, sizeof own, &own);  // where it is refused, the scheduler decides
    return;
  }
}

}  // namespace

Pool::Pool(int threads) : threads_(threads < 1 ? 1 : threads) {
  workers_.reserve(threads_ - 1);
  for (int t = 1; t < threads_; ++t) workers_.emplace_back([this, t] { work(t); });
}

Pool::~Pool() {
  stop_.store(true);
  round_.fetch_add(1);
  wake_all(round_);
  for (auto& worker : workers_) worker.join();
}

void Pool::share(int thread) {
  const int64_t first = tasks_ * thread / threads_, last = tasks_ * (thread + 1) / threads_;
  for (int64_t task = first; task < last; ++task) body_(arg_, task, thread);
}

void Pool::parallel_for(int64_t tasks, Body body, void* arg) {
  if (threads_ == 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) body(arg, task, 0);
    return;
  }
  body_ = body;
  arg_ = arg;
  tasks_ = tasks;
  left_.store(threads_ - 1, std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst) > 0) wake_all(round_);
  share(0);
  // On a busy machine a worker may have lost its processor: give ours away rather than burn it.
  for (int spins = 0; left_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < 1000) pause_cpu(); else std::this_thread::yield();
  }
}

void Pool::work(int thread) {
  FlushDenormals flush;
  settle(thread);
  uint32_t seen = 0;
  for (;;) {
    uint32_t round = round_.load(std::memory_order_acquire);
    if (round == seen) {
      const int64_t until = now() + kSpinNanoseconds;
      do {
        for (int i = 0; i < 64 && round == seen; ++i) {
          pause_cpu();
          round = round_.load(std::memory_order_acquire);
        }
      } while (round == seen && now() < until);
      while (round == seen) {
        asleep_.fetch_add(1, std::memory_order_seq_cst);
        if (round_.load(std::memory_order_seq_cst) == seen) sleep_while(round_, seen);
        asleep_.fetch_sub(1, std::memory_order_seq_cst);
        round = round_.load(std::memory_order_acquire);
      }
    }
    if (stop_.load()) return;
    seen = round;
    share(thread);
    left_.fetch_sub(1, std::memory_order_release);
  }
}

#if defined(__x86_64__)
FlushDenormals::FlushDenormals() : saved_(_mm_getcsr()) { _mm_setcsr(static_cast<unsigned>(saved_) | 0x8040); }
FlushDenormals::~FlushDenormals() { _mm_setcsr(static_cast<unsigned>(saved_)); }
#elif defined(__aarch64__)
FlushDenormals::FlushDenormals() {
  asm volatile("mrs %0, fpcr" : "=r"(saved_));
  asm volatile("msr fpcr, %0" ::"r"(saved_ | (1UL << 24)));
}
FlushDenormals::~FlushDenormals() { asm volatile("msr fpcr, %0" ::"r"(saved_)); }
#else
FlushDenormals::FlushDenormals() : saved_(0) {}
FlushDenormals::~FlushDenormals() = default;
#endif

}  // namespace dlas
