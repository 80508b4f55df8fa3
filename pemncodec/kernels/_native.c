/* The extension: converters of arguments, and the table of what can be called. */
#include "_native.h"

int refuse(const char *message)
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

int readable(PyObject *object, void *to) { return get_buffer(object, to, PyBUF_SIMPLE); }
int writable(PyObject *object, void *to) { return get_buffer(object, to, PyBUF_WRITABLE); }

int integer(PyObject *object, void *argument)
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

PyObject *outcome(const char *error) /* when "" an exception is already set */
{
    if (error == NULL)
        return Py_NewRef(Py_None);
    if (*error != '\0')
        refuse(error);
    return NULL;
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))name, METH_VARARGS | METH_KEYWORDS, NULL}

static PyMethodDef methods[] = {
    METHOD(philox4x32), METHOD(quantiles), METHOD(rans_encode), METHOD(rans_decode),
    METHOD(runs_encode), METHOD(runs_decode), METHOD(expand), METHOD(expand_normal),
    METHOD(top_k), METHOD(keep_largest), METHOD(magnitude_gradient),
    METHOD(mixing_encode), METHOD(mixing_decode), {0},
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

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    fill_kept_words();
    return PyModuleDef_Init(&definition);
}
