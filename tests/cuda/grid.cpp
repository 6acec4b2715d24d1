// What runs the fibers of `grid.h`, one after the other.
#include "grid.h"

#include <ucontext.h>

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

namespace grid {

uint64_t progress;
Place block_dim, grid_dim;
Thread* self;

namespace {

struct Fiber : Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool started = false, done = false;
#ifdef __SANITIZE_THREAD__
  void* fiber;
#else
  jmp_buf jump;
#endif
};

ucontext_t scheduler;
void (*kernel)(void*);
void* given;

Fiber* current() { return static_cast<Fiber*>(self); }

#ifdef __SANITIZE_THREAD__
void* scheduler_fiber;
UNWATCHED void resume(Fiber* thread) {
  self = thread;
  // What came before the launch is seen by the kernel.
  __tsan_switch_to_fiber(thread->fiber, thread->started ? __tsan_switch_to_fiber_no_sync : 0);
  thread->started = true;
  swapcontext(&scheduler, &thread->context);
}
#else
jmp_buf scheduler_jump;  // no system call, unlike swapcontext
void resume(Fiber* thread) {
  self = thread;
  if (_setjmp(scheduler_jump)) return;
  if (thread->started) _longjmp(thread->jump, 1);
  thread->started = true;
  setcontext(&thread->context);
}
#endif

UNWATCHED void run_thread() {
  kernel(given);
#ifdef __SANITIZE_THREAD__
  __tsan_release(given);
#endif
  current()->done = true;
  moved();
  pause();
}

constexpr unsigned NAP = 8;  // rounds

// Whether a thread has no turn: what it was about to do is long in coming.
inline bool sleeps(size_t thread, uint64_t night) {
  return ((thread * 0x9e3779b97f4a7c15ull ^ night) * 0xbf58476d1ce4e5b9ull) >> 61 == 0;
}

UNWATCHED bool run_all(Fiber* threads, size_t count, unsigned order) {
  std::vector<size_t> turn(count);
  for (size_t k = 0; k < count; k++) turn[k] = order == 1 ? count - 1 - k : k;
  uint64_t random = 0x9e3779b97f4a7c15ull * (order + 1), night = 0;
  size_t left = count;
  for (unsigned round = 0, idle = 0; left && idle <= 2 * NAP; round++) {
    const uint64_t before = __atomic_load_n(&progress, __ATOMIC_RELAXED);
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
    idle = before == __atomic_load_n(&progress, __ATOMIC_RELAXED) ? idle + 1 : 0;
  }
  return !left;
}

}  // namespace

#ifdef __SANITIZE_THREAD__
UNWATCHED void pause() {
  __tsan_switch_to_fiber(scheduler_fiber, __tsan_switch_to_fiber_no_sync);
  swapcontext(&current()->context, &scheduler);
}
#else
void pause() {
  if (!_setjmp(current()->jump)) _longjmp(scheduler_jump, 1);
}
#endif

bool launch(unsigned blocks, unsigned width, size_t shared, unsigned order, void (*body)(void*),
            void* with) {
  grid_dim = {blocks}, block_dim = {width}, kernel = body, given = with, progress = 0;
  std::vector<Block> made(blocks);
  std::vector<Warp> warps(size_t(blocks) * (width / 32));
  std::vector<std::unique_ptr<char[]>> held;  // of the size asked for: AddressSanitizer sees its end
  std::vector<Fiber> threads(size_t(blocks) * width);
  for (Warp& warp : warps) warp.barrier.size = 32;
  for (unsigned b = 0; b < blocks; b++) {
    held.emplace_back(new char[shared]);
    memset(held[b].get(), 0xff, shared);  // NaN: what is read before it is written shows
    made[b].index = {b}, made[b].barrier.size = width;
    made[b].warps = &warps[size_t(b) * (width / 32)], made[b].shared = held[b].get();
    for (unsigned t = 0; t < width; t++) {
      Fiber& thread = threads[size_t(b) * width + t];
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
  __tsan_acquire(given);
  for (Fiber& thread : threads) __tsan_destroy_fiber(thread.fiber);
#endif
  return finished;
}

}  // namespace grid
