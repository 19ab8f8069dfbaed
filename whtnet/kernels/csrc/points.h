// The form with an item's points in the lanes of successive vectors: they are neighbours in memory (pixels of an NCHW
// map, channels of a channels_last pixel). Several small items make up a unit. See lanes.h for what a form has.
//
// Index of a point: (high bits, bits of the register, bits of the lane). For those of the lane, bits of lane and register
// change places, which costs one shuffle a vector and bit, and change back in the inverse. Where they are in between,
// thresholds and weights have been put once.
#pragma once
#include "finisher.h"

namespace {

template <class R_, class S_> struct PointsForm : Layer<R_, S_> {
  typedef R_ R;
  typedef S_ S;
  typedef typename Simd<R>::V V;
  typedef typename Simd<R>::I I;
  typedef Layer<R, S> Base;
  using Base::block, Base::group, Base::job, Base::slots;
  static const int L = Lanes<R>::n;

  static const int PARAMETERS = L;
  static const int LEAST = 4;
  static const bool STREAMS = true;

  Buffer<R> first_slots;  // 1 for those of coefficient 0, else 0

  PointsForm(const Job& job, const Arrays& a)
      : Base(job, a, remembered<order>(job.log2_block), unit_points(job.log2_block) >> job.log2_block),
        first_slots(job.keep_dc ? slots : 0) {
    for (int64_t k = 0; job.keep_dc && k < slots; k++) first_slots[k] = this->coefficient[k] == 0;
  }

  static int64_t unit_points(int64_t log2_block) {
    const int64_t block = int64_t(1) << log2_block;
    return block > LEAST * L ? block : LEAST * L;
  }

  static std::vector<int> order(int64_t log2_block) {
    std::vector<int> p(unit_points(log2_block));
    with_constant<LEAST, REGISTERS>(p.size() / L, [&](auto n) {
      for (size_t start = 0; start < p.size(); start += n * L) {
        I r[n];
        for (int i = 0; i < n * L; i++) r[i / L][i % L] = int(start) + i;
        permute<n>(r);
        for (int i = 0; i < n * L; i++) p[start + i] = int(r[i / L][i % L]) & ((1 << log2_block) - 1);
      }
    });
    return in_order(p, L);
  }

  INLINE Unit unit(int64_t u) const {
    const int64_t first = u * group, left = job.lanes - first;
    return {0, first, left < group ? left : group};
  }

  template <class T> struct Run {
    T* p;
    Run() = default;
    INLINE Run(T* p, int64_t) : p(p) {}
    INLINE T* at(int64_t i) const { return p + i * L; }
  };
  // Loads, and asks for what lies a few units on: the next loads are too far in the program for the processor to see.
  static INLINE V fetch(const S* p) {
    __builtin_prefetch((const char*)p + 2048);
    return load(p);
  }
  static INLINE int64_t point(const View&) { return 1; }
  static INLINE V parameter(const R* p, int64_t n) { return load(p + n * L); }

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
  template <class T, int NV, int D, int COUNT, int H = 1> static INLINE void swap_bits(T* r) {
    if constexpr (H < COUNT) {
      UNROLL for (int i = 0; i < NV; i++)
        if (!(i & H)) swap_bit<I, D>(r[i], r[i + H]);
      swap_bits<T, NV, 2 * D, COUNT, 2 * H>(r);
    }
  }

  static constexpr int log2(int n) { return n > 1 ? 1 + log2(n / 2) : 0; }
  template <int NV> static constexpr int count(int D) { return NV < L / D ? NV : L / D; }  // 2^(bits swapped at once)

  template <int NV, int D = 0> static INLINE void forward(V* r, int bits) {
    if constexpr (D == 0) {
      butterflies<NV, NV>(r, log2(L), bits);
      forward<NV, 1>(r, bits);
    } else if constexpr (D < L) {
      swap_bits<V, NV, D, count<NV>(D)>(r);
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
      swap_bits<V, NV, D, count<NV>(D)>(r);
    }
  }
  template <int NV, int D = 1> static INLINE void permute(I* r) {  // what `forward` does to places
    if constexpr (D < L) {
      swap_bits<I, NV, D, count<NV>(D)>(r);
      permute<NV, D * count<NV>(D)>(r);
    }
  }

  // ---- memory ------------------------------------------------------------------------------------------------------

  INLINE V where_first(V a, V b, int64_t group, int k, int of) const {
    return load(first_slots.at((group * of + k) * L)) != 0 ? a : b;
  }

  template <class F>
  void for_runs(const View& v, const Unit& unit, int64_t first, int64_t points, int64_t size, int64_t same, F f) const {
    const Side s = v.s;  // a copy, which f does not change
    const int64_t end = first + points < s.W * same ? first + points : s.W * same, count = unit.count, width = job.width;
    for (int64_t g = 0; g < count; g++) {
      const int64_t at = this->offset(v, unit, g);
      if (same > 1) {
        for (int64_t p = first, o = p / same, left = (o + 1) * same - p; p < end; p++) {
          f(at + o, g * size + p - first, std::integral_constant<int64_t, 1>());
          if (--left == 0) o++, left = same;
        }
      } else if (s.H == 1) {
        if (first < end) f(at + first, g * size, end - first);
      } else {
        for (int64_t i = 0; i < s.H; i++) f(at + i * s.row, g * size + i * width, s.W);
      }
    }
  }

  void finish_units(int64_t first, int64_t last, const Finisher<R, S>& finisher) const {
    const int64_t points = job.out.H * job.out.W;
    const int64_t q = first * group, end = last * group < job.lanes ? last * group : job.lanes;
    if (!job.channels) return finisher.across(q * points, (end - q) * points, 0);
    for (int64_t map = q; map < end; map++) finisher.within(map * points, points, map % job.channels);
  }
};

}  // namespace
