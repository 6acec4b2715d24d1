"""Recurrent layers: a cell over time, with stacking, directions, ragged batches and dropout.

A layer describes what runs, and is the one door to it. An engine runs it: first with the arguments
as they are, where it looks at them itself; if it refuses, the checks here say what is wrong, or
bring them into the one form that every engine takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, partial
from operator import is_
from typing import Any

from rnn_xp import cells
from rnn_xp import init as init_
from rnn_xp.backend import Array, copy_of, known_namespace, on_its_device
from rnn_xp.cells import Cell
from rnn_xp.engines import Attempt, Drop, Engine, Parts, Ragged, Run, Stack, engine
from rnn_xp.layers.base import Layer, Params
from rnn_xp.layers.checks import (
    check_cache,
    check_count,
    check_flag,
    check_given,
    check_lengths,
    check_params,
    check_rate,
    check_state,
    check_steps,
    use_once,
)
from rnn_xp.random import Seed, dropout_mask, generator, spawn

State = Any
"""h where the cell's state has one part, else a tuple of its parts: (h, c) for LSTM."""
Factory = Callable[[int], Cell]
"""A class of cells, or what else returns a cell for a hidden size."""


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """Parameters of one layer, arranged for inference; passed instead of params."""

    layer: Recurrent
    params: Params
    """Copies of what was given."""
    engine: Engine
    weights: list[Any]
    attempt: Attempt | None
    """What runs it on arguments that nobody has checked."""

    def __reduce__(self) -> Any:
        # What is packed may lie otherwise in another process: it is packed there.
        return self.layer.prepare, (self.params,)


@dataclass(slots=True)
class Cache:
    """What `forward` keeps for one `backward`."""

    layer: Recurrent
    arrays: tuple[Array, ...]
    """The parameters, in the order of `shapes`."""
    engine: Any
    kept: Any
    shape: tuple[int, ...]
    """Of y."""
    used: bool = False


