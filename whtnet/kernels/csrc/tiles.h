// The flow of a layer: units of items are loaded, transformed, weighted and thresholded, transformed back and stored.
// What a vector's lanes are is the form's affair (lanes.h, points.h): where vectors lie in memory, how the first pass
// transforms them, how many parameters a vector takes.
//
// Units of up to REGISTERS vectors stay in registers; larger ones take three passes over a tile in the cache (see Radix).
// Where more blocks stand on one side than on the other, their spectra meet in tiles.
#pragma once
#include "lanes.h"
#include "points.h"

namespace {

template <class Form> struct Tiles : Form {
  typedef typename Form::R R;
  typedef typename Form::S S;
  typedef typename Form::V V;
  using Form::block, Form::blocks, Form::group, Form::has_weight, Form::in, Form::job, Form::result, Form::sets;
  template <class T> using Run = typename Form::template Run<T>;
  static const int L = Lanes<R>::n;
  static const int PER_POINT = L / Form::PARAMETERS;  // elements from one point to the next in staged units

  const int64_t vectors;  // of a block of a unit
  const Radix radix;
  const int64_t tile;     // its vectors
  // Vectors from one row of a tile to the next: one is unused, so that no stride is a power of two and passes do not
  // fight for the cache's sets.
  static const int ROW = REGISTERS + 1;

  Tiles(const Job& job, const Arrays& a)
      : Form(job, a),
        vectors(this->slots / Form::PARAMETERS),
        radix(vectors),
        tile(radix.M * radix.B * ROW) {}

  // ---- memory ------------------------------------------------------------------------------------------------------

  template <class T> INLINE Run<T> place(const View& v, const Unit& unit, int64_t b, T* memory) const {
    return {memory + this->offset(v, unit) + this->start(v, b) * Form::point(v), v.s.point};
  }
  template <class T> static INLINE Run<T> staged(T* stage) { return {stage, L}; }

  // Block b of a unit, in place or in `stage`.
  INLINE Run<const S> source(const View& v, const Unit& unit, int64_t b, const S* from, S* stage) const {
    const bool in_place = unit.count == group && b < v.read_blocks;
    return in_place ? place(v, unit, b, from) : staged(gather(v, unit, b, from, stage));
  }

  __attribute__((noinline)) const S* gather(const View& v, Unit unit, int64_t b, const S* from, S* stage) const {
    if (blocks > 1 || unit.count < group) clear(stage);
    this->for_runs(v, unit, this->start(v, b), block, block, v.is_in ? 1 : job.means,
                   [=](int64_t at, int64_t place, auto n) INLINED { copy(stage + place, from + at, n); });
    return stage;
  }
  // `points` points from `first` on; `size`: from one item to the next.
  __attribute__((noinline)) void scatter(const View& v, Unit unit, int64_t first, int64_t points, int64_t size,
                                         S* to, const S* stage) const {
    this->for_runs(v, unit, first, points, size, 1,
                   [=](int64_t at, int64_t place, auto n) INLINED { copy(to + at, stage + place, n); });
  }
  void clear(void* stage) const { memset(stage, 0, vectors * sizeof(V)); }
  static INLINE void copy(S* to, const S* from, int64_t n) {  // small n: no call
    for (; n >= 8; n -= 8, to += 8, from += 8) memcpy((void*)to, from, 8 * sizeof(S));
    if (n & 4) memcpy((void*)to, from, 4 * sizeof(S)), to += 4, from += 4;
    if (n & 2) memcpy((void*)to, from, 2 * sizeof(S)), to += 2, from += 2;
    if (n & 1) *to = *from;
  }

  // Where block b of a unit is written: in place, or to `stage` (as R what will be added up).
  template <class O> INLINE Run<O> target(const View& v, const Unit& unit, int64_t b, S* to, O* stage) const {
    if constexpr (std::is_same<O, S>::value)
      if (unit.count == group && b < v.written_blocks) return place(v, unit, b, to);
    return staged(stage);
  }
  // From there to its place.
  void deliver(const View& v, Unit unit, int64_t b, S* to, const void* stage, R* lines) const {
    if (v.summed) add(v, b, (const R*)stage, lines);
    else scatter(v, unit, b * block, block, block, to, (const S*)stage);
  }

  // ---- sums over blocks: a line of points for each item, or for the items of a vector --------------------------------

  int64_t line_size(const View& v) const { return (this->line(v) * PER_POINT + L - 1) / L * L; }
  int64_t lines_size(const View& v) const { return v.summed ? group / PER_POINT * line_size(v) : 0; }

  __attribute__((noinline)) void add(const View& v, int64_t b, const R* stage, R* lines) const {
    const int64_t size = line_size(v), n = block * PER_POINT;
    lines += this->start(v, b) * PER_POINT;
    for (int64_t g = 0; g < group / PER_POINT; g++, lines += size, stage += n)
      for (int64_t k = 0; k < n; k++) lines[k] += stage[k];
  }

  void write_lines(const View& v, Unit unit, S* to, R* lines) const {
    const int64_t size = line_size(v), means = v.is_in ? 1 : job.means;
    const int E = PER_POINT;
    for (int64_t g = 0; means > 1 && g < group / E; g++) {
      R *to = lines + g * size, *from = to;
      for (int64_t o = 0; o < v.s.W; o++, to += E) {
        R sum[E] = {};
        for (int64_t i = 0; i < means; i++, from += E)
          UNROLL for (int e = 0; e < E; e++) sum[e] += from[e];
        memcpy(to, sum, sizeof sum);
      }
    }
    for (int64_t k = 0; !std::is_same<R, S>::value && k < lines_size(v); k += L) store((S*)lines + k, load(lines + k));
    scatter(v, unit, 0, v.s.W, size, to, (const S*)lines);
  }

  // ---- units in registers ------------------------------------------------------------------------------------------

  template <int N, class O> static INLINE void put(const V* r, Run<O> to, int64_t start, bool streams) {
    if (Form::STREAMS && streams && uintptr_t(to.p) % VECTOR_BYTES == 0)
      UNROLL for (int i = 0; i < N; i++) stream(to.at(start + i), r[i]);
    else
      UNROLL for (int i = 0; i < N; i++) store(to.at(start + i), r[i]);
  }

  template <int N, int M, bool FULL, bool SMOOTH, class O>
  static __attribute__((noinline)) void forward_units(const Run<const S>* from, const Run<O>* to, const Parameters<R>& w,
                                                      int log2_block, bool streams) {
    const int bits = FULL ? 64 : log2_block;
    V r[M][N];
    UNROLL for (int m = 0; m < M; m++) {
      UNROLL for (int i = 0; i < N; i++) r[m][i] = Form::fetch(from[m].at(i));
      Form::template forward<N>(r[m], bits);
    }
    UNROLL for (int i = 0; i < N; i++)
      UNROLL for (int m = 0; m < M; m++)
        r[m][i] = threshold<SMOOTH>(r[m][i] * Form::parameter(w.W, i), Form::parameter(w.scaled, i), w.scale);
    UNROLL for (int m = 0; m < M; m++) {
      Form::template inverse<N>(r[m], bits);
      put<N>(r[m], to[m], 0, streams);
    }
  }

  template <int N, int M, bool FULL, bool SMOOTH, class O>
  static __attribute__((noinline)) void backward_units(const Run<const S>* from, const Run<const S>* grad,
                                                       const Run<O>* to, const Parameters<R>& w, int log2_block, V* dT,
                                                       V* dV, bool streams) {
    const int bits = FULL ? 64 : log2_block;
    V r[M][N], g[M][N];
    UNROLL for (int m = 0; m < M; m++) {
      UNROLL for (int i = 0; i < N; i++) r[m][i] = Form::fetch(from[m].at(i)), g[m][i] = Form::fetch(grad[m].at(i));
      Form::template forward<N>(r[m], bits);
      Form::template forward<N>(g[m], bits);
    }
    UNROLL for (int i = 0; i < N; i++) {
      V sum = dT[i], sum_v = V{};
      UNROLL for (int m = 0; m < M; m++) {
        const V z = r[m][i] * Form::parameter(w.W, i);
        const V dz = threshold_gradient<SMOOTH>(z, Form::parameter(w.T, i), g[m][i], sum);
        sum_v += dz * r[m][i];
        r[m][i] = dz * Form::parameter(w.U, i);
      }
      dT[i] = sum;
      if (dV) dV[i] += sum_v;
    }
    UNROLL for (int m = 0; m < M; m++)
      if (to[m].p) {
        Form::template inverse<N>(r[m], bits);
        put<N>(r[m], to[m], 0, streams);
      }
  }

  // ---- units in a tile ---------------------------------------------------------------------------------------------

  // First pass, with what follows or precedes it: rows that are loaded, rows that are stored.
  template <class F> void with_rows(F f) const {
    with_constant<Form::LEAST, REGISTERS>(radix.A, [&](auto n) {
      const int bits = n == Form::LEAST && this->group > 1 ? int(job.log2_block) : 64;
      for (int64_t at = 0, start = 0; start < vectors; start += n, at += ROW) f(n, bits, at, start);
    });
  }
  void spectrum(Run<const S> from, V* tile) const {
    with_rows([&](auto n, int bits, int64_t at, int64_t start) INLINED {
      const int N = n;
      V r[N];
      UNROLL for (int i = 0; i < N; i++) r[i] = Form::fetch(from.at(start + i));
      Form::template forward<N>(r, bits);
      UNROLL for (int i = 0; i < N; i++) tile[at + i] = r[i];
    });
    far(tile);
  }
  template <class O> void signal(V* tile, Run<O> to, bool streams) const {
    far(tile);
    with_rows([&](auto n, int bits, int64_t at, int64_t start) INLINED {
      const int N = n;
      V r[N];
      UNROLL for (int i = 0; i < N; i++) r[i] = tile[at + i];
      Form::template inverse<N>(r, bits);
      put<N>(r, to, start, streams);
    });
  }

  template <int N> static INLINE void butterflies(V* t, int64_t step) {
    V r[N];
    UNROLL for (int k = 0; k < N; k++) r[k] = t[k * step];
    hadamard<N>(r);
    UNROLL for (int k = 0; k < N; k++) t[k * step] = r[k];
  }

  // Pass over M rows, its own inverse; more than 16 in two steps.
  template <int N, int LOW> void far(V* tile) const {
    const int STEP = LOW * REGISTERS * ROW;
    for (V* from = tile; from < tile + this->tile; from += N * STEP)
      for (V* row = from; row < from + STEP; row += ROW)
        for (int j = 0; j < REGISTERS; j++) butterflies<N>(row + j, STEP);
  }
  void far(V* tile) const {
    if (radix.M > 1) with_constant<2, 16>(radix.M, [&](auto n) { far<n, 1>(tile); });
    if (radix.M > 16) with_constant<2, 4>(radix.M / 16, [&](auto n) { far<n, 16>(tile); });
  }

  // Pass over B rows. Calls f with the number and the place of the first of K groups of B vectors.
  template <int K, class F> INLINE void for_groups(int64_t B, F f) const {
    for (int64_t m = 0, group = 0; m < radix.M; m++)
      for (int64_t j = 0; j < radix.A; j += K, group += K) f(group, m * B * ROW + j);
  }

  void near(V* tile) const {
    with_constant<1, 16>(radix.B, [&](auto B) {
      if (B > 1) for_groups<1>(B, [&](int64_t, int64_t at) INLINED { butterflies<B>(tile + at, ROW); });
    });
  }

  // What becomes of the coefficients in slot `group` * B + k, and of their gradients.
  template <bool SMOOTH> INLINE V value(V z, const Parameters<R>& w, int64_t group, int k, int B) const {
    const V y = threshold<SMOOTH>(z, Form::parameter(w.scaled, group * B + k), w.scale);
    return job.keep_dc ? this->where_first(z * w.scale, y, group, k, B) : y;
  }
  template <bool SMOOTH> INLINE V gradient(V z, V g, const Parameters<R>& w, int64_t group, int k, int B, V* dT) const {
    V &sum = dT[group * B + k], dt = sum;
    const V dz = threshold_gradient<SMOOTH>(z, Form::parameter(w.T, group * B + k), g, dt);
    sum = job.keep_dc ? this->where_first(sum, dt, group, k, B) : dt;
    return job.keep_dc ? this->where_first(g, dz, group, k, B) : dz;
  }

  template <int B, bool SMOOTH> __attribute__((noinline)) void near_forward(V* tile, const Parameters<R>& w) const {
    const int K = B == 1 ? Form::LEAST : B == 2 ? 4 : B == 4 ? 2 : 1;
    for_groups<K>(B, [&](int64_t group, int64_t at) INLINED {
      V r[K][B];
      UNROLL for (int i = 0; i < K; i++) {
        UNROLL for (int k = 0; k < B; k++) r[i][k] = tile[at + i + k * ROW];
        hadamard<B>(r[i]);
      }
      UNROLL for (int k = 0; k < B; k++)
        UNROLL for (int i = 0; i < K; i++)
          r[i][k] = value<SMOOTH>(r[i][k] * Form::parameter(w.W, (group + i) * B + k), w, group + i, k, B);
      UNROLL for (int i = 0; i < K; i++) {
        hadamard<B>(r[i]);
        UNROLL for (int k = 0; k < B; k++) tile[at + i + k * ROW] = r[i][k];
      }
    });
  }

  // `tile` holds x on its way to its gradient, `grad` that of the result. Adds to the sums for T, and for V or null.
  template <int B, bool SMOOTH>
  __attribute__((noinline)) void near_backward(V* tile, V* grad, const Parameters<R>& w, V* dT, V* dV) const {
    for_groups<1>(B, [&](int64_t group, int64_t at) INLINED {
      butterflies<B>(grad + at, ROW);
      V r[B];
      UNROLL for (int k = 0; k < B; k++) r[k] = tile[at + k * ROW];
      hadamard<B>(r);
      UNROLL for (int k = 0; k < B; k++) {
        const int64_t n = group * B + k;
        const V dz = gradient<SMOOTH>(r[k] * Form::parameter(w.W, n), grad[at + k * ROW], w, group, k, B, dT);
        if (dV) dV[n] += dz * r[k];
        r[k] = dz * Form::parameter(w.U, n);
      }
      hadamard<B>(r);
      UNROLL for (int k = 0; k < B; k++) tile[at + k * ROW] = r[k];
    });
  }

  // A block of the wide side, where several meet in one of the narrow side: spectra, not transformed back yet.
  template <bool SMOOTH> void mix(const V* from, V* to, const Parameters<R>& w) const {
    for_slots([&](int64_t group, int k, int B, int64_t at) INLINED {
      to[at] += value<SMOOTH>(from[at] * Form::parameter(w.W, group * B + k), w, group, k, B);
    });
  }
  template <bool SMOOTH>
  void mix_gradient(const V* from, const V* grad, V* to, const Parameters<R>& w, V* dT, V* dV) const {
    for_slots([&](int64_t group, int k, int B, int64_t at) INLINED {
      const int64_t n = group * B + k;
      const V dz = gradient<SMOOTH>(from[at] * Form::parameter(w.W, n), grad[at], w, group, k, B, dT);
      if (dV) dV[n] += dz * from[at];
      to[at] += dz * Form::parameter(w.U, n);
    });
  }
  // Calls f for every slot. Rows of one group's vectors lie apart: the inner loop goes along a row.
  template <class F> INLINE void for_slots(F f) const {
    if (radix.B == 1) return for_groups<1>(1, [&](int64_t group, int64_t at) INLINED { f(group, 0, 1, at); });
    const int B = int(radix.B);
    for (int64_t m = 0; m < radix.M; m++)
      for (int k = 0; k < B; k++)
        for (int64_t j = 0; j < REGISTERS; j++) f(m * REGISTERS + j, k, B, (m * B + k) * ROW + j);
  }

  // ---- the flow: forward, or BACK to the gradient of x and sums for T and V -----------------------------------------

  // Results that no cache keeps go past it, which saves reading the memory that they replace.
  bool streams(const View& v) const {
    return v.written_blocks * block >= v.s.H * v.s.W && this->result_bytes() > (24 << 20) && !this->read_again;
  }

  void forward(int64_t first, int64_t last) const { pass<false>(first, last, nullptr); }
  void backward(int64_t first, int64_t last, double* sums) const { pass<true>(first, last, sums); }

  template <bool BACK> void pass(int64_t first, int64_t last, double* sums) const {
    with_bool(job.smooth, [&](auto smooth) {
      with_bool(!std::is_same<R, S>::value && (BACK ? in : result).summed, [&](auto summed) {
        typedef typename std::conditional<summed, R, S>::type O;
        if (job.blocks_in != job.blocks_out) unpaired<BACK, smooth, O>(first, last, sums);
        else if (vectors > REGISTERS || job.keep_dc) in_tiles<BACK, smooth, O>(first, last, sums);
        else in_registers<BACK, smooth, O>(first, last, sums);
      });
    });
  }

  struct Work {  // of a thread: tiles; M stages each for result, x and gradient; M times lines; sums for T and V
    V *tiles, *stages, *lines, *dT, *dV;
  };

  // Calls f for M units at a time, of which `here` are there.
  template <bool BACK, int M, class F>
  INLINE void for_units(int64_t first, int64_t last, double* sums, int64_t tiles, F f) const {
    const View& to = BACK ? in : result;
    const int64_t lines = lines_size(to) / L, coefficients = BACK ? sets * vectors : 0;
    V* memory = scratch.get<V>(tiles * tile + 3 * M * vectors + M * lines + 2 * coefficients);
    Work w;
    w.tiles = memory, w.stages = w.tiles + tiles * tile, w.lines = w.stages + 3 * M * vectors;
    w.dT = w.lines + M * lines, w.dV = has_weight ? w.dT + coefficients : nullptr;
    memset((void*)w.lines, 0, (M * lines + 2 * coefficients) * sizeof(V));
    if (blocks == 1 && in.read_blocks * result.read_blocks == 0)
      for (int k = M; k < (BACK ? 3 : 2) * M; k++) clear(w.stages + k * vectors);
    int64_t pending = 0;
    for (int64_t u = first; u < last; u += M) {
      const int here = M == 1 || last - u >= M ? M : int(last - u);
      Unit unit[M];
      UNROLL for (int m = 0; m < M; m++) unit[m] = this->unit(u + m);
      f(unit, here, w);
      if (to.summed && this->out) {
        for (int m = 0; m < here; m++) write_lines(to, unit[m], this->out, (R*)(w.lines + m * lines));
        memset((void*)w.lines, 0, M * lines * sizeof(V));
      }
      if (BACK && ((pending += M) >= this->flush_after() || u + M >= last)) {
        flush(w.dT, sums, (w.dV ? 2 : 1) * coefficients);
        pending = 0;
      }
    }
  }

  // As many blocks on either side: calls f for each, with where it is read and written in M units.
  template <bool BACK, int M, class O, class F>
  INLINE void paired(int64_t first, int64_t last, double* sums, int64_t tiles, F f) const {
    const View& v = BACK ? in : result;
    S* const out = this->out;
    Parameters<R> p = this->parameters(0);
    for_units<BACK, M>(first, last, sums, tiles, [&](const Unit* unit, int here, const Work& w) INLINED {
      V* const stages = w.stages;
      const int64_t n = vectors;
      const auto stage = [=](int k) INLINED { return stages + k * n; };
      Run<const S> from[M], grad[M];
      Run<O> to[M];
      for (int64_t b = 0; b < blocks; b++) {
        UNROLL for (int m = 0; m < M; m++)
          if (m < here) {
            from[m] = source(in, unit[m], b, this->x, (S*)stage(M + m));
            if (BACK) grad[m] = source(result, unit[m], b, this->gy, (S*)stage(2 * M + m));
            to[m] = !BACK || out ? target(v, unit[m], b, out, (O*)stage(m)) : staged((O*)nullptr);
          } else {
            clear(stage(M + m));
            from[m] = grad[m] = staged((const S*)stage(M + m)), to[m] = staged(!BACK || out ? (O*)stage(m) : nullptr);
          }
        const int64_t at = this->set(b) * vectors;
        if (sets > 1) p = this->parameters(b);
        f(from, grad, to, p, w.tiles, w.dT + at, w.dV ? w.dV + at : nullptr);
        UNROLL for (int m = 0; m < M; m++)
          if (m < here && (void*)to[m].p == stage(m))
            deliver(v, unit[m], b, out, to[m].p, (R*)w.lines + m * lines_size(v));
      }
    });
  }

  template <bool BACK, bool SMOOTH, class O> void in_registers(int64_t first, int64_t last, double* sums) const {
    with_constant<Form::LEAST, REGISTERS>(vectors, [&](auto n) {
      constexpr int fit = REGISTERS / (BACK ? 2 * n : n), M = fit < 1 ? 1 : fit > 4 ? 4 : fit;
      const bool streams = this->streams(BACK ? in : result);
      const auto units = [&](auto full) {
        paired<BACK, M, O>(first, last, sums, 0, [&](auto from, auto grad, auto to, const auto& p, V*, V* dT, V* dV) {
          if (BACK) backward_units<n, M, full, SMOOTH>(from, grad, to, p, int(job.log2_block), dT, dV, streams);
          else forward_units<n, M, full, SMOOTH>(from, to, p, int(job.log2_block), streams);
        });
      };
      if constexpr (n == Form::LEAST) with_bool(this->group == 1, units);
      else units(std::true_type());
    });
  }

  template <bool BACK, bool SMOOTH, class O> void in_tiles(int64_t first, int64_t last, double* sums) const {
    const bool streams = this->streams(BACK ? in : result);
    paired<BACK, 1, O>(first, last, sums, 2, [&](auto from, auto grad, auto to, const auto& p, V* tiles, V* dT, V* dV) {
      spectrum(from[0], tiles);
      if (BACK) spectrum(grad[0], tiles + tile);
      with_constant<1, 16>(radix.B, [&](auto B) {
        if (BACK) near_backward<B, SMOOTH>(tiles, tiles + tile, p, dT, dV);
        else near_forward<B, SMOOTH>(tiles, p);
      });
      if (to[0].p) signal(tiles, to[0], streams);
    });
  }

  // More blocks on one side: each of the narrow side meets several.
  template <bool BACK, bool SMOOTH, class O> void unpaired(int64_t first, int64_t last, double* sums) const {
    const int64_t n_in = job.blocks_in, n_out = job.blocks_out, n = BACK ? n_in : n_out;
    const View& v = BACK ? in : result;
    for_units<BACK, 1>(first, last, sums, 2 * n_in + n_out, [&](const Unit* unit, int, const Work& w) {
      V *const x = w.tiles, *const y = x + n_in * tile, *const gx = y + n_out * tile, *const to = BACK ? gx : y;
      const auto load_block = [&](const View& v, int64_t b, const S* from, V* tile) {
        spectrum(source(v, *unit, b, from, (S*)w.stages), tile);
        near(tile);
      };
      for (int64_t b = 0; b < n_in; b++) load_block(in, b, this->x, x + b * tile);
      for (int64_t b = 0; BACK && b < n_out; b++) load_block(result, b, this->gy, y + b * tile);
      memset((void*)to, 0, n * tile * sizeof(V));
      for (int64_t b = 0; b < blocks; b++) {
        const int64_t i = b % n_in * tile, o = b % n_out * tile, at = this->set(b) * vectors;
        if (BACK) mix_gradient<SMOOTH>(x + i, y + o, gx + i, this->parameters(b), w.dT + at, w.dV ? w.dV + at : nullptr);
        else mix<SMOOTH>(x + i, y + o, this->parameters(b));
      }
      for (int64_t b = 0; this->out && b < n; b++) {
        near(to + b * tile);
        const Run<O> memory = target(v, *unit, b, this->out, (O*)w.stages);
        signal(to + b * tile, memory, false);
        if ((void*)memory.p == w.stages) deliver(v, *unit, b, this->out, memory.p, (R*)w.lines);
      }
    });
  }

  static void flush(V* from, double* to, int64_t n) {
    const int P = Form::PARAMETERS;
    for (int64_t i = 0; i < n; i++, to += P) {
      for (int l = 0; l < L; l++) to[l % P] += from[i][l];
      from[i] = V{};
    }
  }
};

}  // namespace
