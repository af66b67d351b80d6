// Stands in for the CUDA driver (libcuda.so.1). Device memory is host memory between guard zones; what a stream is
// given to do is kept back until somebody waits for it, so that a program which does not wait sees old data. What no
// correct program does ends in violation().

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <unordered_set>
#include <vector>

#include "device.h"
#include "grid.h"

namespace {

using namespace standin;

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    SHARED_OBJECT_INIT_FAILED = 303,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_OUT_OF_RESOURCES = 701,
    CONTEXT_IS_DESTROYED = 709,
    HOST_MEMORY_ALREADY_REGISTERED = 712,
    HOST_MEMORY_NOT_REGISTERED = 713,
    NOT_SUPPORTED = 801,
    UNKNOWN = 999,
};

constexpr int MAJOR = 9, MINOR = 0, MULTIPROCESSORS = 4;
constexpr unsigned SHARED_DEFAULT = 48 << 10, SHARED_LIMIT = 227 << 10;
constexpr size_t PAGE = 4096, GUARD = 1024;
constexpr size_t ALIGNMENT = 256;        // of what cuMemAlloc returns, and no more than that
constexpr size_t ARENA = size_t(8) << 40;  // address space of a device: none of it is ever used twice
constexpr unsigned char GUARD_BYTE = 0xa5, POISON = 0xff;

struct Allocation {
    size_t bytes;
    char *pages;
    size_t page_bytes;
};

struct Pinned {
    size_t bytes;
    bool owned;  // by cuMemHostAlloc, not registered
};

struct Device {
    int ordinal;
    int retained = 0;
    size_t used = 0;
    char *arena = nullptr;
    size_t top = 0;
    std::map<uintptr_t, Allocation> live;
    std::vector<Stream *> streams;  // and those destroyed with work left
};

struct Record {
    Stream *stream;
    uint64_t position;
    std::chrono::steady_clock::time_point time;
};

struct Event {
    int device;
    bool timed;
    std::shared_ptr<Record> last;
};

struct Module {
    int device;
    void *library;
    const standin_module *table;
};

struct Function {
    Module *module;
    const standin_kernel *kernel;
    unsigned dynamic_limit = SHARED_DEFAULT;
};

struct Failure {
    std::string function;
    long from;
    bool onwards;
    int code;  // -1: the caller's choice
};

// Never destroyed: threads may still be at it when the process ends.
struct State {
    std::recursive_mutex mutex;
    bool initialised = false;
    std::vector<Device> devices;
    std::map<uintptr_t, Pinned> pinned;
    // Handles are never freed, so that none is ever used twice; these are the ones alive.
    std::unordered_set<const void *> streams, events, modules, functions, handles;
    unsigned stream_count = 0;
    std::vector<Failure> failures;
    std::map<std::string, long> calls;
    size_t memory = size_t(1) << 30;
    int version = 13000;
    int log = -1;
    bool leaks = false;
    bool has_pools = true;

