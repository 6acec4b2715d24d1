"""Recurrent layers: stacking, directions, ragged batches, dropout between layers.

A layer of L levels and D directions is L * D runs of one cell over time: an engine runs a level,
which reads the output of the one below, both directions side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from operator import is_, itemgetter
from typing import Any, NamedTuple

import numpy as np

from rnn_xp import init as init_
from rnn_xp.accelerate import Deep, Engine, at_once, engine
from rnn_xp.accelerate.native import AtOnce, Native, OneHot
from rnn_xp.backend import (
    Array,
    Namespace,
    Operations,
    array_namespace,
    copy_of,
    device_of,
    on_its_device,
    operations,
    select,
)
from rnn_xp.cells import make_cell
from rnn_xp.cells.base import Cell
from rnn_xp.layers.checks import (
    check_cache,
    check_count,
    check_flag,
    check_given,
    check_is_given,
    check_lengths,
    check_params,
    check_rate,
    check_same_kind,
    use_once,
)
from rnn_xp.random import Seed, dropout_mask, generator, spawn
from rnn_xp.recurrence import Loop, Ragged

Params = dict[str, Array]
State = Any
"""h for RNN and GRU, (h, c) for LSTM."""


class Prepared(NamedTuple):
    """Parameters of one layer, folded for inference; passed instead of params."""

    layer: Recurrent
    like: Array
    engine: Engine
    levels: list[Any]
    """The folded weights of each."""
    loops: tuple[Loop, ...]
    """For each direction."""
    at_once: AtOnce | None = None
    """What runs it where all arguments are plainly right."""


@dataclass(slots=True)
class Cache:
    """What `forward` keeps for one `backward`."""

    layer: Recurrent
    params: tuple[Array, ...]
    """In the order of `shapes`."""
    engine: Engine
    like: Array
    shape: tuple[int, ...]
    """Of y."""
    loops: tuple[Loop, ...]
    levels: Any
    """What the engine keeps of each; of all of them where they ran at once."""
    at_once: bool
    """Whether all levels ran in one call of the engine."""
    masks: Sequence[Array] = ()
    used: bool = False


@dataclass(frozen=True)
class Recurrent:
    """What `RNN`, `LSTM` and `GRU` share."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = field(default=True, kw_only=True)
    bidirectional: bool = field(default=False, kw_only=True)
    dropout: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("input_size", "hidden_size", "num_layers"):
            check_count(name, getattr(self, name))
        for name in ("bias", "bidirectional"):
            check_flag(name, getattr(self, name))
        check_rate("dropout", self.dropout)

    def __getstate__(self) -> dict[str, Any]:
        """Return the description alone: what follows from it may hold functions and modules."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    # The cell, and what follows from it

    def _cell(self) -> Cell:
        raise NotImplementedError

    @cached_property
    def cell(self) -> Cell:
        """The equations of one step."""
        return self._cell()

    @property
    def num_directions(self) -> int:
        """D: 1, or 2 for a bidirectional layer."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """The size of the output's last axis: D * H, or D * P with a projection."""
        return self.num_directions * self.cell.output_size

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in PyTorch's order."""
        return {
            f"{name}{suffix}": shape
            for suffix, size in self._suffixes
            for name, shape in self.cell.shapes(size, self.bias).items()
        }

    @cached_property
    def _runs(self) -> int:
        """L * D."""
        return self.num_layers * self.num_directions

    @cached_property
    def _arrays(self) -> Callable[[Params], tuple[Array, ...]]:
        """From parameters to a tuple of them, in the order of `shapes`: at least two."""
        return itemgetter(*self.shapes)

    def _has(self, params: Any, arrays: tuple[Array, ...]) -> bool:
        """Tell at once that `params` hold these very arrays; False says nothing."""
        if type(params) is not dict or params.keys() != self.shapes.keys():
            return False
        return all(map(is_, self._arrays(params), arrays))

    @cached_property
    def _suffixes(self) -> list[tuple[str, int]]:
        """The end of the parameters' names, and the input size, of each run."""
        sizes = [self.input_size, *[self.output_size] * (self.num_layers - 1)]
        ends = ("", "_reverse")[: self.num_directions]
        return [(f"_l{k}{end}", size) for k, size in enumerate(sizes) for end in ends]

    @cached_property
    def _names(self) -> list[list[list[tuple[str, str]]]]:
        """For each direction of each level, the cell's names of its weights and the layer's."""
        names = self.cell.shapes(self.input_size, self.bias)
        runs = [[(name, name + suffix) for name in names] for suffix, _ in self._suffixes]
        ways = self.num_directions
        return [runs[k : k + ways] for k in range(0, len(runs), ways)]

    # Public calls

    def init(
        self,
        seed: Seed,
        *,
        backend: str = "numpy",
        device: str | None = None,
        dtype: str = "float32",
        scheme: str = "uniform",
    ) -> Params:
        """Draw parameters; the same seed gives the same numbers on every backend.

        Parameters
        ----------
        seed : int
        backend, device : str
            As in `backend.select`.
        dtype : str
            `float32`, `float64`, or what else the library computes in.
        scheme : str
            `uniform` (PyTorch's default), `glorot` or `orthogonal`: see `init.SCHEMES`.

        Returns
        -------
        dict of arrays
        """
        chosen = select(backend, device)
        return {name: chosen.asarray(a, dtype) for name, a in self._drawn(seed, scheme).items()}

    @on_its_device
    def prepare(self, params: Params) -> Prepared:
        """Fold the parameters for inference.

        Worth it where a layer is called many times with the same parameters, one step at a time
        above all: `layer(prepared, x, state)`. Later changes of `params` have no effect on it.
        """
        xp = check_params(self, params)
        copies = {name: copy_of(xp, a) for name, a in params.items()}
        made = self._fold(copies, xp)
        return made._replace(at_once=at_once(made.engine, self.cell, made.levels, made.like))

    def __call__(
        self,
        params: Params | Prepared,
        x: Array,
        state: State = None,
        *,
        lengths: Sequence[int] | Array | None = None,
    ) -> tuple[Array, State]:
        """Run the layer; keeps nothing for a backward pass.

        Parameters
        ----------
        params : dict of arrays, or what `prepare` returned
        x : (T, B, I), or (T, I) without a batch
        state : h (L*D, B, H); for LSTM (h, c), h (L*D, B, P) with a projection; None is zeros
        lengths : (B,) integers in 1..T, in any order
            Steps past a sequence's length have output 0 and leave its state as it was.

        Returns
        -------
        y : (T, B, D*H)
        state : like the one that goes in, after each sequence's last step

        Raises
        ------
        TypeError
            If an argument is not an array of the parameters' library, dtype and device.
        ValueError
            If a shape, a length or a parameter's name is wrong.
        """
        if not isinstance(params, Prepared):
            if lengths is None and self._runs == 1:
                whole = self._at_once(params, x, state, keep=False)
                if whole is not None:
                    return whole[0], whole[1]
        elif params.layer is not self and params.layer != self:
            raise ValueError(f"params were prepared by {params.layer}, not by {self}")
        elif params.at_once is not None and lengths is None:
            done: tuple[Array, State] | None = params.at_once(x, state)
            if done is not None:
                return done
        y, state, _ = self._run(params, x, state, lengths)
        return y, state

    def forward(
        self,
        params: Params,
        x: Array,
        state: State = None,
        *,
        lengths: Sequence[int] | Array | None = None,
        dropout_seed: Seed | None = None,
    ) -> tuple[Array, State, Cache]:
        """Run the layer for training.

        As a call of the layer, and also:

        Parameters
        ----------
        dropout_seed : int, optional
            Zeroes elements of every level's output but the last's with probability `dropout`, and
            scales the others by 1 / (1 - dropout); the same seed gives the same mask on every
            backend. None: no dropout.

        Returns
        -------
        y, state
            As from a call of the layer.
        cache
            Belongs to one `backward`. It refers to x: do not change x before.
        """
        if lengths is None and self._runs == 1:
            done = self._at_once(params, x, state, keep=True)
            if done is not None:
                return done
        y, state, cache = self._run(params, x, state, lengths, dropout_seed, keep=True)
        assert cache is not None
        return y, state, cache

    def backward(
        self, params: Params, cache: Cache, dy: Array, dstate: State = None
    ) -> tuple[Params, Array, State]:
        """Run backward through time.

        Parameters
        ----------
        params : the same as in `forward`
        cache : from `forward`; used up
        dy : gradient of the loss with respect to y, of its shape
        dstate : gradient with respect to the returned state, of its form; None (as a whole, or
            instead of h or c) is zeros

        Returns
        -------
        dparams, dx, dstate0
            The gradients of sum(y * dy) + sum(state * dstate) with respect to every parameter,
            the input and the initial state: exact, summed over the batch.

        Raises
        ------
        ValueError
            If a shape is wrong, or the cache was used before or belongs to another layer.
        TypeError
            If `params` or a gradient are not of the library and dtype of `forward`.
        """
        check_cache(self, cache)
        if not self._has(params, cache.params):
            check_params(self, params)
            first = params["weight_ih_l0"]
            check_given("weight_ih_l0", first, tuple(first.shape), cache.like)
        elif cache.at_once and isinstance(cache.engine, Native):
            use_once(cache)
            done = cache.engine.backward_at_once(cache.params, cache.levels[0], dy, dstate)
            if done is not None:
                gradient, dx, dstate = done
                return dict(zip(self.shapes, gradient, strict=True)), dx, dstate
            cache.used = False  # an argument is not plainly right: the checks say what
        return self._run_backward(params, cache, dy, dstate)

    # Inside

    def _drawn(self, seed: Seed, scheme: str) -> dict[str, np.ndarray[Any, Any]]:
        return init_.recurrent(generator(seed), self.shapes, self.hidden_size, scheme)

    @on_its_device
    def _run_backward(
        self, params: Params, cache: Cache, dy: Array, dstate: State
    ) -> tuple[Params, Array, State]:
        """Run all levels backward; see `backward`."""
        weights = self._weights(params)
        ops, masks = cache.loops[0].ops, cache.masks
        batched = len(cache.shape) == 3
        check_given("dy", dy, cache.shape, cache.like)
        if not batched:
            dy = dy[:, None, :]
        part = parts = self._state_in("dstate", dstate, dy.shape[1], batched, cache.like)
        use_once(cache)
        gradients: list[Sequence[dict[str, Array]]] = []
        dstates: list[Sequence[Array]] = []
        if cache.at_once and isinstance(cache.engine, Deep):
            each = [self._of_level(parts, level) for level in range(self.num_layers)]
            gradients, dy, dstates = cache.engine.run_levels_backward(
                cache.loops, weights, cache.levels, dy, each
            )
        else:
            for level in reversed(range(self.num_layers)):
                if self.num_layers > 1:
                    part = self._of_level(parts, level)
                made, dy, first = cache.engine.run_backward(
                    cache.loops, weights[level], cache.levels[level], dy, part
                )
                gradients.insert(0, made)
                dstates.insert(0, first)
                if level and masks:
                    dy = ops.multiply(dy, masks[level - 1], out=dy)
        dparams = {}
        for k, made in enumerate(gradients):
            for d, own in enumerate(made):
                for name, full in self._names[k][d]:
                    dparams[full] = own[name]
        dx = dy if batched else dy[:, 0, :]
        return dparams, dx, self._state_out(ops.xp, dstates, batched)

    def _engine(self, like: Array) -> Engine:
        return engine(self.cell, like)

    @cached_property
    def _known_loops(self) -> dict[Operations, tuple[Loop, ...]]:
        return {}

    def _whole_loops(self, ops: Operations) -> tuple[Loop, ...]:
        """Return the loops over all steps of all sequences: made once for each library."""
        known = self._known_loops
        if ops not in known:
            known[ops] = self._loops(ops)
        return known[ops]

    @cached_property
    def _numpy_loops(self) -> tuple[Loop, ...]:
        return self._whole_loops(operations(np))

    def _at_once(
        self, params: Any, x: Any, state: Any, *, keep: bool
    ) -> tuple[Array, State, Any] | None:
        """Run forward in one call of the compiled kernels; None where they cannot.

        Returns y, the state and, to `keep` it, the cache. The checks in Python would take longer
        than all that a small layer computes.
        """
        if type(params) is not dict or params.keys() != self.shapes.keys():
            return None
        arrays = self._arrays(params)
        if type(arrays[0]) is not np.ndarray:
            return None
        chosen = self._engine(arrays[0])
        if not isinstance(chosen, Native):
            return None
        done = chosen.forward_at_once(self.cell, self.input_size, arrays, x, state, keep=keep)
        if done is None:
            return None
        y, state, kept = done
        if not keep:
            return y, state, None
        cache = Cache(self, arrays, chosen, arrays[0], y.shape, self._numpy_loops, [kept], True)
        return y, state, cache

    def _fold(self, params: Params, xp: Namespace) -> Prepared:
        weights = self._weights(params)
        like = weights[0][0]["weight_ih"]
        chosen = self._engine(like)
        levels = [chosen.fold(self.cell, xp, own) for own in weights]
        return Prepared(self, like, chosen, levels, self._whole_loops(operations(xp)))

    def _loops(self, ops: Operations, ragged: Ragged | None = None) -> tuple[Loop, ...]:
        forward = Loop(self.cell, ops, ragged, False)
        return (forward, forward._replace(reverse=True)) if self.bidirectional else (forward,)

    def _weights(self, params: Params) -> list[list[dict[str, Array]]]:
        weights = []
        for level in self._names:
            own = []
            for names in level:
                own.append({name: params[full] for name, full in names})
            weights.append(own)
        return weights

    @on_its_device
    def _run(
        self,
        params: Any,
        x: Array,
        state: State,
        lengths: Sequence[int] | Array | None,
        dropout_seed: Seed | None = None,
        *,
        keep: bool = False,
    ) -> tuple[Array, State, Cache | None]:
        """Run all levels; return the cache, too, to `keep` it: of parameters, never prepared."""
        prepared = params
        if keep or not isinstance(params, Prepared):
            prepared = self._fold(params, check_params(self, params))
        _, like, chosen, levels, loops, _ = prepared
        xp = loops[0].ops.xp
        self._check_input(x, like)
        batched = x.ndim == 3
        if not batched:
            x = x[:, None, :]
        if lengths is not None:
            ragged = self._ragged(lengths, x.shape[0], x.shape[1], batched, like)
            loops = self._loops(operations(xp), ragged)
        part = parts = self._state_in("state", state, x.shape[1], batched, like)
        seed = dropout_seed if self.dropout and keep else None
        states: list[Sequence[Array]] = []
        kept: Any = []
        masks = []
        at_once = None
        if self.num_layers > 1 and seed is None and isinstance(chosen, Deep):
            each = [self._of_level(parts, level) for level in range(self.num_layers)]
            at_once = chosen.run_levels(loops, levels, x, each, keep=keep)
        if at_once is not None:
            x, states, kept = at_once
        else:
            for level, w in enumerate(levels):
                if level and seed is not None:
                    mask = dropout_mask(spawn(seed, level), self.dropout, x)
                    x = loops[0].ops.multiply(x, mask, out=x)
                    masks.append(mask)
                if self.num_layers > 1:
                    part = self._of_level(parts, level)
                x, last, own = chosen.run(loops, w, x, part, keep=keep)
                states.append(last)
                kept.append(own)
        y = x if batched else x[:, 0, :]
        cache = None
        if keep:
            arrays, shape = self._arrays(params), tuple(y.shape)
            cache = Cache(
                self, arrays, chosen, like, shape, loops, kept, at_once is not None, masks
            )
        return y, self._state_out(xp, states, batched), cache

    def _check_input(self, x: Array, like: Array) -> None:
        """Raise unless x can be run."""
        if type(x) is type(like) and x.dtype == like.dtype and device_of(x) == device_of(like):
            shape = x.shape
            if len(shape) == 3 and shape[2] == self.input_size and 0 not in shape:
                return  # all is well, at once
        if type(x) is OneHot:
            return  # it is this library's own
        check_is_given("x", x)
        array_namespace(params=like, x=x)
        if x.ndim not in (2, 3):
            raise ValueError(
                f"x must have shape (T, B, {self.input_size}), or (T, {self.input_size}) without "
                f"a batch, got {tuple(x.shape)}"
            )
        check_same_kind("x", x, like)
        if x.shape[-1] != self.input_size:
            raise ValueError(
                f"x has {x.shape[-1]} features in its last axis, but this {type(self).__name__} "
                f"has input_size={self.input_size}"
            )
        if 0 in x.shape:
            raise ValueError(
                f"x must have at least one step and one sequence, got {tuple(x.shape)}"
            )

    def _ragged(
        self,
        lengths: Sequence[int] | Array,
        steps: int,
        batch: int,
        batched: bool,
        like: Array,
    ) -> Ragged | None:
        if not batched:
            raise ValueError("lengths needs a batch: x (T, B, I), got x (T, I)")
        return Ragged.of(check_lengths(lengths, steps, batch), steps, like)

    def _state_in(
        self, name: str, state: State, batch: int, batched: bool, like: Array
    ) -> list[Array | None]:
        """Return each part of a state as (L*D, B, size), None for zeros."""
        sizes = self.cell.state_sizes
        if state is None:
            return [None] * len(sizes)
        if len(sizes) == 1:
            state = (state,)
        elif not isinstance(state, (tuple, list)) or len(state) != len(sizes):
            raise ValueError(
                f"{name} must be a pair ({', '.join(self.cell.state)}), got {type(state).__name__}"
            )
        parts: list[Array | None] = []
        dtype = like.dtype if type(like) is np.ndarray else None
        for k, part in enumerate(state):
            size = sizes[k]
            expected = (self._runs, batch, size) if batched else (self._runs, size)
            # Of NumPy arrays it is told at once that all is well: a step in a stream is that short.
            if type(part) is not np.ndarray or part.dtype != dtype or part.shape != expected:
                if part is None and name == "dstate":
                    parts.append(None)
                    continue
                full = self.cell.state[k]
                full = full if name == "state" else f"d{full} in dstate"
                check_given(full, part, expected, like)
            parts.append(part if batched else part[:, None, :])
        return parts

    def _of_level(self, parts: list[Array | None], level: int) -> list[Array | None]:
        """Return the directions of one level, (D, B, size) for each part of a state."""
        ways = self.num_directions
        own = slice(level * ways, (level + 1) * ways)
        return [None if part is None else part[own, ...] for part in parts]

    def _state_out(self, xp: Namespace, states: Sequence[Sequence[Array]], batched: bool) -> State:
        """Join the states of the levels to (L*D, B, H) for each part."""
        parts = states[0]
        if self.num_layers > 1:
            parts = [xp.concat(each, axis=0) for each in zip(*states, strict=True)]
        if not batched:
            parts = [part[:, 0, :] for part in parts]
        return parts[0] if len(parts) == 1 else tuple(parts)


