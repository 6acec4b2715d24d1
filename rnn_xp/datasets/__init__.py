"""The few small real data sets that ship with the package.

Sources, licences and what was changed are in ``LICENSES.md`` beside this file. Every loader raises
OSError if its file is missing from the installed package, or damaged.
"""

import bz2
import gzip
import hashlib
import io
from importlib import resources
from itertools import pairwise
from typing import Any, Final

import numpy as np

from rnn_xp.sequences import Sequences
from rnn_xp.table import Table, parse_table

__all__ = [
    "SHAKESPEARE_PLAYS",
    "SHAKESPEARE_SHA256",
    "load_co2",
    "load_digits",
    "load_japanese_vowels",
    "load_shakespeare",
    "load_sunspots",
]

SHAKESPEARE_SHA256: Final = "0bbe794c3fc593ee68ab62b09e32ad6598c7fc3bb648cb67dc8f233736ae5bdc"
"""SHA-256 of the text as ASCII bytes."""

SHAKESPEARE_PLAYS: Final[tuple[tuple[str, int, int], ...]] = (
    ("Richard III", 0, 175_604),
    ("Julius Caesar", 175_605, 291_743),
    ("Macbeth", 291_744, 395_115),
    ("Othello", 395_116, 549_580),
    ("The Merchant of Venice", 549_581, 669_978),
    ("As You Like It", 669_979, 795_143),
    ("Much Ado About Nothing", 795_144, 917_432),
    ("The Tempest", 917_433, 1_015_741),
    ("Twelfth Night", 1_015_742, 1_130_580),
)
"""Title, start and end of each play: ``text[start:end]`` is the play."""

# The files, and the SHA-256 of what they unpack to.
_FILES: Final = {
    "shakespeare.txt.bz2": SHAKESPEARE_SHA256,
    "japanese_vowels.npz": "99409d47a814814c1d31e09052010ba484847cc9e2551ac55ffc51791340cd52",
    "digits.csv.gz": "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8",
    "sunspots.csv": "f67889b1d9002cd5227f0e0ef54e35b419cdd85a31279adef6f73fb41e5c0a9b",
    "co2.csv.bz2": "16695fa2786e53414e5a6b54767a3fdf5de99cfbc68617f69d1362d92776a92f",
}


def load_shakespeare() -> str:
    """Nine plays of William Shakespeare, as one text.

    1,130,580 ASCII characters, 80 of them distinct, so that character and byte offsets are the
    same. The plays and their offsets are in `SHAKESPEARE_PLAYS`; one blank line stands between two
    plays. The last tenth, from 1,017,522, lies wholly inside *Twelfth Night*: a model that is
    trained on the first nine tenths is tested on a play that it has not seen.

    Returns
    -------
    str
        The text; its SHA-256 is `SHAKESPEARE_SHA256`.

    Notes
    -----
    W. Shakespeare; Project Gutenberg texts as cleaned by Open Shakespeare (R. Pollock, I. Emsley;
    Open Knowledge Foundation, 2005-2008), from the Python package ``shakespeare`` 0.6. Public
    domain; what was changed is in ``LICENSES.md``.
    """
    return _unpacked("shakespeare.txt.bz2").decode("ascii")


def load_japanese_vowels() -> tuple[Sequences, Sequences]:
    """Utterances of two Japanese vowels by nine male speakers: who speaks?

    Each of the 640 utterances of /ae/ is a sequence of 7 to 29 frames of 12 LPC cepstrum
    coefficients, float32; its label is the speaker, `1` to `9`.

    Returns
    -------
    train : Sequences
        270 utterances, 30 of each speaker.
    test : Sequences
        370 utterances of the same speakers (31, 35, 88, 44, 29, 24, 40, 50, 29).

    Notes
    -----
    M. Kudo, J. Toyama, M. Shimbo, *Japanese Vowels*, UCI Machine Learning Repository,
    doi:10.24432/C5NS47; Kudo et al., "Multidimensional curve classification using passing-through
    regions", Pattern Recognition Letters 20 (1999) 1103-1111. CC BY 4.0. From the files of the
    Python package ``aeon`` 1.6.0, as float32.
    """
    with np.load(io.BytesIO(_unpacked("japanese_vowels.npz")), allow_pickle=False) as file:
        frames, offsets = file["frames"], file["offsets"]
        labels, is_test = file["labels"], file["is_test"]
    values = tuple(frames[a:b] for a, b in pairwise(offsets))
    whole = Sequences(values, tuple(str(label + 1) for label in labels))
    return whole.take(np.flatnonzero(~is_test)), whole.take(np.flatnonzero(is_test))


def load_digits() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Handwritten digits, as pictures of 8x8 grey values.

    Returns
    -------
    images : (1797, 8, 8), float32
        From 0, white, to 16, black.
    labels : (1797,), int64
        The digits, 0 to 9.

    Notes
    -----
    E. Alpaydin, C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning
    Repository (1998), doi:10.24432/C50P49: its test part. CC BY 4.0. The file is that of the Python
    package ``scikit-learn`` 1.9.1.
    """
    text = _unpacked("digits.csv.gz").decode("ascii")
    rows = np.loadtxt(io.StringIO(text), delimiter=",", dtype=np.float32)
    return rows[:, :64].reshape(-1, 8, 8), rows[:, 64].astype(np.int64)


def load_sunspots() -> Table:
    """Yearly sunspot numbers, 1700 to 2008.

    Returns
    -------
    Table
        309 rows with the columns `YEAR` and `SUNACTIVITY`.

    Notes
    -----
    NOAA National Geophysical Data Center. Public domain. The file is that of the Python package
    ``statsmodels`` 0.15.0.
    """
    return _table("sunspots.csv", "sunspots")


def load_co2() -> Table:
    """Weekly atmospheric CO2 at Mauna Loa in ppmv, 29 March 1958 to 29 December 2001.

    Returns
    -------
    Table
        2,284 rows with the columns `date` (YYYYMMDD) and `co2`, of which 59 are missing.

    Notes
    -----
    C. D. Keeling, T. P. Whorf (2004), Atmospheric CO2 concentrations derived from flask air samples
    at sites in the SIO network, in Trends, CDIAC, Oak Ridge National Laboratory, U.S. Department of
    Energy. Public domain. The file is that of the Python package ``statsmodels`` 0.15.0.
    """
    return _table("co2.csv.bz2", "co2")


def _table(name: str, source: str) -> Table:
    return parse_table(_unpacked(name).decode("ascii"), source)


def _unpacked(name: str) -> bytes:
    """Unpack the file `name` of this folder, and check it."""
    unpack = {".bz2": bz2.decompress, ".gz": gzip.decompress}.get(name[name.rindex(".") :], bytes)
    try:
        data = unpack(resources.files(__name__).joinpath(name).read_bytes())
    except FileNotFoundError:
        raise _broken(name, "missing") from None
    except (OSError, ValueError, EOFError) as error:
        raise _broken(name, f"unreadable ({error})") from error
    if hashlib.sha256(data).hexdigest() != _FILES[name]:
        raise _broken(name, "damaged (its SHA-256 is not the expected one)")
    return data


def _broken(name: str, what: str) -> OSError:
    return OSError(f"the data file {name} of the installed package is {what}: reinstall rnn-xp")
