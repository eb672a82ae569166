// CPU kernels of GATr on planar activations (rows, N): one row per component of a channel, tokens contiguous.
// The straight-line products (gp, gp_x, gp_y, join, join_x, join_y) are generated from eqscale.algebra.blades.
// Everything else about the layout (which row holds what) arrives as tables of row numbers.
#include "products.h"
#include "simd.h"

// ---------------------------------------------------------------------------------------------- products
// rows: (2 channels, 48) = 16 rows of the left factor, 16 of the right, 16 of the output; first the geometric
// products, then the joins.
// A chunk is copied into contiguous rows first: rows of z lie N apart, which for round N would put all of them into
// the same few sets of the cache.
template <class T> struct Components {
    alignas(64) T v[16][CHUNK];

    void fetch(const T* z, int64_t stride, const int32_t* rows, int64_t first, int len) {
        for (int i = 0; i < 16; ++i) copy_padded(z + rows[i] * stride + first, len, v[i]);
    }
    void put(T* z, int64_t stride, const int32_t* rows, int64_t first, int len) const {
        for (int i = 0; i < 16; ++i) std::copy(v[i], v[i] + len, z + rows[i] * stride + first);
    }
    void times(const T* factor, int len) {
        for (int i = 0; i < 16; ++i)
            for (int j = 0; j < len; ++j) v[i][j] *= factor[j];
    }
};

template <class T, void (*MULTIPLY)(const typename Simd<T>::V*, const typename Simd<T>::V*, typename Simd<T>::V*)>
static void product(const Components<T>& x, const Components<T>& y, Components<T>& o, int len) {
    for (int j = 0; j < len; j += width<T>()) {
        typename Simd<T>::V a[16], b[16], c[16];
        for (int i = 0; i < 16; ++i) a[i] = load(x.v[i] + j), b[i] = load(y.v[i] + j);
        MULTIPLY(a, b, c);
        for (int i = 0; i < 16; ++i) store(o.v[i] + j, c[i]);
    }
}

template <class T>
static void bilinear(const T* z, const T* passed, T* out, int64_t N, const int32_t* rows, int channels,
                     const int32_t* copies, int copied, int ones_row, const T* reference, int threads) {
    for_chunks(N, threads, [=](int64_t lo, int len) {
        Components<T> x, y, o;
        for (int p = 0; p < 2 * channels; ++p) {
            const int32_t* r = rows + 48 * p;
            x.fetch(z, N, r, lo, len), y.fetch(z, N, r + 16, lo, len);
            if (p < channels) product<T, gp>(x, y, o, len);
            else product<T, join>(x, y, o, len);
            if (p >= channels && reference) o.times(reference + lo, len);
            o.put(out, N, r + 32, lo, len);
        }
        for (int k = 0; k < copied; ++k)
            std::copy_n(passed + copies[2 * k] * N + lo, len, out + copies[2 * k + 1] * N + lo);
        std::fill(out + ones_row * N + lo, out + ones_row * N + lo + len, (T)1);
    });
}

template <class T>
static void bilinear_gradient(const T* z, const T* g, T* gz, T* gpassed, int64_t N, const int32_t* rows, int channels,
                              const int32_t* copies, int copied, const T* reference, int threads) {
    for_chunks(N, threads, [=](int64_t lo, int len) {
        Components<T> x, y, q, o;
        for (int p = 0; p < 2 * channels; ++p) {
            const int32_t* r = rows + 48 * p;
            x.fetch(z, N, r, lo, len), y.fetch(z, N, r + 16, lo, len), q.fetch(g, N, r + 32, lo, len);
            if (p >= channels && reference) q.times(reference + lo, len);
            if (p < channels) product<T, gp_x>(q, y, o, len);
            else product<T, join_x>(q, y, o, len);
            o.put(gz, N, r, lo, len);
            if (p < channels) product<T, gp_y>(q, x, o, len);
            else product<T, join_y>(q, x, o, len);
            o.put(gz, N, r + 16, lo, len);
        }
        for (int k = 0; k < copied; ++k)
            std::copy_n(g + copies[2 * k + 1] * N + lo, len, gpassed + copies[2 * k] * N + lo);
    });
}

