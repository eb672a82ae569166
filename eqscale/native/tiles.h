// What the kernels of whole networks share: tiles of a few samples that stay in the cache, linear maps, a head's attention
// and sums of gradients.
//
// A tile's activations are planar, (rows, lanes): one row a number of a token, tokens contiguous, so that vector lanes
// are tokens and any width runs at full speed. Padding is dropped, samples lie side by side. Attention works on whole
// vectors of a sample, so it writes beyond its end: what belongs to the next sample that one overwrites, what lies
// behind the last is finite in the forward pass and has zero gradient in the backward pass.
#pragma once
#ifdef _OPENMP
#include <omp.h>
#endif

#include "simd.h"

static const int TILE = 192;  // most tokens of a tile of several samples

template <class T> constexpr int vectors(int n) { return (n + width<T>() - 1) / width<T>() * width<T>(); }

static int thread_number() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

// Memory of one thread and purpose, which is kept for the next call; aligned to lines of the cache.
template <class T, int PURPOSE> static T* scratch(size_t n) {
    static thread_local std::vector<T> memory;
    if (memory.size() < n + 64) memory.resize(n + 64);
    return (T*)(((uintptr_t)memory.data() + 63) / 64 * 64);
}

// Sums of gradients, and of other numbers, of each thread.
template <class T> struct Sums {
    int threads;
    size_t size;  // from one thread's to the next one's
    T* memory;

    Sums(size_t numbers, int threads) : threads(threads), size((numbers + 15) / 16 * 16) {
        memory = scratch<T, 1>(size * threads);
        std::fill_n(memory, size * threads, (T)0);
    }
    T* own() const { return memory + thread_number() * size; }
    T total(size_t at) const {
        T total = 0;
        for (int t = 0; t < threads; ++t) total += memory[at + t * size];
        return total;
    }
    // gradient (rows) gains sums (rows, one vector)
    void add_lanes_to(T* gradient, int rows, size_t at) const {
        for (int k = 0; k < rows; ++k, at += width<T>())
            for (int t = 0; t < threads; ++t) {
                T total = 0;
                for (int i = 0; i < width<T>(); ++i) total += memory[at + t * size + i];
                gradient[k] += total;
            }
    }
};

// sums (rows, one vector) += sums over whole vectors of x, or of x times y.
template <class T> static void add_lanes(const T* x, const T* y, int rows, int lanes, T* sums) {
    const int W = width<T>();
    for (int k = 0; k < rows; ++k, x += lanes, y += y ? lanes : 0, sums += W) {
        auto total = load(sums);
        for (int l = 0; l < lanes; l += W) total += y ? load(x + l) * load(y + l) : load(x + l);
        store(sums, total);
    }
}

// A linear map; b: its bias, or null. `at`: where the sums of its gradients lie, (rows, lanes) and (out, one vector). The
// lanes, those of a product over tokens, are the side that fills whole vectors better, transposed; the narrower one where
// they are alike.
template <class T> struct Linear {
    int in, out;
    const T *w, *b;
    size_t at;

    bool turns_input() const {
        const int x = vectors<T>(in) * out, g = vectors<T>(out) * in;
        return x == g ? in <= out : x < g;
    }
    int rows() const { return turns_input() ? out : in; }
    int columns() const { return turns_input() ? in : out; }
    int stride() const { return vectors<T>(columns()); }
    int arrays() const { return b ? 2 : 1; }  // of parameters
    size_t sums() const { return (size_t)rows() * stride() + (size_t)(b ? out : 0) * width<T>(); }

    void forward(const T* x, T* y, int lanes, bool add = false) const {
        gemm(w, in, 1, x, lanes, y, lanes, out, in, lanes, b, add);
    }
    void input_gradient(const T* g, T* gx, int lanes) const { gemm(w, 1, in, g, lanes, gx, lanes, in, out, lanes); }
    void weight_gradient(const T* x, const T* g, int lanes, T* sums, T* turned) const {
        transpose(turns_input() ? x : g, lanes, columns(), lanes, turned, stride());
        gemm(turns_input() ? g : x, lanes, 1, turned, stride(), sums + at, stride(), rows(), lanes, stride(),
             (T*)nullptr, true);
        if (b) add_lanes<T>(g, nullptr, out, lanes, sums + at + rows() * stride());
    }
    // Weights and bias of the gradient gain the sums of all threads.
    void finish(const Sums<T>& sums, T* weights, T* bias) const {
        for (int o = 0; o < out; ++o)
            for (int i = 0; i < in; ++i)
                *weights++ += sums.total(at + (turns_input() ? o * stride() + i : i * stride() + o));
        if (b) sums.add_lanes_to(bias, out, at + rows() * stride());
    }
};

