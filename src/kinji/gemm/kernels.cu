// The kernels of kinji.gemm.cuda.
//
// They give the bits of kinji.gemm.cpu. Integers replace its FP64 arithmetic where all is exact, because most GPUs have
// little FP64; where FP64 rounds, the operations and their order are the same, and none are contracted to a fused
// multiply-add (--fmad=false). fma() stands only where product and sum are exact.
//
// Parameters are pointers, 64-bit integers and doubles: what CuPy makes of Python's numbers. NVRTC is told THREADS, and
// ROW_THREADS of the kernels with one block a row.
//
// Dimension letters: R rows of an operand, K inner dimension, D >= K the inner dimension as stored, M rows and N columns
// of the product, S slices, L moduli, P products.

typedef long long int64;
typedef unsigned long long uint64;

const int FRACTION_BITS = 52;
const int DOUBLE_BIAS = 1023;
const int SIGNIFICAND_BIAS = 1075;
const int64 MAGNITUDE_MASK = 0x7fffffffffffffff;
const int64 FRACTION_MASK = (1ll << FRACTION_BITS) - 1;
const int64 INFINITY_PATTERN = 0x7ff0000000000000;
const int64 NAN_PATTERN = 0x7ff8000000000000;  // torch.nan
const int ENERGY_BITS = 16;
const int64 FIRST_SCALING = 900;  // C is 0 or within 2^-160 ... 2^160 before it: only the second scaling rounds
const int64 WIDEST_SHIFT = 63;
const int CHUNK_BITS = 20;
const int CHUNK_MASK = (1 << CHUNK_BITS) - 1;
const int GROUP = 4;  // products of an entry read at once, to hide the latency of memory
const int TILE = 32;

struct Magnitude {  // |x| = significand * 2^exponent
  int64 significand;
  int exponent;
};

__device__ Magnitude magnitude(int64 pattern) {
  int64 fraction = pattern & FRACTION_MASK;
  int biased = (pattern & MAGNITUDE_MASK) >> FRACTION_BITS;
  return {biased ? fraction | 1ll << FRACTION_BITS : fraction, max(biased, 1) - SIGNIFICAND_BIAS};
}

__device__ double power_of_two(int64 exponent) {
  return __longlong_as_double((exponent + DOUBLE_BIAS) << FRACTION_BITS);
}

// ---- A row for each block -------------------------------------------------------------------------------------------

// Combines one value of each thread; every thread gets the result.
template <typename T, typename Operation>
__device__ T reduced(T value, Operation combine) {
  __shared__ T partial[ROW_THREADS];
  partial[threadIdx.x] = value;
  for (int half = ROW_THREADS / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] = combine(partial[threadIdx.x], partial[threadIdx.x + half]);
  }
  __syncthreads();
  T result = partial[0];
  __syncthreads();  // before the next reduction writes
  return result;
}

template <typename T>
__device__ T greatest(T value) {
  return reduced(value, [](T x, T y) { return x > y ? x : y; });
}

template <typename T>
__device__ T least(T value) {
  return reduced(value, [](T x, T y) { return x < y ? x : y; });
}

