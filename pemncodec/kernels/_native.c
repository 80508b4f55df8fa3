/* Calls from Python: converts arguments, releases the GIL, calls a kernel and raises its error. */
#include "calls.h"

#include <stdlib.h>

#include "kernels.h"
#include "mersenne.h"
#include "pages.h"

CALLED(philox4x32)
{
    static char *names[] = {"out", "seed", "stream", "start", NULL};
    Py_buffer out = {0};
    Integer seed = ANY("seed"), stream = ANY("stream"), start = ANY("start");
    const char *error = raised;
    if (PARSE("O&O&O&O&:philox4x32", names, writable, &out, integer, &seed, integer, &stream,
              integer, &start))
        WITHOUT_GIL(error = philox4x32(room_of(&out), seed.value, stream.value, start.value));
    PyBuffer_Release(&out);
    return none_or_raise(error);
}

CALLED(quantiles)
{
    static char *names[] = {"words", "table", "out", NULL};
    Py_buffer words = {0}, table = {0}, out = {0};
    const char *error = raised;
    if (PARSE("O&O&O&:quantiles", names, readable, &words, readable, &table, writable, &out))
        WITHOUT_GIL(error = quantiles(bytes_of(&words), bytes_of(&table), room_of(&out)));
    RELEASE(&words, &table, &out);
    return none_or_raise(error);
}

CALLED(mersenne_seed)
{
    static char *names[] = {"seed", "out", NULL};
    Integer seed = {"seed", 0, UINT32_MAX, 0};
    Py_buffer out = {0};
    const char *error = raised;
    if (PARSE("O&O&:mersenne_seed", names, integer, &seed, writable, &out))
        WITHOUT_GIL(error = mersenne_seed(seed.value, room_of(&out)));
    PyBuffer_Release(&out);
    return none_or_raise(error);
}

CALLED(mersenne_advance)
{
    static char *names[] = {"state", "blocks", NULL};
    Py_buffer state = {0};
    Integer blocks = {"blocks", 0, MERSENNE_BLOCKS, 0};
    const char *error = raised;
    if (PARSE("O&O&:mersenne_advance", names, writable, &state, integer, &blocks))
        WITHOUT_GIL(error = mersenne_advance(room_of(&state), blocks.value));
    PyBuffer_Release(&state);
    return none_or_raise(error);
}

CALLED(mersenne_rewind)
{
    static char *names[] = {"state", "blocks", NULL};
    Py_buffer state = {0};
    Integer blocks = {"blocks", 0, MERSENNE_BLOCKS, 0};
    int64_t back = -1;
    const char *error = raised;
    if (PARSE("O&O&:mersenne_rewind", names, writable, &state, integer, &blocks))
        WITHOUT_GIL(error = mersenne_rewind(room_of(&state), blocks.value, &back));
    PyBuffer_Release(&state);
    return error == NULL ? PyLong_FromLongLong(back) : raise(error);
}

CALLED(mersenne_words)
{
    static char *names[] = {"state", "skip", "out", NULL};
    Py_buffer state = {0}, out = {0};
    Integer skip = {"skip", 0, MERSENNE_STATE - 1, 0};
    const char *error = raised;
    if (PARSE("O&O&O&:mersenne_words", names, readable, &state, integer, &skip, writable, &out))
        WITHOUT_GIL(error = mersenne_words(bytes_of(&state), skip.value, room_of(&out)));
    RELEASE(&state, &out);
    return none_or_raise(error);
}

CALLED(torch_normal)
{
    static char *names[] = {"words", "fused", "out", NULL};
    Py_buffer words = {0}, out = {0};
    Integer fused = {"fused", 0, 1, 0};
    const char *error = raised;
    if (PARSE("O&O&O&:torch_normal", names, readable, &words, integer, &fused, writable, &out))
        WITHOUT_GIL(error = torch_normal(bytes_of(&words), fused.value != 0, room_of(&out)));
    RELEASE(&words, &out);
    return none_or_raise(error);
}

