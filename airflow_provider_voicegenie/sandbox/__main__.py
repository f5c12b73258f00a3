# SPDX-License-Identifier: Apache-2.0
"""``python -m airflow_provider_voicegenie.sandbox``."""

from airflow_provider_voicegenie.sandbox.cli import main

if __name__ == "__main__":
    main()
