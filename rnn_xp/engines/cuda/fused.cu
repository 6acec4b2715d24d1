// What stands between two products of a step, each cell's in one kernel: see fused.py.
//
// NVRTC compiles this at run time, so no file is included: fused.py puts the texts of numbers.h and
// kernels/gates.h where their names stand. BITS is the size of the arrays' numbers: 16, 32 or 64;
// those of 16 bits are bfloat16 where BRAIN is defined.
// Rows are sequences: a state is (B, H), the gates of a step (B, G, H). The grid is (B, parts of H),
// one thread for each hidden unit of each sequence.

#include "numbers.h"
#include "gates.h"

// --------------------------------------------------------------------------------------------
// Forward. `t` is the step; `before` and `after` are the rows of `h` and `c` with the state before
// and after it, `slot` the row of `kept`; where nothing is kept, all three are 0.

#define FORWARD                                                                                   \
  long long hidden, long long t, long long before, long long after, long long slot,               \
      const bool *valid, const stored *bias_ih, const stored *bias_hh, const stored *sum,         \
      stored *gates, stored *h, stored *c, stored *kept, stored *y

// Where a thread stands; `at` is its place in (B, H), and `size` is B * H.
#define PLACE                                                                                     \
  const long long row = blockIdx.x, unit = (long long)blockIdx.y * blockDim.x + threadIdx.x;      \
  if (unit >= hidden) return;                                                                     \
  const long long size = gridDim.x * hidden, at = row * hidden + unit;                            \
  const bool counts = !valid || valid[t * gridDim.x + row];

// The rows of `gates` (T, B, G, H) and of `sum` (B, columns, H).
#define GATES(G, columns)                                                                         \
  stored* const g = gates + (t * size + row * hidden) * G + unit;                                 \
  const stored* const s = sum + row * hidden * columns + unit;

// A step past the sequence's end: the state stays, the output is zero.
__device__ __forceinline__ void hold(stored* state, long long before, long long after) {
  state[after] = state[before];
}

__device__ __forceinline__ number bias(const stored* values, long long k) {
  return values ? load(values + k) : number(0);
}

// W_ih x + W_hh h + both biases, of one gate; `k` is the gate's place in the biases.
#define ADDED(gate)                                                                               \
  (load(g + gate * hidden) + load(s + gate * hidden) + bias(bias_ih, gate * hidden + unit) +      \
   bias(bias_hh, gate * hidden + unit))

#define HOLD_H                                                                                    \
  if (!counts) {                                                                                  \
    hold(h, before * size + at, after * size + at);                                               \
    store(y + t * size + at, 0);                                                                  \
    return;                                                                                       \
  }

#define PUT_H(value)                                                                              \
  store(h + after * size + at, value);                                                            \
  store(y + t * size + at, value);

extern "C" __global__ void tanh_forward(FORWARD) {
  PLACE GATES(1, 1) HOLD_H;
  const number a = tangent(ADDED(0));
  PUT_H(a)
}

extern "C" __global__ void relu_forward(FORWARD) {
  PLACE GATES(1, 1) HOLD_H;
  const number a = ADDED(0);
  PUT_H(a < 0 ? 0 : a)  // NaN stays NaN
}

extern "C" __global__ void lstm_forward(FORWARD) {
  PLACE GATES(4, 4);
  if (!counts) hold(c, before * size + at, after * size + at);
  HOLD_H;
  const LstmStep<number> step =
      lstm_step<number>(ADDED(0), ADDED(1), ADDED(2), ADDED(3), load(c + before * size + at));
  store(g, step.i);
  store(g + hidden, step.f);
  store(g + 2 * hidden, step.g);
  store(g + 3 * hidden, step.o);
  store(c + after * size + at, step.c);
  PUT_H(step.h)
}

extern "C" __global__ void gru_forward(FORWARD) {  // kept: q = W_hn h + b_hn
  PLACE GATES(3, 3) HOLD_H;
  const number a_n = load(g + 2 * hidden) + bias(bias_ih, 2 * hidden + unit);
  const number q = load(s + 2 * hidden) + bias(bias_hh, 2 * hidden + unit);
  const GruStep<number> step =
      gru_step<number>(ADDED(0), ADDED(1), a_n, q, load(h + before * size + at));
  store(g, step.r);
  store(g + hidden, step.z);
  store(g + 2 * hidden, step.n);
  store(kept + slot * size + at, q);
  PUT_H(step.h)
}

extern "C" __global__ void reset_forward(FORWARD) {  // kept: u = r h
  PLACE GATES(3, 2);
  if (!counts) return store(kept + slot * size + at, 0);
  const ResetStep<number> step =
      reset_step<number>(ADDED(0), ADDED(1), load(h + before * size + at));
  store(g, step.r);
  store(g + hidden, step.z);
  store(kept + slot * size + at, step.u);
}

