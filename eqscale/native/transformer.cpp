// The plain transformer on a CPU: the whole network, forward and backward, over tiles that stay in the cache.
//
// A tile is a few whole samples. Its activations are planar, (rows, lanes): one row a feature, tokens contiguous, so
// that vector lanes are tokens and any width runs at full speed. Padding is dropped, samples lie side by side. Attention
// works on whole vectors of a sample, so it writes beyond its end: what belongs to the next sample that one overwrites,
// what lies behind the last is finite in the forward pass and has zero gradient in the backward pass.
#ifdef _OPENMP
#include <omp.h>
#endif

#include "simd.h"

struct Shape {  // see eqscale.native.transformer
    int64_t batch, tokens, in, out, width, depth, heads, kv_heads, hidden;
    int64_t gated, centred;  // hidden units gated by swish rather than GELU; LayerNorm rather than RMSNorm
    int64_t kept;  // filled in by transformer_plan(): numbers kept for the backward pass
};

static const int TILE = 192;  // most tokens of a tile of several samples
static const double NORM_EPS = 1e-5;

template <class T> constexpr int vectors(int n) { return (n + width<T>() - 1) / width<T>() * width<T>(); }

// sums (rows, one vector) += sums over whole vectors of x, or of x times y.
template <class T> static void add_lanes(const T* x, const T* y, int rows, int lanes, T* sums) {
    const int W = width<T>();
    for (int k = 0; k < rows; ++k, x += lanes, y += y ? lanes : 0, sums += W) {
        auto total = load(sums);
        for (int l = 0; l < lanes; l += W) total += y ? load(x + l) * load(y + l) : load(x + l);
        store(sums, total);
    }
}

template <class T> static T sum_of(const T* x, int n, int64_t stride = 1) {
    T total = 0;
    for (int i = 0; i < n; ++i) total += x[i * stride];
    return total;
}

// gradient (rows) += totals of sums (rows, one vector) of each thread, `size` apart.
template <class T> static void add_totals(const T* sums, int rows, int threads, size_t size, T* gradient) {
    for (int k = 0; k < rows; ++k, sums += width<T>())
        for (int t = 0; t < threads; ++t) gradient[k] += sum_of(sums + t * size, width<T>());
}

// A linear map. `at`: where the sums of its gradients lie, (rows, lanes) and (out, one vector). The lanes, those of a
// product over tokens, are the side that fills whole vectors better, transposed; the narrower one where they are alike.
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
    size_t sums() const { return (size_t)rows() * stride() + (size_t)out * width<T>(); }

    void forward(const T* x, T* y, int lanes, bool add = false) const {
        gemm(w, in, 1, x, lanes, y, lanes, out, in, lanes, b, add);
    }
    void input_gradient(const T* g, T* gx, int lanes) const { gemm(w, 1, in, g, lanes, gx, lanes, in, out, lanes); }
    void weight_gradient(const T* x, const T* g, int lanes, T* sums, T* turned) const {
        transpose(turns_input() ? x : g, lanes, columns(), lanes, turned, stride());
        gemm(turns_input() ? g : x, lanes, 1, turned, stride(), sums + at, stride(), rows(), lanes, stride(),
             (T*)nullptr, true);
        add_lanes<T>(g, nullptr, out, lanes, sums + at + rows() * stride());
    }
    void finish(const T* sums, int threads, size_t size, T* const*& gradients) const {
        const T* x = sums + at;
        T* gradient = *gradients++;
        for (int o = 0; o < out; ++o)
            for (int i = 0; i < in; ++i)
                *gradient++ += sum_of(x + (turns_input() ? o * stride() + i : i * stride() + o), threads, size);
        add_totals(x + rows() * stride(), out, threads, size, *gradients++);
    }
};

