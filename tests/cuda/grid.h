// CUDA kernels whose blocks meet, on the processor: each thread is a fiber, all blocks are resident.
//
// Barriers are atomics with the orders that the hardware gives and no more, so that ThreadSanitizer
// finds what a missing barrier allows. Dynamic shared memory and the x dimension only.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <utility>
#include <vector>
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define UNWATCHED __attribute__((no_sanitize("thread")))  // the scheduler is not under test
#else
#include <setjmp.h>
#define UNWATCHED
#endif

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define SHARED(name) char* name = grid::self->block->shared.get()
#define PAUSE() grid::pause()
#define threadIdx (grid::self->index)
#define blockIdx (grid::self->block->index)
#define blockDim (grid::block_dim)
#define gridDim (grid::grid_dim)

namespace grid {

struct Place {
  unsigned x;
};

// Counts what brings the run forward; a round without any is a deadlock. Relaxed: it orders nothing.
inline std::atomic<uint64_t> progress;
inline void moved() { progress.fetch_add(1, std::memory_order_relaxed); }

void pause();

struct Barrier {
  unsigned size = 0;
  std::atomic<unsigned> count{0}, phase{0};

  void wait(bool orders) {
    using namespace std;
    const unsigned mine = phase.load(memory_order_relaxed);
    moved();
    if (count.fetch_add(1, orders ? memory_order_acq_rel : memory_order_relaxed) + 1 == size) {
      count.store(0, memory_order_relaxed);
      phase.fetch_add(1, orders ? memory_order_release : memory_order_relaxed);
    }
    while (phase.load(orders ? memory_order_acquire : memory_order_relaxed) == mine) pause();
  }
};

struct Warp {
  Barrier barrier;
  std::atomic<uint32_t> lanes[32][6];
};

struct Block {
  Place index;
  Barrier barrier;
  std::vector<Warp> warps;
  std::unique_ptr<char[]> shared;  // of the size asked for: AddressSanitizer sees its end
};

struct Thread {
  Place index;
  Block* block;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool started = false, done = false;
#ifdef __SANITIZE_THREAD__
  void* fiber;
#else
  jmp_buf jump;
#endif
};

inline Place block_dim, grid_dim;
inline Thread* self;
inline ucontext_t scheduler;
inline std::function<void()>* kernel;

#ifdef __SANITIZE_THREAD__
inline void* scheduler_fiber;
UNWATCHED inline void pause() {
  __tsan_switch_to_fiber(scheduler_fiber, __tsan_switch_to_fiber_no_sync);
  swapcontext(&self->context, &scheduler);
}
UNWATCHED inline void resume(Thread* thread) {
  self = thread;
  // What came before the launch is seen by the kernel.
  __tsan_switch_to_fiber(thread->fiber, thread->started ? __tsan_switch_to_fiber_no_sync : 0);
  thread->started = true;
  swapcontext(&scheduler, &thread->context);
}
#else
inline jmp_buf scheduler_jump;  // no system call, unlike swapcontext
inline void pause() {
  if (!_setjmp(self->jump)) _longjmp(scheduler_jump, 1);
}
inline void resume(Thread* thread) {
  self = thread;
  if (_setjmp(scheduler_jump)) return;
  if (thread->started) _longjmp(thread->jump, 1);
  thread->started = true;
  setcontext(&thread->context);
}
#endif

UNWATCHED inline void run_thread() {
  (*kernel)();
#ifdef __SANITIZE_THREAD__
  __tsan_release(kernel);
#endif
  self->done = true;
  moved();
  pause();
}

constexpr unsigned NAP = 8;  // rounds

// Whether a thread has no turn: what it was about to do is long in coming.
inline bool sleeps(size_t thread, uint64_t night) {
  return ((thread * 0x9e3779b97f4a7c15ull ^ night) * 0xbf58476d1ce4e5b9ull) >> 61 == 0;
}

// Order: 0 ascending, 1 descending, else the seed of an order drawn anew each round, in which some
// threads sleep. False: deadlock.
UNWATCHED inline bool run_all(Thread* threads, size_t count, unsigned order) {
  std::vector<size_t> turn(count);
  for (size_t k = 0; k < count; k++) turn[k] = order == 1 ? count - 1 - k : k;
  uint64_t random = 0x9e3779b97f4a7c15ull * (order + 1), night = 0;
  size_t left = count;
  for (unsigned round = 0, idle = 0; left && idle <= 2 * NAP; round++) {
    const uint64_t before = progress.load(std::memory_order_relaxed);
    for (size_t k = count - 1; order > 1 && k > 0; k--) {
      random ^= random << 13, random ^= random >> 7, random ^= random << 17;
      std::swap(turn[k], turn[random % (k + 1)]);
    }
    if (round % NAP == 0) night = random;
    for (size_t k : turn)
      if (!threads[k].done && !(order > 1 && sleeps(k, night))) {
        resume(threads + k);
        left -= threads[k].done;
      }
    idle = before == progress.load(std::memory_order_relaxed) ? idle + 1 : 0;
  }
  return !left;
}

inline bool launch(unsigned blocks, unsigned width, size_t shared, unsigned order,
                   std::function<void()> body) {
  grid_dim = {blocks}, block_dim = {width}, kernel = &body, progress = 0;
  std::vector<Block> made(blocks);
  std::vector<Thread> threads(size_t(blocks) * width);
  for (unsigned b = 0; b < blocks; b++) {
    made[b].index = {b}, made[b].barrier.size = width;
    made[b].shared.reset(new char[shared]);
    memset(made[b].shared.get(), 0xff, shared);  // NaN: what is read before it is written shows
    made[b].warps = std::vector<Warp>(width / 32);
    for (Warp& warp : made[b].warps) warp.barrier.size = 32;
    for (unsigned t = 0; t < width; t++) {
      Thread& thread = threads[size_t(b) * width + t];
      thread.index = {t}, thread.block = &made[b];
      constexpr size_t stack = 64 << 10;
      thread.stack.reset(new char[stack]);
      getcontext(&thread.context);
      thread.context.uc_stack.ss_sp = thread.stack.get();
      thread.context.uc_stack.ss_size = stack;
      makecontext(&thread.context, run_thread, 0);
#ifdef __SANITIZE_THREAD__
      thread.fiber = __tsan_create_fiber(0);
#endif
    }
  }
#ifdef __SANITIZE_THREAD__
  scheduler_fiber = __tsan_get_current_fiber();
#endif
  const bool finished = run_all(threads.data(), threads.size(), order);
#ifdef __SANITIZE_THREAD__
  __tsan_acquire(kernel);
  for (Thread& thread : threads) __tsan_destroy_fiber(thread.fiber);
#endif
  return finished;
}

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
  return launch(blocks, width, shared, order, [=] { body(*(A*)args[K]...); });
}

