// The time loop, forward and backward through time, for any cell.
//
//   forward:   for a chunk of steps at once gates = W_ih x + b; then, step after step, one product
//              with the packed recurrent weights, whose tiles the cell finishes in the cache
//   backward:  step after step in the other order, the same with the transposed weights; after each
//              chunk the gradients of the weights and of x by one product each
//
// The threads of a call share out the batch, and meet once a chunk, or the hidden units, and meet at
// every step. Each number is computed by one thread in one order: the bits do not depend on it.
#pragma once

#include "call.h"
#include "cells.h"
#include "product.h"

namespace {

// Where things stand in the packed weights, in what is kept, and in the scratch memory.
struct Area {
  char* next;
  template <class T>
  T* take(long count) {
    char* p = next;
    next += upward(count * (long)sizeof(T), 64) * 64;
    return (T*)p;
  }
};

// Vectors of one panel of a product with one gate: four, or fewer to have work for two threads.
INLINE int panel_width(long vectors) {
  return (int)(vectors >= 8 ? TILE_VECTORS : most(1, (vectors + 1) / 2));
}

// A product of one step: init + A W.
template <class T>
struct Operands {
  const T* A;  // rows of K numbers; null is zeros
  long lda, K;
  const T* W;  // packed: panels of one vector of units with all gates or, with one gate, of several
  int gates;
  const T* init;  // one row, or null for zeros
  bool far;       // whether W comes from beyond the second cache
  bool down;      // from the last panel to the first
  const T* soon;  // what is read besides, from far away: `slots` vectors for each of the sums' units
  int slots;
};

// What a cell does with a tile of sums: of these rows, and of `count` vectors of units from `at` on.
template <class T>
using Finish = void (*)(const Step<T>&, long row, int rows, long at, int count, int gates,
                        const T* sums);

template <class T, void (*finish)(const Step<T>&, long row, long at, const T* sum)>
NOINLINE void each(const Step<T>& s, long row, int rows, long at, int count, int gates,
                   const T* sums) {
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < count; j++, sums += gates * LANES<T>)
      finish(s, row + i, at + j * LANES<T>, sums);
}

// Form the sums of these rows and panels, each of `wide` vectors of units, and finish each tile
// while it is in the cache.
template <class T>
NOINLINE void multiply(Finish<T> finish, const Step<T>& s, const Operands<T>& o, Span panels,
                       Span rows, long units, int wide) {
  constexpr int L = LANES<T>;
  constexpr long GROUP = 2 * TILE_SUMS;  // rows whose sums wait for the last block of K
  alignas(64) T sums[GROUP * TILE_VECTORS * L];
  const long K = o.A ? o.K : 0, before = K > BLOCK ? (K - 1) / BLOCK * BLOCK : 0;
  for (long k = panels.first; k < panels.last; k++) {
    const long p = o.down ? panels.first + panels.last - 1 - k : k;
    const long u = p * wide;
    const int count = (int)least(wide, units - u), n = count * o.gates;
    const T* w = o.W + u * o.gates * L * o.K;
    const T* start = o.init ? o.init + u * o.gates * L : nullptr;
    for (long low = rows.first, high; low < rows.last; low = high) {
      high = before ? least(low + GROUP, rows.last) : rows.last;
      if (before)
        panel_product<T>(0, high - low, before, o.A + low * o.lda, o.lda, 1, w, n, start, 0, sums,
                         n * L, n * L, o.far);
      Ahead<T> ahead(o.far, o.down ? w - n * L * o.K : w + n * L * o.K, o.K - before, n, high - low);
      for_rows(low, high, n, [&](long row, int m) {
        const T* const A = o.A ? o.A + row * o.lda + before : w;  // not read where there is none
        for (int i = 0; o.soon && i < m; i++)
          for (long at = (row + i) * units + u, k = 0; k < count * o.slots; k++)
            __builtin_prefetch(o.soon + (at * o.slots + k) * L, 0, 2);
        T* const sum = before ? sums + (row - low) * n * L : sums;
        tile_of<T>(m, n)(K - before, A, o.lda, 1, w + before * n * L, before ? sum : start,
                         before ? n * L : 0, sum, n * L, ahead.part());
        finish(s, row, m, u * L, count, o.gates, sum);
      });
    }
  }
}

