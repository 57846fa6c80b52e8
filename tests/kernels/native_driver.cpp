// Runs native kernels for another process: requests on standard input, replies on standard output. So the tests of the
// kernels reach builds that Python cannot load: for another processor under an emulator, or with sanitisers.
//
// Every tensor lies in a block of exactly its size, so that a sanitiser sees each byte beyond it. All numbers are 64-bit
// little endian; a text is its length and its bytes. tests/kernels/remote_native.py has the other side.
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>

#include "core/cpu.h"
#include "core/program.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<int64_t> allocations{0};

}  // namespace

// Also those of the pool's threads. All other forms of `new` but the aligned one come here.
__attribute__((noinline)) void* operator new(size_t size) {
  if (counting.load(std::memory_order_relaxed)) ++allocations;
  if (void* made = std::malloc(size ? size : 1)) return made;
  throw std::bad_alloc();
}
__attribute__((noinline)) void* operator new(size_t size, std::align_val_t alignment) {
  if (counting.load(std::memory_order_relaxed)) ++allocations;
  void* made = nullptr;
  if (posix_memalign(&made, static_cast<size_t>(alignment), size ? size : 1) != 0) throw std::bad_alloc();
  return made;
}
__attribute__((noinline)) void operator delete(void* made) noexcept { std::free(made); }
__attribute__((noinline)) void operator delete(void* made, size_t) noexcept { std::free(made); }
__attribute__((noinline)) void operator delete(void* made, std::align_val_t) noexcept { std::free(made); }
__attribute__((noinline)) void operator delete(void* made, size_t, std::align_val_t) noexcept { std::free(made); }

