"""ONNX: run its recurrent operators, and write models as ONNX files.

    prepare, run_model, run_node, supports_device     the interface of `onnx.backend.base`
    export                                            a model and its parameters, as one file

The operators RNN, LSTM and GRU run with all of their options on the package's one time loop. A
node with plain activations is one of the package's cells; another one is a cell of this package,
for inference alone. Beside them stand the few operators that `export` writes, and those that other
tools put around a recurrent node.

Where ONNX leaves a question open, the answer is onnxruntime's: `clip` bounds what enters a gate's
activation, not the C_t that h sees; `activation_alpha` and `activation_beta` are consumed in order
by the functions that have such a parameter. There are three differences: a sequence of length 0
keeps its initial state (there: zeros); ThresholdedRelu's alpha is 1 where it is not given, as in
ONNX's operator (there: 0); and where Affine or ScaledTanh lacks a value, or a value is left over,
that is an error (there: 0, and ignored).
"""

from rnn_xp.onnx.errors import OnnxError
from rnn_xp.onnx.exporting import export
from rnn_xp.onnx.interface import PreparedModel, prepare, run_model, run_node, supports_device

__all__ = [
    "OnnxError",
    "PreparedModel",
    "export",
    "prepare",
    "run_model",
    "run_node",
    "supports_device",
]
