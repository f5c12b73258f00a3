# SPDX-License-Identifier: Apache-2.0
"""Finds the API key and the people of the tests, in whatever form, wherever they must not be."""

from __future__ import annotations

import base64
import html
import json
import pickle
import traceback
from pathlib import Path
from urllib.parse import quote, quote_plus

#: Has characters that each encoding writes in its own way.
MARKED_KEY = "sk-marked/key+1234567890&<>"

_TESTS = Path(__file__).parents[1]


def forms_of(key):
    """Return the key as it is, and as encodings write it."""
    texts = {key, quote(key), quote(key, safe=""), quote_plus(key), html.escape(key), json.dumps(key)[1:-1], key[::-1]}
    data = {text.encode() for text in texts}
    # Base64 depends on where in its text the key begins; what its neighbours take part in is left out.
    data |= {base64.b64encode(b"x" * before + key.encode())[4:-4] for before in range(3)}
    return data | {key.encode().hex().encode(), key.encode("utf-16-le")}


FORMS = forms_of(MARKED_KEY)


def leak_in(data):
    """Return what stands around the key; ``None`` where it is not."""
    if isinstance(data, str):
        data = data.encode(errors="replace")
    for form in FORMS:
        if (place := data.find(form)) >= 0:
            return data[max(0, place - 500) : place + 500].decode(errors="replace")
    return None


def all_of(error):
    """Return an exception and all that it was made from, or that came up on the way."""
    found, pending = [], [error]
    while pending:
        candidate = pending.pop()
        if candidate is not None and candidate not in found:
            found.append(candidate)
            pending += [candidate.__cause__, candidate.__context__, *getattr(candidate, "exceptions", ())]
    return found


def shown_by(error):
    """Give all that a log, a debugger or a pickle may show of an exception; of its frames, those of the tests apart."""
    for each in all_of(error):
        yield f"{each!r} {each} {each.args!r} {vars(each)!r} {getattr(each, '__notes__', '')!r}"
        yield pickle.dumps((type(each).__name__, each.args, {name: repr(value) for name, value in vars(each).items()}))
        for frame, _ in traceback.walk_tb(each.__traceback__):
            if not Path(frame.f_code.co_filename).is_relative_to(_TESTS):
                yield f"{frame.f_code.co_qualname}: {frame.f_locals!r}"


def check_exception(error):
    """Fail where an exception shows the key."""
    for text in shown_by(error):
        leak = leak_in(text)
        assert leak is None, leak


#: A contact whose number, name and address have parts that nothing else has.
MARKED_PERSON = {
    "phone_number": "+4915190817263",
    "name": "Xaverine Quastenflosser",
    "email": "xaverine@quastenflosser.example",
    "nickname": "Quasti",
}

_PARTS_OF_PERSON = ("15190817263", "1519081", "xaverine", "quastenflosser", "quasti")


def person_in(data):
    """Return what stands around a part of the person; ``None`` where there is none."""
    text = data.decode(errors="replace") if isinstance(data, bytes) else data
    for part in _PARTS_OF_PERSON:
        if (place := text.casefold().find(part)) >= 0:
            return text[max(0, place - 300) : place + 300]
    return None


def check_for_people(error):
    """Fail where an exception names the person."""
    for each in all_of(error):
        leak = person_in(repr(each.args))
        assert leak is None, leak
