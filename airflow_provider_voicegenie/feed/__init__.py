# SPDX-License-Identifier: Apache-2.0
"""One poll for all waits of an event loop."""
