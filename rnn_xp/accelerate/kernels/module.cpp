// The Python module: checks its arguments' sizes, lets other Python threads run, calls the kernels.
//
// It knows arrays as buffers only, so that it needs neither NumPy's headers nor a build for each
// Python version (the stable ABI from 3.11 on).
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <atomic>

#include "pool.h"

namespace {

constexpr int LINE = 64;  // bytes of a cache line

const Kernels* const all_kernels[] = {
#ifdef RNN_XP_AVX512
    &avx512_kernels,
#endif
#ifdef RNN_XP_AVX2
    &avx2_kernels,
#endif
    &portable_kernels,
};
constexpr int kernel_count = sizeof all_kernels / sizeof *all_kernels;

bool runs_here(const Kernels* kernels) {
#ifdef RNN_XP_AVX512
  if (kernels == &avx512_kernels)  // every feature that its file is compiled with
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#ifdef RNN_XP_AVX2
  if (kernels == &avx2_kernels)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return true;
}

bool known(int64_t which) {
  return which >= 0 && which < kernel_count && runs_here(all_kernels[which]);
}

void* on_a_line(void* memory) { return (void*)(((uintptr_t)memory + LINE - 1) / LINE * LINE); }

// The arguments of a call, in order. After a failure everything reads as zero.
class Arguments {
 public:
  Arguments(PyObject* const* given, Py_ssize_t count) : given_(given), count_(count) {}
  ~Arguments() {
    for (int k = 0; k < held_; k++) PyBuffer_Release(&views_[k]);
  }

  int64_t integer() { return number(next()); }

  double real() {
    PyObject* o = next();
    const double value = o ? PyFloat_AsDouble(o) : 0;
    if (value == -1 && PyErr_Occurred()) failed_ = true;
    return failed_ ? 0 : value;
  }

  // A tuple of as many integers as there are places for them.
  template <int N>
  void integers(int64_t* const (&places)[N]) {
    PyObject* o = next();
    if (o && (!PyTuple_Check(o) || PyTuple_Size(o) != N)) refuse("expected a tuple of sizes");
    for (int k = 0; k < N; k++) *places[k] = number(failed_ ? nullptr : PyTuple_GetItem(o, k));
  }

  // An array of at least so many bytes, one after the other unless `whole` is false.
  void* array(int64_t bytes, bool writable, bool optional = false, bool whole = true) {
    PyObject* o = next();
    if (!o || (optional && o == Py_None)) return nullptr;
    Py_buffer* view = &views_[held_];
    const int flags = whole ? PyBUF_C_CONTIGUOUS : PyBUF_STRIDES;
    if (PyObject_GetBuffer(o, view, flags | (writable ? PyBUF_WRITABLE : 0))) {
      failed_ = true;
      return nullptr;
    }
    held_++;
    if (view->len >= bytes) return view->buf;
    failed_ = true;
    PyErr_Format(PyExc_ValueError, "argument %zd has %zd bytes, expected at least %lld", at_,
                 view->len, (long long)bytes);
    return nullptr;
  }
  const void* input(int64_t bytes) { return array(bytes, false); }
  const void* input_or_none(int64_t bytes) { return array(bytes, false, true); }
  void* output(int64_t bytes) { return array(bytes, true); }
  void* output_or_none(int64_t bytes) { return array(bytes, true, true); }

  // An array with gaps; `lies` must follow.
  const void* spread(int64_t bytes, bool optional = false) {
    return array(bytes, false, optional, false);
  }

  struct Axis {
    int64_t count, step;  // step: in numbers, from one to the next
  };

  // Fail unless the array before lies so.
  template <int N>
  void lies(const Axis (&axes)[N], int64_t item) {
    if (failed_) return;
    const Py_buffer& view = views_[held_ - 1];
    bool so = view.ndim == N && view.itemsize == item;
    for (int k = 0; so && k < N; k++)
      so = view.shape[k] == axes[k].count &&
           (view.shape[k] == 1 || view.strides[k] == axes[k].step * item);
    if (!so) refuse("the sizes or strides of an array are not those that were said");
  }

