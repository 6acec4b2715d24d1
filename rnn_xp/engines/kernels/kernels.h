// The kernels of one instruction set: included by one file for each, which names it.
#pragma once

#include "recurrence.h"
#include "update.h"

namespace {

template <class T>
const Cell<T>& cell_at(int kind) {
  static constexpr Cell<T> elman = cell_of<T, Elman>(), lstm = cell_of<T, Lstm>(),
                           gru = cell_of<T, Gru>(), reset_before = cell_of<T, ResetBefore>();
  static constexpr const Cell<T>* cells[CELL_KINDS] = {&elman, &elman, &lstm, &gru, &reset_before};
  return *cells[kind];
}

template <class F>
INLINE long dispatch(const Call& call, Team team, F f) {
  if (call.is_double) return f(Recurrence<double>(cell_at<double>(call.cell), call, team));
  return f(Recurrence<float>(cell_at<float>(call.cell), call, team));
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
void adam(const Update& u, Team team) {
  if (u.is_double)
    adam_of<double>(u, team);
  else
    adam_of<float>(u, team);
}

}  // namespace

#define RNN_XP_KERNELS(set)                                                                  \
  extern const Kernels set##_kernels = {#set, packed_bytes, kept_bytes, scratch_bytes, pack, \
                                        forward, backward, product_bytes, product, adam};
