"""Models: compositions of layers, with the interface of a layer.

A `Chain` runs its layers one after the other. Its parameters are the layers', named
`<layer>.<parameter>` as in PyTorch; its state is a dict with the state of each recurrent layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from rnn_xp import cells
from rnn_xp.backend import Array
from rnn_xp.layers import (
    GRU,
    LSTM,
    RNN,
    Dropout,
    Embedding,
    Linear,
    Pool,
    Recurrent,
    lookup,
)
from rnn_xp.layers.base import Layer
from rnn_xp.layers.checks import check_cache, on_host
from rnn_xp.layers.description import build, describe
from rnn_xp.layers.recurrent import Factory
from rnn_xp.random import Seed, spawn

Params = dict[str, Array]
State = dict[str, Any]


@dataclass
class Cache:
    """What `forward` keeps for one `backward`."""

    layer: Chain
    caches: list[Any]
    used: bool = False


@dataclass(frozen=True)
class PreparedChain:
    """Parameters of a chain, folded for inference."""

    layers: Mapping[str, Any]


@dataclass(frozen=True)
class Chain:
    """Layers that run one after the other.

    Parameters
    ----------
    layers : ((name, layer), ...)
        Each name once; it may have dots, as those of PyTorch's nested modules.

    Raises
    ------
    ValueError
        If two layers have one name.
    """

    layers: tuple[tuple[str, Layer], ...]

    def __post_init__(self) -> None:
        names = [name for name, _ in self.layers]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"layers must have different names, but several are {name!r}")

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter."""
        return {
            f"{name}.{parameter}": shape
            for name, layer in self.layers
            for parameter, shape in layer.shapes.items()
        }

    def describe(self) -> list[dict[str, Any]]:
        """Return the layers as plain values; `Chain.build` makes the same chain of them."""
        return [{"name": name, **describe(layer)} for name, layer in self.layers]

    @classmethod
    def build(
        cls, description: Sequence[Mapping[str, Any]], given: Iterable[Factory] = ()
    ) -> Chain:
        """Make a chain from what `describe` returned; `given` are cells that it may name.

        Raises
        ------
        ValueError
            If a layer is of an unknown type, has unknown or wrong arguments, or a cell that is not
            given.
        """
        layers = []
        for entry in description:
            layer = build({k: v for k, v in entry.items() if k != "name"}, given)
            if "name" not in entry:
                raise ValueError(f"the layer {layer} has no name")
            layers.append((str(entry["name"]), layer))
        return cls(tuple(layers))

    def init(self, seed: Seed, **where: Any) -> Params:
        """Draw the parameters of every layer, each from a stream of its own; see `Linear.init`."""
        return {
            f"{name}.{parameter}": value
            for k, (name, layer) in enumerate(self.layers)
            for parameter, value in layer.init(spawn(seed, k), **where).items()
        }

    def prepare(self, params: Params) -> PreparedChain:
        """Fold the parameters for inference: `chain(prepared, x, state)`.

        Later changes of `params` have no effect on it.
        """
        parts = self._parts(params)
        return PreparedChain({name: layer.prepare(parts[name]) for name, layer in self.layers})

    def __call__(
        self,
        params: Params | PreparedChain,
        x: Array,
        state: State | None = None,
        *,
        lengths: Sequence[int] | Array | None = None,
    ) -> tuple[Array, State]:
        """Run the layers; keeps nothing for a backward pass.

        Parameters
        ----------
        params : dict of arrays, or what `prepare` returned
        x : what the first layer takes
        state : the state of each recurrent layer by its name; None is zeros
        lengths : (B,) integers in 1..T, for the recurrent and pooling layers

        Returns
        -------
        y, state
        """
        lengths = on_host(lengths)
        parts = params.layers if isinstance(params, PreparedChain) else self._parts(params)
        states: State = {}
        for name, layer in self.layers:
            given = {"lengths": lengths} if "lengths" in layer.takes else {}
            if layer.has_state:
                x, states[name] = layer(parts[name], x, self._before(state, name), **given)
            else:
                x = layer(parts[name], x, **given)
        return x, states

    def forward(
        self,
        params: Params,
        x: Array,
        state: State | None = None,
        *,
        lengths: Sequence[int] | Array | None = None,
        dropout_seed: Seed | None = None,
    ) -> tuple[Array, State, Cache]:
        """Run the layers for training; see `Recurrent.forward`."""
        lengths = on_host(lengths)
        parts = self._parts(params)
        states: State = {}
        caches: list[Any] = []
        for k, (name, layer) in enumerate(self.layers):
            seed = None if dropout_seed is None else spawn(dropout_seed, k)
            own = {"lengths": lengths, "dropout_seed": seed}
            if layer.has_state:
                x, states[name], cache = self._through(k, parts, x, self._before(state, name), own)
            elif lookup.pays(layer, self._above(k), parts[name], x):
                x, cache = lookup.one_hot(layer, parts[name], x), None
            else:
                x, cache = layer.forward(parts[name], x, **{key: own[key] for key in layer.takes})
            caches.append(cache)
        return x, states, Cache(self, caches)

    def backward(
        self, params: Params, cache: Cache, dy: Array, dstate: State | None = None
    ) -> tuple[Params, Array, State]:
        """Return dparams, dx and the gradient with respect to the initial state."""
        check_cache(self, cache)
        parts = self._parts(params)
        gradients: dict[str, Params] = {}
        states: State = {}
        for (name, layer), kept in zip(reversed(self.layers), reversed(cache.caches), strict=True):
            if layer.has_state:
                after = None if dstate is None else dstate.get(name)
                looked_up = type(kept) is lookup.Cache
                backward = partial(lookup.backward, layer) if looked_up else layer.backward
                gradients[name], dy, states[name] = backward(parts[name], kept, dy, after)
            elif kept is None:  # an embedding that was looked up: dy is the gradient of its weight
                gradients[name], dy = {"weight": dy}, None
            else:
                gradients[name], dy = layer.backward(parts[name], kept, dy)
            cache.used = True  # as that of the layer
        dparams = {
            f"{name}.{parameter}": gradients[name][parameter]
            for name, layer in self.layers
            for parameter in layer.shapes
        }
        return dparams, dy, states

    def _through(
        self, k: int, parts: dict[str, Params], x: Any, state: Any, options: dict[str, Any]
    ) -> Any:
        """Run a layer with a state, and the embedding below it if that left its integers."""
        name, layer = self.layers[k]
        if type(x) is not lookup.OneHot:
            return layer.forward(parts[name], x, state, **options)
        table = parts[self.layers[k - 1][0]]["weight"]
        return lookup.forward(layer, parts[name], table, x, state, **options)

    def _above(self, k: int) -> Layer | None:
        return self.layers[k + 1][1] if k + 1 < len(self.layers) else None

    def _before(self, state: State | None, name: str) -> Any:
        """Return the state of a layer, None for zeros."""
        if state is None:
            return None
        if name not in state:
            raise ValueError(f"state has no {name!r}: expected the state of each recurrent layer")
        return state[name]

    def _parts(self, params: Params) -> dict[str, Params]:
        parts: dict[str, Params] = {name: {} for name, _ in self.layers}
        for full, value in params.items():
            name, _, parameter = full.rpartition(".")
            if name not in parts:
                raise ValueError(f"params has {full}, but there is no layer called {name!r}")
            parts[name][parameter] = value
        return parts


