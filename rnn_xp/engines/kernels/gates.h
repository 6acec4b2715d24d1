// The gates of a step, forward and backward: the one place of these formulas outside `cells/`. (The
// Elman cell's, tanh or relu of a sum, stands where it is used.)
//
// V is a number or a vector of numbers with + - *, sigmoid(V), tangent(V) and fma(V, V, V) (a b + c);
// the CPU's kernels instantiate them with vectors of hidden units, CUDA kernels with single numbers.
// Names and equations are those of cells/lstm.py and cells/gru.py. Unlike there, the weights of the
// sigmoid gates are not halved.
#pragma once

#ifdef __CUDACC__
#define RNN_XP_GATE __device__ __forceinline__
#else
#define RNN_XP_GATE static inline __attribute__((always_inline))
#endif

namespace {

template <class V>
struct LstmStep {
  V i, f, g, o, c, h;
};

template <class V>
RNN_XP_GATE LstmStep<V> lstm_step(V a_i, V a_f, V a_g, V a_o, V c) {
  LstmStep<V> s;
  s.i = sigmoid(a_i);
  s.f = sigmoid(a_f);
  s.g = tangent(a_g);
  s.o = sigmoid(a_o);
  s.c = fma(s.f, c, s.i * s.g);
  s.h = s.o * tangent(s.c);
  return s;
}

template <class V>
struct LstmGradient {
  V i, f, g, o;  // with respect to the pre-activations
  V c;           // with respect to the cell state before the step
};

// c_before and c_after: the cell state; dh, dc: the gradients with respect to h' and c'.
template <class V>
RNN_XP_GATE LstmGradient<V> lstm_gradient(V i, V f, V g, V o, V c_before, V c_after, V dh, V dc) {
  LstmGradient<V> d;
  V one = ones(dh), t = tangent(c_after), dh_o = dh * o;
  dc = fma(dh_o, one - t * t, dc);
  d.i = dc * g * i * (one - i);
  d.c = dc * f;
  d.f = d.c * c_before * (one - f);
  d.g = dc * i * (one - g * g);
  d.o = dh_o * t * (one - o);
  return d;
}

template <class V>
struct GruStep {
  V r, z, n, h;
};

// q = W_hn h + b_hn
template <class V>
RNN_XP_GATE GruStep<V> gru_step(V a_r, V a_z, V a_n, V q, V h) {
  GruStep<V> s;
  s.r = sigmoid(a_r);
  s.z = sigmoid(a_z);
  s.n = tangent(fma(s.r, q, a_n));
  s.h = fma(s.z, h - s.n, s.n);
  return s;
}

template <class V>
struct GruGradient {
  V r, z, n, q;  // with respect to the pre-activations, and to q
  V h;           // the part of dh that passes by the weights
};

template <class V>
RNN_XP_GATE GruGradient<V> gru_gradient(V r, V z, V n, V q, V h, V dh) {
  GruGradient<V> d;
  V one = ones(dh);
  d.n = dh * (one - z) * (one - n * n);
  d.z = dh * (h - n) * z * (one - z);
  d.q = d.n * r;
  d.r = d.q * q * (one - r);
  d.h = dh * z;
  return d;
}

// The GRU that resets before the product: two products a step, so two parts.

template <class V>
struct ResetStep {
  V r, z, u;  // u = r h
};

template <class V>
RNN_XP_GATE ResetStep<V> reset_step(V a_r, V a_z, V h) {
  ResetStep<V> s;
  s.r = sigmoid(a_r);
  s.z = sigmoid(a_z);
  s.u = s.r * h;
  return s;
}

template <class V>
struct CandidateStep {
  V n, h;
};

template <class V>
RNN_XP_GATE CandidateStep<V> candidate_step(V a_n, V z, V h) {
  CandidateStep<V> s;
  s.n = tangent(a_n);
  s.h = fma(z, h - s.n, s.n);
  return s;
}

template <class V>
struct CandidateGradient {
  V z, n, h;
};

template <class V>
RNN_XP_GATE CandidateGradient<V> candidate_gradient(V z, V n, V h, V dh) {
  CandidateGradient<V> d;
  V one = ones(dh);
  d.n = dh * (one - z) * (one - n * n);
  d.z = dh * (h - n) * z * (one - z);
  d.h = dh * z;
  return d;
}

template <class V>
struct ResetGradient {
  V r, h;
};

template <class V>
RNN_XP_GATE ResetGradient<V> reset_gradient(V r, V h, V du) {
  ResetGradient<V> d;
  d.h = du * r;
  d.r = d.h * h * (ones(du) - r);
  return d;
}

}  // namespace
