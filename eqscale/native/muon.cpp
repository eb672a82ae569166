// Muon's step (eqscale.training.optim.Muon): momentum, Newton-Schulz and update of one matrix after the other, while it
// stays in the cache. Rows are padded with zeros to whole vectors.
#include "simd.h"

// C = scale L R + keep K for rows [0, ROWS) and VECTORS vectors of columns. L is (ROWS, depth); K and C may be the same.
template <class T, int ROWS, int VECTORS>
static inline void product_tile(int depth, const T* L, int ldl, const T* R, int ldr, T scale, T keep, const T* K, T* C,
                                int ldc) {
    typedef typename Simd<T>::V V;
    V sum[ROWS][VECTORS] = {};
    for (int k = 0; k < depth; ++k) {
        V r[VECTORS];
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; ++j) r[j] = load(R + k * ldr + j * width<T>());
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < VECTORS; ++j) sum[i][j] += L[i * ldl + k] * r[j];
    }
    for (int i = 0; i < ROWS; ++i)
        for (int j = 0; j < VECTORS; ++j) {
            const int at = i * ldc + j * width<T>();
            store(C + at, scale * sum[i][j] + (K ? keep * load(K + at) : V{}));
        }
}

template <class T, int VECTORS>
static void product_panel(int rows, int depth, const T* L, int ldl, const T* R, int ldr, T scale, T keep, const T* K,
                          T* C, int ldc) {
    int i = 0;
    auto at = [&](const T* p) { return p ? p + i * ldc : p; };
    for (; i + 6 <= rows; i += 6)
        product_tile<T, 6, VECTORS>(depth, L + i * ldl, ldl, R, ldr, scale, keep, at(K), C + i * ldc, ldc);
    for (; i + 2 <= rows; i += 2)
        product_tile<T, 2, VECTORS>(depth, L + i * ldl, ldl, R, ldr, scale, keep, at(K), C + i * ldc, ldc);
    for (; i < rows; ++i)
        product_tile<T, 1, VECTORS>(depth, L + i * ldl, ldl, R, ldr, scale, keep, at(K), C + i * ldc, ldc);
}

// C (rows, columns) = scale L (rows, depth) R (depth, columns) + keep K, columns a multiple of the vector's width.
template <class T>
static void product(int rows, int depth, int columns, const T* L, int ldl, const T* R, int ldr, T scale, T keep,
                    const T* K, T* C, int ldc) {
    const int W = width<T>();
    auto at = [](const T* p, int j) { return p ? p + j : p; };
    int j = 0;
    for (; j + 4 * W <= columns; j += 4 * W)
        product_panel<T, 4>(rows, depth, L, ldl, R + j, ldr, scale, keep, at(K, j), C + j, ldc);
    for (; j + 2 * W <= columns; j += 2 * W)
        product_panel<T, 2>(rows, depth, L, ldl, R + j, ldr, scale, keep, at(K, j), C + j, ldc);
    for (; j < columns; j += W)
        product_panel<T, 1>(rows, depth, L, ldl, R + j, ldr, scale, keep, at(K, j), C + j, ldc);
}

// weights, gradient, average: maps of one shape after those of another. shapes: (kinds, 4) = number of maps, rows,
// columns, slices; of each map one matrix (rows, columns) a slice, slices innermost.
// average <- momentum average + (1 - momentum) gradient
// weights <- kept weights - rate sqrt(max(rows, columns)) orthogonalise(Nesterov update)
template <class T>
static void muon(T* weights, const T* gradient, T* average, const int32_t* shapes, int kinds, const T* coefficients,
                 int iterations, T momentum, T kept, T rate, int threads) {
    const int W = width<T>();
    const auto whole = [=](int n) { return (n + W - 1) / W * W; };
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        std::vector<T> X, Y, XT, A, B;
        int64_t start = 0;
        for (int kind = 0; kind < kinds; ++kind) {
            const int maps = shapes[4 * kind], rows = shapes[4 * kind + 1], columns = shapes[4 * kind + 2];
            const int slices = shapes[4 * kind + 3], m = std::min(rows, columns), n = std::max(rows, columns);
            const int ldm = whole(m), ldn = whole(n);
            const T step = rate * std::sqrt((T)n);
            X.assign(m * ldn, 0), Y.assign(m * ldn, 0), XT.assign(n * ldm, 0), A.assign(m * ldm, 0), B.assign(m * ldm, 0);
#pragma omp for nowait
            for (int matrix = 0; matrix < maps * slices; ++matrix) {
                const int64_t first = start + (int64_t)(matrix / slices) * rows * columns * slices + matrix % slices;
                const auto at = [&](int i, int j) {  // element of the wide matrix
                    return first + (int64_t)(rows <= columns ? i * columns + j : j * columns + i) * slices;
                };
                T square = 0;
                for (int i = 0; i < m; ++i)
                    for (int j = 0; j < n; ++j) {
                        const T g = gradient[at(i, j)];
                        T& mean = average[at(i, j)];
                        mean += (1 - momentum) * (g - mean);
                        const T x = X[i * ldn + j] = g + momentum * (mean - g);
                        square += x * x;
                    }
                const T scale = 1 / (std::sqrt(square) + (T)1e-7);
                for (T& x : X) x *= scale;
                for (int k = 0; k < iterations; ++k) {
                    const T* c = coefficients + 3 * k;
                    for (int i = 0; i < m; ++i)
                        for (int j = 0; j < n; ++j) XT[j * ldm + i] = X[i * ldn + j];
                    product<T>(m, n, ldm, X.data(), ldn, XT.data(), ldm, 1, 0, nullptr, A.data(), ldm);
                    product<T>(m, m, ldm, A.data(), ldm, A.data(), ldm, c[2], c[1], A.data(), B.data(), ldm);
                    product<T>(m, m, ldn, B.data(), ldm, X.data(), ldn, 1, c[0], X.data(), Y.data(), ldn);
                    X.swap(Y);
                }
                for (int i = 0; i < m; ++i)
                    for (int j = 0; j < n; ++j) {
                        T& w = weights[at(i, j)];
                        w = kept * w - step * X[i * ldn + j];
                    }
            }
            start += (int64_t)maps * rows * columns * slices;
        }
    }
}

extern "C" {
EXPORT(muon)
}
