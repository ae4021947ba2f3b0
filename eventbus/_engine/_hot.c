/* The hot path in C: what the sections of engine.py, turn.py, inline.py and dispatcher.py do, and nothing else.

   Optional. Each function here does a whole common case or refuses it and has changed nothing; the Python code then goes
   on, and is complete without this file. Where the two differ, the Python is right: it is the specification.

   A section (see primitives.SECTIONS) is a run of this code between two calls that can run Python code. On a build with a
   GIL no other thread and no signal handler comes in between; so what may allocate a container (which on Python 3.11 can
   run the collector) or drop the last reference to an object of a user's stands before or after a section, never in it.
   Where memory runs out within a section nothing has been changed yet: new values are made first, then put in place.

   Objects keep their Python classes: attributes are read and written at the offsets of their __slots__, which bind() looks
   up. Builds without a GIL do not have this module. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <time.h>
#ifdef _MSC_VER
#include <intrin.h>
#endif

#ifdef Py_GIL_DISABLED
#error "sections need a GIL: on this build the locks of the Python code are the way"
#endif

/* The attributes that are used, by class. */
#define ENGINE(X) X(monitor) X(registry) X(seqs) X(sampled) X(max_depth) X(uid) X(state) X(epoch) X(drains) \
    X(keen) X(emitter) X(propagates)
#define MONITOR(X) X(after) X(busy) X(deferred)
#define REGISTRY(X) X(routes) X(generation)
#define ROUTE(X) X(boxes) X(counted) X(generation) X(all_inline) X(reserved) X(swift) X(tally)
#define TALLY(X) X(emits)
#define EPOCH(X) X(open)
#define HOLDER(X) X(delivery)
#define DELIVERY(X) X(actor) X(box) X(deadline) X(duration) X(epoch) X(error) X(info) X(later) X(lineage) X(outer) \
    X(receipt) X(seq) X(state) X(status) X(uid) X(value) X(waiter) X(worker)
#define RECEIPT(X) X(_accepting) X(_context) X(_deliveries) X(_engine) X(_event) X(_follows) X(_headers) X(_left) \
    X(_lineage) X(_mark) X(_observers) X(_payload) X(_propagate) X(_seq) X(_timestamp) X(_topic) X(_uid) X(_waiters)
#define MAILBOX(X) X(admits) X(bound) X(concurrency) X(counts) X(deliveries) X(engine) X(executor) X(flows) X(held) X(info) X(observer) \
    X(pending) X(queued) X(running) X(spec) X(tracked)
#define SPEC(X) X(convert) X(function) X(takes_event)
#define WORKER(X) X(actor) X(blocked) X(cell) X(claims) X(delivery) X(executor)
#define THREAD(X) X(sleeper)
#define EXECUTOR(X) X(computing) X(engine) X(limit) X(ready)
#define POOL(X) X(idle)
#define SLOT_OF_LOOP(X) X(cancelled) X(context) X(coroutine) X(expired) X(ours) X(started) X(suspended) X(task) \
    X(yielded) X(yielding)
#define LOOP(X) X(eagers) X(gone) X(ident) X(loop) X(parked) X(paused) X(roused) X(scheduled) X(since) X(spent)
#define BINDING(X) X(home)
#define ASYNC_RECEIPT(X) X(_binding) X(_patience)

#define BLOCKED(X) X(blocked)
#define AT_WORK(X) X(delivery)
#define WHOSE(X) X(executor)
/* The objects that are held. */
#define HELD(X) X(AsyncReceipt) X(Delivery) X(Dispatcher) X(Holder) X(LoopExecutor) X(Receipt) X(as_coroutine) X(begin_inline) \
    X(current) X(delivered) X(deque) X(end_inline) X(mend_emit) X(mend_slot) X(no_counts) X(nobody) \
    X(partial) X(plain) X(running_loop) X(Sleeper) X(seam) X(show_still) X(steps) X(swap_task) X(to_plain) X(too_late)

/* Those that are its own. */
#define NAMES(X) X(zero) X(no_time) X(n_as_event) X(n_cancelling) X(n_flush) X(n_follow_up) X(n_go_on) X(n_lent) \
    X(n_release) X(n_wake) X(n_wake_loop)

/* Which clock of the system time.monotonic() reads: its times are compared with those that are read here. */
#if defined(__APPLE__) && defined(CLOCK_UPTIME_RAW)
#define MONOTONIC_ID CLOCK_UPTIME_RAW
#elif defined(CLOCK_HIGHRES)
#define MONOTONIC_ID CLOCK_HIGHRES
#elif defined(CLOCK_MONOTONIC) && !defined(__APPLE__) && !defined(_WIN32)
#define MONOTONIC_ID CLOCK_MONOTONIC
#else
#define MONOTONIC_ID (-1) /* by a call */
#endif
#ifdef CLOCK_REALTIME
#define REALTIME_ID CLOCK_REALTIME
#else
#define REALTIME_ID (-1)
#endif

typedef Py_ssize_t Offset;
#define FIELD(name) Offset name;
#define NAME(name) #name,
#define OBJECT(name) PyObject *name;
typedef struct {
    WORKER(FIELD)
} WorkerOffsets;

/* A clock that can be read without a call, if the seam has this function under that name. */
typedef struct {
    PyObject *name, *function;
    int id; /* the system's, or -1 */
} Clock;

enum { MONOTONIC, WALL_CLOCK, CLOCKS };

