// One run of a cell over a sequence: what the module hands to the kernels of an instruction set.
#pragma once

#include <stdint.h>

enum CellKind { ELMAN_TANH, ELMAN_RELU, LSTM, GRU, GRU_RESET_BEFORE, CELL_KINDS };
enum Split { BY_WORK, BY_BATCH, BY_UNITS };  // what the threads share out

// The threads of one call meet here; pool.cpp.
struct Barrier;
void meet(Barrier* barrier, int me);

struct Team {
  int me, size;
  Barrier* barrier;
};

struct Call {
  int cell;           // CellKind
  bool is_double;
  int split;          // Split
  int64_t T, B, I, H;
  bool reverse;       // from the last step to the first
  const int64_t* lengths;  // (B,), or null where all have T steps
  const void* x;      // (T, B, I), rows at the distance ldx; or null
  int64_t ldx;
  const int64_t* indices;  // instead: (T, B), where in each row of x a 1 stands among zeros

  // Forward
  const void* packed;        // from `pack`
  const void *h0, *c0;       // (B, H), or null for zeros
  void* y;                   // (T, B, H), rows at the distance ldy
  int64_t ldy;
  void *h_last, *c_last;     // (B, H)
  void* kept;                // for the backward pass, or null

  // Weights as PyTorch has them; `pack` and backward
  const void *weight_ih, *weight_hh, *bias_ih, *bias_hh;

  // Backward
  const void* dy;            // (T, B, H), rows at the distance lddy
  int64_t lddy;
  const void *dh_last, *dc_last;  // (B, H), or null for zeros
  void *dx;                       // (T, B, I); null where there are indices
  void *dweight_ih, *dweight_hh, *dbias_ih, *dbias_hh;  // the biases' may be null
  void *dh0, *dc0;

  void* scratch;  // of the size from `scratch_bytes`
};

// C = bias + A B, with A (M, K), B (K, N) and C (M, N); strides are in numbers.
struct Product {
  bool is_double;
  int64_t M, N, K;
  const void* A;
  int64_t a_row, a_k;  // any
  const void* B;
  int64_t b_k, b_n;  // one of them is 1
  const void* bias;  // (N,), or null
  void* C;           // rows one after the other
  void* scratch;
};

// Adam's update of a parameter p with gradient g: m' = beta1 m + (1 - beta1) g,
// v' = beta2 v + (1 - beta2) g^2, p' = keep p + scale m' / (sqrt(v') + eps).
struct Update {
  bool is_double;
  int64_t count;
  double beta1, beta2, eps, scale, keep;
  const void *p, *g, *m, *v;
  void *p_new, *m_new, *v_new;
  void* scratch;
};

// What is compiled for each instruction set.
struct Kernels {
  const char* name;
  int64_t (*packed_bytes)(const Call&);
  int64_t (*kept_bytes)(const Call&);
  int64_t (*scratch_bytes)(const Call&, bool backward);
  void (*pack)(const Call&, Team);  // writes to the packed weights
  void (*forward)(const Call&, Team);
  void (*backward)(const Call&, Team);
  int64_t (*product_bytes)(const Product&);
  void (*product)(const Product&, Team);
  void (*adam)(const Update&, Team);
};

extern const Kernels portable_kernels, avx2_kernels, avx512_kernels;
