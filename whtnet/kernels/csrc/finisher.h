// What follows a layer in inference, computed from a part of its result as soon as that is there, in the cache.
#pragma once
#include "layer.h"

namespace {

template <class R, class S> class Finisher {
  typedef typename Simd<R>::V V;
  static const int L = Lanes<R>::n;

 public:
  Finisher(const Epilogue& e, int64_t channels, S* y)
      : y(y),
        residual((const S*)e.residual),
        low(splat<V>(R(e.low))),
        high(splat<V>(R(e.high))),
        channels(channels),
        ahead(L % channels),
        scale(channels + L),
        shift(channels + L) {
    for (int64_t c = 0; c < channels + L; c++) {
      scale[c] = ((const R*)e.scale)[c % channels];
      shift[c] = ((const R*)e.shift)[c % channels];
    }
  }

  // n neighbours from `at` on, all of channel c.
  void within(int64_t at, int64_t n, int64_t c) const {
    const V a = splat<V>(*scale.at(c)), b = splat<V>(*shift.at(c));
    for (; n > 0; at += L, n -= L) finish(at, n, a, b);
  }

  // n neighbours from `at` on, of channel c and those after it, time and again.
  void across(int64_t at, int64_t n, int64_t c) const {
    for (; n > 0; at += L, n -= L) {
      finish(at, n, load(scale.at(c)), load(shift.at(c)));
      c += c + ahead < channels ? ahead : ahead - channels;
    }
  }

 private:
  S* const y;
  const S* const residual;
  const V low, high;
  const int64_t channels, ahead;  // ahead: from the channel of one vector to that of the next
  Buffer<R> scale, shift;  // of all channels, and of the first ones again: a vector can begin at any

  INLINE void finish(int64_t at, int64_t n, V scale, V shift) const {
    if (n >= L) return store(y + at, value(y + at, residual ? load(residual + at) : V{}, scale, shift));
    S last[L] = {}, added[L] = {};
    memcpy((void*)last, y + at, n * sizeof(S));
    if (residual) memcpy((void*)added, residual + at, n * sizeof(S));
    store(last, value(last, load(added), scale, shift));
    memcpy((void*)(y + at), last, n * sizeof(S));
  }
  INLINE V value(const S* from, V added, V scale, V shift) const {
    return between(load(from) * scale + shift + added, low, high);
  }
};

}  // namespace
