# SPDX-License-Identifier: Apache-2.0
"""
A local stand-in for the VoiceGenie campaign service: for demos, and for tests of DAGs. It phones nobody.

``campaign`` is one campaign with its contacts and calls, ``store`` has them all, and ``quota`` is the account's quota.
``service`` has the endpoints, ``app`` serves them over HTTP, ``page`` is the page, ``faults`` breaks responses on
demand, ``server`` runs it all, ``__main__`` is the command, and ``pytest_plugin`` the fixture. The sandbox follows the
service's documentation. If the documentation says nothing, the sandbox refuses the request.
"""
