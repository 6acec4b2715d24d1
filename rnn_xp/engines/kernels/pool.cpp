#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <atomic>

namespace {

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Spin for a while, then let others run: the machine may have fewer cores than threads.
template <class F>
void wait_until(F done) {
  for (int spins = 0; !done();) {
    pause();
    if (++spins == 2000) {
      spins = 0;
      sched_yield();
    }
  }
}

int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * (int64_t)1000000000 + now.tv_nsec;
}

// For so long a worker spins before it sleeps.
constexpr int64_t SOON = 100000;  // nanoseconds

struct alignas(64) Counter {
  std::atomic<int64_t> value{0};
};

}  // namespace

// Each thread counts its own arrivals, and waits until every other one has as many.
struct Barrier {
  Counter arrived[MOST_THREADS];
  int size = 1;

  void reset(int count) {
    size = count;
    for (int k = 0; k < count; k++) arrived[k].value.store(0, std::memory_order_relaxed);
  }
};

void meet(Barrier* barrier, int me) {
  std::atomic<int64_t>& own = barrier->arrived[me].value;
  const int64_t count = own.load(std::memory_order_relaxed) + 1;
  own.store(count, std::memory_order_release);
  for (int k = 0; k < barrier->size; k++)
    if (k != me)
      wait_until([&] { return barrier->arrived[k].value.load(std::memory_order_acquire) >= count; });
}

namespace {

// Linux often wakes a thread on the processor of the one that wakes it, and lets both take turns
// there for ten milliseconds while another processor has nothing to do: so a worker moves away.
#ifdef __linux__
struct Place {
  int processor = -1;  // to move to; none: to stay
  cpu_set_t allowed;

  void go() const {
    if (processor < 0) return;
    cpu_set_t only;
    CPU_ZERO(&only);
    CPU_SET(processor, &only);
    if (!sched_setaffinity(0, sizeof only, &only)) sched_setaffinity(0, sizeof allowed, &allowed);
  }
};

// The processors that threads of the pool are known to stand on.
class Places {
 public:
  // Only the calling thread is known to stand somewhere.
  void begin() {
    CPU_ZERO(&taken_);
    take(sched_getcpu());
  }

  // The calling thread's own place.
  Place find() {
    Place place;
    const int here = sched_getcpu();
    if (here >= 0 && here < CPU_SETSIZE && CPU_ISSET(here, &taken_) &&
        !sched_getaffinity(0, sizeof place.allowed, &place.allowed))
      for (int k = 1; k < CPU_SETSIZE && place.processor < 0; k++) {
        const int there = (here + k) % CPU_SETSIZE;
        if (CPU_ISSET(there, &place.allowed) && !CPU_ISSET(there, &taken_)) place.processor = there;
      }
    take(place.processor < 0 ? here : place.processor);
    return place;
  }

