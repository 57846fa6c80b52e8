// A LiteRT delegate that hands operators to functions of Python.
//
// The wheel of ai-edge-litert ships neither headers nor the symbols of the C API. What is used of its structures is
// declared here, for LiteRT 2.3 on 64-bit systems, and guard.py compares what is read with what the interpreter says.
//
// Every operator that is taken becomes a delegate node of its own: then each of its tensors is one that LiteRT gives
// memory to. Tensors inside a node that replaces several operators get none.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace litert {

enum Status { kOk = 0, kError = 1 };
enum Allocation { kConstant = 1 };        // of a tensor: mapped from the file
enum Quantization { kAffine = 1 };        // scales per channel
enum Flags { kAllowDynamicTensors = 1 };  // without it, networks that compute shapes refuse every delegate

struct IntArray {
  int size;
  int data[1];
};

struct FloatArray {
  int size;
  float data[1];
};

struct Affine {
  FloatArray* scale;
  IntArray* zero_point;
  int32_t axis;
};

struct Tensor {
#ifdef DLAS_SHIFTED_TENSOR  // another layout, to test that it is noticed
  void* shift;
#endif
  int type;
  void* data;
  IntArray* dims;
  struct {
    float scale;
    int32_t zero_point;
  } params;
  int allocation;
  size_t bytes;
  const void* mapped;
  const char* name;
  struct Delegate* delegate;
  int buffer_handle;
  bool stale;
  bool variable;
  struct {
    int type;
    void* params;
  } quantization;
  void* sparsity;
  const IntArray* dims_signature;
};

struct Node {
  IntArray* inputs;
  IntArray* outputs;
  IntArray* intermediates;
  IntArray* temporaries;
  void* user_data;
  void* options;
};

struct Context;

struct Registration {
  void* (*init)(Context*, const char*, size_t);
  void (*free)(Context*, void*);
  Status (*prepare)(Context*, Node*);
  Status (*invoke)(Context*, Node*);
  const char* (*profiling)(const Context*, const Node*);
  int32_t code;
  const char* name;
  int version;
  void* external;
  void* async_kernel;
  uint64_t inplace;
  void* later[8];  // zeros, should LiteRT read more than there was
};

struct Context {
  size_t count;
  Status (*plan)(Context*, IntArray**);
  Tensor* tensors;
  void* implementation;
  Status (*resize)(Context*, Tensor*, IntArray*);
  void (*report)(Context*, const char*, ...);
  Status (*add)(Context*, int, int*);
  Status (*node)(Context*, int, Node**, Registration**);
  Status (*replace)(Context*, Registration, const IntArray*, struct Delegate*);
};

struct Delegate {
  void* data;
  Status (*prepare)(Context*, Delegate*);
  void* copy_from;
  void* copy_to;
  void* free_buffer;
  int64_t flags;
  void* opaque;
  void* later[8];
};

struct DelegateParameters {
  Delegate* delegate;
  IntArray* nodes;
};

struct ConvOptions {  // of CONV_2D; those of TRANSPOSE_CONV end with the activation
  int padding, stride_w, stride_h, activation, dilation_w, dilation_h;
};

struct DenseOptions {
  int activation, weights_format;
  bool keep_dims;
};

}  // namespace litert

