# SPDX-License-Identifier: Apache-2.0
"""
The VoiceGenie campaign service, without Airflow.

``endpoints`` makes requests, ``client`` sends them, ``session`` is what it sends them through: a ``requests.Session``
that is bound to one host. ``responses`` reads what comes back, into ``models`` or ``errors``. ``retries`` and
``rate_limit`` decide when.
"""