CALLED(torch_uniform)
{
    static char *names[] = {"words", "fused", "bounds", "out", NULL};
    Py_buffer words = {0}, bounds = {0}, out = {0};
    Integer fused = {"fused", 0, 1, 0};
    const char *error = raised;
    if (PARSE("O&O&O&O&:torch_uniform", names, readable, &words, integer, &fused, readable, &bounds,
              writable, &out))
        WITHOUT_GIL(error = torch_uniform(bytes_of(&words), fused.value != 0, bytes_of(&bounds),
                                          room_of(&out)));
    RELEASE(&words, &bounds, &out);
    return none_or_raise(error);
}

CALLED(expand)
{
    static char *names[] = {"values", "itemsize", "offset", "mask", "out", "read_next", "threads", NULL};
    Py_buffer values = {0}, mask = {0}, out = {0};
    Integer itemsize = {"itemsize", 1, 16, 0}, offset = ANY("offset");
    Integer read_next = {"read_next", 0, 1, 0}, threads = {"threads", 1, UINT64_MAX, 0};
    const char *error = raised;
    if (PARSE("O&O&O&O&O&O&O&:expand", names, readable, &values, integer, &itemsize, integer, &offset,
              readable, &mask, writable, &out, integer, &read_next, integer, &threads))
        WITHOUT_GIL(error = expand(bytes_of(&values), itemsize.value, offset.value, bytes_of(&mask),
                                   room_of(&out), read_next.value != 0, threads.value));
    RELEASE(&values, &mask, &out);
    return none_or_raise(error);
}

CALLED(expand_normal)
{
    static char *names[] = {"seed", "stream", "start", "table", "mask", "out", NULL};
    Integer seed = ANY("seed"), stream = ANY("stream"), start = ANY("start");
    Py_buffer table = {0}, mask = {0}, out = {0};
    const char *error = raised;
    if (PARSE("O&O&O&O&O&O&:expand_normal", names, integer, &seed, integer, &stream, integer, &start,
              readable, &table, readable, &mask, writable, &out))
        WITHOUT_GIL(error = expand_normal(seed.value, stream.value, start.value, bytes_of(&table),
                                          bytes_of(&mask), room_of(&out)));
    RELEASE(&table, &mask, &out);
    return none_or_raise(error);
}

CALLED(expand_drawn)
{
    static char *names[] = {"state", "skip", "fused", "bounds", "scale", "mask", "out", NULL};
    Py_buffer state = {0}, bounds = {0}, scale = {0}, mask = {0}, out = {0};
    Integer skip = {"skip", 0, MERSENNE_STATE - 1, 0}, fused = {"fused", 0, 1, 0};
    const char *error = raised;
    if (PARSE("O&O&O&O&O&O&O&:expand_drawn", names, readable, &state, integer, &skip, integer, &fused,
              readable, &bounds, readable, &scale, readable, &mask, writable, &out))
        WITHOUT_GIL(error = expand_drawn(bytes_of(&state), skip.value, fused.value != 0,
                                         bytes_of(&bounds), bytes_of(&scale), bytes_of(&mask),
                                         room_of(&out)));
    RELEASE(&state, &bounds, &scale, &mask, &out);
    return none_or_raise(error);
}

CALLED(allow_large_pages)
{
    static char *names[] = {"out", NULL};
    Py_buffer out = {0};
    const char *error = raised;
    if (PARSE("O&:allow_large_pages", names, writable, &out))
        error = (allow_large_pages(out.buf, (size_t)out.len), NULL);
    PyBuffer_Release(&out);
    return none_or_raise(error);
}

CALLED(rans_encode)
{
    static char *names[] = {"symbols", "frequencies", "lanes", NULL};
    Py_buffer symbols = {0}, frequencies = {0};
    Integer lanes = ANY("lanes");
    Coded coded = {0};
    const char *error = raised;
    if (PARSE("O&O&O&:rans_encode", names, readable, &symbols, readable, &frequencies, integer,
              &lanes))
        WITHOUT_GIL(error = rans_encode(bytes_of(&symbols), bytes_of(&frequencies), lanes.value,
                                        &coded));
    RELEASE(&symbols, &frequencies);
    PyObject *result = bytes_or_raise(error, &coded);
    free(coded.memory);
    return result;
}