namespace {

void get(void* to, size_t bytes) {
  if (bytes && std::fread(to, 1, bytes, stdin) != bytes) std::exit(std::feof(stdin) ? 3 : 4);
}

int64_t number() {
  int64_t value;
  get(&value, sizeof value);
  return value;
}

double real() {
  double value;
  get(&value, sizeof value);
  return value;
}

std::string text() {
  std::string value(static_cast<size_t>(number()), ' ');
  get(value.data(), value.size());
  return value;
}

std::vector<int64_t> numbers() {
  std::vector<int64_t> values(static_cast<size_t>(number()));
  get(values.data(), values.size() * sizeof(int64_t));
  return values;
}

void put(int64_t value) { std::fwrite(&value, sizeof value, 1, stdout); }
void put(const std::string& value) {
  put(static_cast<int64_t>(value.size()));
  std::fwrite(value.data(), 1, value.size(), stdout);
}

// Bytes that start `skew` bytes after a cache line and end with their block.
struct Block {
  explicit Block(size_t size, size_t skew = 0) : size(size), skew(skew) {
    void* made = nullptr;
    if (posix_memalign(&made, 64, skew + size + (skew + size == 0)) != 0) std::exit(5);
    start = static_cast<char*>(made);
  }
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;
  ~Block() { std::free(start); }
  char* data() const { return start + skew; }
  char* start;
  size_t size, skew;
};

std::unique_ptr<Block> read_block() {
  const size_t size = static_cast<size_t>(number()), skew = static_cast<size_t>(number());
  auto made = std::make_unique<Block>(size, skew);
  get(made->data(), size);
  return made;
}

DLDataType dtype() {
  const int64_t code = number(), bits = number();
  return {static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1};
}

dlas::Tensor tensor(char* data) {
  const auto type = dtype();
  auto shape = numbers(), strides = numbers();
  return {std::move(shape), std::move(strides), type, data};
}

struct Made {
  std::vector<std::unique_ptr<Block>> constants;  // of which a kernel may keep pointers
  dlas_node node;
  std::string isa, name;
  int threads;
  std::unique_ptr<dlas::Kernel> kernel;
};

std::shared_ptr<dlas_ctx> context(int threads) {
  static std::map<int, std::shared_ptr<dlas_ctx>> all;
  auto& found = all[threads];
  if (!found) found = std::make_shared<dlas_ctx>(threads);
  return found;
}

std::unique_ptr<Made> read_node() {
  auto made = std::make_unique<Made>();
  made->threads = static_cast<int>(number());
  made->isa = text();
  made->node.op = text();
  made->name = text();
  for (int64_t n = number(); n > 0; --n) {
    auto& value = made->node.attributes[text()];
    switch (number()) {
      case 0: value = number(); break;
      case 1: value = real(); break;
      case 2: value = text(); break;
      default: value = numbers();
    }
  }
  for (int64_t n = number(); n > 0; --n) {
    const int64_t kind = number();  // 0 left out, 1 computed, 2 constant
    char* data = nullptr;
    if (kind == 2) {
      made->constants.push_back(read_block());
      data = made->constants.back()->data();
    }
    made->node.inputs.push_back(kind ? tensor(data) : dlas::Tensor());
    made->node.inputs.back().present = kind != 0;
  }
  for (int64_t n = number(); n > 0; --n) made->node.outputs.push_back(tensor(nullptr));
  return made;
}

const dlas::Entry& entry_of(const Made& made) {
  const auto* entry = dlas::find_entry(made.isa, made.node.op, made.name);
  if (!entry)
    throw std::invalid_argument("there is no native kernel " + made.node.op + "=" + made.name + " for " + made.isa);
  return *entry;
}

void run(const dlas::Kernel& kernel) {
  std::vector<std::unique_ptr<Block>> blocks, before;
  for (int64_t n = number(); n > 0; --n) blocks.push_back(read_block());
  std::vector<dlas::Tensor> tensors;
  std::vector<bool> written(blocks.size());
  const int64_t ins = number(), outs = number();
  for (int64_t i = 0; i < ins + outs; ++i) {
    const int64_t block = number();
    tensors.emplace_back();
    tensors.back().present = block >= 0;
    if (block < 0) continue;
    const int64_t offset = number();
    tensors.back() = tensor(blocks[block]->data() + offset);
    if (i >= ins) written[block] = true;
  }
  std::vector<const DLTensor*> in;
  std::vector<DLTensor*> out;
  for (int64_t i = 0; i < ins; ++i) in.push_back(tensors[i].present ? &tensors[i].view : nullptr);
  for (int64_t i = ins; i < ins + outs; ++i) out.push_back(&tensors[i].view);
  for (size_t b = 0; b < blocks.size(); ++b) {
    before.push_back(written[b] ? nullptr : std::make_unique<Block>(blocks[b]->size));
    if (!written[b]) std::memcpy(before[b]->data(), blocks[b]->data(), blocks[b]->size);
  }
  Block scratch(kernel.workspace());
  std::memset(scratch.data(), 0x7f, scratch.size);  // what an earlier layer left there: 3e38, in float32
  {
    dlas::FlushDenormals flush;
    allocations = 0;
    counting = true;
    kernel.run(in.data(), static_cast<int>(ins), out.data(), static_cast<int>(outs), scratch.data());
    counting = false;
  }
  if (allocations) throw std::runtime_error("the kernel allocated " + std::to_string(allocations) + " times in run");
  for (size_t b = 0; b < blocks.size(); ++b)
    if (!written[b] && std::memcmp(before[b]->data(), blocks[b]->data(), blocks[b]->size) != 0)
      throw std::runtime_error("the kernel wrote into one of its inputs");
  put(0);
  for (size_t b = 0; b < blocks.size(); ++b)
    if (written[b]) put(std::string(blocks[b]->data(), blocks[b]->size));
}

void list() {
  const auto levels = dlas::isa_levels();
  std::map<std::string, bool> built;
  for (const auto& entry : dlas::entries()) built[entry.isa] = true;
  std::vector<std::string> both;
  for (const auto& level : levels)
    if (built.count(level)) both.push_back(level);
  put(static_cast<int64_t>(both.size()));
  for (const auto& level : both) put(level);
  put(static_cast<int64_t>(dlas::entries().size()));
  for (const auto& entry : dlas::entries()) {
    put(entry.isa);
    put(std::string(entry.impl.op));
    put(std::string(entry.impl.name));
  }
}

}  // namespace

int main() {
  std::map<int64_t, std::unique_ptr<Made>> kernels;
  int64_t last = 0;
  for (char command; std::fread(&command, 1, 1, stdin) == 1; std::fflush(stdout)) {
    try {
      if (command == 'L') {
        list();
      } else if (command == 'K') {
        auto made = read_node();
        made->kernel = std::make_unique<dlas::Kernel>(entry_of(*made), context(made->threads), made->node);
        put(0);
        put(++last);
        put(static_cast<int64_t>(made->kernel->workspace()));
        kernels[last] = std::move(made);
      } else if (command == 'U') {
        const auto made = read_node();
        dlas::take_failure();
        const bool taken = entry_of(*made).impl.supports(&made->node) != 0;
        const std::string reason = dlas::take_failure();
        put(0);
        put(taken ? "" : reason.empty() ? "it does not support this node" : reason);
      } else if (command == 'R') {
        run(*kernels.at(number())->kernel);
      } else if (command == 'D') {
        kernels.erase(number());
      } else {
        return 2;
      }
    } catch (const std::exception& error) {
      put(1);
      put(error.what());
    }
  }
  return 0;
}