@dataclass(frozen=True)
class RNN(Recurrent):
    """Elman layer: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu instead of tanh.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H.
    num_layers : int
        L; level k reads the output of level k - 1.
    nonlinearity : str
        `tanh` or `relu`.
    bias : bool
        Whether there are `bias_ih` and `bias_hh`.
    bidirectional : bool
        Whether a second run from the last step to the first stands beside each level.
    dropout : float
        Probability to zero an element between the levels in training; see `forward`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the kind or in the range above.
    """

    nonlinearity: str = field(default="tanh", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {self.nonlinearity!r}")

    def _cell(self) -> Cell:
        return make_cell(f"rnn_{self.nonlinearity}", self.hidden_size)


@dataclass(frozen=True)
class LSTM(Recurrent):
    """LSTM layer; its state is (h, c). The equations stand in `rnn_xp.cells.lstm`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, dropout
        As in `RNN`.
    proj_size : int
        P: project h to this size (`weight_hr`), 0 for no projection; less than H.
    peephole : bool
        Whether the gates also see c (`weight_peephole`, (3, H), in the order i f o).

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the kind or in the range above.
    """

    proj_size: int = field(default=0, kw_only=True)
    peephole: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("peephole", self.peephole)
        check_count("proj_size", self.proj_size, least=0)
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size must be less than hidden_size={self.hidden_size}, got {self.proj_size}"
            )

    def _cell(self) -> Cell:
        name = "lstm_peephole" if self.peephole else "lstm"
        return make_cell(name, self.hidden_size, self.proj_size)

    def init(
        self,
        seed: Seed,
        *,
        backend: str = "numpy",
        device: str | None = None,
        dtype: str = "float32",
        scheme: str = "uniform",
        forget_bias: float | None = None,
    ) -> Params:
        """Draw parameters: as in `RNN.init`, and also:

        Parameters
        ----------
        forget_bias : float, optional
            The forget gate's bias, for `bias_ih` and `bias_hh` together; 1 lets a new network
            remember (Jozefowicz et al., ICML 2015). None leaves what `scheme` draws.
        """
        if forget_bias is not None and not self.bias:
            raise ValueError("forget_bias needs bias=True")
        chosen = select(backend, device)
        drawn, hidden = self._drawn(seed, scheme), self.hidden_size
        for name, value in drawn.items():
            if forget_bias is not None and name.startswith("bias"):
                value[hidden : 2 * hidden] = forget_bias if name.startswith("bias_ih") else 0.0
        return {name: chosen.asarray(a, dtype) for name, a in drawn.items()}


@dataclass(frozen=True)
class GRU(Recurrent):
    """GRU layer. The equations stand in `rnn_xp.cells.gru`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, dropout
        As in `RNN`.
    reset_after : bool
        Whether the reset gate acts after the recurrent product, as in PyTorch and cuDNN, or
        before it, as in the paper.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the kind or in the range above.
    """

    reset_after: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_flag("reset_after", self.reset_after)

    def _cell(self) -> Cell:
        return make_cell("gru" if self.reset_after else "gru_reset_before", self.hidden_size)
