// Writes the fixture of the generator switch `rng=libstdcxx` for crates/search: what
// the standard library's classes draw when they are used as MUVERA's authors use them.
//
//     g++ -std=c++17 -O2 -o libstdcxx parity/libstdcxx.cpp
//     ./libstdcxx > crates/search/tests/fixtures/libstdcxx.json
//
// Made with GCC 12.2. Older ones than GCC 11 draw integers by another rule.

#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

static void list(const char *name, const std::vector<double> &numbers) {
  std::printf("\"%s\": [", name);
  for (size_t i = 0; i < numbers.size(); ++i)
    std::printf("%s%.9g", i ? ", " : "", numbers[i]);
  std::printf("]");
}

int main() {
  struct { uint32_t seed; int dim, planes, width, places, coordinates; } cases[] = {
      {1, 5, 3, 2, 7, 40}, {42, 8, 5, 3, 100, 30}, {4294967295u, 3, 2, 1, 1, 9}};
  std::printf("[\n");
  for (size_t c = 0; c < 3; ++c) {
    auto [seed, dim, planes, width, places, coordinates] = cases[c];
    std::printf("{\"seed\": %u, \"dim\": %d, \"planes\": %d, \"width\": %d, \"places\": %d,\n",
                seed, dim, planes, width, places);
    std::vector<double> drawn;
    std::mt19937 gen(seed);
    // Column by column, as matrices lie in Eigen.
    std::normal_distribution<float> normal(0.0f, 1.0f);
    for (int i = 0; i < dim * planes; ++i) drawn.push_back(normal(gen));
    list("normal", drawn);
    // A place and a sign for every number of a vector.
    drawn.clear();
    gen.seed(seed);
    std::uniform_int_distribution<size_t> place(0, width - 1);
    std::bernoulli_distribution sign(0.5);
    for (int i = 0; i < dim; ++i) {
      drawn.push_back(place(gen));
      drawn.push_back(2.0 * sign(gen) - 1.0);
    }
    std::printf(",\n");
    list("sketch", drawn);
    // The same for every coordinate of an encoding.
    drawn.clear();
    gen.seed(seed);
    std::uniform_int_distribution<int32_t> last(0, places - 1);
    std::bernoulli_distribution last_sign(0.5);
    for (int i = 0; i < coordinates; ++i) {
      drawn.push_back(last(gen));
      drawn.push_back(2.0 * last_sign(gen) - 1.0);
    }
    std::printf(",\n");
    list("last", drawn);
    std::printf("}%s\n", c < 2 ? "," : "");
  }
  std::printf("]\n");
}
