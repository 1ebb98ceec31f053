// Loss and scores of rows of logits: the part of the CPU design between the matrix products. Plain C++ that the compiler vectorises.
//
// One thread looks at one row, so the result does not depend on the number of threads. A row of 16-bit or soft-capped logits is first
// written out in fp32, 4 V bytes that stay in the cache of the core: 192 KB at V = 49152. Then: the largest logit; the sum of exponentials;
// with the gradient, the exponentials once more, whose products overwrite the logits. Memory sees each logit read and written once.
//
// Largest logit m and sum S of exp(logit - m) are those of all tokens but the target t, and with the log-odds d = logit_t - m - log S
//
//     -log p = log(1 + exp(-d)),   -log(1 - p) = log(1 + exp(d)),   p = 1 / (1 + exp(-d)),   p_j = (1 - p) exp(logit_j - m) / S  (j != t)
//
// so that nothing is a difference of numbers near 1 (as in triton_rows.py). Sums run over blocks in fp32 and over rows in double.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

namespace {

constexpr int64_t BLOCK = 1024;
constexpr uint8_t UNLEARN = 2;

struct bfloat16 {
    uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, 4);
    return wide;
}
inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, bfloat16& out) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out.bits = uint16_t(x != x ? 0x7fc0 : rounded);
}
#ifdef __FLT16_MANT_DIG__
inline float widen(_Float16 x) { return float(x); }
inline void narrow(float x, _Float16& out) { out = _Float16(x); }
#endif

// exp(x) for x <= 0 within 2 units in the last place; 0 where it would be no normal number. exp(n log 2 + r) = 2^n exp(r), the polynomial
// for exp(r) on [-log(2)/2, log(2)/2] is that of the Cephes library (expf).
inline float exp_below(float x) {
    float shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer n stands in the lowest bits
    float n = shifted - 12582912.0f;
    float r = std::fma(n, 2.12194440e-4f, std::fma(n, -0.693359375f, x));
    float y = 1.9875691500e-4f;
    y = std::fma(y, r, 1.3981999507e-3f);
    y = std::fma(y, r, 8.3334519073e-3f);
    y = std::fma(y, r, 4.1665795894e-2f);
    y = std::fma(y, r, 1.6666665459e-1f);
    y = std::fma(y, r, 5.0000001201e-1f);
    y = std::fma(y, r * r, r) + 1.0f;
    uint32_t power, bits;
    std::memcpy(&power, &shifted, 4);
    std::memcpy(&bits, &y, 4);
    bits += power << 23;
    std::memcpy(&y, &bits, 4);
    return x < -87.3365f ? 0.0f : y;  // log of the smallest normal number
}

// softcap * tanh(x / softcap); by its series near 0, where 1 - 2 e / (1 + e) would lose digits.
inline float capped(float x, float softcap) {
    const float z = std::fabs(x) / softcap, e = exp_below(-2 * z), s = z * z;
    const float far = 1 - 2 * e / (1 + e);
    const float near = z * (1 - s * (1 / 3.0f - s * (2 / 15.0f - s * (17 / 315.0f - s * (62 / 2835.0f)))));
    return std::copysign(softcap * (z < 0.25f ? near : far), x);
}

// Runs body(first, end) over blocks of [0, V) without t.
template <typename Body>
inline void blocks_of_others(int64_t V, int64_t t, Body body) {
    const int64_t ranges[2][2] = {{0, t}, {t + 1, V}};
    for (auto& range : ranges)
        for (int64_t first = range[0]; first < range[1]; first += BLOCK)
            body(first, first + BLOCK < range[1] ? first + BLOCK : range[1]);
}

double softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }
double sigmoid(double x) { return x > 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }

// One row against its target.
struct Row {
    const float* x;  // soft-capped
    int64_t V, t;
    float m;  // largest of the others
    double total;  // sum of exp(x - m) of the others
    double odds;  // d

    Row(const float* x, int64_t V, int64_t t) : x(x), V(V), t(t) {
        float largest = std::numeric_limits<float>::lowest();
        blocks_of_others(V, t, [&](int64_t first, int64_t end) {
            float found = largest;
#pragma omp simd reduction(max : found)
            for (int64_t j = first; j < end; j++) found = x[j] > found ? x[j] : found;
            largest = found;
        });
        m = largest;
        total = 0;
        blocks_of_others(V, t, [&](int64_t first, int64_t end) {
            float sum = 0;
#pragma omp simd reduction(+ : sum)
            for (int64_t j = first; j < end; j++) sum += exp_below(x[j] - largest);
            total += sum;
        });
        if (total < std::numeric_limits<float>::min()) total = std::numeric_limits<float>::min();  // no other token
        odds = double(x[t]) - m - std::log(total);
    }