typedef struct {
    int on;    /* false: every function refuses */
    int bound; /* the offsets are known */
    struct { ENGINE(FIELD) } e;
    struct { MONITOR(FIELD) } m;
    struct { REGISTRY(FIELD) } g;
    struct { ROUTE(FIELD) } o;
    struct { TALLY(FIELD) } t;
    struct { EPOCH(FIELD) } p;
    Offset lock; /* of a Sleeper */
    struct { HOLDER(FIELD) } h;
    struct { DELIVERY(FIELD) } d;
    struct { RECEIPT(FIELD) } r;
    struct { MAILBOX(FIELD) } b;
    struct { SPEC(FIELD) } s;
    WorkerOffsets worker;
    WorkerOffsets emitter; /* of which it has "blocked", "delivery" and "executor" */
    WorkerOffsets slot;
    struct { THREAD(FIELD) } thread;
    struct { EXECUTOR(FIELD) } x;
    struct { POOL(FIELD) } pool;
    struct { SLOT_OF_LOOP(FIELD) } sl;
    struct { LOOP(FIELD) } l;
    struct { BINDING(FIELD) } bi;
    struct { ASYNC_RECEIPT(FIELD) } ar;
    /* LoopExecutor is NULL until there is a facade; "seam" is the namespace of primitives, "steps" is monitor.steps,
       "current" the context variable, "plain" is payload.PLAIN. */
    HELD(OBJECT)
    PyCFunction append, popleft, appendleft; /* of deque */
    PyObject *states[4];        /* of a delivery: LINED, PENDING, RUNNING, SETTLED */
    PyObject *ident;
    PyObject *mapping; /* the type of what contexts hold, or NULL */
    NAMES(OBJECT)
    Clock clocks[CLOCKS];
    unsigned long seen[CLOCKS]; /* how often the seam had changed when a clock was last looked up and was itself */
    int watcher, watched;
    double sample_seconds, slice;
    Py_ssize_t eagers;
} State;

enum { LINED, PENDING, RUNNING, SETTLED };

#define SLOT(object, offset) (*(PyObject **)((char *)(object) + (offset)))

static inline int
is_a(PyObject *object, PyObject *type) /* and no subclass */
{
    return (PyObject *)Py_TYPE(object) == type;
}

/* Put a value (a new reference) in the place of another, which is no object of a user's. */
static inline void
put(PyObject *object, Offset offset, PyObject *value)
{
    PyObject *old = SLOT(object, offset);
    SLOT(object, offset) = value;
    Py_XDECREF(old);
}

static inline void
put_again(PyObject *object, Offset offset, PyObject *value)
{
    put(object, offset, Py_NewRef(value));
}

/* An int as it is in memory, if one digit says all of it and it is not negative; else NULL. */
static inline digit *
only_digit(PyObject *value)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyLongObject *number = (PyLongObject *)value;
    return PyUnstable_Long_IsCompact(number) && PyUnstable_Long_CompactValue(number) >= 0 ? number->long_value.ob_digit : NULL;
#else
    return Py_SIZE(value) == 1 ? ((PyLongObject *)value)->ob_digit : NULL;
#endif
}

/* An attribute that is a small int; -1 if it is none, or too large: a bound of a mailbox can be any number. */
static inline Py_ssize_t
number(PyObject *object, Offset offset)
{
    PyObject *value = SLOT(object, offset);
    if (value == NULL || !PyLong_CheckExact(value))
        return -1;
    digit *only = only_digit(value);
    if (only != NULL)
        return (Py_ssize_t)*only;
    Py_ssize_t found = PyLong_AsSsize_t(value);
    if (found == -1)
        PyErr_Clear();
    return found;
}

/* Ints up to here may be everybody's. */
#define SHARED 1024

/* A counter that nobody else has a reference to can be counted up and down where it is, which spares a burst much of what
   it would allocate. */
static inline int
is_own(PyObject *value, Py_ssize_t references, Py_ssize_t by)
{
    digit *only = Py_REFCNT(value) == references && PyLong_CheckExact(value) ? only_digit(value) : NULL;
    return only != NULL && (Py_ssize_t)*only > SHARED && (Py_ssize_t)*only + by > SHARED &&
           (Py_ssize_t)*only + by <= (Py_ssize_t)PyLong_MASK;
}

/* What a counter will be, for put_count(); NULL if there is no memory, or it is none. If it can be counted where it is,
   that is itself, not counted yet. */
static inline PyObject *
next_count(PyObject *value, Py_ssize_t old, Py_ssize_t by)
{
    if (value != NULL && is_own(value, 1, by))
        return Py_NewRef(value);
    return old < 0 || old == PY_SSIZE_T_MAX ? NULL : PyLong_FromSsize_t(old + by);
}

static inline PyObject *
changed(PyObject *object, Offset offset, Py_ssize_t by)
{
    return next_count(SLOT(object, offset), number(object, offset), by);
}

/* Count, at the place of the counter: cannot fail. Steals the value that changed() has given for this. */
static inline void
put_in(PyObject **place, PyObject *value, Py_ssize_t by)
{
    PyObject *old = *place;
    if (old == value)
        *only_digit(value) += by;
    *place = value;
    Py_XDECREF(old);
}

static inline void
put_count(PyObject *object, Offset offset, PyObject *value, Py_ssize_t by)
{
    put_in(&SLOT(object, offset), value, by);
}

static inline int
is_true(PyObject *object, Offset offset)
{
    return SLOT(object, offset) == Py_True;
}

static inline int
is_none(PyObject *object, Offset offset)
{
    return SLOT(object, offset) == Py_None;
}

/* How long a tuple, list, dict or deque is. */
static inline Py_ssize_t
length(State *s, PyObject *container)
{
    if (PyTuple_CheckExact(container) || PyList_CheckExact(container) || is_a(container, s->deque))
        return Py_SIZE(container);
    return PyObject_Size(container);
}

/* How often a namespace that is watched has changed; where none can be watched, whoever asks has to look. One for all
   interpreters, each with a GIL of its own: one too many is no harm, one that is lost would be. */
#if PY_VERSION_HEX >= 0x030C0000
static volatile unsigned long changes = 1;

static int
note_change(PyDict_WatchEvent event, PyObject *namespace, PyObject *key, PyObject *value)
{
#if defined(__GNUC__)
    __atomic_fetch_add(&changes, 1, __ATOMIC_SEQ_CST);
#elif defined(_MSC_VER)
    _InterlockedIncrement((volatile long *)&changes);
#else
    changes++;
#endif
    return 0;
}
#endif