// A cell as the loop takes it: its sizes (cells.h), and its products.
template <class T>
struct Cell {
  int x_gates, h_gates, u_gates, slots, da, da_hh;
  bool has_c, carries, keeps_gates;
  Finish<T> forward, backward, forward_u, backward_u;
};

template <class T, template <class> class Of>
constexpr Cell<T> cell_of() {
  typedef Of<T> C;
  Cell<T> cell{C::X_GATES, C::H_GATES, C::U_GATES, C::SLOTS, C::DA, C::DA_HH,
               C::HAS_C, C::CARRIES, C::KEEPS_GATES,
               each<T, C::forward>, each<T, C::backward>, nullptr, nullptr};
  if constexpr (C::U_GATES > 0) {
    cell.forward_u = each<T, C::forward_u>;
    cell.backward_u = each<T, C::backward_u>;
  }
  return cell;
}

template <class T>
struct Recurrence {
  typedef Vector<T> V;
  static constexpr int L = LANES<T>;
  static constexpr long SECOND_CACHE = 1 << 20;       // bytes, on most processors
  static constexpr long CHUNK_ROWS = 512;
  static constexpr long CHUNK_BYTES = 512 * 1024;     // of `gates`, in a forward chunk
  static constexpr long CHUNK_NUMBERS = 2400 * 1024;  // in `Backward`, of a chunk

  const Cell<T>& cell;
  const Call& a;
  const Team team;
  const long steps, B, I, H;
  const long units, padded, inputs;  // vectors of hidden units, their numbers, vectors of inputs
  const int width;                   // of a panel with one gate

  Recurrence(const Cell<T>& cell, const Call& call, Team team)
      : cell(cell), a(call), team(team), steps(call.T), B(call.B), I(call.I), H(call.H),
        units(upward(H, L)), padded(units * L), inputs(upward(I, L)), width(panel_width(units)) {}

  void sync() const {
    if (team.size > 1) meet(team.barrier, team.me);
  }

  // ---- Sharing the work ----

  // Whether these weights are too many for the second caches of so many threads to keep.
  bool far(long K, int gates, long threads) const {
    return K * padded * gates * (long)sizeof(T) >= threads * SECOND_CACHE;
  }

  bool by_units() const {
    if (a.split != BY_WORK) return a.split == BY_UNITS;
    const long count = upward(units, width);
    if (B < 8 * team.size || count >= 4 * team.size) return true;
    return count % team.size == 0 && far(H, cell.h_gates, 1);
  }

  // Threads that have a part of the weights each.
  long owners() const { return by_units() ? team.size : 1; }

  Span rows() const { return by_units() ? Span{0, B} : share(B, team); }

  Span panels(long count) const { return by_units() ? share(count, team) : Span{0, count}; }

  // ---- Packing and copying ----

  // Panels of one vector of units with all gates or, with one gate, of several vectors of units.
  NOINLINE void pack_forward(const T* W, long K, int gates, T* out) const {
    const int wide = gates == 1 ? width : 1;
    const Span mine = share(upward(units, wide), team);
    for (long p = mine.first; p < mine.last; p++) {
      const long u = p * wide;
      const int count = (int)least(wide, units - u), n = count * gates;
      T* panel = out + u * gates * L * K;
      for (int j = 0; j < n; j++) {
        const long unit = (u + j / gates) * L;
        const T* rows = W + (j % gates * H + unit) * K;
        pack_vector(rows, K, H - unit, K, panel + j * L, n);
      }
    }
  }

  // W^T, or W_ih^T: rows in the order of da (unit vector, gate, lane), columns units or inputs.
  NOINLINE void pack_transposed(const T* W, int gates, long columns, int wide, T* out) const {
    auto row = [&](long k) {
      const long u = k / (gates * L), g = k / L % gates, h = u * L + k % L;
      return h < H ? W + (g * H + h) * columns : nullptr;
    };
    const Span mine = share(upward(upward(columns, L), wide), team);
    pack_rows(row, padded * gates, columns, wide, out, mine.first, mine.last);
  }

