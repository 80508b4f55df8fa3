/* What calls from Python have in common: arguments, errors, results. For one file to include. */
#ifndef PEMNCODEC_CALLS_H
#define PEMNCODEC_CALLS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "kernels.h"

/* ---- Arguments: converters for PyArg_ParseTupleAndKeywords ---- */

typedef struct {
    const char *name;
    uint64_t least, most, value;
} Integer;

/* Sets a ValueError; returns 0, as converters do. */
static int refuse(const char *message)
{
    PyErr_SetString(PyExc_ValueError, message);
    return 0;
}

static int get_buffer(PyObject *object, Py_buffer *view, int flags)
{
    if (PyObject_GetBuffer(object, view, flags) == 0)
        return 1;
    view->obj = NULL;
    /* Exporters disagree about the exception for a buffer that is read-only or not contiguous. */
    if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_ValueError))
        return 0;
    PyErr_Clear();
    return refuse("buffer");
}

static int readable(PyObject *object, void *to) { return get_buffer(object, to, PyBUF_SIMPLE); }
static int writable(PyObject *object, void *to) { return get_buffer(object, to, PyBUF_WRITABLE); }

static int integer(PyObject *object, void *argument)
{
    Integer *to = argument;
    PyObject *index = PyNumber_Index(object);
    if (index == NULL)
        return 0;
    to->value = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    if (PyErr_Occurred() ? PyErr_ExceptionMatches(PyExc_OverflowError)
                         : to->value < to->least || to->value > to->most) {
        PyErr_Clear();
        return refuse(to->name);
    }
    return !PyErr_Occurred();
}

static void release(Py_buffer *const *buffers)
{
    for (; *buffers != NULL; buffers++)
        PyBuffer_Release(*buffers);
}

#define RELEASE(...) release((Py_buffer *[]){__VA_ARGS__, NULL})

static Bytes bytes_of(const Py_buffer *view)
{
    return (Bytes){view->buf, (size_t)view->len};
}

static Room room_of(const Py_buffer *view)
{
    return (Room){view->buf, (size_t)view->len};
}

/* ---- Results ---- */

/* In place of a kernel's error: an exception is set already. */
static const char raised[] = "";

static PyObject *raise(const char *error)
{
    if (strcmp(error, OUT_OF_MEMORY) == 0)
        PyErr_NoMemory();
    else if (error != raised)
        refuse(error);
    return NULL;
}

static PyObject *none_or_raise(const char *error)
{
    return error == NULL ? Py_NewRef(Py_None) : raise(error);
}

static PyObject *bytes_or_raise(const char *error, const Coded *coded)
{
    if (error != NULL)
        return raise(error);
    return PyBytes_FromStringAndSize((const char *)coded->at, (Py_ssize_t)coded->size);
}

static PyObject *tuple_of(const size_t *numbers, size_t count)
{
    PyObject *tuple = PyTuple_New((Py_ssize_t)count);
    for (size_t i = 0; tuple != NULL && i < count; i++) {
        PyObject *number = PyLong_FromSize_t(numbers[i]);
        if (number == NULL || PyTuple_SetItem(tuple, (Py_ssize_t)i, number) != 0)
            Py_CLEAR(tuple);
    }
    return tuple;
}

/* ---- Calls ---- */

#define CALLED(name) \
    static PyObject *called_##name(PyObject *Py_UNUSED(module), PyObject *args, PyObject *keywords)
#define PARSE(...) PyArg_ParseTupleAndKeywords(args, keywords, __VA_ARGS__)
#define ANY(name) {name, 0, UINT64_MAX, 0}
#define WITHOUT_GIL(statement) \
    do { \
        Py_BEGIN_ALLOW_THREADS \
        statement; \
        Py_END_ALLOW_THREADS \
    } while (0)

#endif