/* Have changes of the seam's namespace noted. */
static void
watch_seam(State *s)
{
#if PY_VERSION_HEX >= 0x030C0000
    if (s->watched)
        return;
    s->watcher = PyDict_AddWatcher(note_change);
    s->watched = s->watcher >= 0 && PyDict_Watch(s->watcher, s->seam) == 0;
    if (!s->watched) { /* others watch too much: it is looked up each time */
        PyErr_Clear();
        if (s->watcher >= 0)
            PyDict_ClearWatcher(s->watcher);
    }
#endif
}

static void
leave_seam(State *s)
{
#if PY_VERSION_HEX >= 0x030C0000
    if (s->watched && (PyDict_Unwatch(s->watcher, s->seam) < 0 || PyDict_ClearWatcher(s->watcher) < 0))
        PyErr_Clear();
    s->watched = 0;
    memset(s->seen, 0, sizeof(s->seen));
#endif
}

/* A clock of the seam: read here if nobody stands in for it. -1.0 if that fails, and then an exception is set. */
static double
read_clock(State *s, int which)
{
    const Clock *known = &s->clocks[which];
#if PY_VERSION_HEX >= 0x030C0000
    int is_known = s->watched && s->seen[which] == changes;
#else
    int is_known = 0;
#endif
    PyObject *clock = known->function;
    if (!is_known) {
        clock = PyDict_GetItemWithError(s->seam, known->name);
        if (clock == NULL) {
            if (!PyErr_Occurred())
                PyErr_SetObject(PyExc_KeyError, known->name);
            return -1.0;
        }
    }
#ifdef CLOCK_REALTIME
    struct timespec now;
    if (clock == known->function && known->id >= 0) {
#if PY_VERSION_HEX >= 0x030C0000
        s->seen[which] = changes;
#endif
        if (clock_gettime(known->id, &now) == 0)
            return (double)((long long)now.tv_sec * 1000000000 + now.tv_nsec) / 1e9; /* to the last bit as Python has it */
    }
#endif
    double value = -1.0;
    Py_INCREF(clock);
    PyObject *read = PyObject_CallNoArgs(clock);
    Py_DECREF(clock);
    if (read != NULL) {
        value = PyFloat_AsDouble(read);
        Py_DECREF(read);
    }
    return value;
}

/* Whether that has failed. */
static inline int
failed_at(double instant)
{
    return instant == -1.0 && PyErr_Occurred() != NULL;
}

/* The exception that is set, as an object with its traceback. */
static PyObject *
take_error(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    if (trace != NULL)
        PyException_SetTraceback(value, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return value;
#endif
}

/* The opposite: as it was, its __context__ too. Steals it. */
static void
set_error(PyObject *error)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(error);
#else
    PyErr_Restore(Py_NewRef((PyObject *)Py_TYPE(error)), error, PyException_GetTraceback(error));
#endif
}

/* Values that hold no others. */
static inline int
is_atomic(PyObject *value)
{
    return value == Py_None || PyLong_CheckExact(value) || PyBool_Check(value) || PyFloat_CheckExact(value) ||
           PyUnicode_CheckExact(value) || PyBytes_CheckExact(value);
}

/* Whether a value needs no judging: it cannot be an awaitable. */
static inline int
is_plain(State *s, PyObject *value)
{
    if (is_atomic(value))
        return 1;
    int found = PySet_Contains(s->plain, (PyObject *)Py_TYPE(value));
    if (found < 0)
        PyErr_Clear();
    return found == 1;
}

/* Whether this thread is in the midst of a step, of whatever bus. */
static int
in_step(State *s)
{
    if (PyDict_GET_SIZE(s->steps) == 0)
        return 0;
    PyObject *ident = PyLong_FromUnsignedLong(PyThread_get_thread_ident());
    int found = ident == NULL ? -1 : PyDict_Contains(s->steps, ident);
    Py_XDECREF(ident);
    if (found < 0)
        PyErr_Clear();
    return found != 0;
}

/* The collector looks at every object that it tracks again and again, which costs a burst more than all else. While a
   delivery is pending for the dispatcher, a thread of it holds the bus; while it is for a loop, so does what that is to
   call next, until a handler suspends (LoopExecutor.suspend) or it stands still (show_still() in _runner.py);
   while an inline one runs the emitter's stack does. So
   nothing of a delivery and its receipt is garbage; and once settled they hold nothing that could lead back to them, but for what the handler returned or raised,
   and the facade's receipts for the bus. So they are tracked only from then on, see track(). */
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
           (is_a(executor, s->LoopExecutor) && SLOT(executor, s->l.paused) == Py_False && SLOT(executor, s->l.gone) == Py_False);
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

/* An object of a class of the core, all slots empty, not tracked yet. */
static inline PyObject *
allocate(PyTypeObject *type)
{
    PyObject *made = PyObject_GC_New(PyObject, type);
    if (made != NULL)
        memset((char *)made + sizeof(PyObject), 0, type->tp_basicsize - sizeof(PyObject));
    return made;
}

/* What a context holds: the immutable mapping, borrowed; NULL if there is none. It is asked for as the collector would. */
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
    void *both[2] = {s->mapping, NULL};
    if (s->mapping != NULL)
        Py_TYPE(context)->tp_traverse(context, note_mapping, both);
    return both[1];
}

/* Learn what type that mapping has. Without it no context is used twice. */
static int
note_type(PyObject *found, void *into)
{
    *(PyObject **)into = (PyObject *)Py_TYPE(found);
    return 0;
}

