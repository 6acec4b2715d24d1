// All steps of a run in one kernel, forward or backward through time: see persistent.py.
//
// NVRTC compiles this at run time, so no file is included: fused.py puts the texts of numbers.h and
// kernels/gates.h where their names stand. The blocks of a group own UNITS hidden units each, and
// keep their recurrent weights in registers, and the rest in shared memory; each group runs its own
// share of the batch. A step is, for each tile of the share: the tile's states into shared memory,
// the product, the gates.
//
// Blocks do not meet. A number that one block computes and the others wait for is written once,
// into memory that was EMPTY before (all bits set: a NaN that no operation gives), and who needs it
// reads until it is there. So all blocks have to be resident: a cooperative launch.
//
// BITS is the size of the arrays' numbers, 16 or 32; those of 16 bits are bfloat16 where BRAIN is
// defined, and multiplied from sm_80 on. HIDDEN is H; a block of THREADS has UNITS hidden units;
// how a warp holds weights, see `Held`, is TALL_H, WIDE_H, MORE_H and SIDE_H for the product with
// h, and TALL_U and so on for that with u of the GRU that resets before. A state is (B, H), the
// gates of a step (B, G, H), as in fused.cu.

#ifdef __CUDACC__
#define SHARED(name) extern __shared__ __align__(16) char name[]
#define PAUSE() ((void)0)
// What one block writes and another one reads at any time: single numbers, in no order.
__device__ __forceinline__ uint4 fetch(const uint4* from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from)
               : "memory");
  return v;
}
__device__ __forceinline__ unsigned fetch(const unsigned* from) {
  unsigned v;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
__device__ __forceinline__ unsigned short fetch(const unsigned short* from) {
  unsigned short v;
  asm volatile("ld.relaxed.gpu.global.u16 %0, [%1];" : "=h"(v) : "l"(from) : "memory");
  return v;
}
// Into the second level cache, for a later step.
__device__ __forceinline__ void prefetch(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}
__device__ __forceinline__ void give(unsigned* to, unsigned v) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(v));
}
__device__ __forceinline__ void give(unsigned short* to, unsigned short v) {
  asm volatile("st.relaxed.gpu.global.u16 [%0], %1;" ::"l"(to), "h"(v));
}
#ifdef BRAIN
#define HALVES "bf16.bf16"
#else
#define HALVES "f16.f16"
#endif
// sum (16, 8) += a (16, 16) b (16, 8), by a warp. A thread holds pairs of neighbours: of a those
// from column 2 (lane % 4) on, in the rows lane / 4 and 8 further, and then those 8 columns
// further; of b those from row 2 (lane % 4) on and 8 further, in column lane / 4; of the sum as of
// a.
__device__ __forceinline__ void multiply_add(float (&sum)[4], const unsigned (&a)[4],
                                             const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k16.row.col.f32." HALVES ".f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
  for (int k = 0; k < 2; k++)
    asm("mma.sync.aligned.m16n8k8.row.col.f32." HALVES ".f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
#endif
}
#endif

#include "numbers.h"

#include "gates.h"

__device__ constexpr int most(int a, int b) { return a > b ? a : b; }
__device__ constexpr int least(int a, int b) { return a < b ? a : b; }

// Whether the products in float32 are with weights in shared memory, too. Then a thread has few
// registers for numbers that wait; and a step takes long.
#ifdef TALL_U
constexpr bool TIGHT = BITS == 32 && (MORE_H > 0 || MORE_U > 0);
#else
constexpr bool TIGHT = BITS == 32 && MORE_H > 0;
#endif

constexpr int MEMBERS = (HIDDEN + UNITS - 1) / UNITS;  // of a group
[[maybe_unused]] constexpr bool ALONE = MEMBERS == 1;  // which waits for no other

// --------------------------------------------------------------------------------------------
// What blocks give each other.

#if BITS == 16
typedef unsigned short Bits;
#else
typedef unsigned Bits;
#endif
constexpr Bits EMPTY = (Bits)~0u;

// As `store`, but never EMPTY: NaN of other bits.
__device__ __forceinline__ void send(stored* to, number value) {
  union {
    stored value;
    Bits bits;
  } as;
  store(&as.value, value);
  give((Bits*)to, as.bits == EMPTY ? (Bits)(EMPTY >> 1) : as.bits);
}

// A value as the arrays hold it.
__device__ __forceinline__ number rounded(number value) {
  stored as;
  store(&as, value);
  return load(&as);
}

__device__ __forceinline__ bool lacking(Bits v) { return v == EMPTY; }
#if BITS == 16
__device__ __forceinline__ bool lacking(unsigned v) {
  return (v & EMPTY) == EMPTY || v >> 16 == EMPTY;
}
#endif
__device__ __forceinline__ bool lacking(const uint4& v) {
  return lacking(v.x) || lacking(v.y) || lacking(v.z) || lacking(v.w);
}

// How many of a sequence's states are read: four at a time, on tensor cores sixteen.
__device__ constexpr int padded(int width) {
  return BITS == 16 ? (width + 15) / 16 * 16 : (width + 3) / 4 * 4;
}

// From one sequence's states to the next one's in shared memory. For tensor cores no two rows of
// eight begin in the same bank.
__device__ constexpr int distance(int width) { return padded(width) + (BITS == 16 ? 8 : 0); }

// So often a thread reads in vain before it gives up, after seconds: what it then takes is NaN, and
// it waits for nothing more.
constexpr int PATIENCE = 1 << 22;

// So many steps before it is needed, what stands in memory is on its way to the cache.
[[maybe_unused]] constexpr int AHEAD = 4;

// A number as soon as it is there.
template <class V>
__device__ __forceinline__ V awaited(V got, const V* from, int& patience) {
  while (lacking(got) && patience > 0) {
    PAUSE();
    patience--;
    got = fetch(from);
  }
  return got;
}

// What is read at once: 16 bytes where the rows allow it.
template <bool ALIGNED>
struct Vector {
  typedef uint4 Type;
};
template <>
struct Vector<false> {
  typedef Bits Type;
};

// Wait for one number of each block, of those that it sends last: they are from column LAST on.
// Where there are many to come, so few readers do not keep the writers from the memory.
template <int WIDTH, int LAST>
__device__ __forceinline__ void watch(const stored* from, int count, int& patience) {
  for (int k = threadIdx.x; k < MEMBERS; k += THREADS) {
    const int unit = k + 1 < MEMBERS ? (k + 1) * UNITS - 1 : HIDDEN - 1;
    const Bits* const last = (const Bits*)from + (count - 1) * WIDTH + LAST + unit;
    awaited(fetch(last), last, patience);
  }
  __syncthreads();
}

// `count` rows of states, which lie together, into shared memory as soon as they are there.
template <int WIDTH, class V>
__device__ __forceinline__ void stage(stored* to, const stored* from, int count, int& patience) {
  constexpr int AT_ONCE = TIGHT ? 2 : 4, PER = sizeof(V) / sizeof(stored), ACROSS = WIDTH / PER;
  const int all = count * ACROSS;
  const V* next = (const V*)from + threadIdx.x;
#pragma unroll 1
  for (int k = threadIdx.x; k < all; k += AT_ONCE * THREADS, next += AT_ONCE * THREADS) {
    V got[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      if (k + i * THREADS < all) got[i] = fetch(next + i * THREADS);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int at = k + i * THREADS;
      if (at >= all) break;
      *(V*)(to + at / ACROSS * distance(WIDTH) + at % ACROSS * PER) =
          awaited(got[i], next + i * THREADS, patience);
    }
  }
  constexpr int MORE = padded(WIDTH) - WIDTH;  // after each row: a product by zero is not always 0
  if constexpr (MORE > 0)
    for (int k = threadIdx.x; k < count * MORE; k += THREADS)
      to[k / MORE * distance(WIDTH) + WIDTH + k % MORE] = 0;
}

// --------------------------------------------------------------------------------------------
// Products: sums (parts, tile, rows) = states (count, width) weights (rows, width)^T, in parts of
// the width. A warp holds some of the weights' rows over one part of the width: the same in all
// steps.

// What the warps of a block have: `height` rows, and `span` columns of a part.
template <int ROWS, int WIDTH, int HEIGHT, int SPAN>
struct Shares {
  static constexpr int ACROSS = (ROWS + HEIGHT - 1) / HEIGHT, PARTS = (WIDTH + SPAN - 1) / SPAN;
  static constexpr bool EXACT = PARTS * SPAN <= padded(WIDTH);
  static_assert(32 * ACROSS * PARTS <= THREADS, "there are too few warps");
  static constexpr int SUMS = PARTS * ROWS;  // of a sequence

  // What this warp has.
  struct Own {
    int row, column, part;  // the first ones
    bool works;

    __device__ __forceinline__ Own() {
      const int thread = threadIdx.x, warp = thread / 32;
      row = warp % ACROSS * HEIGHT, part = warp / ACROSS, column = part * SPAN;
      works = part < PARTS;
    }
  };

  static __device__ __forceinline__ bool within(int column) { return EXACT || column < WIDTH; }

  // The sum of a row for a sequence, over all parts.
  static __device__ __forceinline__ number total(const number* sums, int tile, int s, int row) {
    number each[PARTS];
#pragma unroll
    for (int p = 0; p < PARTS; p++) each[p] = sums[(p * tile + s) * ROWS + row];
    number all = each[0];
#pragma unroll
    for (int p = 1; p < PARTS; p++) all += each[p];
    return all;
  }
};

// Those that a thread has no registers for are in shared memory, SPARE fours of a block: a thread
// has its own there.
#if BITS == 16
struct alignas(16) Four {
  unsigned w[4];
};

// In tiles of 16 x 16 weights.
template <int ROWS, int WIDTH, int TALL, int WIDE, int MORE, int>
struct Held : Shares<ROWS, WIDTH, 16 * TALL, 16 * (WIDE + MORE)> {
  typedef Shares<ROWS, WIDTH, 16 * TALL, 16 * (WIDE + MORE)> All;
  typedef typename All::Own Own;
  static constexpr int SPARE = TALL * MORE * THREADS;
  Four w[TALL][WIDE];
  Four* spare;

  // at(row, column) is a weight.
  template <class At>
  __device__ __forceinline__ Held(char* shared, At at) : spare((Four*)shared + threadIdx.x) {
    const Own own;
    if constexpr (MORE > 0)
#pragma unroll 1
      for (int k = 0; k < TALL * MORE; k++)
        spare[k * THREADS] = four(own, at, k / MORE, WIDE + k % MORE);
#pragma unroll
    for (int t = 0; t < TALL; t++)
#pragma unroll
      for (int c = 0; c < WIDE; c++) w[t][c] = four(own, at, t, c);
  }

  // The weights of a thread in tile (t, c).
  template <class At>
  static __device__ __forceinline__ Four four(const Own& own, At at, int t, int c) {
    const int lane = threadIdx.x % 32;
    Four four;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = own.row + 16 * t + lane / 4 + i % 2 * 8;
      const int k = own.column + 16 * c + lane % 4 * 2 + i / 2 * 8;
      const unsigned low = r < ROWS && k < WIDTH ? at(r, k) : 0;
      const unsigned high = r < ROWS && k + 1 < WIDTH ? at(r, k + 1) : 0;
      four.w[i] = high << 16 | low;
    }
    return four;
  }

  static constexpr int APART = 4 / TALL;  // sums, so that a product does not wait for the last one

  static __device__ __forceinline__ number added(const number (&sum)[APART][TALL][4], int t,
                                                 int i) {
    number all = sum[0][t][i];
#pragma unroll
    for (int k = 1; k < APART; k++) all += sum[k][t][i];
    return all;
  }

  __device__ __forceinline__ void multiply(number* sums, const stored* states, int count,
                                           int tile) const {
    const Own own;
    const int line = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
    if (!own.works) return;
#pragma unroll 1
    for (int first = 0; first < count; first += 8) {
      const stored* const state =
          states + least(first + line, count - 1) * distance(WIDTH) + own.column + pair;
      number sum[APART][TALL][4] = {};
#pragma unroll
      for (int c = 0; c < WIDE + MORE; c++) {
        if (!All::within(own.column + 16 * c)) break;
        const unsigned b[2] = {*(const unsigned*)(state + 16 * c),
                               *(const unsigned*)(state + 16 * c + 8)};
#pragma unroll
        for (int t = 0; t < TALL; t++) {
          const Four a = c < WIDE ? w[t][c < WIDE ? c : 0] : spare[(t * MORE + c - WIDE) * THREADS];
          multiply_add(sum[c % APART][t], a.w, b);
        }
      }
#pragma unroll
      for (int t = 0; t < TALL; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int r = own.row + 16 * t + line + i / 2 * 8, s = first + pair + i % 2;
          if (r < ROWS && s < count)
            sums[(own.part * tile + s) * ROWS + r] = added(sum, t, i);
        }
    }
  }
};
#else
struct alignas(16) Four {
  number w[4];
};