template <typename T>
__device__ T sum(T value) {
  return reduced(value, [](T x, T y) { return x + y; });
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
row_scales(const double* x_RK, int64 K, int64* exponent_R, double* energy_R, double* sum_R, int64* span_R,
           bool* finite_R) {
  const double* x_K = x_RK + blockIdx.x * K;
  int64 peak = 0;
  int lowest = DOUBLE_BIAS;
#pragma unroll 4
  for (int64 k = threadIdx.x; k < K; k += ROW_THREADS) {
    int64 pattern = __double_as_longlong(x_K[k]) & MAGNITUDE_MASK;
    Magnitude x = magnitude(pattern);
    peak = max(peak, pattern);
    lowest = min(lowest, pattern ? x.exponent + __ffsll(x.significand) - 1 : DOUBLE_BIAS);
  }
  peak = greatest(peak);
  lowest = least(lowest);
  bool known = 0 < peak && peak < INFINITY_PATTERN;
  Magnitude top = magnitude(peak);
  int exponent = known ? top.exponent + 64 - __clzll(top.significand) : 0;

  int half = (ENERGY_BITS - exponent) >> 1;
  double first = power_of_two(half), second = power_of_two(ENERGY_BITS - exponent - half);
  uint64 energy = 0, total = 0;
#pragma unroll 4
  for (int64 k = threadIdx.x; k < (known ? K : 0); k += ROW_THREADS) {
    uint64 q = (unsigned)ceil(fabs(x_K[k] * first * second));
    energy += q * q;
    total += q;
  }
  energy = sum(energy);
  total = sum(total);
  if (threadIdx.x > 0) return;
  exponent_R[blockIdx.x] = exponent;
  energy_R[blockIdx.x] = (double)energy;
  sum_R[blockIdx.x] = (double)total;
  span_R[blockIdx.x] = known ? exponent - lowest : 0;
  finite_R[blockIdx.x] = peak < INFINITY_PATTERN;
}

extern "C" __global__ void __launch_bounds__(ROW_THREADS)
worst_ratio(const double* lower_MN, const double* x_M, const double* y_M, const double* x_N, const double* y_N,
            int64 N, double* worst_M, double* least_M) {
  int64 i = blockIdx.x;
  double worst = 0, smallest = __longlong_as_double(INFINITY_PATTERN);
  for (int64 j = threadIdx.x; j < N; j += ROW_THREADS) {
    double above = x_M[i] * y_N[j] + y_M[i] * x_N[j], lower = lower_MN[i * N + j];
    worst = above > 0 ? max(worst, above / lower) : worst;
    smallest = above > 0 ? min(smallest, lower) : smallest;
  }
  worst = greatest(worst);
  smallest = least(smallest);
  if (threadIdx.x > 0) return;
  worst_M[i] = worst;
  least_M[i] = smallest;
}

// ---- Four neighbours in a row for each thread, which writes them as one word ----------------------------------------

struct alignas(4) Four {
  signed char at[4];
};

__device__ void load_four(const double* x_K, int64 k, int64 K, bool finite, int64* pattern_4) {
  for (int u = 0; u < 4; ++u) pattern_4[u] = finite && k + u < K ? __double_as_longlong(x_K[k + u]) : 0;
}

// floor(x 2^-shift) of x >= 0, less the bits above 2^64
__device__ int64 shifted(int64 x, int64 shift) {
  return x << min(max(-shift, 0ll), WIDEST_SHIFT) >> min(max(shift, 0ll), WIDEST_SHIFT);
}

extern "C" __global__ void __launch_bounds__(THREADS)
split(const double* x_RK, int64 K, int64 D, const int64* exponent_R, const bool* finite_R, const int64* number_S,
      int64 S, int64 bits, Four* digits_RSD) {
  int64 row = blockIdx.x, k = 4 * ((int64)blockIdx.y * THREADS + threadIdx.x);
  if (k >= D) return;
  int64 pattern_4[4];
  load_four(x_RK + row * K, k, K, finite_R[row], pattern_4);
  Four* place = digits_RSD + (row * S * D + k) / 4;
  for (int64 s = 0; s < S; ++s, place += D / 4) {
    int64 unit = exponent_R[row] - bits * number_S[s];
    Four digits;
    for (int u = 0; u < 4; ++u) {
      Magnitude x = magnitude(pattern_4[u]);
      int digit = shifted(x.significand, unit - x.exponent) & ((1 << bits) - 1);
      digits.at[u] = pattern_4[u] < 0 ? -digit : digit;
    }
    *place = digits;
  }
}

struct alignas(16) Modulus {
  int p, reciprocal;  // 2^38 / p, rounded
  int carries[3];     // 2^20, 2^40, 2^60 mod p, in [-p / 2, p / 2]
  int unused;
  double weights[3];
};

// x - p round(x / p) for |x| < 2^29, rounding up at the tie of an even p. x times the reciprocal is off by less than
// 2^-4 of 2^6 x / p, while for odd p ties are 2^6 / 2p > 2^-4 away; for p = 256 it is exact.
__device__ int residue(int x, const Modulus& m) {
  int quotient = (__mulhi(x, m.reciprocal) + 32) >> 6;
  return x - quotient * m.p;
}

// trunc(2^shift x), of up to 80 bits, as chunks of 20 bits with the sign of x
__device__ void integer_chunks(int64 pattern, int64 shift, int* chunk_4) {
  Magnitude x = magnitude(pattern);
  int64 low = shifted(x.significand, -x.exponent - shift);
  int64 high = shifted(x.significand, -x.exponent - shift + 2 * CHUNK_BITS);
  int64 at[4] = {low, low >> CHUNK_BITS, high, high >> CHUNK_BITS};
  for (int c = 0; c < 4; ++c) chunk_4[c] = pattern < 0 ? -(int)(at[c] & CHUNK_MASK) : (int)(at[c] & CHUNK_MASK);
}

extern "C" __global__ void __launch_bounds__(THREADS)
residues(const double* x_RK, int64 R, int64 K, int64 D, const int64* shift_R, const bool* finite_R,
         const Modulus* modulus_L, int64 L, Four* residues_LRD) {
  int64 row = blockIdx.x, k = 4 * ((int64)blockIdx.y * THREADS + threadIdx.x);
  if (k >= D) return;
  int64 pattern_4[4];
  int chunk_44[4][4];
  load_four(x_RK + row * K, k, K, finite_R[row], pattern_4);
  for (int u = 0; u < 4; ++u) integer_chunks(pattern_4[u], shift_R[row], chunk_44[u]);
  Four* place = residues_LRD + (row * D + k) / 4;
  for (int64 l = 0; l < L; ++l, place += R * D / 4) {
    Modulus m = modulus_L[l];
    Four result;
    for (int u = 0; u < 4; ++u) {
      int congruent = chunk_44[u][0];
      for (int c = 0; c < 3; ++c) congruent += chunk_44[u][c + 1] * m.carries[c];
      result.at[u] = residue(congruent, m);
    }
    *place = result;
  }
}

// ---- An entry of the product for each thread ------------------------------------------------------------------------

__device__ double scaled(double c, int64 exponent) {
  int64 first = min(max(exponent, -FIRST_SCALING), FIRST_SCALING);
  int64 second = min(max(exponent - first, (int64)(1 - DOUBLE_BIAS)), (int64)DOUBLE_BIAS);
  return c * power_of_two(first) * power_of_two(second);
}

extern "C" __global__ void __launch_bounds__(THREADS)
accumulate(const int* products_PMN, const int64* starts_P, int64 P, int64 M, int64 N, int64 bits,
           const int64* exponent_M, const int64* exponent_N, double* c_MN) {
  int64 i = blockIdx.x, j = (int64)blockIdx.y * THREADS + threadIdx.x;
  if (j >= N) return;
  double unit = power_of_two(-bits), c = 0;
  int64 diagonal = 0;
#pragma unroll 4
  for (int64 at = P - 1; at >= 0; --at) {
    diagonal += products_PMN[(at * M + i) * N + j];
    bool complete = starts_P[at];  // backwards, the first product of a diagonal is its last
    c = complete ? c * unit + diagonal : c;
    diagonal = complete ? 0 : diagonal;
  }
  c_MN[i * N + j] = scaled(c, exponent_M[i] + exponent_N[j] - 2 * bits);
}

// The residue as the CPU rounds it, to the even quotient at the tie, which only p = 256 has; for |x| < 2^41.
__device__ int residue_of_product(int64 x, const Modulus& m) {
  int r = residue((int)(x & CHUNK_MASK) + (int)(x >> CHUNK_BITS) * m.carries[0], m);
  return r == -128 && !(x & 256) ? 128 : r;
}

// The moduli come padded to groups, with weights of zero.
extern "C" __global__ void __launch_bounds__(THREADS)
reconstruct(const int* products_PMN, const Modulus* modulus_L, int64 L, int64 blocks, int64 M, int64 N, double product_0,
            double product_1, double product_2, double inverse_product, const int64* exponent_M, const int64* exponent_N,
            double* c_MN) {
  int64 i = blockIdx.x, j = (int64)blockIdx.y * THREADS + threadIdx.x;
  if (j >= N) return;
  double sum_0 = 0, sum_1 = 0, sum_2 = 0;
  for (int64 l = 0; l < L; l += GROUP) {
    int64 product_4[GROUP] = {};
    for (int64 b = 0; b < blocks; ++b)
      for (int u = 0; u < GROUP; ++u) product_4[u] += products_PMN[((min(l + u, L - 1) * blocks + b) * M + i) * N + j];
    for (int u = 0; u < GROUP; ++u) {
      Modulus m = modulus_L[l + u];
      double r = residue_of_product(product_4[u], m);
      sum_0 = fma(m.weights[0], r, sum_0);
      sum_1 = fma(m.weights[1], r, sum_1);
      sum_2 = fma(m.weights[2], r, sum_2);
    }
  }
  double quotient = rint(sum_0 * inverse_product);
  double first = fma(-product_0, quotient, sum_0);
  double second = fma(-product_1, quotient, sum_1);
  double third = fma(-product_2, quotient, sum_2);
  double head = first + second, rest = head - first;  // and the tail of this sum without error (Knuth's TwoSum)
  double integer = head + (((first - (head - rest)) + (second - rest)) + third);
  c_MN[i * N + j] = scaled(integer, exponent_M[i] + exponent_N[j]);
}

// ---- A tile of the product for each block ---------------------------------------------------------------------------

__device__ double sign_of_finite(const double* x_RK, int64 row, int64 R, int64 k, int64 K) {
  double x = row < R && k < K ? x_RK[row * K + k] : 0;
  bool finite = (__double_as_longlong(x) & MAGNITUDE_MASK) < INFINITY_PATTERN;
  return finite ? (x > 0) - (x < 0) : x;
}

// Nearly always all rows and columns of the tile are finite, and the block ends at once.
extern "C" __global__ void __launch_bounds__(THREADS)
propagate(double* c_MN, const double* a_MK, const double* b_NK, const bool* finite_M, const bool* finite_N, int64 M,
          int64 N, int64 K) {
  const int HEIGHT = THREADS / TILE, ROWS = TILE / HEIGHT;  // a thread's entries are HEIGHT rows apart
  __shared__ double a_tile[TILE][TILE + 1], b_tile[TILE][TILE + 1];
  int64 tiles_N = (N + TILE - 1) / TILE;
  int64 top = blockIdx.x / tiles_N * TILE, left = blockIdx.x % tiles_N * TILE;
  int column = threadIdx.x % TILE, row = threadIdx.x / TILE;
  bool a_reached = top + column < M && !finite_M[top + column];
  bool b_reached = left + column < N && !finite_N[left + column];
  if (!__syncthreads_or(a_reached || b_reached)) return;

  double c[ROWS] = {};
  for (int64 k = 0; k < K; k += TILE) {
    for (int u = 0; u < ROWS; ++u) {
      a_tile[row + u * HEIGHT][column] = sign_of_finite(a_MK, top + row + u * HEIGHT, M, k + column, K);
      b_tile[row + u * HEIGHT][column] = sign_of_finite(b_NK, left + row + u * HEIGHT, N, k + column, K);
    }
    __syncthreads();
    for (int s = 0; s < TILE; ++s)
      for (int u = 0; u < ROWS; ++u) c[u] += a_tile[row + u * HEIGHT][s] * b_tile[column][s];
    __syncthreads();
  }
  for (int u = 0; u < ROWS; ++u) {
    int64 i = top + row + u * HEIGHT, j = left + column;
    if (i < M && j < N && !(finite_M[i] && finite_N[j]))
      c_MN[i * N + j] = c[u] == c[u] ? c[u] : __longlong_as_double(NAN_PATTERN);
  }
}
