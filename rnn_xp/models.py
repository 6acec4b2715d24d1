"""Models: compositions of layers, with the interface of a layer.

A `Chain` runs its layers one after the other. Its parameters are the layers', named
`<layer>.<parameter>` as in PyTorch; its state is a dict with the state of each recurrent layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from rnn_xp.backend import Array, array_namespace, copy_of, on_its_device
from rnn_xp.layers import (
    GRU,
    LSTM,
    RNN,
    Dropout,
    Embedding,
    Linear,
    Pool,
    Prepared,
    Recurrent,
    lookup,
)
from rnn_xp.layers.checks import check_cache, on_host
from rnn_xp.random import Seed, spawn

Params = dict[str, Array]
State = dict[str, Any]
Layer = Recurrent | Linear | Embedding | Dropout | Pool

LAYERS: dict[str, type[Layer]] = {
    kind.__name__: kind for kind in (RNN, LSTM, GRU, Linear, Embedding, Dropout, Pool)
}


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
        return [
            {"name": name, "type": type(layer).__name__, **asdict(layer)}
            for name, layer in self.layers
        ]

    @classmethod
    def build(cls, description: Sequence[Mapping[str, Any]]) -> Chain:
        """Make a chain from what `describe` returned.

        Raises
        ------
        ValueError
            If a layer is of an unknown type, or has unknown or wrong arguments.
        """
        layers = []
        for entry in description:
            arguments = {k: v for k, v in entry.items() if k not in ("name", "type")}
            if entry.get("type") not in LAYERS:
                raise ValueError(f"unknown layer type {entry.get('type')!r}")
            try:
                layers.append((str(entry["name"]), LAYERS[entry["type"]](**arguments)))
            except (TypeError, KeyError) as error:
                raise ValueError(f"wrong arguments for {entry['type']}: {error}") from error
        return cls(tuple(layers))

    def init(
        self,
        seed: Seed,
        *,
        backend: str = "numpy",
        device: str | None = None,
        dtype: str = "float32",
    ) -> Params:
        """Draw the parameters of every layer, each from a stream of its own."""
        return {
            f"{name}.{parameter}": value
            for k, (name, layer) in enumerate(self.layers)
            for parameter, value in layer.init(
                spawn(seed, k), backend=backend, device=device, dtype=dtype
            ).items()
        }

    def prepare(self, params: Params) -> PreparedChain:
        """Fold the parameters for inference: `chain(prepared, x, state)`.

        Later changes of `params` have no effect on it.
        """
        parts = self._parts(params)
        return PreparedChain(
            {
                name: layer.prepare(parts[name])
                if isinstance(layer, Recurrent)
                else {key: _copy(value) for key, value in parts[name].items()}
                for name, layer in self.layers
            }
        )

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
            if isinstance(layer, Recurrent):
                given: Params | Prepared = parts[name]
                before = self._before(state, name)
                x, states[name] = layer(given, x, before, lengths=lengths)
            elif isinstance(layer, Pool):
                x = layer({}, x, lengths=lengths)
            else:
                x = layer(parts[name], x)
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
            cache: Any
            if isinstance(layer, Recurrent):
                before = self._before(state, name)
                own: dict[str, Any] = {"lengths": lengths, "dropout_seed": seed}
                if isinstance(x, lookup.OneHot):
                    table = parts[self.layers[k - 1][0]]["weight"]
                    x, states[name], cache = lookup.forward(
                        layer, parts[name], table, x, before, **own
                    )
                else:
                    x, states[name], cache = layer.forward(parts[name], x, before, **own)
            elif isinstance(layer, Embedding) and lookup.pays(
                layer, self._above(k), parts[name], x
            ):
                x, cache = lookup.one_hot(layer, parts[name], x), None
            elif isinstance(layer, Pool):
                x, cache = layer.forward({}, x, lengths=lengths)
            elif isinstance(layer, Dropout):
                x, cache = layer.forward({}, x, dropout_seed=seed)
            else:
                x, cache = layer.forward(parts[name], x)
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
            if isinstance(layer, Recurrent):
                after = None if dstate is None else dstate.get(name)
                if isinstance(kept, lookup.Cache):
                    found = lookup.backward(layer, parts[name], kept, dy, after)
                else:
                    found = layer.backward(parts[name], kept, dy, after)
                gradients[name], dy, states[name] = found
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


@on_its_device
def _copy(array: Array) -> Array:
    return copy_of(array_namespace(params=array), array)


_RECURRENT: dict[str, type[RNN] | type[LSTM] | type[GRU]] = {"rnn": RNN, "lstm": LSTM, "gru": GRU}
CELLS = tuple(_RECURRENT)


def recurrent_layer(cell: str) -> type[RNN] | type[LSTM] | type[GRU]:
    """Return the recurrent layer called `cell`: rnn, lstm or gru.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    if cell not in CELLS:
        raise ValueError(f"cell must be one of {', '.join(CELLS)}, got {cell!r}")
    return _RECURRENT[cell]


def character_model(
    vocabulary_size: int,
    *,
    cell: str = "gru",
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
        If `cell` is not one of rnn, lstm, gru, or a size is out of range.
    """
    recurrent = recurrent_layer(cell)(embedding_size, hidden_size, num_layers, dropout=dropout)
    return token_chain(vocabulary_size, recurrent, vocabulary_size)


def token_chain(read: int, recurrent: RNN | LSTM | GRU, written: int) -> Chain:
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
    cell: str = "gru",
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
