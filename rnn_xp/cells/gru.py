"""The GRU cell (Cho et al., EMNLP 2014), in two forms.

    r = σ(W_ir x + b_ir + W_hr h + b_hr)            reset gate
    z = σ(W_iz x + b_iz + W_hz h + b_hz)            update gate
    n = tanh(W_in x + b_in + r ∘ (W_hn h + b_hn))   candidate, reset after the product
    n = tanh(W_in x + b_in + W_hn (r ∘ h) + b_hn)   candidate, reset before the product
    h' = (1 - z) ∘ n + z ∘ h

The reset after the product is PyTorch's and cuDNN's form; the one before is the paper's.

Backward, with dh the gradient with respect to h' and q = W_hn h + b_hn:

    da_n = dh ∘ (1 - z) (1 - n²)
    da_z = dh ∘ (h - n) z (1 - z)
    reset after                                 reset before
    dq   = da_n ∘ r                             du   = W_hnᵀ da_n              (u = r ∘ h)
    da_r = da_n ∘ q r (1 - r)                   da_r = du ∘ h r (1 - r)
    dh   = dh ∘ z + W_hhᵀ (da_r, da_z, dq)      dh   = dh ∘ z + du ∘ r + W_hr,zᵀ (da_r, da_z)

As in `lstm`, the sigmoid gates' rows are halved in the forward weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from rnn_xp.backend import Array, Namespace, Operations
from rnn_xp.cells.base import (
    Cell,
    Chunk,
    Folded,
    Weights,
    columns,
    dense_gradients,
    rows,
    scaled_fold,
    sigmoid_of_half,
    sigmoid_slope,
    tanh_slope,
)


class GRU(Cell):
    """The GRU cell that resets after the recurrent product."""

    gates = 3
    extra_count = 1  # q = W_hn h + b_hn

    def fold(self, xp: Namespace, weights: Weights) -> Folded:
        folded = scaled_fold(xp, weights, (0.5, 0.5, 1.0))
        if "bias_hh" not in weights:
            return folded
        # b_hn stands inside the reset product; the two others join the input's biases.
        b_ih = xp.reshape(weights["bias_ih"], (3, -1, 1))
        b_hh = xp.reshape(weights["bias_hh"], (3, -1, 1))
        bias = xp.concat(((b_ih[:2, ...] + b_hh[:2, ...]) * 0.5, b_ih[2:, ...]), axis=0)
        return folded._replace(bias=bias, extra=(b_hh[2, ...],))

    def workspace(self, ops: Operations, like: Array, batch: int) -> tuple[Array, ...]:
        return (
            ops.buffer((3, self.hidden_size, batch), like),
            ops.buffer((self.hidden_size, batch), like),
        )

    def step(
        self,
        ops: Operations,
        w: Folded,
        pre: Array,
        state: Sequence[Array],
        out: Sequence[Array],
        extras: Sequence[Array],
        work: Sequence[Array],
    ) -> tuple[Array, Sequence[Array], Sequence[Array]]:
        (h,) = state
        product = ops.matmul_blocks(w.weight_hh, h, 3, out=work[0])
        q = product[2, ...]
        q = ops.add(q, w.extra[0], out=extras[0]) if w.extra else ops.copy(q, out=extras[0])
        a_rz, a_n = pre[:2, ...], pre[2:, ...]
        rz = sigmoid_of_half(ops, ops.add(a_rz, product[:2, ...], out=a_rz))
        r, z = ops.unstack(rz)
        n = ops.tanh(ops.add(a_n, ops.multiply(r, q, out=work[1]), out=a_n), out=a_n)
        return ops.joined((rz, n), out=pre), (interpolate(ops, n[0, ...], z, h, out[0]),), (q,)

    def factors(self, ops: Operations, weights: Weights, chunk: Chunk) -> list[Array]:
        (r, z, n), (h,), (q,) = gates_of(chunk), chunk.before, chunk.extras
        # n r z q: the first three are the input's, the last three the recurrence's.
        da, (da_n, da_r, da_z, dq) = ops.beside(4, n)
        one_less_z = ops.subtract(1.0, z, out=da_z)
        da_n = ops.multiply(tanh_slope(ops, n, out=da_n), one_less_z, out=da_n)
        slope = ops.multiply(one_less_z, z, out=da_z)
        da_z = ops.multiply(slope, ops.subtract(h, n, out=dq), out=da_z)
        dq = ops.multiply(da_n, r, out=dq)
        da_r = ops.multiply(ops.multiply(ops.subtract(1.0, r, out=da_r), q, out=da_r), dq, out=da_r)
        return [ops.stacked((da_n, da_r, da_z, dq), out=da), z]

    def step_backward(
        self,
        ops: Operations,
        w: Sequence[Array],
        local: Sequence[Array],
        dstate: Sequence[Array],
        work: Sequence[Array],
    ) -> tuple[Sequence[Array], Sequence[Array]]:
        (dh,) = dstate
        da, z = local
        da = ops.multiply(da, dh, out=da)
        through_z = ops.multiply(dh, z, out=z)
        dh = ops.matmul(w[0], ops.flat(da[1:, ...]), out=work[0])
        return (da,), (ops.add(dh, through_z, out=work[0]),)

    def gradients(
        self, ops: Operations, weights: Weights, chunk: Chunk, made: Sequence[Array]
    ) -> tuple[Weights, Array]:
        xp, hidden = ops.xp, self.hidden_size
        da = columns(xp, made[0])
        da_nrz, da_hh = da[: 3 * hidden, :], da[hidden:, :]
        gradients = dense_gradients(
            xp, da_nrz, rows(xp, chunk.x, channels_last=True), "ih", weights
        )
        gradients = {
            name: xp.concat((gradient[hidden:, ...], gradient[:hidden, ...]), axis=0)
            for name, gradient in gradients.items()
        }
        gradients |= dense_gradients(xp, da_hh, rows(xp, chunk.before[0]), "hh", weights)
        weight = weights["weight_ih"]
        weight_nrz = xp.concat((weight[2 * hidden :, :], weight[: 2 * hidden, :]), axis=0)
        return gradients, da_nrz.T @ weight_nrz


class ResetBeforeGRU(Cell):
    """The GRU cell that resets before the recurrent product."""

    gates = 3
    extra_count = 1  # u = r ∘ h

    def fold(self, xp: Namespace, weights: Weights) -> Folded:
        folded = scaled_fold(xp, weights, (0.5, 0.5, 1.0))
        split = 2 * self.hidden_size
        weight = folded.weight_hh
        return folded._replace(weight_hh=weight[:split, :], extra=(weight[split:, :],))

    def workspace(self, ops: Operations, like: Array, batch: int) -> tuple[Array, ...]:
        return (
            ops.buffer((2, self.hidden_size, batch), like),
            ops.buffer((1, self.hidden_size, batch), like),
        )

    def step(
        self,
        ops: Operations,
        w: Folded,
        pre: Array,
        state: Sequence[Array],
        out: Sequence[Array],
        extras: Sequence[Array],
        work: Sequence[Array],
    ) -> tuple[Array, Sequence[Array], Sequence[Array]]:
        (h,) = state
        a_rz, a_n = pre[:2, ...], pre[2:, ...]
        product = ops.matmul_blocks(w.weight_hh, h, 2, out=work[0])
        rz = sigmoid_of_half(ops, ops.add(a_rz, product, out=a_rz))
        r, z = ops.unstack(rz)
        u = ops.multiply(r, h, out=extras[0])
        a_n = ops.add(a_n, ops.matmul_blocks(w.extra[0], u, 1, out=work[1]), out=a_n)
        n = ops.tanh(a_n, out=a_n)
        return ops.joined((rz, n), out=pre), (interpolate(ops, n[0, ...], z, h, out[0]),), (u,)

    def transposed(self, ops: Operations, weights: Weights) -> tuple[Array, ...]:
        weight, split = weights["weight_hh"], 2 * self.hidden_size
        return ops.contiguous(weight[:split, :].T), ops.contiguous(weight[split:, :].T)

    def workspace_backward(self, ops: Operations, like: Array, batch: int) -> tuple[Array, ...]:
        shape = (self.hidden_size, batch)
        return ops.buffer(shape, like), ops.buffer(shape, like)

    def factors(self, ops: Operations, weights: Weights, chunk: Chunk) -> list[Array]:
        (r, z, n), (h,) = gates_of(chunk), chunk.before
        da, (da_r, da_z, da_n) = ops.beside(3, n)
        one_less_z = ops.subtract(1.0, z, out=da_z)
        da_n = ops.multiply(tanh_slope(ops, n, out=da_n), one_less_z, out=da_n)
        slope = ops.multiply(one_less_z, z, out=da_z)
        da_z = ops.multiply(slope, ops.subtract(h, n, out=da_r), out=da_z)
        da_r = ops.multiply(sigmoid_slope(ops, r, out=da_r), h, out=da_r)
        return [ops.stacked((da_r, da_z, da_n), out=da), r, z]

    def step_backward(
        self,
        ops: Operations,
        w: Sequence[Array],
        local: Sequence[Array],
        dstate: Sequence[Array],
        work: Sequence[Array],
    ) -> tuple[Sequence[Array], Sequence[Array]]:
        (dh,) = dstate
        da, r, z = local
        weight_rz_t, weight_n_t = w
        da_zn = ops.multiply(da[1:, ...], dh, out=da[1:, ...])
        du = ops.matmul(weight_n_t, da_zn[1, ...], out=work[1])
        da_r = ops.multiply(da[:1, ...], du, out=da[:1, ...])
        da = ops.joined((da_r, da_zn), out=da)
        kept = ops.add(ops.multiply(dh, z, out=z), ops.multiply(du, r, out=r), out=z)
        dh = ops.matmul(weight_rz_t, ops.flat(da[:2, ...]), out=work[0])
        return (da,), (ops.add(dh, kept, out=work[0]),)

    def gradients(
        self, ops: Operations, weights: Weights, chunk: Chunk, made: Sequence[Array]
    ) -> tuple[Weights, Array]:
        xp, split = ops.xp, 2 * self.hidden_size
        da = columns(xp, made[0])
        gradients = dense_gradients(xp, da, rows(xp, chunk.x, channels_last=True), "ih", weights)
        through_h = da[:split, :] @ rows(xp, chunk.before[0])
        through_u = da[split:, :] @ rows(xp, chunk.extras[0])
        gradients["weight_hh"] = xp.concat((through_h, through_u), axis=0)
        if "bias_hh" in weights:
            gradients["bias_hh"] = xp.sum(da, axis=1)
        return gradients, da.T @ weights["weight_ih"]


def gates_of(chunk: Chunk) -> Sequence[Array]:
    """Return r, z and n of all steps of a chunk."""
    return [chunk.gates[:, k, ...] for k in range(3)]


def interpolate(ops: Operations, n: Array, z: Array, h: Array, out: Array) -> Array:
    """Return (1 - z) ∘ n + z ∘ h, as n + z ∘ (h - n)."""
    mixed = ops.multiply(z, ops.subtract(h, n, out=out), out=out)
    return ops.add(mixed, n, out=out)
