// GATr on the CPU: the whole network, forward and backward, tile by tile. A tile holds some whole samples as planar
// activations (rows, ld): one row per component of a channel, tokens contiguous, padded to whole vectors. It runs
// through all blocks before the next one starts, so that what an operation reads is still in the cache.
// Straight-line products (gp, gp_x, gp_y, join, join_x, join_y) are generated from eqscale.algebra.blades. Everything
// else about the layout (which row holds what) arrives as tables of row numbers.
#include "products.h"
#include "simd.h"

template <class T> constexpr int whole(int n) { return (n + width<T>() - 1) / width<T>() * width<T>(); }

template <class T> inline typename Simd<T>::V load_some(const T* p, int n) {  // zeros beyond
    if (n == width<T>()) return load(p);
    alignas(64) T v[width<T>()] = {};
    std::copy_n(p, n, v);
    return load(v);
}

template <class T> inline void store_some(T* p, typename Simd<T>::V x, int n) {
    if (n == width<T>()) return store(p, x);
    alignas(64) T v[width<T>()];
    store(v, x);
    std::copy_n(v, n, p);
}

template <class T> inline void copy_padded(const T* from, int n, T* to) {  // zeros up to a whole vector
    std::fill(std::copy_n(from, n, to), to + whole<T>(n), (T)0);
}

// Memory that a thread keeps: fresh memory costs a page fault every 4 kB. Aligned: vectors across two lines of the
// cache take twice as long to read.
template <class T> struct Scratch {
    std::vector<T> memory;
    T* get(size_t size) {
        const size_t line = 64 / sizeof(T);
        if (memory.size() < size + line) memory.resize(size + line);
        return (T*)(((uintptr_t)memory.data() + 63) / 64 * 64);
    }
};

// Sums over the lanes of as many vectors as a vector has lanes.
template <class T> static inline typename Simd<T>::V lane_sums(typename Simd<T>::V* v) {
#pragma GCC unroll 4
    for (int n = width<T>() / 2; n > 0; n /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < n; ++i) {
            interleave<T>(v[i], v[i + n], std::make_index_sequence<width<T>()>());
            v[i] += v[i + n];
        }
    return v[0];
}

// C[m][n] += sum over planes and lanes of A[m][lane] B[n][lane]; planes lie pa and pb apart.
template <class T>
static void dots(const T* A, int lda, int pa, const T* B, int ldb, int pb, int planes, T* C, int ldc, int M, int N,
                 int lanes) {
    typedef typename Simd<T>::V V;
    constexpr int W = width<T>(), TN = 2, TM = W / TN;
    for (int m = 0; m < M; m += TM)
        for (int n = 0; n < N; n += TN) {
            V acc[W] = {};
            const T *a[TM], *b[TN];
            for (int i = 0; i < TM; ++i) a[i] = A + std::min(m + i, M - 1) * lda;  // beyond the last: not added
            for (int i = 0; i < TN; ++i) b[i] = B + std::min(n + i, N - 1) * ldb;
            for (int p = 0; p < planes; ++p)
                for (int l = 0; l < lanes; l += W) {
                    V y[TN];
#pragma GCC unroll 8
                    for (int j = 0; j < TN; ++j) y[j] = load(b[j] + p * pb + l);
#pragma GCC unroll 8
                    for (int i = 0; i < TM; ++i) {
                        const V x = load(a[i] + p * pa + l);
#pragma GCC unroll 8
                        for (int j = 0; j < TN; ++j) acc[i * TN + j] += x * y[j];
                    }
                }
            const V sums = lane_sums<T>(acc);
            for (int i = 0; i < std::min(TM, M - m); ++i)
                for (int j = 0; j < std::min(TN, N - n); ++j) C[(m + i) * ldc + n + j] += sums[i * TN + j];
        }
}

// ---------------------------------------------------------------------------------------------- linear maps
// products: (count, 8) = first output row, first input row, m, k, planes, rows to the next plane of the outputs, of
// the inputs, first weight. Planes share their weights (m, k).
struct Map {
    const int32_t* products;
    int64_t count, weights;  // first weight: in the network for its border maps, else in a block
};

// y = (y if add) + f(x)
template <class T> static void apply(const Map& f, const T* w, const T* x, T* y, int ld, int lanes, bool add) {
    for (const int32_t* p = f.products; p < f.products + 8 * f.count; p += 8)
        for (int plane = 0; plane < p[4]; ++plane)
            gemm(w + f.weights + p[7], p[3], 1, x + (p[1] + plane * p[6]) * ld, ld, y + (p[0] + plane * p[5]) * ld, ld,
                 p[2], p[3], lanes, (const T*)nullptr, add);
}

// gx += f^T(gy), if gx; gw += gy x^T
template <class T>
static void apply_gradient(const Map& f, const T* w, const T* x, const T* gy, T* gx, T* gw, int ld, int lanes,
                           Scratch<T>& turned) {
    gw += f.weights, w += f.weights;
    for (const int32_t* p = f.products; p < f.products + 8 * f.count; p += 8) {
        const int m = p[2], k = p[3], vectors = k / width<T>() > 1 ? k / width<T>() * width<T>() : 0;
        const T *g = gy + p[0] * ld, *from = x + p[1] * ld;
        for (int plane = 0; plane < p[4]; ++plane) {
            const T* own = g + plane * p[5] * ld;
            T* to = gx ? gx + (p[1] + plane * p[6]) * ld : nullptr;
            if (to) gemm(w + p[7], 1, k, own, ld, to, ld, k, m, lanes, (const T*)nullptr, true);
            if (vectors) {  // whole vectors of inputs: the vectors of a product over tokens
                T* t = turned.get((size_t)lanes * vectors);
                transpose(from + plane * p[6] * ld, ld, vectors, lanes, t, vectors);
                gemm(own, ld, 1, t, vectors, gw + p[7], k, m, lanes, vectors, (const T*)nullptr, true);
            }
        }
        dots(g, ld, p[5] * ld, from + vectors * ld, ld, p[6] * ld, p[4], gw + p[7] + vectors, k, m, k - vectors, lanes);
    }
}

