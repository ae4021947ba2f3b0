/* The contexts in which handlers run (G14), and in them the current delivery (G19). */

/* What a context holds: the immutable mapping, borrowed; NULL if there is none. It is asked for as the collector would, if
   it is not known where that stands. */
static int
note_mapping(PyObject *found, void *into)
{
    void **both = into;
    if ((PyObject *)Py_TYPE(found) == both[0])
        both[1] = found;
    return 0;
}

static inline PyObject *
mapping_of(State *s, PyObject *context)
{
    if (s->mapping_at > 0)
        return SLOT(context, s->mapping_at);
    void *both[2] = {s->mapping, NULL};
    if (s->mapping != NULL)
        Py_TYPE(context)->tp_traverse(context, note_mapping, both);
    return both[1];
}

/* Learn what type that mapping has, and where it stands. Without it no context is used twice. */
static int
note_last(PyObject *found, void *into)
{
    *(PyObject **)into = found;
    return 0;
}

static int
find_mapping(State *s)
{
    PyObject *empty = PyContext_New(), *mapping = NULL;
    if (empty == NULL)
        return -1;
    Py_TYPE(empty)->tp_traverse(empty, note_last, &mapping); /* not entered, so that is all that it holds */
    Py_XSETREF(s->mapping, mapping == NULL ? NULL : Py_NewRef((PyObject *)Py_TYPE(mapping)));
    s->mapping_at = 0;
    for (Offset at = sizeof(PyObject); mapping != NULL && at < Py_TYPE(empty)->tp_basicsize; at += sizeof(PyObject *))
        if (SLOT(empty, at) == mapping)
            s->mapping_at = at;
    Py_DECREF(empty);
    return 0;
}

/* The emitter's context: that of the last delivery that is pending, if nothing was set since, which in a burst is the
   rule; else a copy. Nobody enters either. */
static PyObject *
own_context(State *s, PyObject *boxes)
{
    PyObject *current = PyThreadState_Get()->context, *context = NULL;
    PyObject *pending = PyTuple_GET_SIZE(boxes) > 0 ? SLOT(PyTuple_GET_ITEM(boxes, 0), s->b.pending) : NULL;
    PyObject *mapping = current == NULL || pending == NULL || !is_a(pending, s->deque) || Py_SIZE(pending) == 0
                            ? NULL : mapping_of(s, current);
    if (mapping != NULL) {
        PyObject *last = PySequence_GetItem(pending, Py_SIZE(pending) - 1);
        if (last == NULL)
            PyErr_Clear();
        else if (is_a(last, s->Delivery) && SLOT(last, s->d.receipt) != Py_None) {
            context = SLOT(SLOT(last, s->d.receipt), s->r._context);
            context = PyContext_CheckExact(context) && mapping_of(s, context) == mapping ? Py_NewRef(context) : NULL;
        }
        Py_XDECREF(last); /* it stands there still */
    }
    return context != NULL ? context : PyContext_CopyCurrent();
}

/* What the context variable holds: the delivery itself, or in its place a holder; borrowed. */
static inline PyObject *
held_by(State *s, PyObject *value)
{
    return is_a(value, s->Holder) ? SLOT(value, s->h.delivery) : value;
}

/* A context that handlers run in, one after another, as long as each leaves it as it was. From the second on its variable
   has a holder, in which the delivery is changed as long as nobody has copied the context meanwhile. A copy in which
   something was set since has a mapping of its own, that shares nodes with this one; so the holder has to stand in the
   root, of which each mapping has its own: its references then tell in how many it is. */
typedef struct {
    PyObject *context; /* NULL: there is none */
    PyObject *copied;  /* the emitter's, of which it is a copy */
    PyObject *mapping; /* what it held when the last handler began */
    PyObject *holder;  /* NULL: there is none, or somebody has a copy */
    int holds;         /* whether the next has a holder: 0, it is the first; 1; -1, they do not leave it as it was */
} Own;

static void
leave_context(Own *own)
{
    Py_CLEAR(own->context);
    Py_CLEAR(own->copied);
    Py_CLEAR(own->mapping);
    Py_CLEAR(own->holder);
}

static int
note_same(PyObject *found, void *into)
{
    void **both = into;
    if (found == both[0])
        both[1] = found;
    return 0;
}

