// Runs one launch of a compiled kernel, block after block.
#pragma once

#include "abi.h"

namespace standin {

constexpr unsigned MAX_THREADS = 1024;

void run_grid(const standin_module &module, const standin_kernel &kernel, standin_index grid, standin_index block,
              unsigned dynamic_bytes, void **arguments);

}  // namespace standin