// SIDE lanes have TALL rows each; of them each of the 32 / SIDE others has every so many-th four
// columns, WIDE + MORE times.
template <int ROWS, int WIDTH, int TALL, int WIDE, int MORE, int SIDE>
struct Held : Shares<ROWS, WIDTH, TALL * SIDE, 4 * (WIDE + MORE) * (32 / SIDE)> {
  typedef Shares<ROWS, WIDTH, TALL * SIDE, 4 * (WIDE + MORE) * (32 / SIDE)> All;
  typedef typename All::Own Own;
  static constexpr int ALONG = 32 / SIDE, SPARE = TALL * MORE * THREADS;
  Four w[TALL][WIDE];
  Four* spare;

  // Which row a lane keeps in the end: it has that one first, the others in the order of `sum`.
  static __device__ __forceinline__ int kept(int lane) { return lane % ALONG * TALL / ALONG; }

  // at(row, column) is a weight.
  template <class At>
  __device__ __forceinline__ Held(char* shared, At at) : spare((Four*)shared + threadIdx.x) {
    const Own own;
    if constexpr (MORE > 0)
#pragma unroll 1
      for (int k = 0; k < TALL * MORE; k++)
        spare[k * THREADS] = four(own, at, k / MORE, WIDE + k % MORE);
#pragma unroll
    for (int r = 0; r < TALL; r++)
#pragma unroll
      for (int c = 0; c < WIDE; c++) w[r][c] = four(own, at, r, c);
  }

