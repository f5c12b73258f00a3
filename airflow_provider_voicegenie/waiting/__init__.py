# SPDX-License-Identifier: Apache-2.0
"""The wait for a campaign, wherever it happens: when it ends, what it says meanwhile, and what a kill does to it."""
