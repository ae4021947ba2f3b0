/* Slots and the values in them: counters, containers, what needs no judging. */

static inline int
is_a(PyObject *object, PyObject *type) /* and no subclass */
{
    return (PyObject *)Py_TYPE(object) == type;
}

/* Put a value (a new reference) in the place of another, which is no object of a user's. */
static inline void
put(PyObject *object, Offset offset, PyObject *value)
{
    PyObject *old = SLOT(object, offset);
    SLOT(object, offset) = value;
    Py_XDECREF(old);
}

static inline void
put_again(PyObject *object, Offset offset, PyObject *value)
{
    put(object, offset, Py_NewRef(value));
}

/* An int as it is in memory, if one digit says all of it and it is not negative; else NULL. */
static inline digit *
only_digit(PyObject *value)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyLongObject *number = (PyLongObject *)value;
    int is_compact = PyUnstable_Long_IsCompact(number) && PyUnstable_Long_CompactValue(number) >= 0;
    return is_compact ? number->long_value.ob_digit : NULL;
#else
    return Py_SIZE(value) == 1 ? ((PyLongObject *)value)->ob_digit : NULL;
#endif
}

/* An attribute that is a small int; -1 if it is none, or too large: a bound of a mailbox can be any number. */
static inline Py_ssize_t
number(PyObject *object, Offset offset)
{
    PyObject *value = SLOT(object, offset);
    if (value == NULL || !PyLong_CheckExact(value))
        return -1;
    digit *only = only_digit(value);
    if (only != NULL)
        return (Py_ssize_t)*only;
    Py_ssize_t found = PyLong_AsSsize_t(value);
    if (found == -1)
        PyErr_Clear();
    return found;
}

/* Ints up to here may be everybody's. */
#define SHARED 1024

/* A counter that nobody else has a reference to can be counted up and down where it is, which spares a burst much of what
   it would allocate. */
static inline int
is_own(PyObject *value, Py_ssize_t by)
{
    digit *only = Py_REFCNT(value) == 1 && PyLong_CheckExact(value) ? only_digit(value) : NULL;
    return only != NULL && (Py_ssize_t)*only > SHARED && (Py_ssize_t)*only + by > SHARED &&
           (Py_ssize_t)*only + by <= (Py_ssize_t)PyLong_MASK;
}

/* What a counter will be, for put_count(); NULL if there is no memory, or it is none. If it can be counted where it is,
   that is itself, not counted yet. */
static inline PyObject *
next_count(PyObject *value, Py_ssize_t old, Py_ssize_t by)
{
    if (value != NULL && is_own(value, by))
        return Py_NewRef(value);
    return old < 0 || old == PY_SSIZE_T_MAX ? NULL : PyLong_FromSsize_t(old + by);
}

static inline PyObject *
changed(PyObject *object, Offset offset, Py_ssize_t by)
{
    return next_count(SLOT(object, offset), number(object, offset), by);
}

/* Count, at the place of the counter: cannot fail. Steals the value that changed() has given for this. */
static inline void
put_in(PyObject **place, PyObject *value, Py_ssize_t by)
{
    PyObject *old = *place;
    if (old == value)
        *only_digit(value) += by;
    *place = value;
    Py_XDECREF(old);
}

static inline void
put_count(PyObject *object, Offset offset, PyObject *value, Py_ssize_t by)
{
    put_in(&SLOT(object, offset), value, by);
}

/* Note a time, if there is memory for it. */
static inline void
put_time(PyObject *object, Offset offset, double seconds)
{
    PyObject *value = PyFloat_FromDouble(seconds);
    if (value != NULL)
        put(object, offset, value);
    else
        PyErr_Clear();
}

static inline int
is_true(PyObject *object, Offset offset)
{
    return SLOT(object, offset) == Py_True;
}

static inline int
is_none(PyObject *object, Offset offset)
{
    return SLOT(object, offset) == Py_None;
}

/* How long a tuple, list, dict or deque is. */
static inline Py_ssize_t
length(State *s, PyObject *container)
{
    if (PyTuple_CheckExact(container) || PyList_CheckExact(container) || is_a(container, s->deque))
        return Py_SIZE(container);
    return PyObject_Size(container);
}

/* Values that hold no others. */
static inline int
is_atomic(PyObject *value)
{
    return value == Py_None || PyLong_CheckExact(value) || PyBool_Check(value) || PyFloat_CheckExact(value) ||
           PyUnicode_CheckExact(value) || PyBytes_CheckExact(value);
}

/* Whether a value needs no judging: it cannot be an awaitable. */
static inline int
is_plain(State *s, PyObject *value)
{
    if (is_atomic(value))
        return 1;
    int found = PySet_Contains(s->plain, (PyObject *)Py_TYPE(value));
    if (found < 0)
        PyErr_Clear();
    return found == 1;
}

/* Whether this thread is in the midst of a step, of whatever bus. */
static int
in_step(State *s)
{
    if (PyDict_GET_SIZE(s->steps) == 0)
        return 0;
    PyObject *ident = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    int found = ident == NULL ? -1 : PyDict_Contains(s->steps, ident);
    Py_XDECREF(ident);
    if (found < 0)
        PyErr_Clear();
    return found != 0;
}
