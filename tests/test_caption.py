"""The captioner, its search for captions, and the captions of the digits."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from targets import Target, need, need_module

from rnn_xp import GRU, Chain, Embedding, Linear, load, losses, save
from rnn_xp.backend import select
from rnn_xp.captioner import END, Captioner, caption_model
from rnn_xp.checkpoint import CheckpointError
from rnn_xp.datasets import load_digits
from rnn_xp.decoding import _search, beam_search, greedy
from rnn_xp.fitting import Settings, fit
from rnn_xp.tasks.caption import (
    CaptionError,
    Pictures,
    Reader,
    gradients_of,
    load_digit_pictures,
    loss_of,
    read_pictures,
    split,
    tidy,
    write_captions,
)
from rnn_xp.tasks.digit_captions import (
    BOUNDS,
    DIGITS,
    WORDS,
    accuracies,
    baselines,
    compose,
    facts,
    measure,
)

HostArray = np.ndarray[Any, Any]

CELLS = ("rnn", "lstm", "gru")
PIXELS, VOCABULARY = 5, 4
LENGTHS = (4, 2, 3)
BACKEND = select("numpy")


def small(cell: str = "lstm", **options: Any) -> Captioner:
    sizes = {"embedding_size": 2, "hidden_size": 3, "num_layers": 2} | options
    return caption_model(PIXELS, VOCABULARY, cell=cell, **sizes)


def drawn(model: Captioner, seed: int = 0, scale: float = 1.0) -> dict[str, HostArray]:
    rng = np.random.default_rng(seed)
    return {name: scale * rng.standard_normal(shape) for name, shape in model.shapes.items()}


def pictures_of(count: int, seed: int = 1) -> HostArray:
    return np.random.default_rng(seed).standard_normal((count, PIXELS))


def batch(seed: int = 2) -> tuple[HostArray, HostArray, HostArray]:
    """Pictures, words and weights of the logits' gradient, for sequences of `LENGTHS`."""
    rng = np.random.default_rng(seed)
    words = rng.integers(0, VOCABULARY, (max(LENGTHS), len(LENGTHS)))
    words[0] = VOCABULARY  # the start
    return pictures_of(len(LENGTHS)), words, rng.standard_normal((*words.shape, VOCABULARY))


# The model


@pytest.mark.parametrize("cell", CELLS)
def test_finite_differences_of_the_whole_captioner(cell: str) -> None:
    model, step = small(cell), 1e-5
    params = drawn(model)
    images, words, dlogits = batch()

    def loss() -> float:
        logits, _ = model.forward(params, images, words, lengths=LENGTHS)
        return float((logits * dlogits).sum())

    _, cache = model.forward(params, images, words, lengths=LENGTHS)
    dparams, dimages = model.backward(params, cache, dlogits)
    assert dparams.keys() == params.keys()
    for name, array in (params | {"images": images}).items():
        found = dparams[name] if name in params else dimages
        expected = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            kept = array[index]
            array[index] = kept + step
            above = loss()
            array[index] = kept - step
            expected[index] = (above - loss()) / (2.0 * step)
            array[index] = kept
        norm = np.linalg.norm(expected)
        assert norm > 1e-3, f"{name} has no gradient to compare"
        assert np.linalg.norm(found - expected) / norm < 1e-6, name


@pytest.mark.parametrize("cell", CELLS)
def test_the_same_network_in_pytorch(cell: str) -> None:
    need("torch")
    torch = need_module("torch")
    model = small(cell)
    params = drawn(model)
    images, words, _ = batch()
    tensors = {name: torch.tensor(value) for name, value in params.items()}
    kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    recurrent = kind(2, 3, 2, dtype=torch.float64)
    recurrent.load_state_dict(
        {k.removeprefix("recurrent."): v for k, v in tensors.items() if "recurrent." in k}
    )
    flat = torch.tensor(images) @ tensors["image.weight"].T + tensors["image.bias"]
    levels = [flat[:, k : k + 3] for k in range(0, flat.shape[1], 3)]
    state = torch.stack(levels[:2])
    if cell == "lstm":  # h of both levels, then c of both
        state = (state, torch.stack(levels[2:]))
    y, _ = recurrent(tensors["embedding.weight"][torch.tensor(words)], state)
    expected = y @ tensors["linear.weight"].T + tensors["linear.bias"]
    logits, _ = model.forward(params, images, words)
    np.testing.assert_allclose(logits, expected.detach().numpy(), rtol=0, atol=1e-12)


