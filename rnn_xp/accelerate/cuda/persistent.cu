// All steps of a run in one kernel, forward or backward through time: see persistent.py.
//
// NVRTC compiles this at run time, so no file is included: fused.py puts the texts of numbers.h and
// kernels/gates.h where their names stand. Block b owns `units` hidden units, from b * units on:
// their recurrent weights stay in shared memory. A step is, for each tile of the batch: the tile's
// states into shared memory, the product, the gates; then a barrier of the whole grid, so that all
// blocks have to be resident: a cooperative launch. BITS is the size of the arrays' numbers, 16 or
// 32; those of 16 bits are bfloat16 where BRAIN is defined, and multiplied from sm_80 on.
// A state is (B, H), the gates of a step (B, G, H), as in fused.cu.

#ifdef __CUDACC__
#define SHARED(name) extern __shared__ __align__(16) char name[]
#define PAUSE() ((void)0)
__device__ __forceinline__ void arrive(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
__device__ __forceinline__ unsigned arrived(const unsigned* counter) {
  unsigned count;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
  return count;
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

__device__ __forceinline__ int least(long long a, long long b) { return (int)(a < b ? a : b); }

// Wait until every block has come here `times` times; what they wrote before is seen after.
__device__ __forceinline__ void meet(unsigned* counter, unsigned times) {
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive(counter);
    while ((int)(arrived(counter) - times * gridDim.x) < 0) PAUSE();  // it may wrap
  }
  __syncthreads();
}

// --------------------------------------------------------------------------------------------
// Products in shared memory: sums (rows, tile) = weights (rows, width) states^T (width, count).

#if BITS == 16
typedef unsigned word;  // two numbers: the width is even
constexpr int PER_WORD = 2;

// From one row to the next in shared memory: sixteen numbers at a time, and no two rows of eight
// begin in the same bank.
__device__ __forceinline__ int distance(int width) { return (width + 15) / 16 * 16 + 8; }

// Warps that share a sum's width, if a block's `most` rows are tiles for fewer than eight.
__device__ __forceinline__ int slices(int most, int tile) {
  const int tasks = (most + 15) / 16 * ((tile + 7) / 8);
  return tasks < 8 ? 8 / tasks : 1;
}

// A warp makes 16 x 8 sums at once, over its part of the width; past the end the last row is taken
// once more and not kept. The last block has fewer rows than `most`, and as many parts.
__device__ __forceinline__ void product(number* sums, const stored* weights, const stored* states,
                                        int rows, int most, int width, int count, int tile) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32, across = (tile + 7) / 8;
  const int tasks = (rows + 15) / 16 * across, parts = slices(most, tile), size = rows * tile;
  const int line = lane / 4, pair = lane % 4 * 2, by = distance(width);
  for (int k = threadIdx.x / 32; k < tasks * parts; k += warps) {
    const int part = k % parts, row = k / parts / across * 16, column = k / parts % across * 8;
    const stored* const upper = weights + least(row + line, rows - 1) * by + pair;
    const stored* const lower = weights + least(row + line + 8, rows - 1) * by + pair;
    const stored* const state = states + least(column + line, count - 1) * by + pair;
    number sum[4] = {};
    for (int m = part * 16; m < width; m += parts * 16) {
      const unsigned a[4] = {*(const word*)(upper + m), *(const word*)(lower + m),
                             *(const word*)(upper + m + 8), *(const word*)(lower + m + 8)};
      const unsigned b[2] = {*(const word*)(state + m), *(const word*)(state + m + 8)};
      multiply_add(sum, a, b);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int r = row + line + i / 2 * 8, c = column + pair + i % 2;
      if (r < rows && c < count) sums[part * size + r * tile + c] = sum[i];
    }
  }
  __syncthreads();
  if (parts == 1) return;
  for (int k = threadIdx.x; k < size; k += blockDim.x) {
    if (k % tile >= count) continue;
    for (int part = 1; part < parts; part++) sums[k] += sums[part * size + k];
  }
  __syncthreads();
}

