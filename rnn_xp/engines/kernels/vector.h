// Vectors of hidden units, for one instruction set: RNN_XP_VECTOR_BYTES wide.
//
// Compiled once for each instruction set, so everything here stays local to its file: nothing may
// be shared by the linker between code for different processors.
#pragma once

#include <stdint.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

typedef float vfloat __attribute__((vector_size(RNN_XP_VECTOR_BYTES)));
typedef double vdouble __attribute__((vector_size(RNN_XP_VECTOR_BYTES)));
typedef int32_t vint32 __attribute__((vector_size(RNN_XP_VECTOR_BYTES)));
typedef int64_t vint64 __attribute__((vector_size(RNN_XP_VECTOR_BYTES)));

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))
#define INLINE_MEMBER inline __attribute__((always_inline))

template <class T>
struct Numbers;

// exp(x) = 2^n (1 + p), with n = round(x / ln 2), r = x - n ln 2 and p = r + r^2 q(r) on
// |r| <= ln(2) / 2. ln 2 in two parts, the first short enough for n times it to be exact; q by
// Chebyshev interpolation. `magic` rounds by addition and leaves n in the lowest bits.
template <>
struct Numbers<float> {
  typedef vfloat V;
  typedef vint32 Bits;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr float magic = 12582912.f, log2e = 1.44269504f;
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.1219444e-4f;
  static constexpr float largest = 87.f, saturated = 20.f;
  static constexpr float q[] = {0.5f, 0.166665763f, 0.0416665561f, 0.00836320315f, 0.00139262131f};
};

template <>
struct Numbers<double> {
  typedef vdouble V;
  typedef vint64 Bits;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr double magic = 6755399441055744., log2e = 1.4426950408889634;
  static constexpr double ln2_high = 0x1.62e42fee00000p-1, ln2_low = 1.9082149292705878e-10;
  static constexpr double largest = 708., saturated = 40.;
  static constexpr double q[] = {0.5,
                                 0.1666666666666667103,
                                 0.041666666666666669783,
                                 0.0083333333333260831202,
                                 0.0013888888888883711167,
                                 0.00019841269875002278793,
                                 2.48015873256774619e-05,
                                 2.7557255170000887438e-06,
                                 2.7557273478718580474e-07,
                                 2.5105312729622101787e-08,
                                 2.09147553258932022e-09};
};

constexpr float Numbers<float>::q[];
constexpr double Numbers<double>::q[];

template <class T>
using Vector = typename Numbers<T>::V;

// How many numbers of type T a vector holds.
template <class T>
constexpr int LANES = RNN_XP_VECTOR_BYTES / sizeof(T);

// What a product's tile may have, so that the registers hold it: vectors, rows, and sums in all.
constexpr int TILE_VECTORS = 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_ROWS = 8, TILE_SUMS = 24;
#else
constexpr int TILE_ROWS = 3, TILE_SUMS = 12;
#endif

INLINE vfloat fill(float a) { return a - vfloat{}; }
INLINE vdouble fill(double a) { return a - vdouble{}; }
INLINE vfloat ones(vfloat) { return fill(1.f); }
INLINE vdouble ones(vdouble) { return fill(1.); }

