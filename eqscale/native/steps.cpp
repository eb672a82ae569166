// Steps of optimisers on flat tensors (eqscale.training.optim), and copies between many small tensors and one.
#include "simd.h"

// norm: of all gradients together. If it is above most, they are scaled down to it.
template <class T>
static void clip(T* norm, T* const* gradients, const int64_t* sizes, int count, T most, int) {
    constexpr int LANES = 16;
    T sums[LANES] = {};
    for (int k = 0; k < count; ++k) {
        const T* g = gradients[k];
        int64_t i = 0;
        for (; i + LANES <= sizes[k]; i += LANES)
            for (int j = 0; j < LANES; ++j) sums[j] += g[i + j] * g[i + j];
        for (int j = 0; i < sizes[k]; ++i, ++j) sums[j] += g[i] * g[i];
    }
    T square = 0;
    for (T sum : sums) square += sum;
    *norm = std::sqrt(square);
    const T factor = most / (*norm + (T)1e-6);
    if (factor >= 1) return;  // not so if the norm is NaN
    for (int k = 0; k < count; ++k)
        for (int64_t i = 0; i < sizes[k]; ++i) gradients[k][i] *= factor;
}

// averages of the gradient and its square, then weights <- kept weights - rate average / (sqrt(square) / root + eps)
template <class T>
static void adamw(T* weights, const T* gradient, T* average, T* square, int64_t n, T beta1, T beta2, T kept, T rate,
                  T root, T eps, int) {
    for (int64_t i = 0; i < n; ++i) {
        const T g = gradient[i];
        average[i] += (1 - beta1) * (g - average[i]);
        square[i] = beta2 * square[i] + (1 - beta2) * g * g;
        weights[i] = kept * weights[i] - rate * average[i] / (std::sqrt(square[i]) / root + eps);
    }
}

// one tensor of all pieces, one after the other
template <class T> static void join(T* whole, const T* const* pieces, const int64_t* sizes, int count, int) {
    for (int k = 0; k < count; whole += sizes[k++]) std::copy_n(pieces[k], sizes[k], whole);
}

// each piece of a joined tensor added to another tensor
template <class T> static void add_pieces(const T* whole, T* const* to, const int64_t* sizes, int count, int) {
    for (int k = 0; k < count; whole += sizes[k++])
        for (int64_t i = 0; i < sizes[k]; ++i) to[k][i] += whole[i];
}

extern "C" {
EXPORT(clip)
EXPORT(adamw)
EXPORT(join)
EXPORT(add_pieces)
}
