// All steps of a run in one kernel, forward or backward through time: see persistent.py.
//
// NVRTC compiles this at run time, so no file is included: fused.py puts the texts of numbers.h and
// kernels/gates.h where their names stand. The blocks of a group own UNITS hidden units each, and
// keep their recurrent weights in registers; each group runs its own share of the batch. A step is,
// for each tile of the share: the tile's states into shared memory, the product, the gates.
//
// Blocks do not meet. A number that one block computes and the others wait for is written once, into
// memory that was EMPTY before (all bits set: a NaN that no operation gives), and who needs it reads
// until it is there. So all blocks have to be resident: a cooperative launch.
//
// BITS is the size of the arrays' numbers, 16 or 32; those of 16 bits are bfloat16 where BRAIN is
// defined, and multiplied from sm_80 on. HIDDEN is H; a block of THREADS has UNITS hidden units; how a
// warp holds weights, see `Held`, is TALL_H, WIDE_H and SIDE_H for the product with h, and TALL_U and
// so on for that with u of the GRU that resets before.
// A state is (B, H), the gates of a step (B, G, H), as in fused.cu.

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
// from column 2 (lane % 4) on, in the rows lane / 4 and 8 further, and then those 8 columns further;
// of b those from row 2 (lane % 4) on and 8 further, in column lane / 4; of the sum as of a.
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
constexpr bool ALONE = MEMBERS == 1;                   // which waits for no other

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

// From one sequence's states to the next one's in shared memory. Tensor cores take sixteen numbers
// at a time, and no two rows of eight begin in the same bank.
__device__ constexpr int distance(int width) {
  return BITS == 16 ? (width + 15) / 16 * 16 + 8 : (width + 3) / 4 * 4;
}

// So often a thread reads in vain before it gives up, after seconds: what it then takes is NaN.
constexpr int PATIENCE = 1 << 22;

// So many steps before it is needed, what stands in memory is on its way to the cache.
constexpr int AHEAD = 4;

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

// Read vectors of 16 bytes where the rows allow it.
template <bool ALIGNED>
struct Vector {
  typedef uint4 Type;
};
template <>
struct Vector<false> {
  typedef Bits Type;
};

// Wait for one number of each block, of those that it sends last. Where there are many to come, so
// few readers do not keep the writers from the memory.
template <int WIDTH>
__device__ __forceinline__ void watch(const stored* from, int count, int& patience) {
  for (int k = threadIdx.x; k < MEMBERS; k += THREADS) {
    const int unit = k + 1 < MEMBERS ? (k + 1) * UNITS - 1 : HIDDEN - 1;
    const Bits* const last = (const Bits*)from + count * WIDTH - HIDDEN + unit;
    awaited(fetch(last), last, patience);
  }
  __syncthreads();
}

// `count` rows of states, which lie together, into shared memory as soon as they are there.
template <int WIDTH>
__device__ __forceinline__ void stage(stored* to, const stored* from, int count, int& patience) {
  typedef typename Vector<WIDTH * sizeof(stored) % 16 == 0>::Type V;
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
}

// --------------------------------------------------------------------------------------------
// Products: sums (parts, tile, rows) = states (count, width) weights (rows, width)^T, in parts of the
// width. A warp holds some of the weights' rows over one part of the width: the same in all steps.

// What the warps of a block have: `height` rows, and `span` columns of a part.
template <int ROWS, int WIDTH, int HEIGHT, int SPAN>
struct Shares {
  static constexpr int ACROSS = (ROWS + HEIGHT - 1) / HEIGHT, PARTS = (WIDTH + SPAN - 1) / SPAN;
  static constexpr bool EXACT = PARTS * SPAN <= distance(WIDTH);
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

#if BITS == 16
// In tiles of 16 x 16 weights.
template <int ROWS, int WIDTH, int TALL, int WIDE, int>
struct Held : Shares<ROWS, WIDTH, 16 * TALL, 16 * WIDE> {
  typedef Shares<ROWS, WIDTH, 16 * TALL, 16 * WIDE> Own;
  unsigned w[TALL][WIDE][4];

