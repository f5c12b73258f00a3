# SPDX-License-Identifier: Apache-2.0
"""
A local stand-in for the VoiceGenie campaign service: for demos, and for tests of DAGs. It phones nobody.

``store`` has the campaigns, ``contacts`` what is uploaded to them, ``calls`` their calls, and ``quota`` the account's
quota. ``service`` has the endpoints, ``app`` serves them over HTTP, ``page`` is the page, ``faults`` breaks responses
on demand, ``server`` runs it all, ``cli`` is the command, and ``pytest_plugin`` the fixture. The sandbox follows the
service's documentation. If the documentation says nothing, the sandbox refuses the request.
"""