  void refuse(const char* why) {
    if (!failed_) PyErr_SetString(PyExc_ValueError, why);
    failed_ = true;
  }

  // The kernels' own memory: bytes from the first whole cache line on.
  void* memory(int64_t bytes, bool writable, bool optional = false) {
    return on_a_line(array(bytes + LINE, writable, optional));
  }

  bool done() {
    if (!failed_ && at_ != count_) {
      PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", at_, count_);
      failed_ = true;
    }
    return !failed_;
  }

 private:
  int64_t number(PyObject* o) {
    const int64_t value = o ? PyLong_AsLongLong(o) : 0;
    if (value == -1 && PyErr_Occurred()) failed_ = true;
    return failed_ ? 0 : value;
  }

  PyObject* next() {
    if (failed_ || at_ == count_) {
      if (!failed_) PyErr_SetString(PyExc_TypeError, "too few arguments");
      failed_ = true;
      return nullptr;
    }
    return given_[at_++];
  }

  PyObject* const* given_;
  Py_ssize_t count_, at_ = 0;
  Py_buffer views_[24];
  int held_ = 0;
  bool failed_ = false;
};

// What every call begins with: a tuple of (kernels, cell, itemsize, T, B, I, H).
const Kernels* begin(Arguments& in, Call& call) {
  int64_t which, cell, itemsize;
  in.integers({&which, &cell, &itemsize, &call.T, &call.B, &call.I, &call.H});
  call.cell = (int)cell;
  call.is_double = itemsize == 8;
  // No product of sizes may overflow: those of the arrays, padded, and of the packed weights.
  const double T = (double)call.T + 1, B = (double)call.B, I = (double)call.I + 64;
  const double H = (double)call.H + 64, most = 1e15;
  const bool good = known(which) && cell >= 0 && cell < CELL_KINDS &&
                    (itemsize == 4 || itemsize == 8) && call.T > 0 && call.B > 0 && call.I > 0 &&
                    call.H > 0 && T * B * (I + H) < most && H * (I + H) < most;
  if (good) return all_kernels[which];
  if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "unknown kernels, cell or sizes");
  return nullptr;
}

// The direction that a call runs, of those that lie side by side in y and one after the other in the
// states.
struct Direction {
  explicit Direction(Arguments& in) : at(in.integer()), count(in.integer()) {
    if (at < 0 || at >= count || count > 2) in.refuse("a direction must be 0 of 1, or 0 or 1 of 2");
  }
  int64_t at, count;
};

// x and the distance of its rows, the lengths, and the indices that stand for x if that is None.
void take_input(Arguments& in, Call& call, int64_t item) {
  call.x = in.spread(call.T * call.B * call.I * item, true);
  call.ldx = in.integer();
  if (call.x) in.lies({{call.T, call.B * call.ldx}, {call.B, call.ldx}, {call.I, 1}}, item);
  call.lengths = (const int64_t*)in.input_or_none(call.B * 8);
  call.indices = (const int64_t*)in.input_or_none(call.T * call.B * 8);
  if (!call.x == !call.indices) in.refuse("expected either x or indices");
  for (int64_t k = 0; call.indices && k < call.T * call.B; k++)
    if (call.indices[k] < 0 || call.indices[k] >= call.I) in.refuse("an index is out of range");
}

template <class P>
P* own(P* whole, int64_t bytes) {
  return whole ? (P*)((char*)whole + bytes) : nullptr;
}

int64_t gates_of(int cell) { return cell == LSTM ? 4 : cell >= GRU ? 3 : 1; }

int most_threads(int64_t threads) {
  return (int)(threads < 1 ? 1 : threads > MOST_THREADS ? MOST_THREADS : threads);
}

