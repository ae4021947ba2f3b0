/* What an idle thread of the pool sleeps on. */

#ifdef HAVE_SCHED_H
#include <sched.h>
#endif

/* A lock as threading.Lock() gives one, of which a Sleeper needs two methods.

   Whoever wakes a thread holds the GIL, and the system may let the woken one run in his place at once. That one could do
   no more than queue for the GIL, to be woken a second time. Where it finds him in the midst of release(), it lets him go
   on first. */
typedef struct {
    PyObject_HEAD
    PyThread_type_lock lock;
    int taken;              /* read and written with the GIL */
    volatile int releasing; /* written with the GIL, and read without: a stale value costs time, nothing else */
} Latch;

static PyObject *
latch_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    Latch *made = (Latch *)type->tp_alloc(type, 0);
    if (made != NULL && (made->lock = PyThread_allocate_lock()) == NULL) {
        Py_DECREF(made);
        PyErr_SetString(PyExc_RuntimeError, "no lock can be allocated");
        return NULL;
    }
    return (PyObject *)made;
}

/* acquire(timeout=None): tells whether it was had within so many seconds. Signals are left to the main thread, which does
   not sleep here. */
static PyObject *
latch_acquire(PyObject *self, PyObject *args, PyObject *names)
{
    static char *keywords[] = {"timeout", NULL};
    Latch *latch = (Latch *)self;
    double seconds = -1.0;
    if (!PyArg_ParseTupleAndKeywords(args, names, "|d:acquire", keywords, &seconds))
        return NULL;
    int had = PyThread_acquire_lock_timed(latch->lock, 0, 0) == PY_LOCK_ACQUIRED;
    if (!had && seconds != 0.0) {
        PY_TIMEOUT_T most = seconds < 0.0 ? -1 : (PY_TIMEOUT_T)(seconds * 1e6) + 1;
        Py_BEGIN_ALLOW_THREADS
        had = PyThread_acquire_lock_timed(latch->lock, most, 0) == PY_LOCK_ACQUIRED;
#ifdef HAVE_SCHED_H
        if (latch->releasing)
            sched_yield();
#endif
        Py_END_ALLOW_THREADS
    }
    if (had)
        latch->taken = 1;
    return PyBool_FromLong(had);
}

static PyObject *
latch_release(PyObject *self, PyObject *nothing)
{
    Latch *latch = (Latch *)self;
    if (!latch->taken) {
        PyErr_SetString(PyExc_RuntimeError, "the latch is open");
        return NULL;
    }
    latch->taken = 0;
    latch->releasing = 1;
    PyThread_release_lock(latch->lock);
    latch->releasing = 0;
    Py_RETURN_NONE;
}

static void
latch_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Latch *latch = (Latch *)self;
    if (latch->lock != NULL) {
        if (latch->taken)
            PyThread_release_lock(latch->lock); /* one that is locked must not be freed */
        PyThread_free_lock(latch->lock);
    }
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef latch_methods[] = {
    {"acquire", (PyCFunction)(void (*)(void))latch_acquire, METH_VARARGS | METH_KEYWORDS, NULL},
    {"release", latch_release, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot latch_slots[] = {
    {Py_tp_dealloc, latch_dealloc},
    {Py_tp_methods, latch_methods},
    {Py_tp_new, latch_new},
    {0, NULL},
};

static PyType_Spec latch_spec = {
    "eventbus._engine._hot.Latch", sizeof(Latch), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, latch_slots,
};
