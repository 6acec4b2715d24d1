// What each cell does between the products of a step. A tile of sums comes from the recurrent
// product; the cell turns it into gates and states before it leaves the cache.
#pragma once

#include <stdint.h>

#include "vector.h"
//
#include "gates.h"

namespace {

// One step of the whole batch. Rows are padded to whole vectors; `at` is the first hidden unit of a
// vector, and the vector of gate g of a row with G gates stands at (row * padded + at) * G + g * L.
template <class T>
struct Step {
  long H, padded;  // hidden units, and rounded up to whole vectors
  bool relu;
  const int64_t* lengths;
  long t;

  // Forward; the backward pass reads what is written here
  T* gates;              // in: W_ih x + b; out: the gates
  bool keep;             // whether the gates are read again
  T *h, *c;              // the state before the step
  T *h_new, *c_new, *u;  // the state after it; r h of the GRU that resets before
  T* y;
  long ldy;

  // Backward
  const T* dy;
  long lddy;
  T* carry;      // in: a part of dh besides the product and dy; null is zeros
  T* carry_new;  // out: the same, for the step before; null if it is zeros
  T* dc;         // in and out
  T* da;         // gradients with respect to the pre-activations of the input's product
  T* da_hh;      // ... of the recurrent product, where they are others
  T* da_u;       // ... of the second recurrent product
  T* dh0;        // of the initial state, rows of H

  INLINE_MEMBER bool valid(long row) const { return !lengths || t < lengths[row]; }
};

// dh in full: the product's sum, what was carried, and dy.
template <class T>
INLINE Vector<T> whole_dh(const Step<T>& s, long row, long at, Vector<T> dh, bool valid) {
  if (s.carry) dh += load(s.carry + row * s.padded + at);
  if (valid) dh += load_part(s.dy + row * s.lddy + at, s.H - at);
  return dh;
}

template <class T>
INLINE void put_h(const Step<T>& s, long row, long at, Vector<T> h) {
  store(s.h_new + row * s.padded + at, h);
  store_part(s.y + row * s.ldy + at, h, s.H - at);
}

// A step past the sequence's end: the state stays, the output is zero.
template <class T>
INLINE void hold_h(const Step<T>& s, long row, long at) {
  store(s.h_new + row * s.padded + at, load(s.h + row * s.padded + at));
  store_part(s.y + row * s.ldy + at, Vector<T>{}, s.H - at);
}

template <class T>
INLINE void put_carry(const Step<T>& s, long row, long at, Vector<T> carry) {
  if (s.carry_new) store(s.carry_new + row * s.padded + at, carry);
}

template <class T>
INLINE void put_zeros(T* p, int vectors) {
  for (int k = 0; k < vectors; k++) store(p + k * LANES<T>, Vector<T>{});
}

// The gradient with respect to the initial state.
template <class T>
INLINE void put_dh0(const Step<T>& s, long row, long at, const T* sum) {
  Vector<T> dh = load(sum);
  if (s.carry) dh += load(s.carry + row * s.padded + at);
  store_part(s.dh0 + row * s.H + at, dh, s.H - at);
}

// What the loop asks of a cell:
//   X_GATES, H_GATES, U_GATES  gates of the product with x, with h, and with u (a second one)
//   SLOTS                      vectors of `gates` for each vector of hidden units
//   DA, DA_HH                  vectors of `da` and `da_hh`; 0 where `da` serves both
//   HAS_C                      whether there is a cell state
//   CARRIES                    whether a part of dh passes by the products
//   KEEPS_GATES                whether the backward pass reads the gates
//   forward, backward          after the product with h, for one vector of units of one row
//   forward_u, backward_u      after the second product

template <class T>
struct Elman {
  static constexpr int X_GATES = 1, H_GATES = 1, U_GATES = 0, SLOTS = 1, DA = 1, DA_HH = 0;
  static constexpr bool HAS_C = false, CARRIES = false, KEEPS_GATES = false;
  typedef Vector<T> V;

