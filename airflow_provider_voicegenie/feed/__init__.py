# SPDX-License-Identifier: Apache-2.0
"""One poll for all who wait in an event loop."""
