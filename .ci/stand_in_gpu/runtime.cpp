// CUDA's runtime without a GPU: what torch's own code for CUDA asks of libcudart.
//
// A GPU's memory is the host's, kernels do nothing, and streams are done with their work at once.
// What torch does around them is real: its allocator, its pools, its captures, its random numbers'
// offsets. Rules that CUDA has for captures hold: what is not allowed during one fails, and spoils
// it. What a graph's replay works in must still be there. stand_in_gpu.py computes.
//
// STAND_IN_GPUS: how many; STAND_IN_MB: memory of each; STAND_IN_CAPABILITY: 90 for 9.0;
// STAND_IN_LOG: write on standard error what is captured, given out and refused.

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <utility>
#include <vector>

#if CUDART_VERSION < 13000
#undef cudaGetDeviceProperties
#endif

namespace {

constexpr size_t kPage = 4096;
constexpr int kMostGpus = 16;

long number_from(const char* variable, long otherwise) {
  const char* text = getenv(variable);
  return text ? atol(text) : otherwise;
}

const int gpus = number_from("STAND_IN_GPUS", 1);
const size_t memory = static_cast<size_t>(number_from("STAND_IN_MB", 81000)) << 20;
const int capability = number_from("STAND_IN_CAPABILITY", 90);
const bool logs = getenv("STAND_IN_LOG") != nullptr;

long this_thread() { return syscall(SYS_gettid); }

void log(const char* format, ...) {
  if (!logs) return;
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "stand-in, thread %ld: ", this_thread());
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
}

[[noreturn]] void die(const char* what, const void* at, size_t size) {
  fprintf(stderr, "stand-in: %s (%zu bytes at %p)\n", what, size, at);
  abort();
}

struct Stretch {
  char* start;
  size_t size;
};

struct Graph {
  unsigned long number = 0;
  std::vector<Stretch> works_in;
  size_t nodes = 0;
};

struct Stream;

struct Capture {
  unsigned long number;
  cudaStreamCaptureMode mode;
  long thread;
  Stream* origin;
  std::set<Stream*> joined;
  Graph* graph;
  bool spoilt = false;
};

struct Stream {
  unsigned flags = 0;
  int priority = 0;
  int gpu = 0;
  Capture* capture = nullptr;
};

struct Event {
  unsigned long capture = 0;
  double milliseconds = 0;
};

struct Launch {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};

// Never destroyed: libraries that end later still free what they have.
auto& lock = *new std::recursive_mutex;
auto& captures = *new std::set<Capture*>;
auto& of_gpus = *new std::map<char*, std::pair<size_t, int>>;
auto& of_host = *new std::map<char*, size_t>;
size_t used[kMostGpus];
unsigned long last_capture = 0;
void (*on_replay)(unsigned long) = nullptr;
void (*on_destroy)(unsigned long) = nullptr;

thread_local cudaError_t last_error = cudaSuccess;
thread_local int current_gpu = 0;
thread_local cudaStreamCaptureMode mode_here = cudaStreamCaptureModeGlobal;
thread_local std::vector<Launch> launches;

using Held = std::lock_guard<std::recursive_mutex>;

cudaError_t refuse(cudaError_t error, const char* what) {
  log("%s: error %d", what, error);
  return last_error = error;
}

void spoil(Capture* capture, const char* what) {
  capture->spoilt = true;
  log("%s spoils capture %lu", what, capture->number);
}

bool is_default(cudaStream_t stream) { return reinterpret_cast<size_t>(stream) <= 2; }

Capture* capture_of(cudaStream_t stream) {
  return is_default(stream) ? nullptr : reinterpret_cast<Stream*>(stream)->capture;
}

Capture* numbered(unsigned long number) {
  for (Capture* capture : captures)
    if (number && capture->number == number) return capture;
  return nullptr;
}

