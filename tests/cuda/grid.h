// CUDA kernels whose blocks meet, on the processor: each thread is a fiber, all blocks are resident.
//
// Barriers are atomics with the orders that the hardware gives and no more, so that ThreadSanitizer
// finds what a missing barrier allows. Dynamic shared memory and the x dimension only. What runs the
// fibers is `grid.cpp`, which is compiled once for many kernels; <atomic> and <math.h> would take the
// compiler longer than a kernel.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHARED(name) char* name = grid::self->block->shared
#define PAUSE() grid::pause()
#define threadIdx (grid::self->index)
#define blockIdx (grid::self->block->index)
#define blockDim (grid::block_dim)
#define gridDim (grid::grid_dim)

// Each library of kernels has its own.
namespace grid __attribute__((visibility("hidden"))) {

struct Place {
  unsigned x;
};

// Counts what brings the run forward; a round without any is a deadlock. Relaxed: it orders nothing.
extern uint64_t progress;
inline void moved() { __atomic_fetch_add(&progress, 1, __ATOMIC_RELAXED); }

void pause();

struct Barrier {
  unsigned size = 0, count = 0, phase = 0;

  void wait(bool orders) {
    const unsigned mine = __atomic_load_n(&phase, __ATOMIC_RELAXED);
    moved();
    if (__atomic_add_fetch(&count, 1, orders ? __ATOMIC_ACQ_REL : __ATOMIC_RELAXED) == size) {
      __atomic_store_n(&count, 0, __ATOMIC_RELAXED);
      __atomic_fetch_add(&phase, 1, orders ? __ATOMIC_RELEASE : __ATOMIC_RELAXED);
    }
    while (__atomic_load_n(&phase, orders ? __ATOMIC_ACQUIRE : __ATOMIC_RELAXED) == mine) pause();
  }
};

struct Warp {
  Barrier barrier;
  uint32_t lanes[32][6];
};

struct Block {
  Place index;
  Barrier barrier;
  Warp* warps;
  char* shared;
};

struct Thread {
  Place index;
  Block* block;
};

extern Place block_dim, grid_dim;
extern Thread* self;

// Order: 0 ascending, 1 descending, else the seed of an order drawn anew each round, in which some
// threads sleep. False: deadlock.
bool launch(unsigned blocks, unsigned width, size_t shared, unsigned order, void (*body)(void*),
            void* with);

template <class A>
struct Code {
  static constexpr char value = 'q';
};
template <class A>
struct Code<A*> {
  static constexpr char value = 'P';
};
template <>
struct Code<const bool*> {
  static constexpr char value = '?';
};

template <class... A>
const char* codes(void (*)(A...)) {
  static const char made[] = {Code<A>::value..., 0};
  return made;
}

template <class... A, size_t... K>
bool call(void (*body)(A...), void** args, std::index_sequence<K...>, unsigned blocks,
          unsigned width, size_t shared, unsigned order) {
  struct Call {
    void (*body)(A...);
    void** args;
    static void run(void* with) {
      const Call& call = *(Call*)with;
      call.body(*(A*)call.args[K]...);
    }
  } given{body, args};
  return launch(blocks, width, shared, order, Call::run, &given);
}

template <class... A>
bool call(void (*body)(A...), void** args, unsigned blocks, unsigned width, size_t shared,
          unsigned order) {
  return call(body, args, std::index_sequence_for<A...>(), blocks, width, shared, order);
}

}  // namespace grid

extern "C" float tanhf(float) noexcept;
extern "C" double tanh(double) noexcept;

inline float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Relaxed, as the device's: they order nothing.
template <class T>
T fetch(const T* from) {
  T value;
  __atomic_load((T*)from, &value, __ATOMIC_RELAXED);
  return value;
}

inline uint4 fetch(const uint4* from) {
  const unsigned* const each = &from->x;
  return {fetch(each), fetch(each + 1), fetch(each + 2), fetch(each + 3)};
}

inline void prefetch(const void*) {}

template <class T>
void give(T* to, T value) {
  grid::moved();
  __atomic_store(to, &value, __ATOMIC_RELAXED);
}

inline void __syncthreads() { grid::self->block->barrier.wait(true); }

// Exchanges a register; like the hardware's it orders no memory.
inline float __shfl_xor_sync(unsigned, float value, int mask) {
  grid::Warp& warp = grid::self->block->warps[threadIdx.x / 32];
  uint32_t bits;
  memcpy(&bits, &value, 4);
  give(&warp.lanes[threadIdx.x % 32][0], bits);
  warp.barrier.wait(false);
  bits = fetch(&warp.lanes[threadIdx.x % 32 ^ mask][0]);
  warp.barrier.wait(false);
  memcpy(&value, &bits, 4);
  return value;
}

inline float from_half(unsigned short bits) {
#ifdef BRAIN
  const uint32_t wide = (uint32_t)bits << 16;
  float value;
  memcpy(&value, &wide, 4);
  return value;
#endif
  _Float16 half;
  memcpy(&half, &bits, 2);
  return (float)half;
}

inline unsigned short to_half(float value) {
  const _Float16 half = (_Float16)value;
  unsigned short bits;
  memcpy(&bits, &half, 2);
  return bits;
}

// mma.m16n8k16 of a warp, by the fragments' layout in NVIDIA's PTX ISA: for register k of a matrix,
// lane l holds the numbers of these rows and columns, the lower half first.
inline void multiply_add(float (&sum)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  grid::Warp& warp = grid::self->block->warps[threadIdx.x / 32];
  const unsigned lane = threadIdx.x % 32;
  for (int k = 0; k < 6; k++)
    give(&warp.lanes[lane][k], k < 4 ? a[k] : b[k - 4]);
  warp.barrier.wait(false);
  auto half = [&](unsigned of, int k, unsigned which) {
    const uint32_t both = fetch(&warp.lanes[of][k]);
    return from_half((unsigned short)(both >> 16 * which));
  };
  auto left = [&](unsigned row, unsigned column) {  // of a, 16 x 16
    return half(row % 8 * 4 + column % 8 / 2, row / 8 + column / 8 * 2, column % 2);
  };
  auto right = [&](unsigned row, unsigned column) {  // of b, 16 x 8
    return half(column * 4 + row % 8 / 2, 4 + row / 8, row % 2);
  };
  for (unsigned k = 0; k < 4; k++)
    for (unsigned m = 0; m < 16; m++)
      sum[k] += left(lane / 4 + k / 2 * 8, m) * right(m, lane % 4 * 2 + k % 2);
  warp.barrier.wait(false);
}
