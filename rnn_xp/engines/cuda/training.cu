// What a training step does around its layers, an array a launch: see training.py.
//
// NVRTC compiles this at run time, so no file is included: `fused.source` puts the text of
// numbers.h where its name stands. A thread takes each number that is so many after its last one.

#include "numbers.h"

__device__ __forceinline__ float root(float a) { return sqrtf(a); }
__device__ __forceinline__ double root(double a) { return sqrt(a); }

__device__ __forceinline__ float power(float a) { return expf(a); }
__device__ __forceinline__ double power(double a) { return exp(a); }
__device__ __forceinline__ float logarithm(float a) { return logf(a); }
__device__ __forceinline__ double logarithm(double a) { return log(a); }

#define EACH(count)                                                                               \
  const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;                      \
  for (long long k = thread; k < count; k += (long long)gridDim.x * blockDim.x)

// keep p + scale m' / (sqrt(v') + eps), with m' = beta1 m + (1 - beta1) g and
// v' = beta2 v + (1 - beta2) g^2.
extern "C" __global__ void adam(long long count, double beta1, double beta2, double eps,
                                double scale, double keep, const stored* p, const stored* g,
                                const stored* m, const stored* v, stored* p_new, stored* m_new,
                                stored* v_new) {
  const number of_m = beta1, of_g = 1 - beta1, of_v = beta2, of_square = 1 - beta2;
  const number least = eps, rate = scale, stays = keep;
  EACH(count) {
    const number grad = load(g + k);
    const number first = of_m * load(m + k) + of_g * grad;
    const number second = of_v * load(v + k) + of_square * (grad * grad);
    store(m_new + k, first);
    store(v_new + k, second);
    store(p_new + k, stays * load(p + k) + rate * first / (root(second) + least));
  }
}

// The sum of the squares of each thread's numbers. No square of 32 bits leaves a double's range.
extern "C" __global__ void squares(long long count, const stored* a, double* sums) {
  double sum = 0;
  EACH(count) {
    const double value = load(a + k);
    sum += value * value;
  }
  sums[thread] = sum;
}

// The root of a sum of squares, and the factor that brings such a norm down to `most`.
extern "C" __global__ void limit(double most, const double* sum, stored* norm, double* factor) {
  const double whole = sqrt(*sum), ratio = most / (whole + 1e-6);
  store(norm, whole);
  *factor = ratio > 1 ? 1 : ratio;  // NaN stays NaN
}

extern "C" __global__ void scaled(long long count, const double* factor, const stored* a,
                                  stored* made) {
  const number by = *factor;
  EACH(count) store(made + k, by * load(a + k));
}

// mean + part (p - mean)
extern "C" __global__ void moved(long long count, double part, const stored* mean, const stored* p,
                                 stored* made) {
  const number some = part;
  EACH(count) {
    const number old = load(mean + k);
    store(made + k, old + some * (load(p + k) - old));
  }
}

// Rows of `classes` numbers: e to the power of each less the largest one of its row.
extern "C" __global__ void powers(long long count, long long classes, const stored* a,
                                  const stored* top, stored* made) {
  EACH(count) store(made + k, power(load(a + k) - load(top + k / classes)));
}

// Of such powers, whose sum in a row is `sums`: the gradient p - e_target of the cross-entropy, and
// each row's own term of it. Rows count as `weights` says, of each row or of all alike.
extern "C" __global__ void entropy(long long count, long long classes, long long each,
                                   const stored* a, const stored* top, const stored* sums,
                                   const long long* targets, const stored* weights, stored* p,
                                   stored* terms) {
  EACH(count) {
    const long long row = k / classes;
    const number weight = load(weights + (each ? row : 0)), sum = load(sums + row);
    number gradient = weight / sum * load(p + k);
    if (k - row * classes == targets[row]) {
      gradient -= weight;
      store(terms + row, weight * (logarithm(sum) - (load(a + k) - load(top + row))));
    }
    store(p + k, gradient);
  }
}
