// Fused Walsh-Hadamard layers for the CPU: transform -> weights -> threshold -> inverse, and the gradient of all that,
// with one read and one write of every activation. No dependency but the C++ standard library; see `cpu.py`.
//
// Both layers are one problem. A 2-D map of h x w points in natural order transforms as one vector of h*w points
// (H_h (x) H_w = H_hw), so an item is a vector of P points per block, whether the points are the pixels of a map or the
// channels of a pixel. One item per SIMD lane is processed at a time, a "tile" of P rows x L lanes, so that butterflies
// never cross lanes. Two layouts reach memory differently:
//   LANES   lanes are neighbours in memory (channels of a channels_last map, pixels of an NCHW channel vector);
//   POINTS  points are neighbours in memory (pixels of an NCHW map, channels of a channels_last pixel): L x L blocks are
//           transposed in registers on the way in and out.
// P = A*M*B: pass A transforms the lowest log2(A) bits of the point's index while it loads or stores, the middle pass
// (large P only) the next ones, and pass B the highest, forward and inverse, with weights and threshold in between.
// Scale factors are folded into the weights; thresholds and weights are reordered once so that pass B reads them in
// sequence. Sums of gradients are formed per chunk of items and added in order: the same for any number of threads.

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <vector>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#define INLINE inline __attribute__((always_inline))
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
#if defined(__AVX512BF16__) && VECTOR_BYTES == 64
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

template <class V, class R> INLINE V splat(R x) { return V{} + x; }
INLINE VecF absolute(VecF v) { return (VecF)((VecI32)v & Simd<float>::abs_mask); }
INLINE VecD absolute(VecD v) { return (VecD)((VecI64)v & Simd<double>::abs_mask); }

INLINE VecF reciprocal(VecF q) {
#if VECTOR_BYTES == 64
  VecF r = (VecF)_mm512_rcp14_ps((__m512)q);
  return r * (2.0f - q * r);
#else
  return 1.0f / q;
#endif
}

// Odd rational of degree 9/6, relative error 2e-7 up to 7.9, beyond which tanh is 1 to float32's precision.
INLINE VecF tanh_(VecF x) {
#if VECTOR_BYTES == 64  // the second operand comes back where one is NaN
  x = (VecF)_mm512_max_ps(_mm512_set1_ps(-7.9f), _mm512_min_ps(_mm512_set1_ps(7.9f), (__m512)x));
#else
  const VecF c = splat<VecF>(7.9f);
  x = x > c ? c : x;
  x = x < -c ? -c : x;
#endif
  VecF s = x * x;
  VecF n = (((-6.263357879e-09f * s + 7.229143415e-06f) * s + 2.705213675e-03f) * s + 1.272093065e-01f) * s + 0.9999998067f;
  VecF d = ((1.978801100e-04f * s + 2.288769127e-02f) * s + 4.605410813e-01f) * s + 1.0f;
  return x * n * reciprocal(d);
}
INLINE VecD tanh_(VecD x) {
  for (int i = 0; i < Lanes<double>::n; i++) x[i] = std::tanh(x[i]);
  return x;
}

