// A network as a list of calls: the loop that runs it, its memory, and its clock.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "node.h"

namespace dlas {

// A kernel that packed the weights of one node.
class Kernel {
 public:
  // Throws std::runtime_error with the reason when the kernel cannot compute this node.
  Kernel(const Entry& entry, std::shared_ptr<dlas_ctx> ctx, dlas_node node);
  ~Kernel();
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  size_t workspace() const { return workspace_; }
  void run(const DLTensor* const* in, int n_in, DLTensor* const* out, int n_out, void* scratch) const;
  const dlas_node& node() const { return node_; }

 private:
  dlas_impl impl_;
  std::shared_ptr<dlas_ctx> ctx_;
  dlas_node node_;
  void* state_ = nullptr;
  size_t workspace_ = 0;
};

// Where the bytes of a value are.
enum class Place { arena, constant, input, output };

class Program {
 public:
  using Call = std::function<void()>;  // a step that is computed by the host language

  explicit Program(std::shared_ptr<dlas_ctx> ctx) : ctx_(std::move(ctx)) {}

  // A value; `offset` in bytes counts from the start of the arena or of the bound buffer.
  int value(Place place, int index, int64_t offset, std::vector<int64_t> shape, std::vector<int64_t> strides,
            DLDataType dtype, void* constant);
  void step(std::shared_ptr<Kernel> kernel, std::vector<int> in, std::vector<int> out, int64_t scratch_offset);
  void call(Call call);
  // Fills the frame of `top, left, bottom, right` pixels around a value with a byte pattern.
  void halo(int value, int top, int left, int bottom, int right, int byte);

  void allocate(size_t arena_bytes);
  void bind(Place place, int index, void* data);
  void run();
  void run_timed(std::vector<int64_t>& nanoseconds);
  size_t steps() const { return steps_.size(); }
  Tensor& at(int value) { return *values_[value]; }

 private:
  struct Slot {
    Place place;
    int index;
    int64_t offset;
  };
  struct Step {
    std::shared_ptr<Kernel> kernel;
    Call call;
    std::vector<const DLTensor*> in;
    std::vector<DLTensor*> out;
    int64_t scratch_offset;
    void* scratch;
    int halo[5];
  };
  void one(Step& step);
  static void fill(const DLTensor& t, const int* halo);

  std::shared_ptr<dlas_ctx> ctx_;
  std::vector<std::unique_ptr<Tensor>> values_;
  std::vector<Slot> slots_;
  std::vector<Step> steps_;
  std::unique_ptr<char[]> memory_;
  char* arena_ = nullptr;
};

}  // namespace dlas