    State() {
        const char *text = getenv("STANDIN_DEVICES");
        devices.resize(text ? std::max(atoi(text), 0) : 1);
        for (size_t i = 0; i < devices.size(); i++) devices[i].ordinal = int(i);
        if ((text = getenv("STANDIN_MEMORY"))) memory = strtoull(text, nullptr, 10);
        if ((text = getenv("STANDIN_DRIVER"))) version = atoi(text);
        if ((text = getenv("STANDIN_LOG"))) {
            log = open(text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
            if (log < 0) violation("STANDIN_LOG=%s cannot be opened", text);
        }
        leaks = (text = getenv("STANDIN_LEAKS")) && !strcmp(text, "1");
        has_pools = !((text = getenv("STANDIN_POOLS")) && !strcmp(text, "0"));
        if ((text = getenv("STANDIN_FAIL"))) read_failures(text);
    }

    void read_failures(const char *text) {
        std::stringstream list(text);
        for (std::string entry; std::getline(list, entry, ',');) {
            std::stringstream parts(entry);
            std::string function, count, code;
            std::getline(parts, function, ':');
            std::getline(parts, count, ':');
            std::getline(parts, code, ':');
            const long from = atol(count.c_str());
            if (from < 1) violation("STANDIN_FAIL: \"%s\" is not function:n[:code]", entry.c_str());
            failures.push_back({plain_name(function.c_str()), from, count.back() == '+',
                                code.empty() ? -1 : atoi(code.c_str())});
        }
    }

    // Without the suffix of a later version of the same function.
    static std::string plain_name(const char *function) {
        std::string name = function;
        if (name.size() > 3 && name.compare(name.size() - 3, 3, "_v2") == 0) name.resize(name.size() - 3);
        return name;
    }
};

State &state() {
    static State *state = new State;
    return *state;
}

thread_local Device *current = nullptr;

Device &device_of(const Stream *stream) { return state().devices[stream->device]; }

// ---- Work --------------------------------------------------------------------------------------------------------

void run_until(Stream *stream, uint64_t position) {
    while (stream->done < position && !stream->queue.empty()) {
        Op op = std::move(stream->queue.front());
        stream->queue.pop_front();
        op.run();
        stream->done++;
    }
}

// In turns from the first stream and from the last, as no order among them may be relied on.
void run_device(Device &device, bool blocking_only = false) {
    static bool forwards = false;
    forwards = !forwards;
    const size_t count = device.streams.size();
    for (size_t i = 0; i < count; i++) {
        Stream *stream = device.streams[forwards ? i : count - 1 - i];
        if (stream->blocking || !blocking_only) run_all(stream);
    }
    auto spent = [](Stream *stream) { return stream->queue.empty() && !state().streams.count(stream); };
    device.streams.erase(std::remove_if(device.streams.begin(), device.streams.end(), spent), device.streams.end());
}

void check_guards(int ordinal, uintptr_t at, const Allocation &allocation, const char *after) {
    static const std::vector<unsigned char> intact(GUARD, GUARD_BYTE);
    auto begin = reinterpret_cast<const unsigned char *>(at);
    for (const unsigned char *zone : {begin - GUARD, begin + allocation.bytes}) {
        if (!memcmp(zone, intact.data(), GUARD)) continue;
        const unsigned char *hit = zone;
        while (*hit == GUARD_BYTE) hit++;
        violation("%s: device %d, allocation of %zu bytes at %p: written to outside, at offset %td", after, ordinal,
                  allocation.bytes, static_cast<const void *>(begin), hit - begin);
    }
}

void check_guards(const Device &device, const char *after) {
    for (const auto &[at, allocation] : device.live) check_guards(device.ordinal, at, allocation, after);
}

void check_all_guards(const char *after) {
    for (const Device &device : state().devices) check_guards(device, after);
}

// ---- Memory ------------------------------------------------------------------------------------------------------

// The entry of `map` that starts at or before `at`, or the end.
template <class Map>
auto entry_before(Map &map, uintptr_t at) {
    auto entry = map.upper_bound(at);
    return entry == map.begin() ? map.end() : std::prev(entry);
}

const Device *device_holding(const void *at) {
    for (const Device &device : state().devices) {
        auto offset = static_cast<const char *>(at) - device.arena;
        if (device.arena && offset >= 0 && size_t(offset) < ARENA) return &device;
    }
    return nullptr;
}

// Whether host memory is pinned. Memory of which only a part is pinned cannot be copied from or to.
bool is_pinned(const void *at, size_t bytes) {
    if (const Device *device = device_holding(at))
        violation("%p is memory of device %d, but was given as host memory", at, device->ordinal);
    const auto begin = reinterpret_cast<uintptr_t>(at);
    const auto entry = entry_before(state().pinned, begin + bytes - 1);
    if (entry == state().pinned.end() || begin >= entry->first + entry->second.bytes) return false;
    if (begin < entry->first || begin + bytes > entry->first + entry->second.bytes)
        violation("%zu bytes of host memory at %p: only a part of them is pinned", bytes, at);
    return true;
}

void refuse_pending(uintptr_t begin, size_t bytes, const char *call) {
    for (const Device &device : state().devices)
        for (const Stream *stream : device.streams)
            for (const Op &op : stream->queue) {
                const auto at = reinterpret_cast<uintptr_t>(op.host);
                if (op.host && at < begin + bytes && begin < at + op.bytes)
                    violation("%s: a copy on stream %u that uses this memory has not been waited for", call,
                              stream->number);
            }
}

// One end of a copy.
struct Side {
    bool device;
    char *at;
    size_t pitch;
};

char *address(uint64_t pointer) { return reinterpret_cast<char *>(pointer); }

// Copies `height` rows of `width` bytes: on a stream, or at once where there is none.
int copy(Device *device, Stream *stream, Side to, Side from, size_t width, size_t height) {
    if (width == 0 || height == 0) return SUCCESS;
    const void *host = nullptr;
    size_t host_bytes = 0;
    bool pinned = true;
    for (const Side *side : {&to, &from}) {
        const size_t extent = (height - 1) * side->pitch + width;
        if (side->device) {
            check_range(device->ordinal, side->at, extent, side == &to ? "copy to" : "copy from");
        } else {
            host = side->at;
            host_bytes = extent;
            pinned &= is_pinned(host, host_bytes);
        }
    }
    if (height == 1 && to.at < from.at + width && from.at < to.at + width)
        violation("copy of %zu bytes from %p to %p: they overlap", width, static_cast<void *>(from.at),
                  static_cast<void *>(to.at));
    const char *kind = !to.device ? (from.device ? "d2h" : "h2h") : from.device ? "d2d" : "h2d";
    const char *manner = !host ? "device" : pinned ? "pinned" : "pageable";
    if (height == 1)
        log(device->ordinal, stream, "copy %s bytes=%zu %s", kind, width, manner);
    else
        log(device->ordinal, stream, "copy2d %s width=%zu height=%zu %s", kind, width, height, manner);
    auto run = [=] {
        for (size_t row = 0; row < height; row++) memmove(to.at + row * to.pitch, from.at + row * from.pitch, width);
    };
    if (stream && pinned) {
        push(stream, run);
        stream->queue.back().host = host;
        stream->queue.back().bytes = host_bytes;
        return SUCCESS;
    }
    if (stream)
        run_all(stream);
    else
        run_device(*device, true);
    run();
    check_guards(*device, "synchronous copy");
    return SUCCESS;
}

int fill(Stream *stream, uint64_t to, unsigned value, size_t size, size_t count) {
    if (to % size) return INVALID_VALUE;
    if (count == 0) return SUCCESS;
    check_range(stream->device, address(to), count * size, "memset");
    log(stream->device, stream, "memset bytes=%zu", count * size);
    push(stream, [=] {
        if (size == 1)
            memset(address(to), int(value), count);
        else
            std::fill_n(reinterpret_cast<unsigned *>(address(to)), count, value);
    });
    return SUCCESS;
}

// The legacy default stream is not there: a null stream is a forgotten one.
bool no_stream(const char *call) {
    fprintf(stderr, "stand-in: %s: there is no stream\n", call);
    return false;
}

// Queued work must go to a stream of the device whose context is current.
Stream *stream_here(void *handle, const Device *device, const char *call) {
    Stream *stream = checked_stream(handle);
    if (stream->device != device->ordinal)
        violation("%s: stream %u is of device %d, the current context of device %d", call, stream->number,
                  stream->device, device->ordinal);
    return stream;
}

template <class T>
T *checked(const std::unordered_set<const void *> &alive, void *handle, const char *what) {
    if (!alive.count(handle)) violation("%s %p does not exist (any more)", what, handle);
    return static_cast<T *>(handle);
}

void put_out_of_reach(const Allocation &allocation) {
    // The addresses stay reserved, so that whoever still uses them crashes.
    constexpr int FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    mmap(allocation.pages, allocation.page_bytes, PROT_NONE, FLAGS, -1, 0);
}

// New memory, or out of it.
int allocate(Device &device, uint64_t *pointer, size_t bytes) {
    if (bytes > state().memory - device.used) return OUT_OF_MEMORY;
    if (!device.arena) {
        void *arena = mmap(nullptr, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (arena == MAP_FAILED) violation("no address space for a device");
        device.arena = static_cast<char *>(arena);
    }
    const size_t page_bytes = (PAGE + ALIGNMENT + bytes + GUARD + PAGE - 1) / PAGE * PAGE;
    char *pages = device.arena + device.top;
    if (page_bytes + PAGE > ARENA - device.top) violation("the addresses of a device are used up");
    if (mprotect(pages, page_bytes, PROT_READ | PROT_WRITE)) return OUT_OF_MEMORY;
    device.top += page_bytes + PAGE;  // a page out of reach follows
    char *at = pages + PAGE + ALIGNMENT;
    memset(at - GUARD, GUARD_BYTE, GUARD);
    memset(at, POISON, bytes);
    memset(at + bytes, GUARD_BYTE, GUARD);
    device.live[reinterpret_cast<uintptr_t>(at)] = {bytes, pages, page_bytes};
    device.used += bytes;
    *pointer = reinterpret_cast<uint64_t>(at);
    return SUCCESS;
}

void free_allocation(Device &device, std::map<uintptr_t, Allocation>::iterator entry) {
    const Allocation &allocation = entry->second;
    device.used -= allocation.bytes;
    put_out_of_reach(allocation);
    device.live.erase(entry);
}

void destroy_context(Device &device) {
    run_device(device);
    check_guards(device, "cuDevicePrimaryCtxRelease");
    if (state().leaks)
        for (const auto &[at, allocation] : device.live)
            fprintf(stderr, "stand-in: device %d: %zu bytes at %#zx were never freed\n", device.ordinal,
                    allocation.bytes, size_t(at));
    while (!device.live.empty()) free_allocation(device, device.live.begin());
    for (Stream *stream : device.streams) state().streams.erase(stream);
    device.streams.clear();
}

}  // namespace

// ---- What the other libraries use --------------------------------------------------------------------------------

namespace standin {

std::unique_lock<std::recursive_mutex> lock() { return std::unique_lock(state().mutex); }

void violation(const char *format, ...) {
    // One write, so that the line stays whole.
    char text[1024] = "stand-in: ";
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    used += vsnprintf(text + used, sizeof text - used - 1, format, arguments);
    va_end(arguments);
    used = std::min(used, sizeof text - 2);
    text[used++] = '\n';
    if (write(STDERR_FILENO, text, used) < 0) {}
    abort();
}

int injected(const char *function, int fallback) {
    auto guard = lock();
    if (state().failures.empty()) return 0;
    const std::string name = State::plain_name(function);
    const long call = ++state().calls[name];
    for (const Failure &failure : state().failures)
        if (failure.function == name && (failure.onwards ? call >= failure.from : call == failure.from))
            return failure.code < 0 ? fallback : failure.code;
    return 0;
}

void log(int device, const Stream *stream, const char *format, ...) {
    if (state().log < 0) return;
    char text[512];
    size_t used = snprintf(text, sizeof text, "device=%d stream=%u ", device, stream ? stream->number : 0);
    va_list arguments;
    va_start(arguments, format);
    used += vsnprintf(text + used, sizeof text - used - 1, format, arguments);
    va_end(arguments);
    used = std::min(used, sizeof text - 2);
    text[used++] = '\n';
    if (write(state().log, text, used) < 0) violation("STANDIN_LOG cannot be written");
}

int current_device() { return current && current->retained ? current->ordinal : -1; }

Stream *checked_stream(void *handle) { return checked<Stream>(state().streams, handle, "stream"); }

void push(Stream *stream, std::function<void()> run) {
    stream->queue.push_back({std::move(run)});
    stream->pushed++;
}

void run_all(Stream *stream) { run_until(stream, stream->pushed); }

void check_range(int device, const void *at, size_t bytes, const char *what) {
    if (bytes == 0) return;
    const Device *holder = device_holding(at);
    if (!holder) violation("%s: %p is not device memory", what, at);
    if (holder->ordinal != device)
        violation("%s: %p is memory of device %d, used on device %d", what, at, holder->ordinal, device);
    const auto begin = reinterpret_cast<uintptr_t>(at);
    const auto entry = entry_before(holder->live, begin);
    if (entry == holder->live.end() || begin > entry->first + entry->second.bytes)
        violation("%s: %p lies in no allocation of device %d", what, at, device);
    if (const size_t offset = begin - entry->first; bytes > entry->second.bytes - offset)
        violation("%s: %zu bytes at offset %zu of an allocation of %zu bytes", what, bytes, offset,
                  entry->second.bytes);
}

void check_operands(const Stream *stream, const char *call, std::initializer_list<Operand> operands) {
    for (const Operand &operand : operands) {
        char what[128];
        snprintf(what, sizeof what, "%s, %s", call, operand.name);
        check_range(stream->device, operand.at, operand.extent(), what);
        if (operand.extent() && reinterpret_cast<uintptr_t>(operand.at) % operand.size)
            violation("%s: %p is not aligned to its elements", what, operand.at);
    }
    for (const Operand &one : operands)
        for (const Operand &two : operands) {
            if (&one == &two || !one.written || !one.extent() || !two.extent()) continue;
            auto a = static_cast<const char *>(one.at), b = static_cast<const char *>(two.at);
            if (a >= b + two.extent() || b >= a + one.extent()) continue;
            // Two bands of rows of one larger matrix interleave without touching.
            const int64_t pitch = one.ld * int64_t(one.size);
            if (pitch > 0 && pitch == two.ld * int64_t(two.size)) {
                const int64_t shift = ((b - a) % pitch + pitch) % pitch;
                if (shift >= one.rows * int64_t(one.size) && shift + two.rows * int64_t(two.size) <= pitch) continue;
            }
            violation("%s: %s, which is written, overlaps %s", call, one.name, two.name);
        }
}

Handle *new_handle() {
    if (current_device() < 0) return nullptr;
    auto handle = new Handle{current_device()};
    state().handles.insert(handle);
    return handle;
}

void delete_handle(void *handle) { state().handles.erase(handle); }

Handle *checked_handle(void *handle, const char *call) {
    auto checked_handle = checked<Handle>(state().handles, handle, "library handle");
    if (checked_handle->device != current_device())
        violation("%s: the handle is of device %d, the current context of device %d", call, checked_handle->device,
                  current_device());
    return checked_handle;
}

bool bind_handle(Handle *handle, void *raw, const char *call) {
    if (!raw) return no_stream(call);
    Stream *stream = checked_stream(raw);
    if (stream->device != handle->device)
        violation("%s: stream %u is of device %d, the handle of device %d", call, stream->number, stream->device,
                  handle->device);
    handle->stream = stream;
    return true;
}

Stream *bound_stream(const Handle *handle, const char *call) {
    return handle->stream || no_stream(call) ? checked_stream(handle->stream) : nullptr;
}

}  // namespace standin

// ---- The driver's functions --------------------------------------------------------------------------------------

// Fails if the test wants it, and takes the lock.
#define ENTER                                                                                       \
    if (int status = injected(__func__, strstr(__func__, "Alloc") ? OUT_OF_MEMORY : UNKNOWN)) return status; \
    auto guard = standin::lock();
#define ENTER_INITIALISED \
    ENTER                 \
    if (!state().initialised) return NOT_INITIALIZED;
#define ENTER_CONTEXT                    \
    ENTER_INITIALISED                    \
    Device *const device = current;      \
    if (!device) return INVALID_CONTEXT; \
    if (!device->retained) return CONTEXT_IS_DESTROYED;
#define ENTER_STREAM(handle)                                \
    ENTER_CONTEXT                                           \
    if (!handle && !no_stream(__func__)) return INVALID_HANDLE; \
    Stream *const stream = stream_here(handle, device, __func__);
#define NEED(condition) \
    if (!(condition)) return INVALID_VALUE;
#define ENTER_DEVICE(ordinal) \
    ENTER_INITIALISED          \
    if (ordinal < 0 || size_t(ordinal) >= state().devices.size()) return INVALID_DEVICE;

struct Uuid {
    char bytes[16];
};

// CUDA_MEMCPY2D
struct Copy2D {
    struct {
        size_t x, y;
        unsigned type;
        void *host;
        uint64_t device;
        void *array;
        size_t pitch;
    } from, to;
    size_t width, height;
};

extern "C" {

int cuInit(unsigned flags) {
    ENTER
    NEED(flags == 0)
    if (state().devices.empty()) return NO_DEVICE;
    state().initialised = true;
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    ENTER
    NEED(version)
    *version = state().version;
    return SUCCESS;
}

int cuDeviceGetCount(int *count) {
    ENTER_INITIALISED
    *count = int(state().devices.size());
    return SUCCESS;
}

int cuDeviceGet(int *out, int ordinal) {
    ENTER_DEVICE(ordinal)
    *out = ordinal;
    return SUCCESS;
}

int cuDeviceGetName(char *name, int length, int ordinal) {
    ENTER_DEVICE(ordinal)
    NEED(length > 0)
    snprintf(name, size_t(length), "Stand-in %d", ordinal);
    return SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int ordinal) {
    ENTER_DEVICE(ordinal)
    *bytes = state().memory;
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int ordinal) {
    ENTER_DEVICE(ordinal)
    static const std::map<int, int> values = {
        {1, MAX_THREADS}, {2, 1024}, {3, 1024}, {4, 64},              // threads per block, block x, y, z
        {5, 0x7fffffff}, {6, 65535}, {7, 65535},                      // grid x, y, z
        {8, SHARED_DEFAULT}, {9, 65536}, {10, 32}, {11, 0x7fffffff},  // shared, constant, warp, pitch
        {12, 65536}, {13, 1000000}, {14, 512}, {15, 1},               // registers, kHz, texture alignment, overlap
        {16, MULTIPROCESSORS}, {19, 1}, {31, 1}, {32, 0},             // ..., maps host memory, concurrent kernels, ECC
        {34, 0}, {36, 1000000}, {37, 512}, {38, 4 << 20},             // PCI device, memory kHz, bus bits, L2
        {39, 2048}, {40, 2}, {41, 1},                                 // threads per multiprocessor, engines, UVA
        {75, MAJOR}, {76, MINOR}, {81, 228 << 10}, {82, 65536},       // ..., shared and registers per multiprocessor
        {95, 1}, {97, SHARED_LIMIT}, {99, 1}, {106, 32}, {111, 1024},
    };
    const auto entry = values.find(attribute);
    *value = entry == values.end() ? 0 : entry->second;
    if (attribute == 33) *value = ordinal + 1;         // PCI bus
    if (attribute == 115) *value = state().has_pools;  // memory in the order of a stream
    return SUCCESS;
}

int cuDeviceGetUuid_v2(Uuid *uuid, int ordinal) {
    ENTER_DEVICE(ordinal)
    memcpy(uuid->bytes, "stand-in device", 16);
    uuid->bytes[15] = char(ordinal);
    return SUCCESS;
}

int cuDeviceGetPCIBusId(char *text, int length, int ordinal) {
    ENTER_DEVICE(ordinal)
    NEED(length >= 13)
    snprintf(text, size_t(length), "0000:%02X:00.0", ordinal + 1);
    return SUCCESS;
}

// ---- Contexts: the primary one of each device; the handle is the device ----

int cuDevicePrimaryCtxRetain(void **context, int ordinal) {
    ENTER_DEVICE(ordinal)
    state().devices[ordinal].retained++;
    *context = &state().devices[ordinal];
    return SUCCESS;
}

int cuDevicePrimaryCtxRelease_v2(int ordinal) {
    ENTER_DEVICE(ordinal)
    Device &device = state().devices[ordinal];
    if (device.retained == 0) return INVALID_CONTEXT;
    if (--device.retained == 0) destroy_context(device);
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    ENTER_INITIALISED
    auto device = static_cast<Device *>(context);
    const auto &devices = state().devices;
    if (device && (device < devices.data() || device >= devices.data() + devices.size() || !device->retained))
        return INVALID_CONTEXT;
    current = device;
    return SUCCESS;
}

int cuCtxGetCurrent(void **context) {
    ENTER_INITIALISED
    *context = current;
    return SUCCESS;
}

int cuCtxSynchronize() {
    ENTER_CONTEXT
    run_device(*device);
    check_guards(*device, __func__);
    return SUCCESS;
}

// ---- Memory ----

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    ENTER_CONTEXT
    *total = state().memory;
    *free = state().memory - device->used;
    return SUCCESS;
}

int cuMemAlloc_v2(uint64_t *pointer, size_t bytes) {
    ENTER_CONTEXT
    NEED(pointer && bytes)
    return allocate(*device, pointer, bytes);
}

int cuMemAllocAsync(uint64_t *pointer, size_t bytes, void *handle) {
    ENTER_STREAM(handle)
    NEED(pointer && bytes)
    (void)stream;  // may be used at once: there is nothing that the memory was used for before
    return allocate(*device, pointer, bytes);
}

// Not to be used by calls that come later; work that is queued already may still use it.
int cuMemFreeAsync(uint64_t pointer, void *handle) {
    ENTER_STREAM(handle)
    if (!pointer) return SUCCESS;
    const auto entry = device->live.find(pointer);
    if (entry == device->live.end())
        violation("cuMemFreeAsync: %#zx is not the start of a live allocation of device %d", size_t(pointer), device->ordinal);
    const Allocation allocation = entry->second;
    const int ordinal = device->ordinal;
    device->used -= allocation.bytes;
    device->live.erase(entry);
    push(stream, [=] {
        check_guards(ordinal, pointer, allocation, "cuMemFreeAsync");
        put_out_of_reach(allocation);
    });
    return SUCCESS;
}

int cuDeviceGetDefaultMemPool(void **pool, int ordinal) {
    ENTER_DEVICE(ordinal)
    NEED(pool)
    *pool = &state().devices[ordinal];
    return SUCCESS;
}

int cuMemPoolSetAttribute(void *pool, int, void *value) {
    ENTER_INITIALISED
    NEED(pool && value)
    return SUCCESS;
}

int cuMemFree_v2(uint64_t pointer) {
    ENTER_CONTEXT
    if (!pointer) return SUCCESS;
    const Device *holder = device_holding(address(pointer));
    if (!holder) violation("cuMemFree: %#zx is not device memory", size_t(pointer));
    Device &owner = state().devices[holder->ordinal];
    const auto entry = owner.live.find(pointer);
    if (entry == owner.live.end())
        violation("cuMemFree: %#zx is not the start of a live allocation of device %d", size_t(pointer), owner.ordinal);
    run_device(owner);
    check_guards(owner, __func__);
    free_allocation(owner, entry);
    return SUCCESS;
}

int cuMemHostAlloc(void **pointer, size_t bytes, unsigned) {
    ENTER_CONTEXT
    NEED(pointer && bytes)
    void *at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) return OUT_OF_MEMORY;
    memset(at, POISON, bytes);
    state().pinned[reinterpret_cast<uintptr_t>(at)] = {bytes, true};
    *pointer = at;
    return SUCCESS;
}

