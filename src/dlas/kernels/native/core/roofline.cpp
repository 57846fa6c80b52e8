#include "roofline.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <functional>
#include <memory>
#include <new>
#include <thread>

#include <sys/mman.h>

namespace dlas {

namespace {
std::vector<std::pair<const char*, Loops (*)()>>& entered() {
  static std::vector<std::pair<const char*, Loops (*)()>> all;
  return all;
}
}  // namespace

EnterLoops::EnterLoops(const char* isa, Loops (*list)()) { entered().emplace_back(isa, list); }

namespace {

constexpr double kBlock = 1e-3;
constexpr size_t kPage = 4096, kHuge = size_t{1} << 21;
std::atomic<double> sink;  // where results go, so that no loop can be left out

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double processor_time() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Seconds that `work(thread)` took from the moment that all threads were ready until the last had done. One thread
// alone by its processor time, so that what else the machine does counts for less.
double together(int threads, const std::function<void(int)>& work) {
  if (threads == 1) {
    const double start = processor_time();
    work(0);
    return processor_time() - start;
  }
  std::atomic<int> ready{0};
  std::vector<double> first(threads), last(threads);
  std::vector<std::thread> team;
  for (int t = 0; t < threads; ++t) {
    team.emplace_back([&, t] {
      ready.fetch_add(1);
      while (ready.load() < threads) std::this_thread::yield();
      first[t] = now();
      work(t);
      last[t] = now();
    });
  }
  for (auto& member : team) member.join();
  return *std::max_element(last.begin(), last.end()) - *std::min_element(first.begin(), first.end());
}

// The shortest of the blocks that fit into `seconds`, per repetition.
double fastest(int threads, double seconds, const std::function<void(int, uint64_t)>& run) {
  uint64_t repetitions = 1;
  double taken = 0;
  while ((taken = together(1, [&](int) { run(0, repetitions); })) < kBlock) repetitions *= 2;
  double best = 1e30;
  const double until = now() + seconds;
  do {
    best = std::min(best, together(threads, [&](int t) { run(t, repetitions); }) / static_cast<double>(repetitions));
  } while (now() < until);
  return best;
}

size_t cache_bytes(int level, size_t otherwise) {
  const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index";
  for (int index = 0; index < 8; ++index) {
    const std::string place = folder + std::to_string(index);
    std::ifstream level_file(place + "/level"), type_file(place + "/type"), size_file(place + "/size");
    int found = 0;
    std::string type, size;
    if (!(level_file >> found) || !(type_file >> type) || !(size_file >> size)) continue;
    if (found != level || type == "Instruction") continue;
    const size_t unit = size.back() == 'K' ? 1024 : size.back() == 'M' ? 1024 * 1024 : 1;
    const size_t bytes = std::strtoull(size.c_str(), nullptr, 10) * unit;
    if (bytes) return bytes;
  }
  return otherwise;
}

// Memory of one thread, in huge pages so that the caches are measured and not the TLB; every page is touched.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : size_(bytes + 2 * kHuge) {
    raw_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw_ == MAP_FAILED) throw std::bad_alloc();
    at = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(raw_) + kHuge - 1) & ~uintptr_t{kHuge - 1});
    madvise(at, bytes + kHuge, MADV_HUGEPAGE);
    for (size_t i = 0; i < bytes; i += kPage) at[i] = static_cast<char>(i / kPage);
  }
  ~Buffer() { munmap(raw_, size_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  char* at;

 private:
  size_t size_;
  void* raw_;
};

double bandwidth(const Loops& loops, int threads, double seconds, size_t bytes) {
  std::vector<std::unique_ptr<Buffer>> buffers;
  for (int t = 0; t < threads; ++t) buffers.push_back(std::make_unique<Buffer>(bytes));
  double taken = 1e30;
  for (const auto read : loops.reads) {
    taken = std::min(taken, fastest(threads, seconds / loops.reads.size(), [&](int t, uint64_t repetitions) {
      double sum = 0;
      for (uint64_t i = 0; i < repetitions; ++i) sum += read(buffers[t]->at, bytes);
      sink.store(sum, std::memory_order_relaxed);
    }));
  }
  return static_cast<double>(bytes) * threads / taken / 1e9;
}

}  // namespace

std::map<std::string, double> roofline(const std::string& isa, int threads, double seconds) {
  std::map<std::string, double> found;
  threads = std::max(threads, 1);
  for (const auto& [name, list] : entered()) {
    if (name != isa) continue;
    const Loops loops = list();
    for (const Loop& loop : loops.all) {
      const double taken = fastest(threads, seconds, [&](int, uint64_t repetitions) {
        sink.store(loop.run(repetitions), std::memory_order_relaxed);
      });
      found[loop.name] = loop.operations * threads / taken / 1e9;
    }
    const size_t l3 = cache_bytes(3, size_t{32} << 20);
    const std::pair<const char*, size_t> places[] = {
        {"l1", cache_bytes(1, 32 << 10) / 2},
        {"l2", cache_bytes(2, 1 << 20) / 2},
        {"l3", l3 / 2 / threads},  // the threads share it
        {"dram", std::max(size_t{256} << 20, std::min(2 * l3, size_t{1} << 30))},
    };
    for (const auto& [place, size] : places) {
      const size_t bytes = std::max(size / kPage, size_t{1}) * kPage;
      found[std::string("read_") + place] = bandwidth(loops, threads, seconds, bytes);
      found[std::string("bytes_") + place] = static_cast<double>(bytes);
    }
  }
  return found;
}

double read_bandwidth(const std::string& isa, int threads, double seconds, size_t bytes) {
  for (const auto& [name, list] : entered())
    if (name == isa) return bandwidth(list(), std::max(threads, 1), seconds, std::max(bytes / kPage, size_t{1}) * kPage);
  return 0;
}

}  // namespace dlas