#else
typedef float word;
constexpr int PER_WORD = 1;

__device__ __forceinline__ int distance(int width) { return width; }

// A warp makes 4 x 4 sums at once, so that each number read serves four; past the end the last row
// is computed once more and not kept.
__device__ __forceinline__ void product(number* sums, const stored* weights, const stored* states,
                                        int rows, int, int width, int count, int tile) {
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32, across = (count + 3) / 4;
  for (int k = threadIdx.x / 32; k < (rows + 3) / 4 * across; k += warps) {
    const int row = k / across * 4, column = k % across * 4;
    const number *w[4], *s[4];
    number sum[4][4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      w[i] = weights + least(row + i, rows - 1) * width;
      s[i] = states + least(column + i, count - 1) * width;
    }
    for (int m = lane; m < width; m += 32) {
      const number right[4] = {s[0][m], s[1][m], s[2][m], s[3][m]};
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const number left = w[i][m];
#pragma unroll
        for (int j = 0; j < 4; j++) sum[i][j] += left * right[j];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) {
        number all = sum[i][j];
#pragma unroll
        for (int other = 16; other > 0; other /= 2) all += __shfl_xor_sync(~0u, all, other);
        if (lane == 4 * i + j && row + i < rows && column + j < count)
          sums[(row + i) * tile + column + j] = all;
      }
  }
  __syncthreads();
}
#endif

// Rows that another block may have written just now: not from the multiprocessor's own cache.
__device__ __forceinline__ void stage(stored* to, const stored* from, int count, int width) {
  const int across = distance(width) / PER_WORD, there = width / PER_WORD;
  for (int k = threadIdx.x; k < count * across; k += blockDim.x) {
    const int row = across == there ? 0 : k / across, column = k - row * across;
    const bool inside = across == there || column < there;
    ((word*)to)[k] = inside ? __ldcg((const word*)from + row * there + column) : 0;
  }
  __syncthreads();
}

// What a block works with: its units, from `first` on, and its shared memory, which begins with
// so many `numbers` of weights.
struct Block {
  long long hidden, batch, units, tile;
  int first, count;
  stored *weights, *states;
  number* sums;

  __device__ __forceinline__ Block(char* shared, long long hidden, long long batch, long long units,
                                   long long tile, long long numbers, int width)
      : hidden(hidden), batch(batch), units(units), tile(tile),
        first(least(blockIdx.x * units, hidden)), count(least(units, hidden - first)),
        weights((stored*)shared), states(weights + numbers),
        sums((number*)(states + tile * distance(width))) {}
};

// Own rows of weights (gates * H, H) into shared memory: gate by gate, unit by unit.
__device__ __forceinline__ void own_rows(const Block& own, stored* to, const stored* weights,
                                         int gates) {
  const int by = distance(own.hidden);
  for (int k = threadIdx.x; k < gates * own.count * by; k += blockDim.x) {
    const int row = k / by, column = k % by;
    const long long from = row / own.count * own.hidden + own.first + row % own.count;
    to[k] = column < own.hidden ? weights[from * own.hidden + column] : 0;
  }
}

// Own columns of weights (width, H), as rows.
__device__ __forceinline__ void own_columns(const Block& own, stored* to, const stored* weights,
                                            int width) {
  const int by = distance(width);
  for (int k = threadIdx.x; k < own.count * by; k += blockDim.x) {
    const int row = k / by, column = k % by;
    to[k] = column < width ? weights[column * own.hidden + own.first + row] : 0;
  }
}