int cuMemFreeHost(void *pointer) {
    ENTER_CONTEXT
    if (!pointer) return SUCCESS;
    const auto entry = state().pinned.find(reinterpret_cast<uintptr_t>(pointer));
    if (entry == state().pinned.end() || !entry->second.owned)
        violation("cuMemFreeHost: %p is not from cuMemHostAlloc", pointer);
    refuse_pending(entry->first, entry->second.bytes, __func__);
    munmap(pointer, entry->second.bytes);
    state().pinned.erase(entry);
    return SUCCESS;
}

int cuMemHostRegister_v2(void *pointer, size_t bytes, unsigned) {
    ENTER_CONTEXT
    NEED(pointer && bytes)
    const auto begin = reinterpret_cast<uintptr_t>(pointer);
    const auto entry = entry_before(state().pinned, begin + bytes - 1);
    if (entry != state().pinned.end() && begin < entry->first + entry->second.bytes)
        return HOST_MEMORY_ALREADY_REGISTERED;
    state().pinned[begin] = {bytes, false};
    return SUCCESS;
}

int cuMemHostUnregister(void *pointer) {
    ENTER_CONTEXT
    const auto entry = state().pinned.find(reinterpret_cast<uintptr_t>(pointer));
    if (entry == state().pinned.end() || entry->second.owned) return HOST_MEMORY_NOT_REGISTERED;
    refuse_pending(entry->first, entry->second.bytes, __func__);
    state().pinned.erase(entry);
    return SUCCESS;
}

