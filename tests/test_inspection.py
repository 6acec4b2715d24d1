"""Hidden units along a text, against a scalar loop; and what a reader sees of it."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import STEPS, run_of
from targets import Target

from rnn_xp.backend import select
from rnn_xp.layers import LSTM, Embedding, Linear, Recurrent
from rnn_xp.models import Chain, character_model
from rnn_xp.tasks.inspection import (
    Place,
    check_units,
    find_place,
    hidden_units,
    most_varied,
    places,
    readable,
    split,
)
from rnn_xp.text import TextError, Vocabulary

HostArray = np.ndarray[Any, Any]
EXAMPLES = Path(__file__).parent.parent / "examples"
CODES = np.asarray([3, 0, 6, 6, 1, 2, 5, 0, 4], dtype=np.int64)
KINDS = {"rnn": "rnn_tanh", "lstm": "lstm", "gru": "gru"}
NUMPY = select("numpy")


def scalar_loop(cell: str, params: dict[str, HostArray], levels: int, size: int) -> list[Any]:
    """Return the state after every character, [level][t][part], one number at a time."""
    step = STEPS[KINDS[cell]][0]
    inputs = [params["embedding.weight"][code].tolist() for code in CODES]
    states: list[Any] = []
    for level in range(levels):
        own = {k.removeprefix("recurrent."): v for k, v in params.items() if "recurrent" in k}
        weights = run_of(own, f"_l{level}")
        now: Any = tuple([0.0] * size for _ in range(2 if cell == "lstm" else 1))
        states.append([])
        for x in inputs:
            now, _ = step(weights, x, now)
            states[level].append(now)
        inputs = [state[0] for state in states[level]]
    return states


@pytest.mark.parametrize("cell", list(KINDS))
def test_hidden_units_of_every_level(target: Target, cell: str) -> None:
    model = character_model(
        7, cell=cell, embedding_size=3, hidden_size=4, num_layers=3, dropout=0.5
    )
    params = model.init(0, dtype="float64")
    expected = scalar_loop(cell, params, 3, 4)
    backend = select(target.backend, target.device_name)
    given_params = target.tree(params)
    for level in range(3):
        for part, state in enumerate("hc" if cell == "lstm" else "h"):
            place = Place("recurrent", level)
            found = hidden_units(model, given_params, backend, CODES, place=place, state=state)
            assert type(found) is np.ndarray
            assert (found.shape, found.dtype) == ((9, 4), np.float64)
            values = [step[part] for step in expected[level]]
            np.testing.assert_allclose(found, values, rtol=0, atol=1e-12)
    default = hidden_units(model, given_params, backend, CODES)
    np.testing.assert_allclose(default, [step[0] for step in expected[2]], rtol=0, atol=1e-12)


def test_a_model_of_two_recurrent_layers_and_two_directions() -> None:
    model = Chain(
        (
            ("embedding", Embedding(7, 3)),
            ("first", LSTM(3, 4, bidirectional=True)),
            ("between", Linear(8, 2)),
            ("second", LSTM(2, 5, proj_size=3)),
        )
    )
    params = model.init(1, dtype="float64")
    assert [str(place) for place in places(model)] == ["first/0", "second/0"]
    first = hidden_units(model, params, NUMPY, CODES, place=find_place(model, "first/0"))
    second = hidden_units(model, params, NUMPY, CODES)
    # The rest of the model, run by hand on the first layer's units.
    weight, bias = params["between.weight"], params["between.bias"]
    own = {k.removeprefix("second."): v for k, v in params.items() if k.startswith("second.")}
    y, _ = LSTM(2, 5, proj_size=3)(own, (first @ weight.T + bias)[:, None, :])
    np.testing.assert_allclose(second, y[:, 0], rtol=0, atol=1e-12)
    cells = hidden_units(model, params, NUMPY, CODES, state="c")
    assert (first.shape, second.shape, cells.shape) == ((9, 8), (9, 3), (9, 5))
    with pytest.raises(ValueError, match="of one direction"):
        hidden_units(model, params, NUMPY, CODES, place=Place("first", 0), state="c")


def test_what_cannot_be_shown() -> None:
    model = character_model(7, embedding_size=3, hidden_size=4, num_layers=2)
    params = model.init(0)
    with pytest.raises(ValueError, match="no level 'recurrent/2': its levels are recurrent/0, rec"):
        find_place(model, "recurrent/2")
    with pytest.raises(ValueError, match="no recurrent layer 'other'"):
        split(model, "other")
    with pytest.raises(ValueError, match="no recurrent layer"):
        find_place(Chain(model.layers[:1]))
    with pytest.raises(ValueError, match="a GRU has no cell state c"):
        hidden_units(model, params, NUMPY, CODES, state="c")
    with pytest.raises(ValueError, match="state must be 'h' or 'c', got 'z'"):
        hidden_units(model, params, NUMPY, CODES, state="z")
    with pytest.raises(TextError, match="no character is left"):
        hidden_units(model, params, NUMPY, CODES[:0])
    with pytest.raises(ValueError, match="no unit 4: this level has the units 0 to 3"):
        check_units([0, 4], 4)
    assert check_units([3, 0], 4) == [3, 0]


def test_a_level_of_a_layer_is_the_layer_of_fewer_levels() -> None:
    _, layer, _ = split(character_model(7, num_layers=3), "recurrent")
    assert isinstance(layer, Recurrent)
    assert replace(layer, num_layers=1).shapes.keys() < layer.shapes.keys()


def test_the_most_varied_units_come_first() -> None:
    values = np.asarray([[0.0, 5.0, 1.0, -1.0], [0.0, 5.1, -1.0, 1.0], [0.0, 5.2, 0.0, 0.0]])
    assert most_varied(values, 3) == [2, 3, 1]
    assert most_varied(values, 9) == [2, 3, 1, 0]


def test_what_a_reader_sees_of_characters() -> None:
    vocabulary = Vocabulary.of("banana")
    reading = readable(vocabulary, vocabulary.encode("ban"))
    assert reading == (["b", "a", "n"], [0, 1, 2])


@pytest.mark.parametrize(
    ("data", "characters", "steps"),
    [
        ("가a나".encode(), "가a나", [2, 3, 6]),
        (b"\xea\xb0a\xff", "�a�", [1, 2, 3]),
        (b"\xf0\x9f\xea\xb0\x80", "�가", [2, 4]),
        (b"a\xea\xb0", "a�", [0, 2]),
        (b"\xff", "�", [0]),
    ],
)
def test_what_a_reader_sees_of_bytes(data: bytes, characters: str, steps: list[int]) -> None:
    vocabulary = Vocabulary.of(b"")
    reading = readable(vocabulary, vocabulary.encode(data))
    assert "".join(reading.characters) == characters
    assert reading.steps == steps


@given(st.binary(min_size=1))
def test_what_a_reader_sees_of_any_bytes(data: bytes) -> None:
    vocabulary = Vocabulary.of(b"")
    characters, steps = readable(vocabulary, vocabulary.encode(data))
    assert "".join(characters) == data.decode("utf-8", "replace")
    assert steps == sorted(set(steps))
    assert steps[-1] == len(data) - 1


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "text.py"), run_name="__main__")
    loss, _, rest = capsys.readouterr().out.partition(" nats\n")
    assert float(loss) < 2.4  # a model that knows the characters' frequencies alone has 3.35
    line, *units = rest.splitlines()[-4:]
    assert line.endswith("But, soft! what light through yonder window breaks?")
    assert all(len(unit) == len(line) and set(unit[9:]) <= set("-.+") for unit in units)
