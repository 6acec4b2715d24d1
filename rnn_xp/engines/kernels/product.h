// Products with packed weights: C = init + A W.
//
// W (K, columns) is packed into panels of up to four vectors of columns, each [k][vector], so that a
// tile of C stays in registers over all of K and W is read once, in order. Every number of C is one
// sum over k from 0 upward, whatever the tile: the same bits for any split of rows or columns.
#pragma once

#include "call.h"
#include "vector.h"

namespace {

struct Span {
  long first, last;
};

INLINE Span share(long count, const Team& team) {
  return {count * team.me / team.size, count * (team.me + 1) / team.size};
}

INLINE long least(long a, long b) { return a < b ? a : b; }
INLINE long most(long a, long b) { return a > b ? a : b; }
INLINE long upward(long a, long b) { return (a + b - 1) / b; }

// Keep a vector in its register: some compilers would load it anew for each use.
#if defined(__AVX512F__)
#define PIN(v) __asm__("" : "+v"(v))
#elif defined(__x86_64__)
#define PIN(v) __asm__("" : "+x"(v))
#else
#define PIN(v)
#endif

constexpr long LINE = 64;    // bytes of a cache line
constexpr int TOGETHER = 8;  // lines that are fetched at once
constexpr long SOON = 2048;  // bytes ahead, from where a single row has a panel fetched
constexpr long BLOCK = 1024;  // of K: so much of a panel, and of the next one, the second cache holds

// M rows of A against a panel of N vectors. A[row][k] stands at A[row * by_row + k * by_k]. `init`
// is null for zeros, has distance 0 for one row everywhere, and is C to add to it. From `ahead` on one
// line for each k is fetched into the second cache, unless it is null.
template <class T, int M, int N>
void tile(long K, const T* A, long by_row, long by_k, const T* W, const T* init, long ld_init, T* C,
          long ldc, const char* ahead) {
  constexpr int L = LANES<T>;
  typedef Vector<T> V;
  V sum[M][N];
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) sum[i][j] = init ? load(init + i * ld_init + j * L) : V{};
  constexpr int NEAR = 3;  // rows from one pointer: an address takes one or two times a distance
  const T* from[(M + NEAR - 1) / NEAR];
#pragma GCC unroll 8
  for (int i = 0; i < M; i += NEAR) from[i / NEAR] = A + i * by_row;
  auto row = [&](int i) { return from[i / NEAR][i % NEAR * by_row]; };
  const T* const end = W + K * N * L;
  while (W != end) {
    const T* stop = end;
    if (ahead) {
      if (end - W > TOGETHER * N * L) stop = W + TOGETHER * N * L;
#pragma GCC unroll 1
      for (int i = 0; i < TOGETHER; i++, ahead += LINE) __builtin_prefetch(ahead, 0, 2);
    }
#pragma GCC unroll 1
    do {
      if constexpr (M == 1)  // little is computed with what is read
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) __builtin_prefetch((const char*)(W + j * L) + SOON, 0, 3);
      if constexpr (TILE_ROWS > TILE_VECTORS) {  // many registers: the weights stay in them
        V w[N];
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) {
          w[j] = load(W + j * L);
          PIN(w[j]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) {
          const V a = fill(row(i));
#pragma GCC unroll 8
          for (int j = 0; j < N; j++) sum[i][j] = fma(a, w[j], sum[i][j]);
        }
      } else {  // few registers: the rows stay in them
        V a[M];
#pragma GCC unroll 8
        for (int i = 0; i < M; i++) a[i] = fill(row(i));
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) {
          V w = load(W + j * L);
          PIN(w);
#pragma GCC unroll 8
          for (int i = 0; i < M; i++) sum[i][j] = fma(a[i], w, sum[i][j]);
        }
      }
      W += N * L;
#pragma GCC unroll 8
      for (int i = 0; i < M; i += NEAR) from[i / NEAR] += by_k;
    } while (W != stop);
  }