// ---------------------------------------------------------------------------------------------- norm
// mv_rows: (m, 3) = input row, output row, 1 if it counts in the norm (no e0). s_rows: (s, 2) likewise.
// out: x / sqrt(max(mean over channels of |x|^2, eps)); scalars: layer norm without affine; ones_row = 1.
// scale: (2, N) keeps both factors for the backward pass (mv factor negated where eps clamps).
template <class T>
static void norm(const T* x, T* out, T* scale, int64_t N, const int32_t* mv_rows, int m, const int32_t* s_rows, int s,
                 int ones_row, int channels, T eps, T scalar_eps, int threads) {
    for_chunks(N, threads, [=](int64_t lo, int len) {
        Lanes<T> a{}, b{}, d{};
        for (int k = 0; k < m; ++k) {
            if (!mv_rows[3 * k + 2]) continue;
            const T* p = x + mv_rows[3 * k] * N + lo;
            for (int j = 0; j < len; ++j) a.v[j] += p[j] * p[j];
        }
        for (int j = 0; j < len; ++j) {
            const T mean = a.v[j] / channels;
            a.v[j] = 1 / std::sqrt(std::max(mean, eps));
            scale[lo + j] = mean > eps ? a.v[j] : -a.v[j];
        }
        for (int k = 0; k < m; ++k) {
            const T* p = x + mv_rows[3 * k] * N + lo;
            T* q = out + mv_rows[3 * k + 1] * N + lo;
            for (int j = 0; j < len; ++j) q[j] = p[j] * a.v[j];
        }
        for (int k = 0; k < s; ++k) {
            const T* p = x + s_rows[2 * k] * N + lo;
            for (int j = 0; j < len; ++j) b.v[j] += p[j];
        }
        for (int j = 0; j < len; ++j) b.v[j] /= std::max(s, 1);
        for (int k = 0; k < s; ++k) {
            const T* p = x + s_rows[2 * k] * N + lo;
            for (int j = 0; j < len; ++j) d.v[j] += (p[j] - b.v[j]) * (p[j] - b.v[j]);
        }
        for (int j = 0; j < len; ++j) scale[N + lo + j] = d.v[j] = 1 / std::sqrt(d.v[j] / std::max(s, 1) + scalar_eps);
        for (int k = 0; k < s; ++k) {
            const T* p = x + s_rows[2 * k] * N + lo;
            T* q = out + s_rows[2 * k + 1] * N + lo;
            for (int j = 0; j < len; ++j) q[j] = (p[j] - b.v[j]) * d.v[j];
        }
        std::fill(out + ones_row * N + lo, out + ones_row * N + lo + len, (T)1);
    });
}

template <class T>
static void norm_gradient(const T* out, const T* scale, const T* g, T* gx, int64_t N, const int32_t* mv_rows, int m,
                          const int32_t* s_rows, int s, int channels, int threads) {
    for_chunks(N, threads, [=](int64_t lo, int len) {
        Lanes<T> dot{}, r{}, mean{}, mean_y{};
        for (int k = 0; k < m; ++k) {
            const T *p = g + mv_rows[3 * k + 1] * N + lo, *y = out + mv_rows[3 * k + 1] * N + lo;
            for (int j = 0; j < len; ++j) dot.v[j] += p[j] * y[j];
        }
        for (int j = 0; j < len; ++j) {
            r.v[j] = std::abs(scale[lo + j]);
            dot.v[j] = scale[lo + j] > 0 ? dot.v[j] * r.v[j] / channels : 0;
        }
        for (int k = 0; k < m; ++k) {
            const T *p = g + mv_rows[3 * k + 1] * N + lo, *y = out + mv_rows[3 * k + 1] * N + lo;
            T* q = gx + mv_rows[3 * k] * N + lo;
            if (mv_rows[3 * k + 2])
                for (int j = 0; j < len; ++j) q[j] = p[j] * r.v[j] - y[j] * dot.v[j];
            else
                for (int j = 0; j < len; ++j) q[j] = p[j] * r.v[j];
        }
        for (int k = 0; k < s; ++k) {
            const T *p = g + s_rows[2 * k + 1] * N + lo, *y = out + s_rows[2 * k + 1] * N + lo;
            for (int j = 0; j < len; ++j) {
                mean.v[j] += p[j] / s;
                mean_y.v[j] += p[j] * y[j] / s;
            }
        }
        for (int k = 0; k < s; ++k) {
            const T *p = g + s_rows[2 * k + 1] * N + lo, *y = out + s_rows[2 * k + 1] * N + lo;
            T* q = gx + s_rows[2 * k] * N + lo;
            for (int j = 0; j < len; ++j) q[j] = (p[j] - mean.v[j] - y[j] * mean_y.v[j]) * scale[N + lo + j];
        }
    });
}