// What CUDA calls potentially unsafe, in the mode of this thread.
cudaError_t unless_unsafe(const char* what) {
  Held held(lock);
  if (mode_here == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  bool refused = false;
  for (Capture* capture : captures) {
    const bool own = capture->thread == this_thread();
    const bool counts = own ? capture->mode != cudaStreamCaptureModeRelaxed
                            : capture->mode == cudaStreamCaptureModeGlobal &&
                                  mode_here == cudaStreamCaptureModeGlobal;
    if (!counts) continue;
    refused = true;
    spoil(capture, what);
  }
  return refused ? refuse(cudaErrorStreamCaptureUnsupported, what) : cudaSuccess;
}

// A default stream would wait for a stream that does not say otherwise.
cudaError_t unless_implicit(cudaStream_t stream, const char* what) {
  if (!is_default(stream)) return cudaSuccess;
  for (Capture* capture : captures) {
    if (capture->origin->flags & cudaStreamNonBlocking) continue;
    if (capture->origin->gpu != current_gpu) continue;
    spoil(capture, what);
    return refuse(cudaErrorStreamCaptureImplicit, what);
  }
  return cudaSuccess;
}

// A question about a stream.
cudaError_t asked(cudaStream_t stream, const char* what) {
  Held held(lock);
  if (Capture* capture = capture_of(stream)) {
    spoil(capture, what);
    return refuse(cudaErrorStreamCaptureUnsupported, what);
  }
  return unless_implicit(stream, what);
}

cudaError_t asked(cudaEvent_t event, const char* what) {
  Held held(lock);
  const unsigned long number = reinterpret_cast<Event*>(event)->capture;
  if (!number) return unless_unsafe(what);
  if (Capture* capture = numbered(number)) spoil(capture, what);
  return refuse(cudaErrorCapturedEvent, what);
}

enum class Work { refused, captured, now };

Work work(cudaStream_t stream, const char* what) {
  Held held(lock);
  if (Capture* capture = capture_of(stream)) {
    if (capture->spoilt) {
      refuse(cudaErrorStreamCaptureInvalidated, what);
      return Work::refused;
    }
    capture->graph->nodes++;
    return Work::captured;
  }
  return unless_implicit(stream, what) ? Work::refused : Work::now;
}

// Does what is not captured; a kernel does nothing.
template <typename Do>
cudaError_t done(cudaStream_t stream, const char* what, Do now) {
  const Work kind = work(stream, what);
  if (kind == Work::now) now();
  return kind == Work::refused ? last_error : cudaSuccess;
}

cudaError_t done(cudaStream_t stream, const char* what) {
  return done(stream, what, [] {});
}

bool is_there(const Stretch& stretch) {
  auto found = of_gpus.upper_bound(stretch.start);
  if (found == of_gpus.begin()) return false;
  --found;
  return stretch.start + stretch.size <= found->first + found->second.first;
}

// Leaves traces, as a product does in what it works in.
void scribble(const Stretch& stretch) {
  if (!is_there(stretch)) die("work in memory that is not there", stretch.start, stretch.size);
  for (size_t at = 0; at < stretch.size; at += 1 << 20) memset(stretch.start + at, 0xCD, 64);
}

size_t in_pages(size_t size) { return (size + kPage - 1) & ~(kPage - 1); }

double milliseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e3 * now.tv_sec + 1e-6 * now.tv_nsec;
}

template <typename Function>
cudaError_t entry_point(const char* name, void** function, Function* found) {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  *function = driver ? dlsym(driver, name) : nullptr;
  if (found)
    *found = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}

void properties_of(cudaDeviceProp* it, int gpu) {
  memset(it, 0, sizeof *it);
  snprintf(it->name, sizeof it->name, "Stand-in %d.%d", capability / 10, capability % 10);
  it->major = capability / 10;
  it->minor = capability % 10;
  it->totalGlobalMem = memory;
  it->multiProcessorCount = 132;
  it->warpSize = 32;
  it->maxThreadsPerBlock = it->maxThreadsDim[0] = it->maxThreadsDim[1] = 1024;
  it->maxThreadsDim[2] = 64;
  it->maxThreadsPerMultiProcessor = 2048;
  it->maxBlocksPerMultiProcessor = 32;
  it->maxGridSize[0] = 2147483647;
  it->maxGridSize[1] = it->maxGridSize[2] = 65535;
  it->sharedMemPerBlock = 48 << 10;
  it->sharedMemPerBlockOptin = 227 << 10;
  it->sharedMemPerMultiprocessor = 228 << 10;
  it->regsPerBlock = it->regsPerMultiprocessor = 65536;
  it->l2CacheSize = 50 << 20;
  it->textureAlignment = 512;
  it->unifiedAddressing = it->concurrentKernels = 1;
  it->pciBusID = gpu + 1;
}

}  // namespace