// LayerNorm, or RMSNorm without a shift. Keeps the normalised rows and the factor of each token.
template <class T> struct Norm {
    int n;
    const T *scale, *shift;
    size_t at;

    bool centred;

    size_t sums() const { return (size_t)(centred ? 2 : 1) * n * width<T>(); }

    void forward(const T* x, T* normed, T* factor, int lanes) const {
        typedef typename Simd<T>::V V;
        constexpr int W = width<T>();
        for (int l = 0; l < lanes; l += W) {
            V mean[2] = {}, square[2] = {};
            if (centred) {
                for (int k = 0; k < n; ++k) mean[k % 2] += load(x + k * lanes + l);
                mean[0] = (mean[0] + mean[1]) / (T)n;
            }
            for (int k = 0; k < n; ++k) {
                const V d = load(x + k * lanes + l) - mean[0];
                square[k % 2] += d * d;
            }
            const V variance = (square[0] + square[1]) / (T)n + (T)NORM_EPS;
            T roots[W];
            store(roots, variance);
            for (int i = 0; i < W; ++i) roots[i] = 1 / std::sqrt(roots[i]);
            const V f = load(roots);
            for (int k = 0; k < n; ++k) store(normed + k * lanes + l, (load(x + k * lanes + l) - mean[0]) * f);
            store(factor + l, f);
        }
    }
    void affine(const T* normed, T* y, int lanes) const {
        for (int k = 0; k < n; ++k)
            for (int l = 0; l < lanes; l += width<T>())
                store(y + k * lanes + l, load(normed + k * lanes + l) * scale[k] + (centred ? shift[k] : (T)0));
    }
    // gx gains, or is, the gradient of x; g is that of y.
    void gradient(const T* normed, const T* factor, const T* g, T* gx, int lanes, T* sums, bool add) const {
        typedef typename Simd<T>::V V;
        const int W = width<T>();
        add_lanes(g, normed, n, lanes, sums + at);
        if (centred) add_lanes<T>(g, nullptr, n, lanes, sums + at + n * W);
        for (int l = 0; l < lanes; l += W) {
            V mean[2] = {}, dot[2] = {};
            for (int k = 0; k < n; ++k) {
                const V a = load(g + k * lanes + l) * scale[k];
                mean[k % 2] += a, dot[k % 2] += a * load(normed + k * lanes + l);
            }
            mean[0] = centred ? (mean[0] + mean[1]) / (T)n : V{}, dot[0] = (dot[0] + dot[1]) / (T)n;
            const V f = load(factor + l);
            for (int k = 0; k < n; ++k) {
                T* to = gx + k * lanes + l;
                const V a = load(g + k * lanes + l) * scale[k];
                const V d = (a - mean[0] - load(normed + k * lanes + l) * dot[0]) * f;
                store(to, add ? load(to) + d : d);
            }
        }
    }
    void finish(const T* sums, int threads, size_t size, T* const*& gradients) const {
        add_totals(sums + at, n, threads, size, *gradients++);
        if (centred) add_totals(sums + at + n * width<T>(), n, threads, size, *gradients++);
    }
};

template <class T> struct Block {
    Norm<T> attention_norm;
    Linear<T> qkv, out;
    Norm<T> mlp_norm;
    Linear<T> mlp_in, mlp_out;
};

// The parameters, in the order of Transformer.parameters().
template <class T> struct Network {
    const Shape& s;
    const T* const* next;
    size_t size = 0;  // of all sums of gradients
    Linear<T> embed;
    std::vector<Block<T>> blocks;
    Norm<T> norm;
    Linear<T> readout;

    Network(const Shape& s, const T* const* parameters) : s(s), next(parameters) {
        const int d = (int)s.width, kv = (int)(s.kv_heads * (d / s.heads)), hidden = (int)s.hidden;
        embed = linear((int)s.in, d);
        for (int i = 0; i < s.depth; ++i) {
            Block<T> b;
            b.attention_norm = normalisation(d);
            b.qkv = linear(d, d + 2 * kv), b.out = linear(d, d);
            b.mlp_norm = normalisation(d);
            b.mlp_in = linear(d, hidden * (s.gated ? 2 : 1)), b.mlp_out = linear(hidden, d);
            blocks.push_back(b);
        }
        norm = normalisation(d);
        readout = linear(d, (int)s.out);
    }
    template <class F> void for_each(F body) const {
        body(embed);
        for (const Block<T>& b : blocks)
            body(b.attention_norm), body(b.qkv), body(b.out), body(b.mlp_norm), body(b.mlp_in), body(b.mlp_out);
        body(norm), body(readout);
    }
    Linear<T> linear(int in, int out) {
        const Linear<T> map{in, out, next[0], next[1], size};
        next += 2, size += map.sums();
        return map;
    }
    Norm<T> normalisation(int n) {
        const Norm<T> map{n, next[0], s.centred ? next[1] : nullptr, size, s.centred != 0};
        next += s.centred ? 2 : 1, size += map.sums();
        return map;
    }
};