@dataclass(frozen=True)
class Recurrent(Layer):
    """Layer of any cell; its equations are the cell's.

    Parameters
    ----------
    cell : class or callable
        A `Cell` class, or what else returns a `Cell` when called with `hidden_size`:
        `functools.partial(SLSTM, heads=4)`.
    input_size, hidden_size : int
        I and H.
    num_layers : int
        L; level k reads the output of level k - 1.
    bias : bool
        Whether the cell has biases.
    bidirectional : bool
        Whether a second run from the last step to the first stands beside each level.
    dropout : float
        Probability to zero an element between the levels in training; see `forward`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the kind or in the range above.

    Examples
    --------
    >>> import numpy as np
    >>> from rnn_xp import Recurrent
    >>> from rnn_xp.cells import GRU
    >>> layer = Recurrent(GRU, 3, 5)
    >>> y, h = layer(layer.init(seed=0), np.zeros((10, 1, 3), dtype="float32"))
    >>> y.shape, h.shape
    ((10, 1, 5), (1, 1, 5))
    """

    cell: Factory = field(compare=False)
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bias: bool = field(default=True, kw_only=True)
    bidirectional: bool = field(default=False, kw_only=True)
    dropout: float = field(default=0.0, kw_only=True)
    equations: Cell = field(init=False, repr=False)
    """The cell of this hidden size."""
    has_state = True
    takes = ("lengths", "dropout_seed")

    def __post_init__(self) -> None:
        for name in ("input_size", "hidden_size", "num_layers"):
            check_count(name, getattr(self, name))
        for name in ("bias", "bidirectional"):
            check_flag(name, getattr(self, name))
        check_rate("dropout", self.dropout)
        factory = self._factory()
        object.__setattr__(self, "cell", factory)
        object.__setattr__(self, "equations", made(factory, self.hidden_size))

    def __getstate__(self) -> dict[str, Any]:
        """Return the description alone: what follows from it may hold functions and modules."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def _factory(self) -> Factory:
        return self.cell

    @cached_property
    def stack(self) -> Stack:
        """What an engine runs."""
        ways = (False, True) if self.bidirectional else (False,)
        return Stack(self.equations, self.input_size, self.bias, self.num_layers, ways)

    @property
    def num_directions(self) -> int:
        """D: 1, or 2 for a bidirectional layer."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """The size of the output's last axis: D * H, or D * P with a projection."""
        return self.num_directions * self.equations.output_size

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter, in PyTorch's order."""
        return self.stack.shapes

    # Public calls

    @on_its_device
    def prepare(self, params: Params) -> Prepared:
        """Arrange the parameters for inference.

        Worth it where a layer is called many times with the same parameters, one step at a time
        above all: `layer(prepared, x, state)`. Later changes of `params` have no effect on it.
        """
        xp = check_params(self, params)
        copies = {name: copy_of(xp, a) for name, a in params.items()}
        chosen = self._engine(next(iter(copies.values())))
        weights = chosen.prepare(self.stack, copies)
        return Prepared(self, copies, chosen, weights, chosen.attempting(self.stack, weights))

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
        done: Any = None
        if type(params) is Prepared:
            if params.layer is not self and params.layer != self:
                raise ValueError(f"params were prepared by {params.layer}, not by {self}")
            if lengths is None and params.attempt is not None:
                done = params.attempt(x, state)
        elif lengths is None:
            own: Any = params
            chosen = self._known_engine(own)
            done = chosen and chosen.attempt(self.stack, own, x, state)
        if done is not None:
            return done  # type: ignore[no-any-return]
        y, last, _ = self._run(params, x, state, lengths)
        return y, last[0] if len(last) == 1 else last

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
        drop = None if dropout_seed is None else self.drop(dropout_seed)
        if lengths is None and drop is None:
            chosen = self._known_engine(params)
            done = chosen and chosen.attempt_forward(self.stack, params, x, state)
            if done:
                y, last, kept = done
                cache = Cache(self, self.stack.arrays(params), chosen, kept, y.shape)
                return y, last[0] if len(last) == 1 else last, cache
        y, last, made = self._run(params, x, state, lengths, drop, keep=True)
        return y, last[0] if len(last) == 1 else last, made

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
        if self._has(params, cache.arrays):
            use_once(cache)
            done = cache.engine.attempt_backward(self.stack, params, cache.kept, dy, dstate)
            if done is None:  # a gradient is not plain: the checks say what is wrong
                cache.used = False
        else:
            check_params(self, params)
            name, like = next(iter(self.shapes)), cache.arrays[0]
            check_given(name, params[name], tuple(like.shape), like)
            done = None
        gradients, dx, first = done or self._run_backward(params, cache, dy, dstate)
        dparams = cache.engine.named(self.stack, gradients)
        return dparams, dx, first[0] if len(first) == 1 else tuple(first)

    # Inside

    def _engine(self, like: Array) -> Engine:
        return engine(self.equations, like)

    def _drawn(self, seed: Seed, *, scheme: str = "uniform") -> dict[str, Any]:
        drawn = init_.recurrent(generator(seed), self.shapes, self.hidden_size, scheme)
        for level in self.stack.names:
            for names in level:
                for name, full in names:
                    own = self.equations.initial(name, drawn[full])
                    if getattr(own, "shape", None) != drawn[full].shape:
                        raise ValueError(
                            f"{self.equations}.initial({name!r}, ...) must return an array of the "
                            f"shape {drawn[full].shape}, got {own!r:.40}"
                        )
                    drawn[full] = own
        return drawn

    def drop(self, seed: Seed | None) -> Drop | None:
        """Return what makes the dropout masks between the levels; None without dropout."""
        if seed is None or not self.dropout:
            return None
        return lambda level, x: dropout_mask(spawn(seed, level), self.dropout, x)

    def _known_engine(self, params: Any) -> Engine | None:
        """Return the engine for unchecked parameters.

        None where it cannot be told at once that they have the right names and a known kind.
        """
        if type(params) is not dict or params.keys() != self.shapes.keys():
            return None
        like = next(iter(params.values()))
        return None if known_namespace(like) is None else self._engine(like)

    def _has(self, params: Any, arrays: tuple[Array, ...]) -> bool:
        """Tell at once that `params` hold these very arrays; False says nothing."""
        if type(params) is not dict or params.keys() != self.shapes.keys():
            return False
        return all(map(is_, self.stack.arrays(params), arrays))

    @on_its_device
    def _run(
        self,
        params: Any,
        x: Array,
        state: State,
        lengths: Sequence[int] | Array | None,
        drop: Drop | None = None,
        *,
        keep: bool = False,
    ) -> tuple[Array, tuple[Array, ...], Any]:
        """Check the arguments, and run all levels.

        Return y, the state and, to `keep` it, a cache.
        """
        if type(params) is Prepared and not keep:
            given, chosen, weights = params.params, params.engine, params.weights
        else:
            check_params(self, params)
            given = params
            chosen = self._engine(next(iter(given.values())))
            weights = chosen.weights(self.stack, given)
        like = next(iter(given.values()))
        check_steps(self, x, like)
        batched = x.ndim == 3
        x = x if batched else x[:, None, :]
        ragged = self._ragged(lengths, x, like, batched=batched)
        parts = self._parts("state", state, x.shape[1], like, batched=batched)
        how = Run(self.stack, ragged, drop, keep)
        y, last, kept = chosen.run(how, weights, x, parts)
        if not batched:
            y, last = y[:, 0, :], tuple(part[:, 0, :] for part in last)
        if not keep:
            return y, last, None
        arrays = self.stack.arrays(given)
        return y, last, Cache(self, arrays, chosen, kept, tuple(y.shape))

    @on_its_device
    def _run_backward(
        self, params: Params, cache: Cache, dy: Array, dstate: State
    ) -> tuple[list[Any], Array, tuple[Array, ...]]:
        """Check the gradients, and run all levels backward."""
        like, batched = cache.arrays[0], len(cache.shape) == 3
        check_given("dy", dy, cache.shape, like)
        dy = dy if batched else dy[:, None, :]
        parts = self._parts("dstate", dstate, dy.shape[1], like, batched=batched)
        use_once(cache)
        weights = cache.engine.weights(self.stack, params)
        gradients, dx, first = cache.engine.run_backward(self.stack, weights, cache.kept, dy, parts)
        if not batched:
            dx, first = dx[:, 0, :], tuple(part[:, 0, :] for part in first)
        return gradients, dx, first

    def _ragged(
        self, lengths: Sequence[int] | Array | None, x: Array, like: Array, *, batched: bool
    ) -> Ragged | None:
        if lengths is None:
            return None
        if not batched:
            raise ValueError("lengths needs a batch: x (T, B, I), got x (T, I)")
        return Ragged.of(check_lengths(lengths, *x.shape[:2]), x.shape[0], like)

    def _parts(self, name: str, state: State, batch: int, like: Array, *, batched: bool) -> Parts:
        """Return each part of a state as (L*D, B, size), None for zeros."""
        runs = self.num_layers * self.num_directions
        parts = check_state(
            self.equations, name, state, (runs, batch) if batched else (runs,), like
        )
        return parts if batched else [None if a is None else a[:, None, :] for a in parts]


