/* What Slot.drain() in eventbus_async and awaiting a receipt do: a loop that steps coroutine handlers. */

/* drain(slot, delivery, until): step one coroutine handler after another, as Slot.drain() in eventbus_async does.

   Gives None when there is nothing left to claim; True if a handler has suspended; (delivery, value, error) of a call
   that has ended and is to be settled; a mailbox after which others are to have their turn; a delivery that is claimed
   and has not begun, for the Python code to run. */
static PyObject *
drain_slot(State *s, PyObject *slot, PyObject *delivery, double until) /* steals the delivery */
{
    PyObject *executor = SLOT(slot, s->slot.executor), *task = SLOT(slot, s->sl.task);
    PyObject *result = NULL;
    Own own = {NULL, NULL, NULL, NULL, 0};
    double started = read_clock(s, MONOTONIC), spent = 0.0;
    if (failed_at(started))
        goto finally;
    for (;;) {
        PyObject *receipt = SLOT(delivery, s->d.receipt), *box = SLOT(delivery, s->d.box);
        if (receipt == Py_None || box == Py_None || SLOT(delivery, s->d.state) != s->ints[RUNNING] ||
            is_none(receipt, s->r._context) || is_none(box, s->b.spec)) {
            result = delivery;
            delivery = NULL;
            break;
        }
        Py_INCREF(receipt);
        Py_INCREF(box);
        PyObject *engine = SLOT(box, s->b.engine), *emitters = Py_NewRef(SLOT(receipt, s->r._context));
        PyObject *spec = Py_NewRef(SLOT(box, s->b.spec)), *payload = Py_NewRef(SLOT(receipt, s->r._payload));
        put_again(delivery, s->d.actor, task);
        put_again(slot, s->sl.coroutine, Py_None);
        PyObject *value = NULL, *made = NULL, *error = NULL;
        PySendResult sent = PYGEN_ERROR;
        if (enter_context(s, &own, emitters, delivery) == 0) {
            PyObject *given =
                argument(s, delivery, receipt, payload, SLOT(spec, s->s.convert), is_true(spec, s->s.takes_event));
            if (given != NULL) {
                made = call_one(SLOT(spec, s->s.function), given);
                Py_DECREF(given);
            }
            if (made != NULL && !PyCoro_CheckExact(made)) {
                PyObject *name = PyTuple_GET_ITEM(SLOT(box, s->b.info), 1);
                PyObject *coroutine = PyObject_CallFunctionObjArgs(s->as_coroutine, made, name, NULL);
                Py_SETREF(made, coroutine);
            }
            if (made != NULL) {
                put_again(slot, s->sl.coroutine, made);
                sent = PyIter_Send(made, Py_None, &value);
            }
            if (sent == PYGEN_ERROR)
                error = take_error();
            if (sent == PYGEN_NEXT)
                put_again(slot, s->sl.context, own.context);
            exit_context(s, &own);
        }
        else
            error = take_error();
        Py_DECREF(payload);
        Py_DECREF(emitters);
        Py_DECREF(spec);
        PyObject *now = NULL, *following = NULL;
        double instant = read_clock(s, MONOTONIC);
        if (failed_at(instant))
            PyErr_Clear();
        if (sent == PYGEN_NEXT) {
            put(slot, s->sl.yielded, value);
            value = NULL;
            result = Py_NewRef(Py_True);
        }
        else if (sent == PYGEN_RETURN && number(slot, s->sl.ours) == 0 && SLOT(slot, s->sl.expired) == Py_False) {
            PyObject *cancelling = PyObject_CallMethodNoArgs(task, s->n_cancelling);
            if (cancelling == s->ints[0] && (now = seconds(s, delivery, instant - started)) != NULL)
                following = turn(s, &s->slot, engine, slot, delivery, receipt, box, value, now, instant < until);
            PyErr_Clear();
            Py_XDECREF(cancelling);
            Py_XDECREF(now);
        }
        spent = instant;
        if (result == NULL && following == NULL)
            result = PyTuple_Pack(3, delivery, value == NULL ? Py_None : value, error == NULL ? Py_None : error);
        else if (following == Py_None) {
            /* Section: nothing is left to claim. */
            if (SLOT(SLOT(engine, s->e.monitor), s->m.busy) == Py_False && length(s, SLOT(executor, s->x.ready)) == 0 &&
                length(s, SLOT(box, s->b.pending)) == 0) {
                put_again(executor, s->x.computing, s->ints[0]);
                PyList_SetItem(SLOT(slot, s->slot.cell), 0, Py_NewRef(Py_None));
                result = Py_NewRef(Py_None);
            }
            else
                result = Py_NewRef(box);
            /* End of section. */
        }
        if (result != NULL)
            put_time(slot, s->sl.started, started);
        Py_XDECREF(value);
        Py_XDECREF(error);
        Py_XDECREF(made);
        Py_DECREF(receipt);
        Py_DECREF(box);
        if (following == NULL)
            break;
        put_again(slot, s->sl.coroutine, Py_None);
        Py_SETREF(delivery, following);
        if (result != NULL)
            break;
        started = instant;
    }
finally:
    leave_context(&own);
    if (spent != 0.0 && result != NULL)
        put_time(executor, s->l.spent, spent);
    Py_XDECREF(delivery);
    return result;
}

static PyObject *
drain(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    State *s = PyModule_GetState(module);
    if (!s->on || s->LoopExecutor == NULL)
        return Py_NewRef(args[1]);
    return drain_slot(s, args[0], Py_NewRef(args[1]), PyFloat_AsDouble(args[2]));
}

