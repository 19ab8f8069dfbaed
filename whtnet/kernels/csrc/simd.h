// Vectors of the processor, by the compiler's extensions: loads and stores of each dtype, arithmetic, butterflies.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(VECTOR_BYTES)  // as told: longer ones than the processor has are several of its own
#elif defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define INLINE inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))  // of a lambda
#define UNROLL _Pragma("GCC unroll 64")

namespace {

// ---- vectors --------------------------------------------------------------------------------------------------------

typedef float VecF __attribute__((vector_size(VECTOR_BYTES)));
typedef double VecD __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t VecI32 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t VecU32 __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t VecI64 __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t VecU16 __attribute__((vector_size(VECTOR_BYTES / 2)));

template <class R> struct Simd;
template <> struct Simd<float> { typedef VecF V; typedef VecI32 I; static const int32_t abs_mask = 0x7fffffff; };
template <> struct Simd<double> { typedef VecD V; typedef VecI64 I; static const int64_t abs_mask = 0x7fffffffffffffff; };
template <class R> struct Lanes { static const int n = VECTOR_BYTES / sizeof(R); };

struct BFloat16 { uint16_t bits; };

INLINE float widen(BFloat16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
INLINE float widen(float x) { return x; }
INLINE double widen(double x) { return x; }

INLINE VecF load(const float* p) { VecF v; memcpy(&v, p, sizeof v); return v; }
INLINE VecD load(const double* p) { VecD v; memcpy(&v, p, sizeof v); return v; }
INLINE VecF load(const BFloat16* p) {
  VecU16 h;
  memcpy(&h, p, sizeof h);
  return (VecF)(__builtin_convertvector(h, VecU32) << 16);
}
INLINE void store(float* p, VecF v) { memcpy(p, &v, sizeof v); }
INLINE void store(double* p, VecD v) { memcpy(p, &v, sizeof v); }
INLINE void store(BFloat16* p, VecF v) {  // round to nearest, ties to even; NaN stays NaN
#if defined(__AVX512BF16__)
  __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  memcpy(p, &h, sizeof h);
#else
  VecU32 u = (VecU32)v;
  VecU32 r = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  r = (VecU32)(v == v ? (VecI32)r : (VecI32)((u >> 16) | 0x40));
  VecU16 h = __builtin_convertvector(r, VecU16);
  memcpy(p, &h, sizeof h);
#endif
}

// Past the cache, to memory that is aligned to a vector.
#if defined(__AVX512F__)
INLINE void stream(float* p, VecF v) { _mm512_stream_ps(p, (__m512)v); }
INLINE void stream(double* p, VecD v) { _mm512_stream_pd(p, (__m512d)v); }
INLINE void stream(BFloat16* p, VecF v) {
  __m256i h;
  store((BFloat16*)&h, v);
  _mm256_stream_si256((__m256i*)p, h);
}
INLINE void end_of_stream() { _mm_sfence(); }
#else
template <class S, class V> INLINE void stream(S* p, V v) { store(p, v); }
INLINE void end_of_stream() {}
#endif

template <class V, class R> INLINE V splat(R x) { return V{} + x; }
INLINE VecF absolute(VecF v) { return (VecF)((VecI32)v & Simd<float>::abs_mask); }
INLINE VecD absolute(VecD v) { return (VecD)((VecI64)v & Simd<double>::abs_mask); }

const float TANH_END = 7.9f;  // beyond it, tanh is 1 to float32's precision

// min(max(x, low), high), and NaN where x is NaN.
template <class V> INLINE V between(V x, V low, V high) {
  x = x > high ? high : x;
  return x < low ? low : x;
}
#if defined(__AVX512F__)  // the second operand comes back where one is NaN
INLINE VecF between(VecF x, VecF low, VecF high) {
  return (VecF)_mm512_max_ps((__m512)low, _mm512_min_ps((__m512)high, (__m512)x));
}
#endif

// tanh(x) * y. Odd rational of degree 9/6, relative error 2e-7 up to its end.
INLINE VecF tanh_times(VecF x, VecF y) {
  x = between(x, splat<VecF>(-TANH_END), splat<VecF>(TANH_END));
  const VecF s = x * x;
  const VecF n =
      (((-6.263357879e-09f * s + 7.229143415e-06f) * s + 2.705213675e-03f) * s + 1.272093065e-01f) * s + 0.9999998067f;
  const VecF d = ((1.978801100e-04f * s + 2.288769127e-02f) * s + 4.605410813e-01f) * s + 1.0f;
  return x * y * n / d;
}
INLINE VecD tanh_times(VecD x, VecD y) {
  for (int i = 0; i < VECTOR_BYTES / 8; i++) x[i] = std::tanh(x[i]);
  return x * y;
}

// 1 - tanh(x)^2 for tanh = tanh_times(x, 1). Beyond the end of the rational, rounding must not be taken for a slope:
// large coefficients would multiply it.
INLINE VecF tanh_slope(VecF x, VecF tanh) { return absolute(x) > TANH_END ? VecF{} : 1 - tanh * tanh; }
INLINE VecD tanh_slope(VecD, VecD tanh) { return 1 - tanh * tanh; }

// max(e, 0), and NaN where e is NaN
INLINE VecF relu(VecF e) {
#if defined(__AVX512F__)
  return (VecF)_mm512_max_ps(_mm512_setzero_ps(), (__m512)e);
#else
  return e <= 0.0f ? VecF{} : e;
#endif
}
INLINE VecD relu(VecD e) { return e <= 0.0 ? VecD{} : e; }

template <class V> INLINE V sign(V z) {
  V one = V{} + 1, zero = V{};
  return z > zero ? one : (z < zero ? -one : z);  // z itself where it is 0 or NaN
}

// Bit D of the lane's number changes places with one bit of the register's number, 0 in `a` and 1 in `b`.
template <class I, int D, class V> INLINE void swap_bit(V& a, V& b) {
  const int N = sizeof(I) / sizeof(I{}[0]);
#if defined(__clang__)  // it makes shuffles of this
  const V c = a, d = b;
  UNROLL for (int l = 0; l < N; l++) a[l] = (l & D) ? d[l - D] : c[l];
  UNROLL for (int l = 0; l < N; l++) b[l] = (l & D) ? d[l] : c[l + D];
#else
  I low, high;
  UNROLL for (int l = 0; l < N; l++) low[l] = (l & D) ? N + l - D : l;
  UNROLL for (int l = 0; l < N; l++) high[l] = (l & D) ? N + l : l + D;
  const V c = __builtin_shuffle(a, b, low);
  b = __builtin_shuffle(a, b, high);
  a = c;
#endif
}

// Calls f with n, a power of two from LEAST to MOST, as a constant.
template <int LEAST, int MOST, class F> INLINE void with_constant(int64_t n, F f) {
  if constexpr (LEAST < MOST)
    if (n > LEAST) return with_constant<2 * LEAST, MOST>(n, f);
  f(std::integral_constant<int, LEAST>());
}

template <class F> INLINE void with_bool(bool b, F f) { b ? f(std::true_type()) : f(std::false_type()); }

template <int N, class V> INLINE void hadamard(V* r) {  // unscaled, natural order
  UNROLL for (int h = 1; h < N; h *= 2)
    UNROLL for (int i = 0; i < N; i++)
      if (!(i & h)) {
        V a = r[i], b = r[i + h];
        r[i] = a + b;
        r[i + h] = a - b;
      }
}

}  // namespace
