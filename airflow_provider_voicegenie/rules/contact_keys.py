# SPDX-License-Identifier: Apache-2.0
"""Keys by which contacts and calls of one person join, without the phone number."""

from __future__ import annotations

import hmac

from airflow_provider_voicegenie.rules.phone_numbers import digits_of

#: The column, and the length that its secret needs: there are so few phone numbers that a short one can be guessed.
CONTACT_KEY = "contact_key"
MINIMUM_SECRET = 16


def contact_key(secret: str, phone_number: str | None) -> str | None:
    """
    Return the key of a phone number: HMAC-SHA256 of it in E.164, in hexadecimal digits.

    :param secret: Known to those alone who may make keys.
    :param phone_number: The number with its country code, in any notation; ``None`` has no key.
    """
    digits = "" if phone_number is None else digits_of(phone_number)
    return hmac.new(secret.encode(), f"+{digits}".encode(), "sha256").hexdigest() if digits else None


def check_key_connection(argument: str, is_wanted: bool, conn_id: object) -> None:
    """
    Refuse keys without a secret, and a secret without keys, when a DAG is parsed.

    :param argument: What asks for keys, for the message.
    :param is_wanted: Whether it does.
    :param conn_id: The Airflow connection that has the secret as its password.
    :raises ValueError: One is there without the other.
    """
    if is_wanted and (not isinstance(conn_id, str) or not conn_id.strip()):
        raise ValueError(
            f"contact_key_conn_id: {argument} needs a secret. Give the id of an Airflow connection whose password is a "
            f"random text of at least {MINIMUM_SECRET} characters; got {conn_id!r:.80}."
        )
    if not is_wanted and conn_id is not None:
        raise ValueError(f"contact_key_conn_id: nothing here has keys. Add {argument}, or leave it out.")
