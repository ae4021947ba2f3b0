/* The seam's clocks. */

/* How often a namespace that is watched has changed; where none can be watched, whoever asks has to look. One for all
   interpreters, each with a GIL of its own: one too many is no harm, one that is lost would be. */
#if PY_VERSION_HEX >= 0x030C0000
static volatile unsigned long changes = 1;

static int
note_change(PyDict_WatchEvent event, PyObject *namespace, PyObject *key, PyObject *value)
{
#if defined(__GNUC__)
    __atomic_fetch_add(&changes, 1, __ATOMIC_SEQ_CST);
#elif defined(_MSC_VER)
    _InterlockedIncrement((volatile long *)&changes);
#else
    changes++;
#endif
    return 0;
}
#endif

/* Have changes of the seam's namespace noted. */
static void
watch_seam(State *s)
{
#if PY_VERSION_HEX >= 0x030C0000
    if (s->watched)
        return;
    s->watcher = PyDict_AddWatcher(note_change);
    s->watched = s->watcher >= 0 && PyDict_Watch(s->watcher, s->seam) == 0;
    if (!s->watched) { /* others watch too much: it is looked up each time */
        PyErr_Clear();
        if (s->watcher >= 0)
            PyDict_ClearWatcher(s->watcher);
    }
#endif
}

static void
leave_seam(State *s)
{
#if PY_VERSION_HEX >= 0x030C0000
    if (s->watched && (PyDict_Unwatch(s->watcher, s->seam) < 0 || PyDict_ClearWatcher(s->watcher) < 0))
        PyErr_Clear();
    s->watched = 0;
    memset(s->seen, 0, sizeof(s->seen));
#endif
}

/* A clock of the seam: read here if nobody stands in for it. -1.0 if that fails, and then an exception is set. */
static double
read_clock(State *s, int which)
{
    const Clock *known = &s->clocks[which];
#if PY_VERSION_HEX >= 0x030C0000
    int is_known = s->watched && s->seen[which] == changes;
#else
    int is_known = 0;
#endif
    PyObject *clock = known->function;
    if (!is_known) {
        clock = PyDict_GetItemWithError(s->seam, known->name);
        if (clock == NULL) {
            if (!PyErr_Occurred())
                PyErr_SetObject(PyExc_KeyError, known->name);
            return -1.0;
        }
    }
#ifdef CLOCK_REALTIME
    struct timespec now;
    if (clock == known->function && known->id >= 0) {
#if PY_VERSION_HEX >= 0x030C0000
        s->seen[which] = changes;
#endif
        if (clock_gettime(known->id, &now) == 0)
            return (double)((long long)now.tv_sec * 1000000000 + now.tv_nsec) / 1e9; /* to the last bit as Python has it */
    }
#endif
    double value = -1.0;
    Py_INCREF(clock);
    PyObject *read = PyObject_CallNoArgs(clock);
    Py_DECREF(clock);
    if (read != NULL) {
        value = PyFloat_AsDouble(read);
        Py_DECREF(read);
    }
    return value;
}

/* Whether that has failed. */
static inline int
failed_at(double instant)
{
    return instant == -1.0 && PyErr_Occurred() != NULL;
}