template <class... A>
bool call(void (*body)(A...), void** args, unsigned blocks, unsigned width, size_t shared,
          unsigned order) {
  return call(body, args, std::index_sequence_for<A...>(), blocks, width, shared, order);
}

}  // namespace grid

inline void __syncthreads() { grid::self->block->barrier.wait(true); }

// Exchanges a register; like the hardware's it orders no memory.
inline float __shfl_xor_sync(unsigned, float value, int mask) {
  grid::Warp& warp = grid::self->block->warps[threadIdx.x / 32];
  uint32_t bits;
  memcpy(&bits, &value, 4);
  warp.lanes[threadIdx.x % 32][0].store(bits, std::memory_order_relaxed);
  warp.barrier.wait(false);
  bits = warp.lanes[threadIdx.x % 32 ^ mask][0].load(std::memory_order_relaxed);
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
    warp.lanes[lane][k].store(k < 4 ? a[k] : b[k - 4], std::memory_order_relaxed);
  warp.barrier.wait(false);
  auto half = [&](unsigned of, int k, unsigned which) {
    const uint32_t both = warp.lanes[of][k].load(std::memory_order_relaxed);
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

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

// Relaxed, as the device's: they order nothing.
template <class T>
T fetch(const T* from) {
  return std::atomic_ref<T>(*(T*)from).load(std::memory_order_relaxed);
}

inline uint4 fetch(const uint4* from) {
  const unsigned* const each = &from->x;
  return {fetch(each), fetch(each + 1), fetch(each + 2), fetch(each + 3)};
}

inline void prefetch(const void*) {}

template <class T>
void give(T* to, T value) {
  grid::moved();
  std::atomic_ref<T>(*to).store(value, std::memory_order_relaxed);
}
