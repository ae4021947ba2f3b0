/* The method emit() of the faces. */

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
                              count == 3 ? args[2] : Py_None, Py_None, s->ints[0], Py_False, Py_None,
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
