"""onnxruntime: the operators RNN, LSTM and GRU, inputs and outputs bound once.

Its threads spin during and shortly after a run, as they do by default: the worker waits for them
before another library's turn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..cases import Case, Data, layer_of
from .base import Call, HostArray, Peer


class Library(Peer):
    """Sessions on the CPU."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import onnxruntime

        self.tool = onnxruntime
        self.kept: list[HostArray] = []  # the arrays behind the values in use

    @staticmethod
    def lacks(case: Case) -> str:
        """Return why onnxruntime cannot run a case."""
        if case.task == "training":
            return "only infers"
        return "has no recurrent operators in float64" if case.dtype == "float64" else ""

    def versions(self) -> dict[str, str]:
        """Return onnxruntime's."""
        return {"onnxruntime": self.tool.__version__}

    def make(self, case: Case, mode: str, data: Data) -> Call:  # noqa: ARG002
        """Make a case ready."""
        self.kept.clear()
        if case.task == "streaming":
            return self._streaming(case, data)
        session = self._session(case, data)
        inputs = {"x": data.x}
        if data.lengths is not None:
            inputs["lengths"] = data.lengths.astype(np.int32)
        y = self._value(np.empty_like(data.dy))
        bound = self._bound(session, {k: self._value(v) for k, v in inputs.items()}, {"y": y})

        def run() -> None:
            session.run_with_iobinding(bound)

        def results() -> dict[str, HostArray]:
            run()
            return {"y": np.array(y.numpy())}

        return Call(run, results)

    def _session(self, case: Case, data: Data, *, states: bool = False) -> Any:
        from rnn_xp.onnx import export

        options = self.tool.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "layer.onnx"
            export(layer_of(case), data.params, path, lengths=case.ragged, states=states)
            return self.tool.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )

    def _value(self, array: HostArray) -> Any:
        """Return a value of its own: `ortvalue_from_numpy` may share the array's memory."""
        own = np.array(array, order="C")
        self.kept.append(own)
        return self.tool.OrtValue.ortvalue_from_numpy(own)

    def _bound(self, session: Any, inputs: dict[str, Any], outputs: dict[str, Any]) -> Any:
        bound = session.io_binding()
        for name, value in inputs.items():
            bound.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            bound.bind_ortvalue_output(name, value)
        return bound

    def _streaming(self, case: Case, data: Data) -> Call:
        """Two bindings in turn: what one writes as the state the other reads."""
        session = self._session(case, data, states=True)
        batch, hidden = data.x.shape[1], data.dy.shape[2]
        parts = ("h", "c") if case.cell == "lstm" else ("h",)
        zeros = np.zeros((1, batch, hidden), dtype=data.x.dtype)
        states = [{part: self._value(zeros) for part in parts} for _ in range(2)]
        x, y = self._value(data.x[:1]), self._value(zeros)
        bindings = [
            self._bound(
                session,
                {"x": x, **{f"{part}0": states[k][part] for part in parts}},
                {"y": y, **{f"{part}n": states[1 - k][part] for part in parts}},
            )
            for k in range(2)
        ]
        steps = [data.x[t : t + 1] for t in range(len(data.x))]

        def run(outputs: list[HostArray] | None = None) -> None:
            for value in states[0].values():
                value.update_inplace(zeros)
            for k, step in enumerate(steps):
                x.update_inplace(step)
                session.run_with_iobinding(bindings[k % 2])
                if outputs is not None:
                    outputs.append(np.array(y.numpy()))

        def results() -> dict[str, HostArray]:
            outputs: list[HostArray] = []
            run(outputs)
            return {"y": np.concatenate(outputs)}

        return Call(run, results)
