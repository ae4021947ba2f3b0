/* What inline.py does: handlers that run within the emit. */

static int
is_ident(PyObject *actor, unsigned long ident)
{
    if (actor == NULL || !PyLong_CheckExact(actor))
        return 0;
    unsigned long value = PyLong_AsUnsignedLong(actor);
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return value == ident;
}

/* One handler of inline.run_inline(). Gives the exception that is to pass, with a new reference, or None; NULL is an
   exception that is no handler's. */
static PyObject *
run_one(State *s, PyObject *engine, PyObject *receipt, PyObject *delivery, PyObject *cell, Own *own,
        PyThreadState *thread, double *started)
{
    PyObject *box = Py_NewRef(SLOT(delivery, s->d.box));
    if (box == Py_None)
        return box; /* it was cancelled meanwhile */
    PyObject *passing = NULL, *value = NULL, *error = NULL, *took = NULL;
    PyObject *count = changed(s, box, s->b.deliveries, 1);
    if (count == NULL)
        PyErr_Clear();
    PyObject *last = PyList_GET_ITEM(cell, 0);
    PyList_SET_ITEM(cell, 0, Py_NewRef(delivery));
    drop(last);
    /* Section: an inline delivery begins. */
    if (count != NULL && SLOT(SLOT(engine, s->e.monitor), s->m.busy) == Py_False && is_true(box, s->b.flows) &&
        length(s, SLOT(box, s->b.running)) == 0 && SLOT(box, s->b.counts) != s->no_counts &&
        SLOT(delivery, s->d.state) == s->ints[PENDING]) {
        put_state(delivery, s->d.state, s->ints[RUNNING]);
        put_again(delivery, s->d.info, SLOT(box, s->b.info));
        put_count(box, s->b.deliveries, count, 1);
        put_again(box, s->b.running, cell);
        /* End of section. */
    }
    else {
        Py_XDECREF(count);
        PyObject *begun = PyObject_CallFunctionObjArgs(s->begin_inline, engine, delivery, NULL);
        if (begun != Py_True) {
            if (begun != NULL)
                passing = Py_NewRef(Py_None);
            Py_XDECREF(begun);
            goto finally;
        }
        Py_DECREF(begun);
        *started = read_clock(s, MONOTONIC);
        if (failed_at(*started))
            goto finally;
    }
    /* In the thread's context, which is the emitter's own. */
    if (hold(s, own, thread, delivery) || set_current(s, own, delivery, 1) == 0) {
        PyObject *spec = Py_NewRef(SLOT(box, s->b.spec));
        PyObject *given = argument(s, delivery, receipt, SLOT(receipt, s->r._payload), SLOT(spec, s->s.convert),
                                   is_true(spec, s->s.takes_event));
        if (given != NULL) {
            value = call_one(SLOT(spec, s->s.function), given);
            Py_DECREF(given);
        }
        Py_DECREF(spec);
    }
    if (value == NULL)
        error = take_error();
    double now = read_clock(s, MONOTONIC);
    took = failed_at(now) ? NULL : seconds(s, delivery, now - *started);
    if (took == NULL) {
        PyErr_Clear();
        took = Py_NewRef(s->no_time);
    }
    *started = now;
    if (value != NULL && is_plain(s, value)) {
        PyObject *emitter = SLOT(engine, s->e.emitter);
        passing = turn(s, &s->emitter, engine, emitter, delivery, receipt, box, value, took, 0);
        if (passing != NULL)
            goto finally; /* None: there is nothing to claim */
    }
    passing = PyObject_CallFunctionObjArgs(s->end_inline, engine, delivery, value == NULL ? Py_None : value,
                                           error == NULL ? Py_None : error, took, NULL);
    if (passing != NULL) {
        *started = read_clock(s, MONOTONIC);
        if (failed_at(*started))
            Py_CLEAR(passing);
    }
finally:
    Py_XDECREF(value);
    Py_XDECREF(error);
    Py_XDECREF(took);
    Py_DECREF(box);
    return passing;
}

/* inline.leave(). */
static void
leave(State *s, PyObject *engine, PyObject *deliveries)
{
    PyObject *inlining = SLOT(engine, s->e.inlining);
    Py_ssize_t last = PyList_GET_SIZE(inlining) - 1, index = last;
    while (index >= 0 && PyList_GET_ITEM(inlining, index) != deliveries)
        index--;
    if (index >= 0) { /* without PyList_SetSlice, which might want memory */
        PyObject **items = ((PyListObject *)inlining)->ob_item;
        if (index < last)
            memmove(items + index, items + index + 1, (last - index) * sizeof *items);
        Py_SET_SIZE(inlining, last);
        Py_DECREF(deliveries);
    }
}

/* inline.run_inline(), where the emitter is no handler. ``before`` is what the context variable held; it is taken if the
   handlers use that again. */
static int
run_inline(State *s, PyObject *engine, PyObject *receipt, PyObject *deliveries, PyObject **before)
{
    Own own = {NULL, NULL, NULL, NULL, 0};
    PyThreadState *thread = PyThreadState_Get();
    PyObject *passing = Py_NewRef(Py_None);
    PyObject *cell = s->cell != NULL ? s->cell : PyList_New(1);
    s->cell = NULL;
    adopt(s, &own, thread, before);
    double started = read_clock(s, MONOTONIC);
    int failed = cell == NULL || failed_at(started);
    for (Py_ssize_t index = 0; !failed && index < PyTuple_GET_SIZE(deliveries); index++) {
        PyObject *ended = run_one(s, engine, receipt, PyTuple_GET_ITEM(deliveries, index), cell, &own, thread, &started);
        failed = ended == NULL;
        if (!failed && passing == Py_None)
            Py_SETREF(passing, Py_NewRef(ended));
        Py_XDECREF(ended);
    }
    if (!failed)
        leave(s, engine, deliveries);
    PyObject *error = failed ? take_error() : NULL;
    if (!hold(s, &own, thread, Py_None)) {
        PyObject *token = PyContextVar_Set(s->current, Py_None);
        if (token == NULL) { /* without memory this thread would stay the child of a handler that has ended: once more */
            PyErr_Clear();
            token = PyContextVar_Set(s->current, Py_None);
        }
        if (token == NULL) {
            if (error != NULL)
                PyErr_Clear();
            failed = 1;
        }
        Py_XDECREF(token);
    }
    leave_context(&own);
    if (error != NULL)
        set_error(error);
    else if (!failed && passing != Py_None) {
        failed = 1;
        PyErr_SetObject((PyObject *)Py_TYPE(passing), passing);
    }
    if (cell != NULL && s->cell == NULL && Py_REFCNT(cell) == 1) {
        PyObject *last = PyList_GET_ITEM(cell, 0);
        PyList_SET_ITEM(cell, 0, Py_NewRef(Py_None));
        s->cell = cell;
        drop(last);
    }
    else
        Py_XDECREF(cell);
    Py_DECREF(passing);
    return failed ? -1 : 0;
}
