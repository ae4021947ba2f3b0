/* What the garbage collector sees, and from when on. */

/* The collector looks at every object that it tracks again and again, which costs a burst more than all else. While a
   delivery is pending for the dispatcher, a thread of it holds the bus; while it is for a loop, so does what that is to
   call next, until a handler suspends (LoopExecutor.suspend) or it stands still (show_still() in _runner.py); while an
   inline one runs the emitter's stack does. So nothing of a delivery and its receipt is garbage; and once settled they
   hold nothing that could lead back to them, but for what the handler returned or raised, and the facade's receipts for
   the bus. So they are tracked only from then on, see track(). */
static inline void
track_one(PyObject *object)
{
    if (object != NULL && PyObject_IS_GC(object) && !PyObject_GC_IsTracked(object) &&
        !(PyTuple_CheckExact(object) && Py_SIZE(object) == 0)) /* the empty tuple is everybody's */
        PyObject_GC_Track(object);
}

/* Whether what is pending in a mailbox is held by more than itself, see above. */
static inline int
is_kept(State *s, PyObject *box)
{
    PyObject *executor = SLOT(box, s->b.executor);
    return is_a(executor, s->Dispatcher) ||
           (is_a(executor, s->LoopExecutor) && SLOT(executor, s->l.paused) == Py_False &&
            SLOT(executor, s->l.gone) == Py_False);
}

static void
track_both(State *s, PyObject *delivery, PyObject *receipt)
{
    track_one(delivery);
    if (receipt != Py_None) { /* it is let go of when it is settled */
        track_one(receipt);
        track_one(SLOT(receipt, s->r._deliveries));
    }
}

/* track(delivery, receipt), track(receipt): they may be part of a cycle from here on. */
static PyObject *
track(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    State *s = PyModule_GetState(module);
    if (s->bound && count == 2)
        track_both(s, args[0], args[1]);
    else if (count == 1)
        track_one(args[0]);
    Py_RETURN_NONE;
}

/* Raise it in the main thread. */
static int
raise_later(void *error)
{
    set_error(error);
    return -1;
}

/* collects(phase, info): stands in gc.callbacks; before a full collection it has shown what is pending for loops that do
   not run. In C, or a signal that came during a collection would have its handler run here. What that raises would be
   lost within a collection: if it comes just as Python code looks at the loops, it is raised when that has ended. */
static PyObject *
collects(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    State *s = PyModule_GetState(module);
    if (count != 2 || s->LoopExecutor == NULL || !PyUnicode_Check(args[0]) || !PyDict_Check(args[1]))
        Py_RETURN_NONE;
    if (PyUnicode_CompareWithASCIIString(args[0], "start") != 0) {
        PyObject *error = s->raised;
        s->raised = NULL;
        if (error != NULL && Py_AddPendingCall(raise_later, error) < 0) {
            set_error(error);
            return NULL;
        }
        Py_RETURN_NONE;
    }
    PyObject *generation = PyDict_GetItemString(args[1], "generation");
    if (generation == NULL || !PyLong_CheckExact(generation) || PyLong_AsLong(generation) != 2)
        Py_RETURN_NONE;
    PyObject *nothing = PyObject_CallNoArgs(s->show_still);
    if (nothing != NULL)
        Py_DECREF(nothing);
    else if (PyErr_ExceptionMatches(PyExc_RecursionError) || PyErr_ExceptionMatches(PyExc_MemoryError))
        PyErr_Clear(); /* its own: the next collection shows it */
    else
        Py_XSETREF(s->raised, take_error());
    Py_RETURN_NONE;
}