// For each own unit and each sequence: finish(unit, sequence, sum), where the sum of gate g stands
// at sum[g * own.count * own.tile]. `from` (B, width) is what the weights multiply, or null: then
// there are no sums.
template <class Finish>
__device__ __forceinline__ void multiply(const Block& own, const stored* weights, int gates,
                                         const stored* from, int width, Finish finish) {
  for (long long first = 0; first < own.batch && own.count; first += own.tile) {
    const int count = least(own.tile, own.batch - first);
    if (from) {
      stage(own.states, from + first * width, count, width);
      product(own.sums, weights, own.states, gates * own.count, gates * own.units, width, count,
              own.tile);
    }
    // The next tile's states may come meanwhile; its sums come after a barrier.
    for (int k = threadIdx.x; k < own.count * count; k += blockDim.x) {
      const int unit = k % own.count, sequence = k / own.count;
      finish(own.first + unit, first + sequence, own.sums + unit * own.tile + sequence);
    }
  }
}

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
// Forward. With `keep`, row k of h and c stands between the steps k - 1 and k, and `extra` (q of
// the GRU, u of the one that resets before) has a row for each step; without, the states take turns
// in two rows.

#define FORWARD                                                                                   \
  long long hidden, long long batch, long long steps, long long units, long long tile,            \
      long long reverse, long long keep, unsigned *counter, const stored *weights,                \
      const bool *valid, const stored *bias_ih, const stored *bias_hh, stored *gates, stored *h,  \
      stored *c, stored *extra, stored *y

// The step t, and the rows of the state before and after it and of `extra`.
struct Rows {
  long long t, before, after, slot;
  __device__ __forceinline__ Rows(long long n, long long steps, bool reverse, bool keep)
      : t(reverse ? steps - 1 - n : n), before(!keep ? n % 2 : reverse ? t + 1 : t),
        after(!keep ? 1 - before : reverse ? t : t + 1), slot(keep ? t : 0) {}
};

__device__ __forceinline__ number bias(const stored* values, long long k) {
  return values ? load(values + k) : 0;
}

template <class Cell>
__device__ __forceinline__ void forward(FORWARD) {
  SHARED(shared);
  constexpr int G = Cell::gates;
  const Block own(shared, hidden, batch, units, tile, G * units * distance(hidden), hidden);
  const long long size = batch * hidden, next = own.count * tile;
  own_rows(own, own.weights, weights, G);
  for (long long n = 0; n < steps; n++) {
    const Rows row(n, steps, reverse, keep);
    multiply(own, own.weights, G, h + row.before * size, hidden,
             [&](int unit, long long b, const number* sum) {
               const long long at = b * hidden + unit;
               const bool counts = !valid || valid[row.t * batch + b];
               stored* const g = gates + (row.t * batch + b) * G * hidden + unit;
               number value = load(h + row.before * size + at), other = 0;
               if (Cell::has_c) other = load(c + row.before * size + at);
               if (counts) {
                 number from_x[G], from_h[G], made[G];
#pragma unroll
                 for (int gate = 0; gate < G; gate++) {
                   from_x[gate] = load(g + gate * hidden) + bias(bias_ih, gate * hidden + unit);
                   from_h[gate] = sum[gate * next] + bias(bias_hh, gate * hidden + unit);
                 }
                 value = Cell::forward(from_x, from_h, made, value, other);
#pragma unroll
                 for (int gate = 0; gate < G; gate++) store(g + gate * hidden, made[gate]);
               }
               if (Cell::has_c) store(c + row.after * size + at, other);
               if (Cell::has_q) store(extra + row.slot * size + at, other);
               store(h + row.after * size + at, value);
               store(y + row.t * size + at, counts ? value : 0);
             });
    if (n + 1 < steps) meet(counter, n + 1);
  }
}

