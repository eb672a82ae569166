// The plain transformer on a CPU: the whole network, forward and backward, over tiles that stay in the cache.
#include "tiles.h"

namespace {

struct Shape {  // see eqscale.native.transformer
    int64_t batch, tokens, in, out, width, depth, heads, kv_heads, hidden;
    int64_t gated, centred;  // hidden units gated by swish rather than GELU; LayerNorm rather than RMSNorm
    int64_t point;  // numbers of a token, behind `in`, that are where it is: 3, or 0 without a bias by distance
    int64_t frame;  // then those of the axes of its frame, as rows: 9, or 0 without frames
    int64_t vectors, head_vectors, turned_out;  // in frames: among the inputs, in a head, whether a prediction is one
    const int64_t* columns;                     // of the vectors among the inputs, the first of three
    int64_t kept;  // filled in by transformer_plan(): numbers kept for the backward pass

    int64_t row() const { return in + point + frame; }
};

const double NORM_EPS = 1e-5;

// LayerNorm, or RMSNorm without a shift. Keeps the normalised rows and the factor of each token.
template <class T> struct Norm {
    int n;
    const T *scale, *shift;
    size_t at;

    bool centred;

    size_t sums() const { return (size_t)arrays() * n * width<T>(); }

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
    void finish(const Sums<T>& sums, T* of_scale, T* of_shift) const {
        sums.add_lanes_to(of_scale, n, at);
        if (centred) sums.add_lanes_to(of_shift, n, at + n * width<T>());
    }
    int arrays() const { return centred ? 2 : 1; }
};

// The frames of a tile's tokens, (9, lanes), and with `gradient` that of the loss with respect to them.
template <class T> struct InFrames {
    typedef typename Simd<T>::V V;
    const Shape& s;
    int n;
    T *axes, *gradient;

    InFrames(const Shape& s, const Tile<T>& tile, const T* x, T* memory)
        : s(s), n(tile.lanes), axes(memory), gradient(memory + s.frame * n) {
        if (s.frame) tile.gather(x + s.in + s.point, (int)s.frame, axes, s.row());
    }
    static int64_t rows(const Shape& s) { return 2 * s.frame; }  // with a gradient
    void clear() const { std::fill_n(gradient, s.frame * n, (T)0); }

    // body(a vector's rows, x, y and z), of all among the inputs, the heads' `channels`, or the predictions
    template <class F> void each_input(T* x, F body) const {
        for (int64_t i = 0; i < s.vectors; ++i) body(x + s.columns[i] * n);
    }
    template <class F> void each_of_heads(T* x, int64_t channels, F body) const {
        const int64_t d = s.width / s.heads;
        for (int64_t first = 0; first < channels; first += d)
            for (int64_t i = 0; i < s.head_vectors; ++i) body(x + (first + 3 * i) * n);
    }
    template <class F> void each_prediction(T* y, F body) const {
        if (s.turned_out) body(y);
    }
    // A vector into its token's frame, or out of it into the common one.
    void into(T* v) const { turn(v, 3, 1); }
    void out_of(T* v) const { turn(v, 1, 3); }
    void turn(T* v, int64_t row, int64_t column) const {
        for (int l = 0; l < n; l += width<T>()) {
            const V x = load(v + l), y = load(v + n + l), z = load(v + 2 * n + l);
            const auto component = [&](int64_t i) {
                const T* a = axes + i * row * n + l;
                return load(a) * x + load(a + column * n) * y + load(a + 2 * column * n) * z;
            };
            const V first = component(0), second = component(1), third = component(2);
            store(v + l, first), store(v + n + l, second), store(v + 2 * n + l, third);
        }
    }
    // The gradient gains what comes of a vector's: the same in the frame and in the common one, one of them its own, the
    // other its gradient.
    void add(const T* in_frame, const T* common) const {
        for (int l = 0; l < n; l += width<T>())
            for (int a = 0; a < 3; ++a)
                for (int c = 0; c < 3; ++c) {
                    T* to = gradient + (3 * a + c) * n + l;
                    store(to, load(to) + load(in_frame + a * n + l) * load(common + c * n + l));
                }
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
    Distances<T> distances{};
    Linear<T> embed;
    std::vector<Block<T>> blocks;
    Norm<T> norm;
    Linear<T> readout;

    Network(const Shape& s, const T* const* parameters) : s(s), next(parameters) {
        const int d = (int)s.width, kv = (int)(s.kv_heads * (d / s.heads)), hidden = (int)s.hidden;
        if (s.point) distances = {(int)s.depth, (int)s.heads, *next++, 0}, size = distances.sums();
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
        if (s.point) body(distances);
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

// u (rows of mlp_in, lanes) to the hidden units; if they are wanted, u becomes the factors by which gradients of the
// hidden units turn into gradients of u.
template <class T> void activate(const Shape& s, T* u, T* hidden, int lanes, bool slopes) {
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

template <class T> int64_t kept_of_sample(const Shape& s) {
    const int64_t lanes = vectors<T>((int)s.tokens);
    return lanes * (s.depth * (Kept<T>::rows(s) + s.heads * lanes) + s.width + 1);
}

// Those of a batch; null without a bias by distance.
template <class T> const T* bells_of(const Shape& s, const Tile<T>& tile, const T* x) {
    return s.point ? bells_of(tile, x + s.in, s.row()) : nullptr;
}

// body(sample, head, first row of its key and value head, probabilities (queries, keys), bells or null) for all heads.
template <class T, class F> void for_heads(const Shape& s, const Tile<T>& tile, T* p, const T* bells, F body) {
    const int d = (int)(s.width / s.heads);
    for (const auto& x : tile.samples) {
        const int pairs = x.lanes * x.lanes;
        for (int h = 0; h < s.heads; ++h, p += pairs) body(x, h, s.kv_heads > 1 ? h * d : 0, p, bells);
        if (bells) bells += BELLS * pairs;
    }
}

template <class T>
void attend(const Network<T>& net, int block, const Tile<T>& tile, const T* bells, const T* qkv, T* out, T* p, T* scores,
            bool keep) {
    const Shape& s = net.s;
    const int n = tile.lanes, d = (int)(s.width / s.heads);
    tile.clear_end(out, (int)s.width);
    for_heads(s, tile, p, bells, [&](const auto& x, int h, int kv, T* p, const T* bells) {
        const T *q = qkv + h * d * n + x.first, *k = qkv + (s.width + kv) * n + x.first, *v = k + s.kv_heads * d * n;
        attend_head(q, k, v, d, (int)x.tokens.size(), x.lanes, n, scores, out + h * d * n + x.first, keep ? p : nullptr,
                    net.distances.of_head(bells, block, h));
    });
}

// Gradients of out (heads d, lanes) to those of qkv and, in sums, of the bias.
template <class T>
void attend_gradient(const Network<T>& net, int block, const Tile<T>& tile, const T* bells, const T* qkv, const T* out,
                     T* p, const T* gout, T* gqkv, T* sums, T* work) {
    const Shape& s = net.s;
    const int n = tile.lanes, d = (int)(s.width / s.heads);
    tile.clear_end(gqkv, (int)(s.width + 2 * s.kv_heads * d));
    for_heads(s, tile, p, bells, [&](const auto& x, int h, int kv, const T* p, const T* bells) {
        const int64_t at = h * d * n + x.first, to_k = (s.width + kv) * n + x.first, to_v = to_k + s.kv_heads * d * n;
        attend_head_gradient(qkv + at, qkv + to_k, qkv + to_v, out + at, p, gout + at, d, (int)x.tokens.size(), x.lanes,
                             n, gqkv + at, gqkv + to_k, gqkv + to_v, h > 0 && s.kv_heads == 1, work,
                             net.distances.of_head(bells, block, h, sums));
    });
}

// What attention put out, which is in the common frame, in those of its tokens; a copy if that is another.
template <class T> const T* seen_by_out(const InFrames<T>& frames, const T* attended, T* copy) {
    const Shape& s = frames.s;
    if (!s.head_vectors) return attended;
    std::copy_n(attended, s.width * frames.n, copy);
    frames.each_of_heads(copy, s.width, [&](T* v) { frames.into(v); });
    return copy;
}

template <class T> void transformer_plan(const T*, Shape* s, int) {
    s->kept = s->batch * kept_of_sample<T>(*s);
}

// A tile of x (B, T, in + point + frame) to predictions, (out, lanes), in memory of this thread. kept: memory for the backward
// pass, or null.
template <class T> T* predict(const Network<T>& net, const Tile<T>& tile, const T* x, const T* bells, T* kept) {
    const Shape& s = net.s;
    const int n = tile.lanes;
    const int64_t ends_rows = std::max({s.in, s.out, s.tokens});  // or the scores of a head
    T* stream = scratch<T, 0>((2 * s.width + ends_rows + InFrames<T>::rows(s) + (kept ? 0 : Kept<T>::rows(s))) *
                              tile_lanes<T>(s.tokens));
    T *normed = stream + s.width * n, *ends = normed + s.width * n, *axes = ends + ends_rows * n;
    T* const reused = axes + InFrames<T>::rows(s) * n;
    const InFrames<T> frames(s, tile, x, axes);
    const auto into = [&](T* v) { frames.into(v); };
    const auto out_of = [&](T* v) { frames.out_of(v); };
    tile.gather(x, (int)s.in, ends, s.row());
    frames.each_input(ends, into);
    net.embed.forward(ends, stream, n);
    T* memory = kept;
    for (int i = 0; i < s.depth; ++i) {
        const Block<T>& b = net.blocks[i];
        if (!kept) memory = reused;
        const Kept<T> k(b, s, tile, memory, kept);
        b.attention_norm.forward(stream, k.attention_normed, k.attention_factor, n);
        b.attention_norm.affine(k.attention_normed, normed, n);
        b.qkv.forward(normed, k.qkv, n);
        frames.each_of_heads(k.qkv, b.qkv.out, out_of);
        attend(net, i, tile, bells, k.qkv, k.attended, k.p, ends, kept);
        b.out.forward(seen_by_out(frames, k.attended, normed), stream, n, true);
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
    frames.each_prediction(ends, out_of);
    return ends;
}

// From what predict() kept of a tile: adds the gradients of the parameters to sums and writes gx (B, T, in + point +
// frame), if it is not null; points have none. fill(g) writes the gradient of the predictions, (out, lanes).
template <class T, class F>
void differentiate(const Network<T>& net, const Tile<T>& tile, const T* x, const T* bells, T* gx, T* kept, T* sums,
                   F fill) {
    const Shape& s = net.s;
    const int n = tile.lanes, d = (int)s.width;
    const int64_t units = s.hidden * (s.gated ? 2 : 1), qkv = s.width + 2 * s.kv_heads * (s.width / s.heads);
    const int64_t wide_rows = std::max({s.in, s.out, units, qkv}), turned_rows = vectors<T>((int)wide_rows);
    const size_t rows = 2 * d + turned_rows + wide_rows + InFrames<T>::rows(s);
    const size_t work_numbers = attention_work(vectors<T>((int)s.tokens));
    T *g = scratch<T, 2>(rows * tile_lanes<T>(s.tokens) + work_numbers), *gnormed = g + d * n, *turned = gnormed + d * n;
    T *wide = turned + turned_rows * n, *axes = wide + wide_rows * n, *work = axes + InFrames<T>::rows(s) * n;
    const InFrames<T> frames(s, tile, x, axes);
    // Gradients of vectors that went out of a frame, or into one, to those before; seen: the vectors, in the common one.
    const auto back_into = [&](T* g, const T* in_frame) { frames.add(in_frame, g), frames.into(g); };
    const auto back_out_of = [&](T* g, const T* seen) { frames.add(g, seen), frames.out_of(g); };
    frames.clear();
    std::vector<Kept<T>> blocks;
    for (const Block<T>& b : net.blocks) blocks.emplace_back(b, s, tile, kept);

    fill(wide);
    net.norm.affine(kept, gnormed, n);
    frames.each_prediction(wide, [&](T* g) { net.readout.forward(gnormed, turned, n), back_into(g, turned); });
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

        b.out.weight_gradient(seen_by_out(frames, k.attended, gnormed), g, n, sums, turned);
        b.out.input_gradient(g, gnormed, n);
        frames.each_of_heads(gnormed, d, [&](T* v) { back_out_of(v, k.attended + (v - gnormed)); });
        attend_gradient(net, i, tile, bells, k.qkv, k.attended, k.p, gnormed, wide, sums, work);
        frames.each_of_heads(wide, qkv, [&](T* v) {
            std::copy_n(k.qkv + (v - wide), 3 * n, turned);
            frames.into(turned), back_into(v, turned);
        });
        b.attention_norm.affine(k.attention_normed, gnormed, n);
        b.qkv.weight_gradient(gnormed, wide, n, sums, turned);
        b.qkv.input_gradient(wide, gnormed, n);
        b.attention_norm.gradient(k.attention_normed, k.attention_factor, gnormed, g, n, sums, true);
    }
    tile.gather(x, (int)s.in, wide, s.row());
    frames.each_input(wide, [&](T* v) { frames.into(v); });
    net.embed.weight_gradient(wide, g, n, sums, turned);
    if (gx) {
        net.embed.input_gradient(g, wide, n);
        tile.gather(x, (int)s.in, turned, s.row());
        frames.each_input(wide, [&](T* v) { back_out_of(v, turned + (v - wide)); });
        tile.scatter(wide, (int)s.in, gx, s.row());
        if (s.frame) tile.scatter(frames.gradient, (int)s.frame, gx + s.in + s.point, s.row());
    }
}

// Adds the totals of the sums to the gradients of each parameter.
template <class T> void finish(const Network<T>& net, const Sums<T>& sums, T* const* gradients) {
    net.for_each([&](const auto& map) {
        map.finish(sums, gradients[0], gradients[map.arrays() - 1]);
        gradients += map.arrays();
    });
}

// x (B, T, in + point + frame) to y (B, T, out), zeros on entry. kept: memory for the backward pass, or null.
template <class T>
void transformer(const T* x, T* y, T* kept, const bool* mask, const Shape* shape, const T* const* parameters,
                 int threads) {
    const Shape& s = *shape;
    const Network<T> net(s, parameters);
    for_tiles(s.batch, s.tokens, mask, kept, kept_of_sample<T>(s), false, threads,
              [&](const Tile<T>& tile, T* memory) {
                  tile.scatter(predict(net, tile, x, bells_of(s, tile, x), memory), (int)s.out, y);
              });
}

// gy (B, T, out) to gx (B, T, in + point + frame; zeros on entry, or null) and the gradients of all parameters, added to
// what is there.
template <class T>
void transformer_gradient(const T* x, const T* gy, T* gx, T* const* gradients, T* kept, const bool* mask,
                          const Shape* shape, const T* const* parameters, int threads) {
    const Shape& s = *shape;
    const Network<T> net(s, parameters);
    const Sums<T> sums(net.size, threads);
    for_tiles(s.batch, s.tokens, mask, kept, kept_of_sample<T>(s), true, threads,
              [&](const Tile<T>& tile, T* memory) {
                  differentiate(net, tile, x, bells_of(s, tile, x), gx, memory, sums.own(),
                                [&](T* g) { tile.gather(gy, (int)s.out, g); });
              });
    finish(net, sums, gradients);
}

// The sum over tokens of weights (B, T) times squared distances of the predictions from the target (B, T, out), times
// `scale`, and its gradients: of x (zeros on entry, or null), and, added to what is there, of the parameters.
// A tile goes forward and back before the next one: it never leaves the cache.
template <class T>
void transformer_loss(const T* x, const T* target, const T* weights, T scale, T* loss, T* gx, T* const* gradients,
                      const bool* mask, const Shape* shape, const T* const* parameters, int threads) {
    const Shape& s = *shape;
    const Network<T> net(s, parameters);
    const Sums<T> sums(net.size + 1, threads);  // the last one is the loss
    for_tiles(s.batch, s.tokens, mask, (T*)nullptr, 0, false, threads, [&](const Tile<T>& tile, T*) {
        T* const kept = scratch<T, 3>(tile.samples.size() * kept_of_sample<T>(s));
        const T *const bells = bells_of(s, tile, x), *const y = predict(net, tile, x, bells, kept);
        differentiate(net, tile, x, bells, gx, kept, sums.own(), [&](T* g) {
            sums.own()[net.size] += squared_error(tile, y, target, weights, scale, s.out, g);
        });
    });
    finish(net, sums, gradients);
    *loss = sums.total(net.size);
}

}  // namespace

extern "C" {
EXPORT(transformer_plan)
EXPORT(transformer)
EXPORT(transformer_gradient)
EXPORT(transformer_loss)
}