/* Whether a mapping has an object in its root, not in a node below it. */
static int
is_in_root(PyObject *mapping, PyObject *object)
{
    PyObject *root = NULL;
    void *both[2] = {object, NULL};
    if (mapping != NULL && Py_TYPE(mapping)->tp_traverse != NULL)
        Py_TYPE(mapping)->tp_traverse(mapping, note_last, &root);
    if (root != NULL && Py_TYPE(root)->tp_traverse != NULL)
        Py_TYPE(root)->tp_traverse(root, note_same, both);
    return both[1] != NULL;
}

/* Make a delivery the current one in this thread's context, by a holder if another may follow. */
static int
set_current(State *s, Own *own, PyObject *delivery, int by_holder)
{
#if PY_VERSION_HEX < 0x030C0000
    int collects = PyGC_Disable(); /* or what a finalizer sets meanwhile would be taken for the emitter's */
#endif
    PyObject *value = by_holder ? allocate((PyTypeObject *)s->Holder) : Py_NewRef(delivery);
    if (value != NULL && by_holder) {
        SLOT(value, s->h.delivery) = Py_NewRef(delivery);
        PyObject_GC_Track(value);
    }
    PyObject *token = value == NULL ? NULL : PyContextVar_Set(s->current, value);
    if (token != NULL) {
        Py_XSETREF(own->mapping, Py_XNewRef(mapping_of(s, PyThreadState_Get()->context)));
        Py_XSETREF(own->holder, by_holder && is_in_root(own->mapping, value) ? Py_NewRef(value) : NULL);
    }
    Py_XDECREF(value);
    Py_XDECREF(token);
#if PY_VERSION_HEX < 0x030C0000
    if (collects)
        PyGC_Enable();
#endif
    return token == NULL ? -1 : 0;
}

/* After a handler: whether the context is as it was, and whether its holder can be used once more. */
static INLINED int
is_unchanged(State *s, Own *own, PyObject *context)
{
    int unchanged = own->mapping != NULL && mapping_of(s, context) == own->mapping;
    if (!unchanged || Py_REFCNT(own->mapping) != 2 || /* the context's and this one */
        (own->holder != NULL && Py_REFCNT(own->holder) != 2)) /* the mapping's and this one */
        Py_CLEAR(own->holder);
    return unchanged;
}

/* In this thread's context, make a delivery the current one by the holder that stands there, if nothing was set and
   nobody has copied it since; tells whether that is done. */
static inline int
hold(State *s, Own *own, PyThreadState *thread, PyObject *delivery)
{
    int held = own->holder != NULL && is_unchanged(s, own, thread->context) && own->holder != NULL;
    if (held)
        put_again(own->holder, s->h.delivery, delivery);
    return held;
}

/* Have hold() look at a holder that was left in this thread's context with None in it. */
static void
adopt(State *s, Own *own, PyThreadState *thread, PyObject **holder)
{
    PyObject *context = thread->context;
    if (context == NULL || !is_a(*holder, s->Holder) || SLOT(*holder, s->h.delivery) != Py_None)
        return;
    PyObject *mapping = mapping_of(s, context);
    if (is_in_root(mapping, *holder)) {
        own->mapping = Py_NewRef(mapping);
        own->holder = *holder;
        *holder = NULL;
    }
}

/* Enter a context that holds what an emitter's does, and the delivery as the current one; -1 with an exception, and then
   it is left. What the last handler has returned may end here, and be a user's: before the context is entered. */
static int
enter_context(State *s, Own *own, PyObject *emitters, PyObject *delivery)
{
    if (own->context != NULL && emitters != own->copied && mapping_of(s, emitters) != mapping_of(s, own->copied)) {
        leave_context(own);
        own->holds = 0;
    }
    if (own->context == NULL && (own->context = PyContext_Copy(emitters)) == NULL)
        return -1;
    Py_XSETREF(own->copied, Py_NewRef(emitters));
    if (own->holder != NULL)
        put_again(own->holder, s->h.delivery, delivery);
    if (PyContext_Enter(own->context) < 0) {
        leave_context(own);
        return -1;
    }
    if (own->holder == NULL && set_current(s, own, delivery, own->holds > 0) < 0) {
        PyObject *error = take_error();
        if (PyContext_Exit(own->context) < 0)
            PyErr_Clear();
        leave_context(own);
        set_error(error);
        return -1;
    }
    return 0;
}

static void
exit_context(State *s, Own *own)
{
    if (PyContext_Exit(own->context) < 0)
        PyErr_Clear();
    int unchanged = is_unchanged(s, own, own->context) && Py_REFCNT(own->context) == 1;
    if (own->holder == NULL)
        own->holds = own->holds == 0 ? 1 : -1;
    if (!unchanged || own->holder == NULL)
        leave_context(own);
}