  // Rows (low * B + r) of x; those past their sequence's end are zeros.
  NOINLINE void pack_x(long low, long rows, T* out) const {
    const T* x = (const T*)a.x + low * B * a.ldx;
    auto row = [&](long r) {
      const bool valid = !a.lengths || low + r / B < a.lengths[r % B];
      return valid ? x + r * a.ldx : nullptr;
    };
    const Span mine = share(upward(inputs, TILE_VECTORS), team);
    pack_rows(row, rows, I, TILE_VECTORS, out, mine.first, mine.last);
  }

  NOINLINE void pack_states(const T* source, long rows, T* out) const {
    const Span mine = share(upward(units, TILE_VECTORS), team);
    auto row = [&](long r) { return source + r * padded; };
    pack_rows(row, rows, padded, TILE_VECTORS, out, mine.first, mine.last);
  }

  void copy_in(const void* from, T* to) const {  // (B, H) to padded rows
    const Span mine = share(B, team);
    for (long r = mine.first; r < mine.last; r++)
      for (long u = 0; u < units; u++) {
        const T* source = (const T*)from + r * H + u * L;
        store(to + r * padded + u * L, from ? load_part(source, H - u * L) : V{});
      }
  }

  void copy_out(const T* from, void* to) const {
    const Span mine = share(B, team);
    for (long r = mine.first; r < mine.last; r++)
      __builtin_memcpy((T*)to + r * H, from + r * padded, sizeof(T) * H);
  }

  void clear(void* bias) const {
    const Span mine = share(cell.x_gates * H, team);
    if (bias) __builtin_memset((T*)bias + mine.first, 0, sizeof(T) * (mine.last - mine.first));
  }

  void clear_sums(T* sums) const {
    const Span own = share(units, team);
    for (int g = 0; g < cell.x_gates; g++)
      __builtin_memset(sums + (g * units + own.first) * I * L, 0,
                       sizeof(T) * (own.last - own.first) * I * L);
  }

  // ---- Gradients of a chunk ----

  // dx = da W_ih for the steps from `low` on; the weights are packed.
  NOINLINE void dx_product(const T* da, int gates, long low, long rows, const T* weights) const {
    const Span mine = share(rows, team);
    const long K = padded * gates;
    T* const dx = (T*)a.dx + low * B * I;
    for (long v = 0; v < inputs; v += TILE_VECTORS) {
      const int n = (int)least(TILE_VECTORS, inputs - v);
      panel_product<T>(mine.first, mine.last, K, da, K, 1, weights + v * L * K, n, nullptr, 0,
                       dx + v * L, I, I - v * L);
    }
  }

  // Of the own units: da as [gate][unit vector][step and sequence][lane], its sums added to dbias.
  NOINLINE void gather_columns(const T* da, int gates, long rows, T* columns, void* dbias_ih,
                               void* dbias_hh) const {
    const Span own = share(units, team);
    const long ld = padded * gates;
    for (int g = 0; g < gates; g++)
      for (long u = own.first; u < own.last; u++) {
        const T* from = da + (u * gates + g) * L;
        T* to = columns + (g * units + u) * rows * L;
        V sum{};
        for (long r = 0; r < rows; r++) {
          const V v = load(from + r * ld);
          store(to + r * L, v);
          sum += v;
        }
        void* const both[] = {dbias_ih, dbias_hh};
        for (void* dbias : both) {
          if (!dbias) continue;
          T* out = (T*)dbias + g * H + u * L;
          store_part(out, load_part(out, H - u * L) + sum, H - u * L);
        }
      }
  }

  // dW_ih^T += onehot^T da, for the own units, as [gate][unit vector][index][lane].
  NOINLINE void add_at_indices(const T* columns, int gates, long low, long rows, T* sums) const {
    const Span own = share(units, team);
    const int64_t* const index = a.indices + low * B;
    for (int g = 0; g < gates; g++)
      for (long u = own.first; u < own.last; u++) {
        const T* const da = columns + (g * units + u) * rows * L;
        T* const table = sums + (g * units + u) * I * L;
        for (long r = 0; r < rows; r++) {
          T* const at = table + index[r] * L;
          store(at, load(at) + load(da + r * L));
        }
      }
  }