  // The weights of a thread in the r-th of its rows, the c-th of its columns.
  template <class At>
  static __device__ __forceinline__ Four four(const Own& own, At at, int r, int c) {
    const int lane = threadIdx.x % 32;
    Four four;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int row = own.row + lane / ALONG * TALL + (r ^ kept(lane));
      const int k = own.column + (c * ALONG + lane % ALONG) * 4 + i;
      four.w[i] = row < ROWS && k < WIDTH ? at(row, k) : 0;
    }
    return four;
  }

  // Adds what the lanes have of each row. Of two lanes each gives the other half of its rows, as
  // long as there are several; row r of the one is row r + HALF of the other.
  template <int HAVE, int OTHER>
  static __device__ __forceinline__ void add(number* sum) {
    if constexpr (OTHER > 0) {
      constexpr int HALF = HAVE > 1 ? HAVE / 2 : 0, LEFT = HAVE > 1 ? HALF : 1;
#pragma unroll
      for (int r = 0; r < LEFT; r++) sum[r] += __shfl_xor_sync(~0u, sum[r + HALF], OTHER);
      add<LEFT, OTHER / 2>(sum);
    }
  }

  __device__ __forceinline__ void multiply(number* sums, const stored* states, int count,
                                           int tile) const {
    constexpr int TOGETHER = MORE && TALL <= 4 ? 4 : 2;
    if (!Own().works) return;
    int first = 0;
    for (; first + 1 < count; first += TOGETHER) some<TOGETHER>(sums, states, first, count, tile);
    if (first < count) some<1>(sums, states, first, count, tile);
  }

  // From a column on, with weights(row).
  template <int TOGETHER, class Weights>
  static __device__ __forceinline__ void add_products(number (&sum)[TOGETHER][TALL],
                                                      const stored* states, int first, int count,
                                                      int column, Weights weights) {
    if (!All::within(column)) return;
    Four v[TOGETHER];
#pragma unroll
    for (int s = 0; s < TOGETHER; s++)
      v[s] = *(const Four*)(states + least(first + s, count - 1) * distance(WIDTH) + column);
#pragma unroll
    for (int r = 0; r < TALL; r++) {
      const Four a = weights(r);
#pragma unroll
      for (int s = 0; s < TOGETHER; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) sum[s][r] += a.w[i] * v[s].w[i];
    }
  }

  // For so many sequences at once, at most.
  template <int TOGETHER>
  __device__ __forceinline__ void some(number* sums, const stored* states, int first, int count,
                                       int tile) const {
    constexpr int LEFT = TALL > ALONG ? TALL / ALONG : 1;
    const Own own;
    const int thread = threadIdx.x, lane = thread % 32, column = own.column + lane % ALONG * 4;
    number sum[TOGETHER][TALL] = {};
#pragma unroll 1
    for (int c = 0; c < MORE; c++)
      add_products(sum, states, first, count, column + 4 * ALONG * (WIDE + c),
                   [&](int r) { return spare[(r * MORE + c) * THREADS]; });
#pragma unroll
    for (int c = 0; c < WIDE; c++)
      add_products(sum, states, first, count, column + 4 * ALONG * c,
                   [&](int r) { return w[r][c]; });
    const int row = own.row + lane / ALONG * TALL + kept(lane);
#pragma unroll
    for (int s = 0; s < TOGETHER; s++) {
      add<TALL, ALONG / 2>(sum[s]);
#pragma unroll
      for (int r = 0; r < LEFT; r++)
        if (lane * TALL % ALONG == 0 && (row ^ r) < ROWS && first + s < count)
          sums[(own.part * tile + first + s) * ROWS + (row ^ r)] = sum[s][r];
    }
  }
};
#endif

