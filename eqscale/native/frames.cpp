// Frames of tokens, or of whole samples (eqscale.models.frames).
#include <limits>

#include "tiles.h"

namespace {

struct Shape {  // see eqscale.native.frames
    int64_t batch, tokens, vectors, invariants, hidden;
    int64_t own;  // whether each token has a frame of its own
    int64_t row;  // numbers from a token's frame to the next one's
};

template <class T> struct Network {
    const Shape& s;
    Linear<T> hidden, weights;

    Network(const Shape& s, const T* const* p) : s(s) {
        const int K = (int)s.vectors;
        hidden = {(int)s.invariants + K * (K + 1) / 2, (int)s.hidden, p[0], p[1], 0};
        weights = {(int)s.hidden, 3 * K * (s.own ? 2 : 1), p[2], p[3], hidden.sums()};
    }
    size_t size() const { return weights.at + weights.sums(); }
};

// Gram-Schmidt of three rows, as in eqscale.models.frames.orthonormal.
template <class T> struct Axes {
    const T *first, *second;
    T x[3], normal[3], y[3], length, height, side;  // lengths of the first row and of the second one across it; 0: none

    static T dot(const T* a, const T* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
    static void cross(const T* a, const T* b, T* c) {
        for (int i = 0; i < 3; ++i) c[i] = a[(i + 1) % 3] * b[(i + 2) % 3] - a[(i + 2) % 3] * b[(i + 1) % 3];
    }
    // rows (3, 3), then the sums of the lengths of their terms (3).
    explicit Axes(const T* rows) : first(rows), second(rows + 3) {
        const T eps = std::numeric_limits<T>::epsilon(), rounding = 32 * eps, *third = rows + 6, *terms = rows + 9;
        T across[3];
        length = std::sqrt(dot(first, first));
        if (length <= rounding * terms[0]) length = 0;
        for (int i = 0; i < 3; ++i) x[i] = length > 0 ? first[i] / length : 0;
        cross(x, second, across);
        height = std::sqrt(dot(across, across));
        const T reach = std::sqrt(dot(second, second)), of_x = length > 0 ? rounding * terms[0] / length : 0;
        const T of_across = rounding * terms[1] + of_x * reach;
        if (height <= std::max(std::sqrt(eps) * reach, of_across)) height = 0;
        for (int i = 0; i < 3; ++i) normal[i] = height > 0 ? across[i] / height : 0;
        cross(normal, x, y);
        const T along = dot(third, normal), of_normal = height > 0 ? of_across / height : 0;
        const T least = rounding * terms[2] + of_normal * std::sqrt(dot(third, third));
        side = std::fabs(along) <= least ? 0 : along < 0 ? -1 : 1;
    }
    void matrix(T* m) const {
        for (int i = 0; i < 3; ++i) m[i] = x[i], m[3 + i] = y[i], m[6 + i] = side * normal[i];
    }
    // The gradient of the matrix to that of the first two rows.
    void gradient(const T* g, T* rows) const {
        T gx[3], gn[3], other[3];
        cross(x, g + 3, gn), cross(g + 3, normal, gx);
        for (int i = 0; i < 3; ++i) gx[i] += g[i], gn[i] += side * g[6 + i];
        unscaled(normal, height, gn);
        cross(second, gn, other);
        for (int i = 0; i < 3; ++i) gx[i] += other[i];
        cross(gn, x, rows + 3);
        unscaled(x, length, gx);
        std::copy(gx, gx + 3, rows);
    }
    static void unscaled(const T* unit, T length, T* g) {  // through the division of a vector by its length
        const T along = dot(unit, g);
        for (int i = 0; i < 3; ++i) g[i] = length > 0 ? (g[i] - along * unit[i]) / length : 0;
    }
};

// What the network computes of a tile.
template <class T> struct Seen {
    T *vectors, *inputs, *slopes, *hidden, *weights, *end;

    Seen(const Network<T>& net, const Tile<T>& tile, const T* v, const T* invariants, T* memory) {
        const Shape& s = net.s;
        const int n = tile.lanes, K = (int)s.vectors;
        vectors = memory, inputs = vectors + 3 * K * n, slopes = inputs + net.hidden.in * n;
        hidden = slopes + s.hidden * n, weights = hidden + s.hidden * n, end = weights + net.weights.out * n;
        tile.gather(v, 3 * K, vectors);
        tile.gather(invariants, (int)s.invariants, inputs);
        T* to = inputs + s.invariants * n;
        for (int i = 0; i < K; ++i)
            for (int j = i; j < K; ++j, to += n) {
                const T *a = vectors + 3 * i * n, *b = vectors + 3 * j * n;
                for (int l = 0; l < n; ++l) {
                    const T product = a[l] * b[l] + a[n + l] * b[n + l] + a[2 * n + l] * b[2 * n + l];
                    to[l] = product / std::sqrt(1 + std::fabs(product));
                }
            }
        net.hidden.forward(inputs, slopes, n);
        for (int64_t i = 0; i < s.hidden * n; i += width<T>()) {
            typename Simd<T>::V value, slope;
            swish<T>(load(slopes + i), value, slope);
            store(hidden + i, value), store(slopes + i, slope);
        }
        net.weights.forward(hidden, weights, n);
    }
    // The three vectors of a sample that all its tokens share, as rows, and the sums of the lengths of their terms.
    template <class S> void sums(const S& sample, int K, int n, T* rows) const {
        const int len = (int)sample.tokens.size(), whole = len / width<T>() * width<T>();
        for (int a = 0; a < 3; ++a)
            for (int c = 0; c < 3; ++c) {
                typename Simd<T>::V lanes = {};
                T total = 0;
                for (int k = 0; k < K; ++k) {
                    const T *w = weights + (a * K + k) * n + sample.first, *v = vectors + (3 * k + c) * n + sample.first;
                    for (int l = 0; l < whole; l += width<T>()) lanes += load(w + l) * load(v + l);
                    for (int l = whole; l < len; ++l) total += w[l] * v[l];
                }
                for (int i = 0; i < width<T>(); ++i) total += lanes[i];
                rows[3 * a + c] = total / len;
            }
        std::fill_n(rows + 9, 3, (T)0);
        for (int l = 0; l < len; ++l) add_lengths(0, K, n, sample.first + l, (T)1 / len, rows + 9);
    }
    // Adds those of a token alone.
    void add_own(int K, int n, int lane, T* rows) const {
        for (int a = 0; a < 3; ++a)
            for (int k = 0; k < K; ++k)
                for (int c = 0; c < 3; ++c)
                    rows[3 * a + c] += weights[((3 + a) * K + k) * n + lane] * vectors[(3 * k + c) * n + lane];
        add_lengths(3, K, n, lane, 1, rows + 9);
    }
    void add_lengths(int first, int K, int n, int lane, T share, T* terms) const {
        for (int k = 0; k < K; ++k) {
            const T* v = vectors + 3 * k * n + lane;
            const T vector[3] = {v[0], v[n], v[2 * n]}, length = std::sqrt(Axes<T>::dot(vector, vector)) * share;
            for (int a = 0; a < 3; ++a) terms[a] += std::fabs(weights[((first + a) * K + k) * n + lane]) * length;
        }
    }
};

// Numbers that a tile needs.
template <class T> size_t memory_of(const Network<T>& net) {
    const size_t rows = 3 * net.s.vectors + 2 * net.weights.out + net.hidden.in + 3 * net.s.hidden;
    return (rows + vectors<T>((int)rows)) * tile_lanes<T>(net.s.tokens);
}

// body(frame, first and last of the tokens that it is of) for all frames of a sample.
template <class T, class S, class F>
void for_frames(const Network<T>& net, const Seen<T>& seen, const S& sample, int n, F body) {
    const int K = (int)net.s.vectors, len = (int)sample.tokens.size(), each = net.s.own ? 1 : len;
    T shared[12], rows[12];
    seen.sums(sample, K, n, shared);
    for (int t = 0; t < len; t += each) {
        std::copy_n(shared, 12, rows);
        if (net.s.own) seen.add_own(K, n, sample.first + t, rows);
        body(Axes<T>(rows), t, t + each);
    }
}

// matrices (B, T, 9; row apart): of each real token the axes of its frame, as rows.
template <class T>
void frames(const T* v, const T* invariants, T* matrices, const bool* mask, const Shape* shape,
            const T* const* parameters, int threads) {
    const Shape& s = *shape;
    const Network<T> net(s, parameters);
    for_tiles(s.batch, s.tokens, mask, (T*)nullptr, 0, false, threads, [&](const Tile<T>& tile, T*) {
        const Seen<T> seen(net, tile, v, invariants, scratch<T, 0>(memory_of(net)));
        for (size_t i = 0; i < tile.samples.size(); ++i)
            for_frames(net, seen, tile.samples[i], tile.lanes, [&](const Axes<T>& frame, int first, int last) {
                T m[9];
                frame.matrix(m);
                for (int t = first; t < last; ++t) {
                    const int64_t token = (tile.first_sample + i) * s.tokens + tile.samples[i].tokens[t];
                    std::copy_n(m, 9, matrices + token * s.row);
                }
            });
    });
}

// The gradient of the matrices, added as that of the parameters. The third vector only chooses a side.
template <class T>
void frames_gradient(const T* v, const T* invariants, const T* gmatrices, T* const* gradients, const bool* mask,
                     const Shape* shape, const T* const* parameters, int threads) {
    const Shape& s = *shape;
    const int K = (int)s.vectors;
    const Network<T> net(s, parameters);
    const Sums<T> sums(net.size(), threads);
    for_tiles(s.batch, s.tokens, mask, (T*)nullptr, 0, false, threads, [&](const Tile<T>& tile, T*) {
        const Seen<T> seen(net, tile, v, invariants, scratch<T, 0>(memory_of(net)));
        const int n = tile.lanes;
        T *gweights = seen.end, *ghidden = gweights + net.weights.out * n, *turned = ghidden + s.hidden * n;
        std::fill_n(gweights, net.weights.out * n, (T)0);
        // Gradients of the first two vectors, times `share`, to those of the weights of a token behind the first ones.
        const auto to_weights = [&](const T* grows, T share, int first, int lane) {
            for (int a = 0; a < 2; ++a)
                for (int k = 0; k < K; ++k) {
                    const T *from = seen.vectors + 3 * k * n + lane, *by = grows + 3 * a;
                    gweights[((first + a) * K + k) * n + lane] =
                        share * (by[0] * from[0] + by[1] * from[n] + by[2] * from[2 * n]);
                }
        };
        for (size_t i = 0; i < tile.samples.size(); ++i) {
            const auto& sample = tile.samples[i];
            const int len = (int)sample.tokens.size();
            T shared[6] = {};
            for_frames(net, seen, sample, n, [&](const Axes<T>& frame, int first, int last) {
                T g[9] = {}, grows[6];
                for (int t = first; t < last; ++t) {
                    const T* from = gmatrices + ((tile.first_sample + i) * s.tokens + sample.tokens[t]) * s.row;
                    for (int j = 0; j < 9; ++j) g[j] += from[j];
                }
                frame.gradient(g, grows);
                for (int j = 0; j < 6; ++j) shared[j] += grows[j];
                if (s.own) to_weights(grows, 1, 3, sample.first + first);
            });
            for (int t = 0; t < len; ++t) to_weights(shared, (T)1 / len, 0, sample.first + t);
        }
        net.weights.weight_gradient(seen.hidden, gweights, n, sums.own(), turned);
        net.weights.input_gradient(gweights, ghidden, n);
        for (int64_t i = 0; i < s.hidden * n; ++i) ghidden[i] *= seen.slopes[i];
        net.hidden.weight_gradient(seen.inputs, ghidden, n, sums.own(), turned);
    });
    net.hidden.finish(sums, gradients[0], gradients[1]);
    net.weights.finish(sums, gradients[2], gradients[3]);
}

}  // namespace

extern "C" {
EXPORT(frames)
EXPORT(frames_gradient)
}
