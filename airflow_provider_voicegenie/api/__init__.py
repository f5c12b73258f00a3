# SPDX-License-Identifier: Apache-2.0
"""
The VoiceGenie campaign service, without Airflow.

``models`` says what the service answers, ``errors`` how it refuses, ``endpoints`` which calls there are and how
an answer to each is read. ``answers``, ``retries`` and ``pacing`` hold the decisions every transport shares.
``client`` is the transport on ``requests``: it moves bytes and decides nothing.
"""