  // dW_ih from these sums.
  NOINLINE void turn_sums(const T* sums, int gates) const {
    const Span own = share(units, team);
    for (int g = 0; g < gates; g++)
      for (long u = own.first; u < own.last; u++) {
        const T* const from = sums + (g * units + u) * I * L;
        T* const to = (T*)a.dweight_ih + (g * H + u * L) * I;
        for (long k = 0; k < I; k += L) {
          V block[L];
          for (long l = 0; l < L; l++) block[l] = k + l < I ? load(from + (k + l) * L) : V{};
          transpose<T>(block);
          for (long l = 0; l < least(L, H - u * L); l++) store_part(to + l * I + k, block[l], I - k);
        }
      }
  }

  // Rows of the gates [first, last) of da^T operand, for the own units; the operand is packed. Added
  // to dW, unless this is the first chunk.
  NOINLINE void gradient(const T* columns, int first, int last, long rows, const T* operand,
                         long width, void* dW, bool add) const {
    const Span own = share(units, team);
    const bool distant = far(width, last - first, 1);
    for (long v = 0; v < upward(width, L); v += TILE_VECTORS) {
      const int n = (int)least(TILE_VECTORS, upward(width, L) - v);
      for (int g = first; g < last; g++)
        for (long u = own.first; u < own.last; u++) {
          T* out = (T*)dW + (g * H + u * L) * width + v * L;
          for (long l = L; distant && l < 2 * L; l++)  // of the next unit vector
            for (int j = 0; j < n; j++) __builtin_prefetch(out + l * width + j * L, 1, 2);
          panel_product<T>(0, least(L, H - u * L), rows, columns + (g * units + u) * rows * L, 1, L,
                           operand + v * L * rows, n, add ? out : nullptr, width, out, width,
                           width - v * L);
        }
    }
  }

  // ---- Memory ----

  struct Packed {
    T *bias, *bias_hh, *w_ih, *w_hh, *w_u;
    long bytes;
  };

  Packed packed() const {
    Area area{(char*)a.packed};
    Packed p;
    p.bias = area.take<T>(padded * cell.x_gates);
    p.bias_hh = area.take<T>(padded * cell.h_gates);
    p.w_ih = area.take<T>(padded * cell.x_gates * I);
    p.w_hh = area.take<T>(padded * cell.h_gates * H);
    p.w_u = area.take<T>(padded * cell.u_gates * H);
    p.bytes = area.next - (char*)a.packed;
    return p;
  }

  struct Kept {
    T *gates, *h, *c, *u;
    long bytes;
  };

  // States stand between the steps: row t before the step t, row t + 1 after it; in the reverse
  // direction row t + 1 before and row t after.
  Kept kept(void* at, long states, long count) const {
    Area area{(char*)at};
    Kept k;
    k.gates = area.take<T>(count * B * padded * cell.slots);
    k.h = area.take<T>(states * B * padded);
    k.c = area.take<T>(cell.has_c ? states * B * padded : 0);
    k.u = area.take<T>(cell.u_gates ? count * B * padded : 0);
    k.bytes = area.next - (char*)at;
    return k;
  }

  long forward_steps() const {
    const long rows = CHUNK_BYTES / (long)(padded * cell.slots * sizeof(T));
    return least(steps, most(1, least(rows, CHUNK_ROWS) / B));
  }
  long backward_steps() const {  // nearly the same for every chunk
    const long row = padded * (cell.da + cell.da_hh + most(cell.da, cell.da_hh) + 1) + inputs * L;
    const long rows = least(CHUNK_ROWS, CHUNK_NUMBERS / row);
    return upward(steps, upward(steps, most(1, rows / B)));
  }

  long packed_bytes() const { return packed().bytes; }

  long kept_bytes() const {
    return kept(nullptr, steps + 1, cell.keeps_gates ? steps : 0).bytes;
  }

  long forward_bytes() const {
    if (!a.kept) return kept(nullptr, 2, forward_steps()).bytes;
    return cell.keeps_gates ? 0 : (long)sizeof(T) * forward_steps() * B * padded * cell.slots;
  }

  struct Backward {
    T *w_hh, *w_u, *w_ih, *da, *da_hh, *da_u, *carry, *dc, *columns, *x, *h;
    long bytes;
  };

