// Attention inside windows for XLA's CPU backend, float32: every window and
// head from queries to its part of the output while all of it is in cache.
//
// A window that the map cuts short has one key more, which stands for all of
// its padding; window_attention.py says why.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "activations.h"
#include "small_gemm.h"

namespace {

// Windows whose gradients of biases and padding are summed before the sums.
constexpr int64_t kWindowsPerTask = 16;
// Of keys that are not there. Where there is none at all, what comes out is
// not a number, as it should be.
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// What a call is about.
struct Layer {
  explicit Layer(const Call& call)
      : qkv(call.arguments[0]),
        padding(call.arguments[1]),
        table(call.arguments[2]),
        heads(call.Number<int64_t>("heads")),
        window(call.Number<int64_t>("window")),
        is_signed(call.Number<bool>("signed")),
        height(qkv.dimensions[1]),
        width(qkv.dimensions[2]),
        depth(qkv.dimensions[3] / heads / 3),
        entries(table.dimensions[1]) {
    const int64_t side = is_signed ? 2 * window - 1 : window;
    Expect("padding", padding, {qkv.dimensions[3]});
    Expect("table", table, {heads, side * side});
    if (qkv.dimensions[3] != 3 * heads * depth) {
      Refuse("queries, keys and values do not divide into heads");
    }
  }

  // Which bias belongs to cells so many rows and columns apart.
  int64_t Entry(int64_t rows, int64_t columns) const {
    if (is_signed) {
      const int64_t side = 2 * window - 1;
      return (rows + window - 1) * side + columns + window - 1;
    }
    return std::abs(rows) * window + std::abs(columns);
  }

  const Array qkv, padding, table;
  const int64_t heads, window;
  const bool is_signed;
  const int64_t height, width, depth, entries;
};

// Windows of one size.
struct Kind {
  int64_t top, left, rows, columns, h, w;  // Of the first; how many; how large.
  // For every cell of a window the biases' entries of all cells, those that
  // are there first and then the padded ones: [h * w, window * window].
  std::vector<int32_t> entries;

  int64_t cells() const { return h * w; }
};

std::vector<int32_t> EntriesOf(const Layer& layer, int64_t h, int64_t w) {
  std::vector<int32_t> entries;
  const int64_t window = layer.window;
  for (int64_t i = 0; i < h * w; ++i)
    for (bool padded : {false, true})
      for (int64_t y = 0; y < window; ++y)
        for (int64_t x = 0; x < window; ++x)
          if ((y >= h || x >= w) == padded)
            entries.push_back(layer.Entry(i / w - y, i % w - x));
  return entries;
}

std::vector<Kind> KindsOf(const Layer& layer) {
  const int64_t window = layer.window;
  std::vector<Kind> kinds;
  const auto along = [&](int64_t length, auto work) {
    const int64_t whole = length / window, rest = length % window;
    if (whole > 0) work(int64_t{0}, whole, window);
    if (rest > 0) work(whole * window, int64_t{1}, rest);
  };
  along(layer.height, [&](int64_t top, int64_t rows, int64_t h) {
    along(layer.width, [&](int64_t left, int64_t columns, int64_t w) {
      kinds.push_back(
          {top, left, rows, columns, h, w, EntriesOf(layer, h, w)});
    });
  });
  return kinds;
}

// One head of windows of one size, one window at a time.
class Head {
 public:
  Head(const Layer& layer, const Kind& kind, int64_t head)
      : layer_(layer),
        kind_(kind),
        head_(head),
        cells_(kind.cells()),
        all_(layer.window * layer.window),
        is_cut_(cells_ < all_),
        keys_(cells_ + is_cut_),
        scale_(1 / std::sqrt(static_cast<float>(layer.depth))),
        query_(cells_, layer.depth),
        key_(keys_, layer.depth),
        value_(keys_, layer.depth),
        across_(layer.depth, keys_),
        bias_(cells_, keys_),
        weights_(cells_, keys_),
        out_(keys_, layer.depth) {
    std::fill_n(bias_.numbers(0), cells_ * bias_.width * kLanes, kNothing);
    for (int64_t i = 0; i < cells_; ++i) {
      const int32_t* entries = EntriesOf(i);
      for (int64_t j = 0; j < cells_; ++j)
        bias_.numbers(i)[j] = Bias(entries[j]);
      if (!is_cut_) continue;
      float most = kNothing, sum = 0;
      for (int64_t j = cells_; j < all_; ++j)
        most = std::max(most, Bias(entries[j]));
      for (int64_t j = cells_; j < all_; ++j)
        sum += std::exp(Bias(entries[j]) - most);
      bias_.numbers(i)[cells_] = most + std::log(sum);
    }
    if (!is_cut_) return;
    const float* padding = layer.padding.data + head * 3 * layer.depth;
    std::copy_n(padding + layer.depth, layer.depth, key_.numbers(cells_));
    std::copy_n(padding + 2 * layer.depth, layer.depth, value_.numbers(cells_));
  }

