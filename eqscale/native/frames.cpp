// Frames of samples (eqscale.models.frames), and a network's inputs and targets turned into them.
#include <limits>

#include "tiles.h"

namespace {

struct Shape {  // see eqscale.native.frames
    int64_t batch, tokens, vectors, invariants, hidden, features, directions;
};

template <class T> struct Network {
    const Shape& s;
    Linear<T> hidden, weights;

    Network(const Shape& s, const T* const* p) : s(s) {
        const int K = (int)s.vectors;
        hidden = {(int)s.invariants + K * (K + 1) / 2, (int)s.hidden, p[0], p[1], 0};
        weights = {(int)s.hidden, 3 * K, p[2], p[3], hidden.sums()};
    }
    size_t size() const { return weights.at + weights.sums(); }
};

// Gram-Schmidt of three rows, as in eqscale.models.frames.orthonormal.
template <class T> struct Axes {
    const T *first, *second;
    T x[3], normal[3], y[3], length, height, side;  // lengths of the first row and of the second one across it

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
        if (height <= std::max(std::sqrt(eps * dot(second, second)), rounding * terms[1])) height = 0;
        for (int i = 0; i < 3; ++i) normal[i] = height > 0 ? across[i] / height : 0;
        cross(normal, x, y);
        const T along = dot(third, normal);
        side = std::fabs(along) <= rounding * terms[2] ? 0 : along < 0 ? -1 : 1;
    }
    void matrix(T* m) const {
        for (int i = 0; i < 3; ++i) m[i] = x[i], m[3 + i] = y[i], m[6 + i] = side * normal[i];
    }
    bool has(int axis) const { return axis == 0 ? length > 0 : axis == 1 ? height > 0 : side != 0; }
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
        hidden = slopes + s.hidden * n, weights = hidden + s.hidden * n, end = weights + 3 * K * n;
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
    // The three vectors of a sample, as rows, and the sums of the lengths of their terms.
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
        T* terms = rows + 9;
        std::fill_n(terms, 3, (T)0);
        for (int k = 0; k < K; ++k) {
            const T *v = vectors + 3 * k * n + sample.first, *w = weights + k * n + sample.first;
            for (int l = 0; l < len; ++l) {
                const T vector[3] = {v[l], v[n + l], v[2 * n + l]}, length = std::sqrt(Axes<T>::dot(vector, vector));
                for (int a = 0; a < 3; ++a) terms[a] += std::fabs(w[a * K * n + l]) * length / len;
            }
        }
    }
};

// Numbers that a tile needs.
template <class T> size_t memory_of(const Network<T>& net) {
    const size_t rows = 12 * net.s.vectors + net.hidden.in + 3 * net.s.hidden;
    return (rows + vectors<T>((int)rows)) * tile_lanes<T>(net.s.tokens);
}

// features (B, T, features), of which columns[i] and the two behind it are a vector, and target (B, T, 3) turned into the
// frames; of real tokens only. axes (B, 3): 1 for each axis that a sample's frame has, 0 for one that it lacks.
template <class T>
void frames(const T* v, const T* invariants, const T* features, const T* target, T* turned, T* turned_target,
            T* axes, const int64_t* columns, const bool* mask, const Shape* shape, const T* const* parameters,
            int threads) {
    const Shape& s = *shape;
    const Network<T> net(s, parameters);
    for_tiles(s.batch, s.tokens, mask, (T*)nullptr, 0, false, threads, [&](const Tile<T>& tile, T*) {
        const Seen<T> seen(net, tile, v, invariants, scratch<T, 0>(memory_of(net)));
        for (size_t i = 0; i < tile.samples.size(); ++i) {
            T rows[12], m[9];
            seen.sums(tile.samples[i], (int)s.vectors, tile.lanes, rows);
            const Axes<T> frame(rows);
            frame.matrix(m);
            for (int a = 0; a < 3; ++a) axes[3 * (tile.first_sample + i) + a] = frame.has(a);
            const auto turn = [&](const T* from, T* to) {
                for (int c = 0; c < 3; ++c) to[c] = Axes<T>::dot(m + 3 * c, from);
            };
            for (int t : tile.samples[i].tokens) {
                const int64_t token = (tile.first_sample + i) * s.tokens + t, at = token * s.features;
                std::copy_n(features + at, s.features, turned + at);
                for (int64_t j = 0; j < s.directions; ++j) turn(features + at + columns[j], turned + at + columns[j]);
                turn(target + 3 * token, turned_target + 3 * token);
            }
        }
    });
}

