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

  // An array with gaps; `lies` must follow.
  const void* spread(int64_t bytes) { return array(bytes, false, false, false); }

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

// What the calls that run a cell begin with:
//
//   sizes    (kernels, cell, itemsize, I, H, way, looks_up): which way is FORWARD, BACKWARD or, of two
//            directions, BOTH; whether x is indices
//   threads, split
//   type, empty, dtype    of NumPy's arrays: their type, what makes one, and the numbers' dtype
//
// Then come arrays as their owner has them. A call takes them as they are, or returns None, and
// nothing is done, where one is not plainly right.
enum Way { FORWARD, BACKWARD, BOTH };

struct Setting {
  bool take(PyObject* const* args, Py_ssize_t count, Py_ssize_t expected, Call& call) {
    if (count != expected) {
      PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, count);
      return false;
    }
    Arguments in(args, 3);
    int64_t which, cell, item;
    in.integers({&which, &cell, &item, &call.I, &call.H, &way, &looks_up});
    threads = in.integer();
    call.split = (int)in.integer();
    if (!in.done()) return false;
    call.cell = (int)cell, call.is_double = item == 8;
    const double I = (double)call.I + 64, H = (double)call.H + 64;
    const bool good = known(which) && cell >= 0 && cell < CELL_KINDS && (item == 4 || item == 8) &&
                      call.I > 0 && call.H > 0 && way >= FORWARD && way <= BOTH && looks_up >= 0 &&
                      looks_up <= 1 && H * (I + H) < MOST && PyType_Check(args[3]);
    if (!good) return refuse();
    kernels = all_kernels[which];
    type = (PyTypeObject*)args[3], empty = args[4], dtype = args[5];
    format = call.is_double ? "d" : "f";
    return true;
  }

  // Whether no product of sizes overflows: those of the arrays, padded, and of the packed weights.
  bool fits(const Call& call) const {
    const double rows = ((double)call.T + 1) * (double)call.B;
    return rows * ((double)call.I + (double)call.H + 128) < MOST || refuse();
  }

  int ways() const { return way == BOTH ? 2 : 1; }
  bool reverse(int d) const { return way == BOTH ? d == 1 : way == BACKWARD; }

  const Kernels* kernels;
  int64_t threads, way, looks_up;
  PyTypeObject* type;
  PyObject *empty, *dtype;
  const char* format;

 private:
  static constexpr double MOST = 1e15;
  static bool refuse() {
    PyErr_SetString(PyExc_ValueError, "unknown kernels, cell or sizes");
    return false;
  }
};

// A NumPy array's memory. No error is set where it is not as it should be.
class Lent {
 public:
  ~Lent() {
    if (held_) PyBuffer_Release(&view);
  }

  // Whether it is such an array: numbers of this kind one after the other.
  bool take(PyObject* o, const Setting& set) {
    return get(o, set, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) && of(set.format);
  }

  // Whether it is memory of as many bytes a number: one that was made here, of which NumPy need not
  // spell the kind, which takes it a tenth of a microsecond.
  bool take_memory(PyObject* o, const Setting& set, bool writable = false) {
    return get(o, set, PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0)) &&
           view.itemsize == (set.format[0] == 'd' ? 8 : 4);
  }

  // Whether it is (T, B, size) in rows at one distance, such as one direction's half of wider ones.
  bool take_rows(PyObject* o, const Setting& set, int64_t size, int64_t& distance) {
    if (!get(o, set, PyBUF_STRIDES | PyBUF_FORMAT) || !of(set.format) || view.ndim != 3) return false;
    const int64_t T = view.shape[0], B = view.shape[1], item = view.itemsize;
    const int64_t bytes = B > 1 ? view.strides[1] : T > 1 ? view.strides[0] : size * item;
    distance = bytes / item;
    return view.shape[2] == size && (T == 1 || view.strides[0] == B * bytes) &&
           (size == 1 || view.strides[2] == item) && bytes >= size * item && bytes % item == 0;
  }

  // Whether it is of integers of 64 bits, one after the other.
  bool take_integers(PyObject* o, const Setting& set) {
    return get(o, set, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) && view.itemsize == 8 && (of("l") || of("q"));
  }

  template <int N>
  bool has(const int64_t (&sizes)[N]) const {
    bool so = view.ndim == N;
    for (int k = 0; so && k < N; k++) so = view.shape[k] == sizes[k];
    return so;
  }

  Py_buffer view;

 private:
  bool get(PyObject* o, const Setting& set, int flags) {
    if (Py_TYPE(o) != set.type) return false;
    held_ = !PyObject_GetBuffer(o, &view, flags);
    if (!held_) PyErr_Clear();
    return held_ && view.len;
  }
  bool of(const char* format) const { return !__builtin_strcmp(view.format, format); }

  bool held_ = false;
};