// ---------------------------------------------------------------------------------------------- gated GELU
// rows: (channels, 34) = 16 input rows, 16 output rows, gate row, unused; s_rows: (s, 2).
template <class T>
static void gate(const T* x, T* out, int64_t N, const int32_t* rows, int channels, const int32_t* s_rows, int s,
                 int ones_row, int threads) {
    const int W = width<T>();
    for_chunks(N, threads, [=](int64_t lo, int len) {
        Lanes<T> in{}, h;
        typename Simd<T>::V value, slope;
        for (int k = 0; k < channels; ++k) {
            const int32_t* r = rows + 34 * k;
            std::copy(x + r[32] * N + lo, x + r[32] * N + lo + len, in.v);
            for (int j = 0; j < len; j += W) gelu<T>(load(in.v + j), value, slope), store(h.v + j, value);
            for (int i = 0; i < 16; ++i) {
                const T* p = x + r[i] * N + lo;
                T* q = out + r[16 + i] * N + lo;
                for (int j = 0; j < len; ++j) q[j] = p[j] * h.v[j];
            }
        }
        for (int k = 0; k < s; ++k) {
            std::copy(x + s_rows[2 * k] * N + lo, x + s_rows[2 * k] * N + lo + len, in.v);
            for (int j = 0; j < len; j += W) gelu<T>(load(in.v + j), value, slope), store(h.v + j, value);
            std::copy(h.v, h.v + len, out + s_rows[2 * k + 1] * N + lo);
        }
        std::fill(out + ones_row * N + lo, out + ones_row * N + lo + len, (T)1);
    });
}

template <class T>
static void gate_gradient(const T* x, const T* g, T* gx, int64_t N, const int32_t* rows, int channels,
                          const int32_t* s_rows, int s, int threads) {
    const int W = width<T>();
    for_chunks(N, threads, [=](int64_t lo, int len) {
        Lanes<T> in{}, h, d, dot;
        typename Simd<T>::V value, slope;
        for (int k = 0; k < channels; ++k) {
            const int32_t* r = rows + 34 * k;
            std::copy(x + r[32] * N + lo, x + r[32] * N + lo + len, in.v);
            for (int j = 0; j < len; j += W)
                gelu<T>(load(in.v + j), value, slope), store(h.v + j, value), store(d.v + j, slope);
            std::fill(dot.v, dot.v + CHUNK, (T)0);
            for (int i = 0; i < 16; ++i) {
                const T *p = x + r[i] * N + lo, *q = g + r[16 + i] * N + lo;
                T* o = gx + r[i] * N + lo;
                for (int j = 0; j < len; ++j) {
                    dot.v[j] += p[j] * q[j];
                    o[j] = q[j] * h.v[j];
                }
            }
            T* o = gx + r[32] * N + lo;
            for (int j = 0; j < len; ++j) o[j] += dot.v[j] * d.v[j];
        }
        for (int k = 0; k < s; ++k) {
            std::copy(x + s_rows[2 * k] * N + lo, x + s_rows[2 * k] * N + lo + len, in.v);
            for (int j = 0; j < len; j += W) gelu<T>(load(in.v + j), value, slope), store(d.v + j, slope);
            const T* q = g + s_rows[2 * k + 1] * N + lo;
            T* o = gx + s_rows[2 * k] * N + lo;
            for (int j = 0; j < len; ++j) o[j] = q[j] * d.v[j];
        }
    });
}

