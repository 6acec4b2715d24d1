"""The sLSTM cell (Beck et al., "xLSTM: Extended Long Short-Term Memory", 2024, arXiv 2405.04517).

    a_i, a_f, a_z, a_o = W_ih x + b_ih + W_hh h
    p  = log σ(a_f) + m                 the past's weight, as a logarithm; -∞ unless n > 0
    m' = max(p, a_i)                    stabiliser
    i  = exp(a_i - m')                  input gate, exponential
    f  = exp(p - m')                    forget gate, σ(a_f) in the paper's choice of σ or exp
    z  = tanh(a_z)                      candidate
    o  = σ(a_o)                         output gate
    c' = f ∘ c + i ∘ z
    n' = f ∘ n + i                      normaliser
    h' = o ∘ q, q = c' / n'

No argument of exp is above 0. The past is c exp(m), n exp(m); where n is 0 it is empty and weighs
nothing. So after a state of zeros the first step has i = 1 and n' = 1, and no later n' is below 1.

W_hh is block-diagonal: a unit sees the D = H / heads units of its own head. `weight_hh` (4H, D) is
the blocks (D, D) one below the other: for each gate, those of all heads.

Backward, with dh, dc, dn, dm the gradients with respect to h', c', n', m'; at a tie, p = a_i, the
gradient of the max goes to a_i:

    dc   = dc + dh ∘ o / n'
    dn   = dn - dh ∘ o q / n'
    e_i  = (dc ∘ z + dn) i              with respect to a_i - m'
    e_f  = (dc ∘ c + dn ∘ n) f          with respect to p - m'
    da_i = e_i       where p > a_i, else dm - e_f
    dp   = dm - e_i  where p > a_i, else e_f
    da_f = dp ∘ (1 - σ(a_f))
    da_z = dc ∘ i (1 - z²)
    da_o = dh ∘ q o (1 - o)
    dh, dc, dn, dm = W_hhᵀ da, dc ∘ f, dn ∘ f, dp
"""

from __future__ import annotations

from collections.abc import Sequence

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Cell, Kept, State, Weights, log_sigmoid, of_product, sigmoid, split


class SLSTM(Cell):
    """The sLSTM cell; each of its `heads` is recurrent in itself.

    Raises
    ------
    ValueError
        If `heads` does not divide `hidden_size`.
    """

    gates = 4
    state = ("h", "c", "n", "m")

    def __init__(self, hidden_size: int, heads: int = 1) -> None:
        if heads < 1 or hidden_size % heads:
            raise ValueError(f"heads must divide hidden_size={hidden_size}, got {heads}")
        super().__init__(hidden_size)
        self.heads = heads

    def shapes(self, input_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
        shapes = super().shapes(input_size, bias)
        shapes["weight_hh"] = (4 * self.hidden_size, self.hidden_size // self.heads)
        shapes.pop("bias_hh", None)
        return shapes

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        h, c, n, m = state
        seen = self._by_head(xp, h) @ xp.permute_dims(self._blocks(xp, w), (0, 1, 3, 2))
        i, f, z, o = split(a + self._side_by_side(xp, seen), 4)
        p = xp.where(n > 0, log_sigmoid(xp, f) + m, xp.full_like(m, -xp.inf))
        is_past = p > i
        m = xp.where(is_past, p, i)
        i, not_f, f = xp.exp(i - m), 1 - sigmoid(xp, f), xp.exp(p - m)
        z, o = xp.tanh(z), sigmoid(xp, o)
        new_c, new_n = f * c + i * z, f * n + i
        q = new_c / new_n
        return (o * q, new_c, new_n, m), (i, f, z, o, not_f, is_past, c, n, q, new_n)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        (dh, dc, dn, dm), (i, f, z, o, not_f, is_past, c, n, q, new_n) = dstate, kept
        dc = dc + dh * o / new_n
        dn = dn - dh * o * q / new_n
        e_i = (dc * z + dn) * i
        e_f = (dc * c + dn * n) * f
        da_i = xp.where(is_past, e_i, dm - e_f)
        dp = xp.where(is_past, dm - e_i, e_f)
        da_f = dp * not_f
        da_z = dc * i * (1 - z * z)
        da_o = dh * q * o * (1 - o)
        da = xp.concat((da_i, da_f, da_z, da_o), axis=1)
        seen = self._by_head(xp, da) @ self._blocks(xp, w)
        dh = self._side_by_side(xp, xp.sum(seen, axis=0, keepdims=True, dtype=seen.dtype))
        return (dh, dc * f, dn * f, dp), (da,)

    def gradients(
        self, xp: Namespace, w: Weights, x: Array, h: Array, kept: Sequence[Array], da: Kept
    ) -> Weights:
        columns = xp.permute_dims(self._by_head(xp, da[0]), (0, 1, 3, 2))
        blocks = xp.reshape(columns @ self._by_head(xp, h), w["weight_hh"].shape)
        return of_product(xp, w, "ih", da[0], x) | {"weight_hh": blocks}

    def _blocks(self, xp: Namespace, w: Weights) -> Array:
        """Return W_hh as (4, heads, D, D)."""
        return xp.reshape(w["weight_hh"], (4, self.heads, -1, self.hidden_size // self.heads))

    def _by_head(self, xp: Namespace, u: Array) -> Array:
        """Return gates that lie side by side, (B, G*H), as (G, heads, B, D)."""
        shape = u.shape[0], -1, self.heads, self.hidden_size // self.heads
        return xp.permute_dims(xp.reshape(u, shape), (1, 2, 0, 3))

    def _side_by_side(self, xp: Namespace, u: Array) -> Array:
        """Undo `_by_head`."""
        return xp.reshape(xp.permute_dims(u, (2, 0, 1, 3)), (u.shape[2], -1))
