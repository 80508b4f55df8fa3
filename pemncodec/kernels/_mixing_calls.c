/* Context mixing (section 6.4): calls of _mixing.c. */
#include "_native.h"
#include "_mixing.h"

typedef struct {
    Py_buffer bits, data, buckets, parts, tables;
    uint64_t *copied; /* parts */
    size_t count;     /* of them */
    int32_t known[MIXING_STRETCH + MIXING_SQUASH];
    void *state;
} Mixing;

static void release_mixing(Mixing *mixing)
{
    Py_buffer *views[] = {&mixing->bits, &mixing->data, &mixing->buckets, &mixing->parts,
                          &mixing->tables};
    for (size_t i = 0; i < sizeof views / sizeof *views; i++)
        PyBuffer_Release(views[i]);
    PyMem_Free(mixing->copied);
    PyMem_Free(mixing->state);
    PyMem_Free(mixing);
}

/* Returns the error, "" when an exception is set, or NULL. */
static const char *prepare_mixing(Mixing *mixing)
{
    size_t row = MIXING_FIELDS * sizeof(uint64_t), size = (size_t)mixing->parts.len;
    size_t weights = (size_t)mixing->bits.len;
    unsigned char worst = 0;
    if (size % row != 0)
        return "parts";
    mixing->count = size / row;
    mixing->copied = PyMem_Malloc(size + 1);
    mixing->state = PyMem_Calloc(1, mixing_state_size());
    if (mixing->copied == NULL || mixing->state == NULL) {
        PyErr_NoMemory();
        return "";
    }
    memcpy(mixing->copied, mixing->parts.buf, size);
    if (weights == 0 || mixing_check_parts(mixing->copied, mixing->count) != weights)
        return "parts";
    if ((size_t)mixing->buckets.len != weights)
        return "buckets";
    for (size_t i = 0; i < weights; i++)
        worst |= ((unsigned char *)mixing->buckets.buf)[i];
    if (worst >= MIXING_BUCKETS)
        return "buckets";
    if (mixing->tables.len != sizeof mixing->known)
        return "tables";
    memcpy(mixing->known, mixing->tables.buf, sizeof mixing->known);
    return mixing_check_tables(mixing->known) ? NULL : "tables";
}

KERNEL(mixing_encode)
{
    static char *names[] = {"bits", "buckets", "parts", "tables", NULL};
    PyObject *result = NULL, *ends = NULL;
    unsigned char *buffer = NULL, worst = 0;
    size_t *written = NULL, size = 0;
    const char *error = "";
    Mixing *mixing = PyMem_Calloc(1, sizeof *mixing);
    if (mixing == NULL)
        return PyErr_NoMemory();
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O&:mixing_encode", names, readable,
                                    &mixing->bits, readable, &mixing->buckets, readable,
                                    &mixing->parts, readable, &mixing->tables))
        error = prepare_mixing(mixing);
    for (Py_ssize_t i = 0; error == NULL && i < mixing->bits.len; i++)
        worst |= ((unsigned char *)mixing->bits.buf)[i];
    if (worst > 1)
        error = "bits";
    if (error == NULL) {
        buffer = PyMem_Malloc(3 * (size_t)mixing->bits.len + 4);
        written = PyMem_Calloc(mixing->count, sizeof *written);
        ends = PyTuple_New((Py_ssize_t)mixing->count);
        if (buffer == NULL || written == NULL || ends == NULL) {
            PyErr_NoMemory();
            error = "";
        }
    }
    if (error == NULL) {
        Py_BEGIN_ALLOW_THREADS
        size = mixing_encode_block(buffer, mixing->bits.buf, mixing->buckets.buf, mixing->copied,
                                   mixing->count, mixing->known, mixing->state, written);
        Py_END_ALLOW_THREADS
        int whole = 1;
        for (size_t i = 0; i < mixing->count; i++) {
            PyObject *end = PyLong_FromSize_t(written[i]);
            whole &= end != NULL && PyTuple_SetItem(ends, (Py_ssize_t)i, end) == 0;
        }
        if (whole)
            result = Py_BuildValue("(y#O)", buffer, (Py_ssize_t)size, ends);
    } else if (*error != '\0')
        refuse(error);
    Py_XDECREF(ends);
    PyMem_Free(buffer);
    PyMem_Free(written);
    release_mixing(mixing);
    return result;
}

KERNEL(mixing_decode)
{
    static char *names[] = {"data", "buckets", "parts", "tables", "out", NULL};
    const char *error = "";
    Mixing *mixing = PyMem_Calloc(1, sizeof *mixing);
    if (mixing == NULL)
        return PyErr_NoMemory();
    if (PyArg_ParseTupleAndKeywords(args, keywords, "O&O&O&O&O&:mixing_decode", names, readable,
                                    &mixing->data, readable, &mixing->buckets, readable,
                                    &mixing->parts, readable, &mixing->tables, writable,
                                    &mixing->bits))
        error = prepare_mixing(mixing);
    if (error == NULL) {
        Py_BEGIN_ALLOW_THREADS
        error = mixing_decode_block(mixing->bits.buf, mixing->data.buf, (size_t)mixing->data.len,
                                    mixing->buckets.buf, mixing->copied, mixing->count,
                                    mixing->known, mixing->state);
        Py_END_ALLOW_THREADS
    }
    release_mixing(mixing);
    return outcome(error);
}