// The GRU that resets before its product with h: two products a step, and two barriers.
__device__ __forceinline__ void reset_forward(FORWARD) {
  SHARED(shared);
  const int by = distance(hidden);
  const Block own(shared, hidden, batch, units, tile, 3 * units * by, hidden);
  const long long size = batch * hidden, next = own.count * tile;
  stored* const candidate = own.weights + 2 * units * by;
  own_rows(own, own.weights, weights, 2);
  own_rows(own, candidate, weights + 2 * hidden * hidden, 1);
  for (long long n = 0; n < steps; n++) {
    const Rows row(n, steps, reverse, keep);
    stored *const before = h + row.before * size, *const u = extra + row.slot * size;
    multiply(own, own.weights, 2, before, hidden, [&](int unit, long long b, const number* sum) {
      const long long at = b * hidden + unit;
      if (valid && !valid[row.t * batch + b]) return store(u + at, 0);
      stored* const g = gates + (row.t * batch + b) * 3 * hidden + unit;
      number a[2];
#pragma unroll
      for (int gate = 0; gate < 2; gate++)
        a[gate] = load(g + gate * hidden) + sum[gate * next] + bias(bias_ih, gate * hidden + unit) +
                  bias(bias_hh, gate * hidden + unit);
      const ResetStep<number> step = reset_step<number>(a[0], a[1], load(before + at));
      store(g, step.r);
      store(g + hidden, step.z);
      store(u + at, step.u);
    });
    meet(counter, 2 * n + 1);
    multiply(own, candidate, 1, u, hidden, [&](int unit, long long b, const number* sum) {
      const long long at = b * hidden + unit, place = 2 * hidden + unit;
      const bool counts = !valid || valid[row.t * batch + b];
      stored* const g = gates + (row.t * batch + b) * 3 * hidden + unit;
      number value = load(before + at);
      if (counts) {
        const number a = load(g + 2 * hidden) + *sum + bias(bias_ih, place) + bias(bias_hh, place);
        const CandidateStep<number> step = candidate_step<number>(a, load(g + hidden), value);
        store(g + 2 * hidden, step.n);
        value = step.h;
      }
      store(h + row.after * size + at, value);
      store(y + row.t * size + at, counts ? value : 0);
    });
    if (n + 1 < steps) meet(counter, 2 * n + 2);
  }
}

// --------------------------------------------------------------------------------------------
// Backward. `dh` (B, H) is the part of the gradient that passes by the products: that of the last
// state at first, that of the first state in the end. The gradients of the pre-activations take the
// place of the gates; `da_hh` is those of the product with h, `da_u` of the product with u.

#define BACKWARD                                                                                  \
  long long hidden, long long batch, long long steps, long long units, long long tile,            \
      long long reverse, unsigned *counter, const stored *weights, const bool *valid,             \
      const stored *dy, stored *gates, const stored *h, const stored *c, const stored *extra,     \
      stored *dh, stored *dc, stored *da_hh, stored *da_u

// The n-th step t, the step that was handled before it, and the rows of the state around it.
struct Back {
  long long t, last, before, after;
  __device__ __forceinline__ Back(long long n, long long steps, bool reverse)
      : t(reverse ? n : steps - 1 - n), last(reverse ? t - 1 : t + 1),
        before(reverse ? t + 1 : t), after(reverse ? t : t + 1) {}
};

template <class Cell>
__device__ __forceinline__ void backward(BACKWARD) {
  SHARED(shared);
  constexpr int G = Cell::gates;
  const int width = G * hidden;
  const Block own(shared, hidden, batch, units, tile, units * distance(width), width);
  const long long size = batch * hidden;
  own_columns(own, own.weights, weights, width);
  for (long long n = 0; n <= steps; n++) {
    const Back row(n, steps, reverse);
    multiply(own, own.weights, 1, n > 0 ? da_hh + row.last * batch * width : nullptr, width,
             [&](int unit, long long b, const number* sum) {
               const long long at = b * hidden + unit;
               number whole = load(dh + at);
               if (n > 0) whole += *sum;
               if (n < steps) {
                 const long long place = (row.t * batch + b) * width + unit;
                 number made[G] = {}, made_hh[G] = {};
                 if (!valid || valid[row.t * batch + b]) {
                   const long long before = row.before * size + at, after = row.after * size + at;
                   number d = 0, other = 0, other_after = 0;
                   if (Cell::has_c) d = load(dc + at), other = load(c + before);
                   if (Cell::has_c) other_after = load(c + after);
                   if (Cell::has_q) other = load(extra + row.t * size + at);
#pragma unroll
                   for (int gate = 0; gate < G; gate++)
                     made[gate] = load(gates + place + gate * hidden);
                   whole = Cell::backward(made, made_hh, load(h + before), load(h + after), other,
                                          other_after, whole + load(dy + row.t * size + at), d);
                   if (Cell::has_c) store(dc + at, d);
                 }
#pragma unroll
                 for (int gate = 0; gate < G; gate++) {
                   store(gates + place + gate * hidden, made[gate]);
                   if (Cell::has_q) store(da_hh + place + gate * hidden, made_hh[gate]);
                 }
               }
               store(dh + at, whole);
             });
    if (n < steps) meet(counter, n + 1);
  }
}

