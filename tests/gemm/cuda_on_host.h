// CUDA C++ as C++ of the host: the threads of a block take turns, from barrier to barrier, in ascending order.
//
// A kernel that lacks a barrier gives wrong results here; one whose threads do not all reach a barrier fails.

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#define __global__ __attribute__((visibility("hidden")))
#define __device__ static inline
#define __shared__ static
#define __launch_bounds__(threads)

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
static Index threadIdx, blockIdx;

template <typename T>
static T max(T x, T y) {
  return x > y ? x : y;
}
template <typename T>
static T min(T x, T y) {
  return x < y ? x : y;
}
static double __longlong_as_double(long long pattern) {
  double x;
  std::memcpy(&x, &pattern, sizeof x);
  return x;
}
static long long __double_as_longlong(double x) {
  long long pattern;
  std::memcpy(&pattern, &x, sizeof x);
  return pattern;
}
static int __mulhi(int x, int y) { return (long long)x * y >> 32; }
static int __ffsll(long long x) { return __builtin_ffsll(x); }
static int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }

// ---- A block --------------------------------------------------------------------------------------------------------

const int MOST_THREADS = 1024, STACK_BYTES = 1 << 16;
static ucontext_t block_context, thread_context[MOST_THREADS];
static char stacks[MOST_THREADS][STACK_BYTES];
static bool waits[MOST_THREADS];
static std::function<void()> body;

static void thread() {
  body();
  waits[threadIdx.x] = false;
}

static void __syncthreads() {
  unsigned self = threadIdx.x;
  waits[self] = true;
  swapcontext(&thread_context[self], &block_context);
}

static int __syncthreads_or(int vote) {
  static int votes;
  votes = threadIdx.x == 0 ? vote != 0 : votes | (vote != 0);
  __syncthreads();
  int result = votes;
  __syncthreads();
  return result;
}

// Returns whether all threads came to the end by way of the same barriers.
static bool run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) {
    getcontext(&thread_context[t]);
    thread_context[t].uc_stack.ss_sp = stacks[t];
    thread_context[t].uc_stack.ss_size = STACK_BYTES;
    thread_context[t].uc_link = &block_context;
    makecontext(&thread_context[t], thread, 0);
  }
  unsigned waiting = threads;
  while (waiting == threads) {
    waiting = 0;
    for (unsigned t = 0; t < threads; ++t) {
      threadIdx.x = t;
      swapcontext(&block_context, &thread_context[t]);
      waiting += waits[t];
    }
  }
  return waiting == 0;
}

// ---- A launch, with every argument a word of 64 bits ----------------------------------------------------------------

template <typename T>
static T as(std::uint64_t word) {
  static_assert(sizeof(T) == sizeof word, "CuPy passes numbers of 64 bits");
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

template <typename... T, std::size_t... At>
static bool run_grid(void (*kernel)(T...), unsigned rows, unsigned columns, unsigned threads, const std::uint64_t* words,
                     std::index_sequence<At...>) {
  body = [=] { kernel(as<T>(words[At])...); };
  bool converged = true;
  for (blockIdx.y = 0; blockIdx.y < columns; ++blockIdx.y)
    for (blockIdx.x = 0; blockIdx.x < rows; ++blockIdx.x) converged &= run_block(threads);
  return converged;
}

template <typename... T>
static bool launch(void (*kernel)(T...), unsigned rows, unsigned columns, unsigned threads, unsigned count,
                   const std::uint64_t* words) {
  return count == sizeof...(T) && run_grid(kernel, rows, columns, threads, words, std::index_sequence_for<T...>{});
}
