// Runs the kernels of CELL once, on arrays of exactly their sizes, for the sanitizers. Its products
// have GATES gates each; numbers have BITS bits.
// Arguments: blocks, units, tile and shared bytes of the plan, forward and then backward; the order.
#include <stdio.h>
#include <stdlib.h>

#include "grid.h"
#include "persistent.cu"

#define JOINED(cell, rest) cell##rest
#define NAMED(cell, rest) JOINED(cell, rest)

static std::vector<stored> values(long long count) {
  stored quarter;
  store(&quarter, 0.25f);
  return std::vector<stored>(count, quarter);
}

int main(int, char** argv) {
  long long plan[9];
  for (int k = 0; k < 9; k++) plan[k] = atoll(argv[k + 1]);
  const auto order = (unsigned)plan[8];
  constexpr int of[] = {GATES}, products = sizeof of / sizeof *of;
  constexpr int all = products == 1 ? of[0] : of[0] + of[1];
  const long long hidden = 38, batch = 3, steps = 2, size = batch * hidden;
  auto weights = values(all * hidden * hidden), bias = values(all * hidden);
  auto gates = values(steps * size * all), y = values(steps * size);
  auto h = values((steps + 1) * size), c = values(all == 4 ? (steps + 1) * size : 0);
  auto extra = values(all == 3 ? steps * size : 0), da_hh = values(steps * size * of[0]);
  auto da_u = values(products == 2 ? steps * size : 0);
  auto dh = values(size), dc = values(all == 4 ? size : 0);
  unsigned counters[2] = {};
  const bool finished =
      grid::launch(plan[0], 64, plan[3], order, [&] {
        NAMED(CELL, _all_forward)(hidden, batch, steps, plan[1], plan[2], 0, 1, counters,
                                  weights.data(), nullptr, bias.data(), bias.data(), gates.data(),
                                  h.data(), c.data(), extra.data(), y.data());
      }) &&
      grid::launch(plan[4], 64, plan[7], order, [&] {
        NAMED(CELL, _all_backward)(hidden, batch, steps, plan[5], plan[6], 0, counters + 1,
                                   weights.data(), nullptr, y.data(), gates.data(), h.data(),
                                   c.data(), extra.data(), dh.data(), dc.data(),
                                   all == 3 ? da_hh.data() : gates.data(), da_u.data());
      });
  puts(finished ? "finished" : "deadlock");
}