  // Attention in window number `index` -> its part of out [B, H, W, C].
  void Forward(int64_t index, float* out) {
    Read(index);
    Weigh();
    Multiply(weights_.as_it_is(), value_, out_, cells_, keys_);
    ForCells(index, [&](int64_t i, int64_t place) {
      std::copy_n(out_.numbers(i), layer_.depth, out + PlaceInOutput(place));
    });
  }

 protected:
  int64_t Windows() const { return kind_.rows * kind_.columns; }

  float Bias(int64_t entry) const {
    return layer_.table.data[head_ * layer_.entries + entry];
  }

  const int32_t* EntriesOf(int64_t i) const {
    return kind_.entries.data() + i * all_;
  }

  // Calls work(cell, its place among all cells of the batch).
  template <typename Work>
  void ForCells(int64_t index, const Work& work) const {
    const int64_t image = index / Windows(), of_image = index % Windows();
    const int64_t top = kind_.top + of_image / kind_.columns * kind_.h;
    const int64_t left = kind_.left + of_image % kind_.columns * kind_.w;
    for (int64_t i = 0; i < cells_; ++i) {
      const int64_t y = top + i / kind_.w, x = left + i % kind_.w;
      work(i, (image * layer_.height + y) * layer_.width + x);
    }
  }

  int64_t PlaceInOutput(int64_t place) const {
    return (place * layer_.heads + head_) * layer_.depth;
  }

  // Fills queries, scaled, and keys and values.
  void Read(int64_t index) {
    const int64_t depth = layer_.depth;
    ForCells(index, [&](int64_t i, int64_t place) {
      const float* from = layer_.qkv.data + 3 * PlaceInOutput(place);
      float* query = query_.numbers(i);
      for (int64_t d = 0; d < depth; ++d) query[d] = from[d] * scale_;
      std::copy_n(from + depth, depth, key_.numbers(i));
      std::copy_n(from + 2 * depth, depth, value_.numbers(i));
    });
  }

  // Turns rows of keys or values into columns.
  void Turn(Matrix& rows) {
    for (int64_t i = 0; i < keys_; ++i) {
      const float* from = rows.numbers(i);
      float* to = across_.numbers(0) + i;
      const int64_t step = across_.width * kLanes;
      for (int64_t d = 0; d < layer_.depth; ++d) to[d * step] = from[d];
    }
  }

  // Softmax of queries times keys, plus biases.
  void Weigh() {
    Turn(key_);
    Multiply(query_.as_it_is(), across_, weights_, cells_, layer_.depth);
    for (int64_t i = 0; i < cells_; ++i) {
      Vector *row = weights_.row(i), *bias = bias_.row(i);
      Vector most = Vector{} + kNothing;
      for (int64_t v = 0; v < weights_.width; ++v) {
        row[v] += bias[v];
        most = row[v] > most ? row[v] : most;
      }
      float largest = most[0];
      for (int lane = 1; lane < kLanes; ++lane)
        largest = std::max(largest, most[lane]);
      Vector sums = {};
      for (int64_t v = 0; v < weights_.width; ++v)
        sums += row[v] = Exp(row[v] - largest);
      const float share = 1 / Total(sums);
      for (int64_t v = 0; v < weights_.width; ++v) row[v] *= share;
    }
  }

  static float Total(const Vector& vector) {
    float total = 0;
    for (int lane = 0; lane < kLanes; ++lane) total += vector[lane];
    return total;
  }

  const Layer& layer_;
  const Kind& kind_;
  const int64_t head_, cells_, all_;
  const bool is_cut_;
  const int64_t keys_;
  const float scale_;
  Matrix query_, key_, value_, across_, bias_, weights_, out_;
};

// The same with gradients.
class HeadGrad : public Head {
 public:
  HeadGrad(const Layer& layer, const Kind& kind, int64_t head)
      : Head(layer, kind, head),
        out_grad_(cells_, layer.depth),
        score_grad_(cells_, keys_),
        bias_grad_(cells_, keys_),
        padding_grad_(2, layer.depth) {}

  // grad [B, H, W, C] -> the window's part of qkv_grad [B, H, W, 3C].
  void Backward(int64_t index, const float* grad, float* qkv_grad) {
    const int64_t depth = layer_.depth;
    Read(index);
    Weigh();
    ForCells(index, [&](int64_t i, int64_t place) {
      std::copy_n(grad + PlaceInOutput(place), depth, out_grad_.numbers(i));
    });
    Turn(value_);
    Multiply(out_grad_.as_it_is(), across_, score_grad_, cells_, depth);
    for (int64_t i = 0; i < cells_; ++i) {
      Vector *row = score_grad_.row(i), *weights = weights_.row(i);
      Vector sums = {};
      for (int64_t v = 0; v < weights_.width; ++v) sums += row[v] * weights[v];
      const float mean = Total(sums);
      for (int64_t v = 0; v < weights_.width; ++v) {
        row[v] = weights[v] * (row[v] - mean);
        bias_grad_.row(i)[v] += row[v];
      }
    }
    const auto write = [&](Matrix& found, int64_t part, float scale) {
      ForCells(index, [&](int64_t i, int64_t place) {
        float* to = qkv_grad + 3 * PlaceInOutput(place) + part * depth;
        for (int64_t d = 0; d < depth; ++d) to[d] = found.numbers(i)[d] * scale;
      });
      if (part == 0 || !is_cut_) return;
      for (int64_t v = 0; v < found.width; ++v)
        padding_grad_.row(part - 1)[v] += found.row(cells_)[v];
    };
    Multiply(score_grad_.as_it_is(), key_, out_, cells_, keys_);
    write(out_, 0, scale_);
    Multiply(score_grad_.transposed(), query_, out_, keys_, cells_);
    write(out_, 1, 1);
    Multiply(weights_.transposed(), out_grad_, out_, keys_, cells_);
    write(out_, 2, 1);
  }