// ---------------------------------------------------------------------------------------------- norm
// rows: (m, 3) = input row, output row, 1 if it counts in the norm (no e0). scalar_rows: (s, 2) likewise.
struct Norm {
    const int32_t *rows, *scalar_rows;
    int64_t m, s, channels, ones_row;
    double eps, scalar_eps;
};

template <class T> static inline typename Simd<T>::V inverse_root(typename Simd<T>::V x) {
    alignas(64) T v[width<T>()];
    store(v, x);
    for (int i = 0; i < width<T>(); ++i) v[i] = 1 / std::sqrt(v[i]);
    return load(v);
}

// y = x / sqrt(max(mean over channels of |x|^2, eps)); scalars: layer norm without affine; ones_row = 1.
// scale: 2 rows keep both factors for the backward pass (the first negated where eps clamps).
template <class T> static void norm(const Norm& n, const T* x, T* y, T* scale, int ld, int lanes) {
    typedef typename Simd<T>::V V;
    for (int j = 0; j < lanes; j += width<T>()) {
        V square = V{}, mean = V{}, spread = V{};
        for (int i = 0; i < n.m; ++i)
            if (n.rows[3 * i + 2]) {
                const V v = load(x + n.rows[3 * i] * ld + j);
                square += v * v;
            }
        square /= (T)n.channels;
        const V least = V{} + (T)n.eps, factor = inverse_root<T>(square > least ? square : least);
        for (int i = 0; i < n.m; ++i) store(y + n.rows[3 * i + 1] * ld + j, load(x + n.rows[3 * i] * ld + j) * factor);
        store(scale + j, square > least ? factor : -factor);
        const T share = 1 / (T)std::max<int64_t>(n.s, 1);
        for (int i = 0; i < n.s; ++i) mean += load(x + n.scalar_rows[2 * i] * ld + j);
        mean *= share;
        for (int i = 0; i < n.s; ++i) {
            const V v = load(x + n.scalar_rows[2 * i] * ld + j) - mean;
            spread += v * v;
        }
        const V scalar_factor = inverse_root<T>(spread * share + (T)n.scalar_eps);
        for (int i = 0; i < n.s; ++i)
            store(y + n.scalar_rows[2 * i + 1] * ld + j,
                  (load(x + n.scalar_rows[2 * i] * ld + j) - mean) * scalar_factor);
        store(scale + ld + j, scalar_factor);
        store(y + n.ones_row * ld + j, V{} + (T)1);
    }
}

// gx += gradient
template <class T>
static void norm_gradient(const Norm& n, const T* y, const T* scale, const T* gy, T* gx, int ld, int lanes) {
    typedef typename Simd<T>::V V;
    for (int j = 0; j < lanes; j += width<T>()) {
        V dot = V{}, mean = V{}, mean_y = V{};
        const V signed_factor = load(scale + j), factor = signed_factor > V{} ? signed_factor : -signed_factor;
        for (int i = 0; i < n.m; ++i) {
            const int row = n.rows[3 * i + 1] * ld + j;
            dot += load(gy + row) * load(y + row);
        }
        dot = signed_factor > V{} ? dot * factor / (T)n.channels : V{};
        for (int i = 0; i < n.m; ++i) {
            const int32_t* r = n.rows + 3 * i;
            V g = load(gy + r[1] * ld + j) * factor;
            if (r[2]) g -= load(y + r[1] * ld + j) * dot;
            store(gx + r[0] * ld + j, load(gx + r[0] * ld + j) + g);
        }
        const T share = 1 / (T)std::max<int64_t>(n.s, 1);
        for (int i = 0; i < n.s; ++i) {
            const V g = load(gy + n.scalar_rows[2 * i + 1] * ld + j);
            mean += g, mean_y += g * load(y + n.scalar_rows[2 * i + 1] * ld + j);
        }
        mean *= share, mean_y *= share;
        for (int i = 0; i < n.s; ++i) {
            const int32_t* r = n.scalar_rows + 2 * i;
            const V g = load(gy + r[1] * ld + j) - mean - load(y + r[1] * ld + j) * mean_y;
            store(gx + r[0] * ld + j, load(gx + r[0] * ld + j) + g * load(scale + ld + j));
        }
    }
}

// ---------------------------------------------------------------------------------------------- products
// rows: (2 channels, 48) = 16 rows of the left factor, 16 of the right, 16 of the output; first the geometric
// products, then the joins. scalar_rows: (s, 2) of the normed input and of the output.
struct Bilinear {
    const int32_t *rows, *scalar_rows;
    int64_t channels, s, ones_row;
};

template <class T, class F> static void for_products(const Bilinear& b, int lanes, F body) {
    for (int p = 0; p < 2 * b.channels; ++p)
        for (int j = 0; j < lanes; j += width<T>()) body(b.rows + 48 * p, p < b.channels, j);
}

template <class T> static inline void fetch(const T* z, const int32_t* rows, int ld, int j, typename Simd<T>::V* v) {
    for (int i = 0; i < 16; ++i) v[i] = load(z + rows[i] * ld + j);
}
template <class T> static inline void put(T* z, const int32_t* rows, int ld, int j, const typename Simd<T>::V* v) {
    for (int i = 0; i < 16; ++i) store(z + rows[i] * ld + j, v[i]);
}

template <class T>
static void products(const Bilinear& b, const T* z, const T* normed, const T* reference, T* out, int ld, int lanes) {
    typedef typename Simd<T>::V V;
    for_products<T>(b, lanes, [=](const int32_t* r, bool geometric, int j) {
        V x[16], y[16], o[16];
        fetch(z, r, ld, j, x), fetch(z, r + 16, ld, j, y);
        if (geometric) gp(x, y, o);
        else join(x, y, o);
        if (!geometric && reference)
            for (int i = 0; i < 16; ++i) o[i] *= load(reference + j);
        put(out, r + 32, ld, j, o);
    });
    for (int i = 0; i < b.s; ++i)
        std::copy_n(normed + b.scalar_rows[2 * i] * ld, lanes, out + b.scalar_rows[2 * i + 1] * ld);
    std::fill_n(out + b.ones_row * ld, lanes, (T)1);
}

