# SPDX-License-Identifier: Apache-2.0
"""
The VoiceGenie campaign service, without Airflow.

``models`` says what the service answers, ``errors`` how it refuses, ``endpoints`` which calls there are and how
an answer to each is read. ``answers``, ``retries`` and ``pacing`` hold the decisions every transport shares.
``client`` is the transport for workers and ``async_client`` the one for event loops, on what they share in ``wire``:
they move bytes and decide nothing.
"""
