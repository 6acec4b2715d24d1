// For AVX2 and FMA.
#define RNN_XP_VECTOR_BYTES 32
#include "kernels.h"
RNN_XP_KERNELS(avx2)