// ---- Copies ----

int cuMemcpyHtoD_v2(uint64_t to, const void *from, size_t bytes) {
    ENTER_CONTEXT
    return copy(device, nullptr, {true, address(to), 0}, {false, static_cast<char *>(const_cast<void *>(from)), 0},
                bytes, 1);
}

int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t bytes) {
    ENTER_CONTEXT
    return copy(device, nullptr, {false, static_cast<char *>(to), 0}, {true, address(from), 0}, bytes, 1);
}

int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *handle) {
    ENTER_STREAM(handle)
    return copy(device, stream, {true, address(to), 0}, {false, static_cast<char *>(const_cast<void *>(from)), 0},
                bytes, 1);
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *handle) {
    ENTER_STREAM(handle)
    return copy(device, stream, {false, static_cast<char *>(to), 0}, {true, address(from), 0}, bytes, 1);
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *handle) {
    ENTER_STREAM(handle)
    return copy(device, stream, {true, address(to), 0}, {true, address(from), 0}, bytes, 1);
}

int cuMemcpy2DAsync_v2(const Copy2D *plan, void *handle) {
    ENTER_STREAM(handle)
    NEED(plan)
    Side sides[2];
    for (int i = 0; i < 2; i++) {
        const auto &end = i == 0 ? plan->to : plan->from;
        enum { HOST = 1, DEVICE = 2, UNIFIED = 4 };
        if (end.type != HOST && end.type != DEVICE && end.type != UNIFIED) return NOT_SUPPORTED;
        char *at = end.type == HOST ? static_cast<char *>(end.host) : address(end.device);
        const bool on_device = end.type == DEVICE || (end.type == UNIFIED && device_holding(at));
        NEED(end.pitch <= 0x7fffffff && (plan->height <= 1 || end.pitch >= end.x + plan->width))
        sides[i] = {on_device, at + end.y * end.pitch + end.x, end.pitch};
    }
    return copy(device, stream, sides[0], sides[1], plan->width, plan->height);
}

