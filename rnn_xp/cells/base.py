"""What a cell is: the equations of one time step, forward and backward.

A cell sees one step of a batch: x (B, I), a state (B, H) for each of its parts, and the
pre-activations of its gates side by side, (B, G*H), as the products x Wᵀ and h Wᵀ give them. It
never sees time: `recurrence` multiplies by W_ih for all steps at once before the loop, and sums the
gradients of the weights after it, one product each.

A new cell has `gates`, `state` and `step`; `step_backward`, unless its gradient is to be derived by
JAX or PyTorch; and `shapes` and `gradients` where it has other weights than W_ih, W_hh and their
biases.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from rnn_xp.backend import Array, Namespace

Weights = dict[str, Array]
State = tuple[Array, ...]
Kept = tuple[Array, ...]


class Cell(ABC):
    """The equations of one kind of recurrent step.

    Parameters
    ----------
    hidden_size : int
        H.
    output_size : int, optional
        The size of h, where it is not H: a projection's.
    """

    gates: int
    """G, the number of gates."""
    state: tuple[str, ...] = ("h",)
    """The parts of the state; the first one is the output."""

    def __init__(self, hidden_size: int, output_size: int | None = None) -> None:
        self.hidden_size = hidden_size
        self.output_size = output_size or hidden_size
        self.state_sizes = (self.output_size, *(hidden_size for _ in self.state[1:]))

    def __eq__(self, other: object) -> bool:
        # Cells are values: what was compiled for one serves its equals.
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.hidden_size, self.output_size))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.hidden_size})"

    def shapes(self, input_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every weight, in PyTorch's order."""
        rows = self.gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, self.output_size),
        }
        if bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        return shapes

    def initial(self, name: str, drawn: Array) -> Array:
        """Return the initial value of a weight, given what the scheme of the layer draws for it.

        Parameters
        ----------
        name : as in `shapes`
        drawn : of the weight's shape
        """
        return drawn

    @abstractmethod
    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        """Compute one step.

        Parameters
        ----------
        xp : the namespace of all arrays
        w : the weights, by their names in `shapes`
        a : W_ih x + b_ih, (B, G*H)
        state : before the step, (B, H) for each part

        Returns
        -------
        state : after the step
        kept : what `step_backward` and `gradients` need: arrays (B, ...), maybe none
        """

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        """Compute the gradients of one step.

        Parameters
        ----------
        xp, w : as in `step`
        dstate : the gradient with respect to the state after the step, (B, H) for each part
        kept : from `step`

        Returns
        -------
        dstate : the gradient with respect to the state before the step
        da : the gradients of the pre-activations: first that of `a`, (B, G*H); last that of
            W_hh h + b_hh, where it is another one

        Raises
        ------
        NotImplementedError
            If the cell does not have it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no step_backward")

    @property
    def has_backward(self) -> bool:
        """Whether there is a `step_backward`."""
        return type(self).step_backward is not Cell.step_backward

    def gradients(
        self, xp: Namespace, w: Weights, x: Array, h: Array, kept: Sequence[Array], da: Kept
    ) -> Weights:
        """Return the gradients of the weights, summed over N steps of all sequences.

        Parameters
        ----------
        xp, w : as in `step`
        x : (N, I), what W_ih was multiplied by
        h : (N, H), what W_hh was multiplied by: h before each step
        kept : what `step` kept, (N, ...) each
        da : from `step_backward`, (N, ...) each
        """
        return of_product(xp, w, "ih", da[0], x) | of_product(xp, w, "hh", da[-1], h)


def product(w: Weights, name: str, u: Array) -> Array:
    """Return W u + b for rows u (N, K): (N, R).

    W is `weight_<name>` (R, K); b is `bias_<name>` (R,), where there is one.
    """
    made, bias = u @ w[f"weight_{name}"].T, w.get(f"bias_{name}")
    return made if bias is None else made + bias


def of_product(xp: Namespace, w: Weights, name: str, da: Array, u: Array) -> Weights:
    """Return the gradients of W and b in a = W u + b, by their names; see `product`.

    da is the gradient with respect to a, (N, R); u the rows that W was multiplied by, (N, K).
    """
    made = {f"weight_{name}": da.T @ u}
    if f"bias_{name}" in w:
        made[f"bias_{name}"] = total(xp, da)
    return made


def total(xp: Namespace, a: Array) -> Array:
    """Return the sum of rows (N, ...): (...), in their dtype."""
    return xp.sum(a, axis=0, dtype=a.dtype)


def split(a: Array, count: int) -> list[Array]:
    """Return the `count` gates (..., H) that lie side by side in a (..., count * H)."""
    size = a.shape[-1] // count
    return [a[..., k * size : (k + 1) * size] for k in range(count)]


def sigmoid(xp: Namespace, a: Array) -> Array:
    """Return σ(a) = (1 + tanh(a / 2)) / 2, which cannot overflow."""
    return 0.5 * xp.tanh(0.5 * a) + 0.5


def log_sigmoid(xp: Namespace, a: Array) -> Array:
    """Return log σ(a) = -log(1 + exp(-a)), which cannot overflow."""
    return -xp.logaddexp(xp.zeros_like(a), -a)
