// Slim GATr on a CPU: the whole network, forward and backward, over tiles that stay in the cache.
//
// The rows of an activation are first the scalars, then x, y and z of every true vector, then of every pseudovector. So
// a map of vectors is a product with three times the lanes.
#include "tiles.h"

namespace {

struct Shape {  // see eqscale.native.slim
    int64_t batch, tokens, in[3], out[3], scalars, vectors, blocks, heads, head[3];
    int64_t point;  // last numbers of a token, beside `in`, that are where it is: 3, or 0 without a bias by distance
    int64_t kept;  // filled in by slim_plan(): numbers kept for the backward pass
};

const double SCALAR_EPS = 1e-5, NORM_EPS = 0.01;

struct Channels {
    int scalars, true_, pseudo;
    int vectors() const { return true_ + pseudo; }
    int rows() const { return scalars + 3 * vectors(); }
};

// A map of each type. Parameters: weights of scalars, true vectors and pseudovectors, and the scalars' bias.
template <class T> struct TypedLinear {
    Channels in, out;
    Linear<T> maps[3];

    void forward(const T* x, T* y, int n, bool add = false) const {
        maps[0].forward(x, y, n, add);
        x += in.scalars * n, y += out.scalars * n;
        maps[1].forward(x, y, 3 * n, add);
        maps[2].forward(x + 3 * in.true_ * n, y + 3 * out.true_ * n, 3 * n, add);
    }
    void backward(const T* x, const T* g, T* gx, int n, T* sums, T* turned) const {
        const int ins[] = {in.scalars, 3 * in.true_, 3 * in.pseudo}, outs[] = {out.scalars, 3 * out.true_, 0};
        for (int i = 0; i < 3; ++i) {
            const int lanes = i ? 3 * n : n;
            if (gx) maps[i].input_gradient(g, gx, lanes);
            maps[i].weight_gradient(x, g, lanes, sums, turned);
            x += ins[i] * n, g += outs[i] * n;
            if (gx) gx += ins[i] * n;
        }
    }
    void finish(const Sums<T>& sums, T* const*& gradients) const {
        for (int i = 0; i < 3; ++i) maps[i].finish(sums, gradients[i], gradients[3]);
        gradients += 4;
    }
};

template <class T> struct Block {
    TypedLinear<T> to_qkv, from_heads, to_factors, from_products;
};

template <class T> struct Network {
    const T* const* next;
    size_t size = 0;  // of all sums of gradients
    int widest = 0;   // rows of the widest activation
    int turned = 0;   // rows of the widest transposed side of a map
    Channels stream, head, heads, factors, products;
    Distances<T> distances{};
    TypedLinear<T> embed, read_out;
    std::vector<Block<T>> blocks;

    Network(const Shape& s, const T* const* parameters) : next(parameters) {
        const int S = (int)s.scalars, C = (int)s.vectors, H = (int)s.heads;
        stream = {S, C, C}, head = {(int)s.head[0], (int)s.head[1], (int)s.head[2]};
        heads = of_heads(H), factors = {2 * S + 2 * C, 2 * C, 2 * C}, products = {2 * S + 2 * C, 3 * C, 3 * C};
        if (s.point) distances = {(int)s.blocks, H, *next++, 0}, size = distances.sums();
        embed = linear({(int)s.in[0], (int)s.in[1], (int)s.in[2]}, stream);
        for (int i = 0; i < s.blocks; ++i) {
            Block<T> b;
            b.to_qkv = linear(stream, of_heads(H + 2)), b.from_heads = linear(heads, stream);
            b.to_factors = linear(stream, factors), b.from_products = linear(products, stream);
            blocks.push_back(b);
        }
        read_out = linear(stream, {(int)s.out[0], (int)s.out[1], (int)s.out[2]});
    }
    Channels of_heads(int n) const { return {n * head.scalars, n * head.true_, n * head.pseudo}; }
    TypedLinear<T> linear(Channels in, Channels out) {
        TypedLinear<T> x{in, out, {}};
        const int ins[] = {in.scalars, in.true_, in.pseudo}, outs[] = {out.scalars, out.true_, out.pseudo};
        for (int i = 0; i < 3; ++i) {
            x.maps[i] = {ins[i], outs[i], next[i], i ? nullptr : next[3], size};
            size += x.maps[i].sums(), turned = std::max(turned, x.maps[i].stride());
        }
        next += 4, widest = std::max({widest, in.rows(), out.rows()});
        return x;
    }
    // Adds the totals of the sums to the gradients of each parameter.
    void finish(const Sums<T>& sums, T* const* gradients) const {
        if (distances.blocks) distances.finish(sums, *gradients++, nullptr);
        embed.finish(sums, gradients);
        for (const Block<T>& b : blocks)
            for (const auto* map : {&b.to_qkv, &b.from_heads, &b.to_factors, &b.from_products})
                map->finish(sums, gradients);
        read_out.finish(sums, gradients);
    }
};

// Of a norm, the backward pass needs its output y, and of each lane the factors of scalars and vectors, and what the
// gradient along the vectors is taken times: 1 / vectors, or 0 where their mean square is at its least.
template <class T> void norm(Channels c, const T* x, T* y, T* factors, int n) {
    typedef typename Simd<T>::V V;
    constexpr int W = width<T>();
    const int S = c.scalars, R = c.rows();
    for (int l = 0; l < n; l += W) {
        V mean = V{}, variance = V{}, square = V{};
        for (int k = 0; k < S; ++k) mean += load(x + k * n + l);
        mean /= (T)S;
        for (int k = 0; k < S; ++k) {
            const V d = load(x + k * n + l) - mean;
            variance += d * d;
        }
        for (int k = S; k < R; ++k) square += load(x + k * n + l) * load(x + k * n + l);
        T f[3][W];
        store(f[0], variance / (T)S + (T)SCALAR_EPS), store(f[1], square / (T)c.vectors());
        for (int i = 0; i < W; ++i) {
            f[2][i] = f[1][i] < (T)NORM_EPS ? 0 : 1 / (T)c.vectors();
            f[0][i] = 1 / std::sqrt(f[0][i]), f[1][i] = 1 / std::sqrt(std::max(f[1][i], (T)NORM_EPS));
        }
        for (int i = 0; i < 3; ++i) store(factors + i * n + l, load(f[i]));
        const V of_scalars = load(f[0]), of_vectors = load(f[1]);
        for (int k = 0; k < S; ++k) store(y + k * n + l, (load(x + k * n + l) - mean) * of_scalars);
        for (int k = S; k < R; ++k) store(y + k * n + l, load(x + k * n + l) * of_vectors);
    }
}

// gx gains, or is, the gradient of x; g is that of y.
template <class T> void norm_gradient(Channels c, const T* y, const T* factors, const T* g, T* gx, int n, bool add) {
    typedef typename Simd<T>::V V;
    const int S = c.scalars, R = c.rows();
    for (int l = 0; l < n; l += width<T>()) {
        V mean = V{}, dot = V{}, along = V{};
        for (int k = 0; k < S; ++k) mean += load(g + k * n + l), dot += load(g + k * n + l) * load(y + k * n + l);
        for (int k = S; k < R; ++k) along += load(g + k * n + l) * load(y + k * n + l);
        mean /= (T)S, dot /= (T)S, along *= load(factors + 2 * n + l);
        const V of_scalars = load(factors + l), of_vectors = load(factors + n + l);
        for (int k = 0; k < R; ++k) {
            const V back = k < S ? mean + load(y + k * n + l) * dot : load(y + k * n + l) * along;
            const V d = (load(g + k * n + l) - back) * (k < S ? of_scalars : of_vectors);
            store(gx + k * n + l, add ? load(gx + k * n + l) + d : d);
        }
    }
}

// What a block keeps of a tile for the backward pass.
template <class T> struct Kept {
    T *attention_normed, *attention_factors, *qkv, *p, *attended, *mlp_normed, *mlp_factors, *factors, *gates, *products;

    static int64_t rows(const Network<T>& net, const Shape& s) {  // a lane, for samples of all tokens
        const Channels qkv = net.of_heads((int)s.heads + 2);
        return 2 * (net.stream.rows() + 3) + qkv.rows() + s.heads * vectors<T>((int)s.tokens) + net.heads.rows() +
               net.factors.rows() + 2 * s.vectors + net.products.rows();
    }
    Kept(const Network<T>& net, const Shape& s, const Tile<T>& tile, T*& memory, bool keep = true) {
        const int64_t n = tile.lanes;
        const auto take = [&](int64_t rows) { return std::exchange(memory, memory + rows * n); };
        attention_normed = take(net.stream.rows()), attention_factors = take(3);
        qkv = take(net.of_heads((int)s.heads + 2).rows());
        p = memory;
        if (keep)
            for (const auto& x : tile.samples) memory += s.heads * (int64_t)x.lanes * x.lanes;
        attended = take(net.heads.rows()), mlp_normed = take(net.stream.rows()), mlp_factors = take(3);
        factors = take(net.factors.rows()), gates = take(2 * s.vectors), products = take(net.products.rows());
    }
};

// Rows of one of several heads between an activation, whose types come one after the other for all heads, and one of its
// own; first: the sample's first lane. Into `own` where `pack`, else back.
template <class T>
void head_rows(Channels head, int of, int heads, T* x, int n, int first, T* own, int lanes, bool pack) {
    const int counts[] = {head.scalars, 3 * head.true_, 3 * head.pseudo};
    T* base = x + first;
    for (int count : counts) {
        T* from = base + (int64_t)of * count * n;
        for (int k = 0; k < count; ++k, from += n, own += lanes)
            for (int l = 0; l < lanes; l += width<T>())
                if (pack)
                    store(own + l, load(from + l));
                else
                    store(from + l, load(own + l));
        base += (int64_t)heads * count * n;
    }
}

template <class T>
void attend(const Network<T>& net, const Shape& s, int block, const Tile<T>& tile, const T* bells, T* qkv, T* out, T* p,
            T* work, bool keep) {
    const int n = tile.lanes, H = (int)s.heads, F = net.head.rows();
    tile.clear_end(out, net.heads.rows());
    for (const auto& x : tile.samples) {
        const int lanes = x.lanes;
        T *k = work, *v = k + F * lanes, *q = v + F * lanes, *y = q + F * lanes, *scores = y + F * lanes;
        head_rows(net.head, H, H + 2, qkv, n, x.first, k, lanes, true);
        head_rows(net.head, H + 1, H + 2, qkv, n, x.first, v, lanes, true);
        for (int h = 0; h < H; ++h, p += lanes * lanes) {
            head_rows(net.head, h, H + 2, qkv, n, x.first, q, lanes, true);
            attend_head(q, k, v, F, (int)x.tokens.size(), lanes, lanes, scores, y, keep ? p : nullptr,
                        net.distances.of_head(bells, block, h));
            head_rows(net.head, h, H, out, n, x.first, y, lanes, false);
        }
        if (bells) bells += BELLS * lanes * lanes;
    }
}

// Gradients of the attended values to those of qkv and, in sums, of the bias.
template <class T>
void attend_gradient(const Network<T>& net, const Shape& s, int block, const Tile<T>& tile, const T* bells, T* qkv,
                     T* out, const T* p, T* gout, T* gqkv, T* sums, T* work) {
    const int n = tile.lanes, H = (int)s.heads, F = net.head.rows();
    tile.clear_end(gqkv, net.of_heads(H + 2).rows());
    for (const auto& x : tile.samples) {
        const int lanes = x.lanes;
        T* next = work;
        const auto take = [&]() { return std::exchange(next, next + F * lanes); };
        T *k = take(), *v = take(), *gk = take(), *gv = take(), *q = take(), *gq = take(), *y = take(), *g = take();
        head_rows(net.head, H, H + 2, qkv, n, x.first, k, lanes, true);
        head_rows(net.head, H + 1, H + 2, qkv, n, x.first, v, lanes, true);
        for (int h = 0; h < H; ++h, p += lanes * lanes) {
            head_rows(net.head, h, H + 2, qkv, n, x.first, q, lanes, true);
            head_rows(net.head, h, H, out, n, x.first, y, lanes, true);
            head_rows(net.head, h, H, gout, n, x.first, g, lanes, true);
            attend_head_gradient(q, k, v, y, p, g, F, (int)x.tokens.size(), lanes, lanes, gq, gk, gv, h > 0, next,
                                 net.distances.of_head(bells, block, h, sums));
            head_rows(net.head, h, H + 2, gqkv, n, x.first, gq, lanes, false);
        }
        head_rows(net.head, H, H + 2, gqkv, n, x.first, gk, lanes, false);
        head_rows(net.head, H + 1, H + 2, gqkv, n, x.first, gv, lanes, false);
        if (bells) bells += BELLS * lanes * lanes;
    }
}

template <class V> struct Vector {
    V x, y, z;
    Vector operator+(const Vector& o) const { return {x + o.x, y + o.y, z + o.z}; }
    Vector operator*(V f) const { return {x * f, y * f, z * f}; }
};
template <class V> inline V dot(const Vector<V>& a, const Vector<V>& b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
template <class V> inline Vector<V> cross(const Vector<V>& a, const Vector<V>& b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
template <class T> inline Vector<typename Simd<T>::V> load3(const T* p, int n) {
    return {load(p), load(p + n), load(p + 2 * n)};
}
template <class T> inline void store3(T* p, int n, const Vector<typename Simd<T>::V>& v) {
    store(p, v.x), store(p + n, v.y), store(p + 2 * n, v.z);
}

// Where the vectors of channel c lie: left and right factors, true and pseudo; and their products.
template <class T> struct Places {
    T *true_left, *true_right, *pseudo_left, *pseudo_right;
    Places(T* factors, int S, int C, int c, int n) {
        const int64_t step = 3 * C * n;
        true_left = factors + (2 * S + 2 * C) * n + 3 * c * n, true_right = true_left + step;
        pseudo_left = true_right + step, pseudo_right = pseudo_left + step;
    }
};
template <class T> struct Results {
    T *true_dot, *pseudo_dot, *true_gated, *true_pseudo, *pseudo_true, *pseudo_gated, *true_true, *pseudo_pseudo;
    Results(T* products, int S, int C, int c, int n) {
        const int64_t step = 3 * C * n;
        true_dot = products + (2 * S + c) * n, pseudo_dot = true_dot + C * n;
        true_gated = products + (2 * S + 2 * C) * n + 3 * c * n, true_pseudo = true_gated + step;
        pseudo_true = true_pseudo + step;
        pseudo_gated = pseudo_true + step, true_true = pseudo_gated + step, pseudo_pseudo = true_true + step;
    }
};

// Factors to products. The scalars among the factors become the slopes of their GELU.
template <class T> void multiply(int S, int C, T* factors, T* gates, T* products, int n) {
    typedef typename Simd<T>::V V;
    for (int64_t i = 0; i < (2 * S + 2 * C) * (int64_t)n; i += width<T>()) {
        V value, slope;
        gelu<T>(load(factors + i), value, slope);
        store(i < 2 * S * n ? products + i : gates + (i - 2 * S * n), value);
        store(factors + i, slope);
    }
    const T third = 1 / std::sqrt((T)3);
    for (int c = 0; c < C; ++c) {
        const Places<T> f(factors, S, C, c, n);
        const Results<T> r(products, S, C, c, n);
        for (int l = 0; l < n; l += width<T>()) {
            const auto tl = load3(f.true_left + l, n), tr = load3(f.true_right + l, n);
            const auto pl = load3(f.pseudo_left + l, n), pr = load3(f.pseudo_right + l, n);
            store(r.true_dot + l, dot(tl, tr) * third), store(r.pseudo_dot + l, dot(pl, pr) * third);
            store3(r.true_gated + l, n, tl * load(gates + c * n + l));
            store3(r.pseudo_gated + l, n, pl * load(gates + (C + c) * n + l));
            store3(r.true_pseudo + l, n, cross(tl, pr)), store3(r.pseudo_true + l, n, cross(pl, tr));
            store3(r.true_true + l, n, cross(tl, tr)), store3(r.pseudo_pseudo + l, n, cross(pl, pr));
        }
    }
}

// Gradients of the products to those of the factors.
template <class T>
void multiply_gradient(int S, int C, T* factors, const T* gates, T* gproducts, T* gfactors, int n) {
    for (int64_t i = 0; i < 2 * S * (int64_t)n; i += width<T>())
        store(gfactors + i, load(gproducts + i) * load(factors + i));
    const T third = 1 / std::sqrt((T)3);
    for (int c = 0; c < C; ++c) {
        const Places<T> f(factors, S, C, c, n), g(gfactors, S, C, c, n);
        const Results<T> r(gproducts, S, C, c, n);
        const int64_t gate = (int64_t)c * n, other = gate + (int64_t)C * n, slopes = 2 * (int64_t)S * n;
        for (int l = 0; l < n; l += width<T>()) {
            const auto tl = load3(f.true_left + l, n), tr = load3(f.true_right + l, n);
            const auto pl = load3(f.pseudo_left + l, n), pr = load3(f.pseudo_right + l, n);
            const auto t_dot = load(r.true_dot + l) * third, p_dot = load(r.pseudo_dot + l) * third;
            const auto t_gated = load3(r.true_gated + l, n), p_gated = load3(r.pseudo_gated + l, n);
            const auto tp = load3(r.true_pseudo + l, n), pt = load3(r.pseudo_true + l, n);
            const auto tt = load3(r.true_true + l, n), pp = load3(r.pseudo_pseudo + l, n);
            // Of a x b: b x g to a, g x a to b.
            store3(g.true_left + l, n, tr * t_dot + t_gated * load(gates + gate + l) + cross(pr, tp) + cross(tr, tt));
            store3(g.pseudo_left + l, n, pr * p_dot + p_gated * load(gates + other + l) + cross(tr, pt) + cross(pr, pp));
            store3(g.true_right + l, n, tl * t_dot + cross(pt, pl) + cross(tt, tl));
            store3(g.pseudo_right + l, n, pl * p_dot + cross(tp, tl) + cross(pp, pl));
            store(gfactors + slopes + gate + l, dot(t_gated, tl) * load(factors + slopes + gate + l));
            store(gfactors + slopes + other + l, dot(p_gated, pl) * load(factors + slopes + other + l));
        }
    }
}

template <class T> int64_t kept_of_sample(const Network<T>& net, const Shape& s) {
    return vectors<T>((int)s.tokens) * (s.blocks * Kept<T>::rows(net, s) + net.stream.rows() + 3);
}

// Numbers of attention's work on a sample.
template <class T> size_t work_of_attention(const Network<T>& net, const Shape& s) {
    const size_t lanes = vectors<T>((int)s.tokens);
    return 8 * net.head.rows() * lanes + attention_work(lanes);
}

template <class T> void slim_plan(const T*, Shape* s, int) {
    const std::vector<const T*> somewhere(1 + 4 * (2 + 4 * s->blocks), (const T*)s);
    s->kept = s->batch * kept_of_sample<T>(Network<T>(*s, somewhere.data()), *s);
}

// Gaussians of the distances within samples; null without a bias by distance.
template <class T> const T* bells_of(const Network<T>& net, const Shape& s, const Tile<T>& tile, const T* x) {
    const int features = net.embed.in.rows();
    return s.point ? bells_of(tile, x + features, features + s.point) : nullptr;
}

// A tile of x (B, T, in + point) to predictions, (out, lanes), in memory of this thread. kept: memory for the backward
// pass, or null.
template <class T>
T* predict(const Network<T>& net, const Shape& s, const Tile<T>& tile, const T* x, const T* bells, T* kept) {
    const int n = tile.lanes, S = (int)s.scalars, C = (int)s.vectors;
    const size_t reused = kept ? 0 : Kept<T>::rows(net, s) + net.stream.rows() + 3, work_of = work_of_attention<T>(net, s);
    T* stream = scratch<T, 0>((net.stream.rows() + net.widest + reused) * tile_lanes<T>(s.tokens) + work_of);
    T *ends = stream + net.stream.rows() * n, *work = ends + net.widest * n, *own = work + work_of, *memory = kept;
    tile.gather(x, net.embed.in.rows(), ends, net.embed.in.rows() + s.point);
    net.embed.forward(ends, stream, n);
    for (int i = 0; i < s.blocks; ++i) {
        const Block<T>& b = net.blocks[i];
        if (!kept) memory = own;
        const Kept<T> k(net, s, tile, memory, kept);
        norm(net.stream, stream, k.attention_normed, k.attention_factors, n);
        b.to_qkv.forward(k.attention_normed, k.qkv, n);
        attend(net, s, i, tile, bells, k.qkv, k.attended, k.p, work, kept);
        b.from_heads.forward(k.attended, stream, n, true);
        norm(net.stream, stream, k.mlp_normed, k.mlp_factors, n);
        b.to_factors.forward(k.mlp_normed, k.factors, n);
        multiply(S, C, k.factors, k.gates, k.products, n);
        b.from_products.forward(k.products, stream, n, true);
    }
    T* last = kept ? memory : own;
    norm(net.stream, stream, last, last + net.stream.rows() * n, n);
    net.read_out.forward(last, ends, n);
    return ends;
}

// From what predict() kept of a tile: adds the gradients of the parameters to sums and writes gx (B, T, in + point), if
// it is not null; points have none. fill(g) writes the gradient of the predictions, (out, lanes).
template <class T, class F>
void differentiate(const Network<T>& net, const Shape& s, const Tile<T>& tile, const T* x, const T* bells, T* gx,
                   T* kept, T* sums, F fill) {
    const int n = tile.lanes, R = net.stream.rows(), S = (int)s.scalars, C = (int)s.vectors;
    const size_t rows = 2 * R + 2 * net.widest + 3 * net.turned;
    T *g = scratch<T, 2>(rows * tile_lanes<T>(s.tokens) + work_of_attention<T>(net, s)), *gnormed = g + R * n;
    T *wide = gnormed + R * n, *other = wide + net.widest * n, *turned = other + net.widest * n;
    T* work = turned + 3 * net.turned * n;
    std::vector<Kept<T>> blocks;
    for (int64_t i = 0; i < s.blocks; ++i) blocks.emplace_back(net, s, tile, kept);

    fill(wide);
    net.read_out.backward(kept, wide, gnormed, n, sums, turned);
    norm_gradient(net.stream, kept, kept + R * n, gnormed, g, n, false);
    for (int i = (int)s.blocks - 1; i >= 0; --i) {
        const Block<T>& b = net.blocks[i];
        const Kept<T>& k = blocks[i];
        b.from_products.backward(k.products, g, wide, n, sums, turned);
        multiply_gradient(S, C, k.factors, k.gates, wide, other, n);
        b.to_factors.backward(k.mlp_normed, other, gnormed, n, sums, turned);
        norm_gradient(net.stream, k.mlp_normed, k.mlp_factors, gnormed, g, n, true);
        b.from_heads.backward(k.attended, g, wide, n, sums, turned);
        attend_gradient(net, s, i, tile, bells, k.qkv, k.attended, k.p, wide, other, sums, work);
        b.to_qkv.backward(k.attention_normed, other, gnormed, n, sums, turned);
        norm_gradient(net.stream, k.attention_normed, k.attention_factors, gnormed, g, n, true);
    }
    tile.gather(x, net.embed.in.rows(), wide, net.embed.in.rows() + s.point);
    net.embed.backward(wide, g, gx ? other : gx, n, sums, turned);
    if (gx) tile.scatter(other, net.embed.in.rows(), gx, net.embed.in.rows() + s.point);
}

// x (B, T, in + point) to y (B, T, out), zeros on entry. kept: memory for the backward pass, or null.
template <class T>
void slim(const T* x, T* y, T* kept, const bool* mask, const Shape* shape, const T* const* parameters, int threads) {
    const Shape& s = *shape;
    const Network<T> net(s, parameters);
    for_tiles(s.batch, s.tokens, mask, kept, kept_of_sample<T>(net, s), false, threads,
              [&](const Tile<T>& tile, T* memory) {
                  tile.scatter(predict(net, s, tile, x, bells_of(net, s, tile, x), memory), net.read_out.out.rows(), y);
              });
}

// gy (B, T, out) to gx (B, T, in + point; zeros on entry, or null) and the gradients of all parameters, added to what is
// there.
template <class T>
void slim_gradient(const T* x, const T* gy, T* gx, T* const* gradients, T* kept, const bool* mask, const Shape* shape,
                   const T* const* parameters, int threads) {
    const Shape& s = *shape;
    const Network<T> net(s, parameters);
    const Sums<T> sums(net.size, threads);
    for_tiles(s.batch, s.tokens, mask, kept, kept_of_sample<T>(net, s), true, threads,
              [&](const Tile<T>& tile, T* memory) {
                  differentiate(net, s, tile, x, bells_of(net, s, tile, x), gx, memory, sums.own(),
                                [&](T* g) { tile.gather(gy, net.read_out.out.rows(), g); });
              });
    net.finish(sums, gradients);
}

// As transformer_loss() of transformer.cpp.
template <class T>
void slim_loss(const T* x, const T* target, const T* weights, T scale, T* loss, T* gx, T* const* gradients,
               const bool* mask, const Shape* shape, const T* const* parameters, int threads) {
    const Shape& s = *shape;
    const Network<T> net(s, parameters);
    const Sums<T> sums(net.size + 1, threads);  // the last one is the loss
    for_tiles(s.batch, s.tokens, mask, (T*)nullptr, 0, false, threads, [&](const Tile<T>& tile, T*) {
        T* const kept = scratch<T, 3>(tile.samples.size() * kept_of_sample<T>(net, s));
        const T *const bells = bells_of(net, s, tile, x), *const y = predict(net, s, tile, x, bells, kept);
        differentiate(net, s, tile, x, bells, gx, kept, sums.own(), [&](T* g) {
            const int64_t out = net.read_out.out.rows();
            sums.own()[net.size] += squared_error(tile, y, target, weights, scale, out, g);
        });
    });
    net.finish(sums, gradients);
    *loss = sums.total(net.size);
}

}  // namespace

extern "C" {
EXPORT(slim_plan)
EXPORT(slim)
EXPORT(slim_gradient)
EXPORT(slim_loss)
}