__device__ __forceinline__ void reset_backward(BACKWARD) {
  SHARED(shared);
  const int width = 2 * hidden, by = distance(width);
  const Block own(shared, hidden, batch, units, tile, units * (by + distance(hidden)), width);
  const long long size = batch * hidden;
  stored* const candidate = own.weights + units * by;
  own_columns(own, own.weights, weights, width);
  own_columns(own, candidate, weights + width * hidden, hidden);
  for (long long n = 0; n <= steps; n++) {
    const Back row(n, steps, reverse);
    const stored* const before = h + row.before * size;
    stored* const du = da_u + row.t * size;
    multiply(own, own.weights, 1, n > 0 ? da_hh + row.last * batch * width : nullptr, width,
             [&](int unit, long long b, const number* sum) {
               const long long at = b * hidden + unit;
               number whole = load(dh + at);
               if (n > 0) whole += *sum;
               if (n < steps) {
                 stored* const g = gates + (row.t * batch + b) * 3 * hidden + unit;
                 CandidateGradient<number> d = {0, 0, whole};
                 if (!valid || valid[row.t * batch + b])
                   d = candidate_gradient<number>(load(g + hidden), load(g + 2 * hidden),
                                                  load(before + at),
                                                  whole + load(dy + row.t * size + at));
                 store(g + hidden, d.z);
                 store(g + 2 * hidden, d.n);
                 store(da_hh + (row.t * batch + b) * width + hidden + unit, d.z);
                 store(du + at, d.n);
                 whole = d.h;
               }
               store(dh + at, whole);
             });
    if (n == steps) return;
    meet(counter, 2 * n + 1);
    multiply(own, candidate, 1, du, hidden, [&](int unit, long long b, const number* sum) {
      const long long at = b * hidden + unit;
      stored* const g = gates + (row.t * batch + b) * 3 * hidden + unit;
      ResetGradient<number> d = {0, 0};
      if (!valid || valid[row.t * batch + b])
        d = reset_gradient<number>(load(g), load(before + at), *sum);
      store(g, d.r);
      store(da_hh + (row.t * batch + b) * width + unit, d.r);
      store(dh + at, load(dh + at) + d.h);
    });
    meet(counter, 2 * n + 2);
  }
}

#define KERNELS(name, forward, backward)                                                          \
  extern "C" __global__ void __launch_bounds__(256, 1) name##_all_forward(FORWARD) {              \
    forward(hidden, batch, steps, units, tile, reverse, keep, counter, weights, valid, bias_ih,   \
            bias_hh, gates, h, c, extra, y);                                                      \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(256, 1) name##_all_backward(BACKWARD) {            \
    backward(hidden, batch, steps, units, tile, reverse, counter, weights, valid, dy, gates, h, c, \
             extra, dh, dc, da_hh, da_u);                                                         \
  }

KERNELS(tanh, forward<Tanh>, backward<Tanh>)
KERNELS(relu, forward<Relu>, backward<Relu>)
KERNELS(lstm, forward<Lstm>, backward<Lstm>)
KERNELS(gru, forward<Gru>, backward<Gru>)
KERNELS(reset, reset_forward, reset_backward)
