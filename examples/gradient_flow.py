"""Where the gradient vanishes and where it explodes: Elman, LSTM and GRU, through 100 steps.

On the command line: rnn-xp plot gradient --out gradient.png
"""

from rnn_xp.backend import select
from rnn_xp.tasks.gradient_flow import new_network_norms

backend = select("numpy")
print("recurrent weights   Elman     LSTM      GRU       100 steps before the loss")
for scale in (0.5, 1.0, 1.5):
    norms = [new_network_norms(cell, backend, scale=scale)[0] for cell in ("rnn", "lstm", "gru")]
    print(f"           × {scale:<5}  " + "  ".join(f"{norm:8.1e}" for norm in norms))