constexpr int64_t BRIEF = 1 << 21;  // multiplications: less than what it takes to wake a thread

// How many threads have work, and whether they have it for so short a time that nobody is woken for
// it. Below that, meeting costs more than it saves.
struct Load {
  Load(const Call& call, int64_t threads) {
    const int64_t rows = call.B * gates_of(call.cell) * call.H;
    const int64_t step = rows * call.H, all = call.T * rows * (call.I + call.H);  // multiplications
    size = step < 16384 || all < 1 << 19 ? 1 : most_threads(threads);
    brief = all <= BRIEF;
  }
  Load(const Product& p, int64_t threads) {
    const int64_t all = p.M * p.N * p.K;
    size = all < 65536 ? 1 : most_threads(threads);
    brief = all <= BRIEF;
  }
  Load(const Update& u, int64_t threads) {
    size = u.count < 1 << 14 ? 1 : most_threads(threads);
    brief = u.count < 1 << 16;
  }
  int size;
  bool brief;
};

constexpr int64_t LARGE = 1 << 22;  // bytes, from which huge pages pay: NumPy asks for them there too

constexpr int64_t LEAST_KEPT = 32 << 20;  // bytes, from which memory waits for the next call

// Memory of a call. Blocks of more than `LEAST_KEPT` bytes the C library would hand back to the system
// each time, and each page of the next one costs a fault: so the last one, up to `MOST` bytes, is kept
// for the next call.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : bytes_(bytes) {
    if (bytes > LEAST_KEPT) {
      Spare* const held = spare().exchange(nullptr);
      if (held && held->bytes >= bytes) {
        bytes_ = held->bytes;
        memory = held;
        return;
      }
      free(held);  // before the longer one is there
    }
    if (bytes && posix_memalign(&memory, LINE, (size_t)bytes)) memory = nullptr;
    failed = bytes && !memory;
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t page = 4096;
    const uintptr_t first = ((uintptr_t)memory + page - 1) / page * page;
    if (memory && bytes >= LARGE)
      madvise((void*)first, (uintptr_t)memory + bytes - first, MADV_HUGEPAGE);
#endif
  }
  Scratch(const Scratch&) = delete;
  ~Scratch() {
    if (memory && bytes_ > LEAST_KEPT && bytes_ <= MOST) {
      ((Spare*)memory)->bytes = bytes_;
      memory = spare().exchange((Spare*)memory);  // another thread's, if there is one
    }
    free(memory);
  }
  void* memory = nullptr;
  bool failed = false;

 private:
  static constexpr int64_t MOST = 256 << 20;
  struct Spare {
    int64_t bytes;
  };
  static std::atomic<Spare*>& spare() {
    static std::atomic<Spare*> one{nullptr};
    return one;
  }
  int64_t bytes_;
};

