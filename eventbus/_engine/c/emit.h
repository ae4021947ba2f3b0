/* What Engine.emit() does where mailboxes ask for no more than an append. */

/* This thread's ident as an object; remembered, since mostly one thread asks. */
static PyObject *
own_ident(State *s)
{
    unsigned long ident = PyThread_get_thread_ident();
    if (s->ident == NULL || s->whose != ident) {
        Py_XSETREF(s->ident, PyLong_FromUnsignedLong(ident));
        s->whose = ident;
    }
    return Py_XNewRef(s->ident);
}

/* A delivery as Delivery.__init__ makes it. Not tracked. */
static PyObject *
make_delivery(State *s, PyObject *receipt, PyObject *box, PyObject *epoch, PyObject *actor)
{
    PyObject *made = allocate((PyTypeObject *)s->Delivery);
    if (made == NULL)
        return NULL;
    SLOT(made, s->d.receipt) = Py_NewRef(receipt);
    SLOT(made, s->d.box) = Py_NewRef(box);
    SLOT(made, s->d.epoch) = Py_NewRef(epoch);
    SLOT(made, s->d.state) = CONSTANT(s->ints[PENDING]);
    SLOT(made, s->d.status) = CONSTANT(Py_None);
    SLOT(made, s->d.deadline) = CONSTANT(Py_None);
    SLOT(made, s->d.worker) = CONSTANT(Py_None);
    SLOT(made, s->d.actor) = Py_NewRef(actor);
    SLOT(made, s->d.waiter) = CONSTANT(Py_None);
    SLOT(made, s->d.outer) = CONSTANT(Py_None);
    return made;
}

/* A receipt as Receipt.__init__ makes it, but for what the emit fills in, not tracked. Inline handlers run in the
   emitter's context itself, so they need no copy of it. */
static PyObject *
make_receipt(State *s, PyTypeObject *type, PyObject *engine, PyObject *topic, PyObject *payload, PyObject *route)
{
    PyObject *seqs = SLOT(engine, s->e.seqs);
    double now = read_clock(s, WALL_CLOCK);
    if (failed_at(now))
        return NULL;
    PyObject *context = is_true(route, s->o.all_inline) ? Py_NewRef(Py_None) : own_context(s, SLOT(route, s->o.boxes));
    PyObject *timestamp = PyFloat_FromDouble(now);
    PyObject *mark = Py_NewRef(s->no_time);
    PyObject *seq = NULL, *made = NULL;
    if (context == NULL || timestamp == NULL)
        goto failed;
    double since = now - PyFloat_AsDouble(SLOT(engine, s->e.sampled));
    if (!(since >= 0.0 && since < s->sample_seconds * (double)number(engine, s->e.sampled_size))) {
        Py_ssize_t size = PyTuple_GET_SIZE(SLOT(route, s->o.boxes));
        PyObject *sampled = PyLong_FromSsize_t(size == 0 ? 1 : size);
        if (sampled == NULL)
            goto failed;
        put_again(engine, s->e.sampled, timestamp);
        put(engine, s->e.sampled_size, sampled);
        double instant = read_clock(s, MONOTONIC);
        if (failed_at(instant))
            goto failed;
        Py_SETREF(mark, PyFloat_FromDouble(instant));
        if (mark == NULL)
            goto failed;
    }
    made = allocate(type);
    if (made == NULL)
        goto failed;
    seq = Py_TYPE(seqs)->tp_iternext(seqs);
    if (seq == NULL) {
        Py_CLEAR(made);
        goto failed;
    }
    SLOT(made, s->r._engine) = Py_NewRef(engine);
    SLOT(made, s->r._uid) = Py_NewRef(SLOT(engine, s->e.uid));
    SLOT(made, s->r._topic) = Py_NewRef(topic);
    SLOT(made, s->r._payload) = Py_NewRef(payload);
    SLOT(made, s->r._context) = context;
    SLOT(made, s->r._timestamp) = timestamp;
    SLOT(made, s->r._seq) = seq;
    SLOT(made, s->r._mark) = mark;
    SLOT(made, s->r._headers) = Py_NewRef(Py_None);
    SLOT(made, s->r._lineage) = Py_NewRef(Py_None);
    SLOT(made, s->r._follows) = Py_NewRef(Py_None);
    SLOT(made, s->r._event) = Py_NewRef(Py_None);
    SLOT(made, s->r._waiters) = Py_NewRef(Py_None);
    SLOT(made, s->r._left) = Py_NewRef(Py_None);
    SLOT(made, s->r._observers) = Py_NewRef(s->ints[0]);
    SLOT(made, s->r._accepting) = Py_NewRef(s->ints[0]);
    SLOT(made, s->r._propagate) = Py_NewRef(Py_False);
    return made;
failed:
    Py_XDECREF(context);
    Py_XDECREF(timestamp);
    Py_XDECREF(mark);
    return NULL;
}

