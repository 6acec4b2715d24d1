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
__device__ __forceinline__ int least(long long a, long long b) { return (int)(a < b ? a : b); }

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
  constexpr int AT_ONCE = 4, PER = sizeof(V) / sizeof(stored), ACROSS = WIDTH / PER;
  const int all = count * ACROSS;
  for (int k = threadIdx.x; k < all; k += AT_ONCE * THREADS) {
    V got[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++)
      if (k + i * THREADS < all) got[i] = fetch((const V*)from + k + i * THREADS);
#pragma unroll
    for (int i = 0; i < AT_ONCE; i++) {
      const int at = k + i * THREADS;
      if (at >= all) break;
      *(V*)(to + at / ACROSS * distance(WIDTH) + at % ACROSS * PER) =
          awaited(got[i], (const V*)from + at, patience);
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

  int row, column, part;  // the first ones of this warp
  bool works;

  __device__ __forceinline__ Shares() {
    const int warp = threadIdx.x / 32;
    row = warp % ACROSS * HEIGHT, part = warp / ACROSS, column = part * SPAN;
    works = part < PARTS;
  }

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
  typedef Shares<ROWS, WIDTH, 16 * TALL, 16 * (WIDE + MORE)> Own;
  static constexpr int SPARE = TALL * MORE * THREADS;
  Four w[TALL][WIDE];
  Four* spare;

  // at(row, column) is a weight.
  template <class At>
  __device__ __forceinline__ Held(char* shared, At at) : spare((Four*)shared + threadIdx.x) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < TALL; t++)
#pragma unroll
      for (int c = 0; c < WIDE + MORE; c++) {
        Four four;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int r = Own::row + 16 * t + lane / 4 + i % 2 * 8;
          const int k = Own::column + 16 * c + lane % 4 * 2 + i / 2 * 8;
          const unsigned low = r < ROWS && k < WIDTH ? at(r, k) : 0;
          const unsigned high = r < ROWS && k + 1 < WIDTH ? at(r, k + 1) : 0;
          four.w[i] = high << 16 | low;
        }
        if (c < WIDE)
          w[t][c] = four;
        else
          spare[(t * MORE + c - WIDE) * THREADS] = four;
      }
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
    const int line = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
    if (!Own::works) return;
    for (int first = 0; first < count; first += 8) {
      const stored* const state =
          states + least(first + line, count - 1) * distance(WIDTH) + Own::column + pair;
      number sum[APART][TALL][4] = {};
#pragma unroll
      for (int c = 0; c < WIDE + MORE; c++) {
        if (!Own::within(Own::column + 16 * c)) break;
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
          const int r = Own::row + 16 * t + line + i / 2 * 8, s = first + pair + i % 2;
          if (r < ROWS && s < count)
            sums[(Own::part * tile + s) * ROWS + r] = added(sum, t, i);
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
  typedef Shares<ROWS, WIDTH, TALL * SIDE, 4 * (WIDE + MORE) * (32 / SIDE)> Own;
  static constexpr int ALONG = 32 / SIDE, SPARE = TALL * MORE * THREADS;
  Four w[TALL][WIDE];
  Four* spare;

  // Which row a lane keeps in the end: it has that one first, the others in the order of `sum`.
  static __device__ __forceinline__ int kept() { return threadIdx.x % ALONG * TALL / ALONG; }

  // at(row, column) is a weight.
  template <class At>
  __device__ __forceinline__ Held(char* shared, At at) : spare((Four*)shared + threadIdx.x) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < TALL; r++)
#pragma unroll
      for (int c = 0; c < WIDE + MORE; c++) {
        Four four;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int row = Own::row + lane / ALONG * TALL + (r ^ kept());
          const int k = Own::column + (c * ALONG + lane % ALONG) * 4 + i;
          four.w[i] = row < ROWS && k < WIDTH ? at(row, k) : 0;
        }
        if (c < WIDE)
          w[r][c] = four;
        else
          spare[(r * MORE + c - WIDE) * THREADS] = four;
      }
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
    if (!Own::works) return;
    int first = 0;
    for (; first + 1 < count; first += TOGETHER) some<TOGETHER>(sums, states, first, count, tile);
    if (first < count) some<1>(sums, states, first, count, tile);
  }

  // For so many sequences at once, at most.
  template <int TOGETHER>
  __device__ __forceinline__ void some(number* sums, const stored* states, int first, int count,
                                       int tile) const {
    constexpr int LEFT = TALL > ALONG ? TALL / ALONG : 1;
    const int lane = threadIdx.x % 32;
    number sum[TOGETHER][TALL] = {};
#pragma unroll
    for (int c = 0; c < WIDE + MORE; c++) {
      const int k = Own::column + (c * ALONG + lane % ALONG) * 4;
      if (!Own::within(k)) break;
      Four v[TOGETHER];
#pragma unroll
      for (int s = 0; s < TOGETHER; s++)
        v[s] = *(const Four*)(states + least(first + s, count - 1) * distance(WIDTH) + k);
#pragma unroll
      for (int r = 0; r < TALL; r++) {
        const Four a = c < WIDE ? w[r][c < WIDE ? c : 0] : spare[(r * MORE + c - WIDE) * THREADS];
#pragma unroll
        for (int s = 0; s < TOGETHER; s++)
#pragma unroll
          for (int i = 0; i < 4; i++) sum[s][r] += a.w[i] * v[s].w[i];
      }
    }
#pragma unroll
    for (int s = 0; s < TOGETHER; s++) {
      add<TALL, ALONG / 2>(sum[s]);
      const int row = Own::row + lane / ALONG * TALL + kept();
#pragma unroll
      for (int r = 0; r < LEFT; r++)
        if (lane * TALL % ALONG == 0 && (row ^ r) < ROWS && first + s < count)
          sums[(Own::part * tile + first + s) * ROWS + (row ^ r)] = sum[s][r];
    }
  }
};
#endif