def test_every_library_agrees(target: Target) -> None:
    model = small("lstm")
    images, words, dlogits = batch()
    expected_params = model.init(7, dtype="float64")
    params = model.init(7, backend=target.backend, device=target.device_name, dtype="float64")
    for name, value in expected_params.items():
        found = target.check(params[name], model.shapes[name], "float64", name)
        np.testing.assert_array_equal(found, value)
    logits, cache = model.forward(
        params, target.asarray(images), target.asarray(words), lengths=LENGTHS
    )
    dparams, dimages = model.backward(params, cache, target.asarray(dlogits))
    expected, kept = model.forward(expected_params, images, words, lengths=LENGTHS)
    expected_dparams, expected_dimages = model.backward(expected_params, kept, dlogits)
    close: Callable[..., None] = np.testing.assert_allclose
    close(target.check(logits, dlogits.shape, "float64"), expected, rtol=0, atol=1e-12)
    close(target.check(dimages, images.shape, "float64"), expected_dimages, rtol=0, atol=1e-12)
    for name, value in dparams.items():
        found = target.check(value, model.shapes[name], "float64", name)
        close(found, expected_dparams[name], rtol=0, atol=1e-12)

    backend = select(target.backend, target.device_name)
    sharp = {name: 5.0 * value for name, value in params.items()}
    host = {name: 5.0 * value for name, value in expected_params.items()}
    for beam in (1, 3):
        written = beam_search(model, sharp, backend, target.asarray(images), beam, 4)
        other = beam_search(model, host, BACKEND, images, beam, 4)
        assert [c.words for c in written] == [c.words for c in other]
        scores = [c.log_probability for c in written]
        assert scores == pytest.approx([c.log_probability for c in other], abs=1e-10)


@pytest.mark.parametrize("name", ["strict", "torch"])
def test_training_gives_the_same_parameters_everywhere(name: str) -> None:
    need(name)
    pictures = stripes(12)
    reader = Reader.of(pictures, pictures.captions or ())
    model = caption_model(16, len(reader.words) + 1, hidden_size=4, dropout=0.2, cell="lstm")
    found = []
    for backend in (BACKEND, select(name)):
        params = model.init(3, backend=backend.name)
        gradients = gradients_of(model, backend, "float32", reader, pictures)
        fitted = fit(params, gradients, len(pictures), Settings(epochs=2, batch_size=4))
        found.append({k: backend.to_numpy(v) for k, v in fitted.params.items()})
    for key, value in found[0].items():
        np.testing.assert_allclose(found[1][key], value, rtol=0, atol=1e-4, err_msg=key)


def test_dropout_is_part_of_the_model() -> None:
    model = small(dropout=0.5)
    images, words, _ = batch()
    params = drawn(model)
    first, _ = model.forward(params, images, words, dropout_seed=1)
    same, _ = model.forward(params, images, words, dropout_seed=1)
    without, _ = model.forward(params, images, words)
    assert np.array_equal(first, same)
    assert not np.allclose(first, without)


def test_a_cache_serves_one_backward_call() -> None:
    model = small()
    images, words, dlogits = batch()
    params = drawn(model)
    _, cache = model.forward(params, images, words)
    with pytest.raises(ValueError, match="dy must have shape"):
        model.backward(params, cache, dlogits[:1])
    model.backward(params, cache, dlogits)
    with pytest.raises(ValueError, match="used by a backward call before"):
        model.backward(params, cache, dlogits)


def test_what_is_no_captioner() -> None:
    text = small("gru", num_layers=1).text
    with pytest.raises(ValueError, match="output_size=4, but the state has 3 numbers"):
        Captioner(Linear(PIXELS, 4), text)
    with pytest.raises(ValueError, match="begins with an Embedding"):
        Captioner(Linear(PIXELS, 3), Chain(text.layers[1:]))
    with pytest.raises(ValueError, match="begins with an Embedding"):
        Captioner(Linear(PIXELS, 3), Chain(()))
    both = Chain((text.layers[0], ("gru", GRU(2, 3, bidirectional=True)), ("out", Linear(6, 4))))
    with pytest.raises(ValueError, match="one recurrent layer, of one direction"):
        Captioner(Linear(PIXELS, 6), both)
    more = Chain((("in", Embedding(4, 2)), *text.layers[1:]))
    with pytest.raises(ValueError, match="has 4 words, expected one more than the 4"):
        Captioner(Linear(PIXELS, 3), more)
    with pytest.raises(ValueError, match="cell must be one of rnn, lstm, gru"):
        small("elman")
    with pytest.raises(ValueError, match="there is no layer called 'other'"):
        small().prepare({"other.weight": np.ones(1)})


