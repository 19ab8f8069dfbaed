// An item's points are neighbours in memory (pixels of an NCHW map, channels of a channels_last pixel) and lie in the
// lanes of successive vectors: one item at a time, or several small ones, which make up a unit of Q points.
//
// Index of a point: (high bits, bits of one of up to RB registers, bits of the lane). Bits of the register's number are
// butterflies between registers; for those of the lane, the two kinds of bits change places, which costs one shuffle a
// vector and bit, and change back in the inverse. Where they are in between, thresholds and weights have been put once.
// Units of up to RB vectors stay in registers; larger ones take three passes over a tile in the cache: registers and
// lanes, high bits with weights and threshold in between, lanes and registers.
#pragma once
#include <type_traits>

#include "finisher.h"

namespace {

template <class R, class S> struct PointsLayer : Layer<R, S> {
  typedef typename Simd<R>::V V;
  typedef typename Simd<R>::I I;
  typedef Layer<R, S> Base;
  using Base::block, Base::blocks, Base::job, Base::slots;
  static const int L = Lanes<R>::n, RB = VECTOR_BYTES == 64 ? 16 : 8;

  // ---- transforms --------------------------------------------------------------------------------------------------

  // Butterflies between registers over those of the first COUNT bits of their number that stand for a bit of the point's
  // index, `first` and on, below `bits`: the others tell items of a unit apart.
  template <int NV, int COUNT> static INLINE void butterflies(V* r, int first, int bits) {
    UNROLL for (int h = 1, bit = first; h < COUNT; h *= 2, bit++)
      if (bit < bits) UNROLL for (int i = 0; i < NV; i++)
          if (!(i & h)) {
            const V a = r[i], b = r[i + h];
            r[i] = a + b;
            r[i + h] = a - b;
          }
  }

  // Lane bits D, 2D, … change places with as many bits of the register's number, 1, 2, … below COUNT.
  template <class T, class M, int NV, int D, int COUNT, int H = 1> static INLINE void swap_bits(T* r) {
    if constexpr (H < COUNT) {
      UNROLL for (int i = 0; i < NV; i++)
        if (!(i & H)) swap_bit<M, D>(r[i], r[i + H]);
      swap_bits<T, M, NV, 2 * D, COUNT, 2 * H>(r);
    }
  }

  static constexpr int log2(int n) { return n > 1 ? 1 + log2(n / 2) : 0; }
  template <int NV> static constexpr int count(int D) { return NV < L / D ? NV : L / D; }  // 2^(bits swapped at once)

  template <int NV, int D = 0> static INLINE void forward(V* r, int bits) {
    if constexpr (D == 0) {
      butterflies<NV, NV>(r, log2(L), bits);
      forward<NV, 1>(r, bits);
    } else if constexpr (D < L) {
      swap_bits<V, I, NV, D, count<NV>(D)>(r);
      butterflies<NV, count<NV>(D)>(r, log2(D), bits);
      forward<NV, D * count<NV>(D)>(r, bits);
    }
  }
  template <int NV, int D = 0> static INLINE void inverse(V* r, int bits) {
    if constexpr (D == 0) {
      inverse<NV, 1>(r, bits);
      butterflies<NV, NV>(r, log2(L), bits);
    } else if constexpr (D < L) {
      inverse<NV, D * count<NV>(D)>(r, bits);
      butterflies<NV, count<NV>(D)>(r, log2(D), bits);
      swap_bits<V, I, NV, D, count<NV>(D)>(r);
    }
  }
  template <int NV, int D = 1> static INLINE void permute(I* r) {  // what `forward` does to places
    if constexpr (D < L) {
      swap_bits<I, I, NV, D, count<NV>(D)>(r);
      permute<NV, D * count<NV>(D)>(r);
    }
  }

  // Calls f with the number of vectors that are transformed at a time.
  template <class F> static void with_low(int64_t vectors, F f) {
    if (vectors == 4) return f(std::integral_constant<int, 4>());
    if (vectors == 8 || RB == 8) return f(std::integral_constant<int, 8>());
    f(std::integral_constant<int, 16>());
  }

  // ---- the job -----------------------------------------------------------------------------------------------------

  static int64_t unit_points(const Job& job) {
    const int64_t block = int64_t(1) << job.log2_block;
    return block > 4 * L ? block : 4 * L;
  }

  struct View {               // one side of the job
    const Side& s;
    int64_t step;             // from one item to the next where it is always the same, else 0
    int64_t whole_units;      // so many units from the first on, and
    int64_t whole_blocks;     // so many blocks of them, fill whole vectors and are read and written in place
    bool is_in, summed;       // see Layer::summed: written by way of a line
  };

  const int64_t vectors, group, pixels;  // vectors and items of a unit; all items
  Buffer<R> dc;                          // 1 for slots of coefficient 0, else 0
  const View in, result;

  template <int NV> static void places(std::vector<int>& p) {
    for (size_t start = 0; start < p.size(); start += NV * L) {
      I r[NV];
      for (int i = 0; i < NV * L; i++) r[i / L][i % L] = int(start) + i;
      permute<NV>(r);
      for (int i = 0; i < NV * L; i++) p[start + i] = int(r[i / L][i % L]);
    }
  }
  static std::vector<int> order(const Job& job) {
    std::vector<int> p(unit_points(job));
    with_low(p.size() / L, [&](auto n) { places<n>(p); });
    for (int& place : p) place &= (1 << job.log2_block) - 1;
    return p;
  }

  static int64_t units(const Job& job) {
    const int64_t group = unit_points(job) >> job.log2_block;
    return (job.images * job.lanes + group - 1) / group;
  }

  PointsLayer(const Job& job, const Arrays& a)
      : Base(job, a, order(job), units(job)),
        vectors(slots / L),
        group(slots / block),
        pixels(job.images * job.lanes),
        dc(slots),
        in(view(job.in, true)),
        result(view(job.out, false)) {
    for (int64_t k = 0; k < slots; k++) dc[k] = this->coefficient[k] == 0;
  }

  View view(const Side& s, bool is_in) const {
    const bool one = job.lanes_j == 1 && job.lanes_i == 1;
    const bool linear = one || (s.n == job.lanes_i * job.lanes_j * s.j && (job.lanes_i == 1 || s.i == job.lanes_j * s.j));
    const int64_t step = !linear ? 0 : one ? s.n : s.j;
    const bool rows = s.H == 1 || (s.W == job.width && s.row == s.W);
    const bool joined = group == 1 || (blocks == 1 && step == block);
    const bool summed = this->summed(is_in);
    const int64_t whole_blocks = !summed ? s.H * s.W / block : is_in ? blocks : 0;
    return {s, step, rows && joined ? pixels / group : 0, whole_blocks, is_in, summed};
  }

  INLINE int64_t offset(const View& v, int64_t q) const {
    if (v.step) return q * v.step;
    const int64_t j = q % job.lanes_j, i = q / job.lanes_j % job.lanes_i, n = q / job.lanes_j / job.lanes_i;
    return n * v.s.n + i * v.s.i + j * v.s.j;
  }

  // ---- memory ------------------------------------------------------------------------------------------------------

  // Block b of unit u, in place or through `stage`.
  static INLINE bool in_place(const View& v, int64_t u, int64_t b) { return u < v.whole_units && b < v.whole_blocks; }

  INLINE const S* read(const View& v, const S* src, int64_t u, int64_t b, S* stage) const {
    return in_place(v, u, b) ? src + offset(v, u * group) + this->start(v.is_in, b) : gather(v, src, u, b, stage);
  }
  INLINE S* target(const View& v, S* dst, int64_t u, int64_t b, S* stage) const {
    return in_place(v, u, b) ? dst + offset(v, u * group) + b * block : stage;
  }
  INLINE void write(const View& v, S* dst, int64_t u, int64_t b, const S* stage) const {
    if (!in_place(v, u, b)) scatter(v, dst, u, b, stage);
  }

  __attribute__((noinline)) const S* gather(const View& v, const S* src, int64_t u, int64_t b, S* stage) const {
    memset((void*)stage, 0, slots * sizeof(S));
    if (v.summed && !v.is_in) spread(v, src, u, b, stage);
    else for_rows(v, u, b, [&](int64_t at, int64_t place, int64_t n) { copy(stage + place, src + at, n); });
    return stage;
  }
  __attribute__((noinline)) void scatter(const View& v, S* dst, int64_t u, int64_t b, const S* stage) const {
    for_rows(v, u, b, [&](int64_t at, int64_t place, int64_t n) { copy(dst + at, stage + place, n); });
  }

  // The rows of points that exist in block b of unit u: offset in memory, place in the unit, number of points.
  template <class F> void for_rows(const View& v, int64_t u, int64_t b, F row) const {
    for (int64_t g = 0; g < group && u * group + g < pixels; g++) {
      const int64_t at = offset(v, u * group + g), start = this->start(v.is_in, b), left = v.s.W - start;
      if (v.s.H == 1 && left > 0) row(at + start, g * block, left < block ? left : block);
      for (int64_t i = 0; v.s.H > 1 && i < v.s.H; i++) row(at + i * v.s.row, g * block + i * job.width, v.s.W);
    }
  }

  // Each point of the result to all points that it is the mean of; 1 / means is in the scales.
  void spread(const View& v, const S* src, int64_t u, int64_t b, S* stage) const {
    for (int64_t g = 0; g < group && u * group + g < pixels; g++) {
      const S* from = src + offset(v, u * group + g);
      const int64_t first = b * block, last = first + block, end = v.s.W * job.means < last ? v.s.W * job.means : last;
      for (int64_t p = first, o = p / job.means, left = (o + 1) * job.means - p; p < end; p++) {
        stage[g * block + p - first] = from[o];
        if (--left == 0) o++, left = job.means;
      }
    }
  }

  // ---- sums over blocks: a line for each item of a unit ------------------------------------------------------------

  int64_t line_size(const View& v) const { return (this->line(v.is_in) + L - 1) / L * L; }
  int64_t lines_size(const View& v) const { return v.summed ? group * line_size(v) : 0; }

  // A block of a unit.
  void add(const View& v, int64_t b, const R* stage, R* lines) const {
    const int64_t size = line_size(v), start = this->start(v.is_in, b);
    for (int64_t g = 0; g < group; g++)
      for (int64_t k = 0; k < block; k++) lines[g * size + start + k] += stage[g * block + k];
  }

  void write_lines(const View& v, S* dst, int64_t u, R* lines) const {
    const int64_t size = line_size(v);
    for (int64_t g = 0; g < group && u * group + g < pixels; g++) {
      R* line = lines + g * size;
      if (!v.is_in)
        for (int64_t o = 0; o < v.s.W; o++) {
          R sum = line[o * job.means];
          for (int64_t k = 1; k < job.means; k++) sum += line[o * job.means + k];
          line[o] = sum;
        }
      S *to = dst + offset(v, u * group + g), tail[L];
      int64_t p = 0;
      for (; p + L <= v.s.W; p += L) store(to + p, load(line + p));
      store(tail, load(line + (p < size ? p : 0)));
      copy(to + p, tail, v.s.W - p);
    }
  }

  static INLINE void copy(S* to, const S* from, int64_t n) {  // small n: no call
    for (; n >= 8; n -= 8, to += 8, from += 8) memcpy((void*)to, from, 8 * sizeof(S));
    if (n & 4) memcpy((void*)to, from, 4 * sizeof(S)), to += 4, from += 4;
    if (n & 2) memcpy((void*)to, from, 2 * sizeof(S)), to += 2, from += 2;
    if (n & 1) *to = *from;
  }

  // Loads, and asks for what lies a few units on: the next loads are too far in the program for the processor to see.
  static INLINE V fetch(const S* p) {
    __builtin_prefetch((const char*)p + 2048);
    return load(p);
  }

  // Results that no cache keeps go past it, which saves reading the memory that they replace.
  bool streams() const {
    const View& v = this->gy ? in : result;
    const bool whole = v.whole_units > 0 && v.whole_blocks * block >= v.s.H * v.s.W;
    return whole && this->result_bytes() > (24 << 20) && !this->read_again;
  }
  template <int NV, class O> static INLINE void put(const V* r, O* to, bool streams) {
    if (streams && uintptr_t(to) % VECTOR_BYTES == 0) UNROLL for (int i = 0; i < NV; i++) stream(to + i * L, r[i]);
    else UNROLL for (int i = 0; i < NV; i++) store(to + i * L, r[i]);
  }

  // ---- units in registers ------------------------------------------------------------------------------------------

  template <int NV, int M, bool SMOOTH, bool FULL, class O>
  static __attribute__((noinline)) void forward_units(const S* const* from, O* const* to, const Parameters<R>& w,
                                                      int log2_block, bool streams) {
    const int bits = FULL ? 64 : log2_block;
    V r[M][NV];
    UNROLL for (int m = 0; m < M; m++) {
      UNROLL for (int i = 0; i < NV; i++) r[m][i] = fetch(from[m] + i * L);
      forward<NV>(r[m], bits);
    }
    UNROLL for (int i = 0; i < NV; i++)
      UNROLL for (int m = 0; m < M; m++)
        r[m][i] = threshold<SMOOTH>(r[m][i] * load(w.W + i * L), load(w.scaled + i * L), w.scale);
    UNROLL for (int m = 0; m < M; m++) {
      inverse<NV>(r[m], bits);
      put<NV>(r[m], to[m], streams);
    }
  }

  template <int NV, int M, bool SMOOTH, bool FULL, class O>
  static __attribute__((noinline)) void backward_units(const S* const* from, const S* const* grad, O* const* to,
                                                       const Parameters<R>& w, int log2_block, V* dT, V* dV,
                                                       bool streams) {
    const int bits = FULL ? 64 : log2_block;
    V r[M][NV], g[M][NV];
    UNROLL for (int m = 0; m < M; m++) {
      UNROLL for (int i = 0; i < NV; i++) r[m][i] = fetch(from[m] + i * L), g[m][i] = fetch(grad[m] + i * L);
      forward<NV>(r[m], bits);
      forward<NV>(g[m], bits);
    }
    UNROLL for (int i = 0; i < NV; i++) {
      V sum = dT[i], sum_v = V{};
      UNROLL for (int m = 0; m < M; m++) {
        const V dz = threshold_gradient<SMOOTH>(r[m][i] * load(w.W + i * L), load(w.T + i * L), g[m][i], sum);
        sum_v += dz * r[m][i];
        r[m][i] = dz * load(w.U + i * L);
      }
      dT[i] = sum;
      if (dV) dV[i] += sum_v;
    }
    UNROLL for (int m = 0; m < M; m++)
      if (to[m]) {
        inverse<NV>(r[m], bits);
        put<NV>(r[m], to[m], streams);
      }
  }

  // ---- units in a tile ---------------------------------------------------------------------------------------------

  // Bits of the point's index that `forward` and `inverse` see: all, but where several items make up a unit.
  template <int NV> int bits() const { return NV == 4 ? int(job.log2_block) : 64; }

  template <int NV> void low_forward(const S* from, V* tile) const {
    for (int64_t start = 0; start < vectors; start += NV) {
      V r[NV];
      UNROLL for (int i = 0; i < NV; i++) r[i] = fetch(from + (start + i) * L);
      forward<NV>(r, bits<NV>());
      UNROLL for (int i = 0; i < NV; i++) tile[start + i] = r[i];
    }
  }
  template <int NV, class O> void low_inverse(const V* tile, O* to, bool streams) const {
    for (int64_t start = 0; start < vectors; start += NV) {
      V r[NV];
      UNROLL for (int i = 0; i < NV; i++) r[i] = tile[start + i];
      inverse<NV>(r, bits<NV>());
      put<NV>(r, to + start * L, streams);
    }
  }

  // Butterflies over the highest bits, those above the 16 vectors of the high pass. Its own inverse.
  void rest_pass(V* tile) const {
    for (int64_t h = int64_t(RB) * 16; h < vectors; h *= 2)
      for (int64_t v = 0; v < vectors; v++)
        if (!(v & h)) {
          const V a = tile[v], b = tile[v + h];
          tile[v] = a + b;
          tile[v + h] = a - b;
        }
  }

  void spectrum(const S* from, V* tile) const {
    with_low(vectors, [&](auto n) { low_forward<n>(from, tile); });
    rest_pass(tile);
  }
  template <class O> void signal(V* tile, O* to, bool streams) const {
    rest_pass(tile);
    with_low(vectors, [&](auto n) { low_inverse<n>(tile, to, streams); });
  }

  // Calls f with the first of the H vectors, RB apart, that the high bits tell apart, for K such groups at a time.
  template <int H, int K, class F> INLINE void for_groups(F f) const {
    const int64_t low = H == 1 ? vectors : RB;
    for (int64_t start = 0; start < vectors; start += low * H)
      for (int64_t j = 0; j < low; j += K) f(start + j);
  }
  template <class F> void with_high(F f) const {
    const int64_t high = vectors / RB;
    if (high <= 1) return f(std::integral_constant<int, 1>());
    if (high == 2) return f(std::integral_constant<int, 2>());
    if (high == 4) return f(std::integral_constant<int, 4>());
    if (high == 8) return f(std::integral_constant<int, 8>());
    f(std::integral_constant<int, 16>());
  }
  static constexpr int together(int H) { return H < 4 ? 4 : H < 8 ? 2 : 1; }

  template <int H> void high_alone(V* tile) const {
    if (H == 1) return;
    for_groups<H, 1>([&](int64_t at) __attribute__((always_inline)) {
      V r[H];
      UNROLL for (int h = 0; h < H; h++) r[h] = tile[at + h * RB];
      hadamard<H>(r);
      UNROLL for (int h = 0; h < H; h++) tile[at + h * RB] = r[h];
    });
  }

  INLINE V kept(int64_t v) const { return load(dc.at(v * L)); }

  template <bool SMOOTH> INLINE V value(V z, const Parameters<R>& w, int64_t v) const {
    const V y = threshold<SMOOTH>(z, load(w.scaled + v * L), w.scale);
    return job.keep_dc ? (kept(v) != 0 ? z * w.scale : y) : y;
  }
  template <bool SMOOTH> INLINE V gradient(V z, V g, const Parameters<R>& w, int64_t v, V& dT) const {
    V sum = dT;
    const V dz = threshold_gradient<SMOOTH>(z, load(w.T + v * L), g, sum);
    dT = job.keep_dc ? (kept(v) != 0 ? dT : sum) : sum;
    return job.keep_dc ? (kept(v) != 0 ? g : dz) : dz;
  }

  template <int H, bool SMOOTH> __attribute__((noinline)) void high_forward(V* tile, const Parameters<R>& w) const {
    const int K = together(H);
    for_groups<H, K>([&](int64_t at) __attribute__((always_inline)) {
      V r[K][H];
      UNROLL for (int k = 0; k < K; k++) {
        UNROLL for (int h = 0; h < H; h++) r[k][h] = tile[at + k + h * RB];
        hadamard<H>(r[k]);
      }
      UNROLL for (int h = 0; h < H; h++)
        UNROLL for (int k = 0; k < K; k++) {
          const int64_t v = at + k + h * RB;
          r[k][h] = value<SMOOTH>(r[k][h] * load(w.W + v * L), w, v);
        }
      UNROLL for (int k = 0; k < K; k++) {
        hadamard<H>(r[k]);
        UNROLL for (int h = 0; h < H; h++) tile[at + k + h * RB] = r[k][h];
      }
    });
  }

  template <int H, bool SMOOTH>
  __attribute__((noinline)) void high_backward(V* tile, V* grad, const Parameters<R>& w, V* dT, V* dV) const {
    for_groups<H, 1>([&](int64_t at) __attribute__((always_inline)) {
      V r[H], g[H];
      UNROLL for (int h = 0; h < H; h++) r[h] = tile[at + h * RB], g[h] = grad[at + h * RB];
      hadamard<H>(r);
      hadamard<H>(g);
      UNROLL for (int h = 0; h < H; h++) {
        const int64_t v = at + h * RB;
        const V dz = gradient<SMOOTH>(r[h] * load(w.W + v * L), g[h], w, v, dT[v]);
        if (dV) dV[v] += dz * r[h];
        r[h] = dz * load(w.U + v * L);
      }
      hadamard<H>(r);
      UNROLL for (int h = 0; h < H; h++) tile[at + h * RB] = r[h];
    });
  }

  // ---- forward -----------------------------------------------------------------------------------------------------

  bool in_registers() const { return this->paired() && vectors <= RB && !job.keep_dc; }

  template <class F> void with_registers(F f) const {  // NV, M and whether units are one block
    typedef std::integral_constant<int, 4> Four;
    const bool full = group == 1;
    if (vectors == 4) return full ? f(Four(), Four(), std::true_type()) : f(Four(), Four(), std::false_type());
    if (vectors == 8) return f(std::integral_constant<int, 8>(), std::integral_constant<int, 2>(), std::true_type());
    if constexpr (RB == 16) f(std::integral_constant<int, 16>(), std::integral_constant<int, 1>(), std::true_type());
  }

  void forward_items(int64_t first, int64_t last) const {
    if (in_registers())
      with_registers([&](auto nv, auto m, auto full) {
        with_target(result, [&](auto sums) {
          job.smooth ? forward_registers<nv, m, true, full, sums>(first, last)
                     : forward_registers<nv, m, false, full, sums>(first, last);
        });
      });
    else
      with_high([&](auto h) { job.smooth ? forward_tiles<h, true>(first, last) : forward_tiles<h, false>(first, last); });
  }

  // Calls f with whether a side is added up.
  template <class F> static void with_target(const View& v, F f) {
    v.summed ? f(std::true_type()) : f(std::false_type());
  }

  template <int NV, int M, bool SMOOTH, bool FULL, bool SUMS> void forward_registers(int64_t first, int64_t last) const {
    typedef typename std::conditional<SUMS, R, S>::type O;
    const int64_t lines_size = this->lines_size(result);
    scratch.reserve(Scratch::bytes<S>((M + 1) * slots) + Scratch::bytes<O>(M * slots) +
                    Scratch::bytes<R>(M * lines_size));
    S *stage_in = scratch.take<S>((M + 1) * slots), *zeros = stage_in + M * slots;
    O* stage_out = scratch.take<O>(M * slots);
    R* lines = scratch.take<R>(M * lines_size);
    memset((void*)zeros, 0, slots * sizeof(S));
    const S* from[M];
    O* to[M];
    const bool streams = !SUMS && this->streams();
    for (int64_t u = first; u < last; u += M) {
      memset((void*)lines, 0, M * lines_size * sizeof(R));
      for (int64_t b = 0; b < blocks; b++) {
        for (int m = 0; m < M; m++) {
          const bool exists = u + m < last;
          from[m] = exists ? read(in, this->x, u + m, b, stage_in + m * slots) : zeros;
          to[m] = stage_out + m * slots;
          if constexpr (!SUMS)
            if (exists) to[m] = target(result, this->out, u + m, b, to[m]);
        }
        forward_units<NV, M, SMOOTH, FULL>(from, to, this->parameters(b), int(job.log2_block), streams);
        for (int m = 0; m < M && u + m < last; m++)
          if constexpr (SUMS) add(result, b, stage_out + m * slots, lines + m * lines_size);
          else write(result, this->out, u + m, b, stage_out + m * slots);
      }
      for (int m = 0; SUMS && m < M && u + m < last; m++) write_lines(result, this->out, u + m, lines + m * lines_size);
    }
  }

  // A tile to block b of unit u, by way of `stage` or `lines`.
  void store_block(const View& v, S* dst, int64_t u, int64_t b, V* tile, R* stage, R* lines) const {
    if (v.summed) {
      signal(tile, stage, false);
      return add(v, b, stage, lines);
    }
    signal(tile, target(v, dst, u, b, (S*)stage), streams());
    write(v, dst, u, b, (S*)stage);
  }
  void begin_unit(const View& v, R* lines) const { memset((void*)lines, 0, lines_size(v) * sizeof(R)); }
  void end_unit(const View& v, S* dst, int64_t u, R* lines) const {
    if (v.summed) write_lines(v, dst, u, lines);
  }

  template <int H, bool SMOOTH> void forward_tiles(int64_t first, int64_t last) const {
    const int64_t tiles = this->paired() ? 1 : job.blocks_in + job.blocks_out;
    scratch.reserve(Scratch::bytes<V>(tiles * vectors) + Scratch::bytes<R>(slots) + Scratch::bytes<R>(lines_size(result)));
    V *sources = scratch.take<V>(tiles * vectors), *targets = sources + job.blocks_in * vectors;
    R *stage = scratch.take<R>(slots), *lines = scratch.take<R>(lines_size(result));
    for (int64_t u = first; u < last; u++) {
      if (this->paired()) {
        begin_unit(result, lines);
        for (int64_t b = 0; b < blocks; b++) {
          spectrum(read(in, this->x, u, b, (S*)stage), sources);
          high_forward<H, SMOOTH>(sources, this->parameters(b));
          store_block(result, this->out, u, b, sources, stage, lines);
        }
        end_unit(result, this->out, u, lines);
        continue;
      }
      for (int64_t b = 0; b < job.blocks_in; b++) {
        spectrum(read(in, this->x, u, b, (S*)stage), sources + b * vectors);
        high_alone<H>(sources + b * vectors);
      }
      memset((void*)targets, 0, job.blocks_out * vectors * sizeof(V));
      for (int64_t b = 0; b < blocks; b++) {
        const Parameters<R> w = this->parameters(b);
        const V* source = sources + b % job.blocks_in * vectors;
        V* sum = targets + b % job.blocks_out * vectors;
        for (int v = 0; v < vectors; v++) sum[v] += value<SMOOTH>(source[v] * load(w.W + v * L), w, v);
      }
      for (int64_t b = 0; b < job.blocks_out; b++) {
        high_alone<H>(targets + b * vectors);
        store_block(result, this->out, u, b, targets + b * vectors, stage, lines);
      }
    }
  }

  void finish_items(int64_t first, int64_t last, const Finisher<R, S>& finisher) const {
    const int64_t points = job.out.H * job.out.W, q = first * group, end = last * group < pixels ? last * group : pixels;
    if (!job.channels) return finisher.across(q * points, (end - q) * points, 0);
    for (int64_t map = q; map < end; map++) finisher.within(map * points, points, map % job.channels);
  }

  // ---- backward ----------------------------------------------------------------------------------------------------

  void backward_items(int64_t first, int64_t last, double* sums) const {
    if (in_registers())
      with_registers([&](auto nv, auto m, auto full) {
        constexpr int together = nv == 4 ? 2 : 1;
        with_target(in, [&](auto added) {
          job.smooth ? backward_registers<nv, together, true, full, added>(first, last, sums)
                     : backward_registers<nv, together, false, full, added>(first, last, sums);
        });
      });
    else
      with_high([&](auto h) {
        job.smooth ? backward_tiles<h, true>(first, last, sums) : backward_tiles<h, false>(first, last, sums);
      });
  }

  template <int NV, int M, bool SMOOTH, bool FULL, bool SUMS>
  void backward_registers(int64_t first, int64_t last, double* sums) const {
    typedef typename std::conditional<SUMS, R, S>::type O;
    const int64_t lines_size = this->lines_size(in), sets = this->sets;
    scratch.reserve(Scratch::bytes<S>((2 * M + 1) * slots) + Scratch::bytes<O>(M * slots) +
                    Scratch::bytes<R>(M * lines_size) + Scratch::bytes<V>(2 * sets * vectors));
    S *stage_in = scratch.take<S>((2 * M + 1) * slots), *stage_grad = stage_in + M * slots, *zeros = stage_grad + M * slots;
    O* stage_out = scratch.take<O>(M * slots);
    R* lines = scratch.take<R>(M * lines_size);
    V *dT = scratch.take<V>(2 * sets * vectors), *dV = this->has_weight ? dT + sets * vectors : nullptr;
    memset((void*)zeros, 0, slots * sizeof(S));
    memset((void*)dT, 0, 2 * sets * vectors * sizeof(V));
    const S *from[M], *grad[M];
    O* to[M];
    const bool streams = !SUMS && this->streams();
    int64_t pending = 0;
    for (int64_t u = first; u < last; u += M) {
      memset((void*)lines, 0, M * lines_size * sizeof(R));
      for (int64_t b = 0; b < blocks; b++) {
        for (int m = 0; m < M; m++) {
          const bool exists = u + m < last;
          const int64_t at = m * slots;
          from[m] = exists ? read(in, this->x, u + m, b, stage_in + at) : zeros;
          grad[m] = exists ? read(result, this->gy, u + m, b, stage_grad + at) : zeros;
          to[m] = this->out ? stage_out + at : nullptr;
          if constexpr (!SUMS)
            if (this->out && exists) to[m] = target(in, this->out, u + m, b, to[m]);
        }
        backward_units<NV, M, SMOOTH, FULL>(from, grad, to, this->parameters(b), int(job.log2_block),
                                            dT + this->set(b) * NV, dV ? dV + this->set(b) * NV : nullptr, streams);
        for (int m = 0; this->out && m < M && u + m < last; m++)
          if constexpr (SUMS) add(in, b, stage_out + m * slots, lines + m * lines_size);
          else write(in, this->out, u + m, b, stage_out + m * slots);
      }
      for (int m = 0; SUMS && this->out && m < M && u + m < last; m++)
        write_lines(in, this->out, u + m, lines + m * lines_size);
      if ((pending += M) >= this->flush_after() || u + M >= last) {
        flush(dT, sums, (dV ? 2 : 1) * sets * slots);
        pending = 0;
      }
    }
  }

  template <int H, bool SMOOTH> void backward_tiles(int64_t first, int64_t last, double* sums) const {
    const int64_t tiles = this->paired() ? 2 : 2 * job.blocks_in + job.blocks_out;
    const int64_t sets = this->sets;
    scratch.reserve(Scratch::bytes<V>(tiles * vectors) + Scratch::bytes<R>(slots) + Scratch::bytes<R>(lines_size(in)) +
                    Scratch::bytes<V>(2 * sets * vectors));
    V *sources = scratch.take<V>(tiles * vectors), *gradients = sources + job.blocks_in * vectors,
      *targets = gradients + job.blocks_in * vectors;
    R *stage = scratch.take<R>(slots), *lines = scratch.take<R>(lines_size(in));
    V *dT = scratch.take<V>(2 * sets * vectors), *dV = this->has_weight ? dT + sets * vectors : nullptr;
    memset((void*)dT, 0, 2 * sets * vectors * sizeof(V));
    for (int64_t u = first; u < last; u++) {
      if (this->paired()) {
        V *source = sources, *target = sources + vectors;
        begin_unit(in, lines);
        for (int64_t b = 0; b < blocks; b++) {
          spectrum(read(in, this->x, u, b, (S*)stage), source);
          spectrum(read(result, this->gy, u, b, (S*)stage), target);
          high_backward<H, SMOOTH>(source, target, this->parameters(b), dT + this->set(b) * vectors,
                                   dV ? dV + this->set(b) * vectors : nullptr);
          if (this->out) store_block(in, this->out, u, b, source, stage, lines);
        }
        if (this->out) end_unit(in, this->out, u, lines);
      } else {
        for (int64_t b = 0; b < job.blocks_in; b++) {
          spectrum(read(in, this->x, u, b, (S*)stage), sources + b * vectors);
          high_alone<H>(sources + b * vectors);
        }
        for (int64_t b = 0; b < job.blocks_out; b++) {
          spectrum(read(result, this->gy, u, b, (S*)stage), targets + b * vectors);
          high_alone<H>(targets + b * vectors);
        }
        memset((void*)gradients, 0, job.blocks_in * vectors * sizeof(V));
        for (int64_t b = 0; b < blocks; b++) {
          const Parameters<R> w = this->parameters(b);
          const int64_t i = b % job.blocks_in * vectors, o = b % job.blocks_out * vectors, at = this->set(b) * vectors;
          for (int v = 0; v < vectors; v++) {
            const V z = sources[i + v] * load(w.W + v * L);
            const V dz = gradient<SMOOTH>(z, targets[o + v], w, v, dT[at + v]);
            if (dV) dV[at + v] += dz * sources[i + v];
            gradients[i + v] += dz * load(w.U + v * L);
          }
        }
        for (int64_t b = 0; this->out && b < job.blocks_in; b++) {
          high_alone<H>(gradients + b * vectors);
          store_block(in, this->out, u, b, gradients + b * vectors, stage, lines);
        }
      }
      if ((u + 1 - first) % this->flush_after() == 0 || u + 1 == last) flush(dT, sums, (dV ? 2 : 1) * sets * slots);
    }
  }

  static void flush(V* from, double* to, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] += from[i / L][i % L];
    memset((void*)from, 0, n * sizeof(R));
  }
};

}  // namespace
