// What the four libraries share: the devices, their streams and the checks. Implemented in driver.cpp (libcuda); the
// other libraries link against that one and so see the same devices.
//
// The environment, read once:
//   STANDIN_DEVICES  how many there are (1); with 0 cuInit fails
//   STANDIN_MEMORY   bytes of each (1 GiB)
//   STANDIN_DRIVER   the version of the driver (13000)
//   STANDIN_FAIL     function:n[:status],... makes the n-th call of the function fail, n+ that one and all later ones;
//                    the name with or without _v2, the status as a number (else out of memory, or a general one)
//   STANDIN_LOG      a file that gets a line for each launch, copy, memset, cuBLAS and cuSOLVER call when it is made
//   STANDIN_POOLS    0: no memory in the order of a stream
//   STANDIN_LEAKS    1: what was never freed is listed when a context goes
//   STANDIN_CACHE    folder for compiled device text, shared by processes (else one per process)
//   STANDIN_KERNEL_H kernel.h, if not beside libnvrtc
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <initializer_list>
#include <mutex>

namespace standin {

// Work that was handed to a stream and not yet run. `host` is the pinned memory it will touch, if any.
struct Op {
    std::function<void()> run;
    const void *host = nullptr;
    size_t bytes = 0;
};

struct Stream {
    int device;
    unsigned number;  // as the log calls it
    bool blocking;    // created without CU_STREAM_NON_BLOCKING: the synchronous copies wait for it
    uint64_t pushed = 0, done = 0;
    std::deque<Op> queue;
};

// A cuBLAS or cuSOLVER handle.
struct Handle {
    int device;
    Stream *stream = nullptr;
    int math_mode = 0;
};

// One operand of a library call, column-major: `cols` columns of `rows` elements, `ld` elements apart.
struct Operand {
    const char *name;
    const void *at;
    int64_t rows, cols, ld;
    size_t size;
    bool written = false;
    size_t extent() const { return rows > 0 && cols > 0 ? size_t((cols - 1) * ld + rows) * size : 0; }
};

// Everything below, and everything that is queued, runs under this one lock.
std::unique_lock<std::recursive_mutex> lock();

// Says what the program did wrong and aborts.
[[noreturn]] void violation(const char *format, ...) __attribute__((format(printf, 1, 2)));

// The status with which STANDIN_FAIL wants this call to fail, or 0. `fallback` where it names none.
int injected(const char *function, int fallback);

// One line for STANDIN_LOG; the stream is null for calls without one.
void log(int device, const Stream *stream, const char *format, ...) __attribute__((format(printf, 3, 4)));

// The device whose context is current in this thread, or -1.
int current_device();

Stream *checked_stream(void *handle);  // a violation unless it is alive
void push(Stream *stream, std::function<void()> run);
void run_all(Stream *stream);

// Device memory a call is about to touch: a violation unless it lies in one live allocation of the device.
void check_range(int device, const void *at, size_t bytes, const char *what);

// The same for all operands of a call; none that is written may overlap another.
void check_operands(const Stream *stream, const char *call, std::initializer_list<Operand> operands);

Handle *new_handle();  // for the current device; null without one
void delete_handle(void *handle);
Handle *checked_handle(void *handle, const char *call);  // a violation unless alive and of the current device

// Both say so and return false or null where the stream is the legacy default one, which is not there.
bool bind_handle(Handle *handle, void *stream, const char *call);
Stream *bound_stream(const Handle *handle, const char *call);

}  // namespace standin