// A new array.
class Made {
 public:
  ~Made() { Py_XDECREF(object_); }

  template <int N>
  bool make(const Setting& set, const int64_t (&sizes)[N]) {
    return make(set, sizes, set.empty);
  }

  // By `empty` or what stands for it.
  template <int N>
  bool make(const Setting& set, const int64_t (&sizes)[N], PyObject* empty) {
    PyObject* shape = PyTuple_New(N);
    int64_t numbers = 1;
    for (int k = 0; shape && k < N; k++) {
      numbers *= sizes[k];
      PyObject* size = PyLong_FromLongLong(sizes[k]);
      if (!size || PyTuple_SetItem(shape, k, size)) Py_CLEAR(shape);
    }
    if (shape) object_ = PyObject_CallFunctionObjArgs(empty, shape, set.dtype, nullptr);
    Py_XDECREF(shape);
    if (!object_) return false;
    if (lent_.take_memory(object_, set, true) && lent_.view.len >= numbers * lent_.view.itemsize)
      return true;
    PyErr_SetString(PyExc_TypeError, "`empty` makes other arrays");
    return false;
  }

  PyObject* object() const { return object_; }
  void* memory() const { return object_ ? lent_.view.buf : nullptr; }

 private:
  PyObject* object_ = nullptr;
  Lent lent_;  // it holds the array, too
};

// What the kernels keep for themselves in an array, as much for each direction: it begins on a line,
// and the array says where, since a copy of it may lie otherwise.
class Own {
 public:
  Own(int64_t bytes, int ways) : each_(upward(bytes)), bytes_(ways * each_) {}

  bool make(Made& made, const Setting& set, PyObject* empty) {
    if (!made.make(set, {(bytes_ + HEAD + LINE) / (set.format[0] == 'd' ? 8 : 4)}, empty)) return false;
    at_ = (char*)on_a_line((char*)made.memory() + HEAD);
    *(int64_t*)made.memory() = at_ - (char*)made.memory();
    return true;
  }

  bool take(const Lent& lent) {
    const int64_t offset = lent.view.len >= HEAD ? *(const int64_t*)lent.view.buf : 0;
    if (offset < HEAD || offset > HEAD + LINE || lent.view.len < offset + bytes_) return false;
    at_ = (char*)lent.view.buf + offset;
    return true;
  }

  void take(void* scratch) { at_ = (char*)scratch; }

  int64_t bytes() const { return bytes_; }
  void* of(int d) const { return at_ ? at_ + d * each_ : nullptr; }

 private:
  static constexpr int64_t HEAD = sizeof(int64_t);
  static int64_t upward(int64_t bytes) { return (bytes + LINE - 1) / LINE * LINE; }
  int64_t each_, bytes_;
  char* at_ = nullptr;
};

// h, or h and c of an LSTM, or their gradients, of each direction: null for zeros.
struct State {
  const void *h = nullptr, *c = nullptr;

