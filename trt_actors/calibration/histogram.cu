// Statistics of tensors in device memory: minimum, maximum, zeros, values that are not finite, and a
// histogram of |x| with BINS bins of width 2**exponent, the smallest that has room for the largest |x|.
//
// One batch is three launches on one stream, each over many tensors; the host waits for none of them:
//   range   finds the extremes of the new values;
//   grow    merges neighbouring bins of what is counted already, where the extremes ask for wider ones;
//   count   counts the new values.
// Whatever is added depends on the values alone, never on the order in which threads meet.
//
// histogram.ptx is made of this file by scripts/make-ptx. The tests compile it for the host as well, where
// they define the names of CUDA that are used here.

typedef unsigned int u32;
typedef unsigned long long u64;

#define BINS 4096
#define BINS_LOG2 12
#define MAX_ITEMS 120
#define MAX_THREADS 512
#define INFINITE 0x7f800000u
// Added to the exponent of the range, so that zero bytes say that nothing was counted.
#define RANGE_BIAS 256

// What is known of one tensor; zero bytes are an empty one.
struct Tensor {
    u64 counts[BINS];
    u64 zeros;
    u64 non_finite;
    // Keys keep the order of floats; that of the minimum is inverted, so that both grow from zero.
    u32 maximum_key;
    u32 minimum_key;
    // All values are below 2**(range - RANGE_BIAS); 0 while there is none but zero.
    u32 range;
    u32 unused;
};

// Consecutive values of one tensor, and the blocks that share them.
struct Item {
    u64 address;
    u64 count;
    u32 tensor;
    u32 is_half;
    u32 first_block;
    u32 blocks;
};

// A kernel's argument, so that nothing has to be copied before a launch.
struct Work {
    struct Item items[MAX_ITEMS];
};

static __device__ __forceinline__ u32 half_to_bits(u32 half) {
#ifdef __CUDA_ARCH__
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)half));
    return __float_as_uint(value);
#else
    u32 sign = (half & 0x8000u) << 16;
    u32 exponent = (half >> 10) & 31u;
    u32 mantissa = half & 0x3ffu;
    if (exponent == 31u) return sign | INFINITE | (mantissa << 13);
    if (exponent == 0u) {
        if (mantissa == 0u) return sign;
        exponent = 1u;
        while (!(mantissa & 0x400u)) {
            mantissa <<= 1;
            exponent--;
        }
        mantissa &= 0x3ffu;
    }
    return sign | ((exponent + 112u) << 23) | (mantissa << 13);
#endif
}

static __device__ __forceinline__ u32 key_of(u32 bits) {
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

static __device__ __forceinline__ u32 bits_of(u32 key) {
    return key & 0x80000000u ? key & 0x7fffffffu : ~key;
}

// The smallest r with x < 2**r, plus RANGE_BIAS, for the bits of a finite x > 0; bins are no narrower than
// 2**-149, the distance between subnormal values.
static __device__ __forceinline__ u32 range_of(u32 bits) {
    const int least = BINS_LOG2 - 149;
    int exponent = (int)(bits >> 23);
    int range = exponent ? exponent - 126 : 32 - __clz(bits) - 149;
    return (u32)((range > least ? range : least) + RANGE_BIAS);
}

// 2**n for -126 <= n <= 127.
static __device__ __forceinline__ float power_of_two(int n) {
    return __uint_as_float((u32)(n + 127) << 23);
}

// What brings values to the width of a bin: 2**-exponent in two factors, because no float may be so large.
struct Scale {
    float first;
    float second;
};

static __device__ __forceinline__ struct Scale scale_of(u32 range) {
    int n = BINS_LOG2 + RANGE_BIAS - (int)range;
    int first = n < 127 ? n : 127;
    struct Scale scale = {power_of_two(first), power_of_two(n - first)};
    return scale;
}

// Both products are exact unless they are far below 1, where nothing but bin 0 can come out.
static __device__ __forceinline__ u32 bin_of(u32 magnitude, struct Scale scale) {
    return (u32)(__uint_as_float(magnitude) * scale.first * scale.second);
}

static __device__ __forceinline__ const struct Item *item_of_block(const struct Work *work, u32 items) {
    u32 low = 0, high = items;
    while (high - low > 1) {
        u32 middle = (low + high) / 2;
        if (work->items[middle].first_block <= blockIdx.x) low = middle;
        else high = middle;
    }
    return &work->items[low];
}

template <typename Visit>
static __device__ __forceinline__ void visit_vector(uint4 four, bool is_half, Visit &visit) {
    u32 words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (is_half) {
            visit(half_to_bits(words[i] & 0xffffu));
            visit(half_to_bits(words[i] >> 16));
        } else {
            visit(words[i]);
        }
    }
}

