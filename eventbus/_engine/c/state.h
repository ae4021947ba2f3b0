/* What the module knows of the classes and objects that it works on: offsets of slots, and what it holds. */

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
#define ENGINE(X) X(monitor) X(registry) X(seqs) X(sampled) X(sampled_size) X(max_depth) X(uid) X(state) X(epoch) \
    X(drains) X(inlining) X(keen) X(emitter) X(propagates)
#define MONITOR(X) X(after) X(busy) X(deferred)
#define REGISTRY(X) X(routes) X(generation)
#define ROUTE(X) X(boxes) X(counted) X(generation) X(all_inline) X(reserved) X(swift) X(tally)
#define TALLY(X) X(emits)
#define EPOCH(X) X(open)
#define HOLDER(X) X(delivery)
#define DELIVERY(X) X(actor) X(box) X(deadline) X(duration) X(epoch) X(error) X(info) X(lineage) X(outer) \
    X(receipt) X(seq) X(state) X(status) X(uid) X(value) X(waiter) X(worker)
#define RECEIPT(X) X(_accepting) X(_context) X(_deliveries) X(_engine) X(_event) X(_follows) X(_headers) X(_left) \
    X(_lineage) X(_mark) X(_observers) X(_payload) X(_propagate) X(_seq) X(_timestamp) X(_topic) X(_uid) X(_waiters)
#define MAILBOX(X) X(admits) X(bound) X(concurrency) X(counts) X(deliveries) X(engine) X(executor) X(flows) X(held) \
    X(info) X(observer) X(options) X(pending) X(queued) X(running) X(spec) X(tracked)
#define OPTIONS(X) X(overflow)
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
#define HELD(X) X(AsyncReceipt) X(Delivery) X(Dispatcher) X(Holder) X(LoopExecutor) X(Receipt) X(as_coroutine) \
    X(begin_inline) X(current) X(delivered) X(deque) X(dropped) X(end_inline) X(mend_emit) X(mend_slot) X(no_counts) \
    X(partial) X(plain) X(running_loop) X(Sleeper) X(seam) X(show_still) X(steps) X(swap_task) X(to_plain) X(too_late)

/* Those that are its own. */
#define NAMES(X) X(no_time) X(n_as_event) X(n_cancelling) X(n_flush) X(n_follow_up) X(n_go_on) X(n_lent) \
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

/* For functions that are called with constants where it matters. */
#ifdef __GNUC__
#define INLINED inline __attribute__((always_inline))
#else
#define INLINED inline
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

enum { LINED, PENDING, RUNNING, SETTLED }; /* the states of a delivery */
enum { INTS = 64 };

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
    struct { OPTIONS(FIELD) } op;
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
    PyObject *ints[INTS];       /* from 0 on */
    PyObject *ident; /* of the thread that was the last to ask, and the same as a number */
    unsigned long whose;
    PyObject *cell;    /* what a mailbox is running, while nobody else runs its inline handler; NULL while that is used */
    PyObject *mapping; /* the type of what contexts hold, or NULL */
    Offset mapping_at; /* where they hold it; 0: not known */
    PyObject *raised;  /* within a collection, by a signal handler; or NULL */
    NAMES(OBJECT)
    Clock clocks[CLOCKS];
    unsigned long seen[CLOCKS]; /* how often the seam had changed when a clock was last looked up and was itself */
    int watcher, watched;
    double sample_seconds, slice;
    Py_ssize_t eagers;
} State;

enum { DELIVERED = 0, DROPPED = 4 }; /* as mailbox.COUNTER has them */

#define SLOT(object, offset) (*(PyObject **)((char *)(object) + (offset)))