extern "C" {

// For stand_in_gpu.py, and for the stand-ins of cuBLAS and of the driver.

void stand_in_listen(void (*replay)(unsigned long), void (*destroy)(unsigned long)) {
  on_replay = replay;
  on_destroy = destroy;
}

unsigned long stand_in_capture(cudaStream_t stream) {
  Held held(lock);
  Capture* capture = capture_of(stream);
  return capture ? capture->number : 0;
}

int stand_in_work(cudaStream_t stream, void* works_in, size_t size, const char* what) {
  Held held(lock);
  const Work kind = work(stream, what);
  const Stretch stretch{static_cast<char*>(works_in), size};
  if (kind == Work::now && works_in && size) scribble(stretch);
  if (kind == Work::captured && works_in && size)
    capture_of(stream)->graph->works_in.push_back(stretch);
  return kind == Work::refused ? -1 : 0;
}

// GPUs

cudaError_t cudaGetDeviceCount(int* count) { return *count = gpus, cudaSuccess; }
cudaError_t cudaGetDevice(int* gpu) { return *gpu = current_gpu, cudaSuccess; }

cudaError_t cudaSetDevice(int gpu) {
  if (gpu < 0 || gpu >= gpus) return refuse(cudaErrorInvalidDevice, __func__);
  current_gpu = gpu;
  return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int* it) { return *it = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* it) { return *it = CUDART_VERSION, cudaSuccess; }

#if CUDART_VERSION < 13000
cudaError_t cudaGetDeviceProperties_v2(cudaDeviceProp* it, int gpu) {
#else
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* it, int gpu) {
#endif
  properties_of(it, gpu);
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int gpu) {
  cudaDeviceProp it;
  properties_of(&it, gpu);
  const std::map<int, int> values{
      {cudaDevAttrComputeCapabilityMajor, it.major},
      {cudaDevAttrComputeCapabilityMinor, it.minor},
      {cudaDevAttrCooperativeLaunch, 1},
      {cudaDevAttrL2CacheSize, it.l2CacheSize},
      {cudaDevAttrMaxBlockDimX, it.maxThreadsDim[0]},
      {cudaDevAttrMaxBlockDimY, it.maxThreadsDim[1]},
      {cudaDevAttrMaxBlockDimZ, it.maxThreadsDim[2]},
      {cudaDevAttrMaxGridDimX, it.maxGridSize[0]},
      {cudaDevAttrMaxGridDimY, it.maxGridSize[1]},
      {cudaDevAttrMaxGridDimZ, it.maxGridSize[2]},
      {cudaDevAttrMaxRegistersPerBlock, it.regsPerBlock},
      {cudaDevAttrMaxRegistersPerMultiprocessor, it.regsPerMultiprocessor},
      {cudaDevAttrMaxSharedMemoryPerBlock, static_cast<int>(it.sharedMemPerBlock)},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, static_cast<int>(it.sharedMemPerBlockOptin)},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor,
       static_cast<int>(it.sharedMemPerMultiprocessor)},
      {cudaDevAttrMaxThreadsPerBlock, it.maxThreadsPerBlock},
      {cudaDevAttrMaxThreadsPerMultiProcessor, it.maxThreadsPerMultiProcessor},
      {cudaDevAttrMemoryPoolsSupported, 1},
      {cudaDevAttrMultiProcessorCount, it.multiProcessorCount},
      {cudaDevAttrUnifiedAddressing, 1},
      {cudaDevAttrWarpSize, it.warpSize},
  };
  const auto found = values.find(attribute);
  *value = found == values.end() ? 0 : found->second;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char* name, int size, int gpu) {
  snprintf(name, size, "0000:%02x:00.0", gpu + 1);
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaSuccess; }

// A wait for all streams of a GPU would wait for those that are captured.
cudaError_t cudaDeviceSynchronize() {
  Held held(lock);
  bool refused = false;
  for (Capture* capture : captures) {
    if (capture->origin->gpu != current_gpu) continue;
    spoil(capture, __func__);
    refused = true;
  }
  return refused ? refuse(cudaErrorStreamCaptureUnsupported, __func__) : cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* left, size_t* whole) {
  *whole = memory;
  *left = memory - used[current_gpu];
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorStreamCaptureInvalidated:
      return "operation failed due to a previous error during capture";
    case cudaErrorStreamCaptureImplicit:
      return "operation would make the legacy stream depend on a capturing blocking stream";
    case cudaErrorStreamCaptureWrongThread:
      return "attempt to terminate a thread-local capture sequence from another thread";
    case cudaErrorCapturedEvent:
      return "operation not permitted on an event last recorded in a capturing stream";
    case cudaErrorIllegalState:
      return "the operation cannot be performed in the present state";
    default:
      return "an error of the stand-in";
  }
}