  // Whether it is None, a tuple of its parts, or of a single part that itself; one of two parts may be
  // None if `either`.
  bool take(PyObject* state, const Call& call, const Setting& set, bool either) {
    if (state == Py_None) return true;
    const int parts = call.cell == LSTM ? 2 : 1;
    if (!PyTuple_Check(state)) return parts == 1 && one(0, state, call, set, h);
    if (PyTuple_Size(state) != parts) return false;
    for (int k = 0; k < parts; k++) {
      PyObject* const part = PyTuple_GetItem(state, k);
      if (!(either && part == Py_None) && !one(k, part, call, set, k ? c : h)) return false;
    }
    return true;
  }

 private:
  bool one(int k, PyObject* o, const Call& call, const Setting& set, const void*& at) {
    if (!lent_[k].take(o, set) || !lent_[k].has({set.ways(), call.B, call.H})) return false;
    at = lent_[k].view.buf;
    return true;
  }
  Lent lent_[2];
};

// New arrays for a state, or its gradient.
struct MadeState {
  bool make(const Setting& set, const Call& call) {
    const int64_t sizes[] = {set.ways(), call.B, call.H};
    return h.make(set, sizes) && (call.cell != LSTM || c.make(set, sizes));
  }
  PyObject* object() const {  // a new reference: a tuple of the parts
    return c.object() ? PyTuple_Pack(2, h.object(), c.object()) : PyTuple_Pack(1, h.object());
  }
  Made h, c;
};

// Weights as PyTorch has them, of each direction two or, with biases, four.
struct Given {
  bool take(PyObject* weights, const Call& call, const Setting& set) {
    if (!PyTuple_Check(weights)) return false;
    const Py_ssize_t count = PyTuple_Size(weights);
    each = (int)count / set.ways();
    if (count != each * set.ways() || (each != 2 && each != 4)) return false;
    for (Py_ssize_t k = 0; k < count; k++)
      if (!arrays[k].take(PyTuple_GetItem(weights, k), set)) return false;
    const int64_t rows = gates_of(call.cell) * call.H;
    for (int d = 0; d < set.ways(); d++) {
      const Lent* const its = arrays + d * each;
      if (!its[0].has({rows, call.I}) || !its[1].has({rows, call.H})) return false;
      if (each == 4 && !(its[2].has({rows}) && its[3].has({rows}))) return false;
    }
    return true;
  }

  void use(Call& call, int d) const {
    const Lent* const its = arrays + d * each;
    call.weight_ih = its[0].view.buf, call.weight_hh = its[1].view.buf;
    if (each == 4) call.bias_ih = its[2].view.buf, call.bias_hh = its[3].view.buf;
  }

  Lent arrays[8];
  int each = 0;  // of a direction
};

// x (T, B, I), or in its place the indices (T, B) where in each row of x a 1 stands among zeros; and
// the lengths (B,), or None.
struct Input {
  bool take(PyObject* given, PyObject* lengths, Call& call, const Setting& set) {
    if (!set.looks_up && x_.take_rows(given, set, call.I, call.ldx))
      call.x = x_.view.buf;
    else if (set.looks_up && indices_.take_integers(given, set) && indices_.view.ndim == 2)
      call.indices = (const int64_t*)indices_.view.buf;
    else
      return false;
    const Py_buffer& view = call.x ? x_.view : indices_.view;
    call.T = view.shape[0], call.B = view.shape[1];
    if (!set.fits(call)) return false;
    for (int64_t k = 0; call.indices && k < call.T * call.B; k++)
      if (call.indices[k] < 0 || call.indices[k] >= call.I) return false;
    if (lengths == Py_None) return true;
    if (!lengths_.take_integers(lengths, set) || !lengths_.has({call.B})) return false;
    call.lengths = (const int64_t*)lengths_.view.buf;
    for (int64_t k = 0; k < call.B; k++)
      if (call.lengths[k] < 0 || call.lengths[k] > call.T) return false;
    return true;
  }

 private:
  Lent x_, indices_, lengths_;
};

template <class P>
P* own(P* whole, int64_t bytes) {
  return whole ? (P*)((char*)whole + bytes) : nullptr;
}

// None, where an argument is not plainly right; nothing, where an error is set.
PyObject* refused() {
  if (PyErr_Occurred()) return nullptr;
  Py_RETURN_NONE;
}