  // at(row, column) is a weight.
  template <class At>
  __device__ __forceinline__ Held(At at) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < TALL; t++)
#pragma unroll
      for (int c = 0; c < WIDE; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int r = Own::row + 16 * t + lane / 4 + i % 2 * 8;
          const int k = Own::column + 16 * c + lane % 4 * 2 + i / 2 * 8;
          const unsigned low = r < ROWS && k < WIDTH ? at(r, k) : 0;
          const unsigned high = r < ROWS && k + 1 < WIDTH ? at(r, k + 1) : 0;
          w[t][c][i] = high << 16 | low;
        }
  }

  __device__ __forceinline__ void multiply(number* sums, const stored* states, int count,
                                           int tile) const {
    const int line = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
    if (!Own::works) return;
    for (int first = 0; first < count; first += 8) {
      const stored* const state =
          states + least(first + line, count - 1) * distance(WIDTH) + Own::column + pair;
      number sum[2][TALL][4] = {};  // two, so that a product waits for the one before the last
#pragma unroll
      for (int c = 0; c < WIDE; c++) {
        if (!Own::within(Own::column + 16 * c)) break;
        const unsigned b[2] = {*(const unsigned*)(state + 16 * c),
                               *(const unsigned*)(state + 16 * c + 8)};
#pragma unroll
        for (int t = 0; t < TALL; t++) multiply_add(sum[c % 2][t], w[t][c], b);
      }
#pragma unroll
      for (int t = 0; t < TALL; t++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int r = Own::row + 16 * t + line + i / 2 * 8, s = first + pair + i % 2;
          if (r < ROWS && s < count)
            sums[(Own::part * tile + s) * ROWS + r] = sum[0][t][i] + sum[1][t][i];
        }
    }
  }
};
#else
// SIDE lanes have TALL rows each; of them each of the 32 / SIDE others has every so many-th four
// columns, WIDE times.
template <int ROWS, int WIDTH, int TALL, int WIDE, int SIDE>
struct Held : Shares<ROWS, WIDTH, TALL * SIDE, 4 * WIDE * (32 / SIDE)> {
  typedef Shares<ROWS, WIDTH, TALL * SIDE, 4 * WIDE * (32 / SIDE)> Own;
  static constexpr int ALONG = 32 / SIDE;
  number w[TALL][WIDE][4];

  // Which row a lane keeps in the end: it has that one first, the others in the order of `sum`.
  static __device__ __forceinline__ int kept() { return threadIdx.x % ALONG * TALL / ALONG; }

  // at(row, column) is a weight.
  template <class At>
  __device__ __forceinline__ Held(At at) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int r = 0; r < TALL; r++)
