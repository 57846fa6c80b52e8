/* dlas layer interface, ABI version 1.
 *
 * A layer is five functions behind one struct. The kernels of dlas use it, and so does a plug-in: a shared object that
 * exports `dlas_register` and hands its layers to `api->add`. Tensors are DLPack's DLTensor; a strided tensor says its
 * layout by shape and strides:
 *
 *   plain      shape as in ONNX, contiguous
 *   blocked    (N, C/B, H, W, B) float32; B = channels of a block = vector length. It may stand inside a frame of
 *              zeros (a halo): then the strides of H and C/B are larger than the sizes say, and reading outside the
 *              shape, by at most the halo, gives zeros.
 *   nhwc       (N, H, W, C) int8 or uint8, also with a halo, then filled with the zero point
 *
 * Nothing here may allocate in `run`. All functions may be called from any thread, `run` from one at a time.
 */
#ifndef DLAS_LAYER_H
#define DLAS_LAYER_H

#include <stddef.h>
#include <stdint.h>

#define DLAS_ABI 1

#ifdef __cplusplus
extern "C" {
#endif

#ifndef DLPACK_DLPACK_H_
/* The first three structs of DLPack 1.0, for plug-ins that do not have its header. */
typedef struct { int32_t device_type; int32_t device_id; } DLDevice;
typedef struct { uint8_t code; uint8_t bits; uint16_t lanes; } DLDataType; /* code: 0 int, 1 uint, 2 float */
typedef struct {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides; /* in elements, never NULL here */
  uint64_t byte_offset; /* always 0 here */
} DLTensor;
#endif

typedef struct dlas_node dlas_node; /* operator, attributes, shapes and constant inputs */
typedef struct dlas_ctx dlas_ctx;   /* threads; outlives every state made with it */

typedef struct {
  const char* op;   /* ONNX operator */
  const char* name; /* what --impl OP=NAME asks for */
  int (*supports)(const dlas_node* node);                              /* 1: can compute this node */
  void* (*prepare)(const dlas_node* node, const dlas_ctx* ctx);        /* packs weights; NULL after api->fail */
  size_t (*workspace)(void* state);                                    /* bytes of scratch, 64-byte aligned */
  int (*run)(void* state, const DLTensor* const* in, int n_in, DLTensor* const* out, int n_out, void* scratch);
  void (*destroy)(void* state);
} dlas_impl;

typedef struct {
  int abi;
  void (*add)(const dlas_impl* impl);
  const char* (*op)(const dlas_node* node);
  /* Attributes: 1 when present, else 0 and *value untouched. Pointers live as long as the node. */
  int (*get_int)(const dlas_node* node, const char* name, int64_t* value);
  int (*get_float)(const dlas_node* node, const char* name, double* value);
  int (*get_string)(const dlas_node* node, const char* name, const char** value);
  int (*get_ints)(const dlas_node* node, const char* name, const int64_t** values, int* count);
  int (*inputs)(const dlas_node* node);
  int (*outputs)(const dlas_node* node);
  const DLTensor* (*input)(const dlas_node* node, int index); /* NULL: left out; data is NULL unless constant */
  const DLTensor* (*output)(const dlas_node* node, int index);
  int (*threads)(const dlas_ctx* ctx);
  /* Calls body(arg, task, thread) for every task in [0, tasks); which thread takes which never changes. */
  void (*parallel_for)(const dlas_ctx* ctx, int64_t tasks, void (*body)(void* arg, int64_t task, int thread),
                       void* arg);
  void (*fail)(const char* reason); /* what `prepare` or `run` could not do; kept per thread */
} dlas_api;

/* A plug-in's entry. `abi` is that of the host: return 0, or DLAS_ABI of the plug-in when it differs. */
int dlas_register(const dlas_api* api, int abi);

#ifdef __cplusplus
}
#endif
#endif
