"""PyTorch: `torch.nn.RNN`, `LSTM` and `GRU`, their cells in a stream, and `torch.compile`.

`torch.compile` leaves these layers alone unless its experimental option `allow_rnn` is set. Then it
packs the weights of an LSTM once (`freezing`), and unrolls every other loop: its compile time grows
with T, so that longer ones than `_UNROLLED` steps are not tried (a training step of 10 steps takes
half a minute, of 100 more than two).
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

from ..cases import Case, Data
from .base import Call, HostArray, Peer

_UNROLLED = 10
_KINDS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}


class Library(Peer):
    """Modules on CPU tensors."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        torch.set_num_threads(threads)
        self.torch = torch

    @staticmethod
    def lacks(case: Case) -> str:
        """Return why PyTorch cannot run a case."""
        return "has no GRU that resets before the product" if case.cell == "gru-before" else ""

    @staticmethod
    def modes(case: Case) -> tuple[str, ...]:
        """Return `` (eager), `compiled`; in a stream also `cell` and `compiled cell`."""
        if case.task == "streaming":
            return ("", "cell", "compiled cell")
        return ("",) if Library.untried(case) else ("", "compiled")

    @staticmethod
    def untried(case: Case) -> dict[str, str]:
        """Return why `compiled` is left out."""
        if case.task == "streaming":
            return {}
        if case.ragged:
            return {"compiled": "is not tried on ragged batches"}
        steps = case.shape[0] * case.layers * (1 + case.bidirectional)
        packs = case.task == "inference" and case.cell == "lstm" and case.dtype == "float32"
        if packs or steps <= _UNROLLED:
            return {}
        return {"compiled": f"is not tried where it unrolls more than {_UNROLLED} steps"}

    def versions(self) -> dict[str, str]:
        """Return PyTorch's."""
        return {"PyTorch": self.torch.__version__}

    def make(self, case: Case, mode: str, data: Data) -> Call:
        """Make a case ready."""
        if case.task == "training":
            call = self._training(case, mode, data)
        elif case.task == "inference":
            call = self._inference(case, mode, data)
        else:
            call = self._streaming(case, mode, data)
        if not mode.startswith("compiled"):
            return call
        start = perf_counter()
        call.run()
        return call._replace(compile_seconds=perf_counter() - start)

    def _module(self, case: Case, data: Data) -> Any:
        _, _, size, hidden = case.shape
        module = getattr(self.torch.nn, _KINDS[case.cell])(
            size, hidden, case.layers, bidirectional=case.bidirectional
        )
        return self._loaded(module, case, data.params)

    def _loaded(self, module: Any, case: Case, params: dict[str, HostArray]) -> Any:
        module.to(getattr(self.torch, case.dtype))
        module.load_state_dict({k: self.torch.tensor(v) for k, v in params.items()})
        return module

    def _call(self, module: Any, mode: str, case: Case, data: Data) -> Callable[[Any], Any]:
        """Return the function from x to y."""
        if data.lengths is None:
            run = self._compiled(module) if mode else module
            return lambda x: run(x)[0]
        rnn = self.torch.nn.utils.rnn
        lengths, steps = self.torch.tensor(data.lengths), case.shape[0]

        def packed(x: Any) -> Any:
            packed = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            return rnn.pad_packed_sequence(module(packed)[0], total_length=steps)[0]

        return packed

    def _compiled(self, module: Any) -> Any:
        torch = self.torch
        torch._dynamo.reset()
        torch._dynamo.config.allow_rnn = True
        torch._inductor.config.freezing = True  # of inference: it concerns `no_grad` alone
        return torch.compile(module)

    def _training(self, case: Case, mode: str, data: Data) -> Call:
        module = self._module(case, data)
        call = self._call(module, mode, case, data)
        x, dy = self.torch.tensor(data.x, requires_grad=True), self.torch.tensor(data.dy)

        def run() -> Any:
            module.zero_grad()
            x.grad = None
            y = call(x)
            y.backward(dy)
            return y

        def results() -> dict[str, HostArray]:
            y = run().detach().numpy()
            gradients = {f"d{name}": p.grad.numpy() for name, p in module.named_parameters()}
            return {"y": y, "dx": x.grad.numpy(), **gradients}

        return Call(run, results)

    def _inference(self, case: Case, mode: str, data: Data) -> Call:
        module = self._module(case, data).eval().requires_grad_(False)
        call = self._call(module, mode, case, data)
        x = self.torch.tensor(data.x)
        without = self.torch.no_grad if mode else self.torch.inference_mode

        def run() -> Any:
            with without():
                return call(x)

        return Call(run, lambda: {"y": run().numpy()})

    def _streaming(self, case: Case, mode: str, data: Data) -> Call:
        if mode:
            _, _, size, hidden = case.shape
            module = getattr(self.torch.nn, _KINDS[case.cell] + "Cell")(size, hidden)
            weights = {k.removesuffix("_l0"): v for k, v in data.params.items()}
            module = self._loaded(module, case, weights)
        else:
            module = self._module(case, data)
        module.eval().requires_grad_(False)
        x = self.torch.tensor(data.x)
        steps = list(x) if mode else [x[t : t + 1] for t in range(len(x))]
        compiles = mode == "compiled cell"
        step = self._compiled(module) if compiles else module
        without = self.torch.no_grad if compiles else self.torch.inference_mode
        # A cell returns its state, of an LSTM a pair; a layer returns y and the state.
        shape = (case.shape[1], case.shape[3])
        state = self.torch.zeros(shape if mode else (1, *shape), dtype=x.dtype)
        start = (state, state) if case.cell == "lstm" else state

        def run() -> list[Any]:
            state, outputs = start, []
            with without():
                if not mode:
                    for x_t in steps:
                        y, state = step(x_t, state)
                        outputs.append(y)
                else:
                    for x_t in steps:
                        state = step(x_t, state)
                        outputs.append(state)
            return outputs

        def results() -> dict[str, HostArray]:
            outputs = [y[0] if mode and case.cell == "lstm" else y for y in run()]
            joined = self.torch.stack(outputs) if mode else self.torch.cat(outputs)
            return {"y": joined.numpy()}

        return Call(run, results)
