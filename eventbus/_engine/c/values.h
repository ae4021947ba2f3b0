/* Slots and the values in them: counters, containers, what needs no judging. */

static inline int
is_a(PyObject *object, PyObject *type) /* and no subclass */
{
    return (PyObject *)Py_TYPE(object) == type;
}

/* Py_XDECREF(), where it counts. */
static INLINED void
drop(PyObject *object)
{
    if (object != NULL)
        Py_DECREF(object);
}

/* Put a value (a new reference) in the place of another, which is no object of a user's. */
static INLINED void
put(PyObject *object, Offset offset, PyObject *value)
{
    PyObject *old = SLOT(object, offset);
    SLOT(object, offset) = value;
    drop(old);
}

static INLINED void
put_again(PyObject *object, Offset offset, PyObject *value)
{
    put(object, offset, Py_NewRef(value));
}

/* Of objects that never end, on Pythons that have such: None, the states of deliveries. */
#if PY_VERSION_HEX >= 0x030C0000
#define CONSTANT(value) (value)
#else
#define CONSTANT(value) Py_NewRef(value)
#endif

/* The same where the old value is None as a rule. */
static INLINED void
put_none(PyObject *object, Offset offset)
{
    if (SLOT(object, offset) != Py_None)
        put_again(object, offset, Py_None);
}

/* A delivery's state in the place of another. */
static INLINED void
put_state(PyObject *delivery, Offset offset, PyObject *state)
{
#if PY_VERSION_HEX >= 0x030C0000
    SLOT(delivery, offset) = state;
#else
    put_again(delivery, offset, state);
#endif
}

/* An int as it is in memory, if one digit says all of it and it is not negative; else NULL. */
static INLINED digit *
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

/* A small int; -1 if it is none, or too large: a bound of a mailbox can be any number. */
static INLINED Py_ssize_t
small(PyObject *value)
{
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

static INLINED Py_ssize_t
number(PyObject *object, Offset offset)
{
    return small(SLOT(object, offset));
}

/* Ints up to here may be everybody's. */
#define SHARED 1024

/* A counter that nobody else has a reference to can be counted up and down where it is, which spares a burst much of what
   it would allocate. */
static INLINED int
is_own(PyObject *value, Py_ssize_t by)
{
    digit *only = Py_REFCNT(value) == 1 && PyLong_CheckExact(value) ? only_digit(value) : NULL;
    return only != NULL && (Py_ssize_t)*only > SHARED && (Py_ssize_t)*only + by > SHARED &&
           (Py_ssize_t)*only + by <= (Py_ssize_t)PyLong_MASK;
}

/* What a counter will be, for put_count(); NULL if there is no memory, or it is none. If it can be counted where it is,
   that is itself, not counted yet. */
static INLINED PyObject *
next_count(State *s, PyObject *value, Py_ssize_t by)
{
    if (value != NULL && is_own(value, by))
        return Py_NewRef(value);
    Py_ssize_t old = small(value), new = old + by;
    if (old < 0 || old == PY_SSIZE_T_MAX)
        return NULL;
    return new >= 0 && new < INTS ? Py_NewRef(s->ints[new]) : PyLong_FromSsize_t(new);
}

static INLINED PyObject *
changed(State *s, PyObject *object, Offset offset, Py_ssize_t by)
{
    return next_count(s, SLOT(object, offset), by);
}

/* Count, at the place of the counter: cannot fail. Steals the value that changed() has given for this. */
static INLINED void
put_in(PyObject **place, PyObject *value, Py_ssize_t by)
{
    PyObject *old = *place;
    if (old == value)
        *only_digit(value) += by;
    *place = value;
    drop(old);
}

static INLINED void
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

static INLINED int
is_true(PyObject *object, Offset offset)
{
    return SLOT(object, offset) == Py_True;
}

static INLINED int
is_none(PyObject *object, Offset offset)
{
    return SLOT(object, offset) == Py_None;
}

/* Whether an attribute is the float 0.0. */
static INLINED int
is_no_time(PyObject *object, Offset offset)
{
    PyObject *value = SLOT(object, offset);
    return PyFloat_CheckExact(value) && PyFloat_AS_DOUBLE(value) == 0.0;
}

/* How long a tuple, list, dict or deque is. */
static INLINED Py_ssize_t
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
