// For AVX-512 F, DQ, BW and VL.
#define RNN_XP_VECTOR_BYTES 64
#include "kernels.h"
RNN_XP_KERNELS(avx512)