CALLED(rans_decode)
{
    static char *names[] = {"data", "frequencies", "lanes", "out", NULL};
    Py_buffer data = {0}, frequencies = {0}, out = {0};
    Integer lanes = ANY("lanes");
    const char *error = raised;
    if (PARSE("O&O&O&O&:rans_decode", names, readable, &data, readable, &frequencies, integer, &lanes,
              writable, &out))
        WITHOUT_GIL(error = rans_decode(bytes_of(&data), bytes_of(&frequencies), lanes.value,
                                        room_of(&out)));
    RELEASE(&data, &frequencies, &out);
    return none_or_raise(error);
}

CALLED(rans_decode_first)
{
    static char *names[] = {"data", "frequencies", "lanes", "out", NULL};
    Py_buffer data = {0}, frequencies = {0}, out = {0};
    Integer lanes = ANY("lanes");
    const char *error = raised;
    if (PARSE("O&O&O&O&:rans_decode_first", names, readable, &data, readable, &frequencies, integer,
              &lanes, writable, &out))
        WITHOUT_GIL(error = rans_decode_first(bytes_of(&data), bytes_of(&frequencies), lanes.value,
                                        room_of(&out)));
    RELEASE(&data, &frequencies, &out);
    return none_or_raise(error);
}

CALLED(runs_encode)
{
    static char *names[] = {"mask", "count", "longest", NULL};
    Py_buffer mask = {0};
    Integer count = ANY("count"), longest = {"longest", 1, 255, 0};
    Coded coded = {0};
    const char *error = raised;
    if (PARSE("O&O&O&:runs_encode", names, readable, &mask, integer, &count, integer, &longest))
        WITHOUT_GIL(error = runs_encode(bytes_of(&mask), count.value, longest.value, &coded));
    PyBuffer_Release(&mask);
    PyObject *result = bytes_or_raise(error, &coded);
    free(coded.memory);
    return result;
}

CALLED(runs_decode)
{
    static char *names[] = {"runs", "longest", "count", "out", NULL};
    Py_buffer runs = {0}, out = {0};
    Integer longest = {"longest", 1, 255, 0}, count = ANY("count");
    const char *error = raised;
    if (PARSE("O&O&O&O&:runs_decode", names, readable, &runs, integer, &longest, integer, &count,
              writable, &out))
        WITHOUT_GIL(error = runs_decode(bytes_of(&runs), longest.value, count.value,
                                        room_of(&out)));
    RELEASE(&runs, &out);
    return none_or_raise(error);
}

CALLED(mixing_encode)
{
    static char *names[] = {"bits", "buckets", "parts", "tables", NULL};
    Py_buffer bits = {0}, buckets = {0}, parts = {0}, tables = {0};
    Coded coded = {0};
    size_t *ends = NULL, count = 0;
    const char *error = raised;
    if (PARSE("O&O&O&O&:mixing_encode", names, readable, &bits, readable, &buckets, readable, &parts,
              readable, &tables)) {
        count = (size_t)parts.len / MIXING_PART;
        ends = calloc(count + 1, sizeof *ends);
        error = OUT_OF_MEMORY;
        if (ends != NULL)
            WITHOUT_GIL(error = mixing_encode(bytes_of(&bits), bytes_of(&buckets), bytes_of(&parts),
                                              bytes_of(&tables), &coded, ends));
    }
    RELEASE(&bits, &buckets, &parts, &tables);
    PyObject *data = bytes_or_raise(error, &coded), *result = NULL;
    if (data != NULL)
        result = Py_BuildValue("(NN)", data, tuple_of(ends, count));
    free(coded.memory);
    free(ends);
    return result;
}

CALLED(mixing_decode)
{
    static char *names[] = {"data", "buckets", "parts", "tables", "out", NULL};
    Py_buffer data = {0}, buckets = {0}, parts = {0}, tables = {0}, out = {0};
    const char *error = raised;
    if (PARSE("O&O&O&O&O&:mixing_decode", names, readable, &data, readable, &buckets, readable,
              &parts, readable, &tables, writable, &out))
        WITHOUT_GIL(error = mixing_decode(bytes_of(&data), bytes_of(&buckets), bytes_of(&parts),
                                          bytes_of(&tables), room_of(&out)));
    RELEASE(&data, &buckets, &parts, &tables, &out);
    return none_or_raise(error);
}