// --------------------------------------------------------------------------------------------
// What a block works with: its units and its sequences, from `first` and `sequence` on; in shared
// memory the biases, for each own unit of each own sequence two numbers: h and c, or their
// gradients, and of a tile the states and the sums.

struct Place {
  int row;  // of the block's units
  int s;    // of the tile's sequences
  int slot, unit, sequence;

  // Where its number is in one of many rows (B, width).
  template <int W = HIDDEN>
  __device__ __forceinline__ long long in(int row, int batch) const {
    return (long long)(row * batch + sequence) * W + unit;
  }
};

// WIDTH is that of the states, SUMS how many there are of a sequence, BIASES how many of a unit.
template <int WIDTH, int SUMS, int BIASES = 0>
struct Block {
  int batch, share, tile, patience = PATIENCE;
  number* biases;

  __device__ __forceinline__ Block(Four* shared, int batch, int share, int tile)
      : batch(batch), share(share), tile(tile), biases((number*)shared) {
    stored* const of_tile = states();
    for (int k = threadIdx.x; k < tile * distance(WIDTH); k += THREADS) of_tile[k] = 0;
  }

  __device__ __forceinline__ int first() const { return (int)blockIdx.x % MEMBERS * UNITS; }
  __device__ __forceinline__ int sequence() const { return (int)blockIdx.x / MEMBERS * share; }
  __device__ __forceinline__ int sequences() const { return least(share, batch - sequence()); }
  __device__ __forceinline__ number& own(const Place& at) const {
    return biases[UNITS * BIASES + 2 * at.slot];
  }
  __device__ __forceinline__ number& other(const Place& at) const {
    return biases[UNITS * BIASES + 2 * at.slot + 1];
  }
  __device__ __forceinline__ stored* states() const {
    return (stored*)(biases + (UNITS * (BIASES + 2 * share) + 3) / 4 * 4);
  }
  __device__ __forceinline__ number* sums() const {
    return (number*)(states() + tile * distance(WIDTH));
  }

  // The k-th of UNITS * `now` places of a tile; the last block has fewer units.
  __device__ __forceinline__ Place place(int k, int begin) const {
    const int row = k % UNITS, s = k / UNITS;
    return {row, s, (begin + s) * UNITS + row, first() + row, sequence() + begin + s};
  }

  __device__ __forceinline__ bool has(const Place& at) const {
    return HIDDEN % UNITS == 0 || at.unit < HIDDEN;
  }

  // Copies own numbers of arrays (B, H), if there are any: else they are 0.
  __device__ __forceinline__ void begin(const stored* from, const stored* from_other) const {
    for (int k = threadIdx.x; k < UNITS * sequences(); k += THREADS) {
      const Place at = place(k, 0);
      if (!has(at)) continue;
      own(at) = from ? load(from + at.in(0, batch)) : 0;
      other(at) = from_other ? load(from_other + at.in(0, batch)) : 0;
    }
  }

  // Copies both biases of own units: of each gate those for x, then those for h.
  __device__ __forceinline__ void begin_biases(const stored* bias_ih, const stored* bias_hh) const {
    constexpr int EACH = BIASES / 2 * UNITS;
    for (int k = threadIdx.x; k < EACH; k += THREADS) {
      const int unit = first() + k % UNITS, from = k / UNITS * HIDDEN + unit;
      biases[k] = bias_ih && unit < HIDDEN ? load(bias_ih + from) : 0;
      biases[EACH + k] = bias_hh && unit < HIDDEN ? load(bias_hh + from) : 0;
    }
  }

  // Part of step n: a product, and finish(place, fetched(place, n)) for each own unit and sequence.
  // What a thread needs first is fetched before the product, which waits for other blocks, if there
  // are registers for it.
  template <class Fetched, class Product, class Finish>
  __device__ __forceinline__ void run(int n, Fetched fetched, Product product, Finish finish) {
    for (int begin = 0; begin < sequences(); begin += tile) {
      const int now = least(tile, sequences() - begin), all = UNITS * now, mine = threadIdx.x;
      const Place at = place(mine < all ? mine : 0, begin);
      const bool early = !TIGHT && mine < all && has(at);
      decltype(fetched(at, n)) got = {};
      if (early) got = fetched(at, n);
      product(begin, now);
      if (early) finish(at, got);
      for (int k = TIGHT ? mine : mine + THREADS; k < all; k += THREADS) {
        const Place more = place(k, begin);
        if (has(more)) finish(more, fetched(more, n));
      }
    }
  }

  // begin(place) for each own unit and sequence.
  template <class Begin>
  __device__ __forceinline__ void ahead(Begin begin) const {
#pragma unroll 1
    for (int k = threadIdx.x; k < UNITS * sequences(); k += THREADS) {
      const Place at = place(k, 0);
      if (has(at)) begin(at);
    }
  }