// gnormed += gradient of the scalars
template <class T>
static void products_gradient(const Bilinear& b, const T* z, const T* reference, const T* g, T* gz, T* gnormed, int ld,
                              int lanes) {
    typedef typename Simd<T>::V V;
    for_products<T>(b, lanes, [=](const int32_t* r, bool geometric, int j) {
        V x[16], y[16], q[16], o[16];
        fetch(z, r, ld, j, x), fetch(z, r + 16, ld, j, y), fetch(g, r + 32, ld, j, q);
        if (!geometric && reference)
            for (int i = 0; i < 16; ++i) q[i] *= load(reference + j);
        if (geometric) gp_x(q, y, o);
        else join_x(q, y, o);
        put(gz, r, ld, j, o);
        if (geometric) gp_y(q, x, o);
        else join_y(q, x, o);
        put(gz, r + 16, ld, j, o);
    });
    for (int i = 0; i < b.s; ++i) {
        const T* from = g + b.scalar_rows[2 * i + 1] * ld;
        T* to = gnormed + b.scalar_rows[2 * i] * ld;
        for (int j = 0; j < lanes; ++j) to[j] += from[j];
    }
}

// ---------------------------------------------------------------------------------------------- gated GELU
// rows: (channels, 33) = 16 input rows, 16 output rows, gate row; scalar_rows: (s, 2).
struct Gate {
    const int32_t *rows, *scalar_rows;
    int64_t channels, s, ones_row;
};

template <class T> static void gate(const Gate& t, const T* x, T* y, int ld, int lanes) {
    typename Simd<T>::V value, slope;
    for (int j = 0; j < lanes; j += width<T>()) {
        for (const int32_t* r = t.rows; r < t.rows + 33 * t.channels; r += 33) {
            gelu<T>(load(x + r[32] * ld + j), value, slope);
            for (int i = 0; i < 16; ++i) store(y + r[16 + i] * ld + j, load(x + r[i] * ld + j) * value);
        }
        for (const int32_t* r = t.scalar_rows; r < t.scalar_rows + 2 * t.s; r += 2) {
            gelu<T>(load(x + r[0] * ld + j), value, slope);
            store(y + r[1] * ld + j, value);
        }
        store(y + t.ones_row * ld + j, typename Simd<T>::V{} + (T)1);
    }
}

template <class T> static void gate_gradient(const Gate& t, const T* x, const T* gy, T* gx, int ld, int lanes) {
    typename Simd<T>::V value, slope;
    for (int j = 0; j < lanes; j += width<T>()) {
        for (const int32_t* r = t.rows; r < t.rows + 33 * t.channels; r += 33) {
            gelu<T>(load(x + r[32] * ld + j), value, slope);
            typename Simd<T>::V dot = {};
            for (int i = 0; i < 16; ++i) {  // gx may be x
                const typename Simd<T>::V g = load(gy + r[16 + i] * ld + j);
                dot += load(x + r[i] * ld + j) * g;
                store(gx + r[i] * ld + j, g * value);
            }
            store(gx + r[32] * ld + j, load(gx + r[32] * ld + j) + dot * slope);
        }
        for (const int32_t* r = t.scalar_rows; r < t.scalar_rows + 2 * t.s; r += 2) {
            gelu<T>(load(x + r[0] * ld + j), value, slope);
            store(gx + r[0] * ld + j, load(gy + r[1] * ld + j) * slope);
        }
    }
}

// ---------------------------------------------------------------------------------------------- attention
struct Attention {  // all as row numbers; see eqscale.models.gatr.attention
    const int32_t *q_inner, *k_inner;        // (heads, inner), (inner): features that enter unchanged
    const int32_t *q_distance, *k_distance;  // (heads, distances, 4), (distances, 4): e123 and three ideal rows
    const int32_t *value, *out;              // (values), (heads, values)
    int64_t heads, inner, distances, values, ones_row;
    double eps;
};

// Five features of a trivector (w; b): squared distance of normalised points as a dot product (phi for queries,
// psi for keys). `center` shifts both by the same point: it changes nothing but the rounding far from the origin.
template <class T>
static void distance_features(const T* const rows[4], const T center[3], T eps, bool key, T weight, T* f, int ldf,
                              int len) {
    typedef typename Simd<T>::V V;
    for (int j = 0; j < len; j += width<T>()) {
        const int count = std::min(width<T>(), len - j);
        const V w = load_some(rows[0] + j, count), n = w / (w * w + eps), t0 = w * n;
        V t[3], square = V{};
        for (int i = 0; i < 3; ++i) {
            t[i] = load_some(rows[1 + i] + j, count) * n - t0 * center[i];
            square += t[i] * t[i];
        }
        T* o = f + j;
        const V s = key ? t0 * (T)2 : t0 * weight;
        store(o, key ? -t0 * t0 : square * weight);
        store(o + ldf, key ? -square : t0 * t0 * weight);
        for (int i = 0; i < 3; ++i) store(o + (2 + i) * ldf, s * t[i]);
    }
}