bool succeeded(PyObject* none) {
  Py_XDECREF(none);
  return none;
}

bool pack_all(const Given& weights, const Own& packed, Call& call, const Setting& set) {
  for (int d = 0; d < set.ways(); d++) {
    weights.use(call, d);
    call.packed = packed.of(d);
    if (!succeeded(run(set.kernels->pack, call, 0, Load(call, set.threads)))) return false;
  }
  return true;
}

// (…, weights): return packed weights, for many calls of `forward`.
PyObject* pack(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Call call{};
  Setting set;
  if (!set.take(args, count, 7, call)) return nullptr;
  call.T = call.B = 1;
  Given weights;
  if (!weights.take(args[6], call, set)) return refused();
  Own packed(set.kernels->packed_bytes(call), set.ways());
  Made made;
  if (!packed.make(made, set, set.empty) || !pack_all(weights, packed, call, set)) return nullptr;
  return Py_NewRef(made.object());
}

// (…, weights, x, state, lengths, room): run all directions over x, and return y (T, B, D*H), the state
// and what `backward` needs. `weights` is a tuple of arrays, or what `pack` returned. `room` makes the
// memory for what is kept, as `empty` does, where it is large; None: nothing is kept.
// Without the last two: return y and the state alone, one of a single part as that itself.
PyObject* forward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Call call{};
  Setting set;
  const bool brief = count == 9;
  if (!set.take(args, count, brief ? 9 : 11, call)) return nullptr;
  PyObject *const lengths = brief ? Py_None : args[9], *const keeps = brief ? Py_None : args[10];
  const int ways = set.ways();
  Input input;
  Given weights;
  Lent lent;
  State before;
  const bool is_packed = lent.take_memory(args[6], set);
  if (!input.take(args[7], lengths, call, set) || !before.take(args[8], call, set, false) ||
      !(is_packed || weights.take(args[6], call, set)))
    return refused();
  Own packed(set.kernels->packed_bytes(call), ways);
  if (is_packed && !packed.take(lent)) return refused();

  const bool keep = keeps != Py_None;
  Made y, made;
  MadeState after;
  Own kept(keep ? set.kernels->kept_bytes(call) : 0, ways);
  PyObject* const room = kept.bytes() > LEAST_KEPT ? keeps : set.empty;
  if (!y.make(set, {call.T, call.B, ways * call.H}) || !after.make(set, call) ||
      (keep && !kept.make(made, set, room)))
    return nullptr;
  const Scratch scratch(is_packed ? 0 : packed.bytes());
  if (scratch.failed) return PyErr_NoMemory();
  if (!is_packed) {
    packed.take(scratch.memory);
    if (!pack_all(weights, packed, call, set)) return nullptr;
  }
  const int64_t row = call.H * (call.is_double ? 8 : 4), states = call.B * row;
  const Call all = call;
  for (int d = 0; d < ways; d++) {
    call = all, call.reverse = set.reverse(d), call.packed = packed.of(d), call.kept = kept.of(d);
    call.h0 = own(before.h, d * states), call.c0 = own(before.c, d * states);
    call.y = own(y.memory(), d * row), call.ldy = ways * call.H;
    call.h_last = own(after.h.memory(), d * states), call.c_last = own(after.c.memory(), d * states);
    const int64_t bytes = set.kernels->scratch_bytes(call, false);
    if (!succeeded(run(set.kernels->forward, call, bytes, Load(call, set.threads)))) return nullptr;
  }
  if (brief)
    return Py_BuildValue("(ON)", y.object(),
                         after.c.object() ? after.object() : Py_NewRef(after.h.object()));
  return Py_BuildValue("(ONO)", y.object(), after.object(), keep ? made.object() : Py_None);
}

template <class T>
void add(T* sum, const T* more, int64_t count) {
  typedef T Line __attribute__((vector_size(LINE)));  // this file is compiled to be small
  constexpr int64_t lanes = LINE / sizeof(T);
  for (; count >= lanes; count -= lanes, sum += lanes, more += lanes) {
    Line a, b;
    __builtin_memcpy(&a, sum, LINE);
    __builtin_memcpy(&b, more, LINE);
    a += b;
    __builtin_memcpy(sum, &a, LINE);
  }
  for (int64_t k = 0; k < count; k++) sum[k] += more[k];
}

