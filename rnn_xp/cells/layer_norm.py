"""The LSTM and GRU cells with layer normalisation (Ba, Kiros & Hinton, 2016, arXiv 1607.06450).

    LN(u) = (u - mean u) / √(mean (u - mean u)² + ε)    over the units of one sequence
    x̂ = γ_x ∘ LN(W_ih x) + β_x
    ĥ = γ_h ∘ LN(W_hh h) + β_h

The LSTM, as in `lstm`, each LN over all four gates, and one over c':

    i, f, g, o = σ, σ, tanh, σ of x̂ + ĥ
    c' = f ∘ c + i ∘ g
    h' = o ∘ tanh(γ_c ∘ LN(c') + β_c)

The GRU, as in `gru` (z is 1 minus the paper's), one LN over r and z, another one over n:

    r, z = σ of x̂ + ĥ
    n  = tanh(x̂_n + r ∘ ĥ_n)
    h' = (1 - z) ∘ n + z ∘ h

γ is `weight_ln_ih`, `weight_ln_hh` or `weight_ln_c`, 1 at first; β is `bias_ln_...`, 0 at first.
The paper's b would add nothing to β_x + β_h: there is none, nor any bias inside LN.

Backward, beside `lstm` and `gru`, with y = γ ∘ n + β, n = LN(u), s = 1 / √(...):

    dn = dy ∘ γ    dγ = Σ dy ∘ n    dβ = Σ dy
    du = s (dn - mean dn - n mean (dn ∘ n))
"""

from __future__ import annotations

from collections.abc import Sequence

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Cell, Kept, State, Weights, product, sigmoid, split, total

EPSILON = 1e-5
"""ε, what keeps LN of equal units from dividing by zero."""


