// Runs the kernels of the LSTM once, on arrays of exactly their sizes, for the sanitizers.
// Arguments: blocks, units, tile and shared bytes of the plan, forward and then backward; the order.
#include <stdio.h>
#include <stdlib.h>

#include "grid.h"
#include "persistent.cu"

static std::vector<float> values(long long count) { return std::vector<float>(count, 0.25f); }

int main(int, char** argv) {
  long long plan[9];
  for (int k = 0; k < 9; k++) plan[k] = atoll(argv[k + 1]);
  const auto order = (unsigned)plan[8];
  const long long hidden = 37, batch = 3, steps = 2, size = batch * hidden;
  auto weights = values(4 * hidden * hidden), bias = values(4 * hidden);
  auto gates = values(steps * size * 4), y = values(steps * size);
  auto h = values((steps + 1) * size), c = values((steps + 1) * size);
  auto dh = values(size), dc = values(size);
  unsigned counters[2] = {};
  const bool finished =
      grid::launch(plan[0], 64, plan[3], order, [&] {
        lstm_all_forward(hidden, batch, steps, plan[1], plan[2], 0, 1, counters, weights.data(),
                         nullptr, bias.data(), bias.data(), gates.data(), h.data(), c.data(),
                         nullptr, y.data());
      }) &&
      grid::launch(plan[4], 64, plan[7], order, [&] {
        lstm_all_backward(hidden, batch, steps, plan[5], plan[6], 0, counters + 1, weights.data(),
                          nullptr, y.data(), gates.data(), h.data(), c.data(), nullptr, dh.data(),
                          dc.data(), gates.data());
      });
  puts(finished ? "finished" : "deadlock");
}