  Backward backward_area() const {
    Area area{(char*)a.scratch};
    Backward b;
    const long rows = backward_steps() * B;
    b.w_hh = area.take<T>(padded * cell.h_gates * padded);
    b.w_u = area.take<T>(padded * cell.u_gates * padded);
    b.w_ih = area.take<T>(padded * cell.x_gates * inputs * L);
    b.da = area.take<T>((rows + (cell.da_hh ? 0 : B)) * padded * cell.da);
    b.da_hh = area.take<T>(cell.da_hh ? (rows + B) * padded * cell.da_hh : 0);
    b.da_u = area.take<T>(cell.u_gates ? B * padded : 0);
    b.carry = area.take<T>(B * padded);
    b.dc = area.take<T>(cell.has_c ? B * padded : 0);
    b.columns = area.take<T>(rows * padded * most(cell.da, cell.da_hh));
    b.x = area.take<T>(rows * inputs * L);
    b.h = area.take<T>(rows * padded);
    b.bytes = area.next - (char*)a.scratch;
    return b;
  }

  // ---- Products of a step ----

  // Of own rows and panels.
  void step_product(Finish<T> finish, const Step<T>& s, const T* A, long lda, long K,
                    const T* W, int gates, const T* init) const {
    const int wide = gates == 1 ? width : 1;
    const bool distant = far(K, gates, owners());
    const T* soon = cell.keeps_gates && (a.kept || distant) ? s.gates : nullptr;
    // A step of few rows does little but read the panels. What the second cache still has of them is
    // needed first in the next step, which therefore takes them in the other order.
    const Span own = rows();
    const bool few = own.last - own.first <= tallest(wide * gates);
    const bool down = distant && few && !cell.u_gates && s.t % 2;
    multiply<T>(finish, s, {A, lda, K, W, gates, init, distant, down, soon, cell.slots},
                panels(upward(units, wide)), own, units, wide);
  }

  // With transposed weights: their columns are units, one panel beside the other.
  void step_product_back(Finish<T> finish, const Step<T>& s, const T* A, const T* W,
                         int gates) const {
    step_product(finish, s, A, padded * gates, padded * gates, W, 1, nullptr);
  }

  // ---- Forward ----

  void pack() const {
    const Packed p = packed();
    const T *w_ih = (const T*)a.weight_ih, *w_hh = (const T*)a.weight_hh;
    if (team.me == 0) pack_bias(p);
    pack_forward(w_ih, I, cell.x_gates, p.w_ih);
    pack_forward(w_hh, H, cell.h_gates, p.w_hh);
    if (cell.u_gates) pack_forward(w_hh + 2 * H * H, H, 1, p.w_u);
  }

  void pack_bias(const Packed& p) const {
    const T *b_ih = (const T*)a.bias_ih, *b_hh = (const T*)a.bias_hh;
    const bool apart = cell.h_gates == 3;  // b_hn stands inside the reset product
    __builtin_memset(p.bias, 0, sizeof(T) * padded * cell.x_gates);
    __builtin_memset(p.bias_hh, 0, sizeof(T) * padded * cell.h_gates);
    if (!b_ih) return;
    for (long h = 0; h < H; h++)
      for (int g = 0; g < cell.x_gates; g++) {
        const long out = (h / L * cell.x_gates + g) * L + h % L, at = g * H + h;
        const bool inside = apart && g == 2;
        p.bias[out] = b_ih[at] + (inside ? 0 : b_hh[at]);
        if (inside) p.bias_hh[out] = b_hh[at];
      }
  }

