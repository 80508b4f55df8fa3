/* Calls the kernels of products without Python, for processors that are emulated: reads arguments
 * from standard input and writes results. Sizes are in bytes. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"

static Bytes take(size_t size)
{
    unsigned char *memory = malloc(size + 1);
    if (memory == NULL || fread(memory, 1, size, stdin) != size)
        exit(1);
    return (Bytes){memory, size};
}

int main(void)
{
    uint64_t numbers[9]; /* which kernel; period, offset, columns; sizes */
    prepare_kernels();
    while (fread(numbers, sizeof numbers, 1, stdin) == 1) {
        Bytes bits = take(numbers[4]), values = take(numbers[5]), constant = take(numbers[6]);
        Bytes inputs = take(numbers[7]);
        Room out = {calloc(numbers[8] + 1, 1), numbers[8]};
        const char *error =
            numbers[0] == 0 ? packed_product(bits, values, numbers[2], numbers[3], inputs, out, 1)
            : numbers[0] == 1
                ? column_product(bits, values, numbers[2], numbers[3], inputs, out, 1)
                : signed_product(bits, values, numbers[1], numbers[2], constant, numbers[3], inputs,
                                 out, 1);
        if (error != NULL || fwrite(out.at, 1, out.size, stdout) != out.size)
            return 1;
    }
    return 0;
}