def made(factory: Any, hidden_size: int) -> Cell:
    """Return the cell of a hidden size.

    Raises
    ------
    TypeError, ValueError
        If `factory` makes none.
    """
    if isinstance(factory, Cell):
        raise TypeError(f"cell must be a class of cells, not the cell {factory}: give its class")
    cell, why = None, ""
    if callable(factory):
        try:
            cell = factory(hidden_size)
            why = "" if isinstance(cell, Cell) else f", which returns {cell!r}"
        except TypeError as error:
            why = f": {error}"
    if not isinstance(cell, Cell):
        raise TypeError(
            "cell must be a Cell class, or return a Cell when it is called with hidden_size, got "
            f"{factory!r}{why}"
        )
    kind, parts = type(cell).__name__, getattr(cell, "state", None)
    gates: Any = getattr(cell, "gates", None)
    for name in ("gates", "hidden_size", "state_sizes"):
        if getattr(cell, name, None) is None:
            raise TypeError(
                f"{kind} must have {name}: set gates in the class, and call "
                "super().__init__(hidden_size) in its own __init__"
            )
    if not isinstance(gates, int) or gates < 1:
        raise ValueError(f"{kind}.gates must be an integer >= 1, got {gates!r}")
    if not isinstance(parts, tuple) or not parts or len(set(parts)) < len(parts):
        raise ValueError(f"{kind}.state must be a tuple of different names, got {parts!r}")
    if cell.hidden_size != hidden_size:
        raise ValueError(
            f"{factory!r}, called with hidden_size={hidden_size}, returns a cell of "
            f"{cell.hidden_size} units"
        )
    return cell


