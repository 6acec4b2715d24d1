// The numbers of the arrays, of BITS bits, and those that are computed with.

#if BITS == 64
typedef double stored;
typedef double number;
#elif BITS == 32
typedef float stored;
typedef float number;
#else
typedef unsigned short stored;  // float16; what is computed with it is float32
typedef float number;
#endif

#if BITS == 16
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