    double logsumexp() const { return odds > 0 ? x[t] + softplus(-odds) : m + std::log(total) + softplus(odds); }
};

// The row in fp32 and soft-capped: itself, or written to `scratch`.
template <typename T>
const float* prepared(const T* row, int64_t V, float softcap, float* scratch) {
    if constexpr (sizeof(T) == 4)
        if (softcap == 0) return row;
#pragma omp simd
    for (int64_t j = 0; j < V; j++) scratch[j] = widen(row[j]);
    if (softcap != 0) {
#pragma omp simd
        for (int64_t j = 0; j < V; j++) scratch[j] = capped(scratch[j], softcap);
    }
    return scratch;
}

template <typename T>
float loss_of_row(
    T* row, const float* x, int64_t V, int64_t t, bool unlearn, double factor, float softcap, double z_loss, double smoothing,
    double floor, bool gradient) {
    const Row r(x, V, t);
    const double lse = r.logsumexp(), p = sigmoid(r.odds), q = sigmoid(-r.odds);
    double loss, scale, slope, even = 0;  // gradient: scale * exp(x - m) - even, and slope for the target
    if (unlearn) {
        // Less what it is at the floor, so that it has no step there; below, the target is left alone.
        const bool low = p < floor;
        loss = low ? 0 : softplus(r.odds) + std::log1p(-floor);
        scale = low ? 0 : -p / r.total;
        slope = low ? 0 : p;
    } else {
        loss = softplus(-r.odds);
        scale = q / r.total;
        slope = -q;
        if (smoothing > 0) {
            double above = 0;  // of the target's logit: small numbers where the logits are large and alike
            blocks_of_others(V, t, [&](int64_t first, int64_t end) {
                float sum = 0, at_target = x[t];
#pragma omp simd reduction(+ : sum)
                for (int64_t j = first; j < end; j++) sum += x[j] - at_target;
                above += sum;
            });
            loss -= smoothing * above / V;
            even = smoothing / V;
            slope += smoothing - even;
        }
    }
    loss = (loss + z_loss * lse * lse) * factor;
    if (!gradient) return float(loss);
    const float s = float((scale + 2 * z_loss * lse * q / r.total) * factor), e = float(even * factor), m = r.m;
    float at_target = float((slope + 2 * z_loss * lse * p) * factor);
    if (softcap != 0) {
        at_target *= 1 - (x[t] / softcap) * (x[t] / softcap);
        const float inverse = 1 / softcap;
#pragma omp simd
        for (int64_t j = 0; j < V; j++) {
            const float ratio = x[j] * inverse;
            narrow((exp_below(x[j] - m) * s - e) * (1 - ratio * ratio), row[j]);
        }
    } else {
#pragma omp simd
        for (int64_t j = 0; j < V; j++) narrow(exp_below(x[j] - m) * s - e, row[j]);
    }
    narrow(at_target, row[t]);
    return float(loss);
}

struct Score {
    float logprob, largest, log_largest, mean, std;  // log_largest: log p of a token whose logit is the largest
    int32_t rank;
    bool is_argmax;
};

Score score_of_row(const float* x, int64_t V, int64_t t, bool moments) {
    const Row r(x, V, t);
    const float at_target = x[t];
    int64_t greater = 0, tied = 0;  // tied: with a lower id
    blocks_of_others(V, t, [&](int64_t first, int64_t end) {
        int32_t above = 0, equal = 0;
#pragma omp simd reduction(+ : above, equal)
        for (int64_t j = first; j < end; j++) {
            above += x[j] > at_target;
            equal += x[j] == at_target;
        }
        greater += above;
        if (first < t) tied += equal;
    });
    const double logprob = -softplus(-r.odds), of_others = -std::log(r.total) - softplus(r.odds);  // the latter of a token at m
    Score score{};
    score.logprob = float(logprob);
    score.largest = at_target > r.m ? at_target : r.m;
    score.log_largest = float(at_target > r.m ? logprob : of_others);
    score.rank = int32_t(greater);
    score.is_argmax = at_target >= r.m && tied == 0;  // NaN is none
    if (!moments) return score;
    // Of log p(z) over z drawn from p. The variance is summed around the mean: from sums of squares it would be a difference.
    const double p = sigmoid(r.odds), q = sigmoid(-r.odds);
    const float m = r.m;
    double weighted = 0, squares = 0;
    blocks_of_others(V, t, [&](int64_t first, int64_t end) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = first; j < end; j++) {
            const float e = exp_below(x[j] - m);
            sum += e > 0 ? e * (x[j] - m) : 0;  // p log p is 0 where p is 0
        }
        weighted += sum;
    });
    const double mean = q * (weighted / r.total + of_others) + (p > 0 ? p * logprob : 0);
    const float shift = float(of_others - mean);
    blocks_of_others(V, t, [&](int64_t first, int64_t end) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = first; j < end; j++) {
            const float e = exp_below(x[j] - m), from_mean = x[j] - m + shift;
            sum += e > 0 ? e * from_mean * from_mean : 0;
        }
        squares += sum;
    });
    const double from_mean = p > 0 ? logprob - mean : 0;
    score.mean = float(mean);
    score.std = float(std::sqrt(q * squares / r.total + p * from_mean * from_mean));
    return score;
}