// Some whole samples: where they lie among the lanes, and which of their tokens are real.
template <class T> struct Tile {
    struct Sample {
        int first, lanes;         // first of its lanes; lanes that its attention works on
        std::vector<int> tokens;  // indices of its real tokens
    };
    int64_t first_sample;
    int lanes = 0;
    std::vector<Sample> samples;

    void set(const Shape& s, const bool* mask, int64_t first, int64_t last) {
        first_sample = first, lanes = 0;
        samples.resize(last - first);
        for (int64_t b = first; b < last; ++b) {
            Sample& sample = samples[b - first];
            sample.tokens.clear();
            for (int t = 0; t < s.tokens; ++t)
                if (!mask || mask[b * s.tokens + t]) sample.tokens.push_back(t);
            sample.first = lanes, sample.lanes = vectors<T>((int)sample.tokens.size());
            lanes += (int)sample.tokens.size();
        }
        lanes = vectors<T>(samples.back().first + samples.back().lanes);
    }
    // rows (n, lanes): zeros where attention might not write
    void clear_end(T* x, int n) const {
        for (int k = 1; k <= n; ++k) store(x + k * lanes - width<T>(), typename Simd<T>::V{});
    }
    // x (B, T, n) into y (n, lanes), zero where there is no token
    void gather(const Shape& s, const T* x, int n, T* y) const {
        std::fill(y, y + (size_t)n * lanes, (T)0);
        each_token(s, [&](int64_t token, int lane) {
            for (int k = 0; k < n; ++k) y[k * lanes + lane] = x[token * n + k];
        });
    }
    // x (n, lanes) into y (B, T, n), whose padded tokens are left alone
    void scatter(const Shape& s, const T* x, int n, T* y) const {
        each_token(s, [&](int64_t token, int lane) {
            for (int k = 0; k < n; ++k) y[token * n + k] = x[k * lanes + lane];
        });
    }
    template <class F> void each_token(const Shape& s, F body) const {
        for (size_t i = 0; i < samples.size(); ++i)
            for (size_t t = 0; t < samples[i].tokens.size(); ++t)
                body((first_sample + i) * s.tokens + samples[i].tokens[t], samples[i].first + (int)t);
    }
};

// What a block puts out for a tile, and with it attention's probabilities, which only the backward pass needs.
template <class T> struct Kept {
    T *attention_normed, *attention_factor, *qkv, *p, *attended, *mlp_normed, *mlp_factor, *slopes, *hidden;

    static int64_t rows(const Shape& s) {  // per lane, without probabilities
        const int64_t qkv = s.width + 2 * s.kv_heads * (s.width / s.heads);
        return 3 * s.width + 2 + qkv + s.hidden * (s.gated ? 3 : 2);
    }
    Kept(const Block<T>& b, const Shape& s, const Tile<T>& tile, T*& memory, bool keep = true) {
        const auto take = [&](int64_t n) { return std::exchange(memory, memory + n); };
        const int64_t n = tile.lanes, d = s.width;
        attention_normed = take(d * n), attention_factor = take(n), qkv = take(b.qkv.out * n);
        int64_t probabilities = 0;
        if (keep)
            for (const auto& x : tile.samples) probabilities += s.heads * (int64_t)x.lanes * x.lanes;
        p = take(probabilities);
        attended = take(d * n), mlp_normed = take(d * n), mlp_factor = take(n);
        slopes = take(b.mlp_in.out * n), hidden = take(b.mlp_out.in * n);
    }
};

// body(sample, head, first row of its key and value head, probabilities (queries, keys)) for all heads.
template <class T, class F> static void for_heads(const Shape& s, const Tile<T>& tile, T* p, F body) {
    const int d = (int)(s.width / s.heads);
    for (const auto& x : tile.samples)
        for (int h = 0; h < s.heads; ++h, p += x.lanes * x.lanes) body(x, h, s.kv_heads > 1 ? h * d : 0, p);
}

// Softmax attention with lanes for queries. p, if wanted, keeps the probabilities with lanes for keys.
template <class T>
static void attend(const Shape& s, const Tile<T>& tile, const T* qkv, T* out, T* p, T* scores, bool keep) {
    const int n = tile.lanes, d = (int)(s.width / s.heads);
    tile.clear_end(out, (int)s.width);
    for_heads(s, tile, p, [&](const auto& x, int h, int kv, T* p) {
        const int len = (int)x.tokens.size();
        const T *q = qkv + h * d * n + x.first, *k = qkv + (s.width + kv) * n + x.first, *v = k + s.kv_heads * d * n;
        gemm(k, 1, n, q, n, scores, x.lanes, len, d, x.lanes);
        softmax(scores, len, x.lanes, x.lanes, 1 / std::sqrt((T)d));
        gemm(v, n, 1, scores, x.lanes, out + h * d * n + x.first, n, d, len, x.lanes);
        if (keep) transpose(scores, x.lanes, len, x.lanes, p, x.lanes);
    });
}

