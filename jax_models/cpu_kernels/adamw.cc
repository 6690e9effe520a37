// AdamW (Loshchilov & Hutter 2019) for all parameters in one call, in place.
//
// XLA's CPU backend compiles and runs loops of their own for each parameter,
// each moment and each copy between them.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "native.h"

namespace {

constexpr int64_t kPerTask = 1 << 14;

// A part of one of the arrays.
struct Task {
  int64_t array, begin, end;
};

// All of some arrays, checked before threads see them.
std::vector<Array> Take(const Arrays& arrays, int64_t first, int64_t count) {
  std::vector<Array> taken;
  for (int64_t i = first; i < first + count; ++i) taken.push_back(arrays[i]);
  return taken;
}

std::vector<Task> Cut(const std::vector<Array>& arrays) {
  std::vector<Task> tasks;
  for (size_t i = 0; i < arrays.size(); ++i) {
    const int64_t size = arrays[i].size();
    for (int64_t begin = 0; begin < size; begin += kPerTask) {
      tasks.push_back({static_cast<int64_t>(i), begin,
                       std::min(begin + kPerTask, size)});
    }
  }
  return tasks;
}

// Calls work(i) for all tasks, on all threads.
template <typename Work>
void ForEach(const Call& call, const std::vector<Task>& tasks, Work work) {
  Parallel(call.pool, tasks.size(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i);
  });
}

// Arrays of any shapes -> norm [], of all their numbers together.
void GlobalNorm(const Call& call) {
  const std::vector<Array> arrays =
      Take(call.arguments, 0, call.arguments.size());
  const std::vector<Task> tasks = Cut(arrays);
  std::vector<double> sums(tasks.size());
  ForEach(call, tasks, [&](int64_t i) {
    const float* from = arrays[tasks[i].array].data;
    Vector squares = {};
    int64_t at = tasks[i].begin;
    for (; at + kLanes <= tasks[i].end; at += kLanes) {
      const Vector value = Load(from + at);
      squares += value * value;
    }
    for (; at < tasks[i].end; ++at) sums[i] += from[at] * from[at];
    for (int lane = 0; lane < kLanes; ++lane) sums[i] += squares[lane];
  });
  double total = 0;
  for (double sum : sums) total += sum;
  call.results[0].data[0] = std::sqrt(total);
}

// What a step is made with, the same for all parameters.
struct Scalars {
  float finite;  // 1 to make the step, 0 to leave everything as it is.
  float scale;   // Of the gradients.
  float mu_correction, nu_correction;  // Of the averages' bias towards zero.
};

// scalars [4], rates [N], then N gradients, N parameters, N moving averages of
// gradients (mu) and N of their squares (nu)
// -> parameters, mu and nu, in place.
void Update(const Call& call) {
  const int64_t count = (call.arguments.size() - 2) / 4;
  Expect("scalars", call.arguments[0], {4});
  Expect("rates", call.arguments[1], {count});
  Scalars scalars;
  std::memcpy(&scalars, call.arguments[0].data, sizeof(scalars));
  const float* rates = call.arguments[1].data;
  const auto decays = call.Numbers<float>("decays");
  // Of the old average and of the new value.
  const auto mu_weights = call.Numbers<float>("mu_weights");
  const auto nu_weights = call.Numbers<float>("nu_weights");
  const float epsilon = call.Number<float>("epsilon");
  if (decays.size != count) Refuse("there are other decays than parameters");
  const std::vector<Array> before = Take(call.arguments, 2, 4 * count);
  const std::vector<Array> after = Take(call.results, 0, 3 * count);
  for (int64_t i = 0; i < 4 * count; ++i) {
    if (before[i].size() != before[i % count].size()) {
      Refuse("argument %d is not of its gradient's size",
             static_cast<int>(i + 2));
    }
  }
  const std::vector<Task> tasks =
      Cut({before.begin(), before.begin() + count});
  ForEach(call, tasks, [&](int64_t i) {
    const auto [array, begin, end] = tasks[i];
    float* place[3];
    for (int kind = 0; kind < 3; ++kind) {
      const float* old = before[(kind + 1) * count + array].data;
      place[kind] = after[kind * count + array].data;
      if (place[kind] != old) {
        std::copy(old + begin, old + end, place[kind] + begin);
      }
    }
    if (scalars.finite == 0) return;
    float *params = place[0], *mu = place[1], *nu = place[2];
    const float* grads = before[array].data;
    const float rate = rates[array], decay = decays[array];
#pragma GCC ivdep
    for (int64_t at = begin; at < end; ++at) {
      const float grad = grads[at] * scalars.scale;
      const float mean = mu_weights[0] * mu[at] + mu_weights[1] * grad;
      const float square =
          nu_weights[0] * nu[at] + nu_weights[1] * (grad * grad);
      const float direction =
          (mean / scalars.mu_correction) /
          (std::sqrt(square / scalars.nu_correction) + epsilon);
      params[at] -= rate * (direction + decay * params[at]);
      mu[at] = mean;
      nu[at] = square;
    }
  });
}

}  // namespace

SEXTET_HANDLER(sextet_global_norm, GlobalNorm)
SEXTET_HANDLER(sextet_adamw, Update)
