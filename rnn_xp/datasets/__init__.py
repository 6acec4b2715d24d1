"""The few small real data sets that ship with the package.

Sources and licences are in ``LICENSES.md`` beside this file.
"""

import bz2
import hashlib
from importlib import resources
from typing import Final

__all__ = ["SHAKESPEARE_PLAYS", "SHAKESPEARE_SHA256", "load_shakespeare"]

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

    Raises
    ------
    OSError
        The file is missing from the installed package, or damaged.

    Notes
    -----
    W. Shakespeare; Project Gutenberg texts as cleaned by Open Shakespeare (R. Pollock, I. Emsley;
    Open Knowledge Foundation, 2005-2008), from the Python package ``shakespeare`` 0.6. Public
    domain; what was changed is in ``LICENSES.md``.
    """
    return _read_text("shakespeare.txt.bz2", SHAKESPEARE_SHA256)


def _read_text(name: str, sha256: str) -> str:
    """Unpack the ASCII text `name` of this folder, and check it."""
    try:
        data = bz2.decompress(resources.files(__name__).joinpath(name).read_bytes())
    except FileNotFoundError:
        raise _broken(name, "missing") from None
    except (OSError, ValueError) as error:
        raise _broken(name, f"unreadable ({error})") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise _broken(name, "damaged (its SHA-256 is not the expected one)")
    return data.decode("ascii")


def _broken(name: str, what: str) -> OSError:
    return OSError(f"the data file {name} of the installed package is {what}: reinstall rnn-xp")