// Gradients of the four rows into out; returns the gradient of the weight.
template <class T>
static T distance_features_gradient(const T* const rows[4], const T center[3], T eps, bool key, T weight, const T* g,
                                    int ldg, T* const out[4], int len) {
    typedef typename Simd<T>::V V;
    V weight_gradient = V{};
    for (int j = 0; j < len; j += width<T>()) {
        const int count = std::min(width<T>(), len - j);
        const V w = load_some(rows[0] + j, count), inv = (V{} + (T)1) / (w * w + eps), n = w * inv, t0 = w * n;
        const T* p = g + j;
        V b[3], t[3], square = V{}, gc[3];
        for (int i = 0; i < 3; ++i) {
            b[i] = load_some(rows[1 + i] + j, count);
            t[i] = b[i] * n - t0 * center[i];
            square += t[i] * t[i];
        }
        const V g0 = load(p), g1 = load(p + ldg);
        const V gsquare = key ? -g1 : g0 * weight, g00 = key ? -g0 : g1 * weight;
        if (!key) weight_gradient += g0 * square + g1 * t0 * t0;
        for (int i = 0; i < 3; ++i) {
            const V gi = load(p + (2 + i) * ldg);
            gc[i] = gi * (key ? (T)2 : weight);
            if (!key) weight_gradient += gi * t0 * t[i];
        }
        V gt0 = t0 * g00 * (T)2, gn = V{};
        for (int i = 0; i < 3; ++i) {
            const V gt = gc[i] * t0 + t[i] * gsquare * (T)2;
            gt0 += gc[i] * t[i] - gt * center[i];
            gn += gt * b[i];
            store_some(out[1 + i] + j, gt * n, count);
        }
        gn += gt0 * w;
        store_some(out[0] + j, gt0 * n + gn * ((T)eps - w * w) * inv * inv, count);
    }
    T sum = 0;
    for (int w = 0; w < width<T>(); ++w) sum += weight_gradient[w];
    return sum;
}

template <class T> struct Buffers {  // of one thread
    Scratch<T> k, v, center, q, p, o, gq, gk, gv, turned, tile, block;
};

// Softmax attention of one sample, multi-query: its len tokens attend to each other. Lanes of a block are the
// queries of several heads (or part of one head), each head padded to whole vectors with zeros.
template <class T> struct Sample {
    const Attention& t;
    const T* e;  // first token of the sample in the first row
    int ld, len, padded, features;
    const T* gains;  // (heads, distances)
    T *k, *v, *center;

    Sample(const Attention& t, const T* e, int ld, int len, const T* gains, Buffers<T>& buffers)
        : t(t), e(e), ld(ld), len(len), gains(gains) {
        padded = whole<T>(len);
        features = (int)(t.inner + 5 * t.distances);
        k = buffers.k.get((size_t)features * padded);
        v = buffers.v.get((size_t)t.values * padded);
        center = buffers.center.get(3 * (size_t)t.distances);
        for (int f = 0; f < t.inner; ++f) copy_padded(row(t.k_inner[f]), len, k + f * padded);
        for (int f = 0; f < t.values; ++f) copy_padded(row(t.value[f]), len, v + f * padded);
        for (int d = 0; d < t.distances; ++d) {
            const int32_t* r = t.k_distance + 4 * d;
            T norm = (T)t.eps;  // weighted mean position of the keys
            for (int j = 0; j < len; ++j) norm += row(r[0])[j] * row(r[0])[j];
            for (int i = 0; i < 3; ++i) {
                T sum = 0;
                for (int j = 0; j < len; ++j) sum += row(r[0])[j] * row(r[1 + i])[j];
                center[3 * d + i] = sum / norm;
            }
            const T* rows[4] = {row(r[0]), row(r[1]), row(r[2]), row(r[3])};
            distance_features(rows, center + 3 * d, (T)t.eps, true, (T)1, k + (t.inner + 5 * d) * padded, padded, len);
        }
    }
    const T* row(int32_t r) const { return e + r * ld; }

    // queries [q0, q0 + n) of head h into lanes [0, n) of q (features, stride), zeros up to a whole vector
    void queries(int h, int q0, int n, T* q, int stride) const {
        for (int f = 0; f < t.inner; ++f) copy_padded(row(t.q_inner[h * t.inner + f]) + q0, n, q + f * stride);
        for (int d = 0; d < t.distances; ++d) {
            const int32_t* r = t.q_distance + 4 * (h * t.distances + d);
            const T* rows[4] = {row(r[0]) + q0, row(r[1]) + q0, row(r[2]) + q0, row(r[3]) + q0};
            distance_features(rows, center + 3 * d, (T)t.eps, false, gains[h * t.distances + d],
                              q + (t.inner + 5 * d) * stride, stride, n);
        }
    }

    // p (len, lanes) = softmax over keys of scale * k^T q
    void probabilities(const T* q, T* p, int lanes, int stride) const {
        gemm(k, 1, padded, q, stride, p, stride, len, features, lanes);
        softmax(p, len, lanes, stride, 1 / std::sqrt((T)features));
    }
};

static const int BLOCK = 256;  // lanes of one attention block
static const int SPARE = 16;   // rows of a block lie this much further apart: round strides share cache sets

struct Segment {
    int head, query, count, lane;
};

// Cuts (head, query) into blocks of at most about BLOCK lanes.
template <class T, class F> static void for_blocks(int heads, int len, F body) {
    std::vector<Segment> block;
    int lanes = 0;
    for (int q0 = 0; q0 < len; q0 += BLOCK) {
        const int n = std::min(BLOCK, len - q0), padded = whole<T>(n);
        for (int h = 0; h < heads; ++h) {
            if (lanes && lanes + padded > BLOCK) body(block, lanes), block.clear(), lanes = 0;
            block.push_back({h, q0, n, lanes});
            lanes += padded;
        }
    }
    if (lanes) body(block, lanes);
}