// ---------------------------------------------------------------------------------------------- attention
static const int AHEAD = 8;  // rows to fetch ahead: they lie too far apart for the hardware to guess
template <class T> static inline void prefetch(const T* p, int n) {
    for (int j = 0; j < n; j += 64 / sizeof(T)) __builtin_prefetch(p + j);
}

struct AttentionTables {  // all as row numbers; see eqscale.models.gatr.attention
    int64_t heads, inner, distances, values;
    const int32_t *q_inner, *k_inner;        // (heads, inner), (inner): features that enter unchanged
    const int32_t *q_distance, *k_distance;  // (heads, distances, 4), (distances, 4): e123 and three ideal rows
    const int32_t *value, *out;              // (values), (heads, values)
    int64_t ones_row;
};

// Five features of a trivector (w; b): squared distance of normalised points as a dot product (phi for queries,
// psi for keys). `center` shifts both by the same point: it changes nothing but the rounding far from the origin.
template <class T> struct Trivectors {  // up to CHUNK tokens, padded with zeros to whole vectors
    Lanes<T> w, b[3];

    void fetch(const T* const rows[4], int first, int len) {
        T* to[4] = {w.v, b[0].v, b[1].v, b[2].v};
        for (int i = 0; i < 4; ++i) copy_padded(rows[i] + first, len, to[i]);
    }
};

template <class T>
static void distance_features(const T* const rows[4], const T center[3], T eps, bool key, T weight, T* f, int ldf,
                              int len) {
    typedef typename Simd<T>::V V;
    const int W = width<T>();
    Trivectors<T> x;
    for (int first = 0; first < len; first += CHUNK) {
        const int n_tokens = std::min(CHUNK, len - first);
        x.fetch(rows, first, n_tokens);
        for (int j = 0; j < n_tokens; j += W) {
            const V w = load(x.w.v + j), n = w / (w * w + eps), t0 = w * n;
            V t[3], sq = V{};
            for (int i = 0; i < 3; ++i) t[i] = load(x.b[i].v + j) * n - t0 * center[i], sq += t[i] * t[i];
            T* o = f + first + j;
            const V s = key ? t0 * (T)2 : t0 * weight;
            store(o, key ? -t0 * t0 : sq * weight);
            store(o + ldf, key ? -sq : t0 * t0 * weight);
            for (int i = 0; i < 3; ++i) store(o + (2 + i) * ldf, s * t[i]);
        }
    }
}