// Memory

cudaError_t cudaMalloc(void** given, size_t size) {
  if (cudaError_t error = unless_unsafe(__func__)) return error;
  Held held(lock);
  if (used[current_gpu] + size > memory) return refuse(cudaErrorMemoryAllocation, __func__);
  // Between two pages that nobody can touch.
  const size_t whole = in_pages(size) + 2 * kPage;
  void* mapped = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return refuse(cudaErrorMemoryAllocation, __func__);
  char* start = static_cast<char*>(mapped) + kPage;
  mprotect(start, in_pages(size), PROT_READ | PROT_WRITE);
  of_gpus[start] = {size, current_gpu};
  used[current_gpu] += size;
  log("%zu bytes are given, at %p", size, start);
  *given = start;
  return cudaSuccess;
}

cudaError_t cudaFree(void* given) {
  if (cudaError_t error = unless_unsafe(__func__)) return error;
  if (!given) return cudaSuccess;
  Held held(lock);
  const auto found = of_gpus.find(static_cast<char*>(given));
  if (found == of_gpus.end()) return refuse(cudaErrorInvalidValue, __func__);
  const auto [size, gpu] = found->second;
  used[gpu] -= size;
  of_gpus.erase(found);
  // Its addresses are not given out again: who reads them, dies.
  madvise(given, in_pages(size), MADV_DONTNEED);
  mprotect(given, in_pages(size), PROT_NONE);
  log("%zu bytes are given back, at %p", size, given);
  return cudaSuccess;
}

cudaError_t cudaMallocAsync(void** given, size_t size, cudaStream_t) {
  return cudaMalloc(given, size);
}

cudaError_t cudaFreeAsync(void* given, cudaStream_t) { return cudaFree(given); }

cudaError_t cudaHostAlloc(void** given, size_t size, unsigned) {
  if (cudaError_t error = unless_unsafe(__func__)) return error;
  Held held(lock);
  *given = aligned_alloc(kPage, in_pages(size));
  of_host[static_cast<char*>(*given)] = size;
  return cudaSuccess;
}

cudaError_t cudaMallocHost(void** given, size_t size) { return cudaHostAlloc(given, size, 0); }

cudaError_t cudaFreeHost(void* given) {
  if (cudaError_t error = unless_unsafe(__func__)) return error;
  Held held(lock);
  of_host.erase(static_cast<char*>(given));
  free(given);
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void* start, size_t size, unsigned) {
  Held held(lock);
  of_host[static_cast<char*>(start)] = size;
  return cudaSuccess;
}

cudaError_t cudaHostUnregister(void* start) {
  Held held(lock);
  of_host.erase(static_cast<char*>(start));
  return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  return *device = host, cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* it, const void* pointer) {
  Held held(lock);
  char* at = static_cast<char*>(const_cast<void*>(pointer));
  memset(it, 0, sizeof *it);
  it->type = cudaMemoryTypeUnregistered;
  it->device = -2;
  if (is_there({at, 1})) {
    it->type = cudaMemoryTypeDevice;
    it->device = std::prev(of_gpus.upper_bound(at))->second.second;
    it->devicePointer = at;
    return cudaSuccess;
  }
  const auto after = of_host.upper_bound(at);
  if (after == of_host.begin()) return cudaSuccess;
  const auto [start, size] = *std::prev(after);
  if (at < start + size) {
    it->type = cudaMemoryTypeHost;
    it->device = 0;
    it->hostPointer = it->devicePointer = at;
  }
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(
    void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t stream) {
  return done(stream, __func__, [=] { memmove(to, from, size); });
}

cudaError_t cudaMemcpyPeerAsync(
    void* to, int, const void* from, int, size_t size, cudaStream_t stream) {
  return done(stream, __func__, [=] { memmove(to, from, size); });
}

cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  if (cudaError_t error = unless_unsafe(__func__)) return error;
  return done(nullptr, __func__, [=] { memmove(to, from, size); });
}

