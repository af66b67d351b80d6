// Blocks run one after the other, in an order that cannot be relied on. Within a block one fiber runs thread after
// thread; when a thread has to wait for others its fiber is put aside and another one goes on with the next thread. A
// kernel without barriers so costs no more than a loop.

#include "grid.h"

#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "device.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace standin {
namespace {

constexpr size_t STACK = 256 << 10, PAGE = 4096;
constexpr unsigned WARP = 32;

struct Fiber {
    unsigned thread = 0;
    standin_wait *wait = nullptr;  // null: the fiber has run out of threads
#if defined(__x86_64__)
    void *stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

struct Launch {
    const standin_module *module;
    const standin_kernel *kernel;
    void **arguments;
};

// One set for the process: launches run under the lock.
Launch launch;
Fiber scheduler;
Fiber *running = nullptr;
std::vector<Fiber *> idle;
Fiber *waiting[MAX_THREADS];
uint64_t random_state = 0x9e3779b97f4a7c15;

uint64_t next_random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

[[noreturn]] void fiber_main();

#if defined(__x86_64__)
// Saves what a callee must keep on the stack, and goes on on another one. swapcontext would do, but asks the system
// for the signal mask each time.
extern "C" void standin_switch(void **save, void *load);
asm(R"(
.text
.type standin_switch,@function
standin_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size standin_switch,.-standin_switch
)");

void switch_fiber(Fiber *from, Fiber *to) { standin_switch(&from->stack_pointer, to->stack_pointer); }

void prepare(Fiber *fiber, char *stack) {
    auto top = reinterpret_cast<void **>(stack + STACK);
    *--top = nullptr;  // keeps the alignment a function expects at its entry
    *--top = reinterpret_cast<void *>(fiber_main);
    fiber->stack_pointer = top - 6;  // the registers: zero, as the stack is new
}
#else
void switch_fiber(Fiber *from, Fiber *to) { swapcontext(&from->context, &to->context); }

void prepare(Fiber *fiber, char *stack) {
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = stack;
    fiber->context.uc_stack.ss_size = STACK;
    makecontext(&fiber->context, reinterpret_cast<void (*)()>(fiber_main), 0);
}
#endif

void fiber_main() {
    for (;;) {
        launch.kernel->run(launch.arguments);
        running->wait = nullptr;
        switch_fiber(running, &scheduler);
    }
}

Fiber *take_fiber() {
    if (!idle.empty()) {
        Fiber *fiber = idle.back();
        idle.pop_back();
        return fiber;
    }
    // The page below stays out of reach, so that a stack that overflows is noticed.
    void *at = mmap(nullptr, PAGE + STACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) violation("no memory for the stack of a thread");
    char *stack = static_cast<char *>(at) + PAGE;
    mprotect(stack, STACK, PROT_READ | PROT_WRITE);
    auto fiber = new Fiber;
    prepare(fiber, stack);
    return fiber;
}

void set_thread(unsigned linear) {
    standin_state &state = *launch.module->state;
    const standin_index &dim = state.block_dim;
    state.linear = linear;
    state.thread = {linear % dim.x, linear / dim.x % dim.y, linear / (dim.x * dim.y)};
}

// Called by a thread that waits.
void wait(standin_wait *what) {
    Fiber *self = running;
    self->thread = launch.module->state->linear;
    self->wait = what;
    if (what->kind != STANDIN_BLOCK && !(what->mask >> (self->thread % WARP) & 1))
        violation("%s: thread %u is not in the mask %#x it waits with", launch.kernel->name, self->thread, what->mask);
    switch_fiber(self, &scheduler);
}

void fail(const char *file, unsigned line, const char *what, unsigned long long value) {
    const standin_state &state = *launch.module->state;
    violation("%s:%u: %s (%#llx) in %s, block %u %u %u, thread %u %u %u", file, line, what, value, launch.kernel->name,
              state.block.x, state.block.y, state.block.z, state.thread.x, state.thread.y, state.thread.z);
}

// A kernel that reaches out of all memory is named before the process ends.
void crashed(int, siginfo_t *info, void *) {
    const standin_state &state = *launch.module->state;
    violation("%s, block %u %u %u, thread %u %u %u: no memory at address %p", launch.kernel->name, state.block.x,
              state.block.y, state.block.z, state.thread.x, state.thread.y, state.thread.z, info->si_addr);
}

void resume(Fiber *fiber) {
    running = fiber;
    switch_fiber(&scheduler, fiber);
    if (fiber->wait)
        waiting[fiber->thread] = fiber;
    else
        idle.push_back(fiber);
}

// Threads that all arrived where they wait for each other: works out what each of them gets.
bool release_block(unsigned count, unsigned held, std::vector<Fiber *> &released) {
    unsigned long long sum = 0;
    for (unsigned t = 0; t < count; t++)
        if (waiting[t] && waiting[t]->wait->kind == STANDIN_BLOCK) sum += waiting[t]->wait->value != 0;
    if (held < count) return false;
    for (unsigned t = 0; t < count; t++) {
        waiting[t]->wait->result = sum;
        released.push_back(waiting[t]);
    }
    return true;
}

// Lanes that have ended are not waited for; a shuffle from one yields ones.
void release_warp(unsigned first, unsigned lanes, std::vector<Fiber *> &released) {
    unsigned seen = 0;
    for (unsigned lane = 0; lane < lanes; lane++) {
        Fiber *fiber = waiting[first + lane];
        if (!fiber || fiber->wait->kind == STANDIN_BLOCK || seen >> lane & 1) continue;
        standin_wait &asked = *fiber->wait;
        unsigned group = 0;
        unsigned long long ballot = 0;
        bool complete = true;
        for (unsigned other = 0; other < lanes; other++) {
            if (!(asked.mask >> other & 1) || !waiting[first + other]) continue;
            const standin_wait &theirs = *waiting[first + other]->wait;
            complete &= theirs.kind == asked.kind && theirs.mask == asked.mask;
            group |= 1u << other;
            ballot |= (theirs.value != 0 ? 1ull : 0) << other;
        }
        if (!complete) continue;
        seen |= group;
        for (unsigned other = 0; other < lanes; other++) {
            if (!(group >> other & 1)) continue;
            standin_wait &theirs = *waiting[first + other]->wait;
            if (theirs.kind == STANDIN_WARP_BALLOT) theirs.result = ballot;
            if (theirs.kind == STANDIN_WARP_SHUFFLE)
                theirs.result = group >> theirs.lane & 1 ? waiting[first + theirs.lane]->wait->value : ~0ull;
            released.push_back(waiting[first + other]);
        }
    }
}

void run_block(standin_state &state) {
    const unsigned count = state.count;
    state.started = 0;
    state.reversed = next_random() & 1;
    while (state.started < count) resume(take_fiber());
    std::vector<Fiber *> released;
    for (;;) {
        unsigned held = 0, at_barrier = 0;
        for (unsigned t = 0; t < count; t++)
            if (waiting[t]) held++, at_barrier += waiting[t]->wait->kind == STANDIN_BLOCK;
        if (held == 0) return;
        released.clear();
        if (at_barrier < held || !release_block(count, held, released))
            for (unsigned first = 0; first < count; first += WARP)
                release_warp(first, std::min(WARP, count - first), released);
        if (released.empty())
            violation("%s, block %u %u %u: %u of %u threads wait at a barrier that the others never reach",
                      launch.kernel->name, state.block.x, state.block.y, state.block.z, at_barrier ? at_barrier : held,
                      count);
        for (Fiber *fiber : released) waiting[fiber->thread] = nullptr;
        const bool reversed = next_random() & 1;
        for (size_t i = 0; i < released.size(); i++) {
            Fiber *fiber = released[reversed ? released.size() - 1 - i : i];
            set_thread(fiber->thread);
            resume(fiber);
        }
    }
}

}  // namespace

void run_grid(const standin_module &module, const standin_kernel &kernel, standin_index grid, standin_index block,
              unsigned dynamic_bytes, void **arguments) {
    launch = {&module, &kernel, arguments};
    standin_state &state = *module.state;
    state.grid_dim = grid;
    state.block_dim = block;
    state.count = block.x * block.y * block.z;
    state.wait = wait;
    state.fail = fail;
    const uint64_t blocks = uint64_t(grid.x) * grid.y * grid.z;
    // i * step + start modulo the number of blocks visits each block once where the two have no common divisor.
    uint64_t step = next_random() % blocks | 1;
    while (std::gcd(step, blocks) != 1) step += 2;
    const uint64_t start = next_random() % blocks;
    constexpr int POISON = 0xff, GUARD = 0xa5;
    struct sigaction action = {}, before_segv, before_bus;
    action.sa_sigaction = crashed;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
    for (uint64_t i = 0; i < blocks; i++) {
        const auto at = uint64_t((static_cast<unsigned __int128>(i) * step + start) % blocks);
        state.block = {unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
        if (size_t bytes = module.shared_end - module.shared_begin) memset(module.shared_begin, POISON, bytes);
        const size_t guard = dynamic_bytes ? std::min(module.dynamic_bytes - dynamic_bytes, 1024u) : 0;
        memset(module.dynamic, POISON, dynamic_bytes);
        memset(module.dynamic + dynamic_bytes, GUARD, guard);
        run_block(state);
        for (size_t g = 0; g < guard; g++)
            if (module.dynamic[dynamic_bytes + g] != GUARD)
                violation("%s wrote past its %u bytes of dynamic shared memory", kernel.name, dynamic_bytes);
    }
    sigaction(SIGSEGV, &before_segv, nullptr);
    sigaction(SIGBUS, &before_bus, nullptr);
}

}  // namespace standin
