// The kernels of histogram.cu as functions of a library, and its arithmetic for arrays.
#include "cuda_on_host.h"
#include "histogram.cu"

extern "C" {

void launch_clear(unsigned blocks, unsigned threads, u64 words, u64 count) {
    launch(blocks, threads, [=] { clear((u32 *)words, count); });
}

void launch_range(unsigned blocks, unsigned threads, const Work *work, u32 items, u64 tensors) {
    launch(blocks, threads, [=] { range(*work, items, (Tensor *)tensors); });
}

void launch_grow(unsigned blocks, unsigned threads, const Work *work, u32 items, u64 tensors) {
    launch(blocks, threads, [=] { grow(*work, items, (Tensor *)tensors); });
}

void launch_count(unsigned blocks, unsigned threads, const Work *work, u32 items, u64 tensors) {
    launch(blocks, threads, [=] { count(*work, items, (Tensor *)tensors); });
}

void halves_to_bits(const unsigned short *halves, u32 *bits, u64 count) {
    for (u64 i = 0; i < count; i++) bits[i] = half_to_bits(halves[i]);
}

void keys_of(const u32 *bits, u32 *keys, u32 *back, u64 count) {
    for (u64 i = 0; i < count; i++) back[i] = bits_of(keys[i] = key_of(bits[i]));
}

void ranges_of(const u32 *bits, int *ranges, u64 count) {
    for (u64 i = 0; i < count; i++) ranges[i] = (int)range_of(bits[i]) - RANGE_BIAS;
}

void bins_of(const u32 *magnitudes, int range, u32 *bins, u64 count) {
    for (u64 i = 0; i < count; i++) bins[i] = bin_of(magnitudes[i], scale_of(range + RANGE_BIAS));
}

u64 size_of_tensor() { return sizeof(Tensor); }
u64 size_of_work() { return sizeof(Work); }
}
