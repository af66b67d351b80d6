// What libcuda and a compiled kernel module know of each other. Included by grid.cpp, driver.cpp and kernel.h, so it
// may use no library header: NVRTC has none either, and device text must not find here what it would miss there.
#pragma once

constexpr unsigned STANDIN_ABI = 1;

struct standin_index {
    unsigned x, y, z;
};

enum standin_wait_kind { STANDIN_BLOCK, STANDIN_WARP_SYNC, STANDIN_WARP_SHUFFLE, STANDIN_WARP_BALLOT };

// A thread that waits for others, what it brings along and what it gets. STANDIN_BLOCK: a predicate, and the number of
// threads for which it held. Shuffle: a value, and that of the lane asked for. Ballot: a predicate, and a bit per lane.
struct standin_wait {
    standin_wait_kind kind;
    unsigned mask;
    unsigned lane;
    unsigned long long value;
    unsigned long long result;
};

// The thread that is running, and how the block's threads are handed out.
struct standin_state {
    standin_index thread, block, block_dim, grid_dim;
    unsigned linear;   // of `thread`
    unsigned started;  // threads of the block handed out so far
    unsigned count;    // threads of the block
    int reversed;      // last thread first
    void (*wait)(standin_wait *);
    void (*fail)(const char *file, unsigned line, const char *what, unsigned long long value);
};

struct standin_kernel {
    const char *name;
    void (*run)(void **arguments);  // runs threads until all of the block are handed out
    const unsigned *sizes;          // of the parameters
    unsigned parameters;
    unsigned bounds;  // __launch_bounds__, or 0
};

struct standin_module {
    unsigned abi;
    standin_state *state;
    unsigned char *dynamic;  // dynamic shared memory and a guard zone
    unsigned dynamic_bytes;  // both together
    unsigned char *shared_begin, *shared_end;
    const standin_kernel *kernels;
    unsigned count;
};
