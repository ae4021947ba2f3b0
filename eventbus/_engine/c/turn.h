/* What turn.py and Executor.pull() do: settle, and claim. */

/* Have the processor fetch what will be wanted soon: in a burst, deliveries have gone out of its caches by their turn. */
static inline void
prefetch(PyObject *object, int size)
{
#ifdef __GNUC__
    for (int offset = 0; offset < size; offset += 64)
        __builtin_prefetch((char *)object + offset);
#endif
}

/* What settling a delivery needs, made beforehand; what it lets go of, held until the section is over, for it may run a
   finalizer. */
typedef struct {
    Offset standing; /* of its receipt: where it is counted */
    PyObject *left, *count, *open;
    PyObject *payload, *context, *event, *outer;
} Settling;

static void
forget(Settling *settling)
{
    Py_XDECREF(settling->left);
    Py_XDECREF(settling->count);
    Py_XDECREF(settling->open);
}

/* Whether settling a delivery concerns nobody but itself and its receipt, and if so what that needs. In a section; what
   is made is to be forgotten if it is not used. */
static INLINED int
can_settle(State *s, PyObject *engine, PyObject *delivery, PyObject *receipt, PyObject *box, int outcome, Settling *settling)
{
    PyObject *epoch = SLOT(delivery, s->d.epoch), *counts = SLOT(box, s->b.counts);
    *settling = (Settling){0};
    if (SLOT(SLOT(engine, s->e.monitor), s->m.busy) != Py_False || !is_none(receipt, s->r._waiters) ||
        !is_none(receipt, s->r._follows) || !PyList_CheckExact(counts))
        return 0;
    if (length(s, SLOT(engine, s->e.drains)) &&
        (number(engine, s->e.keen) != 0 || epoch == Py_None || number(epoch, s->p.open) == 1))
        return 0;
    PyObject *total = PyList_GET_ITEM(counts, outcome);
    settling->standing = is_true(box, s->b.observer) ? s->r._observers : s->r._left;
    settling->left = changed(s, receipt, settling->standing, -1);
    settling->count = next_count(s, total, 1);
    if (epoch != Py_None)
        settling->open = changed(s, epoch, s->p.open, -1);
    if (settling->left != NULL && settling->count != NULL && (epoch == Py_None || settling->open != NULL))
        return 1;
    PyErr_Clear();
    return 0;
}

/* Settle it, in the same section; cannot fail. */
static INLINED void
settle(State *s, PyObject *delivery, PyObject *receipt, PyObject *box, int outcome, PyObject *status, PyObject *value,
       PyObject *took, Settling *settling)
{
    put_again(delivery, s->d.status, status);
    put_again(delivery, s->d.value, value);
    put_again(delivery, s->d.error, Py_None);
    put_again(delivery, s->d.duration, took);
    if (SLOT(delivery, s->d.info) != SLOT(box, s->b.info))
        put_again(delivery, s->d.info, SLOT(box, s->b.info));
    put_state(delivery, s->d.state, s->ints[SETTLED]);
    put_in(&PyList_GET_ITEM(SLOT(box, s->b.counts), outcome), settling->count, 1);
    if (settling->open != NULL) {
        put_count(SLOT(delivery, s->d.epoch), s->p.open, settling->open, -1);
        put_again(delivery, s->d.epoch, Py_None);
    }
    put_count(receipt, settling->standing, settling->left, -1);
    if (SLOT(receipt, s->r._left) == s->ints[0] && SLOT(receipt, s->r._observers) == s->ints[0]) {
        settling->payload = SLOT(receipt, s->r._payload);
        settling->context = SLOT(receipt, s->r._context);
        settling->event = SLOT(receipt, s->r._event);
        SLOT(receipt, s->r._payload) = Py_NewRef(Py_None);
        SLOT(receipt, s->r._context) = Py_NewRef(Py_None);
        SLOT(receipt, s->r._event) = Py_NewRef(Py_None);
        put_again(receipt, s->r._engine, Py_None);
    }
    put_again(delivery, s->d.seq, SLOT(receipt, s->r._seq));
    put_again(delivery, s->d.uid, SLOT(receipt, s->r._uid));
    put_again(delivery, s->d.lineage, SLOT(receipt, s->r._lineage));
    put_none(delivery, s->d.worker);
    put_none(delivery, s->d.actor);
    if (SLOT(delivery, s->d.outer) != Py_None) {
        settling->outer = SLOT(delivery, s->d.outer);
        SLOT(delivery, s->d.outer) = Py_NewRef(Py_None);
    }
    put_again(delivery, s->d.receipt, Py_None);
    put_again(delivery, s->d.box, Py_None);
}

