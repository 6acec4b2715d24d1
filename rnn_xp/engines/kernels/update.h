// An optimizer's update, in one pass over its arrays.
#pragma once

#include "call.h"
#include "product.h"
#include "vector.h"

namespace {

template <class T>
NOINLINE void adam_of(const Update& u, const Team& team) {
  typedef Vector<T> V;
  constexpr int L = LANES<T>;
  const V beta1 = fill((T)u.beta1), beta2 = fill((T)u.beta2), eps = fill((T)u.eps);
  const V rest1 = fill((T)(1 - u.beta1)), rest2 = fill((T)(1 - u.beta2));
  const V scale = fill((T)u.scale), keep = fill((T)u.keep);
  const Span mine = share(upward(u.count, L), team);
  for (long at = mine.first * L; at < mine.last * L; at += L) {
    const long n = u.count - at;
    const V g = load_part((const T*)u.g + at, n);
    const V m = fma(beta1, load_part((const T*)u.m + at, n), rest1 * g);
    const V v = fma(beta2, load_part((const T*)u.v + at, n), rest2 * g * g);
    const V p = fma(keep, load_part((const T*)u.p + at, n), scale * m / (root(v) + eps));
    store_part((T*)u.m_new + at, m, n);
    store_part((T*)u.v_new + at, v, n);
    store_part((T*)u.p_new + at, p, n);
  }
}

}  // namespace
