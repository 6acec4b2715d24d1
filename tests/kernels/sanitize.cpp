// Drives the kernels without Python, for the sanitizers: odd sizes, every buffer exactly as large as
// it must be, every instruction set that this processor has, one to three threads, both ways to share
// the work. Prints what differs between the numbers of threads; `.ci/sanitize` builds and runs it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "pool.h"

namespace {

unsigned state = 1;

double drawn() {
  state = state * 1664525u + 1013904223u;
  return (state >> 8) / 16777216.0 - 0.5;
}

// Memory of exactly so many numbers: the sanitizer sees the first one beyond.
struct Buffer {
  Buffer(int64_t count, bool is_double, bool fill = true)
      : bytes(count * (is_double ? 8 : 4)), data((char*)malloc(bytes ? bytes : 1)) {
    for (int64_t k = 0; k < count; k++) {
      const double value = fill ? drawn() : 7.0;
      if (is_double)
        ((double*)data)[k] = value;
      else
        ((float*)data)[k] = (float)value;
    }
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { free(data); }
  int64_t bytes;
  char* data;
};

struct Aligned {
  explicit Aligned(int64_t bytes) : data(nullptr) {
    if (bytes && posix_memalign(&data, 64, (size_t)bytes)) abort();
  }
  ~Aligned() { free(data); }
  void* data;
};

int call_number = 0;  // every other call is a brief job

template <class W>
void team(void (*job)(const W&, Team), const W& work, int size) {
  struct Task {
    void (*job)(const W&, Team);
    const W* work;
  };
  const Task task = {job, &work};
  run_team([](const void* t, Team team) { ((const Task*)t)->job(*((const Task*)t)->work, team); },
           &task, size, call_number++ % 2);
}

void append(std::vector<char>& all, const Buffer& b) {
  all.insert(all.end(), b.data, b.data + b.bytes);
}

std::vector<char> once(const Kernels& kernels, int cell, bool dbl, int64_t T, int64_t B, int64_t I,
                       int64_t H, bool reverse, bool ragged, bool whole, bool one_hot, int split,
                       int threads) {
  state = (unsigned)(cell * 31 + T * 7 + B * 5 + I * 3 + H);
  const int64_t rows = (cell == LSTM ? 4 : cell >= GRU ? 3 : 1) * H;
  Call call{};
  call.cell = cell, call.is_double = dbl, call.split = split, call.reverse = reverse;
  call.T = T, call.B = B, call.I = I, call.H = H;
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < B; b++) lengths.push_back((b * 5 + 1) % (T + 1));
  if (ragged) call.lengths = lengths.data();
  std::vector<int64_t> indices;
  for (int64_t k = 0; k < T * B; k++) indices.push_back(k * k % I);
  Buffer w_ih(rows * I, dbl), w_hh(rows * H, dbl), b_ih(rows, dbl), b_hh(rows, dbl);
  const int64_t ldx = I + (ragged ? 3 : 0), ldh = H + (ragged ? 1 : 0);  // rows side by side, or not
  Buffer x(T * B * ldx, dbl), dy(T * B * ldh, dbl), h0(B * H, dbl), c0(B * H, dbl);
  Buffer dh(B * H, dbl), dc(B * H, dbl), y(T * B * ldh, dbl, false), h(B * H, dbl, false);
  Buffer c(B * H, dbl, false), dx(T * B * I, dbl, false), dw_ih(rows * I, dbl, false);
  Buffer dw_hh(rows * H, dbl, false), db_ih(rows, dbl, false), db_hh(rows, dbl, false);
  Buffer dh0(B * H, dbl, false), dc0(B * H, dbl, false);
  call.weight_ih = w_ih.data, call.weight_hh = w_hh.data;
  if (whole) call.bias_ih = b_ih.data, call.bias_hh = b_hh.data;
  call.x = x.data, call.ldx = ldx, call.y = y.data, call.ldy = ldh, call.dy = dy.data;
  call.lddy = ldh;
  if (whole) call.h0 = h0.data, call.dh_last = dh.data;
  if (one_hot) call.x = nullptr, call.indices = indices.data();
  if (whole && cell == LSTM) call.c0 = c0.data, call.dc_last = dc.data;
  call.h_last = h.data, call.c_last = c.data, call.dx = one_hot ? nullptr : dx.data;
  call.dweight_ih = dw_ih.data, call.dweight_hh = dw_hh.data;
  if (whole) call.dbias_ih = db_ih.data, call.dbias_hh = db_hh.data;
  call.dh0 = dh0.data, call.dc0 = dc0.data;