namespace {

using litert::Context;
using litert::kError;
using litert::kOk;
using litert::Status;

constexpr int kConv = 3, kDepthwise = 4, kDense = 9, kTransposed = 67, kDelegate = 51;
constexpr int kRank = 8, kWords = 1024;

// What Python is told; bridge.py has the same.
struct Value {
  const char* name;
  const void* data;  // of constants
  const float* scales;
  const int32_t* zero_points;
  uint64_t bytes;
  int32_t index, type, rank, constant, channels, axis, zero_point;
  float scale;
  int32_t dims[kRank];
};

struct Given {
  uint64_t graph;
  int32_t op, node, known, has_bias, padding, stride_h, stride_w, dilation_h, dilation_w, activation, weights_format;
  int32_t keep_dims;
  Value x, weight, bias, y;
};

using Consider = int (*)(const Given*, char* words);
using Shape = int (*)(int id, int rank, const int* dims, int* result, char* words);
using Run = int (*)(int id, const void* x, uint64_t x_bytes, void* y, uint64_t y_bytes, char* words);

struct Functions {
  Consider consider;
  Shape shape;
  Run run;
};

struct Taken {
  int id, x, y;
  int shape;  // tensor with the shape of a transposed convolution's result, else -1
};

struct Plugin {
  litert::Delegate delegate;
  Functions functions;
  std::map<int, Taken> taken;  // by node, of the graph that is being prepared
};

// A delegate node. It outlives the delegate where LiteRT destroys them in that order, so it owns all it needs.
struct Kernel {
  Functions functions;
  Taken taken;
};

bool read_tensor(const Context* context, int index, Value* value) {
  const litert::Tensor& t = context->tensors[index];
  if (t.sparsity != nullptr || t.dims == nullptr || t.dims->size < 0 || t.dims->size > kRank) return false;
  *value = {};
  value->name = t.name;
  value->index = index;
  value->type = t.type;
  value->bytes = t.bytes;
  value->constant = t.allocation == litert::kConstant;
  value->data = value->constant ? t.data : nullptr;
  value->scale = t.params.scale;
  value->zero_point = t.params.zero_point;
  value->rank = t.dims->size;
  std::memcpy(value->dims, t.dims->data, sizeof(int) * t.dims->size);
  if (t.quantization.type == litert::kAffine && t.quantization.params != nullptr) {
    const auto* affine = static_cast<const litert::Affine*>(t.quantization.params);
    const bool paired = affine->scale != nullptr && affine->zero_point != nullptr &&
                        affine->scale->size == affine->zero_point->size;
    if (paired) {
      value->scales = affine->scale->data;
      value->zero_points = affine->zero_point->data;
      value->channels = affine->scale->size;
      value->axis = affine->axis;
    }
  }
  return true;
}

void read_options(const litert::Node& node, Given* given) {
  if (given->op == kDense) {
    const auto* options = static_cast<const litert::DenseOptions*>(node.options);
    given->activation = options->activation;
    given->weights_format = options->weights_format;
    given->keep_dims = options->keep_dims;
  } else if (given->op != kDepthwise) {  // depthwise layers are only listed
    const auto* options = static_cast<const litert::ConvOptions*>(node.options);
    given->padding = options->padding;
    given->stride_w = options->stride_w;
    given->stride_h = options->stride_h;
    given->activation = options->activation;
    given->dilation_w = given->op == kConv ? options->dilation_w : 1;
    given->dilation_h = given->op == kConv ? options->dilation_h : 1;
  }
}

// The operator as Python is told of it; false where it has no form that is known.
bool read_node(const Context* context, const litert::Node& node, Given* given) {
  const int x = given->op == kTransposed ? 2 : 0, bias = given->op == kTransposed ? 3 : 2;
  if (node.inputs->size < bias || node.outputs->size != 1 || node.options == nullptr) return false;
  read_options(node, given);
  given->has_bias = node.inputs->size > bias && node.inputs->data[bias] >= 0;
  return read_tensor(context, node.inputs->data[x], &given->x) &&
         read_tensor(context, node.inputs->data[1], &given->weight) &&
         read_tensor(context, node.outputs->data[0], &given->y) &&
         (!given->has_bias || read_tensor(context, node.inputs->data[bias], &given->bias));
}

Status fail(Context* context, const char* words) {
  context->report(context, "dlas: %s\n", words);
  return kError;
}

void* init(Context*, const char* buffer, size_t) {
  const auto* parameters = reinterpret_cast<const litert::DelegateParameters*>(buffer);
  const auto* plugin = static_cast<const Plugin*>(parameters->delegate->data);
  return new Kernel{plugin->functions, plugin->taken.at(parameters->nodes->data[0])};
}

void release(Context*, void* kernel) { delete static_cast<Kernel*>(kernel); }

Status prepare_node(Context* context, litert::Node* node) {
  const auto* kernel = static_cast<const Kernel*>(node->user_data);
  const litert::IntArray* dims = context->tensors[kernel->taken.x].dims;
  char words[kWords] = "";
  int result[kRank];
  if (dims->size > kRank) return fail(context, "an input has more than 8 axes");
  const int rank = kernel->functions.shape(kernel->taken.id, dims->size, dims->data, result, words);
  if (rank < 0 || rank > kRank) return fail(context, words);
  // LiteRT frees it.
  auto* size = static_cast<litert::IntArray*>(std::malloc(sizeof(litert::IntArray) + sizeof(int) * rank));
  if (size == nullptr) return fail(context, "out of memory");
  size->size = rank;
  std::memcpy(size->data, result, sizeof(int) * rank);
  return context->resize(context, &context->tensors[kernel->taken.y], size);
}

// Whether the shape that the network itself computes for a result is the one that was planned.
bool as_planned(const Context* context, const Taken& taken) {
  if (taken.shape < 0) return true;
  const litert::Tensor& wanted = context->tensors[taken.shape];
  const litert::IntArray* dims = context->tensors[taken.y].dims;
  return wanted.data != nullptr && wanted.bytes == sizeof(int32_t) * dims->size &&
         std::memcmp(wanted.data, dims->data, wanted.bytes) == 0;
}

Status invoke(Context* context, litert::Node* node) {
  const auto* kernel = static_cast<const Kernel*>(node->user_data);
  const litert::Tensor& x = context->tensors[kernel->taken.x];
  const litert::Tensor& y = context->tensors[kernel->taken.y];
  char words[kWords] = "";
  if (x.data == nullptr || y.data == nullptr) return fail(context, "LiteRT gave a tensor no memory");
  if (!as_planned(context, kernel->taken))
    return fail(context, "the network computes another size for a transposed convolution than its file says");
  if (kernel->functions.run(kernel->taken.id, x.data, x.bytes, y.data, y.bytes, words) != 0)
    return fail(context, words);
  return kOk;
}

Status prepare(Context* context, litert::Delegate* delegate) {
  auto* plugin = static_cast<Plugin*>(delegate->data);
  litert::IntArray* plan = nullptr;
  if (context->plan(context, &plan) != kOk) return fail(context, "LiteRT does not tell its operators");
  const std::vector<int> order(plan->data, plan->data + plan->size);  // replacing nodes changes the plan
  plugin->taken.clear();
  for (const int index : order) {
    litert::Node* node = nullptr;
    litert::Registration* registration = nullptr;
    if (context->node(context, index, &node, &registration) != kOk) return fail(context, "LiteRT hides an operator");
    const int op = registration->code;
    if (op != kConv && op != kDepthwise && op != kDense && op != kTransposed) continue;
    Given given = {};
    given.graph = reinterpret_cast<uint64_t>(context);
    given.op = op;
    given.node = index;
    given.known = read_node(context, *node, &given);
    char words[kWords] = "";
    const int id = plugin->functions.consider(&given, words);
    if (id < -1) return fail(context, words);
    const int shape = op == kTransposed && node->inputs->size > 0 ? node->inputs->data[0] : -1;
    if (id >= 0) plugin->taken[index] = {id, given.x.index, given.y.index, shape};
  }
  litert::Registration registration = {};
  registration.init = init;
  registration.free = release;
  registration.prepare = prepare_node;
  registration.invoke = invoke;
  registration.code = kDelegate;
  registration.name = "dlas";
  registration.version = 1;
  for (const auto& [index, taken] : plugin->taken) {
    const litert::IntArray one = {1, {index}};
    if (context->replace(context, registration, &one, delegate) != kOk) return kError;
  }
  return kOk;
}

}  // namespace

extern "C" {

void* tflite_plugin_create_delegate(char** keys, char** values, size_t count, void (*complain)(const char*)) {
  std::map<std::string, uint64_t> given;
  for (size_t i = 0; i < count; ++i) given[keys[i]] = std::strtoull(values[i], nullptr, 10);
  if (!given["consider"] || !given["shape"] || !given["run"]) {
    complain("the functions consider, shape and run must be given");
    return nullptr;
  }
  auto plugin = std::make_unique<Plugin>();
  plugin->delegate = {};
  plugin->delegate.data = plugin.get();
  plugin->delegate.prepare = prepare;
  plugin->delegate.flags = litert::kAllowDynamicTensors;
  plugin->functions = {reinterpret_cast<Consider>(given["consider"]), reinterpret_cast<Shape>(given["shape"]),
                       reinterpret_cast<Run>(given["run"])};
  return &plugin.release()->delegate;
}

void tflite_plugin_destroy_delegate(void* delegate) {
  if (delegate != nullptr) delete static_cast<Plugin*>(static_cast<litert::Delegate*>(delegate)->data);
}
}