  static INLINE_MEMBER void forward(const Step<T>& s, long row, long at, const T* sum) {
    if (!s.valid(row)) return hold_h(s, row, at);
    V a = load(s.gates + row * s.padded + at) + load(sum);
    put_h(s, row, at, s.relu ? (a < V{} ? V{} : a) : tangent(a));
  }

  static INLINE_MEMBER void backward(const Step<T>& s, long row, long at, const T* sum) {
    const bool valid = s.valid(row);
    V dh = whole_dh(s, row, at, load(sum), valid);
    T* da = s.da + row * s.padded + at;
    if (!valid) {
      put_zeros(da, 1);
      return put_carry(s, row, at, dh);
    }
    V h = load(s.h_new + row * s.padded + at);
    store(da, s.relu ? (h > V{} ? dh : V{}) : dh * (ones(h) - h * h));
    put_carry(s, row, at, V{});
  }
};

template <class T>
struct Lstm {
  static constexpr int X_GATES = 4, H_GATES = 4, U_GATES = 0, SLOTS = 4, DA = 4, DA_HH = 0;
  static constexpr bool HAS_C = true, CARRIES = false, KEEPS_GATES = true;
  static constexpr int L = LANES<T>;
  typedef Vector<T> V;

  static INLINE_MEMBER void forward(const Step<T>& s, long row, long at, const T* sum) {
    const long place = row * s.padded + at;
    if (!s.valid(row)) {
      store(s.c_new + place, load(s.c + place));
      return hold_h(s, row, at);
    }
    T* g = s.gates + place * 4;
    const LstmStep<V> step = lstm_step<V>(
        load(g) + load(sum), load(g + L) + load(sum + L), load(g + 2 * L) + load(sum + 2 * L),
        load(g + 3 * L) + load(sum + 3 * L), load(s.c + place));
    if (s.keep) {
      store(g, step.i);
      store(g + L, step.f);
      store(g + 2 * L, step.g);
      store(g + 3 * L, step.o);
    }
    store(s.c_new + place, step.c);
    put_h(s, row, at, step.h);
  }

  static INLINE_MEMBER void backward(const Step<T>& s, long row, long at, const T* sum) {
    const long place = row * s.padded + at;
    const bool valid = s.valid(row);
    V dh = whole_dh(s, row, at, load(sum), valid);
    T* da = s.da + place * 4;
    if (!valid) {
      put_zeros(da, 4);
      return put_carry(s, row, at, dh);
    }
    const T* g = s.gates + place * 4;
    const LstmGradient<V> d = lstm_gradient<V>(
        load(g), load(g + L), load(g + 2 * L), load(g + 3 * L), load(s.c + place),
        load(s.c_new + place), dh, load(s.dc + place));
    store(da, d.i);
    store(da + L, d.f);
    store(da + 2 * L, d.g);
    store(da + 3 * L, d.o);
    store(s.dc + place, d.c);
    put_carry(s, row, at, V{});
  }
};

// Gates r z n, and q = W_hn h + b_hn; da: r z n, da_hh: r z q.
template <class T>
struct Gru {
  static constexpr int X_GATES = 3, H_GATES = 3, U_GATES = 0, SLOTS = 4, DA = 3, DA_HH = 3;
  static constexpr bool HAS_C = false, CARRIES = true, KEEPS_GATES = true;
  static constexpr int L = LANES<T>;
  typedef Vector<T> V;

  static INLINE_MEMBER void forward(const Step<T>& s, long row, long at, const T* sum) {
    if (!s.valid(row)) return hold_h(s, row, at);
    const long place = row * s.padded + at;
    T* g = s.gates + place * 4;
    const V q = load(sum + 2 * L);
    const GruStep<V> step = gru_step<V>(load(g) + load(sum), load(g + L) + load(sum + L),
                                        load(g + 2 * L), q, load(s.h + place));
    if (s.keep) {
      store(g, step.r);
      store(g + L, step.z);
      store(g + 2 * L, step.n);
      store(g + 3 * L, q);
    }
    put_h(s, row, at, step.h);
  }

