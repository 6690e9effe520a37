// AdamW (Loshchilov & Hutter 2019) for all parameters in one call, in place.
//
// XLA's CPU backend compiles and runs loops of their own for each parameter,
// each moment and each copy between them.

#include <algorithm>
#include <cmath>
#include <cstdint>
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

// What the parameters of one group have in common.
struct Group {
  float rate, mean_share, square_share;  // The last two correct the bias.
};

// numbers [2 + 3 groups]: 1 to make the step and 0 to leave all as it is, what
// the gradients are multiplied by, then what each group has.
// Then all gradients, all parameters, all means, all squares
// -> parameters, means and squares, in their place.
void Step(const Call& call) {
  const int64_t count = (call.arguments.size() - 1) / 4;
  const float* numbers = call.arguments[0].data;
  const auto* groups = reinterpret_cast<const Group*>(numbers + 2);
  const auto group_of = call.Numbers<int32_t>("groups");
  const auto decay_of = call.Numbers<float>("decays");
  // Of the old average and of the new gradient. What is left of .999 to 1 is
  // not what single precision makes of it.
  const auto of_mean = call.Numbers<float>("of_mean");
  const auto of_square = call.Numbers<float>("of_square");
  const float epsilon = call.Number<float>("epsilon");
  if (group_of.size != count || decay_of.size != count) {
    Refuse("there are not as many groups and decays as parameters");
  }
  const std::vector<Array> before = Take(call.arguments, 1, 4 * count);
  const std::vector<Array> after = Take(call.results, 0, 3 * count);
  for (int64_t i = 0; i < 4 * count; ++i) {
    if (before[i].size() != before[i % count].size()) {
      Refuse("argument %d is not of its gradient's size",
             static_cast<int>(i + 1));
    }
  }
  const bool good = numbers[0] != 0;
  const float scale = numbers[1];
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
    if (!good) return;
    float *params = place[0], *means = place[1], *squares = place[2];
    const float* slopes = before[array].data;
    const Group group = groups[group_of[array]];
    const float decay = decay_of[array];
#pragma GCC ivdep
    for (int64_t at = begin; at < end; ++at) {
      const float slope = slopes[at] * scale;
      const float mean = of_mean[0] * means[at] + of_mean[1] * slope;
      const float square =
          of_square[0] * squares[at] + of_square[1] * (slope * slope);
      const float direction =
          (mean / group.mean_share) /
          (std::sqrt(square / group.square_share) + epsilon);
      params[at] -= group.rate * (direction + decay * params[at]);
      means[at] = mean;
      squares[at] = square;
    }
  });
}

}  // namespace

SEXTET_HANDLER(sextet_global_norm, GlobalNorm)
SEXTET_HANDLER(sextet_adamw, Step)