// The gradients of what was turned, added as those of the parameters. Along no axis of the frame, a target is missed
// whatever is predicted: |R^T y - t|^2 has |t|^2 - |R t|^2 more than |y - R t|^2. The weighted sum of that, times
// `scale`, is added to loss.
template <class T>
void frames_gradient(const T* v, const T* invariants, const T* features, const T* target, const T* weight, T scale,
                     T* loss, const T* gturned, const T* gturned_target, T* const* gradients, const int64_t* columns,
                     const bool* mask, const Shape* shape, const T* const* parameters, int threads) {
    const Shape& s = *shape;
    const int K = (int)s.vectors;
    const Network<T> net(s, parameters);
    const Sums<T> sums(net.size() + 1, threads);  // the last one is the loss
    for_tiles(s.batch, s.tokens, mask, (T*)nullptr, 0, false, threads, [&](const Tile<T>& tile, T*) {
        const Seen<T> seen(net, tile, v, invariants, scratch<T, 0>(memory_of(net)));
        const int n = tile.lanes;
        T *gweights = seen.end, *ghidden = gweights + 3 * K * n, *turned = ghidden + s.hidden * n;
        std::fill_n(gweights, 3 * K * n, (T)0);
        for (size_t i = 0; i < tile.samples.size(); ++i) {
            const auto& sample = tile.samples[i];
            T rows[12], m[9], g[9] = {}, grows[6];
            seen.sums(sample, K, n, rows);
            const Axes<T> frame(rows);
            frame.matrix(m);
            const bool whole = frame.has(2);
            const auto add = [&](const T* gto, const T* from) {
                for (int c = 0; c < 3; ++c)
                    for (int d = 0; d < 3; ++d) g[3 * c + d] += gto[c] * from[d];
            };
            for (int t : sample.tokens) {
                const int64_t token = (tile.first_sample + i) * s.tokens + t, at = token * s.features;
                for (int64_t j = 0; j < s.directions; ++j) add(gturned + at + columns[j], features + at + columns[j]);
                const T* t0 = target + 3 * token;
                T gto[3];
                std::copy_n(gturned_target + 3 * token, 3, gto);
                if (!whole) {
                    T missed = Axes<T>::dot(t0, t0);
                    for (int c = 0; c < 3; ++c) {
                        const T along = Axes<T>::dot(m + 3 * c, t0);
                        missed -= along * along;
                        gto[c] -= 2 * scale * weight[token] * along;
                    }
                    sums.own()[net.size()] += scale * weight[token] * missed;
                }
                add(gto, t0);
            }
            frame.gradient(g, grows);
            const int len = (int)sample.tokens.size();
            for (T& value : grows) value /= len;
            for (int a = 0; a < 2; ++a)  // the third vector only chooses a side
                for (int k = 0; k < K; ++k) {
                    const T *from = seen.vectors + 3 * k * n + sample.first, *by = grows + 3 * a;
                    T* to = gweights + (a * K + k) * n + sample.first;
                    for (int l = 0; l < len; ++l) to[l] = by[0] * from[l] + by[1] * from[n + l] + by[2] * from[2 * n + l];
                }
        }
        net.weights.weight_gradient(seen.hidden, gweights, n, sums.own(), turned);
        net.weights.input_gradient(gweights, ghidden, n);
        for (int64_t i = 0; i < s.hidden * n; ++i) ghidden[i] *= seen.slopes[i];
        net.hidden.weight_gradient(seen.inputs, ghidden, n, sums.own(), turned);
    });
    net.hidden.finish(sums, gradients[0], gradients[1]);
    net.weights.finish(sums, gradients[2], gradients[3]);
    *loss += sums.total(net.size());
}

}  // namespace

extern "C" {
EXPORT(frames)
EXPORT(frames_gradient)
}
