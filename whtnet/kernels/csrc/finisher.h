// What follows a layer in inference, computed from a part of its result as soon as that is there, in the cache.
#pragma once
#include "layer.h"

namespace {

template <class R, class S> class Finisher {
  typedef typename Simd<R>::V V;
  static const int L = Lanes<R>::n;

 public:
  struct Factors { V scale, shift; };

  // Copied where it is used: values that no store to the result can change stay in registers.
  struct Step {
    S* y;
    const S *added, *residual;
    V low, high;

    // Up to L neighbours from `at` on; n: how many there are, or more.
    INLINE void operator()(int64_t at, int64_t n, Factors f) const {
      if (n >= L) return store(y + at, value(load(y + at), loaded(added, at), loaded(residual, at), f));
      S last[L] = {}, parts[2][L] = {};
      memcpy((void*)last, y + at, n * sizeof(S));
      if (added) memcpy((void*)parts[0], added + at, n * sizeof(S));
      if (residual) memcpy((void*)parts[1], residual + at, n * sizeof(S));
      store(last, value(load(last), load(parts[0]), load(parts[1]), f));
      memcpy((void*)(y + at), last, n * sizeof(S));
    }

   private:
    static INLINE V loaded(const S* addend, int64_t at) { return addend ? load(addend + at) : V{}; }
    INLINE V value(V y, V added, V residual, Factors f) const {
      return between((y + added) * f.scale + f.shift + residual, low, high);
    }
  };

  const Step step;

  Finisher(const Epilogue& e, int64_t channels, S* y)
      : step{y, (const S*)e.added, (const S*)e.residual, splat<V>(R(e.low)), splat<V>(R(e.high))},
        channels(channels),
        ahead(L % channels),
        scale(channels + L),
        shift(channels + L) {
    memcpy(&scale[0], e.scale, channels * sizeof(R));
    memcpy(&shift[0], e.shift, channels * sizeof(R));
    for (int c = 0; c < L; c++) scale[channels + c] = scale[c], shift[channels + c] = shift[c];
  }

  INLINE Factors of(int64_t c) const { return {splat<V>(*scale.at(c)), splat<V>(*shift.at(c))}; }  // of channel c
  INLINE Factors from(int64_t c) const { return {load(scale.at(c)), load(shift.at(c))}; }  // and of those after it

  // n neighbours from `at` on, all of channel c.
  void within(int64_t at, int64_t n, int64_t c) const {
    const Step step = this->step;
    for (const Factors f = of(c); n > 0; at += L, n -= L) step(at, n, f);
  }

  // n neighbours from `at` on, of channel c and those after it, time and again.
  void across(int64_t at, int64_t n, int64_t c) const {
    const Step step = this->step;
    for (; n > 0; at += L, n -= L) {
      step(at, n, from(c));
      c += c + ahead < channels ? ahead : ahead - channels;
    }
  }

 private:
  const int64_t channels, ahead;  // ahead: from the channel of one vector to that of the next
  Buffer<R> scale, shift;  // of all channels, and of the first ones again: a vector can begin at any
};

}  // namespace
