// The numbers of the arrays, of BITS bits, and those that are computed with. Of 16 bits they are
// float16 or, where BRAIN is defined, bfloat16: the upper half of a float32.

#if BITS == 64
typedef double stored;
typedef double number;
#elif BITS == 32
typedef float stored;
typedef float number;
#else
typedef unsigned short stored;
typedef float number;
#endif

#ifdef BRAIN
union Whole {
  unsigned bits;
  number value;
};

__device__ __forceinline__ number load(const stored* a) {
  Whole whole;
  whole.bits = (unsigned)*a << 16;
  return whole.value;
}

// To the nearest, and of two to the even one; NaN stays NaN.
__device__ __forceinline__ void store(stored* a, number value) {
  Whole whole;
  whole.value = value;
  const unsigned even = whole.bits >> 16 & 1;
  *a = (stored)(value != value ? 0x7fff : (whole.bits + 0x7fff + even) >> 16);
}
#elif BITS == 16
__device__ __forceinline__ number load(const stored* a) {
  number value;
#ifdef __CUDACC__
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(*a));
#else
  value = from_half(*a);
#endif
  return value;
}

__device__ __forceinline__ void store(stored* a, number value) {
#ifdef __CUDACC__
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(*a) : "f"(value));
#else
  *a = to_half(value);
#endif
}
#else
__device__ __forceinline__ number load(const stored* a) { return *a; }
__device__ __forceinline__ void store(stored* a, number value) { *a = value; }
#endif

__device__ __forceinline__ float tangent(float a) { return tanhf(a); }
__device__ __forceinline__ double tangent(double a) { return tanh(a); }
__device__ __forceinline__ number sigmoid(number a) {
  return number(0.5) + number(0.5) * tangent(number(0.5) * a);
}
__device__ __forceinline__ number ones(number) { return 1; }
