// What both ways of reaching memory share: the job, its parameters and what is done with a coefficient, gradient sums.
#pragma once
#include <cmath>
#include <vector>

#include "simd.h"
#include "threads.h"

namespace {

// ---- the job, as Python describes it: `Side` and `Job` of cpu.py, which compares the names of their fields with these -

enum { LANES = 0, POINTS = 1 };

// How one activation lies in memory, in elements: steps from one image to the next; of the three parts of an item's
// number q = (q_n, q_i, q_j); from one point of a row, and from one row of points, to the next; rows and points per row
// that exist.
#define SIDE_FIELDS(F) F(image) F(n) F(i) F(j) F(point) F(row) F(H) F(W)

// width: padded points per row. lanes: items per image; lanes_i, lanes_j: sizes of the last two parts of their numbers.
// shared: all blocks have the same parameters. Blocks of the input begin at multiples of span / (blocks - 1), where span
// is not 0: windows that overlap. A point of the result is the mean of `means` successive points of the blocks.
// channels: of the result where an item is a channel's map; 0 where its points are the channels.
#define JOB_FIELDS(F) \
  F(dtype) F(layout) F(smooth) F(keep_dc) F(clamp) F(ortho) F(log2_block) F(blocks_in) F(blocks_out) F(shared) F(span) \
  F(means) F(width) F(images) F(lanes) F(lanes_i) F(lanes_j) F(channels)

#define FIELD(name) int64_t name;
struct Side {
  SIDE_FIELDS(FIELD)
};
struct Job {
  JOB_FIELDS(FIELD)
  Side in, out;
};
#undef FIELD

// clamp(y * scale + shift + residual, low, high) of a result y: a scale and a shift for each channel, and an addend of
// the shape and memory format of y, which may be null.
struct Epilogue {
  const void *scale, *shift, *residual;
  double low, high;
};

struct Arrays {
  const void *x, *gy, *t, *v;  // gy: null for the forward pass; v: null without weights
  void* out;                   // the result, or the gradient of x, which may be null
  const Epilogue* epilogue;    // what follows the forward pass, or null
};

// ---- coefficients ----------------------------------------------------------------------------------------------------

// In what follows P is the type of a parameter: a number for all lanes or a vector with one for each.

// S(z; t) * scale, for scaled = t * scale.
template <bool SMOOTH, class R, class V, class P> INLINE V threshold(V z, P scaled, R scale) {
  const V e = relu(absolute(z) * scale - scaled);
  return SMOOTH ? tanh_times(z, e) : sign(z) * e;
}

// Gradients of S(z; t) for the gradient g of its value: returned for z; added to dt for -t.
template <bool SMOOTH, class V, class P> INLINE V threshold_gradient(V z, P t, V g, V& dt) {
  const V e = absolute(z) - t, one = V{} + 1;
  const V f = SMOOTH ? tanh_times(z, one) : sign(z);
  const V fm = e <= V{} ? V{} : f;
  dt += g * fm;
  return SMOOTH ? g * (tanh_slope(z, f) * relu(e) + absolute(fm)) : g * (fm * f);
}

template <class R> struct Parameters {  // of one block, slot by slot
  const R *T, *scaled;                  // thresholds; the same times the scale of the way back
  const R *W, *U;                       // weights times the scale of the way forth; times both
  R scale;                              // of the way back
};

template <class T> class Buffer {  // starts at a cache line
 public:
  explicit Buffer(size_t n = 0) {
    if (n && posix_memalign((void**)&memory, 64, n * sizeof(T))) throw std::bad_alloc();
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(memory); }
  T& operator[](size_t i) { return memory[i]; }
  const T* at(size_t i) const { return memory + i; }

 private:
  T* memory = nullptr;
};

// A layer divides its work into items; a block's coefficients stand in `slots`, in the order in which it meets them.
template <class R, class S> struct Layer {
  const Job& job;
  const S *const x, *const gy;
  S* const out;
  const bool read_again;               // the result, at once
  const bool has_weight;
  const int64_t block, blocks, slots;  // points of a block; blocks of the wide side; slots of a block
  const int64_t sets;                  // of parameters: one, or one for each block
  const R forth, back;                 // scales of the transforms before and after the thresholds
  const std::vector<int> coefficient;  // of each slot
  const int64_t items, chunk_items, chunks;

  // Chunks depend on the work alone, so that sums come out the same for any number of threads.
  static int64_t chunk_size(int64_t items, bool backward) {
    const int64_t wish = backward ? (items + 7) / 8 : (items + 1) / 2;
    const int64_t chunks = wish < 1 ? 1 : wish > 64 ? 64 : wish;
    return (items + chunks - 1) / chunks;
  }

  Layer(const Job& job, const Arrays& a, std::vector<int> order, int64_t items)
      : job(job),
        x((const S*)a.x),
        gy((const S*)a.gy),
        out((S*)a.out),
        read_again(a.epilogue != nullptr),
        has_weight(a.v != nullptr),
        block(int64_t(1) << job.log2_block),
        blocks(job.blocks_in > job.blocks_out ? job.blocks_in : job.blocks_out),
        slots(order.size()),
        sets(job.shared ? 1 : blocks),
        forth(job.ortho ? R(1 / std::sqrt(double(block))) : R(1)),
        back(R((job.ortho ? 1 / std::sqrt(double(block)) : 1 / double(block)) / double(job.means))),
        coefficient(std::move(order)),
        items(items),
        chunk_items(chunk_size(items, gy)),
        chunks((items + chunk_items - 1) / chunk_items),
        active(sets * slots),
        T(sets * slots),
        scaled(sets * slots),
        W(sets * slots),
        U(sets * slots) {
    for (int64_t at = 0; at < sets * slots; at++) {
      const int64_t b = at / slots, p = coefficient[at % slots];
      const R t = ((const R*)a.t)[b * block + p], v = has_weight ? ((const R*)a.v)[b * block + p] : R(1);
      active[at] = !(job.clamp && t <= 0);
      T[at] = active[at] ? t : R(0);
      scaled[at] = T[at] * back;
      W[at] = v * forth, U[at] = v * forth * back;
    }
    if (gy) sums.assign(chunks * 2 * sets * slots, 0.0);
  }

  int64_t result_bytes() const {
    const Side& s = gy ? job.in : job.out;
    return job.images * job.lanes * s.H * s.W * int64_t(sizeof(S));
  }

  bool paired() const { return job.blocks_in == job.blocks_out; }

  int64_t set(int64_t b) const { return job.shared ? 0 : b; }

  Parameters<R> parameters(int64_t b) const {
    const int64_t at = set(b) * slots;
    return {T.at(at), scaled.at(at), W.at(at), U.at(at), back};
  }

  // Sums of a chunk for T and then for V, neither scaled yet, block by block and slot by slot.
  double* chunk_sums(int64_t chunk) { return sums.data() + chunk * 2 * sets * slots; }

  // Whether a side, `in` or not, is added up from what all blocks have there: windows overlap, points go into means.
  bool summed(bool is_in) const { return is_in ? job.span > 0 : job.means > 1; }

  // The first point of block b: of a side that is added up, in the line where its sums are.
  INLINE int64_t start(bool is_in, int64_t b) const {
    return is_in && job.span > 0 ? b * job.span / (blocks - 1) : b * block;
  }
  // Points of such a line.
  int64_t line(bool is_in) const { return is_in ? job.in.W : blocks * block; }

  // Items after which float sums go to double ones.
  int64_t flush_after() const { return sets < blocks ? (64 + blocks - 1) / blocks : 64; }

  void finish(R* gt, R* gv) const {
    std::vector<double> t(sets * block), v(sets * block);
    for (int64_t c = 0; c < chunks; c++)
      for (int64_t at = 0; at < sets * slots; at++) {
        const int64_t i = at / slots * block + coefficient[at % slots];
        if (active[at]) t[i] -= sums[2 * c * sets * slots + at];
        v[i] += sums[(2 * c + 1) * sets * slots + at];
      }
    for (int64_t i = 0; i < sets * block; i++) gt[i] = R(t[i] * back);
    for (int64_t i = 0; gv && i < sets * block; i++) gv[i] = R(v[i] * forth * back);
  }

 private:
  std::vector<char> active;  // where the clamp lets a gradient pass
  Buffer<R> T, scaled, W, U;
  std::vector<double> sums;
};

}  // namespace