// e, out: first token of the sample in the first row
template <class T>
static void attention(const Attention& t, const T* e, T* out, int ld, int len, const T* gains, Buffers<T>& buffers) {
    const Sample<T> s(t, e, ld, len, gains, buffers);
    for_blocks<T>((int)t.heads, len, [&](const std::vector<Segment>& block, int lanes) {
        const int stride = lanes + SPARE;
        T* q = buffers.q.get((size_t)s.features * stride);
        T* p = buffers.p.get((size_t)len * stride);
        T* o = buffers.o.get((size_t)t.values * stride);
        for (const Segment& g : block) s.queries(g.head, g.query, g.count, q + g.lane, stride);
        s.probabilities(q, p, lanes, stride);
        gemm(s.v, s.padded, 1, p, stride, o, stride, (int)t.values, len, lanes);
        for (const Segment& g : block)
            for (int f = 0; f < t.values; ++f)
                std::copy_n(o + f * stride + g.lane, g.count, out + t.out[g.head * t.values + f] * ld + g.query);
    });
}

// Gradient of the rows that attention reads into ge; adds to ggains (heads, distances).
template <class T>
static void attention_gradient(const Attention& t, const T* e, const T* g, T* ge, T* ggains, int ld, int len,
                               const T* gains, Buffers<T>& buffers) {
    const Sample<T> s(t, e, ld, len, gains, buffers);
    const int padded = s.padded, features = s.features, values = (int)t.values;
    auto grow = [&](int32_t r) { return ge + r * ld; };
    const T scale = 1 / std::sqrt((T)features);
    T* gk = buffers.gk.get((size_t)features * padded);
    T* gv = buffers.gv.get((size_t)values * padded);
    bool later = false;  // gradients of keys and values: sums over blocks
    for_blocks<T>((int)t.heads, len, [&](const std::vector<Segment>& block, int lanes) {
        const int stride = lanes + SPARE;
        T* q = buffers.q.get((size_t)features * stride);
        T* p = buffers.p.get(2 * (size_t)len * stride);
        T* ds = p + (size_t)len * stride;
        T* go = buffers.o.get((size_t)values * stride);
        T* gq = buffers.gq.get((size_t)features * stride);
        T* turned = buffers.turned.get((size_t)lanes * padded);
        for (const Segment& seg : block) {
            s.queries(seg.head, seg.query, seg.count, q + seg.lane, stride);
            for (int f = 0; f < values; ++f)
                copy_padded(g + t.out[seg.head * values + f] * ld + seg.query, seg.count, go + f * stride + seg.lane);
        }
        s.probabilities(q, p, lanes, stride);
        gemm(s.v, 1, padded, go, stride, ds, stride, len, values, lanes);
        for (int l = 0; l < lanes; l += width<T>()) {
            typename Simd<T>::V dot = {};
            for (int j = 0; j < len; ++j) dot += load(p + j * stride + l) * load(ds + j * stride + l);
            for (int j = 0; j < len; ++j)
                store(ds + j * stride + l, load(p + j * stride + l) * (load(ds + j * stride + l) - dot) * scale);
        }
        gemm(s.k, padded, 1, ds, stride, gq, stride, features, len, lanes);
        // Sums over queries: with keys along the vectors they need no sums across lanes.
        transpose(p, stride, len, lanes, turned, padded);
        gemm(go, stride, 1, turned, padded, gv, padded, values, lanes, padded, (const T*)nullptr, later);
        transpose(ds, stride, len, lanes, turned, padded);
        gemm(q, stride, 1, turned, padded, gk, padded, features, lanes, padded, (const T*)nullptr, later);
        later = true;
        for (const Segment& seg : block) {
            for (int f = 0; f < t.inner; ++f)
                std::copy_n(gq + f * stride + seg.lane, seg.count, grow(t.q_inner[seg.head * t.inner + f]) + seg.query);
            for (int d = 0; d < t.distances; ++d) {
                const int64_t channel = seg.head * t.distances + d;
                const int32_t* r = t.q_distance + 4 * channel;
                const int o = seg.query;
                const T* x[4] = {s.row(r[0]) + o, s.row(r[1]) + o, s.row(r[2]) + o, s.row(r[3]) + o};
                T* gx[4] = {grow(r[0]) + o, grow(r[1]) + o, grow(r[2]) + o, grow(r[3]) + o};
                ggains[channel] +=
                    distance_features_gradient(x, s.center + 3 * d, (T)t.eps, false, gains[channel],
                                               gq + (t.inner + 5 * d) * stride + seg.lane, stride, gx, seg.count);
            }
        }
    });
    for (int f = 0; f < t.inner; ++f) std::copy_n(gk + f * padded, len, grow(t.k_inner[f]));
    for (int f = 0; f < values; ++f) std::copy_n(gv + f * padded, len, grow(t.value[f]));
    for (int d = 0; d < t.distances; ++d) {
        const int32_t* r = t.k_distance + 4 * d;
        const T* x[4] = {s.row(r[0]), s.row(r[1]), s.row(r[2]), s.row(r[3])};
        T* gx[4] = {grow(r[0]), grow(r[1]), grow(r[2]), grow(r[3])};
        distance_features_gradient(x, s.center + 3 * d, (T)t.eps, true, (T)1, gk + (t.inner + 5 * d) * padded, padded,
                                   gx, len);
    }
}

// ---------------------------------------------------------------------------------------------- network
struct Network {
    Map embed, to_qkv, from_heads, to_factors, from_products, to_stream, read_out;
    Norm norm;
    Attention attention;
    Bilinear bilinear;
    Gate gate;
    int64_t source, stream, normed, qkv, attended, factors, products, hidden, gated, target;  // rows of activations
    const int32_t *columns, *out_rows;  // (source): input column of each row; (outputs): row of each output column
    int64_t channels_in, scalars_in, outputs;
    int64_t blocks, first_block, block_weights, weights;  // first_block: first weight of the blocks
    const int32_t *index, *gain_index;  // in the bank: of (weights), or -1: no weight; of (blocks, heads * distances)
    int64_t block_rows, kept_rows;  // see Kept; kept_rows: of the inputs, all blocks, and the final norm
};

struct Batch {  // samples [i * per_tile, ...) make up tile i
    int64_t samples, length, per_tile, ld;  // length: tokens of a sample, padding included
};

// The real tokens of a batch, one after the other.
struct Tokens {
    std::vector<int64_t> starts, places;  // first token of each sample and the end; place of each token in the batch

