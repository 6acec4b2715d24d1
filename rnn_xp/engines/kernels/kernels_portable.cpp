// For any processor: 16 bytes a vector (SSE2, NEON, …).
#define RNN_XP_VECTOR_BYTES 16
#include "kernels.h"
RNN_XP_KERNELS(portable)