  // The product with a row (B, width) of states: with the first ones that there are, if any, which
  // may begin at any address, or with those that the blocks of this group send.
  template <int W, int LAST = W - HIDDEN, class Weights>
  __device__ __forceinline__ void multiply(const Weights& held, const stored* first,
                                           const stored* sent, int row, int begin, int now) {
    typedef typename Vector<W * sizeof(stored) % 16 == 0>::Type V;
    stored* const states = this->states();
    const int from = sequence() + begin;
    if (patience > 0) patience = PATIENCE;
    int none = 0;  // the first ones are there, and may be EMPTY: NaN
    if (first) stage<W, Bits>(states, first + (long long)from * W, now, none);
    if (sent) {
      sent += (long long)(row * batch + from) * W;
      if (begin == 0 && now * (W / (16 / (int)sizeof(stored))) > THREADS)
        watch<W, LAST>(sent, now, patience);
      stage<W, V>(states, sent, now, patience);
    }
    __syncthreads();
    held.multiply(sums(), states, now, tile);
    __syncthreads();
  }
};

// --------------------------------------------------------------------------------------------
// The cells. x and h: the products with both, biases added. `other` is c of the LSTM, q of the GRU.

struct Tanh {
  static constexpr int gates = 1;
  static constexpr bool has_c = false, has_q = false;
  static __device__ __forceinline__ number forward(const number* x, const number* h, number* g,
                                                   number, number&) {
    return g[0] = tangent(x[0] + h[0]);
  }
  static __device__ __forceinline__ number backward(number* g, number*, number, number after,
                                                    number, number, number whole, number&) {
    g[0] = whole * (1 - after * after);
    return 0;
  }
};

struct Relu {
  static constexpr int gates = 1;
  static constexpr bool has_c = false, has_q = false;
  static __device__ __forceinline__ number forward(const number* x, const number* h, number* g,
                                                   number, number&) {
    g[0] = x[0] + h[0];
    return g[0] < 0 ? 0 : g[0];  // NaN stays NaN
  }
  static __device__ __forceinline__ number backward(number* g, number*, number, number after,
                                                    number, number, number whole, number&) {
    g[0] = after > 0 ? whole : 0;
    return 0;
  }
};

struct Lstm {
  static constexpr int gates = 4;
  static constexpr bool has_c = true, has_q = false;
  static __device__ __forceinline__ number forward(const number* x, const number* h, number* g,
                                                   number, number& c) {
    const LstmStep<number> step =
        lstm_step<number>(x[0] + h[0], x[1] + h[1], x[2] + h[2], x[3] + h[3], c);
    g[0] = step.i, g[1] = step.f, g[2] = step.g, g[3] = step.o;
    c = step.c;
    return step.h;
  }
  static __device__ __forceinline__ number backward(number* g, number*, number, number,
                                                    number before, number after, number whole,
                                                    number& dc) {
    const LstmGradient<number> d =
        lstm_gradient<number>(g[0], g[1], g[2], g[3], before, after, whole, dc);
    g[0] = d.i, g[1] = d.f, g[2] = d.g, g[3] = d.o;
    dc = d.c;
    return 0;
  }
};

struct Gru {
  static constexpr int gates = 3;
  static constexpr bool has_c = false, has_q = true;
  static __device__ __forceinline__ number forward(const number* x, const number* h, number* g,
                                                   number before, number& q) {
    const GruStep<number> step = gru_step<number>(x[0] + h[0], x[1] + h[1], x[2], h[2], before);
    g[0] = step.r, g[1] = step.z, g[2] = step.n;
    q = h[2];
    return step.h;
  }
  // Returns the part of dh that passes by the product.
  static __device__ __forceinline__ number backward(number* g, number* g_hh, number before, number,
                                                    number q, number, number whole, number&) {
    const GruGradient<number> d = gru_gradient<number>(g[0], g[1], g[2], q, before, whole);
    g[0] = d.r, g[1] = d.z, g[2] = d.n;
    g_hh[0] = d.r, g_hh[1] = d.z, g_hh[2] = d.q;
    return d.h;
  }
};

// --------------------------------------------------------------------------------------------
// Forward. Row k of h stands between the steps k - 1 and k, and is EMPTY at first, as is u of the
// GRU that resets before, `extra`. With `keep` c is like h, and the GRU's q, `extra`, has a row for
// each step; without, neither is there. `first` and `last` are the state before and after all
// steps; null before is zeros.

#define FORWARD(Count)                                                                            \
  Count batch, Count steps, Count share, Count tile, Count reverse, Count keep,                   \
      const stored *weights, const bool *valid, const stored *bias_ih, const stored *bias_hh,     \
      const stored *h_first, const stored *c_first, stored *gates, stored *h, stored *c,          \
      stored *extra, stored *y, stored *h_last, stored *c_last

// The step t, and the rows of the state before and after it.
struct Rows {
  int t, before, after;
  __device__ __forceinline__ Rows(int n, int steps, bool reverse)
      : t(reverse ? steps - 1 - n : n), before(reverse ? t + 1 : t), after(reverse ? t : t + 1) {}
};

// Own rows of weights (gates * H, H): gate by gate, unit by unit.
struct OwnRows {
  const stored* weights;
  __device__ __forceinline__ stored operator()(int row, int column) const {
    const long long unit = blockIdx.x % MEMBERS * UNITS + row % UNITS;
    return unit < HIDDEN ? weights[(row / UNITS * HIDDEN + unit) * HIDDEN + column] : 0;
  }
};

template <int G>
struct Inputs {
  stored x[G];  // W_ih x
  bool counts;
};

// Keeps the state before all steps where the weights' gradients need it.
template <class Own>
__device__ __forceinline__ void keep_first(const Own& own, int row, stored* rows, stored* others) {
  for (int k = threadIdx.x; k < UNITS * own.sequences(); k += THREADS) {
    const Place at = own.place(k, 0);
    if (!own.has(at)) continue;
    store(rows + at.in(row, own.batch), own.own(at));
    if (others) store(others + at.in(row, own.batch), own.other(at));
  }
}