#pragma GCC unroll 8
  for (int i = 0; i < M; i++)
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) store(C + i * ldc + j * L, sum[i][j]);
}

template <class T>
using Tile = void (*)(long, const T*, long, long, const T*, const T*, long, T*, long, const char*);

template <class T, int M, int N>
constexpr Tile<T> tile_that_fits() {
  if constexpr (M * N <= TILE_SUMS) return tile<T, M, N>;
  return nullptr;
}

#define TILES_OF_ROW(M)                                                                       \
  {                                                                                           \
    nullptr, tile_that_fits<T, M, 1>(), tile_that_fits<T, M, 2>(), tile_that_fits<T, M, 3>(), \
        tile_that_fits<T, M, 4>()                                                             \
  }

template <class T>
INLINE Tile<T> tile_of(int m, int n) {
  static constexpr Tile<T> table[TILE_ROWS + 1][TILE_VECTORS + 1] = {
      {},
      TILES_OF_ROW(1),
      TILES_OF_ROW(2),
      TILES_OF_ROW(3),
#if defined(__AVX512F__) || defined(__aarch64__)
      TILES_OF_ROW(4),
      TILES_OF_ROW(5),
      TILES_OF_ROW(6),
      TILES_OF_ROW(7),
      TILES_OF_ROW(8),
#endif
  };
  return table[m][n];
}

// So many rows at most has a tile of so many vectors.
INLINE long tallest(int vectors) { return least(TILE_ROWS, TILE_SUMS / vectors); }

// Call f(row, count) for tiles of so many vectors and nearly equal height.
template <class F>
INLINE void for_rows(long first, long last, int vectors, F f) {
  const long count = last - first;
  if (count <= 0) return;
  const long tiles = upward(count, tallest(vectors)), height = count / tiles, taller = count % tiles;
  for (long k = 0, row = first; k < tiles; k++) {
    const int m = (int)(height + (k < taller));
    f(row, m);
    row += m;
  }
}

// The panel that is needed next, K rows of n vectors: while the tiles of so many rows before it run,
// each of the first ones fetches a part. Not where the caches hold it anyhow, and not where the rows
// are one tile: memory that is read once, in order, the processor fetches ahead by itself.
template <class T>
class Ahead {
 public:
  Ahead(bool far, const T* panel, long K, int n, long rows)
      : next_((const char*)panel),
        step_(K * LINE),
        left_(far && rows > tallest(n) ? n * LANES<T> * (long)sizeof(T) / LINE : 0) {}

  const char* part() {
    if (left_-- <= 0) return nullptr;
    next_ += step_;
    return next_ - step_;
  }

 private:
  const char* next_;
  long step_, left_;
};

// Rows [first, last) of C = init + A W for one panel of n vectors, of which `columns` numbers count
// (the panel's others are zeros, and neither read from init nor written); K in blocks that the cache
// holds. `far`: the panels that follow come from beyond the second cache.
template <class T>
NOINLINE void panel_product(long first, long last, long K, const T* A, long by_row, long by_k,
                            const T* W, int n, const T* init, long ld_init, T* C, long ldc,
                            long columns, bool far = false) {
  constexpr int L = LANES<T>;
  const bool whole = columns >= n * L;
  alignas(64) T part[TILE_SUMS * L];
  for (long k = 0; k < K || k == 0; k += BLOCK) {
    const long count = least(BLOCK, K - k);
    Ahead<T> ahead(far, W + (k + count) * n * L, count, n, last - first);
    for_rows(first, last, n, [&](long r, int m) {
      const T* const a = A + r * by_row + k * by_k;
      const T* const w = W + k * n * L;
      const T* start = k ? C + r * ldc : (init ? init + r * ld_init : nullptr);
      const long ld_start = k ? ldc : ld_init;
      T* const c = C + r * ldc;
      if (whole) return tile_of<T>(m, n)(count, a, by_row, by_k, w, start, ld_start, c, ldc, ahead.part());
      for (int i = 0; start && i < m; i++)
        for (int j = 0; j < n; j++)
          store(part + (i * n + j) * L, load_part(start + i * ld_start + j * L, columns - j * L));
      tile_of<T>(m, n)(count, a, by_row, by_k, w, start ? part : nullptr, n * L, part, n * L, ahead.part());
      for (int i = 0; i < m; i++)
        for (int j = 0; j < n; j++)
          store_part(c + i * ldc + j * L, load(part + (i * n + j) * L), columns - j * L);
    });
  }
}