// Runs body(i, x) over the rows, x in fp32 and soft-capped.
template <typename T, typename Body>
void for_rows(T* logits, int64_t stride, int64_t rows, int64_t V, float softcap, Body body) {
#pragma omp parallel
    {
        std::vector<float> scratch(sizeof(T) == 4 && softcap == 0 ? 0 : V);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; i++) body(i, prepared(logits + i * stride, V, softcap, scratch.data()));
    }
}

}  // namespace

// softcap 0: none; roles null: all are learnt; columns [5, rows]: logprob, largest, log_largest, mean, std.
#define EXPORT(T, name)                                                                                                          \
    extern "C" void loss_of_rows_##name(                                                                                         \
        T* logits, int64_t stride, int64_t rows, int64_t V, const int64_t* targets, const uint8_t* roles, const float* factors,  \
        float* losses, float softcap, float z_loss, float smoothing, float floor, bool gradient) {                               \
        for_rows(logits, stride, rows, V, softcap, [=](int64_t i, const float* x) {                                              \
            const bool unlearn = roles && roles[i] == UNLEARN;                                                                   \
            losses[i] = loss_of_row(                                                                                             \
                logits + i * stride, x, V, targets[i], unlearn, factors[i], softcap, z_loss, smoothing, floor, gradient);        \
        });                                                                                                                      \
    }                                                                                                                            \
    extern "C" void scores_of_rows_##name(                                                                                       \
        T* logits, int64_t stride, int64_t rows, int64_t V, const int64_t* targets, float* columns, int32_t* ranks,              \
        uint8_t* is_argmax, float softcap, bool moments) {                                                                       \
        for_rows(logits, stride, rows, V, softcap, [=](int64_t i, const float* x) {                                              \
            const Score s = score_of_row(x, V, targets[i], moments);                                                             \
            const float values[] = {s.logprob, s.largest, s.log_largest, s.mean, s.std};                                         \
            for (int64_t c = 0; c < 5; c++) columns[c * rows + i] = values[c];                                                   \
            ranks[i] = s.rank;                                                                                                   \
            is_argmax[i] = s.is_argmax;                                                                                          \
        });                                                                                                                      \
    }
EXPORT(float, float32)
EXPORT(bfloat16, bfloat16)
#ifdef __FLT16_MANT_DIG__
EXPORT(_Float16, float16)
#endif

// out [M, N] = a^T b + add * out in fp32, for 16-bit a [K, M] and b [K, N] (half: fp16, else bf16), by the matrix units where the CPU has
// them. It is the MKL inside torch, whose torch.mm only offers results that are rounded to 16 bits. False where torch carries none.
extern "C" {
using Product = void(int, int, int, int, int, int, float, const void*, int, const void*, int, float, float*, int);
__attribute__((weak)) Product cblas_gemm_bf16bf16f32, cblas_gemm_f16f16f32;

bool product(int half, int M, int N, int K, const void* a, const void* b, float* out, float add) {
    constexpr int ROW_MAJOR = 101, AS_IT_IS = 111, TRANSPOSED = 112;
    Product* multiply = half ? cblas_gemm_f16f16f32 : cblas_gemm_bf16bf16f32;
    if (!multiply) return false;
    multiply(ROW_MAJOR, TRANSPOSED, AS_IT_IS, M, N, K, 1, a, M, b, N, add, out, N);
    return true;
}
}