extern "C" __global__ void candidate_forward(FORWARD) {  // sum: W_hn u, (B, H)
  PLACE GATES(3, 1) HOLD_H;
  const number a_n = load(g + 2 * hidden) + load(s) + bias(bias_ih, 2 * hidden + unit) +
                     bias(bias_hh, 2 * hidden + unit);
  const CandidateStep<number> step =
      candidate_step<number>(a_n, load(g + hidden), load(h + before * size + at));
  store(g + 2 * hidden, step.n);
  PUT_H(step.h)
}

// --------------------------------------------------------------------------------------------
// Backward. `dh` (B, H) is what the last product gave; `carry` (B, H), null where there is none, is
// the part of dh that passes by the products. The gradients of the pre-activations take the place
// of the gates; `da_hh` is those of the product with h, and `da_u` of the product with u, where
// they are others.

#define BACKWARD                                                                                  \
  long long hidden, long long t, long long before, long long after, const bool *valid,            \
      const stored *dy, stored *gates, const stored *h, const stored *c, const stored *kept,      \
      const stored *dh, stored *dc, stored *carry, stored *da_hh, stored *da_u

// dh in full, as `whole`.
#define WHOLE(G)                                                                                  \
  stored* const g = gates + (t * size + row * hidden) * G + unit;                                 \
  number whole = load(dh + at);                                                                   \
  if (carry) whole += load(carry + at);                                                           \
  if (counts) whole += load(dy + t * size + at);

__device__ __forceinline__ void zeros(stored* a, int count, long long distance) {
  for (int k = 0; k < count; k++) store(a + k * distance, 0);
}

__device__ __forceinline__ void put_carry(stored* carry, long long at, number value) {
  if (carry) store(carry + at, value);
}

#define PASS_BY(G)                                                                                \
  if (!counts) {                                                                                  \
    zeros(g, G, hidden);                                                                          \
    return put_carry(carry, at, whole);                                                           \
  }

extern "C" __global__ void tanh_backward(BACKWARD) {
  PLACE WHOLE(1) PASS_BY(1);
  const number value = load(h + after * size + at);
  store(g, whole * (1 - value * value));
  put_carry(carry, at, 0);
}

extern "C" __global__ void relu_backward(BACKWARD) {
  PLACE WHOLE(1) PASS_BY(1);
  store(g, load(h + after * size + at) > 0 ? whole : 0);
  put_carry(carry, at, 0);
}

extern "C" __global__ void lstm_backward(BACKWARD) {
  PLACE WHOLE(4) PASS_BY(4);
  const LstmGradient<number> d = lstm_gradient<number>(
      load(g), load(g + hidden), load(g + 2 * hidden), load(g + 3 * hidden),
      load(c + before * size + at), load(c + after * size + at), whole, load(dc + at));
  store(g, d.i);
  store(g + hidden, d.f);
  store(g + 2 * hidden, d.g);
  store(g + 3 * hidden, d.o);
  store(dc + at, d.c);
  put_carry(carry, at, 0);
}

extern "C" __global__ void gru_backward(BACKWARD) {  // da_hh: r z q
  PLACE WHOLE(3);
  stored* const g_hh = da_hh + (t * size + row * hidden) * 3 + unit;
  if (!counts) zeros(g_hh, 3, hidden);
  PASS_BY(3);
  const GruGradient<number> d =
      gru_gradient<number>(load(g), load(g + hidden), load(g + 2 * hidden),
                           load(kept + t * size + at), load(h + before * size + at), whole);
  store(g, d.r);
  store(g + hidden, d.z);
  store(g + 2 * hidden, d.n);
  store(g_hh, d.r);
  store(g_hh + hidden, d.z);
  store(g_hh + 2 * hidden, d.q);
  store(carry + at, d.h);
}

// r stays in `gates` for reset_backward. da_hh: z, and r later; da_u: n.
extern "C" __global__ void candidate_backward(BACKWARD) {
  PLACE WHOLE(3);
  stored* const g_hh = da_hh + (t * size + row * hidden) * 2 + unit;
  if (!counts) {
    zeros(g_hh, 2, hidden);
    store(da_u + t * size + at, 0);
  }
  PASS_BY(3);
  const CandidateGradient<number> d = candidate_gradient<number>(
      load(g + hidden), load(g + 2 * hidden), load(h + before * size + at), whole);
  store(g + hidden, d.z);
  store(g + 2 * hidden, d.n);
  store(g_hh + hidden, d.z);
  store(da_u + t * size + at, d.n);
  store(carry + at, d.h);
}

extern "C" __global__ void reset_backward(BACKWARD) {  // dh: W_hn^T da_n, which is du
  PLACE;
  if (!counts) return;
  stored* const g = gates + (t * size + row * hidden) * 3 + unit;
  const ResetGradient<number> d =
      reset_gradient<number>(load(g), load(h + before * size + at), load(dh + at));
  store(g, d.r);
  store(da_hh + (t * size + row * hidden) * 2 + unit, d.r);
  store(carry + at, load(carry + at) + d.h);
}
