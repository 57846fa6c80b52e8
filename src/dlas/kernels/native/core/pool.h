// A pool of threads that splits the same work the same way every time.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace dlas {

// Tasks [0, n) are cut into one run of neighbours per thread, so that results cannot depend on timing. Workers spin for
// about 50 us after their last task and then sleep on a futex.
class Pool {
 public:
  using Body = void (*)(void* arg, int64_t task, int thread);

  explicit Pool(int threads);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }
  void parallel_for(int64_t tasks, Body body, void* arg);

 private:
  void work(int thread);
  void share(int thread);

  int threads_;
  std::vector<std::thread> workers_;
  Body body_ = nullptr;
  void* arg_ = nullptr;
  int64_t tasks_ = 0;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int> left_{0};
  alignas(64) std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
};

// Denormals count as zero while one of these lives (they are a hundred times slower and carry no information here).
class FlushDenormals {
 public:
  FlushDenormals();
  ~FlushDenormals();

 private:
  unsigned long saved_;
};

}  // namespace dlas
