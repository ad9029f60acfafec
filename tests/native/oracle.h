// Random problems, and the equations as a plain loop in double.
#ifndef LSTM_JAX_TESTS_ORACLE_H_
#define LSTM_JAX_TESTS_ORACLE_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "problem.h"

namespace lstm {

using Floats = std::vector<float>;

// All that the result depends on, in one vector each, so that it can be perturbed.
struct Arguments {
  Floats xs, kernel, recurrent, bias, projection, h, c, reset_h, reset_c, peephole,
      norm_scale, norm_shift, cell_norm;

  std::vector<Floats*> All() {
    return {&xs,      &kernel,  &recurrent, &bias,       &projection, &h,        &c,
            &reset_h, &reset_c, &peephole,  &norm_scale, &norm_shift, &cell_norm};
  }
};

struct Case {
  Sizes sizes;
  bool controls;
  Arguments arguments;
  std::unique_ptr<bool[]> valid, reset;
  bool diagonal = false;  // `recurrent` is one
  // Pointers are those of what follows, but those of arguments are null.
  Variant<float> variant;
  Floats recurrent_mask, output_mask;
  std::unique_ptr<bool[]> keep_h, keep_c;
  Floats d_ys, d_h, d_c;
};

// Whether column n of the recurrent kernel sees number p of h.
bool Sees(const Sizes& sizes, int64_t n, int64_t p);

// Zeros where it does not.
void KeepBlocks(const Sizes& sizes, Floats& recurrent);

Floats Normal(int64_t size, double scale);

// Of the standard step, or of any.
Case RandomCase(bool standard = false);

// Returns the sum of all outputs, each times its cotangent, with the arguments moved by
// `step` along `direction`. Fills `ys` where it is not null.
double Loss(Case& test, Arguments& direction, double step, std::vector<double>* ys);

}  // namespace lstm

#endif  // LSTM_JAX_TESTS_ORACLE_H_
