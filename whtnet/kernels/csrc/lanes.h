// One item per SIMD lane: lanes are neighbours in memory (channels of a channels_last map, pixels of an NCHW channel
// vector), an item's points lie apart. A tile of P rows x L lanes is worked on at a time, so that no butterfly crosses
// lanes. P = A*M*B: pass A transforms the lowest log2(A) bits of the point's index while it loads or stores, the middle
// pass (large P only) the next ones, and pass B the highest, forward and inverse, with weights and threshold in between.
#pragma once
#include "finisher.h"

namespace {

struct Radix { int A, M, B; };
#if VECTOR_BYTES == 64  // 32 registers
const Radix RADIX[13] = {{1, 1, 1}, {1, 1, 2}, {1, 1, 4}, {1, 1, 8}, {1, 1, 16}, {1, 1, 32}, {8, 1, 8},
                         {16, 1, 8}, {16, 1, 16}, {16, 1, 32}, {32, 1, 32}, {16, 8, 16}, {16, 16, 16}};
#else
const Radix RADIX[13] = {{1, 1, 1}, {1, 1, 2}, {1, 1, 4}, {1, 1, 8}, {1, 1, 16}, {8, 1, 4}, {8, 1, 8},
                         {8, 2, 8}, {8, 4, 8}, {8, 8, 8}, {8, 16, 8}, {16, 8, 16}, {16, 16, 16}};
#endif

template <class R> struct Access {  // one side of one tile
  bool vectors;               // all lanes exist and are neighbours
  bool uniform;               // every point exists, `point` elements apart
  int64_t point;
  const int64_t* table;       // offset of each point, -1 where it is padding
  int count;                  // lanes that exist
  int64_t lane[Lanes<R>::n];  // offset of each lane
};

template <class R, class S> INLINE typename Simd<R>::V load_point(const Access<R>& a, const S* src, int64_t p) {
  typedef typename Simd<R>::V V;
  const int64_t o = a.uniform ? p * a.point : a.table[p];
  V v = V{};
  if (o < 0) return v;
  if (a.vectors) return load(src + a.lane[0] + o);
  R lanes[Lanes<R>::n] = {};
  for (int l = 0; l < a.count; l++) lanes[l] = widen(src[a.lane[l] + o]);
  return load(lanes);
}

template <class R, class S> INLINE void store_point(const Access<R>& a, S* dst, int64_t p, typename Simd<R>::V v) {
  const int64_t o = a.uniform ? p * a.point : a.table[p];
  if (o < 0) return;
  if (a.vectors) return store(dst + a.lane[0] + o, v);
  S lanes[Lanes<R>::n];
  store(lanes, v);
  for (int l = 0; l < a.count; l++) dst[a.lane[l] + o] = lanes[l];
}

// Pass A, forward: load `rows` rows of A points from point p0 on, transform each, leave them in the tile.
template <class R, class S, int A>
__attribute__((noinline)) void load_pass(const Access<R>& a, const S* src, int rows, typename Simd<R>::V* tile) {
  typedef typename Simd<R>::V V;
  V r[A];
  if (a.vectors && a.uniform) {
    const S* s = src + a.lane[0];
    for (int k = 0; k < rows; k++, s += A * a.point) {
      UNROLL for (int j = 0; j < A; j++) r[j] = load(s + j * a.point);
      hadamard<A>(r);
      UNROLL for (int j = 0; j < A; j++) tile[k * (A + 1) + j] = r[j];
    }
  } else {
    for (int k = 0; k < rows; k++) {
      for (int j = 0; j < A; j++) tile[k * (A + 1) + j] = load_point<R, S>(a, src, k * A + j);
      if (A > 1) {
        UNROLL for (int j = 0; j < A; j++) r[j] = tile[k * (A + 1) + j];
        hadamard<A>(r);
        UNROLL for (int j = 0; j < A; j++) tile[k * (A + 1) + j] = r[j];
      }
    }
  }
}

// Pass A, inverse: transform each row of the tile and store it.
template <class R, class S, int A>
__attribute__((noinline)) void store_pass(const Access<R>& a, S* dst, int rows, typename Simd<R>::V* tile) {
  typedef typename Simd<R>::V V;
  V r[A];
  if (a.vectors && a.uniform) {
    S* s = dst + a.lane[0];
    for (int k = 0; k < rows; k++, s += A * a.point) {
      UNROLL for (int j = 0; j < A; j++) r[j] = tile[k * (A + 1) + j];
      hadamard<A>(r);
      UNROLL for (int j = 0; j < A; j++) store(s + j * a.point, r[j]);
    }
  } else {
    for (int k = 0; k < rows; k++) {
      if (A > 1) {
        UNROLL for (int j = 0; j < A; j++) r[j] = tile[k * (A + 1) + j];
        hadamard<A>(r);
        UNROLL for (int j = 0; j < A; j++) tile[k * (A + 1) + j] = r[j];
      }
      for (int j = 0; j < A; j++) store_point<R, S>(a, dst, k * A + j, tile[k * (A + 1) + j]);
    }
  }
}

template <class R, class S>
void load_rows(int A, const Access<R>& a, const S* src, int rows, typename Simd<R>::V* tile) {
  switch (A) {
    case 1: return load_pass<R, S, 1>(a, src, rows, tile);
    case 8: return load_pass<R, S, 8>(a, src, rows, tile);
    case 16: return load_pass<R, S, 16>(a, src, rows, tile);
    case 32: return load_pass<R, S, 32>(a, src, rows, tile);
  }
}
template <class R, class S>
void store_rows(int A, const Access<R>& a, S* dst, int rows, typename Simd<R>::V* tile) {
  switch (A) {
    case 1: return store_pass<R, S, 1>(a, dst, rows, tile);
    case 8: return store_pass<R, S, 8>(a, dst, rows, tile);
    case 16: return store_pass<R, S, 16>(a, dst, rows, tile);
    case 32: return store_pass<R, S, 32>(a, dst, rows, tile);
  }
}

// The middle pass, in the tile; its own inverse.
template <class V, int M> void middle(V* tile, int A, int B) {
  const int64_t stride = A + 1;
  for (int b = 0; b < B; b++)
    for (int j = 0; j < A; j++) {
      V* t = tile + b * M * stride + j;
      V r[M];
      UNROLL for (int k = 0; k < M; k++) r[k] = t[k * stride];
      hadamard<M>(r);
      UNROLL for (int k = 0; k < M; k++) t[k * stride] = r[k];
    }
}
template <class V> void middle_pass(const Radix& x, V* tile) {
  switch (x.M) {
    case 2: return middle<V, 2>(tile, x.A, x.B);
    case 4: return middle<V, 4>(tile, x.A, x.B);
    case 8: return middle<V, 8>(tile, x.A, x.B);
    case 16: return middle<V, 16>(tile, x.A, x.B);
  }
}

template <class V, int B> void high(V* tile, int A, int M) {
  const int64_t step = int64_t(M) * (A + 1);
  for (int m = 0; m < M; m++)
    for (int j = 0; j < A; j++) {
      V* t = tile + m * (A + 1) + j;
      V r[B];
      UNROLL for (int k = 0; k < B; k++) r[k] = t[k * step];
      hadamard<B>(r);
      UNROLL for (int k = 0; k < B; k++) t[k * step] = r[k];
    }
}

// Pass B forward, weights and threshold, pass B inverse.
template <class R, int B, bool SMOOTH>
__attribute__((noinline)) void high_forward(typename Simd<R>::V* tile, int A, int M, const Parameters<R>& p, bool dc) {
  typedef typename Simd<R>::V V;
  const int64_t step = int64_t(M) * (A + 1);
  const R *T = p.scaled, *W = p.W;
  V first = V{};
  for (int m = 0; m < M; m++)
    for (int j = 0; j < A; j++, T += B, W += B) {
      V* t = tile + m * (A + 1) + j;
      V r[B];
      UNROLL for (int k = 0; k < B; k++) r[k] = t[k * step];
      hadamard<B>(r);
      if (dc && j + m == 0) first = r[0];
      UNROLL for (int k = 0; k < B; k++) r[k] = threshold<SMOOTH>(r[k] * W[k], T[k], p.scale);
      if (dc && j + m == 0) r[0] = first * W[0] * p.scale;
      hadamard<B>(r);
      UNROLL for (int k = 0; k < B; k++) t[k * step] = r[k];
    }
}

// The same for gradients: `tile` holds x on its way to its gradient, `gtile` the gradient of the output. Sums for T and
// V (not yet scaled) are added to `dT` and `dV` (may be null).
template <class R, int B, bool SMOOTH>
__attribute__((noinline)) void high_backward(typename Simd<R>::V* tile, typename Simd<R>::V* gtile, int A, int M,
                                             const Parameters<R>& p, bool dc, typename Simd<R>::V* dT,
                                             typename Simd<R>::V* dV) {
  typedef typename Simd<R>::V V;
  const int64_t step = int64_t(M) * (A + 1);
  const R *T = p.T, *W = p.W, *U = p.U;
  for (int m = 0; m < M; m++)
    for (int j = 0; j < A; j++, T += B, W += B, U += B, dT += B) {
      V* t = tile + m * (A + 1) + j;
      V* g = gtile + m * (A + 1) + j;
      V r[B];
      UNROLL for (int k = 0; k < B; k++) r[k] = g[k * step];
      hadamard<B>(r);
      UNROLL for (int k = 0; k < B; k++) g[k * step] = r[k];
      UNROLL for (int k = 0; k < B; k++) r[k] = t[k * step];
      hadamard<B>(r);
      UNROLL for (int k = 0; k < B; k++) {
        V dz;
        if (k == 0 && dc && j + m == 0) {
          dz = g[0];
        } else {
          V sum = dT[k];
          dz = threshold_gradient<SMOOTH>(r[k] * W[k], T[k], g[k * step], sum);
          dT[k] = sum;
        }
        if (dV) dV[k] += dz * r[k];
        r[k] = dz * U[k];
      }
      hadamard<B>(r);
      UNROLL for (int k = 0; k < B; k++) t[k * step] = r[k];
      if (dV) dV += B;
    }
}

template <class R> struct Passes {
  typedef typename Simd<R>::V V;
#define FOR_B(CALL) \
  switch (x.B) { \
    case 1: return CALL(1); \
    case 2: return CALL(2); \
    case 4: return CALL(4); \
    case 8: return CALL(8); \
    case 16: return CALL(16); \
    case 32: return CALL(32); \
  }
  static void alone(const Radix& x, V* tile) {
#define CALL(b) high<V, b>(tile, x.A, x.M)
    FOR_B(CALL)
#undef CALL
  }
  static void forward(bool smooth, const Radix& x, V* tile, const Parameters<R>& p, bool dc) {
    if (smooth) {
#define CALL(b) high_forward<R, b, true>(tile, x.A, x.M, p, dc)
      FOR_B(CALL)
#undef CALL
    } else {
#define CALL(b) high_forward<R, b, false>(tile, x.A, x.M, p, dc)
      FOR_B(CALL)
#undef CALL
    }
  }
  static void backward(bool smooth, const Radix& x, V* tile, V* g, const Parameters<R>& p, bool dc, V* dT, V* dV) {
    if (smooth) {
#define CALL(b) high_backward<R, b, true>(tile, g, x.A, x.M, p, dc, dT, dV)
      FOR_B(CALL)
#undef CALL
    } else {
#define CALL(b) high_backward<R, b, false>(tile, g, x.A, x.M, p, dc, dT, dV)
      FOR_B(CALL)
#undef CALL
    }
  }
#undef FOR_B
};

template <class R, class S> struct LanesLayer : Layer<R, S> {
  typedef typename Simd<R>::V V;
  typedef Layer<R, S> Base;
  using Base::block, Base::blocks, Base::job;
  static const int L = Lanes<R>::n;

  const Radix radix;
  const int64_t tiles_per_image, tile;  // tile: its vectors; rows of A points and one unused, so that no stride is a
  std::vector<int64_t> table_in, table_out;  // power of two and passes do not fight for the cache's sets
  bool uniform_in, uniform_out;

  // Where pass B wants coefficients: the step between its points is the number of its groups.
  static std::vector<int> order(const Job& job) {
    const int64_t block = int64_t(1) << job.log2_block, B = RADIX[job.log2_block].B;
    std::vector<int> p(block);
    for (int64_t slot = 0; slot < block; slot++) p[slot] = int(slot % B * (block / B) + slot / B);
    return p;
  }

  LanesLayer(const Job& job, const Arrays& a)
      : Base(job, a, order(job), job.images * ((job.lanes + L - 1) / L)),
        radix(RADIX[job.log2_block]),
        tiles_per_image((job.lanes + L - 1) / L),
        tile(int64_t(radix.M) * radix.B * (radix.A + 1)) {
    uniform_in = this->summed(true) || describe(job.in, job.blocks_in * block, table_in);
    uniform_out = describe(job.out, job.blocks_out * block, table_out);
  }

  bool describe(const Side& s, int64_t points, std::vector<int64_t>& table) const {
    if (s.H * s.W == points && (s.H == 1 || s.row == s.W * s.point)) return true;
    table.resize(points);
    const int64_t means = &s == &job.out ? job.means : 1;
    for (int64_t p = 0; p < points; p++) {
      const int64_t i = p / means / job.width, j = p / means % job.width;
      table[p] = i < s.H && j < s.W ? i * s.row + j * s.point : -1;
    }
    return false;
  }

  Access<R> locate(const Side& s, bool uniform, const std::vector<int64_t>& table, int64_t item) const {
    Access<R> a;
    const int64_t image = item / tiles_per_image, q0 = item % tiles_per_image * L, left = job.lanes - q0;
    a.count = left < L ? int(left) : L;
    a.uniform = uniform, a.point = s.point, a.table = table.data();
    for (int l = 0; l < a.count; l++) {
      const int64_t q = q0 + l, j = q % job.lanes_j, i = q / job.lanes_j % job.lanes_i, n = q / job.lanes_j / job.lanes_i;
      a.lane[l] = image * s.image + n * s.n + i * s.i + j * s.j;
    }
    a.vectors = a.count == L && a.lane[L - 1] == a.lane[0] + L - 1 && s.j == 1;
    return a;
  }
  Access<R> input(int64_t item) const { return locate(job.in, uniform_in, table_in, item); }
  Access<R> output(int64_t item) const { return locate(job.out, uniform_out, table_out, item); }

  int rows() const { return int(block / radix.A); }

  void load_block(Access<R> a, bool is_in, int64_t b, const S* src, V* to) const {
    if (a.uniform) src += this->start(is_in, b) * a.point;
    else a.table += b * block;
    load_rows<R, S>(radix.A, a, src, rows(), to);
    if (radix.M > 1) middle_pass(radix, to);
  }

  // A tile to block b, or to the sums of all blocks: `sums`, an item's line of vectors, and behind it room for a block.
  void store_block(Access<R> a, bool is_in, int64_t b, S* dst, V* from, V* sums) const {
    if (radix.M > 1) middle_pass(radix, from);
    if (this->summed(is_in)) {
      V *stage = sums + this->line(is_in), *to = sums + this->start(is_in, b);
      Access<R> line = a;
      line.vectors = line.uniform = true, line.point = L, line.lane[0] = 0;
      store_rows<R, R>(radix.A, line, (R*)stage, rows(), from);
      for (int64_t k = 0; k < block; k++) to[k] += stage[k];
      return;
    }
    if (a.uniform) dst += b * block * a.point;
    else a.table += b * block;
    store_rows<R, S>(radix.A, a, dst, rows(), from);
  }

  int64_t sums_size(bool is_in) const { return this->summed(is_in) ? this->line(is_in) + block : 0; }

  void begin_item(bool is_in, V* sums) const { memset((void*)sums, 0, sums_size(is_in) * sizeof(V)); }

  void end_item(Access<R> a, bool is_in, S* dst, const V* sums) const {
    if (!this->summed(is_in)) return;
    const int64_t means = is_in ? 1 : job.means, points = is_in ? job.in.W : job.out.W;
    a.uniform = true;
    for (int64_t p = 0; p < points; p++, sums += means) {
      V sum = sums[0];
      for (int64_t k = 1; k < means; k++) sum += sums[k];
      store_point<R, S>(a, dst, p, sum);
    }
  }

  void forward_items(int64_t first, int64_t last) const {
    const int64_t tiles = this->paired() ? 1 : job.blocks_in + job.blocks_out;
    scratch.reserve(Scratch::bytes<V>(tiles * tile) + Scratch::bytes<V>(sums_size(false)));
    V *sources = scratch.take<V>(tiles * tile), *targets = sources + job.blocks_in * tile;
    V* sums = scratch.take<V>(sums_size(false));
    for (int64_t item = first; item < last; item++) {
      const Access<R> from = input(item), to = output(item);
      if (this->paired()) {
        begin_item(false, sums);
        for (int64_t b = 0; b < blocks; b++) {
          load_block(from, true, b, this->x, sources);
          Passes<R>::forward(job.smooth, radix, sources, this->parameters(b), job.keep_dc);
          store_block(to, false, b, this->out, sources, sums);
        }
        end_item(to, false, this->out, sums);
        continue;
      }
      for (int64_t b = 0; b < job.blocks_in; b++) {
        load_block(from, true, b, this->x, sources + b * tile);
        Passes<R>::alone(radix, sources + b * tile);
      }
      memset((void*)targets, 0, job.blocks_out * tile * sizeof(V));
      for (int64_t b = 0; b < blocks; b++) {
        V *source = sources + b % job.blocks_in * tile, *target = targets + b % job.blocks_out * tile;
        job.smooth ? pair<true>(b, source, target) : pair<false>(b, source, target);
      }
      for (int64_t b = 0; b < job.blocks_out; b++) {
        Passes<R>::alone(radix, targets + b * tile);
        store_block(to, false, b, this->out, targets + b * tile, sums);
      }
    }
  }

  void finish_items(int64_t first, int64_t last, const Finisher<R, S>& finisher) const {
    for (int64_t item = first; item < last; item++) {
      const Access<R> to = output(item);
      const int64_t channel = item % tiles_per_image * L, points = job.out.H * job.out.W;
      for (int64_t p = 0; p < points; p++) {
        const int64_t at = to.lane[0] + p * job.out.point;
        job.channels ? finisher.across(at, to.count, channel) : finisher.within(at, to.count, p);
      }
    }
  }

  INLINE int64_t place(int64_t slot) const {  // of a slot's coefficient in the tile
    const int64_t p = this->coefficient[slot];
    return p / radix.A * (radix.A + 1) + p % radix.A;
  }

  template <bool SMOOTH> void pair(int64_t b, const V* source, V* target) const {
    const Parameters<R> w = this->parameters(b);
    for (int64_t k = 0; k < block; k++) {
      const int64_t at = place(k);
      const V z = source[at] * w.W[k];
      target[at] += job.keep_dc && k == 0 ? z * w.scale : threshold<SMOOTH>(z, w.scaled[k], w.scale);
    }
  }

  void backward_items(int64_t first, int64_t last, double* sums) const {
    const int64_t tiles = this->paired() ? 2 : 2 * job.blocks_in + job.blocks_out, coefficients = this->sets * block;
    scratch.reserve(Scratch::bytes<V>(tiles * tile) + Scratch::bytes<V>(2 * coefficients) +
                    Scratch::bytes<V>(sums_size(true)));
    V *sources = scratch.take<V>(tiles * tile), *gradients = sources + job.blocks_in * tile,
      *targets = gradients + job.blocks_in * tile;
    V *dT = scratch.take<V>(2 * coefficients), *dV = this->has_weight ? dT + coefficients : nullptr;
    V* added = scratch.take<V>(sums_size(true));
    memset((void*)dT, 0, 2 * coefficients * sizeof(V));
    for (int64_t item = first; item < last; item++) {
      const Access<R> from = input(item), to = output(item);
      if (this->paired()) {
        begin_item(true, added);
        for (int64_t b = 0; b < blocks; b++) {
          V *source = sources, *target = sources + tile;
          const int64_t at = this->set(b) * block;
          load_block(from, true, b, this->x, source);
          load_block(to, false, b, this->gy, target);
          Passes<R>::backward(job.smooth, radix, source, target, this->parameters(b), job.keep_dc, dT + at,
                              dV ? dV + at : nullptr);
          if (this->out) store_block(from, true, b, this->out, source, added);
        }
        if (this->out) end_item(from, true, this->out, added);
      } else {
        for (int64_t b = 0; b < job.blocks_in; b++) {
          load_block(from, true, b, this->x, sources + b * tile);
          Passes<R>::alone(radix, sources + b * tile);
        }
        for (int64_t b = 0; b < job.blocks_out; b++) {
          load_block(to, false, b, this->gy, targets + b * tile);
          Passes<R>::alone(radix, targets + b * tile);
        }
        memset((void*)gradients, 0, job.blocks_in * tile * sizeof(V));
        for (int64_t b = 0; b < blocks; b++) {
          const int64_t i = b % job.blocks_in * tile, o = b % job.blocks_out * tile;
          V *const dt = dT + this->set(b) * block, *const dv = dV ? dV + this->set(b) * block : nullptr;
          job.smooth ? pair_gradient<true>(b, sources + i, gradients + i, targets + o, dt, dv)
                     : pair_gradient<false>(b, sources + i, gradients + i, targets + o, dt, dv);
        }
        for (int64_t b = 0; this->out && b < job.blocks_in; b++) {
          Passes<R>::alone(radix, gradients + b * tile);
          store_block(from, true, b, this->out, gradients + b * tile, added);
        }
      }
      if ((item + 1 - first) % this->flush_after() == 0 || item + 1 == last) flush(dT, sums, (dV ? 2 : 1) * coefficients);
    }
  }

  template <bool SMOOTH>
  void pair_gradient(int64_t b, const V* source, V* gradient, const V* target, V* dT, V* dV) const {
    const Parameters<R> w = this->parameters(b);
    for (int64_t k = 0; k < block; k++) {
      const int64_t at = place(k);
      V dz = target[at];
      if (!(job.keep_dc && k == 0)) dz = threshold_gradient<SMOOTH>(source[at] * w.W[k], w.T[k], dz, dT[k]);
      if (dV) dV[k] += dz * source[at];
      gradient[at] += dz * w.U[k];
    }
  }

  static void flush(V* from, double* to, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
      double s = 0;
      for (int l = 0; l < L; l++) s += from[i][l];
      to[i] += s;
      from[i] = V{};
    }
  }
};

}  // namespace