// Gradients of out (heads d, lanes) to those of qkv.
template <class T>
static void attend_gradient(const Shape& s, const Tile<T>& tile, const T* qkv, const T* out, T* p, const T* gout,
                            T* gqkv, T* work) {
    typedef typename Simd<T>::V V;
    const int n = tile.lanes, d = (int)(s.width / s.heads);
    const T scale = 1 / std::sqrt((T)d);
    tile.clear_end(gqkv, (int)(s.width + 2 * s.kv_heads * d));
    for_heads(s, tile, p, [&](const auto& x, int h, int kv, const T* p) {
        const int len = (int)x.tokens.size(), lanes = x.lanes;
        const int64_t at = h * d * n + x.first, to_k = (s.width + kv) * n + x.first, to_v = to_k + s.kv_heads * d * n;
        T *dots = work, *gscores = dots + lanes, *turned = gscores + lanes * lanes;
        for (int l = 0; l < lanes; l += width<T>()) {
            V dot = V{};
            for (int f = 0; f < d; ++f) dot += load(gout + at + f * n + l) * load(out + at + f * n + l);
            store(dots + l, dot);
        }
        gemm(gout + at, 1, n, qkv + to_v, n, gscores, lanes, len, d, lanes);
        for (int q = 0; q < len; ++q)
            for (int l = q * lanes; l < (q + 1) * lanes; l += width<T>())
                store(gscores + l, load(p + l) * (load(gscores + l) - dots[q]) * scale);
        const bool add = h > 0 && s.kv_heads == 1;
        gemm(gout + at, n, 1, p, lanes, gqkv + to_v, n, d, len, lanes, (T*)nullptr, add);
        gemm(qkv + at, n, 1, gscores, lanes, gqkv + to_k, n, d, len, lanes, (T*)nullptr, add);
        transpose(gscores, lanes, len, lanes, turned, lanes);
        gemm(qkv + to_k, n, 1, turned, lanes, gqkv + at, n, d, len, lanes);
    });
}

// u (rows of mlp_in, lanes) to the hidden units; if they are wanted, u becomes the factors by which gradients of the
// hidden units turn into gradients of u.
template <class T> static void activate(const Shape& s, T* u, T* hidden, int lanes, bool slopes) {
    typedef typename Simd<T>::V V;
    const int64_t n = s.hidden * lanes;
    for (int64_t i = 0; i < n; i += width<T>()) {
        V value, slope;
        if (s.gated) {
            const V factor = load(u + n + i);
            swish<T>(load(u + i), value, slope);
            store(hidden + i, value * factor);
            if (slopes) store(u + i, slope * factor), store(u + n + i, value);
        } else {
            gelu<T>(load(u + i), value, slope);
            store(hidden + i, value);
            if (slopes) store(u + i, slope);
        }
    }
}

template <class T> static int64_t kept_of_sample(const Shape& s) {
    const int64_t lanes = vectors<T>((int)s.tokens);
    return lanes * (s.depth * (Kept<T>::rows(s) + s.heads * lanes) + s.width + 1);
}

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

// body(tile, memory of what is kept) for all tiles; backwards for what was kept last, which still is in the cache.
template <class T, class F>
static void for_tiles(const Shape& s, const bool* mask, T* kept, bool backwards, int threads, F body) {
    std::vector<int64_t> first;  // samples of the tiles
    const int64_t most = std::min<int64_t>(TILE, s.batch * s.tokens / threads);
    for (int64_t b = 0, filled = most; b < s.batch; ++b) {
        const int64_t tokens = mask ? std::count(mask + b * s.tokens, mask + (b + 1) * s.tokens, true) : s.tokens;
        if (filled + tokens > most) first.push_back(b), filled = 0;
        filled += tokens;
    }
    first.push_back(s.batch);
    const int64_t tiles = (int64_t)first.size() - 1, memory = kept_of_sample<T>(s);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        Tile<T> tile;
#pragma omp for schedule(static)
        for (int64_t k = 0; k < tiles; ++k) {
            const int64_t i = backwards ? tiles - 1 - k : k;
            tile.set(s, mask, first[i], first[i + 1]);
            body(tile, kept ? kept + first[i] * memory : kept);
        }
    }
}