/* Make a task the current one of the loop; gives the one that was (a new reference), or NULL with an exception. */
static PyObject *
swap_task(State *s, PyObject *loop, PyObject *task)
{
    PyObject *both[2] = {loop, task};
    return PyObject_Vectorcall(s->swap_task, both, 2, NULL);
}

/* LoopExecutor._serve(), where a parked slot lends its identity and claims from one mailbox.
   1: it is done; 0: it is not, and nothing has changed; -1: an exception. */
static int
lend(State *s, PyObject *executor, PyObject *slot, PyObject *loop, int in_task, double until)
{
    PyObject *engine = SLOT(executor, s->x.engine), *monitor = SLOT(engine, s->e.monitor), *came = NULL, *error = NULL;
    if (!is_true(executor, s->l.roused) || SLOT(monitor, s->m.busy) != Py_False)
        return 0;
    Py_INCREF(slot);
    PyObject *before = swap_task(s, loop, SLOT(slot, s->sl.task));
    if (before == NULL) {
        Py_DECREF(slot);
        return -1;
    }
    /* Section: a slot begins and claims. */
    PyObject *delivery = NULL;
    if ((before != Py_None) == in_task && is_true(executor, s->l.roused) && SLOT(monitor, s->m.busy) == Py_False)
        delivery = claim(s, &s->slot, executor, slot);
    int refused = delivery == NULL;
    if (!refused) {
        put_again(executor, s->l.roused, Py_False);
        /* End of section. */
        came = drain_slot(s, slot, delivery, until);
        if (came != NULL && came != Py_None)
            Py_SETREF(came, PyObject_CallMethodOneArg(slot, s->n_go_on, came));
        if (came == NULL)
            error = take_error();
        Py_XDECREF(came);
    }
    PyObject *after = swap_task(s, loop, before);
    if (after == NULL) { /* a signal handler's exception, on 3.11: it is as it was */
        if (error == NULL)
            error = take_error();
        PyErr_Clear();
        after = swap_task(s, loop, before);
        PyErr_Clear();
    }
    Py_DECREF(before);
    Py_XDECREF(after);
    if (error != NULL)
        note(s, error, monitor, s->mend_slot, executor, slot, NULL, NULL);
    else if (SLOT(slot, s->sl.suspended) != Py_False || SLOT(slot, s->sl.yielding) != Py_False ||
             SLOT(slot, s->sl.cancelled) != s->ints[0]) {
        PyObject *nothing = PyObject_CallMethodOneArg(executor, s->n_lent, slot);
        if (nothing == NULL)
            error = take_error();
        Py_XDECREF(nothing);
    }
    Py_DECREF(slot);
    if (error != NULL) {
        set_error(error);
        return -1;
    }
    return !refused;
}

/* serve(executor, slot, loop, task, until): tells whether it was done. */
static PyObject *
serve(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    State *s = PyModule_GetState(module);
    if (!s->on || s->LoopExecutor == NULL || in_step(s))
        Py_RETURN_FALSE;
    int done = lend(s, args[0], args[1], args[2], args[3] != Py_None, PyFloat_AsDouble(args[4]));
    return done < 0 ? NULL : PyBool_FromLong(done);
}

/* Whether a weak reference is one of that object. */
static int
is_of(PyObject *reference, PyObject *object)
{
#if PY_VERSION_HEX >= 0x030D0000
    PyObject *found = NULL;
    if (PyWeakref_GetRef(reference, &found) < 0)
        PyErr_Clear();
    Py_XDECREF(found); /* if it is the same, others hold it */
    return found == object;
#else
    return PyWeakref_GetObject(reference) == object;
#endif
}

/* attend(binding, receipt): what awaiting a receipt does, where it can be settled here and now. Tells whether it is, and
   nothing is left to do or to raise. */
static PyObject *
attend(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    State *s = PyModule_GetState(module);
    PyObject *binding = args[0], *receipt = args[1];
    if (!s->on || s->LoopExecutor == NULL || in_step(s))
        Py_RETURN_FALSE;
    /* Within an "except" a handler that began here would see that exception as its own. */
    PyObject *handled = PyErr_GetHandledException();
    if (handled != NULL) {
        Py_DECREF(handled);
        Py_RETURN_FALSE;
    }
    PyObject *loop = PyObject_CallNoArgs(s->running_loop);
    if (loop == NULL)
        return NULL;
    /* Where it is not awaited on the home loop, that may be about to change, see Binding.enter(). */
    PyObject *home = SLOT(binding, s->bi.home);
    int here = is_a(home, s->LoopExecutor) && is_of(SLOT(home, s->l.loop), loop) &&
               SLOT(home, s->l.gone) == Py_False && SLOT(home, s->l.paused) == Py_False;
    int done = 0;
    if (here && is_true(home, s->l.roused) && number(receipt, s->r._left) > 0 && SLOT(home, s->l.parked) != Py_None &&
        number(home, s->l.eagers) < s->eagers) {
        double since = PyFloat_AsDouble(SLOT(home, s->l.since));
        PyObject *eagers = changed(s, home, s->l.eagers, 1);
        if (eagers == NULL)
            PyErr_Clear();
        else if (PyFloat_AsDouble(SLOT(home, s->l.spent)) - since < s->slice) {
            put_count(home, s->l.eagers, Py_NewRef(eagers), 1);
            Py_INCREF(home); /* handlers run: there may be another one then */
            done = lend(s, home, SLOT(home, s->l.parked), loop, 1, since + s->slice);
            Py_DECREF(home);
        }
        Py_XDECREF(eagers);
    }
    Py_DECREF(loop);
    if (done < 0)
        return NULL;
    return PyBool_FromLong(here && SLOT(receipt, s->r._left) == s->ints[0] && SLOT(receipt, s->r._propagate) == Py_False);
}