// --------------------------------------------------------------------------------------------
// What a block works with: its units and its sequences, from `first` and `sequence` on; in shared
// memory the states of a tile, the sums, the biases, and for each own unit of each own sequence two
// numbers: h and c, or their gradients.

struct Place {
  int row;  // of the block's units
  int s;    // of the tile's sequences
  int slot;
  long long unit, sequence;
};

// WIDTH is that of the states, SUMS how many there are of a sequence.
template <int WIDTH, int SUMS>
struct Block {
  int tile, first, sequence, sequences, patience = PATIENCE;
  stored* states;
  number *sums, *own, *other, *biases;

  __device__ __forceinline__ Block(Four* shared, long long batch, int share, int tile)
      : tile(tile), first(blockIdx.x % MEMBERS * UNITS), sequence(blockIdx.x / MEMBERS * share),
        sequences(least(share, batch - sequence)), states((stored*)shared),
        sums((number*)(states + tile * distance(WIDTH))), own(sums + tile * SUMS),
        other(own + UNITS * share), biases(other + UNITS * share) {
    for (int k = threadIdx.x; k < tile * distance(WIDTH); k += THREADS) states[k] = 0;
  }

  // The k-th of UNITS * `now` places of a tile; the last block has fewer units.
  __device__ __forceinline__ Place place(int k, int begin) const {
    const int row = k % UNITS, s = k / UNITS;
    return {row, s, (begin + s) * UNITS + row, first + row, sequence + begin + s};
  }

  __device__ __forceinline__ bool has(const Place& at) const {
    return HIDDEN % UNITS == 0 || at.unit < HIDDEN;
  }

  // Copies own numbers of an array (B, H), if there is one: else they are 0.
  __device__ __forceinline__ void begin(number* to, const stored* from) const {
    for (int k = threadIdx.x; k < UNITS * sequences; k += THREADS) {
      const Place at = place(k, 0);
      if (has(at)) to[at.slot] = from ? load(from + at.sequence * HIDDEN + at.unit) : 0;
    }
  }

