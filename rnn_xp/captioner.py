"""The captioner: a recurrent network that writes about a picture, one word at a time.

The picture sets the state in which the recurrent layers begin; from there they read the words
written so far and predict the next one (Vinyals et al., "Show and tell", CVPR 2015, where the
picture is read as a first word instead).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rnn_xp.backend import Array, array_namespace, on_its_device
from rnn_xp.layers import Embedding, Linear, Recurrent
from rnn_xp.layers.checks import check_cache, use_once
from rnn_xp.layers.description import build, describe
from rnn_xp.layers.recurrent import Factory
from rnn_xp.models import Chain, Params, PreparedChain, State, recurrent_layer, token_chain
from rnn_xp.random import Seed, spawn

END = 0
"""The number of the word that ends a caption."""

_IMAGE = "image."


@dataclass
class Cache:
    """What `forward` keeps for one `backward`."""

    layer: Captioner
    image: Any
    text: Any
    used: bool = False


@dataclass(frozen=True)
class PreparedCaptioner:
    """Parameters of a captioner, folded for inference."""

    image: Params
    text: PreparedChain


@dataclass(frozen=True)
class Captioner:
    """A linear layer from a picture to the initial state, and a chain from words to logits.

    With the picture v, the embedding e of the word before, and one level of recurrent layers:

        s_0 = W_image v + b_image
        s_t = recurrent(e(w_{t-1}), s_{t-1})
        p(w_t | w_{<t}, v) = softmax(W_linear h_t + b_linear)

    The state is h, or h and c of an LSTM, of every level: s_0 holds them one after the other.
    A caption's words are numbers 1..V-1, and `END` follows the last one; before the first one the
    model reads a word of its own, V, that it never writes. The parameters are `image.weight`,
    `image.bias`, and the chain's under their own names.

    Parameters
    ----------
    image : Linear
        From P pixels to all numbers of the initial state.
    text : Chain
        From integers (T, B) in 0..V to logits (T, B, V): an embedding first, a linear layer last,
        and one recurrent layer of one direction between them.

    Raises
    ------
    ValueError
        If the chain is of other layers, or the sizes do not fit each other.
    """

    image: Linear
    text: Chain

    def __post_init__(self) -> None:
        layers = [layer for _, layer in self.text.layers]
        first, last = (layers[0], layers[-1]) if layers else (None, None)
        if not isinstance(first, Embedding) or not isinstance(last, Linear):
            raise ValueError("a captioner's chain begins with an Embedding, and ends with a Linear")
        found: list[Any] = [layer for layer in layers if layer.has_state]
        if len(found) != 1 or found[0].bidirectional:
            raise ValueError("a captioner's chain has one recurrent layer, of one direction")
        size = found[0].num_layers * sum(found[0].equations.state_sizes)
        if self.image.output_size != size:
            raise ValueError(
                f"the image layer has output_size={self.image.output_size}, but the state has "
                f"{size} numbers"
            )
        if first.num_embeddings != last.output_size + 1:
            raise ValueError(
                f"the embedding has {first.num_embeddings} words, expected one more than the "
                f"{last.output_size} of the linear layer"
            )

    @property
    def vocabulary_size(self) -> int:
        """V: the words that the model can write, `END` among them."""
        last = self.text.layers[-1][1]
        assert isinstance(last, Linear)
        return last.output_size

    @property
    def _recurrent(self) -> tuple[str, Recurrent]:
        found: Any = next(each for each in self.text.layers if each[1].has_state)
        return found  # type: ignore[no-any-return]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter."""
        image = {_IMAGE + name: shape for name, shape in self.image.shapes.items()}
        return image | self.text.shapes

    def describe(self) -> dict[str, Any]:
        """Return the layers as plain values; `Captioner.build` makes the same model of them."""
        return {
            "type": "Captioner",
            "image": describe(self.image),
            "text": self.text.describe(),
        }

    @classmethod
    def build(cls, description: Mapping[str, Any], given: Iterable[Factory] = ()) -> Captioner:
        """Make a captioner from what `describe` returned; `given` are cells that it may name.

        Raises
        ------
        ValueError
            If a part is missing, or has unknown or wrong arguments.
        """
        try:
            image: Any = build({"type": "Linear", **description["image"]})
            return cls(image, Chain.build(description["text"], given))
        except (TypeError, KeyError) as error:
            raise ValueError(f"wrong arguments for Captioner: {error}") from error

    def init(self, seed: Seed, **where: Any) -> Params:
        """Draw the parameters of both parts, each from a stream of its own; see `Linear.init`."""
        image = self.image.init(spawn(seed, 0), **where)
        text = self.text.init(spawn(seed, 1), **where)
        return {_IMAGE + name: value for name, value in image.items()} | text

    def prepare(self, params: Params) -> PreparedCaptioner:
        """Fold the parameters for inference: `start` and `step` take the result."""
        image, text = _split(params)
        return PreparedCaptioner(image, self.text.prepare(text))

    def start(self, prepared: PreparedCaptioner, images: Array) -> State:
        """Return the state after seeing pictures (B, P), before the first word."""
        return self._state(self.image(prepared.image, images))

    def step(self, prepared: PreparedCaptioner, words: Array, state: State) -> tuple[Array, State]:
        """Read one more word of each caption, integers (B,): logits (B, V) of the next, state."""
        logits, state = self.text(prepared.text, words[None, :], state)
        return logits[0, ...], state

    def forward(
        self,
        params: Params,
        images: Array,
        words: Array,
        *,
        lengths: Sequence[int] | Array | None = None,
        dropout_seed: Seed | None = None,
    ) -> tuple[Array, Cache]:
        """Run the model for training, on captions that are known: teacher forcing.

        Parameters
        ----------
        params : dict of arrays
        images : (B, P), of the parameters' dtype
        words : (T, B) integers
            The word before each word that is to be predicted.
        lengths : (B,) integers in 1..T, optional
            What is past a caption's end has no effect; its logits say nothing.
        dropout_seed : int, optional
            As in `Recurrent.forward`.

        Returns
        -------
        logits : (T, B, V)
        cache
            Belongs to one `backward`.
        """
        image, text = _split(params)
        first, image_cache = self.image.forward(image, images)
        logits, _, text_cache = self.text.forward(
            text, words, self._state(first), lengths=lengths, dropout_seed=dropout_seed
        )
        return logits, Cache(self, image_cache, text_cache)

    def backward(self, params: Params, cache: Cache, dlogits: Array) -> tuple[Params, Array]:
        """Return dparams and the gradient with respect to the pictures, (B, P)."""
        check_cache(self, cache)
        image, text = _split(params)
        dtext, _, dstate = self.text.backward(text, cache.text, dlogits)
        use_once(cache)
        dimage, dimages = self.image.backward(image, cache.image, self._flat(dstate))
        return {_IMAGE + name: value for name, value in dimage.items()} | dtext, dimages

    @on_its_device
    def _state(self, flat: Array) -> State:
        """Cut (B, S) into the parts of the recurrent layer's state, (L, B, size) each."""
        xp = array_namespace(flat=flat)
        name, layer = self._recurrent
        parts, start = [], 0
        for size in layer.equations.state_sizes:
            end = start + layer.num_layers * size
            part = xp.reshape(flat[:, start:end], (-1, layer.num_layers, size))
            parts.append(xp.permute_dims(part, (1, 0, 2)))
            start = end
        return {name: parts[0] if len(parts) == 1 else tuple(parts)}

    @on_its_device
    def _flat(self, state: State) -> Array:
        """Undo `_state`."""
        (value,) = state.values()
        parts = value if isinstance(value, tuple) else (value,)
        xp = array_namespace(state=parts[0])
        rows = [
            xp.reshape(xp.permute_dims(p, (1, 0, 2)), (p.shape[1], p.shape[0] * p.shape[2]))
            for p in parts
        ]
        return xp.concat(rows, axis=1)


def _split(params: Params) -> tuple[Params, Params]:
    """Return the parameters of the image layer, and the chain's."""
    image = {k.removeprefix(_IMAGE): v for k, v in params.items() if k.startswith(_IMAGE)}
    return image, {k: v for k, v in params.items() if not k.startswith(_IMAGE)}


def caption_model(
    image_size: int,
    vocabulary_size: int,
    *,
    cell: str | Factory = "gru",
    embedding_size: int = 32,
    hidden_size: int = 128,
    num_layers: int = 1,
    dropout: float = 0.0,
) -> Captioner:
    """Return a captioner of pictures of `image_size` numbers, writing V = `vocabulary_size` words.

    Dropout stands between the recurrent levels and before the linear layer.

    Raises
    ------
    ValueError
        If `cell` is unknown, or a size is out of range.
    """
    recurrent = recurrent_layer(cell)(embedding_size, hidden_size, num_layers, dropout=dropout)
    text = token_chain(vocabulary_size + 1, recurrent, vocabulary_size)
    state_size = num_layers * sum(recurrent.equations.state_sizes)
    return Captioner(Linear(image_size, state_size), text)