// Do a piece of work (Call or Product) with its scratch memory, while other Python threads run.
template <class W>
PyObject* run(void (*job)(const W&, Team), W& work, int64_t scratch_bytes, Load load) {
  struct Task {
    void (*job)(const W&, Team);
    const W* work;
    static void run(const void* task, Team team) {
      ((const Task*)task)->job(*((const Task*)task)->work, team);
    }
  };
  bool failed;
  Py_BEGIN_ALLOW_THREADS
  Scratch scratch(scratch_bytes);
  failed = scratch.failed;
  if (!failed) {
    work.scratch = scratch.memory;
    const Task task = {job, &work};
    run_team(Task::run, &task, load.size, load.brief);
  }
  Py_END_ALLOW_THREADS
  if (failed) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

PyObject* kernel_names(PyObject*, PyObject*) {
  PyObject* names = PyDict_New();
  for (int k = 0; names && k < kernel_count; k++) {
    if (!runs_here(all_kernels[k])) continue;
    PyObject* number = PyLong_FromLong(k);
    if (!number || PyDict_SetItemString(names, all_kernels[k]->name, number)) Py_CLEAR(names);
    Py_XDECREF(number);
  }
  return names;
}

PyObject* sizes(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Arguments in(args, count);
  Call call{};
  const Kernels* kernels = begin(in, call);
  if (!kernels || !in.done()) return nullptr;
  return Py_BuildValue("LL", (long long)kernels->packed_bytes(call) + LINE,
                       (long long)kernels->kept_bytes(call) + LINE);
}

PyObject* pack(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Arguments in(args, count);
  Call call{};
  const Kernels* kernels = begin(in, call);
  if (!kernels) return nullptr;
  const int64_t item = call.is_double ? 8 : 4, rows = gates_of(call.cell) * call.H * item;
  const int64_t threads = in.integer();
  call.weight_ih = in.input(rows * call.I);
  call.weight_hh = in.input(rows * call.H);
  call.bias_ih = in.input_or_none(rows);
  call.bias_hh = in.input_or_none(rows);
  if (!call.bias_ih != !call.bias_hh) in.refuse("one bias without the other");
  call.packed = in.memory(kernels->packed_bytes(call), true);
  if (!in.done()) return nullptr;
  return run(kernels->pack, call, 0, Load(call, threads));
}

PyObject* forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Arguments in(args, count);
  Call call{};
  const Kernels* kernels = begin(in, call);
  if (!kernels) return nullptr;
  const int64_t item = call.is_double ? 8 : 4, state = call.B * call.H * item;
  const bool has_c = call.cell == LSTM;
  const int64_t threads = in.integer();
  call.split = (int)in.integer();
  call.reverse = in.integer() != 0;
  const Direction d(in);
  const int64_t states = d.count * state, at = d.at * state;
  call.packed = in.memory(kernels->packed_bytes(call), false);
  take_input(in, call, item);
  call.h0 = own(in.input_or_none(states), at);
  call.c0 = own(in.input_or_none(states), at);
  call.y = own(in.output(call.T * states), d.at * call.H * item);
  call.ldy = d.count * call.H;
  call.h_last = own(in.output(states), at);
  call.c_last = own(has_c ? in.output(states) : in.output_or_none(0), at);
  call.kept = in.memory(kernels->kept_bytes(call), true, true);
  if (!in.done()) return nullptr;
  return run(kernels->forward, call, kernels->scratch_bytes(call, false), Load(call, threads));
}

PyObject* backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Arguments in(args, count);
  Call call{};
  const Kernels* kernels = begin(in, call);
  if (!kernels) return nullptr;
  const int64_t item = call.is_double ? 8 : 4, rows = gates_of(call.cell) * call.H * item;
  const int64_t state = call.B * call.H * item;
  const bool has_c = call.cell == LSTM;
  const int64_t threads = in.integer();
  call.split = (int)in.integer();
  call.reverse = in.integer() != 0;
  const Direction d(in);
  const int64_t states = d.count * state, at = d.at * state;
  call.weight_ih = in.input(rows * call.I);
  call.weight_hh = in.input(rows * call.H);
  take_input(in, call, item);
  call.kept = in.memory(kernels->kept_bytes(call), false);
  call.dy = own(in.spread(call.T * states), d.at * call.H * item);
  call.lddy = in.integer();
  in.lies({{call.T, call.B * call.lddy}, {call.B, call.lddy}, {d.count * call.H, 1}}, item);
  call.dh_last = own(in.input_or_none(states), at);
  call.dc_last = own(in.input_or_none(states), at);
  call.dx = call.x ? in.output(call.T * call.B * call.I * item) : in.output_or_none(0);
  call.dweight_ih = in.output(rows * call.I);
  call.dweight_hh = in.output(rows * call.H);
  call.dbias_ih = in.output_or_none(rows);
  call.dbias_hh = in.output_or_none(rows);
  call.dh0 = own(in.output(states), at);
  call.dc0 = own(has_c ? in.output(states) : in.output_or_none(0), at);
  if (!in.done()) return nullptr;
  return run(kernels->backward, call, kernels->scratch_bytes(call, true), Load(call, threads));
}

