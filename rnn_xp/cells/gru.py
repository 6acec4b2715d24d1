"""The GRU cell (Cho et al., EMNLP 2014), in two forms.

    r = σ(W_ir x + b_ir + W_hr h + b_hr)            reset gate
    z = σ(W_iz x + b_iz + W_hz h + b_hz)            update gate
    n = tanh(W_in x + b_in + r ∘ (W_hn h + b_hn))   candidate, reset after the product
    n = tanh(W_in x + b_in + W_hn (r ∘ h) + b_hn)   candidate, reset before the product
    h' = (1 - z) ∘ n + z ∘ h

The reset after the product is PyTorch's and cuDNN's form; the one before is the paper's.

Backward, with dh the gradient with respect to h', q = W_hn h + b_hn and p = r ∘ q:

    da_n = dh ∘ (1 - z) (1 - n²)
    da_z = dh ∘ (h - n) z (1 - z)
    reset after                                 reset before
    dq   = da_n ∘ r                             du   = W_hnᵀ da_n              (u = r ∘ h)
    da_r = da_n ∘ p (1 - r)                     da_r = du ∘ h r (1 - r)
    dh   = dh ∘ z + W_hhᵀ (da_r, da_z, dq)      dh   = dh ∘ z + du ∘ r + W_hr,zᵀ (da_r, da_z)
"""

from __future__ import annotations

from collections.abc import Sequence

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Cell, Kept, State, Weights, product, sigmoid, split


class GRU(Cell):
    """The GRU cell that resets after the recurrent product."""

    gates = 3

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        (h,) = state
        a_r, a_z, a_n = split(a, 3)
        q_r, q_z, q = split(product(w, "hh", h), 3)
        r, z = sigmoid(xp, a_r + q_r), sigmoid(xp, a_z + q_z)
        p = r * q
        n = xp.tanh(a_n + p)
        return ((1 - z) * n + z * h,), (r, z, n, p, h)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        (dh,), (r, z, n, p, h) = dstate, kept
        da_n = dh * (1 - z) * (1 - n * n)
        da_z = dh * (h - n) * z * (1 - z)
        da_r = da_n * p * (1 - r)
        da = xp.concat((da_r, da_z, da_n), axis=1)
        da_hh = xp.concat((da_r, da_z, da_n * r), axis=1)
        return (dh * z + da_hh @ w["weight_hh"],), (da, da_hh)


class ResetBeforeGRU(Cell):
    """The GRU cell that resets before the recurrent product."""

    gates = 3

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        (h,), (w_rz, w_n) = state, self._parts(w)
        a_r, a_z, a_n = split(a, 3)
        q_r, q_z = split(product(w_rz, "hh", h), 2)
        r, z = sigmoid(xp, a_r + q_r), sigmoid(xp, a_z + q_z)
        u = r * h
        n = xp.tanh(a_n + product(w_n, "hh", u))
        return ((1 - z) * n + z * h,), (r, z, n, u, h)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        (dh,), (r, z, n, _, h), (w_rz, w_n) = dstate, kept, self._parts(w)
        da_n = dh * (1 - z) * (1 - n * n)
        da_z = dh * (h - n) * z * (1 - z)
        du = da_n @ w_n["weight_hh"]
        da_r = du * h * r * (1 - r)
        da_rz = xp.concat((da_r, da_z), axis=1)
        dh = dh * z + du * r + da_rz @ w_rz["weight_hh"]
        return (dh,), (xp.concat((da_rz, da_n), axis=1),)

    def gradients(
        self, xp: Namespace, w: Weights, x: Array, h: Array, kept: Sequence[Array], da: Kept
    ) -> Weights:
        made, size = super().gradients(xp, w, x, h, kept, da), 2 * self.hidden_size
        through_u = da[0][:, size:].T @ kept[3]
        made["weight_hh"] = xp.concat((made["weight_hh"][:size, :], through_u), axis=0)
        return made

    def _parts(self, w: Weights) -> tuple[Weights, Weights]:
        """Return the weights of the product with h, for r and z, and of that with u, for n."""
        own, size = {k: a for k, a in w.items() if k.endswith("hh")}, 2 * self.hidden_size
        return (
            {k: a[:size, ...] for k, a in own.items()},
            {k: a[size:, ...] for k, a in own.items()},
        )
