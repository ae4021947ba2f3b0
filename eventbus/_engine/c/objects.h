/* How objects of the core's classes are made and end. They have slots and nothing else. */

/* Deliveries that have ended and are used again: most end before the next is made. Under the GIL of the interpreter whose
   class it is; one interpreter has them. */
enum { SPARES = 256 };
static struct {
    PyTypeObject *type; /* borrowed; NULL: nobody's */
    int count;
    PyObject *objects[SPARES]; /* not tracked; all slots empty but for its duration, a float that is nobody else's or NULL */
    Offset duration;
} spares;

/* An object of a class of the core, not tracked yet; its slots are empty, or see above. */
static inline PyObject *
allocate(PyTypeObject *type)
{
    if (type == spares.type && spares.count > 0) {
        PyObject *spare = spares.objects[--spares.count];
#if defined(Py_REF_DEBUG) || defined(Py_TRACE_REFS)
        PyObject_Init(spare, type);
#else
        Py_SET_REFCNT(spare, 1);
        Py_INCREF(type);
#endif
        return spare;
    }
    PyObject *made = PyObject_GC_New(PyObject, type);
    if (made != NULL)
        memset((char *)made + sizeof(PyObject), 0, type->tp_basicsize - sizeof(PyObject));
    return made;
}

static INLINED void
end_slots(PyObject *object, PyTypeObject *type)
{
    PyObject **end = (PyObject **)((char *)object + type->tp_basicsize);
    for (PyObject **slot = (PyObject **)(object + 1); slot < end; slot++) {
        PyObject *value = *slot;
        *slot = NULL;
#if PY_VERSION_HEX >= 0x030C0000
        if (value == Py_None)
            continue;
#endif
        drop(value);
    }
}

/* What subtype_dealloc() does, which has to find out about all else that a class can have. */
static void
end_object(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    if (type->tp_weaklistoffset != 0)
        PyObject_ClearWeakRefs(object);
    Py_TRASHCAN_BEGIN(object, end_object)
    end_slots(object, type);
    type->tp_free(object);
    Py_DECREF(type);
    Py_TRASHCAN_END
}

/* The same for deliveries. Whatever leads from one to another (a receipt, a tuple, a context) goes through the trashcan
   itself. */
static void
end_spare(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject *kept = NULL;
    PyObject_GC_UnTrack(object);
    if (type == spares.type) {
        kept = SLOT(object, spares.duration);
        if (kept != NULL && PyFloat_CheckExact(kept) && Py_REFCNT(kept) == 1)
            SLOT(object, spares.duration) = NULL;
        else
            kept = NULL;
    }
    end_slots(object, type);
    if (type == spares.type && spares.count < SPARES) {
        SLOT(object, spares.duration) = kept;
        spares.objects[spares.count++] = object;
    }
    else {
        drop(kept);
        type->tp_free(object);
    }
    Py_DECREF(type);
}

/* Have the objects of a class end that way, if it is as that supposes. */
static void
end_quickly(PyObject *class, destructor end)
{
    PyTypeObject *type = (PyTypeObject *)class;
    Py_ssize_t size = sizeof(PyObject) + (type->tp_weaklistoffset > 0) * sizeof(PyObject *);
    for (PyTypeObject *each = type; each != NULL && each->tp_flags & Py_TPFLAGS_HEAPTYPE; each = each->tp_base)
        size += Py_SIZE(each) * sizeof(PyObject *); /* its __slots__ */
    if (type->tp_basicsize == size && type->tp_itemsize == 0 && type->tp_dictoffset == 0 && PyType_IS_GC(type) &&
        type->tp_finalize == NULL && type->tp_del == NULL && type->tp_free == PyObject_GC_Del)
        type->tp_dealloc = end;
}

/* Keep what has ended of this class. */
static void
keep_spares(PyObject *class, Offset duration)
{
    PyTypeObject *type = (PyTypeObject *)class;
    if (type->tp_dealloc != end_spare)
        return;
    /* Others, each with a GIL of its own, may be about to. */
#if defined(__GNUC__)
    PyTypeObject *nobodys = NULL;
    int is_ours = __atomic_compare_exchange_n(&spares.type, &nobodys, type, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
#elif defined(_MSC_VER)
    int is_ours = _InterlockedCompareExchangePointer((void *volatile *)&spares.type, type, NULL) == NULL;
#else
    int is_ours = spares.type == NULL && (spares.type = type) != NULL;
#endif
    if (is_ours)
        spares.duration = duration;
}

static void
leave_spares(PyObject *class)
{
    if (class != NULL && spares.type == (PyTypeObject *)class) {
        while (spares.count > 0) {
            PyObject *spare = spares.objects[--spares.count];
            drop(SLOT(spare, spares.duration));
            PyObject_GC_Del(spare);
        }
        spares.type = NULL; /* from here on it may be another interpreter's */
    }
}
