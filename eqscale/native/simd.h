// Shared pieces of the CPU kernels: vectors of one machine register, the exponential and GELU, chunks of tokens, and
// small matrix products whose lanes are tokens.
// No dependence on PyTorch: pointers in, pointers out. T is float or double.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

template <class T> struct Simd;
template <> struct Simd<float> {
    typedef float V __attribute__((vector_size(VECTOR_BYTES)));
    typedef float U __attribute__((vector_size(VECTOR_BYTES), aligned(4), may_alias));
    typedef int32_t I __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to integer in the low bits
    static constexpr int mantissa = 23, bias = 127, taylor = 7;
    static constexpr float lowest = -87.0f;
};
template <> struct Simd<double> {
    typedef double V __attribute__((vector_size(VECTOR_BYTES)));
    typedef double U __attribute__((vector_size(VECTOR_BYTES), aligned(8), may_alias));
    typedef int64_t I __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr int64_t mantissa = 52, bias = 1023, taylor = 13;
    static constexpr double lowest = -708.0;
};
template <class T> constexpr int width() { return VECTOR_BYTES / sizeof(T); }
template <class T> inline typename Simd<T>::V load(const T* p) { return *(const typename Simd<T>::U*)p; }
template <class T> inline void store(T* p, typename Simd<T>::V v) { *(typename Simd<T>::U*)p = v; }

template <class T> inline typename Simd<T>::V exponential(typename Simd<T>::V x) {
    typedef typename Simd<T>::V V;
    typedef typename Simd<T>::I I;
    const T hi = sizeof(T) == 4 ? (T)0.693359375 : (T)0.693147180369123816490;
    const T lo = sizeof(T) == 4 ? (T)-2.12194440e-4 : (T)1.90821492927058770002e-10;
    V low = V{} + Simd<T>::lowest, high = V{} - Simd<T>::lowest;
    x = x < low ? low : x;
    x = x > high ? high : x;
    V shifted = x * (T)1.4426950408889634 + Simd<T>::magic;
    V n = shifted - Simd<T>::magic;
    V r = x - n * hi - n * lo;
    // Taylor series by Horner's rule.
    static constexpr T inverse_factorial[14] = {
        1, 1, (T)(1 / 2.0), (T)(1 / 6.0), (T)(1 / 24.0), (T)(1 / 120.0), (T)(1 / 720.0), (T)(1 / 5040.0),
        (T)(1 / 40320.0), (T)(1 / 362880.0), (T)(1 / 3628800.0), (T)(1 / 39916800.0), (T)(1 / 479001600.0),
        (T)(1 / 6227020800.0)};
    V p = V{} + inverse_factorial[Simd<T>::taylor];
#pragma GCC unroll 16
    for (int k = Simd<T>::taylor - 1; k >= 0; --k) p = p * r + inverse_factorial[k];
    I bits = ((I)shifted << Simd<T>::mantissa) + ((I{} + Simd<T>::bias) << Simd<T>::mantissa);
    return p * (V)bits;
}

// Swish, x sigmoid(x); value and derivative.
template <class T>
static inline void swish(typename Simd<T>::V x, typename Simd<T>::V& value, typename Simd<T>::V& slope) {
    const typename Simd<T>::V one = typename Simd<T>::V{} + (T)1, s = one / (one + exponential<T>(-x));
    value = x * s;
    slope = s + value * (one - s);
}

// GELU in its tanh form, x sigmoid(2u); value and derivative.
template <class T>
static inline void gelu(typename Simd<T>::V x, typename Simd<T>::V& value, typename Simd<T>::V& slope) {
    typedef typename Simd<T>::V V;
    const T k = (T)1.5957691216057308, a = (T)0.044715;  // 2 sqrt(2 / pi)
    V one = V{} + (T)1;
    V s = one / (one + exponential<T>(-(x * k) * (one + a * x * x)));
    value = x * s;
    slope = s + value * (one - s) * k * (one + 3 * a * x * x);
}

// Vectors of a row of C that a tile holds in registers, and rows of a tile of so many vectors.
#if defined(__AVX512F__) || defined(__aarch64__)
static constexpr int PANEL = 4;  // 32 registers
constexpr int tile_rows(int vectors) { return vectors == 4 ? 6 : vectors == 2 ? 8 : 12; }
#else
static constexpr int PANEL = 2;  // 16 registers
constexpr int tile_rows(int vectors) { return vectors == 2 ? 6 : 10; }
#endif

// One tile of gemm().
template <class T, int M, int NV>
static inline void gemm_tile(const T* A, int sm, int sk, const T* B, int ldb, T* C, int ldc, int K, const T* bias,
                             bool add) {
    typedef typename Simd<T>::V V;
    const int W = width<T>();
    V acc[M][NV];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) {
            acc[m][j] = V{} + (bias ? bias[m] : (T)0);
            if (add) acc[m][j] += load(C + m * ldc + j * W);
        }
    for (int k = 0; k < K; ++k) {
        V b[NV];
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) b[j] = load(B + k * ldb + j * W);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const V a = V{} + A[m * sm + k * sk];
#pragma GCC unroll 8
            for (int j = 0; j < NV; ++j) acc[m][j] += a * b[j];
        }
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int j = 0; j < NV; ++j) store(C + m * ldc + j * W, acc[m][j]);
}