 private:
  void take(int processor) {
    if (processor >= 0 && processor < CPU_SETSIZE) CPU_SET(processor, &taken_);
  }
  cpu_set_t taken_;
};
#else
struct Place {
  void go() const {}
};
struct Places {
  void begin() {}
  Place find() { return {}; }
};
#endif

struct Job {
  void (*run)(const void*, Team) = nullptr;
  const void* what = nullptr;
  int size = 1;
};

// The workers spin for a while after a call, since the next one often follows at once; then they
// sleep. To wake them takes longer than a brief job, so that one which finds them asleep runs alone;
// if it came soon after the one before, it wakes them for the next. A worker whose number is not
// below the job's size has no part in it.
struct Pool {
  pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_t sleep = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
  std::atomic<int64_t> round{0};
  std::atomic<int> working{0}, sleepers{0};
  std::atomic<bool> stay{false};  // awake, while the caller does a brief job alone
  int alarms = 0;                 // under `sleep`: wakes workers without a job
  Places places;                  // under `sleep`
  int64_t ended = 0;              // when the last job did
  int started = 1;                // with the caller
  Job job;
  Barrier barrier;
};

struct Start {
  Pool& pool;
  int me;
  int64_t seen;  // the round before its first one
};

void settle(Pool& p) {
  pthread_mutex_lock(&p.sleep);
  const Place place = p.places.find();
  pthread_mutex_unlock(&p.sleep);
  place.go();
}

void* worker(void* argument) {
  const Start start = *(Start*)argument;
  delete (Start*)argument;
  Pool& p = start.pool;
  settle(p);
  for (int64_t seen = start.seen;;) {
    int64_t idle = 0;  // since when
    for (int spins = 0; p.round.load(std::memory_order_acquire) == seen;) {
      pause();
      if (++spins % 64) continue;
      const int64_t now = nanoseconds();
      if (!idle || p.stay.load(std::memory_order_relaxed)) idle = now;
      if (now - idle < SOON) continue;
      idle = 0;
      pthread_mutex_lock(&p.sleep);
      p.sleepers.fetch_add(1);
      const int heard = p.alarms;
      while (p.round.load() == seen && p.alarms == heard) pthread_cond_wait(&p.wake, &p.sleep);
      p.sleepers.fetch_sub(1);
      pthread_mutex_unlock(&p.sleep);
      settle(p);
    }
    seen++;
    if (start.me < p.job.size) p.job.run(p.job.what, Team{start.me, p.job.size, &p.barrier});
    p.working.fetch_sub(1, std::memory_order_release);
  }
  return nullptr;
}

Pool* pool = nullptr;
pthread_mutex_t making = PTHREAD_MUTEX_INITIALIZER;

// A child process has no workers, nor whoever may have held the lock: it makes a pool of its own.
void forget() {
  pool = nullptr;
  making = PTHREAD_MUTEX_INITIALIZER;
}

Pool& the_pool() {
  static bool registered = false;
  pthread_mutex_lock(&making);
  if (!registered) {
    pthread_atfork(nullptr, nullptr, forget);
    registered = true;
  }
  if (!pool) pool = new Pool;
  pthread_mutex_unlock(&making);
  return *pool;
}

void start(Pool& p, int size) {
  if (p.started >= size) return;
  pthread_mutex_lock(&p.sleep);
  p.places.begin();
  pthread_mutex_unlock(&p.sleep);
  while (p.started < size) {
    pthread_t thread;
    Start* const first = new Start{p, p.started, p.round.load()};
    if (pthread_create(&thread, nullptr, worker, first)) {
      delete first;
      return;
    }
    pthread_detach(thread);
    p.started++;
  }
}

void rouse(Pool& p) {
  pthread_mutex_lock(&p.sleep);
  p.places.begin();
  p.alarms++;
  pthread_cond_broadcast(&p.wake);
  pthread_mutex_unlock(&p.sleep);
}

}  // namespace

void run_team(void (*job)(const void*, Team), const void* what, int size, bool brief) {
  Pool* const p = size > 1 ? &the_pool() : nullptr;
  if (!p || pthread_mutex_trylock(&p->busy)) return job(what, Team{0, 1, nullptr});
  start(*p, size);
  if (p->started < size || (brief && p->sleepers.load())) {
    if (nanoseconds() - p->ended < SOON) {
      p->stay.store(true, std::memory_order_relaxed);
      rouse(*p);
    }
    job(what, Team{0, 1, nullptr});
    p->stay.store(false, std::memory_order_relaxed);
  } else {
    p->barrier.reset(size);
    p->job = {job, what, size};
    p->working.store(p->started - 1, std::memory_order_relaxed);
    p->round.fetch_add(1);
    if (p->sleepers.load()) rouse(*p);  // not before: one may have fallen asleep just now
    job(what, Team{0, size, &p->barrier});
    wait_until([&] { return p->working.load(std::memory_order_acquire) == 0; });
  }
  p->ended = nanoseconds();
  pthread_mutex_unlock(&p->busy);
}