def test_a_file_holds_a_captioner(tmp_path: Path) -> None:
    model = small(dropout=0.3)
    assert model.vocabulary_size == VOCABULARY
    params = model.init(0)
    save(tmp_path / "m", model, params, task={"kind": "caption"})
    found = load(tmp_path / "m")
    assert found.model == model
    assert list(found.params) == list(params)
    assert all(np.array_equal(found.params[name], params[name]) for name in params)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"type": "Painter"}, "unknown layer type 'Painter'"),
        ({"type": "Captioner", "text": []}, "wrong arguments for Captioner: 'image'"),
        ({"type": "Captioner", "image": {"size": 3}, "text": []}, "unexpected keyword"),
        ("Captioner", "damaged model description"),
    ],
)
def test_a_damaged_description(tmp_path: Path, description: Any, message: str) -> None:
    save(tmp_path / "m", small(), small().init(0))
    with safe_open(tmp_path / "m", framework="np") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "m")
    save_file(tensors, tmp_path / "m", metadata | {"model": json.dumps(description)})
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "m")


# Greedy and beam search


def log_probability(
    model: Captioner, params: dict[str, HostArray], image: HostArray, words: Sequence[int]
) -> float:
    """The log-probability of a caption and its end, one prefix at a time, from scratch."""
    total = 0.0
    for k, word in enumerate((*words, END)):
        total += next_word(model, params, image, words[:k])[word]
    return total


def next_word(
    model: Captioner, params: dict[str, HostArray], image: HostArray, words: Sequence[int]
) -> HostArray:
    read = np.asarray([model.vocabulary_size, *words])[:, None]
    logits = model.forward(params, image[None], read)[0][-1, 0]
    top = logits.max()
    result: HostArray = logits - top - math.log(sum(math.exp(v - top) for v in logits))
    return result


def all_captions(most: int) -> list[tuple[int, ...]]:
    return [c for n in range(most + 1) for c in product(range(1, VOCABULARY), repeat=n)]


@pytest.mark.parametrize("cell", CELLS)
def test_greedy_takes_the_likeliest_word_at_each_step(cell: str) -> None:
    model, images = small(cell), pictures_of(6)
    for seed in range(4):
        params = drawn(model, seed)
        params["linear.bias"][END] -= 1.0  # or all captions are short
        found = greedy(model, params, BACKEND, images, 5)
        for image, caption in zip(images, found, strict=True):
            words: list[int] = []
            while len(words) < 5:
                best = int(next_word(model, params, image, words).argmax())
                if best == END:
                    break
                words.append(best)
            assert caption.words == tuple(words)
            expected = log_probability(model, params, image, words)
            assert caption.log_probability == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_a_beam_as_wide_as_there_are_captions_finds_the_best_of_all(cell: str) -> None:
    model, images, captions = small(cell), pictures_of(3), all_captions(3)
    assert len(captions) == 1 + 3 + 9 + 27
    lengths = set()
    for seed in range(4):
        params = drawn(model, seed, scale=1.5)
        params["linear.bias"][END] -= 1.0
        found = beam_search(model, params, BACKEND, images, len(captions), 3)
        for image, caption in zip(images, found, strict=True):
            scores = [log_probability(model, params, image, words) for words in captions]
            assert caption.words == captions[int(np.argmax(scores))]
            assert caption.log_probability == pytest.approx(max(scores), abs=1e-12)
            lengths.add(len(caption.words))
    assert len(lengths) > 1


def losing(
    seed: int, cell: str = "rnn", scale: float = 0.7
) -> tuple[Captioner, dict[str, HostArray]]:
    """A random model of the kind that a plain beam loses with: many words, few that end."""
    model = caption_model(PIXELS, 12, cell=cell, embedding_size=4, hidden_size=3)
    params = drawn(model, seed, scale)
    params["linear.bias"][END] -= 2.0
    return model, params