    Tokens(const Batch& b, const bool* mask) : starts(1, 0) {
        for (int64_t s = 0; s < b.samples; ++s) {
            for (int64_t i = s * b.length; i < (s + 1) * b.length; ++i)
                if (!mask || mask[i]) places.push_back(i);
            starts.push_back((int64_t)places.size());
        }
    }
};

// Activations of a block of a tile that the backward pass reads, block_rows in all. Computing the outputs of linear maps
// again costs less than to write and read them.
template <class T> struct Kept {
    T *normed, *scale, *attended, *normed2, *scale2;

    Kept(const Network& n, T* at, int64_t ld) {
        normed = at, scale = normed + n.normed * ld, attended = scale + 2 * ld;
        normed2 = attended + n.attended * ld, scale2 = normed2 + n.normed * ld;
    }
};

// Weights of all maps and gains of all distances, from the bank of the parameters.
template <class T> struct Weights {
    const T *maps, *gains;
    int64_t block_weights, block_gains;

    Weights(const Network& n, const T* bank, Scratch<T>& scratch) : block_weights(n.block_weights) {
        block_gains = n.attention.heads * n.attention.distances;
        T* to = scratch.get(n.weights + n.blocks * block_gains);
        for (int64_t i = 0; i < n.weights; ++i) to[i] = n.index[i] < 0 ? 0 : bank[n.index[i]];
        for (int64_t i = 0; i < n.blocks * block_gains; ++i) to[n.weights + i] = std::exp(bank[n.gain_index[i]]);
        maps = to, gains = to + n.weights;
    }
};

struct Tile {
    const Tokens& tokens;
    int64_t first, last;  // samples
    int64_t begin;        // token
    int count, lanes;     // tokens, and these padded to whole vectors

    template <class T> static Tile of(const Tokens& t, const Batch& b, int64_t i) {
        const int64_t first = i * b.per_tile, last = std::min(b.samples, first + b.per_tile);
        const int count = (int)(t.starts[last] - t.starts[first]);
        return {t, first, last, t.starts[first], count, whole<T>(count)};
    }
    int64_t token(int lane) const { return tokens.places[begin + lane]; }

    // body(first lane, tokens) of every sample
    template <class F> void for_samples(F body) const {
        const std::vector<int64_t>& starts = tokens.starts;
        for (int64_t s = first; s < last; ++s) body(starts[s] - begin, (int)(starts[s + 1] - starts[s]));
    }
    // One value of each token into a row, zeros beyond.
    template <class T, class F> void fill(T* row, F value) const {
        for (int j = 0; j < count; ++j) row[j] = value(token(j));
        std::fill(row + count, row + lanes, (T)0);
    }
};

// Runs body(thread, first tile, end) on every thread: its tiles are neighbours, always the same.
template <class F> static void for_tiles(const Batch& b, int threads, F body) {
    const int64_t tiles = (b.samples + b.per_tile - 1) / b.per_tile;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int thread = 0; thread < threads; ++thread)
        body(thread, tiles * thread / threads, tiles * (thread + 1) / threads);
}

// The MLP of a block up to its last map.
template <class T>
static void mlp(const Network& n, const T* w, const T* normed, const T* reference, T* factors, T* multiplied,
                T* hidden, T* gated, int ld, int lanes) {
    apply(n.to_factors, w, normed, factors, ld, lanes, false);
    products(n.bilinear, factors, normed, reference, multiplied, ld, lanes);
    apply(n.from_products, w, multiplied, hidden, ld, lanes, false);
    gate(n.gate, hidden, gated, ld, lanes);
}

// A tile of multivectors (tokens, channels, 16) and scalars (tokens, scalars) to predictions (rows of the target, ld), in
// memory of this thread. reference: (tokens), or null. kept: (kept_rows, ld), for the backward pass, or null.
template <class T>
static T* predict(const Network& n, const Weights<T>& weights, const Tile& tile, const T* multivectors,
                  const T* scalars, const T* reference, T* kept, int ld, Buffers<T>& buffers) {
    const int64_t columns = 16 * n.channels_in, wide = std::max({n.qkv, n.factors, n.hidden});
    const int lanes = tile.lanes;
    T* x = buffers.tile.get((n.stream + n.products + n.gated + 2 * wide + n.target + 1) * ld);
    T *multiplied = x + n.stream * ld, *gated = multiplied + n.products * ld, *first = gated + n.gated * ld;
    T *second = first + wide * ld, *y = second + wide * ld, *ref = y + n.target * ld;
    T* source = kept ? kept : buffers.block.get(n.kept_rows * ld);
    for (int r = 0; r < n.source; ++r) {
        const int64_t c = n.columns[r];
        tile.fill(source + r * ld, [&](int64_t token) {
            return c < columns                  ? multivectors[token * columns + c]
                   : c < columns + n.scalars_in ? scalars[token * n.scalars_in + c - columns]
                                                : (T)1;
        });
    }
    if (reference) tile.fill(ref, [&](int64_t token) { return reference[token]; });
    apply(n.embed, weights.maps, source, x, ld, lanes, false);
    T* at = source + n.source * ld;
    for (int64_t block = 0; block < n.blocks; ++block) {
        const Kept<T> k(n, at, ld);
        const T* w = weights.maps + n.first_block + block * weights.block_weights;
        norm(n.norm, x, k.normed, k.scale, ld, lanes);
        apply(n.to_qkv, w, k.normed, first, ld, lanes, false);
        for (int r = 0; r < n.attended; ++r)
            std::fill(k.attended + r * ld + tile.count, k.attended + r * ld + lanes, (T)0);
        std::fill_n(k.attended + n.attention.ones_row * ld, lanes, (T)1);
        tile.for_samples([&](int64_t start, int len) {
            attention(n.attention, first + start, k.attended + start, ld, len,
                      weights.gains + block * weights.block_gains, buffers);
        });
        apply(n.from_heads, w, k.attended, x, ld, lanes, true);
        norm(n.norm, x, k.normed2, k.scale2, ld, lanes);
        mlp(n, w, k.normed2, reference ? ref : nullptr, first, multiplied, second, gated, ld, lanes);
        apply(n.to_stream, w, gated, x, ld, lanes, true);
        if (kept) at += n.block_rows * ld;
    }
    if (!kept) at += n.block_rows * ld;
    norm(n.norm, x, at, at + n.normed * ld, ld, lanes);
    apply(n.read_out, weights.maps, at, y, ld, lanes, false);
    return y;
}