// Gradients of the four rows into out; returns the gradient of the weight.
template <class T>
static T distance_features_gradient(const T* const rows[4], const T center[3], T eps, bool key, T weight, const T* g,
                                    int ldg, T* const out[4], int len) {
    typedef typename Simd<T>::V V;
    const int W = width<T>();
    Trivectors<T> x, y;
    V weight_gradient = V{};
    for (int first = 0; first < len; first += CHUNK) {
        const int n_tokens = std::min(CHUNK, len - first);
        x.fetch(rows, first, n_tokens);
        for (int j = 0; j < n_tokens; j += W) {
            const V w = load(x.w.v + j), inv = ((V{} + (T)1) / (w * w + eps)), n = w * inv, t0 = w * n;
            const T* p = g + first + j;
            V t[3], sq = V{}, gc[3];
            for (int i = 0; i < 3; ++i) t[i] = load(x.b[i].v + j) * n - t0 * center[i], sq += t[i] * t[i];
            const V g0 = load(p), g1 = load(p + ldg);
            V gsq = key ? -g1 : g0 * weight, g00 = key ? -g0 : g1 * weight;
            if (!key) weight_gradient += g0 * sq + g1 * t0 * t0;
            for (int i = 0; i < 3; ++i) {
                const V gi = load(p + (2 + i) * ldg);
                gc[i] = gi * (key ? (T)2 : weight);
                if (!key) weight_gradient += gi * t0 * t[i];
            }
            V gt0 = t0 * g00 * (T)2, gn = V{};
            for (int i = 0; i < 3; ++i) {
                const V gt = gc[i] * t0 + t[i] * gsq * (T)2;
                gt0 += gc[i] * t[i] - gt * center[i];
                gn += gt * load(x.b[i].v + j);
                store(y.b[i].v + j, gt * n);
            }
            gn += gt0 * w;
            store(y.w.v + j, gt0 * n + gn * (eps - w * w) * inv * inv);
        }
        const T* from[4] = {y.w.v, y.b[0].v, y.b[1].v, y.b[2].v};
        for (int i = 0; i < 4; ++i) std::copy(from[i], from[i] + n_tokens, out[i] + first);
    }
    T sum = 0;
    for (int w = 0; w < W; ++w) sum += weight_gradient[w];
    return sum;
}

// Softmax attention of one sample, multi-query: tokens [start, start + len) attend to each other. Lanes of a block
// are the queries of several heads (or part of one head), each head padded to whole vectors with zeros.
template <class T> struct Sample {
    const AttentionTables& t;
    const T* e;
    int64_t N, start;
    int len, padded, features;
    T eps;
    const T* weights;  // (heads, distances)
    std::vector<T> k, v, center;

    Sample(const AttentionTables& t, const T* e, int64_t N, int64_t start, int len, T eps, const T* weights)
        : t(t), e(e), N(N), start(start), len(len), eps(eps), weights(weights) {
        const int W = width<T>();
        const int unit = std::max(W, 4);
        padded = (len + unit - 1) / unit * unit;
        features = (int)(t.inner + 5 * t.distances);
        k.assign((size_t)features * padded, 0);
        v.assign((size_t)t.values * padded, 0);
        center.assign(3 * (size_t)t.distances, 0);
        for (int f = 0; f < t.inner; ++f) std::copy(row(t.k_inner[f]), row(t.k_inner[f]) + len, &k[f * padded]);
        for (int f = 0; f < t.values; ++f) std::copy(row(t.value[f]), row(t.value[f]) + len, &v[f * padded]);
        for (int d = 0; d < t.distances; ++d) {
            const int32_t* r = t.k_distance + 4 * d;
            T norm = eps;  // weighted mean position of the keys
            for (int j = 0; j < len; ++j) norm += row(r[0])[j] * row(r[0])[j];
            for (int i = 0; i < 3; ++i) {
                for (int j = 0; j < len; ++j) center[3 * d + i] += row(r[0])[j] * row(r[1 + i])[j];
                center[3 * d + i] /= norm;
            }
            const T* rows[4] = {row(r[0]), row(r[1]), row(r[2]), row(r[3])};
            distance_features(rows, &center[3 * d], eps, true, (T)1, &k[(t.inner + 5 * d) * padded], padded, len);
        }
    }
    const T* row(int32_t r) const { return e + r * N + start; }

    // queries [q0, q0 + n) of head h into lanes [lane, lane + n) of q (features, lanes)
    void queries(int h, int q0, int n, T* q, int ld) const {
        for (int f = 0; f < t.inner; ++f) {
            const T* p = row(t.q_inner[h * t.inner + f]) + q0;
            if (f + AHEAD < t.inner) prefetch(row(t.q_inner[h * t.inner + f + AHEAD]) + q0, n);
            std::copy(p, p + n, q + f * ld);
        }
        for (int d = 0; d < t.distances; ++d) {
            const int32_t* r = t.q_distance + 4 * (h * t.distances + d);
            const T* rows[4] = {row(r[0]) + q0, row(r[1]) + q0, row(r[2]) + q0, row(r[3]) + q0};
            distance_features(rows, &center[3 * d], eps, false, weights[h * t.distances + d],
                              q + (t.inner + 5 * d) * ld, ld, n);
        }
    }

    // p (len, lanes) = softmax over keys of scale * k^T q
    void probabilities(const T* q, T* p, int lanes, int ld) const {
        gemm(k.data(), 1, padded, q, ld, p, ld, len, features, lanes);
        softmax(p, len, lanes, ld, 1 / std::sqrt((T)features));
    }
};