template <class Cell>
__device__ __forceinline__ void forward(FORWARD(int)) {
  SHARED(shared);
  constexpr int G = Cell::gates;
  typedef Held<G * UNITS, HIDDEN, TALL_H, WIDE_H, MORE_H, SIDE_H> Weights;
  const Weights held(shared, OwnRows{weights});
  Block<HIDDEN, Weights::SUMS, 2 * G> own((Four*)shared + Weights::SPARE, batch, share, tile);
  own.begin(h_first, c_first);
  own.begin_biases(bias_ih, bias_hh);
  __syncthreads();
  if (keep) keep_first(own, Rows(0, steps, reverse).before, h, Cell::has_c ? c : nullptr);
  const auto fetched = [&](const Place& at, int n) {
    Inputs<G> in;
    const int t = Rows(n, steps, reverse).t;
    const stored* const g = gates + at.in<G * HIDDEN>(t, batch);
#pragma unroll
    for (int gate = 0; gate < G; gate++) in.x[gate] = g[gate * HIDDEN];
    in.counts = !valid || valid[t * batch + at.sequence];
    return in;
  };
  for (int n = 0; n < steps; n++) {
    const Rows row(n, steps, reverse);
    own.run(
        n, fetched,
        [&](int begin, int now) {
          own.template multiply<HIDDEN>(held, n ? nullptr : h_first, n && !ALONE ? h : nullptr,
                                        row.before, begin, now);
        },
        [&](const Place& at, const Inputs<G>& in) {
          number value = own.own(at), other = Cell::has_c ? own.other(at) : 0, made[G];
          if (in.counts) {
            number from_x[G], from_h[G];
#pragma unroll
            for (int gate = 0; gate < G; gate++) {
              const int r = gate * UNITS + at.row;
              from_x[gate] = load(in.x + gate) + own.biases[r];
              from_h[gate] = held.total(own.sums(), tile, at.s, r) + own.biases[G * UNITS + r];
            }
            value = rounded(Cell::forward(from_x, from_h, made, value, other));
            other = rounded(other);
          }
          send(h + at.in(row.after, batch), value);
          if (ALONE) store(own.states() + at.s * distance(HIDDEN) + at.unit, value);
          own.own(at) = value;
          if (Cell::has_c) own.other(at) = other;
          store(y + at.in(row.t, batch), in.counts ? value : 0);
          if (n == steps - 1) {
            store(h_last + at.in(0, batch), value);
            if (Cell::has_c) store(c_last + at.in(0, batch), other);
          }
          if (!keep) return;
          if (Cell::has_c) store(c + at.in(row.after, batch), other);
          if (Cell::has_q) store(extra + at.in(row.t, batch), other);
          stored* const g = gates + at.in<G * HIDDEN>(row.t, batch);
#pragma unroll
          for (int gate = 0; gate < G; gate++)
            if (in.counts) store(g + gate * HIDDEN, made[gate]);
        });
    if (n + AHEAD < steps)
      own.ahead([&](const Place& at) {
        const int t = Rows(n + AHEAD, steps, reverse).t;
        const stored* const g = gates + at.in<G * HIDDEN>(t, batch);
#pragma unroll
        for (int gate = 0; gate < G; gate++) prefetch(g + gate * HIDDEN);
      });
  }
}

#ifdef TALL_U
struct Reset {
  static constexpr int gates = 2, gates_u = 1;  // of the product with h, and with u
};

// The GRU that resets before its product with h: two products a step. `other` is z.
template <class Cell>
__device__ __forceinline__ void reset_forward(FORWARD(int)) {
  SHARED(shared);
  constexpr int G = Cell::gates;
  typedef Held<G * UNITS, HIDDEN, TALL_H, WIDE_H, MORE_H, SIDE_H> Weights;
  typedef Held<Cell::gates_u * UNITS, HIDDEN, TALL_U, WIDE_U, MORE_U, SIDE_U> WeightsU;
  const Weights held(shared, OwnRows{weights});
  Four* const spare = (Four*)shared + Weights::SPARE;
  const WeightsU held_u((char*)spare, OwnRows{weights + (long long)G * HIDDEN * HIDDEN});
  Block<HIDDEN, most(Weights::SUMS, WeightsU::SUMS), 6> own(spare + WeightsU::SPARE, batch, share,
                                                            tile);
  own.begin(h_first, nullptr);
  own.begin_biases(bias_ih, bias_hh);
  __syncthreads();
  if (keep) keep_first(own, Rows(0, steps, reverse).before, h, nullptr);
  const auto bias = [&](int r) { return own.biases[r] + own.biases[3 * UNITS + r]; };
  const auto place = [&](const Place& at, int n) {
    return at.in<3 * HIDDEN>(Rows(n, steps, reverse).t, batch);
  };
  const auto counts = [&](const Place& at, int n) {
    return !valid || valid[Rows(n, steps, reverse).t * batch + at.sequence];
  };
  const auto fetched = [&](const Place& at, int n) {
    const stored* const g = gates + place(at, n);
    return Inputs<G>{{g[0], g[HIDDEN]}, counts(at, n)};
  };
  const auto fetched_u = [&](const Place& at, int n) {
    return Inputs<1>{{gates[place(at, n) + 2 * HIDDEN]}, counts(at, n)};
  };
  for (int n = 0; n < steps; n++) {
    const Rows row(n, steps, reverse);
    own.run(
        n, fetched,
        [&](int begin, int now) {
          own.template multiply<HIDDEN>(held, n ? nullptr : h_first, n ? h : nullptr, row.before,
                                        begin, now);
        },
        [&](const Place& at, const Inputs<G>& in) {
          ResetStep<number> step = {0, 0, 0};
          if (in.counts) {
            number a[2];
#pragma unroll
            for (int gate = 0; gate < 2; gate++) {
              const int r = gate * UNITS + at.row;
              a[gate] = load(in.x + gate) + held.total(own.sums(), tile, at.s, r) + bias(r);
            }
            step = reset_step<number>(a[0], a[1], own.own(at));
          }
          send(extra + at.in(row.t, batch), step.u);
          own.other(at) = step.z;
          if (!keep || !in.counts) return;
          stored* const g = gates + place(at, n);
          store(g, step.r);
          store(g + HIDDEN, step.z);
        });
    own.run(
        n, fetched_u,
        [&](int begin, int now) {
          own.template multiply<HIDDEN>(held_u, nullptr, extra, row.t, begin, now);
        },
        [&](const Place& at, const Inputs<1>& in) {
          number value = own.own(at);
          if (in.counts) {
            const number a = load(in.x) + held_u.total(own.sums(), tile, at.s, at.row) +
                             bias(2 * UNITS + at.row);
            const CandidateStep<number> step =
                candidate_step<number>(a, rounded(own.other(at)), value);
            if (keep) store(gates + place(at, n) + 2 * HIDDEN, step.n);
            value = rounded(step.h);
          }
          send(h + at.in(row.after, batch), value);
          own.own(at) = value;
          store(y + at.in(row.t, batch), in.counts ? value : 0);
          if (n == steps - 1) store(h_last + at.in(0, batch), value);
        });
    if (TIGHT && n + AHEAD < steps)
      own.ahead([&](const Place& at) {
        const stored* const g = gates + place(at, n + AHEAD);
#pragma unroll
        for (int gate = 0; gate < 3; gate++) prefetch(g + gate * HIDDEN);
      });
  }
}