// From what predict() kept of a tile: adds the gradients of weights and gains to sums, and writes those of the inputs, if
// they are not null. fill(g) writes the gradient of the predictions, (rows of the target, ld), into zeros.
template <class T, class F>
static void differentiate(const Network& n, const Weights<T>& weights, const Tile& tile, const T* reference, T* kept,
                          T* gmultivectors, T* gscalars, T* sums, int ld, Buffers<T>& buffers, F fill) {
    const int64_t columns = 16 * n.channels_in, wide = std::max({n.qkv, n.factors, n.hidden, n.source, n.target});
    const int64_t middle = std::max({n.attended, n.gated, n.products});
    const int lanes = tile.lanes;
    T* gx = buffers.tile.get((n.stream + n.normed + 2 * wide + 2 * middle + n.products + 1) * ld);
    T *gnormed = gx + n.stream * ld, *gwide = gnormed + n.normed * ld, *again = gwide + wide * ld;
    T *gmiddle = again + wide * ld, *gated = gmiddle + middle * ld, *multiplied = gated + middle * ld;
    T* ref = multiplied + n.products * ld;
    T *gw = sums, *ggains = gw + n.weights;
    const auto zero = [&](T* p, int64_t rows) { std::fill_n(p, rows * ld, (T)0); };
    if (reference) tile.fill(ref, [&](int64_t token) { return reference[token]; });
    const T* used = reference ? ref : nullptr;
    T* at = kept + (n.kept_rows - n.normed - 2) * ld;
    zero(gwide, n.target), zero(gnormed, n.normed), zero(gx, n.stream);
    fill(gwide);
    apply_gradient(n.read_out, weights.maps, at, gwide, gnormed, gw, ld, lanes, buffers.turned);
    norm_gradient(n.norm, at, at + n.normed * ld, gnormed, gx, ld, lanes);
    for (int64_t block = n.blocks; block-- > 0;) {
        at -= n.block_rows * ld;
        const Kept<T> k(n, at, ld);
        const int64_t first = n.first_block + block * weights.block_weights;
        const T* w = weights.maps + first;
        T* gws = gw + first;
        mlp(n, w, k.normed2, used, again, multiplied, gwide, gated, ld, lanes);
        zero(gmiddle, n.gated);
        apply_gradient(n.to_stream, w, gated, gx, gmiddle, gws, ld, lanes, buffers.turned);
        gate_gradient(n.gate, gwide, gmiddle, gwide, ld, lanes);
        zero(gmiddle, n.products), zero(gnormed, n.normed);
        apply_gradient(n.from_products, w, multiplied, gwide, gmiddle, gws, ld, lanes, buffers.turned);
        products_gradient(n.bilinear, again, used, gmiddle, gwide, gnormed, ld, lanes);
        apply_gradient(n.to_factors, w, k.normed2, gwide, gnormed, gws, ld, lanes, buffers.turned);
        norm_gradient(n.norm, k.normed2, k.scale2, gnormed, gx, ld, lanes);

        zero(gmiddle, n.attended), zero(gwide, n.qkv), zero(gnormed, n.normed);
        apply_gradient(n.from_heads, w, k.attended, gx, gmiddle, gws, ld, lanes, buffers.turned);
        apply(n.to_qkv, w, k.normed, again, ld, lanes, false);
        const int64_t gain = block * weights.block_gains;
        tile.for_samples([&](int64_t start, int len) {
            attention_gradient(n.attention, again + start, gmiddle + start, gwide + start, ggains + gain, ld, len,
                               weights.gains + gain, buffers);
        });
        apply_gradient(n.to_qkv, w, k.normed, gwide, gnormed, gws, ld, lanes, buffers.turned);
        norm_gradient(n.norm, k.normed, k.scale, gnormed, gx, ld, lanes);
    }
    const bool inputs = gmultivectors || gscalars;
    if (inputs) zero(gwide, n.source);
    apply_gradient(n.embed, weights.maps, kept, gx, inputs ? gwide : nullptr, gw, ld, lanes, buffers.turned);
    for (int r = 0; inputs && r < n.source; ++r)
        for (int j = 0; j < tile.count; ++j) {
            const int64_t c = n.columns[r], token = tile.token(j);
            if (c < columns) {
                if (gmultivectors) gmultivectors[token * columns + c] = gwide[r * ld + j];
            } else if (c < columns + n.scalars_in) {
                if (gscalars) gscalars[token * n.scalars_in + c - columns] = gwide[r * ld + j];
            }
        }
}

// Sums of the gradients of weights and gains, and one more number, of each thread.
template <class T> struct Sums {
    const Network& n;
    const Weights<T>& weights;
    int threads;
    int64_t gains, size;
    T* memory;

    Sums(const Network& n, const Weights<T>& weights, int threads, Scratch<T>& scratch)
        : n(n), weights(weights), threads(threads), gains(n.blocks * weights.block_gains), size(n.weights + gains + 1) {
        memory = scratch.get(threads * size);
        std::fill_n(memory, threads * size, (T)0);
    }
    T* of(int thread) const { return memory + thread * size; }
    // The gradient of the bank gains the sums of all threads; returns that of the last number.
    T finish(T* gbank) const {
        T total = 0;
        for (int thread = 0; thread < threads; ++thread) {
            const T *gw = of(thread), *ggains = gw + n.weights;
            for (int64_t i = 0; i < n.weights; ++i)
                if (n.index[i] >= 0) gbank[n.index[i]] += gw[i];
            for (int64_t i = 0; i < gains; ++i) gbank[n.gain_index[i]] += ggains[i] * weights.gains[i];
            total += ggains[gains];
        }
        return total;
    }
};