// Some whole samples: where they lie among the lanes, and which of their tokens are real.
template <class T> struct Tile {
    struct Sample {
        int first, lanes;         // first of its lanes; lanes that its attention works on
        std::vector<int> tokens;  // indices of its real tokens
    };
    int64_t first_sample, tokens;
    int lanes = 0;
    std::vector<Sample> samples;

    void set(int64_t tokens_of_sample, const bool* mask, int64_t first, int64_t last) {
        first_sample = first, tokens = tokens_of_sample, lanes = 0;
        samples.resize(last - first);
        for (int64_t b = first; b < last; ++b) {
            Sample& sample = samples[b - first];
            sample.tokens.clear();
            for (int t = 0; t < tokens; ++t)
                if (!mask || mask[b * tokens + t]) sample.tokens.push_back(t);
            sample.first = lanes, sample.lanes = vectors<T>((int)sample.tokens.size());
            lanes += (int)sample.tokens.size();
        }
        lanes = vectors<T>(samples.back().first + samples.back().lanes);
    }
    // rows (n, lanes): zeros where attention might not write
    void clear_end(T* x, int n) const {
        for (int k = 1; k <= n; ++k) store(x + k * lanes - width<T>(), typename Simd<T>::V{});
    }
    // x (B, T, n; or ld from token to token) into y (n, lanes), zero where there is no token
    void gather(const T* x, int n, T* y, int64_t ld = 0) const {
        if (!ld) ld = n;
        std::fill(y, y + (size_t)n * lanes, (T)0);
        each_token([&](int64_t token, int lane) {
            for (int k = 0; k < n; ++k) y[k * lanes + lane] = x[token * ld + k];
        });
    }
    // x (n, lanes) into y (B, T, n; or ld from token to token), whose padded tokens are left alone
    void scatter(const T* x, int n, T* y, int64_t ld = 0) const {
        if (!ld) ld = n;
        each_token([&](int64_t token, int lane) {
            for (int k = 0; k < n; ++k) y[token * ld + k] = x[k * lanes + lane];
        });
    }
    template <class F> void each_token(F body) const {
        for (size_t i = 0; i < samples.size(); ++i)
            for (size_t t = 0; t < samples[i].tokens.size(); ++t)
                body((first_sample + i) * tokens + samples[i].tokens[t], samples[i].first + (int)t);
    }
};

// The sum over a tile's tokens of weights (B, T) times squared distances of y (out, lanes) from target (B, T, out), times
// `scale`. Writes its gradient to g (out, lanes).
template <class T>
static T squared_error(const Tile<T>& tile, const T* y, const T* target, const T* weights, T scale, int64_t out, T* g) {
    T total = 0;
    std::fill_n(g, out * tile.lanes, (T)0);
    tile.each_token([&](int64_t token, int lane) {
        const T weight = weights[token] * scale;
        for (int k = 0; k < out; ++k) {
            const T error = y[k * tile.lanes + lane] - target[token * out + k];
            total += weight * error * error;
            g[k * tile.lanes + lane] = 2 * weight * error;
        }
    });
    return total;
}