class _LayerNorm(Cell):
    """What both share: first of what is kept are the n of `norms`; da[1:-1] are their dy."""

    norms: tuple[str, ...]

    def shapes(self, input_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
        size, kinds = self.hidden_size, ("weight", "bias") if bias else ("weight",)
        sizes = {name: size if name == "c" else self.gates * size for name in self.norms}
        return super().shapes(input_size, False) | {
            f"{kind}_ln_{name}": (size,) for kind in kinds for name, size in sizes.items()
        }

    def initial(self, name: str, drawn: Array) -> Array:
        first = 1 if name.startswith("weight") else 0
        return 0 * drawn + first if "_ln_" in name else drawn

    def gradients(
        self, xp: Namespace, w: Weights, x: Array, h: Array, kept: Sequence[Array], da: Kept
    ) -> Weights:
        made = super().gradients(xp, w, x, h, kept, da)
        norms = list(zip(self.norms, da[1:-1], kept, strict=False))
        made |= {f"weight_ln_{name}": total(xp, dy * n) for name, dy, n in norms}
        biases = {f"bias_ln_{name}": total(xp, dy) for name, dy, _ in norms}
        return made | {name: db for name, db in biases.items() if name in w}


class LayerNormLSTM(_LayerNorm):
    """The LSTM cell with layer normalisation."""

    gates = 4
    state = ("h", "c")
    norms = ("ih", "hh", "c")

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        h, c = state
        (n_x, s_x), (n_h, s_h) = normal(xp, a), normal(xp, product(w, "hh", h))
        i, f, g, o = split(scaled(w, "ln_ih", n_x) + scaled(w, "ln_hh", n_h), 4)
        i, f, g, o = sigmoid(xp, i), sigmoid(xp, f), xp.tanh(g), sigmoid(xp, o)
        new_c = f * c + i * g
        n_c, s_c = normal(xp, new_c)
        tanh_c = xp.tanh(scaled(w, "ln_c", n_c))
        return (o * tanh_c, new_c), (n_x, n_h, n_c, s_x, s_h, s_c, i, f, g, o, c, tanh_c)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        (dh, dc), (n_x, n_h, n_c, s_x, s_h, s_c, i, f, g, o, c, tanh_c) = dstate, kept
        dy_c = dh * o * (1 - tanh_c * tanh_c)
        dc = dc + of_normal(xp, dy_c * w["weight_ln_c"], n_c, s_c)
        da_i = dc * g * i * (1 - i)
        da_f = dc * c * f * (1 - f)
        da_g = dc * i * (1 - g * g)
        da_o = dh * tanh_c * o * (1 - o)
        dy = xp.concat((da_i, da_f, da_g, da_o), axis=1)
        da = of_normal(xp, dy * w["weight_ln_ih"], n_x, s_x)
        da_hh = of_normal(xp, dy * w["weight_ln_hh"], n_h, s_h)
        return (da_hh @ w["weight_hh"], dc * f), (da, dy, dy, dy_c, da_hh)


class LayerNormGRU(_LayerNorm):
    """The GRU cell with layer normalisation."""

    gates = 3
    norms = ("ih", "hh")

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        (h,) = state
        (n_x, s_x), (n_h, s_h) = self._normal(xp, a), self._normal(xp, product(w, "hh", h))
        a_r, a_z, a_n = split(scaled(w, "ln_ih", n_x), 3)
        q_r, q_z, q = split(scaled(w, "ln_hh", n_h), 3)
        r, z = sigmoid(xp, a_r + q_r), sigmoid(xp, a_z + q_z)
        n = xp.tanh(a_n + r * q)
        return ((1 - z) * n + z * h,), (n_x, n_h, s_x, s_h, r, z, n, q, h)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        (dh,), (n_x, n_h, s_x, s_h, r, z, n, q, h) = dstate, kept
        da_n = dh * (1 - z) * (1 - n * n)
        da_z = dh * (h - n) * z * (1 - z)
        da_r = da_n * q * r * (1 - r)
        dy = xp.concat((da_r, da_z, da_n), axis=1)
        dy_hh = xp.concat((da_r, da_z, da_n * r), axis=1)
        da = self._of_normal(xp, dy * w["weight_ln_ih"], n_x, s_x)
        da_hh = self._of_normal(xp, dy_hh * w["weight_ln_hh"], n_h, s_h)
        return (dh * z + da_hh @ w["weight_hh"],), (da, dy, dy_hh, da_hh)

    def _normal(self, xp: Namespace, u: Array) -> list[Array]:
        made = [normal(xp, part) for part in self._parts(u)]
        return [xp.concat(each, axis=1) for each in zip(*made, strict=True)]

    def _of_normal(self, xp: Namespace, *arrays: Array) -> Array:
        parts = zip(*(self._parts(each) for each in arrays), strict=True)
        return xp.concat([of_normal(xp, *each) for each in parts], axis=1)

    def _parts(self, u: Array) -> tuple[Array, Array]:
        """Return the columns that are normalised together: those of r and z, and those of n."""
        size = 2 * self.hidden_size
        return u[:, :size], u[:, size:]


def normal(xp: Namespace, u: Array) -> tuple[Array, Array]:
    """Return n = LN(u) for rows u, and s = 1 / √(...) for each unit."""
    u = u - xp.mean(u, axis=1, keepdims=True)
    s = 1 / xp.sqrt(xp.mean(u * u, axis=1, keepdims=True) + EPSILON)
    return u * s, s + xp.zeros_like(u)


def of_normal(xp: Namespace, dn: Array, n: Array, s: Array) -> Array:
    """Return du; see `normal`."""
    mean, along = xp.mean(dn, axis=1, keepdims=True), xp.mean(dn * n, axis=1, keepdims=True)
    return s * (dn - mean - n * along)


def scaled(w: Weights, name: str, n: Array) -> Array:
    """Return γ ∘ n + β: `weight_<name>` and `bias_<name>`, where there is one."""
    made = n * w[f"weight_{name}"]
    return made + w[f"bias_{name}"] if f"bias_{name}" in w else made