/* After the section. */
static INLINED void
after_settling(State *s, PyObject *delivery, PyObject *receipt, PyObject *value, Settling *settling)
{
    if (!is_atomic(value))
        track_both(s, delivery, receipt);
    else if ((PyObject *)Py_TYPE(receipt) != s->Receipt)
        track_one(receipt);
    drop(settling->payload);
    drop(settling->context);
    drop(settling->event);
    drop(settling->outer);
}

/* turn.turn(): settle as delivered, and claim the next if there may be more.
   Gives a new reference: that, or None; NULL, without an exception, is REFUSED. Whoever calls it holds the delivery, the
   receipt and the mailbox. */
static INLINED PyObject *
turn(State *s, WorkerOffsets *w, PyObject *engine, PyObject *worker, PyObject *delivery, PyObject *receipt,
     PyObject *box, PyObject *value, PyObject *took, int more)
{
    if (!is_true(box, s->b.flows) || SLOT(box, s->b.executor) != SLOT(worker, w->executor) ||
        SLOT(delivery, s->d.state) != s->ints[RUNNING] || SLOT(worker, w->blocked) != Py_False ||
        !is_no_time(receipt, s->r._mark))
        return NULL;
    PyObject *pending = SLOT(box, s->b.pending);
    PyObject *following = NULL, *held = NULL, *claims = NULL;
    Settling settling;
    more = more && is_a(pending, s->deque) && Py_SIZE(pending) > 0;
    if (!can_settle(s, engine, delivery, receipt, box, DELIVERED, &settling))
        goto refused;
    if (more) {
        held = changed(s, box, s->b.held, -1);
        claims = changed(s, worker, w->claims, 1);
        following = held == NULL || claims == NULL ? NULL : s->popleft(pending, NULL);
        if (following == NULL)
            goto refused;
        if (SLOT(following, s->d.state) != s->ints[PENDING]) {
            Py_XDECREF(s->appendleft(pending, following)); /* there is room where it was */
            Py_CLEAR(following);
            Py_CLEAR(held);
            Py_CLEAR(claims);
        }
        else {
            prefetch(SLOT(following, s->d.receipt), 256);
            if (length(s, pending) > 0) {
                PyObject *next = PySequence_GetItem(pending, 0);
                if (next == NULL)
                    PyErr_Clear();
                else
                    prefetch(next, 256);
                Py_XDECREF(next); /* it stands there still */
            }
        }
    }

    /* Section: a delivery is settled, and the next is claimed. From here on nothing can fail. */
    settle(s, delivery, receipt, box, DELIVERED, s->delivered, value, took, &settling);
    if (following != NULL) {
        PyObject *cell = SLOT(worker, w->cell);
        put_count(box, s->b.held, held, -1);
        put_state(following, s->d.state, s->ints[RUNNING]);
        put_again(following, s->d.worker, worker);
        put_again(following, s->d.actor, SLOT(worker, w->actor));
        PyList_SetItem(cell, 0, Py_NewRef(following));
        put_again(box, s->b.running, cell);
        put_again(worker, w->delivery, following);
        put_count(worker, w->claims, claims, 1);
    }
    else {
        put(box, s->b.running, PyTuple_New(0)); /* the one empty tuple there is */
        put_none(worker, w->delivery);
    }
    /* End of section. */
    after_settling(s, delivery, receipt, value, &settling);
    return following != NULL ? following : Py_NewRef(Py_None);

refused:
    PyErr_Clear();
    forget(&settling);
    Py_XDECREF(held);
    Py_XDECREF(claims);
    Py_XDECREF(following);
    return NULL;
}

/* Mailbox.offer() where it is full and drops what is oldest: settle that, and admit the new one. Tells whether that is
   done. In a section. */
static int
drop_oldest(State *s, PyObject *engine, PyObject *box, PyObject *delivery)
{
    PyObject *pending = SLOT(box, s->b.pending), *policy = SLOT(SLOT(box, s->b.options), s->op.overflow);
    if (!is_true(box, s->b.admits) || !is_a(pending, s->deque) || Py_SIZE(pending) == 0 ||
        number(box, s->b.held) != number(box, s->b.bound) || !PyUnicode_Check(policy) ||
        PyUnicode_CompareWithASCIIString(policy, "drop_oldest") != 0)
        return 0;
    PyObject *oldest = PySequence_GetItem(pending, 0), *given = NULL, *nothing = NULL;
    if (oldest == NULL) {
        PyErr_Clear();
        return 0;
    }
    PyObject *receipt = Py_NewRef(SLOT(oldest, s->d.receipt));
    Settling settling = {0};
    if (receipt != Py_None && SLOT(oldest, s->d.state) == s->ints[PENDING] && is_none(oldest, s->d.deadline) &&
        can_settle(s, engine, oldest, receipt, box, DROPPED, &settling) &&
        (given = changed(s, box, s->b.deliveries, 1)) != NULL && (nothing = s->append(pending, delivery)) != NULL) {
        Py_XDECREF(s->popleft(pending, NULL)); /* it has one at least */
        put_count(box, s->b.deliveries, given, 1);
        settle(s, oldest, receipt, box, DROPPED, s->dropped, Py_None, s->no_time, &settling);
        /* End of section. */
        after_settling(s, oldest, receipt, Py_None, &settling);
        Py_DECREF(nothing);
    }
    else {
        PyErr_Clear();
        forget(&settling);
        Py_XDECREF(given);
    }
    Py_DECREF(receipt);
    Py_DECREF(oldest);
    return nothing != NULL;
}