/* engine._descend(), where there is no max_depth: what caused the event. */
static int
note_cause(State *s, PyObject *receipt, PyObject *causing)
{
    PyObject *uid = SLOT(causing, s->r._uid), *seq = SLOT(causing, s->r._seq);
    PyObject *above = SLOT(causing, s->r._lineage);
    PyObject *root_uid = uid, *root_seq = seq;
    Py_ssize_t depth = 1;
    if (above != Py_None) {
        depth = PyLong_AsSsize_t(PyTuple_GET_ITEM(above, 4)) + 1;
        if (depth > 1) {
            root_uid = PyTuple_GET_ITEM(above, 2);
            root_seq = PyTuple_GET_ITEM(above, 3);
        }
    }
    PyObject *level = PyLong_FromSsize_t(depth);
    if (level == NULL)
        return -1;
    PyObject *lineage = PyTuple_Pack(6, uid, seq, root_uid, root_seq, level, Py_None);
    Py_DECREF(level);
    if (lineage == NULL)
        return -1;
    put(receipt, s->r._lineage, lineage);
    return 0;
}

/* Mailbox.schedule() where somebody can be roused at once: stand in the ready queue. Tells whether that is done; whom to
   wake, outside of the section, is noted. */
static int
schedule(State *s, PyObject *box, PyObject **sleeper, PyObject **loop)
{
    PyObject *executor = SLOT(box, s->b.executor);
    int is_loop = is_a(executor, s->LoopExecutor);
    if (*sleeper != NULL || *loop != NULL || !(is_loop || is_a(executor, s->Dispatcher)))
        return 0;
    PyObject *ready = SLOT(executor, s->x.ready), *idle = is_loop ? NULL : SLOT(executor, s->pool.idle);
    if (!is_true(box, s->b.flows) || !is_a(ready, s->deque) ||
        number(executor, s->x.computing) >= number(executor, s->x.limit) ||
        (!is_loop && (!PyList_CheckExact(idle) || PyList_GET_SIZE(idle) == 0)))
        return 0;
    PyObject *computing = changed(s, executor, s->x.computing, 1);
    PyObject *nothing = computing == NULL ? NULL : s->append(ready, box);
    if (nothing == NULL) {
        PyErr_Clear();
        Py_XDECREF(computing);
        return 0;
    }
    Py_DECREF(nothing);
    put_count(executor, s->x.computing, computing, 1);
    put_again(box, s->b.queued, Py_True);
    if (is_loop) {
        put_again(executor, s->l.roused, Py_True);
        /* Where the loop will call _begin anyhow, its own thread need not ask for it. */
        if (!is_true(executor, s->l.scheduled) ||
            !is_ident(SLOT(executor, s->l.ident), PyThread_get_thread_ident()))
            *loop = Py_NewRef(executor);
    }
    else {
        Py_ssize_t last = PyList_GET_SIZE(idle) - 1;
        PyObject *worker = PyList_GET_ITEM(idle, last);
        *sleeper = Py_NewRef(SLOT(worker, s->thread.sleeper));
        Py_SET_SIZE(idle, last); /* idle.pop(), which might want memory */
        Py_DECREF(worker); /* the pool has it among those that are alive */
    }
    return 1;
}