// Calls visit with the float32 bits of this thread's share of an item.
template <bool is_half, typename Visit>
static __device__ __forceinline__ void visit_values(const struct Item *item, Visit &visit) {
    const u32 size = is_half ? 2 : 4, per_vector = 16 / size;
    const u32 block = blockIdx.x - item->first_block;
    const u64 address = item->address, count = item->count;
    // Single values up to the first address that vectors can be loaded from, and behind the last vector.
    u64 head = ((16 - (address & 15)) & 15) / size;
    if (head > count) head = count;
    const u64 vectors = (count - head) / per_vector, tail = count - head - vectors * per_vector;
    if (block == 0) {
        for (u64 i = threadIdx.x; i < head + tail; i += blockDim.x) {
            u64 at = address + (i < head ? i : i + vectors * per_vector) * size;
            if (is_half) visit(half_to_bits(__ldg((const unsigned short *)at)));
            else visit(__ldg((const u32 *)at));
        }
    }
    const uint4 *from = (const uint4 *)(address + head * size);
    const u64 stride = (u64)item->blocks * blockDim.x;
    u64 at = (u64)block * blockDim.x + threadIdx.x;
    for (; at + 3 * stride < vectors; at += 4 * stride) {
        uint4 loaded[4];
#pragma unroll
        for (int i = 0; i < 4; i++) loaded[i] = __ldg(from + at + i * stride);
#pragma unroll
        for (int i = 0; i < 4; i++) visit_vector(loaded[i], is_half, visit);
    }
    for (; at < vectors; at += stride) visit_vector(__ldg(from + at), is_half, visit);
}

struct RangeVisit {
    float minimum;
    float maximum;
    u32 zeros;
    u32 non_finite;

    __device__ __forceinline__ void operator()(u32 bits) {
        u32 magnitude = bits & 0x7fffffffu;
        if (magnitude < INFINITE) {
            float value = __uint_as_float(bits);
            minimum = fminf(minimum, value);
            maximum = fmaxf(maximum, value);
            zeros += magnitude == 0;
        } else {
            non_finite++;
        }
    }
};

// Adds one where asked; in a device's own words, because the compiler would look up where shared memory
// begins for every value anew.
static __device__ __forceinline__ void increment_if(bool is_wanted, u32 *shared_counter) {
#ifdef __CUDA_ARCH__
    asm volatile(
        "{\n"
        " .reg .pred p;\n"
        " setp.ne.u32 p, %0, 0;\n"
        " @p red.shared.add.u32 [%1], 1;\n"
        "}"
        :
        : "r"((u32)is_wanted), "r"((u32)__cvta_generic_to_shared(shared_counter)));
#else
    if (is_wanted) atomicAdd(shared_counter, 1u);
#endif
}

struct CountVisit {
    u32 *bins;
    struct Scale scale;

    __device__ __forceinline__ void operator()(u32 bits) {
        u32 magnitude = bits & 0x7fffffffu;
        // Zeros, the most frequent value behind a ReLU, were counted in registers.
        increment_if(magnitude - 1 < INFINITE - 1, &bins[bin_of(magnitude, scale)]);
    }
};

