/* What Worker.flow() in dispatcher.py does: a thread that runs the deliveries of a mailbox. */

/* Run the deliveries of a mailbox, one after another, as Worker.flow() does, for as many seconds as a slice has.

   Gives the mailbox when nothing is left to claim or the time is over; (delivery, value, error, took) of a call that has
   ended and is to be judged; a delivery that is claimed and has not begun, for the Python code to run. */
static PyObject *
flow_through(State *s, PyObject *engine, PyObject *worker, PyObject *delivery, PyObject *box,
             double slice) /* steals the delivery */
{
    PyObject *spec = SLOT(box, s->b.spec);
    PyObject *function = Py_NewRef(SLOT(spec, s->s.function));
    PyObject *convert = Py_NewRef(SLOT(spec, s->s.convert));
    int takes_event = is_true(spec, s->s.takes_event);
    PyObject *result = NULL;
    Own own = {NULL, NULL, NULL, NULL, 0};
    double started = read_clock(s, MONOTONIC), until = started + slice;
    if (failed_at(started))
        goto finally;
    put_again(delivery, s->d.actor, SLOT(worker, s->worker.actor));
    for (;;) {
        PyObject *receipt = SLOT(delivery, s->d.receipt);
        if (receipt == Py_None || SLOT(delivery, s->d.state) != s->ints[RUNNING] || is_none(receipt, s->r._context)) {
            result = delivery;
            delivery = NULL;
            break;
        }
        Py_INCREF(receipt);
        PyObject *payload = Py_NewRef(SLOT(receipt, s->r._payload)), *emitters = Py_NewRef(SLOT(receipt, s->r._context));
        PyObject *value = NULL, *error = NULL;
        if (enter_context(s, &own, emitters, delivery) == 0) {
            PyObject *given = argument(s, delivery, receipt, payload, convert, takes_event);
            if (given != NULL) {
                value = call_one(function, given);
                Py_DECREF(given);
            }
            if (value == NULL)
                error = take_error();
            exit_context(s, &own);
        }
        else
            error = take_error();
        Py_DECREF(emitters);
        Py_DECREF(payload);
        double now = read_clock(s, MONOTONIC);
        PyObject *took = failed_at(now) ? NULL : seconds(s, delivery, now - started);
        if (took == NULL) {
            PyErr_Clear();
            took = Py_NewRef(s->no_time);
        }
        started = now;
        PyObject *following = NULL;
        if (value != NULL && is_plain(s, value))
            following = turn(s, &s->worker, engine, worker, delivery, receipt, box, value, took, now < until);
        Py_DECREF(receipt);
        if (following == NULL)
            result = PyTuple_Pack(4, delivery, value == NULL ? Py_None : value, error == NULL ? Py_None : error, took);
        Py_XDECREF(value);
        Py_XDECREF(error);
        Py_DECREF(took);
        if (following == NULL)
            break;
        Py_SETREF(delivery, following);
        if (following == Py_None) {
            result = Py_NewRef(box);
            break;
        }
    }
finally:
    leave_context(&own);
    Py_XDECREF(delivery);
    Py_DECREF(function);
    Py_DECREF(convert);
    return result;
}

/* flow(engine, worker, delivery, box, slice) */
static PyObject *
flow(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    State *s = PyModule_GetState(module);
    if (!s->on)
        return Py_NewRef(args[2]);
    return flow_through(s, args[0], args[1], Py_NewRef(args[2]), args[3], PyFloat_AsDouble(args[4]));
}

/* resume(engine, pool, worker, slice): claim for a thread that was woken, and go on as flow() does; False if a step has to
   say what there is to do. */
static PyObject *
resume(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    State *s = PyModule_GetState(module);
    PyObject *engine = args[0], *pool = args[1], *worker = args[2], *idle = SLOT(pool, s->pool.idle);
    if (!s->on || in_step(s) || !PyList_CheckExact(idle))
        Py_RETURN_FALSE;
    /* Section: a worker that was woken claims. */
    if (SLOT(SLOT(engine, s->e.monitor), s->m.busy) != Py_False ||
        number(pool, s->x.computing) > number(pool, s->x.limit))
        Py_RETURN_FALSE;
    for (Py_ssize_t index = 0; index < PyList_GET_SIZE(idle); index++)
        if (PyList_GET_ITEM(idle, index) == worker)
            Py_RETURN_FALSE;
    PyObject *delivery = claim(s, &s->worker, pool, worker);
    /* End of section. */
    if (delivery == NULL)
        Py_RETURN_FALSE;
    PyObject *box = Py_NewRef(SLOT(delivery, s->d.box));
    PyObject *came = flow_through(s, engine, worker, delivery, box, PyFloat_AsDouble(args[3]));
    Py_DECREF(box);
    return came;
}