def test_a_plain_beam_loses_to_greedy_search_and_ours_does_not() -> None:
    """Over random models: the beginning that greedy search follows drops out of a plain beam."""
    images, lost = pictures_of(20), 0
    for seed in range(10):
        model, params = losing(seed)
        plain = _search(model, model.prepare(params), BACKEND, images, 2, 8)
        narrow = greedy(model, params, BACKEND, images, 8)
        wide = beam_search(model, params, BACKEND, images, 2, 8)
        for a, b, c in zip(plain, narrow, wide, strict=True):
            lost += a.log_probability < b.log_probability - 1e-6
            assert c.log_probability == max(a.log_probability, b.log_probability)
    assert lost >= 10


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    cell=st.sampled_from(CELLS),
    beam=st.integers(1, 9),
    most=st.integers(1, 8),
    scale=st.floats(0.1, 5.0),
)
def test_beam_search_never_scores_below_greedy(
    seed: int, cell: str, beam: int, most: int, scale: float
) -> None:
    images = pictures_of(4, seed)
    model, params = losing(seed, cell, scale)
    narrow = greedy(model, params, BACKEND, images, most)
    wide = beam_search(model, params, BACKEND, images, beam, most)
    for image, a, b in zip(images, narrow, wide, strict=True):
        assert b.log_probability >= a.log_probability
        assert len(b.words) <= most
        assert END not in b.words
        expected = log_probability(model, params, image, b.words)
        assert b.log_probability == pytest.approx(expected, abs=1e-9)
        if beam == 1:
            assert b == a


def test_each_picture_is_on_its_own() -> None:
    model, images = small(), pictures_of(5)
    params = drawn(model, 3, scale=2.0)
    together = beam_search(model, params, BACKEND, images, 3, 6)
    for k, caption in enumerate(together):
        (alone,) = beam_search(model, params, BACKEND, images[k : k + 1], 3, 6)
        assert alone.words == caption.words
        assert alone.log_probability == pytest.approx(caption.log_probability, abs=1e-12)


def test_equal_words_go_to_the_lower_number() -> None:
    model, images = small(), pictures_of(2)
    params = {name: np.zeros(shape) for name, shape in model.shapes.items()}
    for beam in (1, 2, 7):
        for caption in beam_search(model, params, BACKEND, images, beam, 3):
            assert caption.words == ()
            assert caption.log_probability == pytest.approx(-math.log(4))
    params["linear.bias"][END] = -50.0  # the end is unlikely: it comes at the most words
    expected = -3 * math.log(3) - 50.0 - math.log(3)
    for beam in (1, 2, 3):
        for caption in _search(model, model.prepare(params), BACKEND, images, beam, 3):
            assert caption.words == (1, 1, 1)
            assert caption.log_probability == pytest.approx(expected)
    for caption in beam_search(model, params, BACKEND, images, 28, 3):
        assert caption.words == ()  # its end is as unlikely, but it needs no words
        assert caption.log_probability == pytest.approx(-50.0 - math.log(3))


def test_search_needs_a_beam_and_a_length() -> None:
    model = small()
    params = model.init(0, dtype="float64")
    with pytest.raises(ValueError, match="beam must be an integer >= 1, got 0"):
        beam_search(model, params, BACKEND, pictures_of(1), 0, 3)
    with pytest.raises(ValueError, match="max_length must be an integer >= 1, got 0"):
        greedy(model, params, BACKEND, pictures_of(1), 0)
    with pytest.raises(ValueError, match=r"x must have shape \(..., 5\)"):
        greedy(model, params, BACKEND, pictures_of(1)[:, :3], 3)


# Words, pictures, files


def stripes(count: int) -> Pictures:
    """4x4 pictures of a bright column, which a caption names."""
    names = ("far left.", "left", "right", "far right, that is all")
    images = np.random.default_rng(0).integers(0, 30, (count, 4, 4))
    for k in range(count):
        images[k, :, k % 4] = 200
    return Pictures(images, tuple(names[k % 4] for k in range(count)))