extern "C" __global__ void __launch_bounds__(MAX_THREADS) clear(u32 *words, u64 count) {
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += (u64)gridDim.x * blockDim.x)
        words[i] = 0;
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    range(const __grid_constant__ struct Work work, u32 items, struct Tensor *tensors) {
    __shared__ u32 found[4];
    if (threadIdx.x == 0)
        for (int i = 0; i < 4; i++) found[i] = 0;
    __syncthreads();
    const struct Item *item = item_of_block(&work, items);
    struct RangeVisit seen = {__uint_as_float(INFINITE), __uint_as_float(INFINITE | 0x80000000u), 0, 0};
    if (item->is_half) visit_values<true>(item, seen);
    else visit_values<false>(item, seen);
    // Adding 0 makes 0 of -0.
    bool is_any = seen.minimum <= seen.maximum;
    u32 maximum = is_any ? key_of(__float_as_uint(seen.maximum + 0.0f)) : 0;
    u32 minimum = is_any ? ~key_of(__float_as_uint(seen.minimum + 0.0f)) : 0;
    maximum = __reduce_max_sync(0xffffffffu, maximum);
    minimum = __reduce_max_sync(0xffffffffu, minimum);
    u32 zeros = __reduce_add_sync(0xffffffffu, seen.zeros);
    u32 non_finite = __reduce_add_sync(0xffffffffu, seen.non_finite);
    if (threadIdx.x % warpSize == 0) {
        atomicMax(&found[0], maximum);
        atomicMax(&found[1], minimum);
        atomicAdd(&found[2], zeros);
        atomicAdd(&found[3], non_finite);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        struct Tensor *tensor = &tensors[item->tensor];
        if (found[0]) {
            atomicMax(&tensor->maximum_key, found[0]);
            atomicMax(&tensor->minimum_key, found[1]);
        }
        if (found[2]) atomicAdd(&tensor->zeros, (u64)found[2]);
        if (found[3]) atomicAdd(&tensor->non_finite, (u64)found[3]);
    }
}

// One block for each item; an item's tensor must not occur twice in one launch.
extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    grow(const __grid_constant__ struct Work work, u32 items, struct Tensor *tensors) {
    __shared__ u64 merged[BINS];
    if (blockIdx.x >= items) return;
    struct Tensor *tensor = &tensors[work.items[blockIdx.x].tensor];
    if (tensor->maximum_key == 0) return;
    u32 above = bits_of(tensor->maximum_key) & 0x7fffffffu;
    u32 below = bits_of(~tensor->minimum_key) & 0x7fffffffu;
    u32 largest = above > below ? above : below;
    const u32 before = tensor->range;
    const u32 now = largest ? range_of(largest) : 0;
    if (now <= before) return;
    if (before) {
        const u32 shift = now - before;
        for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) merged[i] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < BINS; i += blockDim.x)
            if (tensor->counts[i]) atomicAdd(&merged[shift < BINS_LOG2 ? i >> shift : 0], tensor->counts[i]);
        __syncthreads();
        for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) tensor->counts[i] = merged[i];
    }
    // Every thread must have read the old range.
    __syncthreads();
    if (threadIdx.x == 0) tensor->range = now;
}

extern "C" __global__ void __launch_bounds__(MAX_THREADS)
    count(const __grid_constant__ struct Work work, u32 items, struct Tensor *tensors) {
    __shared__ u32 bins[BINS];
    const struct Item *item = item_of_block(&work, items);
    struct Tensor *tensor = &tensors[item->tensor];
    if (tensor->range == 0) return;
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) bins[i] = 0;
    __syncthreads();
    struct CountVisit counted = {bins, scale_of(tensor->range)};
    if (item->is_half) visit_values<true>(item, counted);
    else visit_values<false>(item, counted);
    __syncthreads();
    // Blocks begin at different bins, so that they do not all wait for the same one.
    for (u32 i = threadIdx.x; i < BINS; i += blockDim.x) {
        u32 bin = (i + blockIdx.x * 96u) % BINS;
        if (bins[bin]) atomicAdd(&tensor->counts[bin], (u64)bins[bin]);
    }
}
