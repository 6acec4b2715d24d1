"""What all layers share: parameters that are drawn once for every library, and a cache."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from rnn_xp.backend import Array, array_namespace, copy_of, on_its_device, placing
from rnn_xp.random import Seed

Params = dict[str, Array]


class Layer(ABC):
    """An immutable description; its parameters are a dict of arrays.

    `forward` returns the result and a cache; with `has_state` the state between them, and it takes
    a state after x. A call returns the same without a cache.
    """

    has_state: ClassVar[bool] = False
    takes: ClassVar[tuple[str, ...]] = ()
    """Of `lengths` and `dropout_seed`: what `forward` takes by name."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter; none, unless the layer says so."""
        return {}

    def init(
        self,
        seed: Seed,
        *,
        backend: Any = "numpy",
        device: Any = None,
        dtype: Any = "float32",
        like: Array = None,
        **options: Any,
    ) -> Params:
        """Draw parameters; the same seed gives the same numbers on every backend.

        Parameters
        ----------
        seed : int
        backend, device
            As in `backend.select`: names, or a namespace and a device of it.
        dtype : str or dtype
            `float32`, `float64`, or what else the library computes in.
        like : array, optional
            The parameters are arrays of its library on its device, of its dtype where that is
            floating-point, else of `dtype`; `backend` and `device` are not looked at.
        options
            Of the kind of layer: `Linear` and `Embedding` draw as PyTorch does and have none. A
            recurrent layer has `scheme`: `uniform` (PyTorch's default), `glorot` or `orthogonal`,
            see `init.SCHEMES`. `LSTM` also has `forget_bias`: the forget gate's bias, for `bias_ih`
            and `bias_hh` together; 1 lets a new network remember (Jozefowicz et al., ICML 2015);
            None leaves what `scheme` draws.

        Returns
        -------
        dict of arrays

        Raises
        ------
        BackendError
            If the backend or device cannot be used.
        TypeError, ValueError
            If the seed is no integer >= 0, the dtype no floating-point one of the library, or an
            option unknown or wrong.
        """
        put = placing(backend, device, dtype, like)
        return {name: put(drawn) for name, drawn in self._drawn(seed, **options).items()}

    def prepare(self, params: Params) -> Any:
        """Return what a call takes in place of `params`: later changes of them do not reach it."""
        return {name: copied(value) for name, value in params.items()}

    @abstractmethod
    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the layer on params and x, and a state; keeps nothing."""

    @abstractmethod
    def forward(self, *args: Any, **options: Any) -> Any:
        """Run the layer on the same for training."""

    @abstractmethod
    def backward(self, *args: Any) -> Any:
        """Return the gradients of params, x and a state, of params, a cache, dy and dstate."""

    @abstractmethod
    def _drawn(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Draw the parameters from a seed, on the host in float64."""


@on_its_device
def copied(array: Array) -> Array:
    """Return a copy on the same device."""
    return copy_of(array_namespace(params=array), array)


@dataclass(slots=True)
class Cache:
    """What the `forward` of a layer without a state keeps for one `backward`."""

    layer: Layer
    kept: Array
    shape: tuple[int, ...]
    """Of x."""
    like: Array
    used: bool = False