// Which arrays are plainly right, and how new ones are made.
struct Plain {
  Plain(PyTypeObject* type, PyObject* empty, PyObject* dtype, const Call& call)
      : type(type), empty(empty), dtype(dtype), format(call.is_double ? "d" : "f") {}
  PyTypeObject* type;
  PyObject *empty, *dtype;
  const char* format;
};

// A NumPy array's memory. No error is set where it is not as it should be.
class Lent {
 public:
  ~Lent() {
    if (held_) PyBuffer_Release(&view);
  }

  // Whether it is such an array: numbers of this kind one after the other.
  bool take(PyObject* o, const Plain& plain, bool writable = false) {
    if (Py_TYPE(o) != plain.type) return false;
    const int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    held_ = !PyObject_GetBuffer(o, &view, flags);
    if (!held_) PyErr_Clear();
    return held_ && view.len && !__builtin_strcmp(view.format, plain.format);
  }

  template <int N>
  bool has(const int64_t (&sizes)[N]) const {
    bool so = view.ndim == N;
    for (int k = 0; so && k < N; k++) so = view.shape[k] == sizes[k];
    return so;
  }

  Py_buffer view;

 private:
  bool held_ = false;
};

// h, or h and c of an LSTM, or their gradients: null for zeros.
struct State {
  const void *h = nullptr, *c = nullptr;

  // Whether it is None or of one direction; of two parts one may be None if `either`.
  bool take(PyObject* state, const Call& call, const Plain& plain, bool either) {
    if (state == Py_None) return true;
    if (call.cell != LSTM) return one(0, state, call, plain, h);
    if (!PyTuple_Check(state) || PyTuple_Size(state) != 2) return false;
    PyObject *const first = PyTuple_GetItem(state, 0), *const second = PyTuple_GetItem(state, 1);
    return ((either && first == Py_None) || one(0, first, call, plain, h)) &&
           ((either && second == Py_None) || one(1, second, call, plain, c));
  }

 private:
  bool one(int k, PyObject* o, const Call& call, const Plain& plain, const void*& at) {
    if (!lent_[k].take(o, plain) || !lent_[k].has({1, call.B, call.H})) return false;
    at = lent_[k].view.buf;
    return true;
  }
  Lent lent_[2];
};

// Weights as PyTorch has them, two or, with biases, four.
struct Given {
  // Whether they are of the call's sizes.
  bool take(PyObject* weights, Call& call, const Plain& plain) {
    if (!PyTuple_Check(weights)) return false;
    count = PyTuple_Size(weights);
    if (count != 2 && count != 4) return false;
    for (Py_ssize_t k = 0; k < count; k++)
      if (!each[k].take(PyTuple_GetItem(weights, k), plain)) return false;
    const int64_t rows = gates_of(call.cell) * call.H;
    if (!each[0].has({rows, call.I}) || !each[1].has({rows, call.H})) return false;
    if (count == 4 && !(each[2].has({rows}) && each[3].has({rows}))) return false;
    call.weight_ih = each[0].view.buf, call.weight_hh = each[1].view.buf;
    if (count == 4) call.bias_ih = each[2].view.buf, call.bias_hh = each[3].view.buf;
    return true;
  }
  Lent each[4];
  Py_ssize_t count = 0;
};

// A new array.
class Made {
 public:
  ~Made() { Py_XDECREF(object_); }