// Multivectors (tokens, channels, 16) and scalars (tokens, scalars) -> out (tokens, outputs). reference: (tokens), or
// null. kept: (tiles, kept_rows, ld), for the backward pass, or null.
template <class T>
static void gatr(const T* multivectors, const T* scalars, const T* bank, const T* reference, T* kept, T* out,
                 const bool* mask, const Network* network, const Batch* batch, int threads) {
    const Network& n = *network;
    const Tokens tokens(*batch, mask);
    const int ld = (int)batch->ld;
    static thread_local Scratch<T> weight_memory;
    const Weights<T> weights(n, bank, weight_memory);
    for_tiles(*batch, threads, [&](int, int64_t from, int64_t to) {
        static thread_local Buffers<T> buffers;
        for (int64_t i = from; i < to; ++i) {
            const Tile tile = Tile::of<T>(tokens, *batch, i);
            T* own = kept ? kept + i * n.kept_rows * ld : nullptr;
            const T* y = predict(n, weights, tile, multivectors, scalars, reference, own, ld, buffers);
            for (int j = 0; j < tile.count; ++j)
                for (int c = 0; c < n.outputs; ++c) out[tile.token(j) * n.outputs + c] = y[n.out_rows[c] * ld + j];
        }
    });
}

// g: gradient of out. gbank: of the bank, zero on entry. gmultivectors, gscalars: zero on entry, or null.
template <class T>
static void gatr_gradient(const T* g, const T* bank, const T* reference, const T* kept, T* gbank, T* gmultivectors,
                          T* gscalars, const bool* mask, const Network* network, const Batch* batch, int threads) {
    const Network& n = *network;
    const Tokens tokens(*batch, mask);
    const int ld = (int)batch->ld;
    static thread_local Scratch<T> weight_memory, sum_memory;
    const Weights<T> weights(n, bank, weight_memory);
    const Sums<T> sums(n, weights, threads, sum_memory);
    for_tiles(*batch, threads, [&](int thread, int64_t from, int64_t to) {
        static thread_local Buffers<T> buffers;
        for (int64_t i = to; i-- > from;) {  // what was kept last still is in the cache
            const Tile tile = Tile::of<T>(tokens, *batch, i);
            T* own = const_cast<T*>(kept) + i * n.kept_rows * ld;
            differentiate(n, weights, tile, reference, own, gmultivectors, gscalars, sums.of(thread), ld, buffers,
                          [&](T* to) {
                              for (int j = 0; j < tile.count; ++j)
                                  for (int c = 0; c < n.outputs; ++c)
                                      to[n.out_rows[c] * ld + j] = g[tile.token(j) * n.outputs + c];
                          });
        }
    });
    sums.finish(gbank);
}

// The sum over tokens of factors (tokens) times squared distances from the target (tokens, 3), times `scale`, of what is
// read of the outputs: out * read (outputs, 3) + (out * weight (outputs)) point (tokens, 3). A tile goes forward and back
// before the next one: it stays in the cache.
template <class T>
static void gatr_loss(const T* multivectors, const T* scalars, const T* bank, const T* reference, const T* read,
                      const T* weight, const T* point, const T* target, const T* factors, T scale, T* loss, T* gbank,
                      const bool* mask, const Network* network, const Batch* batch, int threads) {
    const Network& n = *network;
    const Tokens tokens(*batch, mask);
    const int ld = (int)batch->ld;
    static thread_local Scratch<T> weight_memory, sum_memory;
    const Weights<T> weights(n, bank, weight_memory);
    const Sums<T> sums(n, weights, threads, sum_memory);
    for_tiles(*batch, threads, [&](int thread, int64_t from, int64_t to) {
        static thread_local Buffers<T> forward, backward;
        static thread_local Scratch<T> kept;
        T* own = kept.get(n.kept_rows * ld);
        for (int64_t i = from; i < to; ++i) {
            const Tile tile = Tile::of<T>(tokens, *batch, i);
            const T* y = predict(n, weights, tile, multivectors, scalars, reference, own, ld, forward);
            T total = 0;
            differentiate(n, weights, tile, reference, own, (T*)nullptr, (T*)nullptr, sums.of(thread), ld, backward,
                          [&](T* g) {
                              for (int j = 0; j < tile.count; ++j) {
                                  const int64_t token = tile.token(j);
                                  const T *p = point + 3 * token, *want = target + 3 * token;
                                  T error[3] = {-want[0], -want[1], -want[2]}, along = 0;
                                  for (int c = 0; c < n.outputs; ++c) {
                                      const T value = y[n.out_rows[c] * ld + j];
                                      along += value * weight[c];
                                      for (int k = 0; k < 3; ++k) error[k] += value * read[3 * c + k];
                                  }
                                  for (int k = 0; k < 3; ++k) error[k] += along * p[k];
                                  const T factor = factors[token] * scale;
                                  T of_weight = 0;
                                  for (int k = 0; k < 3; ++k) {
                                      total += factor * error[k] * error[k];
                                      error[k] *= 2 * factor;
                                      of_weight += error[k] * p[k];
                                  }
                                  for (int c = 0; c < n.outputs; ++c)
                                      g[n.out_rows[c] * ld + j] = weight[c] * of_weight + read[3 * c] * error[0] +
                                                                  read[3 * c + 1] * error[1] + read[3 * c + 2] * error[2];
                              }
                          });
            sums.of(thread)[sums.size - 1] += total;
        }
    });
    *loss = sums.finish(gbank);
}

extern "C" {
EXPORT(gatr)
EXPORT(gatr_gradient)
EXPORT(gatr_loss)
}
