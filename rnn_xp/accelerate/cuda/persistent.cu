// All steps of a run in one kernel, forward or backward through time: see persistent.py.
//
// NVRTC compiles this at run time, so nothing is included: fused.py puts the text of
// kernels/gates.h where its name stands. Block b owns `units` hidden units, from b * units on: their
// recurrent weights stay in shared memory. A step is, for each tile of the batch: the tile's states
// into shared memory, the product, the gates; then a barrier of the whole grid, so that all blocks
// have to be resident: a cooperative launch. Numbers are float32.
// A state is (B, H), the gates of a step (B, G, H), as in fused.cu.

typedef float number;

#ifdef __CUDACC__
#define SHARED(name) extern __shared__ number name[]
#define PAUSE() ((void)0)
__device__ __forceinline__ void arrive(unsigned* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
__device__ __forceinline__ unsigned arrived(const unsigned* counter) {
  unsigned count;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) : "l"(counter) : "memory");
  return count;
}
#endif

__device__ __forceinline__ number tangent(number a) { return tanhf(a); }
__device__ __forceinline__ number sigmoid(number a) { return 0.5f + 0.5f * tanhf(0.5f * a); }
__device__ __forceinline__ number ones(number) { return 1; }

#include "gates.h"

// Wait until every block has come here `times` times; what they wrote before is seen after.
__device__ __forceinline__ void meet(unsigned* counter, unsigned times) {
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive(counter);
    while (arrived(counter) < times * gridDim.x) PAUSE();
  }
  __syncthreads();
}

__device__ __forceinline__ int least(long long a, long long b) { return (int)(a < b ? a : b); }

// The units of this block.
struct Part {
  int first, count;
};

__device__ __forceinline__ Part part(long long hidden, long long units) {
  const long long first = blockIdx.x * units;
  return {(int)first, first < hidden ? least(units, hidden - first) : 0};
}

// Another block may have written these just now: not from the multiprocessor's own cache.
__device__ __forceinline__ void stage(number* to, const number* from, int count) {
  for (int k = threadIdx.x; k < count; k += blockDim.x) to[k] = __ldcg(from + k);
  __syncthreads();
}