  // Adds what all windows gave to sums [entries + 2 depth].
  void Sum(float* sums) {
    for (int64_t i = 0; i < cells_; ++i) {
      const int32_t* entries = EntriesOf(i);
      const float* bias_grad = bias_grad_.numbers(i);
      for (int64_t j = 0; j < cells_; ++j) sums[entries[j]] += bias_grad[j];
      if (!is_cut_) continue;
      const float together = bias_.numbers(i)[cells_];
      for (int64_t j = cells_; j < all_; ++j)
        sums[entries[j]] +=
            bias_grad[cells_] * std::exp(Bias(entries[j]) - together);
    }
    for (int part = 0; part < 2; ++part) {
      float* to = sums + layer_.entries + part * layer_.depth;
      for (int64_t d = 0; d < layer_.depth; ++d)
        to[d] += padding_grad_.numbers(part)[d];
    }
  }

 private:
  Matrix out_grad_, score_grad_, bias_grad_, padding_grad_;
};

// Some windows of one size, and one head.
struct Task {
  const Kind* kind;
  int64_t head, first, last;
};

std::vector<Task> TasksOf(const Layer& layer, const std::vector<Kind>& kinds) {
  std::vector<Task> tasks;
  for (const Kind& kind : kinds) {
    const int64_t count = layer.qkv.dimensions[0] * kind.rows * kind.columns;
    for (int64_t head = 0; head < layer.heads; ++head)
      for (int64_t first = 0; first < count; first += kWindowsPerTask)
        tasks.push_back({&kind, head, first,
                         std::min(first + kWindowsPerTask, count)});
  }
  return tasks;
}

// qkv [B, H, W, 3C], for each head queries, keys and values; padding [3C];
// table [heads, entries] -> out [B, H, W, C].
void Forward(const Call& call) {
  const Layer layer(call);
  const std::vector<Kind> kinds = KindsOf(layer);
  const std::vector<Task> tasks = TasksOf(layer, kinds);
  float* out = call.results[0].data;
  Parallel(call.pool, tasks.size(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Head head(layer, *tasks[i].kind, tasks[i].head);
      for (int64_t index = tasks[i].first; index < tasks[i].last; ++index)
        head.Forward(index, out);
    }
  });
}

// The same and grad [B, H, W, C] -> qkv_grad, padding_grad and table_grad.
void Backward(const Call& call) {
  const Layer layer(call);
  const std::vector<Kind> kinds = KindsOf(layer);
  const std::vector<Task> tasks = TasksOf(layer, kinds);
  Expect("gradient", call.arguments[3],
         {layer.qkv.dimensions[0], layer.height, layer.width,
          layer.heads * layer.depth});
  const float* grad = call.arguments[3].data;
  float* qkv_grad = call.results[0].data;
  const int64_t depth = layer.depth, length = layer.entries + 2 * depth;
  std::vector<float> partial(tasks.size() * length);
  Parallel(call.pool, tasks.size(), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      HeadGrad head(layer, *tasks[i].kind, tasks[i].head);
      for (int64_t index = tasks[i].first; index < tasks[i].last; ++index)
        head.Backward(index, grad, qkv_grad);
      head.Sum(partial.data() + i * length);
    }
  });
  float *padding_grad = call.results[1].data, *table_grad = call.results[2].data;
  std::fill_n(padding_grad, layer.heads * 3 * depth, 0.0f);
  std::fill_n(table_grad, layer.heads * layer.entries, 0.0f);
  for (size_t i = 0; i < tasks.size(); ++i) {
    const float* sums = partial.data() + i * length;
    float* table = table_grad + tasks[i].head * layer.entries;
    for (int64_t e = 0; e < layer.entries; ++e) table[e] += sums[e];
    float* padding = padding_grad + (tasks[i].head * 3 + 1) * depth;
    for (int64_t d = 0; d < 2 * depth; ++d)
      padding[d] += sums[layer.entries + d];
  }
}

}  // namespace

SEXTET_HANDLER(sextet_window_attention, Forward)
SEXTET_HANDLER(sextet_window_attention_grad, Backward)
