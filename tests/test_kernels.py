"""The compiled kernels against the core, from which they must differ by rounding only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from named_cells import CELLS, make_cell

from rnn_xp import GRU, LSTM, RNN
from rnn_xp.engines import PLAIN, Engine, Ragged, Run, Stack, engine, native
from rnn_xp.engines.around import adam

HostArray = np.ndarray[Any, Any]
SETS = native.instruction_sets()
KINDS = ("rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before")
OPTIONS = ("ragged", "bias", "state", "dstate", "strided", "one_hot")
pytestmark = pytest.mark.skipif(not SETS, reason="the kernels are not built: no C++ compiler")


@dataclass(frozen=True)
class Case:
    """A run of one cell: sizes, options, and the seed of its numbers."""

    kind: str = "lstm"
    steps: int = 7
    batch: int = 3
    inputs: int = 5
    hidden: int = 19
    dtype: str = "float64"
    directions: str = "f"
    """Of each whether it goes forward or backward: f, b or fb."""
    ragged: bool = False
    bias: bool = True
    state: bool = True
    dstate: bool = True
    strided: bool = False
    one_hot: bool = False
    """Whether the rows of x are; the kernels get the indices alone."""
    seed: int = 0

    @property
    def stack(self) -> Stack:
        """What the engines run."""
        ways = tuple(each == "b" for each in self.directions)
        return Stack(make_cell(self.kind, self.hidden), self.inputs, self.bias, reverse=ways)

    def arrays(self) -> dict[str, Any]:
        """Draw weights, x, states and gradients; with `strided` as parts of wider arrays."""
        rng = np.random.default_rng(self.seed)

        def draw(*shape: int) -> HostArray:
            return np.asarray(rng.standard_normal(shape), dtype=self.dtype)

        def part(*shape: int) -> HostArray:
            if not self.strided:
                return draw(*shape)
            return draw(*shape[:-1], 2 * shape[-1])[..., shape[-1] :]

        cell = make_cell(self.kind, self.hidden)
        scale = np.asarray(self.hidden**-0.5, dtype=self.dtype)
        shapes = cell.shapes(self.inputs, self.bias)
        batch, hidden, ways = self.batch, self.hidden, len(self.directions)
        lengths = rng.integers(0, self.steps + 1, batch) if self.ragged else None
        x = part(self.steps, batch, self.inputs)
        if self.one_hot:
            x = np.eye(self.inputs, dtype=self.dtype)[x.argmax(axis=2)]
        return {
            "weights": [
                {name: draw(*shape) * scale for name, shape in shapes.items()}
                for _ in self.directions
            ],
            "x": x,
            "dy": part(self.steps, batch, ways * hidden),
            "state": [part(ways, batch, hidden) if self.state else None for _ in cell.state],
            "dstate": [part(ways, batch, hidden) if self.dstate else None for _ in cell.state],
            "lengths": lengths,
        }


TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def results(case: Case, runner: Engine) -> dict[str, HostArray]:
    """Run a case forward and backward; return all that comes out, by name."""
    given_ = case.arrays()
    stack, x = case.stack, given_["x"]
    if case.one_hot and isinstance(runner, native.Native):
        x = x.argmax(axis=2)
    ragged = None
    if given_["lengths"] is not None:
        ragged = Ragged.of(given_["lengths"], case.steps, given_["dy"])
    ends = ("_l0", "_l0_reverse")
    named = zip(ends, given_["weights"], strict=False)
    params = {name + end: a for end, own in named for name, a in own.items()}
    weights = runner.weights(stack, params)
    passes = [
        runner.run(Run(stack, ragged, keep=keep), own, x, given_["state"])
        for keep, own in ((True, weights), (False, runner.prepare(stack, params)))
    ]
    (y, last, kept), (y_inference, last_inference, _) = passes
    for a, b in zip((y, *last), (y_inference, *last_inference), strict=True):
        # The core's chunks are shorter in inference, and its products then round otherwise.
        exact = isinstance(runner, native.Native)
        most = 0.0 if exact else TOLERANCE[case.dtype] * max(1.0, float(np.abs(a).max()))
        np.testing.assert_allclose(a, b, rtol=0, atol=most)
    y += 1000.0  # what is kept does not depend on it
    dy, dstate = given_["dy"], given_["dstate"]
    made, dx, first = runner.run_backward(stack, weights, kept, dy, dstate)
    gradients = runner.named(stack, made)
    return {
        "y": y - 1000.0 if case.dtype == "float64" else y_inference,
        **({} if case.one_hot else {"dx": dx}),
        **{f"{part} last": a for part, a in zip(stack.cell.state, last, strict=True)},
        **{f"d{part} first": a for part, a in zip(stack.cell.state, first, strict=True)},
        **{f"d{name}": a for name, a in gradients.items()},
    }


def compare(case: Case, runner: Engine) -> None:
    """Assert that an engine and the core agree, to some roundings of the largest number.

    Of gradients in float32 that is the largest of all: each is a sum of what others are sums of
    too, and may be small where they cancel out. In float64 each is held against itself.
    """
    ours, core = results(case, runner), results(case, PLAIN)
    tolerance = TOLERANCE[case.dtype]
    assert ours.keys() == core.keys()
    largest = {name: float(np.abs(a).max()) for name, a in core.items()}
    of_gradients = max(size for name, size in largest.items() if name.startswith("d"))
    for name, expected in core.items():
        assert ours[name].shape == expected.shape, name
        assert ours[name].dtype == np.dtype(case.dtype), name
        cancels = case.dtype == "float32" and name.startswith("d")
        size = max(1.0, of_gradients if cancels else largest[name])
        np.testing.assert_allclose(
            ours[name], expected, rtol=0, atol=tolerance * size, err_msg=name
        )


@pytest.mark.parametrize("name", SETS)
def test_gradients_that_cancel_out(name: str) -> None:
    case = Case("rnn_tanh", 20, 4, 4, 1, "float32", "b", ragged=True, dstate=False, strided=True)
    compare(replace(case, seed=9687), native.Native(name, 1))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_parity(name: str, kind: str, data: st.DataObject) -> None:
    flag = st.booleans()
    case = Case(
        kind,
        steps=data.draw(st.integers(1, 20)),
        batch=data.draw(st.integers(1, 40)),
        inputs=data.draw(st.integers(1, 70)),
        hidden=data.draw(st.integers(1, 140)),
        # Where relu's slope jumps, a rounding in float32 is enough to land on the other side.
        dtype=data.draw(st.sampled_from(("float64", "float64" if "relu" in kind else "float32"))),
        **{option: data.draw(flag) for option in OPTIONS},
        directions=data.draw(st.sampled_from(("f", "b", "fb"))),
        seed=data.draw(st.integers(0, 2**16)),
    )
    split = data.draw(st.sampled_from((native.BY_WORK, native.BY_BATCH, native.BY_UNITS)))
    compare(case, native.Native(name, data.draw(st.integers(1, 3)), split))


def test_lengths_that_do_not_lie_one_after_the_other() -> None:
    layer = LSTM(3, 8)
    params = layer.init(0)
    x = np.random.default_rng(0).standard_normal((6, 3, 3), dtype=np.float32)
    spread = np.array([2, 6, 5, 6, 4, 6], dtype=np.int64)[::2]
    y, _ = layer(params, x, lengths=spread)
    expected, _ = layer(params, x, lengths=[2, 5, 4])
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_product(name: str, dtype: str, data: st.DataObject) -> None:
    """Any sizes and strides, with and without a bias, against NumPy's product in float64."""
    rows, columns, inner = (data.draw(st.integers(1, most)) for most in (90, 140, 1100))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))

    def draw(*shape: int) -> HostArray:
        """Draw a matrix that lies in memory as it may: turned, in steps, backward."""
        step = data.draw(st.sampled_from((1, 2)))
        turned = len(shape) == 2 and data.draw(st.booleans())
        wide = rng.standard_normal(tuple(step * n for n in (shape[::-1] if turned else shape)))
        part = wide.astype(dtype)[tuple(slice(None, None, step) for _ in shape)]
        part = part.T if turned else part
        return part[::-1] if data.draw(st.booleans()) else part

    a, b = draw(rows, inner), draw(inner, columns)
    bias = draw(columns) if data.draw(st.booleans()) else None
    made = native.Native(name, data.draw(st.integers(1, 3))).product(a, b, bias)
    exact = a.astype(np.float64) @ b.astype(np.float64) + (0.0 if bias is None else bias)
    assert made.shape == (rows, columns)
    assert made.dtype == np.dtype(dtype)
    tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype]
    np.testing.assert_allclose(made, exact, rtol=0, atol=tolerance * inner**0.5 * 4)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1,), (7, 5), (150, 131)], ids=str)