  // Copies both biases of own units: of each gate those for x, then those for h.
  __device__ __forceinline__ void begin(const stored* bias_ih, const stored* bias_hh, int gates) {
    for (int k = threadIdx.x; k < gates * UNITS; k += THREADS) {
      const int unit = first + k % UNITS, from = k / UNITS * HIDDEN + unit;
      biases[k] = bias_ih && unit < HIDDEN ? load(bias_ih + from) : 0;
      biases[gates * UNITS + k] = bias_hh && unit < HIDDEN ? load(bias_hh + from) : 0;
    }
  }

  // Part of step n: a product, and finish(place, fetched(place, n)) for each own unit and sequence.
  // What a thread needs first is fetched before the product, which waits for other blocks.
  template <class Fetched, class Product, class Finish>
  __device__ __forceinline__ void run(long long n, Fetched fetched, Product product,
                                      Finish finish) {
    for (int begin = 0; begin < sequences; begin += tile) {
      const int now = least(tile, sequences - begin), all = UNITS * now, mine = threadIdx.x;
      const Place at = place(mine < all ? mine : 0, begin);
      const bool works = mine < all && has(at);
      decltype(fetched(at, n)) got = {};
      if (works) got = fetched(at, n);
      product(begin, now);
      if (works) finish(at, got);
      for (int k = mine + THREADS; k < all; k += THREADS) {
        const Place more = place(k, begin);
        if (has(more)) finish(more, fetched(more, n));
      }
    }
  }

  // begin(place) for the own unit and sequence that a thread needs first.
  template <class Begin>
  __device__ __forceinline__ void ahead(Begin begin) const {
    if (threadIdx.x >= UNITS * least(tile, sequences)) return;
    const Place at = place(threadIdx.x, 0);
    if (has(at)) begin(at);
  }