// Gaussians of the distance of two tokens (eqscale.models.distances).
static const int BELLS = 4;
static const double RADII[BELLS] = {0.1, 0.3, 1, 3};

// Those of the tokens of each sample, (BELLS, lanes, lanes) each, in memory of this thread. x: the points, ld apart.
template <class T> static const T* bells_of(const Tile<T>& tile, const T* x, int64_t ld) {
    typedef typename Simd<T>::V V;
    size_t pairs = 0;
    for (const auto& sample : tile.samples) pairs += (size_t)sample.lanes * sample.lanes;
    T *points = scratch<T, 4>(3 * tile.lanes + BELLS * pairs), *bells = points + 3 * tile.lanes, *to = bells;
    tile.gather(x, 3, points, ld);
    for (const auto& sample : tile.samples) {
        const int len = (int)sample.tokens.size(), lanes = sample.lanes;
        const T* at = points + sample.first;
        for (int i = 0; i < len; ++i)
            for (int l = 0; l < lanes; l += width<T>()) {
                V square = {};
                for (int c = 0; c < 3; ++c) {
                    const V d = load(at + c * tile.lanes + l) - at[c * tile.lanes + i];
                    square += d * d;
                }
                for (int r = 0; r < BELLS; ++r)
                    store(to + (r * lanes + i) * lanes + l, exponential<T>(square * (T)(-0.5 / (RADII[r] * RADII[r]))));
            }
        for (int r = 0; r < BELLS; ++r)
            for (int i = 0; i < len; ++i) std::fill(to + (r * lanes + i) * lanes + len, to + (r * lanes + i + 1) * lanes, (T)0);
        to += BELLS * lanes * lanes;
    }
    return bells;
}

// What a head adds to the logits of a sample: functions of pairs of tokens that are alike both ways, (BELLS, lanes, lanes),
// zero in lanes without a token, times weights (BELLS; ld apart). sums: of the weights' gradients, (BELLS, one vector; ld
// vectors apart). Nothing without bells.
template <class T> struct PairBias {
    const T *bells = nullptr, *weights = nullptr;
    T* sums = nullptr;
    int ld = 0;

    void add(T* scores, int len, int lanes, T scale) const {
        const T* b[BELLS];
        T w[BELLS];
        for (int r = 0; r < BELLS; ++r) b[r] = bells + r * lanes * lanes, w[r] = weights[r * ld] * scale;
        for (int i = 0; i < len * lanes; i += width<T>()) {
            auto score = load(scores + i);
#pragma GCC unroll 4
            for (int r = 0; r < BELLS; ++r) score += load(b[r] + i) * w[r];
            store(scores + i, score);
        }
    }
    // The gradient of the logits, times `scale`, to that of the weights.
    void gradient(const T* g, int len, int lanes, T scale) const {
        typename Simd<T>::V total[BELLS] = {};
        for (int i = 0; i < len * lanes; i += width<T>())
#pragma GCC unroll 4
            for (int r = 0; r < BELLS; ++r) total[r] += load(g + i) * load(bells + r * lanes * lanes + i);
        for (int r = 0; r < BELLS; ++r) {
            T* to = sums + r * ld * width<T>();
            store(to, load(to) + total[r] * scale);
        }
    }
};

// Weights of the bias by distance, (depth, BELLS, heads).
template <class T> struct Distances {
    int blocks, heads;
    const T* w;
    size_t at;

    int rows() const { return blocks * BELLS * heads; }
    size_t sums() const { return (size_t)rows() * width<T>(); }
    int arrays() const { return 1; }
    int first(int block, int h) const { return block * BELLS * heads + h; }
    PairBias<T> of_head(const T* bells, int block, int h, T* sums = nullptr) const {
        if (!bells) return {};
        return {bells, w + first(block, h), sums ? sums + at + first(block, h) * width<T>() : nullptr, heads};
    }
    void finish(const Sums<T>& sums, T* of_w, T*) const { sums.add_lanes_to(of_w, rows(), at); }
};

