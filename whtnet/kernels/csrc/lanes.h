// The form with one item per lane: items are neighbours in memory (channels of a channels_last map, pixels of an NCHW
// channel vector), a vector is one point of them all, and no butterfly crosses lanes.
#pragma once
#include "finisher.h"

namespace {

template <class R_, class S_> struct LanesForm : Layer<R_, S_> {
  typedef R_ R;
  typedef S_ S;
  typedef typename Simd<R>::V V;
  typedef Layer<R, S> Base;
  using Base::job;
  static const int L = Lanes<R>::n;

  static const int PARAMETERS = 1;     // of a vector
  static const int LEAST = 1;          // vectors of a unit
  static const bool STREAMS = false;   // whether results may go past the cache

  LanesForm(const Job& job, const Arrays& a) : Base(job, a, remembered<order>(job.log2_block), L) {}

  static std::vector<int> order(int64_t log2_block) {
    std::vector<int> points(int64_t(1) << log2_block);
    for (size_t p = 0; p < points.size(); p++) points[p] = int(p);
    return in_order(points, 1);
  }

  INLINE Unit unit(int64_t u) const {
    const int64_t first = u % this->units_per_image * L, left = job.lanes - first;
    return {u / this->units_per_image, first, left < L ? left : L};
  }

  template <class T> struct Run {  // vectors in memory
    T* p;
    int64_t step;
    INLINE T* at(int64_t i) const { return p + i * step; }
  };
  static INLINE V fetch(const S* p) { return load(p); }
  static INLINE int64_t point(const View& v) { return v.s.point; }
  static INLINE R parameter(const R* p, int64_t n) { return p[n]; }

  template <int N> static INLINE void forward(V* r, int) { hadamard<N>(r); }
  template <int N> static INLINE void inverse(V* r, int) { hadamard<N>(r); }

  // a where the vector is that of coefficient 0, else b.
  INLINE V where_first(V a, V b, int64_t group, int k, int) const { return k == 0 && group == 0 ? a : b; }

  // Calls f with offset in memory, place in the unit and number of successive elements, for all that exist of `points`
  // points from `first` on, each the same number in memory as the `same` - 1 around it.
  template <class F>
  void for_runs(const View& v, const Unit& unit, int64_t first, int64_t points, int64_t, int64_t same, F f) const {
    const Side s = v.s;  // a copy, which f does not change
    const int64_t end = first + points < s.W * same ? first + points : s.W * same, count = unit.count;
    const bool neighbours = v.step == 1 && count == L;
    int64_t lane[L];
    for (int64_t l = 0; l < count; l++) lane[l] = this->offset(v, unit, l);
    for (int64_t i = 0; i < s.H; i++) {
      int64_t place = i * job.width * L;
      for (int64_t p = first; p < end; p++, place += L) {
        const int64_t at = i * s.row + (same > 1 ? p / same : p) * s.point;
        if (neighbours) f(lane[0] + at, place, std::integral_constant<int64_t, L>());
        else for (int64_t l = 0; l < count; l++) f(lane[l] + at, place + l, std::integral_constant<int64_t, 1>());
      }
    }
  }

  void finish_units(int64_t first, int64_t last, const Finisher<R, S>& finisher) const {
    const int64_t points = job.out.H * job.out.W, by = job.out.point;
    const auto step = finisher.step;
    for (int64_t u = first; u < last; u++) {
      const Unit unit = this->unit(u);
      int64_t at = this->offset(this->result, unit);
      auto factors = finisher.from(job.channels ? unit.first : 0);
      for (int64_t p = 0; p < points; p++, at += by) {
        if (!job.channels) factors = finisher.of(p);
        step(at, unit.count, factors);
      }
    }
  }
};

}  // namespace