  std::vector<char> all;
  Aligned packed(kernels.packed_bytes(call)), kept(kernels.kept_bytes(call));
  call.packed = packed.data;
  team(kernels.pack, call, threads);
  for (const bool keep : {false, true}) {
    call.kept = keep ? kept.data : nullptr;
    Aligned scratch(kernels.scratch_bytes(call, false));
    call.scratch = scratch.data;
    team(kernels.forward, call, threads);
    append(all, y), append(all, h), append(all, c);
  }
  Aligned scratch(kernels.scratch_bytes(call, true));
  call.scratch = scratch.data;
  team(kernels.backward, call, threads);
  for (const Buffer* b : {&dx, &dw_ih, &dw_hh, &db_ih, &db_hh, &dh0, &dc0}) append(all, *b);
  return all;
}

std::vector<char> product(const Kernels& kernels, bool dbl, int64_t M, int64_t N, int64_t K,
                          bool turned, int threads) {
  state = (unsigned)(M * 7 + N * 3 + K);
  Buffer a(M * K, dbl), b(K * N, dbl), bias(N, dbl), out(M * N, dbl, false);
  Product p{};
  p.is_double = dbl, p.M = M, p.N = N, p.K = K, p.A = a.data, p.B = b.data, p.C = out.data;
  p.a_row = turned ? 1 : K, p.a_k = turned ? M : 1, p.b_k = turned ? 1 : N, p.b_n = turned ? K : 1;
  if (turned) p.bias = bias.data;
  Aligned scratch(kernels.product_bytes(p));
  p.scratch = scratch.data;
  team(kernels.product, p, threads);
  return std::vector<char>(out.data, out.data + out.bytes);
}

std::vector<char> adam(const Kernels& kernels, bool dbl, int64_t count, int threads) {
  state = (unsigned)count;
  Buffer p(count, dbl), g(count, dbl), m(count, dbl), v(count, dbl);
  Buffer p_new(count, dbl, false), m_new(count, dbl, false), v_new(count, dbl, false);
  Update u{};
  u.is_double = dbl, u.count = count, u.beta1 = 0.9, u.beta2 = 0.99, u.eps = 1, u.scale = 0.1;
  u.p = p.data, u.g = g.data, u.m = m.data, u.v = v.data;
  u.p_new = p_new.data, u.m_new = m_new.data, u.v_new = v_new.data;
  team(kernels.adam, u, threads);
  std::vector<char> all;
  append(all, p_new), append(all, m_new), append(all, v_new);
  return all;
}

}  // namespace

int main() {
  std::vector<const Kernels*> sets = {&portable_kernels};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) sets.push_back(&avx2_kernels);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    sets.push_back(&avx512_kernels);
#endif
  const int64_t shapes[][4] = {{4, 1, 3, 5}, {5, 3, 4, 50}, {34, 17, 19, 33},
                               {2, 49, 3, 260}};  // the last: sums of more than one block
  int runs = 0, wrong = 0;
  for (const Kernels* kernels : sets) {
    for (const auto& s : shapes)
      for (int cell = 0; cell < CELL_KINDS; cell++)
        for (int options = 0; options < 32; options++) {
          if (s[3] == 260 && (cell != LSTM || options % 15)) continue;
          // Of the largest half of the options, among which any three occur in all their ways.
          if (s[0] == 34 && __builtin_parity(options % 16)) continue;
          if (options >= 16 && options % 16 != 6 && options % 16 != 9) continue;
          const bool dbl = options & 1, reverse = options & 2, ragged = options & 4;
          const bool whole = options & 8, one_hot = options & 16;
          std::vector<char> first;
          const int most = dbl || reverse ? 2 : 3;  // three wait long for two cores
          for (int threads = 1; threads <= most; threads++)
            for (int split = threads == 1 ? BY_UNITS : BY_BATCH; split <= BY_UNITS; split++) {
              const auto made = once(*kernels, cell, dbl, s[0], s[1], s[2], s[3], reverse, ragged,
                                     whole, one_hot, split, threads);
              if (first.empty()) first = made;
              runs++;
              if (made == first) continue;
              wrong++;
              printf("%s cell %d options %d threads %d split %d: other bits\n", kernels->name, cell,
                     options, threads, split);
            }
        }
    for (const bool turned : {false, true})
      for (const auto& s : shapes) {
        const auto alone = product(*kernels, turned, s[1], s[2], s[3], turned, 1);
        runs++;
        if (product(*kernels, turned, s[1], s[2], s[3], turned, 3) != alone) {
          wrong++;
          printf("%s product: other bits\n", kernels->name);
        }
        const int64_t count = s[1] * s[3];
        runs++;
        if (adam(*kernels, turned, count, 1) == adam(*kernels, turned, count, 3)) continue;
        wrong++;
        printf("%s adam: other bits\n", kernels->name);
      }
  }
  printf("%d runs, %zu instruction sets, %d wrong\n", runs, sets.size(), wrong);
  fflush(stdout);
  _Exit(wrong ? 1 : 0);  // the workers never end
}