  static INLINE_MEMBER void backward(const Step<T>& s, long row, long at, const T* sum) {
    const long place = row * s.padded + at;
    const bool valid = s.valid(row);
    V dh = whole_dh(s, row, at, load(sum), valid);
    T *da = s.da + place * 3, *da_hh = s.da_hh + place * 3;
    if (!valid) {
      put_zeros(da, 3);
      put_zeros(da_hh, 3);
      return put_carry(s, row, at, dh);
    }
    const T* g = s.gates + place * 4;
    const GruGradient<V> d = gru_gradient<V>(load(g), load(g + L), load(g + 2 * L),
                                             load(g + 3 * L), load(s.h + place), dh);
    store(da, d.r);
    store(da + L, d.z);
    store(da + 2 * L, d.n);
    store(da_hh, d.r);
    store(da_hh + L, d.z);
    store(da_hh + 2 * L, d.q);
    put_carry(s, row, at, d.h);
  }
};

// Gates r z n, and u = r h; da: r z n, da_hh: r z, da_u: n.
template <class T>
struct ResetBefore {
  static constexpr int X_GATES = 3, H_GATES = 2, U_GATES = 1, SLOTS = 3, DA = 3, DA_HH = 2;
  static constexpr bool HAS_C = false, CARRIES = true, KEEPS_GATES = true;
  static constexpr int L = LANES<T>;
  typedef Vector<T> V;

  static INLINE_MEMBER void forward(const Step<T>& s, long row, long at, const T* sum) {
    const long place = row * s.padded + at;
    if (!s.valid(row)) return put_zeros(s.u + place, 1);
    T* g = s.gates + place * 3;
    const ResetStep<V> step = reset_step<V>(load(g) + load(sum), load(g + L) + load(sum + L),
                                            load(s.h + place));
    store(g, step.r);
    store(g + L, step.z);
    store(s.u + place, step.u);
  }

  static INLINE_MEMBER void forward_u(const Step<T>& s, long row, long at, const T* sum) {
    if (!s.valid(row)) return hold_h(s, row, at);
    const long place = row * s.padded + at;
    T* g = s.gates + place * 3;
    const CandidateStep<V> step =
        candidate_step<V>(load(g + 2 * L) + load(sum), load(g + L), load(s.h + place));
    if (s.keep) store(g + 2 * L, step.n);
    put_h(s, row, at, step.h);
  }

  static INLINE_MEMBER void backward(const Step<T>& s, long row, long at, const T* sum) {
    const long place = row * s.padded + at;
    const bool valid = s.valid(row);
    V dh = whole_dh(s, row, at, load(sum), valid);
    T *da = s.da + place * 3, *da_hh = s.da_hh + place * 2, *da_u = s.da_u + place;
    if (!valid) {
      put_zeros(da, 3);
      put_zeros(da_hh, 2);
      put_zeros(da_u, 1);
      return put_carry(s, row, at, dh);
    }
    const T* g = s.gates + place * 3;
    const CandidateGradient<V> d =
        candidate_gradient<V>(load(g + L), load(g + 2 * L), load(s.h + place), dh);
    store(da + L, d.z);
    store(da + 2 * L, d.n);
    store(da_hh + L, d.z);
    store(da_u, d.n);
    put_carry(s, row, at, d.h);
  }

  static INLINE_MEMBER void backward_u(const Step<T>& s, long row, long at, const T* sum) {
    if (!s.valid(row)) return;
    const long place = row * s.padded + at;
    const ResetGradient<V> d =
        reset_gradient<V>(load(s.gates + place * 3), load(s.h + place), load(sum));
    store(s.da + place * 3, d.r);
    store(s.da_hh + place * 2, d.r);
    store(s.carry_new + place, load(s.carry_new + place) + d.h);
  }
};

}  // namespace