int cuMemsetD8Async(uint64_t to, unsigned char value, size_t count, void *handle) {
    ENTER_STREAM(handle)
    return fill(stream, to, value, sizeof value, count);
}

int cuMemsetD32Async(uint64_t to, unsigned value, size_t count, void *handle) {
    ENTER_STREAM(handle)
    return fill(stream, to, value, sizeof value, count);
}

// ---- Streams and events ----

int cuStreamCreate(void **out, unsigned flags) {
    ENTER_CONTEXT
    NEED(out && flags <= 1)
    auto stream = new Stream;
    stream->device = device->ordinal;
    stream->number = ++state().stream_count;
    stream->blocking = (flags & 1) == 0;
    state().streams.insert(stream);
    device->streams.push_back(stream);
    *out = stream;
    return SUCCESS;
}

// What is left to do is done all the same, when somebody waits for the device.
int cuStreamDestroy_v2(void *handle) {
    ENTER_CONTEXT
    state().streams.erase(checked_stream(handle));
    return SUCCESS;
}

int cuStreamSynchronize(void *handle) {
    ENTER_CONTEXT
    if (!handle) return INVALID_HANDLE;
    Stream *stream = checked_stream(handle);
    run_all(stream);
    check_guards(device_of(stream), __func__);
    return SUCCESS;
}

