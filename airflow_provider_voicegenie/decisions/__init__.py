# SPDX-License-Identifier: Apache-2.0
"""
What is decided, without any I/O.

The outcome of a condition, whether a run may start a campaign at all, what must hold before a start, and whether a
start whose answer was lost took effect.

DAG files import from here at every parse, so nothing here loads an HTTP library.
"""