// max(e, 0), and NaN where e is NaN
INLINE VecF relu(VecF e) {
#if VECTOR_BYTES == 64
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

// N lanes x N registers transposed: after step d, bit d of lane and register index have changed places.
template <class V, class I, int N, int D> struct Step {
  static INLINE I low() {
    I m;
    UNROLL for (int l = 0; l < N; l++) m[l] = (l & D) ? N + l - D : l;
    return m;
  }
  static INLINE I high() {
    I m;
    UNROLL for (int l = 0; l < N; l++) m[l] = (l & D) ? N + l : l + D;
    return m;
  }
  static INLINE void run(V* r) {
    const I lo = low(), hi = high();
    UNROLL for (int i = 0; i < N; i++)
      if (!(i & D)) {
        V a = r[i], b = r[i + D];
        r[i] = __builtin_shuffle(a, b, lo);
        r[i + D] = __builtin_shuffle(a, b, hi);
      }
    Step<V, I, N, D * 2>::run(r);
  }
};
template <class V, class I, int N> struct Step<V, I, N, N> { static INLINE void run(V*) {} };
template <class R> INLINE void transpose(typename Simd<R>::V* r) {
  Step<typename Simd<R>::V, typename Simd<R>::I, Lanes<R>::n, 1>::run(r);
}

template <int N, class V> INLINE void hadamard(V* r) {  // unscaled, natural order
  UNROLL for (int h = 1; h < N; h *= 2)
    UNROLL for (int i = 0; i < N; i++)
      if (!(i & h)) {
        V a = r[i], b = r[i + h];
        r[i] = a + b;
        r[i + h] = a - b;
      }
}

// ---- the job, as Python describes it (the order of the fields is that of `_Job` in cpu.py) ---------------------------

enum { LANES = 0, POINTS = 1 };

struct Side {       // how one activation lies in memory, in elements
  int64_t image;    // from one image to the next
  int64_t n, i, j;  // lane number q = (q_n, q_i, q_j): steps of its three parts
  int64_t point;    // from one point of a row to the next
  int64_t row;      // from one row of points to the next
  int64_t H, W;     // rows and points per row that exist
};

struct Job {
  int64_t dtype, layout, smooth, keep_dc, clamp;
  int64_t log2_block, blocks_in, blocks_out, width;  // width: padded points per row
  int64_t images, lanes, lanes_i, lanes_j;           // lanes per image; sizes of the last two parts of a lane's number
  Side in, out;
};

struct Radix { int A, M, B; };
#if VECTOR_BYTES == 64  // 32 registers
const Radix RADIX[13] = {{1, 1, 1}, {1, 1, 2}, {1, 1, 4}, {1, 1, 8}, {1, 1, 16}, {1, 1, 32}, {8, 1, 8},
                         {16, 1, 8}, {16, 1, 16}, {16, 1, 32}, {32, 1, 32}, {16, 8, 16}, {16, 16, 16}};
#else
const Radix RADIX[13] = {{1, 1, 1}, {1, 1, 2}, {1, 1, 4}, {1, 1, 8}, {1, 1, 16}, {8, 1, 4}, {8, 1, 8},
                         {8, 2, 8}, {8, 4, 8}, {8, 8, 8}, {8, 16, 8}, {16, 8, 16}, {16, 16, 16}};
#endif

// ---- one side of one item --------------------------------------------------------------------------------------------

template <class R> struct Access {
  enum Kind { VECTORS, BLOCKS, SCALARS } kind;
  bool uniform;                 // every point exists, `point` elements apart
  int64_t point;
  const int64_t* table;         // offset of each point, -1 where it is padding
  int64_t base;                 // of the item's first lane
  int count;                    // lanes that exist
  int64_t lane[Lanes<R>::n];    // offset of each lane
};

template <class R> struct Tile {
  typedef typename Simd<R>::V V;
  // Rows of A points and one unused: no power-of-two stride, so that passes do not fight for the cache's sets.
  static INLINE int64_t stride(int A) { return A + 1; }
  static size_t vectors(const Radix& x) { return size_t(x.M) * x.B * (x.A + 1); }
};

template <class R, class S> INLINE typename Simd<R>::V load_point(const Access<R>& a, const S* src, int64_t p) {
  typedef typename Simd<R>::V V;
  const int64_t o = a.uniform ? p * a.point : a.table[p];
  V v = V{};
  if (o < 0) return v;
  if (a.kind == Access<R>::VECTORS) return load(src + a.base + o);
  R lanes[Lanes<R>::n] = {};
  for (int l = 0; l < a.count; l++) lanes[l] = widen(src[a.lane[l] + o]);
  return load(lanes);
}

template <class R, class S> INLINE void store_point(const Access<R>& a, S* dst, int64_t p, typename Simd<R>::V v) {
  const int64_t o = a.uniform ? p * a.point : a.table[p];
  if (o < 0) return;
  if (a.kind == Access<R>::VECTORS) return store(dst + a.base + o, v);
  S lanes[Lanes<R>::n];
  store(lanes, v);
  for (int l = 0; l < a.count; l++) dst[a.lane[l] + o] = lanes[l];
}

// Pass A, forward: load `rows` rows of A points from point p0 on, transform each, leave them in the tile.
template <class R, class S, int A>
__attribute__((noinline)) void load_pass(const Access<R>& a, const S* src, int64_t p0, int rows, typename Simd<R>::V* tile) {
  typedef typename Simd<R>::V V;
  const int L = Lanes<R>::n;
  V r[A > L ? A : L];
  if (a.kind == Access<R>::VECTORS && a.uniform) {
    const S* s = src + a.base + p0 * a.point;
    for (int k = 0; k < rows; k++, s += A * a.point) {
      UNROLL for (int j = 0; j < A; j++) r[j] = load(s + j * a.point);
      hadamard<A>(r);
      UNROLL for (int j = 0; j < A; j++) tile[k * (A + 1) + j] = r[j];
    }
  } else if (a.kind == Access<R>::BLOCKS) {
    if (A >= L) {
      for (int k = 0; k < rows; k++) {
        UNROLL for (int b = 0; b < (A >= L ? A : 0); b += L) {
          UNROLL for (int l = 0; l < L; l++) r[b + l] = load(src + a.lane[l] + p0 + k * A + b);
          transpose<R>(r + b);
        }
        hadamard<A>(r);
        UNROLL for (int j = 0; j < A; j++) tile[k * (A + 1) + j] = r[j];
      }
    } else {  // a block covers several rows
      for (int k = 0; k < rows * A; k += L) {
        UNROLL for (int l = 0; l < L; l++) r[l] = load(src + a.lane[l] + p0 + k);
        transpose<R>(r);
        UNROLL for (int b = 0; b < L; b += (A < L ? A : L)) {
          hadamard<(A < L ? A : L)>(r + b);
          UNROLL for (int j = 0; j < (A < L ? A : L); j++) tile[((k + b) / A) * (A + 1) + j] = r[b + j];
        }
      }
    }
  } else {
    for (int k = 0; k < rows; k++) {
      for (int j = 0; j < A; j++) tile[k * (A + 1) + j] = load_point<R, S>(a, src, p0 + k * A + j);
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
__attribute__((noinline)) void store_pass(const Access<R>& a, S* dst, int64_t p0, int rows, typename Simd<R>::V* tile) {
  typedef typename Simd<R>::V V;
  const int L = Lanes<R>::n;
  V r[A > L ? A : L];
  if (a.kind == Access<R>::VECTORS && a.uniform) {
    S* s = dst + a.base + p0 * a.point;
    for (int k = 0; k < rows; k++, s += A * a.point) {
      UNROLL for (int j = 0; j < A; j++) r[j] = tile[k * (A + 1) + j];
      hadamard<A>(r);
      UNROLL for (int j = 0; j < A; j++) store(s + j * a.point, r[j]);
    }
  } else if (a.kind == Access<R>::BLOCKS) {
    if (A >= L) {
      for (int k = 0; k < rows; k++) {
        UNROLL for (int j = 0; j < A; j++) r[j] = tile[k * (A + 1) + j];
        hadamard<A>(r);
        UNROLL for (int b = 0; b < (A >= L ? A : 0); b += L) {
          transpose<R>(r + b);
          UNROLL for (int l = 0; l < L; l++) store(dst + a.lane[l] + p0 + k * A + b, r[b + l]);
        }
      }
    } else {
      for (int k = 0; k < rows * A; k += L) {
        UNROLL for (int b = 0; b < L; b += (A < L ? A : L)) {
          UNROLL for (int j = 0; j < (A < L ? A : L); j++) r[b + j] = tile[((k + b) / A) * (A + 1) + j];
          hadamard<(A < L ? A : L)>(r + b);
        }
        transpose<R>(r);
        UNROLL for (int l = 0; l < L; l++) store(dst + a.lane[l] + p0 + k, r[l]);
      }
    }
  } else {
    for (int k = 0; k < rows; k++) {
      if (A > 1) {
        UNROLL for (int j = 0; j < A; j++) r[j] = tile[k * (A + 1) + j];
        hadamard<A>(r);
        UNROLL for (int j = 0; j < A; j++) tile[k * (A + 1) + j] = r[j];
      }
      for (int j = 0; j < A; j++) store_point<R, S>(a, dst, p0 + k * A + j, tile[k * (A + 1) + j]);
    }
  }
}

template <class R, class S>
void load_rows(int A, const Access<R>& a, const S* src, int64_t p0, int rows, typename Simd<R>::V* tile) {
  switch (A) {
    case 1: return load_pass<R, S, 1>(a, src, p0, rows, tile);
    case 8: return load_pass<R, S, 8>(a, src, p0, rows, tile);
    case 16: return load_pass<R, S, 16>(a, src, p0, rows, tile);
    case 32: return load_pass<R, S, 32>(a, src, p0, rows, tile);
  }
}
template <class R, class S>
void store_rows(int A, const Access<R>& a, S* dst, int64_t p0, int rows, typename Simd<R>::V* tile) {
  switch (A) {
    case 1: return store_pass<R, S, 1>(a, dst, p0, rows, tile);
    case 8: return store_pass<R, S, 8>(a, dst, p0, rows, tile);
    case 16: return store_pass<R, S, 16>(a, dst, p0, rows, tile);
    case 32: return store_pass<R, S, 32>(a, dst, p0, rows, tile);
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

// ---- weights and threshold -------------------------------------------------------------------------------------------

template <class R> struct Parameters {  // per coefficient, in the order of pass B
  const R *T, *V;                       // thresholds; weights times the transform's scale
  const R* U;                           // weights times the square of the scale (backward)
  R scale;
};

template <bool SMOOTH, class R, class V> INLINE V threshold(V z, R t) {
  V e = relu(absolute(z) - t);
  return (SMOOTH ? tanh_(z) : sign(z)) * e;
}

// Gradients of S(z; t) for the gradient g of its value: returned for z; added to dt for -t.
template <bool SMOOTH, class R, class V> INLINE V threshold_gradient(V z, R t, V g, V& dt) {
  V e = absolute(z) - t;
  V f = SMOOTH ? tanh_(z) : sign(z);
  V fm = e <= R(0) ? V{} : f;
  dt += g * fm;
  return SMOOTH ? g * ((1 - f * f) * relu(e) + absolute(fm)) : g * (fm * f);
}

// Pass B alone.
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
  const R *T = p.T, *W = p.V;
  V first = V{};
  for (int m = 0; m < M; m++)
    for (int j = 0; j < A; j++, T += B, W += B) {
      V* t = tile + m * (A + 1) + j;
      V r[B];
      UNROLL for (int k = 0; k < B; k++) r[k] = t[k * step];
      hadamard<B>(r);
      if (dc && j + m == 0) first = r[0];
      UNROLL for (int k = 0; k < B; k++) r[k] = threshold<SMOOTH, R, V>(r[k] * W[k], T[k]) * p.scale;
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
  const R *T = p.T, *W = p.V, *U = p.U;
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
          dz = threshold_gradient<SMOOTH, R, V>(r[k] * W[k], T[k], g[k * step], sum);
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

// ---- scratch memory --------------------------------------------------------------------------------------------------

struct Scratch {  // grows, and stays with its thread
  char* memory = nullptr;
  size_t size = 0, used = 0;
  ~Scratch() { std::free(memory); }
  void reserve(size_t bytes) {
    used = 0;
    if (bytes <= size) return;
    std::free(memory);
    size = 0;
    if (posix_memalign((void**)&memory, 4096, bytes)) {
      memory = nullptr;
      throw std::bad_alloc();
    }
    size = bytes;
  }
  template <class T> T* take(size_t n) {
    T* p = (T*)(memory + used);
    used += bytes<T>(n);
    return p;
  }
  template <class T> static size_t bytes(size_t n) { return (n * sizeof(T) + 63) / 64 * 64; }
};
thread_local Scratch scratch;

// ---- the layer -------------------------------------------------------------------------------------------------------

template <class R, class S> struct Layer {
  typedef typename Simd<R>::V V;
  static const int L = Lanes<R>::n;
  const Job& job;
  const Radix radix;
  const int64_t block, blocks, coefficients, vectors;  // of a block; of the wide side; altogether; of a block's tile
  const int64_t items_per_image, items;
  const S *x, *gy;
  S* out;
  std::vector<R> T, W, U;
  std::vector<bool> active;  // where the clamp lets a gradient pass
  std::vector<int64_t> table_in, table_out;
  std::vector<S> zeros;
  bool uniform_in, uniform_out, has_weight;
  R scale;
  // sums of gradients, per chunk
  int64_t chunk_items, chunks;
  std::vector<double> sums;
  enum { FLUSH = 64 };  // items after which float sums go to double ones

  Layer(const Job& job, const void* x, const void* gy, const void* t, const void* v, void* out)
      : job(job),
        radix(RADIX[job.log2_block]),
        block(int64_t(1) << job.log2_block),
        blocks(job.blocks_in > job.blocks_out ? job.blocks_in : job.blocks_out),
        coefficients(block * blocks),
        vectors(Tile<R>::vectors(radix)),
        items_per_image((job.lanes + L - 1) / L),
        items(job.images * items_per_image),
        x((const S*)x),
        gy((const S*)gy),
        out((S*)out),
        has_weight(v != nullptr) {
    scale = R(1 / std::sqrt(double(block)));
    T.resize(coefficients), W.resize(coefficients), U.resize(coefficients), active.resize(coefficients);
    for (int64_t b = 0; b < blocks; b++)
      for (int64_t p = 0; p < block; p++) {
        const int64_t at = b * block + ordered(p);
        const R threshold = ((const R*)t)[b * block + p], weight = v ? ((const R*)v)[p] : R(1);
        active[at] = !(job.clamp && threshold <= 0);
        T[at] = active[at] ? threshold : R(0);
        W[at] = weight * scale, U[at] = weight * scale * scale;
      }
    uniform_in = describe(job.in, job.blocks_in * block, table_in);
    uniform_out = describe(job.out, job.blocks_out * block, table_out);
    if (job.layout == POINTS) zeros.resize(coefficients);
    // Chunks depend on the work alone, so that sums come out the same for any number of threads.
    const int64_t wish = gy ? (items + 7) / 8 : (items + 1) / 2;
    chunks = wish < 1 ? 1 : wish > 64 ? 64 : wish;
    chunk_items = (items + chunks - 1) / chunks;
    if (gy) sums.assign(chunks * 2 * coefficients, 0.0);
  }

  int64_t ordered(int64_t p) const {  // where pass B wants coefficient p
    const int64_t groups = block / radix.B;
    return p % groups * radix.B + p / groups;
  }

  bool describe(const Side& s, int64_t points, std::vector<int64_t>& table) {
    const bool uniform = s.H * s.W == points && (s.H == 1 || s.row == s.W * s.point);
    if (uniform) return true;
    table.resize(points);
    for (int64_t p = 0; p < points; p++) {
      const int64_t i = p / job.width, j = p % job.width;
      table[p] = i < s.H && j < s.W ? i * s.row + j * s.point : -1;
    }
    return false;
  }

  void locate(const Side& s, bool uniform, const std::vector<int64_t>& table, int64_t item, Access<R>& a) const {
    const int64_t image = item / items_per_image, q0 = item % items_per_image * L;
    const int64_t left = job.lanes - q0;
    a.count = left < L ? int(left) : L;
    a.uniform = uniform, a.point = s.point, a.table = table.data();
    for (int l = 0; l < a.count; l++) {
      const int64_t q = q0 + l, j = q % job.lanes_j, i = q / job.lanes_j % job.lanes_i, n = q / job.lanes_j / job.lanes_i;
      a.lane[l] = image * s.image + n * s.n + i * s.i + j * s.j;
    }
    a.base = a.lane[0];
    if (job.layout == POINTS)
      a.kind = Access<R>::BLOCKS;
    else
      a.kind = a.count == L && a.lane[L - 1] == a.base + L - 1 && s.j == 1 ? Access<R>::VECTORS : Access<R>::SCALARS;
  }

  // Points in memory order whose rows are padded or whose lanes are missing go through `stage`, padded rows of R.
  bool direct(const Access<R>& a) const { return a.uniform && a.count == L && block >= L; }
  int64_t stage_stride(int64_t points) const { return points + 16; }

  void load_side(Access<R> a, const Side& s, int64_t block_index, const S* src, V* tile, R* stage, int64_t points) const {
    const int rows = int(block / radix.A);
    if (a.kind != Access<R>::BLOCKS || direct(a))
      return load_rows<R, S>(radix.A, a, src, block_index * block, rows, tile);
    const int64_t stride = stage_stride(points);
    if (block_index == 0) {
      memset(stage, 0, L * stride * sizeof(R));
      for (int l = 0; l < a.count; l++)
        for (int64_t i = 0; i < s.H; i++) {
          const S* from = src + a.lane[l] + i * s.row;
          R* to = stage + l * stride + i * job.width;
          for (int64_t j = 0; j < s.W; j++) to[j] = widen(from[j]);
        }
    }
    for (int l = 0; l < L; l++) a.lane[l] = l * stride;
    if (block < L) a.kind = Access<R>::SCALARS, a.count = L, a.uniform = true, a.point = 1;
    load_rows<R, R>(radix.A, a, stage, block_index * block, rows, tile);
  }

  void store_side(Access<R> a, const Side& s, int64_t block_index, S* dst, V* tile, R* stage, int64_t points) const {
    const int rows = int(block / radix.A);
    if (a.kind != Access<R>::BLOCKS || direct(a))
      return store_rows<R, S>(radix.A, a, dst, block_index * block, rows, tile);
    const int64_t stride = stage_stride(points);
    Access<R> b = a;
    for (int l = 0; l < L; l++) b.lane[l] = l * stride;
    if (block < L) b.kind = Access<R>::SCALARS, b.count = L, b.uniform = true, b.point = 1;
    store_rows<R, R>(radix.A, b, stage, block_index * block, rows, tile);
    if ((block_index + 1) * block < points) return;  // the last block: all of the rows are there
    for (int l = 0; l < a.count; l++)
      for (int64_t i = 0; i < s.H; i++) narrow(dst + a.lane[l] + i * s.row, stage + l * stride + i * job.width, s.W);
  }
  static void narrow(S* to, const R* from, int64_t n) {
    int64_t j = 0;
    for (; j + L <= n; j += L) store(to + j, load(from + j));
    if (j < n) {
      R last[L] = {};
      S rounded[L];
      memcpy(last, from + j, (n - j) * sizeof(R));
      store(rounded, load(last));
      memcpy(to + j, rounded, (n - j) * sizeof(S));
    }
  }

  Parameters<R> parameters(int64_t b) const {
    return {T.data() + b * block, W.data() + b * block, U.data() + b * block, scale};
  }

  // -- forward

  size_t forward_bytes() const {
    const bool paired = job.blocks_in == job.blocks_out;
    const int64_t tiles = paired ? 1 : job.blocks_in + job.blocks_out;
    return Scratch::bytes<V>(tiles * vectors) + 2 * Scratch::bytes<R>(L * stage_stride(coefficients));
  }

  void forward_items(int64_t first, int64_t last) const {
    scratch.reserve(forward_bytes());
    const bool paired = job.blocks_in == job.blocks_out;
    V* tiles = scratch.take<V>((paired ? 1 : job.blocks_in + job.blocks_out) * vectors);
    R* stage_in = scratch.take<R>(L * stage_stride(coefficients));
    R* stage_out = scratch.take<R>(L * stage_stride(coefficients));
    const int64_t points_in = job.blocks_in * block, points_out = job.blocks_out * block;
    Access<R> from, to;
    for (int64_t item = first; item < last; item++) {
      locate(job.in, uniform_in, table_in, item, from);
      locate(job.out, uniform_out, table_out, item, to);
      if (paired) {
        for (int64_t b = 0; b < blocks; b++) {
          load_side(from, job.in, b, x, tiles, stage_in, points_in);
          if (radix.M > 1) middle_pass(radix, tiles);
          Passes<R>::forward(job.smooth, radix, tiles, parameters(b), job.keep_dc);
          if (radix.M > 1) middle_pass(radix, tiles);
          store_side(to, job.out, b, out, tiles, stage_out, points_out);
        }
        continue;
      }
      V* sources = tiles;
      V* targets = tiles + job.blocks_in * vectors;
      for (int64_t b = 0; b < job.blocks_in; b++) {
        load_side(from, job.in, b, x, sources + b * vectors, stage_in, points_in);
        spectrum(sources + b * vectors);
      }
      memset((void*)targets, 0, job.blocks_out * vectors * sizeof(V));
      for (int64_t b = 0; b < blocks; b++)
        job.smooth ? pair<true>(b, sources + b % job.blocks_in * vectors, targets + b % job.blocks_out * vectors)
                   : pair<false>(b, sources + b % job.blocks_in * vectors, targets + b % job.blocks_out * vectors);
      for (int64_t b = 0; b < job.blocks_out; b++) {
        inverse(targets + b * vectors);
        store_side(to, job.out, b, out, targets + b * vectors, stage_out, points_out);
      }
    }
  }

  void spectrum(V* tile) const {
    if (radix.M > 1) middle_pass(radix, tile);
    Passes<R>::alone(radix, tile);
  }
  void inverse(V* tile) const {
    Passes<R>::alone(radix, tile);
    if (radix.M > 1) middle_pass(radix, tile);
  }
  INLINE int64_t slot(int64_t p) const { return p / radix.A * (radix.A + 1) + p % radix.A; }

  template <bool SMOOTH> void pair(int64_t b, const V* source, V* target) const {
    const Parameters<R> w = parameters(b);
    for (int64_t p = 0; p < block; p++) {
      const int64_t at = ordered(p), s = slot(p);
      V z = source[s] * w.V[at];
      if (!(job.keep_dc && p == 0)) z = threshold<SMOOTH, R, V>(z, w.T[at]);
      target[s] += z * scale;
    }
  }

  // -- backward

  size_t backward_bytes() const {
    const bool paired = job.blocks_in == job.blocks_out;
    const int64_t tiles = paired ? 2 : 2 * job.blocks_in + job.blocks_out;
    return Scratch::bytes<V>(tiles * vectors) + Scratch::bytes<V>(2 * coefficients) +
           3 * Scratch::bytes<R>(L * stage_stride(coefficients));
  }

  void backward_chunk(int64_t chunk) {
    const int64_t first = chunk * chunk_items, end = first + chunk_items, last = end < items ? end : items;
    if (first >= last) return;
    scratch.reserve(backward_bytes());
    const bool paired = job.blocks_in == job.blocks_out;
    V* tiles = scratch.take<V>((paired ? 2 : 2 * job.blocks_in + job.blocks_out) * vectors);
    V* dT = scratch.take<V>(2 * coefficients);
    V* dV = has_weight ? dT + coefficients : nullptr;
    R* stage_in = scratch.take<R>(L * stage_stride(coefficients));
    R* stage_out = scratch.take<R>(L * stage_stride(coefficients));
    R* stage_gx = scratch.take<R>(L * stage_stride(coefficients));
    const int64_t points_in = job.blocks_in * block, points_out = job.blocks_out * block;
    memset((void*)dT, 0, 2 * coefficients * sizeof(V));
    Access<R> from, to;
    int pending = 0;
    for (int64_t item = first; item < last; item++) {
      locate(job.in, uniform_in, table_in, item, from);
      locate(job.out, uniform_out, table_out, item, to);
      if (paired) {
        V *tile = tiles, *g = tiles + vectors;
        for (int64_t b = 0; b < blocks; b++) {
          load_side(from, job.in, b, x, tile, stage_in, points_in);
          load_side(to, job.out, b, gy, g, stage_out, points_out);
          if (radix.M > 1) middle_pass(radix, tile), middle_pass(radix, g);
          Passes<R>::backward(job.smooth, radix, tile, g, parameters(b), job.keep_dc, dT + b * block,
                              dV ? dV + b * block : nullptr);
          if (out) {
            if (radix.M > 1) middle_pass(radix, tile);
            store_side(from, job.in, b, out, tile, stage_gx, points_in);
          }
        }
      } else {
        V *sources = tiles, *gradients = tiles + job.blocks_in * vectors, *targets = gradients + job.blocks_in * vectors;
        for (int64_t b = 0; b < job.blocks_in; b++) {
          load_side(from, job.in, b, x, sources + b * vectors, stage_in, points_in);
          spectrum(sources + b * vectors);
        }
        for (int64_t b = 0; b < job.blocks_out; b++) {
          load_side(to, job.out, b, gy, targets + b * vectors, stage_out, points_out);
          spectrum(targets + b * vectors);
        }
        memset((void*)gradients, 0, job.blocks_in * vectors * sizeof(V));
        for (int64_t b = 0; b < blocks; b++) {
          const int64_t i = b % job.blocks_in * vectors, o = b % job.blocks_out * vectors;
          job.smooth ? pair_gradient<true>(b, sources + i, gradients + i, targets + o, dT + b * block)
                     : pair_gradient<false>(b, sources + i, gradients + i, targets + o, dT + b * block);
        }
        if (out)
          for (int64_t b = 0; b < job.blocks_in; b++) {
            inverse(gradients + b * vectors);
            store_side(from, job.in, b, out, gradients + b * vectors, stage_gx, points_in);
          }
      }
      if (++pending == FLUSH || item + 1 == last) {
        flush(dT, sums.data() + chunk * 2 * coefficients, (has_weight ? 2 : 1) * coefficients);
        pending = 0;
      }
    }
  }

  template <bool SMOOTH> void pair_gradient(int64_t b, const V* source, V* gradient, const V* target, V* dT) const {
    const Parameters<R> w = parameters(b);
    for (int64_t p = 0; p < block; p++) {
      const int64_t at = ordered(p), s = slot(p);
      V dz = target[s];
      if (!(job.keep_dc && p == 0)) {
        V sum = dT[at];
        dz = threshold_gradient<SMOOTH, R, V>(source[s] * w.V[at], w.T[at], dz, sum);
        dT[at] = sum;
      }
      gradient[s] += dz * w.U[at];
    }
  }

  static void flush(V* from, double* to, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
      R lanes[L];
      store(lanes, from[i]);
      double s = 0;
      for (int l = 0; l < L; l++) s += lanes[l];
      to[i] += s;
      from[i] = V{};
    }
  }

  void finish(R* gt, R* gv) {
    for (int64_t b = 0; b < blocks; b++)
      for (int64_t p = 0; p < block; p++) {
        const int64_t at = b * block + ordered(p);
        double t = 0, v = 0;
        for (int64_t c = 0; c < chunks; c++) {
          t += sums[c * 2 * coefficients + at];
          v += sums[(c * 2 + 1) * coefficients + at];
        }
        gt[b * block + p] = active[at] ? R(-t * scale) : R(0);
        if (gv) gv[p] = R(v * scale * scale);
      }
  }

  void chunk(int64_t c) {
    if (gy) return backward_chunk(c);
    const int64_t first = c * chunk_items, end = first + chunk_items;
    if (first < items) forward_items(first, end < items ? end : items);
  }
};

// ---- threads ---------------------------------------------------------------------------------------------------------

typedef void (*Fork)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel of the OpenMP runtime PyTorch uses
typedef int (*ThreadNumber)();                                     // its omp_get_thread_num

const int MAX_THREADS = 256;

template <class F> struct Team {
  struct alignas(64) Range { std::atomic<int64_t> next; int64_t end; };
  F& work;
  int count;
  Range ranges[MAX_THREADS];
  ThreadNumber number;
  std::atomic<bool> failed{false};

  Team(F& work, int count, int64_t chunks, ThreadNumber number) : work(work), count(count), number(number) {
    for (int i = 0; i < count; i++) ranges[i].next = chunks * i / count, ranges[i].end = chunks * (i + 1) / count;
  }
  void run(int me) {  // its own share first, then what others have left
    for (int i = 0; i < count && !failed; i++) {
      Range& r = ranges[(me + i) % count];
      for (int64_t c; (c = r.next++) < r.end;) try {
          work(c);
        } catch (...) {
          failed = true;
        }
    }
  }
  static void enter(void* team) { ((Team*)team)->run(((Team*)team)->number() % ((Team*)team)->count); }
};

template <class F> bool parallel(F work, int64_t chunks, int threads, Fork fork, ThreadNumber number) {
  if (threads > chunks) threads = int(chunks);
  if (threads > MAX_THREADS) threads = MAX_THREADS;
  Team<F> team(work, threads < 1 ? 1 : threads, chunks, number);
  if (threads <= 1) {
    team.run(0);
  } else if (fork && number) {
    fork(&Team<F>::enter, &team, threads, 0);
  } else {
    std::vector<std::thread> others;
    for (int i = 1; i < threads; i++) others.emplace_back([&team, i] { team.run(i); });
    team.run(0);
    for (auto& t : others) t.join();
  }
  return !team.failed;
}

template <class R, class S>
int run(const Job& job, const void* x, const void* gy, const void* t, const void* v, void* out, void* gt, void* gv,
        int threads, Fork fork, ThreadNumber number) {
  Layer<R, S> layer(job, x, gy, t, v, out);
  // A thread is worth waking for some ten microseconds of work.
  const int64_t points = layer.items * Lanes<R>::n * layer.coefficients, useful = points / 32768 + 1;
  if (threads > useful) threads = int(useful);
  if (!parallel([&](int64_t c) { layer.chunk(c); }, layer.chunks, threads, fork, number)) return 1;
  if (gy) layer.finish((R*)gt, (R*)gv);
  return 0;
}

}  // namespace

// Forward where `gy` is null: out = layer(x). Otherwise the gradients: out (may be null) of x, gt of t, gv of v.
// Returns 0, or 1 if there was no memory.
extern "C" int whtnet_layer(const int64_t* fields, const void* x, const void* gy, const void* t, const void* v, void* out,
                            void* gt, void* gv, int threads, void* fork, void* number) try {
  Job job;
  memcpy(&job, fields, sizeof job);
  switch (job.dtype) {
    case 0: return run<float, float>(job, x, gy, t, v, out, gt, gv, threads, (Fork)fork, (ThreadNumber)number);
    case 1: return run<float, BFloat16>(job, x, gy, t, v, out, gt, gv, threads, (Fork)fork, (ThreadNumber)number);
    default: return run<double, double>(job, x, gy, t, v, out, gt, gv, threads, (Fork)fork, (ThreadNumber)number);
  }
} catch (...) {
  return 1;
}

extern "C" int whtnet_abi() { return 1; }
