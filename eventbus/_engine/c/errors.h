/* Exceptions: taking them, putting them back, and having Python code make good what they broke off. */

/* The exception that is set, as an object with its traceback. */
static PyObject *
take_error(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace != NULL)
        PyException_SetTraceback(value, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return value;
#endif
}

/* The opposite: as it was, its __context__ too. Steals it. */
static void
set_error(PyObject *error)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(error);
#else
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(error)), error, PyException_GetTraceback(error));
#endif
}

/* After an error: have Python code do something outside of steps. It is noted where the next flush finds it, without a
   call of Python code; if the stack is exhausted, whoever flushes next has more of it. */
static void
note(State *s, PyObject *error, PyObject *monitor, PyObject *function, PyObject *a, PyObject *b, PyObject *c, PyObject *d)
{
    PyObject *parts[5] = {function, a, b, c, d}, *call = NULL, *after = SLOT(monitor, s->m.after);
    Py_ssize_t count = 0;
    while (count < 5 && parts[count] != NULL)
        count++;
    PyObject *given = PyTuple_New(count);
    for (Py_ssize_t index = 0; given != NULL && index < count; index++)
        PyTuple_SET_ITEM(given, index, Py_NewRef(parts[index]));
    /* On 3.11 to call the type would count as a recursion. */
    if (given != NULL)
        call = ((PyTypeObject *)s->partial)->tp_new((PyTypeObject *)s->partial, given, NULL);
    Py_XDECREF(given);
    PyObject *nothing = call == NULL || !is_a(after, s->deque) ? NULL : s->append(after, call);
    Py_XDECREF(call);
    if (nothing != NULL && !PyErr_GivenExceptionMatches(error, PyExc_RecursionError))
        Py_SETREF(nothing, PyObject_CallMethodNoArgs(monitor, s->n_flush));
    if (nothing == NULL)
        PyErr_Clear();
    Py_XDECREF(nothing);
}
