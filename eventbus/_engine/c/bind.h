/* How the module learns of the classes and objects that it works on. */

/* bind(names): the classes and objects that this works on. */

static int
find(PyObject *type, const char *name, Offset *offset)
{
    PyObject *member = PyObject_GetAttrString(type, name);
    if (member == NULL)
        return -1;
    int found = Py_IS_TYPE(member, &PyMemberDescr_Type);
    if (found)
        *offset = ((PyMemberDescrObject *)member)->d_member->offset;
    else
        PyErr_Format(PyExc_TypeError, "%R has no slot %s", type, name);
    Py_DECREF(member);
    return found ? 0 : -1;
}

/* Where the slots of these names are in instances of that class. */
static int
look_up(PyObject *names, const char *class, const char *const *fields, Offset *into)
{
    PyObject *type = PyDict_GetItemString(names, class);
    if (type == NULL) {
        PyErr_SetString(PyExc_KeyError, class);
        return -1;
    }
    for (; *fields != NULL; fields++, into++)
        if (find(type, *fields, into) < 0)
            return -1;
    return 0;
}

/* What a method of a class in C calls. */
static PyCFunction
function_of(PyTypeObject *type, const char *name, int flags)
{
    PyCFunction found = NULL;
    PyObject *method = PyObject_GetAttrString((PyObject *)type, name);
    if (method != NULL && Py_IS_TYPE(method, &PyMethodDescr_Type) &&
        ((PyMethodDescrObject *)method)->d_method->ml_flags == flags)
        found = ((PyMethodDescrObject *)method)->d_method->ml_meth;
    Py_XDECREF(method);
    if (found == NULL && !PyErr_Occurred())
        PyErr_Format(PyExc_TypeError, "%R has another method %s than is known here", type, name);
    return found;
}

static PyObject *
named(PyObject *names, const char *name)
{
    PyObject *value = PyDict_GetItemString(names, name);
    if (value == NULL) {
        PyErr_SetString(PyExc_KeyError, name);
        return NULL;
    }
    return Py_NewRef(value);
}

static PyObject *
bind(PyObject *module, PyObject *names)
{
    State *s = PyModule_GetState(module);
#define TAKE(field, name)                             \
    {                                                 \
        PyObject *taken = named(names, name);         \
        if (taken == NULL)                            \
            return NULL;                              \
        Py_XSETREF(s->field, taken);                  \
    }
/* The structures of offsets are as good as arrays of them. */
#define LOOK_UP(class, FIELDS, where)                                           \
    {                                                                           \
        static const char *const fields[] = {FIELDS(NAME) NULL};                \
        if (look_up(names, class, fields, (Offset *)(void *)&(where)) < 0)      \
            return NULL;                                                        \
    }
    LOOK_UP("Engine", ENGINE, s->e)
    LOOK_UP("Monitor", MONITOR, s->m)
    LOOK_UP("Registry", REGISTRY, s->g)
    LOOK_UP("Route", ROUTE, s->o)
    LOOK_UP("Tally", TALLY, s->t)
    LOOK_UP("Epoch", EPOCH, s->p)
    LOOK_UP("Delivery", DELIVERY, s->d)
    LOOK_UP("Holder", HOLDER, s->h)
    LOOK_UP("Receipt", RECEIPT, s->r)
    LOOK_UP("Mailbox", MAILBOX, s->b)
    LOOK_UP("HandlerSpec", SPEC, s->s)
    LOOK_UP("Options", OPTIONS, s->op)
    LOOK_UP("Worker", WORKER, s->worker)
    LOOK_UP("Worker", THREAD, s->thread)
    LOOK_UP("Dispatcher", EXECUTOR, s->x)
    LOOK_UP("Dispatcher", POOL, s->pool)
    LOOK_UP("Emitter", BLOCKED, s->emitter.blocked)
    LOOK_UP("Emitter", AT_WORK, s->emitter.delivery)
    LOOK_UP("Emitter", WHOSE, s->emitter.executor)
    TAKE(Dispatcher, "Dispatcher")
    leave_spares(s->Delivery);
    TAKE(Delivery, "Delivery")
    TAKE(Holder, "Holder")
    TAKE(Receipt, "Receipt")
    TAKE(Sleeper, "Sleeper")
    if (find(s->Sleeper, "_lock", &s->lock) < 0)
        return NULL;
    leave_seam(s); /* it may be another one now */
    TAKE(seam, "seam")
    TAKE(steps, "steps")
    TAKE(current, "current")
    TAKE(plain, "PLAIN")
    TAKE(to_plain, "to_plain")
    TAKE(delivered, "DELIVERED")
    TAKE(dropped, "DROPPED")
    TAKE(too_late, "TooLate")
    TAKE(no_counts, "NO_COUNTS")
    TAKE(begin_inline, "begin_inline")
    TAKE(end_inline, "end_inline")
    TAKE(mend_emit, "mend_emit")
    TAKE(partial, "partial")
    TAKE(deque, "deque")
    if ((s->append = function_of((PyTypeObject *)s->deque, "append", METH_O)) == NULL ||
        (s->appendleft = function_of((PyTypeObject *)s->deque, "appendleft", METH_O)) == NULL ||
        (s->popleft = function_of((PyTypeObject *)s->deque, "popleft", METH_NOARGS)) == NULL)
        return NULL;
    TAKE(clocks[MONOTONIC].function, "monotonic")
    TAKE(clocks[WALL_CLOCK].function, "time")
    watch_seam(s);
    PyObject *seconds = PyDict_GetItemString(names, "SAMPLE_SECONDS");
    s->sample_seconds = seconds == NULL ? -1.0 : PyFloat_AsDouble(seconds);
    if (find_mapping(s) < 0)
        return NULL;
    if (s->sample_seconds <= 0.0) {
        PyErr_SetString(PyExc_KeyError, "SAMPLE_SECONDS");
        return NULL;
    }
    end_quickly(s->Delivery, end_spare);
    end_quickly(s->Receipt, end_object);
    keep_spares(s->Delivery, s->d.duration);
    s->bound = s->on = 1;
    Py_RETURN_NONE;
}