_RECURRENT: dict[str, Callable[..., Recurrent]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
_OTHERS = ("LayerNormLSTM", "LayerNormGRU", "IndRNN", "MinGRU", "MinLSTM", "SLSTM")
_RECURRENT |= {name.lower(): partial(Recurrent, getattr(cells, name)) for name in _OTHERS}
CELLS = tuple(_RECURRENT)
"""The names of cells: of the layers, then of other cells of `rnn_xp.cells`."""


def recurrent_layer(cell: str | Factory) -> Callable[..., Recurrent]:
    """Return what makes recurrent layers of a cell: one of `CELLS`, or as `Recurrent` takes it.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    if callable(cell):
        return partial(Recurrent, cell)
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, or a Cell class, got {cell!r}")
    return _RECURRENT[cell]


def character_model(
    vocabulary_size: int,
    *,
    cell: str | Factory = "gru",
    embedding_size: int = 64,
    hidden_size: int = 256,
    num_layers: int = 1,
    dropout: float = 0.0,
) -> Chain:
    """Return embedding → recurrent layers → linear: from integers (T, B) to logits (T, B, V).

    Dropout stands between the recurrent levels and before the linear layer.

    Raises
    ------
    ValueError
        If `cell` is unknown, or a size is out of range.
    """
    recurrent = recurrent_layer(cell)(embedding_size, hidden_size, num_layers, dropout=dropout)
    return token_chain(vocabulary_size, recurrent, vocabulary_size)


def token_chain(read: int, recurrent: Recurrent, written: int) -> Chain:
    """Return embedding → recurrent → linear, from `read` kinds of tokens to `written` logits.

    The layer's own dropout stands before the linear layer too.
    """
    layers: list[tuple[str, Layer]] = [
        ("embedding", Embedding(read, recurrent.input_size)),
        ("recurrent", recurrent),
        ("linear", Linear(recurrent.output_size, written)),
    ]
    if recurrent.dropout:
        layers.insert(2, ("dropout", Dropout(recurrent.dropout)))
    return Chain(tuple(layers))


def sequence_model(
    input_size: int,
    output_size: int,
    *,
    cell: str | Factory = "gru",
    hidden_size: int = 64,
    num_layers: int = 1,
    bidirectional: bool = False,
    dropout: float = 0.0,
    pool: str = "mean",
) -> Chain:
    """Return recurrent layers → pool → linear: from sequences (T, B, I) to vectors (B, outputs).

    Dropout stands between the recurrent levels and before the linear layer; `pool` is `mean`, over
    a sequence's valid steps, or `last`.

    Raises
    ------
    ValueError
        If `cell` or `pool` is unknown, or a size is out of range.
    """
    recurrent = recurrent_layer(cell)(
        input_size, hidden_size, num_layers, bidirectional=bidirectional, dropout=dropout
    )
    layers: list[tuple[str, Layer]] = [
        ("recurrent", recurrent),
        ("pool", Pool(pool, bidirectional)),
        ("linear", Linear(recurrent.output_size, output_size)),
    ]
    if dropout:
        layers.insert(2, ("dropout", Dropout(dropout)))
    return Chain(tuple(layers))