  // The product with rows (B, width) of states: with the first ones that there are, if any, which
  // may begin at any address, or with those that the blocks of this group send.
  template <int W, int LAST = W - HIDDEN, class Weights>
  __device__ __forceinline__ void multiply(const Weights& held, const stored* first,
                                           const stored* sent, int begin, int now) {
    typedef typename Vector<W * sizeof(stored) % 16 == 0>::Type V;
    const long long from = (sequence + begin) * (long long)W;
    if (patience > 0) patience = PATIENCE;
    int none = 0;  // the first ones are there, and may be EMPTY: NaN
    if (first) stage<W, Bits>(states, first + from, now, none);
    if (sent) {
      if (begin == 0 && now * (W / (16 / (int)sizeof(stored))) > THREADS)
        watch<W, LAST>(sent + from, now, patience);
      stage<W, V>(states, sent + from, now, patience);
    }
    __syncthreads();
    held.multiply(sums, states, now, tile);
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

#define FORWARD                                                                                   \
  long long batch, long long steps, long long share, long long tile, long long reverse,           \
      long long keep, const stored *weights, const bool *valid, const stored *bias_ih,            \
      const stored *bias_hh, const stored *h_first, const stored *c_first, stored *gates,         \
      stored *h, stored *c, stored *extra, stored *y, stored *h_last, stored *c_last

// The step t, and the rows of the state before and after it.
struct Rows {
  long long t, before, after;
  __device__ __forceinline__ Rows(long long n, long long steps, bool reverse)
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
__device__ __forceinline__ void keep_first(const Own& own, const number* state, stored* rows) {
  for (int k = threadIdx.x; k < UNITS * own.sequences; k += THREADS) {
    const Place at = own.place(k, 0);
    if (own.has(at)) store(rows + at.sequence * HIDDEN + at.unit, state[at.slot]);
  }
}

template <class Cell>
__device__ __forceinline__ void forward(FORWARD) {
  SHARED(shared);
  constexpr int G = Cell::gates;
  typedef Held<G * UNITS, HIDDEN, TALL_H, WIDE_H, MORE_H, SIDE_H> Weights;
  const Weights held(shared, OwnRows{weights});
  Block<HIDDEN, Weights::SUMS> own((Four*)shared + Weights::SPARE, batch, share, tile);
  const long long size = batch * HIDDEN, first = Rows(0, steps, reverse).before * size;
  own.begin(own.own, h_first);
  if (Cell::has_c) own.begin(own.other, c_first);
  own.begin(bias_ih, bias_hh, G);
  __syncthreads();
  if (keep) keep_first(own, own.own, h + first);
  if (Cell::has_c && keep) keep_first(own, own.other, c + first);
  const auto fetched = [&](const Place& at, long long n) {
    Inputs<G> in;
    const long long place = Rows(n, steps, reverse).t * batch + at.sequence;
    const stored* const g = gates + place * G * HIDDEN + at.unit;
#pragma unroll
    for (int gate = 0; gate < G; gate++) in.x[gate] = g[gate * HIDDEN];
    in.counts = !valid || valid[place];
    return in;
  };
  for (long long n = 0; n < steps; n++) {
    const Rows row(n, steps, reverse);
    own.run(
        n, fetched,
        [&](int begin, int now) {
          own.template multiply<HIDDEN>(held, n ? nullptr : h_first,
                                        n && !ALONE ? h + row.before * size : nullptr, begin, now);
        },
        [&](const Place& at, const Inputs<G>& in) {
          const long long k = at.sequence * HIDDEN + at.unit;
          number value = own.own[at.slot], other = Cell::has_c ? own.other[at.slot] : 0, made[G];
          if (in.counts) {
            number from_x[G], from_h[G];
#pragma unroll
            for (int gate = 0; gate < G; gate++) {
              const int r = gate * UNITS + at.row;
              from_x[gate] = load(in.x + gate) + own.biases[r];
              from_h[gate] = held.total(own.sums, tile, at.s, r) + own.biases[G * UNITS + r];
            }
            value = rounded(Cell::forward(from_x, from_h, made, value, other));
            other = rounded(other);
          }
          send(h + row.after * size + k, value);
          if (ALONE) store(own.states + at.s * distance(HIDDEN) + at.unit, value);
          own.own[at.slot] = value;
          if (Cell::has_c) own.other[at.slot] = other;
          store(y + row.t * size + k, in.counts ? value : 0);
          if (n == steps - 1) {
            store(h_last + k, value);
            if (Cell::has_c) store(c_last + k, other);
          }
          if (!keep) return;
          if (Cell::has_c) store(c + row.after * size + k, other);
          if (Cell::has_q) store(extra + row.t * size + k, other);
          stored* const g = gates + (row.t * batch + at.sequence) * G * HIDDEN + at.unit;
#pragma unroll
          for (int gate = 0; gate < G; gate++)
            if (in.counts) store(g + gate * HIDDEN, made[gate]);
        });
    if (n + AHEAD < steps)
      own.ahead([&](const Place& at) {
        const long long t = Rows(n + AHEAD, steps, reverse).t;
        const stored* const g = gates + (t * batch + at.sequence) * G * HIDDEN + at.unit;
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
__device__ __forceinline__ void reset_forward(FORWARD) {
  SHARED(shared);
  constexpr int G = Cell::gates;
  typedef Held<G * UNITS, HIDDEN, TALL_H, WIDE_H, MORE_H, SIDE_H> Weights;
  typedef Held<Cell::gates_u * UNITS, HIDDEN, TALL_U, WIDE_U, MORE_U, SIDE_U> WeightsU;
  const Weights held(shared, OwnRows{weights});
  Four* const spare = (Four*)shared + Weights::SPARE;
  const WeightsU held_u((char*)spare, OwnRows{weights + (long long)G * HIDDEN * HIDDEN});
  Block<HIDDEN, most(Weights::SUMS, WeightsU::SUMS)> own(spare + WeightsU::SPARE, batch, share,
                                                         tile);
  const long long size = batch * HIDDEN;
  own.begin(own.own, h_first);
  own.begin(bias_ih, bias_hh, 3);
  __syncthreads();
  if (keep) keep_first(own, own.own, h + Rows(0, steps, reverse).before * size);
  const auto bias = [&](int r) { return own.biases[r] + own.biases[3 * UNITS + r]; };
  const auto place = [&](const Place& at, long long n) {
    return (Rows(n, steps, reverse).t * batch + at.sequence) * 3 * HIDDEN + at.unit;
  };
  const auto counts = [&](const Place& at, long long n) {
    return !valid || valid[Rows(n, steps, reverse).t * batch + at.sequence];
  };
  const auto fetched = [&](const Place& at, long long n) {
    const stored* const g = gates + place(at, n);
    return Inputs<G>{{g[0], g[HIDDEN]}, counts(at, n)};
  };
  const auto fetched_u = [&](const Place& at, long long n) {
    return Inputs<1>{{gates[place(at, n) + 2 * HIDDEN]}, counts(at, n)};
  };
  for (long long n = 0; n < steps; n++) {
    const Rows row(n, steps, reverse);
    stored* const u = extra + row.t * size;
    own.run(
        n, fetched,
        [&](int begin, int now) {
          own.template multiply<HIDDEN>(held, n ? nullptr : h_first,
                                        n ? h + row.before * size : nullptr, begin, now);
        },
        [&](const Place& at, const Inputs<G>& in) {
          ResetStep<number> step = {0, 0, 0};
          if (in.counts) {
            number a[2];
#pragma unroll
            for (int gate = 0; gate < 2; gate++) {
              const int r = gate * UNITS + at.row;
              a[gate] = load(in.x + gate) + held.total(own.sums, tile, at.s, r) + bias(r);
            }
            step = reset_step<number>(a[0], a[1], own.own[at.slot]);
          }
          send(u + at.sequence * HIDDEN + at.unit, step.u);
          own.other[at.slot] = step.z;
          if (!keep || !in.counts) return;
          stored* const g = gates + place(at, n);
          store(g, step.r);
          store(g + HIDDEN, step.z);
        });
    own.run(
        n, fetched_u,
        [&](int begin, int now) { own.template multiply<HIDDEN>(held_u, nullptr, u, begin, now); },
        [&](const Place& at, const Inputs<1>& in) {
          const long long k = at.sequence * HIDDEN + at.unit;
          number value = own.own[at.slot];
          if (in.counts) {
            const number a = load(in.x) + held_u.total(own.sums, tile, at.s, at.row) +
                             bias(2 * UNITS + at.row);
            const CandidateStep<number> step =
                candidate_step<number>(a, rounded(own.other[at.slot]), value);
            if (keep) store(gates + place(at, n) + 2 * HIDDEN, step.n);
            value = rounded(step.h);
          }
          send(h + row.after * size + k, value);
          own.own[at.slot] = value;
          store(y + row.t * size + k, in.counts ? value : 0);
          if (n == steps - 1) store(h_last + k, value);
        });
  }
}

#endif

// --------------------------------------------------------------------------------------------
// Backward. `dh_last` and `dc_last` (B, H) are the gradients of the last state, null for zeros;
// `dh` and `dc` become those of the first. `da_hh` is the gradients of the pre-activations in the
// product with h, `da_u` of those in the product with u: both EMPTY at first. In the GRUs those of
// the product with x, which are others, take the place of the gates.

#define BACKWARD                                                                                  \
  long long batch, long long steps, long long share, long long tile, long long reverse,           \
      const stored *weights, const bool *valid, const stored *dy, stored *gates, const stored *h, \
      const stored *c, const stored *extra, const stored *dh_last, const stored *dc_last,         \
      stored *dh, stored *dc, stored *da_hh, stored *da_u

// The n-th step t, the step that was handled before it, and the rows of the state around it.
struct Back {
  long long t, last, before, after;
  __device__ __forceinline__ Back(long long n, long long steps, bool reverse)
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
__device__ __forceinline__ void backward(BACKWARD) {
  SHARED(shared);
  constexpr int G = Cell::gates;
  constexpr int WIDTH = G * HIDDEN;
  typedef Held<UNITS, WIDTH, TALL_H, WIDE_H, MORE_H, SIDE_H> Weights;
  const Weights held(shared, OwnColumns{weights});
  Block<WIDTH, Weights::SUMS> own((Four*)shared + Weights::SPARE, batch, share, tile);
  const long long size = batch * HIDDEN;
  own.begin(own.own, dh_last);
  if (Cell::has_c) own.begin(own.other, dc_last);
  __syncthreads();
  const auto fetched = [&](const Place& at, long long n) {
    Seen<G> in = {};
    if (n >= steps) return in;
    const Back row(n, steps, reverse);
    const long long k = at.sequence * HIDDEN + at.unit;
    in.counts = !valid || valid[row.t * batch + at.sequence];
    if (!in.counts) return in;
    const stored* const g = gates + (row.t * batch + at.sequence) * WIDTH + at.unit;
#pragma unroll
    for (int gate = 0; gate < G; gate++) in.gates[gate] = g[gate * HIDDEN];
    in.h_before = h[row.before * size + k], in.h_after = h[row.after * size + k];
    if (Cell::has_c) in.c_before = c[row.before * size + k], in.c_after = c[row.after * size + k];
    if (Cell::has_q) in.q = extra[row.t * size + k];
    in.dy = dy[row.t * size + k];
    return in;
  };
  for (long long n = 0; n <= steps; n++) {
    const Back row(n, steps, reverse);
    own.run(
        n, fetched,
        [&](int begin, int now) {
          if (n > 0)
            own.template multiply<WIDTH>(
                held, nullptr, ALONE ? nullptr : da_hh + row.last * batch * WIDTH, begin, now);
        },
        [&](const Place& at, const Seen<G>& in) {
          const long long k = at.sequence * HIDDEN + at.unit;
          number whole = own.own[at.slot], d = Cell::has_c ? own.other[at.slot] : 0;
          if (n > 0) whole += held.total(own.sums, tile, at.s, at.row);
          if (n == steps) {
            store(dh + k, whole);
            if (Cell::has_c) store(dc + k, d);
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
          const long long place = (row.t * batch + at.sequence) * WIDTH + at.unit;
#pragma unroll
          for (int gate = 0; gate < G; gate++) {
            const number sent = Cell::has_q ? made_hh[gate] : made[gate];
            send(da_hh + place + gate * HIDDEN, sent);
            if (ALONE)
              store(own.states + at.s * distance(WIDTH) + gate * HIDDEN + at.unit, sent);
          }
          own.own[at.slot] = whole;
          if (Cell::has_c) own.other[at.slot] = d;
#pragma unroll
          for (int gate = 0; gate < G; gate++)
            if (Cell::has_q) store(gates + place + gate * HIDDEN, made[gate]);
        });
    if (n + AHEAD < steps)
      own.ahead([&](const Place& at) {
        const Back later(n + AHEAD, steps, reverse);
        const long long k = at.sequence * HIDDEN + at.unit;
        const stored* const g = gates + (later.t * batch + at.sequence) * WIDTH + at.unit;
#pragma unroll
        for (int gate = 0; gate < G; gate++) prefetch(g + gate * HIDDEN);
        prefetch(h + later.before * size + k);
        prefetch(dy + later.t * size + k);
        if (Cell::has_c) prefetch(c + later.before * size + k);
        if (Cell::has_q) prefetch(extra + later.t * size + k);
      });
  }
}

#ifdef TALL_U
template <class Cell>
__device__ __forceinline__ void reset_backward(BACKWARD) {
  SHARED(shared);
  constexpr int WIDTH = Cell::gates * HIDDEN;
  typedef Held<UNITS, WIDTH, TALL_H, WIDE_H, MORE_H, SIDE_H> Weights;
  typedef Held<UNITS, Cell::gates_u * HIDDEN, TALL_U, WIDE_U, MORE_U, SIDE_U> WeightsU;
  const Weights held(shared, OwnColumns{weights});
  Four* const spare = (Four*)shared + Weights::SPARE;
  const WeightsU held_u((char*)spare, OwnColumns{weights + (long long)WIDTH * HIDDEN});
  Block<WIDTH, most(Weights::SUMS, WeightsU::SUMS)> own(spare + WeightsU::SPARE, batch, share,
                                                        tile);
  const long long size = batch * HIDDEN;
  own.begin(own.own, dh_last);
  __syncthreads();
  const auto place = [&](const Place& at, const Back& row) {
    return (row.t * batch + at.sequence) * 3 * HIDDEN + at.unit;
  };
  const auto counts = [&](const Place& at, const Back& row) {
    return !valid || valid[row.t * batch + at.sequence];
  };
  const auto fetched = [&](const Place& at, long long n) {
    Seen<2> in = {};
    if (n >= steps) return in;
    const Back row(n, steps, reverse);
    const long long k = at.sequence * HIDDEN + at.unit;
    in.counts = counts(at, row);
    in.gates[0] = gates[place(at, row) + HIDDEN], in.gates[1] = gates[place(at, row) + 2 * HIDDEN];
    in.h_before = h[row.before * size + k], in.dy = dy[row.t * size + k];
    return in;
  };
  const auto fetched_u = [&](const Place& at, long long n) {
    Seen<1> in = {};
    const Back row(n, steps, reverse);
    in.counts = counts(at, row);
    in.gates[0] = gates[place(at, row)];
    in.h_before = h[row.before * size + at.sequence * HIDDEN + at.unit];
    return in;
  };
  for (long long n = 0; n <= steps; n++) {
    const Back row(n, steps, reverse);
    own.run(
        n, fetched,
        [&](int begin, int now) {
          if (n > 0)
            own.template multiply<WIDTH, 0>(held, nullptr, da_hh + row.last * batch * WIDTH,
                                            begin, now);
        },
        [&](const Place& at, const Seen<2>& in) {
          number whole = own.own[at.slot];
          if (n > 0) whole += held.total(own.sums, tile, at.s, at.row);
          if (n == steps) return store(dh + at.sequence * HIDDEN + at.unit, whole);
          CandidateGradient<number> d = {0, 0, whole};
          if (in.counts)
            d = candidate_gradient<number>(load(in.gates), load(in.gates + 1), load(&in.h_before),
                                           whole + load(&in.dy));
          send(da_u + (row.t * batch + at.sequence) * HIDDEN + at.unit, d.n);
          send(da_hh + (row.t * batch + at.sequence) * WIDTH + HIDDEN + at.unit, d.z);
          own.own[at.slot] = d.h;
          store(gates + place(at, row) + HIDDEN, d.z);
          store(gates + place(at, row) + 2 * HIDDEN, d.n);
        });
    if (n == steps) return;
    own.run(
        n, fetched_u,
        [&](int begin, int now) {
          own.template multiply<HIDDEN>(held_u, nullptr, da_u + row.t * size, begin, now);
        },
        [&](const Place& at, const Seen<1>& in) {
          ResetGradient<number> d = {0, 0};
          if (in.counts)
            d = reset_gradient<number>(load(in.gates), load(&in.h_before),
                                       held_u.total(own.sums, tile, at.s, at.row));
          send(da_hh + (row.t * batch + at.sequence) * WIDTH + at.unit, d.r);
          own.own[at.slot] += d.h;
          store(gates + place(at, row), d.r);
        });
  }
}

#endif

#define FORWARD_KERNEL(name, body)                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) name##_all_forward(FORWARD) {          \
    body(batch, steps, share, tile, reverse, keep, weights, valid, bias_ih, bias_hh, h_first,     \
         c_first, gates, h, c, extra, y, h_last, c_last);                                         \
  }
#define BACKWARD_KERNEL(name, body)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) name##_all_backward(BACKWARD) {        \
    body(batch, steps, share, tile, reverse, weights, valid, dy, gates, h, c, extra, dh_last,     \
         dc_last, dh, dc, da_hh, da_u);                                                           \
  }

// What is compiled: of one cell, forward or backward.
