// CUDA's driver without a GPU, as far as torch and Triton ask for it: kernels are loaded, and
// launched in vain.

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>

extern "C" int stand_in_work(void* stream, void* works_in, size_t size, const char* what);

namespace {

// Whatever it points at is never looked at.
template <typename Handle>
CUresult hand_out(Handle* handle) {
  static char thing;
  *handle = reinterpret_cast<Handle>(&thing);
  return CUDA_SUCCESS;
}

CUresult launched(CUstream stream, const char* what) {
  return stand_in_work(stream, nullptr, 0, what) < 0 ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
                                                     : CUDA_SUCCESS;
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* it) { return *it = CUDART_VERSION, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* gpu, int number) { return *gpu = number, CUDA_SUCCESS; }

CUresult cuDeviceGetCount(int* count) {
  return static_cast<CUresult>(cudaGetDeviceCount(count));
}

CUresult cuDeviceGetName(char* name, int size, CUdevice) {
  snprintf(name, size, "Stand-in");
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice gpu) {
  const auto same = static_cast<cudaDeviceAttr>(attribute);
  return static_cast<CUresult>(cudaDeviceGetAttribute(value, same, gpu));
}

CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return hand_out(context); }
CUresult cuCtxGetCurrent(CUcontext* context) { return hand_out(context); }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* gpu) { return static_cast<CUresult>(cudaGetDevice(gpu)); }
CUresult cuCtxGetLimit(size_t* value, CUlimit) { return *value = 0, CUDA_SUCCESS; }
CUresult cuCtxSetLimit(CUlimit, size_t) { return CUDA_SUCCESS; }

CUresult cuGetErrorName(CUresult, const char** it) { return *it = "CUDA_ERROR", CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char** it) {
  return *it = "an error of the stand-in", CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule* module, const void*) { return hand_out(module); }
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char*) {
  return hand_out(function);
}

CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute, CUfunction) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024
           : attribute == CU_FUNC_ATTRIBUTE_NUM_REGS            ? 32
                                                                : 0;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }

CUresult cuOccupancyMaxActiveClusters(int* count, CUfunction, const CUlaunchConfig*) {
  return *count = 4, CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                        unsigned, CUstream stream, void**, void**) {
  return launched(stream, __func__);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* launch, CUfunction, void**, void**) {
  return launched(launch->hStream, __func__);
}

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  cudaPointerAttributes it;
  cudaPointerGetAttributes(&it, reinterpret_cast<void*>(pointer));
  if (it.type == cudaMemoryTypeUnregistered) return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
      return *static_cast<CUdeviceptr*>(value) = pointer, CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_CONTEXT:
      return hand_out(static_cast<CUcontext*>(value));
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
      return *static_cast<int*>(value) = it.device, CUDA_SUCCESS;
    default:
      return CUDA_ERROR_NOT_SUPPORTED;
  }
}

}  // extern "C"
