# SPDX-License-Identifier: Apache-2.0
"""
A local stand-in for the VoiceGenie campaign service: for demos, and for tests of DAGs. It phones nobody.

``store`` holds campaigns and what happens to them, ``app`` serves them over HTTP, ``faults`` breaks answers on
demand, ``server`` runs it all, ``cli`` is the command, and ``pytest_plugin`` the fixture. It follows the service's
documentation where there is any; where that is silent it refuses rather than guesses.
"""
