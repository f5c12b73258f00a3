# SPDX-License-Identifier: Apache-2.0
"""One run of a start: its guards, the one request, the wait, the result; or the kill."""