/* bind_loops(names): the same for those of the facade. */
static PyObject *
bind_loops(PyObject *module, PyObject *names)
{
    State *s = PyModule_GetState(module);
    LOOK_UP("Slot", WORKER, s->slot)
    LOOK_UP("Slot", SLOT_OF_LOOP, s->sl)
    LOOK_UP("LoopExecutor", LOOP, s->l)
    TAKE(as_coroutine, "as_coroutine")
    TAKE(mend_slot, "mend_slot")
    TAKE(swap_task, "swap_task")
    TAKE(show_still, "show_still")
    TAKE(AsyncReceipt, "Receipt")
    end_quickly(s->AsyncReceipt, end_object);
    TAKE(running_loop, "running_loop")
    LOOK_UP("Binding", BINDING, s->bi)
    LOOK_UP("Receipt", ASYNC_RECEIPT, s->ar)
    PyObject *eagers = PyDict_GetItemString(names, "EAGERS"), *slice = PyDict_GetItemString(names, "SLICE");
    if (eagers == NULL || slice == NULL) {
        PyErr_SetString(PyExc_KeyError, "EAGERS");
        return NULL;
    }
    s->eagers = PyLong_AsSsize_t(eagers);
    s->slice = PyFloat_AsDouble(slice);
    if (PyErr_Occurred())
        return NULL;
    TAKE(LoopExecutor, "LoopExecutor") /* last: it says that there is a facade */
    Py_RETURN_NONE;
}

/* use(on): whether the functions here do anything; tells whether they did before. */
static PyObject *
use(PyObject *module, PyObject *on)
{
    State *s = PyModule_GetState(module);
    int before = s->on, wanted = PyObject_IsTrue(on);
    if (wanted < 0)
        return NULL;
    s->on = wanted && s->bound;
    return PyBool_FromLong(before);
}

/* used(): the same, and changes nothing. */
static PyObject *
used(PyObject *module, PyObject *nothing)
{
    return PyBool_FromLong(((State *)PyModule_GetState(module))->on);
}

/* quicken(face, make): put an Emit in the place of a face's method emit. */
static PyObject *
quicken(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &emit_spec, NULL);
    Emit *made = type == NULL ? NULL : (Emit *)((PyTypeObject *)type)->tp_alloc((PyTypeObject *)type, 0);
    Py_XDECREF(type);
    if (made == NULL)
        return NULL;
    made->vectorcall = emit_call;
    made->module = Py_NewRef(module);
    made->face = (PyTypeObject *)Py_NewRef(args[0]);
    made->make = (PyTypeObject *)Py_NewRef(args[1]);
    made->closing = made->binding = -1;
    made->function = PyObject_GetAttrString(args[0], "emit");
    int failed = made->function == NULL || find(args[0], "_engine", &made->engine) < 0;
    if (!failed && PyObject_HasAttrString(args[0], "_closing"))
        failed = find(args[0], "_closing", &made->closing) < 0 || find(args[0], "_binding", &made->binding) < 0;
    failed = failed || PyObject_SetAttrString(args[0], "emit", (PyObject *)made) < 0;
    Py_DECREF(made);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}