  template <int N>
  bool make(const Plain& plain, const int64_t (&sizes)[N]) {
    PyObject* shape = PyTuple_New(N);
    int64_t numbers = 1;
    for (int k = 0; shape && k < N; k++) {
      numbers *= sizes[k];
      PyObject* size = PyLong_FromLongLong(sizes[k]);
      if (!size || PyTuple_SetItem(shape, k, size)) Py_CLEAR(shape);
    }
    if (shape) object_ = PyObject_CallFunctionObjArgs(plain.empty, shape, plain.dtype, nullptr);
    Py_XDECREF(shape);
    if (!object_) return false;
    if (lent_.take(object_, plain, true) && lent_.view.len >= numbers * lent_.view.itemsize)
      return true;
    PyErr_SetString(PyExc_TypeError, "`empty` makes other arrays");
    return false;
  }

  PyObject* object() const { return object_; }
  void* memory() const { return object_ ? lent_.view.buf : nullptr; }

 private:
  PyObject* object_ = nullptr;
  Lent lent_;  // given back before the array
};

// New arrays for a state, or its gradient.
struct MadeState {
  bool make(const Plain& plain, const Call& call) {
    const int64_t sizes[] = {1, call.B, call.H};
    return h.make(plain, sizes) && (call.cell != LSTM || c.make(plain, sizes));
  }

  // A new reference: to h, or to (h, c).
  PyObject* object() const {
    return c.object() ? PyTuple_Pack(2, h.object(), c.object()) : Py_NewRef(h.object());
  }
  Made h, c;
};

// Whether x is plainly right; of the sizes T and B are its own.
bool take_x(Lent& x, PyObject* given, Call& call, const Plain& plain) {
  if (!x.take(given, plain) || x.view.ndim != 3 || x.view.shape[2] != call.I) return false;
  call.x = x.view.buf, call.ldx = call.I;
  call.T = x.view.shape[0], call.B = x.view.shape[1];
  return true;
}

bool succeeded(PyObject* none) {
  Py_XDECREF(none);
  return none;
}

bool counted(Py_ssize_t count, Py_ssize_t expected) {
  if (count != expected)
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, count);
  return count == expected;
}

// One direction over whole sequences, once its weights are packed.
class Forward {
 public:
  // Whether x and the state are plainly right; of the sizes T and B are x's.
  bool take(PyObject* x, PyObject* state, Call& call, const Plain& plain) {
    if (!take_x(x_, x, call, plain) || !before_.take(state, call, plain, false)) return false;
    call.h0 = before_.h, call.c0 = before_.c;
    return true;
  }

  bool make(Call& call, const Plain& plain) {
    if (!y_.make(plain, {call.T, call.B, call.H}) || !after_.make(plain, call)) return false;
    call.y = y_.memory(), call.ldy = call.H;
    call.h_last = after_.h.memory(), call.c_last = after_.c.memory();
    return true;
  }

  PyObject* y() const { return y_.object(); }
  PyObject* state() const { return after_.object(); }  // a new reference

 private:
  Lent x_;
  State before_;
  Made y_;
  MadeState after_;
};

bool run_forward(const Kernels* kernels, Call& call, int64_t threads) {
  const int64_t bytes = kernels->scratch_bytes(call, false);
  return succeeded(run(kernels->forward, call, bytes, Load(call, threads)));
}

// (sizes, threads, packed, empty, dtype, x, state): run one direction over whole sequences and return
// y and the state; or None, where an argument is not plainly right. Of the sizes T and B are x's.
PyObject* infer(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (!counted(count, 7)) return nullptr;
  Arguments in(args, 3);
  Call call{};
  const Kernels* kernels = begin(in, call);
  if (!kernels) return nullptr;
  const int64_t threads = in.integer();
  call.packed = in.memory(kernels->packed_bytes(call), false);
  if (!in.done()) return nullptr;
  const Plain plain(Py_TYPE(args[2]), args[3], args[4], call);

  Forward pass;
  if (!pass.take(args[5], args[6], call, plain)) Py_RETURN_NONE;
  if (!pass.make(call, plain) || !run_forward(kernels, call, threads)) return nullptr;
  return Py_BuildValue("(ON)", pass.y(), pass.state());
}