// sums (rows, tile) = weights (rows, width) statesᵀ, states (count, width); all in shared memory.
// A warp makes 4 x 4 sums at once, so that each number read serves four; past the end the last row
// is computed once more and not kept.
__device__ __forceinline__ void product(number* sums, const number* weights, const number* states,
                                        int rows, int width, int count, int tile) {
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
// Forward. With `keep`, row k of h and c stands between the steps k - 1 and k, and `other` has a
// row for each step; without, the states take turns in two rows.

#define FORWARD                                                                                   \
  long long hidden, long long batch, long long steps, long long units, long long tile,            \
      long long reverse, long long keep, unsigned *counter, const number *weights,                \
      const bool *valid, const number *bias_ih, const number *bias_hh, number *gates, number *h,  \
      number *c, number *q, number *y

template <class Cell>
__device__ __forceinline__ void forward(FORWARD) {
  SHARED(shared);
  constexpr int G = Cell::gates;
  const Part own = part(hidden, units);
  const int rows = G * own.count;
  number *w = shared, *states = w + G * units * hidden, *sums = states + tile * hidden;
  const long long size = batch * hidden;
  for (int k = threadIdx.x; k < rows * hidden; k += blockDim.x) {  // row: gate, unit
    const int row = k / hidden, column = k % hidden;
    w[k] = weights[(row / own.count * hidden + own.first + row % own.count) * hidden + column];
  }
  for (long long n = 0; n < steps; n++) {
    const long long t = reverse ? steps - 1 - n : n;
    const long long before = !keep ? n % 2 : reverse ? t + 1 : t;
    const long long after = !keep ? 1 - before : reverse ? t : t + 1, slot = keep ? t : 0;
    for (long long first = 0; first < batch && rows; first += tile) {
      const int count = least(tile, batch - first);
      stage(states, h + before * size + first * hidden, count * hidden);
      product(sums, w, states, rows, hidden, count, tile);
      for (int k = threadIdx.x; k < own.count * count; k += blockDim.x) {
        const int unit = own.first + k % own.count, sequence = k / own.count;
        const long long b = first + sequence, at = b * hidden + unit;
        const bool counts = !valid || valid[t * batch + b];
        number* const g = gates + ((t * batch + b) * G) * hidden + unit;
        number value = states[sequence * hidden + unit], other = 0;
        if (Cell::has_c) other = c[before * size + at];
        if (counts) {
          number from_x[G], from_h[G], made[G];
#pragma unroll
          for (int gate = 0; gate < G; gate++) {
            const int row = gate * own.count + k % own.count;
            from_x[gate] = g[gate * hidden];
            from_h[gate] = sums[row * tile + sequence];
            if (bias_ih) from_x[gate] += bias_ih[gate * hidden + unit];
            if (bias_hh) from_h[gate] += bias_hh[gate * hidden + unit];
          }
          value = Cell::forward(from_x, from_h, made, value, other);
#pragma unroll
          for (int gate = 0; gate < G; gate++) g[gate * hidden] = made[gate];
        }
        if (Cell::has_c) c[after * size + at] = other;
        if (Cell::has_q) q[slot * size + at] = other;
        h[after * size + at] = value;
        y[t * size + at] = counts ? value : 0;
      }
      __syncthreads();  // before the next tile takes this one's place
    }
    if (n + 1 < steps) meet(counter, n + 1);
  }
}

// --------------------------------------------------------------------------------------------
// Backward. `dh` (B, H) is the part of the gradient that passes by the products: that of the last
// state at first, that of the first state in the end. The gradients of the pre-activations take the
// place of the gates; `da_hh` is those of the product with h.

#define BACKWARD                                                                                  \
  long long hidden, long long batch, long long steps, long long units, long long tile,            \
      long long reverse, unsigned *counter, const number *weights, const bool *valid,             \
      const number *dy, number *gates, const number *h, const number *c, const number *q,         \
      number *dh, number *dc, number *da_hh

template <class Cell>
__device__ __forceinline__ void backward(BACKWARD) {
  SHARED(shared);
  constexpr int G = Cell::gates;
  const Part own = part(hidden, units);
  const int width = G * hidden;
  number *w = shared, *states = w + units * width, *sums = states + tile * width;
  const long long size = batch * hidden;
  for (int k = threadIdx.x; k < own.count * width; k += blockDim.x)  // own columns, as rows
    w[k] = weights[k % width * hidden + own.first + k / width];
  for (long long n = 0; n <= steps; n++) {
    const long long t = reverse ? n : steps - 1 - n, last = reverse ? t - 1 : t + 1;
    for (long long first = 0; first < batch && own.count; first += tile) {
      const int count = least(tile, batch - first);
      if (n > 0) {
        stage(states, da_hh + (last * batch + first) * width, count * width);
        product(sums, w, states, own.count, width, count, tile);
      }
      for (int k = threadIdx.x; k < own.count * count; k += blockDim.x) {
        const int unit = own.first + k % own.count, sequence = k / own.count;
        const long long b = first + sequence, at = b * hidden + unit;
        number whole = dh[at];
        if (n > 0) whole += sums[k % own.count * tile + sequence];
        if (n < steps) {
          number *const g = gates + (t * batch + b) * width + unit,
                        *const g_hh = da_hh + (t * batch + b) * width + unit;
          number made[G] = {}, made_hh[G] = {};
          if (!valid || valid[t * batch + b]) {
            const long long before = (reverse ? t + 1 : t) * size + at,
                            after = (reverse ? t : t + 1) * size + at;
            number d = 0;
            if (Cell::has_c) d = dc[at];
#pragma unroll
            for (int gate = 0; gate < G; gate++) made[gate] = g[gate * hidden];
            whole = Cell::backward(made, made_hh, h[before], h[after],
                                   Cell::has_c   ? c[before]
                                   : Cell::has_q ? q[t * size + at]
                                                 : 0,
                                   Cell::has_c ? c[after] : 0, whole + dy[t * size + at], d);
            if (Cell::has_c) dc[at] = d;
          }
#pragma unroll
          for (int gate = 0; gate < G; gate++) {
            g[gate * hidden] = made[gate];
            if (Cell::has_q) g_hh[gate * hidden] = made_hh[gate];
          }
        }
        dh[at] = whole;
      }
      __syncthreads();
    }
    if (n < steps) meet(counter, n + 1);
  }
}

#define KERNELS(name, Cell)                                                                       \
  extern "C" __global__ void __launch_bounds__(256, 1) name##_all_forward(FORWARD) {                 \
    forward<Cell>(hidden, batch, steps, units, tile, reverse, keep, counter, weights, valid,      \
                  bias_ih, bias_hh, gates, h, c, q, y);                                           \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(256, 1) name##_all_backward(BACKWARD) {               \
    backward<Cell>(hidden, batch, steps, units, tile, reverse, counter, weights, valid, dy, gates, \
                   h, c, q, dh, dc, da_hh);                                                       \
  }

KERNELS(tanh, Tanh)
KERNELS(relu, Relu)
KERNELS(lstm, Lstm)
KERNELS(gru, Gru)