@dataclass(frozen=True)
class RNN(Recurrent):
    """Elman layer: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu instead of tanh.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, dropout
        As in `Recurrent`.
    nonlinearity : str
        `tanh` or `relu`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the kind or in the range above.
    """

    cell: Factory = field(init=False, repr=False, compare=False)
    nonlinearity: str = field(default="tanh", kw_only=True)

    def _factory(self) -> Factory:
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {self.nonlinearity!r}")
        return cells.Elman if self.nonlinearity == "tanh" else cells.ReluElman


@dataclass(frozen=True)
class LSTM(Recurrent):
    """LSTM layer; its state is (h, c). The equations stand in `rnn_xp.cells.lstm`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, dropout
        As in `Recurrent`.
    proj_size : int
        P: project h to this size (`weight_hr`), 0 for no projection; less than H.
    peephole : bool
        Whether the gates also see c (`weight_peephole`, (3, H), in the order i f o).

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the kind or in the range above.
    """

    cell: Factory = field(init=False, repr=False, compare=False)
    proj_size: int = field(default=0, kw_only=True)
    peephole: bool = field(default=False, kw_only=True)

    def _factory(self) -> Factory:
        check_flag("peephole", self.peephole)
        check_count("proj_size", self.proj_size, least=0)
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size must be less than hidden_size={self.hidden_size}, got {self.proj_size}"
            )
        inner = cells.PeepholeLSTM if self.peephole else cells.LSTM
        return partial(cells.projected, inner, self.proj_size) if self.proj_size else inner

    def _drawn(
        self, seed: Seed, *, scheme: str = "uniform", forget_bias: float | None = None
    ) -> dict[str, Any]:
        if forget_bias is not None and not self.bias:
            raise ValueError("forget_bias needs bias=True")
        drawn, hidden = super()._drawn(seed, scheme=scheme), self.hidden_size
        for name, value in drawn.items():
            if forget_bias is not None and name.startswith("bias"):
                value[hidden : 2 * hidden] = forget_bias if name.startswith("bias_ih") else 0.0
        return drawn


@dataclass(frozen=True)
class GRU(Recurrent):
    """GRU layer. The equations stand in `rnn_xp.cells.gru`.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, bidirectional, dropout
        As in `Recurrent`.
    reset_after : bool
        Whether the reset gate acts after the recurrent product, as in PyTorch and cuDNN, or
        before it, as in the paper.

    Raises
    ------
    TypeError, ValueError
        If an argument is not of the kind or in the range above.
    """

    cell: Factory = field(init=False, repr=False, compare=False)
    reset_after: bool = field(default=True, kw_only=True)

    def _factory(self) -> Factory:
        check_flag("reset_after", self.reset_after)
        return cells.GRU if self.reset_after else cells.ResetBeforeGRU