// Softmax attention of one head of a sample with `len` tokens, lanes for queries; q, k, v, out: (d, lanes; ld apart).
// p, if wanted, keeps the probabilities (queries, keys), with lanes for keys.
template <class T>
static void attend_head(const T* q, const T* k, const T* v, int d, int len, int lanes, int ld, T* scores, T* out,
                        T* p, const PairBias<T>& bias = {}) {
    gemm(k, 1, ld, q, ld, scores, lanes, len, d, lanes);
    if (bias.bells) bias.add(scores, len, lanes, std::sqrt((T)d));
    softmax(scores, len, lanes, lanes, 1 / std::sqrt((T)d));
    gemm(v, ld, 1, scores, lanes, out, ld, d, len, lanes);
    if (p) transpose(scores, lanes, len, lanes, p, lanes);
}

constexpr size_t attention_work(size_t lanes) { return lanes * (1 + 2 * lanes); }  // numbers of attend_head_gradient()

// The gradient g of a head's out to those of q, k, v and the bias; k and v gain it where `add`.
template <class T>
static void attend_head_gradient(const T* q, const T* k, const T* v, const T* out, const T* p, const T* g, int d,
                                 int len, int lanes, int ld, T* gq, T* gk, T* gv, bool add, T* work,
                                 const PairBias<T>& bias = {}) {
    typedef typename Simd<T>::V V;
    const T scale = 1 / std::sqrt((T)d);
    T *dots = work, *gscores = dots + lanes, *turned = gscores + lanes * lanes;
    for (int l = 0; l < lanes; l += width<T>()) {
        V dot = V{};
        for (int f = 0; f < d; ++f) dot += load(g + f * ld + l) * load(out + f * ld + l);
        store(dots + l, dot);
    }
    gemm(g, 1, ld, v, ld, gscores, lanes, len, d, lanes);
    for (int q = 0; q < len; ++q)
        for (int l = q * lanes; l < (q + 1) * lanes; l += width<T>())
            store(gscores + l, load(p + l) * (load(gscores + l) - dots[q]) * scale);
    if (bias.bells) bias.gradient(gscores, len, lanes, 1 / scale);
    gemm(g, ld, 1, p, lanes, gv, ld, d, len, lanes, (T*)nullptr, add);
    gemm(q, ld, 1, gscores, lanes, gk, ld, d, len, lanes, (T*)nullptr, add);
    transpose(gscores, lanes, len, lanes, turned, lanes);
    gemm(k, ld, 1, turned, lanes, gq, ld, d, len, lanes);
}

// body(tile, memory of what is kept) for all tiles; backwards for what was kept last, which still is in the cache.
// kept_of_sample: numbers kept of each sample.
template <class T, class F>
static void for_tiles(int64_t batch, int64_t tokens, const bool* mask, T* kept, int64_t kept_of_sample, bool backwards,
                      int threads, F body) {
    std::vector<int64_t> first;  // samples of the tiles
    const int64_t most = std::min<int64_t>(TILE, batch * tokens / threads);
    for (int64_t b = 0, filled = most; b < batch; ++b) {
        const int64_t real = mask ? std::count(mask + b * tokens, mask + (b + 1) * tokens, true) : tokens;
        if (filled + real > most) first.push_back(b), filled = 0;
        filled += real;
    }
    first.push_back(batch);
    const int64_t tiles = (int64_t)first.size() - 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Tile<T> tile;
#pragma omp for schedule(static)
        for (int64_t k = 0; k < tiles; ++k) {
            const int64_t i = backwards ? tiles - 1 - k : k;
            tile.set(tokens, mask, first[i], first[i + 1]);
            body(tile, kept ? kept + first[i] * kept_of_sample : kept);
        }
    }
}

// Most lanes of a tile.
template <class T> static size_t tile_lanes(int64_t tokens) {
    return std::max<size_t>(TILE + width<T>(), vectors<T>((int)tokens));
}