// Asking also runs one operation, so that a program that asks again and again gets to its end.
int cuStreamQuery(void *handle) {
    ENTER_CONTEXT
    if (!handle) return INVALID_HANDLE;
    Stream *stream = checked_stream(handle);
    if (stream->done == stream->pushed) return SUCCESS;
    run_until(stream, stream->done + 1);
    return NOT_READY;
}

int cuStreamWaitEvent(void *handle, void *event_handle, unsigned flags) {
    ENTER_CONTEXT
    NEED(flags == 0)
    if (!handle) return INVALID_HANDLE;
    Stream *stream = checked_stream(handle);
    if (auto record = checked<Event>(state().events, event_handle, "event")->last)
        push(stream, [record] { run_until(record->stream, record->position); });
    return SUCCESS;
}

int cuEventCreate(void **out, unsigned flags) {
    ENTER_CONTEXT
    enum { BLOCKING_SYNC = 1, DISABLE_TIMING = 2 };
    NEED(out && (flags & ~unsigned(BLOCKING_SYNC | DISABLE_TIMING)) == 0)
    auto event = new Event{device->ordinal, (flags & DISABLE_TIMING) == 0, nullptr};
    state().events.insert(event);
    *out = event;
    return SUCCESS;
}

int cuEventRecord(void *event_handle, void *handle) {
    ENTER_STREAM(handle)
    auto event = checked<Event>(state().events, event_handle, "event");
    if (event->device != stream->device)
        violation("cuEventRecord: the event is of device %d, the stream of device %d", event->device, stream->device);
    auto record = std::make_shared<Record>(Record{stream, stream->pushed + 1, {}});
    push(stream, [record] { record->time = std::chrono::steady_clock::now(); });
    event->last = record;
    return SUCCESS;
}