def test_captions_become_numbers_and_come_back() -> None:
    pictures = Pictures(np.asarray([[0.0, 2.0], [4.0, 6.0]]), ("b , a", "c"))
    reader = Reader.of(pictures, ("b , a", "c", "Ä!"))
    assert reader.words == ("!", ",", "a", "b", "c", "Ä")
    assert (reader.shape, reader.mean, reader.longest) == ((2,), 3.0, 3)
    assert reader.deviation == pytest.approx(math.sqrt(5.0))
    found = reader.encode(("b, a", "c"))
    assert found.words.tolist() == [[7, 7], [4, 5], [2, END], [3, END]]
    assert found.targets.tolist() == [[4, 5], [2, END], [3, END], [END, END]]
    assert found.lengths.tolist() == [4, 2]
    assert found.mask.T.tolist() == [[True] * 4, [True, True, False, False]]
    assert reader.decode((4, 2, 3)) == "b, a"
    assert tidy("  b ,a  ! ") == "b, a!"
    np.testing.assert_allclose(
        reader.pixels(pictures.images), [[-3 / 5**0.5, -1 / 5**0.5], [1 / 5**0.5, 3 / 5**0.5]]
    )
    assert Reader.restore(json.loads(json.dumps(reader.describe()))) == reader


def test_what_a_reader_does_not_know() -> None:
    reader = Reader.of(stripes(8), ("left", "right"))
    with pytest.raises(CaptionError, match="caption 1: the model has never seen the word 'up'"):
        reader.encode(("left", "left up"))
    with pytest.raises(CaptionError, match=r"have shape \(8, 8\), the model reads \(4, 4\)"):
        reader.pixels(np.zeros((1, 8, 8)))


def test_pictures_all_alike_have_a_scale() -> None:
    for value in (1.0, 0.1):  # the mean of the latter is rounded
        assert Reader.of(Pictures(np.full((2, 3), value)), ("a",)).deviation == 1.0


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (np.asarray([["a"]]), None, "images must be numbers, got <U1"),
        (np.ones(3), None, r"images must have shape \(N, ...\), got \(3,\)"),
        (np.ones((0, 2)), None, r"got \(0, 2\)"),
        (np.asarray([[1.0], [np.nan]]), None, "image 1 has a number that is not finite"),
        (np.ones((2, 2)), ("a",), "2 images have 1 captions"),
        (np.ones((2, 2)), ("a", "  "), "caption 1 is empty"),
    ],
)
def test_pictures_that_cannot_be_used(
    images: HostArray, captions: tuple[str, ...] | None, message: str
) -> None:
    with pytest.raises(CaptionError, match=message):
        Pictures(images, captions)


def test_the_end_is_held_out() -> None:
    pictures = stripes(10)
    train, test = split(pictures)
    assert (len(train), len(test)) == (8, 2)
    assert np.array_equal(test.images, pictures.images[8:])
    assert (train.captions or ()) + (test.captions or ()) == pictures.captions
    train, test = split(stripes(2), 0.01)
    assert (len(train), len(test)) == (1, 1)
    with pytest.raises(CaptionError, match="not enough pictures"):
        split(stripes(1))


def test_reading_pictures(tmp_path: Path) -> None:
    path, pictures = tmp_path / "p.npz", stripes(4)
    np.savez(path, images=pictures.images, captions=np.asarray(pictures.captions), more=np.ones(1))
    found = read_pictures(path)
    assert np.array_equal(found.images, pictures.images)
    assert found.captions == pictures.captions
    np.savez(path, images=pictures.images)
    assert read_pictures(path).captions is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones(2), "captions": np.asarray(["a"])}, "no array 'images': it holds x, cap"),
        ({}, "no array 'images': it holds none"),
        ({"images": np.ones((2, 2)), "captions": np.asarray(["a"])}, "2 images have 1 captions"),
        ({"images": np.ones((1, 2)), "captions": np.asarray([3])}, r"must be strings \(N,\), got"),
        ({"images": np.ones((1, 2)), "captions": np.asarray("a")}, r"must be strings \(N,\), got"),
        ({"images": np.asarray([{}], dtype=object)}, "no usable .npz file"),
        ({"images": np.ones((1, 2)), "captions": np.asarray(["a"], dtype=object)}, "no usable"),
    ],
)
def test_files_that_hold_no_pictures(tmp_path: Path, arrays: Any, message: str) -> None:
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(CaptionError, match=message):
        read_pictures(tmp_path / "p.npz")


