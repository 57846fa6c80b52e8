#include "program.h"

#include <cstring>
#include <ctime>
#include <stdexcept>

namespace dlas {
namespace {

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}

}  // namespace

Kernel::Kernel(const Entry& entry, std::shared_ptr<dlas_ctx> ctx, dlas_node node)
    : impl_(entry.impl), ctx_(std::move(ctx)), node_(std::move(node)) {
  take_failure();
  const std::string what = std::string(impl_.op) + "=" + impl_.name;
  if (!impl_.supports(&node_)) {
    const std::string reason = take_failure();
    throw std::runtime_error(reason.empty() ? what + " cannot compute this node" : reason);
  }
  state_ = impl_.prepare(&node_, ctx_.get());
  if (!state_) {
    const std::string reason = take_failure();
    throw std::runtime_error(reason.empty() ? what + " failed to prepare this node" : reason);
  }
  workspace_ = impl_.workspace ? impl_.workspace(state_) : 0;
}

Kernel::~Kernel() {
  if (state_) impl_.destroy(state_);
}

void Kernel::run(const DLTensor* const* in, int n_in, DLTensor* const* out, int n_out, void* scratch) const {
  if (impl_.run(state_, in, n_in, out, n_out, scratch) != 0) {
    const std::string reason = take_failure();
    throw std::runtime_error(std::string(impl_.op) + "=" + impl_.name + " failed" +
                             (reason.empty() ? "" : ": " + reason));
  }
}

int Program::value(Place place, int index, int64_t offset, std::vector<int64_t> shape,
                   std::vector<int64_t> strides, DLDataType dtype, void* constant) {
  values_.push_back(std::make_unique<Tensor>(std::move(shape), std::move(strides), dtype, constant));
  slots_.push_back({place, index, offset});
  return static_cast<int>(values_.size()) - 1;
}

void Program::step(std::shared_ptr<Kernel> kernel, std::vector<int> in, std::vector<int> out,
                   int64_t scratch_offset) {
  Step step{std::move(kernel), nullptr, {}, {}, scratch_offset, nullptr, {0, 0, 0, 0, 0}};
  for (int i : in) step.in.push_back(i < 0 ? nullptr : &values_.at(i)->view);
  for (int o : out) step.out.push_back(&values_.at(o)->view);
  steps_.push_back(std::move(step));
}

void Program::call(Call call) { steps_.push_back({nullptr, std::move(call), {}, {}, 0, nullptr, {0, 0, 0, 0, 0}}); }

void Program::halo(int value, int top, int left, int bottom, int right, int byte) {
  Step step{nullptr, nullptr, {}, {&values_.at(value)->view}, 0, nullptr, {top, left, bottom, right, byte}};
  steps_.push_back(std::move(step));
}

void Program::allocate(size_t bytes) {
  memory_ = std::make_unique<char[]>(bytes + 128);
  arena_ = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) & ~uintptr_t{63});
  for (size_t i = 0; i < values_.size(); ++i)
    if (slots_[i].place == Place::arena) values_[i]->view.data = arena_ + slots_[i].offset;
  for (auto& step : steps_) step.scratch = arena_ + step.scratch_offset;
}

void Program::bind(Place place, int index, void* data) {
  for (size_t i = 0; i < values_.size(); ++i)
    if (slots_[i].place == place && slots_[i].index == index)
      values_[i]->view.data = static_cast<char*>(data) + slots_[i].offset;
}

void Program::fill(const DLTensor& t, const int* halo) {
  // Blocked (N, Cb, H, W, B) and nhwc (N, H, W, C) both have one contiguous run of `inner` elements per pixel.
  const bool blocked = t.ndim == 5;
  const int64_t item = t.dtype.bits / 8;
  const int64_t planes = blocked ? t.shape[0] * t.shape[1] : t.shape[0];
  const int h = blocked ? 2 : 1;
  const int64_t height = t.shape[h], width = t.shape[h + 1], pixel = t.strides[h + 1] * item;
  const int64_t pitch = t.strides[h] * item;
  for (int64_t p = 0; p < planes; ++p) {
    const int64_t plane = blocked ? p / t.shape[1] * t.strides[0] + p % t.shape[1] * t.strides[1] : p * t.strides[0];
    char* first = static_cast<char*>(t.data) + plane * item - halo[0] * pitch - halo[1] * pixel;
    const int64_t row = (halo[1] + width + halo[3]) * pixel;
    for (int i = 0; i < halo[0]; ++i) std::memset(first + i * pitch, halo[4], row);
    for (int64_t i = halo[0]; i < halo[0] + height; ++i) {
      if (halo[1]) std::memset(first + i * pitch, halo[4], halo[1] * pixel);
      if (halo[3]) std::memset(first + i * pitch + (halo[1] + width) * pixel, halo[4], halo[3] * pixel);
    }
    for (int64_t i = halo[0] + height; i < halo[0] + height + halo[2]; ++i) std::memset(first + i * pitch, halo[4], row);
  }
}

void Program::one(Step& step) {
  if (step.kernel)
    step.kernel->run(step.in.data(), static_cast<int>(step.in.size()), step.out.data(),
                     static_cast<int>(step.out.size()), step.scratch);
  else if (step.call)
    step.call();
  else
    fill(*step.out[0], step.halo);
}

void Program::run() {
  FlushDenormals flush;
  for (auto& step : steps_) one(step);
}

void Program::run_timed(std::vector<int64_t>& nanoseconds) {
  FlushDenormals flush;
  nanoseconds.resize(steps_.size());
  int64_t before = now();
  for (size_t i = 0; i < steps_.size(); ++i) {
    one(steps_[i]);
    const int64_t after = now();
    nanoseconds[i] = after - before;
    before = after;
  }
}

}  // namespace dlas