#pragma unroll
      for (int c = 0; c < WIDE; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int row = Own::row + lane / ALONG * TALL + (r ^ kept());
          const int k = Own::column + (c * ALONG + lane % ALONG) * 4 + i;
          w[r][c][i] = row < ROWS && k < WIDTH ? at(row, k) : 0;
        }
  }

  // Adds what the lanes have of each row. Of two lanes each gives the other half of its rows, as long
  // as there are several; row r of the one is row r + HALF of the other.
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
    constexpr int TOGETHER = 2, LEFT = TALL > ALONG ? TALL / ALONG : 1;
    const int lane = threadIdx.x % 32;
    if (!Own::works) return;
    for (int first = 0; first < count; first += TOGETHER) {
      number sum[TOGETHER][TALL] = {};
#pragma unroll
      for (int c = 0; c < WIDE; c++) {
        const int k = Own::column + (c * ALONG + lane % ALONG) * 4;
        if (!Own::within(k)) break;
#pragma unroll
        for (int s = 0; s < TOGETHER; s++) {
          const float4 v =
              *(const float4*)(states + least(first + s, count - 1) * distance(WIDTH) + k);
#pragma unroll
          for (int r = 0; r < TALL; r++)
            sum[s][r] += w[r][c][0] * v.x + w[r][c][1] * v.y + w[r][c][2] * v.z + w[r][c][3] * v.w;
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

  __device__ __forceinline__ Block(char* shared, long long batch, int share, int tile)
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

  // Copies own numbers of an array (B, H).
  __device__ __forceinline__ void begin(number* to, const stored* from) const {
    for (int k = threadIdx.x; k < UNITS * sequences; k += THREADS) {
      const Place at = place(k, 0);
      if (has(at)) to[at.slot] = load(from + at.sequence * HIDDEN + at.unit);
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

  // Part of a step: a product, and finish(place, fetched(place)) for each own unit and sequence. What
  // a thread needs first from memory is fetched before the product, which has to wait for others.
  template <class Fetched, class Product, class Finish>
  __device__ __forceinline__ void run(Fetched fetched, Product product, Finish finish) {
    for (int begin = 0; begin < sequences; begin += tile) {
      const int now = least(tile, sequences - begin), all = UNITS * now, mine = threadIdx.x;
      const Place at = place(mine < all ? mine : 0, begin);
      const bool works = mine < all && has(at);
      const auto got = fetched(works ? at : place(0, begin));
      product(begin, now);
      if (works) finish(at, got);
      for (int k = mine + THREADS; k < all; k += THREADS) {
        const Place more = place(k, begin);
        if (has(more)) finish(more, fetched(more));
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

  // The product with rows (B, width), which the blocks of this group send.
  template <int W, class Weights>
  __device__ __forceinline__ void multiply(const Weights& held, const stored* rows, int begin,
                                           int now, bool there) {
    if (!there) {
      const stored* const from = rows + (sequence + begin) * (long long)W;
      constexpr int VECTORS = W * sizeof(stored) / 16;
      if (begin == 0 && now * VECTORS > THREADS) watch<W>(from, now, patience);
      stage<W>(states, from, now, patience);
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
// Forward. Row k of h stands between the steps k - 1 and k, and is EMPTY but for the first one; with
// `keep` that holds for c too, and the GRU's `extra`, q, has a row for each step; without, c has one
// row. u of the GRU that resets before is `extra` in any case, and EMPTY.

#define FORWARD                                                                                   \
  long long batch, long long steps, long long share, long long tile, long long reverse,           \
      long long keep, const stored *weights, const bool *valid, const stored *bias_ih, const stored *bias_hh,     \
      stored *gates, stored *h, stored *c, stored *extra, stored *y

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

template <class Cell>
__device__ __forceinline__ void forward(FORWARD) {
  SHARED(shared);
  constexpr int G = Cell::gates;
  typedef Held<G * UNITS, HIDDEN, TALL_H, WIDE_H, SIDE_H> Weights;
  const Weights held(OwnRows{weights});
  Block<HIDDEN, Weights::SUMS> own(shared, batch, share, tile);
  const long long size = batch * HIDDEN;
  own.begin(own.own, h + Rows(0, steps, reverse).before * size);
  if (Cell::has_c) own.begin(own.other, c + (keep ? Rows(0, steps, reverse).before * size : 0));
  own.begin(bias_ih, bias_hh, G);
  __syncthreads();
  for (long long n = 0; n < steps; n++) {
    const Rows row(n, steps, reverse);
    own.run(
        [&](const Place& at) {
          Inputs<G> in;
          const stored* const g = gates + (row.t * batch + at.sequence) * G * HIDDEN + at.unit;
#pragma unroll
          for (int gate = 0; gate < G; gate++) in.x[gate] = g[gate * HIDDEN];
          in.counts = !valid || valid[row.t * batch + at.sequence];
          return in;
        },
        [&](int begin, int now) {
          own.template multiply<HIDDEN>(held, h + row.before * size, begin, now, ALONE && n > 0);
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
          if (Cell::has_c && (keep || n == steps - 1))
            store(c + (keep ? row.after * size : 0) + k, other);
          if (!keep) return;
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
  typedef Held<G * UNITS, HIDDEN, TALL_H, WIDE_H, SIDE_H> Weights;
  typedef Held<Cell::gates_u * UNITS, HIDDEN, TALL_U, WIDE_U, SIDE_U> WeightsU;
  const Weights held(OwnRows{weights});
  const WeightsU held_u(OwnRows{weights + (long long)G * HIDDEN * HIDDEN});
  Block<HIDDEN, most(Weights::SUMS, WeightsU::SUMS)> own(shared, batch, share, tile);
  const long long size = batch * HIDDEN;
  own.begin(own.own, h + Rows(0, steps, reverse).before * size);
  own.begin(bias_ih, bias_hh, 3);
  __syncthreads();
  const auto bias = [&](int r) { return own.biases[r] + own.biases[3 * UNITS + r]; };
  for (long long n = 0; n < steps; n++) {
    const Rows row(n, steps, reverse);
    stored *const before = h + row.before * size, *const u = extra + row.t * size;
    const auto place = [&](const Place& at) {
      return gates + (row.t * batch + at.sequence) * 3 * HIDDEN + at.unit;
    };
    own.run(
        [&](const Place& at) {
          const stored* const g = place(at);
          return Inputs<G>{{g[0], g[HIDDEN]}, !valid || valid[row.t * batch + at.sequence]};
        },
        [&](int begin, int now) { own.template multiply<HIDDEN>(held, before, begin, now, false); },
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
          stored* const g = place(at);
          store(g, step.r);
          store(g + HIDDEN, step.z);
        });
    own.run(
        [&](const Place& at) {
          return Inputs<1>{{place(at)[2 * HIDDEN]}, !valid || valid[row.t * batch + at.sequence]};
        },
        [&](int begin, int now) { own.template multiply<HIDDEN>(held_u, u, begin, now, false); },
        [&](const Place& at, const Inputs<1>& in) {
          const long long k = at.sequence * HIDDEN + at.unit;
          number value = own.own[at.slot];
          if (in.counts) {
            const number a = load(in.x) + held_u.total(own.sums, tile, at.s, at.row) +
                             bias(2 * UNITS + at.row);
            const CandidateStep<number> step =
                candidate_step<number>(a, rounded(own.other[at.slot]), value);
            if (keep) store(place(at) + 2 * HIDDEN, step.n);
            value = rounded(step.h);
          }
          send(h + row.after * size + k, value);
          own.own[at.slot] = value;
          store(y + row.t * size + k, in.counts ? value : 0);
        });
  }
}

#endif

// --------------------------------------------------------------------------------------------
// Backward. `dh` and `dc` (B, H) are the gradients of the last state at first, those of the first
// state in the end. `da_hh` is the gradients of the pre-activations in the product with h, `da_u` of
// those in the product with u: both EMPTY. In the GRUs those of the product with x, which are others,
// take the place of the gates.

#define BACKWARD                                                                                  \
  long long batch, long long steps, long long share, long long tile, long long reverse,           \
      const stored *weights, const bool *valid, const stored *dy, stored *gates, const stored *h, \
      const stored *c, const stored *extra, stored *dh, stored *dc, stored *da_hh, stored *da_u

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
  typedef Held<UNITS, WIDTH, TALL_H, WIDE_H, SIDE_H> Weights;
  const Weights held(OwnColumns{weights});
  Block<WIDTH, Weights::SUMS> own(shared, batch, share, tile);
  const long long size = batch * HIDDEN;
  own.begin(own.own, dh);
  if (Cell::has_c) own.begin(own.other, dc);
  __syncthreads();
  for (long long n = 0; n <= steps; n++) {
    const Back row(n, steps, reverse);
    own.run(
        [&](const Place& at) {
          Seen<G> in = {};
          const long long k = at.sequence * HIDDEN + at.unit;
          in.counts = n < steps && (!valid || valid[row.t * batch + at.sequence]);
          if (!in.counts) return in;
          const stored* const g = gates + (row.t * batch + at.sequence) * WIDTH + at.unit;
#pragma unroll
          for (int gate = 0; gate < G; gate++) in.gates[gate] = g[gate * HIDDEN];
          in.h_before = h[row.before * size + k], in.h_after = h[row.after * size + k];
          if (Cell::has_c)
            in.c_before = c[row.before * size + k], in.c_after = c[row.after * size + k];
          if (Cell::has_q) in.q = extra[row.t * size + k];
          in.dy = dy[row.t * size + k];
          return in;
        },
        [&](int begin, int now) {
          if (n > 0) own.template multiply<WIDTH>(held, da_hh + row.last * batch * WIDTH, begin, now, ALONE);
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
  typedef Held<UNITS, WIDTH, TALL_H, WIDE_H, SIDE_H> Weights;
  typedef Held<UNITS, Cell::gates_u * HIDDEN, TALL_U, WIDE_U, SIDE_U> WeightsU;
  const Weights held(OwnColumns{weights});
  const WeightsU held_u(OwnColumns{weights + (long long)WIDTH * HIDDEN});
  Block<WIDTH, most(Weights::SUMS, WeightsU::SUMS)> own(shared, batch, share, tile);
  const long long size = batch * HIDDEN;
  own.begin(own.own, dh);
  __syncthreads();
  for (long long n = 0; n <= steps; n++) {
    const Back row(n, steps, reverse);
    const auto place = [&](const Place& at) {
      return gates + (row.t * batch + at.sequence) * 3 * HIDDEN + at.unit;
    };
    own.run(
        [&](const Place& at) {
          Seen<2> in = {};
          const long long k = at.sequence * HIDDEN + at.unit;
          in.counts = n < steps && (!valid || valid[row.t * batch + at.sequence]);
          if (!in.counts) return in;
          in.gates[0] = place(at)[HIDDEN], in.gates[1] = place(at)[2 * HIDDEN];
          in.h_before = h[row.before * size + k], in.dy = dy[row.t * size + k];
          return in;
        },
        [&](int begin, int now) {
          if (n > 0) own.template multiply<WIDTH>(held, da_hh + row.last * batch * WIDTH, begin, now, false);
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
          store(place(at) + HIDDEN, d.z);
          store(place(at) + 2 * HIDDEN, d.n);
        });
    if (n == steps) return;
    own.run(
        [&](const Place& at) {
          Seen<1> in = {};
          in.counts = !valid || valid[row.t * batch + at.sequence];
          in.gates[0] = place(at)[0];
          in.h_before = h[row.before * size + at.sequence * HIDDEN + at.unit];
          return in;
        },
        [&](int begin, int now) { own.template multiply<HIDDEN>(held_u, da_u + row.t * size, begin, now, false); },
        [&](const Place& at, const Seen<1>& in) {
          ResetGradient<number> d = {0, 0};
          if (in.counts)
            d = reset_gradient<number>(load(in.gates), load(&in.h_before),
                                       held_u.total(own.sums, tile, at.s, at.row));
          send(da_hh + (row.t * batch + at.sequence) * WIDTH + at.unit, d.r);
          own.own[at.slot] += d.h;
          store(place(at), d.r);
        });
  }
}

#endif

#define FORWARD_KERNEL(name, body)                                                                \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) name##_all_forward(FORWARD) {          \
    body(batch, steps, share, tile, reverse, keep, weights,       \
         valid, bias_ih, bias_hh, gates, h, c, extra, y);                                         \
  }
#define BACKWARD_KERNEL(name, body)                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) name##_all_backward(BACKWARD) {        \
    body(batch, steps, share, tile, reverse, weights, valid, dy,  \
         gates, h, c, extra, dh, dc, da_hh, da_u);                                                \
  }

// What is compiled: of one cell, forward or backward.