CALLED(top_k)
{
    static char *names[] = {"values", "kept", "out", NULL};
    Py_buffer values = {0}, out = {0};
    Integer kept = ANY("kept");
    const char *error = raised;
    if (PARSE("O&O&O&:top_k", names, readable, &values, integer, &kept, writable, &out))
        WITHOUT_GIL(error = top_k(bytes_of(&values), kept.value, room_of(&out)));
    RELEASE(&values, &out);
    return none_or_raise(error);
}

CALLED(keep_largest)
{
    static char *names[] = {"scores", "magnitude", "kept", "values", "out", "threads", NULL};
    Py_buffer scores = {0}, values = {0}, out = {0};
    Integer magnitude = {"magnitude", 0, 1, 0}, kept = ANY("kept");
    Integer threads = {"threads", 1, UINT64_MAX, 0};
    const char *error = raised;
    if (PARSE("O&O&O&O&O&O&:keep_largest", names, readable, &scores, integer, &magnitude, integer,
              &kept, readable, &values, writable, &out, integer, &threads))
        WITHOUT_GIL(error = keep_largest(bytes_of(&scores), magnitude.value != 0, kept.value,
                                         bytes_of(&values), room_of(&out), threads.value));
    RELEASE(&scores, &values, &out);
    return none_or_raise(error);
}

CALLED(magnitude_gradient)
{
    static char *names[] = {"gradient", "values", "scores", "out", "threads", NULL};
    Py_buffer gradient = {0}, values = {0}, scores = {0}, out = {0};
    Integer threads = {"threads", 1, UINT64_MAX, 0};
    const char *error = raised;
    if (PARSE("O&O&O&O&O&:magnitude_gradient", names, readable, &gradient, readable, &values,
              readable, &scores, writable, &out, integer, &threads))
        WITHOUT_GIL(error = magnitude_gradient(bytes_of(&gradient), bytes_of(&values),
                                               bytes_of(&scores), room_of(&out), threads.value));
    RELEASE(&gradient, &values, &scores, &out);
    return none_or_raise(error);
}

#define PRODUCT(NAME, SIZE) \
    CALLED(NAME) \
    { \
        static char *names[] = {"bits", "values", "offset", SIZE, "inputs", "out", "threads", NULL}; \
        Py_buffer bits = {0}, values = {0}, inputs = {0}, out = {0}; \
        Integer offset = ANY("offset"), size = {SIZE, 1, UINT64_MAX, 0}; \
        Integer threads = {"threads", 1, UINT64_MAX, 0}; \
        const char *error = raised; \
        if (PARSE("O&O&O&O&O&O&O&:" #NAME, names, readable, &bits, readable, &values, integer, \
                  &offset, integer, &size, readable, &inputs, writable, &out, integer, &threads)) \
            WITHOUT_GIL(error = NAME(bytes_of(&bits), bytes_of(&values), offset.value, size.value, \
                                     bytes_of(&inputs), room_of(&out), threads.value)); \
        RELEASE(&bits, &values, &inputs, &out); \
        return none_or_raise(error); \
    }
PRODUCT(packed_product, "columns")
PRODUCT(column_product, "rows")

CALLED(signed_product)
{
    static char *names[] = {"bits", "signs", "period", "offset", "constant", "columns", "inputs",
                            "out", "threads", NULL};
    Py_buffer bits = {0}, signs = {0}, constant = {0}, inputs = {0}, out = {0};
    Integer period = {"period", 1, UINT64_MAX, 0}, offset = ANY("offset");
    Integer columns = {"columns", 1, UINT64_MAX, 0}, threads = {"threads", 1, UINT64_MAX, 0};
    const char *error = raised;
    if (PARSE("O&O&O&O&O&O&O&O&O&:signed_product", names, readable, &bits, readable, &signs, integer,
              &period, integer, &offset, readable, &constant, integer, &columns, readable, &inputs,
              writable, &out, integer, &threads))
        WITHOUT_GIL(error = signed_product(bytes_of(&bits), bytes_of(&signs), period.value,
                                           offset.value, bytes_of(&constant), columns.value,
                                           bytes_of(&inputs), room_of(&out), threads.value));
    RELEASE(&bits, &signs, &constant, &inputs, &out);
    return none_or_raise(error);
}