// Panels of `width` vectors of columns (the last one narrower), from rows that row(k) points to; a
// null row is zeros. Packs the panels [first, last).
template <class T, class F>
INLINE void pack_rows(F row, long K, long columns, int width, T* packed, long first, long last) {
  constexpr int L = LANES<T>;
  const long vectors = upward(columns, L);
  for (long p = first; p < last; p++) {
    const long v = p * width;
    const int n = (int)least(width, vectors - v);
    T* out = packed + v * L * K;
    for (long k = 0; k < K; k++, out += n * L) {
      const T* source = row(k);
      for (int j = 0; j < n; j++) {
        const long at = (v + j) * L;
        store(out + j * L, source ? load_part(source + at, columns - at) : Vector<T>{});
      }
    }
  }
}

// One vector of a panel [k][n vectors] from transposed rows: number (k, lane) is W[lane][k], zero
// from `count` lanes on.
template <class T>
NOINLINE void pack_vector(const T* W, long ld, long count, long K, T* packed, int n) {
  constexpr int L = LANES<T>;
  Vector<T> v[L];
  for (long k = 0; k < K; k += L) {
    const long there = least(L, K - k);
    if (there == L && count >= L) {
#pragma GCC unroll 16
      for (int l = 0; l < L; l++) v[l] = load(W + l * ld + k);
    } else {
      for (int l = 0; l < L; l++) v[l] = l < count ? load_part(W + l * ld + k, there) : Vector<T>{};
    }
    transpose<T>(v);
    for (long i = 0; i < there; i++) store(packed + (k + i) * n * L, v[i]);
  }
}

// A whole product: B is packed once, by all; then each thread has its rows or, where these are few,
// its panels.
template <class T>
NOINLINE void whole_product(const Product& p, const Team& team) {
  constexpr int L = LANES<T>;
  const T *A = (const T*)p.A, *B = (const T*)p.B, *bias = (const T*)p.bias;
  T *C = (T*)p.C, *packed = (T*)p.scratch;
  const long vectors = upward(p.N, L), panels = upward(vectors, TILE_VECTORS);
  Span mine = share(panels, team);
  if (p.b_n == 1) {
    pack_rows([&](long k) { return B + k * p.b_k; }, p.K, p.N, TILE_VECTORS, packed, mine.first,
              mine.last);
  } else {
    for (long v = mine.first * TILE_VECTORS; v < least(vectors, mine.last * TILE_VECTORS); v++) {
      const long first = v / TILE_VECTORS * TILE_VECTORS;
      const int n = (int)least(TILE_VECTORS, vectors - first);
      T* to = packed + first * L * p.K + (v - first) * L;
      pack_vector(B + v * L * p.b_n, p.b_n, p.N - v * L, p.K, to, n);
    }
  }
  if (team.size > 1) meet(team.barrier, team.me);
  const bool by_rows = p.M >= 2 * TILE_ROWS * team.size;
  const Span rows = by_rows ? share(p.M, team) : Span{0, p.M};
  if (by_rows) mine = {0, panels};
  for (long q = mine.first; q < mine.last; q++) {
    const long v = q * TILE_VECTORS;
    const int n = (int)least(TILE_VECTORS, vectors - v);
    panel_product<T>(rows.first, rows.last, p.K, A, p.a_row, p.a_k, packed + v * L * p.K, n,
                     bias ? bias + v * L : nullptr, 0, C + v * L, p.N, p.N - v * L);
  }
}

}  // namespace