// What both that follow begin with: (sizes, threads, split, type, empty, dtype, weights, x, …).
const Kernels* begin_at_once(PyObject* const* args, Py_ssize_t count, Py_ssize_t expected,
                             Call& call, int64_t& threads) {
  if (!counted(count, expected)) return nullptr;
  Arguments in(args, 3);
  const Kernels* kernels = begin(in, call);
  if (!kernels) return nullptr;
  threads = in.integer();
  call.split = (int)in.integer();
  if (!PyType_Check(args[3])) in.refuse("expected a type");
  return in.done() ? kernels : nullptr;
}

// (…, state, room): pack weights, run one direction over whole sequences, and return y, the state and
// what the backward pass needs, or None where `room` is None, which makes that memory as `empty` does
// where it is large; or None alone, where an argument is not plainly right. Of the sizes T and B are
// x's.
PyObject* forward_at_once(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Call call{};
  int64_t threads;
  const Kernels* kernels = begin_at_once(args, count, 10, call, threads);
  if (!kernels) return nullptr;
  const Plain plain((PyTypeObject*)args[3], args[4], args[5], call);

  Given weights;
  Forward pass;
  if (!weights.take(args[6], call, plain) || !pass.take(args[7], args[8], call, plain))
    Py_RETURN_NONE;

  Made kept;
  const bool keep = args[9] != Py_None;
  const int64_t bytes = kernels->kept_bytes(call), numbers = bytes / (call.is_double ? 8 : 4) + LINE;
  const Plain room((PyTypeObject*)args[3], args[bytes > LEAST_KEPT ? 9 : 4], args[5], call);
  if (!pass.make(call, plain) || (keep && !kept.make(room, {numbers}))) return nullptr;
  call.kept = on_a_line(kept.memory());

  const Scratch packed(kernels->packed_bytes(call));
  if (packed.failed) return PyErr_NoMemory();
  call.packed = packed.memory;
  if (!succeeded(run(kernels->pack, call, 0, Load(call, threads))) ||
      !run_forward(kernels, call, threads))
    return nullptr;
  PyObject* const held = keep ? kept.object() : Py_None;
  return Py_BuildValue("(ONO)", pass.y(), pass.state(), held);
}

// (…, kept, dy, dstate): run one direction backward through time, and return the gradients of the
// weights, of x and of the first state; or None, where an argument is not plainly right.
PyObject* backward_at_once(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Call call{};
  int64_t threads;
  const Kernels* kernels = begin_at_once(args, count, 11, call, threads);
  if (!kernels) return nullptr;
  const Plain plain((PyTypeObject*)args[3], args[4], args[5], call);
  Arguments in(args + 8, 1);
  call.kept = in.memory(kernels->kept_bytes(call), false);
  if (!in.done()) return nullptr;

  Given weights;
  Lent x, dy;
  State after;
  const int64_t T = call.T, B = call.B;
  if (!weights.take(args[6], call, plain) || !take_x(x, args[7], call, plain) || call.T != T ||
      call.B != B || !dy.take(args[9], plain) || !dy.has({T, B, call.H}) ||
      !after.take(args[10], call, plain, true))
    Py_RETURN_NONE;
  call.dy = dy.view.buf, call.lddy = call.H;
  call.dh_last = after.h, call.dc_last = after.c;

  Made dx, made[4];
  MadeState before;
  const int64_t rows = gates_of(call.cell) * call.H;
  const bool bias = weights.count == 4;
  if (!dx.make(plain, {T, B, call.I}) || !before.make(plain, call) ||
      !made[0].make(plain, {rows, call.I}) || !made[1].make(plain, {rows, call.H}) ||
      (bias && !(made[2].make(plain, {rows}) && made[3].make(plain, {rows}))))
    return nullptr;
  call.dx = dx.memory();
  call.dweight_ih = made[0].memory(), call.dweight_hh = made[1].memory();
  call.dbias_ih = made[2].memory(), call.dbias_hh = made[3].memory();
  call.dh0 = before.h.memory(), call.dc0 = before.c.memory();
  if (!succeeded(run(kernels->backward, call, kernels->scratch_bytes(call, true),
                     Load(call, threads))))
    return nullptr;
  PyObject* const gradients =
      bias ? PyTuple_Pack(4, made[0].object(), made[1].object(), made[2].object(), made[3].object())
           : PyTuple_Pack(2, made[0].object(), made[1].object());
  return Py_BuildValue("(NON)", gradients, dx.object(), before.object());
}

