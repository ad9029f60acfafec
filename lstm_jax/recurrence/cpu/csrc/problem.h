// What the kernels are given: plain structs, shared by the code of all instruction
// sets.
#ifndef LSTM_JAX_PROBLEM_H_
#define LSTM_JAX_PROBLEM_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace lstm {

struct BFloat16 {
  uint16_t bits;
};

// Where the gates i, f, g and o stand among the columns of the weights, H columns each;
// kNoGate for those that a variant has not.
constexpr int kNoGate = -1;

struct GateOrder {
  int count;
  int place[4];
};

constexpr GateOrder kAllGates = {4, {0, 1, 2, 3}};

// The sizes: T steps, B rows, I inputs, H units, P the size of h (H if not projected),
// G = 4 or 3 gates.
struct Sizes {
  int64_t steps;
  int64_t rows;
  int64_t inputs;
  int64_t units;
  int64_t outputs;
  bool projected;
  bool reverse;
  GateOrder gates;
  bool normed;    // gates and c are normalised over all units of a row
  int64_t heads;  // units see h of their own head alone; all of it, if there is one

  // Whether a row cannot be divided: a thread has all units of its own.
  bool indivisible() const { return projected || normed; }
  int64_t columns() const { return gates.count * units; }
};

// A pointer is null where there is nothing: no bias, no projection, no controls.
template <class Scalar>
struct Weights {
  const Scalar* kernel;      // [I, GH]
  const Scalar* recurrent;   // [P, GH]; null if diagonal
  const Scalar* bias;        // [GH]
  const Scalar* projection;  // [H, P]
};

template <class Scalar>
struct State {
  const Scalar* h;  // [B, P]
  const float* c;   // [B, H]
};

// `valid` false holds the state; `reset` true sets it to `reset_state` before the step.
template <class Scalar>
struct Controls {
  const bool* valid;  // [T, B]
  const bool* reset;  // [T, B]
  State<Scalar> reset_state;
};

// What a step has that the standard one has not. Pointers are null where there is
// nothing; limits are infinite, and rates 0.
template <class Scalar>
struct Variant {
  bool standard;          // there is nothing of all this
  bool coupled;           // f is 1 - i
  bool linear_candidate;  // g has no activation
  bool linear_output;     // nor has c on its way to h
  float clip;             // of pre-activations
  float cell_clip;
  float zoneout_h;  // where there are no masks that say what is kept
  float zoneout_c;
  const Scalar* diagonal;  // [G, H]: what there is in place of a recurrent kernel where
                           // each unit sees its own h alone
  const Scalar* peephole;  // [i, f and o, as far as there are such gates, H]
  const float* recurrent_mask;  // [B, P]: h is multiplied by it before the product
  const float* output_mask;     // [B, P]
  const bool* keep_h;           // [T, B, P]: true keeps that of the step before
  const bool* keep_c;           // [T, B, H]
  // Layer normalisation, of what inputs and h contribute, and of c: there is all of it,
  // shifts apart, or nothing.
  const Scalar* norm_scale;  // [2, GH]
  const Scalar* norm_shift;  // [2, GH]
  const Scalar* cell_norm;   // [2, H]: scale and shift
};

// The forward pass saves for the backward pass, of each step and row: the gates, and c
// after the step, as bits. Units come in groups of 16, whatever the instruction set,
// and the last group is filled up: `gates` is [T, B, groups, (i, f, g, o), 16], `cells`
// [T, B, groups, 16]. c is a float; gates are floats too, or in bfloat16 fixed-point
// numbers of 16 bits; a gate that there is not is 1, or 1 - i.
constexpr int64_t kSavedGroup = 16;

inline __attribute__((always_inline)) constexpr int64_t PaddedUnits(int64_t units) {
  return (units + kSavedGroup - 1) / kSavedGroup * kSavedGroup;
}

template <class Scalar>
using GateBits = std::conditional_t<sizeof(Scalar) == 4, uint32_t, uint16_t>;

template <class Scalar>
struct ForwardProblem {
  Sizes sizes;
  const Scalar* xs;  // [T, B, I]
  Weights<Scalar> weights;
  State<Scalar> state;
  Controls<Scalar> controls;
  Variant<Scalar> variant;
  Scalar* ys;               // [T, B, P]; may be null
  float* cs;                // [T, B, H]; may be null
  Scalar* last_h;           // [B, P]
  float* last_c;            // [B, H]
  GateBits<Scalar>* gates;  // may be null; with it, `cells` is too
  uint32_t* cells;
  Scalar* entering;  // [T, B, P], h as it enters each product; may be null
};

template <class Scalar>
struct BackwardProblem {
  Sizes sizes;
  const Scalar* xs;
  Weights<Scalar> weights;
  State<Scalar> state;
  Controls<Scalar> controls;
  Variant<Scalar> variant;
  const Scalar* ys;        // used where `entering` is null
  const Scalar* entering;  // [T, B, P]; given with controls and masks
  const GateBits<Scalar>* gates;
  const uint32_t* cells;
  const Scalar* d_ys;  // [T, B, P]; may be null
  const float* d_cs;   // [T, B, H]; may be null
  const Scalar* d_last_h;
  const float* d_last_c;
  Scalar* d_xs;  // [T, B, I]; may be null, as may every pointer that follows
  Scalar* d_kernel;
  Scalar* d_recurrent;  // of several heads, their blocks alone are written
  Scalar* d_bias;
  Scalar* d_projection;
  Scalar* d_h;
  float* d_c;
  Scalar* d_reset_h;
  float* d_reset_c;
  Scalar* d_peephole;  // as `peephole`
  Scalar* d_diagonal;  // as `diagonal`
  // As in `Variant`; what is shifted has the gradient of the bias.
  Scalar* d_norm_scale;
  Scalar* d_cell_norm;
};

// Integers from -127 to 127, and what those of each column are multiplied with. Both
// are null where there is no such matrix.
struct QuantizedMatrix {
  const int8_t* values;
  const float* scale;
};

struct QuantizedWeights {
  QuantizedMatrix kernel;      // [I, 4H]
  QuantizedMatrix recurrent;   // [P, 4H]
  QuantizedMatrix projection;  // [H, P]
  const float* bias;           // [4H]; may be null
};

struct QuantizedProblem {
  Sizes sizes;
  const float* xs;  // [T, B, I]
  QuantizedWeights weights;
  State<float> state;
  Controls<float> controls;
  float* ys;      // [T, B, P]; may be null
  float* cs;      // [T, B, H]; may be null
  float* last_h;  // [B, P]
  float* last_c;  // [B, H]
};

constexpr int kMostProblems = 2;

class Executor;

// The kernels of one instruction set.
struct Kernels {
  const char* name;
  // Each takes one problem, or the two directions of a layer.
  void (*forward_f32)(const ForwardProblem<float>*, int count, Executor&);
  void (*backward_f32)(const BackwardProblem<float>*, int count, Executor&);
  void (*forward_bf16)(const ForwardProblem<BFloat16>*, int count, Executor&);
  void (*backward_bf16)(const BackwardProblem<BFloat16>*, int count, Executor&);
  void (*quantized)(const QuantizedProblem*, int count, Executor&);
  void (*sigmoid)(const float* x, float* y, int64_t size);
  void (*tanh)(const float* x, float* y, int64_t size);
};

}  // namespace lstm

#endif  // LSTM_JAX_PROBLEM_H_
