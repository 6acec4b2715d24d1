// Runs a kernel once, for the sanitizers: on arrays of exactly their sizes.
// Arguments: blocks, threads, bytes of shared memory, the order; then the kernel's own, each a number
// or the file that an array lies in.
#include <stdio.h>
#include <stdlib.h>

#include <vector>

extern "C" bool launch(void** args, unsigned grid, unsigned block, size_t shared, unsigned order);

static std::vector<char> read(const char* path) {
  FILE* const file = fopen(path, "rb");
  fseek(file, 0, SEEK_END);
  std::vector<char> bytes(ftell(file));
  rewind(file);
  if (fread(bytes.data(), 1, bytes.size(), file) != bytes.size()) abort();
  fclose(file);
  return bytes;
}

int main(int count, char** given) {
  constexpr int BEFORE = 5;
  std::vector<std::vector<char>> arrays(count);
  std::vector<long long> values(count);
  std::vector<void*> arguments;
  for (int k = BEFORE; k < count; k++) {
    values[k] = atoll(given[k]);
    if (given[k][0] == '/') {
      arrays[k] = read(given[k]);
      values[k] = (long long)arrays[k].data();
    }
    arguments.push_back(&values[k]);
  }
  const bool finished = launch(arguments.data(), atoi(given[1]), atoi(given[2]), atoi(given[3]),
                               atoi(given[4]));
  puts(finished ? "finished" : "deadlock");
}