def test_files_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    np.savez(path, images=np.ones((100, 2)))
    data = path.read_bytes()
    for wrong in (b"", b"text", data[: len(data) // 2], data.replace(b"NUMPY", b"PYNUM")):
        path.write_bytes(wrong)
        with pytest.raises(CaptionError, match=r"p\.npz"):
            read_pictures(path)
    with pytest.raises(FileNotFoundError):
        read_pictures(tmp_path / "missing.npz")


def test_the_loss_of_a_word_by_hand() -> None:
    """Ragged captions in one batch: as each alone, one prefix at a time."""
    pictures = stripes(5)
    reader = Reader.of(pictures, pictures.captions or ())
    model = caption_model(16, len(reader.words) + 1, hidden_size=3, embedding_size=2)
    params = drawn(model, scale=0.3)
    total, count = 0.0, 0
    numbers = {word: k for k, word in enumerate(reader.words, start=1)}
    for image, caption in zip(reader.pixels(pictures.images), pictures.captions or (), strict=True):
        cut = caption.replace(",", " ,").replace(".", " .").split()
        words = [len(reader.words) + 1, *(numbers[word] for word in cut)]
        for k, word in enumerate((*words[1:], END)):
            logits = model.forward(params, image[None], np.asarray(words[: k + 1])[:, None])[0]
            total -= logits[-1, 0, word] - math.log(sum(math.exp(v) for v in logits[-1, 0]))
            count += 1
    expected = total / count
    assert loss_of(model, params, BACKEND, reader, pictures) == pytest.approx(expected, abs=1e-12)
    gradients = gradients_of(model, BACKEND, "float64", reader, pictures)
    found, dparams = gradients(params, np.arange(5), 0)
    assert float(found) == pytest.approx(expected, abs=1e-12)
    for name in ("image.weight", "linear.bias"):
        step = np.random.default_rng(1).standard_normal(params[name].shape)
        sides = [
            loss_of(model, params | {name: params[name] + e * step}, BACKEND, reader, pictures)
            for e in (1e-5, -1e-5)
        ]
        slope = (sides[0] - sides[1]) / 2e-5
        assert float((dparams[name] * step).sum()) == pytest.approx(slope, rel=1e-6)


def test_what_no_picture_is_gets_no_caption() -> None:
    pictures = stripes(3)
    reader = Reader.of(pictures, pictures.captions or ())
    model = caption_model(16, len(reader.words) + 1, hidden_size=3)
    for images in (np.full(pictures.images.shape, np.nan), pictures.images[:0]):
        with pytest.raises(CaptionError, match=r"not finite|\(N, \.\.\.\)"):
            write_captions(model, model.init(0), BACKEND, reader, images)


def test_it_learns_to_tell_stripes_apart() -> None:
    pictures = stripes(60)
    train, test = split(pictures)
    reader = Reader.of(train, pictures.captions or ())
    model = caption_model(16, len(reader.words) + 1, hidden_size=16)
    gradients = gradients_of(model, BACKEND, "float32", reader, train)
    fitted = fit(model.init(0), gradients, len(train), Settings(epochs=25, learning_rate=0.02))
    for beam in (1, 3):
        written = write_captions(model, fitted.params, BACKEND, reader, test.images, beam=beam)
        assert tuple(text.caption for text in written) == test.captions
        assert all(-1.0 < text.log_probability < 0.0 for text in written)
    short = write_captions(model, fitted.params, BACKEND, reader, test.images, max_length=1)
    assert {text.caption for text in short} == {"far", "left", "right"}


def test_the_mask_hides_what_is_past_the_end() -> None:
    """The targets there are `END`: without a mask the loss would be another one."""
    found = Reader.of(stripes(4), stripes(4).captions or ()).encode(stripes(4).captions or ())
    logits = np.random.default_rng(0).standard_normal((*found.targets.shape, 9))
    masked, dlogits = losses.softmax_cross_entropy(logits, found.targets, mask=found.mask)
    bare, _ = losses.softmax_cross_entropy(logits, found.targets)
    assert masked != pytest.approx(bare)
    assert not dlogits[~found.mask].any()


# The captions of the digits


def scalar_measures(image: HostArray) -> tuple[float, float, float]:
    """Ink, angle and spread by the equations in the module's head, a pixel at a time."""
    cells = [(r, c, float(image[r, c])) for r in range(8) for c in range(8)]
    total = sum(g for _, _, g in cells)
    row, column = (sum(cell[k] * cell[2] for cell in cells) / total for k in (0, 1))
    rr = sum(g * (r - row) ** 2 for r, _, g in cells) / total
    rc = sum(g * (r - row) * (c - column) for r, c, g in cells) / total
    cc = sum(g * (c - column) ** 2 for _, c, g in cells) / total
    return total / 64 / 16, math.degrees(math.atan(-rc / rr)), math.sqrt(cc / rr)


def test_what_is_measured_in_a_picture() -> None:
    images, _ = load_digits()
    found = measure(images[:40])
    for k in range(40):
        expected = scalar_measures(images[k])
        assert [part[k] for part in found] == pytest.approx(expected, abs=1e-12)


def test_captions_by_eye() -> None:
    upright, left, right = (np.zeros((8, 8)) for _ in range(3))
    upright[:, 3:5] = 16.0
    for r in range(8):
        left[r, r], right[r, 7 - r] = 16.0, 16.0  # from the top left, from the top right
    block = np.full((8, 8), 16.0)
    block[:3] = 0.0
    images = np.stack([upright, left, right, block, np.zeros((8, 8))])
    assert compose(images, np.asarray([1, 5, 8, 0, 9])) == (
        "a one, thin, narrow",
        "a five, thin, leaning left, wide",
        "an eight, thin, leaning right, wide",
        "a zero, bold, wide",
        "a nine, thin",
    )


def test_the_bounds_are_the_quantiles_of_the_training_part() -> None:
    train, _ = split(Pictures(load_digits()[0]))
    measures = [scalar_measures(image) for image in train.images]
    ink, angle, spread = (np.asarray(values) for values in zip(*measures, strict=True))
    assert BOUNDS["weight"] == tuple(np.quantile(ink, [0.25, 0.75]).round(2))
    assert BOUNDS["width"] == tuple(np.quantile(spread, [0.25, 0.75]).round(2))
    lean = float(np.median(np.abs(angle)).round(0))
    assert BOUNDS["slant"] == (-lean, lean)


def test_every_fact_is_said_and_left_out() -> None:
    pictures = load_digit_pictures()
    assert pictures.images.shape == (1797, 8, 8)
    captions = pictures.captions or ()
    said = [facts(caption) for caption in captions]
    assert {f["digit"] for f in said} == {
        (f"{'an' if name == 'eight' else 'a'} {name}",) for name in DIGITS
    }
    for name, (low, high) in WORDS.items():
        assert {f[name] for f in said} == {(), (low,), (high,)}
    labels = load_digits()[1]
    assert [f["digit"][0].split()[1] for f in said] == [DIGITS[label] for label in labels]


def test_facts_of_captions_that_are_wrong() -> None:
    assert facts("a four, bold, wide") == {
        "digit": ("a four",),
        "weight": ("bold",),
        "slant": (),
        "width": ("wide",),
    }
    assert facts("bold, thin, a cat") == {
        "digit": (),
        "weight": ("bold", "thin"),
        "slant": (),
        "width": (),
    }
    true = ("a four, bold", "a six, thin", "an eight", "a one, leaning left")
    written = ("a four, bold", "a six, bold, thin", "an eight, wide", "a two, leaning left")
    assert accuracies(written, true) == {
        "exact": 0.25,
        "digit": 0.75,
        "weight": 0.75,
        "slant": 1.0,
        "width": 0.75,
    }


def test_baselines_by_hand() -> None:
    seen = np.asarray([0.0, 1.0, 2.0, 9.0, 10.0])[:, None, None] * np.ones((5, 8, 8))
    captions = ("a one", "a one, thin", "a one, thin", "a two", "a two, bold")
    others = np.asarray([0.3, 9.8])[:, None, None] * np.ones((2, 8, 8))
    assert baselines(seen, captions, others, ("a two, wide", "a one")) == {
        "most frequent": ("a one, thin",) * 2,
        "label only": ("a two", "a one, thin"),  # of equally frequent ones the first
        "nearest label": ("a one, thin", "a two"),
        "nearest caption": ("a one", "a two, bold"),
    }
