// Operators that move elements and change none: reordering between layouts, and copies between strided views, which is
// all that Transpose, Slice, Concat, Pad and their like are once their views are known.

#include <stdexcept>

#include "tile.h"
#include "walk.h"

namespace dlas::DLAS_NS {
namespace {

// (N, C, H, W) float32 to blocked and back. The lanes beyond the last channel become zero.
class Reorder {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor *x = input(node, 0), *y = output(node, 0);
    if (!x || x->dtype.code != 2 || x->dtype.bits != 32) return refuse("reorder takes float32");
    const DLTensor *plain = x->ndim == 4 ? x : y, *blocked = x->ndim == 4 ? y : x;
    if (plain->ndim != 4 || blocked->ndim != 5 || blocked->shape[4] != VL)
      return refuse("reorder goes between (N, C, H, W) and blocks of channels");
    if (blocked->shape[1] != (plain->shape[1] + VL - 1) / VL) return refuse("the channels do not fit");
    return 1;
  }

  Reorder(const dlas_node* node, const dlas_ctx* ctx) : ctx_(ctx), to_blocked_(input(node, 0)->ndim == 4) {
    const DLTensor* plain = to_blocked_ ? input(node, 0) : output(node, 0);
    const DLTensor* blocked = to_blocked_ ? output(node, 0) : input(node, 0);
    n_ = plain->shape[0], channels_ = plain->shape[1], height_ = plain->shape[2], width_ = plain->shape[3];
    for (int i = 0; i < 3; ++i) plain_[i] = plain->strides[i], blocked_[i] = blocked->strides[i];
    if (plain_[2] == width_ && blocked_[2] == width_ * VL) width_ *= height_, height_ = 1;
    // Pieces of rows are tasks as well, a few pages each.
    parts_ = (width_ + kPart - 1) / kPart;
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    const int64_t blocks = (channels_ + VL - 1) / VL;
    float* plain = floats(const_cast<DLTensor*>(to_blocked_ ? in[0] : out[0]));
    float* blocked = floats(const_cast<DLTensor*>(to_blocked_ ? out[0] : in[0]));
    const float* end = plain + (n_ - 1) * plain_[0] + (channels_ - 1) * plain_[1] + (height_ - 1) * plain_[2] + width_;
    const int64_t rows_together = std::max<int64_t>(1, kPart / width_), bands = (height_ + rows_together - 1) / rows_together;
    parallel(ctx_, n_ * blocks * bands * parts_, [&](int64_t task, int) {
      const int64_t part = task % parts_, band = task / parts_ % bands, block = task / parts_ / bands % blocks,
                    n = task / parts_ / bands / blocks;
      const int64_t first = part * kPart, count = std::min(width_ - first, kPart);
      const int rows = static_cast<int>(std::min<int64_t>(VL, channels_ - block * VL));
      for (int64_t h = band * rows_together; h < std::min(height_, (band + 1) * rows_together); ++h) {
        float* p = plain + n * plain_[0] + block * VL * plain_[1] + h * plain_[2] + first;
        float* b = blocked + n * blocked_[0] + block * blocked_[1] + h * blocked_[2] + first * VL;
        if (to_blocked_)
          block_row(p, b, count, rows, end);
        else
          plain_row(b, p, count, rows);
      }
    });
  }

 private:
  static constexpr int64_t kPart = 1024;

  void block_row(const float* plain, float* blocked, int64_t count, int rows, const float* end) const {
    for (int64_t i = 0; i < count; i += VL) {
      const int pixels = static_cast<int>(std::min<int64_t>(VL, count - i));
      V t[VL];
      // Reading a whole vector past the end of a row is safe unless it is the end of the tensor.
      if (rows == VL && plain + (VL - 1) * plain_[1] + i + VL <= end) {
#pragma GCC unroll 16
        for (int r = 0; r < VL; ++r) t[r] = load(plain + r * plain_[1] + i);
      } else {
        for (int r = 0; r < VL; ++r) t[r] = r < rows ? load_part(plain + r * plain_[1] + i, pixels) : V{};
      }
      transpose_tile<VI>(t);
      if (pixels == VL) {
#pragma GCC unroll 16
        for (int r = 0; r < VL; ++r) store(blocked + (i + r) * VL, t[r]);
      } else {
        for (int r = 0; r < pixels; ++r) store(blocked + (i + r) * VL, t[r]);
      }
    }
  }