INLINE vfloat load(const float* p) {
  vfloat v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
INLINE vdouble load(const double* p) {
  vdouble v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
INLINE void store(T* p, Vector<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The first n numbers alone; n may be anything.
#if defined(__AVX512F__)
INLINE vfloat load_part(const float* p, long n) {
  if (n >= 16) return load(p);
  return n <= 0 ? vfloat{} : (vfloat)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
INLINE vdouble load_part(const double* p, long n) {
  if (n >= 8) return load(p);
  return n <= 0 ? vdouble{} : (vdouble)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
INLINE void store_part(float* p, vfloat v, long n) {
  if (n >= 16)
    store(p, v);
  else if (n > 0)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
}
INLINE void store_part(double* p, vdouble v, long n) {
  if (n >= 8)
    store(p, v);
  else if (n > 0)
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
}
#else
template <class T>
INLINE Vector<T> load_part(const T* p, long n) {
  if (n >= LANES<T>) return load(p);
  Vector<T> v{};
  for (long k = 0; k < n; k++) v[k] = p[k];
  return v;
}
template <class T>
INLINE void store_part(T* p, Vector<T> v, long n) {
  if (n >= LANES<T>) return store(p, v);
  for (long k = 0; k < n; k++) p[k] = v[k];
}
#endif

// a b + c, rounded once where the processor can.
#if defined(__AVX512F__)
INLINE vfloat fma(vfloat a, vfloat b, vfloat c) { return (vfloat)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vdouble fma(vdouble a, vdouble b, vdouble c) { return (vdouble)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
#elif defined(__FMA__)
INLINE vfloat fma(vfloat a, vfloat b, vfloat c) { return (vfloat)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vdouble fma(vdouble a, vdouble b, vdouble c) { return (vdouble)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
#else
INLINE vfloat fma(vfloat a, vfloat b, vfloat c) { return a * b + c; }
INLINE vdouble fma(vdouble a, vdouble b, vdouble c) { return a * b + c; }
#endif

#if defined(__AVX512F__)
INLINE vfloat root(vfloat a) { return (vfloat)_mm512_maskz_sqrt_ps((__mmask16)-1, (__m512)a); }
INLINE vdouble root(vdouble a) { return (vdouble)_mm512_maskz_sqrt_pd((__mmask8)-1, (__m512d)a); }
#elif defined(__AVX2__)
INLINE vfloat root(vfloat a) { return (vfloat)_mm256_sqrt_ps((__m256)a); }
INLINE vdouble root(vdouble a) { return (vdouble)_mm256_sqrt_pd((__m256d)a); }
#else
template <class V>
INLINE V root(V a) {
  for (unsigned k = 0; k < sizeof a / sizeof a[0]; k++) a[k] = __builtin_sqrt(a[k]);
  return a;
}
#endif

#if defined(__AVX512F__)
// An estimate of 14 bits and one Newton step: a third of a division's time.
INLINE vfloat quotient(vfloat a, vfloat b) {
  vfloat r = (vfloat)_mm512_maskz_rcp14_ps((__mmask16)-1, (__m512)b);
  vfloat d = a * r;
  return fma(fma(-b, d, a), r, d);
}
#else
INLINE vfloat quotient(vfloat a, vfloat b) { return a / b; }
#endif
INLINE vdouble quotient(vdouble a, vdouble b) { return a / b; }

// Not a number stays what it is: of such a pair these instructions return the second.
#if defined(__AVX512F__)
INLINE vfloat clamp(vfloat x, vfloat limit) {
  const __mmask16 all = (__mmask16)-1;
  const __m512 low = _mm512_maskz_max_ps(all, (__m512)-limit, (__m512)x);
  return (vfloat)_mm512_maskz_min_ps(all, (__m512)limit, low);
}
INLINE vdouble clamp(vdouble x, vdouble limit) {
  const __mmask8 all = (__mmask8)-1;
  const __m512d low = _mm512_maskz_max_pd(all, (__m512d)-limit, (__m512d)x);
  return (vdouble)_mm512_maskz_min_pd(all, (__m512d)limit, low);
}
#elif defined(__AVX2__)
INLINE vfloat clamp(vfloat x, vfloat limit) {
  return (vfloat)_mm256_min_ps((__m256)limit, _mm256_max_ps((__m256)-limit, (__m256)x));
}
INLINE vdouble clamp(vdouble x, vdouble limit) {
  return (vdouble)_mm256_min_pd((__m256d)limit, _mm256_max_pd((__m256d)-limit, (__m256d)x));
}
#else
template <class V>
INLINE V clamp(V x, V limit) {
  x = x < -limit ? -limit : x;
  return x > limit ? limit : x;
}
#endif

// exp(x) = scale + scale * p
template <class T>
INLINE Vector<T> exp_parts(Vector<T> x, Vector<T>& scale) {
  typedef Numbers<T> N;
  typedef typename N::Bits Bits;
  Vector<T> shifted = fma(x, fill(N::log2e), fill(N::magic));
  Vector<T> n = shifted - fill(N::magic);
  Vector<T> r = fma(n, fill(-N::ln2_high), x);
  r = fma(n, fill(-N::ln2_low), r);
  constexpr int count = sizeof(N::q) / sizeof(T);
  Vector<T> q = fill(N::q[count - 1]);
#pragma GCC unroll 16
  for (int k = count - 2; k >= 0; k--) q = fma(q, r, fill(N::q[k]));
  Bits exponent = ((Bits)shifted << N::mantissa) + ((Bits{} + N::bias) << N::mantissa);
  scale = (Vector<T>)exponent;
  return fma(r * r, q, r);
}

template <class T>
INLINE Vector<T> sigmoid_of(Vector<T> x) {
  Vector<T> scale, one = fill((T)1);
  Vector<T> p = exp_parts<T>(clamp(-x, fill(Numbers<T>::largest)), scale);
  return quotient(one, fma(scale, p, scale) + one);
}

// tanh(x) = m / (m + 2), with m = exp(2 x) - 1
template <class T>
INLINE Vector<T> tangent_of(Vector<T> x) {
  Vector<T> scale, one = fill((T)1);
  Vector<T> p = exp_parts<T>(clamp(x + x, fill(Numbers<T>::saturated)), scale);
  Vector<T> m = fma(scale, p, scale - one);
  return quotient(m, m + fill((T)2));
}

INLINE vfloat sigmoid(vfloat x) { return sigmoid_of<float>(x); }
INLINE vdouble sigmoid(vdouble x) { return sigmoid_of<double>(x); }
INLINE vfloat tangent(vfloat x) { return tangent_of<float>(x); }
INLINE vdouble tangent(vdouble x) { return tangent_of<double>(x); }

// One step of a transposition: exchange the blocks of S lanes beside the diagonal of each 2S x 2S
// square of the rows v.
template <class T, int S>
INLINE void exchange(Vector<T>* v) {
  constexpr int L = LANES<T>;
  typename Numbers<T>::Bits low{}, high{};  // lanes of a, then of b
#pragma GCC unroll 16
  for (int l = 0; l < L; l++) {
    low[l] = l & S ? L + l - S : l;
    high[l] = l & S ? L + l : l + S;
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; i++) {
    if (i & S) continue;
    const Vector<T> a = v[i], b = v[i + S];
#if defined(__clang__)
    for (int l = 0; l < L; l++) {
      v[i][l] = l & S ? b[l - S] : a[l];
      v[i + S][l] = l & S ? b[l] : a[l + S];
    }
#else
    v[i] = __builtin_shuffle(a, b, low);
    v[i + S] = __builtin_shuffle(a, b, high);
#endif
  }
}

// Transpose L rows of L numbers.
template <class T>
NOINLINE void transpose(Vector<T>* v) {
  constexpr int L = LANES<T>;
  if constexpr (L > 1) exchange<T, 1>(v);
  if constexpr (L > 2) exchange<T, 2>(v);
  if constexpr (L > 4) exchange<T, 4>(v);
  if constexpr (L > 8) exchange<T, 8>(v);
}

}  // namespace