// Sums of gradients of each thread, and of one more number.
template <class T> struct Sums {
    int threads;
    size_t size;
    T* memory;

    Sums(const Network<T>& net, int threads) : threads(threads), size((net.size + 1 + 15) / 16 * 16) {
        memory = scratch<T, 1>(size * threads);
        std::fill_n(memory, size * threads, (T)0);
    }
    T* own() const { return memory + thread_number() * size; }
    // Adds the totals to the gradients of each parameter; returns that of the last number.
    T finish(const Network<T>& net, T* const* gradients) const {
        net.for_each([&](const auto& map) { map.finish(memory, threads, size, gradients); });
        return sum_of(memory + net.size, threads, size);
    }
};

template <class T> static size_t tile_lanes(const Shape& s) {
    return std::max<size_t>(TILE + width<T>(), vectors<T>((int)s.tokens));
}

template <class T> static void transformer_plan(const T*, Shape* s, int) {
    s->kept = s->batch * kept_of_sample<T>(*s);
}

// A tile of x (B, T, in) to predictions, (out, lanes), in memory of this thread. kept: memory for the backward pass, or
// null.
template <class T> static T* predict(const Network<T>& net, const Tile<T>& tile, const T* x, T* kept) {
    const Shape& s = net.s;
    const int n = tile.lanes;
    const int64_t ends_rows = std::max({s.in, s.out, s.tokens});  // or the scores of a head
    T* stream = scratch<T, 0>((2 * s.width + ends_rows + (kept ? 0 : Kept<T>::rows(s))) * tile_lanes<T>(s));
    T *normed = stream + s.width * n, *ends = normed + s.width * n, *reused = ends + ends_rows * n;
    tile.gather(s, x, (int)s.in, ends);
    net.embed.forward(ends, stream, n);
    T* memory = kept;
    for (const Block<T>& b : net.blocks) {
        if (!kept) memory = reused;
        const Kept<T> k(b, s, tile, memory, kept);
        b.attention_norm.forward(stream, k.attention_normed, k.attention_factor, n);
        b.attention_norm.affine(k.attention_normed, normed, n);
        b.qkv.forward(normed, k.qkv, n);
        attend(s, tile, k.qkv, k.attended, k.p, ends, kept);
        b.out.forward(k.attended, stream, n, true);
        b.mlp_norm.forward(stream, k.mlp_normed, k.mlp_factor, n);
        b.mlp_norm.affine(k.mlp_normed, normed, n);
        b.mlp_in.forward(normed, k.slopes, n);
        activate(s, k.slopes, k.hidden, n, kept);
        b.mlp_out.forward(k.hidden, stream, n, true);
    }
    T* last = kept ? memory : reused;
    net.norm.forward(stream, last, last + s.width * n, n);
    net.norm.affine(last, normed, n);
    net.readout.forward(normed, ends, n);
    return ends;
}

