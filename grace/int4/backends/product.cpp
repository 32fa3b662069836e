// y = x (s q)^T for 4-bit codes q, on processors that multiply pairs of bfloat16 (AVX-512).
//
// Codes are exact in bfloat16. The products of a group are summed in float32 and multiplied by the
// group's scale once, so nothing is rounded but inputs and results.

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace {

constexpr int kOutputs = 64;  // of a block, as torch lays them out
constexpr int kRows = 6;      // whose sums fit in registers, four for each

struct Pairs {
  __m512bh of[4];
};

// Codes of two inputs and 64 outputs. An input has 32 bytes: byte j holds outputs j and j + 32. The
// four results hold outputs {0-7, 16-23}, {8-15, 24-31}, and those 32 later.
inline Pairs unpacked(const uint8_t* codes, __m512i values) {
  const __m256i low = _mm256_set1_epi8(15);
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32));
  const __m256i a = _mm256_unpacklo_epi8(first, second);
  const __m256i b = _mm256_unpackhi_epi8(first, second);
  auto looked_up = [&](__m256i nibbles) {
    return (__m512bh)_mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(nibbles), values);
  };
  return {{looked_up(_mm256_and_si256(a, low)), looked_up(_mm256_and_si256(b, low)),
           looked_up(_mm256_and_si256(_mm256_srli_epi16(a, 4), low)),
           looked_up(_mm256_and_si256(_mm256_srli_epi16(b, 4), low))}};
}

// Scales of outputs 0-7 and 16-23 from here on; beside each lies a zero point.
inline __m512 scales_of(const uint16_t* scales) {
  const __m256i first = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
  const __m256i second = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + 32));
  const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
  return _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
}

// 16 values for nibbles 0 to 15, less an offset, twice: permutations are of 32.
inline __m512i values_less(int offset) {
  uint16_t values[32];
  for (int i = 0; i < 32; ++i) {
    const float value = static_cast<float>((i & 15) - offset);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    values[i] = static_cast<uint16_t>(bits >> 16);
  }
  return _mm512_loadu_si512(values);
}

inline void store(uint16_t* y, __m512 a, __m512 b) {  // 32 outputs, in order again
  const __m512 first = _mm512_shuffle_f32x4(a, b, 0x44);
  const __m512 second = _mm512_shuffle_f32x4(a, b, 0xee);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y), (__m256i)_mm512_cvtneps_pbh(first));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + 16), (__m256i)_mm512_cvtneps_pbh(second));
}

struct Weight {
  const uint8_t* codes;    // (blocks, inputs * planes, 32)
  const uint16_t* scales;  // (groups, outputs, 2)
  int outputs, inputs, planes, group;
};

template <int rows>
void multiply(const Weight& w, const int32_t* x, int all_rows, int block, uint16_t* y) {
  const uint8_t* codes = w.codes + static_cast<int64_t>(block) * w.inputs * w.planes * 32;
  const uint16_t* scales = w.scales + static_cast<int64_t>(block) * kOutputs * 2;
  __m512 sums[rows][4] = {};
  for (int plane = 0; plane < w.planes; ++plane) {
    const __m512i values = values_less(plane == 0 ? 8 : 0);  // the low nibbles of 8 bits: unsigned
    for (int start = 0; start < w.inputs; start += w.group) {
      __m512 products[rows][4] = {};
      for (int k = start; k < start + w.group; k += 2, codes += 64) {
        const Pairs pairs = unpacked(codes, values);
        const int32_t* in = x + static_cast<int64_t>(k / 2) * all_rows;
        for (int row = 0; row < rows; ++row)
          for (int i = 0; i < 4; ++i)
            products[row][i] = _mm512_dpbf16_ps(products[row][i], pairs.of[i],
                                                (__m512bh)_mm512_set1_epi32(in[row]));
      }
      for (int i = 0; i < 4; ++i) {
        const __m512 scale = scales_of(scales + (i / 2) * 64 + (i % 2) * 16);
        for (int row = 0; row < rows; ++row)
          sums[row][i] = _mm512_fmadd_ps(products[row][i], scale, sums[row][i]);
      }
      scales += 2 * static_cast<int64_t>(w.outputs);
    }
  }
  for (int row = 0; row < rows; ++row, y += w.outputs) {
    store(y, sums[row][0], sums[row][1]);
    store(y + 32, sums[row][2], sums[row][3]);
  }
}

using Multiply = void (*)(const Weight&, const int32_t*, int, int, uint16_t*);
constexpr Multiply kMultiply[kRows] = {multiply<1>, multiply<2>, multiply<3>,
                                       multiply<4>, multiply<5>, multiply<6>};

}  // namespace

// x: (inputs / 2, rows), pairs of bfloat16; y: (rows, outputs) bfloat16; outputs: a multiple of 64.
// planes: 1, or 2 for 8 bits, whose high nibbles come first.
extern "C" void grace_int4_product(const int32_t* x, const uint8_t* codes, const uint16_t* scales,
                                   uint16_t* y, int rows, int outputs, int inputs, int planes,
                                   int group, int threads) {
  const Weight w{codes, scales, outputs, inputs, planes, group};
  const int tiles = (rows + kRows - 1) / kRows;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int block = 0; block < outputs / kOutputs; ++block)
    for (int tile = 0; tile < tiles; ++tile) {  // as even as possible
      const int first = static_cast<int64_t>(rows) * tile / tiles;
      const int count = static_cast<int64_t>(rows) * (tile + 1) / tiles - first;
      kMultiply[count - 1](w, x + first, rows, block,
                           y + static_cast<int64_t>(first) * outputs + block * kOutputs);
    }
}