static const int BLOCK = 256;  // lanes of one attention block
static const int SPARE = 16;   // rows of a block lie this much further apart: round strides share cache sets

struct Segment {
    int head, query, count, lane;
};

// Cuts (head, query) into blocks of at most about BLOCK lanes.
template <class T, class F> static void for_blocks(int heads, int len, F body) {
    const int W = width<T>();
    std::vector<Segment> block;
    int lanes = 0;
    for (int q0 = 0; q0 < len; q0 += BLOCK) {
        const int n = std::min(BLOCK, len - q0), padded = (n + W - 1) / W * W;
        for (int h = 0; h < heads; ++h) {
            if (lanes && lanes + padded > BLOCK) body(block, lanes), block.clear(), lanes = 0;
            block.push_back({h, q0, n, lanes});
            lanes += padded;
        }
    }
    if (lanes) body(block, lanes);
}

template <class T>
static void attention(const T* e, T* out, int64_t N, const AttentionTables& t, const int64_t* starts, int samples,
                      const T* weights, T eps, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int b = 0; b < samples; ++b) {
        const int len = (int)(starts[b + 1] - starts[b]);
        if (!len) continue;
        Sample<T> s(t, e, N, starts[b], len, eps, weights);
        std::vector<T> q, p, o;
        for_blocks<T>((int)t.heads, len, [&](const std::vector<Segment>& block, int lanes) {
            const int ld = lanes + SPARE;
            q.assign((size_t)s.features * ld, 0);
            p.resize((size_t)len * ld);
            o.resize((size_t)t.values * ld);
            for (const Segment& g : block) s.queries(g.head, g.query, g.count, q.data() + g.lane, ld);
            s.probabilities(q.data(), p.data(), lanes, ld);
            gemm(s.v.data(), s.padded, 1, p.data(), ld, o.data(), ld, (int)t.values, len, lanes);
            for (const Segment& g : block)
                for (int f = 0; f < t.values; ++f)
                    std::copy(&o[f * ld + g.lane], &o[f * ld + g.lane] + g.count,
                              out + t.out[g.head * t.values + f] * N + starts[b] + g.query);
        });
        std::fill(out + t.ones_row * N + starts[b], out + t.ones_row * N + starts[b + 1], (T)1);
    }
}