CALLED(mersenne_solve)
{
    static char *names[] = {"words", "masks", "parities", "out", NULL};
    Py_buffer words = {0}, masks = {0}, parities = {0}, out = {0};
    int64_t left = 0;
    const char *error = raised;
    if (PARSE("O&O&O&O&:mersenne_solve", names, readable, &words, readable, &masks, readable,
              &parities, writable, &out))
        WITHOUT_GIL(error = mersenne_solve(bytes_of(&words), bytes_of(&masks), bytes_of(&parities),
                                           room_of(&out), &left));
    RELEASE(&words, &masks, &parities, &out);
    return error == NULL ? PyLong_FromLongLong(left) : raise(error);
}

CALLED(mersenne_pull_back)
{
    static char *names[] = {"words", "masks", "out", NULL};
    Py_buffer words = {0}, masks = {0}, out = {0};
    const char *error = raised;
    if (PARSE("O&O&O&:mersenne_pull_back", names, readable, &words, readable, &masks, writable, &out))
        WITHOUT_GIL(error = mersenne_pull_back(bytes_of(&words), bytes_of(&masks), room_of(&out)));
    RELEASE(&words, &masks, &out);
    return none_or_raise(error);
}

CALLED(mersenne_seeds)
{
    static char *names[] = {"masks", "parities", "places", "first", "count", NULL};
    Py_buffer masks = {0}, parities = {0};
    Integer places = {"places", 1, MERSENNE_PLACES, 0}, first = {"first", 0, UINT32_MAX, 0};
    Integer count = ANY("count");
    Coded coded = {0};
    const char *error = raised;
    if (PARSE("O&O&O&O&O&:mersenne_seeds", names, readable, &masks, readable, &parities, integer,
              &places, integer, &first, integer, &count))
        WITHOUT_GIL(error = mersenne_seeds(bytes_of(&masks), bytes_of(&parities), places.value,
                                           first.value, count.value, &coded));
    RELEASE(&masks, &parities);
    PyObject *result = bytes_or_raise(error, &coded);
    free(coded.memory);
    return result;
}

CALLED(match_words)
{
    static char *names[] = {"words", "bits", "table", "out", NULL};
    Py_buffer words = {0}, table = {0}, out = {0};
    Integer bits = {"bits", 1, 16, 0};
    uint64_t count = 0;
    const char *error = raised;
    if (PARSE("O&O&O&O&:match_words", names, readable, &words, integer, &bits, readable, &table,
              writable, &out))
        WITHOUT_GIL(error = match_words(bytes_of(&words), bits.value, bytes_of(&table), room_of(&out),
                                        &count));
    RELEASE(&words, &table, &out);
    return error == NULL ? PyLong_FromUnsignedLongLong(count) : raise(error);
}

/* ---- Module ---- */

#define METHOD(name) \
    {#name, (PyCFunction)(void (*)(void))called_##name, METH_VARARGS | METH_KEYWORDS, NULL}

static PyMethodDef methods[] = {
    METHOD(philox4x32), METHOD(quantiles), METHOD(expand), METHOD(expand_normal), METHOD(expand_drawn),
    METHOD(allow_large_pages), METHOD(rans_encode), METHOD(rans_decode), METHOD(rans_decode_first),
    METHOD(runs_encode), METHOD(runs_decode), METHOD(mixing_encode), METHOD(mixing_decode), METHOD(top_k),
    METHOD(keep_largest), METHOD(magnitude_gradient), METHOD(packed_product), METHOD(column_product),
    METHOD(signed_product), METHOD(mersenne_solve), METHOD(mersenne_seed), METHOD(mersenne_advance),
    METHOD(mersenne_rewind), METHOD(mersenne_words), METHOD(mersenne_pull_back), METHOD(mersenne_seeds),
    METHOD(match_words), METHOD(torch_normal), METHOD(torch_uniform),
    {0},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    prepare_kernels();
    return PyModuleDef_Init(&definition);
}