/* How long a handler took, as a float (a new reference): what its delivery has from an earlier use, if it can be had. */
static INLINED PyObject *
seconds(State *s, PyObject *delivery, double took)
{
    PyObject *kept = SLOT(delivery, s->d.duration);
    if (kept == NULL || SLOT(delivery, s->d.state) != s->ints[RUNNING] || !PyFloat_CheckExact(kept) ||
        Py_REFCNT(kept) != 1)
        return PyFloat_FromDouble(took);
    ((PyFloatObject *)kept)->ob_fval = took;
    return Py_NewRef(kept);
}

/* Call a handler; PyObject_CallOneArg() finds out each time what it is. */
static INLINED PyObject *
call_one(PyObject *function, PyObject *given)
{
    PyObject *arguments[2] = {NULL, given};
    if (Py_IS_TYPE(function, &PyFunction_Type))
        return ((PyFunctionObject *)function)->vectorcall(function, arguments + 1, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL);
    return PyObject_CallOneArg(function, given);
}

/* What a handler is called with; NULL with an exception if that cannot be had. */
static INLINED PyObject *
argument(State *s, PyObject *delivery, PyObject *receipt, PyObject *payload, PyObject *convert, int takes_event)
{
    PyObject *value = takes_event ? PyObject_CallMethodNoArgs(receipt, s->n_as_event) : Py_NewRef(payload);
    if (value != NULL && SLOT(delivery, s->d.state) == s->ints[SETTLED]) {
        /* The payload may have been gone; settling comes before letting go of it. */
        PyErr_SetNone(s->too_late);
        Py_CLEAR(value);
    }
    if (value == NULL || convert == Py_None)
        return value;
    if (convert == s->to_plain && value != Py_None && is_plain(s, value)) /* None becomes a dictionary */
        return value;
    PyObject *converted = PyObject_CallOneArg(convert, value);
    Py_DECREF(value);
    return converted;
}

/* Executor.pull() for somebody who was roused: claim from the one mailbox that is ready, if it asks for nothing else.
   Gives a new reference, or NULL if that is not the case, and then nothing has changed. */
static PyObject *
claim(State *s, WorkerOffsets *w, PyObject *executor, PyObject *worker)
{
    PyObject *ready = SLOT(executor, s->x.ready), *cell = SLOT(worker, w->cell);
    if (!is_a(ready, s->deque) || length(s, ready) != 1 || !PyList_CheckExact(cell))
        return NULL;
    PyObject *box = s->popleft(ready, NULL), *delivery = NULL, *held = NULL, *claims = NULL;
    if (box == NULL)
        goto refused;
    PyObject *pending = SLOT(box, s->b.pending);
    if (!is_true(box, s->b.flows) || SLOT(box, s->b.executor) != executor || !is_a(pending, s->deque) ||
        length(s, pending) == 0 || length(s, SLOT(box, s->b.running)) != 0)
        goto refused;
    held = changed(s, box, s->b.held, -1);
    claims = changed(s, worker, w->claims, 1);
    if (held == NULL || claims == NULL)
        goto refused;
    delivery = s->popleft(pending, NULL);
    if (delivery == NULL)
        goto refused;
    if (SLOT(delivery, s->d.state) != s->ints[PENDING]) {
        Py_XDECREF(s->appendleft(pending, delivery));
        Py_CLEAR(delivery);
        goto refused;
    }
    put_again(box, s->b.queued, Py_False);
    put_count(box, s->b.held, held, -1);
    put_state(delivery, s->d.state, s->ints[RUNNING]);
    put_again(delivery, s->d.worker, worker);
    PyList_SetItem(cell, 0, Py_NewRef(delivery));
    put_again(box, s->b.running, cell);
    put_again(worker, w->delivery, delivery);
    put_count(worker, w->claims, claims, 1);
    Py_DECREF(box);
    return delivery;
refused:
    PyErr_Clear();
    Py_XDECREF(held);
    Py_XDECREF(claims);
    if (box != NULL) {
        Py_XDECREF(s->appendleft(ready, box)); /* there is room where it was */
        PyErr_Clear();
        Py_DECREF(box);
    }
    return NULL;
}