// From what predict() kept of a tile: adds the gradients of the parameters to sums and writes gx (B, T, in), if it is
// not null. fill(g) writes the gradient of the predictions, (out, lanes).
template <class T, class F>
static void differentiate(const Network<T>& net, const Tile<T>& tile, const T* x, T* gx, T* kept, T* sums, F fill) {
    const Shape& s = net.s;
    const int n = tile.lanes, d = (int)s.width;
    const int64_t units = s.hidden * (s.gated ? 2 : 1), qkv = s.width + 2 * s.kv_heads * (s.width / s.heads);
    const int64_t turned_rows = vectors<T>((int)std::max({s.in, s.out, units, qkv})), wide_rows = std::max({s.in, s.out, units, qkv});
    const size_t rows = 2 * d + turned_rows + wide_rows + 2 * vectors<T>((int)s.tokens) + 1;
    T *g = scratch<T, 2>(rows * tile_lanes<T>(s)), *gnormed = g + d * n, *turned = gnormed + d * n;
    T *wide = turned + turned_rows * n, *work = wide + wide_rows * n;
    std::vector<Kept<T>> blocks;
    for (const Block<T>& b : net.blocks) blocks.emplace_back(b, s, tile, kept);

    fill(wide);
    net.norm.affine(kept, gnormed, n);
    net.readout.weight_gradient(gnormed, wide, n, sums, turned);
    net.readout.input_gradient(wide, gnormed, n);
    net.norm.gradient(kept, kept + d * n, gnormed, g, n, sums, false);
    for (int i = (int)s.depth - 1; i >= 0; --i) {
        const Block<T>& b = net.blocks[i];
        const Kept<T>& k = blocks[i];
        b.mlp_out.weight_gradient(k.hidden, g, n, sums, turned);
        b.mlp_out.input_gradient(g, wide, n);
        for (int64_t half = s.gated; half >= 0; --half)
            for (int64_t j = 0; j < s.hidden * n; j += width<T>()) {
                const int64_t to = half * s.hidden * n + j;
                store(wide + to, load(wide + j) * load(k.slopes + to));
            }
        b.mlp_norm.affine(k.mlp_normed, gnormed, n);
        b.mlp_in.weight_gradient(gnormed, wide, n, sums, turned);
        b.mlp_in.input_gradient(wide, gnormed, n);
        b.mlp_norm.gradient(k.mlp_normed, k.mlp_factor, gnormed, g, n, sums, true);

        b.out.weight_gradient(k.attended, g, n, sums, turned);
        b.out.input_gradient(g, gnormed, n);
        attend_gradient(s, tile, k.qkv, k.attended, k.p, gnormed, wide, work);
        b.attention_norm.affine(k.attention_normed, gnormed, n);
        b.qkv.weight_gradient(gnormed, wide, n, sums, turned);
        b.qkv.input_gradient(wide, gnormed, n);
        b.attention_norm.gradient(k.attention_normed, k.attention_factor, gnormed, g, n, sums, true);
    }
    tile.gather(s, x, (int)s.in, wide);
    net.embed.weight_gradient(wide, g, n, sums, turned);
    if (gx) {
        net.embed.input_gradient(g, wide, n);
        tile.scatter(s, wide, (int)s.in, gx);
    }
}

// x (B, T, in) to y (B, T, out), zeros on entry. kept: memory for the backward pass, or null.
template <class T>
static void transformer(const T* x, T* y, T* kept, const bool* mask, const Shape* shape, const T* const* parameters,
                        int threads) {
    const Network<T> net(*shape, parameters);
    for_tiles(*shape, mask, kept, false, threads, [&](const Tile<T>& tile, T* memory) {
        tile.scatter(*shape, predict(net, tile, x, memory), (int)shape->out, y);
    });
}

// gy (B, T, out) to gx (B, T, in; zeros on entry, or null) and the gradients of all parameters, added to what is there.
template <class T>
static void transformer_gradient(const T* x, const T* gy, T* gx, T* const* gradients, T* kept, const bool* mask,
                                 const Shape* shape, const T* const* parameters, int threads) {
    const Network<T> net(*shape, parameters);
    const Sums<T> sums(net, threads);
    for_tiles(*shape, mask, kept, true, threads, [&](const Tile<T>& tile, T* memory) {
        differentiate(net, tile, x, gx, memory, sums.own(),
                      [&](T* g) { tile.gather(*shape, gy, (int)shape->out, g); });
    });
    sums.finish(net, gradients);
}

// The sum over tokens of weights (B, T) times squared distances of the predictions from the target (B, T, out), times
// `scale`, and its gradients, added to those of the parameters. A tile goes forward and back before the next one: it
// never leaves the cache.
template <class T>
static void transformer_loss(const T* x, const T* target, const T* weights, T scale, T* loss,
                             T* const* gradients, const bool* mask, const Shape* shape, const T* const* parameters,
                             int threads) {
    const Shape& s = *shape;
    const Network<T> net(s, parameters);
    const Sums<T> sums(net, threads);
    for_tiles(s, mask, (T*)nullptr, false, threads, [&](const Tile<T>& tile, T*) {
        T* const kept = scratch<T, 3>(tile.samples.size() * kept_of_sample<T>(s));
        const T* const y = predict(net, tile, x, kept);
        T total = 0;
        differentiate(net, tile, x, (T*)nullptr, kept, sums.own(), [&](T* g) {
            std::fill_n(g, s.out * tile.lanes, (T)0);
            tile.each_token(s, [&](int64_t token, int lane) {
                const T weight = weights[token] * scale;
                for (int k = 0; k < s.out; ++k) {
                    const T error = y[k * tile.lanes + lane] - target[token * s.out + k];
                    total += weight * error * error;
                    g[k * tile.lanes + lane] = 2 * weight * error;
                }
            });
        });
        sums.own()[net.size] += total;
    });
    *loss = sums.finish(net, gradients);
}

extern "C" {
EXPORT(transformer_plan)
EXPORT(transformer)
EXPORT(transformer_gradient)
EXPORT(transformer_loss)
}
