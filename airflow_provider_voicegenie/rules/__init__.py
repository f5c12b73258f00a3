# SPDX-License-Identifier: Apache-2.0
"""What a DAG author decides: outcomes of conditions, prerequisites, calling hours; and how parameters are read."""