/* Sleeper.wake(). */
static PyObject *
wake(State *s, PyObject *sleeper)
{
    if (!is_a(sleeper, s->Sleeper))
        return PyObject_CallMethodNoArgs(sleeper, s->n_wake); /* somebody stands in for it */
    PyObject *nothing = PyObject_CallMethodNoArgs(SLOT(sleeper, s->lock), s->n_release);
    if (nothing == NULL && PyErr_ExceptionMatches(PyExc_RuntimeError)) {
        PyErr_Clear(); /* it was woken already */
        nothing = Py_NewRef(Py_None);
    }
    return nothing;
}

enum { NEAR = 16 }; /* so many mailboxes stay in it */

/* An emit, given (engine, make, topic, payload, headers, require, follow, propagate_errors[, binding]): the receipt, or
   None if this is none of the common cases, and then nothing has been done. */
static PyObject *
emit(State *s, PyObject *const *args, Py_ssize_t count)
{
    PyObject *engine = args[0], *topic = args[2];
    PyObject *registry = SLOT(engine, s->e.registry), *monitor = SLOT(engine, s->e.monitor);
    if (!s->on || (count == 9 && s->LoopExecutor == NULL) || !PyUnicode_CheckExact(topic) || args[4] != Py_None ||
        args[5] != s->ints[0] || args[6] != Py_False ||
        args[7] != Py_None || !is_none(engine, s->e.max_depth) || SLOT(engine, s->e.propagates) != Py_False || in_step(s))
        Py_RETURN_NONE;
    PyObject *route = PyDict_GetItemWithError(SLOT(registry, s->g.routes), topic);
    if (route == NULL || !is_true(route, s->o.swift) || SLOT(route, s->o.reserved) != Py_False)
        Py_RETURN_NONE;
    PyObject *before = NULL, *cause = NULL, *causing = NULL, *epoch = NULL, *receipt = NULL;
    PyObject *deliveries = NULL, *counted = NULL, *result = NULL;
    PyObject *opened = NULL, *emits = NULL, *observers = NULL, *sleeper = NULL, *loop = NULL, *rest = NULL;
    PyObject *actor = NULL;
    Py_INCREF(route);
    PyObject *boxes = SLOT(route, s->o.boxes);
    Py_ssize_t size = PyTuple_GET_SIZE(boxes);
    Py_ssize_t standing = number(route, s->o.counted);
    int accepted = 0, kept = 1;
    if (PyContextVar_Get(s->current, NULL, &before) < 0)
        goto finally;
    cause = Py_NewRef(held_by(s, before));
    epoch = Py_NewRef(SLOT(engine, s->e.epoch));
    if (cause != Py_None) {
        /* Inline handlers within inline handlers may exhaust the stack: the Python code has more of it to mend that with.
           The receipt of one that has been settled is gone. */
        if (is_true(route, s->o.all_inline) || SLOT(cause, s->d.state) != s->ints[RUNNING] ||
            SLOT(cause, s->d.receipt) == Py_None ||
            SLOT(SLOT(cause, s->d.box), s->b.engine) != engine ||
            !is_none(SLOT(cause, s->d.receipt), s->r._follows)) {
            result = Py_NewRef(Py_None);
            goto finally;
        }
        if (SLOT(cause, s->d.epoch) != Py_None)
            Py_SETREF(epoch, Py_NewRef(SLOT(cause, s->d.epoch)));
    }
    causing = Py_NewRef(cause == Py_None ? Py_None : SLOT(cause, s->d.receipt));
    receipt = make_receipt(s, (PyTypeObject *)args[1], engine, topic, args[3], route);
    if (receipt == NULL || (cause != Py_None && note_cause(s, receipt, causing) < 0))
        goto finally;
    if (count == 9) {
        SLOT(receipt, s->ar._binding) = Py_NewRef(args[8]);
        SLOT(receipt, s->ar._patience) = Py_NewRef(Py_None);
    }
    /* Inline ones stand on this stack (inline.place()). There is no handler below them, see above. */
    int all_inline = is_true(route, s->o.all_inline);
    actor = all_inline ? own_ident(s) : Py_NewRef(Py_None);
    deliveries = PyTuple_New(size);
    if (deliveries == NULL || actor == NULL)
        goto finally;
    for (Py_ssize_t index = 0; index < size; index++) {
        PyObject *delivery = make_delivery(s, receipt, PyTuple_GET_ITEM(boxes, index), epoch, actor);
        if (delivery == NULL)
            goto finally;
        PyTuple_SET_ITEM(deliveries, index, delivery);
        if (!all_inline && !is_kept(s, PyTuple_GET_ITEM(boxes, index))) {
            PyObject_GC_Track(delivery);
            kept = 0;
        }
    }
    if (!kept || !(args[1] == s->Receipt || args[1] == s->AsyncReceipt))
        PyObject_GC_Track(receipt);
    else
        PyObject_GC_UnTrack(deliveries);
    if (standing == size)
        counted = Py_NewRef(deliveries);
    else {
        counted = PyTuple_New(standing);
        if (counted == NULL)
            goto finally;
        for (Py_ssize_t index = 0, next = 0; index < size && next < standing; index++)
            if (!is_true(PyTuple_GET_ITEM(boxes, index), s->b.observer))
                PyTuple_SET_ITEM(counted, next++, Py_NewRef(PyTuple_GET_ITEM(deliveries, index)));
    }
    opened = changed(s, epoch, s->p.open, size);
    emits = changed(s, SLOT(route, s->o.tally), s->t.emits, 1);
    observers = PyLong_FromSsize_t(size - standing);
    if (opened == NULL || emits == NULL || observers == NULL) {
        if (!PyErr_Occurred())
            result = Py_NewRef(Py_None); /* a counter that is too large for this */
        goto finally;
    }
    /* Section: an emit takes effect. Making its objects may have run the collector, and that anything at all: */
    if (SLOT(route, s->o.generation) != SLOT(registry, s->g.generation) &&
        number(route, s->o.generation) != number(registry, s->g.generation))
        result = Py_NewRef(Py_None);
    else if (SLOT(monitor, s->m.busy) != Py_False || length(s, SLOT(monitor, s->m.deferred)) != 0 ||
             SLOT(engine, s->e.state) != s->ints[0])
        result = Py_NewRef(Py_None);
    else if (cause == Py_None ? SLOT(engine, s->e.epoch) != epoch
                              : (SLOT(cause, s->d.state) != s->ints[RUNNING] ||
                                 (SLOT(cause, s->d.epoch) == Py_None ? SLOT(engine, s->e.epoch) != epoch
                                                                     : SLOT(cause, s->d.epoch) != epoch)))
        result = Py_NewRef(Py_None);
    if (result != NULL)
        goto finally; /* what was made is dropped, and another way taken */
    accepted = 1;
    put_count(epoch, s->p.open, opened, size);
    put_count(SLOT(route, s->o.tally), s->t.emits, emits, 1);
    opened = emits = NULL;
    put_again(receipt, s->r._deliveries, counted);
    put_again(receipt, s->r._left, SLOT(route, s->o.counted));
    put(receipt, s->r._observers, observers);
    observers = NULL;
    if (all_inline && PyList_Append(SLOT(engine, s->e.inlining), deliveries) < 0)
        goto finally;
    /* End of section. */
    if (all_inline) {
        if (run_inline(s, engine, receipt, deliveries, &before) == 0)
            result = Py_NewRef(receipt);
        if (result != NULL && length(s, SLOT(monitor, s->m.after)) > 0) {
            PyObject *nothing = PyObject_CallMethodNoArgs(monitor, s->n_flush);
            if (nothing == NULL)
                Py_CLEAR(result);
            Py_XDECREF(nothing);
        }
        goto finally;
    }
    int idle = 0; /* whether a step has to schedule */
    for (Py_ssize_t index = 0; index < size; index++) {
        PyObject *box = PyTuple_GET_ITEM(boxes, index), *delivery = PyTuple_GET_ITEM(deliveries, index);
        PyObject *given = NULL, *held = NULL, *nothing = NULL;
        if (size > NEAR && index + 2 < size) { /* since the last emit they have gone out of the nearest cache */
            PyObject *next = PyTuple_GET_ITEM(boxes, index + 1);
            prefetch(PyTuple_GET_ITEM(boxes, index + 2), 320);
            prefetch(SLOT(next, s->b.pending), 256);
            prefetch(SLOT(next, s->b.held), 1);
            prefetch(SLOT(next, s->b.deliveries), 1);
        }
        /* Section: a delivery is admitted. */
        if (SLOT(monitor, s->m.busy) == Py_False && is_true(box, s->b.admits) &&
            number(box, s->b.held) < number(box, s->b.bound)) {
            PyObject *pending = SLOT(box, s->b.pending);
            given = changed(s, box, s->b.deliveries, 1);
            held = changed(s, box, s->b.held, 1);
            if (given != NULL && held != NULL && is_a(pending, s->deque))
                nothing = s->append(pending, delivery);
        }
        if (nothing != NULL) {
            put_count(box, s->b.deliveries, given, 1);
            put_count(box, s->b.held, held, 1);
            if (is_true(box, s->b.tracked)) {
                if (Py_SIZE(SLOT(box, s->b.pending)) > 1 || length(s, SLOT(box, s->b.running)) != 0)
                    track_both(s, delivery, receipt);
                else
                    put_again(box, s->b.tracked, Py_False); /* whoever was suspended has ended */
            }
            /* Where as many calls run as may, the next one that ends sees to what is pending. */
            if (!idle && SLOT(box, s->b.queued) == Py_False &&
                length(s, SLOT(box, s->b.running)) < number(box, s->b.concurrency))
                idle = !schedule(s, box, &sleeper, &loop);
            /* End of section. */
            Py_DECREF(nothing);
            continue;
        }
        if (drop_oldest(s, engine, box, delivery)) {
            if (is_true(box, s->b.tracked))
                track_both(s, delivery, receipt);
            Py_XDECREF(given);
            Py_XDECREF(held);
            idle = idle || (SLOT(box, s->b.queued) == Py_False &&
                            length(s, SLOT(box, s->b.running)) < number(box, s->b.concurrency));
            continue;
        }
        /* It asks for a step; the others need not wait for that. */
        if (!is_a(SLOT(box, s->b.executor), s->Dispatcher))
            track_both(s, delivery, receipt);
        Py_XDECREF(given);
        Py_XDECREF(held);
        PyErr_Clear();
        if (rest == NULL && (rest = PyList_New(0)) == NULL)
            goto finally;
        if (PyList_Append(rest, delivery) < 0)
            goto finally;
    }
    if (sleeper != NULL || loop != NULL) {
        PyObject *nothing = sleeper != NULL ? wake(s, sleeper) : PyObject_CallMethodNoArgs(loop, s->n_wake_loop);
        if (nothing == NULL)
            goto finally;
        Py_DECREF(nothing);
    }
    if (rest != NULL || idle) {
        PyObject *call[5] = {engine, receipt, boxes, rest == NULL ? Py_None : rest, idle ? Py_True : Py_False};
        PyObject *nothing = PyObject_VectorcallMethod(s->n_follow_up, call, 5, NULL);
        if (nothing == NULL)
            goto finally;
        Py_DECREF(nothing);
    }
    result = Py_NewRef(receipt);
finally:
    if (result == NULL && accepted) {
        /* That of a signal handler in all likelihood, or the stack is exhausted: make good what may be half-done. */
        PyObject *error = take_error();
        note(s, error, monitor, s->mend_emit, engine, route, deliveries, s->ints[0]);
        set_error(error);
    }
    Py_XDECREF(rest);
    Py_XDECREF(actor);
    Py_XDECREF(sleeper);
    Py_XDECREF(loop);
    Py_XDECREF(opened);
    Py_XDECREF(emits);
    Py_XDECREF(observers);
    Py_XDECREF(counted);
    Py_XDECREF(deliveries);
    Py_XDECREF(receipt);
    Py_XDECREF(before);
    Py_XDECREF(cause);
    Py_XDECREF(causing);
    Py_XDECREF(epoch);
    Py_DECREF(route);
    return result;
}

/* emit(engine, make, ...): the same alone, to be looked at by tests. */
static PyObject *
emit_alone(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    return emit(PyModule_GetState(module), args, count);
}
