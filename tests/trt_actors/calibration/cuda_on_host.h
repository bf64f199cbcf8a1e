// What histogram.cu uses of CUDA, for a compiler of the host: the threads of a block are threads, its shared
// memory is static, and blocks run one after another. A warp has one lane.
#pragma once
#include <algorithm>
#include <barrier>
#include <bit>
#include <cmath>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)
#define __shared__ static

struct Dimension {
    unsigned x;
};
static thread_local Dimension threadIdx, blockIdx;
static Dimension blockDim, gridDim;
static constexpr int warpSize = 1;
static std::barrier<> *block_barrier;

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

static inline void __syncthreads() { block_barrier->arrive_and_wait(); }
static inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
static inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
static inline int __clz(unsigned bits) { return std::countl_zero(bits); }
static inline unsigned __reduce_max_sync(unsigned, unsigned value) { return value; }
static inline unsigned __reduce_add_sync(unsigned, unsigned value) { return value; }

template <typename T>
static inline T __ldg(const T *from) {
    return *from;
}

template <typename T>
static inline void atomicAdd(T *to, T value) {
    __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

static inline void atomicMax(unsigned *to, unsigned value) {
    unsigned seen = __atomic_load_n(to, __ATOMIC_RELAXED);
    while (seen < value &&
           !__atomic_compare_exchange_n(to, &seen, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

template <typename Kernel>
static void launch(unsigned blocks, unsigned threads, Kernel kernel) {
    std::barrier<> barrier(threads);
    block_barrier = &barrier;
    blockDim.x = threads;
    gridDim.x = blocks;
    std::vector<std::thread> running;
    for (unsigned thread = 0; thread < threads; thread++) {
        running.emplace_back([=, &barrier] {
            threadIdx.x = thread;
            for (unsigned block = 0; block < blocks; block++) {
                blockIdx.x = block;
                kernel();
                barrier.arrive_and_wait();
            }
        });
    }
    for (std::thread &thread : running) thread.join();
}