int cuEventSynchronize(void *event_handle) {
    ENTER_CONTEXT
    auto event = checked<Event>(state().events, event_handle, "event");
    if (event->last) run_until(event->last->stream, event->last->position);
    check_guards(state().devices[event->device], __func__);
    return SUCCESS;
}

int cuEventQuery(void *event_handle) {
    ENTER_CONTEXT
    auto record = checked<Event>(state().events, event_handle, "event")->last;
    if (!record || record->stream->done >= record->position) return SUCCESS;
    run_until(record->stream, record->stream->done + 1);
    return NOT_READY;
}

int cuEventElapsedTime(float *milliseconds, void *start_handle, void *end_handle) {
    ENTER_CONTEXT
    auto start = checked<Event>(state().events, start_handle, "event");
    auto end = checked<Event>(state().events, end_handle, "event");
    for (const Event *event : {start, end}) {
        if (!event->timed || !event->last) return INVALID_HANDLE;
        if (event->last->stream->done < event->last->position) return NOT_READY;
    }
    *milliseconds = std::chrono::duration<float, std::milli>(end->last->time - start->last->time).count();
    return SUCCESS;
}

int cuEventElapsedTime_v2(float *milliseconds, void *start, void *end) {
    return cuEventElapsedTime(milliseconds, start, end);
}

int cuEventDestroy_v2(void *event_handle) {
    ENTER_CONTEXT
    state().events.erase(checked<Event>(state().events, event_handle, "event"));
    return SUCCESS;
}

// ---- Modules and launches ----

int cuModuleLoadData(void **out, const void *image) {
    ENTER_CONTEXT
    NEED(out && image)
    // As nvrtc.cpp writes it: the magic word, ptx or cubin, the architecture, the path, and the end of a line.
    auto begin = static_cast<const char *>(image);
    std::stringstream text(std::string(begin, strcspn(begin, "\n")));
    std::string magic, kind, path;
    int architecture = 0;
    text >> magic >> kind >> architecture >> std::ws;
    std::getline(text, path);
    if (magic != "STANDIN-MODULE") return INVALID_IMAGE;
    // A cubin runs on the generation it was made for, from its minor version on; PTX on anything later.
    const int mine = MAJOR * 10 + MINOR;
    if (architecture > mine || (kind == "cubin" && architecture / 10 != MAJOR)) return NO_BINARY_FOR_GPU;
    void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        fprintf(stderr, "stand-in: cuModuleLoadData: %s\n", dlerror());
        return SHARED_OBJECT_INIT_FAILED;
    }
    auto table = static_cast<const standin_module *>(dlsym(library, "standin_table"));
    if (!table || table->abi != STANDIN_ABI) return INVALID_IMAGE;
    auto module = new Module{device->ordinal, library, table};
    state().modules.insert(module);
    *out = module;
    return SUCCESS;
}

