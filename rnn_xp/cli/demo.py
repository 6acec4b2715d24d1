"""`demo`: the teaching script's experiment."""

from __future__ import annotations

import argparse
from typing import Any

from rnn_xp import losses, optim
from rnn_xp.backend import select
from rnn_xp.cli.options import POSITIVE, SEED, add_backend, add_command, count
from rnn_xp.layers import RNN, Linear
from rnn_xp.models import Chain
from rnn_xp.random import generator, spawn


def add_demo(commands: Any) -> None:
    """Add `demo`."""
    command = add_command(
        commands,
        "demo",
        _demo,
        "train an Elman network on one random sequence, as the teaching script meant to",
        "demo --iterations 1000 --learning-rate 0.1",
    )
    command.add_argument("--iterations", type=count(1), default=100, help="gradient steps")
    command.add_argument("--learning-rate", type=POSITIVE, default=0.01, help="step size")
    command.add_argument("--input-size", type=count(1), default=3, help="n_input")
    command.add_argument("--hidden-size", type=count(1), default=5, help="n_hidden")
    command.add_argument("--output-size", type=count(1), default=2, help="n_output")
    command.add_argument("--time-steps", type=count(1), default=10, help="length of the sequence")
    command.add_argument("--seed", type=SEED, default=0, help="of data and parameters")
    command.add_argument(
        "--show-parameters",
        action="store_true",
        help="print each parameter's name here, in the script, and its shape",
    )
    add_backend(command)


def _demo(options: argparse.Namespace) -> int:
    backend = select(options.backend, options.device)
    seed = options.seed
    model = Chain(
        (
            ("rnn", RNN(options.input_size, options.hidden_size)),
            ("linear", Linear(options.hidden_size, options.output_size)),
        )
    )
    params = model.init(
        spawn(seed, 0), backend=backend.name, device=options.device, dtype=options.dtype
    )
    rng = generator(spawn(seed, 1))
    steps = options.time_steps
    x = backend.asarray(rng.random((steps, 1, options.input_size)), options.dtype)
    targets = backend.asarray(rng.random((steps, 1, options.output_size)), options.dtype)
    if options.show_parameters:
        script = ("U", "W", "b", "b (a second one, added to the first)", "V", "c")
        for (name, shape), letter in zip(model.shapes.items(), script, strict=True):
            print(f"{name:18} {letter:36} {shape}")
    optimizer = optim.SGD(options.learning_rate)
    state = optimizer.init(params)
    for iteration in range(options.iterations):
        logits, _, cache = model.forward(params, x)
        error, dlogits = losses.sigmoid_squared_error(logits, targets)
        print(f"Iteration {iteration}, Error: {float(error)}")
        gradients, _, _ = model.backward(params, cache, dlogits)
        params, state = optimizer.update(gradients, state, params)
    return 0