template <class T, int NV, int ROWS = tile_rows(NV)>
static inline void gemm_rows(int rows, const T* A, int sm, int sk, const T* B, int ldb, T* C, int ldc, int K,
                             const T* bias, bool add) {
    if constexpr (ROWS > 1)
        if (rows < ROWS) return gemm_rows<T, NV, ROWS - 1>(rows, A, sm, sk, B, ldb, C, ldc, K, bias, add);
    gemm_tile<T, ROWS, NV>(A, sm, sk, B, ldb, C, ldc, K, bias, add);
}

// NV vectors of all M rows, in tiles of about equal heights: low ones would leave the multipliers waiting.
template <class T, int NV>
static void gemm_columns(const T* A, int sm, int sk, const T* B, int ldb, T* C, int ldc, int M, int K, const T* bias,
                         bool add) {
    for (int tiles = (M + tile_rows(NV) - 1) / tile_rows(NV), m = 0; tiles; --tiles) {
        const int rows = (M - m + tiles - 1) / tiles;
        gemm_rows<T, NV>(rows, A + m * sm, sm, sk, B, ldb, C + m * ldc, ldc, K, bias ? bias + m : bias, add);
        m += rows;
    }
}

// C[m][lane] = sum_k A[m sm + k sk] B[k][lane], plus bias[m], plus C if `add`; lanes a multiple of the vector width.
template <class T>
static void gemm(const T* A, int sm, int sk, const T* B, int ldb, T* C, int ldc, int M, int K, int lanes,
                 const T* bias = nullptr, bool add = false) {
    const int W = width<T>();
    int n = 0;
    for (; n + PANEL * W <= lanes; n += PANEL * W)
        gemm_columns<T, PANEL>(A, sm, sk, B + n, ldb, C + n, ldc, M, K, bias, add);
    for (; n + 2 * W <= lanes; n += 2 * W) gemm_columns<T, 2>(A, sm, sk, B + n, ldb, C + n, ldc, M, K, bias, add);
    if (n < lanes) gemm_columns<T, 1>(A, sm, sk, B + n, ldb, C + n, ldc, M, K, bias, add);
}

// Interleaves the halves of a and b: the low ones into a, the high ones into b.
template <class T, size_t... I>
static inline void interleave(typename Simd<T>::V& a, typename Simd<T>::V& b, std::index_sequence<I...>) {
    const int W = width<T>();
#ifdef __clang__
    const auto low = __builtin_shufflevector(a, b, (I / 2 + I % 2 * W)...);
    b = __builtin_shufflevector(a, b, (W / 2 + I / 2 + I % 2 * W)...);
#else
    const auto low = __builtin_shuffle(a, b, typename Simd<T>::I{(I / 2 + I % 2 * W)...});
    b = __builtin_shuffle(a, b, typename Simd<T>::I{(W / 2 + I / 2 + I % 2 * W)...});
#endif
    a = low;
}

// x (n, m; ldx apart) to y (m, n up to whole vectors of zeros; ldy apart). Rows of x are read in whole vectors.
template <class T> static void transpose(const T* x, int ldx, int n, int m, T* y, int ldy) {
    typedef typename Simd<T>::V V;
    constexpr int W = width<T>();
    for (int l = 0; l < m; l += W)
        for (int k = 0; k < n; k += W) {
            V r[W], s[W];
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i) r[i] = k + i < n ? load(x + (k + i) * ldx + l) : V{};
#pragma GCC unroll 4
            for (int stage = 1; stage < W; stage *= 2) {  // perfect shuffles
#pragma GCC unroll 16
                for (int i = 0; i < W / 2; ++i) {
                    s[2 * i] = r[i], s[2 * i + 1] = r[i + W / 2];
                    interleave<T>(s[2 * i], s[2 * i + 1], std::make_index_sequence<W>());
                }
#pragma GCC unroll 16
                for (int i = 0; i < W; ++i) r[i] = s[i];
            }
#pragma GCC unroll 16
            for (int i = 0; i < W; ++i)
                if (l + i < m) store(y + (l + i) * ldy + k, r[i]);
        }
}

// p (len, lanes; ld apart) = softmax over the rows of scale * p.
template <class T> static void softmax(T* p, int len, int lanes, int ld, T scale) {
    typedef typename Simd<T>::V V;
    for (int l = 0; l < lanes; l += width<T>()) {
        V top = load(p + l), sum = V{};
        for (int j = 1; j < len; ++j) {
            const V x = load(p + j * ld + l);
            top = x > top ? x : top;
        }
        for (int j = 0; j < len; ++j) {
            const V x = exponential<T>((load(p + j * ld + l) - top) * scale);
            store(p + j * ld + l, x);
            sum += x;
        }
        sum = (V{} + (T)1) / sum;
        for (int j = 0; j < len; ++j) store(p + j * ld + l, load(p + j * ld + l) * sum);
    }
}

// Pointers to the kernels under C names.
#define EXPORT(NAME)                  \
    auto* NAME##_f32 = &NAME<float>;  \
    auto* NAME##_f64 = &NAME<double>;