int cuModuleUnload(void *handle) {
    ENTER_CONTEXT
    auto module = checked<Module>(state().modules, handle, "module");
    run_device(state().devices[module->device]);
    check_guards(state().devices[module->device], __func__);
    auto &functions = state().functions;
    for (auto entry = functions.begin(); entry != functions.end();)
        entry = static_cast<const Function *>(*entry)->module == module ? functions.erase(entry) : std::next(entry);
    state().modules.erase(module);
    dlclose(module->library);
    return SUCCESS;
}

int cuModuleGetFunction(void **out, void *handle, const char *name) {
    ENTER_CONTEXT
    NEED(out && name)
    auto module = checked<Module>(state().modules, handle, "module");
    if (module->device != device->ordinal)
        violation("cuModuleGetFunction: the module is of device %d, the current context of device %d", module->device,
                  device->ordinal);
    for (unsigned i = 0; i < module->table->count; i++)
        if (!strcmp(module->table->kernels[i].name, name)) {
            auto function = new Function{module, &module->table->kernels[i]};
            state().functions.insert(function);
            *out = function;
            return SUCCESS;
        }
    return NOT_FOUND;
}

int cuFuncSetAttribute(void *handle, int attribute, int value) {
    ENTER_CONTEXT
    auto function = checked<Function>(state().functions, handle, "function");
    enum { MAX_DYNAMIC_SHARED_SIZE_BYTES = 8, PREFERRED_SHARED_MEMORY_CARVEOUT = 9 };
    if (attribute == PREFERRED_SHARED_MEMORY_CARVEOUT) return SUCCESS;
    NEED(attribute == MAX_DYNAMIC_SHARED_SIZE_BYTES && value >= 0 && unsigned(value) <= SHARED_LIMIT)
    function->dynamic_limit = unsigned(value);
    return SUCCESS;
}

int cuLaunchKernel(void *function_handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared, void *handle, void **parameters, void **extra) {
    ENTER_STREAM(handle)
    auto function = checked<Function>(state().functions, function_handle, "function");
    const standin_kernel &kernel = *function->kernel;
    const standin_module &table = *function->module->table;
    if (function->module->device != device->ordinal)
        violation("%s: its module is of device %d, the stream of device %d", kernel.name, function->module->device,
                  device->ordinal);
    NEED(grid_x && grid_y && grid_z && block_x && block_y && block_z)
    NEED(grid_x <= 0x7fffffff && grid_y <= 65535 && grid_z <= 65535)
    NEED(block_x <= 1024 && block_y <= 1024 && block_z <= 64 && block_x * block_y * block_z <= MAX_THREADS)
    NEED(shared <= function->dynamic_limit)
    NEED(kernel.parameters == 0 || parameters)
    if (extra) return NOT_SUPPORTED;
    if (kernel.bounds && block_x * block_y * block_z > kernel.bounds) return LAUNCH_OUT_OF_RESOURCES;
    log(device->ordinal, stream, "launch %s grid=%ux%ux%u block=%ux%ux%u shared=%u", kernel.name, grid_x, grid_y,
        grid_z, block_x, block_y, block_z, shared);
    // The parameters are copied now; what they point to is looked at when the kernel runs.
    constexpr size_t SLOT = alignof(std::max_align_t);
    std::vector<size_t> offsets;
    size_t bytes = 0;
    for (unsigned i = 0; i < kernel.parameters; i++) {
        offsets.push_back(bytes);
        bytes += (kernel.sizes[i] + SLOT - 1) / SLOT * SLOT;
    }
    auto values = std::make_shared<std::vector<std::max_align_t>>(bytes / SLOT);
    auto raw = reinterpret_cast<char *>(values->data());
    for (unsigned i = 0; i < kernel.parameters; i++) memcpy(raw + offsets[i], parameters[i], kernel.sizes[i]);
    push(stream, [=, &kernel, &table] {
        std::vector<void *> pointers;
        for (size_t offset : offsets) pointers.push_back(reinterpret_cast<char *>(values->data()) + offset);
        run_grid(table, kernel, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared, pointers.data());
        check_all_guards(kernel.name);
    });
    return SUCCESS;
}

// ---- Errors ----

struct ErrorText {
    int code;
    const char *name, *text;
};

static const ErrorText ERRORS[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {34, "CUDA_ERROR_STUB_LIBRARY", "CUDA driver is a stub library"},
    {46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "CUDA-capable device(s) is/are busy or unavailable"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {218, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the provided PTX was compiled with an unsupported toolchain."},
    {303, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", "shared object initialization failed"},
    {304, "CUDA_ERROR_OPERATING_SYSTEM", "OS call failed or operation not supported on this OS"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {702, "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

int cuGetErrorName(int code, const char **out) {
    *out = nullptr;
    for (const ErrorText &error : ERRORS)
        if (error.code == code) *out = error.name;
    return *out ? SUCCESS : INVALID_VALUE;
}

int cuGetErrorString(int code, const char **out) {
    *out = nullptr;
    for (const ErrorText &error : ERRORS)
        if (error.code == code) *out = error.text;
    return *out ? SUCCESS : INVALID_VALUE;
}

}  // extern "C"
