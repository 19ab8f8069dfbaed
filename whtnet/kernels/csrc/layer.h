// The job: what Python asks for, where activations lie, what is done with a coefficient, sums of gradients.
#pragma once
#include <cmath>
#include <mutex>
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

// clamp((y + added) * scale + shift + residual, low, high) of a result y: a scale and a shift for each channel, and
// addends of the shape and memory format of y, which may be null.
struct Epilogue {
  const void *scale, *shift, *added, *residual;
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

// A tile of many vectors is transformed in three passes over the bits of a vector's number: the lowest, rows of A
// neighbours, while it is loaded or stored; the next, B rows, forward and inverse with weights and threshold in between;
// the rest, M.
const int REGISTERS = VECTOR_BYTES == 64 ? 16 : 8;  // vectors that are transformed together: half of what there is
struct Radix {
  int64_t A, B, M;
  explicit Radix(int64_t n) : A(n < REGISTERS ? n : REGISTERS), B(n / A > 16 ? REGISTERS : n / A), M(n / A / B) {}
};

// Coefficients of the places in a tile, `of` in a vector, in the order in which the pass over B rows meets them.
std::vector<int> in_order(const std::vector<int>& tile, int64_t of) {
  const Radix x(tile.size() / of);
  std::vector<int> order(tile.size());
  for (size_t at = 0; at < tile.size(); at++) {
    const int64_t n = at / of, k = n % x.B, j = n / x.B % x.A, m = n / x.B / x.A;
    order[at] = tile[((m * x.B + k) * x.A + j) * of + at % of];
  }
  return order;
}

// make(log2_block) of a block that has been met before, once for the process.
template <std::vector<int> (*make)(int64_t)> const std::vector<int>& remembered(int64_t log2_block) {
  static std::vector<int> made[64];
  static std::once_flag flags[64];
  std::call_once(flags[log2_block], [&] { made[log2_block] = make(log2_block); });
  return made[log2_block];
}

// One side of the job.
struct View {
  Side s;
  bool is_in, summed;    // summed: added up from what all blocks have there, since windows overlap, points go into means
  int64_t step;          // from one item to the next where it is always the same, else 0
  int64_t read_blocks, written_blocks;  // so many blocks of a full unit lie in memory as in vectors: it is done in place
};

struct Unit {             // items that are worked on together
  int64_t image, first, count;  // the image, the first item's number in it, and how many exist
};

// A layer divides its work into units; a block's coefficients stand in `slots`, in the order in which it meets them.
template <class R, class S> struct Layer {
  const Job& job;
  const R* const t;
  const S *const x, *const gy;
  S* const out;
  const bool read_again;               // the result, at once
  const bool has_weight;
  const int64_t block, blocks, slots;  // points of a block; blocks of the wide side; slots of a block
  const int64_t sets;                  // of parameters: one, or one for each block
  const R forth, back;                 // scales of the transforms before and after the thresholds
  const std::vector<int>& coefficient;  // of each slot
  const int64_t group, units_per_image, units;  // group: items of a unit
  const int64_t chunk_units, chunks;
  const View in, result;

  // Chunks depend on the work alone, so that sums come out the same for any number of threads.
  static int64_t chunk_size(int64_t units, bool backward) {
    const int64_t wish = backward ? (units + 7) / 8 : (units + 1) / 2;
    const int64_t chunks = wish < 1 ? 1 : wish > 64 ? 64 : wish;
    return (units + chunks - 1) / chunks;
  }

  Layer(const Job& job, const Arrays& a, const std::vector<int>& order, int64_t group)
      : job(job),
        t((const R*)a.t),
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
        coefficient(order),
        group(group),
        units_per_image((job.lanes + group - 1) / group),
        units(job.images * units_per_image),
        chunk_units(chunk_size(units, gy)),
        chunks((units + chunk_units - 1) / chunk_units),
        in(view(job.in, true)),
        result(view(job.out, false)),
        scaled(sets * slots),
        W(sets * slots),
        T(gy ? sets * slots : 0),
        U(gy ? sets * slots : 0) {
    const R* v = (const R*)a.v;
    for (int64_t b = 0, at = 0; b < sets; b++)
      for (int64_t slot = 0; slot < slots; slot++, at++) {
        const int64_t i = b * block + coefficient[slot];
        const R threshold = active(i) ? t[i] : R(0), weight = v ? v[i] * forth : forth;
        scaled[at] = threshold * back, W[at] = weight;
        if (gy) T[at] = threshold, U[at] = weight * back;
      }
    if (gy) sums.assign(chunks * 2 * sets * slots, 0.0);
  }

  int64_t result_bytes() const {
    const Side& s = gy ? job.in : job.out;
    return job.images * job.lanes * s.H * s.W * int64_t(sizeof(S));
  }

  int64_t set(int64_t b) const { return job.shared ? 0 : b; }

  Parameters<R> parameters(int64_t b) const {
    const int64_t at = set(b) * slots;
    return {T.at(at), scaled.at(at), W.at(at), U.at(at), back};
  }

  // Sums of a chunk for T and then for V, neither scaled yet, block by block and slot by slot.
  double* chunk_sums(int64_t chunk) { return sums.data() + chunk * 2 * sets * slots; }

  View view(const Side& s, bool is_in) const {
    const int64_t inner = job.lanes_i * job.lanes_j;
    const bool linear = inner == 1 || ((job.lanes == inner || s.n == inner * s.j) &&
                                       (job.lanes_i == 1 || s.i == job.lanes_j * s.j));
    const int64_t step = !linear ? 0 : inner == 1 ? s.n : s.j;
    const bool rows = s.H == 1 || (s.W == job.width && s.row == s.W * s.point);
    const bool joined = job.layout == LANES ? step == 1 : group == 1 || (blocks == 1 && step == block);
    const bool summed = is_in ? job.span > 0 : job.means > 1;
    const int64_t whole = rows && joined ? s.H * s.W / block : 0;
    return {s, is_in, summed, step, !summed ? whole : is_in && rows && joined ? blocks : 0, summed ? 0 : whole};
  }

  // Offset of an item of a unit.
  INLINE int64_t offset(const View& v, const Unit& unit, int64_t item = 0) const {
    const int64_t q = unit.first + item, image = unit.image * v.s.image;
    if (v.step) return image + q * v.step;
    const int64_t j = q % job.lanes_j, i = q / job.lanes_j % job.lanes_i, n = q / job.lanes_j / job.lanes_i;
    return image + n * v.s.n + i * v.s.i + j * v.s.j;
  }

  // The first point of block b: of a side that is added up, in the line where its sums are.
  INLINE int64_t start(const View& v, int64_t b) const {
    if (b == 0) return 0;
    return v.is_in && job.span > 0 ? b * job.span / (blocks - 1) : b * block;
  }
  // Points of such a line.
  int64_t line(const View& v) const { return v.is_in ? v.s.W : blocks * block; }

  // Units after which float sums go to double ones.
  int64_t flush_after() const { return sets < blocks ? (64 + blocks - 1) / blocks : 64; }

  void finish(R* gt, R* gv) const {
    std::vector<double> dt(sets * block), dv(sets * block);
    for (int64_t c = 0; c < chunks; c++) {
      const double *const st = sums.data() + 2 * c * sets * slots, *const sv = st + sets * slots;
      for (int64_t b = 0, at = 0; b < sets; b++)
        for (int64_t slot = 0; slot < slots; slot++, at++) {
          const int64_t i = b * block + coefficient[slot];
          if (active(i)) dt[i] -= st[at];
          dv[i] += sv[at];
        }
    }
    for (int64_t i = 0; i < sets * block; i++) gt[i] = R(dt[i] * back);
    for (int64_t i = 0; gv && i < sets * block; i++) gv[i] = R(dv[i] * forth * back);
  }

 private:
  Buffer<R> scaled, W, T, U;  // the last two for gradients alone

  INLINE bool active(int64_t i) const { return !(job.clamp && t[i] <= 0); }  // whether the clamp lets a gradient pass
  std::vector<double> sums;
};

}  // namespace