  void plain_row(const float* blocked, float* plain, int64_t count, int rows) const {
    for (int64_t i = 0; i < count; i += VL) {
      const int pixels = static_cast<int>(std::min<int64_t>(VL, count - i));
      V t[VL];
      if (pixels == VL) {
#pragma GCC unroll 16
        for (int r = 0; r < VL; ++r) t[r] = load(blocked + (i + r) * VL);
      } else {
        for (int r = 0; r < VL; ++r) t[r] = r < pixels ? load(blocked + (i + r) * VL) : V{};
      }
      transpose_tile<VI>(t);
      if (rows == VL && pixels == VL) {
#pragma GCC unroll 16
        for (int r = 0; r < VL; ++r) store(plain + r * plain_[1] + i, t[r]);
      } else {
        for (int r = 0; r < rows; ++r) store_part(plain + r * plain_[1] + i, t[r], pixels);
      }
    }
  }

  const dlas_ctx* ctx_;
  bool to_blocked_;
  int64_t n_, channels_, height_, width_, parts_, plain_[3], blocked_[3];
};

DLAS_ENTER(Reorder, "Reorder", "reorder");

// rows x columns elements; the source steps by 1 along the rows, the target by 1 along the columns.
template <class T, class Vector, int N>
void transpose_plane(const T* x, T* y, int64_t rows, int64_t columns, int64_t x_column, int64_t y_row) {
  for (int64_t c = 0; c < columns; c += N) {
    for (int64_t r = 0; r < rows; r += N) {
      const T* from = x + c * x_column + r;
      T* to = y + r * y_row + c;
      if (columns - c >= N && rows - r >= N) {
        Vector t[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) std::memcpy(&t[i], from + i * x_column, sizeof(Vector));
        transpose_tile<Vector>(t);
#pragma GCC unroll 16
        for (int i = 0; i < N; ++i) std::memcpy(to + i * y_row, &t[i], sizeof(Vector));
        continue;
      }
      const int64_t few = std::min<int64_t>(N, columns - c), many = std::min<int64_t>(N, rows - r);
      for (int64_t j = 0; j < many; ++j)
        for (int64_t i = 0; i < few; ++i) to[j * y_row + i] = from[i * x_column + j];
    }
  }
}

struct Piece {
  int source = -1, target = 0;
  int64_t x_first = 0, y_first = 0;
  Walk<2> walk;
  bool transposes = false;
};

template <class T>
void copy_row(const T* x, T* y, int64_t count, int64_t x_step, int64_t y_step) {
  if (x_step == 1 && y_step == 1)
    std::memcpy(y, x, count * sizeof(T));
  else if (y_step == 1 && x_step == 0)
    std::fill(y, y + count, *x);
  else
    for (int64_t i = 0; i < count; ++i) y[i * y_step] = x[i * x_step];
}

template <class T>
void move_piece(const dlas_ctx* ctx, const Piece& piece, const void* from, void* to) {
  const T* x = static_cast<const T*>(from) + piece.x_first;
  T* y = static_cast<T*>(to) + piece.y_first;
  const auto& walk = piece.walk;
  if (piece.transposes) {
    const int64_t rows = walk.size[walk.rank - 2], columns = walk.size[walk.rank - 1];
    const int64_t x_column = walk.stride[0][walk.rank - 1], y_row = walk.stride[1][walk.rank - 2];
    const int64_t planes = walk.outer(2), band = std::max<int64_t>(16, 4096 / columns / 16 * 16);
    const int64_t bands = (rows + band - 1) / band;
    parallel(ctx, planes * bands, [&](int64_t task, int) {
      const int64_t first = task % bands * band, some = std::min(band, rows - first);
      walk.each(task / bands, task / bands + 1, 2, [&](const int64_t (&at)[2]) {
        const T* source = x + at[0] + first;
        T* target = y + at[1] + first * y_row;
        if constexpr (sizeof(T) == 4)
          transpose_plane<T, VI, VL>(source, target, some, columns, x_column, y_row);
        else if constexpr (sizeof(T) == 1)
          transpose_plane<T, Bytes, 16>(source, target, some, columns, x_column, y_row);
        else
          for (int64_t r = 0; r < some; ++r) copy_row(source + r, target + r * y_row, columns, x_column, 1);
      });
    });
    return;
  }
  const int64_t x_step = walk.stride[0][walk.rank - 1], y_step = walk.stride[1][walk.rank - 1];
  walk.runs(ctx, [&](const int64_t (&at)[2], int64_t count) { copy_row(x + at[0], y + at[1], count, x_step, y_step); });
}

// Pieces are lists of whole numbers, `piece0`, `piece1` and so on: source (-1 for the fill, -2 - n for output n), target,
// first element of either, then length, source stride and target stride of each axis. The fill is the attribute `fill`,
// as bits.
class Move {
 public:
  static int supports(const dlas_node* node) {
    const DLTensor* y = output(node, 0);
    if (input(node, 0) && input(node, 0)->dtype.bits != y->dtype.bits) return refuse("a copy keeps the dtype");
    for (const auto& numbers : read(node))
      if (numbers.size() < 4 || (numbers.size() - 4) % 3 || (numbers.size() - 4) / 3 > kMaxRank)
        return refuse("a piece is four numbers and three for each of at most 12 axes");
    return 1;
  }

