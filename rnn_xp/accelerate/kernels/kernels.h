// The kernels of one instruction set: included by one file for each, which names it.
#pragma once

#include "recurrence.h"

namespace {

template <class T, class F>
INLINE long with_cell(const Call& call, Team team, F f) {
  switch (call.cell) {
    case ELMAN_TANH:
    case ELMAN_RELU: return f(Recurrence<T, Elman>(call, team));
    case LSTM: return f(Recurrence<T, Lstm>(call, team));
    case GRU: return f(Recurrence<T, Gru>(call, team));
    default: return f(Recurrence<T, ResetBefore>(call, team));
  }
}

template <class F>
INLINE long dispatch(const Call& call, Team team, F f) {
  return call.is_double ? with_cell<double>(call, team, f) : with_cell<float>(call, team, f);
}

constexpr Team ALONE = {0, 1, nullptr};

int64_t packed_bytes(const Call& call) {
  return dispatch(call, ALONE, [](const auto& r) { return r.packed_bytes(); });
}
int64_t kept_bytes(const Call& call) {
  return dispatch(call, ALONE, [](const auto& r) { return r.kept_bytes(); });
}
int64_t scratch_bytes(const Call& call, bool backward) {
  return dispatch(call, ALONE, [=](const auto& r) {
    return backward ? r.backward_area().bytes : r.forward_bytes();
  });
}
void pack(const Call& call, Team team) {
  dispatch(call, team, [](const auto& r) { return r.pack(), 0L; });
}
void forward(const Call& call, Team team) {
  dispatch(call, team, [](const auto& r) { return r.forward(), 0L; });
}
void backward(const Call& call, Team team) {
  dispatch(call, team, [](const auto& r) { return r.backward(), 0L; });
}

int64_t product_bytes(const Product& p) {
  const long lanes = RNN_XP_VECTOR_BYTES / (p.is_double ? 8 : 4);
  return upward(p.N, lanes) * p.K * RNN_XP_VECTOR_BYTES;
}
void product(const Product& p, Team team) {
  if (p.is_double)
    whole_product<double>(p, team);
  else
    whole_product<float>(p, team);
}

}  // namespace

#define RNN_XP_KERNELS(set)                                                                  \
  extern const Kernels set##_kernels = {#set, packed_bytes, kept_bytes, scratch_bytes, pack, \
                                        forward, backward, product_bytes, product};