// (…, weights, x, lengths, kept, dy, dstate): run all directions backward through time, and return the
// gradients of the weights, of x (None, of indices) and of the first state.
PyObject* backward(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Call call{};
  Setting set;
  if (!set.take(args, count, 12, call)) return nullptr;
  const int ways = set.ways();
  Input input;
  Given weights;
  Lent lent, dy;
  State after;
  if (!input.take(args[7], args[8], call, set) || !weights.take(args[6], call, set) ||
      !lent.take_memory(args[9], set) || !dy.take_rows(args[10], set, ways * call.H, call.lddy) ||
      dy.view.shape[0] != call.T || dy.view.shape[1] != call.B ||
      !after.take(args[11], call, set, true))
    return refused();
  Own kept(set.kernels->kept_bytes(call), ways);
  if (!kept.take(lent)) {
    PyErr_SetString(PyExc_ValueError, "what the forward pass kept is of another call");
    return nullptr;
  }

  const int64_t rows = gates_of(call.cell) * call.H, inputs = call.T * call.B * call.I;
  const int64_t item = call.is_double ? 8 : 4, row = call.H * item, states = call.B * row;
  Made dx, made[8];
  MadeState before;
  if ((call.x && !dx.make(set, {call.T, call.B, call.I})) || !before.make(set, call)) return nullptr;
  for (int d = 0; d < ways; d++) {
    Made* const to = made + d * weights.each;
    if (!to[0].make(set, {rows, call.I}) || !to[1].make(set, {rows, call.H}) ||
        (weights.each == 4 && !(to[2].make(set, {rows}) && to[3].make(set, {rows}))))
      return nullptr;
  }
  const Scratch second(call.x && ways == 2 ? inputs * item : 0);
  if (second.failed) return PyErr_NoMemory();
  const Call all = call;
  for (int d = 0; d < ways; d++) {
    Made* const to = made + d * weights.each;
    call = all, call.reverse = set.reverse(d), call.kept = kept.of(d);
    weights.use(call, d);
    call.dy = own(dy.view.buf, d * row);
    call.dh_last = own(after.h, d * states), call.dc_last = own(after.c, d * states);
    call.dx = d ? second.memory : dx.memory();
    call.dweight_ih = to[0].memory(), call.dweight_hh = to[1].memory();
    if (weights.each == 4) call.dbias_ih = to[2].memory(), call.dbias_hh = to[3].memory();
    call.dh0 = own(before.h.memory(), d * states), call.dc0 = own(before.c.memory(), d * states);
    const int64_t bytes = set.kernels->scratch_bytes(call, true);
    if (!succeeded(run(set.kernels->backward, call, bytes, Load(call, set.threads)))) return nullptr;
  }
  if (second.memory && call.is_double) add((double*)dx.memory(), (double*)second.memory, inputs);
  if (second.memory && !call.is_double) add((float*)dx.memory(), (float*)second.memory, inputs);
  const int found = ways * weights.each;
  PyObject* const gradients = PyTuple_New(found);
  for (int k = 0; gradients && k < found; k++)
    PyTuple_SetItem(gradients, k, Py_NewRef(made[k].object()));
  if (!gradients) return nullptr;
  return Py_BuildValue("(NON)", gradients, dx.object() ? dx.object() : Py_None, before.object());
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
    FAST(pack, "Pack weights, or return None."),
    FAST(forward, "Run a cell over sequences, or return None."),
    FAST(backward, "Run a cell backward through time, or return None."),
    FAST(product, "Multiply two matrices, and add a bias to each row."),
    FAST(adam, "Update a parameter and its moments as Adam does."),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef_Slot slots[] = {{0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", "Compiled recurrences.", 0, methods,
                      slots, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernels() { return PyModuleDef_Init(&module); }