def test_adam(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """An update against its formula in extended precision; the same bits for all threads."""
    rng = np.random.default_rng(0)
    wide = [rng.standard_normal(shape).astype(dtype) for _ in range(3)]
    wide.append(rng.uniform(0.0, 2.0, shape).astype(dtype))
    given_ = [np.asfortranarray(a) for a in wide]  # one turned in memory is copied
    betas, eps, scale, keep = (0.9, 0.95), 1e-3, -0.07, 0.8
    made = native.Native(name, 1).adam(given_, betas, eps, scale, keep)
    extended: list[Any] = [a.astype(np.longdouble) for a in wide]
    p, g, m, v = extended
    m = betas[0] * m + (1 - betas[0]) * g
    v = betas[1] * v + (1 - betas[1]) * g * g
    p = keep * p + scale * m / (np.sqrt(v) + eps)
    for found, exact in zip(made, (p, m, v), strict=True):
        assert found.dtype == np.dtype(dtype)
        assert found.flags.c_contiguous
        expected = exact.astype(np.float64)
        np.testing.assert_allclose(found, expected, rtol=0, atol=8 * float(np.finfo(dtype).eps))
    for threads in (2, 3):
        shared = native.Native(name, threads).adam(given_, betas, eps, scale, keep)
        for a, b in zip(shared, made, strict=True):
            np.testing.assert_array_equal(a, b)
    for a, b in zip(given_, wide, strict=True):
        np.testing.assert_array_equal(a, b)


def test_where_adam_is_not_for_the_kernels() -> None:
    one, rest = np.ones(3, dtype=np.float32), ((0.9, 0.999), 1e-8, 0.1, 1.0)
    assert adam([one, one, one, one], *rest) is not None
    for other in (np.ones(3), np.ones(3, dtype=np.float16), np.ones((3, 1), dtype=np.float32)):
        assert adam([one, other, one, one], *rest) is None
    assert adam([one.astype(np.float16)] * 4, *rest) is None
    assert adam([one[:0]] * 4, *rest) is None


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("directions", ["f", "b"])
def test_more_rows_than_a_chunk(name: str, kind: str, directions: str) -> None:
    runner = native.Native(name, 2)
    compare(Case(kind, steps=150, batch=9, hidden=33, directions=directions, ragged=True), runner)
    compare(Case(kind, dtype="float32", directions=directions), runner)
    compare(Case(kind, steps=3, batch=600, hidden=20, directions=directions), runner)
    compare(Case(kind, steps=80, batch=9, inputs=40, directions=directions, one_hot=True), runner)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["lstm", "gru_reset_before"])