static int
find_mapping(State *s)
{
    PyObject *empty = PyContext_New(), *type = NULL;
    if (empty == NULL)
        return -1;
    Py_TYPE(empty)->tp_traverse(empty, note_type, &type); /* not entered, so that is all that it holds */
    Py_XSETREF(s->mapping, Py_XNewRef(type));
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

static int
note_root(PyObject *found, void *into)
{
    *(PyObject **)into = found;
    return 0;
}

/* Whether a mapping has an object in its root, not in a node below it. */
static int
is_in_root(PyObject *mapping, PyObject *object)
{
    PyObject *root = NULL;
    void *both[2] = {object, NULL};
    if (mapping != NULL && Py_TYPE(mapping)->tp_traverse != NULL)
        Py_TYPE(mapping)->tp_traverse(mapping, note_root, &root);
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
static int
is_unchanged(State *s, Own *own, PyObject *context)
{
    int unchanged = own->mapping != NULL && mapping_of(s, context) == own->mapping;
    if (!unchanged || Py_REFCNT(own->mapping) != 2 || /* the context's and this one */
        (own->holder != NULL && Py_REFCNT(own->holder) != 2)) /* the mapping's and this one */
        Py_CLEAR(own->holder);
    return unchanged;
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

/* Have the processor fetch what will be wanted soon: in a burst, deliveries have gone out of its caches by their turn. */
static inline void
prefetch(PyObject *object)
{
#ifdef __GNUC__
    for (int offset = 0; offset < 256; offset += 64)
        __builtin_prefetch((char *)object + offset);
#endif
}

/* turn.turn(): settle as delivered, and claim the next if there may be more.
   Gives a new reference: that, or None; NULL, without an exception, is REFUSED. Whoever calls it holds the delivery, the
   receipt and the mailbox. */
static PyObject *
turn(State *s, WorkerOffsets *w, PyObject *engine, PyObject *worker, PyObject *delivery, PyObject *receipt,
     PyObject *box, PyObject *value, PyObject *took, int more)
{
    PyObject *epoch = SLOT(delivery, s->d.epoch);
    PyObject *counts = SLOT(box, s->b.counts);
    if (SLOT(SLOT(engine, s->e.monitor), s->m.busy) != Py_False || !is_true(box, s->b.flows) ||
        SLOT(box, s->b.executor) != SLOT(worker, w->executor) ||
        SLOT(delivery, s->d.state) != s->states[RUNNING] || !is_none(receipt, s->r._waiters) ||
        !is_none(receipt, s->r._follows) || SLOT(worker, w->blocked) != Py_False ||
        PyFloat_AsDouble(SLOT(receipt, s->r._mark)) != 0.0 || !PyList_CheckExact(counts))
        return NULL;
    if (length(s, SLOT(engine, s->e.drains)) &&
        (number(engine, s->e.keen) != 0 || epoch == Py_None || number(epoch, s->p.open) == 1))
        return NULL;

    Offset standing = is_true(box, s->b.observer) ? s->r._observers : s->r._left;
    PyObject *pending = SLOT(box, s->b.pending);
    PyObject *following = NULL, *held = NULL, *claims = NULL, *open = NULL;
    more = more && is_a(pending, s->deque) && Py_SIZE(pending) > 0;
    PyObject *left = changed(receipt, standing, -1);
    PyObject *total = PyList_GET_ITEM(counts, 0), *count = next_count(total, PyLong_AsSsize_t(total), 1);
    if (left == NULL || count == NULL)
        goto no_memory;
    if (epoch != Py_None && (open = changed(epoch, s->p.open, -1)) == NULL)
        goto no_memory;
    if (more) {
        held = changed(box, s->b.held, -1);
        claims = changed(worker, w->claims, 1);
        following = held == NULL || claims == NULL ? NULL : s->popleft(pending, NULL);
        if (following == NULL)
            goto no_memory;
        if (SLOT(following, s->d.state) != s->states[PENDING]) {
            Py_XDECREF(s->appendleft(pending, following)); /* there is room where it was */
            Py_CLEAR(following);
            Py_CLEAR(held);
            Py_CLEAR(claims);
        }
        else {
            prefetch(SLOT(following, s->d.receipt));
            if (length(s, pending) > 0) {
                PyObject *next = PySequence_GetItem(pending, 0);
                if (next == NULL)
                    PyErr_Clear();
                else
                    prefetch(next);
                Py_XDECREF(next); /* it stands there still */
            }
        }
    }

    /* Section: a delivery is settled, and the next is claimed. From here on nothing can fail. */
    put_again(delivery, s->d.status, s->delivered);
    put_again(delivery, s->d.value, value);
    put_again(delivery, s->d.error, Py_None);
    put_again(delivery, s->d.duration, took);
    put_again(delivery, s->d.info, SLOT(box, s->b.info));
    put_again(delivery, s->d.state, s->states[SETTLED]);
    put_in(&PyList_GET_ITEM(counts, 0), count, 1);
    if (open != NULL) {
        put_count(epoch, s->p.open, open, -1);
        put_again(delivery, s->d.epoch, Py_None);
    }
    put_count(receipt, standing, left, -1);
    /* What is dropped for good may run a finalizer: held until the section is over. */
    PyObject *payload = NULL, *context = NULL, *event = NULL;
    if (SLOT(receipt, s->r._left) == s->zero && SLOT(receipt, s->r._observers) == s->zero) {
        payload = SLOT(receipt, s->r._payload);
        context = SLOT(receipt, s->r._context);
        event = SLOT(receipt, s->r._event);
        SLOT(receipt, s->r._payload) = Py_NewRef(Py_None);
        SLOT(receipt, s->r._context) = Py_NewRef(Py_None);
        SLOT(receipt, s->r._event) = Py_NewRef(Py_None);
        put_again(receipt, s->r._engine, Py_None);
    }
    put_again(delivery, s->d.seq, SLOT(receipt, s->r._seq));
    put_again(delivery, s->d.uid, SLOT(receipt, s->r._uid));
    put_again(delivery, s->d.lineage, SLOT(receipt, s->r._lineage));
    put_again(delivery, s->d.worker, Py_None);
    put_again(delivery, s->d.actor, Py_None);
    PyObject *outer = SLOT(delivery, s->d.outer);
    SLOT(delivery, s->d.outer) = Py_NewRef(Py_None);
    put_again(delivery, s->d.receipt, Py_None);
    put_again(delivery, s->d.box, Py_None);
    if (following != NULL) {
        PyObject *cell = SLOT(worker, w->cell);
        put_count(box, s->b.held, held, -1);
        put_again(following, s->d.state, s->states[RUNNING]);
        put_again(following, s->d.worker, worker);
        put_again(following, s->d.actor, SLOT(worker, w->actor));
        PyList_SetItem(cell, 0, Py_NewRef(following));
        put_again(box, s->b.running, cell);
        put_again(worker, w->delivery, following);
        put_count(worker, w->claims, claims, 1);
    }
    else {
        put(box, s->b.running, PyTuple_New(0)); /* the one empty tuple there is */
        put_again(worker, w->delivery, Py_None);
    }
    /* End of section. */
    if (!is_atomic(value))
        track_both(s, delivery, receipt);
    else if ((PyObject *)Py_TYPE(receipt) != s->Receipt)
        track_one(receipt);
    Py_XDECREF(payload);
    Py_XDECREF(context);
    Py_XDECREF(event);
    Py_XDECREF(outer);
    return following != NULL ? following : Py_NewRef(Py_None);

no_memory:
    PyErr_Clear();
    Py_XDECREF(left);
    Py_XDECREF(count);
    Py_XDECREF(open);
    Py_XDECREF(held);
    Py_XDECREF(claims);
    Py_XDECREF(following);
    return NULL;
}

/* What a handler is called with; NULL with an exception if that cannot be had. */
static PyObject *
argument(State *s, PyObject *delivery, PyObject *receipt, PyObject *payload, PyObject *convert, int takes_event)
{
    PyObject *value = takes_event ? PyObject_CallMethodNoArgs(receipt, s->n_as_event) : Py_NewRef(payload);
    if (value != NULL && SLOT(delivery, s->d.state) == s->states[SETTLED]) {
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

/* Run the deliveries of a mailbox, one after another, as Worker.flow() does, for as many seconds as a slice has.

   Gives the mailbox when nothing is left to claim or the time is over; (delivery, value, error, took) of a call that has
   ended and is to be judged; a delivery that is claimed and has not begun, for the Python code to run. */
static PyObject *
flow_through(State *s, PyObject *engine, PyObject *worker, PyObject *delivery, PyObject *box, double slice) /* steals the delivery */
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
        if (receipt == Py_None || SLOT(delivery, s->d.state) != s->states[RUNNING] || is_none(receipt, s->r._context)) {
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
                value = PyObject_CallOneArg(function, given);
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
        PyObject *took = failed_at(now) ? NULL : PyFloat_FromDouble(now - started);
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

/* After an error: have Python code do something outside of steps. It is noted where the next flush finds it, without a
   call of Python code; if the stack is exhausted, whoever flushes next has more of it. */
static void
note(State *s, PyObject *error, PyObject *monitor, PyObject *function, PyObject *a, PyObject *b, PyObject *c, PyObject *d, PyObject *e)
{
    PyObject *parts[6] = {function, a, b, c, d, e}, *call = NULL, *after = SLOT(monitor, s->m.after);
    Py_ssize_t count = 0;
    while (count < 6 && parts[count] != NULL)
        count++;
    PyObject *given = PyTuple_New(count);
    for (Py_ssize_t index = 0; given != NULL && index < count; index++)
        PyTuple_SET_ITEM(given, index, Py_NewRef(parts[index]));
    /* On 3.11 to call the type would count as a recursion. */
    if (given != NULL)
        call = ((PyTypeObject *)s->partial)->tp_new((PyTypeObject *)s->partial, given, NULL);
    Py_XDECREF(given);
    PyObject *nothing = call == NULL || !is_a(after, s->deque) ? NULL : s->append(after, call);
    Py_XDECREF(call);
    if (nothing != NULL && !PyErr_GivenExceptionMatches(error, PyExc_RecursionError))
        Py_SETREF(nothing, PyObject_CallMethodNoArgs(monitor, s->n_flush));
    if (nothing == NULL)
        PyErr_Clear();
    Py_XDECREF(nothing);
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
    held = changed(box, s->b.held, -1);
    claims = changed(worker, w->claims, 1);
    if (held == NULL || claims == NULL)
        goto refused;
    delivery = s->popleft(pending, NULL);
    if (delivery == NULL)
        goto refused;
    if (SLOT(delivery, s->d.state) != s->states[PENDING]) {
        Py_XDECREF(s->appendleft(pending, delivery));
        Py_CLEAR(delivery);
        goto refused;
    }
    put_again(box, s->b.queued, Py_False);
    put_count(box, s->b.held, held, -1);
    put_again(delivery, s->d.state, s->states[RUNNING]);
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
        if (receipt == Py_None || box == Py_None || SLOT(delivery, s->d.state) != s->states[RUNNING] ||
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
                made = PyObject_CallOneArg(SLOT(spec, s->s.function), given);
                Py_DECREF(given);
            }
            if (made != NULL && !PyCoro_CheckExact(made)) {
                PyObject *coroutine = PyObject_CallFunctionObjArgs(s->as_coroutine, made, PyTuple_GET_ITEM(SLOT(box, s->b.info), 1), NULL);
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
            if (cancelling == s->zero && (now = PyFloat_FromDouble(instant - started)) != NULL)
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
                put_again(executor, s->x.computing, s->zero);
                PyList_SetItem(SLOT(slot, s->slot.cell), 0, Py_NewRef(Py_None));
                result = Py_NewRef(Py_None);
            }
            else
                result = Py_NewRef(box);
            /* End of section. */
        }
        if (result != NULL) {
            PyObject *began = PyFloat_FromDouble(started);
            if (began != NULL)
                put(slot, s->sl.started, began);
            else
                PyErr_Clear();
        }
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
    if (spent != 0.0 && result != NULL) {
        PyObject *ended = PyFloat_FromDouble(spent);
        if (ended != NULL)
            put(executor, s->l.spent, ended);
        else
            PyErr_Clear();
    }
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
        note(s, error, monitor, s->mend_slot, executor, slot, NULL, NULL, NULL);
    else if (SLOT(slot, s->sl.suspended) != Py_False || SLOT(slot, s->sl.yielding) != Py_False ||
             SLOT(slot, s->sl.cancelled) != s->zero) {
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
        PyObject *eagers = changed(home, s->l.eagers, 1);
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
    return PyBool_FromLong(here && SLOT(receipt, s->r._left) == s->zero && SLOT(receipt, s->r._propagate) == Py_False);
}

/* A delivery as Delivery.__init__ makes it. Not tracked. */
static PyObject *
make_delivery(State *s, PyObject *receipt, PyObject *box, PyObject *epoch)
{
    PyObject *made = allocate((PyTypeObject *)s->Delivery);
    if (made == NULL)
        return NULL;
    SLOT(made, s->d.receipt) = Py_NewRef(receipt);
    SLOT(made, s->d.box) = Py_NewRef(box);
    SLOT(made, s->d.epoch) = Py_NewRef(epoch);
    SLOT(made, s->d.state) = Py_NewRef(s->states[PENDING]);
    SLOT(made, s->d.status) = Py_NewRef(Py_None);
    SLOT(made, s->d.deadline) = Py_NewRef(Py_None);
    SLOT(made, s->d.worker) = Py_NewRef(Py_None);
    SLOT(made, s->d.actor) = Py_NewRef(Py_None);
    SLOT(made, s->d.waiter) = Py_NewRef(Py_None);
    SLOT(made, s->d.outer) = Py_NewRef(Py_None);
    return made;
}

/* A receipt as Receipt.__init__ makes it, but for what the emit fills in, not tracked. Inline handlers run in the emitter's context
   itself, so they need no copy of it. */
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
    if (!(since >= 0.0 && since < s->sample_seconds)) {
        put_again(engine, s->e.sampled, timestamp);
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
    SLOT(made, s->r._observers) = Py_NewRef(s->zero);
    SLOT(made, s->r._accepting) = Py_NewRef(s->zero);
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
run_one(State *s, PyObject *engine, PyObject *receipt, PyObject *deliveries, PyObject *delivery, PyObject *epoch, PyObject *ident,
        PyObject *outer, Own *own, double *started)
{
    PyObject *box = Py_NewRef(SLOT(delivery, s->d.box));
    PyObject *alone = PyTuple_GET_SIZE(deliveries) == 1 ? Py_NewRef(deliveries) : PyTuple_Pack(1, delivery);
    PyObject *passing = NULL, *value = NULL, *error = NULL, *took = NULL;
    PyObject *count = alone == NULL ? NULL : changed(box, s->b.deliveries, 1);
    if (count == NULL) {
        PyErr_Clear();
        Py_CLEAR(alone);
    }
    put_again(delivery, s->d.actor, ident);
    put_again(delivery, s->d.later, s->nobody);
    put_again(delivery, s->d.epoch, epoch);
    if (outer != NULL) {
        put_again(delivery, s->d.outer, outer);
        put_again(delivery, s->d.worker, SLOT(outer, s->d.worker));
    }
    /* Section: an inline delivery begins. */
    if (alone != NULL && SLOT(SLOT(engine, s->e.monitor), s->m.busy) == Py_False && is_true(box, s->b.flows) &&
        length(s, SLOT(box, s->b.running)) == 0 && SLOT(box, s->b.counts) != s->no_counts) {
        put_again(delivery, s->d.state, s->states[RUNNING]);
        put_again(delivery, s->d.info, SLOT(box, s->b.info));
        put_count(box, s->b.deliveries, count, 1);
        put(box, s->b.running, alone);
        /* End of section. */
    }
    else {
        Py_XDECREF(alone);
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
    int is_set;
    if (PyTuple_GET_SIZE(deliveries) == 1) {
        PyObject *token = PyContextVar_Set(s->current, delivery);
        is_set = token != NULL;
        Py_XDECREF(token);
    }
    else if (own->holder != NULL && is_unchanged(s, own, PyThreadState_Get()->context) && own->holder != NULL) {
        put_again(own->holder, s->h.delivery, delivery);
        is_set = 1;
    }
    else
        is_set = set_current(s, own, delivery, 1) == 0;
    if (is_set) {
        PyObject *spec = Py_NewRef(SLOT(box, s->b.spec));
        PyObject *given = argument(s, delivery, receipt, SLOT(receipt, s->r._payload), SLOT(spec, s->s.convert),
                                   is_true(spec, s->s.takes_event));
        if (given != NULL) {
            value = PyObject_CallOneArg(SLOT(spec, s->s.function), given);
            Py_DECREF(given);
        }
        Py_DECREF(spec);
    }
    if (value == NULL)
        error = take_error();
    double now = read_clock(s, MONOTONIC);
    took = failed_at(now) ? NULL : PyFloat_FromDouble(now - *started);
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

/* A thread's ident as an object; remembered, since mostly one thread asks. */
static PyObject *
own_ident(State *s, unsigned long ident)
{
    if (s->ident == NULL || !is_ident(s->ident, ident))
        Py_XSETREF(s->ident, PyLong_FromUnsignedLong(ident));
    return Py_XNewRef(s->ident);
}

/* inline.run_inline(). */
static int
run_inline(State *s, PyObject *engine, PyObject *receipt, PyObject *deliveries, PyObject *epoch, PyObject *before)
{
    PyObject *cause = held_by(s, before);
    Own own = {NULL, NULL, NULL, NULL, 0};
    unsigned long ident = PyThread_get_thread_ident();
    PyObject *outer = NULL;
    if (cause != Py_None && SLOT(cause, s->d.box) != Py_None && is_ident(SLOT(cause, s->d.actor), ident))
        outer = cause;
    PyObject *actor = own_ident(s, ident);
    PyObject *passing = Py_NewRef(Py_None);
    int failed = actor == NULL;
    double started = failed ? 0.0 : read_clock(s, MONOTONIC);
    failed = failed || failed_at(started);
    for (Py_ssize_t index = 0; !failed && index < PyTuple_GET_SIZE(deliveries); index++) {
        PyObject *ended =
            run_one(s, engine, receipt, deliveries, PyTuple_GET_ITEM(deliveries, index), epoch, actor, outer, &own, &started);
        failed = ended == NULL;
        if (!failed && passing == Py_None)
            Py_SETREF(passing, Py_NewRef(ended));
        Py_XDECREF(ended);
    }
    PyObject *error = failed ? take_error() : NULL;
    leave_context(&own);
    PyObject *token = PyContextVar_Set(s->current, before);
    if (token == NULL) { /* without memory this thread would stay the child of a handler that has ended: once more */
        PyErr_Clear();
        token = PyContextVar_Set(s->current, before);
    }
    Py_XDECREF(token);
    if (token == NULL) {
        if (error != NULL)
            PyErr_Clear();
        failed = 1;
    }
    if (error != NULL)
        set_error(error);
    else if (!failed && passing != Py_None) {
        failed = 1;
        PyErr_SetObject((PyObject *)Py_TYPE(passing), passing);
    }
    Py_XDECREF(actor);
    Py_DECREF(passing);
    return failed ? -1 : 0;
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
    PyObject *computing = changed(executor, s->x.computing, 1);
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

/* An emit, given (engine, make, topic, payload, headers, require, follow, propagate_errors[, binding]): the receipt, or None if this is none of
   the common cases, and then nothing has been done. */
static PyObject *
emit(State *s, PyObject *const *args, Py_ssize_t count)
{
    PyObject *engine = args[0], *topic = args[2];
    PyObject *registry = SLOT(engine, s->e.registry), *monitor = SLOT(engine, s->e.monitor);
    if (!s->on || (count == 9 && s->LoopExecutor == NULL) || !PyUnicode_CheckExact(topic) || args[4] != Py_None || args[5] != s->zero || args[6] != Py_False ||
        args[7] != Py_None || !is_none(engine, s->e.max_depth) || SLOT(engine, s->e.propagates) != Py_False || in_step(s))
        Py_RETURN_NONE;
    PyObject *route = PyDict_GetItemWithError(SLOT(registry, s->g.routes), topic);
    if (route == NULL || !is_true(route, s->o.swift) || SLOT(route, s->o.reserved) != Py_False)
        Py_RETURN_NONE;
    PyObject *before = NULL, *cause = NULL, *causing = NULL, *epoch = NULL, *receipt = NULL, *deliveries = NULL, *counted = NULL, *result = NULL;
    PyObject *opened = NULL, *emits = NULL, *observers = NULL, *sleeper = NULL, *loop = NULL, *rest = NULL;
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
        if (is_true(route, s->o.all_inline) || SLOT(cause, s->d.state) != s->states[RUNNING] || SLOT(cause, s->d.receipt) == Py_None ||
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
    deliveries = PyTuple_New(size);
    if (deliveries == NULL)
        goto finally;
    for (Py_ssize_t index = 0; index < size; index++) {
        PyObject *delivery = make_delivery(s, receipt, PyTuple_GET_ITEM(boxes, index), epoch);
        if (delivery == NULL)
            goto finally;
        PyTuple_SET_ITEM(deliveries, index, delivery);
        if (!is_kept(s, PyTuple_GET_ITEM(boxes, index))) {
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
    opened = changed(epoch, s->p.open, size);
    emits = changed(SLOT(route, s->o.tally), s->t.emits, 1);
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
             SLOT(engine, s->e.state) != s->zero)
        result = Py_NewRef(Py_None);
    else if (cause == Py_None ? SLOT(engine, s->e.epoch) != epoch
                              : (SLOT(cause, s->d.state) != s->states[RUNNING] ||
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
    /* End of section. */
    if (is_true(route, s->o.all_inline)) {
        if (run_inline(s, engine, receipt, deliveries, epoch, before) == 0)
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
        /* Section: a delivery is admitted. */
        if (SLOT(monitor, s->m.busy) == Py_False && is_true(box, s->b.admits) &&
            number(box, s->b.held) < number(box, s->b.bound)) {
            PyObject *pending = SLOT(box, s->b.pending);
            given = changed(box, s->b.deliveries, 1);
            held = changed(box, s->b.held, 1);
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
        note(s, error, monitor, s->mend_emit, engine, route, deliveries, s->zero, epoch);
        set_error(error);
    }
    Py_XDECREF(rest);
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

/* The method emit() of a face: for a topic and a payload alone without a frame of Python, else the function it stands for,
   for which all that is not done in C takes it: isinstance(), inspect, help(), mock, pickle, weak references. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *function, *module, *weak;
    PyTypeObject *face, *make;
    Offset engine, closing, binding; /* the latter two of the facade, else -1 */
} Emit;

static PyObject *
emit_call(PyObject *callable, PyObject *const *args, size_t flags, PyObject *names)
{
    Emit *self = (Emit *)callable;
    State *s = PyModule_GetState(self->module);
    Py_ssize_t count = PyVectorcall_NARGS(flags);
    if (s->on && names == NULL && (count == 2 || count == 3) && PyObject_TypeCheck(args[0], self->face) &&
        SLOT(args[0], self->engine) != NULL &&
        (self->closing < 0 || (SLOT(args[0], self->closing) == Py_None && SLOT(args[0], self->binding) != NULL))) {
        PyObject *given[9] = {SLOT(args[0], self->engine), (PyObject *)self->make, args[1],
                              count == 3 ? args[2] : Py_None, Py_None, s->zero, Py_False, Py_None,
                              self->closing < 0 ? NULL : SLOT(args[0], self->binding)};
        Py_INCREF(args[0]); /* whoever calls holds it, but a handler may make him let go */
        PyObject *receipt = emit(s, given, self->closing < 0 ? 8 : 9);
        Py_DECREF(args[0]);
        if (receipt != Py_None)
            return receipt;
        Py_DECREF(receipt);
    }
    return PyObject_Vectorcall(self->function, args, flags, names);
}

static PyObject *
emit_get(PyObject *self, PyObject *face, PyObject *type)
{
    return face == NULL || face == Py_None ? Py_NewRef(self) : PyMethod_New(self, face);
}

static PyObject *
emit_attribute(PyObject *self, PyObject *name)
{
    static const char *const own[] = {"__call__", "__get__", "__reduce__", "__reduce_ex__"};
    PyObject *function = ((Emit *)self)->function;
    if (PyUnicode_CompareWithASCIIString(name, "__wrapped__") == 0)
        return Py_NewRef(function);
    for (size_t index = 0; index < sizeof(own) / sizeof(own[0]); index++)
        if (PyUnicode_CompareWithASCIIString(name, own[index]) == 0)
            return PyObject_GenericGetAttr(self, name);
    return PyObject_GetAttr(function, name);
}

static int
emit_set_attribute(PyObject *self, PyObject *name, PyObject *value)
{
    return PyObject_SetAttr(((Emit *)self)->function, name, value);
}

/* Pickled and copied as functions are: by name. */
static PyObject *
emit_reduce(PyObject *self, PyObject *nothing)
{
    return PyObject_GetAttrString(((Emit *)self)->function, "__qualname__");
}

static PyObject *
emit_repr(PyObject *self)
{
    return PyObject_Repr(((Emit *)self)->function);
}

static int
emit_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((Emit *)self)->function);
    Py_VISIT(((Emit *)self)->module);
    Py_VISIT(((Emit *)self)->face);
    Py_VISIT(((Emit *)self)->make);
    return 0;
}

static void
emit_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (((Emit *)self)->weak != NULL)
        PyObject_ClearWeakRefs(self);
    Py_XDECREF(((Emit *)self)->function);
    Py_XDECREF(((Emit *)self)->module);
    Py_XDECREF(((Emit *)self)->face);
    Py_XDECREF(((Emit *)self)->make);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef emit_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Emit, vectorcall), READONLY, NULL},
    {"__weaklistoffset__", T_PYSSIZET, offsetof(Emit, weak), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

/* Where it is not asked itself, as by help(). */
static PyObject *
emit_doc(PyObject *self, void *nothing)
{
    return PyObject_GetAttrString(((Emit *)self)->function, "__doc__");
}

static PyGetSetDef emit_getset[] = {
    {"__doc__", emit_doc, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef emit_methods[] = {
    {"__reduce__", emit_reduce, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot emit_slots[] = {
    {Py_tp_call, PyVectorcall_Call},
    {Py_tp_dealloc, emit_dealloc},
    {Py_tp_descr_get, emit_get},
    {Py_tp_getattro, emit_attribute},
    {Py_tp_getset, emit_getset},
    {Py_tp_members, emit_members},
    {Py_tp_methods, emit_methods},
    {Py_tp_repr, emit_repr},
    {Py_tp_setattro, emit_set_attribute},
    {Py_tp_traverse, emit_traverse},
    {0, NULL},
};

static PyType_Spec emit_spec = {
    "eventbus._engine._hot.Emit", sizeof(Emit), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR |
        Py_TPFLAGS_DISALLOW_INSTANTIATION,
    emit_slots,
};

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
    LOOK_UP("Worker", WORKER, s->worker)
    LOOK_UP("Worker", THREAD, s->thread)
    LOOK_UP("Dispatcher", EXECUTOR, s->x)
    LOOK_UP("Dispatcher", POOL, s->pool)
    LOOK_UP("Emitter", BLOCKED, s->emitter.blocked)
    LOOK_UP("Emitter", AT_WORK, s->emitter.delivery)
    LOOK_UP("Emitter", WHOSE, s->emitter.executor)
    TAKE(Dispatcher, "Dispatcher")
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
    TAKE(too_late, "TooLate")
    TAKE(nobody, "NOBODY")
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
    s->bound = s->on = 1;
    Py_RETURN_NONE;
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

/* collects(phase, info): stands in gc.callbacks; before a full collection it has shown what is pending for loops that do
   not run. In C, or a signal that came during a collection would have its handler run here, and what that raises lost. */
static PyObject *
collects(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    State *s = PyModule_GetState(module);
    if (count != 2 || s->LoopExecutor == NULL || !PyUnicode_Check(args[0]) || !PyDict_Check(args[1]) ||
        PyUnicode_CompareWithASCIIString(args[0], "start") != 0)
        Py_RETURN_NONE;
    PyObject *generation = PyDict_GetItemString(args[1], "generation");
    if (generation == NULL || !PyLong_CheckExact(generation) || PyLong_AsLong(generation) != 2)
        Py_RETURN_NONE;
    return PyObject_CallNoArgs(s->show_still);
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
    for (int state = LINED; state <= SETTLED; state++)
        if ((s->states[state] = PyLong_FromLong(state)) == NULL)
            return -1;
    s->zero = PyLong_FromLong(0);
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
    for (int state = LINED; state <= SETTLED; state++)
        Py_CLEAR(s->states[state]);
    NAMES(CLEAR)
    for (int which = 0; which < CLOCKS; which++)
        Py_CLEAR(s->clocks[which].name);
    Py_CLEAR(s->ident);
    Py_CLEAR(s->mapping);
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