  void forward() const {
    const Packed p = packed();
    const bool keep = a.kept != nullptr;
    const long chunk = forward_steps(), state = B * padded;
    Kept k = keep ? kept(a.kept, steps + 1, cell.keeps_gates ? steps : 0)
                  : kept(a.scratch, 2, chunk);
    if (keep && !cell.keeps_gates) k.gates = (T*)a.scratch;
    const bool keep_gates = keep && cell.keeps_gates;
    auto h_at = [&](long t) { return k.h + (keep ? t : t & 1) * state; };
    auto c_at = [&](long t) { return cell.has_c ? k.c + (keep ? t : 0) * state : nullptr; };
    const long begin = a.reverse ? steps : 0, end = a.reverse ? 0 : steps;
    copy_in(a.h0, h_at(begin));
    if (cell.has_c) copy_in(a.c0, c_at(begin));
    sync();

    Step<T> s{};
    s.H = H, s.padded = padded, s.relu = a.cell == ELMAN_RELU, s.lengths = a.lengths;
    s.keep = keep_gates, s.ldy = a.ldy;
    for (long done = 0; done < steps; done += chunk) {
      const long count = least(chunk, steps - done);
      const long low = a.reverse ? steps - done - count : done;
      T* gates = k.gates + (keep_gates ? low * B * padded * cell.slots : 0);
      input_product(p, low, count, gates);
      sync();
      for (long i = 0; i < count; i++) {
        const long row = a.reverse ? count - 1 - i : i, t = low + row;
        s.t = t;
        s.gates = gates + row * B * padded * cell.slots;
        s.h = h_at(t + a.reverse), s.h_new = h_at(t + !a.reverse);
        s.c = c_at(t + a.reverse), s.c_new = c_at(t + !a.reverse);
        if (cell.u_gates) s.u = k.u + (keep_gates ? t : row) * state;
        s.y = (T*)a.y + t * B * a.ldy;
        const bool from_zero = done + i == 0 && !a.h0;
        step_product(cell.forward, s, from_zero ? nullptr : s.h, padded, H, p.w_hh, cell.h_gates,
                     p.bias_hh);
        if (cell.u_gates) {
          if (by_units()) sync();
          step_product(cell.forward_u, s, s.u, padded, H, p.w_u, 1, nullptr);
        }
        if (by_units()) sync();
      }
      if (!by_units()) sync();
    }
    copy_out(h_at(end), a.h_last);
    if (cell.has_c) copy_out(c_at(end), a.c_last);
  }

  // gates = W_ih x + b for the steps [low, low + count); of one-hot rows it is a column of W_ih
  void input_product(const Packed& p, long low, long count, T* gates) const {
    const int wide = cell.x_gates == 1 ? width : 1;
    const long all = count * B, ld = padded * cell.slots;
    const Span mine = panels(upward(units, wide));
    const Span part = by_units() ? Span{0, all} : share(all, team);
    const T* x = (const T*)a.x + low * B * a.ldx;
    for (long q = mine.first; q < mine.last; q++) {
      const long u = q * wide;
      const int n = (int)least(wide, units - u) * cell.x_gates;
      const T *const panel = p.w_ih + u * cell.x_gates * L * I, *bias = p.bias + u * cell.x_gates * L;
      T* const out = gates + u * cell.slots * L;
      if (!a.indices) {
        panel_product<T>(part.first, part.last, I, x, a.ldx, 1, panel, n, bias, 0, out, ld, n * L,
                         far(I, cell.x_gates, owners()));
        continue;
      }
      for (long r = part.first; r < part.last; r++)
        for (long j = 0, k = a.indices[low * B + r]; j < n; j++)
          store(out + r * ld + j * L, load(panel + (k * n + j) * L) + load(bias + j * L));
    }
  }

  // ---- Backward ----