#endif

// --------------------------------------------------------------------------------------------
// Backward. `dh_last` and `dc_last` (B, H) are the gradients of the last state, null for zeros;
// `dh` and `dc` become those of the first. `da_hh` is the gradients of the pre-activations in the
// product with h, `da_u` of those in the product with u: both EMPTY at first. In the GRUs those of
// the product with x, which are others, take the place of the gates.

#define BACKWARD(Count)                                                                           \
  Count batch, Count steps, Count share, Count tile, Count reverse, const stored *weights,        \
      const bool *valid, const stored *dy, stored *gates, const stored *h, const stored *c,       \
      const stored *extra, const stored *dh_last, const stored *dc_last, stored *dh, stored *dc,  \
      stored *da_hh, stored *da_u

// The n-th step t, the step that was handled before it, and the rows of the state around it.
struct Back {
  int t, last, before, after;
  __device__ __forceinline__ Back(int n, int steps, bool reverse)
      : t(reverse ? n : steps - 1 - n), last(reverse ? t - 1 : t + 1),
        before(reverse ? t + 1 : t), after(reverse ? t : t + 1) {}
};

// Own columns of weights (WIDTH, H), as rows.
struct OwnColumns {
  const stored* weights;
  __device__ __forceinline__ stored operator()(int row, int column) const {
    const long long unit = blockIdx.x % MEMBERS * UNITS + row;
    return unit < HIDDEN ? weights[(long long)column * HIDDEN + unit] : 0;
  }
};

template <int G>
struct Seen {
  stored gates[G], h_before, h_after, c_before, c_after, q, dy;
  bool counts;
};

template <class Cell>
__device__ __forceinline__ void backward(BACKWARD(int)) {
  SHARED(shared);
  constexpr int G = Cell::gates;
  constexpr int WIDTH = G * HIDDEN;
  typedef Held<UNITS, WIDTH, TALL_H, WIDE_H, MORE_H, SIDE_H> Weights;
  const Weights held(shared, OwnColumns{weights});
  Block<WIDTH, Weights::SUMS> own((Four*)shared + Weights::SPARE, batch, share, tile);
  own.begin(dh_last, dc_last);
  __syncthreads();
  const auto fetched = [&](const Place& at, int n) {
    Seen<G> in = {};
    if (n >= steps) return in;
    const Back row(n, steps, reverse);
    in.counts = !valid || valid[row.t * batch + at.sequence];
    if (!in.counts) return in;
    const stored* const g = gates + at.in<WIDTH>(row.t, batch);
    const long long before = at.in(row.before, batch), after = at.in(row.after, batch);
#pragma unroll
    for (int gate = 0; gate < G; gate++) in.gates[gate] = g[gate * HIDDEN];
    in.h_before = h[before], in.h_after = h[after];
    if (Cell::has_c) in.c_before = c[before], in.c_after = c[after];
    if (Cell::has_q) in.q = extra[at.in(row.t, batch)];
    in.dy = dy[at.in(row.t, batch)];
    return in;
  };
  for (int n = 0; n <= steps; n++) {
    const Back row(n, steps, reverse);
    own.run(
        n, fetched,
        [&](int begin, int now) {
          if (n > 0)
            own.template multiply<WIDTH>(held, nullptr, ALONE ? nullptr : da_hh, row.last, begin,
                                         now);
        },
        [&](const Place& at, const Seen<G>& in) {
          number whole = own.own(at), d = Cell::has_c ? own.other(at) : 0;
          if (n > 0) whole += held.total(own.sums(), tile, at.s, at.row);
          if (n == steps) {
            store(dh + at.in(0, batch), whole);
            if (Cell::has_c) store(dc + at.in(0, batch), d);
            return;
          }
          number made[G] = {}, made_hh[G] = {};
          if (in.counts) {
#pragma unroll
            for (int gate = 0; gate < G; gate++) made[gate] = load(in.gates + gate);
            whole = Cell::backward(made, made_hh, load(&in.h_before), load(&in.h_after),
                                   Cell::has_q ? load(&in.q) : load(&in.c_before),
                                   load(&in.c_after), whole + load(&in.dy), d);
          }
          const long long place = at.in<WIDTH>(row.t, batch);
#pragma unroll
          for (int gate = 0; gate < G; gate++) {
            const number sent = Cell::has_q ? made_hh[gate] : made[gate];
            send(da_hh + place + gate * HIDDEN, sent);
            if (ALONE)
              store(own.states() + at.s * distance(WIDTH) + gate * HIDDEN + at.unit, sent);
          }
          own.own(at) = whole;
          if (Cell::has_c) own.other(at) = d;
#pragma unroll
          for (int gate = 0; gate < G; gate++)
            if (Cell::has_q) store(gates + place + gate * HIDDEN, made[gate]);
        });
    if (n + AHEAD < steps)
      own.ahead([&](const Place& at) {
        const Back later(n + AHEAD, steps, reverse);
        const stored* const g = gates + at.in<WIDTH>(later.t, batch);
#pragma unroll
        for (int gate = 0; gate < G; gate++) prefetch(g + gate * HIDDEN);
        prefetch(h + at.in(later.before, batch));
        prefetch(dy + at.in(later.t, batch));
        if (Cell::has_c) prefetch(c + at.in(later.before, batch));
        if (Cell::has_q) prefetch(extra + at.in(later.t, batch));
      });
  }
}