// ge must be zero on entry; gweights: (samples, heads, distances).
template <class T>
static void attention_gradient(const T* e, const T* g, T* ge, T* gweights, int64_t N, const AttentionTables& t,
                               const int64_t* starts, int samples, const T* weights, T eps, int threads) {
    typedef typename Simd<T>::V V;
    const int W = width<T>();
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int b = 0; b < samples; ++b) {
        const int len = (int)(starts[b + 1] - starts[b]);
        if (!len) continue;
        Sample<T> s(t, e, N, starts[b], len, eps, weights);
        auto grow = [&](int32_t r) { return ge + r * N + starts[b]; };
        const T scale = 1 / std::sqrt((T)s.features);
        std::vector<T> q, p, ds, go, gq;
        std::vector<T> gk((size_t)s.features * s.padded, 0), gv((size_t)t.values * s.padded, 0);
        for_blocks<T>((int)t.heads, len, [&](const std::vector<Segment>& block, int lanes) {
            const int ld = lanes + SPARE;
            q.assign((size_t)s.features * ld, 0);
            go.assign((size_t)t.values * ld, 0);
            const size_t keys = (len + 3) / 4 * 4;  // zero rows for dots()
            p.assign(keys * ld, 0), ds.assign(keys * ld, 0), gq.resize((size_t)s.features * ld);
            for (const Segment& seg : block) {
                s.queries(seg.head, seg.query, seg.count, q.data() + seg.lane, ld);
                for (int f = 0; f < t.values; ++f) {
                    const int32_t* r = t.out + seg.head * t.values + f;
                    const T* x = g + *r * N + starts[b] + seg.query;
                    if (f + AHEAD < t.values) prefetch(g + r[AHEAD] * N + starts[b] + seg.query, seg.count);
                    std::copy(x, x + seg.count, &go[f * ld + seg.lane]);
                }
            }
            s.probabilities(q.data(), p.data(), lanes, ld);
            gemm(s.v.data(), 1, s.padded, go.data(), ld, ds.data(), ld, len, (int)t.values, lanes);
            for (int l = 0; l < lanes; l += W) {
                V dot = V{};
                for (int j = 0; j < len; ++j) dot += load(&p[j * ld + l]) * load(&ds[j * ld + l]);
                for (int j = 0; j < len; ++j)
                    store(&ds[j * ld + l], load(&p[j * ld + l]) * (load(&ds[j * ld + l]) - dot) * scale);
            }
            gemm(s.k.data(), s.padded, 1, ds.data(), ld, gq.data(), ld, s.features, len, lanes);
            dots(go.data(), ld, p.data(), ld, gv.data(), s.padded, (int)t.values, (int)keys, lanes);
            dots(q.data(), ld, ds.data(), ld, gk.data(), s.padded, s.features, (int)keys, lanes);
            for (const Segment& seg : block) {
                for (int f = 0; f < t.inner; ++f) {
                    const T* x = &gq[f * ld + seg.lane];
                    std::copy(x, x + seg.count, grow(t.q_inner[seg.head * t.inner + f]) + seg.query);
                }
                for (int d = 0; d < t.distances; ++d) {
                    const int64_t channel = seg.head * t.distances + d;
                    const int32_t* r = t.q_distance + 4 * channel;
                    const int o = seg.query;
                    const T* x[4] = {s.row(r[0]) + o, s.row(r[1]) + o, s.row(r[2]) + o, s.row(r[3]) + o};
                    T* gx[4] = {grow(r[0]) + o, grow(r[1]) + o, grow(r[2]) + o, grow(r[3]) + o};
                    gweights[b * t.heads * t.distances + channel] += distance_features_gradient(
                        x, &s.center[3 * d], eps, false, weights[channel], &gq[(t.inner + 5 * d) * ld + seg.lane],
                        ld, gx, seg.count);
                }
            }
        });
        for (int f = 0; f < t.inner; ++f) std::copy(&gk[f * s.padded], &gk[f * s.padded] + len, grow(t.k_inner[f]));
        for (int f = 0; f < t.values; ++f) std::copy(&gv[f * s.padded], &gv[f * s.padded] + len, grow(t.value[f]));
        for (int d = 0; d < t.distances; ++d) {
            const int32_t* r = t.k_distance + 4 * d;
            const T* x[4] = {s.row(r[0]), s.row(r[1]), s.row(r[2]), s.row(r[3])};
            T* gx[4] = {grow(r[0]), grow(r[1]), grow(r[2]), grow(r[3])};
            distance_features_gradient(x, &s.center[3 * d], eps, true, (T)1, &gk[(t.inner + 5 * d) * s.padded],
                                       s.padded, gx, len);
        }
    }
}

// ---------------------------------------------------------------------------------------------- C interface
extern "C" {
EXPORT(bilinear)
EXPORT(bilinear_gradient)
EXPORT(norm)
EXPORT(norm_gradient)
EXPORT(gate)
EXPORT(gate_gradient)
EXPORT(attention)
EXPORT(attention_gradient)
}
