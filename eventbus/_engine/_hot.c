/* The hot path in C: what the sections of engine.py, turn.py, inline.py and dispatcher.py do, and nothing else.

   Optional. Each function here does a whole common case or refuses it and has changed nothing; the Python code then goes
   on, and is complete without this file. Where the two differ, the Python is right: it is the specification.

   A section (see primitives.SECTIONS) is a run of this code between two calls that can run Python code. On a build with a
   GIL no other thread and no signal handler comes in between; so what may allocate a container (which on Python 3.11 can
   run the collector) or drop the last reference to an object of a user's stands before or after a section, never in it.
   Where memory runs out within a section nothing has been changed yet: new values are made first, then put in place.

   Objects keep their Python classes: attributes are read and written at the offsets of their __slots__, which bind() looks
   up. Builds without a GIL do not have this module. */

/* Its parts, each of which builds on those before it. */
#include "c/state.h"
#include "c/values.h"
#include "c/errors.h"
#include "c/clocks.h"
#include "c/objects.h"
#include "c/collector.h"
#include "c/contexts.h"
#include "c/turn.h"
#include "c/latch.h"
#include "c/threads.h"
#include "c/loops.h"
#include "c/inline.h"
#include "c/emit.h"
#include "c/method.h"
#include "c/bind.h"

static PyMethodDef methods[] = {
    {"attend", (PyCFunction)(void (*)(void))attend, METH_FASTCALL, NULL},
    {"bind", bind, METH_O, NULL},
    {"bind_loops", bind_loops, METH_O, NULL},
    {"collects", (PyCFunction)(void (*)(void))collects, METH_FASTCALL, NULL},
    {"drain", (PyCFunction)(void (*)(void))drain, METH_FASTCALL, NULL},
    {"resume", (PyCFunction)(void (*)(void))resume, METH_FASTCALL, NULL},
    {"serve", (PyCFunction)(void (*)(void))serve, METH_FASTCALL, NULL},
    {"track", (PyCFunction)(void (*)(void))track, METH_FASTCALL, NULL},
    {"use", use, METH_O, NULL},
    {"emit", (PyCFunction)(void (*)(void))emit_alone, METH_FASTCALL, NULL},
    {"used", used, METH_NOARGS, NULL},
    {"quicken", (PyCFunction)(void (*)(void))quicken, METH_FASTCALL, NULL},
    {"flow", (PyCFunction)(void (*)(void))flow, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static int
prepare(PyObject *module)
{
    State *s = PyModule_GetState(module);
    for (int each = 0; each < INTS; each++)
        if ((s->ints[each] = PyLong_FromLong(each)) == NULL)
            return -1;
    s->no_time = PyFloat_FromDouble(0.0);
    s->clocks[MONOTONIC].name = PyUnicode_InternFromString("monotonic");
    s->clocks[MONOTONIC].id = MONOTONIC_ID;
    s->clocks[WALL_CLOCK].name = PyUnicode_InternFromString("wall_clock");
    s->clocks[WALL_CLOCK].id = REALTIME_ID;
    s->n_as_event = PyUnicode_InternFromString("_as_event");
    s->n_follow_up = PyUnicode_InternFromString("follow_up");
    s->n_flush = PyUnicode_InternFromString("flush");
    s->n_release = PyUnicode_InternFromString("release");
    s->n_wake = PyUnicode_InternFromString("wake");
    s->n_wake_loop = PyUnicode_InternFromString("_wake");
    s->n_go_on = PyUnicode_InternFromString("go_on");
    s->n_lent = PyUnicode_InternFromString("lent");
    s->n_cancelling = PyUnicode_InternFromString("cancelling");
    PyObject *latch = PyType_FromModuleAndSpec(module, &latch_spec, NULL);
    if (latch == NULL || PyModule_AddType(module, (PyTypeObject *)latch) < 0) {
        Py_XDECREF(latch);
        return -1;
    }
    Py_DECREF(latch);
    return PyErr_Occurred() ? -1 : 0;
}

static int
traverse(PyObject *module, visitproc visit, void *arg)
{
    State *s = PyModule_GetState(module);
#define VISIT(name) Py_VISIT(s->name);
    HELD(VISIT)
    for (int which = 0; which < CLOCKS; which++)
        Py_VISIT(s->clocks[which].function);
    return 0;
}

static int
clear(PyObject *module)
{
    State *s = PyModule_GetState(module);
    s->on = 0; /* whoever comes now is refused */
    leave_seam(s);
    leave_spares(s->Delivery);
    for (int which = 0; which < CLOCKS; which++)
        Py_CLEAR(s->clocks[which].function);
#define CLEAR(name) Py_CLEAR(s->name);
    HELD(CLEAR)
    return 0;
}

static void
release(void *module)
{
    State *s = PyModule_GetState(module);
    clear(module);
    for (int each = 0; each < INTS; each++)
        Py_CLEAR(s->ints[each]);
    NAMES(CLEAR)
    for (int which = 0; which < CLOCKS; which++)
        Py_CLEAR(s->clocks[which].name);
    Py_CLEAR(s->cell);
    Py_CLEAR(s->ident);
    Py_CLEAR(s->mapping);
    Py_CLEAR(s->raised);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, prepare},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_hot", NULL, sizeof(State), methods, slots, traverse, clear, release,
};

PyMODINIT_FUNC
PyInit__hot(void)
{
    return PyModuleDef_Init(&definition);
}