#ifdef TALL_U
template <class Cell>
__device__ __forceinline__ void reset_backward(BACKWARD(int)) {
  SHARED(shared);
  constexpr int WIDTH = Cell::gates * HIDDEN;
  typedef Held<UNITS, WIDTH, TALL_H, WIDE_H, MORE_H, SIDE_H> Weights;
  typedef Held<UNITS, Cell::gates_u * HIDDEN, TALL_U, WIDE_U, MORE_U, SIDE_U> WeightsU;
  const Weights held(shared, OwnColumns{weights});
  Four* const spare = (Four*)shared + Weights::SPARE;
  const WeightsU held_u((char*)spare, OwnColumns{weights + (long long)WIDTH * HIDDEN});
  Block<WIDTH, most(Weights::SUMS, WeightsU::SUMS)> own(spare + WeightsU::SPARE, batch, share,
                                                        tile);
  own.begin(dh_last, nullptr);
  __syncthreads();
  const auto place = [&](const Place& at, const Back& row) {
    return at.in<3 * HIDDEN>(row.t, batch);
  };
  const auto counts = [&](const Place& at, const Back& row) {
    return !valid || valid[row.t * batch + at.sequence];
  };
  const auto fetched = [&](const Place& at, int n) {
    Seen<2> in = {};
    if (n >= steps) return in;
    const Back row(n, steps, reverse);
    in.counts = counts(at, row);
    in.gates[0] = gates[place(at, row) + HIDDEN], in.gates[1] = gates[place(at, row) + 2 * HIDDEN];
    in.h_before = h[at.in(row.before, batch)], in.dy = dy[at.in(row.t, batch)];
    return in;
  };
  const auto fetched_u = [&](const Place& at, int n) {
    Seen<1> in = {};
    const Back row(n, steps, reverse);
    in.counts = counts(at, row);
    in.gates[0] = gates[place(at, row)];
    in.h_before = h[at.in(row.before, batch)];
    return in;
  };
  for (int n = 0; n <= steps; n++) {
    const Back row(n, steps, reverse);
    own.run(
        n, fetched,
        [&](int begin, int now) {
          if (n > 0)
            own.template multiply<WIDTH, 0>(held, nullptr, da_hh, row.last, begin, now);
        },
        [&](const Place& at, const Seen<2>& in) {
          number whole = own.own(at);
          if (n > 0) whole += held.total(own.sums(), tile, at.s, at.row);
          if (n == steps) return store(dh + at.in(0, batch), whole);
          CandidateGradient<number> d = {0, 0, whole};
          if (in.counts)
            d = candidate_gradient<number>(load(in.gates), load(in.gates + 1), load(&in.h_before),
                                           whole + load(&in.dy));
          send(da_u + at.in(row.t, batch), d.n);
          send(da_hh + at.in<WIDTH>(row.t, batch) + HIDDEN, d.z);
          own.own(at) = d.h;
          store(gates + place(at, row) + HIDDEN, d.z);
          store(gates + place(at, row) + 2 * HIDDEN, d.n);
        });
    if (n == steps) return;
    own.run(
        n, fetched_u,
        [&](int begin, int now) {
          own.template multiply<HIDDEN>(held_u, nullptr, da_u, row.t, begin, now);
        },
        [&](const Place& at, const Seen<1>& in) {
          ResetGradient<number> d = {0, 0};
          if (in.counts)
            d = reset_gradient<number>(load(in.gates), load(&in.h_before),
                                       held_u.total(own.sums(), tile, at.s, at.row));
          send(da_hh + at.in<WIDTH>(row.t, batch), d.r);
          own.own(at) += d.h;
          store(gates + place(at, row), d.r);
        });
    if (TIGHT && n + AHEAD < steps)
      own.ahead([&](const Place& at) {
        const Back later(n + AHEAD, steps, reverse);
        const stored* const g = gates + place(at, later);
#pragma unroll
        for (int gate = 0; gate < 3; gate++) prefetch(g + gate * HIDDEN);
        prefetch(h + at.in(later.before, batch));
        prefetch(dy + at.in(later.t, batch));
      });
  }
}

#endif

#define FORWARD_KERNEL(name, body)                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                        \
      name##_all_forward(FORWARD(long long)) {                                                    \
    body(batch, steps, share, tile, reverse, keep, weights, valid, bias_ih, bias_hh, h_first,     \
         c_first, gates, h, c, extra, y, h_last, c_last);                                         \
  }
#define BACKWARD_KERNEL(name, body)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                        \
      name##_all_backward(BACKWARD(long long)) {                                                  \
    body(batch, steps, share, tile, reverse, weights, valid, dy, gates, h, c, extra, dh_last,     \
         dc_last, dh, dc, da_hh, da_u);                                                           \
  }

// What is compiled: of one cell, forward or backward.