// (kernels, itemsize, threads, M, N, K, A, a_row, a_k, B, b_k, b_n, bias, C)
PyObject* product(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Arguments in(args, count);
  Product p{};
  const int64_t which = in.integer(), item = in.integer(), threads = in.integer();
  p.is_double = item == 8;
  p.M = in.integer(), p.N = in.integer(), p.K = in.integer();
  p.A = in.spread(p.M * p.K * item);
  p.a_row = in.integer(), p.a_k = in.integer();
  in.lies({{p.M, p.a_row}, {p.K, p.a_k}}, item);
  p.B = in.spread(p.K * p.N * item);
  p.b_k = in.integer(), p.b_n = in.integer();
  in.lies({{p.K, p.b_k}, {p.N, p.b_n}}, item);
  p.bias = in.input_or_none(p.N * item);
  p.C = in.output(p.M * p.N * item);
  if (!in.done()) return nullptr;
  const bool good = known(which) && (item == 4 || item == 8) && p.M > 0 && p.N > 0 && p.K > 0 &&
                    (p.b_k == 1 || p.b_n == 1);
  if (!good) {
    PyErr_SetString(PyExc_ValueError, "unknown kernels, sizes or strides");
    return nullptr;
  }
  const Kernels* kernels = all_kernels[which];
  return run(kernels->product, p, kernels->product_bytes(p), Load(p, threads));
}

// (kernels, itemsize, threads, count, beta1, beta2, eps, scale, keep, p, g, m, v, p', m', v')
PyObject* adam(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Arguments in(args, count);
  Update u{};
  const int64_t which = in.integer(), item = in.integer(), threads = in.integer();
  u.is_double = item == 8;
  u.count = in.integer();
  u.beta1 = in.real(), u.beta2 = in.real(), u.eps = in.real(), u.scale = in.real();
  u.keep = in.real();
  const bool good = known(which) && (item == 4 || item == 8) && u.count > 0 && u.count < 1LL << 48;
  if (!good) in.refuse("unknown kernels or sizes");
  const int64_t bytes = u.count * item;
  u.p = in.input(bytes), u.g = in.input(bytes), u.m = in.input(bytes), u.v = in.input(bytes);
  u.p_new = in.output(bytes), u.m_new = in.output(bytes), u.v_new = in.output(bytes);
  if (!in.done()) return nullptr;
  return run(all_kernels[which]->adam, u, 0, Load(u, threads));
}

#define FAST(name, text) \
  {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, text}

PyMethodDef methods[] = {
    {"kernel_names", kernel_names, METH_NOARGS,
     "Return the instruction sets that this processor has, best first, and their numbers."},
    FAST(sizes, "Return the bytes of packed weights and of what a forward pass keeps."),
    FAST(pack, "Pack weights."),
    FAST(forward, "Run a cell over a sequence."),
    FAST(infer, "Run a cell over whole sequences, or return None."),
    FAST(forward_at_once, "Pack weights and run a cell over whole sequences, or return None."),
    FAST(backward_at_once, "Run a cell backward through time, or return None."),
    FAST(backward, "Run a cell backward through time."),
    FAST(product, "Multiply two matrices, and add a bias to each row."),
    FAST(adam, "Update a parameter and its moments as Adam does."),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef_Slot slots[] = {{0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", "Compiled recurrences.", 0, methods,
                      slots, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernels() { return PyModuleDef_Init(&module); }