def test_weights_that_the_second_cache_does_not_keep(kind: str, name: str, threads: int) -> None:
    for batch in (1, 25):  # one tile to fetch ahead in, and more than are used for it
        case = Case(kind, steps=2, batch=batch, inputs=370, hidden=370)
        compare(case, native.Native(name, threads))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", KINDS)
def test_sums_of_more_than_one_block(kind: str, name: str) -> None:
    for batch in (1, 51):  # and more rows than wait for the last block together
        case = Case(kind, steps=2, batch=batch, inputs=9, hidden=1030)
        compare(case, native.Native(name, 2))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("one_hot", [False, True], ids=["vectors", "indices"])
def test_the_same_bits_for_any_number_of_threads(
    name: str, kind: str, dtype: str, one_hot: bool
) -> None:
    case = Case(kind, 12, 21, 30, 150, dtype, directions="fb", ragged=True, one_hot=one_hot)
    alone = results(case, native.Native(name, 1))
    for threads in (2, 3, 5):
        for split in (native.BY_WORK, native.BY_BATCH, native.BY_UNITS):
            shared = results(case, native.Native(name, threads, split))
            for key, expected in alone.items():
                np.testing.assert_array_equal(shared[key], expected, err_msg=key)


def test_calls_at_the_same_time() -> None:
    """One call has the threads; the others do their work alone, with the same bits."""
    cases = [Case(kind, steps=30, batch=8, hidden=140, seed=k) for k in range(3) for kind in KINDS]
    runner = native.Native(SETS[0], 2)
    expected = [results(case, runner) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for made, wanted in zip(
            pool.map(lambda c: results(c, runner), cases), expected, strict=True
        ):
            for key in wanted:
                np.testing.assert_array_equal(made[key], wanted[key], err_msg=key)


def test_memory_that_waits_for_the_next_call_is_no_other_s() -> None:
    """Of a call and of a forward run, 38 MB and more: what is there before is read by none."""

    def trained(case: tuple[Any, int, int]) -> list[HostArray]:
        layer, steps, batch = case
        params, rng = layer.init(1), np.random.default_rng(layer.hidden_size)
        x = rng.standard_normal((steps, batch, layer.input_size), dtype=np.float32)
        y, _, cache = layer.forward(params, x)
        gradients, dx, _ = layer.backward(params, cache, y.copy())
        return [y, dx, *gradients.values()]

    cases = [(LSTM(1100, 1100), 2, 3), (GRU(1280, 1280), 2, 3), (LSTM(1120, 1120), 3, 2)]
    cases += [(LSTM(8, 64), 90, 400), (GRU(8, 64, bidirectional=True), 80, 400)]
    first = [trained(case) for case in cases]
    with ThreadPoolExecutor(3) as pool:
        for made in (map(trained, cases[::-1]), pool.map(trained, [*cases, *cases[::-1]])):
            for found, expected in zip(list(made)[-len(cases) :], first[::-1], strict=True):
                for a, b in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(a, b)


def test_what_waits_is_not_too_much() -> None:
    spare, dtype = native.Spare(), np.dtype(np.uint8)
    large = [np.empty(k << 20, dtype=dtype) for k in (32, 33, 200, 40, 24)]
    for array in large:
        spare.give(array)
    assert spare.make((40 << 20,), dtype) is large[2]  # 40 is too much beside the two before
    assert spare.make((40 << 20,), dtype).size == 40 << 20  # 33 is not enough, nor does it stay
    spare.give(large[1])
    assert spare.make((8,), np.dtype(np.float32)).nbytes == 32
    spare.give(large[1])
    assert spare.make((8,), dtype) is large[1]
    assert spare.make((8,), dtype).size == 8


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="it needs Linux")
@pytest.mark.parametrize("processors", ["all", "one"])
def test_threads_that_move_apart_may_run_anywhere_afterwards(processors: str) -> None:
    code = """
import os, sys, time
import numpy as np
from rnn_xp import LSTM
allowed = os.sched_getaffinity(0)
if sys.argv[1] == "one":
    allowed = {min(allowed)}
    os.sched_setaffinity(0, allowed)
layer = LSTM(20, 150)
params = layer.init(0)
x = np.ones((9, 40, 20), dtype=np.float32)
for _ in range(60):
    layer(params, x)
    time.sleep(0.005)  # the other thread falls asleep
threads = [int(name) for name in os.listdir("/proc/self/task")]
assert len(threads) == 2, threads
assert all(os.sched_getaffinity(thread) == allowed for thread in threads)
"""
    environment = os.environ | {"RNN_XP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, processors], env=environment, check=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_after_a_fork() -> None:
    """A child has none of its parent's threads, and starts its own."""
    code = """
import os, sys
import numpy as np
from rnn_xp import LSTM
from rnn_xp.engines import native
layer = LSTM(20, 150)
params = layer.init(0)
x = np.ones((9, 40, 20), dtype=np.float32)
before = layer(params, x)[0]
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(before, layer(params, x)[0]) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    environment = os.environ | {"RNN_XP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_huge_and_undefined_numbers(name: str, kind: str, dtype: str) -> None:
    """Gates saturate without a warning; what is undefined stays in its own sequence."""
    cell, runner = make_cell(kind, 20), native.Native(name, 1)
    arrays = Case(kind, batch=4, hidden=20, dtype=dtype, state=False).arrays()
    x = arrays["x"]
    x[:, 0] = 1e30
    x[:, 1] = -np.inf
    x[2, 2] = np.nan
    stack = Stack(cell, x.shape[2])
    own = runner.weights(stack, {f"{name}_l0": a for name, a in arrays["weights"][0].items()})
    y, _, _ = runner.run(Run(stack), own, x, [None] * len(cell.state))
    if kind != "rnn_relu":
        assert np.abs(y[:, 0]).max() <= 1.0
    assert np.isnan(y[2:, 2]).any(axis=1).all()
    assert np.isfinite(y[:2, 2]).all()
    assert np.isfinite(y[:, 3]).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("dtype", "ulps"), [("float32", 4), ("float64", 4)])
def test_accuracy_of_the_gates(name: str, dtype: str, ulps: int) -> None:
    """tanh and the sigmoid against NumPy's in extended precision, over their whole range."""
    a = np.linspace(-25.0, 25.0, 40001).astype(dtype)
    wide = a.astype(np.longdouble)
    one = np.ones((1, 1), dtype=dtype)
    runner = native.Native(name, 1)

    x = a[None, :, None]
    y, _, _ = runner.run(Run(Stack(make_cell("rnn_tanh", 1), 1, False)), [(one, one)], x, [None])
    exact = np.tanh(wide)
    spacing = np.spacing(np.abs(exact).astype(dtype)).astype(np.longdouble)
    assert float((np.abs(y[0, :, 0] - exact) / spacing).max()) <= ulps

    # h' = n + z (h - n) with n = 0 and h = 1 is z.
    weights = np.asarray([[0], [1], [0]], dtype=dtype), np.zeros((3, 1), dtype=dtype)
    state = [np.ones((1, a.size, 1), dtype=dtype)]
    y, _, _ = runner.run(Run(Stack(make_cell("gru", 1), 1, False)), [weights], x, state)
    exact = 1 / (1 + np.exp(-wide))
    spacing = np.spacing(exact.astype(dtype)).astype(np.longdouble)
    assert float((np.abs(y[0, :, 0] - exact) / spacing).max()) <= ulps


def test_which_engine() -> None:
    x = np.ones((2, 2), dtype=np.float32)
    assert isinstance(engine(make_cell("lstm", 3), x), native.Native)
    assert engine(make_cell("lstm", 3), x.astype(np.float16)) is PLAIN
    assert engine(make_cell("lstm", 3), x.astype(x.dtype.newbyteorder())) is PLAIN
    assert engine(make_cell("lstm_peephole", 3), x) is PLAIN
    assert engine(make_cell("lstm", 3, proj_size=2), x) is PLAIN
    assert set(KINDS) < set(CELLS)


@pytest.fixture
def fresh_choice() -> Iterator[None]:
    """Forget what the environment chose, before and after."""
    native.choose.cache_clear()
    yield
    native.choose.cache_clear()


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.parametrize("wanted", ["", "1", *SETS])
def test_the_environment_chooses(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_XP_ACCELERATE", wanted)
    monkeypatch.setenv("RNN_XP_NUM_THREADS", "3")
    chosen = native.choose()
    assert isinstance(chosen, native.Native)
    assert chosen.name == (wanted if wanted in SETS else SETS[0])
    assert chosen.threads == 3


@pytest.mark.usefixtures("fresh_choice")
def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_XP_ACCELERATE", "0")
    assert native.choose() == "switched off by RNN_XP_ACCELERATE=0"
    layer = GRU(2, 3)
    assert layer.prepare(layer.init(0)).engine is PLAIN


@pytest.mark.usefixtures("fresh_choice")
def test_an_unknown_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_XP_ACCELERATE", "avx9")
    with pytest.raises(ValueError, match=r"RNN_XP_ACCELERATE must be 0, 1 or one of .*'avx9'"):
        native.choose()


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ModuleNotFoundError("No module named 'rnn_xp.engines._kernels'"),
            "not built: there was no C++ compiler when rnn_xp was installed",
        ),
        (
            ImportError("version `GLIBC_2.99' not found"),
            "cannot be loaded: version `GLIBC_2.99' not found",
        ),
    ],
)
def test_no_kernels(error: ImportError, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr("importlib.import_module", fail)
    kernels, missing = native._load()
    monkeypatch.setattr(native, "_kernels", kernels)
    monkeypatch.setattr(native, "_missing", missing)
    assert native.choose() == reason


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.parametrize(
    ("variables", "threads"),
    [
        ({"RNN_XP_NUM_THREADS": "5", "OMP_NUM_THREADS": "2"}, 5),
        ({"OMP_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "3,2"}, 3),
        ({"OMP_NUM_THREADS": "many"}, None),
        ({"RNN_XP_NUM_THREADS": "9" * 30}, 64),
    ],
)
def test_number_of_threads(
    variables: dict[str, str], threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RNN_XP_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    chosen = native.choose()
    assert isinstance(chosen, native.Native)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert chosen.threads == (threads or cores)


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "4,2"])
def test_a_wrong_number_of_threads(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_XP_NUM_THREADS", value)
    line = f"RNN_XP_NUM_THREADS must be an integer >= 1, got {value!r}"
    with pytest.raises(ValueError, match=re.escape(line)):
        native.choose()


def test_the_most_threads_are_those_of_the_pool() -> None:
    header = Path(native.__file__).parent / "kernels" / "pool.h"
    assert f"MOST_THREADS = {native.MOST_THREADS};" in header.read_text(encoding="utf-8")


def test_the_kernels_around_the_layers_check_sizes() -> None:
    """The module is the last to look before memory is read: it must not trust its caller."""
    kernels = native._kernels
    number = kernels.kernel_names()[SETS[0]]
    moments = [np.ones(3, dtype=np.float32) for _ in range(7)]
    numbers = (0.9, 0.999, 1e-8, 0.1, 1.0)
    kernels.adam(number, 4, 1, 3, *numbers, *moments)
    for wrong_sizes in ((9, 4, 1, 3), (number, 2, 1, 3), (number, 4, 1, 0), (number, 4, 1, 2**50)):
        with pytest.raises(ValueError, match="unknown kernels or sizes"):
            kernels.adam(*wrong_sizes, *numbers, *moments)
    with pytest.raises(ValueError, match="has 12 bytes, expected at least 16"):
        kernels.adam(number, 4, 1, 4, *numbers, *moments)
    with pytest.raises(TypeError, match="must be real number"):
        kernels.adam(number, 4, 1, 3, "0.9", *numbers[1:], *moments)
    with pytest.raises(TypeError, match="too few arguments"):
        kernels.adam(number, 4, 1, 3, *numbers)
    with pytest.raises(TypeError, match="expected 16 arguments, got 17"):
        kernels.adam(number, 4, 1, 3, *numbers, *moments, None)
    a, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    out = np.empty((2, 4), np.float32)
    kernels.product(number, 4, 1, 2, 4, 3, a, 3, 1, b, 4, 1, None, out)
    with pytest.raises(ValueError, match="strides of an array are not those that were said"):
        kernels.product(number, 4, 1, 2, 4, 3, a, 2, 1, b, 4, 1, None, out)
    with pytest.raises(ValueError, match="unknown kernels, sizes or strides"):
        kernels.product(9, 4, 1, 2, 4, 3, a, 3, 1, b, 4, 1, None, out)
    out.flags.writeable = False
    with pytest.raises((BufferError, ValueError), match="read-only"):
        kernels.product(number, 4, 1, 2, 4, 3, a, 3, 1, b, 4, 1, None, out)


def test_input_and_weights_stay() -> None:
    layer = LSTM(5, 7, num_layers=2, bidirectional=True)
    params = layer.init(0)
    for value in params.values():
        value.flags.writeable = False
    x = np.ones((4, 3, 5), dtype=np.float32)
    x.flags.writeable = False
    y, _, cache = layer.forward(params, x)
    layer.backward(params, cache, y)


@pytest.mark.usefixtures("fresh_choice")
@pytest.mark.parametrize("accelerate", ["0", "1"])
@pytest.mark.parametrize("layer", [RNN, LSTM, GRU])
def test_inference_takes_no_memory_that_grows_with_time(
    layer: Any, accelerate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Besides y: a chunk of a few steps in the core, less in the kernels."""
    monkeypatch.setenv("RNN_XP_ACCELERATE", accelerate)
    made, x = layer(8, 32), np.ones((2000, 8, 8), dtype=np.float32)
    prepared = made.prepare(made.init(0))
    made(prepared, x)
    tracemalloc.start()
    try:
        y, _ = made(prepared, x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    chunk = 128 * 32 * 4  # bytes of one part of the state
    assert peak - y.nbytes < (24 * chunk if accelerate == "0" else chunk)