  void backward() const {
    const Backward b = backward_area();
    const Kept k = kept(a.kept, steps + 1, cell.keeps_gates ? steps : 0);
    const long chunk = backward_steps(), state = B * padded;
    const int recurrent_gates = cell.da_hh ? cell.da_hh : cell.da;
    T* const recurrent = cell.da_hh ? b.da_hh : b.da;  // with a row for the chunk before
    const long ld = padded * recurrent_gates, step = B * ld;
    T* const da = cell.da_hh ? b.da : b.da + (a.reverse ? step : 0);
    T* const da_hh = recurrent + (a.reverse ? step : 0);
    const T* const w_hh = (const T*)a.weight_hh;

    pack_transposed(w_hh, cell.h_gates, H, width, b.w_hh);
    if (cell.u_gates) pack_transposed(w_hh + 2 * H * H, 1, H, width, b.w_u);
    if (a.indices)
      clear_sums(b.w_ih);
    else
      pack_transposed((const T*)a.weight_ih, cell.x_gates, I, TILE_VECTORS, b.w_ih);
    clear(a.dbias_ih);
    clear(a.dbias_hh);
    copy_in(a.dh_last, b.carry);
    if (cell.has_c) copy_in(a.dc_last, b.dc);
    sync();

    const bool carries = cell.carries || a.lengths;
    Step<T> s{};
    s.H = H, s.padded = padded, s.relu = a.cell == ELMAN_RELU, s.lengths = a.lengths;
    s.lddy = a.lddy, s.dc = b.dc, s.da_u = b.da_u, s.carry_new = carries ? b.carry : nullptr;
    const T* after = nullptr;  // da_hh of the step that was handled before
    for (long done = 0; done < steps; done += chunk) {
      const long count = least(chunk, steps - done);
      const long low = a.reverse ? done : steps - done - count;
      for (long i = 0; i < count; i++) {
        const long row = a.reverse ? i : count - 1 - i, t = low + row;
        s.t = t;
        s.gates = k.gates + t * B * padded * cell.slots;
        s.h = k.h + (t + a.reverse) * state, s.h_new = k.h + (t + !a.reverse) * state;
        s.c = k.c + (t + a.reverse) * state, s.c_new = k.c + (t + !a.reverse) * state;
        s.dy = (const T*)a.dy + t * B * a.lddy;
        s.da = da + row * B * padded * cell.da, s.da_hh = da_hh + row * step;
        s.carry = carries || (done + i == 0 && a.dh_last) ? b.carry : nullptr;
        step_product_back(cell.backward, s, after, b.w_hh, recurrent_gates);
        if (cell.u_gates) {
          if (by_units()) sync();
          step_product_back(cell.backward_u, s, s.da_u, b.w_u, 1);
        }
        if (by_units()) sync();
        after = s.da_hh;
      }
      sync();
      weight_gradients(b, k, low, count, da, da_hh, done > 0);
      sync();
      if (done + count < steps) {  // its last step goes to the row beside the next chunk
        const long next = least(chunk, steps - done - count);
        T* edge = a.reverse ? recurrent : recurrent + next * step;
        const Span mine = share(B, team);
        __builtin_memmove(edge + mine.first * ld, after + mine.first * ld,
                          sizeof(T) * (mine.last - mine.first) * ld);
        sync();
        after = edge;
      }
    }
    if (a.indices) turn_sums(b.w_ih, cell.x_gates);
    // The gradient with respect to the initial state.
    s.carry = carries ? b.carry : nullptr, s.dh0 = (T*)a.dh0;
    step_product_back(each<T, put_dh0<T>>, s, after, b.w_hh, recurrent_gates);
    if (cell.has_c) copy_out(b.dc, a.dc0);
  }

  // Form a chunk's part of the gradients of the weights, and write its dx. `add`: it is not the first.
  void weight_gradients(const Backward& b, const Kept& k, long low, long count, const T* da,
                        const T* da_hh, bool add) const {
    const long rows = count * B;
    pack_states(k.h + (low + a.reverse) * B * padded, rows, b.h);
    if (!a.indices) {
      pack_x(low, rows, b.x);
      dx_product(da, cell.da, low, rows, b.w_ih);
    }
    sync();
    const bool apart = cell.da_hh && !cell.u_gates;  // the two products' da differ
    gather_columns(da, cell.da, rows, b.columns, a.dbias_ih, apart ? nullptr : a.dbias_hh);
    if (a.indices)
      add_at_indices(b.columns, cell.x_gates, low, rows, b.w_ih);
    else
      gradient(b.columns, 0, cell.x_gates, rows, b.x, I, a.dweight_ih, add);
    if (apart) gather_columns(da_hh, cell.da_hh, rows, b.columns, nullptr, a.dbias_hh);
    gradient(b.columns, 0, cell.h_gates, rows, b.h, H, a.dweight_hh, add);
    if (cell.u_gates) {
      sync();
      pack_states(k.u + low * B * padded, rows, b.h);
      sync();
      gradient(b.columns, cell.h_gates, cell.da, rows, b.h, H, a.dweight_hh, add);
    }
  }
};

}  // namespace
