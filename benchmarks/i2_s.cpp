// bitnet.cpp's I2_S kernel behind a C interface, for packed_layers.py. Built apart from the package,
// from checkouts of github.com/microsoft/BitNet and github.com/Eddie-Wang1120/llama.cpp, and an empty
// ggml-cpu-impl.h, whose content is not needed:
//
//     g++ -O3 -march=native -fpermissive -w -shared -fPIC -DGGML_TYPE_I2_S=GGML_TYPE_COUNT
//         -IBitNet/include -IBitNet/src -Illama.cpp/ggml/include -Illama.cpp/ggml/src
//         benchmarks/i2_s.cpp -o libi2s.so
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "ggml-bitnet-mad.cpp"

extern "C" size_t ggml_row_size(ggml_type, int64_t columns) { return columns; }

// Packs weights of -c, 0 and c, rows * columns / 4 bytes and 32 more, which begin with c.
extern "C" void i2s_pack(const float *weights, void *packed, int64_t rows, int64_t columns)
{
    quantize_i2_s(weights, packed, rows, columns, nullptr);
}

// Multiplies inputs [batch, columns], rounded to 8 bits each, as bitnet.cpp does: out[b, r].
extern "C" void i2s_product(const void *packed, int64_t rows, int64_t columns, const float *inputs,
                            int64_t batch, float *out)
{
    const uint8_t *bytes = static_cast<const uint8_t *>(packed);
    float constant;
    std::memcpy(&constant, bytes + rows * columns / 4, sizeof constant);
    std::vector<int8_t> rounded(batch * columns);
    std::vector<float> scales(batch), offsets(batch), sums(rows);
    for (int64_t b = 0; b < batch; b++) {
        float largest = 1e-5f;
        for (int64_t c = 0; c < columns; c++)
            largest = std::fmax(largest, std::fabs(inputs[b * columns + c]));
        int32_t total = 0;
        for (int64_t c = 0; c < columns; c++) {
            int32_t number = std::lrintf(inputs[b * columns + c] * (127 / largest));
            rounded[b * columns + c] = static_cast<int8_t>(number);
            total += number;
        }
        scales[b] = constant * largest / 127;
        offsets[b] = static_cast<float>(total); // the codes of -1, 0 and 1 are 0, 1 and 2
    }
    int64_t b = 0;
    for (; b + PARALLEL_SIZE <= batch; b += PARALLEL_SIZE) // several inputs at once
        for (int64_t r = 0; r < rows; r++) {
            float of_inputs[PARALLEL_SIZE];
            ggml_vec_dot_i2_i8_s_Nx1(columns, of_inputs, 1, bytes + r * columns / 4, 0,
                                     rounded.data() + b * columns, columns, PARALLEL_SIZE);
            for (int64_t i = 0; i < PARALLEL_SIZE; i++)
                out[(b + i) * rows + r] = (of_inputs[i] - offsets[b + i]) * scales[b + i];
        }
    for (; b < batch; b++) {
        ggml_vec_dot_i2_i8_s_1x1(columns, sums.data(), 1, bytes, columns,
                                 rounded.data() + b * columns, 0, rows);
        for (int64_t r = 0; r < rows; r++)
            out[b * rows + r] = (sums[r] - offsets[b]) * scales[b];
    }
}
