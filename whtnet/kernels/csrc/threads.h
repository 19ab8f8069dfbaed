// Scratch memory of a thread, and work shared out among threads.
#pragma once
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

namespace {

struct Scratch {  // grows, and stays with its thread
  void* memory = nullptr;
  size_t size = 0;
  ~Scratch() { std::free(memory); }
  template <class T> T* get(size_t n) {
    if (n * sizeof(T) > size) {
      std::free(memory);
      memory = nullptr, size = 0;
      if (posix_memalign(&memory, 4096, n * sizeof(T))) {
        memory = nullptr;
        throw std::bad_alloc();
      }
      size = n * sizeof(T);
    }
    return (T*)memory;
  }
};
thread_local Scratch scratch;

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

struct Threads {
  int count;
  Fork fork;            // null: threads of our own
  ThreadNumber number;
};

// work(0), …, work(chunks - 1) on at most `useful` threads; false if one of them failed.
template <class F> bool parallel(F work, int64_t chunks, const Threads& threads, int64_t useful) {
  int64_t n = threads.count;
  for (int64_t limit : {chunks, useful, int64_t(MAX_THREADS)})
    if (n > limit) n = limit;
  if (n < 1) n = 1;
  Team<F> team(work, int(n), chunks, threads.number);
  if (n == 1) {
    team.run(0);
  } else if (threads.fork && threads.number) {
    threads.fork(&Team<F>::enter, &team, unsigned(n), 0);
  } else {
    std::vector<std::thread> others;
    for (int i = 1; i < n; i++) others.emplace_back([&team, i] { team.run(i); });
    team.run(0);
    for (auto& t : others) t.join();
  }
  return !team.failed;
}

}  // namespace