  Move(const dlas_node* node, const dlas_ctx* ctx) : ctx_(ctx), fill_(get(node, "fill", 0)) {
    bytes_ = (output(node, 0)->dtype.bits + 7) / 8;
    for (const auto& numbers : read(node)) {
      Piece piece;
      piece.source = static_cast<int>(numbers[0]), piece.target = static_cast<int>(numbers[1]);
      piece.x_first = numbers[2], piece.y_first = numbers[3];
      for (size_t i = 4; i < numbers.size(); i += 3) piece.walk.axis(numbers[i], {numbers[i + 1], numbers[i + 2]});
      arrange(piece);
      const auto& size = piece.walk.size;
      if (std::find(size, size + piece.walk.rank, 0) == size + piece.walk.rank) pieces_.push_back(piece);
    }
  }

  size_t workspace() const { return 0; }

  void run(const DLTensor* const* in, int, DLTensor* const* out, int, void*) {
    for (const auto& piece : pieces_) {
      const void* from = piece.source >= 0 ? in[piece.source]->data
                         : piece.source == -1 ? &fill_ : out[-2 - piece.source]->data;
      void* to = out[piece.target]->data;
      switch (bytes_) {
        case 1: move_piece<uint8_t>(ctx_, piece, from, to); break;
        case 2: move_piece<uint16_t>(ctx_, piece, from, to); break;
        case 4: move_piece<int32_t>(ctx_, piece, from, to); break;
        default: move_piece<int64_t>(ctx_, piece, from, to); break;
      }
    }
  }

 private:
  static std::vector<std::vector<int64_t>> read(const dlas_node* node) {
    std::vector<std::vector<int64_t>> found;
    const int64_t* values;
    for (int count; api().get_ints(node, ("piece" + std::to_string(found.size())).c_str(), &values, &count);)
      found.emplace_back(values, values + count);
    return found;
  }

  // Axes in the order of the target. Where the source runs along another one, that comes last but one and tiles are transposed.
  static void arrange(Piece& piece) {
    auto& walk = piece.walk;
    walk.sort_by(1);
    walk.simplify();
    const int last = walk.rank - 1;
    if (last < 1 || walk.stride[1][last] != 1 || walk.stride[0][last] <= 1) return;
    for (int i = 0; i < last; ++i) {
      if (walk.stride[0][i] != 1) continue;
      for (int j = i; j + 1 < last; ++j) walk.swap_axes(j, j + 1);
      piece.transposes = true;
      return;
    }
  }

  const dlas_ctx* ctx_;
  int64_t fill_;
  int bytes_;
  std::vector<Piece> pieces_;
};

DLAS_ENTER(Move, "Move", "move");

}  // namespace
}  // namespace dlas::DLAS_NS
