// Fused Walsh-Hadamard layers for the CPU: transform -> weights -> threshold -> inverse, and the gradient of all that,
// with one read and one write of every activation. No dependency but the C++ standard library; see `cpu.py`.
//
// Both layers are one problem. A 2-D map of h x w points in natural order transforms as one vector of h*w points
// (H_h (x) H_w = H_hw), so an item is a vector of P points per block, whether the points are the pixels of a map or the
// channels of a pixel. What differs is what lies side by side in memory, items (lanes.h) or an item's points (points.h);
// the flow is one (tiles.h). Scale factors are folded into the weights; thresholds and weights are reordered once, so that
// they are read in sequence. Sums of gradients are formed per chunk of units and added in order: the same for any number
// of threads.
#include <optional>

#include "tiles.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

// Large results are mostly memory fresh from the system, and faulting it in 4 KiB at a time costs several times what the
// layer does: ask for huge pages. Where the memory has been used before, or there are none, nothing happens.
void prepare(void* memory, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
  const uintptr_t huge = 1 << 21, first = (uintptr_t(memory) + 4095) / 4096 * 4096, last = uintptr_t(memory) + bytes;
  if (bytes >= int64_t(4 * huge)) madvise((void*)first, (last - first) / 4096 * 4096, MADV_HUGEPAGE);
#endif
}

// Forward, and what follows: of as many units at a time as leave room for others in the first cache.
template <class L, class F> void forward_and(const L& layer, const F& finisher, int64_t first, int64_t last) {
  const int64_t step = 1 + (16 << 10) * layer.units / (layer.result_bytes() + 1);
  for (int64_t end; first < last; first = end) {
    end = first + step < last ? first + step : last;
    layer.forward(first, end);
    layer.finish_units(first, end, finisher);
  }
}

template <template <class, class> class Form, class R, class S>
int run_layer(const Job& job, const Arrays& a, void* gt, void* gv, const Threads& threads) {
  Tiles<Form<R, S>> layer(job, a);
  if (a.out) prepare(a.out, layer.result_bytes());
  std::optional<Finisher<R, S>> finisher;
  if (a.epilogue) finisher.emplace(*a.epilogue, job.channels ? job.channels : job.out.W, (S*)a.out);
  const auto chunk = [&](int64_t c) {
    const int64_t first = c * layer.chunk_units, end = first + layer.chunk_units;
    const int64_t last = end < layer.units ? end : layer.units;
    if (a.gy) layer.backward(first, last, layer.chunk_sums(c));
    else if (finisher) forward_and(layer, *finisher, first, last);
    else layer.forward(first, last);
    end_of_stream();
  };
  // A thread is worth waking for some ten microseconds of work: a thousand vectors.
  const int64_t useful = job.images * job.lanes * layer.blocks * layer.block / (1024 * Lanes<R>::n) + 1;
  if (!parallel(chunk, layer.chunks, threads, useful)) return 1;
  if (a.gy) layer.finish((R*)gt, (R*)gv);
  return 0;
}

template <class R, class S> int run(const Job& job, const Arrays& a, void* gt, void* gv, const Threads& threads) {
  return job.layout == LANES ? run_layer<LanesForm, R, S>(job, a, gt, gv, threads)
                             : run_layer<PointsForm, R, S>(job, a, gt, gv, threads);
}

int run(const Job& job, const Arrays& arrays, void* gt, void* gv, const Threads& threads) try {
  switch (job.dtype) {
    case 0: return run<float, float>(job, arrays, gt, gv, threads);
    case 1: return run<float, BFloat16>(job, arrays, gt, gv, threads);
    default: return run<double, double>(job, arrays, gt, gv, threads);
  }
} catch (...) {
  return 1;
}

Threads openmp{};  // fork and number of the runtime in use, or nulls

}  // namespace

// The names of the fields of a job, and of each of its sides.
#define NAME(name) #name " "
extern "C" const char* whtnet_job_fields() { return JOB_FIELDS(NAME) "| " SIDE_FIELDS(NAME); }
#undef NAME

// The OpenMP runtime whose threads the layers use; without a call of it, threads of our own.
extern "C" void whtnet_use_openmp(void* fork, void* number) {
  openmp.fork = (Fork)fork, openmp.number = (ThreadNumber)number;
}

// Forward: out = layer(x). Returns 0, or 1 if there was no memory.
extern "C" int whtnet_forward(const Job* job, const void* x, const void* t, const void* v, void* out, int count) {
  return run(*job, {x, nullptr, t, v, out, nullptr}, nullptr, nullptr, {count, openmp.fork, openmp.number});
}

// Forward, and then an epilogue.
extern "C" int whtnet_forward_and(const Job* job, const void* x, const void* t, const void* v, void* out, int count,
                                  const void* scale, const void* shift, const void* added, const void* residual,
                                  double low, double high) {
  const Epilogue epilogue{scale, shift, added, residual, low, high};
  return run(*job, {x, nullptr, t, v, out, &epilogue}, nullptr, nullptr, {count, openmp.fork, openmp.number});
}

// Gradients, for the gradient gy of the result: gx (may be null) of x, gt of t, gv of v.
extern "C" int whtnet_backward(const Job* job, const void* x, const void* gy, const void* t, const void* v, void* gx,
                               void* gt, void* gv, int count) {
  return run(*job, {x, gy, t, v, gx, nullptr}, gt, gv, {count, openmp.fork, openmp.number});
}