cudaError_t cudaMemcpy2DAsync(void* to, size_t step, const void* from, size_t step_from,
                              size_t width, size_t height, cudaMemcpyKind, cudaStream_t stream) {
  return done(stream, __func__, [=] {
    for (size_t row = 0; row < height; row++)
      memmove(static_cast<char*>(to) + row * step,
              static_cast<const char*>(from) + row * step_from, width);
  });
}

cudaError_t cudaMemset(void* to, int value, size_t size) {
  if (cudaError_t error = unless_unsafe(__func__)) return error;
  return done(nullptr, __func__, [=] { memset(to, value, size); });
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
  return done(stream, __func__, [=] { memset(to, value, size); });
}

// Streams and events

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* made, unsigned flags, int priority) {
  *made = reinterpret_cast<cudaStream_t>(new Stream{flags, priority, current_gpu});
  return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t* made) {
  return cudaStreamCreateWithPriority(made, cudaStreamDefault, 0);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* made, unsigned flags) {
  return cudaStreamCreateWithPriority(made, flags, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
  *priority = is_default(stream) ? 0 : reinterpret_cast<Stream*>(stream)->priority;
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return asked(stream, __func__); }

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  if (cudaError_t error = unless_unsafe(__func__)) return error;
  return asked(stream, __func__);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* made, unsigned) {
  *made = reinterpret_cast<cudaEvent_t>(new Event);
  return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t* made) { return cudaEventCreateWithFlags(made, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t event) { return asked(event, __func__); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return asked(event, __func__); }

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Held held(lock);
  Capture* capture = capture_of(stream);
  if (capture && capture->spoilt) return refuse(cudaErrorStreamCaptureInvalidated, __func__);
  *reinterpret_cast<Event*>(event) = {capture ? capture->number : 0, milliseconds()};
  return cudaSuccess;
}

cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  return cudaEventRecord(event, stream);
}

cudaError_t cudaEventElapsedTime(float* it, cudaEvent_t from, cudaEvent_t to) {
  *it = reinterpret_cast<Event*>(to)->milliseconds - reinterpret_cast<Event*>(from)->milliseconds;
  return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Held held(lock);
  const unsigned long number = reinterpret_cast<Event*>(event)->capture;
  Capture* of_event = numbered(number);
  Capture* of_stream = capture_of(stream);
  if (!of_event) {
    if (!of_stream) return cudaSuccess;
    spoil(of_stream, __func__);
    return refuse(cudaErrorStreamCaptureIsolation, __func__);
  }
  if (is_default(stream) || (of_stream && of_stream != of_event)) {
    spoil(of_event, __func__);
    const bool implicit = is_default(stream);
    return refuse(implicit ? cudaErrorStreamCaptureImplicit : cudaErrorStreamCaptureMerge, __func__);
  }
  auto* joining = reinterpret_cast<Stream*>(stream);
  joining->capture = of_event;
  if (joining != of_event->origin) of_event->joined.insert(joining);
  return cudaSuccess;
}

cudaError_t cudaStreamAddCallback(
    cudaStream_t stream, cudaStreamCallback_t callback, void* data, unsigned) {
  if (capture_of(stream)) return refuse(cudaErrorStreamCaptureUnsupported, __func__);
  callback(stream, cudaSuccess, data);
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  return done(stream, __func__, [=] { function(data); });
}

// Captures and graphs

cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, mode_here);
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  Held held(lock);
  if (is_default(stream)) return refuse(cudaErrorStreamCaptureUnsupported, __func__);
  auto* origin = reinterpret_cast<Stream*>(stream);
  if (origin->capture) {
    spoil(origin->capture, __func__);
    return refuse(cudaErrorIllegalState, __func__);
  }
  auto* graph = new Graph{++last_capture};
  origin->capture = new Capture{last_capture, mode, this_thread(), origin, {}, graph};
  captures.insert(origin->capture);
  log("capture %lu begins", last_capture);
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* made) {
  Held held(lock);
  *made = nullptr;
  Capture* capture = capture_of(stream);
  if (!capture) return refuse(cudaErrorIllegalState, __func__);
  if (capture->origin != reinterpret_cast<Stream*>(stream)) {
    spoil(capture, __func__);
    return refuse(cudaErrorStreamCaptureUnmatched, __func__);
  }
  if (capture->mode == cudaStreamCaptureModeThreadLocal && capture->thread != this_thread()) {
    spoil(capture, __func__);
    return refuse(cudaErrorStreamCaptureWrongThread, __func__);
  }
  captures.erase(capture);
  capture->origin->capture = nullptr;
  for (Stream* joined : capture->joined) joined->capture = nullptr;
  log("capture %lu ends with %zu nodes%s", capture->number, capture->graph->nodes,
      capture->spoilt ? ", spoilt" : "");
  if (capture->spoilt) return refuse(cudaErrorStreamCaptureInvalidated, __func__);
  *made = reinterpret_cast<cudaGraph_t>(capture->graph);
  return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  Held held(lock);
  Capture* capture = capture_of(stream);
  *status = !capture           ? cudaStreamCaptureStatusNone
            : capture->spoilt ? cudaStreamCaptureStatusInvalidated
                              : cudaStreamCaptureStatusActive;
  return unless_implicit(stream, __func__);
}

cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                        unsigned long long* number, cudaGraph_t* graph,
                                        const cudaGraphNode_t** nodes, size_t* count) {
  Held held(lock);
  Capture* capture = capture_of(stream);
  if (number) *number = capture ? capture->number : 0;
  if (graph) *graph = capture ? reinterpret_cast<cudaGraph_t>(capture->graph) : nullptr;
  if (nodes) *nodes = nullptr;
  if (count) *count = 0;
  return cudaStreamIsCapturing(stream, status);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  if (cudaError_t error = unless_unsafe(__func__)) return error;
  *made = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiateWithFlags(
    cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long flags) {
  return cudaGraphInstantiate(made, graph, flags);
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  return *count = reinterpret_cast<Graph*>(graph)->nodes, cudaSuccess;
}

cudaError_t cudaGraphDebugDotPrint(cudaGraph_t, const char*, unsigned) { return cudaSuccess; }

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  if (cudaError_t error = unless_unsafe(__func__)) return error;
  auto* destroyed = reinterpret_cast<Graph*>(graph);
  if (on_destroy) on_destroy(destroyed->number);
  delete destroyed;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  const auto launched = *reinterpret_cast<Graph*>(graph);
  const Work kind = work(stream, __func__);
  if (kind == Work::refused) return last_error;
  if (kind == Work::captured) return cudaSuccess;
  {
    Held held(lock);
    for (const Stretch& stretch : launched.works_in) scribble(stretch);
  }
  if (on_replay) on_replay(launched.number);
  return cudaSuccess;
}

// Kernels

cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return done(stream, __func__);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* launch, const void*, void**) {
  return done(launch->stream, __func__);
}

cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}

cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return done(stream, __func__);
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  launches.push_back({grid, block, shared, static_cast<cudaStream_t>(stream)});
  return 0;
}

cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const Launch launch = launches.back();
  launches.pop_back();
  *grid = launch.grid;
  *block = launch.block;
  *shared = launch.shared;
  *static_cast<cudaStream_t*>(stream) = launch.stream;
  return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* it, const void*) {
  memset(it, 0, sizeof *it);
  it->maxThreadsPerBlock = 1024;
  it->numRegs = 32;
  it->binaryVersion = it->ptxVersion = capability;
  return cudaSuccess;
}

cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
    int* blocks, const void*, int, size_t, unsigned) {
  return *blocks = 4, cudaSuccess;
}

void** __cudaRegisterFatBinary(void*) {
  static void* registered = nullptr;
  return &registered;
}

void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(
    void**, const char*, char*, const char*, int, void*, void*, void*, void*, int*) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
char __cudaInitModule(void**) { return 1; }

cudaError_t cudaProfilerStart() { return cudaSuccess; }
cudaError_t cudaProfilerStop() { return cudaSuccess; }

#if CUDART_VERSION < 13000

cudaError_t cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long,
                                    cudaDriverEntryPointQueryResult* found) {
  return entry_point(name, function, found);
}

#endif

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  return entry_point(name, function, found);
}

#if CUDART_VERSION >= 13000

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* number, cudaGraph_t* graph,
                                     const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges,
                                     size_t* count) {
  if (edges) *edges = nullptr;
  return cudaStreamGetCaptureInfo_v2(stream, status, number, graph, nodes, count);
}

cudaError_t cudaGraphNodeGetDependencies(
    cudaGraphNode_t, cudaGraphNode_t*, cudaGraphEdgeData*, size_t* count) {
  return *count = 0, cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void** address, const void*) {
  static char symbols[1 << 16];
  return *address = symbols, cudaSuccess;
}

cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) {
  return cudaSuccess;
}

#endif

}  // extern "C"
